//! The workloads of apps: ReplicaSets, Deployments, DaemonSets, StatefulSets and their revisions.

use serde::Deserialize;
use serde_json::value::RawValue;
use wharf_kit::api::Kind;
use wharf_kit::selector::LabelSelector;
use wharf_kit::view::{Meta, View, or_default};

use super::Condition;

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
