//! Rolls each Deployment's template out, through one ReplicaSet for each template it had.

mod plan;
mod progress;
mod template;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tracing::debug;
use wharf_kit::api::{self, Absent, Delete, Ignored, Object, PatchKind, Propagation, Rest};
use wharf_kit::event::{Recorder, Subject};
use wharf_kit::reconcile::{Controller, Next, Pass};
use wharf_kit::view::{Index, Key, OwnerRef, Store, View};

use crate::Context;
use crate::pods::by_controller;
use crate::status::count;
use crate::views::{Deployment, Pod, ReplicaSet};

pub use plan::{Limits, Plan, Set, Step, plan};
pub use progress::{Progress, progress};
pub use template::HASH_LABEL;

/// The annotation that numbers a Deployment's templates.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// What a ReplicaSet's annotations tell of the Deployment when it was last scaled: so that proportions hold.
pub(crate) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(crate) const MAX: &str = "deployment.kubernetes.io/max-replicas";
const ECHO: Duration = Duration::from_secs(10);

pub(crate) async fn run(context: Context) {
    let deployments = context.hub.view::<Deployment>();
    let sets = context.hub.view::<ReplicaSet>();
    let pods = context.hub.view::<Pod>();
    let (owned, loose) = (by_controller(&sets), crate::pods::loose(&sets));
    let pods_of = by_controller(&pods);
    tokio::join!(deployments.ready(), sets.ready(), pods.ready());
    let pass = Deployments {
        rest: context.rest,
        recorder: context.recorder,
        deployments: deployments.clone(),
        sets: sets.clone(),
        owned,
        loose,
        pods_of,
    };
    let (all, of_pod) = (deployments.clone(), (deployments.clone(), sets.clone()));
    let controller = Controller::new("deployment", pass)
        .workers(8)
        .watches(&deployments, |change| change.new.map(|_| change.key.clone()))
        .watches(&sets, move |change| {
            let set = change.object();
            match set.metadata.controller() {
                Some(owner) => vec![Key::new(set.metadata.namespace.clone(), owner.name.as_str())],
                // A set that no one controls may be one's that has lost it.
                None => {
                    all.in_namespace(&set.metadata.namespace).iter().map(|one| one.metadata.key()).collect()
                }
            }
        })
        .watches(&pods, move |change| {
            // Only a rollout that first ends all old pods looks at pods; the rest is in the sets' status.
            let gone = change.new.is_none_or(|pod| pod.has_ended());
            let owner = gone.then(|| change.object().metadata.controller()).flatten();
            let owner = owner.filter(|owner| owner.kind == "ReplicaSet");
            let set = owner
                .and_then(|owner| of_pod.1.get(&Key::new(change.key.namespace.clone(), owner.name.as_str())));
            let deployment = set.and_then(|set| {
                let owner = set.metadata.controller()?;
                of_pod.0.get(&Key::new(change.key.namespace.clone(), owner.name.as_str()))
            });
            deployment.filter(|one| one.spec.strategy.r#type == "Recreate").map(|one| one.metadata.key())
        });
    controller.run(context.stop).await;
}

struct Deployments {
    rest: Rest,
    recorder: Recorder,
    deployments: Store<Deployment>,
    sets: Store<ReplicaSet>,
    owned: Index<ReplicaSet>,
    loose: Index<ReplicaSet>,
    pods_of: Index<Pod>,
}

impl Pass for Deployments {
    type Key = Key;
    type Error = api::Error;

    async fn pass(&self, key: &Key) -> Result<Next, api::Error> {
        let Some(deployment) = self.deployments.get(key) else { return Ok(Next::Done) };
        if !deployment.metadata.is_deleting() && self.adopt(&deployment).await? {
            return Ok(Next::After(Duration::ZERO)); // look again at what it now owns
        }
        let sets: Vec<Set> = self
            .owned
            .get(&deployment.metadata.uid)
            .into_iter()
            .map(|set| Set::new(set, &deployment))
            .collect();
        let running = |set: &Set| self.pods_of.get(&set.view.metadata.uid).iter().any(|pod| !pod.has_ended());
        let old_pods = sets.iter().any(|set| !set.current && running(set));
        let plan = plan(&deployment, &sets, old_pods);
        for step in &plan.steps {
            self.carry_out(&deployment, step).await?;
        }
        let progress = progress(&deployment, &sets, &plan, Timestamp::now());
        self.write_status(&deployment, &progress).await?;
        Ok(progress.again.map_or(Next::Done, Next::After))
    }
}

impl Deployments {
    /// Takes over sets that match and that no one controls; tells whether there was one.
    async fn adopt(&self, deployment: &Deployment) -> Result<bool, api::Error> {
        let Some(selector) = template::selector(deployment) else { return Ok(false) };
        let mut adopted = false;
        for set in self.loose.get(&deployment.metadata.namespace) {
            if set.metadata.is_deleting()
                || !selector.matches(&set.metadata.labels)
                || selector.is_everything()
            {
                continue;
            }
            let mut owners = set.metadata.owner_references.clone();
            owners.push(owner_reference(deployment));
            let patch = json!({"metadata": {
                "uid": set.metadata.uid, "resourceVersion": set.metadata.resource_version, "ownerReferences": owners,
            }});
            self.patch_set(&set.metadata.key(), &patch).await?;
            adopted = true;
        }
        Ok(adopted)
    }

    async fn carry_out(&self, deployment: &Deployment, step: &Step) -> Result<(), api::Error> {
        match step {
            Step::Create { name, replicas, revision } => {
                self.create(deployment, name, *replicas, *revision).await
            }
            Step::Scale { set, replicas } => {
                let limits = Limits::of(deployment);
                let patch = json!({
                    "metadata": {
                        "uid": set.metadata.uid,
                        "annotations": {DESIRED: limits.replicas.to_string(), MAX: limits.most().to_string()},
                    },
                    "spec": {"replicas": replicas},
                });
                self.patch_set(&set.metadata.key(), &patch).await?;
                let old = set.spec.replicas.unwrap_or(1);
                if old != *replicas {
                    let way = if old < *replicas { "up" } else { "down" };
                    let message =
                        format!("Scaled {way} replica set {} from {old} to {replicas}", set.metadata.name);
                    self.recorder.normal(&Subject::of(deployment), "ScalingReplicaSet", message);
                }
                Ok(())
            }
            Step::Annotate { set, annotations, min_ready_seconds } => {
                let patch = json!({
                    "metadata": {"uid": set.metadata.uid, "annotations": annotations},
                    "spec": {"minReadySeconds": count(*min_ready_seconds)},
                });
                self.patch_set(&set.metadata.key(), &patch).await
            }
            Step::Number(revision) => {
                let patch = json!({"metadata": {
                    "uid": deployment.metadata.uid, "annotations": {REVISION: revision.to_string()},
                }});
                let key = deployment.metadata.key();
                let answer =
                    self.rest.patch::<Ignored>(Deployment::KIND, &key, "", PatchKind::Merge, &patch).await;
                answer.absent_ok().map(drop)
            }
            Step::Delete(set) => {
                let how = Delete::exactly(&set.metadata).with_propagation(Propagation::Background);
                let answer = self.rest.delete::<Ignored>(ReplicaSet::KIND, &set.metadata.key(), &how).await;
                answer.absent_ok().map(drop)
            }
        }
    }

    async fn create(
        &self,
        deployment: &Deployment,
        name: &str,
        replicas: i32,
        revision: i64,
    ) -> Result<(), api::Error> {
        let limits = Limits::of(deployment);
        let hash = template::hash(deployment);
        let template = template::with_hash(deployment, &hash);
        let mut annotations = plan::inherited_annotations(deployment);
        annotations.insert(REVISION.to_owned(), revision.to_string());
        annotations.insert(DESIRED.to_owned(), limits.replicas.to_string());
        annotations.insert(MAX.to_owned(), limits.most().to_string());
        let body = json!({
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": name,
                "namespace": deployment.metadata.namespace,
                "labels": template["metadata"]["labels"],
                "annotations": annotations,
                "ownerReferences": [owner_reference(deployment)],
            },
            "spec": {
                "replicas": replicas,
                "minReadySeconds": count(deployment.spec.min_ready_seconds),
                "selector": template::selector_with_hash(deployment, &hash),
                "template": template,
            },
        });
        match self.rest.create::<Object>(ReplicaSet::KIND, &deployment.metadata.namespace, &body).await {
            Ok(made) => {
                self.echo(made.metadata.revision()).await;
                let message = format!("Scaled up replica set {name} from 0 to {replicas}");
                self.recorder.normal(&Subject::of(deployment), "ScalingReplicaSet", message);
                Ok(())
            }
            Err(error) if error.is_already_exists() => self.collide(deployment, name, error).await,
            Err(error) => Err(error),
        }
    }

    /// A set of that name is there: ours, which our view has not shown yet; or another template's, and then
    /// the next hash is another.
    async fn collide(
        &self,
        deployment: &Deployment,
        name: &str,
        error: api::Error,
    ) -> Result<(), api::Error> {
        let key = Key::new(deployment.metadata.namespace.clone(), name);
        let found: ReplicaSet = self.rest.get(ReplicaSet::KIND, &key).await?;
        let owner = found.metadata.controller().map(|owner| &owner.uid);
        if owner == Some(&deployment.metadata.uid) && template::same(deployment, &found) {
            self.echo(found.metadata.revision()).await;
            return Err(error); // decide again on what is there
        }
        let collisions = deployment.status.collision_count.unwrap_or(0) + 1;
        let patch =
            json!({"metadata": {"uid": deployment.metadata.uid}, "status": {"collisionCount": collisions}});
        let key = deployment.metadata.key();
        self.rest.patch::<Ignored>(Deployment::KIND, &key, "status", PatchKind::Merge, &patch).await?;
        Err(error)
    }

    async fn patch_set(&self, key: &Key, patch: &Value) -> Result<(), api::Error> {
        let answer = self.rest.patch::<Object>(ReplicaSet::KIND, key, "", PatchKind::Merge, patch).await;
        if let Some(object) = answer.absent_ok()? {
            self.echo(object.metadata.revision()).await;
        }
        Ok(())
    }

    /// The next pass must see what this one wrote, or it would decide on old numbers.
    async fn echo(&self, revision: u64) {
        if tokio::time::timeout(ECHO, self.sets.reached(revision)).await.is_err() {
            debug!("no echo of what was written");
        }
    }

    async fn write_status(
        &self,
        deployment: &Arc<Deployment>,
        progress: &Progress,
    ) -> Result<(), api::Error> {
        let status = &progress.status;
        if *status == deployment.status {
            return Ok(());
        }
        let patch = json!({
            "metadata": {"uid": deployment.metadata.uid},
            "status": {
                "observedGeneration": status.observed_generation,
                "replicas": count(status.replicas),
                "updatedReplicas": count(status.updated_replicas),
                "readyReplicas": count(status.ready_replicas),
                "availableReplicas": count(status.available_replicas),
                "unavailableReplicas": count(status.unavailable_replicas),
                "terminatingReplicas": status.terminating_replicas,
                "conditions": status.conditions,
            },
        });
        let key = deployment.metadata.key();
        let answer =
            self.rest.patch::<Ignored>(Deployment::KIND, &key, "status", PatchKind::Merge, &patch).await;
        answer.absent_ok().map(drop)
    }
}

fn owner_reference(deployment: &Deployment) -> OwnerRef {
    OwnerRef {
        api_version: Deployment::KIND.api_version(),
        kind: Deployment::KIND.kind.to_owned(),
        name: deployment.metadata.name.to_string(),
        uid: deployment.metadata.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}
