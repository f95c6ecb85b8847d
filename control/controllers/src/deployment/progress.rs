//! What a Deployment's status says of its rollout.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::plan::{Limits, Plan, Set, current};
use crate::views::{Condition, Deployment, DeploymentStatus, condition};

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const FAILURE: &str = "ReplicaFailure";
/// A deadline of this many seconds is none, as in Kubernetes.
const NO_DEADLINE: i32 = i32::MAX;

/// The status to write, and when to look again even if nothing changes.
#[derive(Debug, Clone)]
pub struct Progress {
    pub status: DeploymentStatus,
    pub again: Option<Duration>,
}

/// No I/O, no clock but `now`: same input, same status.
pub fn progress(deployment: &Deployment, sets: &[Set], plan: &Plan, now: Timestamp) -> Progress {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let limits = Limits::of(deployment);
    let old = &deployment.status;
    let current = current(sets);
    let sum = |of: fn(&crate::views::ReplicaSetStatus) -> i32| {
        sets.iter().map(|set| of(&set.view.status)).sum::<i32>()
    };
    let terminating = sum(|status| status.terminating_replicas.unwrap_or(0));
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: sum(|status| status.replicas),
        updated_replicas: current.map_or(0, |set| set.view.status.replicas),
        ready_replicas: sum(|status| status.ready_replicas),
        available_replicas: sum(|status| status.available_replicas),
        unavailable_replicas: 0,
        terminating_replicas: (terminating > 0 || old.terminating_replicas.is_some()).then_some(terminating),
        collision_count: old.collision_count,
        conditions: old.conditions.clone(),
    };
    status.unavailable_replicas = (plan.asked - status.available_replicas).max(0);
    if deployment.metadata.is_deleting() {
        return Progress { status, again: None };
    }

    let enough = status.available_replicas >= limits.least_available();
    let (value, reason, message) = if enough {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set(&mut status.conditions, AVAILABLE, value, reason, message.to_owned(), now);

    let again = progressing(deployment, &limits, plan, &mut status, now);

    let failing = current.and_then(|set| condition(&set.view.status.conditions, FAILURE));
    match failing.filter(|one| one.status == "True") {
        Some(failure) => {
            set(&mut status.conditions, FAILURE, "True", &failure.reason, failure.message.clone(), now);
        }
        None => status.conditions.retain(|one| one.r#type != FAILURE),
    }
    Progress { status, again }
}

/// Writes the Progressing condition; returns when its deadline comes.
fn progressing(
    deployment: &Deployment,
    limits: &Limits,
    plan: &Plan,
    status: &mut DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let old = &deployment.status;
    let deadline = deployment.spec.progress_deadline_seconds.unwrap_or(600);
    if deadline == NO_DEADLINE {
        status.conditions.retain(|one| one.r#type != PROGRESSING);
        return None;
    }
    let was = condition(&old.conditions, PROGRESSING);
    let reason_was = was.map_or("", |one| one.reason.as_str());
    let name = plan.current.as_deref();
    let said = |what: &str| match name {
        Some(name) => format!("ReplicaSet \"{name}\" {what}"),
        None => format!("Deployment \"{}\" {what}", deployment.metadata.name),
    };
    if deployment.spec.paused {
        if reason_was != "DeploymentPaused" && reason_was != "ProgressDeadlineExceeded" {
            let message = "Deployment is paused".to_owned();
            set(&mut status.conditions, PROGRESSING, "Unknown", "DeploymentPaused", message, now);
        }
        return None;
    }
    let total_old = |status: &DeploymentStatus| status.replicas - status.updated_replicas;
    // The numbers are those of before this pass's steps: a rollout that just began is not complete.
    let settled = plan.steps.is_empty() || plan.asked == status.replicas;
    let complete = settled
        && !plan.created
        && status.updated_replicas == limits.replicas
        && status.replicas == limits.replicas
        && status.available_replicas == limits.replicas
        && plan.current.is_some();
    if complete {
        if reason_was != "NewReplicaSetAvailable" {
            let message = said("has successfully progressed.");
            renew(&mut status.conditions, "True", "NewReplicaSetAvailable", message, now);
        }
        return None;
    }
    let moved = plan.created
        || status.updated_replicas > old.updated_replicas
        || total_old(status) < total_old(old)
        || status.ready_replicas > old.ready_replicas
        || status.available_replicas > old.available_replicas;
    let began = was.is_none() || reason_was == "DeploymentPaused" || reason_was == "NewReplicaSetAvailable";
    if plan.created {
        let message = format!("Created new replica set \"{}\"", name.unwrap_or_default());
        renew(&mut status.conditions, "True", "NewReplicaSetCreated", message, now);
    } else if moved || (began && reason_was != "NewReplicaSetAvailable") {
        let message = said("is progressing.");
        renew(&mut status.conditions, "True", "ReplicaSetUpdated", message, now);
    } else if reason_was == "NewReplicaSetAvailable" {
        // It was complete, and then a pod failed or the number changed: no rollout, so no deadline.
        return None;
    } else if reason_was == "ProgressDeadlineExceeded" {
        return None;
    }
    let since = condition(&status.conditions, PROGRESSING)
        .and_then(|one| one.last_update_time.or(one.last_transition_time))
        .unwrap_or(now);
    let left = SignedDuration::from_secs(deadline.into()) - now.duration_since(since);
    if left.is_positive() {
        return Duration::try_from(left).ok();
    }
    renew(
        &mut status.conditions,
        "False",
        "ProgressDeadlineExceeded",
        said("has timed out progressing."),
        now,
    );
    None
}

/// Sets a condition if it says something new.
fn set(all: &mut Vec<Condition>, kind: &str, status: &str, reason: &str, message: String, now: Timestamp) {
    let same = condition(all, kind).is_some_and(|old| old.status == status && old.reason == reason);
    if !same {
        replace(all, kind, status, reason, message, now);
    }
}

/// Sets the Progressing condition and its time of update: the deadline counts from there.
fn renew(all: &mut Vec<Condition>, status: &str, reason: &str, message: String, now: Timestamp) {
    replace(all, PROGRESSING, status, reason, message, now);
}

fn replace(
    all: &mut Vec<Condition>,
    kind: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let new = Condition {
        observed_generation: None,
        r#type: kind.to_owned(),
        status: status.to_owned(),
        last_update_time: Some(now),
        last_heartbeat_time: None,
        last_transition_time: Some(now),
        reason: reason.to_owned(),
        message,
    };
    match all.iter_mut().find(|one| one.r#type == kind) {
        Some(old) => {
            let transition =
                if old.status == new.status { old.last_transition_time } else { new.last_transition_time };
            *old = Condition { last_transition_time: transition, ..new };
        }
        None => all.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    struct Case {
        deployment: Deployment,
        now: i64,
    }

    impl Case {
        fn new(replicas: i32) -> Self {
            let text = json!({
                "metadata": {"name": "web", "uid": "d", "generation": 2},
                "spec": {"replicas": replicas, "progressDeadlineSeconds": 60,
                    "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                    "template": {"spec": {}}},
            });
            Self { deployment: serde_json::from_str(&text.to_string()).unwrap(), now: 1000 }
        }

        /// One pass, with one set that has so many pods and of these so many available; keeps the status.
        fn pass(&mut self, pods: i32, available: i32, created: bool) -> (String, String, Option<u64>) {
            let set = json!({
                "metadata": {"name": "web-1"},
                "spec": {"replicas": self.deployment.spec.replicas, "template": {"spec": {}}},
                "status": {"replicas": pods, "readyReplicas": available, "availableReplicas": available},
            });
            let set = Set::new(Arc::new(serde_json::from_str(&set.to_string()).unwrap()), &self.deployment);
            let asked = self.deployment.spec.replicas.unwrap();
            let plan = Plan { steps: vec![], current: Some("web-1".into()), created, asked };
            let sets = if created { vec![] } else { vec![set] };
            let progress =
                progress(&self.deployment, &sets, &plan, Timestamp::from_second(self.now).unwrap());
            self.deployment.status = progress.status;
            let all = &self.deployment.status.conditions;
            let progressing = condition(all, PROGRESSING).map(|one| one.reason.clone()).unwrap_or_default();
            let available = condition(all, AVAILABLE).unwrap().status.clone();
            (progressing, available, progress.again.map(|wait| wait.as_secs()))
        }
    }

    fn said(progressing: &str, available: &str, again: Option<u64>) -> (String, String, Option<u64>) {
        (progressing.to_owned(), available.to_owned(), again)
    }

    #[test]
    fn a_rollout_is_told_from_its_creation_to_its_end() {
        let mut case = Case::new(2);
        assert_eq!(case.pass(0, 0, true), said("NewReplicaSetCreated", "False", Some(60)));
        assert_eq!(case.deployment.status.unavailable_replicas, 2);
        case.now += 10;
        assert_eq!(case.pass(2, 0, false), said("ReplicaSetUpdated", "False", Some(60)));
        case.now += 10;
        assert_eq!(case.pass(2, 0, false), said("ReplicaSetUpdated", "False", Some(50)), "nothing moved");
        assert_eq!(case.pass(2, 1, false), said("ReplicaSetUpdated", "False", Some(60)));
        assert_eq!(case.pass(2, 2, false), said("NewReplicaSetAvailable", "True", None));
        assert_eq!(case.deployment.status.observed_generation, 2);
        assert_eq!(
            case.pass(2, 1, false),
            said("NewReplicaSetAvailable", "False", None),
            "a failed pod is no rollout"
        );
    }

    #[test]
    fn a_rollout_that_stands_still_exceeds_its_deadline_and_can_recover() {
        let mut case = Case::new(2);
        case.pass(0, 0, true);
        case.now += 61;
        case.pass(2, 0, false);
        case.now += 61;
        assert_eq!(case.pass(2, 0, false), said("ProgressDeadlineExceeded", "False", None));
        assert_eq!(case.pass(2, 0, false), said("ProgressDeadlineExceeded", "False", None));
        assert_eq!(case.pass(2, 2, false), said("NewReplicaSetAvailable", "True", None));
    }

    #[test]
    fn pausing_and_resuming_are_told() {
        let mut case = Case::new(1);
        case.pass(0, 0, true);
        case.deployment.spec.paused = true;
        assert_eq!(case.pass(1, 0, false).0, "DeploymentPaused");
        case.deployment.spec.paused = false;
        assert_eq!(case.pass(1, 0, false), said("ReplicaSetUpdated", "False", Some(60)));
    }

    #[test]
    fn a_status_that_says_nothing_new_stays_as_it_is() {
        let mut case = Case::new(2);
        case.pass(2, 2, false);
        let before = case.deployment.status.clone();
        case.now += 1000;
        case.pass(2, 2, false);
        assert_eq!(case.deployment.status, before);
    }
}
