//! Whole stores from one place to another: a store on any engine, or a file (`file`).
//!
//! [`copy`] takes the objects of a [`Source`], as they were at one revision, to a [`Sink`]. History is not
//! taken along. So that nobody mistakes the copy's history for what he has seen of the original, all its
//! revisions are new: reads and watches from before get [`Error::Compacted`] and begin anew.
//!
//! These are for commands that do this and nothing else: files are read and written where they are called.

mod file;

use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};

use crate::{Entry, Error, Key, Revision, Store};
pub use file::{SnapshotReader, SnapshotWriter};

/// Entries that are held in memory at once.
const PAGE: usize = 1000;

/// How far revisions are put forward for each second since the source was read, and at least: no store
/// writes faster, so that whatever it went on to do after that, the copy begins later.
const PER_SECOND: u64 = 1_000_000;

/// When a copy was taken of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// By the store.
    pub revision: Revision,
    /// By the clock, to the second.
    pub time: SystemTime,
}

/// The objects of a store at one moment, in key order.
pub struct Source {
    pub moment: Moment,
    pages: BoxStream<'static, Result<Vec<Entry>, CopyError>>,
}

/// What becomes a copy. Dropped before [`Sink::finish`] it leaves no store behind that could be taken for
/// a whole one; what it was to replace is kept where it can be.
pub trait Sink: Send {
    /// Adds entries; they come in key order, each key once.
    fn take(&mut self, entries: Vec<Entry>) -> impl Future<Output = Result<(), CopyError>> + Send;

    /// Makes the copy durable and visible, and tells the revision that it is at.
    fn finish(self) -> impl Future<Output = Result<Revision, CopyError>> + Send;
}

/// What was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    pub objects: u64,
    /// The revision that the copy is at.
    pub revision: Revision,
}

/// Why a store was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error(transparent)]
    Store(#[from] Error),
    #[error("there is no store {place}")]
    Missing { place: String },
    #[error("{place} holds a store already, at revision {revision}")]
    Taken { place: String, revision: Revision },
    #[error("{} is no snapshot of a store", path.display())]
    Foreign { path: PathBuf },
    #[error("the snapshot {} has format {found}; this program reads format {}", path.display(), file::FORMAT)]
    Format { path: PathBuf, found: u32 },
    #[error("the snapshot {} ends at byte {at}, amid its content: it was cut off", path.display())]
    Truncated { path: PathBuf, at: u64 },
    #[error("the snapshot {} is damaged: {what}", path.display())]
    Damaged { path: PathBuf, what: &'static str },
    #[error("could not {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
}

impl Moment {
    /// The store is at `revision` now.
    pub fn now(revision: Revision) -> Self {
        Self { revision, time: SystemTime::now() }
    }

    /// The revision from which a copy counts that replaces a store at `replaced`: beyond all that this one and the
    /// source have given out.
    pub(crate) fn beginning(self, replaced: Revision) -> Revision {
        // A clock that was set back leaves the least.
        let seconds = self.time.elapsed().unwrap_or_default().as_secs();
        Revision(self.revision.max(replaced).0 + PER_SECOND * (seconds + 1))
    }
}

impl Source {
    /// The objects that `store` has now. It may go on meanwhile.
    ///
    /// # Errors
    /// The store's; as an item [`Error::Compacted`] too, if it goes on for longer than it keeps history.
    pub async fn of<S: Store>(store: Arc<S>) -> Result<Self, CopyError> {
        let moment = Moment::now(store.revision().await?);
        let pages = stream::try_unfold(Some(None), move |last: Option<Option<Key>>| {
            let store = store.clone();
            async move {
                let Some(last) = last else { return Ok(None) };
                let after = last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
                let page = store.range("", after, PAGE, Some(moment.revision)).await?;
                let last = page.entries.last().map(|entry| entry.key.clone());
                let next = if page.remaining > 0 { last.map(Some) } else { None };
                Ok(Some((page.entries, next)))
            }
        });
        Ok(Self { moment, pages: pages.boxed() })
    }
}

/// Takes all objects of `source` to `sink`. `progress` is told, now and then, how many were.
pub async fn copy(
    mut source: Source,
    mut sink: impl Sink,
    mut progress: impl FnMut(u64),
) -> Result<Copied, CopyError> {
    let mut objects = 0;
    while let Some(entries) = source.pages.try_next().await? {
        objects += entries.len() as u64;
        sink.take(entries).await?;
        progress(objects);
    }
    Ok(Copied { objects, revision: sink.finish().await? })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_copy_begins_beyond_what_either_store_may_have_given_out() {
        let taken = |ago: i64| {
            let (now, by) = (SystemTime::now(), Duration::from_secs(ago.unsigned_abs()));
            Moment { revision: Revision(7), time: if ago < 0 { now + by } else { now - by } }
        };
        assert_eq!(taken(0).beginning(Revision(0)), Revision(7 + PER_SECOND));
        assert_eq!(taken(0).beginning(Revision(9)), Revision(9 + PER_SECOND));
        assert!(taken(100).beginning(Revision(0)) >= Revision(7 + 101 * PER_SECOND));
        assert_eq!(taken(-100).beginning(Revision(0)), Revision(7 + PER_SECOND), "the clock was set back");
    }
}
