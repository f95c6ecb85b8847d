//! Concurrent clients of a server that is killed again and again: one order for each key explains every answer, no
//! acknowledged write is lost, and watches tell what happened and nothing else.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;
use tokio::task::JoinSet;
use wharf_store::testing::Members;
use wharf_tests::history::{Answer, Ask, Operation, Seen, check_watches, linearizable};
use wharf_tests::{Server, eventually_async};

/// Clients, keys and operations of each client: some 10 s of work with the kills between.
const CLIENTS: u64 = 5;
const KEYS: u64 = 4;
const OPERATIONS: usize = 250;
const KILLS: usize = 3;
/// Done between two kills.
const BETWEEN: u64 = CLIENTS * OPERATIONS as u64 / (KILLS as u64 + 1);
/// For one request of a server that is there.
const LIMIT: Duration = Duration::from_secs(10);
/// The object that is written when all is done, for watches to end at.
const LAST: &str = "last";

/// What all clients share.
struct Work {
    maps: Api<ConfigMap>,
    begin: Instant,
    number: AtomicU64,
    /// Operations that had an answer.
    done: AtomicU64,
    history: Mutex<BTreeMap<String, Vec<Operation>>>,
    /// Writes that were acknowledged with their revision.
    written: Mutex<Vec<Seen>>,
}

fn number(map: &ConfigMap) -> u64 {
    map.data
        .as_ref()
        .and_then(|data| data.get("number"))
        .and_then(|text| text.parse().ok())
        .expect("a number")
}

fn revision(map: &ConfigMap) -> u64 {
    let text = map.metadata.resource_version.as_deref();
    text.and_then(|text| text.parse().ok()).expect("a resourceVersion")
}

fn config_map(name: &str, number: u64, version: Option<&str>) -> ConfigMap {
    let metadata = json!({"name": name, "resourceVersion": version});
    serde_json::from_value(json!({"metadata": metadata, "data": {"number": number.to_string()}}))
        .expect("a map")
}

/// The same numbers in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        // Marsaglia's xorshift64.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

impl Work {
    fn now(&self) -> u64 {
        self.begin.elapsed().as_nanos().try_into().expect("a short time")
    }

    /// Asks, and notes what was answered.
    async fn ask(&self, name: &str, ask: Ask, version: Option<&str>) -> Result<Option<ConfigMap>, ()> {
        let from = self.now();
        let future = async {
            let params = PostParams::default();
            match ask {
                Ask::Get => self.maps.get_opt(name).await,
                Ask::Create(number) => {
                    self.maps.create(&params, &config_map(name, number, None)).await.map(Some)
                }
                Ask::Replace(_, number) => {
                    self.maps.replace(name, &params, &config_map(name, number, version)).await.map(Some)
                }
                Ask::Delete => self.maps.delete(name, &DeleteParams::default()).await.map(|_| None),
            }
        };
        let result = tokio::time::timeout(LIMIT, future).await;
        let to = self.now();
        let (answer, found) = match result {
            Ok(Ok(found)) if ask == Ask::Get => (Answer::Found(found.as_ref().map(number)), Ok(found)),
            Ok(Ok(found)) => {
                if let (Some(map), Ask::Create(number) | Ask::Replace(_, number)) = (&found, ask) {
                    let entry = (revision(map), name.to_owned(), Some(number));
                    self.written.lock().expect("no panics").push(entry);
                }
                (Answer::Done, Ok(found))
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => (Answer::Conflict, Ok(None)),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => (Answer::Missing, Ok(None)),
            Ok(Err(kube::Error::Api(status))) if status.code < 500 && status.code != 429 => {
                panic!("{ask:?} was answered: {status:?}")
            }
            _ => (Answer::Unknown, Err(())),
        };
        // A read that failed says nothing.
        if !(ask == Ask::Get && answer == Answer::Unknown) {
            let operation = Operation { from, to, ask, answer };
            self.history.lock().expect("no panics").entry(name.to_owned()).or_default().push(operation);
        }
        if found.is_ok() {
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        found
    }

    async fn answers(&self) -> bool {
        matches!(tokio::time::timeout(LIMIT, self.maps.list(&ListParams::default())).await, Ok(Ok(_)))
    }

    async fn client(self: Arc<Self>, seed: u64) {
        let mut dice = Dice(seed);
        for _ in 0..OPERATIONS {
            let name = format!("key-{}", dice.roll(KEYS));
            let fresh = || self.number.fetch_add(1, Ordering::Relaxed);
            let outcome = match dice.roll(8) {
                0 | 1 => self.ask(&name, Ask::Get, None).await,
                2 => self.ask(&name, Ask::Create(fresh()), None).await,
                3 => self.ask(&name, Ask::Delete, None).await,
                _ => match self.ask(&name, Ask::Get, None).await {
                    Ok(Some(held)) => {
                        let version = held.metadata.resource_version.as_deref();
                        self.ask(&name, Ask::Replace(number(&held), fresh()), version).await
                    }
                    Ok(None) => self.ask(&name, Ask::Create(fresh()), None).await,
                    Err(()) => Err(()),
                },
            };
            // A server that is not there gets no further requests: each would be one more unknown.
            if outcome.is_err() {
                let until = Instant::now() + 4 * LIMIT;
                while !self.answers().await {
                    assert!(Instant::now() < until, "the server is not back");
                    tokio::time::sleep(Duration::from_millis(20)).await; // nobody says when it is
                }
            }
        }
    }
}

/// Watches from `start` until the last object comes, going on from the last event wherever it is interrupted.
async fn watch(maps: Api<ConfigMap>, start: u64, over: Arc<AtomicBool>) -> Vec<Seen> {
    let mut seen: Vec<Seen> = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let from = seen.last().map_or(start, |(revision, ..)| *revision).to_string();
        let Ok(stream) = maps.watch(&WatchParams::default().timeout(60), &from).await else {
            tokio::time::sleep(Duration::from_millis(20)).await; // nobody says when a server is back
            continue;
        };
        let mut stream = stream.boxed();
        while let Ok(Some(event)) = stream.try_next().await {
            let (map, deleted) = match event {
                WatchEvent::Added(map) | WatchEvent::Modified(map) => (map, false),
                WatchEvent::Deleted(map) => (map, true),
                WatchEvent::Bookmark(_) => continue,
                WatchEvent::Error(status) => panic!("a watch from {from} was told: {status:?}"),
            };
            let name = map.metadata.name.clone().expect("a name");
            if !name.starts_with("key-") && name != LAST {
                continue; // a controller's
            }
            if name == LAST {
                return seen;
            }
            seen.push((revision(&map), name, (!deleted).then(|| number(&map))));
        }
    }
    panic!("the watch did not see the last object; it saw {} events", seen.len());
}

/// Plays with a server over `store`; `fault` is what else fails at each kill of the server.
async fn play(root: &Path, store: &str, mut fault: impl FnMut(usize)) {
    let mut server = Server::start(root, &["--store", store]);
    let client = server.client().await;
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    eventually_async("the namespace is there", async || {
        maps.list(&ListParams::default()).await.map_err(|error| error.to_string())
    })
    .await;
    let listed = maps.list(&ListParams::default()).await.expect("a list");
    let start: u64 = listed.metadata.resource_version.expect("a resourceVersion").parse().expect("a number");
    let work = Arc::new(Work {
        maps: maps.clone(),
        begin: Instant::now(),
        number: AtomicU64::new(1),
        done: AtomicU64::default(),
        history: Mutex::default(),
        written: Mutex::default(),
    });
    let over = Arc::new(AtomicBool::new(false));
    let watchers: Vec<_> = (0..2).map(|_| tokio::spawn(watch(maps.clone(), start, over.clone()))).collect();
    let mut clients = JoinSet::new();
    for nth in 1..=CLIENTS {
        clients.spawn(work.clone().client(nth.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    }
    for kill in 0..KILLS {
        eventually_async("clients get on", async || {
            let done = work.done.load(Ordering::Relaxed);
            if done >= (kill as u64 + 1) * BETWEEN { Ok(()) } else { Err(format!("{done} done")) }
        })
        .await;
        server.kill();
        fault(kill);
        server.revive();
    }
    while let Some(ended) = clients.join_next().await {
        ended.expect("no client panics");
    }
    // Every key is read once more, and one object more says to watches that this is the end.
    for key in 0..KEYS {
        work.ask(&format!("key-{key}"), Ask::Get, None).await.expect("the server is there");
    }
    let last = config_map(LAST, 0, None);
    maps.create(&PostParams::default(), &last).await.expect("the last object");
    let mut seen = Vec::new();
    for watcher in watchers {
        let ended = tokio::time::timeout(4 * LIMIT, watcher).await;
        over.store(ended.is_err(), Ordering::Relaxed);
        seen.push(ended.expect("the watch ends").expect("the watch is sound"));
    }

    let history = work.history.lock().expect("no panics");
    let unknown = history.values().flatten().filter(|one| one.answer == Answer::Unknown).count();
    let all: usize = history.values().map(Vec::len).sum();
    println!("{all} operations, {unknown} of unknown outcome, {} events", seen[0].len());
    assert!(all > 1000 && unknown < all / 10, "the clients were at work");
    for (name, operations) in history.iter() {
        assert!(linearizable(operations), "no order explains what happened to {name}: {operations:#?}");
    }
    let written = work.written.lock().expect("no panics");
    if let Err(what) = check_watches(&seen, &history, &written) {
        panic!("{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_concurrent_clients_see_of_a_killed_server_has_one_order() {
    let folder = tempfile::tempdir().expect("a folder");
    play(folder.path(), "redb", |_| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_concurrent_clients_see_over_an_etcd_that_loses_members_has_one_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let members = Members::start(folder.path(), 3);
    let store = format!("etcd://{}/linearizable", members.config().members.join(","));
    // The one that was killed before is back when the next one goes.
    play(folder.path(), &store, |nth| {
        if nth > 0 {
            members.revive(nth - 1);
        }
        members.kill(nth);
    })
    .await;
}
