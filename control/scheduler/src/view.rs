//! What the scheduler reads of pods and nodes.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use wharf_kit::api::Kind;
use wharf_kit::placement::{NodeAffinity, Taint, Toleration};
use wharf_kit::quantity::Quantity;
use wharf_kit::selector::LabelSelector;
use wharf_kit::view::{Meta, View, or_default};

use crate::resources::Resources;

/// A pod as the scheduler sees it. Containers are reduced to [`PodView::requests`] and [`PodView::ports`].
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct PodView {
    pub metadata: Meta,
    pub spec: PodSpec,
    pub status: PodStatus,
    /// What it asks of a node, itself counted as one pod.
    #[serde(skip)]
    pub requests: Resources,
    /// The ports it asks of the node's own addresses.
    #[serde(skip)]
    pub ports: Vec<HostPort>,
}

impl View for PodView {
    const KIND: Kind = Kind::core("Pod", "pods");

    fn meta(&self) -> &Meta {
        &self.metadata
    }

    fn prepare(&mut self) {
        let spec = &mut self.spec;
        self.requests = requests(spec);
        let containers =
            spec.containers.iter().chain(spec.init_containers.iter().filter(|one| one.is_sidecar()));
        self.ports = containers
            .flat_map(|container| &container.ports)
            .filter(|port| port.host_port > 0)
            .map(|port| HostPort {
                ip: port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into()),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                port: port.host_port,
            })
            .collect();
        spec.containers = Vec::new();
        spec.init_containers = Vec::new();
        self.metadata.annotations = BTreeMap::new();
    }
}

impl PodView {
    /// Whether it has ended, so that it takes nothing of its node any more.
    pub fn has_ended(&self) -> bool {
        matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// Whether it waits for us to choose its node.
    pub fn is_pending(&self) -> bool {
        self.spec.node_name.is_empty()
            && !self.has_ended()
            && !self.metadata.is_deleting()
            && self.spec.scheduling_gates.is_empty()
            && (self.spec.scheduler_name.is_empty() || &*self.spec.scheduler_name == "default-scheduler")
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Empty: none yet.
    pub node_name: Arc<str>,
    pub scheduler_name: Box<str>,
    pub priority: i32,
    #[serde(deserialize_with = "or_default")]
    pub node_selector: BTreeMap<String, String>,
    pub affinity: Option<Box<Affinity>>,
    #[serde(deserialize_with = "or_default")]
    pub tolerations: Vec<Toleration>,
    #[serde(deserialize_with = "or_default")]
    pub topology_spread_constraints: Vec<SpreadConstraint>,
    #[serde(deserialize_with = "or_default")]
    pub scheduling_gates: Vec<serde::de::IgnoredAny>,
    #[serde(deserialize_with = "or_default")]
    overhead: BTreeMap<String, Quantity>,
    /// Pod-level requests.
    resources: Option<ResourceNeeds>,
    #[serde(deserialize_with = "or_default")]
    containers: Vec<Container>,
    #[serde(deserialize_with = "or_default")]
    init_containers: Vec<Container>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    pub phase: Option<Box<str>>,
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<PodCondition>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct PodCondition {
    pub r#type: Box<str>,
    pub status: Box<str>,
    pub message: Option<Box<str>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    resources: ResourceNeeds,
    #[serde(deserialize_with = "or_default")]
    ports: Vec<ContainerPort>,
    restart_policy: Option<Box<str>>,
}

impl Container {
    /// An init container that goes on running beside the others.
    fn is_sidecar(&self) -> bool {
        self.restart_policy.as_deref() == Some("Always")
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ResourceNeeds {
    #[serde(deserialize_with = "or_default")]
    requests: BTreeMap<String, Quantity>,
    #[serde(deserialize_with = "or_default")]
    limits: BTreeMap<String, Quantity>,
}

impl ResourceNeeds {
    /// A resource that is limited but not requested is requested at its limit.
    fn asked(&self) -> Resources {
        let mut list = self.limits.clone();
        list.extend(self.requests.iter().map(|(name, quantity)| (name.clone(), *quantity)));
        Resources::from_list(&list)
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerPort {
    host_port: i32,
    #[serde(rename = "hostIP")]
    host_ip: Option<Box<str>>,
    protocol: Option<Box<str>>,
}

/// A port on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    pub ip: Box<str>,
    pub protocol: Box<str>,
    pub port: i32,
}

impl HostPort {
    pub fn conflicts(&self, other: &Self) -> bool {
        let any = |ip: &str| ip == "0.0.0.0" || ip == "::";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || any(&self.ip) || any(&other.ip))
    }
}

/// What the whole pod asks: its containers together with its sidecars, or one init container with the sidecars
/// started before it if that is more; and its overhead.
fn requests(spec: &PodSpec) -> Resources {
    let mut running = Resources::default();
    let mut most = Resources::default();
    for init in &spec.init_containers {
        let asked = init.resources.asked();
        if init.is_sidecar() {
            running.add(&asked);
            most.raise_to(&running);
        } else {
            let mut with_sidecars = running.clone();
            with_sidecars.add(&asked);
            most.raise_to(&with_sidecars);
        }
    }
    for container in &spec.containers {
        running.add(&container.resources.asked());
    }
    most.raise_to(&running);
    if let Some(pod) = &spec.resources {
        // What the pod itself asks for a resource stands for the sum of its containers.
        let asked = pod.asked();
        let mut override_with = |name: &str, value: i64, slot: fn(&mut Resources) -> &mut i64| {
            if pod.requests.contains_key(name) || pod.limits.contains_key(name) {
                *slot(&mut most) = value;
            }
        };
        override_with("cpu", asked.cpu, |r| &mut r.cpu);
        override_with("memory", asked.memory, |r| &mut r.memory);
    }
    most.add(&Resources::from_list(&spec.overhead));
    most.pods = 1;
    most
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Affinity {
    pub node_affinity: Option<NodeAffinity>,
    pub pod_affinity: Option<PodAffinity>,
    pub pod_anti_affinity: Option<PodAffinity>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct PodAffinity {
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution", deserialize_with = "or_default")]
    pub required: Vec<PodTerm>,
    #[serde(rename = "preferredDuringSchedulingIgnoredDuringExecution", deserialize_with = "or_default")]
    pub preferred: Vec<WeightedPodTerm>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WeightedPodTerm {
    pub weight: i64,
    pub pod_affinity_term: PodTerm,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodTerm {
    /// `None` selects no pod.
    pub label_selector: Option<LabelSelector>,
    #[serde(deserialize_with = "or_default")]
    pub namespaces: Vec<String>,
    /// Without a view on namespaces' labels only its emptiness counts: `{}` is every namespace.
    pub namespace_selector: Option<LabelSelector>,
    pub topology_key: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SpreadConstraint {
    pub max_skew: i64,
    pub topology_key: String,
    pub when_unsatisfiable: Box<str>,
    pub label_selector: Option<LabelSelector>,
    #[serde(deserialize_with = "or_default")]
    pub match_label_keys: Vec<String>,
}

impl SpreadConstraint {
    /// Whether it forbids, or only prefers.
    pub fn is_hard(&self) -> bool {
        &*self.when_unsatisfiable != "ScheduleAnyway"
    }
}

/// A node as the scheduler sees it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NodeView {
    pub metadata: Meta,
    pub spec: NodeSpec,
    status: NodeStatus,
    /// What pods may be promised.
    #[serde(skip)]
    pub allocatable: Resources,
}

impl View for NodeView {
    const KIND: Kind = Kind::core("Node", "nodes").cluster();

    fn meta(&self) -> &Meta {
        &self.metadata
    }

    fn prepare(&mut self) {
        let status = std::mem::take(&mut self.status);
        let list = if status.allocatable.is_empty() { &status.capacity } else { &status.allocatable };
        self.allocatable = Resources::from_list(list);
        self.metadata.annotations = BTreeMap::new();
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    pub unschedulable: bool,
    #[serde(deserialize_with = "or_default")]
    pub taints: Vec<Taint>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    #[serde(deserialize_with = "or_default")]
    allocatable: BTreeMap<String, Quantity>,
    #[serde(deserialize_with = "or_default")]
    capacity: BTreeMap<String, Quantity>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_asks_for_its_containers_or_its_largest_start() {
        let mut pod: PodView = serde_json::from_value(json!({"spec": {
            "overhead": {"cpu": "10m"},
            "initContainers": [
                {"resources": {"requests": {"cpu": "1"}}},
                {"restartPolicy": "Always", "resources": {"requests": {"cpu": "200m", "memory": "1Ki"}}},
                {"resources": {"requests": {"cpu": "500m", "memory": "1Mi"}}},
            ],
            "containers": [
                {"resources": {"requests": {"cpu": "300m"}, "limits": {"cpu": "2", "memory": "1Gi", "x.io/gpu": "1"}},
                 "ports": [{"containerPort": 1, "hostPort": 80}, {"containerPort": 2}]},
                {"resources": {}},
            ],
        }}))
        .unwrap();
        pod.prepare();
        assert_eq!(pod.requests.cpu, 1010);
        assert_eq!(pod.requests.memory, (1 << 30) + 1024);
        assert_eq!(pod.requests.pods, 1);
        assert_eq!(pod.requests.extended["x.io/gpu"], 1);
        assert_eq!(pod.ports.len(), 1);
        assert!(pod.is_pending());
    }
}
