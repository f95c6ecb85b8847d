//! The cache before a real engine.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use rand::RngExt;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use wharf_store::testing::{Fault, FaultyDisk, Place};
use wharf_store::{
    Cache, CacheEvent, Entry, Error, Event, Key, Page, Redb, Revision, Snapshot, Store, Watcher, Write,
};

use super::Folder;

/// The tests' decoded part: the length of the value.
type Objects = Cache<Redb, usize>;
type State = BTreeMap<Key, (Revision, Bytes)>;

const DEADLINE: Duration = Duration::from_secs(60);

async fn start(store: &Arc<Redb>) -> (Objects, DropGuard) {
    let stop = CancellationToken::new();
    let cache = Cache::start(store.clone(), |_, value| value.len(), stop.clone()).await.expect("start");
    (cache, stop.drop_guard())
}

async fn next(watcher: &mut Watcher<usize>) -> Arc<CacheEvent<usize>> {
    tokio::time::timeout(DEADLINE, watcher.next()).await.expect("an event comes").expect("event")
}

fn state(snapshot: &Snapshot<usize>) -> State {
    let entries = snapshot.iter().map(|object| {
        assert_eq!(object.meta, object.value.len(), "decoded from its own value");
        (object.key.clone(), (object.revision, object.value.clone()))
    });
    entries.collect()
}

fn replay(state: &mut State, event: &CacheEvent<usize>) {
    let before = state.get(&event.key);
    let previous = event.previous.as_ref().map(|object| (object.revision, object.value.clone()));
    assert_eq!(before, previous.as_ref(), "what was before {} at {}", event.key, event.revision);
    match &event.current {
        Some(object) => {
            assert_eq!((object.revision, object.meta), (event.revision, object.value.len()));
            state.insert(event.key.clone(), (object.revision, object.value.clone()));
        }
        None => drop(state.remove(&event.key)),
    }
}

/// Many writes at once, as few transactions: keys `PREFIX/0…`.
async fn fill(cache: &Objects, prefix: &str, count: usize) {
    let writes = (0..count).map(|nth| {
        let key = Key::from(format!("{prefix}/{nth}"));
        async move { cache.write(Write::create(key, Bytes::from_static(b"x"))).await.expect("write") }
    });
    futures::stream::iter(writes).buffer_unordered(512).for_each(async |_| {}).await;
}

/// Writes something to a random key until it is accepted, and checks that reads show it.
async fn write_somewhere(cache: &Objects) -> Revision {
    loop {
        let (group, name, turn): (u32, u32, u32) = {
            let mut rng = rand::rng();
            (rng.random_range(0..4), rng.random_range(0..10), rng.random_range(0..1000))
        };
        let key = Key::from(format!("kind{}/space{}/{name}", group / 2, group % 2));
        let value = Bytes::from("v".repeat(turn as usize));
        let write = match cache.get(key.as_str()) {
            None => Write::create(key.clone(), value),
            Some(object) if turn % 3 == 0 => Write::delete(key.clone(), object.revision),
            Some(object) => Write::update(key.clone(), object.revision, value),
        };
        match cache.write(write).await {
            Ok(revision) => {
                assert!(cache.revision() >= revision);
                assert!(
                    cache.get(key.as_str()).is_none_or(|object| object.revision >= revision),
                    "reads show the write"
                );
                return revision;
            }
            Err(Error::Conflict { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_watchers_see_the_same_changes_in_the_same_order() {
    const WRITERS: usize = 6;
    const WRITES: usize = 60;
    let folder = Folder::new();
    let store = Arc::new(folder.open().await);
    let (cache, _stop) = start(&store).await;
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let cache = cache.clone();
        writers.spawn(async move {
            for _ in 0..WRITES {
                write_somewhere(&cache).await;
            }
        });
    }
    // Watchers join while the writers write: each lists its prefix and watches from there, until the last write.
    let last = Revision((WRITERS * WRITES) as u64);
    let mut watchers = JoinSet::new();
    for nth in 0..24_u64 {
        let cache = cache.clone();
        let prefix = ["", "kind0/", "kind1/space1/", "kind1/space0/3", "kind"][nth as usize % 5];
        watchers.spawn(async move {
            cache.wait_for(Revision(nth * 12)).await.expect("wait");
            let snapshot = cache.snapshot(prefix, None).await.expect("snapshot");
            let mut state = state(&snapshot);
            let mut watcher = cache.watch(prefix, snapshot.revision()).await.expect("watch");
            let mut seen = Vec::new();
            while watcher.progress() < last {
                // Progress alone may reach the end, on a quiet prefix.
                let step = async {
                    tokio::select! {
                        event = watcher.next() => Some(event.expect("event")),
                        _ = cache.wait_for(last) => None,
                    }
                };
                let Some(event) = tokio::time::timeout(DEADLINE, step).await.expect("the watch goes on")
                else {
                    while let Some(event) = watcher.try_next() {
                        let event = event.expect("event");
                        replay(&mut state, &event);
                        seen.push(event);
                    }
                    continue;
                };
                assert!(event.key.as_str().starts_with(prefix));
                replay(&mut state, &event);
                seen.push(event);
            }
            (prefix, snapshot.revision(), state, seen)
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.expect("writer");
    }
    let mut shared: HashMap<Revision, Arc<CacheEvent<usize>>> = HashMap::new();
    while let Some(watcher) = watchers.join_next().await {
        let (prefix, from, replayed, seen) = watcher.expect("watcher");
        let now = cache.snapshot(prefix, None).await.expect("snapshot");
        assert_eq!(now.revision(), last, "each write has one revision");
        assert_eq!(replayed, state(&now), "{prefix:?} from {from}");
        assert!(seen.is_sorted_by(|one, next| one.revision < next.revision), "in order, none twice");
        if prefix.is_empty() {
            let told: Vec<u64> = seen.iter().map(|event| event.revision.0).collect();
            assert_eq!(told, (from.0 + 1..=last.0).collect::<Vec<_>>(), "no gap");
        }
        for event in seen {
            let known = shared.entry(event.revision).or_insert_with(|| event.clone());
            assert!(Arc::ptr_eq(known, &event), "watchers share one event");
        }
    }
    let kept = store.range("", Bound::Unbounded, 0, None).await.expect("range");
    let kept: State =
        kept.entries.into_iter().map(|entry| (entry.key, (entry.revision, entry.value))).collect();
    assert_eq!(kept, state(&cache.snapshot("", None).await.expect("snapshot")), "the cache is as the store");
}

#[tokio::test]
async fn past_snapshots_are_as_they_were_from_memory_and_from_the_store() {
    let folder = Folder::new();
    let store = Arc::new(folder.open().await);
    let (cache, _stop) = start(&store).await;
    let mut states = vec![(Revision(0), State::new())];
    for _ in 0..40 {
        let revision = write_somewhere(&cache).await;
        states.push((revision, state(&cache.snapshot("", None).await.expect("snapshot"))));
    }
    // Another cache on the same data knows no past of its own.
    let (later, _stop) = start(&store).await;
    for (revision, expected) in &states {
        for cache in [&cache, &later] {
            for prefix in ["", "kind1/", "kind0/space0/"] {
                let snapshot = cache.snapshot(prefix, Some(*revision)).await.expect("snapshot");
                let mut expected = expected.clone();
                expected.retain(|key, _| key.as_str().starts_with(prefix));
                assert_eq!((snapshot.revision(), state(&snapshot)), (*revision, expected), "{prefix}");
            }
        }
    }
    let (revision, all) = &states[30];
    let page = cache.snapshot("", Some(*revision)).await.expect("snapshot");
    for (nth, key) in all.keys().enumerate() {
        assert_eq!(page.remaining(key.as_str()), all.len() - 1 - nth);
        assert_eq!(page.after(key.as_str()).next().map(|object| &object.key), all.keys().nth(nth + 1));
        assert_eq!(page.get(key.as_str()).map(|object| object.revision), Some(all[key].0));
    }
    let narrow = cache.snapshot("kind1/", None).await.expect("snapshot");
    assert_eq!(narrow.after("a").count(), narrow.iter().count());
    assert_eq!(narrow.after("z").count(), 0);

    let newest = cache.revision();
    let future = cache.snapshot("", Some(Revision(newest.0 + 1))).await;
    assert!(matches!(future.err(), Some(Error::Future { .. })));
    store.compact(newest).await.expect("compact");
    let (fresh, _stop) = start(&store).await;
    let past = Revision(newest.0 - 1);
    assert!(matches!(fresh.snapshot("", Some(past)).await.err(), Some(Error::Compacted { .. })));
    assert!(matches!(fresh.watch("", past).await.err(), Some(Error::Compacted { .. })));
    assert!(fresh.watch("", newest).await.is_ok());
}

#[tokio::test]
async fn a_watch_goes_from_the_stores_history_over_to_memory() {
    let folder = Folder::new();
    let store = Arc::new(folder.open().await);
    let (first, stop) = start(&store).await;
    let mut states = vec![(Revision(0), State::new())];
    for _ in 0..30 {
        let revision = write_somewhere(&first).await;
        states.push((revision, state(&first.snapshot("", None).await.expect("snapshot"))));
    }
    drop(stop);
    let (cache, _stop) = start(&store).await;
    for (from, expected) in &states {
        for prefix in ["", "kind1/", "quiet/"] {
            let mut state = expected.clone();
            state.retain(|key, _| key.as_str().starts_with(prefix));
            let mut watcher = cache.watch(prefix, *from).await.expect("watch");
            // A marker in the ring: the last that this watcher has to tell.
            let marker =
                cache.write(Write::create(format!("{prefix}marker/{from}").into(), Bytes::new())).await;
            let marker = marker.expect("write");
            loop {
                let event = next(&mut watcher).await;
                assert!(event.revision <= marker);
                replay(&mut state, &event);
                if event.revision == marker {
                    break;
                }
            }
            let entries = self::state(&cache.snapshot(prefix, None).await.expect("snapshot"));
            assert_eq!(entries, state, "{prefix:?} from {from}");
            // Other prefixes' changes move it on all the same.
            let elsewhere =
                cache.write(Write::create(format!("elsewhere/{marker}").into(), Bytes::new())).await;
            if !prefix.is_empty() {
                assert_eq!(watcher.progress(), elsewhere.expect("write"));
                assert!(watcher.try_next().is_none());
            }
        }
    }
}

#[tokio::test]
async fn a_slow_watcher_is_ended_and_a_quiet_one_is_not() {
    let folder = Folder::new();
    let store = Arc::new(folder.open().await);
    let (cache, _stop) = start(&store).await;
    let mut slow = cache.watch("busy/", Revision(0)).await.expect("watch");
    let mut quiet = cache.watch("quiet/", Revision(0)).await.expect("watch");
    fill(&cache, "busy", 1).await;
    let first = next(&mut slow).await.revision;
    fill(&cache, "busy/more", 10_500).await; // more than the ring holds
    let told = cache.write(Write::create("quiet/1".into(), Bytes::new())).await.expect("write");
    assert_eq!(next(&mut quiet).await.revision, told);
    let at = match slow.next().await {
        Err(Error::Lagged { at }) => at,
        other => panic!("{:?}", other.map(|event| event.revision)),
    };
    assert_eq!(at, first);
    assert_eq!(slow.progress(), first, "nothing after it was delivered");
    // From where it was it can go on: through the store's history into the ring.
    let mut again = cache.watch("", at).await.expect("watch");
    for revision in at.0 + 1..=told.0 {
        assert_eq!(next(&mut again).await.revision, Revision(revision));
    }
    assert!(again.try_next().is_none());
}

#[tokio::test]
async fn what_waits_ends_when_the_cache_stops() {
    let folder = Folder::new();
    let store = Arc::new(folder.open().await);
    let (cache, stop) = start(&store).await;
    let mut watcher = cache.watch("a/", Revision(0)).await.expect("watch");
    let written = cache.write(Write::create("a/1".into(), Bytes::new())).await.expect("write");
    assert_eq!(cache.sync().await.expect("sync"), written);
    let waiting = tokio::spawn({
        let cache = cache.clone();
        async move { cache.wait_for(Revision(100)).await }
    });
    drop(stop);
    assert!(matches!(waiting.await.expect("task"), Err(Error::Closed)));
    // What was there before the end may be told or not; then the end is.
    let ended = loop {
        if let Err(error) = tokio::time::timeout(DEADLINE, watcher.next()).await.expect("it ends") {
            break error;
        }
    };
    assert!(matches!(ended, Error::Closed));
}

#[tokio::test]
async fn the_cache_follows_a_store_whose_disk_fails() {
    let sound = FaultyDisk::sound();
    let same = sound.clone();
    const QUIET: Duration = Duration::from_secs(3600);
    Redb::open_on(QUIET, move || Ok(same.clone())).await.expect("a new store").close().await;
    for nth in (0..).step_by(9) {
        let disk = sound.failing(Fault::Call(nth));
        let same = disk.clone();
        let Ok(store) = Redb::open_on(QUIET, move || Ok(same.clone())).await else { continue };
        let (cache, _stop) = start(&Arc::new(store)).await;
        let mut watcher = cache.watch("", Revision(0)).await.expect("watch");
        for turn in 0..12 {
            // After an error a create is safe to repeat: it conflicts if the first was kept.
            let write = Write::create(format!("a/{turn}").into(), Bytes::from("v".repeat(5000)));
            match cache.write(write.clone()).await {
                Ok(_) => {}
                Err(Error::Engine { .. } | Error::Uncertain { .. }) => match cache.write(write).await {
                    Ok(_) | Err(Error::Conflict { .. }) => {}
                    Err(error) => panic!("call {nth}: {error}"),
                },
                Err(error) => panic!("call {nth}: {error}"),
            }
        }
        let mut seen = State::new();
        while seen.len() < 12 {
            replay(&mut seen, &*next(&mut watcher).await);
        }
        assert_eq!(seen, state(&cache.snapshot("", None).await.expect("snapshot")), "call {nth}");
        if !disk.fired() {
            break;
        }
    }
}

/// A store whose first watch breaks after two events, and whose history is gone at the second.
struct Torn(Redb, AtomicU32);

impl Store for Torn {
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
        let events = self.0.watch(prefix, from).await?;
        match self.1.fetch_add(1, Ordering::SeqCst) {
            0 => {
                let broken = Error::Engine { action: "go on", cause: Arc::new(std::fmt::Error) };
                Ok(events.take(2).chain(futures::stream::once(async { Err(broken) })).boxed())
            }
            1 => {
                // A change that no watch tells.
                self.0.write(Write::create("a/unseen".into(), Bytes::new())).await?;
                Err(Error::Compacted { asked: from, oldest: self.0.revision().await? })
            }
            _ => Ok(events),
        }
    }
    async fn revision(&self) -> Result<Revision, Error> {
        self.0.revision().await
    }
    async fn compact(&self, before: Revision) -> Result<(), Error> {
        self.0.compact(before).await
    }
}

#[tokio::test]
async fn a_cache_that_lost_its_place_loads_again_and_ends_its_watchers() {
    let folder = Folder::new();
    let store = Arc::new(Torn(folder.open().await, AtomicU32::new(0)));
    let stop = CancellationToken::new();
    let cache = Cache::start(store, |_, value| value.len(), stop.clone()).await.expect("start");
    let _stop = stop.drop_guard();
    let mut watcher = cache.watch("a/", Revision(0)).await.expect("watch");
    for turn in 0..4 {
        let write = Write::create(format!("a/{turn}").into(), Bytes::from_static(b"v"));
        let revision = cache.write(write).await.expect("write");
        assert!(cache.revision() >= revision, "reads show it, whatever became of the watch");
    }
    let keys: Vec<Key> =
        cache.snapshot("", None).await.expect("snapshot").iter().map(|object| object.key.clone()).collect();
    assert_eq!(keys, ["a/0", "a/1", "a/2", "a/3", "a/unseen"].map(Key::from));
    // The watcher was not told of everything, so it is ended where it was.
    assert!(matches!(watcher.next().await, Err(Error::Lagged { at: Revision(0) })));
    drop(watcher);
    let mut again = cache.watch("a/", cache.revision()).await.expect("watch");
    let last = cache.write(Write::create("a/last".into(), Bytes::new())).await.expect("write");
    assert_eq!(next(&mut again).await.revision, last);
}
