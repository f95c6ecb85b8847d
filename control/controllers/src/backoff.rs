//! How long the place of a pod that ended waits: so that one that cannot run is not made and ended without pause.
//! The place is a node for a DaemonSet and a name for a StatefulSet.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use wharf_kit::queue::Backoff;
use wharf_kit::view::Key;

use crate::views::Pod;

/// As for Kubernetes' DaemonSets; without jitter, since places are apart anyway.
const BACKOFF: Backoff =
    Backoff { first: Duration::from_secs(1), last: Duration::from_secs(15 * 60), jitter: 0.0 };

/// One entry for each place in which a pod of a set ended, until the set is gone or changed. It does not outlive the
/// process: a restart tries each once more.
#[derive(Default)]
pub(crate) struct Backoffs {
    sets: Mutex<HashMap<Key, Set>>,
}

#[derive(Default)]
struct Set {
    /// What was tried and failed is this generation of the set.
    generation: i64,
    places: HashMap<Arc<str>, Place>,
}

struct Place {
    failures: u32,
    since: Instant,
}

impl Backoffs {
    /// How much longer the place waits; `None`: no longer.
    pub fn left(&self, set: &Key, generation: i64, place: &str) -> Option<Duration> {
        let sets = self.sets.lock().expect("no holder of this lock panics");
        let set = sets.get(set).filter(|set| set.generation == generation)?;
        let place = set.places.get(place)?;
        let left = BACKOFF.wait(place.failures).checked_sub(place.since.elapsed())?;
        (!left.is_zero()).then_some(left)
    }

    /// How much longer each ended pod's place waits, by the pod's uid.
    pub fn waits<'a>(
        &self,
        set: &Key,
        generation: i64,
        pods: &'a [Arc<Pod>],
        place: impl Fn(&'a Pod) -> &'a str,
    ) -> HashMap<Arc<str>, Duration> {
        let ended = pods.iter().filter(|pod| pod.has_ended());
        let left =
            |pod: &'a Arc<Pod>| Some((pod.metadata.uid.clone(), self.left(set, generation, place(pod))?));
        ended.filter_map(left).collect()
    }

    /// A pod that ended is replaced now: the next that ends waits longer, unless this one lasts.
    pub fn ended(&self, set: &Key, generation: i64, place: &str) {
        let mut sets = self.sets.lock().expect("no holder of this lock panics");
        let set = sets.entry(set.clone()).or_default();
        if set.generation != generation {
            *set = Set { generation, places: HashMap::new() };
        }
        set.places.retain(|_, place| place.since.elapsed() < BACKOFF.last * 2);
        let now = Instant::now();
        let place = set.places.entry(place.into()).or_insert(Place { failures: 0, since: now });
        place.failures += 1;
        place.since = now;
    }

    pub fn forget(&self, set: &Key) {
        self.sets.lock().expect("no holder of this lock panics").remove(set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_wait_doubles_in_one_place_until_the_set_changes_or_all_is_well_for_long() {
        let (backoffs, key) = (Backoffs::default(), Key::new("ns", "log"));
        let left = |generation, place| backoffs.left(&key, generation, place).map(|left| left.as_secs());
        assert_eq!(left(1, "n1"), None);
        backoffs.ended(&key, 1, "n1");
        assert_eq!((left(1, "n1"), left(1, "n2"), left(2, "n1")), (Some(1), None, None));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(left(1, "n1"), None);
        backoffs.ended(&key, 1, "n1");
        assert_eq!(left(1, "n1"), Some(2));
        for _ in 0..20 {
            backoffs.ended(&key, 1, "n1");
        }
        assert_eq!(left(1, "n1"), Some(900));
        tokio::time::advance(Duration::from_secs(1800)).await;
        backoffs.ended(&key, 1, "n1");
        assert_eq!(left(1, "n1"), Some(1), "that was another trouble");
        backoffs.ended(&key, 2, "n1");
        assert_eq!(left(2, "n1"), Some(1));
        backoffs.forget(&key);
        assert_eq!(left(2, "n1"), None);
    }
}
