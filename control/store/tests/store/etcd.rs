//! The engine over etcd, on members of the tests' own.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use wharf_store::testing::{Files, Members, Place, contract};
use wharf_store::{Cache, Error, Etcd, EtcdConfig, EtcdTls, EtcdUser, Event, Key, Revision, Store, Write};

/// Etcd is killed and started again at each so manieth restart of the engine.
const ETCD_RESTARTS: usize = 16;

struct Single {
    members: Members,
    restarts: AtomicUsize,
    _folder: TempDir,
}

impl Single {
    fn new() -> Self {
        let (members, folder) = start(1);
        Self { members, restarts: AtomicUsize::new(0), _folder: folder }
    }
}

impl Place for Single {
    type Engine = Etcd;

    async fn open(&self) -> Etcd {
        self.members.engine().await
    }

    async fn close(&self, engine: Etcd) {
        engine.close().await;
        if self.restarts.fetch_add(1, Ordering::Relaxed) % ETCD_RESTARTS == ETCD_RESTARTS - 1 {
            self.members.kill(0);
            self.members.revive(0);
        }
    }
}

fn start(count: usize) -> (Members, TempDir) {
    let folder = TempDir::new().expect("a folder");
    (Members::start(folder.path(), count), folder)
}

fn text(value: &str) -> Bytes {
    Bytes::copy_from_slice(value.as_bytes())
}

#[tokio::test]
async fn etcd_keeps_the_contract() {
    contract(Single::new).await;
}

/// Writes, reads, a watch, compaction; then etcd is started again and knows nobody whom it let in before.
async fn serves(members: &Members) {
    let engine = members.engine().await;
    let mut events = engine.watch("a", Revision(0)).await.expect("watch");
    let first = engine.write(Write::create("a".into(), text("1"))).await.expect("write");
    assert_eq!(events.next().await.expect("an event").expect("event").revision, first);
    members.kill(0);
    members.revive(0);
    let mut events = engine.watch("a", first).await.expect("watch");
    let second = engine.write(Write::update("a".into(), first, text("2"))).await.expect("write");
    assert_eq!(events.next().await.expect("an event").expect("event").revision, second);
    engine.compact(second).await.expect("compact");
    let page = engine.range("", Bound::Unbounded, 0, None).await.expect("range");
    assert_eq!((page.entries.len(), page.revision), (1, second));
}

/// Why the store at `config` cannot be opened: within its patience where another member might do it.
async fn refusal(config: EtcdConfig) -> String {
    let Err(error) = Etcd::open(config).await else { panic!("it was opened") };
    let cause = std::error::Error::source(&error).expect("a cause");
    format!("{error}: {cause}")
}

#[tokio::test]
async fn members_that_speak_tls_serve_who_has_a_certificate_of_their_authority() {
    let folder = TempDir::new().expect("a folder");
    let members = Members::start_with_tls(folder.path(), 1);
    serves(&members).await;
    let with = |change: &dyn Fn(&mut EtcdTls)| {
        let mut config = members.config();
        change(config.tls.as_mut().expect("TLS"));
        refusal(config)
    };
    let strangers = TempDir::new().expect("a folder");
    let stranger = Files::make(strangers.path(), std::net::Ipv4Addr::LOCALHOST);
    let read = |file: &std::path::Path| std::fs::read(file).expect("a file");
    let (other_authority, no_certificate, not_theirs, no_tls) = tokio::join!(
        with(&|tls| tls.ca = read(&stranger.ca)),
        with(&|tls| tls.identity = None),
        with(&|tls| tls.identity = Some((read(&stranger.cert), read(&stranger.key)))),
        refusal(EtcdConfig { tls: None, ..members.config() }),
    );
    assert!(other_authority.contains("invalid peer certificate"), "{other_authority}");
    // Its alert may come later than the end of the connection, which is seen while it is made or afterwards.
    for ended in [no_certificate, not_theirs, no_tls] {
        assert!(ended.contains("transport error") || ended.contains("connection closed"), "{ended}");
    }
    let files = members.files().expect("TLS");
    let began = Instant::now();
    let not_a_pair = with(&|tls| tls.identity = Some((read(&files.cert), read(&stranger.key)))).await;
    assert!(not_a_pair.contains("keys may not be consistent"), "{not_a_pair}");
    assert!(began.elapsed() < Duration::from_secs(5), "no other member would change that");
}

#[tokio::test]
async fn members_that_ask_for_a_user_serve_who_may_use_the_stores_keys() {
    let (mut members, _folder) = start(1);
    members.ask_for_user().await;
    serves(&members).await;
    let user = members.config().user.expect("a user");
    let wrong = EtcdUser { password: "wrong".to_owned(), ..user.clone() };
    for (config, why) in [
        (
            EtcdConfig { user: None, ..members.config() },
            "the store could not open it: etcdserver: user name is empty",
        ),
        (
            EtcdConfig { user: Some(wrong), ..members.config() },
            "authentication failed, invalid user ID or password",
        ),
        (EtcdConfig { prefix: "other".to_owned(), ..members.config() }, "permission denied"),
    ] {
        let said = refusal(config).await;
        assert!(said.contains(why) && !said.contains(&user.password), "{said}");
    }
}

#[tokio::test]
async fn stores_with_other_prefixes_and_others_keys_do_not_disturb() {
    let (members, _folder) = start(1);
    let one = members.engine().await;
    let two = Etcd::open(wharf_store::EtcdConfig { prefix: "/other/".to_owned(), ..members.config() });
    let two = two.await.expect("open");
    let first = one.write(Write::create("a".into(), text("1"))).await.expect("write");
    for turn in 0..10 {
        two.write(Write::create(format!("b/{turn}").into(), text(""))).await.expect("write");
    }
    let newest = two.revision().await.expect("revision");
    two.compact(newest).await.expect("compact");
    // Etcd has forgotten all that was before; of `one` that is nothing.
    assert_eq!(one.revision().await.expect("revision"), first, "the other's writes do not count");
    let mut events = one.watch("", first).await.expect("the present is never compacted");
    let page = one.range("", Bound::Unbounded, 0, Some(first)).await.expect("the present is never compacted");
    assert_eq!((page.entries.len(), page.revision), (1, first));
    let second = one.write(Write::update("a".into(), first, text("2"))).await.expect("write");
    let event = events.next().await.expect("an event").expect("event");
    assert_eq!((event.revision, event.previous), (second, Some((first, text("1")))));
    let future = one.range("", Bound::Unbounded, 0, Some(Revision(second.0 + 1))).await;
    assert!(matches!(future, Err(Error::Future { newest, .. }) if newest == second), "{future:?}");
    assert_eq!(one.range("", Bound::Unbounded, 0, None).await.expect("range").entries.len(), 1);
}

#[tokio::test]
async fn a_range_of_many_entries_is_read_in_one_revision() {
    let (members, _folder) = start(1);
    let store = Arc::new(members.engine().await);
    let writes = (0..1203).map(|nth| {
        let store = store.clone();
        async move { store.write(Write::create(format!("a/{nth:05}").into(), text(""))).await.expect("write") }
    });
    let written: Vec<Revision> = futures::stream::iter(writes).buffer_unordered(64).collect().await;
    let newest = written.into_iter().max().expect("some");
    for (limit, count, remaining) in [(0, 1203, 0), (700, 700, 503), (1203, 1203, 0), (2000, 1203, 0)] {
        let page = store.range("a/", Bound::Unbounded, limit, None).await.expect("range");
        assert_eq!((page.entries.len(), page.remaining, page.revision), (count, remaining, newest));
        assert!(page.entries.is_sorted_by(|one, next| one.key < next.key));
    }
}

#[tokio::test]
async fn what_cannot_be_reached_is_said_with_its_reason() {
    let (members, _folder) = start(1);
    let engine = members.engine().await;
    members.kill(0);
    let error = engine.write(Write::create("a".into(), text(""))).await.expect_err("nobody is there");
    let certain = matches!(error, Error::Engine { action: "write; nothing was changed", .. });
    assert!(certain || matches!(error, Error::Uncertain { .. }), "{error}");
    // The first request may have met the connection in its death; this one finds nobody.
    let error = engine.write(Write::create("a".into(), text(""))).await.expect_err("nobody is there");
    assert!(matches!(error, Error::Engine { action: "write; nothing was changed", .. }), "{error:?}");
    members.revive(0);
    engine.write(Write::create("a".into(), text(""))).await.expect("it is there again");
}

#[tokio::test]
async fn two_caches_over_one_etcd_tell_one_order_and_see_each_others_writes() {
    let (members, _folder) = start(1);
    let stop = CancellationToken::new();
    let cache = async || {
        let store = Arc::new(members.engine().await);
        Cache::start(store, |_, _| (), stop.clone()).await.expect("start")
    };
    let caches = [cache().await, cache().await];
    let mut watchers = [
        caches[0].watch("a/", Revision(0)).await.expect("watch"),
        caches[1].watch("a/", Revision(0)).await.expect("watch"),
    ];
    for turn in 0..40_usize {
        let (here, there) = (&caches[turn % 2], &caches[(turn + 1) % 2]);
        let key = Key::from(format!("a/{}", turn % 3));
        let old = here.sync().await.map(|_| here.get(key.as_str())).expect("sync");
        let value = text(&turn.to_string());
        let write = match old {
            Some(old) => Write::update(key.clone(), old.revision, value.clone()),
            None => Write::create(key.clone(), value.clone()),
        };
        let revision = here.write(write).await.expect("write");
        assert_eq!(here.get(key.as_str()).expect("its own").revision, revision);
        there.sync().await.expect("sync");
        let seen = there.get(key.as_str()).expect("the other's");
        assert_eq!((seen.revision, &seen.value), (revision, &value), "a consistent read shows it");
    }
    for _ in 0..40 {
        let [one, two] = &mut watchers;
        let (one, two) = (one.next().await.expect("event"), two.next().await.expect("event"));
        assert_eq!((&one.key, one.revision), (&two.key, two.revision));
    }
    stop.cancel();
}

/// The events of the whole store, over however many watches that takes.
async fn follow(
    store: &Etcd,
    told: &mpsc::UnboundedSender<Event>,
    mut until: watch::Receiver<Option<Revision>>,
) {
    let mut from = Revision(0);
    let done = |from: Revision, until: Option<Revision>| until.is_some_and(|until| from >= until);
    while !done(from, *until.borrow()) {
        let Ok(mut events) = store.watch("", from).await else { continue };
        loop {
            let next = tokio::select! {
                next = events.next() => next,
                _ = until.changed() => None,
            };
            match next {
                Some(Ok(event)) => {
                    from = event.revision;
                    told.send(event).expect("the test reads");
                }
                Some(Err(_)) => break,
                None if done(from, *until.borrow()) => return,
                None => {}
            }
            if done(from, *until.borrow()) {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_and_no_watch_has_a_gap_when_members_die() {
    const WRITERS: usize = 4;
    let (members, _folder) = start(3);
    let store = Arc::new(members.engine().await);
    let stop = CancellationToken::new();
    let (progress, mut acknowledged) = mpsc::unbounded_channel();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        // One engine for each, as servers have, which may prefer different members.
        let store = members.engine().await;
        let (stop, progress) = (stop.clone(), progress.clone());
        writers.spawn(async move {
            let mut own = Vec::new();
            for turn in 0..5_000 {
                if stop.is_cancelled() {
                    break;
                }
                let key = Key::from(format!("{writer}/{turn}"));
                match store.write(Write::create(key.clone(), text(&key.0))).await {
                    Ok(revision) => {
                        own.push((key, revision));
                        let _ = progress.send(());
                    }
                    Err(Error::Uncertain { .. } | Error::Engine { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
                tokio::time::sleep(Duration::from_millis(2)).await; // bounds the load, waits for nothing
            }
            own
        });
    }
    let (told, mut events) = mpsc::unbounded_channel();
    let (end, until) = watch::channel(None);
    let follower = tokio::spawn({
        let store = store.clone();
        async move { follow(&store, &told, until).await }
    });
    let mut some_writes = async |count: usize| {
        for _ in 0..count {
            let one = tokio::time::timeout(Duration::from_secs(60), acknowledged.recv()).await;
            one.expect("writes go on").expect("writers live");
        }
    };
    some_writes(50).await;
    let leader = members.leader().await;
    for victim in [(leader + 1) % 3, leader] {
        members.kill(victim);
        some_writes(100).await; // the other two go on
        members.revive(victim);
        some_writes(50).await;
    }
    stop.cancel();
    let acknowledged: BTreeMap<Key, Revision> = writers.join_all().await.into_iter().flatten().collect();
    let newest = store.revision().await.expect("revision");
    end.send_replace(Some(newest));
    tokio::time::timeout(Duration::from_secs(60), follower)
        .await
        .expect("the watch goes on")
        .expect("follow");
    let mut told = BTreeMap::new();
    let mut last = Revision(0);
    while let Some(event) = events.recv().await {
        assert!(event.revision > last, "{} after {last}", event.revision);
        last = event.revision;
        assert_eq!(event.value.as_deref(), Some(event.key.as_str().as_bytes()));
        told.insert(event.key, event.revision);
    }
    assert_eq!(last, newest);
    for (key, revision) in &acknowledged {
        assert_eq!(told.get(key), Some(revision), "{key} was acknowledged at {revision}");
    }
    let page = store.range("", Bound::Unbounded, 0, None).await.expect("range");
    let present: BTreeMap<Key, Revision> =
        page.entries.into_iter().map(|entry| (entry.key, entry.revision)).collect();
    assert_eq!(present, told, "what is there was told, and nothing else");
}
