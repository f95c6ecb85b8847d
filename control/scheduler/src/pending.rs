//! The pods that wait for a node.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;
use wharf_kit::view::Key;

/// After its first failure a pod waits this long at least, twice as long after each further one. Kubernetes
/// begins with one second; a pod that came a moment before its node should not wait that long.
const BACK_OFF_FIRST: Duration = Duration::from_millis(100);
const BACK_OFF_LAST: Duration = Duration::from_secs(10);

/// A change of the cluster that may help a waiting pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A placed pod ended or was deleted.
    PodGone,
    /// A pod was placed: some pods want to be beside others.
    PodPlaced,
    NodeAdded,
    NodeGone,
    /// A node can hold more than before.
    NodeGrew,
    NodeLabels,
    /// Taints, or whether it is schedulable at all.
    NodeTaints,
}

/// A set of [`Change`]s.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes(u8);

impl Changes {
    pub fn of(change: Change) -> Self {
        Self(1 << change as u8)
    }

    pub fn add(&mut self, change: Change) {
        self.0 |= Self::of(change).0;
    }

    pub fn extend(&mut self, other: Self) {
        self.0 |= other.0;
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl FromIterator<Change> for Changes {
    fn from_iter<I: IntoIterator<Item = Change>>(changes: I) -> Self {
        changes.into_iter().fold(Self::default(), |mut all, change| {
            all.add(change);
            all
        })
    }
}

/// Priority, highest first, then age.
type Rank = (Reverse<i32>, u64);

#[derive(Debug)]
enum Place {
    Ready(Rank),
    /// Ready at this time.
    BackingOff(Instant),
    /// Nothing but one of these changes can help.
    Waiting(Changes),
    /// Its node is chosen; the API server has not confirmed it.
    Binding,
}

#[derive(Debug)]
struct Entry {
    place: Place,
    priority: i32,
    failures: u32,
    /// Not ready before this, whatever changes.
    not_before: Option<Instant>,
}

/// The pods that wait, each in one place.
#[derive(Debug, Default)]
pub struct Pending {
    entries: HashMap<Key, Entry>,
    ready: BTreeMap<Rank, Key>,
    backing_off: BTreeSet<(Instant, Key)>,
    count: u64,
    /// What changed while a pod's binding was under way, or since its node was looked for: see `failed`.
    waiting: usize,
}

impl Pending {
    /// A pod came, or changed so that all that was known of it is void: it is ready now.
    pub fn add(&mut self, key: &Key, priority: i32) {
        self.remove(key);
        let rank = self.rank(priority);
        self.ready.insert(rank, key.clone());
        let entry = Entry { place: Place::Ready(rank), priority, failures: 0, not_before: None };
        self.entries.insert(key.clone(), entry);
    }

    pub fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.leave(key, &entry.place);
        }
    }

    pub fn contains(&self, key: &Key) -> bool {
        self.entries.contains_key(key)
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The first of the ready ones, now binding: [`Pending::remove`], [`Pending::failed`] or
    /// [`Pending::retry`] is to follow.
    pub fn take(&mut self) -> Option<Key> {
        let (_, key) = self.ready.pop_first()?;
        self.entries.get_mut(&key)?.place = Place::Binding;
        Some(key)
    }

    /// No node fits: the pod waits for one of these changes.
    pub fn failed(&mut self, key: &Key, wakes_on: Changes, now: Instant) {
        self.settle(key, now, |_| Place::Waiting(wakes_on));
    }

    /// The binding failed for a reason that may pass: the pod is ready after its back-off.
    pub fn retry(&mut self, key: &Key, now: Instant) {
        self.settle(key, now, Place::BackingOff);
    }

    fn settle(&mut self, key: &Key, now: Instant, place: impl FnOnce(Instant) -> Place) {
        let Some(mut entry) = self.entries.remove(key) else { return };
        self.leave(key, &entry.place);
        let wait =
            BACK_OFF_FIRST.saturating_mul(2_u32.saturating_pow(entry.failures.min(16))).min(BACK_OFF_LAST);
        entry.failures += 1;
        entry.not_before = Some(now + wait);
        entry.place = place(now + wait);
        self.enter(key, entry);
    }

    /// Makes ready (or lets back off) those whom these changes may help.
    pub fn wake(&mut self, changes: Changes, now: Instant) {
        if changes.is_empty() || self.waiting == 0 {
            return;
        }
        let helped =
            |entry: &Entry| matches!(entry.place, Place::Waiting(wakes_on) if wakes_on.meets(changes));
        let mut keys: Vec<Key> =
            self.entries.iter().filter(|(_, entry)| helped(entry)).map(|(key, _)| key.clone()).collect();
        keys.sort();
        for key in keys {
            self.ready_or_back_off(&key, now);
        }
    }

    /// When [`Pending::tick`] is to be called next.
    pub fn next_tick(&self) -> Option<Instant> {
        self.backing_off.first().map(|(at, _)| *at)
    }

    /// Makes ready those whose back-off is over.
    pub fn tick(&mut self, now: Instant) {
        while let Some((_, key)) = self.backing_off.first().filter(|(at, _)| *at <= now).cloned() {
            self.ready_or_back_off(&key, now);
        }
    }

    fn ready_or_back_off(&mut self, key: &Key, now: Instant) {
        let Some(mut entry) = self.entries.remove(key) else { return };
        self.leave(key, &entry.place);
        entry.place = match entry.not_before.filter(|at| *at > now) {
            Some(at) => Place::BackingOff(at),
            None => Place::Ready(self.rank(entry.priority)),
        };
        self.enter(key, entry);
    }

    fn rank(&mut self, priority: i32) -> Rank {
        self.count += 1;
        (Reverse(priority), self.count)
    }

    fn enter(&mut self, key: &Key, entry: Entry) {
        match &entry.place {
            Place::Ready(rank) => drop(self.ready.insert(*rank, key.clone())),
            Place::BackingOff(at) => drop(self.backing_off.insert((*at, key.clone()))),
            Place::Waiting(_) => self.waiting += 1,
            Place::Binding => {}
        }
        self.entries.insert(key.clone(), entry);
    }

    fn leave(&mut self, key: &Key, place: &Place) {
        match place {
            Place::Ready(rank) => drop(self.ready.remove(rank)),
            Place::BackingOff(at) => drop(self.backing_off.remove(&(*at, key.clone()))),
            Place::Waiting(_) => self.waiting -= 1,
            Place::Binding => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new("ns", name)
    }

    fn taken(pending: &mut Pending) -> Vec<String> {
        std::iter::from_fn(|| pending.take()).map(|key| key.name.to_string()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_highest_priority_comes_first_and_then_the_oldest() {
        let mut pending = Pending::default();
        for (name, priority) in [("a", 0), ("b", 5), ("c", 0), ("d", 5)] {
            pending.add(&key(name), priority);
        }
        assert_eq!(taken(&mut pending), ["b", "d", "a", "c"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_pod_wakes_on_its_changes_alone_and_never_before_its_back_off() {
        let mut pending = Pending::default();
        pending.add(&key("a"), 0);
        pending.take();
        pending.failed(&key("a"), Changes::of(Change::NodeAdded), Instant::now());
        pending.wake(Changes::of(Change::PodGone), Instant::now());
        assert!(!pending.has_ready() && pending.next_tick().is_none(), "that does not help it");
        pending.wake(Changes::of(Change::NodeAdded), Instant::now());
        assert!(!pending.has_ready(), "it backs off");
        let at = pending.next_tick().unwrap();
        assert_eq!(at - Instant::now(), BACK_OFF_FIRST);
        tokio::time::advance(BACK_OFF_FIRST).await;
        pending.tick(Instant::now());
        assert_eq!(taken(&mut pending), ["a"]);
        pending.failed(&key("a"), Changes::of(Change::NodeAdded), Instant::now());
        tokio::time::advance(BACK_OFF_FIRST * 2).await;
        pending.wake(Changes::of(Change::NodeAdded), Instant::now());
        assert_eq!(taken(&mut pending), ["a"], "its second back-off is over: it wakes at once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_binding_is_tried_again_by_itself() {
        let mut pending = Pending::default();
        pending.add(&key("a"), 0);
        pending.take();
        pending.retry(&key("a"), Instant::now());
        assert!(!pending.has_ready());
        tokio::time::advance(BACK_OFF_FIRST).await;
        pending.tick(Instant::now());
        assert_eq!(taken(&mut pending), ["a"]);
        pending.remove(&key("a"));
        assert!(!pending.contains(&key("a")));
    }
}
