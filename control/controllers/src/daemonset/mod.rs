//! Keeps a pod of each DaemonSet on every node that it is meant for.

mod placing;
mod plan;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};
use wharf_kit::api::{self, Absent, Ignored, PatchKind};
use wharf_kit::event::Subject;
use wharf_kit::reconcile::{Controller, Next, Pass};
use wharf_kit::view::{Change, Index, Key, Store, View};

use crate::backoff::Backoffs;
use crate::pods::Hands;
use crate::revisions::{self, HASH, Revisions, Workload};
use crate::status::{count, now};
use crate::views::{ControllerRevision, DaemonSet, Node, Pod};
use crate::{Context, pods};

pub use placing::{Place, Placing};
pub use plan::{Plan, Seen, plan};

pub(crate) async fn run(context: Context) {
    let sets = context.hub.view::<DaemonSet>();
    let pods = context.hub.view::<Pod>();
    let nodes = context.hub.view::<Node>();
    let revisions = Revisions::new(&context);
    let (owned, loose) = (pods::by_controller(&pods), pods::loose(&pods));
    tokio::join!(sets.ready(), pods.ready(), nodes.ready(), revisions.store().ready());
    let pass = DaemonSets {
        hands: Hands { rest: context.rest, recorder: context.recorder, pods: pods.clone() },
        sets: sets.clone(),
        nodes: nodes.clone(),
        revisions: revisions.clone(),
        owned,
        loose,
        backoffs: Backoffs::default(),
    };
    let (willing, all) = (sets.clone(), sets.clone());
    let controller = Controller::new("daemonset", pass)
        .workers(8)
        .watches(&sets, |change| [change.key.clone()])
        .watches(revisions.store(), revisions::owner::<DaemonSet>)
        .watches(&pods, move |change| {
            let loose = change.new.filter(|pod| pod.is_active());
            pods::concerned(&willing, change, loose, |set, pod| {
                set.spec.selector.matches(&pod.metadata.labels)
            })
        })
        .watches(&nodes, move |change| {
            let moved = places_otherwise(change);
            let all = if moved { all.all() } else { Vec::new() };
            all.iter().map(|set| set.metadata.key()).collect::<Vec<_>>()
        });
    controller.run(context.stop).await;
}

/// Whether the change of the node may be one of who belongs there; most are of its status.
fn places_otherwise(change: &Change<'_, Node>) -> bool {
    let (Some(old), Some(new)) = (change.old, change.new) else { return true };
    old.metadata.labels != new.metadata.labels || old.spec.taints != new.spec.taints
}

struct DaemonSets {
    hands: Hands,
    sets: Store<DaemonSet>,
    nodes: Store<Node>,
    revisions: Revisions,
    owned: Index<Pod>,
    loose: Index<Pod>,
    backoffs: Backoffs,
}

impl Pass for DaemonSets {
    type Key = Key;
    type Error = api::Error;

    async fn pass(&self, key: &Key) -> Result<Next, api::Error> {
        let Some(set) = self.sets.get(key) else {
            self.backoffs.forget(key);
            return Ok(Next::Done);
        };
        if set.metadata.is_deleting() {
            return Ok(Next::Done); // garbage collection ends its pods
        }
        if self.own(&set).await? {
            return Ok(Next::After(std::time::Duration::ZERO)); // look again at what it now owns
        }
        let (history, present) = self.revisions.of(&workload(&set)).await?;
        let hash = hash(&present);
        let pods = self.owned.get(&set.metadata.uid);
        let waits = self.backoffs.waits(key, set.metadata.generation, &pods, Pod::target);
        let seen = Seen { nodes: &self.nodes.all(), pods: &pods, waits: &waits, now: now() };
        let plan = plan(&set, hash, &seen);
        let acted = self.act(&set, hash, &plan).await;
        self.write_status(&set, &plan).await?;
        acted?;
        let in_use = |one: &&Arc<ControllerRevision>| {
            let of =
                |pod: &Arc<Pod>| pod.metadata.labels.get(HASH).is_some_and(|label| label == self::hash(one));
            Arc::ptr_eq(one, &present) || pods.iter().any(of)
        };
        let in_use: BTreeSet<&str> =
            history.all.iter().filter(in_use).map(|one| &*one.metadata.name).collect();
        self.revisions.forget(&history, &in_use, set.spec.revision_history_limit).await?;
        Ok(plan.again.map_or(Next::Done, Next::After))
    }
}

fn workload(set: &DaemonSet) -> Workload<'_> {
    Workload {
        kind: DaemonSet::KIND,
        meta: &set.metadata,
        selector: &set.spec.selector,
        template: set.spec.template.as_deref(),
        collisions: set.status.collision_count,
        label: HASH,
    }
}

/// What the pods of the revision carry as label.
fn hash(revision: &ControllerRevision) -> &str {
    let of_name = || revision.metadata.name.rsplit('-').next().unwrap_or_default();
    revision.metadata.labels.get(HASH).map_or_else(of_name, String::as_str)
}

impl DaemonSets {
    /// Takes over pods that match and lets go of those that do not; tells whether there was one.
    async fn own(&self, set: &DaemonSet) -> Result<bool, api::Error> {
        let selects = |pod: &Arc<Pod>| set.spec.selector.matches(&pod.metadata.labels);
        let (mut owned, mut loose) =
            (self.owned.get(&set.metadata.uid), self.loose.get(&set.metadata.namespace));
        loose.retain(|pod| pod.is_active() && selects(pod));
        owned.retain(|pod| !selects(pod));
        self.hands.own::<DaemonSet>(&set.metadata, &loose, &owned).await
    }

    async fn act(&self, set: &DaemonSet, hash: &str, plan: &Plan) -> Result<(), api::Error> {
        let of = Subject::of(set);
        for pod in &plan.ended {
            let (key, node) = (pod.metadata.key(), pod.target());
            if pod.status.phase.as_deref() == Some("Succeeded") {
                let message =
                    format!("Found succeeded daemon pod {key} on node {node}, will try to delete it");
                self.hands.recorder.normal(&of, "SucceededDaemonPod", message);
            } else {
                let message = format!("Found failed daemon pod {key} on node {node}, will try to kill it");
                self.hands.recorder.warning(&of, "FailedDaemonPod", message);
            }
            self.backoffs.ended(&set.metadata.key(), set.metadata.generation, node);
        }
        let doomed: Vec<_> = plan.ended.iter().chain(&plan.delete).take(pods::BURST).cloned().collect();
        self.hands.delete(&of, &doomed).await?;
        let bodies: Vec<Value> =
            plan.create.iter().take(pods::BURST).map(|node| pod_body(set, hash, node)).collect();
        self.hands.create(&of, bodies.iter()).await
    }

    async fn write_status(&self, set: &DaemonSet, plan: &Plan) -> Result<(), api::Error> {
        let status = &plan.status;
        if *status == set.status {
            return Ok(());
        }
        let patch = json!({
            "metadata": {"uid": set.metadata.uid},
            "status": {
                "observedGeneration": status.observed_generation,
                "desiredNumberScheduled": status.desired_number_scheduled,
                "currentNumberScheduled": status.current_number_scheduled,
                "numberMisscheduled": status.number_misscheduled,
                "updatedNumberScheduled": count(status.updated_number_scheduled),
                "numberReady": status.number_ready,
                "numberAvailable": count(status.number_available),
                "numberUnavailable": count(status.number_unavailable),
            },
        });
        let key = set.metadata.key();
        let rest = &self.hands.rest;
        let answer = rest.patch::<Ignored>(DaemonSet::KIND, &key, "status", PatchKind::Merge, &patch).await;
        answer.absent_ok().map(drop)
    }
}

/// The set's pod for a node: its affinity lets it go nowhere else, and it stays through the node's troubles.
fn pod_body(set: &DaemonSet, hash: &str, node: &str) -> Value {
    let owner = pods::owner(DaemonSet::KIND, &set.metadata);
    let (namespace, name) = (&set.metadata.namespace, &set.metadata.name);
    let mut pod = pods::from_template(set.spec.template.as_deref(), namespace, name, &owner);
    pod["metadata"]["labels"][HASH] = json!(hash);
    let spec = &mut pod["spec"];
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    // In the place of the template's own terms, by which the node was chosen.
    spec["affinity"]["nodeAffinity"][required] = json!({"nodeSelectorTerms": [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]},
    ]});
    let mut tolerations = spec["tolerations"].as_array().cloned().unwrap_or_default();
    for (key, effect) in placing::tolerated(spec["hostNetwork"] == true) {
        let toleration = json!({"key": key, "operator": "Exists", "effect": effect});
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
    spec["tolerations"] = json!(tolerations);
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_pinned_to_its_node_and_keeps_the_rest_of_its_template() {
        let set: DaemonSet = serde_json::from_str(
            &json!({"metadata": {"name": "log", "namespace": "ns", "uid": "u"}, "spec": {"template": {
                "metadata": {"labels": {"app": "log"}},
                "spec": {
                    "tolerations": [{"key": "gpu", "operator": "Exists"},
                        {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}],
                    "affinity": {"podAntiAffinity": {}, "nodeAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{}]}}},
                },
            }}})
            .to_string(),
        )
        .unwrap();
        let pod = pod_body(&set, "abc", "n1");
        assert_eq!(pod["metadata"]["generateName"], "log-");
        assert_eq!(pod["metadata"]["labels"], json!({"app": "log", HASH: "abc"}));
        let spec = &pod["spec"];
        let terms = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        assert_eq!(terms["nodeSelectorTerms"][0]["matchFields"][0]["values"], json!(["n1"]));
        assert!(spec["affinity"]["podAntiAffinity"].is_object());
        let keys: Vec<_> = spec["tolerations"].as_array().unwrap().iter().map(|one| &one["key"]).collect();
        assert_eq!(keys.len(), 7, "its own, and each of ours once: {keys:?}");
        let mut parsed: Pod = serde_json::from_value(pod).unwrap();
        parsed.prepare();
        assert_eq!(parsed.target(), "n1");
    }
}
