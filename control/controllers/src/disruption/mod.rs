//! Tells of each PodDisruptionBudget how many of its pods may be evicted now. The API server's eviction goes by that
//! status, and notes in it which pods it let go.

mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use wharf_kit::api::{self, Absent, Object, PatchKind, Rest};
use wharf_kit::event::{Recorder, Subject};
use wharf_kit::reconcile::{Controller, Next, Pass};
use wharf_kit::view::{Change, Key, OwnerRef, Store, View};

use crate::status::now;
use crate::views::{Deployment, Pod, PodDisruptionBudget, ReplicaSet, StatefulSet};
use crate::{Context, pods};

pub use plan::{Plan, Scale, plan};

pub(crate) async fn run(context: Context) {
    let budgets = context.hub.view::<PodDisruptionBudget>();
    let pods = context.hub.view::<Pod>();
    let pass = Budgets {
        rest: context.rest,
        recorder: context.recorder,
        budgets: budgets.clone(),
        pods: pods.clone(),
        scales: Scales {
            deployments: context.hub.view(),
            replica_sets: context.hub.view(),
            stateful_sets: context.hub.view(),
        },
    };
    let scales = &pass.scales;
    tokio::join!(
        budgets.ready(),
        pods.ready(),
        scales.deployments.ready(),
        scales.replica_sets.ready(),
        scales.stateful_sets.ready()
    );
    let all = budgets.clone();
    let controller = Controller::new("disruption", pass)
        .watches(&budgets, |change| change.new.map(|_| change.key.clone()))
        .watches(&pods, move |change| keys(&all, change));
    controller.run(context.stop).await;
}

/// The budgets of a pod, before or after its change.
fn keys(budgets: &Store<PodDisruptionBudget>, change: &Change<'_, Pod>) -> Vec<Key> {
    let all = budgets.in_namespace(&change.key.namespace);
    let sides = || change.old.into_iter().chain(change.new);
    let concerned = all.iter().filter(|budget| sides().any(|pod| selects(budget, pod)));
    concerned.map(|budget| budget.metadata.key()).collect()
}

fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    budget.spec.selector.as_ref().is_some_and(|selector| selector.matches(&pod.metadata.labels))
}

struct Budgets {
    rest: Rest,
    recorder: Recorder,
    budgets: Store<PodDisruptionBudget>,
    pods: Store<Pod>,
    scales: Scales,
}

/// The kinds that say how many of their pods there are to be.
struct Scales {
    deployments: Store<Deployment>,
    replica_sets: Store<ReplicaSet>,
    stateful_sets: Store<StatefulSet>,
}

impl Scales {
    fn of(&self, pod: &Pod) -> Scale {
        let Some(owner) = pod.metadata.controller() else { return Scale::Nobody };
        let unknown = || {
            let (group, plural) =
                (owner.api_version.split_once('/'), format!("{}s", owner.kind.to_lowercase()));
            let resource = group.map_or(plural.clone(), |(group, _)| format!("{plural}.{group}"));
            Scale::Unknown(format!("{resource} does not implement the scale subresource"))
        };
        let key = |owner: &OwnerRef| Key::new(pod.metadata.namespace.clone(), owner.name.as_str());
        let found = match owner.kind.as_str() {
            "StatefulSet" => {
                let set = self.stateful_sets.get(&key(owner)).filter(|set| set.metadata.uid == owner.uid);
                set.map(|set| Scale::Of(owner.uid.clone(), set.spec.replicas.unwrap_or(1)))
            }
            "ReplicaSet" => {
                let set = self.replica_sets.get(&key(owner)).filter(|set| set.metadata.uid == owner.uid);
                set.map(|set| {
                    // Of a Deployment that is being rolled out the pods are of several sets and one scale.
                    let above = set.metadata.controller().filter(|above| above.kind == "Deployment");
                    let deployment = above.and_then(|above| self.deployments.get(&key(above)));
                    match (above, deployment) {
                        (Some(above), Some(deployment)) if deployment.metadata.uid == above.uid => {
                            Scale::Of(above.uid.clone(), deployment.spec.replicas.unwrap_or(1))
                        }
                        _ => Scale::Of(owner.uid.clone(), set.spec.replicas.unwrap_or(1)),
                    }
                })
            }
            _ => return unknown(),
        };
        let lost = || Scale::Unknown(format!("found no controllers for pod {:?}", pod.metadata.name));
        found.unwrap_or_else(lost)
    }
}

impl Pass for Budgets {
    type Key = Key;
    type Error = api::Error;

    async fn pass(&self, key: &Key) -> Result<Next, api::Error> {
        let Some(budget) = self.budgets.get(key) else { return Ok(Next::Done) };
        if budget.metadata.is_deleting() {
            return Ok(Next::Done);
        }
        let mut selected = self.pods.in_namespace(&key.namespace);
        selected.retain(|pod| selects(&budget, pod));
        let pods: Vec<(Arc<Pod>, Scale)> =
            selected.into_iter().map(|pod| (pod.clone(), self.scales.of(&pod))).collect();
        let plan = plan(&budget, &pods, now());
        let of = Subject::of(&*budget);
        for (severity, reason, words) in &plan.said {
            self.recorder.record(&of, *severity, reason, words.as_str());
        }
        for pod in &plan.stayed {
            let words = format!("Pod was expected by PDB {key} to be deleted but it wasn't");
            self.recorder.warning(&Subject::of(&**pod), "NotDeleted", words);
        }
        self.write_status(&budget, &plan).await?;
        Ok(plan.again.map_or(Next::Done, Next::After))
    }
}

impl Budgets {
    /// Writes the status at the revision that it was decided on: evictions write it meanwhile.
    async fn write_status(&self, budget: &PodDisruptionBudget, plan: &Plan) -> Result<(), api::Error> {
        let (old, new) = (&budget.status, &plan.status);
        if old == new {
            return Ok(());
        }
        // In a merge patch, what is to go from a map is null.
        let mut disrupted: BTreeMap<&str, Value> =
            old.disrupted_pods.keys().map(|name| (name.as_str(), Value::Null)).collect();
        disrupted.extend(new.disrupted_pods.iter().map(|(name, since)| (name.as_str(), json!(since))));
        let none = new.disrupted_pods.is_empty();
        let patch = json!({
            "metadata": {"uid": budget.metadata.uid, "resourceVersion": budget.metadata.resource_version},
            "status": {
                "observedGeneration": new.observed_generation,
                "disruptedPods": if none { Value::Null } else { json!(disrupted) },
                "disruptionsAllowed": new.disruptions_allowed,
                "currentHealthy": new.current_healthy,
                "desiredHealthy": new.desired_healthy,
                "expectedPods": new.expected_pods,
                "conditions": new.conditions,
            },
        });
        let (kind, key) = (PodDisruptionBudget::KIND, budget.metadata.key());
        let answer = self.rest.patch::<Object>(kind, &key, "status", PatchKind::Merge, &patch).await;
        if let Some(written) = answer.absent_ok()? {
            pods::echo(self.budgets.reached(written.metadata.revision())).await;
        }
        Ok(())
    }
}
