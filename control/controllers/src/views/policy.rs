//! PodDisruptionBudgets and ResourceQuotas.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use wharf_kit::api::Kind;
use wharf_kit::resources::Amounts;
use wharf_kit::selector::LabelSelector;
use wharf_kit::view::{Meta, View, or_default};

use super::{Condition, IntOrPercent};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodDisruptionBudget {
    pub metadata: Meta,
    pub spec: DisruptionSpec,
    pub status: DisruptionStatus,
}

view!(PodDisruptionBudget, Kind::new("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"));

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DisruptionSpec {
    pub min_available: Option<IntOrPercent>,
    pub max_unavailable: Option<IntOrPercent>,
    /// `None` selects no pod, an empty one every pod of the namespace.
    pub selector: Option<LabelSelector>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DisruptionStatus {
    pub observed_generation: i64,
    /// Pods whose eviction the API server let pass, and when: they will soon be seen going.
    #[serde(deserialize_with = "or_default")]
    pub disrupted_pods: BTreeMap<String, Timestamp>,
    pub disruptions_allowed: i32,
    pub current_healthy: i32,
    pub desired_healthy: i32,
    pub expected_pods: i32,
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<Condition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ResourceQuota {
    pub metadata: Meta,
    /// As it is: what a quota counts is decided elsewhere.
    pub spec: serde_json::Value,
    pub status: QuotaStatus,
}

view!(ResourceQuota, Kind::core("ResourceQuota", "resourcequotas"));

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct QuotaStatus {
    #[serde(deserialize_with = "or_default")]
    pub hard: Amounts,
    #[serde(deserialize_with = "or_default")]
    pub used: Amounts,
}
