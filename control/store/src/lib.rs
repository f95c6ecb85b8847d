//! A revisioned, ordered key-value map: what the API server keeps objects in.
//!
//! [`Store`] is the contract; [`Redb`] is the embedded engine, [`Etcd`] the one for several servers over one
//! store; `testing::contract` is the suite that both pass. [`Cache`] stands before a store and serves reads, lists and watches from memory;
//! [`compactor`] forgets history that is older than anyone needs. [`copy()`] takes a whole store to a file,
//! or to another engine.
//!
//! Three tasks live here, each with one way in and one way out:
//! - the *writer* thread of [`Redb`]: takes writes from a bounded queue, commits those that wait together in
//!   one durable transaction, answers them and publishes their events;
//! - the *follower* task of [`Cache`]: takes the events of one watch, and publishes the state after them;
//! - the *compactor*: looks at the clock and the revision, and calls [`Store::compact`].
//!
//! [`Etcd`] has no task of its own. Another engine is one more file beside `redb.rs` that implements
//! [`Store`] and one more line in the tests that calls `testing::contract`; the cache needs no change for it.

mod cache;
mod compact;
mod copy;
mod etcd;
mod folder;
mod redb;
mod span;
#[cfg(feature = "testing")]
pub mod testing;

use std::borrow::Borrow;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;

pub use cache::{Cache, CacheEvent, Object, Snapshot, Watcher};
pub use compact::compactor;
pub use copy::{Copied, CopyError, Moment, Sink, SnapshotReader, SnapshotWriter, Source, copy};
pub use etcd::{Config as EtcdConfig, Etcd, EtcdSink, Tls as EtcdTls, User as EtcdUser};
pub use redb::{Redb, RedbSink};

/// A point in the store's history. Each operation has its own; the first write is 1. Kubernetes calls it
/// resourceVersion. An empty store is at 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// The key of an object: path segments joined by `/`, for example `apps/deployments/default/web`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub Arc<str>);

/// A key's value and where in history it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Key,
    pub value: Bytes,
    /// The revision of the write that made this value.
    pub revision: Revision,
}

/// What a write asks of the key's present state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist: a create.
    Absent,
    /// The key's last write has this revision: an update or delete under compare-and-swap.
    At(Revision),
}

/// One change, to be committed alone.
#[derive(Clone, Debug)]
pub struct Write {
    pub key: Key,
    pub expect: Expect,
    /// The new value; `None` deletes. Deleting what is expected to be absent is always a conflict.
    pub value: Option<Bytes>,
}

/// A committed change, as a watch tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub key: Key,
    pub revision: Revision,
    /// The value before and its revision; `None` if the key was created by this change.
    pub previous: Option<(Revision, Bytes)>,
    /// The value after; `None` if the key was deleted by this change.
    pub value: Option<Bytes>,
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Page {
    pub entries: Vec<Entry>,
    /// The revision that was read; the next page asks for the same.
    pub revision: Revision,
    /// How many keys of the prefix follow this page.
    pub remaining: u64,
}

/// Runs the store of one cluster.
///
/// # Guarantees (`testing::contract` checks them against every engine)
/// - A write that returned `Ok` is durable: it is there after `kill -9` and power loss.
/// - Writes are linearizable; each has its own revision, greater than all before.
/// - A watch from revision R delivers every change after R under its prefix once, in revision order, or
///   ends with an error. After a restart of the engine, a watch from the last revision seen goes on.
/// - A dropped future leaves the store as before the call or as after it, never between.
pub trait Store: Send + Sync + 'static {
    /// The entry of `key` now.
    fn get(&self, key: &Key) -> impl Future<Output = Result<Option<Entry>, Error>> + Send;

    /// Entries whose key starts with `prefix` and lies after `after`, in key order, at most `limit` (0: all),
    /// as they were at revision `at` (`None`: now, after every write acknowledged before this call).
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::Future`] if `at` is not in the history kept.
    fn range(
        &self,
        prefix: &str,
        after: Bound<&Key>,
        limit: usize,
        at: Option<Revision>,
    ) -> impl Future<Output = Result<Page, Error>> + Send;

    /// Commits one change and tells its revision.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the key is not as `write.expect` says; nothing was changed then.
    /// [`Error::Uncertain`] if the engine failed in the commit and cannot tell whether the change was
    /// kept: read before writing again. After any other error nothing was changed.
    fn write(&self, write: Write) -> impl Future<Output = Result<Revision, Error>> + Send;

    /// Every change under `prefix` after revision `from`, then those to come. The stream ends only after
    /// an error, which is its last item. A slow reader loses nothing: the engine reads history again.
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::Future`] if `from` is not in the history kept.
    fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> impl Future<Output = Result<BoxStream<'static, Result<Event, Error>>, Error>> + Send;

    /// The revision of the last committed write.
    fn revision(&self) -> impl Future<Output = Result<Revision, Error>> + Send;

    /// Forgets history before `before`: reads and watches older than it get [`Error::Compacted`]. A
    /// repeated or older `before` changes nothing.
    ///
    /// # Errors
    /// [`Error::Future`] if `before` is greater than the present revision.
    fn compact(&self, before: Revision) -> impl Future<Output = Result<(), Error>> + Send;
}

/// Why the store did not do what was asked. Users of the module write `store::Error`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{key} is {}, not as expected", found.map_or("absent".to_owned(), |at| format!("at revision {at}")))]
    Conflict { key: Key, found: Option<Revision> },
    #[error("revision {asked} was compacted; the oldest kept is {oldest}")]
    Compacted { asked: Revision, oldest: Revision },
    #[error("revision {asked} lies in the future; the newest is {newest}")]
    Future { asked: Revision, newest: Revision },
    /// The reader of a [`Watcher`] was too slow; it may watch again from `at`.
    #[error("the watch fell behind at revision {at}")]
    Lagged { at: Revision },
    #[error("the store failed while it committed {key}; the change may or may not have been kept")]
    Uncertain {
        key: Key,
        #[source]
        cause: Arc<dyn std::error::Error + Send + Sync>,
    },
    #[error("the store could not {action}")]
    Engine {
        action: &'static str,
        #[source]
        cause: Arc<dyn std::error::Error + Send + Sync>,
    },
    #[error("the store is closed")]
    Closed,
}

impl Write {
    /// Makes `key`, which must not exist.
    pub fn create(key: Key, value: Bytes) -> Self {
        Self { key, expect: Expect::Absent, value: Some(value) }
    }

    /// Replaces the value that was written at `at`.
    pub fn update(key: Key, at: Revision, value: Bytes) -> Self {
        Self { key, expect: Expect::At(at), value: Some(value) }
    }

    /// Deletes the value that was written at `at`.
    pub fn delete(key: Key, at: Revision) -> Self {
        Self { key, expect: Expect::At(at), value: None }
    }
}

impl Key {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Key {
    fn from(key: &str) -> Self {
        Self(key.into())
    }
}

impl From<String> for Key {
    fn from(key: String) -> Self {
        Self(key.into())
    }
}

impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
