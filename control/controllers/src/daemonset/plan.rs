//! Where a DaemonSet's pods are made, and which go.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{Place, Placing};
use crate::revisions::HASH;
use crate::status::sooner;
use crate::views::{Available, DaemonSet, DaemonSetStatus, IntOrPercent, Node, Pod};

/// What a pass sees.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// All nodes, ordered by name.
    pub nodes: &'a [Arc<Node>],
    /// The pods that the set controls.
    pub pods: &'a [Arc<Pod>],
    /// How much longer a pod that ended, by its uid, waits to be replaced.
    pub waits: &'a HashMap<Arc<str>, Duration>,
    pub now: Timestamp,
}

/// What to do so that the set goes on, and what is true before that is done.
#[derive(Debug, Default)]
pub struct Plan {
    /// The nodes on which to make a pod.
    pub create: Vec<Arc<str>>,
    /// Pods that ended, to be replaced.
    pub ended: Vec<Arc<Pod>>,
    /// Pods that are too many, on the wrong node, or too old.
    pub delete: Vec<Arc<Pod>>,
    /// Without collisions.
    pub status: DaemonSetStatus,
    /// Look again after this.
    pub again: Option<Duration>,
}

/// `hash` is the label of the present template's pods. No I/O, no clock: same input, same plan.
pub fn plan(set: &DaemonSet, hash: &str, seen: &Seen<'_>) -> Plan {
    let limits = Limits::of(set);
    let mut plan = Plan::default();
    let mut by_node: BTreeMap<&str, Vec<&Arc<Pod>>> = BTreeMap::new();
    for pod in seen.pods {
        by_node.entry(pod.target()).or_default().push(pod);
    }
    // The oldest first, and those that are going last.
    let order = |pod: &&Arc<Pod>| {
        let meta = &pod.metadata;
        (meta.is_deleting(), pod.spec.node_name.is_empty(), meta.creation_timestamp, meta.name.clone())
    };
    by_node.values_mut().for_each(|pods| pods.sort_by_cached_key(order));

    let placing = Placing::of(set.spec.template.as_deref());
    let mut wanted = Vec::new();
    for node in seen.nodes {
        let pods = by_node.remove(&*node.metadata.name).unwrap_or_default();
        let place = placing.on(node);
        let on = On { node, pods, hash, set, now: seen.now };
        on.count(place, &mut plan);
        on.keep(place, limits.is_set_to_surge(), seen.waits, &mut plan);
        if place == Place::Yes {
            wanted.push(on);
        }
    }
    // What was meant for a node that is gone will never be placed. (What was placed there is not ours to end.)
    let lost = by_node.into_iter().filter(|(node, _)| !node.is_empty()).flat_map(|(_, pods)| pods);
    let waits = |pod: &&Arc<Pod>| pod.spec.node_name.is_empty() && !pod.metadata.is_deleting();
    plan.delete.extend(lost.filter(waits).cloned());

    let settled = plan.create.is_empty() && plan.ended.is_empty() && plan.delete.is_empty();
    if settled && set.spec.update_strategy.r#type != "OnDelete" {
        match limits.for_nodes(wanted.len()) {
            Allowed::Unavailable(most) => replace(&wanted, most, &mut plan),
            Allowed::Surge(most) => surge(&wanted, most, &mut plan),
        }
    }
    plan.status.observed_generation = set.metadata.generation;
    plan.status.number_unavailable = plan.status.desired_number_scheduled - plan.status.number_available;
    plan.status.collision_count = set.status.collision_count;
    plan
}

/// What a rolling update may do at once, as the set has it.
struct Limits {
    unavailable: IntOrPercent,
    surge: IntOrPercent,
}

/// The same in numbers.
enum Allowed {
    /// So many nodes without an available pod.
    Unavailable(usize),
    /// So many nodes with a second pod.
    Surge(usize),
}

impl Limits {
    fn of(set: &DaemonSet) -> Self {
        let rolling = set.spec.update_strategy.rolling_update.clone().unwrap_or_default();
        Self {
            unavailable: rolling.max_unavailable.unwrap_or(IntOrPercent::Int(1)),
            surge: rolling.max_surge.unwrap_or(IntOrPercent::Int(0)),
        }
    }

    fn is_set_to_surge(&self) -> bool {
        self.surge.of(100, true) > 0
    }

    fn for_nodes(&self, nodes: usize) -> Allowed {
        let nodes = i32::try_from(nodes).unwrap_or(i32::MAX);
        let number = |limit: &IntOrPercent| usize::try_from(limit.of(nodes, true)).unwrap_or(0);
        match number(&self.surge) {
            0 => Allowed::Unavailable(number(&self.unavailable).max(1)), // else nothing could ever move
            surge => Allowed::Surge(surge),
        }
    }
}

/// A node's pod of the present template, and that of an older one.
type Pair<'a> = (Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>);

/// The set's pods on one node.
struct On<'a> {
    node: &'a Node,
    pods: Vec<&'a Arc<Pod>>,
    hash: &'a str,
    set: &'a DaemonSet,
    now: Timestamp,
}

impl<'a> On<'a> {
    fn is_new(&self, pod: &Pod) -> bool {
        pod.metadata.labels.get(HASH).is_some_and(|label| label == self.hash)
    }

    /// Whether the pod counts as available; if it will without any change, the plan looks again then.
    fn available(&self, pod: &Pod, plan: &mut Plan) -> bool {
        match pod.available(self.set.spec.min_ready_seconds, self.now) {
            Available::Yes => true,
            Available::In(left) => {
                sooner(&mut plan.again, left);
                false
            }
            Available::No => false,
        }
    }

    fn count(&self, place: Place, plan: &mut Plan) {
        let oldest = self.pods.first();
        if place != Place::Yes {
            plan.status.number_misscheduled += i32::from(oldest.is_some());
            return;
        }
        plan.status.desired_number_scheduled += 1;
        let Some(pod) = oldest else { return };
        plan.status.current_number_scheduled += 1;
        plan.status.updated_number_scheduled += i32::from(self.is_new(pod));
        if pod.ready_since().is_some() {
            plan.status.number_ready += 1;
            plan.status.number_available += i32::from(self.available(pod, plan));
        }
    }

    /// One pod where one is meant to be, and none elsewhere.
    fn keep(&self, place: Place, surges: bool, waits: &HashMap<Arc<str>, Duration>, plan: &mut Plan) {
        let staying = || self.pods.iter().copied().filter(|pod| !pod.metadata.is_deleting());
        match place {
            // The next is made when the last is wholly gone: they may want the same ports and files.
            Place::Yes if self.pods.is_empty() => plan.create.push(self.node.metadata.name.clone()),
            Place::No => plan.delete.extend(staying().cloned()),
            Place::Yes | Place::Stays => {
                let (ended, running): (Vec<_>, Vec<_>) = staying().partition(|pod| pod.has_ended());
                for pod in ended {
                    match waits.get(&pod.metadata.uid) {
                        Some(left) => sooner(&mut plan.again, *left),
                        None => plan.ended.push(pod.clone()),
                    }
                }
                if surges {
                    self.keep_two(&running, plan);
                } else {
                    plan.delete.extend(running.into_iter().skip(1).cloned());
                }
            }
        }
    }

    /// Beside the old pod there is a new one until it is available; the old one goes before if it is of no use.
    fn keep_two(&self, running: &[&Arc<Pod>], plan: &mut Plan) {
        if running.len() < 2 {
            return;
        }
        let (new, old): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) = running.iter().partition(|pod| self.is_new(pod));
        plan.delete.extend(
            new.iter()
                .chain(&old)
                .skip(1)
                .filter(|pod| {
                    let oldest =
                        |pods: &[&Arc<Pod>]| pods.first().is_some_and(|first| Arc::ptr_eq(first, pod));
                    !oldest(&new) && !oldest(&old)
                })
                .map(|pod| (*pod).clone()),
        );
        if let (Some(new), Some(old)) = (new.first(), old.first())
            && (old.ready_since().is_none() || self.available(new, plan))
        {
            plan.delete.push((*old).clone());
        }
    }

    /// The new and the old pod of those that stay; `None` if there is more than one of either.
    fn pair(&self) -> Option<Pair<'a>> {
        let staying = self.pods.iter().copied().filter(|pod| !pod.metadata.is_deleting());
        let (new, old): (Vec<_>, Vec<_>) = staying.partition(|pod| self.is_new(pod));
        (new.len() < 2 && old.len() < 2).then(|| (new.first().copied(), old.first().copied()))
    }
}

/// Deletes old pods, so that not more than `most` nodes are without an available one. An old pod that is not
/// available costs nothing.
fn replace(nodes: &[On<'_>], most: usize, plan: &mut Plan) {
    let mut unavailable = 0;
    let mut candidates = Vec::new();
    for on in nodes {
        match on.pair() {
            Some((Some(new), None)) => unavailable += usize::from(!on.available(new, plan)),
            Some((None, Some(old))) if on.available(old, plan) => candidates.push(old.clone()),
            Some((None, Some(old))) => {
                unavailable += 1;
                plan.delete.push(old.clone());
            }
            _ => unavailable += 1,
        }
    }
    candidates.truncate(most.saturating_sub(unavailable));
    plan.delete.extend(candidates);
}

/// Makes new pods beside old ones, on not more than `most` nodes at once, and deletes the old when the new is
/// available. Beside an old pod that is not available a new one costs nothing.
fn surge(nodes: &[On<'_>], most: usize, plan: &mut Plan) {
    let mut surging = 0;
    let mut candidates = Vec::new();
    for on in nodes {
        match on.pair() {
            Some((None, Some(old))) if on.available(old, plan) => {
                candidates.push(on.node.metadata.name.clone());
            }
            Some((None, Some(_))) => plan.create.push(on.node.metadata.name.clone()),
            Some((Some(new), Some(old))) if on.available(new, plan) => plan.delete.push(old.clone()),
            Some((Some(_), Some(_))) | None => surging += 1,
            Some((_, None)) => {}
        }
    }
    candidates.truncate(most.saturating_sub(surging));
    plan.create.extend(candidates);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use wharf_kit::view::View;

    const NOW: i64 = 1_000_000;

    fn set(strategy: Value) -> DaemonSet {
        let object = json!({
            "metadata": {"name": "log", "namespace": "ns", "uid": "set", "generation": 4},
            "spec": {"selector": {"matchLabels": {"app": "log"}}, "updateStrategy": strategy, "minReadySeconds": 10,
                "template": {"metadata": {"labels": {"app": "log"}}, "spec": {}}},
        });
        serde_json::from_str(&object.to_string()).unwrap()
    }

    fn rolling(unavailable: Value, surge: Value) -> DaemonSet {
        set(
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}}),
        )
    }

    fn nodes(names: &[&str]) -> Vec<Arc<Node>> {
        let node = |name: &&str| serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        names.iter().map(|name| Arc::new(node(name))).collect()
    }

    fn tainted(name: &str, effect: &str) -> Arc<Node> {
        let taints = json!([{"key": "gpu", "effect": effect}]);
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"taints": taints}})).unwrap(),
        )
    }

    /// A pod named `HASH-NODE` (and something) that has been ready for so many seconds.
    fn pod(name: &str, ready_for: Option<i64>) -> Arc<Pod> {
        shaped(name, ready_for, json!({}))
    }

    fn shaped(name: &str, ready_for: Option<i64>, extra: Value) -> Arc<Pod> {
        let mut words = name.split('-');
        let (hash, node) = (words.next().unwrap(), words.next().unwrap());
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap().to_string();
        let mut object = json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "log", HASH: hash},
                "creationTimestamp": at(NOW - 1000)},
            "spec": {"nodeName": node},
            "status": {"phase": "Running", "conditions": ready_for.map(|ago|
                json!([{"type": "Ready", "status": "True", "lastTransitionTime": at(NOW - ago)}]))},
        });
        for (part, fields) in extra.as_object().unwrap() {
            object[part].as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        }
        let mut pod: Pod = serde_json::from_value(object).unwrap();
        pod.prepare();
        Arc::new(pod)
    }

    fn planned(set: &DaemonSet, nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> Plan {
        let now = Timestamp::from_second(NOW).unwrap();
        plan(set, "new", &Seen { nodes, pods, waits: &HashMap::new(), now })
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|pod| &*pod.metadata.name).collect()
    }

    fn created(plan: &Plan) -> Vec<&str> {
        plan.create.iter().map(|node| &**node).collect()
    }

    #[test]
    fn every_node_that_is_meant_gets_one_pod_and_no_other_keeps_one() {
        let mut all = nodes(&["n1", "n2"]);
        all.push(tainted("n3", "NoSchedule"));
        all.push(tainted("n4", "NoExecute"));
        let pods = [
            pod("new-n2-a", Some(99)),
            pod("new-n2-b", None),
            pod("new-n3", Some(99)),
            pod("new-n4", Some(99)),
        ];
        let plan = planned(&rolling(json!(1), json!(0)), &all, &pods);
        assert_eq!(created(&plan), ["n1"]);
        assert_eq!(names(&plan.delete), ["new-n2-b", "new-n4"], "the taint of n3 lets stay who is there");
        let status = plan.status;
        assert_eq!((status.desired_number_scheduled, status.current_number_scheduled), (2, 1));
        assert_eq!((status.number_misscheduled, status.number_ready, status.number_unavailable), (2, 1, 1));
        assert_eq!(status.observed_generation, 4);
    }

    #[test]
    fn the_next_pod_of_a_node_is_made_when_the_last_is_gone() {
        let going = json!({"metadata": {"deletionTimestamp": "1970-01-12T13:46:40Z"}});
        let plan = planned(&rolling(json!(1), json!(0)), &nodes(&["n1"]), &[shaped("old-n1", None, going)]);
        assert!(plan.create.is_empty() && plan.delete.is_empty());
    }

    #[test]
    fn a_pod_that_ended_is_replaced_once_it_waited_and_one_for_no_node_goes() {
        let failed = shaped("new-n1", None, json!({"status": {"phase": "Failed"}}));
        let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["gone"]}]}]}}});
        let lost = shaped("new-gone", None, json!({"spec": {"nodeName": "", "affinity": affinity}}));
        let placed = pod("new-away", None);
        let set = rolling(json!(1), json!(0));
        let plan = planned(&set, &nodes(&["n1"]), &[failed.clone(), lost, placed]);
        assert_eq!((names(&plan.ended), names(&plan.delete)), (vec!["new-n1"], vec!["new-gone"]));
        let waits = HashMap::from([("new-n1".into(), Duration::from_secs(7))]);
        let now = Timestamp::from_second(NOW).unwrap();
        let seen = Seen { nodes: &nodes(&["n1"]), pods: &[failed], waits: &waits, now };
        let plan = super::plan(&set, "new", &seen);
        assert_eq!((plan.ended.len(), plan.again), (0, Some(Duration::from_secs(7))));
    }

    #[test]
    fn not_more_nodes_than_allowed_are_without_an_available_pod() {
        let all = nodes(&["n1", "n2", "n3", "n4"]);
        let of = |pods: &[Arc<Pod>], most: Value| {
            let plan = planned(&rolling(most, json!(0)), &all, pods);
            assert!(plan.create.is_empty());
            names(&plan.delete).into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let old = [
            pod("old-n1", Some(99)),
            pod("old-n2", Some(99)),
            pod("old-n3", Some(99)),
            pod("old-n4", Some(99)),
        ];
        assert_eq!(of(&old, json!(1)), ["old-n1"]);
        assert_eq!(of(&old, json!("30%")), ["old-n1", "old-n2"], "rounded up");
        let coming = [pod("new-n1", Some(5)), old[1].clone(), old[2].clone(), old[3].clone()];
        assert_eq!(of(&coming, json!(1)), [""; 0], "n1 is not ready for long enough yet");
        assert_eq!(planned(&rolling(json!(1), json!(0)), &all, &coming).again, Some(Duration::from_secs(5)));
        let broken = [pod("new-n1", Some(99)), old[1].clone(), pod("old-n3", None), old[3].clone()];
        assert_eq!(of(&broken, json!(1)), ["old-n3"], "what is not available is no loss");
        let plan = planned(&set(json!({"type": "OnDelete"})), &all, &old);
        assert!(plan.delete.is_empty());
        assert_eq!(plan.status.updated_number_scheduled, 0);
    }

    #[test]
    fn a_surge_makes_the_new_pod_first_and_lets_the_old_one_go_after_that() {
        let all = nodes(&["n1", "n2", "n3"]);
        let old = [pod("old-n1", Some(99)), pod("old-n2", Some(99)), pod("old-n3", Some(99))];
        let of = |more: &[Arc<Pod>]| planned(&rolling(json!(0), json!(1)), &all, &[&old[..], more].concat());
        assert_eq!(created(&of(&[])), ["n1"]);
        let plan = of(&[pod("new-n1", None)]);
        assert!(plan.create.is_empty() && plan.delete.is_empty(), "it waits for the new one");
        let plan = of(&[pod("new-n1", Some(99))]);
        assert_eq!((created(&plan), names(&plan.delete)), (vec![], vec!["old-n1"]));
        let broken = [pod("old-n1", None), old[1].clone(), pod("new-n2", None), old[2].clone()];
        let plan = planned(&rolling(json!(0), json!(1)), &all, &broken);
        assert_eq!(created(&plan), ["n1"], "beside what is not available; n2 takes the surge");
    }

    proptest! {
        #[test]
        fn a_rollout_comes_to_its_end_and_keeps_its_limit_all_the_way(
            count in 1..8_usize, most in 1..4_i32, surge: bool, ready in proptest::collection::vec(any::<bool>(), 8),
        ) {
            let names: Vec<String> = (0..count).map(|number| format!("n{number}")).collect();
            let all = nodes(&names.iter().map(String::as_str).collect::<Vec<_>>());
            let set = if surge { rolling(json!(0), json!(most)) } else { rolling(json!(most), json!(0)) };
            let mut pods: Vec<Arc<Pod>> = names.iter().zip(&ready)
                .map(|(node, ready)| pod(&format!("old-{node}"), ready.then_some(99))).collect();
            let unavailable = |pods: &[Arc<Pod>]| {
                let has = |node: &&String| pods.iter().any(|pod| pod.target() == **node && pod.ready_since().is_some());
                names.iter().filter(|node| !has(node)).count()
            };
            let before = unavailable(&pods);
            for step in 0.. {
                prop_assert!(step < 200, "never ends: {:?}", pods);
                let plan = planned(&set, &all, &pods);
                if plan.create.is_empty() && plan.delete.is_empty() {
                    // What was made comes up; when there is nothing left to come up, it is over.
                    let Some(coming) = pods.iter_mut().find(|pod| pod.ready_since().is_none()) else { break };
                    *coming = pod(&coming.metadata.name.clone(), Some(99));
                    continue;
                }
                pods.retain(|pod| !plan.delete.iter().any(|gone| Arc::ptr_eq(gone, pod)));
                pods.extend(plan.create.iter().map(|node| pod(&format!("new-{node}"), None)));
                let bound = if surge { before } else { before.max(most as usize) };
                prop_assert!(unavailable(&pods) <= bound, "{:?}", pods);
            }
            prop_assert_eq!(pods.len(), count);
            prop_assert!(pods.iter().all(|pod| pod.metadata.name.starts_with("new-")));
        }
    }
}
