//! Makes each CronJob's Jobs at the times of its schedule. Its queue wakes a CronJob at its next time, and a Job that
//! ends wakes its CronJob.

mod plan;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use wharf_kit::api::{self, Absent, Delete, Ignored, Object, PatchKind, Propagation, Rest};
use wharf_kit::event::{Recorder, Subject};
use wharf_kit::reconcile::{Controller, Next, Pass};
use wharf_kit::view::{Index, Key, Store, View};

use crate::template::parsed;
use crate::views::{CronJob, CronJobStatus, Job, ObjectRef};
use crate::{Context, pods};

pub use plan::{Plan, job_name, plan, schedule};

/// The annotation of a Job that tells the time of the schedule that it is for.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

pub(crate) async fn run(context: Context) {
    let crons = context.hub.view::<CronJob>();
    let jobs = context.hub.view::<Job>();
    let owned = pods::by_controller(&jobs);
    tokio::join!(crons.ready(), jobs.ready());
    let pass = CronJobs {
        rest: context.rest,
        recorder: context.recorder,
        crons: crons.clone(),
        jobs: jobs.clone(),
        owned,
    };
    let controller = Controller::new("cronjob", pass)
        .watches(&crons, |change| change.new.map(|_| change.key.clone()))
        .watches(&jobs, |change| pods::controller::<CronJob>(&change.object().metadata));
    controller.run(context.stop).await;
}

struct CronJobs {
    rest: Rest,
    recorder: Recorder,
    crons: Store<CronJob>,
    jobs: Store<Job>,
    owned: Index<Job>,
}

impl Pass for CronJobs {
    type Key = Key;
    type Error = api::Error;

    async fn pass(&self, key: &Key) -> Result<Next, api::Error> {
        let Some(cron) = self.crons.get(key) else { return Ok(Next::Done) };
        let mut plan = plan(&cron, &self.owned.get(&cron.metadata.uid), Timestamp::now());
        for (severity, reason, words) in &plan.said {
            self.recorder.record(&Subject::of(&*cron), *severity, reason, words.as_str());
        }
        for job in plan.replace.iter().chain(&plan.forget) {
            self.delete(&cron, job).await?;
        }
        let mut made = Ok(());
        if let Some(due) = plan.due {
            match self.create(&cron, due).await {
                Ok(job) => plan.status.active.push(job),
                Err(error) => {
                    plan.status.last_schedule_time = cron.status.last_schedule_time; // still due
                    made = Err(error);
                }
            }
        }
        self.write_status(&cron, &plan.status).await?;
        made?;
        Ok(plan.again.map_or(Next::Done, Next::After))
    }
}

impl CronJobs {
    async fn delete(&self, cron: &CronJob, job: &Job) -> Result<(), api::Error> {
        let (key, how) = (job.metadata.key(), Delete::exactly(&job.metadata));
        let how = how.with_propagation(Propagation::Background);
        match self.rest.delete::<Ignored>(Job::KIND, &key, &how).await {
            Ok(_) => {
                let words = format!("Deleted job {}", key.name);
                self.recorder.normal(&Subject::of(cron), "SuccessfulDelete", words);
            }
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => return Err(error),
        }
        let going = |now: Option<&Job>| {
            now.is_none_or(|now| now.metadata.uid != job.metadata.uid || now.metadata.is_deleting())
        };
        pods::echo(self.jobs.until(&key, going)).await;
        Ok(())
    }

    /// Makes the Job for a time of the schedule; or finds the one that an earlier pass made.
    async fn create(&self, cron: &CronJob, due: Timestamp) -> Result<ObjectRef, api::Error> {
        let (of, body) = (Subject::of(cron), job_body(cron, due));
        let made = match self.rest.create::<Object>(Job::KIND, &cron.metadata.namespace, &body).await {
            Ok(made) => {
                self.recorder.normal(&of, "SuccessfulCreate", format!("Created job {}", made.metadata.name));
                made
            }
            Err(error) if error.is_already_exists() => {
                let key = Key::new(cron.metadata.namespace.clone(), job_name(cron, due));
                let found: Object = self.rest.get(Job::KIND, &key).await?;
                let owner = found.metadata.controller().map(|owner| &owner.uid);
                if owner != Some(&cron.metadata.uid) {
                    let words = format!("Error creating job: {}", error.message());
                    self.recorder.warning(&of, "FailedCreate", words);
                    return Err(error);
                }
                found
            }
            Err(error) => {
                if !error.is_namespace_terminating() {
                    let words = format!("Error creating job: {}", error.message());
                    self.recorder.warning(&of, "FailedCreate", words);
                }
                return Err(error);
            }
        };
        // The next pass must see it, or it would count it as missing.
        pods::echo(self.jobs.reached(made.metadata.revision())).await;
        Ok(ObjectRef::new(Job::KIND, &made.metadata))
    }

    /// Writes the status and awaits that the view shows it: what is due is told from it.
    async fn write_status(&self, cron: &Arc<CronJob>, status: &CronJobStatus) -> Result<(), api::Error> {
        if *status == cron.status {
            return Ok(());
        }
        let patch = json!({
            "metadata": {"uid": cron.metadata.uid},
            "status": {
                "active": if status.active.is_empty() { Value::Null } else { json!(status.active) },
                "lastScheduleTime": status.last_schedule_time,
                "lastSuccessfulTime": status.last_successful_time,
            },
        });
        let key = cron.metadata.key();
        let answer = self.rest.patch::<Object>(CronJob::KIND, &key, "status", PatchKind::Merge, &patch).await;
        if let Some(written) = answer.absent_ok()? {
            pods::echo(self.crons.reached(written.metadata.revision())).await;
        }
        Ok(())
    }
}

/// The Job for a time of the schedule: the CronJob's template under the time's name.
fn job_body(cron: &CronJob, due: Timestamp) -> Value {
    let mut template = parsed(cron.spec.job_template.as_deref());
    let given = template["metadata"].take();
    let mut annotations = given["annotations"].as_object().cloned().unwrap_or_default();
    let told = schedule(cron).map_or_else(|_| due.to_string(), |schedule| schedule.local(due));
    annotations.insert(SCHEDULED.to_owned(), json!(told));
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job_name(cron, due),
            "namespace": cron.metadata.namespace,
            "labels": given["labels"],
            "annotations": annotations,
            "ownerReferences": [pods::owner(CronJob::KIND, &cron.metadata)],
        },
        "spec": template["spec"].take(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_has_the_times_name_and_the_templates_labels() {
        let object = json!({
            "metadata": {"name": "tick", "namespace": "ns", "uid": "c"},
            "spec": {"schedule": "@hourly", "timeZone": "Europe/Berlin", "jobTemplate": {
                "metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}, "spec": {"completions": 2}}},
        });
        let cron: CronJob = serde_json::from_str(&object.to_string()).unwrap();
        let job = job_body(&cron, "2026-03-01T10:00:00Z".parse().unwrap());
        assert_eq!(job["metadata"]["name"], "tick-29539320");
        assert_eq!(job["metadata"]["labels"], json!({"a": "b"}));
        let annotations = json!({"c": "d", SCHEDULED: "2026-03-01T11:00:00+01:00"});
        assert_eq!(job["metadata"]["annotations"], annotations);
        assert_eq!(job["spec"], json!({"completions": 2}));
        assert_eq!(job["metadata"]["ownerReferences"][0]["controller"], true);
    }
}
