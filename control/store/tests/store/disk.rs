//! Sweeps: each disk call of some work fails once, or is the moment of a power cut. All are made twice: with
//! ordinary commits only, and with one after each that makes the file quick to open.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use wharf_store::testing::{Fault, FaultyDisk};
use wharf_store::{Error, Key, Redb, Revision, Store, Write};

/// What is known of a key: the last state acknowledged, and one that may have followed.
#[derive(Default, Debug)]
struct Known {
    sure: Option<(Revision, Bytes)>,
    maybe: Option<Option<Bytes>>,
}

/// Work of every kind on few keys; goes on after errors. Tells what it knows, and how many steps failed.
async fn work(store: &Redb) -> (BTreeMap<Key, Known>, u32) {
    let mut known: BTreeMap<Key, Known> = BTreeMap::new();
    let mut failed = 0;
    for turn in 0..14_u64 {
        let key = Key::from(format!("key/{}", turn % 4));
        let state = known.entry(key.clone()).or_default();
        if state.maybe.is_some() {
            continue; // what it is at is not known
        }
        // Past redb's page size, so that the file grows.
        let value = Bytes::from(format!("{turn} ").repeat(3000));
        let value = if turn % 5 == 4 { None } else { Some(value) };
        let write = match (&state.sure, &value) {
            (Some((at, _)), _) => Write { value: value.clone(), ..Write::delete(key.clone(), *at) },
            (None, Some(value)) => Write::create(key.clone(), value.clone()),
            (None, None) => continue,
        };
        match store.write(write).await {
            Ok(revision) => state.sure = value.map(|value| (revision, value)),
            Err(Error::Uncertain { .. }) => (state.maybe, failed) = (Some(value), failed + 1),
            Err(Error::Engine { .. }) => failed += 1,
            Err(other) => panic!("turn {turn}: {other}"),
        }
        if turn == 9 {
            let newest = store.revision().await.expect("revision");
            if store.compact(Revision(newest.0 / 2)).await.is_err() {
                failed += 1;
            }
        }
    }
    (known, failed)
}

/// Checks the store against what is known, and its history against its present.
async fn check(store: &Redb, known: &BTreeMap<Key, Known>, what: &str) {
    for (key, known) in known {
        let entry = store.get(key).await.expect("get");
        let found = entry.as_ref().map(|entry| &entry.value);
        let as_sure = found == known.sure.as_ref().map(|(_, value)| value);
        let as_maybe = known.maybe.as_ref().is_some_and(|maybe| found == maybe.as_ref());
        assert!(as_sure || as_maybe, "{what}: {key} is at {:?}", entry.map(|entry| entry.revision));
    }
    let newest = store.revision().await.expect("revision");
    let oldest = match store.watch("", Revision(0)).await {
        Ok(_) => Revision(0),
        Err(Error::Compacted { oldest, .. }) => oldest,
        Err(other) => panic!("{what}: {other}"),
    };
    let then = store.range("", Bound::Unbounded, 0, Some(oldest)).await.expect("range");
    let mut state: BTreeMap<Key, Bytes> =
        then.entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
    let mut events = store.watch("", oldest).await.expect("watch");
    for revision in oldest.0 + 1..=newest.0 {
        let event = events.next().await.expect("an event").expect("event");
        assert_eq!(event.revision, Revision(revision), "{what}: no gap");
        match event.value {
            Some(value) => drop(state.insert(event.key, value)),
            None => drop(state.remove(&event.key)),
        }
    }
    let now = store.range("", Bound::Unbounded, 0, None).await.expect("range");
    let now: BTreeMap<Key, Bytes> = now.entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
    assert_eq!(state, now, "{what}: history leads to the present");
}

/// A disk with an empty store on it. (Making a store is not swept: its file gets its name when it is whole.)
async fn formatted() -> FaultyDisk {
    let disk = FaultyDisk::sound();
    open(&disk, NEVER).await.expect("a new store").close().await;
    disk
}

/// No test takes as long.
const NEVER: Duration = Duration::from_secs(3600);

async fn open(disk: &FaultyDisk, quiet: Duration) -> Result<Redb, Error> {
    let disk = disk.clone();
    Redb::open_on(quiet, move || Ok(disk.clone())).await
}

#[tokio::test]
async fn acknowledged_writes_survive_whichever_disk_call_fails() {
    for quiet in [NEVER, Duration::ZERO] {
        fail_each_call(quiet).await;
    }
}

async fn fail_each_call(quiet: Duration) {
    let formatted = formatted().await;
    for nth in 0.. {
        let disk = formatted.failing(Fault::Call(nth));
        let store = match open(&disk, quiet).await {
            Ok(store) => store,
            Err(_) => open(&disk, quiet).await.expect("the second opening"),
        };
        let (known, failed) = work(&store).await;
        assert!(failed <= 1, "call {nth} failed {failed} steps: the engine goes on");
        check(&store, &known, &format!("after call {nth} failed")).await;
        store.close().await;
        let fired = disk.fired();
        let store = open(&disk.after_power_cut(), quiet).await.expect("open again");
        check(&store, &known, &format!("reopened after call {nth} failed")).await;
        store.close().await;
        if !fired {
            assert!(nth > 50, "the sweep was a sweep");
            break; // the work makes fewer calls than this: all were swept
        }
    }
}

#[tokio::test]
async fn acknowledged_writes_survive_a_power_cut_at_any_disk_call() {
    for quiet in [NEVER, Duration::ZERO] {
        cut_at_each_call(quiet).await;
    }
}

async fn cut_at_each_call(quiet: Duration) {
    let formatted = formatted().await;
    for nth in 0.. {
        let disk = formatted.failing(Fault::PowerCut(nth));
        let mut known = BTreeMap::new();
        if let Ok(store) = open(&disk, quiet).await {
            known = work(&store).await.0;
            store.close().await;
        }
        let fired = disk.fired();
        let store = open(&disk.after_power_cut(), quiet).await.expect("open after the power cut");
        check(&store, &known, &format!("power cut at call {nth}")).await;
        let (_, failed) = work_on(&store).await;
        assert_eq!(failed, 0);
        store.close().await;
        if !fired {
            break;
        }
    }
}

/// The store can be written after what happened to it.
async fn work_on(store: &Redb) -> (Revision, u32) {
    match store.write(Write::create("after".into(), Bytes::new())).await {
        Ok(revision) => (revision, 0),
        Err(_) => (Revision(0), 1),
    }
}

/// Whether a crash now leaves a file that redb can use without reading it as a whole.
fn is_quick_to_open(disk: &FaultyDisk) -> bool {
    let mut builder = redb::Builder::new();
    builder.set_repair_callback(redb::RepairSession::abort);
    match builder.create_with_backend(disk.failing(Fault::Never)) {
        Ok(_) => true,
        Err(redb::DatabaseError::RepairAborted) => false,
        Err(other) => panic!("after a crash: {other}"),
    }
}

async fn becomes_quick_to_open(disk: &FaultyDisk) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_quick_to_open(disk) {
        assert!(Instant::now() < deadline, "a crash would still have the file read as a whole");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_store_at_rest_opens_at_once_after_a_crash_and_leaves_the_disk_alone() {
    const QUIET: Duration = Duration::from_millis(100);
    let busy = FaultyDisk::sound();
    let store = open(&busy, NEVER).await.expect("a new store");
    work(&store).await;
    let disk = busy.failing(Fault::Never);
    assert!(!is_quick_to_open(&disk), "a busy store does not pay for it");
    store.close().await;

    // Also if nothing is written after the crash: the next one finds the file in order.
    let store = open(&disk, QUIET).await.expect("open after the crash");
    becomes_quick_to_open(&disk).await;
    assert_eq!(work_on(&store).await.1, 0);
    becomes_quick_to_open(&disk).await;
    let calls = disk.calls();
    tokio::time::sleep(QUIET * 3).await; // not to wait for something: for nothing
    assert_eq!(disk.calls(), calls);
    store.close().await;
}
