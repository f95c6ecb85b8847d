//! The store behind its cache, without naming its engine.

use std::sync::Arc;

use futures::future::BoxFuture;
use wharf_store::{Cache, Error, Object, Revision, Snapshot, Store, Watcher, Write};

use crate::encode::Facts;

/// An object as the cache holds it.
pub type Stored = Arc<Object<Facts>>;

/// What the verbs ask of the store. Reads come from memory and see every acknowledged write.
pub trait Storage: Send + Sync + 'static {
    fn get(&self, key: &str) -> Option<Stored>;
    /// The revision up to which reads show everything.
    fn revision(&self) -> Revision;
    fn write(&self, write: Write) -> BoxFuture<'_, Result<Revision, Error>>;
    fn snapshot<'a>(
        &'a self,
        prefix: &'a str,
        at: Option<Revision>,
    ) -> BoxFuture<'a, Result<Snapshot<Facts>, Error>>;
    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, Result<Watcher<Facts>, Error>>;
    /// Waits until reads show whatever was written anywhere before the call.
    fn sync(&self) -> BoxFuture<'_, Result<Revision, Error>>;
    fn wait_for(&self, revision: Revision) -> BoxFuture<'_, Result<(), Error>>;
}

impl<S: Store> Storage for Cache<S, Facts> {
    fn get(&self, key: &str) -> Option<Stored> {
        Cache::get(self, key)
    }
    fn revision(&self) -> Revision {
        Cache::revision(self)
    }
    fn write(&self, write: Write) -> BoxFuture<'_, Result<Revision, Error>> {
        Box::pin(Cache::write(self, write))
    }
    fn snapshot<'a>(
        &'a self,
        prefix: &'a str,
        at: Option<Revision>,
    ) -> BoxFuture<'a, Result<Snapshot<Facts>, Error>> {
        Box::pin(Cache::snapshot(self, prefix, at))
    }
    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, Result<Watcher<Facts>, Error>> {
        Box::pin(Cache::watch(self, prefix, from))
    }
    fn sync(&self) -> BoxFuture<'_, Result<Revision, Error>> {
        Box::pin(Cache::sync(self))
    }
    fn wait_for(&self, revision: Revision) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(Cache::wait_for(self, revision))
    }
}
