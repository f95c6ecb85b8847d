//! The next pods of a StatefulSet to make and to end.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::pods::BURST;
use crate::revisions::HASH;
use crate::status::sooner;
use crate::views::{Available, IntOrPercent, Pod, StatefulSet, StatefulSetStatus};

/// Labels of a pod: its name, and its number.
pub const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
pub const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// What a pass sees.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The pods that the set controls.
    pub pods: &'a [Arc<Pod>],
    /// Names of the revisions: that from which the last rollout went out whole, and that of the present template.
    pub current: &'a str,
    pub update: &'a str,
    /// How much longer a pod that ended, by its uid, waits to be replaced.
    pub waits: &'a HashMap<Arc<str>, Duration>,
    pub now: Timestamp,
}

/// One thing to do, in this order.
#[derive(Debug, Clone)]
pub enum Step {
    Create {
        ordinal: i32,
        /// By the present template, not by that of the current revision.
        updated: bool,
    },
    /// A pod that ended makes room for the next of its name.
    Recreate(Arc<Pod>),
    Delete(Arc<Pod>),
    /// Give an adopted pod the labels that tell its name and number.
    Label(Arc<Pod>, i32),
}

/// What to do so that the set goes on, and what is true before that is done.
#[derive(Debug, Default)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// Without collisions.
    pub status: StatefulSetStatus,
    /// Look again after this.
    pub again: Option<Duration>,
}

/// The number of a pod by its name, if the name is one that the set gives.
pub fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let number = pod.metadata.name.strip_prefix(&*set.metadata.name)?.strip_prefix('-')?;
    let canonical =
        number == "0" || !number.starts_with('0') && number.bytes().all(|one| one.is_ascii_digit());
    number.parse().ok().filter(|_| canonical)
}

/// The numbers that the set wants.
pub fn ordinals(set: &StatefulSet) -> Range<i32> {
    let start = set.spec.ordinals.unwrap_or_default().start.max(0);
    start..start.saturating_add(set.spec.replicas.unwrap_or(1).max(0))
}

/// No I/O, no clock: same input, same plan.
pub fn plan(set: &StatefulSet, seen: &Seen<'_>) -> Plan {
    let mut plan = Plan { status: status(set, seen), ..Plan::default() };
    let wanted = ordinals(set);
    let of_set = seen.pods.iter().filter_map(|pod| Some((ordinal(set, pod)?, pod)));
    let (mut pods, mut condemned) = (BTreeMap::new(), BTreeMap::new());
    for (number, pod) in of_set {
        if wanted.contains(&number) { &mut pods } else { &mut condemned }.insert(number, pod);
    }
    let all = All { set, seen, wanted, in_order: set.spec.pod_management_policy != "Parallel" };
    // Each of these goes on only where those before it have come to their end, if the set is to be in order.
    let _ = all.make(&pods, &mut plan).is_some()
        && all.end(&condemned, &mut plan).is_some()
        && all.update(&pods, &mut plan).is_some();
    plan.steps.truncate(BURST);
    plan
}

struct All<'a> {
    set: &'a StatefulSet,
    seen: &'a Seen<'a>,
    wanted: Range<i32>,
    in_order: bool,
}

type Numbered<'a> = BTreeMap<i32, &'a Arc<Pod>>;

impl All<'_> {
    /// Whether the pod counts; if it will without any change, the plan looks again then.
    fn available(&self, pod: &Pod, plan: &mut Plan) -> bool {
        if !pod.is_active() {
            return false;
        }
        match pod.available(self.set.spec.min_ready_seconds, self.seen.now) {
            Available::Yes => true,
            Available::In(left) => {
                sooner(&mut plan.again, left);
                false
            }
            Available::No => false,
        }
    }

    /// From the lowest number on. In order, each waits until the one before is available; then `None` says that
    /// there is nothing more to do now.
    fn make(&self, pods: &Numbered<'_>, plan: &mut Plan) -> Option<()> {
        let partition = self.partition();
        for number in self.wanted.clone() {
            let settled = match pods.get(&number) {
                None => {
                    plan.steps.push(Step::Create { ordinal: number, updated: number >= partition });
                    false
                }
                Some(pod) if pod.has_ended() => {
                    if !pod.metadata.is_deleting() {
                        match self.seen.waits.get(&pod.metadata.uid) {
                            Some(left) => sooner(&mut plan.again, *left),
                            None => plan.steps.push(Step::Recreate((*pod).clone())),
                        }
                    }
                    false
                }
                Some(pod) => {
                    let labels = &pod.metadata.labels;
                    let name = labels.get(POD_NAME).is_some_and(|name| **name == *pod.metadata.name);
                    if !name || labels.get(POD_INDEX) != Some(&number.to_string()) {
                        plan.steps.push(Step::Label((*pod).clone(), number));
                    }
                    self.available(pod, plan)
                }
            };
            if self.in_order && !settled {
                return None;
            }
            if plan.steps.len() >= BURST {
                return None;
            }
        }
        Some(())
    }

    /// Those that are not wanted any more, from the highest number on; in order, one after the other.
    fn end(&self, condemned: &Numbered<'_>, plan: &mut Plan) -> Option<()> {
        let lowest_ill = condemned.iter().find(|(_, pod)| !pod.is_active() || pod.ready_since().is_none());
        let lowest_ill = lowest_ill.map(|(number, _)| *number);
        for (number, pod) in condemned.iter().rev() {
            if !pod.metadata.is_deleting() {
                // One that is not well goes only if none before it is unwell too, as in Kubernetes.
                let well = self.available(pod, plan) || lowest_ill.is_none_or(|lowest| lowest == *number);
                if self.in_order && !well {
                    return None;
                }
                plan.steps.push(Step::Delete((*pod).clone()));
            }
            if self.in_order {
                return None;
            }
        }
        Some(())
    }

    /// Old pods, from the highest number on, so that not more than allowed are unavailable.
    fn update(&self, pods: &Numbered<'_>, plan: &mut Plan) -> Option<()> {
        if self.set.spec.update_strategy.r#type == "OnDelete" {
            return None;
        }
        let available = pods.values().filter(|pod| self.available(pod, plan)).count();
        let mut spare = self.most_unavailable().saturating_sub(self.wanted.len() - available);
        for (_, pod) in pods.range(self.partition()..).rev() {
            if pod.metadata.is_deleting() || revision(pod) == self.seen.update {
                continue;
            }
            // What is unavailable as it is costs nothing.
            if self.available(pod, plan) {
                spare = spare.checked_sub(1)?;
            }
            let doomed = |step: &Step| matches!(step, Step::Recreate(one) if Arc::ptr_eq(one, pod));
            if !plan.steps.iter().any(doomed) {
                plan.steps.push(Step::Delete((*pod).clone()));
            }
        }
        Some(())
    }

    /// Pods below this number keep their revision.
    fn partition(&self) -> i32 {
        let strategy = &self.set.spec.update_strategy;
        let rolling = strategy.rolling_update.as_ref().filter(|_| strategy.r#type != "OnDelete");
        let partition = rolling.and_then(|rolling| rolling.partition).unwrap_or(0);
        self.wanted.start.saturating_add(partition.max(0))
    }

    fn most_unavailable(&self) -> usize {
        let rolling = self.set.spec.update_strategy.rolling_update.as_ref();
        let most =
            rolling.and_then(|rolling| rolling.max_unavailable.clone()).unwrap_or(IntOrPercent::Int(1));
        usize::try_from(most.of(self.set.spec.replicas.unwrap_or(1), false)).unwrap_or(0).max(1)
    }
}

fn revision(pod: &Pod) -> &str {
    pod.metadata.labels.get(HASH).map_or("", String::as_str)
}

fn status(set: &StatefulSet, seen: &Seen<'_>) -> StatefulSetStatus {
    let number = |test: &dyn Fn(&Pod) -> bool| seen.pods.iter().filter(|pod| test(pod)).count() as i32;
    let at = |name: &str| number(&|pod| !pod.metadata.is_deleting() && revision(pod) == name);
    let ready = |pod: &Pod| !pod.has_ended() && pod.ready_since().is_some();
    let least = set.spec.min_ready_seconds;
    let mut status = StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas: seen.pods.len() as i32,
        ready_replicas: number(&ready),
        available_replicas: number(&|pod| ready(pod) && pod.available(least, seen.now) == Available::Yes),
        current_replicas: at(seen.current),
        updated_replicas: at(seen.update),
        current_revision: seen.current.to_owned(),
        update_revision: seen.update.to_owned(),
        collision_count: set.status.collision_count,
    };
    let wanted = set.spec.replicas.unwrap_or(1);
    let all = [status.replicas, status.ready_replicas, status.updated_replicas];
    if set.spec.update_strategy.r#type != "OnDelete" && all == [wanted; 3] {
        status.current_revision.clone_from(&status.update_revision);
        status.current_replicas = status.updated_replicas;
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const NOW: i64 = 1_000_000;

    fn set(replicas: i32, extra: Value) -> StatefulSet {
        let mut object = json!({
            "metadata": {"name": "db", "namespace": "ns", "uid": "set", "generation": 2},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "db"}}, "minReadySeconds": 10,
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}},
        });
        object["spec"].as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        serde_json::from_str(&object.to_string()).unwrap()
    }

    /// A pod of a revision; ready for so many seconds.
    fn pod(number: i32, revision: &str, ready_for: Option<i64>) -> Arc<Pod> {
        shaped(number, revision, ready_for, "Running", false)
    }

    fn shaped(number: i32, revision: &str, ready_for: Option<i64>, phase: &str, going: bool) -> Arc<Pod> {
        let name = format!("db-{number}");
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap().to_string();
        let object = json!({
            "metadata": {"name": name, "namespace": "ns", "uid": format!("{name}/{revision}"),
                "labels": {HASH: revision, POD_NAME: name, POD_INDEX: number.to_string()},
                "deletionTimestamp": going.then(|| at(NOW))},
            "status": {"phase": phase, "conditions": ready_for.map(|ago|
                json!([{"type": "Ready", "status": "True", "lastTransitionTime": at(NOW - ago)}]))},
        });
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn planned(set: &StatefulSet, pods: &[Arc<Pod>]) -> Plan {
        let now = Timestamp::from_second(NOW).unwrap();
        plan(set, &Seen { pods, current: "old", update: "new", waits: &HashMap::new(), now })
    }

    fn steps(set: &StatefulSet, pods: &[Arc<Pod>]) -> Vec<String> {
        let word = |step: &Step| match step {
            Step::Create { ordinal, updated } => {
                format!("+{ordinal} {}", if *updated { "new" } else { "old" })
            }
            Step::Recreate(pod) => format!("again {}", pod.metadata.name),
            Step::Delete(pod) => format!("-{}", pod.metadata.name),
            Step::Label(pod, _) => format!("label {}", pod.metadata.name),
        };
        planned(set, pods).steps.iter().map(word).collect()
    }

    const NONE: [&str; 0] = [];

    #[test]
    fn pods_come_up_one_after_the_other_or_all_at_once() {
        let ordered = set(3, json!({}));
        assert_eq!(steps(&ordered, &[]), ["+0 new"]);
        assert_eq!(steps(&ordered, &[pod(0, "new", None)]), NONE);
        assert_eq!(steps(&ordered, &[pod(0, "new", Some(9))]), NONE, "not ready for long enough");
        assert_eq!(planned(&ordered, &[pod(0, "new", Some(9))]).again, Some(Duration::from_secs(1)));
        assert_eq!(steps(&ordered, &[pod(0, "new", Some(10))]), ["+1 new"]);
        assert_eq!(
            steps(&ordered, &[pod(0, "new", Some(10)), pod(2, "new", Some(10))]),
            ["+1 new"],
            "a gap first"
        );
        let parallel = set(3, json!({"podManagementPolicy": "Parallel"}));
        assert_eq!(steps(&parallel, &[pod(1, "new", None)]), ["+0 new", "+2 new"]);
        let from_five = set(2, json!({"ordinals": {"start": 5}, "podManagementPolicy": "Parallel"}));
        assert_eq!(steps(&from_five, &[pod(0, "new", Some(99))]), ["+5 new", "+6 new", "-db-0"]);
        assert_eq!(steps(&set(i32::MAX, json!({"podManagementPolicy": "Parallel"})), &[]).len(), BURST);
    }

    #[test]
    fn the_highest_goes_first_and_each_when_the_one_after_it_is_gone() {
        let ordered = set(1, json!({}));
        let all = [pod(0, "new", Some(99)), pod(1, "new", Some(99)), pod(2, "new", Some(99))];
        assert_eq!(steps(&ordered, &all), ["-db-2"]);
        let going = [all[0].clone(), all[1].clone(), shaped(2, "new", Some(99), "Running", true)];
        assert_eq!(steps(&ordered, &going), NONE);
        let ill = [pod(0, "new", None), all[1].clone()];
        assert_eq!(steps(&ordered, &ill), NONE, "nothing goes while one that stays is not well");
        let ill = [all[0].clone(), pod(1, "new", None), pod(2, "new", None)];
        assert_eq!(steps(&ordered, &ill), NONE, "as in Kubernetes");
        assert_eq!(steps(&ordered, &ill[..2]), ["-db-1"]);
        let parallel = set(1, json!({"podManagementPolicy": "Parallel"}));
        assert_eq!(steps(&parallel, &ill), ["-db-2", "-db-1"]);
    }

    #[test]
    fn an_update_goes_from_the_highest_number_down_to_the_partition() {
        let all = [pod(0, "old", Some(99)), pod(1, "old", Some(99)), pod(2, "old", Some(99))];
        let ordered = set(3, json!({}));
        assert_eq!(steps(&ordered, &all), ["-db-2"]);
        let coming = [all[0].clone(), all[1].clone(), pod(2, "new", None)];
        assert_eq!(steps(&ordered, &coming), NONE, "one is enough");
        let done = [all[0].clone(), all[1].clone(), pod(2, "new", Some(99))];
        assert_eq!(steps(&ordered, &done), ["-db-1"]);
        let rolling =
            |fields: Value| json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": fields}});
        let parted = set(3, rolling(json!({"partition": 2})));
        assert_eq!(steps(&parted, &done), NONE);
        assert_eq!(steps(&parted, &[]), ["+0 old"], "below the partition pods stay what they were");
        let status = planned(&parted, &done).status;
        assert_eq!((status.current_replicas, status.updated_replicas), (2, 1));
        assert_eq!((&*status.current_revision, &*status.update_revision), ("old", "new"));
        assert_eq!(steps(&set(3, rolling(json!({"maxUnavailable": 2}))), &all), ["-db-2", "-db-1"]);
        let by_hand = set(3, json!({"updateStrategy": {"type": "OnDelete"}}));
        assert_eq!(steps(&by_hand, &all), NONE);
        assert_eq!(steps(&by_hand, &all[..2]), ["+2 new"]);
    }

    #[test]
    fn when_all_are_new_the_new_revision_is_the_current_one() {
        let all = [pod(0, "new", Some(99)), pod(1, "new", Some(99))];
        let status = planned(&set(2, json!({})), &all).status;
        assert_eq!((&*status.current_revision, status.current_replicas), ("new", 2));
        assert_eq!((status.replicas, status.ready_replicas, status.available_replicas), (2, 2, 2));
        assert_eq!(status.observed_generation, 2);
    }

    #[test]
    fn a_pod_that_ended_makes_room_for_the_next_and_an_adopted_one_gets_its_labels() {
        let failed = shaped(0, "new", None, "Failed", false);
        assert_eq!(steps(&set(2, json!({})), std::slice::from_ref(&failed)), ["again db-0"]);
        assert_eq!(steps(&set(2, json!({})), &[shaped(0, "new", None, "Failed", true)]), NONE);
        let waits = HashMap::from([("db-0/new".into(), Duration::from_secs(3))]);
        let now = Timestamp::from_second(NOW).unwrap();
        let seen = Seen { pods: &[failed], current: "new", update: "new", waits: &waits, now };
        let plan = super::plan(&set(2, json!({})), &seen);
        assert_eq!((plan.steps.len(), plan.again), (0, Some(Duration::from_secs(3))));
        let mut bare = (*pod(0, "new", Some(99))).clone();
        bare.metadata.labels.remove(POD_INDEX);
        assert_eq!(steps(&set(1, json!({})), &[Arc::new(bare)]), ["label db-0"]);
    }

    #[test]
    fn only_names_that_the_set_gives_are_numbers() {
        let number = |name: &str| {
            let pod = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
            ordinal(&set(1, json!({})), &pod)
        };
        let numbers = ["db-0", "db-12", "db-01", "db-", "db-x", "db", "db-+1", "dbx-1", "db-99999999999"];
        assert_eq!(numbers.map(number), [Some(0), Some(12), None, None, None, None, None, None, None]);
    }

    proptest! {
        #[test]
        fn a_rollout_comes_to_its_end_and_in_order_one_pod_at_a_time(replicas in 1..6_i32, before in 0..8_i32, parallel: bool) {
            let policy = if parallel { "Parallel" } else { "OrderedReady" };
            let set = set(replicas, json!({"podManagementPolicy": policy}));
            let mut pods: Vec<Arc<Pod>> = (0..before).map(|number| pod(number, "old", Some(99))).collect();
            for step in 0.. {
                prop_assert!(step < 200, "never ends: {:?}", pods);
                let plan = planned(&set, &pods);
                prop_assert!(parallel || plan.steps.len() <= 1);
                if plan.steps.is_empty() {
                    let Some(coming) = pods.iter_mut().find(|pod| pod.ready_since().is_none()) else { break };
                    *coming = pod(ordinal(&set, coming).unwrap(), "new", Some(99));
                }
                for step in plan.steps {
                    match step {
                        Step::Create { ordinal, updated } => {
                            prop_assert!(updated);
                            pods.push(pod(ordinal, "new", None));
                        }
                        Step::Delete(gone) => pods.retain(|pod| !Arc::ptr_eq(pod, &gone)),
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
                let ready = pods.iter().filter(|pod| pod.ready_since().is_some()).count() as i32;
                prop_assert!(ready >= replicas.min(before) - 1, "more than one of those that were there is missing");
            }
            let mut numbers: Vec<_> = pods.iter().map(|pod| ordinal(&set, pod).unwrap()).collect();
            numbers.sort_unstable();
            prop_assert_eq!(numbers, (0..replicas).collect::<Vec<_>>());
            prop_assert!(pods.iter().all(|pod| revision(pod) == "new"));
        }
    }
}
