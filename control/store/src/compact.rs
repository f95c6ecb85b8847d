//! Forgets history by age.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{Revision, Store};

/// Keeps the last `keep` of the store's history, and a fifth of that at most beyond it; five minutes is
/// what Kubernetes clients are used to. Compacts nothing while nothing is written. Runs until `stop` is
/// cancelled.
///
/// Which revision belongs to which time is known only from the start of this task, so after a restart the
/// history of before is kept for another `keep`.
pub async fn compactor<S: Store>(store: Arc<S>, keep: Duration, stop: CancellationToken) {
    let mut ticks = tokio::time::interval((keep / 5).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut marks: VecDeque<(Instant, Revision)> = VecDeque::new();
    let mut newest = Revision::default();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let now = Instant::now();
        match store.revision().await {
            Ok(revision) if revision > newest => {
                newest = revision;
                marks.push_back((now, revision));
            }
            Ok(_) => {} // unchanged: no mark, so nothing to compact later
            Err(error) => {
                debug!(%error, "the compactor could not read the revision");
                continue;
            }
        }
        // What was written up to a mark is at least as old as the mark.
        let mut before = None;
        while marks.front().is_some_and(|(at, _)| now.duration_since(*at) >= keep) {
            before = marks.pop_front().map(|(_, revision)| revision);
        }
        if let Some(before) = before {
            match store.compact(before).await {
                Ok(()) => debug!(%before, "history compacted"),
                Err(error) => {
                    warn!(%error, cause = ?std::error::Error::source(&error), %before, "history not compacted")
                }
            }
        }
    }
}
