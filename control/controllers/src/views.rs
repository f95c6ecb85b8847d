//! What the loops read of the kinds they watch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use wharf_kit::api::Kind;
use wharf_kit::placement::{NodeAffinity, Toleration};
use wharf_kit::selector::LabelSelector;
use wharf_kit::view::{Meta, View, or_default};

pub use wharf_kit::placement::{NO_EXECUTE, Taint};

macro_rules! view {
    ($type:ty, $kind:expr) => {
        impl View for $type {
            const KIND: Kind = $kind;

            fn meta(&self) -> &Meta {
                &self.metadata
            }
        }
    };
}

/// A condition of any kind's status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    pub r#type: String,
    pub status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_update_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_heartbeat_time: Option<Timestamp>,
    pub last_transition_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub message: String,
}

/// The condition of a type, if it is there.
pub fn condition<'a>(all: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    all.iter().find(|one| one.r#type == kind)
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    pub metadata: Meta,
    pub spec: PodSpec,
    pub status: PodStatus,
}

impl View for Pod {
    const KIND: Kind = Kind::core("Pod", "pods");

    fn meta(&self) -> &Meta {
        &self.metadata
    }

    fn prepare(&mut self) {
        self.metadata.annotations.retain(|key, _| key == DELETION_COST);
        self.status.conditions.retain(|one| &*one.r#type == "Ready");
        let affinity = self.spec.affinity.take();
        self.spec.pinned = affinity.and_then(|all| Some(all.node_affinity?.pinned_to()?.into()));
        self.spec.tolerations.retain(|one| matches!(&*one.effect, "" | NO_EXECUTE));
        self.spec.tolerations.shrink_to_fit();
    }
}

/// The annotation that says which pods of a ReplicaSet may go first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub node_name: Arc<str>,
    /// The one node that its affinity lets it go to.
    #[serde(skip)]
    pub pinned: Option<Arc<str>>,
    affinity: Option<Affinity>,
    /// Those of taints that end pods.
    #[serde(deserialize_with = "or_default")]
    pub tolerations: Vec<Toleration>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Affinity {
    pub node_affinity: Option<NodeAffinity>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    pub phase: Option<Box<str>>,
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<PodCondition>,
    #[serde(deserialize_with = "or_default")]
    pub container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodCondition {
    pub r#type: Box<str>,
    pub status: Box<str>,
    pub last_transition_time: Option<Timestamp>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    pub restart_count: i32,
    pub state: ContainerState,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    pub terminated: Option<Terminated>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Terminated {
    pub finished_at: Option<Timestamp>,
}

impl Pod {
    pub fn has_ended(&self) -> bool {
        matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// Neither ended nor being deleted: it counts for its ReplicaSet.
    pub fn is_active(&self) -> bool {
        !self.has_ended() && !self.metadata.is_deleting()
    }

    /// The node that it is on or is meant for; empty if it may still go to any.
    pub fn target(&self) -> &str {
        match &*self.spec.node_name {
            "" => self.spec.pinned.as_deref().unwrap_or_default(),
            node => node,
        }
    }

    /// Whether it has been ready for so long, and if not, how much longer it has to be.
    pub fn available(&self, min_ready_seconds: i32, now: Timestamp) -> Available {
        let Some(since) = self.ready_since() else { return Available::No };
        let least = Duration::from_secs(min_ready_seconds.max(0).unsigned_abs().into());
        let lasted = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        if lasted >= least { Available::Yes } else { Available::In(least - lasted) }
    }

    /// Since when it is ready, if it is.
    pub fn ready_since(&self) -> Option<Timestamp> {
        let ready =
            self.status.conditions.iter().find(|one| &*one.r#type == "Ready" && &*one.status == "True")?;
        Some(ready.last_transition_time.unwrap_or(Timestamp::UNIX_EPOCH))
    }

    pub fn restarts(&self) -> i32 {
        self.status.container_statuses.iter().map(|one| one.restart_count).max().unwrap_or(0)
    }

    /// Restarts of all its containers together.
    pub fn all_restarts(&self) -> i32 {
        self.status.container_statuses.iter().map(|one| one.restart_count).sum()
    }

    /// When its last container ended, as far as is known.
    pub fn ended_at(&self) -> Timestamp {
        let ends = self
            .status
            .container_statuses
            .iter()
            .filter_map(|one| one.state.terminated.as_ref()?.finished_at);
        ends.max()
            .or(self.metadata.deletion_timestamp)
            .or(self.metadata.creation_timestamp)
            .unwrap_or_default()
    }

    /// As its annotation says; pods of low cost go first.
    pub fn deletion_cost(&self) -> i32 {
        self.metadata.annotations.get(DELETION_COST).and_then(|cost| cost.parse().ok()).unwrap_or(0)
    }
}

/// Whether a pod counts as available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Available {
    Yes,
    /// If it stays ready.
    In(Duration),
    No,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ReplicaSet {
    pub metadata: Meta,
    pub spec: ReplicaSetSpec,
    pub status: ReplicaSetStatus,
}

view!(ReplicaSet, Kind::new("apps", "v1", "ReplicaSet", "replicasets"));

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaSetSpec {
    pub replicas: Option<i32>,
    pub min_ready_seconds: i32,
    pub selector: LabelSelector,
    /// The pod template as it was written: it is read only to make pods and to compare.
    pub template: Option<Box<RawValue>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaSetStatus {
    pub replicas: i32,
    pub fully_labeled_replicas: i32,
    pub ready_replicas: i32,
    pub available_replicas: i32,
    pub terminating_replicas: Option<i32>,
    pub observed_generation: i64,
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<Condition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Deployment {
    pub metadata: Meta,
    pub spec: DeploymentSpec,
    pub status: DeploymentStatus,
}

view!(Deployment, Kind::new("apps", "v1", "Deployment", "deployments"));

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentSpec {
    pub replicas: Option<i32>,
    pub min_ready_seconds: i32,
    pub paused: bool,
    pub progress_deadline_seconds: Option<i32>,
    pub revision_history_limit: Option<i32>,
    /// As it was written: goes into ReplicaSets with one label more.
    pub selector: Option<Box<RawValue>>,
    pub strategy: Strategy,
    pub template: Option<Box<RawValue>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Strategy {
    pub r#type: String,
    pub rolling_update: Option<RollingUpdate>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RollingUpdate {
    pub max_surge: Option<IntOrPercent>,
    pub max_unavailable: Option<IntOrPercent>,
    /// Of a StatefulSet: pods below this ordinal stay as they are.
    pub partition: Option<i32>,
}

/// A number, or a share of the replicas.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum IntOrPercent {
    Int(i32),
    Percent(String),
}

impl IntOrPercent {
    /// Of so many replicas, rounded up or down. What is no percentage counts as nothing.
    pub fn of(&self, replicas: i32, up: bool) -> i32 {
        match self {
            Self::Int(number) => (*number).max(0),
            Self::Percent(text) => {
                let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
                let product = percent.max(0) * i64::from(replicas.max(0));
                let share = if up { (product + 99) / 100 } else { product / 100 };
                i32::try_from(share).unwrap_or(i32::MAX)
            }
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentStatus {
    pub observed_generation: i64,
    pub replicas: i32,
    pub updated_replicas: i32,
    pub ready_replicas: i32,
    pub available_replicas: i32,
    pub unavailable_replicas: i32,
    pub terminating_replicas: Option<i32>,
    pub collision_count: Option<i32>,
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<Condition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ControllerRevision {
    pub metadata: Meta,
    pub revision: i64,
    /// As it was written: the patch that brings the template back.
    pub data: Option<Box<RawValue>>,
}

view!(ControllerRevision, Kind::new("apps", "v1", "ControllerRevision", "controllerrevisions"));

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct DaemonSet {
    pub metadata: Meta,
    pub spec: DaemonSetSpec,
    pub status: DaemonSetStatus,
}

view!(DaemonSet, Kind::new("apps", "v1", "DaemonSet", "daemonsets"));

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DaemonSetSpec {
    pub min_ready_seconds: i32,
    pub revision_history_limit: Option<i32>,
    pub selector: LabelSelector,
    pub update_strategy: Strategy,
    /// As it was written: it is read only to make pods, to compare, and for where they may go.
    pub template: Option<Box<RawValue>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DaemonSetStatus {
    pub observed_generation: i64,
    pub desired_number_scheduled: i32,
    pub current_number_scheduled: i32,
    pub number_misscheduled: i32,
    pub updated_number_scheduled: i32,
    pub number_ready: i32,
    pub number_available: i32,
    pub number_unavailable: i32,
    pub collision_count: Option<i32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct StatefulSet {
    pub metadata: Meta,
    pub spec: StatefulSetSpec,
    pub status: StatefulSetStatus,
}

view!(StatefulSet, Kind::new("apps", "v1", "StatefulSet", "statefulsets"));

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatefulSetSpec {
    pub replicas: Option<i32>,
    pub min_ready_seconds: i32,
    pub revision_history_limit: Option<i32>,
    pub selector: LabelSelector,
    pub service_name: String,
    pub pod_management_policy: String,
    pub update_strategy: Strategy,
    pub ordinals: Option<Ordinals>,
    #[serde(deserialize_with = "or_default")]
    pub volume_claim_templates: Vec<serde::de::IgnoredAny>,
    /// As it was written: it is read only to make pods and to compare.
    pub template: Option<Box<RawValue>>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct Ordinals {
    pub start: i32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatefulSetStatus {
    pub observed_generation: i64,
    pub replicas: i32,
    pub ready_replicas: i32,
    pub available_replicas: i32,
    pub current_replicas: i32,
    pub updated_replicas: i32,
    pub current_revision: String,
    pub update_revision: String,
    pub collision_count: Option<i32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Job {
    pub metadata: Meta,
    pub spec: JobSpec,
    pub status: JobStatus,
}

view!(Job, Kind::new("batch", "v1", "Job", "jobs"));

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobSpec {
    pub parallelism: Option<i32>,
    pub completions: Option<i32>,
    pub active_deadline_seconds: Option<i64>,
    pub backoff_limit: Option<i32>,
    pub selector: LabelSelector,
    #[serde(deserialize_with = "or_default")]
    pub suspend: bool,
    pub completion_mode: Option<String>,
    pub pod_replacement_policy: Option<String>,
    pub ttl_seconds_after_finished: Option<i64>,
    pub managed_by: Option<String>,
    /// As it was written: it is read only to make pods.
    pub template: Option<Box<RawValue>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobStatus {
    pub active: i32,
    #[serde(deserialize_with = "or_default")]
    pub ready: i32,
    #[serde(deserialize_with = "or_default")]
    pub terminating: i32,
    pub succeeded: i32,
    pub failed: i32,
    #[serde(deserialize_with = "or_default")]
    pub completed_indexes: String,
    pub start_time: Option<Timestamp>,
    pub completion_time: Option<Timestamp>,
    pub uncounted_terminated_pods: Option<Uncounted>,
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<Condition>,
}

/// Uids of pods that ended and are not yet in the numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Uncounted {
    #[serde(deserialize_with = "or_default")]
    pub succeeded: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub failed: Vec<String>,
}

impl Uncounted {
    pub const NONE: &'static Self = &Self { succeeded: Vec::new(), failed: Vec::new() };

    pub fn has(&self, uid: &str) -> bool {
        self.succeeded.iter().chain(&self.failed).any(|one| one == uid)
    }

    pub fn len(&self) -> usize {
        self.succeeded.len() + self.failed.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl JobStatus {
    pub fn uncounted(&self) -> &Uncounted {
        self.uncounted_terminated_pods.as_ref().unwrap_or(Uncounted::NONE)
    }
}

impl Job {
    /// Whether no other controller was asked to run it.
    pub fn is_ours(&self) -> bool {
        self.spec.managed_by.as_deref().is_none_or(|name| name == "kubernetes.io/job-controller")
    }

    pub fn is_indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    /// Whether a pod is replaced only when it has ended, not when its deletion began.
    pub fn replaces_failed_only(&self) -> bool {
        self.spec.pod_replacement_policy.as_deref() == Some("Failed")
    }

    /// Whether containers that fail are started again in their pod.
    pub fn restarts_in_place(&self) -> bool {
        let template: Option<Value> =
            self.spec.template.as_ref().and_then(|raw| serde_json::from_str(raw.get()).ok());
        template.is_some_and(|template| template["spec"]["restartPolicy"] == "OnFailure")
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct CronJob {
    pub metadata: Meta,
    pub spec: CronJobSpec,
    pub status: CronJobStatus,
}

view!(CronJob, Kind::new("batch", "v1", "CronJob", "cronjobs"));

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CronJobSpec {
    pub schedule: String,
    pub time_zone: Option<String>,
    pub starting_deadline_seconds: Option<i64>,
    pub concurrency_policy: String,
    #[serde(deserialize_with = "or_default")]
    pub suspend: bool,
    pub successful_jobs_history_limit: Option<i32>,
    pub failed_jobs_history_limit: Option<i32>,
    /// As it was written: it is read only to make Jobs.
    pub job_template: Option<Box<RawValue>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CronJobStatus {
    #[serde(deserialize_with = "or_default")]
    pub active: Vec<ObjectRef>,
    pub last_schedule_time: Option<Timestamp>,
    pub last_successful_time: Option<Timestamp>,
}

/// A reference to an object of a status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectRef {
    pub api_version: String,
    pub kind: String,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub uid: Arc<str>,
}

impl ObjectRef {
    pub fn new(kind: Kind, meta: &Meta) -> Self {
        Self {
            api_version: kind.api_version(),
            kind: kind.kind.to_owned(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_replicas_round_as_they_are_asked_to() {
        let share = |text: &str| serde_json::from_str::<IntOrPercent>(text).unwrap();
        for (text, replicas, up, expected) in [
            ("\"25%\"", 1, true, 1),
            ("\"25%\"", 1, false, 0),
            ("\"25%\"", 10, true, 3),
            ("\"25%\"", 10, false, 2),
            ("\"100%\"", 7, false, 7),
            ("3", 1, true, 3),
            ("\"x\"", 9, true, 0),
        ] {
            assert_eq!(share(text).of(replicas, up), expected, "{text} of {replicas}");
        }
    }
}
