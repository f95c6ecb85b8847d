//! `kill -9` at random moments, on a real file.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use rand::RngExt;
use wharf_store::testing::Place;
use wharf_store::{Error, Key, Redb, Revision, Store, Write};

use super::Folder;

const ROUNDS: u32 = 8;
const FILE: &str = "WHARF_STORE_TEST_FILE";
const ROUND: &str = "WHARF_STORE_TEST_ROUND";

/// Not a test of its own: the process that is killed. Writes until then, and prints what is acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the test below"]
async fn child() {
    let (Ok(file), Ok(round)) = (std::env::var(FILE), std::env::var(ROUND)) else { return };
    let store = Arc::new(Redb::open(file).await.expect("open"));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let (store, round) = (store.clone(), round.clone());
        writers.spawn(async move {
            // Bounded, in case the parent dies without killing.
            for turn in 0..5_000 {
                let key = format!("round/{round}/{writer}/{turn}");
                let value = Bytes::from(key.repeat(20));
                let revision = store.write(Write::create(key.as_str().into(), value)).await.expect("write");
                writeln!(std::io::stdout(), "acknowledged {revision} {key}").expect("stdout");
                if writer == 0 && turn % 16 == 15 {
                    store.compact(Revision(revision.0 / 2)).await.expect("compact");
                }
            }
        });
    }
    writers.join_all().await;
}

#[tokio::test]
async fn acknowledged_writes_survive_kill_9() {
    let folder = Folder::new();
    let mut acknowledged: BTreeMap<Key, Revision> = BTreeMap::new();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["kill::child", "--exact", "--ignored", "--nocapture"])
            .env(FILE, folder.path())
            .env(ROUND, round.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("spawn");
        let lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        let after: usize = rand::rng().random_range(1..400);
        let moment = Duration::from_micros(rand::rng().random_range(0..3000));
        let mut here = 0;
        // After the kill the pipe still has what was acknowledged before.
        for line in lines {
            let line = line.expect("line");
            let mut words = line.split(' ').skip_while(|word| !word.ends_with("acknowledged")).skip(1);
            let (Some(revision), Some(key)) = (words.next(), words.next()) else { continue };
            let known = acknowledged.insert(key.into(), Revision(revision.parse().expect("a revision")));
            assert_eq!(known, None, "{key} was made once");
            here += 1;
            if here == after {
                std::thread::sleep(moment); // not to wait for something: the moment is to be any
                child.kill().expect("kill -9");
            }
        }
        let status = child.wait().expect("wait");
        assert!(here >= after, "round {round}: the child ended by itself ({status}) after {here} of {after}");

        let store = folder.open().await;
        for (key, revision) in &acknowledged {
            let entry =
                store.get(key).await.expect("get").unwrap_or_else(|| panic!("round {round}: {key} is lost"));
            assert_eq!((entry.revision, &entry.value[..]), (*revision, key.as_str().repeat(20).as_bytes()));
        }
        let newest = store.revision().await.expect("revision");
        let oldest = match store.watch("", Revision(0)).await {
            Ok(_) => Revision(0),
            Err(Error::Compacted { oldest, .. }) => oldest,
            Err(other) => panic!("{other}"),
        };
        let mut events = store.watch("", oldest).await.expect("watch");
        for revision in oldest.0 + 1..=newest.0 {
            let event = events.next().await.expect("an event").expect("event");
            assert_eq!(event.revision, Revision(revision), "round {round}: the order is unbroken");
        }
        store.close().await;
    }
}
