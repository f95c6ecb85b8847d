//! The compactor, on virtual time.

use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use tokio_util::sync::CancellationToken;
use wharf_store::testing::Place;
use wharf_store::{Entry, Error, Event, Key, Page, Redb, Revision, Store, Write, compactor};

use super::Folder;

/// Counts the compactions of a store.
struct Counted(Redb, AtomicU32);

impl Store for Counted {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        self.0.get(key).await
    }
    async fn range(
        &self,
        prefix: &str,
        after: Bound<&Key>,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Page, Error> {
        self.0.range(prefix, after, limit, at).await
    }
    async fn write(&self, write: Write) -> Result<Revision, Error> {
        self.0.write(write).await
    }
    async fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<Event, Error>>, Error> {
        self.0.watch(prefix, from).await
    }
    async fn revision(&self) -> Result<Revision, Error> {
        self.0.revision().await
    }
    async fn compact(&self, before: Revision) -> Result<(), Error> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.compact(before).await
    }
}

#[tokio::test(start_paused = true)]
async fn history_is_kept_for_its_time_and_compacted_only_after_writes() {
    const KEEP: Duration = Duration::from_secs(300);
    let store = Arc::new(Counted(Folder::new().open().await, AtomicU32::new(0)));
    // Virtual time runs while the test waits for the writer's thread, so all writes come first.
    let first = store.write(Write::create("a".into(), Bytes::new())).await.expect("write");
    let second = store.write(Write::update("a".into(), first, Bytes::new())).await.expect("write");
    let stop = CancellationToken::new();
    let task = tokio::spawn(compactor(store.clone(), KEEP, stop.clone()));
    tokio::time::sleep(KEEP - Duration::from_secs(1)).await;
    assert!(store.watch("", first).await.is_ok(), "still kept");
    tokio::time::sleep(KEEP / 5 * 2).await;
    store.0.compact(Revision(0)).await.expect("compact"); // waits in the queue behind the one that was asked
    assert!(
        matches!(store.watch("", first).await.err(), Some(Error::Compacted { oldest, .. }) if oldest == second)
    );
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    assert_eq!(store.1.load(Ordering::SeqCst), 1, "nothing changed: nothing compacted");
    stop.cancel();
    task.await.expect("the task ends");
}
