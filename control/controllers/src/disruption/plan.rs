//! How many of a budget's pods may be disrupted.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use wharf_kit::event::Severity;

use crate::status::sooner;
use crate::views::{Condition, DisruptionStatus, Pod, PodDisruptionBudget, condition};

/// A pod whose eviction passed is expected to be seen going within this, as in Kubernetes.
const GOING_WITHIN: SignedDuration = SignedDuration::from_mins(2);

/// Who decides how many such pods there are to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scale {
    /// By uid, and the number.
    Of(Arc<str>, i32),
    Nobody,
    /// Why that cannot be told.
    Unknown(String),
}

/// What is true of a budget, and what its users should hear.
#[derive(Debug, Default)]
pub struct Plan {
    pub status: DisruptionStatus,
    /// How bad, the reason, and the words, about the budget.
    pub said: Vec<(Severity, &'static str, String)>,
    /// Pods that were to go and did not.
    pub stayed: Vec<Arc<Pod>>,
    /// Look again after this.
    pub again: Option<Duration>,
}

/// `pods` are those that the budget selects. No I/O, no clock: same input, same plan.
pub fn plan(budget: &PodDisruptionBudget, pods: &[(Arc<Pod>, Scale)], now: Timestamp) -> Plan {
    let mut plan = Plan { status: budget.status.clone(), ..Plan::default() };
    if pods.is_empty() {
        plan.said.push((Severity::Normal, "NoPods", "No matching pods found".to_owned()));
    }
    let (expected, desired) = match expect(budget, pods, &mut plan) {
        Ok(numbers) => numbers,
        Err(why) => {
            // Nothing may go while it is not known how many there should be.
            let words = format!("Failed to calculate the number of expected pods: {why}");
            plan.said.push((Severity::Warning, "CalculateExpectedPodCountFailed", words));
            plan.status.disruptions_allowed = 0;
            let generation = budget.status.observed_generation;
            tell(&mut plan.status.conditions, "SyncFailed", &why, generation, now);
            return plan;
        }
    };
    let pods: Vec<&Arc<Pod>> = pods.iter().map(|(pod, _)| pod).collect();
    going(&pods, now, &mut plan);
    let healthy = pods.iter().filter(|pod| {
        let leaves = plan.status.disrupted_pods.contains_key(&*pod.metadata.name);
        !pod.metadata.is_deleting() && !leaves && pod.ready_since().is_some()
    });
    let healthy = healthy.count() as i32;
    let status = &mut plan.status;
    status.current_healthy = healthy;
    status.desired_healthy = desired;
    status.expected_pods = expected;
    // Without pods nothing is allowed, so that the first that come are safe.
    status.disruptions_allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
    status.observed_generation = budget.metadata.generation;
    let reason = if status.disruptions_allowed > 0 { "SufficientPods" } else { "InsufficientPods" };
    tell(&mut status.conditions, reason, "", budget.metadata.generation, now);
    plan
}

/// How many pods there are to be, and how many of them healthy.
fn expect(
    budget: &PodDisruptionBudget,
    pods: &[(Arc<Pod>, Scale)],
    plan: &mut Plan,
) -> Result<(i32, i32), String> {
    use crate::views::IntOrPercent::{Int, Percent};
    if let Some(most) = &budget.spec.max_unavailable {
        let expected = scale(pods, plan)?;
        return Ok((expected, expected.saturating_sub(most.of(expected, true)).max(0)));
    }
    match &budget.spec.min_available {
        Some(least @ Int(_)) => Ok((pods.len() as i32, least.of(0, true))),
        Some(least @ Percent(_)) => {
            let expected = scale(pods, plan)?;
            Ok((expected, least.of(expected, true)))
        }
        None => Ok((pods.len() as i32, 0)),
    }
}

/// The sum of what the pods' controllers are scaled to, each counted once.
fn scale(pods: &[(Arc<Pod>, Scale)], plan: &mut Plan) -> Result<i32, String> {
    let (mut sum, mut unmanaged, mut counted) = (0_i32, Vec::new(), BTreeSet::new());
    for (pod, scale) in pods {
        match scale {
            Scale::Of(uid, replicas) => {
                if counted.insert(uid) {
                    sum = sum.saturating_add(*replicas);
                }
            }
            Scale::Nobody => unmanaged.push(&*pod.metadata.name),
            Scale::Unknown(why) => return Err(why.clone()),
        }
    }
    if !unmanaged.is_empty() {
        let words = format!(
            "Pods selected by this PodDisruptionBudget were found to be unmanaged: {}. As a result, the status of \
             the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these \
             pods please set \".spec.minAvailable\" field of the PDB to an integer value.",
            unmanaged.join(", ")
        );
        plan.said.push((Severity::Warning, "UnmanagedPods", words));
    }
    Ok(sum)
}

/// Keeps of the pods whose eviction passed those that are yet to be seen going.
fn going(pods: &[&Arc<Pod>], now: Timestamp, plan: &mut Plan) {
    let (stayed, again) = (&mut plan.stayed, &mut plan.again);
    plan.status.disrupted_pods.retain(|name, since| {
        let pod = pods.iter().find(|pod| *pod.metadata.name == **name && !pod.metadata.is_deleting());
        let Some(pod) = pod else { return false };
        let left = GOING_WITHIN - now.duration_since(*since);
        match Duration::try_from(left) {
            Ok(left) if !left.is_zero() => {
                sooner(again, left);
                true
            }
            _ => {
                stayed.push((*pod).clone());
                false
            }
        }
    });
}

/// The one condition of budgets.
fn tell(conditions: &mut Vec<Condition>, reason: &str, message: &str, generation: i64, now: Timestamp) {
    const KIND: &str = "DisruptionAllowed";
    let status = if reason == "SufficientPods" { "True" } else { "False" };
    let old = condition(conditions, KIND).filter(|old| old.status == status);
    let since = old.and_then(|old| old.last_transition_time).unwrap_or(now);
    let new = Condition {
        r#type: KIND.to_owned(),
        status: status.to_owned(),
        observed_generation: Some(generation),
        last_transition_time: Some(since),
        reason: reason.to_owned(),
        message: message.to_owned(),
        ..Condition::default()
    };
    match conditions.iter_mut().find(|one| one.r#type == KIND) {
        Some(one) => *one = new,
        None => conditions.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: i64 = 1_000_000;

    fn ago(seconds: i64) -> Timestamp {
        Timestamp::from_second(NOW - seconds).unwrap()
    }

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        let mut object = json!({"metadata": {"name": "b", "namespace": "ns", "uid": "b", "generation": 5},
            "spec": {"selector": {}}, "status": status});
        object["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(object).unwrap()
    }

    /// Pods of a controller that is scaled to so many; so many of them are ready.
    fn pods(count: usize, ready: usize, replicas: i32) -> Vec<(Arc<Pod>, Scale)> {
        let pod = |number: usize| {
            let ready = json!([{"type": "Ready", "status": if number < ready { "True" } else { "False" }}]);
            let object = json!({"metadata": {"name": format!("p{number}")}, "status": {"conditions": ready}});
            (Arc::new(serde_json::from_value(object).unwrap()), Scale::Of("set".into(), replicas))
        };
        (0..count).map(pod).collect()
    }

    fn numbers(plan: &Plan) -> (i32, i32, i32, i32) {
        let status = &plan.status;
        (status.expected_pods, status.current_healthy, status.desired_healthy, status.disruptions_allowed)
    }

    fn reason(plan: &Plan) -> (&str, &str) {
        let condition = condition(&plan.status.conditions, "DisruptionAllowed").unwrap();
        (&condition.status, &condition.reason)
    }

    #[test]
    fn as_many_may_go_as_are_healthy_beyond_those_that_must_be() {
        for (spec, count, ready, replicas, expected) in [
            (json!({"minAvailable": 2}), 3, 3, 3, (3, 3, 2, 1)),
            (json!({"minAvailable": 2}), 3, 2, 3, (3, 2, 2, 0)),
            (json!({"minAvailable": 2}), 0, 0, 3, (0, 0, 2, 0)),
            (json!({"minAvailable": "50%"}), 3, 3, 3, (3, 3, 2, 1)),
            (json!({"maxUnavailable": 1}), 3, 3, 3, (3, 3, 2, 1)),
            (json!({"maxUnavailable": "50%"}), 3, 3, 3, (3, 3, 1, 2)),
            (json!({"maxUnavailable": 0}), 3, 3, 3, (3, 3, 3, 0)),
            (json!({"maxUnavailable": 5}), 3, 1, 3, (3, 1, 0, 1)),
            // More are asked for than there are: those that are missing are unavailable.
            (json!({"maxUnavailable": 1}), 3, 3, 5, (5, 3, 4, 0)),
        ] {
            let plan = plan(&budget(spec.clone(), json!({})), &pods(count, ready, replicas), ago(0));
            assert_eq!(numbers(&plan), expected, "{spec}");
            let wanted =
                if expected.3 > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
            assert_eq!(reason(&plan), wanted, "{spec}");
            assert_eq!(plan.status.observed_generation, 5);
            assert_eq!(plan.said.len(), usize::from(count == 0), "{:?}", plan.said);
        }
    }

    #[test]
    fn a_pod_that_leaves_does_not_count_and_one_that_stays_is_told_of() {
        let status = json!({"disruptedPods": {"p0": ago(20), "p1": ago(120), "gone": ago(1)}});
        let plan = plan(&budget(json!({"minAvailable": 1}), status), &pods(3, 3, 3), ago(0));
        assert_eq!(numbers(&plan), (3, 2, 1, 1));
        assert_eq!(plan.status.disrupted_pods.keys().collect::<Vec<_>>(), ["p0"]);
        assert_eq!(plan.stayed.iter().map(|pod| &*pod.metadata.name).collect::<Vec<_>>(), ["p1"]);
        assert_eq!(plan.again, Some(Duration::from_secs(100)));
    }

    #[test]
    fn nothing_may_go_when_nobody_says_how_many_there_should_be() {
        let mut all = pods(2, 2, 2);
        all[1].1 = Scale::Unknown("jobs.batch does not implement the scale subresource".to_owned());
        let old =
            json!({"disruptionsAllowed": 1, "conditions": [{"type": "DisruptionAllowed", "status": "True"}]});
        let failed = plan(&budget(json!({"maxUnavailable": 1}), old), &all, ago(0));
        assert_eq!((failed.status.disruptions_allowed, reason(&failed)), (0, ("False", "SyncFailed")));
        assert_eq!(failed.said[0].1, "CalculateExpectedPodCountFailed");
        // A plain number needs no one's word.
        let counted = plan(&budget(json!({"minAvailable": 1}), json!({})), &all, ago(0));
        assert_eq!(numbers(&counted), (2, 2, 1, 1));
        all[1].1 = Scale::Nobody;
        let unmanaged = plan(&budget(json!({"maxUnavailable": 1}), json!({})), &all, ago(0));
        assert_eq!(unmanaged.said[0].1, "UnmanagedPods");
    }

    #[test]
    fn a_condition_keeps_its_time_while_it_holds() {
        let first = plan(&budget(json!({"minAvailable": 1}), json!({})), &pods(2, 2, 2), ago(50));
        let mut again = budget(json!({"minAvailable": 1}), json!({}));
        again.status = first.status.clone();
        assert_eq!(plan(&again, &pods(2, 2, 2), ago(0)).status, first.status);
    }
}
