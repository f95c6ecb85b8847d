//! A revisioned, ordered key-value map: what the API server keeps objects in.
//!
//! [`Store`] is the contract; [`redb`] is the embedded engine; `testing::contract` is the suite that every
//! engine passes. [`cache::Cache`] stands before a store and serves lists and watches from memory.

use std::fmt;
use std::ops::Bound;

use bytes::Bytes;
use futures::stream::BoxStream;

/// A point in the store's history. Each operation has its own; the first write is 1. Kubernetes calls it
/// resourceVersion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// The key of an object: path segments joined by `/`, for example `apps/deployments/default/web`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub std::sync::Arc<str>);

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
    /// The new value; `None` deletes.
    pub value: Option<Bytes>,
}

/// A committed change, as a watch tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub key: Key,
    pub revision: Revision,
    /// The value before; `None` if the key was created by this change.
    pub previous: Option<Bytes>,
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
/// - A watch from revision R delivers every change after R under its prefix once, in revision order,
///   across restarts of the engine, or ends with [`Error::Compacted`].
/// - A dropped future leaves the store as before the call or as after it, never between.
pub trait Store: Send + Sync + 'static {
    /// The entry of `key` now.
    fn get(&self, key: &Key) -> impl Future<Output = Result<Option<Entry>, Error>> + Send;

    /// Entries whose key starts with `prefix` and lies after `after`, in key order, at most `limit` (0: all),
    /// as they were at revision `at` (`None`: now, after every write acknowledged before this call).
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
    fn write(&self, write: Write) -> impl Future<Output = Result<Revision, Error>> + Send;

    /// Every change under `prefix` after revision `from`, then those to come. The stream ends only after
    /// an error, which is its last item.
    fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> impl Future<Output = Result<BoxStream<'static, Result<Event, Error>>, Error>> + Send;

    /// The revision of the last committed write.
    fn revision(&self) -> impl Future<Output = Result<Revision, Error>> + Send;

    /// Forgets history before `before`: reads and watches older than it get [`Error::Compacted`].
    fn compact(&self, before: Revision) -> impl Future<Output = Result<(), Error>> + Send;
}

/// Why the store did not do what was asked. Users of the module write `store::Error`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{key} is at revision {found:?}, not as expected")]
    Conflict { key: Key, found: Option<Revision> },
    #[error("revision {asked} was compacted; the oldest kept is {oldest}")]
    Compacted { asked: Revision, oldest: Revision },
    #[error("revision {asked} lies in the future; the newest is {newest}")]
    Future { asked: Revision, newest: Revision },
    #[error("the store could not {action}")]
    Engine { action: &'static str, #[source] cause: Box<dyn std::error::Error + Send + Sync> },
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
