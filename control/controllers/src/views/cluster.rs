//! Namespaces, accounts, nodes, roles and leases.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use wharf_kit::api::Kind;
use wharf_kit::placement::Taint;
use wharf_kit::selector::LabelSelector;
use wharf_kit::view::{Meta, View, or_default};

use super::Condition;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    pub metadata: Meta,
    pub spec: NamespaceSpec,
    pub status: NamespaceStatus,
}

view!(Namespace, Kind::core("Namespace", "namespaces").cluster());

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NamespaceSpec {
    #[serde(deserialize_with = "or_default")]
    pub finalizers: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NamespaceStatus {
    pub phase: Option<String>,
}

impl Namespace {
    pub fn is_active(&self) -> bool {
        !self.metadata.is_deleting()
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ServiceAccount {
    pub metadata: Meta,
}

view!(ServiceAccount, Kind::core("ServiceAccount", "serviceaccounts"));

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ConfigMap {
    pub metadata: Meta,
    #[serde(deserialize_with = "or_default")]
    pub data: BTreeMap<String, String>,
}

view!(ConfigMap, Kind::core("ConfigMap", "configmaps"));

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    pub metadata: Meta,
    pub spec: NodeSpec,
    pub status: NodeStatus,
}

view!(Node, Kind::core("Node", "nodes").cluster());

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
    pub unschedulable: bool,
    #[serde(deserialize_with = "or_default")]
    pub taints: Vec<Taint>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    #[serde(deserialize_with = "or_default")]
    pub addresses: Vec<NodeAddress>,
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    pub address: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterRole {
    pub metadata: Meta,
    aggregation_rule: Option<AggregationRule>,
    #[serde(deserialize_with = "or_default")]
    pub rules: Vec<serde_json::Value>,
}

view!(ClusterRole, Kind::new("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles").cluster());

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AggregationRule {
    #[serde(deserialize_with = "or_default")]
    cluster_role_selectors: Vec<LabelSelector>,
}

impl ClusterRole {
    pub fn is_aggregated(&self) -> bool {
        self.aggregation_rule.is_some()
    }

    /// Which roles it is made of.
    pub fn selectors(&self) -> impl Iterator<Item = &LabelSelector> {
        self.aggregation_rule.iter().flat_map(|rule| &rule.cluster_role_selectors)
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Lease {
    pub metadata: Meta,
    pub spec: LeaseSpec,
}

view!(Lease, Kind::new("coordination.k8s.io", "v1", "Lease", "leases"));

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LeaseSpec {
    pub renew_time: Option<Timestamp>,
}
