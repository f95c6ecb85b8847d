//! One watch on etcd.
//!
//! Each write tells `head` first and then its change. The event of `head` has the revision of the write
//! before, which must have been seen: so nothing is left out unnoticed, whatever became of the history.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use etcd_client::{EventType, KeyValue, WatchResponse, WatchStream};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio_util::sync::CancellationToken;

use super::layout::{Layout, Origin};
use super::members::{Failure, judge};
use super::replaced;
use crate::{Error, Event, Revision};

const ACTION: &str = "watch";

/// What is watched.
pub(super) struct Place {
    pub(super) layout: Layout,
    pub(super) origin: Origin,
    pub(super) prefix: Arc<str>,
}

struct Tail {
    stream: WatchStream,
    place: Place,
    stop: CancellationToken,
    /// Every change up to here was told by etcd.
    taken: Revision,
    ready: VecDeque<Event>,
}

/// The changes that `stream` tells of `place`, after `from`. It ends after an error.
pub(super) fn follow(
    stream: WatchStream,
    place: Place,
    from: Revision,
    stop: CancellationToken,
) -> BoxStream<'static, Result<Event, Error>> {
    let tail = Tail { stream, place, stop, taken: from, ready: VecDeque::new() };
    let events = stream::unfold(Some(tail), async |tail| {
        let mut tail = tail?;
        match tail.next().await {
            Ok(event) => Some((Ok(event), Some(tail))),
            Err(error) => Some((Err(error), None)),
        }
    });
    events.boxed()
}

impl Tail {
    async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            let told = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Error::Closed),
                told = self.stream.message() => told,
            };
            match told {
                Ok(Some(told)) => self.take(&told)?,
                Ok(None) => return Err(Failure::strange("etcd ended the watch").on(ACTION)),
                Err(error) => return Err(judge(error).on(ACTION)),
            }
        }
    }

    fn take(&mut self, told: &WatchResponse) -> Result<(), Error> {
        if told.canceled() {
            if told.compact_revision() > 0 {
                return Err(self.compacted(told.compact_revision()));
            }
            return Err(Failure::strange(told.cancel_reason()).on(ACTION));
        }
        for event in told.events() {
            let Some(kv) = event.kv() else { continue };
            if event.event_type() == EventType::Delete && kv.key() == self.place.layout.head() {
                // A copy takes the place of the store. The objects that go after `head` were not deleted by
                // anybody, and are told to nobody.
                return Err(replaced());
            }
            let revision = self.place.origin.ours(kv.mod_revision());
            let previous = event.prev_kv();
            // What a change made anew has nothing before it; of any other, etcd leaves it out only where
            // it was compacted.
            let made = event.event_type() == EventType::Put && kv.create_revision() == kv.mod_revision();
            if previous.is_none() && !made {
                return Err(self.compacted(kv.mod_revision()));
            }
            if kv.key() == self.place.layout.head() {
                let before = previous.map(|head| self.place.origin.ours(head.mod_revision()));
                if let Some(lost) = before.filter(|before| *before > self.taken) {
                    let why = format!("etcd told nothing of revision {lost}, after {}", self.taken);
                    return Err(Failure::strange(&why).on(ACTION));
                }
                self.taken = revision;
                continue;
            }
            let key = self.place.layout.key(kv.key())?;
            if key.as_str().starts_with(&*self.place.prefix) {
                let bytes = |kv: &KeyValue| Bytes::copy_from_slice(kv.value());
                let previous = previous.map(|kv| (self.place.origin.ours(kv.mod_revision()), bytes(kv)));
                let value = (event.event_type() == EventType::Put).then(|| bytes(kv));
                self.ready.push_back(Event { key, revision, previous, value });
            }
        }
        Ok(())
    }

    /// `theirs` is the oldest revision that etcd keeps.
    fn compacted(&self, theirs: i64) -> Error {
        Error::Compacted { asked: self.taken, oldest: self.place.origin.ours(theirs) }
    }
}
