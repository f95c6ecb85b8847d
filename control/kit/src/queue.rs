//! The work queue of a reconcile loop: which keys are due, and when.
//!
//! It promises that a key is never with two passes at once, that a key added while its pass runs gets
//! another pass afterwards, and that adding a waiting key again changes nothing (but brings it forward).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// What a key waits for after its pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The next change.
    Done,
    /// The next change, or this much time.
    After(Duration),
    /// The next change, or its back-off: 10 ms doubled at each failure in a row up to 60 s, with jitter.
    BackOff,
}

/// How long a key that fails again and again waits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    pub first: Duration,
    pub last: Duration,
    /// The share of the wait that is random, 0 to 1, so that keys that failed together part.
    pub jitter: f64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(10), last: Duration::from_secs(60), jitter: 0.2 }
    }
}

impl Backoff {
    /// The wait after `failures` in a row, 1 for the first.
    pub fn wait(&self, failures: u32) -> Duration {
        let factor = 2_u32.saturating_pow(failures.saturating_sub(1).min(30));
        let whole = self.first.saturating_mul(factor).min(self.last);
        whole.mul_f64(1.0 - self.jitter * rand::random::<f64>())
    }
}

/// Keys that wait for a pass. Cheap to clone: all clones are one queue.
pub struct Queue<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<K> fmt::Debug for Queue<K> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Queue").finish_non_exhaustive()
    }
}

struct Shared<K> {
    state: Mutex<State<K>>,
    wake: Notify,
    backoff: Backoff,
}

struct State<K> {
    due: VecDeque<K>,
    later: BTreeSet<(Instant, u64)>,
    later_keys: HashMap<u64, K>,
    entries: HashMap<K, Entry>,
    count: u64,
}

#[derive(Default, Clone, Copy)]
struct Entry {
    due: bool,
    running: bool,
    /// Its place in `later`, if it has one.
    at: Option<(Instant, u64)>,
    failures: u32,
}

impl<K: Clone + Eq + Hash> Default for Queue<K> {
    fn default() -> Self {
        Self::new(Backoff::default())
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    pub fn new(backoff: Backoff) -> Self {
        let state = State {
            due: VecDeque::new(),
            later: BTreeSet::new(),
            later_keys: HashMap::new(),
            entries: HashMap::new(),
            count: 0,
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), wake: Notify::new(), backoff }) }
    }

    /// The key is due now; or, if its pass runs, when that ends.
    pub fn add(&self, key: K) {
        let mut state = self.state();
        let entry = state.entries.entry(key.clone()).or_default();
        let at = entry.at.take();
        let push = !entry.due && !entry.running;
        entry.due = true;
        state.forget(at);
        if push {
            state.due.push_back(key);
            drop(state);
            self.shared.wake.notify_one();
        }
    }

    /// The key is due after `wait`, or earlier if it was to be.
    pub fn add_after(&self, key: K, wait: Duration) {
        if wait.is_zero() {
            return self.add(key);
        }
        self.state().delay(key, Instant::now() + wait);
        self.shared.wake.notify_one();
    }

    /// The next key that is due. Its pass runs until [`Queue::done`] is called with it.
    ///
    /// Cancel-safe: a key leaves the queue only when returned. For one caller at a time.
    pub async fn next(&self) -> K {
        loop {
            let woken = self.shared.wake.notified();
            let soonest = {
                let mut state = self.state();
                state.bring_due(Instant::now());
                if let Some(key) = state.due.pop_front() {
                    let entry = state.entries.get_mut(&key).expect("a due key has an entry");
                    entry.due = false;
                    entry.running = true;
                    return key;
                }
                state.later.first().map(|(at, _)| *at)
            };
            match soonest {
                None => woken.await,
                Some(at) => {
                    tokio::select! {
                        () = woken => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
            }
        }
    }

    /// Ends the pass of a key that [`Queue::next`] returned.
    pub fn done(&self, key: K, next: Next) {
        let mut state = self.state();
        let Some(entry) = state.entries.get_mut(&key) else { return };
        entry.running = false;
        entry.failures = if next == Next::BackOff { entry.failures + 1 } else { 0 };
        let (due, failures) = (entry.due, entry.failures);
        if due {
            state.due.push_back(key);
        } else {
            match next {
                Next::Done if entry.at.is_none() => drop(state.entries.remove(&key)),
                Next::Done => {}
                Next::After(wait) => state.delay(key, Instant::now() + wait),
                Next::BackOff => state.delay(key, Instant::now() + self.shared.backoff.wait(failures)),
            }
        }
        drop(state);
        self.shared.wake.notify_one();
    }

    /// How many keys are due or wait for their time, without those whose pass runs.
    pub fn len(&self) -> usize {
        let state = self.state();
        state.due.len() + state.later.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.shared.state.lock().expect("no holder of this lock panics")
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    fn delay(&mut self, key: K, at: Instant) {
        let entry = self.entries.entry(key.clone()).or_default();
        if entry.due || entry.at.is_some_and(|(earlier, _)| earlier <= at) {
            return;
        }
        self.count += 1;
        let old = entry.at.replace((at, self.count));
        self.later.insert((at, self.count));
        self.later_keys.insert(self.count, key);
        self.forget(old);
    }

    fn forget(&mut self, at: Option<(Instant, u64)>) {
        if let Some(at) = at {
            self.later.remove(&at);
            self.later_keys.remove(&at.1);
        }
    }

    fn bring_due(&mut self, now: Instant) {
        while let Some(first) = self.later.first().copied().filter(|(at, _)| *at <= now) {
            self.later.remove(&first);
            let key = self.later_keys.remove(&first.1).expect("a delayed place has its key");
            let entry = self.entries.get_mut(&key).expect("a delayed key has an entry");
            entry.at = None;
            let push = !entry.due && !entry.running;
            entry.due = true;
            if push {
                self.due.push_back(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    fn queue() -> Queue<&'static str> {
        Queue::new(Backoff { jitter: 0.0, ..Backoff::default() })
    }

    async fn none(queue: &Queue<&'static str>, wait: Duration) -> bool {
        timeout(wait, queue.next()).await.is_err()
    }

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn a_key_added_during_its_pass_runs_again_after_it_and_never_beside_it() {
        let queue = queue();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        assert!(none(&queue, MS * 1000).await);
        queue.done("a", Next::Done);
        assert_eq!(queue.next().await, "a");
        queue.done("a", Next::Done);
        assert!(none(&queue, MS * 1000).await);
        assert!(queue.is_empty() && queue.state().entries.is_empty(), "nothing is kept of idle keys");
    }

    #[tokio::test(start_paused = true)]
    async fn one_success_forgets_all_failures() {
        let queue = queue();
        queue.add("a");
        for (wait, next) in [
            (0, Next::BackOff),
            (10, Next::BackOff),
            (20, Next::After(MS)),
            (1, Next::BackOff),
            (10, Next::Done),
        ] {
            let start = Instant::now();
            let key = queue.next().await;
            assert_eq!(start.elapsed().as_millis(), wait);
            queue.done(key, next);
        }
        assert!(none(&queue, MS * 100_000).await);
    }

    #[tokio::test(start_paused = true)]
    async fn back_off_doubles_to_its_cap() {
        let queue = queue();
        queue.add("a");
        let mut waits = Vec::new();
        for _ in 0..15 {
            let start = Instant::now();
            let key = queue.next().await;
            waits.push(start.elapsed().as_millis());
            queue.done(key, Next::BackOff);
        }
        assert_eq!(waits[..5], [0, 10, 20, 40, 80]);
        assert_eq!(waits[14], 60_000);
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_of_several_times_counts_and_a_change_beats_them() {
        let queue = queue();
        queue.add_after("a", MS * 50);
        queue.add_after("a", MS * 20);
        queue.add_after("a", MS * 90);
        let start = Instant::now();
        assert_eq!(queue.next().await, "a");
        assert_eq!(start.elapsed().as_millis(), 20);
        queue.done("a", Next::After(MS * 100));
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        assert_eq!(start.elapsed().as_millis(), 20);
        queue.done("a", Next::Done);
        assert!(none(&queue, MS * 1000).await, "the earlier After was taken up by the change");
    }

    #[tokio::test(start_paused = true)]
    async fn keys_come_in_the_order_in_which_they_became_due() {
        let queue = queue();
        queue.add_after("late", MS * 2);
        queue.add("a");
        queue.add("b");
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(queue.next().await);
        }
        assert_eq!(seen, ["a", "b", "late"]);
    }
}
