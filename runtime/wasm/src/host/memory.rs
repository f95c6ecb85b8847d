//! How much memory a container may hold, summed over its instances.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::oneshot;
use wasmtime::ResourceLimiter;

/// What the host keeps for a live instance beside its memories and tables: a chunk of body each way, the stack, tables
/// of resources.
pub(crate) const HOST_BYTES: u64 = 192 << 10;
/// Bytes of a table's element.
const ELEMENT: usize = size_of::<usize>();
/// Requests of one container that may wait for memory.
const LONGEST_LINE: usize = 256;

/// A container's memory. `limit` of `None` only counts.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: Option<u64>,
    state: Mutex<State>,
    peak: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    used: u64,
    /// In the order they came. None of them fits now, or those before it do not.
    line: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    bytes: u64,
    granted: oneshot::Sender<Grant>,
}

/// Memory that is taken; given back on drop.
#[derive(Debug)]
pub(crate) struct Grant {
    budget: Arc<Budget>,
    bytes: u64,
}

/// Too many wait already.
#[derive(Debug)]
pub(crate) struct LineFull;

impl Budget {
    pub fn new(limit: Option<u64>) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::default(), peak: AtomicU64::new(0) })
    }

    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    pub fn used(&self) -> u64 {
        self.with(|state| state.used)
    }

    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn fits(&self, state: &State, bytes: u64) -> bool {
        self.limit.is_none_or(|limit| state.used.saturating_add(bytes) <= limit)
    }

    fn add(&self, state: &mut State, bytes: u64) {
        state.used += bytes;
        self.peak.fetch_max(state.used, Ordering::Relaxed);
    }

    /// Takes memory if there is some now. Before those who wait: a live instance goes before one to be made.
    pub fn take(self: &Arc<Self>, bytes: u64) -> Option<Grant> {
        self.with(|state| {
            let fits = self.fits(state, bytes);
            if fits {
                self.add(state, bytes);
            }
            fits
        })
        .then(|| Grant { budget: self.clone(), bytes })
    }

    /// Waits in line for memory. More than the limit is taken as the limit: what does not fit then traps by itself.
    pub async fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Grant, LineFull> {
        let bytes = self.limit.map_or(bytes, |limit| bytes.min(limit));
        let waiting = self.with(|state| {
            if state.line.is_empty() && self.fits(state, bytes) {
                self.add(state, bytes);
                return Ok(None);
            }
            if state.line.len() >= LONGEST_LINE {
                state.line.retain(|waiter| !waiter.granted.is_closed()); // those who gave up
            }
            if state.line.len() >= LONGEST_LINE {
                return Err(LineFull);
            }
            let (granted, waiting) = oneshot::channel();
            state.line.push_back(Waiter { bytes, granted });
            Ok(Some(waiting))
        })?;
        match waiting {
            None => Ok(Grant { budget: self.clone(), bytes }),
            Some(waiting) => {
                Ok(waiting.await.expect("the line is held by the budget, which this keeps alive"))
            }
        }
    }

    fn give_back(self: &Arc<Self>, bytes: u64) {
        self.with(|state| state.used -= bytes);
        loop {
            let next = self.with(|state| {
                while state.line.front().is_some_and(|waiter| waiter.granted.is_closed()) {
                    state.line.pop_front();
                }
                let bytes = state.line.front()?.bytes;
                if !self.fits(state, bytes) {
                    return None;
                }
                self.add(state, bytes);
                state.line.pop_front()
            });
            let Some(Waiter { bytes, granted }) = next else { return };
            // One who just gave up drops the grant, which comes back here.
            drop(granted.send(Grant { budget: self.clone(), bytes }));
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.clone().give_back(self.bytes);
        }
    }
}

/// The limiter of one instance: lives in its store, gives everything back with it.
#[derive(Debug)]
pub(crate) struct Limiter {
    grant: Grant,
    used: u64,
    /// What it would use now, had it got what it asked for last.
    wanted: u64,
    /// A growth was denied, which is what ended the instance.
    pub denied: bool,
}

/// A growth was denied.
#[derive(Debug)]
struct Denied {
    wanted: u64,
    limit: u64,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "out of memory: {} bytes more would exceed the container's limit of {}",
            self.wanted, self.limit
        )
    }
}

impl std::error::Error for Denied {}

impl Limiter {
    /// With a grant that an instance may use up before it takes more.
    pub fn new(grant: Grant) -> Self {
        let used = HOST_BYTES.min(grant.bytes);
        Self { grant, used, wanted: used, denied: false }
    }

    /// What it needed at most, the host's part included: also what was denied, up to the limit.
    pub fn needed(&self) -> u64 {
        self.grant.budget.limit.map_or(self.wanted, |limit| self.wanted.min(limit))
    }

    fn grow(&mut self, bytes: u64) -> wasmtime::Result<bool> {
        self.wanted = self.used + bytes;
        let missing = (self.used + bytes).saturating_sub(self.grant.bytes);
        if missing > 0 {
            let Some(mut more) = self.grant.budget.take(missing) else {
                self.denied = true;
                let limit = self.grant.budget.limit.unwrap_or(u64::MAX);
                return Err(wasmtime::Error::new(Denied { wanted: bytes, limit }));
            };
            self.grant.bytes += std::mem::take(&mut more.bytes);
        }
        self.used += bytes;
        Ok(true)
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false); // the component's own bound, which it can handle
        }
        self.grow((desired - current) as u64)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.grow(((desired - current) * ELEMENT) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_is_served_in_order_and_nothing_is_lost() {
        let budget = Budget::new(Some(100));
        let first = budget.reserve(80).await.expect("free");
        let second = tokio::spawn({
            let budget = budget.clone();
            async move { budget.reserve(90).await }
        });
        while budget.with(|state| state.line.is_empty()) {
            tokio::task::yield_now().await;
        }
        tokio::select! {
            biased;
            _ = budget.reserve(10) => panic!("it went before the first in line"),
            () = std::future::ready(()) => {} // gives up
        }
        assert!(budget.take(20).is_some(), "a live instance need not wait in line");
        drop(first);
        let second = second.await.expect("task").expect("line");
        assert_eq!(budget.used(), 90);
        drop(second);
        assert_eq!(budget.used(), 0, "one who gave up holds nothing");
        assert_eq!(budget.peak(), 100);
    }

    #[test]
    fn an_instance_uses_its_grant_before_it_takes_more_and_gives_all_back() {
        let budget = Budget::new(Some(HOST_BYTES + 1000));
        let mut limiter = Limiter::new(budget.take(HOST_BYTES + 600).expect("free"));
        assert!(limiter.memory_growing(0, 600, None).expect("granted"));
        assert_eq!(budget.used(), HOST_BYTES + 600);
        assert!(limiter.memory_growing(600, 1000, None).expect("there is more"));
        assert!(limiter.memory_growing(1000, 1001, None).is_err());
        assert!(limiter.denied);
        drop(limiter);
        assert_eq!(budget.used(), 0);
    }
}
