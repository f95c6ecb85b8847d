//! One watch: the log first, then the writer's groups as they come, then the log again if it fell behind.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::broadcast::{self, error::RecvError};

use super::Reader;
use super::schema::{self, Changes};
use super::writer::Published;
use crate::{Error, Event, Revision};

pub(super) struct Tail {
    reader: Reader,
    live: broadcast::Receiver<Arc<Published>>,
    prefix: Arc<str>,
    /// Every change up to here is in `ready` or was delivered.
    taken: Revision,
    /// Whether the log has to be read before the live groups are followed.
    behind: bool,
    ready: VecDeque<Event>,
}

impl Tail {
    /// `live` must be subscribed before: what is committed from then on comes by it, the rest is in the log.
    pub(super) async fn start(
        reader: Reader,
        live: broadcast::Receiver<Arc<Published>>,
        prefix: &str,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<Event, Error>>, Error> {
        let ready = VecDeque::new();
        let mut tail = Self { reader, live, prefix: prefix.into(), taken: from, behind: true, ready };
        tail.read_log().await?; // tells a `from` that is not in history
        let events = stream::unfold(Some(tail), async |tail| {
            let mut tail = tail?;
            match tail.next().await {
                Ok(event) => Some((Ok(event), Some(tail))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(events.boxed())
    }

    async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            if self.behind {
                self.read_log().await?;
                continue;
            }
            match self.live.recv().await {
                Ok(group) => self.take(&group),
                Err(RecvError::Lagged(_)) => self.behind = true,
                Err(RecvError::Closed) => return Err(Error::Closed),
            }
        }
    }

    async fn read_log(&mut self) -> Result<(), Error> {
        let (prefix, from) = (self.prefix.clone(), self.taken);
        let look = move |txn: &_| schema::changes(txn, &prefix, from);
        let Changes { events, until, caught_up } = self.reader.read("read its history", look).await?;
        self.ready.extend(events);
        self.taken = until;
        self.behind = !caught_up;
        Ok(())
    }

    fn take(&mut self, group: &Published) {
        match group {
            Published::Events(events) => {
                let Some(first) = events.iter().position(|event| event.revision > self.taken) else { return };
                let fresh = &events[first..];
                if fresh[0].revision.0 > self.taken.0 + 1 {
                    self.behind = true; // the log has this group too
                    return;
                }
                let wanted = fresh.iter().filter(|event| event.key.as_str().starts_with(&*self.prefix));
                self.ready.extend(wanted.cloned());
                self.taken = fresh[fresh.len() - 1].revision;
            }
            Published::ReadLog => self.behind = true,
        }
    }
}
