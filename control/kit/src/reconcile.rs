//! The loop around a [`Pass`]: changes in, one pass per key at a time, retries, and an orderly end.

use std::fmt::{Debug, Display};
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span, warn};

use crate::queue::Queue;
use crate::view::{Change, Store, View};
use crate::{api, chain};

pub use crate::queue::Next;

/// What the caller of something that failed can usefully do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// What was decided rests on an old reading: decide again, soon. Not worth a warning.
    Reread,
    /// The same may work later.
    BackOff,
    /// Nothing until something changes.
    Wait,
}

/// An error that says what to do about it.
pub trait Remedied: std::error::Error + 'static {
    fn remedy(&self) -> Remedy;
}

impl Remedied for api::Error {
    fn remedy(&self) -> Remedy {
        match self.code() {
            _ if self.is_namespace_terminating() => Remedy::Wait,
            404 | 409 => Remedy::Reread,
            // The object as we wrote it will be refused again; a change of something may help. Since that
            // something may be one we do not watch, it is still tried, at the slow end of the back-off.
            _ => Remedy::BackOff,
        }
    }
}

/// One look at one key: reads the current state, decides, acts. A pass is never run twice at once for a key.
pub trait Pass: Send + Sync + 'static {
    type Key: Clone + Eq + Hash + Display + Send + Sync + 'static;
    type Error: Remedied + Send;

    fn pass(&self, key: &Self::Key) -> impl Future<Output = Result<Next, Self::Error>> + Send;
}

/// A named loop that runs a [`Pass`] for each key that its triggers name.
pub struct Controller<P: Pass> {
    name: &'static str,
    pass: Arc<P>,
    queue: Queue<P::Key>,
    workers: usize,
}

impl<P: Pass> Controller<P> {
    /// A loop with four workers and no trigger yet.
    pub fn new(name: &'static str, pass: P) -> Self {
        Self { name, pass: Arc::new(pass), queue: Queue::default(), workers: 4 }
    }

    /// How many passes, each of another key, may run at once (at least one).
    pub fn workers(self, workers: usize) -> Self {
        Self { workers: workers.max(1), ..self }
    }

    /// Wakes the keys that `keys` names for each change of `store`, and for each object in it now.
    pub fn watches<T, I>(self, store: &Store<T>, keys: impl Fn(&Change<'_, T>) -> I + Send + 'static) -> Self
    where
        T: View,
        I: IntoIterator<Item = P::Key>,
    {
        let queue = self.queue.clone();
        store.on_change(move |change| keys(change).into_iter().for_each(|key| queue.add(key)));
        self
    }

    /// The loop's queue, for triggers of another kind.
    pub fn queue(&self) -> Queue<P::Key> {
        self.queue.clone()
    }

    /// Runs until `stop` is cancelled, and returns when the passes in hand are finished.
    pub async fn run(self, stop: CancellationToken) {
        let mut passes: JoinSet<()> = JoinSet::new();
        loop {
            while passes.try_join_next().is_some() {}
            let key = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(_) = passes.join_next(), if passes.len() >= self.workers => continue,
                key = self.queue.next(), if passes.len() < self.workers => key,
            };
            let span = info_span!("pass", controller = self.name, %key);
            let (pass, queue) = (self.pass.clone(), self.queue.clone());
            let work = async move {
                // Should the pass panic, the key must not stay taken for ever.
                let mut taken = Taken { queue: &queue, key: Some(key.clone()) };
                let next = pass.pass(&key).await.unwrap_or_else(|error| after(&error));
                taken.end(next);
            };
            passes.spawn(work.instrument(span));
        }
        let finish = async { while passes.join_next().await.is_some() {} };
        // A pass is a handful of requests; one that hangs at shutdown is dropped, which passes allow.
        if tokio::time::timeout(Duration::from_secs(5), finish).await.is_err() {
            warn!(controller = self.name, "passes did not end in time");
        }
    }
}

fn after(error: &impl Remedied) -> Next {
    match error.remedy() {
        Remedy::Reread => {
            debug!(error = chain(error), "pass is out of date");
            Next::BackOff
        }
        Remedy::BackOff => {
            warn!(error = chain(error), "pass failed");
            Next::BackOff
        }
        Remedy::Wait => {
            warn!(error = chain(error), "pass failed");
            Next::Done
        }
    }
}

struct Taken<'a, K: Clone + Eq + Hash> {
    queue: &'a Queue<K>,
    key: Option<K>,
}

impl<K: Clone + Eq + Hash> Taken<'_, K> {
    fn end(&mut self, next: Next) {
        if let Some(key) = self.key.take() {
            self.queue.done(key, next);
        }
    }
}

impl<K: Clone + Eq + Hash> Drop for Taken<'_, K> {
    fn drop(&mut self) {
        self.end(Next::BackOff);
    }
}

impl<P: Pass> Debug for Controller<P> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Controller").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use tokio::time::Instant;

    #[derive(Debug, thiserror::Error)]
    #[error("not yet")]
    struct NotYet;

    impl Remedied for NotYet {
        fn remedy(&self) -> Remedy {
            Remedy::BackOff
        }
    }

    /// Each pass takes a second; the first pass of `fails` fails and that of `panics` panics.
    #[derive(Default)]
    struct Slow {
        log: Arc<Mutex<Vec<(String, Duration)>>>,
        start: Option<Instant>,
    }

    impl Pass for Slow {
        type Key = String;
        type Error = NotYet;

        async fn pass(&self, key: &String) -> Result<Next, NotYet> {
            let first = {
                let mut log = self.log.lock().unwrap();
                let first = log.iter().all(|(other, _)| other != key);
                log.push((key.clone(), self.start.unwrap().elapsed()));
                first
            };
            tokio::time::sleep(Duration::from_secs(1)).await;
            match key.as_str() {
                "fails" if first => Err(NotYet),
                "panics" if first => panic!("on purpose"),
                _ => Ok(Next::Done),
            }
        }
    }

    async fn run(keys: &[&str], workers: usize, wait: Duration) -> Vec<(String, u64)> {
        let pass = Slow { start: Some(Instant::now()), ..Slow::default() };
        let log = pass.log.clone();
        let controller = Controller::new("slow", pass).workers(workers);
        keys.iter().for_each(|key| controller.queue().add((*key).to_owned()));
        let stop = CancellationToken::new();
        let running = tokio::spawn(controller.run(stop.clone()));
        tokio::time::sleep(wait).await;
        stop.cancel();
        running.await.unwrap();
        let log = log.lock().unwrap();
        log.iter().map(|(key, at)| (key.clone(), at.as_secs())).collect()
    }

    fn at(key: &str, seconds: u64) -> (String, u64) {
        (key.to_owned(), seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_passes_run_at_once_as_there_are_workers() {
        let log = run(&["a", "b", "c"], 2, Duration::from_secs(9)).await;
        assert_eq!(log, [at("a", 0), at("b", 0), at("c", 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pass_that_fails_or_panics_is_tried_again() {
        for key in ["fails", "panics"] {
            let log = run(&[key], 1, Duration::from_secs(9)).await;
            assert_eq!(log, [at(key, 0), at(key, 1)]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_finishes_the_pass_in_hand_and_starts_no_other() {
        let log = run(&["a", "b"], 1, Duration::from_millis(500)).await;
        assert_eq!(log, [at("a", 0)]);
    }
}
