//! What a cache knows: the present, the ring of recent events, and the part of it that each group of
//! watchers reads. Pure: no I/O, no waiting.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::watch;

use super::{CacheEvent, Object, Objects};
use crate::{Key, Revision};

/// Bounds of the ring, whichever is met first. A node's 110 pods change some 10 times each while they start:
/// 10,000 events let a watcher of a hundred such nodes fall seconds behind.
const RING_EVENTS: usize = 10_000;
const RING_BYTES: usize = 64 << 20;

/// An event's memory beside its values: the structs, key and map nodes.
const EVENT_OVERHEAD: usize = 512;

pub(super) struct State<T> {
    pub(super) objects: Objects<T>,
    /// The present: `objects` shows every change up to it.
    pub(super) revision: Revision,
    ring: VecDeque<Arc<CacheEvent<T>>>,
    ring_bytes: usize,
    /// Changes up to this revision are not in the ring, all after it are.
    forgotten: Revision,
    /// By the prefix they watch, which is empty or ends with `/`; only those that someone watches.
    groups: HashMap<Arc<str>, Group<T>>,
    pub(super) closed: bool,
}

/// The watchers of one prefix.
pub(super) struct Group<T> {
    /// The ring's events under the prefix.
    pub(super) events: VecDeque<Arc<CacheEvent<T>>>,
    /// Changes under the prefix up to this revision may be missing from `events`.
    pub(super) forgotten: Revision,
    /// Tells that events came.
    pub(super) tip: Arc<watch::Sender<Revision>>,
}

/// A key, the revision that changed it, and what it is since; `None`: deleted.
pub(super) type Change<T> = (Key, Revision, Option<Arc<Object<T>>>);

/// The tips of the groups to wake after a change.
type Wake = Vec<Arc<watch::Sender<Revision>>>;

impl<T> State<T> {
    pub(super) fn new(revision: Revision, objects: Objects<T>) -> Self {
        Self {
            objects,
            revision,
            ring: VecDeque::new(),
            ring_bytes: 0,
            forgotten: revision,
            groups: HashMap::new(),
            closed: false,
        }
    }

    /// Starts afresh at a state that the ring does not lead to, and tells whom to wake: they have lagged.
    pub(super) fn reset(&mut self, revision: Revision, objects: Objects<T>) -> Wake {
        let mut groups = std::mem::take(&mut self.groups);
        for group in groups.values_mut() {
            group.events.clear();
            group.forgotten = revision;
        }
        let wake = groups.values().map(|group| group.tip.clone()).collect();
        *self = Self { groups, ..Self::new(revision, objects) };
        wake
    }

    /// Takes changes in revision order and tells the new revision.
    pub(super) fn apply(&mut self, changes: Vec<Change<T>>) -> (Revision, Wake) {
        let mut wake: Wake = Vec::new();
        for (key, revision, current) in changes {
            debug_assert!(
                revision > self.revision,
                "the store told {key} at {revision} after {}",
                self.revision
            );
            let previous = match &current {
                Some(object) => self.objects.insert(key.clone(), object.clone()),
                None => self.objects.remove(&key),
            };
            self.revision = revision;
            let event =
                Arc::new(CacheEvent { key, revision, previous, current, encoded: Default::default() });
            for prefix in prefixes(&event.key) {
                if let Some(group) = self.groups.get_mut(prefix) {
                    group.events.push_back(event.clone());
                    if !wake.iter().any(|tip| Arc::ptr_eq(tip, &group.tip)) {
                        wake.push(group.tip.clone());
                    }
                }
            }
            self.ring_bytes += cost(&event);
            self.ring.push_back(event);
            self.trim();
        }
        (self.revision, wake)
    }

    fn trim(&mut self) {
        while self.ring.len() > RING_EVENTS || self.ring_bytes > RING_BYTES {
            let Some(event) = self.ring.pop_front() else { break };
            self.ring_bytes -= cost(&event);
            self.forgotten = event.revision;
            for prefix in prefixes(&event.key) {
                if let Some(group) = self.groups.get_mut(prefix) {
                    group.events.pop_front_if(|first| first.revision <= event.revision);
                    group.forgotten = event.revision;
                }
            }
        }
    }

    /// The events after `at`, in order: undone from the last to the first they lead back to `at`. `None` if
    /// the ring does not reach so far.
    pub(super) fn since(&self, at: Revision) -> Option<Vec<Arc<CacheEvent<T>>>> {
        if at < self.forgotten || at > self.revision {
            return None;
        }
        let first = self.ring.partition_point(|event| event.revision <= at);
        Some(self.ring.range(first..).cloned().collect())
    }

    /// Joins the group of `prefix`, which is made if nobody watches it yet.
    pub(super) fn join(&mut self, prefix: &Arc<str>) -> watch::Receiver<Revision> {
        let group = self.groups.entry(prefix.clone()).or_insert_with(|| Group {
            events: self
                .ring
                .iter()
                .filter(|event| event.key.as_str().starts_with(&**prefix))
                .cloned()
                .collect(),
            forgotten: self.forgotten,
            tip: Arc::new(watch::channel(self.revision).0),
        });
        group.tip.subscribe()
    }

    /// Leaves the group of `prefix`; the last one out removes it.
    pub(super) fn leave(&mut self, prefix: &str) {
        if self.groups.get(prefix).is_some_and(|group| group.tip.receiver_count() <= 1) {
            self.groups.remove(prefix);
        }
    }

    pub(super) fn group(&self, prefix: &str) -> Option<&Group<T>> {
        self.groups.get(prefix)
    }

    /// Ends every watcher.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.groups.clear();
    }
}

/// The prefix that groups the watchers of `prefix`: up to its last `/`.
pub(super) fn group_of(prefix: &str) -> &str {
    prefix.rfind('/').map_or("", |end| &prefix[..=end])
}

/// The groups that an event on `key` concerns.
fn prefixes(key: &Key) -> impl Iterator<Item = &str> {
    std::iter::once("").chain(key.as_str().match_indices('/').map(|(at, _)| &key.as_str()[..=at]))
}

fn cost<T>(event: &CacheEvent<T>) -> usize {
    let value = |object: &Option<Arc<Object<T>>>| object.as_ref().map_or(0, |object| object.value.len());
    value(&event.previous) + value(&event.current) + EVENT_OVERHEAD
}
