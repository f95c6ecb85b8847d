//! Pods, which most loops look at.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use wharf_kit::api::Kind;
use wharf_kit::placement::{NO_EXECUTE, NodeAffinity, Toleration};
use wharf_kit::view::{Meta, View, or_default};

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
