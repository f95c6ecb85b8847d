//! How long a write takes; run by hand, on the disk that holds the temporary folder:
//! `cargo test -p wharf-store --test store latency -- --ignored --nocapture --test-threads 1`.

use std::time::{Duration, Instant};

use bytes::Bytes;
use wharf_store::testing::Place;
use wharf_store::{Redb, Revision, Store, Write};

use super::Folder;

/// About a pod's size in JSON.
const VALUE: usize = 3000;
const KEYS: usize = 200;

/// One writer, each write after the answer to the one before, `pause` between them: creates of few keys,
/// then their updates.
async fn write(store: &Redb, writes: usize, pause: Duration) -> Vec<Duration> {
    let run = store.revision().await.expect("revision");
    let mut at: Vec<Option<Revision>> = vec![None; KEYS];
    let mut took = Vec::new();
    for turn in 0..writes {
        let key = format!("core/pods/{run}/{}", turn % KEYS).into();
        let value = Bytes::from(vec![u8::try_from(turn % 251).expect("small"); VALUE]);
        let write = match at[turn % KEYS] {
            Some(at) => Write::update(key, at, value),
            None => Write::create(key, value),
        };
        let began = Instant::now();
        at[turn % KEYS] = Some(store.write(write).await.expect("write"));
        took.push(began.elapsed());
        tokio::time::sleep(pause).await;
    }
    took
}

fn tell(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |part: usize| took[(took.len() * part / 1000).min(took.len() - 1)];
    println!("{what}: p50 {:?}, p90 {:?}, p99 {:?}, max {:?}", at(500), at(900), at(990), at(1000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "a measurement"]
async fn latency_of_one_writer() {
    let folder = Folder::new();
    let store = folder.open().await;
    tell("new file, without pause", write(&store, 1000, Duration::ZERO).await);
    tell("then, without pause", write(&store, 1000, Duration::ZERO).await);
    tell("then, 20 ms pause", write(&store, 100, Duration::from_millis(20)).await);
    tell("then, 150 ms pause", write(&store, 40, Duration::from_millis(150)).await);
    store.close().await;
}

/// The time that opening takes after a crash, before and after the file was made quick to open.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "a measurement"]
async fn opening_after_a_crash() {
    for writes in [1_000, 10_000, 50_000] {
        let folder = Folder::new();
        let store = folder.open().await;
        let values = (0..writes).map(|turn| {
            let value = Bytes::from(vec![u8::try_from(turn % 251).expect("small"); VALUE]);
            store.write(Write::create(format!("core/pods/{turn}").into(), value))
        });
        for written in futures::future::join_all(values).await {
            written.expect("write");
        }
        let crashed = Folder::new();
        for state in ["amid writes", "at rest"] {
            std::fs::copy(folder.path(), crashed.path()).expect("copy");
            let bytes = std::fs::metadata(crashed.path()).expect("metadata").len();
            let began = Instant::now();
            let store = crashed.open().await;
            println!("{} MiB, crash {state}: opened in {:?}", bytes >> 20, began.elapsed());
            store.close().await;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        store.close().await;
    }
}
