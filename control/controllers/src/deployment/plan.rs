//! The next step of a rollout.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{DESIRED, MAX, REVISION, template};
use crate::views::{Deployment, ReplicaSet};

/// A ReplicaSet that the Deployment controls.
#[derive(Debug, Clone)]
pub struct Set {
    pub view: Arc<ReplicaSet>,
    /// Whether it was made from the present template.
    pub current: bool,
    pub revision: i64,
    /// `spec.replicas`.
    pub replicas: i32,
}

impl Set {
    pub fn new(view: Arc<ReplicaSet>, deployment: &Deployment) -> Self {
        let current = template::same(deployment, &view);
        let revision = number(&view, REVISION).unwrap_or(0);
        let replicas = view.spec.replicas.unwrap_or(1);
        Self { view, current, revision, replicas }
    }

    /// Of the asked replicas, those that are available.
    fn available(&self) -> i32 {
        self.view.status.available_replicas
    }
}

fn number(set: &ReplicaSet, annotation: &str) -> Option<i64> {
    set.metadata.annotations.get(annotation)?.parse().ok()
}

/// How many pods a Deployment may have and must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub replicas: i32,
    pub surge: i32,
    pub unavailable: i32,
}

impl Limits {
    pub fn of(deployment: &Deployment) -> Self {
        let replicas = deployment.spec.replicas.unwrap_or(1).max(0);
        if deployment.spec.strategy.r#type == "Recreate" {
            return Self { replicas, surge: 0, unavailable: replicas };
        }
        let rolling = deployment.spec.strategy.rolling_update.clone().unwrap_or_default();
        // The API fills both in with 25 %; so do we where it did not.
        let quarter = crate::views::IntOrPercent::Percent("25%".to_owned());
        let surge = rolling.max_surge.as_ref().unwrap_or(&quarter).of(replicas, true);
        let mut unavailable = rolling.max_unavailable.as_ref().unwrap_or(&quarter).of(replicas, false);
        if surge == 0 && unavailable == 0 {
            unavailable = 1; // else nothing could ever move
        }
        Self { replicas, surge, unavailable: unavailable.min(replicas) }
    }

    /// Pods at most, of all templates.
    pub fn most(&self) -> i32 {
        self.replicas + self.surge
    }

    /// Available pods at least.
    pub fn least_available(&self) -> i32 {
        self.replicas - self.unavailable
    }
}

/// What to do to a ReplicaSet, or to the Deployment's own number.
#[derive(Debug, Clone)]
pub enum Step {
    /// A set for the present template.
    Create {
        name: String,
        replicas: i32,
        revision: i64,
    },
    Scale {
        set: Arc<ReplicaSet>,
        replicas: i32,
    },
    /// Bring annotations and minReadySeconds up to date.
    Annotate {
        set: Arc<ReplicaSet>,
        annotations: BTreeMap<String, String>,
        min_ready_seconds: i32,
    },
    /// The Deployment is now at this revision.
    Number(i64),
    /// Too old a part of the history.
    Delete(Arc<ReplicaSet>),
}

/// The steps, in order, and what they make of the present template's set.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// The name of the present template's set, if there is or will be one.
    pub current: Option<String>,
    pub created: bool,
    /// `spec.replicas` of all sets once the steps are done.
    pub asked: i32,
}

/// `old_pods`: whether pods of older templates still run. No I/O, no clock: same input, same plan.
pub fn plan(deployment: &Deployment, sets: &[Set], old_pods: bool) -> Plan {
    let mut plan = Plan { asked: sets.iter().map(|set| set.replicas).sum(), ..Plan::default() };
    let current = current(sets);
    plan.current = current.map(|set| set.view.metadata.name.to_string());
    if deployment.metadata.is_deleting() {
        return plan;
    }
    let limits = Limits::of(deployment);
    let mut old: Vec<&Set> = sets
        .iter()
        .filter(|set| current.is_none_or(|current| !Arc::ptr_eq(&current.view, &set.view)))
        .collect();
    old.sort_by_key(|set| {
        (set.view.metadata.creation_timestamp, set.revision, set.view.metadata.name.clone())
    });

    number_revisions(deployment, current, &old, &mut plan);
    let scaled = scale_in_proportion(deployment, &limits, current, &old, &mut plan);
    if !deployment.spec.paused && !scaled {
        if deployment.spec.strategy.r#type == "Recreate" {
            recreate(deployment, &limits, current, &old, old_pods, &mut plan);
        } else {
            roll(deployment, &limits, current, &old, &mut plan);
        }
    }
    forget_history(deployment, &limits, current, &old, &mut plan);
    plan.asked = asked_after(sets, &plan.steps);
    plan
}

/// The set of the present template; the oldest if there are several.
pub(super) fn current(sets: &[Set]) -> Option<&Set> {
    let current = sets.iter().filter(|set| set.current);
    current.min_by_key(|set| (set.view.metadata.creation_timestamp, set.view.metadata.name.clone()))
}

fn asked_after(sets: &[Set], steps: &[Step]) -> i32 {
    let mut asked: BTreeMap<&str, i32> =
        sets.iter().map(|set| (&*set.view.metadata.name, set.replicas)).collect();
    for step in steps {
        match step {
            Step::Create { name, replicas, .. } => drop(asked.insert(name, *replicas)),
            Step::Scale { set, replicas } => drop(asked.insert(&set.metadata.name, *replicas)),
            _ => {}
        }
    }
    asked.values().sum()
}

/// A Deployment's annotations that its sets carry too.
pub(super) fn inherited_annotations(deployment: &Deployment) -> BTreeMap<String, String> {
    let own = |key: &str| {
        key.starts_with("deployment.kubernetes.io/") || key == "deprecated.deployment.rollback.to"
    };
    let all = &deployment.metadata.annotations;
    all.iter().filter(|(key, _)| !own(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The present template's set has the highest number, also when an older template came back.
fn number_revisions(deployment: &Deployment, current: Option<&Set>, old: &[&Set], plan: &mut Plan) {
    let highest_old = old.iter().map(|set| set.revision).max().unwrap_or(0);
    let Some(set) = current else { return };
    let revision = set.revision.max(highest_old + 1);
    let mut annotations = inherited_annotations(deployment);
    if revision != set.revision {
        annotations.insert(REVISION.to_owned(), revision.to_string());
    }
    let have = &set.view.metadata.annotations;
    annotations.retain(|key, value| have.get(key) != Some(value));
    let min_ready_seconds = deployment.spec.min_ready_seconds;
    if !annotations.is_empty() || set.view.spec.min_ready_seconds != min_ready_seconds {
        plan.steps.push(Step::Annotate { set: set.view.clone(), annotations, min_ready_seconds });
    }
    number_deployment(deployment, revision, plan);
}

fn number_deployment(deployment: &Deployment, revision: i64, plan: &mut Plan) {
    if deployment.metadata.annotations.get(REVISION) != Some(&revision.to_string()) {
        plan.steps.push(Step::Number(revision));
    }
}

fn scale(set: &Set, replicas: i32, plan: &mut Plan) {
    if set.replicas != replicas {
        plan.steps.push(Step::Scale { set: set.view.clone(), replicas });
    }
}

/// If the wanted number changed (or the rollout is paused), sizes follow it; tells whether it dealt with that.
fn scale_in_proportion(
    deployment: &Deployment,
    limits: &Limits,
    current: Option<&Set>,
    old: &[&Set],
    plan: &mut Plan,
) -> bool {
    let active: Vec<&Set> = old.iter().copied().chain(current).filter(|set| set.replicas > 0).collect();
    let resized = active
        .iter()
        .any(|set| number(&set.view, DESIRED).is_some_and(|desired| desired != i64::from(limits.replicas)));
    if !resized && !deployment.spec.paused {
        return false;
    }
    let only = match active.as_slice() {
        [] => current.or(old.last().copied()),
        [one] => Some(*one),
        _ => None,
    };
    if let Some(set) = only {
        // A rollout that has not begun to move takes the number up by itself.
        let waits =
            !deployment.spec.paused && current.is_none_or(|current| !Arc::ptr_eq(&current.view, &set.view));
        if set.replicas != limits.replicas && !waits {
            scale(set, limits.replicas, plan);
            return true;
        }
        if resized && set.replicas == limits.replicas {
            plan.steps.push(Step::Scale { set: set.view.clone(), replicas: set.replicas }); // its annotations
            return true;
        }
        if !waits || set.replicas == limits.replicas {
            return false;
        }
        scale(set, limits.replicas, plan);
        return true;
    }
    if let Some(done) = current.filter(|set| saturated(set, limits)) {
        for set in old {
            scale(set, 0, plan);
        }
        return done.replicas > 0 && old.iter().any(|set| set.replicas > 0);
    }
    if deployment.spec.strategy.r#type == "Recreate" {
        return false;
    }
    let total: i32 = active.iter().map(|set| set.replicas).sum();
    let allowed = if limits.replicas > 0 { limits.most() } else { 0 };
    let change = allowed - total;
    let mut by_size = active;
    by_size.sort_by_key(|set| {
        let age = set.view.metadata.creation_timestamp.map_or(0, |time| time.as_second());
        // Of equal sizes the newer grows first, and the older shrinks first.
        (-set.replicas, if change > 0 { -age } else { age })
    });
    let mut sizes: Vec<i32> = Vec::new();
    let mut given = 0;
    for set in &by_size {
        let share = proportion(set, deployment, limits, change, given);
        given += share;
        sizes.push(set.replicas + share);
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + change - given).max(0);
    }
    for (set, size) in by_size.iter().zip(sizes) {
        // Also where the size stays: its annotations say that this number was dealt with.
        plan.steps.push(Step::Scale { set: set.view.clone(), replicas: size.max(0) });
    }
    true
}

fn saturated(set: &Set, limits: &Limits) -> bool {
    set.replicas == limits.replicas
        && number(&set.view, DESIRED) == Some(i64::from(limits.replicas))
        && set.available() == limits.replicas
}

/// The set's share of a change in size.
fn proportion(set: &Set, deployment: &Deployment, limits: &Limits, change: i32, given: i32) -> i32 {
    if change == 0 || set.replicas == 0 {
        return 0;
    }
    if limits.replicas == 0 {
        return -set.replicas;
    }
    let before = number(&set.view, MAX).unwrap_or(i64::from(deployment.status.replicas)).max(1);
    let size = (f64::from(set.replicas) * f64::from(limits.most()) / before as f64).round() as i32;
    let share = size - set.replicas;
    if change > 0 { share.min(change - given) } else { share.max(change - given) }
}

fn create(deployment: &Deployment, replicas: i32, old: &[&Set], plan: &mut Plan) {
    let name = format!("{}-{}", deployment.metadata.name, template::hash(deployment));
    let revision = old.iter().map(|set| set.revision).max().unwrap_or(0) + 1;
    plan.current = Some(name.clone());
    plan.created = true;
    plan.steps.push(Step::Create { name, replicas, revision });
    number_deployment(deployment, revision, plan);
}

/// All old pods end before the first new one starts.
fn recreate(
    deployment: &Deployment,
    limits: &Limits,
    current: Option<&Set>,
    old: &[&Set],
    old_pods: bool,
    plan: &mut Plan,
) {
    if old.iter().any(|set| set.replicas > 0) {
        old.iter().for_each(|set| scale(set, 0, plan));
        return;
    }
    if old_pods {
        return;
    }
    match current {
        None => create(deployment, limits.replicas, old, plan),
        Some(set) => scale(set, limits.replicas, plan),
    }
}

/// New pods come as far as the surge allows; old ones go as far as availability allows.
fn roll(deployment: &Deployment, limits: &Limits, current: Option<&Set>, old: &[&Set], plan: &mut Plan) {
    let old_total: i32 = old.iter().map(|set| set.replicas).sum();
    let have = current.map_or(0, |set| set.replicas);
    let room = (limits.most() - old_total - have).max(0);
    let wanted =
        if have > limits.replicas { limits.replicas } else { have + room.min(limits.replicas - have) };
    match current {
        None => return create(deployment, wanted, old, plan),
        Some(set) if set.replicas != wanted => return scale(set, wanted, plan),
        Some(_) => {}
    }
    let new_unavailable = current.map_or(0, |set| (set.replicas - set.available()).max(0));
    let mut spare = old_total + have - limits.least_available() - new_unavailable;
    if old_total == 0 || spare <= 0 {
        return;
    }
    let mut sizes: Vec<i32> = old.iter().map(|set| set.replicas).collect();
    // First what serves no one: the old sets' unavailable pods.
    for (set, size) in old.iter().zip(&mut sizes) {
        let broken = (set.replicas - set.available()).clamp(0, spare.max(0)).min(*size);
        *size -= broken;
        spare -= broken;
    }
    // Then as many available ones as there are beyond the least.
    let available: i32 = old.iter().copied().chain(current).map(Set::available).sum();
    let mut beyond = (available - limits.least_available()).max(0).min(spare.max(0));
    for (set, size) in old.iter().zip(&mut sizes) {
        let go = beyond.min(*size).min(set.available().max(0));
        *size -= go;
        beyond -= go;
    }
    for (set, size) in old.iter().zip(sizes) {
        scale(set, size, plan);
    }
}

/// Deletes the oldest empty sets beyond the limit, once the rollout is complete.
fn forget_history(
    deployment: &Deployment,
    limits: &Limits,
    current: Option<&Set>,
    old: &[&Set],
    plan: &mut Plan,
) {
    let kept = usize::try_from(deployment.spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
    let complete = current.is_some_and(|set| {
        set.replicas == limits.replicas
            && set.available() >= limits.replicas
            && old.iter().all(|set| set.replicas == 0)
    });
    if !complete || deployment.spec.paused {
        return;
    }
    let mut empty: Vec<&&Set> = old
        .iter()
        .filter(|set| {
            let meta = &set.view.metadata;
            let settled = set.view.status.observed_generation >= meta.generation;
            settled && set.replicas == 0 && set.view.status.replicas == 0 && !meta.is_deleting()
        })
        .collect();
    empty.sort_by_key(|set| set.revision);
    let surplus = empty.len().saturating_sub(kept);
    plan.steps.extend(empty[..surplus].iter().map(|set| Step::Delete(set.view.clone())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn deployment(replicas: i32, image: &str, spec: Value) -> Deployment {
        let mut text = json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "d", "generation": 1, "annotations": {"team": "x"}},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "web"}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"image": image}},
            },
        });
        for (key, value) in spec.as_object().unwrap() {
            text["spec"][key] = value.clone();
        }
        serde_json::from_str(&text.to_string()).unwrap()
    }

    /// A cluster of ReplicaSets that do what they are told: the world in which plans are carried out.
    #[derive(Default, Clone)]
    struct World {
        /// Name to (template's image, asked, available, revision, annotations, age).
        sets: BTreeMap<String, Fake>,
        clock: i64,
        number: Option<i64>,
    }

    #[derive(Clone, Debug)]
    struct Fake {
        image: String,
        asked: i32,
        available: i32,
        annotations: BTreeMap<String, String>,
        made: i64,
    }

    impl World {
        fn sets(&self, deployment: &Deployment) -> Vec<Set> {
            self.sets
                .iter()
                .map(|(name, fake)| {
                    let text = json!({
                        "metadata": {"name": name, "uid": name, "annotations": fake.annotations,
                            "creationTimestamp": jiff::Timestamp::from_second(fake.made).unwrap().to_string()},
                        "spec": {"replicas": fake.asked, "template":
                            {"metadata": {"labels": {"app": "web", "pod-template-hash": "h"}}, "spec": {"image": fake.image}}},
                        "status": {"replicas": fake.asked.max(fake.available), "availableReplicas": fake.available},
                    });
                    Set::new(Arc::new(serde_json::from_str(&text.to_string()).unwrap()), deployment)
                })
                .collect()
        }

        /// Plans once and does it; returns what was done in short.
        fn step(&mut self, deployment: &Deployment, old_pods: bool) -> Vec<String> {
            let plan = plan(deployment, &self.sets(deployment), old_pods);
            let limits = Limits::of(deployment);
            let mut log = Vec::new();
            for step in plan.steps {
                self.clock += 1;
                match step {
                    Step::Create { name, replicas, revision } => {
                        log.push(format!("create r{revision} at {replicas}"));
                        let annotations = BTreeMap::from([
                            (REVISION.to_owned(), revision.to_string()),
                            (DESIRED.to_owned(), limits.replicas.to_string()),
                            (MAX.to_owned(), limits.most().to_string()),
                            ("team".to_owned(), "x".to_owned()),
                        ]);
                        let template: Value =
                            serde_json::from_str(deployment.spec.template.as_ref().unwrap().get()).unwrap();
                        let image = template["spec"]["image"].as_str().unwrap().to_owned();
                        let fake =
                            Fake { image, asked: replicas, available: 0, annotations, made: self.clock };
                        assert!(self.sets.insert(name, fake).is_none(), "created twice");
                    }
                    Step::Scale { set, replicas } => {
                        let fake = self.sets.get_mut(&*set.metadata.name).unwrap();
                        log.push(format!("r{} {}->{replicas}", fake.annotations[REVISION], fake.asked));
                        fake.asked = replicas;
                        fake.available = fake.available.min(replicas);
                        fake.annotations.insert(DESIRED.to_owned(), limits.replicas.to_string());
                        fake.annotations.insert(MAX.to_owned(), limits.most().to_string());
                    }
                    Step::Annotate { set, annotations, .. } => {
                        let fake = self.sets.get_mut(&*set.metadata.name).unwrap();
                        fake.annotations.extend(annotations);
                    }
                    Step::Number(number) => self.number = Some(number),
                    Step::Delete(set) => {
                        let fake = self.sets.remove(&*set.metadata.name).unwrap();
                        log.push(format!("delete r{}", fake.annotations[REVISION]));
                    }
                }
            }
            log
        }

        fn all_become_available(&mut self) {
            self.sets.values_mut().for_each(|fake| fake.available = fake.asked);
        }

        fn totals(&self) -> (i32, i32) {
            self.sets
                .values()
                .fold((0, 0), |(asked, available), fake| (asked + fake.asked, available + fake.available))
        }

        /// Until nothing is left to do, every pod being fine at once.
        fn settle(&mut self, deployment: &Deployment) -> Vec<String> {
            let mut log = Vec::new();
            for _ in 0..200 {
                let done = self.step(deployment, false);
                if done.is_empty() && self.sets.values().all(|fake| fake.asked == fake.available) {
                    return log;
                }
                log.extend(done);
                self.all_become_available();
            }
            panic!("never settles: {log:?}");
        }

        fn sizes(&self) -> Vec<(&str, i32)> {
            let mut sizes: Vec<_> =
                self.sets.values().map(|fake| (fake.image.as_str(), fake.asked)).collect();
            sizes.sort();
            sizes
        }
    }

    #[test]
    fn a_new_deployment_makes_one_full_set_in_one_pass() {
        let mut world = World::default();
        assert_eq!(world.step(&deployment(3, "v1", json!({})), false), ["create r1 at 3"]);
        assert_eq!(world.number, Some(1));
        assert!(world.step(&deployment(3, "v1", json!({})), false).is_empty(), "and nothing more");
    }

    #[test]
    fn a_rollout_goes_one_by_one_with_a_surge_of_one_and_none_unavailable() {
        let mut world = World::default();
        world.settle(&deployment(3, "v1", json!({})));
        let log = world.settle(&deployment(3, "v2", json!({})));
        assert_eq!(log, ["create r2 at 1", "r1 3->2", "r2 1->2", "r1 2->1", "r2 2->3", "r1 1->0"]);
        assert_eq!(world.number, Some(2));
    }

    #[test]
    fn pods_that_do_not_become_available_stop_the_rollout() {
        let mut world = World::default();
        world.settle(&deployment(4, "v1", json!({})));
        let bad = deployment(4, "bad", json!({}));
        assert_eq!(world.step(&bad, false), ["create r2 at 1"]);
        assert!(world.step(&bad, false).is_empty(), "waits");
        let back = deployment(4, "v1", json!({}));
        assert_eq!(world.settle(&back), ["r2 1->0"], "rolling back is rolling to the old template");
        assert_eq!(world.number, Some(3));
        assert_eq!(world.sizes(), [("bad", 0), ("v1", 4)]);
    }

    #[test]
    fn a_third_template_overtakes_a_rollout_in_progress() {
        let mut world = World::default();
        world.settle(&deployment(4, "v1", json!({})));
        let slow = deployment(4, "v2", json!({}));
        world.step(&slow, false);
        world.all_become_available();
        world.step(&slow, false);
        world.settle(&deployment(4, "v3", json!({})));
        assert_eq!(world.sizes(), [("v1", 0), ("v2", 0), ("v3", 4)]);
    }

    #[test]
    fn recreate_ends_all_before_it_starts_any() {
        let recreate = json!({"strategy": {"type": "Recreate"}});
        let mut world = World::default();
        world.settle(&deployment(3, "v1", recreate.clone()));
        let next = deployment(3, "v2", recreate);
        assert_eq!(world.step(&next, true), ["r1 3->0"]);
        assert!(world.step(&next, true).is_empty(), "an old pod still runs");
        assert_eq!(world.step(&next, false), ["create r2 at 3"]);
    }

    #[test]
    fn a_paused_rollout_scales_but_does_not_roll() {
        let mut world = World::default();
        world.settle(&deployment(3, "v1", json!({})));
        assert!(world.step(&deployment(3, "v2", json!({"paused": true})), false).is_empty());
        assert_eq!(world.step(&deployment(5, "v2", json!({"paused": true})), false), ["r1 3->5"]);
    }

    #[test]
    fn scaling_amid_a_rollout_keeps_the_proportions() {
        let spec = json!({"strategy": {"rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}});
        let mut world = World::default();
        world.settle(&deployment(10, "v1", spec.clone()));
        world.step(&deployment(10, "v2", spec.clone()), false); // 3 new
        world.step(&deployment(10, "v2", spec.clone()), false); // 2 old go
        assert_eq!(world.sizes(), [("v1", 8), ("v2", 3)]);
        world.step(&deployment(10, "v2", spec.clone()), false); // 2 more new
        assert_eq!(world.sizes(), [("v1", 8), ("v2", 5)]);
        let resized = world.step(&deployment(15, "v2", spec.clone()), false);
        assert_eq!(resized, ["r1 8->11", "r2 5->7"], "as Kubernetes' documentation works out");
        world.settle(&deployment(15, "v2", spec));
        assert_eq!(world.sizes(), [("v1", 0), ("v2", 15)]);
    }

    #[test]
    fn history_beyond_its_limit_is_forgotten_oldest_first() {
        let mut world = World::default();
        for image in ["v1", "v2", "v3", "v4"] {
            world.settle(&deployment(1, image, json!({"revisionHistoryLimit": 2})));
        }
        assert_eq!(world.sizes(), [("v2", 0), ("v3", 0), ("v4", 1)]);
    }

    #[test]
    fn scaling_to_zero_and_back_works() {
        let mut world = World::default();
        for replicas in [3, 0, 5, 1] {
            world.settle(&deployment(replicas, "v1", json!({})));
            assert_eq!(world.sizes(), [("v1", replicas)]);
        }
    }

    proptest! {
        /// Whatever becomes available when, and whatever is asked in between, a rollout keeps its promises.
        #[test]
        fn rollouts_stay_within_their_limits_and_end(
            changes in proptest::collection::vec((0..8_i32, 0..3_usize), 1..4),
            surge in 0..4_i32,
            unavailable in 0..4_i32,
            chances in proptest::collection::vec(any::<bool>(), 0..40),
        ) {
            let spec = json!({"strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}});
            let mut world = World::default();
            let mut chances = chances.into_iter();
            let mut last = None;
            for (replicas, image) in changes {
                let deployment = deployment(replicas, ["v1", "v2", "v3"][image], spec.clone());
                let limits = Limits::of(&deployment);
                for _ in 0..6 {
                    let before = world.totals();
                    world.step(&deployment, false);
                    let after = world.totals();
                    prop_assert!(after.0 <= limits.most().max(before.0), "more pods than the surge allows: {after:?}");
                    if limits.replicas >= last.unwrap_or(0) {
                        prop_assert!(after.1 >= limits.least_available().min(before.1), "fewer available than promised");
                    }
                    for fake in world.sets.values_mut() {
                        if fake.available < fake.asked && chances.next() == Some(true) {
                            fake.available += 1;
                        }
                    }
                }
                last = Some(replicas);
                let mut settled = world.clone();
                settled.settle(&deployment);
                prop_assert_eq!(settled.totals(), (replicas, replicas));
                prop_assert!(settled.step(&deployment, false).is_empty(), "a plan carried out leaves nothing to plan");
            }
        }
    }
}
