//! One reader of the ring.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use tokio::sync::watch;

use super::state::group_of;
use super::{CacheEvent, Object, Shared};
use crate::{Error, Event, Revision};

/// Events taken from the ring at once: the lock is held for so many pointers.
const BATCH: usize = 128;

/// Delivers the changes under one prefix in revision order, each once.
///
/// It holds no more than a batch of shared events; one that is read too slowly ends with
/// [`Error::Lagged`], and its reader may watch again from there.
pub struct Watcher<T> {
    shared: Arc<Shared<T>>,
    prefix: Arc<str>,
    group: Arc<str>,
    tip: watch::Receiver<Revision>,
    /// Changes that are older than the ring, until it is reached.
    history: Option<BoxStream<'static, Result<Event, Error>>>,
    ready: VecDeque<Arc<CacheEvent<T>>>,
    /// Every change up to here is in `ready` or was delivered.
    taken: Revision,
    /// Every change up to here was delivered.
    delivered: Revision,
}

impl<T> Watcher<T> {
    pub(super) fn new(shared: Arc<Shared<T>>, prefix: &str, from: Revision) -> Self {
        let group: Arc<str> = group_of(prefix).into();
        let tip = shared.change(|state| state.join(&group));
        Self {
            shared,
            prefix: prefix.into(),
            group,
            tip,
            history: None,
            ready: VecDeque::new(),
            taken: from,
            delivered: from,
        }
    }

    /// Whether the ring lacks changes that this watcher has to deliver.
    pub(super) fn needs_history(&self) -> bool {
        self.shared.read(|state| state.group(&self.group).is_some_and(|group| self.taken < group.forgotten))
    }

    pub(super) fn replay(&mut self, history: BoxStream<'static, Result<Event, Error>>) {
        self.history = Some(history);
    }

    /// Waits for the next change. Cancel-safe: a change leaves the watcher only when returned.
    ///
    /// # Errors
    /// [`Error::Lagged`] if the ring has passed this watcher, [`Error::Compacted`] if the store's history
    /// has, [`Error::Closed`] if the cache stopped. After an error there is nothing more to come.
    pub async fn next(&mut self) -> Result<Arc<CacheEvent<T>>, Error> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.delivered = event.revision;
                return Ok(event);
            }
            if self.history.is_some() && !self.needs_history() {
                self.history = None;
            }
            if let Some(history) = &mut self.history {
                let event = history.next().await.unwrap_or(Err(Error::Closed))?;
                self.taken = event.revision;
                if event.key.as_str().starts_with(&*self.prefix) {
                    self.ready.push_back(Arc::new(self.shared.decode_event(event)));
                } else {
                    self.delivered = self.taken;
                }
                continue;
            }
            self.tip.mark_unchanged();
            self.take()?;
            if self.ready.is_empty() && self.tip.changed().await.is_err() {
                return Err(self.ended());
            }
        }
    }

    /// The next change if it is there, so that a reader can send several at once.
    pub fn try_next(&mut self) -> Option<Result<Arc<CacheEvent<T>>, Error>> {
        self.next().now_or_never()
    }

    /// The revision up to which everything under the prefix was delivered: what a bookmark tells. It
    /// follows the cache also while the prefix is quiet.
    pub fn progress(&mut self) -> Revision {
        if self.ready.is_empty() && self.history.is_none() {
            // An error is told by the next call of `next`; until then progress stands still.
            let _ = self.take();
        }
        self.delivered
    }

    /// Moves what the ring has after `taken` into `ready`.
    fn take(&mut self) -> Result<(), Error> {
        let Self { shared, group, prefix, ready, taken, delivered, .. } = self;
        let found = shared.read(|state| {
            let group = state.group(group)?;
            if *taken < group.forgotten {
                return None;
            }
            let first = group.events.partition_point(|event| event.revision <= *taken);
            for event in group.events.range(first..) {
                if ready.len() == BATCH {
                    return Some(());
                }
                *taken = event.revision;
                if event.key.as_str().starts_with(&**prefix) {
                    ready.push_back(event.clone());
                }
            }
            *taken = state.revision.max(*taken);
            Some(())
        });
        if ready.is_empty() {
            *delivered = *taken;
        }
        found.ok_or_else(|| self.ended())
    }

    fn ended(&self) -> Error {
        if self.shared.read(|state| state.closed) {
            Error::Closed
        } else {
            Error::Lagged { at: self.delivered }
        }
    }
}

impl<T> Shared<T> {
    fn decode_event(&self, event: Event) -> CacheEvent<T> {
        let Event { key, revision, previous, value } = event;
        let object = |(revision, value)| {
            let meta = (self.decode)(&key, &value);
            Arc::new(Object { key: key.clone(), value, revision, meta })
        };
        let previous = previous.map(object);
        let current = value.map(|value| object((revision, value)));
        CacheEvent { key, revision, previous, current, encoded: Default::default() }
    }
}

impl<T> Drop for Watcher<T> {
    fn drop(&mut self) {
        self.shared.change(|state| state.leave(&self.group));
    }
}
