//! What a ReplicaSet's pods need.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::status::sooner;
use crate::views::{Available, Pod, ReplicaSet, ReplicaSetStatus};

/// What to do so that the set has its pods, and what is true before that is done.
#[derive(Debug, Default)]
pub struct Plan {
    /// Pods that match, and that no one controls.
    pub adopt: Vec<Arc<Pod>>,
    /// Pods of the set that do not match any more.
    pub release: Vec<Arc<Pod>>,
    pub create: usize,
    /// First who goes first.
    pub delete: Vec<Arc<Pod>>,
    /// Without conditions.
    pub status: ReplicaSetStatus,
    /// Look again after this, since a pod will then be ready for long enough.
    pub again: Option<Duration>,
}

/// `owned` are the pods that the set controls; `loose` those of its namespace that nothing controls.
/// No I/O, no randomness: same input, same plan.
pub fn plan(set: &ReplicaSet, owned: &[Arc<Pod>], loose: &[Arc<Pod>], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let selects = |pod: &Pod| set.spec.selector.matches(&pod.metadata.labels);
    let (mut mine, mut terminating) = (Vec::new(), 0);
    for pod in owned {
        if !selects(pod) {
            plan.release.push(pod.clone());
        } else if pod.is_active() {
            mine.push(pod.clone());
        } else if pod.metadata.is_deleting() && !pod.has_ended() {
            terminating += 1;
        }
    }
    if !set.metadata.is_deleting() {
        plan.adopt = loose.iter().filter(|pod| pod.is_active() && selects(pod)).cloned().collect();
        mine.extend(plan.adopt.iter().cloned());
    }

    let (mut ready, mut available) = (0, 0);
    for pod in &mine {
        ready += i32::from(pod.ready_since().is_some());
        match pod.available(set.spec.min_ready_seconds, now) {
            Available::Yes => available += 1,
            Available::In(left) => sooner(&mut plan.again, left),
            Available::No => {}
        }
    }
    let template: serde_json::Map<String, serde_json::Value> =
        set.spec.template.as_ref().and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
    let labels =
        template.get("metadata").and_then(|meta| meta.get("labels")).and_then(|labels| labels.as_object());
    let fully_labeled = mine.iter().filter(|pod| {
        let has = |(key, value): (&String, &serde_json::Value)| {
            pod.metadata.labels.get(key).map(String::as_str) == value.as_str()
        };
        labels.is_none_or(|labels| labels.iter().all(has))
    });
    plan.status = ReplicaSetStatus {
        replicas: mine.len() as i32,
        fully_labeled_replicas: fully_labeled.count() as i32,
        ready_replicas: ready,
        available_replicas: available,
        terminating_replicas: (terminating > 0 || set.status.terminating_replicas.is_some())
            .then_some(terminating),
        observed_generation: set.metadata.generation,
        conditions: Vec::new(),
    };

    if set.metadata.is_deleting() {
        return plan;
    }
    let wanted = usize::try_from(set.spec.replicas.unwrap_or(1)).unwrap_or(0);
    plan.create = wanted.saturating_sub(mine.len());
    let surplus = mine.len().saturating_sub(wanted);
    if surplus > 0 {
        let mut beside: HashMap<Arc<str>, usize> = HashMap::new();
        for pod in &mine {
            *beside.entry(pod.spec.node_name.clone()).or_default() += 1;
        }
        mine.sort_by_cached_key(|pod| rank(pod, beside[&pod.spec.node_name]));
        mine.truncate(surplus);
        plan.delete = mine;
    }
    plan
}

/// Who goes first comes first: without a node, not running, not ready, cheap, crowded, ready for the shortest
/// time, restarted most, youngest. As in Kubernetes, and then by name.
fn rank(pod: &Pod, beside: usize) -> impl Ord + use<> {
    let phase = match pod.status.phase.as_deref() {
        Some("Running") => 2,
        Some("Unknown") => 1,
        _ => 0,
    };
    let ready = pod.ready_since();
    (
        !pod.spec.node_name.is_empty(),
        phase,
        ready.is_some(),
        pod.deletion_cost(),
        Reverse(beside),
        Reverse(ready),
        Reverse(pod.restarts()),
        Reverse(pod.metadata.creation_timestamp),
        pod.metadata.name.clone(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const NOW: i64 = 1_000_000;

    fn set(replicas: i32, min_ready: i32) -> ReplicaSet {
        serde_json::from_str(
            &json!({
                "metadata": {"name": "web", "namespace": "ns", "uid": "set", "generation": 3},
                "spec": {"replicas": replicas, "minReadySeconds": min_ready,
                    "selector": {"matchLabels": {"app": "web"}},
                    "template": {"metadata": {"labels": {"app": "web", "v": "1"}}, "spec": {}}},
            })
            .to_string(),
        )
        .unwrap()
    }

    /// `ready_at` in seconds before now.
    fn pod(name: &str, ready_for: Option<i64>, extra: Value) -> Arc<Pod> {
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap().to_string();
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "web"},
                "creationTimestamp": at(NOW - 1000)},
            "spec": {"nodeName": "n1"},
            "status": {"phase": "Running", "conditions": ready_for.map(|ago|
                json!([{"type": "Ready", "status": "True", "lastTransitionTime": at(NOW - ago)}]))},
        });
        json_patch_merge(&mut pod, extra);
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn json_patch_merge(into: &mut Value, patch: Value) {
        match (into, patch) {
            (Value::Object(into), Value::Object(patch)) => {
                for (key, value) in patch {
                    json_patch_merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, patch) => *into = patch,
        }
    }

    fn at_now(set: &ReplicaSet, owned: &[Arc<Pod>], loose: &[Arc<Pod>]) -> Plan {
        plan(set, owned, loose, Timestamp::from_second(NOW).unwrap())
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|pod| &*pod.metadata.name).collect()
    }

    #[test]
    fn the_least_useful_pods_go_first() {
        let pods = [
            pod("h-old-ready", Some(900), json!({})),
            pod("g-new-ready", Some(10), json!({})),
            pod("f-crowded", Some(900), json!({"spec": {"nodeName": "n2"}})),
            pod("e-crowded", Some(800), json!({"spec": {"nodeName": "n2"}})),
            pod("x-crowded", Some(700), json!({"spec": {"nodeName": "n2"}})),
            pod(
                "d-cheap",
                Some(900),
                json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-5"}}}),
            ),
            pod("c-not-ready", None, json!({})),
            pod("b-pending", None, json!({"status": {"phase": "Pending"}})),
            pod("a-no-node", None, json!({"spec": {"nodeName": ""}, "status": {"phase": "Pending"}})),
        ];
        let plan = at_now(&set(0, 0), &pods, &[]);
        assert_eq!(
            names(&plan.delete),
            [
                "a-no-node",
                "b-pending",
                "c-not-ready",
                "d-cheap",
                "g-new-ready",
                "h-old-ready",
                "x-crowded",
                "e-crowded",
                "f-crowded"
            ]
        );
    }

    #[test]
    fn only_active_pods_count_and_strangers_are_let_go() {
        let owned = [
            pod("active", Some(5), json!({"metadata": {"labels": {"v": "1"}}})),
            pod("failed", None, json!({"status": {"phase": "Failed"}})),
            pod("deleting", Some(5), json!({"metadata": {"deletionTimestamp": "1970-01-12T13:46:40Z"}})),
            pod("stranger", Some(5), json!({"metadata": {"labels": {"app": "other"}}})),
        ];
        let loose = [
            pod("orphan", Some(5), json!({})),
            pod("not-ours", None, json!({"metadata": {"labels": {"app": "other"}}})),
        ];
        let plan = at_now(&set(3, 0), &owned, &loose);
        assert_eq!(names(&plan.release), ["stranger"]);
        assert_eq!(names(&plan.adopt), ["orphan"]);
        assert_eq!((plan.create, plan.delete.len()), (1, 0));
        assert_eq!(plan.status.replicas, 2);
        assert_eq!(plan.status.fully_labeled_replicas, 1);
        assert_eq!(plan.status.terminating_replicas, Some(1));
        assert_eq!(plan.status.observed_generation, 3);
    }

    #[test]
    fn a_pod_is_available_when_it_was_ready_for_long_enough() {
        let pods =
            [pod("a", Some(30), json!({})), pod("b", Some(12), json!({})), pod("c", Some(5), json!({}))];
        let plan = at_now(&set(3, 20), &pods, &[]);
        assert_eq!((plan.status.ready_replicas, plan.status.available_replicas), (3, 1));
        assert_eq!(plan.again, Some(Duration::from_secs(8)));
    }

    #[test]
    fn a_set_that_is_deleted_makes_and_takes_nothing() {
        let mut set = set(3, 0);
        set.metadata.deletion_timestamp = Some(Timestamp::UNIX_EPOCH);
        let plan = at_now(&set, &[], &[pod("orphan", None, json!({}))]);
        assert_eq!((plan.create, plan.adopt.len(), plan.delete.len()), (0, 0, 0));
    }

    proptest! {
        #[test]
        fn a_plan_carried_out_leaves_nothing_to_plan(wanted in 0..20_i32, pods in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 0..20)) {
            let set = set(wanted, 0);
            let (mut owned, mut loose) = (Vec::new(), Vec::new());
            for (number, (mine, ready, matching)) in pods.into_iter().enumerate() {
                let app = if matching { "web" } else { "other" };
                let pod = pod(&format!("p{number}"), ready.then_some(9), json!({"metadata": {"labels": {"app": app}}}));
                if mine { owned.push(pod) } else { loose.push(pod) }
            }
            let plan = at_now(&set, &owned, &loose);
            let goes = |pod: &Arc<Pod>| plan.delete.iter().chain(&plan.release).any(|one| Arc::ptr_eq(one, pod));
            let mut after: Vec<_> = owned.into_iter().chain(plan.adopt.iter().cloned()).filter(|pod| !goes(pod)).collect();
            after.extend((0..plan.create).map(|number| pod(&format!("new{number}"), None, json!({}))));
            prop_assert_eq!(after.len() as i32, wanted);
            let again = at_now(&set, &after, &[]);
            prop_assert_eq!((again.create, again.delete.len(), again.release.len()), (0, 0, 0));
            prop_assert!(plan.delete.iter().all(|pod| pod.ready_since().is_none()) || again.status.replicas == again.status.ready_replicas,
                "a ready pod went while one that is not ready stays");
        }
    }
}
