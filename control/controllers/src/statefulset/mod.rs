//! Keeps each StatefulSet's numbered pods, one after the other.

mod plan;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::to_raw_value;
use serde_json::{Value, json};
use wharf_kit::api::{self, Absent, Delete, Ignored, Object, PatchKind};
use wharf_kit::event::Subject;
use wharf_kit::reconcile::{Controller, Next, Pass};
use wharf_kit::view::{Index, Key, Store, View};

use crate::backoff::Backoffs;
use crate::pods::Hands;
use crate::revisions::{self, HASH, Revisions, Workload};
use crate::status::{count, now};
use crate::views::{ControllerRevision, Pod, StatefulSet};
use crate::{Context, pods};

pub use plan::{POD_INDEX, POD_NAME, Plan, Seen, Step, ordinal, plan};

pub(crate) async fn run(context: Context) {
    let sets = context.hub.view::<StatefulSet>();
    let pods = context.hub.view::<Pod>();
    let revisions = Revisions::new(&context);
    let (owned, loose) = (pods::by_controller(&pods), pods::loose(&pods));
    tokio::join!(sets.ready(), pods.ready(), revisions.store().ready());
    let pass = StatefulSets {
        hands: Hands { rest: context.rest, recorder: context.recorder, pods: pods.clone() },
        sets: sets.clone(),
        revisions: revisions.clone(),
        owned,
        loose,
        backoffs: Backoffs::default(),
    };
    let willing = sets.clone();
    let controller = Controller::new("statefulset", pass)
        .workers(8)
        .watches(&sets, |change| [change.key.clone()])
        .watches(revisions.store(), revisions::owner::<StatefulSet>)
        .watches(&pods, move |change| {
            // One that is gone may also have had the name of one that is wanted.
            pods::concerned(&willing, change, Some(change.object()), |set, pod| ordinal(set, pod).is_some())
        });
    controller.run(context.stop).await;
}

struct StatefulSets {
    hands: Hands,
    sets: Store<StatefulSet>,
    revisions: Revisions,
    owned: Index<Pod>,
    loose: Index<Pod>,
    backoffs: Backoffs,
}

impl Pass for StatefulSets {
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
        if !set.spec.volume_claim_templates.is_empty() {
            // The API takes no such set; one may be left from before it refused them. Its pods without their
            // volumes would lose what they write.
            let message = "no pods are made: spec.volumeClaimTemplates is not supported by this cluster";
            self.hands.recorder.warning(&Subject::of(&*set), "FailedCreate", message);
            return Ok(Next::Done);
        }
        if self.own(&set).await? {
            return Ok(Next::After(Duration::ZERO)); // look again at what it now owns
        }
        let (history, update) = self.revisions.of(&workload(&set)).await?;
        let current = history.named(&set.status.current_revision).unwrap_or(&update);
        let pods = self.owned.get(&set.metadata.uid);
        let waits = self.backoffs.waits(key, set.metadata.generation, &pods, |pod| &pod.metadata.name);
        let seen = Seen {
            pods: &pods,
            current: &current.metadata.name,
            update: &update.metadata.name,
            waits: &waits,
            now: now(),
        };
        let plan = plan(&set, &seen);
        let acted = self.act(&set, current, &update, &plan.steps).await;
        self.write_status(&set, &plan).await?;
        acted?;
        let labels = pods.iter().filter_map(|pod| pod.metadata.labels.get(HASH)).map(String::as_str);
        let in_use: BTreeSet<&str> = labels.chain([seen.current, seen.update]).collect();
        self.revisions.forget(&history, &in_use, set.spec.revision_history_limit).await?;
        Ok(plan.again.map_or(Next::Done, Next::After))
    }
}

fn workload(set: &StatefulSet) -> Workload<'_> {
    Workload {
        kind: StatefulSet::KIND,
        meta: &set.metadata,
        selector: &set.spec.selector,
        template: set.spec.template.as_deref(),
        collisions: set.status.collision_count,
        label: "controller.kubernetes.io/hash",
    }
}

impl StatefulSets {
    /// Takes over pods that match and have one of its names, and lets go of others; tells whether there was one.
    async fn own(&self, set: &StatefulSet) -> Result<bool, api::Error> {
        let is_its =
            |pod: &Arc<Pod>| set.spec.selector.matches(&pod.metadata.labels) && ordinal(set, pod).is_some();
        let (mut owned, mut loose) =
            (self.owned.get(&set.metadata.uid), self.loose.get(&set.metadata.namespace));
        loose.retain(|pod| pod.is_active() && is_its(pod));
        owned.retain(|pod| !is_its(pod));
        self.hands.own::<StatefulSet>(&set.metadata, &loose, &owned).await
    }

    async fn act(
        &self,
        set: &StatefulSet,
        current: &ControllerRevision,
        update: &ControllerRevision,
        steps: &[Step],
    ) -> Result<(), api::Error> {
        let (of, name) = (Subject::of(set), &set.metadata.name);
        let recorder = &self.hands.recorder;
        for step in steps {
            match step {
                Step::Create { ordinal, updated } => {
                    let body = pod_body(set, if *updated { update } else { current }, *ordinal);
                    self.create(set, &body).await?;
                }
                Step::Recreate(pod) => {
                    let (key, pod_name) = (set.metadata.key(), &pod.metadata.name);
                    if pod.status.phase.as_deref() == Some("Succeeded") {
                        let message = format!("StatefulSet {key} is recreating terminated Pod {pod_name}");
                        recorder.normal(&of, "RecreatingTerminatedPod", message);
                    } else {
                        let message = format!("StatefulSet {key} is recreating failed Pod {pod_name}");
                        recorder.warning(&of, "RecreatingFailedPod", message);
                    }
                    self.backoffs.ended(&key, set.metadata.generation, pod_name);
                    self.delete(set, pod).await?;
                }
                Step::Delete(pod) => self.delete(set, pod).await?,
                Step::Label(pod, number) => {
                    let meta = &pod.metadata;
                    let labels = json!({POD_NAME: meta.name, POD_INDEX: number.to_string()});
                    let patch = json!({"metadata": {"uid": meta.uid, "labels": labels}});
                    let rest = &self.hands.rest;
                    let answer =
                        rest.patch::<Object>(Pod::KIND, &meta.key(), "", PatchKind::Merge, &patch).await;
                    if let Some(object) = answer.absent_ok()? {
                        pods::echo(self.hands.pods.reached(object.metadata.revision())).await;
                    }
                    let message = format!("update Pod {} in StatefulSet {name} successful", meta.name);
                    recorder.normal(&of, "SuccessfulUpdate", message);
                }
            }
        }
        Ok(())
    }

    /// Makes the pod, and awaits that the view shows it: else the next pass would make it again.
    async fn create(&self, set: &StatefulSet, body: &Value) -> Result<(), api::Error> {
        let (of, pod) = (Subject::of(set), body["metadata"]["name"].as_str().unwrap_or_default());
        let told = |how: &str| format!("create Pod {pod} in StatefulSet {} {how}", set.metadata.name);
        match self.hands.rest.create::<Object>(Pod::KIND, &set.metadata.namespace, body).await {
            Ok(made) => {
                pods::echo(self.hands.pods.reached(made.metadata.revision())).await;
                self.hands.recorder.normal(&of, "SuccessfulCreate", told("successful"));
                Ok(())
            }
            Err(error) => {
                if !error.is_namespace_terminating() {
                    let how = format!("failed error: {}", error.message());
                    self.hands.recorder.warning(&of, "FailedCreate", told(&how));
                }
                Err(error)
            }
        }
    }

    async fn delete(&self, set: &StatefulSet, pod: &Pod) -> Result<(), api::Error> {
        let (key, how) = (pod.metadata.key(), Delete::exactly(&pod.metadata));
        match self.hands.rest.delete::<Ignored>(Pod::KIND, &key, &how).await {
            Ok(_) => {
                let message =
                    format!("delete Pod {} in StatefulSet {} successful", key.name, set.metadata.name);
                self.hands.recorder.normal(&Subject::of(set), "SuccessfulDelete", message);
            }
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => return Err(error),
        }
        self.hands.going(pod).await;
        Ok(())
    }

    async fn write_status(&self, set: &StatefulSet, plan: &Plan) -> Result<(), api::Error> {
        let status = &plan.status;
        if *status == set.status {
            return Ok(());
        }
        let patch = json!({
            "metadata": {"uid": set.metadata.uid},
            "status": {
                "observedGeneration": status.observed_generation,
                "replicas": status.replicas,
                "readyReplicas": count(status.ready_replicas),
                "availableReplicas": status.available_replicas,
                "currentReplicas": count(status.current_replicas),
                "updatedReplicas": count(status.updated_replicas),
                "currentRevision": status.current_revision,
                "updateRevision": status.update_revision,
            },
        });
        let key = set.metadata.key();
        let rest = &self.hands.rest;
        let answer = rest.patch::<Ignored>(StatefulSet::KIND, &key, "status", PatchKind::Merge, &patch).await;
        answer.absent_ok().map(drop)
    }
}

/// The set's pod of a number, by the template of a revision: it is known by its name, within and without.
fn pod_body(set: &StatefulSet, revision: &ControllerRevision, number: i32) -> Value {
    let owner = pods::owner(StatefulSet::KIND, &set.metadata);
    let name = format!("{}-{number}", set.metadata.name);
    let template = to_raw_value(&revisions::template_of(revision)).ok();
    let mut pod = pods::from_template(template.as_deref(), &set.metadata.namespace, &name, &owner);
    if let Some(fields) = pod["metadata"].as_object_mut() {
        fields.remove("generateName");
    }
    pod["metadata"]["name"] = json!(name);
    pod["metadata"]["labels"][HASH] = json!(revision.metadata.name);
    pod["metadata"]["labels"][POD_NAME] = json!(name);
    pod["metadata"]["labels"][POD_INDEX] = json!(number.to_string());
    pod["spec"]["hostname"] = json!(name);
    if !set.spec.service_name.is_empty() {
        pod["spec"]["subdomain"] = json!(set.spec.service_name);
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_its_name_everywhere_and_its_revisions_template() {
        let object = json!({"metadata": {"name": "db", "namespace": "ns", "uid": "u"},
            "spec": {"serviceName": "dbs", "template": {"spec": {"nodeName": "not this"}}}});
        let set: StatefulSet = serde_json::from_str(&object.to_string()).unwrap();
        let object = json!({"metadata": {"name": "db-abc"}, "data": {"spec": {"template": {"$patch": "replace",
            "metadata": {"labels": {"app": "db"}}, "spec": {"containers": []}}}}});
        let revision: ControllerRevision = serde_json::from_str(&object.to_string()).unwrap();
        let pod = pod_body(&set, &revision, 2);
        assert_eq!(pod["metadata"]["name"], "db-2");
        assert!(pod["metadata"].get("generateName").is_none());
        let labels = json!({"app": "db", HASH: "db-abc", POD_NAME: "db-2", POD_INDEX: "2"});
        assert_eq!(pod["metadata"]["labels"], labels);
        assert_eq!(pod["spec"], json!({"containers": [], "hostname": "db-2", "subdomain": "dbs"}));
    }
}
