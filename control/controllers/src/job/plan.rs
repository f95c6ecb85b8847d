//! What a Job's pods need, and what they have come to.
//!
//! A pod that ended is counted exactly once, though passes may be cut off anywhere: its uid goes into the status
//! first, then its finalizer is taken, and only when that is seen gone is the uid turned into a number.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::status::sooner;
use crate::views::{Condition, Job, JobStatus, Pod, condition};

/// Keeps a pod from vanishing before it was counted.
pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// Which of an Indexed Job's completions a pod is for.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// Uids kept in a status at once, as in Kubernetes.
const UNCOUNTED_MAX: usize = 500;
/// After a failure the next pod waits: this, doubled at each failure in a row up to the longest, as in Kubernetes.
const BACKOFF: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(600);

/// What to do so that the Job goes on, and what is true before that is done.
#[derive(Debug, Default)]
pub struct Plan {
    pub status: JobStatus,
    /// Pods whose uid the new status has: their finalizer can go once it is written.
    pub strip: Vec<Arc<Pod>>,
    /// Pods to delete, and whether they are to count as failed.
    pub delete: Vec<(Arc<Pod>, bool)>,
    /// Pods to make, by index for an Indexed Job.
    pub create: Vec<Option<i32>>,
    /// Look again after this.
    pub again: Option<Duration>,
}

/// Whether the Job has come to its end, and since when.
pub fn finished(job: &Job) -> Option<Timestamp> {
    let ended = ["Complete", "Failed"]
        .iter()
        .find_map(|kind| condition(&job.status.conditions, kind).filter(|one| one.status == "True"))?;
    Some(ended.last_transition_time.unwrap_or(Timestamp::UNIX_EPOCH))
}

/// `pods` are those that the Job controls. No I/O, no clock: same input, same plan.
pub fn plan(job: &Job, pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let mut plan = Plan { status: job.status.clone(), ..Plan::default() };
    let indexed = job.is_indexed();
    let mut done = Indexes::parse(&job.status.completed_indexes, job.spec.completions.unwrap_or(0));
    let beyond = count(&mut plan, job, pods, &mut done);
    let status = &mut plan.status;
    let succeeded = match indexed {
        true => {
            // An index that was taken away again when the Job was made smaller does not count.
            done.0.retain(|index| *index < job.spec.completions.unwrap_or(0));
            status.succeeded = done.0.len() as i32;
            status.completed_indexes = done.to_string();
            status.succeeded
        }
        false => status.succeeded + status.uncounted().succeeded.len() as i32 + beyond.0,
    };
    let failed = status.failed + status.uncounted().failed.len() as i32 + beyond.1;

    let active: Vec<&Arc<Pod>> = pods.iter().filter(|pod| pod.is_active()).collect();
    let terminating = pods.iter().filter(|pod| pod.metadata.is_deleting() && !pod.has_ended()).count();
    status.active = active.len() as i32;
    status.ready = active.iter().filter(|pod| pod.ready_since().is_some()).count() as i32;
    status.terminating = terminating as i32;

    if job.spec.suspend {
        if set(&mut status.conditions, "Suspended", "True", "JobSuspended", "Job suspended", now) {
            status.start_time = None;
        }
    } else {
        if condition(&status.conditions, "Suspended").is_some_and(|one| one.status == "True") {
            set(&mut status.conditions, "Suspended", "False", "JobResumed", "Job resumed", now);
            status.start_time = None;
        }
        status.start_time = status.start_time.or(Some(now));
    }

    let restarts =
        if job.restarts_in_place() { active.iter().map(|pod| pod.all_restarts()).sum() } else { 0 };
    let limit = job.spec.backoff_limit.unwrap_or(6);
    let deadline = job.spec.active_deadline_seconds.filter(|_| !job.spec.suspend);
    let left = deadline.and_then(|seconds| {
        let age = now.duration_since(status.start_time?).as_secs();
        Some(seconds.saturating_sub(age))
    });
    let complete = match job.spec.completions {
        Some(wanted) => succeeded >= wanted,
        None => succeeded > 0 && active.is_empty(),
    };
    let holds = |kind: &str| condition(&job.status.conditions, kind).is_some_and(|one| one.status == "True");
    if !holds("FailureTarget") && !holds("SuccessCriteriaMet") {
        let conditions = &mut status.conditions;
        if failed > limit || (restarts > 0 && restarts >= limit) {
            let why = "Job has reached the specified backoff limit";
            set(conditions, "FailureTarget", "True", "BackoffLimitExceeded", why, now);
        } else if left.is_some_and(|left| left <= 0) {
            let why = "Job was active longer than specified deadline";
            set(conditions, "FailureTarget", "True", "DeadlineExceeded", why, now);
        } else if complete {
            let why = "Reached expected number of succeeded pods";
            set(conditions, "SuccessCriteriaMet", "True", "CompletionsReached", why, now);
        }
    }
    let decided =
        |kind: &str| condition(&plan.status.conditions, kind).filter(|one| one.status == "True").cloned();
    let end = decided("FailureTarget").map(|why| ("Failed", why));
    if let Some((kind, why)) = end.or_else(|| decided("SuccessCriteriaMet").map(|why| ("Complete", why))) {
        let counted = plan.status.uncounted().is_empty() && beyond == (0, 0);
        if active.is_empty() && terminating == 0 && counted {
            set(&mut plan.status.conditions, kind, "True", &why.reason, &why.message, now);
            if kind == "Complete" {
                plan.status.completion_time = Some(now);
            }
        }
        plan.delete = active.into_iter().map(|pod| (pod.clone(), kind == "Failed")).collect();
        return plan;
    }
    if job.spec.suspend {
        plan.delete = active.into_iter().map(|pod| (pod.clone(), false)).collect();
        return plan;
    }
    plan.again = left.map(|left| Duration::from_secs(left.unsigned_abs()));
    size(&mut plan, job, &active, terminating, succeeded, &done);
    if !plan.create.is_empty()
        && let Some(wait) = backoff(pods, now)
    {
        plan.create.clear();
        sooner(&mut plan.again, wait);
    }
    plan
}

/// Turns uids whose finalizer went into numbers, and notes the uids of pods that ended meanwhile. Gives how many
/// more succeeded and failed than could be noted at once.
fn count(plan: &mut Plan, job: &Job, pods: &[Arc<Pod>], done: &mut Indexes) -> (i32, i32) {
    let tracked: Vec<&Arc<Pod>> = pods.iter().filter(|pod| pod.metadata.has_finalizer(FINALIZER)).collect();
    let mut noted = plan.status.uncounted().clone();
    let held: BTreeSet<&str> = tracked.iter().map(|pod| &*pod.metadata.uid).collect();
    let settle = |uids: &mut Vec<String>| {
        let before = uids.len();
        uids.retain(|uid| held.contains(uid.as_str()));
        (before - uids.len()) as i32
    };
    plan.status.succeeded += settle(&mut noted.succeeded);
    plan.status.failed += settle(&mut noted.failed);
    let mut beyond = (0, 0);
    for pod in tracked {
        let uid = pod.metadata.uid.to_string();
        if noted.has(&uid) {
            plan.strip.push(pod.clone());
            continue;
        }
        let won = pod.status.phase.as_deref() == Some("Succeeded");
        // A pod that is being deleted has failed, unless its replacement is to wait until it ended.
        let lost =
            pod.has_ended() && !won || pod.metadata.is_deleting() && !won && !job.replaces_failed_only();
        if !won && !lost {
            continue;
        }
        if won && let Some(index) = index(pod) {
            done.0.insert(index);
        }
        if noted.len() >= UNCOUNTED_MAX {
            let beyond = if won { &mut beyond.0 } else { &mut beyond.1 };
            *beyond += 1;
            continue;
        }
        let list = if won { &mut noted.succeeded } else { &mut noted.failed };
        list.push(uid);
        plan.strip.push(pod.clone());
    }
    plan.status.uncounted_terminated_pods = Some(noted);
    beyond
}

/// As many pods as may run at once and are still needed.
fn size(
    plan: &mut Plan,
    job: &Job,
    active: &[&Arc<Pod>],
    terminating: usize,
    succeeded: i32,
    done: &Indexes,
) {
    let parallelism = job.spec.parallelism.unwrap_or(1).max(0);
    let wanted = match job.spec.completions {
        Some(completions) => parallelism.min((completions - succeeded).max(0)),
        // One success ends it: nothing new is begun after that.
        None if succeeded > 0 => parallelism.min(active.len() as i32),
        None => parallelism,
    };
    let wanted = usize::try_from(wanted).unwrap_or(0);
    if job.is_indexed() {
        let mut taken = done.0.clone();
        let mut kept = 0;
        for pod in active {
            // Of two pods for one index, and of those for none, the later goes.
            let fits = index(pod).is_some_and(|index| {
                index < job.spec.completions.unwrap_or(0) && kept < wanted && taken.insert(index)
            });
            kept += usize::from(fits);
            if !fits {
                plan.delete.push(((*pod).clone(), false));
            }
        }
        let waiting = if job.replaces_failed_only() { terminating } else { 0 };
        let free = (0..job.spec.completions.unwrap_or(0)).filter(|index| !taken.contains(index));
        plan.create = free.take(wanted.saturating_sub(kept + waiting)).map(Some).collect();
        return;
    }
    let waiting = if job.replaces_failed_only() { terminating } else { 0 };
    plan.create = vec![None; wanted.saturating_sub(active.len() + waiting)];
    let mut surplus = active.to_vec();
    surplus
        .sort_by_key(|pod| (pod.ready_since().is_some(), std::cmp::Reverse(pod.metadata.creation_timestamp)));
    surplus.truncate(active.len().saturating_sub(wanted));
    plan.delete = surplus.into_iter().map(|pod| (pod.clone(), false)).collect();
}

/// How long the next pod still waits, after the failures since the last success.
fn backoff(pods: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    let mut ended: Vec<(Timestamp, bool)> = pods
        .iter()
        .filter(|pod| pod.has_ended())
        .map(|pod| (pod.ended_at(), pod.status.phase.as_deref() == Some("Succeeded")))
        .collect();
    ended.sort_unstable();
    let failures = ended.iter().rev().take_while(|(_, won)| !won).count() as u32;
    let last = ended.last().map(|(at, _)| *at).filter(|_| failures > 0)?;
    let wait = BACKOFF.saturating_mul(2_u32.saturating_pow(failures - 1)).min(BACKOFF_MAX);
    let gone = Duration::try_from(now.duration_since(last)).unwrap_or_default();
    wait.checked_sub(gone).filter(|left| !left.is_zero())
}

/// Sets a condition; tells whether it was another before.
fn set(
    all: &mut Vec<Condition>,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> bool {
    if condition(all, kind).is_some_and(|one| one.status == status) {
        return false;
    }
    all.retain(|one| one.r#type != kind);
    all.push(Condition {
        r#type: kind.to_owned(),
        status: status.to_owned(),
        last_transition_time: Some(now),
        reason: reason.to_owned(),
        message: message.to_owned(),
        ..Condition::default()
    });
    true
}

fn index(pod: &Pod) -> Option<i32> {
    pod.metadata.labels.get(INDEX)?.parse().ok()
}

/// Completed indexes, written as ranges: `1,3-5,7`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Indexes(BTreeSet<i32>);

impl Indexes {
    /// Those below `completions`: a status may say what it likes, and is a user's to write.
    fn parse(text: &str, completions: i32) -> Self {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(
                first.parse::<i32>().ok()?.max(0)
                    ..last.parse::<i32>().ok()?.saturating_add(1).min(completions),
            )
        };
        Self(text.split(',').filter_map(range).flatten().collect())
    }
}

impl std::fmt::Display for Indexes {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut ranges: Vec<(i32, i32)> = Vec::new();
        for index in &self.0 {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == *index => *last = *index,
                _ => ranges.push((*index, *index)),
            }
        }
        let words = ranges.iter().map(|(first, last)| match last - first {
            0 => first.to_string(),
            1 => format!("{first},{last}"),
            _ => format!("{first}-{last}"),
        });
        out.write_str(&words.collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: i64 = 1_000_000;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn job(spec: Value, status: Value) -> Job {
        let job = json!({"metadata": {"name": "j", "uid": "j"}, "spec": spec, "status": status});
        serde_json::from_str(&job.to_string()).unwrap()
    }

    fn pod(name: &str, phase: &str, extra: Value) -> Arc<Pod> {
        let mut meta = json!({"name": name, "uid": name, "finalizers": [FINALIZER]});
        meta.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let finished = at(NOW - 4).to_string();
        let status = json!({"phase": phase, "containerStatuses": [
            {"restartCount": 0, "state": {"terminated": {"finishedAt": finished}}}]});
        Arc::new(serde_json::from_value(json!({"metadata": meta, "status": status})).unwrap())
    }

    fn has(status: &JobStatus, kind: &str) -> Option<String> {
        condition(&status.conditions, kind).filter(|one| one.status == "True").map(|one| one.reason.clone())
    }

    #[test]
    fn no_more_pods_run_than_may_and_are_needed() {
        for (spec, succeeded, active, create, delete) in [
            (json!({"parallelism": 2, "completions": 5}), 0, 0, 2, 0),
            (json!({"parallelism": 2, "completions": 5}), 4, 0, 1, 0),
            (json!({"parallelism": 2, "completions": 5}), 0, 3, 0, 1),
            (json!({"parallelism": 3}), 0, 1, 2, 0),
            (json!({"parallelism": 3}), 1, 2, 0, 0),
            (json!({"parallelism": 2, "completions": 5, "suspend": true}), 0, 2, 0, 2),
        ] {
            let pods: Vec<_> = (0..active).map(|n| pod(&format!("p{n}"), "Running", json!({}))).collect();
            let plan = plan(&job(spec.clone(), json!({"succeeded": succeeded})), &pods, at(NOW));
            assert_eq!(
                (plan.create.len(), plan.delete.len()),
                (create, delete),
                "{spec} {succeeded} {active}"
            );
        }
    }

    #[test]
    fn a_pod_that_ended_is_counted_once_whatever_pass_is_cut_off() {
        let spec = json!({"parallelism": 1, "completions": 2});
        let ended = pod("a", "Succeeded", json!({}));
        let first = plan(&job(spec.clone(), json!({})), std::slice::from_ref(&ended), at(NOW));
        assert_eq!((first.status.succeeded, first.strip.len(), first.create.len()), (0, 1, 1));
        // The status is written and the finalizer still there: the same again.
        let noted = json!({"uncountedTerminatedPods": {"succeeded": ["a"]}});
        let again = plan(&job(spec.clone(), noted.clone()), &[ended], at(NOW));
        assert_eq!((again.status.succeeded, again.strip.len(), again.create.len()), (0, 1, 1));
        // The finalizer is gone: now it is a number, and stays one.
        let free = pod("a", "Succeeded", json!({"finalizers": []}));
        let counted = plan(&job(spec.clone(), noted), std::slice::from_ref(&free), at(NOW));
        assert_eq!((counted.status.succeeded, counted.strip.len(), counted.create.len()), (1, 0, 1));
        let last = plan(&job(spec, json!({"succeeded": 1})), &[free], at(NOW));
        assert_eq!((last.status.succeeded, last.create.len()), (1, 1));
    }

    #[test]
    fn a_job_ends_only_when_its_pods_have() {
        let spec = json!({"parallelism": 2, "completions": 1, "backoffLimit": 0});
        let running = [pod("a", "Running", json!({}))];
        let won = plan(&job(spec.clone(), json!({"succeeded": 1})), &running, at(NOW));
        assert_eq!(has(&won.status, "SuccessCriteriaMet").as_deref(), Some("CompletionsReached"));
        assert_eq!((has(&won.status, "Complete"), won.delete.len()), (None, 1));
        let lost = plan(&job(spec.clone(), json!({"failed": 1})), &running, at(NOW));
        assert_eq!(has(&lost.status, "FailureTarget").as_deref(), Some("BackoffLimitExceeded"));
        assert!(has(&lost.status, "Failed").is_none() && lost.delete[0].1);
        let over = plan(&job(spec, json!({"succeeded": 1})), &[], at(NOW));
        assert_eq!(has(&over.status, "Complete").as_deref(), Some("CompletionsReached"));
        assert_eq!(over.status.completion_time, Some(at(NOW)));
    }

    #[test]
    fn failures_and_deadlines_are_waited_for() {
        let spec = json!({"parallelism": 1, "completions": 1, "backoffLimit": 6});
        let failed = |name: &str| pod(name, "Failed", json!({}));
        let one = plan(&job(spec.clone(), json!({})), &[failed("a")], at(NOW));
        assert_eq!((one.create.len(), one.again), (0, Some(Duration::from_secs(6))));
        let two = plan(&job(spec.clone(), json!({})), &[failed("a"), failed("b")], at(NOW));
        assert_eq!((two.create.len(), two.again), (0, Some(Duration::from_secs(16))));
        let later = plan(&job(spec, json!({})), &[failed("a")], at(NOW + 6));
        assert_eq!(later.create.len(), 1);
        let spec = json!({"parallelism": 1, "completions": 1, "activeDeadlineSeconds": 60});
        let started = json!({"startTime": at(NOW - 45).to_string()});
        let waits = plan(&job(spec.clone(), started.clone()), &[], at(NOW));
        assert_eq!(waits.again, Some(Duration::from_secs(15)));
        let late = plan(&job(spec, started), &[], at(NOW + 15));
        assert_eq!(has(&late.status, "Failed").as_deref(), Some("DeadlineExceeded"));
    }

    #[test]
    fn each_index_has_one_pod_until_it_is_done() {
        let spec = json!({"parallelism": 3, "completions": 6, "completionMode": "Indexed"});
        let of = |name: &str, phase: &str, index: &str| pod(name, phase, json!({"labels": {INDEX: index}}));
        let pods = [of("a", "Running", "1"), of("b", "Running", "1"), of("c", "Succeeded", "4")];
        let plan = plan(&job(spec, json!({"completedIndexes": "0,2"})), &pods, at(NOW));
        assert_eq!(plan.status.completed_indexes, "0,2,4");
        assert_eq!(plan.status.succeeded, 3);
        assert_eq!(plan.create, [Some(3), Some(5)]);
        let gone: Vec<_> = plan.delete.iter().map(|(pod, _)| &*pod.metadata.name).collect();
        assert_eq!(gone, ["b"]);
        for text in ["", "3", "0,1", "1,3-5,7"] {
            assert_eq!(Indexes::parse(text, 10).to_string(), text);
        }
        assert_eq!(Indexes::parse("1,0-2147483647,x,5-", 3).to_string(), "0-2", "and no more is kept");
    }
}
