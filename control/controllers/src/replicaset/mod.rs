//! Keeps each ReplicaSet's number of pods.

mod plan;

use std::sync::Arc;

use futures::StreamExt;
use futures::stream;
use jiff::Timestamp;
use serde_json::{Value, json};
use wharf_kit::api::{self, Absent, Delete, Ignored, Object, PatchKind, Rest};
use wharf_kit::event::{Recorder, Subject};
use wharf_kit::reconcile::{Controller, Next, Pass};
use wharf_kit::view::{Change, Index, Key, Store, View};

use crate::status::{count, now};
use crate::views::{Condition, Pod, ReplicaSet, condition};
use crate::{Context, pods};

pub use plan::{Plan, plan};

/// How many pods one pass makes or deletes, as in Kubernetes.
const BURST: usize = 500;
/// Pods of the first batch; each batch that succeeds doubles the next. Kubernetes starts with one; eight cost a
/// refusing server little and save small sets three round trips.
const FIRST_BATCH: usize = 8;
/// Requests of one pass under way at once.
const AT_ONCE: usize = 64;

/// The index of pods by their controller's uid.
pub(crate) const BY_CONTROLLER: &str = "controller";

pub(crate) fn by_controller(pods: &Store<Pod>) -> Index<Pod> {
    pods.index(BY_CONTROLLER, |pod| {
        pod.metadata.controller().map(|owner| owner.uid.to_string()).into_iter().collect()
    })
}

/// The index of pods that nothing controls by their namespace.
pub(crate) fn loose(pods: &Store<Pod>) -> Index<Pod> {
    pods.index("loose", |pod| {
        let loose = pod.metadata.controller().is_none();
        loose.then(|| pod.metadata.namespace.to_string()).into_iter().collect()
    })
}

pub(crate) async fn run(context: Context) {
    let sets = context.hub.view::<ReplicaSet>();
    let pods = context.hub.view::<Pod>();
    let owned = by_controller(&pods);
    let loose = loose(&pods);
    tokio::join!(sets.ready(), pods.ready());
    let pass = ReplicaSets {
        rest: context.rest,
        recorder: context.recorder,
        sets: sets.clone(),
        pods: pods.clone(),
        owned,
        loose,
    };
    let all = sets.clone();
    let controller = Controller::new("replicaset", pass)
        .workers(16)
        .watches(&sets, |change| change.new.map(|_| change.key.clone()))
        .watches(&pods, move |change| keys(&all, change));
    controller.run(context.stop).await;
}

/// The sets that a change of a pod may matter to.
fn keys(sets: &Store<ReplicaSet>, change: &Change<'_, Pod>) -> Vec<Key> {
    let pod = change.object();
    let owner = |pod: &Arc<Pod>| {
        let owner = pod.metadata.controller().filter(|owner| owner.kind == "ReplicaSet")?;
        Some(Key::new(pod.metadata.namespace.clone(), owner.name.as_str()))
    };
    let mut keys: Vec<Key> = change.old.and_then(owner).into_iter().collect();
    keys.extend(change.new.and_then(owner).filter(|new| keys.first() != Some(new)));
    if change.new.is_some_and(|pod| pod.metadata.controller().is_none() && pod.is_active()) {
        let willing = |set: &&Arc<ReplicaSet>| set.spec.selector.matches(&pod.metadata.labels);
        keys.extend(
            sets.in_namespace(&pod.metadata.namespace).iter().filter(willing).map(|set| set.metadata.key()),
        );
    }
    keys
}

struct ReplicaSets {
    rest: Rest,
    recorder: Recorder,
    sets: Store<ReplicaSet>,
    pods: Store<Pod>,
    owned: Index<Pod>,
    loose: Index<Pod>,
}

impl Pass for ReplicaSets {
    type Key = Key;
    type Error = api::Error;

    async fn pass(&self, key: &Key) -> Result<Next, api::Error> {
        let Some(set) = self.sets.get(key) else { return Ok(Next::Done) };
        let owned = self.owned.get(&set.metadata.uid);
        let loose = if set.metadata.is_deleting() { Vec::new() } else { self.loose.get(&key.namespace) };
        let plan = plan(&set, &owned, &loose, Timestamp::now());
        let acted = self.act(&set, &plan).await;
        let wrote = self.write_status(&set, &plan, acted.as_ref().err()).await;
        acted?;
        wrote?;
        Ok(plan.again.map_or(Next::Done, Next::After))
    }
}

impl ReplicaSets {
    async fn act(&self, set: &Arc<ReplicaSet>, plan: &Plan) -> Result<(), api::Error> {
        for pod in &plan.adopt {
            let owner = pods::owner(ReplicaSet::KIND, &set.metadata);
            pods::adopt(&self.rest, &self.pods, pod, owner, None).await?;
        }
        for pod in &plan.release {
            pods::release(&self.rest, &self.pods, pod, &set.metadata.uid).await?;
        }
        self.create(set, plan.create.min(BURST)).await?;
        self.delete(set, &plan.delete[..plan.delete.len().min(BURST)]).await
    }

    /// Makes pods in batches that double, so that a quota or an admission rule refuses few.
    async fn create(&self, set: &Arc<ReplicaSet>, wanted: usize) -> Result<(), api::Error> {
        if wanted == 0 {
            return Ok(());
        }
        let owner = pods::owner(ReplicaSet::KIND, &set.metadata);
        let (namespace, name) = (&set.metadata.namespace, &set.metadata.name);
        let body = pods::from_template(set.spec.template.as_deref(), namespace, name, &owner);
        let (mut left, mut batch, mut seen) = (wanted, FIRST_BATCH, 0);
        let mut failed = None;
        while left > 0 && failed.is_none() {
            let now = batch.min(left);
            let create = || self.rest.create::<Object>(Pod::KIND, &set.metadata.namespace, &body);
            let mut answers = stream::iter((0..now).map(|_| create())).buffer_unordered(AT_ONCE);
            while let Some(answer) = answers.next().await {
                match answer {
                    Ok(pod) => {
                        seen = seen.max(pod.metadata.revision());
                        let message = format!("Created pod: {}", pod.metadata.name);
                        self.recorder.normal(&Subject::of(&**set), "SuccessfulCreate", message);
                    }
                    Err(error) => failed = Some(error),
                }
            }
            left -= now;
            batch *= 2;
        }
        // The next pass must see these, or it would make them again.
        pods::echo(self.pods.reached(seen)).await;
        match failed {
            None => Ok(()),
            Some(error) if error.is_namespace_terminating() => Err(error),
            Some(error) => {
                let message = format!("Error creating: {}", error.message());
                self.recorder.warning(&Subject::of(&**set), "FailedCreate", message);
                Err(error)
            }
        }
    }

    async fn delete(&self, set: &Arc<ReplicaSet>, victims: &[Arc<Pod>]) -> Result<(), api::Error> {
        let delete = |pod: &Arc<Pod>| {
            let pod = pod.clone();
            async move {
                let key = pod.metadata.key();
                let how = Delete::exactly(&pod.metadata);
                let answer = self.rest.delete::<Ignored>(Pod::KIND, &key, &how).await;
                match answer {
                    Ok(_) => {
                        let message = format!("Deleted pod: {}", key.name);
                        self.recorder.normal(&Subject::of(&**set), "SuccessfulDelete", message);
                        Ok(())
                    }
                    Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
                    Err(error) => Err(error),
                }
            }
        };
        let mut answers = stream::iter(victims.iter().map(delete)).buffer_unordered(AT_ONCE);
        let mut result = Ok(());
        while let Some(answer) = answers.next().await {
            result = result.and(answer);
        }
        result?;
        // The next pass must see these going, or it might choose others.
        for pod in victims {
            let gone = |now: Option<&Pod>| {
                now.is_none_or(|now| now.metadata.uid != pod.metadata.uid || now.metadata.is_deleting())
            };
            pods::echo(self.pods.until(&pod.metadata.key(), gone)).await;
        }
        Ok(())
    }

    async fn write_status(
        &self,
        set: &ReplicaSet,
        plan: &Plan,
        failure: Option<&api::Error>,
    ) -> Result<(), api::Error> {
        let mut status = plan.status.clone();
        let failing = condition(&set.status.conditions, "ReplicaFailure");
        let told = |error: &&api::Error| {
            error.status().is_some() && !error.is_conflict() && !error.is_namespace_terminating()
        };
        match failure.filter(told) {
            Some(error) => {
                let message = error.message();
                let reason = if plan.create > 0 { "FailedCreate" } else { "FailedDelete" };
                // The message names a pod that was not made, another each time: written anew, it would wake us.
                let same = failing.filter(|old| old.status == "True" && old.reason == reason).cloned();
                status.conditions.push(same.unwrap_or_else(|| Condition {
                    r#type: "ReplicaFailure".to_owned(),
                    status: "True".to_owned(),
                    last_transition_time: Some(now()),
                    reason: reason.to_owned(),
                    message,
                    ..Condition::default()
                }));
            }
            // Forgotten only by a pass that found nothing to make: else it would come and go with each retry.
            None if plan.create > 0 || !plan.delete.is_empty() => status.conditions.extend(failing.cloned()),
            None => {}
        }
        status.conditions.extend(
            set.status.conditions.iter().filter(|condition| condition.r#type != "ReplicaFailure").cloned(),
        );
        if status == set.status {
            return Ok(());
        }
        let patch = json!({
            "metadata": {"uid": set.metadata.uid},
            "status": {
                "replicas": status.replicas,
                "fullyLabeledReplicas": count(status.fully_labeled_replicas),
                "readyReplicas": count(status.ready_replicas),
                "availableReplicas": count(status.available_replicas),
                "terminatingReplicas": status.terminating_replicas,
                "observedGeneration": status.observed_generation,
                "conditions": if status.conditions.is_empty() { Value::Null } else { json!(status.conditions) },
            },
        });
        let key = set.metadata.key();
        let answer =
            self.rest.patch::<Ignored>(ReplicaSet::KIND, &key, "status", PatchKind::Merge, &patch).await;
        answer.absent_ok().map(drop)
    }
}
