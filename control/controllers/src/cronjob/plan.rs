//! Whether a CronJob's next Job is due, and which of its Jobs go.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use wharf_kit::cron::{self, Schedule};
use wharf_kit::event::Severity;
use wharf_kit::view::View;

use crate::views::{CronJob, CronJobStatus, Job, ObjectRef, condition};

/// When more times than this were missed something is wrong that the user should hear of; as in Kubernetes.
const MISSED_MAX: usize = 100;
/// The annotation of a Job that someone made by hand from a CronJob: it is not one of its schedule.
const BY_HAND: &str = "cronjob.kubernetes.io/instantiate";

/// What to do so that the CronJob goes on, and what is true once a Job that is due was made (but for that Job).
#[derive(Debug, Default)]
pub struct Plan {
    /// The time of the schedule for which to make a Job.
    pub due: Option<Timestamp>,
    /// Jobs that the new one takes the place of.
    pub replace: Vec<Arc<Job>>,
    /// Ended Jobs beyond those that are kept.
    pub forget: Vec<Arc<Job>>,
    pub status: CronJobStatus,
    /// What users should hear: how bad, the reason, and the words.
    pub said: Vec<(Severity, &'static str, String)>,
    /// Look again after this: the schedule's next time.
    pub again: Option<Duration>,
}

/// The name of the Job for a time of the schedule: the same however often it is tried.
pub fn job_name(cron: &CronJob, time: Timestamp) -> String {
    format!("{}-{}", cron.metadata.name, time.as_second().div_euclid(60))
}

/// The schedule, or the reason of an event and its words.
pub fn schedule(cron: &CronJob) -> Result<Schedule, (&'static str, String)> {
    let (schedule, zone) = (&cron.spec.schedule, cron.spec.time_zone.as_deref());
    Schedule::parse(schedule, zone).map_err(|error| match &error {
        cron::Error::Zone(zone) => ("UnknownTimeZone", format!("invalid timeZone: {zone:?}: {error}")),
        cron::Error::Pattern(_) => {
            ("UnparseableSchedule", format!("unparseable schedule: {schedule:?} : {error}"))
        }
    })
}

/// `jobs` are those that the CronJob controls. No I/O, no clock: same input, same plan.
pub fn plan(cron: &CronJob, jobs: &[Arc<Job>], now: Timestamp) -> Plan {
    let mut plan = Plan { status: cron.status.clone(), ..Plan::default() };
    let mut running: Vec<&Arc<Job>> = jobs
        .iter()
        .filter(|job| ended(job).is_none() && !job.metadata.annotations.contains_key(BY_HAND))
        .collect();
    running.sort_by_key(|job| (job.metadata.creation_timestamp, job.metadata.name.clone()));
    plan.status.active = running.iter().map(|job| ObjectRef::new(Job::KIND, job.meta())).collect();
    let won = jobs.iter().filter(|job| ended(job) == Some("Complete"));
    let won = won.filter_map(|job| job.status.completion_time).max();
    plan.status.last_successful_time = plan.status.last_successful_time.max(won);
    hear(cron, jobs, &mut plan);
    forget(cron, jobs, &mut plan);

    if cron.metadata.is_deleting() || cron.spec.suspend {
        return plan;
    }
    let schedule = match schedule(cron) {
        Ok(schedule) => schedule,
        Err((reason, words)) => {
            plan.said.push((Severity::Warning, reason, words));
            return plan;
        }
    };
    plan.again = schedule.after(now).and_then(|next| Duration::try_from(next.duration_since(now)).ok());
    let Some(due) = due(cron, &schedule, now, &mut plan) else { return plan };
    if jobs.iter().any(|job| *job.metadata.name == *job_name(cron, due)) {
        plan.status.last_schedule_time = Some(due); // an earlier pass made it and could not say so
        return plan;
    }
    match &*cron.spec.concurrency_policy {
        "Forbid" if !running.is_empty() => {
            let words =
                "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.said.push((Severity::Normal, "JobAlreadyActive", words.to_owned()));
            return plan;
        }
        "Replace" => {
            plan.replace = running.into_iter().cloned().collect();
            plan.status.active.clear();
        }
        _ => {}
    }
    plan.due = Some(due);
    plan.status.last_schedule_time = Some(due);
    plan
}

/// The last time of the schedule that came since a Job was made for one, if the deadline lets it still start.
fn due(cron: &CronJob, schedule: &Schedule, now: Timestamp, plan: &mut Plan) -> Option<Timestamp> {
    let since = cron.status.last_schedule_time.or(cron.metadata.creation_timestamp)?;
    let deadline = cron.spec.starting_deadline_seconds;
    let deadline =
        deadline.and_then(|seconds| Timestamp::from_second(now.as_second().saturating_sub(seconds)).ok());
    let since = deadline.map_or(since, |deadline| deadline.max(since));
    let due = schedule.last(now).filter(|time| *time > since)?;
    let missed = std::iter::successors(schedule.after(since), |time| schedule.after(*time));
    if missed.take(MISSED_MAX + 1).take_while(|time| *time <= now).count() > MISSED_MAX {
        let words =
            "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.said.push((Severity::Warning, "TooManyMissedTimes", words.to_owned()));
    }
    Some(due)
}

/// How the Job ended, if it did.
fn ended(job: &Job) -> Option<&'static str> {
    ["Complete", "Failed"]
        .into_iter()
        .find(|kind| condition(&job.status.conditions, kind).is_some_and(|one| one.status == "True"))
}

/// What became of those that ran when last we looked.
fn hear(cron: &CronJob, jobs: &[Arc<Job>], plan: &mut Plan) {
    for was in &cron.status.active {
        match jobs.iter().find(|job| job.metadata.uid == was.uid) {
            Some(job) => {
                if let Some(how) = ended(job) {
                    let words = format!("Saw completed job: {}, condition: {how}", was.name);
                    plan.said.push((Severity::Normal, "SawCompletedJob", words));
                }
            }
            None => {
                let words = format!("Active job went missing: {}", was.name);
                plan.said.push((Severity::Normal, "MissingJob", words));
            }
        }
    }
}

/// The oldest of those that ended, beyond as many as are kept of each sort.
fn forget(cron: &CronJob, jobs: &[Arc<Job>], plan: &mut Plan) {
    let limits = [
        ("Complete", cron.spec.successful_jobs_history_limit),
        ("Failed", cron.spec.failed_jobs_history_limit),
    ];
    for (how, limit) in limits {
        let Some(limit) = limit else { continue };
        let over = jobs.iter().filter(|job| ended(job) == Some(how) && !job.metadata.is_deleting());
        let mut over: Vec<&Arc<Job>> = over.collect();
        over.sort_by_key(|job| {
            (job.status.start_time.or(job.metadata.creation_timestamp), job.metadata.name.clone())
        });
        let surplus = over.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        plan.forget.extend(over.into_iter().take(surplus).cloned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn at(text: &str) -> Timestamp {
        format!("2026-03-01T{text}Z").parse().unwrap()
    }

    /// Made at nine o'clock; every ten minutes.
    fn cron(spec: Value, status: Value) -> CronJob {
        let mut object = json!({
            "metadata": {"name": "tick", "namespace": "ns", "uid": "c", "creationTimestamp": at("09:00:00")},
            "spec": {"schedule": "*/10 * * * *", "concurrencyPolicy": "Allow",
                "successfulJobsHistoryLimit": 3, "failedJobsHistoryLimit": 1},
            "status": status,
        });
        object["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_str(&object.to_string()).unwrap()
    }

    fn job(name: &str, ended: Option<(&str, &str)>) -> Arc<Job> {
        let conditions = ended.map(|(how, _)| json!([{"type": how, "status": "True"}]));
        let time = ended.map(|(_, time)| at(time));
        let object = json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name, "creationTimestamp": at("09:00:00")},
            "status": {"conditions": conditions, "startTime": time, "completionTime": time},
        });
        Arc::new(serde_json::from_str(&object.to_string()).unwrap())
    }

    fn reasons(plan: &Plan) -> Vec<&str> {
        plan.said.iter().map(|(_, reason, _)| *reason).collect()
    }

    #[test]
    fn a_job_is_due_once_for_the_last_time_that_came() {
        let last = |time: &str| json!({"lastScheduleTime": at(time)});
        for (now, spec, status, due, again) in [
            ("09:09:59", json!({}), json!({}), None, 1),
            ("09:10:00", json!({}), json!({}), Some("09:10:00"), 600),
            ("09:10:02", json!({}), last("09:10:00"), None, 598),
            ("09:35:00", json!({}), last("09:10:00"), Some("09:30:00"), 300),
            ("09:35:00", json!({"startingDeadlineSeconds": 301}), last("09:10:00"), Some("09:30:00"), 300),
            ("09:35:00", json!({"startingDeadlineSeconds": 299}), last("09:10:00"), None, 300),
            (
                "09:35:00",
                json!({"timeZone": "Asia/Kathmandu", "schedule": "20 15 * * *"}),
                json!({}),
                Some("09:35:00"),
                86400,
            ),
        ] {
            let cron = cron(spec, status);
            let plan = plan(&cron, &[], at(now));
            assert_eq!(plan.due, due.map(at), "{now} {:?}", cron.spec);
            assert_eq!(plan.again, Some(Duration::from_secs(again)), "{now} {:?}", cron.spec);
            assert_eq!(plan.status.last_schedule_time, plan.due.or(cron.status.last_schedule_time));
            assert!(plan.said.is_empty());
        }
        let suspended = cron(json!({"suspend": true}), json!({}));
        let plan = plan(&suspended, &[], at("12:00:00"));
        assert_eq!((plan.due, plan.again), (None, None));
    }

    #[test]
    fn many_missed_times_are_told_and_only_the_last_is_made_up_for() {
        let cron = cron(json!({"schedule": "* * * * *"}), json!({}));
        let told = |now| {
            let plan = plan(&cron, &[], at(now));
            assert_eq!(plan.due, Some(at(now)));
            reasons(&plan).join(",")
        };
        assert_eq!((&*told("10:40:00"), &*told("10:41:00")), ("", "TooManyMissedTimes"));
    }

    #[test]
    fn what_still_runs_lets_start_keeps_back_or_makes_room() {
        let runs = [job("tick-1", None)];
        let of = |policy: &str| {
            plan(&cron(json!({"concurrencyPolicy": policy}), json!({})), &runs, at("09:10:00"))
        };
        let names =
            |plan: &Plan| plan.status.active.iter().map(|one| one.name.to_string()).collect::<Vec<_>>();
        let allow = of("Allow");
        assert_eq!((allow.due, names(&allow)), (Some(at("09:10:00")), vec!["tick-1".to_owned()]));
        let forbid = of("Forbid");
        assert_eq!((forbid.due, reasons(&forbid)), (None, vec!["JobAlreadyActive"]));
        assert_eq!(forbid.status.last_schedule_time, None, "it starts late, when the other has ended");
        let replace = of("Replace");
        assert_eq!((replace.due, replace.replace.len(), names(&replace)), (Some(at("09:10:00")), 1, vec![]));
    }

    #[test]
    fn a_job_that_was_made_is_not_made_again() {
        let cron = cron(json!({}), json!({}));
        let made = job(&job_name(&cron, at("09:10:00")), None);
        let plan = plan(&cron, &[made], at("09:10:01"));
        assert_eq!((plan.due, plan.status.last_schedule_time), (None, Some(at("09:10:00"))));
        assert_eq!(plan.status.active.len(), 1);
    }

    #[test]
    fn what_ended_is_told_kept_for_a_while_and_forgotten() {
        let active = json!([{"name": "tick-1", "uid": "tick-1"}, {"name": "lost", "uid": "lost"}]);
        let cron = cron(json!({"successfulJobsHistoryLimit": 1}), json!({"active": active}));
        let jobs = [
            job("tick-1", Some(("Complete", "09:03:00"))),
            job("tick-2", Some(("Complete", "09:01:00"))),
            job("tick-3", Some(("Failed", "09:02:00"))),
        ];
        let plan = plan(&cron, &jobs, at("09:05:00"));
        assert_eq!(reasons(&plan), ["SawCompletedJob", "MissingJob"]);
        assert_eq!(plan.forget.iter().map(|job| &*job.metadata.name).collect::<Vec<_>>(), ["tick-2"]);
        assert_eq!(plan.status.last_successful_time, Some(at("09:03:00")));
        assert!(plan.status.active.is_empty());
    }

    #[test]
    fn what_is_no_schedule_is_told() {
        for (spec, reason) in [
            (json!({"schedule": "not so"}), "UnparseableSchedule"),
            (json!({"timeZone": "Mars/Olympus"}), "UnknownTimeZone"),
        ] {
            let plan = plan(&cron(spec, json!({})), &[], at("09:10:00"));
            assert_eq!((reasons(&plan), plan.due, plan.again), (vec![reason], None, None));
        }
    }
}
