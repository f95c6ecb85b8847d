//! Keeps each ReplicaSet's number of pods.

mod plan;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use wharf_kit::api::{self, Absent, Ignored, PatchKind};
use wharf_kit::event::Subject;
use wharf_kit::reconcile::{Controller, Next, Pass};
use wharf_kit::view::{Index, Key, Store, View};

use crate::pods::Hands;
use crate::status::{count, now};
use crate::views::{Condition, Pod, ReplicaSet, condition};
use crate::{Context, pods};

pub use plan::{Plan, plan};

pub(crate) async fn run(context: Context) {
    let sets = context.hub.view::<ReplicaSet>();
    let pods = context.hub.view::<Pod>();
    let (owned, loose) = (pods::by_controller(&pods), pods::loose(&pods));
    tokio::join!(sets.ready(), pods.ready());
    let pass = ReplicaSets {
        hands: Hands { rest: context.rest, recorder: context.recorder, pods: pods.clone() },
        sets: sets.clone(),
        owned,
        loose,
    };
    let all = sets.clone();
    let controller = Controller::new("replicaset", pass)
        .workers(16)
        .watches(&sets, |change| change.new.map(|_| change.key.clone()))
        .watches(&pods, move |change| {
            let loose = change.new.filter(|pod| pod.is_active());
            pods::concerned(&all, change, loose, |set, pod| set.spec.selector.matches(&pod.metadata.labels))
        });
    controller.run(context.stop).await;
}

struct ReplicaSets {
    hands: Hands,
    sets: Store<ReplicaSet>,
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
        let hands = &self.hands;
        hands.own::<ReplicaSet>(&set.metadata, &plan.adopt, &plan.release).await?;
        let of = Subject::of(&**set);
        let owner = pods::owner(ReplicaSet::KIND, &set.metadata);
        let (namespace, name) = (&set.metadata.namespace, &set.metadata.name);
        let body = pods::from_template(set.spec.template.as_deref(), namespace, name, &owner);
        hands.create(&of, std::iter::repeat_n(&body, plan.create.min(pods::BURST))).await?;
        hands.delete(&of, &plan.delete[..plan.delete.len().min(pods::BURST)]).await
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
        let answer = self
            .hands
            .rest
            .patch::<Ignored>(ReplicaSet::KIND, &key, "status", PatchKind::Merge, &patch)
            .await;
        answer.absent_ok().map(drop)
    }
}
