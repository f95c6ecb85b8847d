//! Runs each Job's pods until enough of them have succeeded.

mod plan;

use std::sync::Arc;

use futures::StreamExt;
use futures::stream;
use jiff::Timestamp;
use serde_json::{Value, json};
use wharf_kit::api::{self, Absent, Delete, Ignored, Object, PatchKind, Propagation, Rest};
use wharf_kit::event::{Recorder, Subject};
use wharf_kit::reconcile::{Controller, Next, Pass};
use wharf_kit::view::{Index, Key, Store, View};

use crate::status::{count, now};
use crate::views::{Job, Pod};
use crate::{Context, pods};

pub use plan::{FINALIZER, INDEX, Plan, finished, plan};

/// How many pods one pass makes, as in Kubernetes; the next pass makes more.
const BURST: usize = 500;
/// Requests of one pass under way at once.
const AT_ONCE: usize = 64;

pub(crate) async fn run(context: Context) {
    let jobs = context.hub.view::<Job>();
    let pods = context.hub.view::<Pod>();
    // By name: the pods of a Job that is gone have to be let go of, too.
    let owned = pods.index("job", |pod| {
        crate::pods::controller::<Job>(&pod.metadata).map(|key| key.to_string()).into_iter().collect()
    });
    let loose = crate::pods::loose(&pods);
    tokio::join!(jobs.ready(), pods.ready());
    let pass = Jobs {
        rest: context.rest,
        recorder: context.recorder,
        jobs: jobs.clone(),
        pods: pods.clone(),
        owned,
        loose,
    };
    let all = jobs.clone();
    let controller = Controller::new("job", pass)
        .workers(8)
        .watches(&jobs, |change| [change.key.clone()])
        .watches(&pods, move |change| {
            pods::concerned(&all, change, change.new, |job, pod| {
                job.spec.selector.matches(&pod.metadata.labels)
            })
        });
    controller.run(context.stop).await;
}

/// The Job that controls the pod, whether or not it is still there.
struct Jobs {
    rest: Rest,
    recorder: Recorder,
    jobs: Store<Job>,
    pods: Store<Pod>,
    owned: Index<Pod>,
    loose: Index<Pod>,
}

impl Pass for Jobs {
    type Key = Key;
    type Error = api::Error;

    async fn pass(&self, key: &Key) -> Result<Next, api::Error> {
        let job = self.jobs.get(key);
        let uid = job.as_ref().map_or("", |job| &*job.metadata.uid);
        let (mine, strangers): (Vec<_>, Vec<_>) = self
            .owned
            .get(&key.to_string())
            .into_iter()
            .partition(|pod| pod.metadata.controller().is_some_and(|owner| &*owner.uid == uid));
        self.strip(&strangers).await?;
        let Some(job) = job.filter(|job| job.is_ours()) else { return Ok(Next::Done) };
        if job.metadata.is_deleting() {
            return self.strip(&mine).await.map(|()| Next::Done);
        }
        if let Some(since) = finished(&job) {
            self.strip(&mine).await?;
            return self.expire(&job, since).await;
        }
        if self.own(&job, &mine).await? {
            return Ok(Next::After(std::time::Duration::ZERO)); // look again at what it now owns
        }
        let plan = plan(&job, &mine, now());
        self.write_status(&job, &plan).await?;
        self.strip(&plan.strip).await?;
        self.delete(&job, &plan).await?;
        self.create(&job, &plan).await?;
        Ok(plan.again.map_or(Next::Done, Next::After))
    }
}

impl Jobs {
    /// Takes over pods that match and lets go of those that do not; tells whether there was one.
    async fn own(&self, job: &Job, mine: &[Arc<Pod>]) -> Result<bool, api::Error> {
        let selects = |pod: &Arc<Pod>| job.spec.selector.matches(&pod.metadata.labels);
        let loose = self.loose.get(&job.metadata.namespace);
        let (adopt, release) = (
            loose.iter().filter(|pod| selects(pod) && !pod.metadata.is_deleting()).collect::<Vec<_>>(),
            mine.iter().filter(|pod| !selects(pod)).collect::<Vec<_>>(),
        );
        for pod in &adopt {
            let owner = pods::owner(Job::KIND, &job.metadata);
            pods::adopt(&self.rest, &self.pods, &**pod, owner, Some(FINALIZER)).await?;
        }
        for pod in &release {
            // Nobody will count it, so nothing may keep it.
            self.strip(std::slice::from_ref(*pod)).await?;
            let pod = self.pods.get(&pod.metadata.key()).unwrap_or_else(|| (*pod).clone());
            pods::release(&self.rest, &self.pods, &pod, &job.metadata.uid).await?;
        }
        Ok(!adopt.is_empty() || !release.is_empty())
    }

    /// Takes the finalizer from pods that are counted, or that nobody will count.
    async fn strip(&self, pods: &[Arc<Pod>]) -> Result<(), api::Error> {
        let held = pods.iter().filter(|pod| pod.metadata.has_finalizer(FINALIZER));
        let strip = |pod: &Arc<Pod>| {
            let (pod, rest, store) = (pod.clone(), self.rest.clone(), self.pods.clone());
            async move {
                let meta = &pod.metadata;
                let left: Vec<&String> = meta.finalizers.iter().filter(|one| *one != FINALIZER).collect();
                let patch = json!({"metadata": {
                    "uid": meta.uid, "resourceVersion": meta.resource_version, "finalizers": left,
                }});
                let key = meta.key();
                let answer = rest.patch::<Ignored>(Pod::KIND, &key, "", PatchKind::Merge, &patch).await;
                answer.absent_ok()?;
                let free = |now: Option<&Pod>| {
                    now.is_none_or(|now| {
                        now.metadata.uid != meta.uid || !now.metadata.has_finalizer(FINALIZER)
                    })
                };
                pods::echo(store.until(&key, free)).await;
                Ok(())
            }
        };
        let mut answers = stream::iter(held.map(strip).collect::<Vec<_>>()).buffer_unordered(AT_ONCE);
        let mut result = Ok(());
        while let Some(answer) = answers.next().await {
            result = result.and(answer);
        }
        result
    }

    async fn delete(&self, job: &Job, plan: &Plan) -> Result<(), api::Error> {
        for (pod, counts) in &plan.delete {
            if !counts {
                self.strip(std::slice::from_ref(pod)).await?;
            }
            let (key, how) = (pod.metadata.key(), Delete::exactly(&pod.metadata));
            match self.rest.delete::<Ignored>(Pod::KIND, &key, &how).await {
                Ok(_) => {
                    let message = format!("Deleted pod: {}", key.name);
                    self.recorder.normal(&Subject::of(job), "SuccessfulDelete", message);
                }
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => return Err(error),
            }
            // The next pass must see it going, or it would count it as running.
            let going = |now: Option<&Pod>| {
                now.is_none_or(|now| now.metadata.uid != pod.metadata.uid || now.metadata.is_deleting())
            };
            pods::echo(self.pods.until(&key, going)).await;
        }
        Ok(())
    }

    async fn create(&self, job: &Job, plan: &Plan) -> Result<(), api::Error> {
        let create = |index: Option<i32>| {
            let body = pod_body(job, index);
            async move { self.rest.create::<Object>(Pod::KIND, &job.metadata.namespace, &body).await }
        };
        let wanted = plan.create.iter().take(BURST).map(|index| create(*index)).collect::<Vec<_>>();
        let mut answers = stream::iter(wanted).buffer_unordered(AT_ONCE);
        let (mut seen, mut failed) = (0, None);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(pod) => {
                    seen = seen.max(pod.metadata.revision());
                    let message = format!("Created pod: {}", pod.metadata.name);
                    self.recorder.normal(&Subject::of(job), "SuccessfulCreate", message);
                }
                Err(error) => failed = Some(error),
            }
        }
        // The next pass must see these, or it would make them again.
        pods::echo(self.pods.reached(seen)).await;
        let Some(error) = failed else { return Ok(()) };
        if !error.is_namespace_terminating() {
            let message = format!("Error creating: {}", error.message());
            self.recorder.warning(&Subject::of(job), "FailedCreate", message);
        }
        Err(error)
    }

    /// Deletes a Job that ended when its time to live has passed.
    async fn expire(&self, job: &Job, since: Timestamp) -> Result<Next, api::Error> {
        let Some(ttl) = job.spec.ttl_seconds_after_finished else { return Ok(Next::Done) };
        let left = ttl.saturating_sub(Timestamp::now().duration_since(since).as_secs());
        if left > 0 {
            return Ok(Next::After(std::time::Duration::from_secs(left.unsigned_abs())));
        }
        let how = Delete::exactly(&job.metadata).with_propagation(Propagation::Foreground);
        let answer = self.rest.delete::<Ignored>(Job::KIND, &job.metadata.key(), &how).await;
        answer.absent_ok().map(|_| Next::Done)
    }

    /// Writes the status at the revision that it was decided on, and awaits that the view shows it: counting
    /// goes on from there.
    async fn write_status(&self, job: &Job, plan: &Plan) -> Result<(), api::Error> {
        let (old, new) = (&job.status, &plan.status);
        if old == new {
            return Ok(());
        }
        let conditions = if new.conditions.is_empty() { Value::Null } else { json!(new.conditions) };
        let patch = json!({
            "metadata": {"uid": job.metadata.uid, "resourceVersion": job.metadata.resource_version},
            "status": {
                "active": count(new.active),
                "ready": new.ready,
                "terminating": new.terminating,
                "succeeded": count(new.succeeded),
                "failed": count(new.failed),
                "completedIndexes": if new.completed_indexes.is_empty() { Value::Null } else { json!(new.completed_indexes) },
                "startTime": new.start_time,
                "completionTime": new.completion_time,
                "uncountedTerminatedPods": new.uncounted_terminated_pods,
                "conditions": conditions,
            },
        });
        let key = job.metadata.key();
        let answer = self.rest.patch::<Object>(Job::KIND, &key, "status", PatchKind::Merge, &patch).await;
        let Some(written) = answer.absent_ok()? else { return Ok(()) };
        pods::echo(self.jobs.reached(written.metadata.revision())).await;
        let became = |kind: &str| {
            let holds = |all: &[crate::views::Condition]| {
                crate::views::condition(all, kind).filter(|one| one.status == "True").cloned()
            };
            holds(&new.conditions).filter(|_| holds(&old.conditions).is_none())
        };
        if became("Complete").is_some() {
            self.recorder.normal(&Subject::of(job), "Completed", "Job completed");
        }
        if let Some(why) = became("FailureTarget") {
            self.recorder.warning(&Subject::of(job), &why.reason, why.message);
        }
        Ok(())
    }
}

/// The pod to create; one of an Indexed Job is told its index by label, annotation, variable and host name.
fn pod_body(job: &Job, index: Option<i32>) -> Value {
    let owner = pods::owner(Job::KIND, &job.metadata);
    let name = &job.metadata.name;
    let prefix = index.map_or_else(|| name.to_string(), |index| format!("{name}-{index}"));
    let mut pod = pods::from_template(job.spec.template.as_deref(), &job.metadata.namespace, &prefix, &owner);
    let mut finalizers = pod["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    finalizers.push(json!(FINALIZER));
    pod["metadata"]["finalizers"] = json!(finalizers);
    let Some(index) = index else { return pod };
    pod["metadata"]["labels"][INDEX] = json!(index.to_string());
    pod["metadata"]["annotations"][INDEX] = json!(index.to_string());
    pod["spec"]["hostname"] = json!(prefix);
    for list in ["containers", "initContainers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            let mut variables = container["env"].as_array().cloned().unwrap_or_default();
            if !variables.iter().any(|one| one["name"] == "JOB_COMPLETION_INDEX") {
                let path = format!("metadata.labels['{INDEX}']");
                variables.push(json!({
                    "name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}},
                }));
                container["env"] = json!(variables);
            }
        }
    }
    pod
}
