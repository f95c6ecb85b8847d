//! The contract of [`Store`], as cases. Each runs twice: once on one engine from beginning to end, once on
//! an engine that is closed and opened between any two steps.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};

use crate::{Entry, Error, Event, Expect, Key, Page, Revision, Store, Write};

/// Where the data of one store lies while its engine is opened and closed.
pub trait Place: Send + Sync {
    type Engine: Store;

    /// Opens the engine on the data that is there.
    fn open(&self) -> impl Future<Output = Self::Engine> + Send;

    /// Ends the engine, so that the data can be opened again.
    fn close(&self, engine: Self::Engine) -> impl Future<Output = ()> + Send;
}

/// How long a step may take before the case has failed.
const DEADLINE: Duration = Duration::from_secs(60);

/// Checks that the engine keeps every guarantee of [`Store`]; `new` makes an empty place for each case.
///
/// # Panics
/// If it does not.
pub async fn contract<P: Place>(new: impl Fn() -> P) {
    macro_rules! cases {
        ($($case:ident),* $(,)?) => {
            for restarts in [false, true] {
                $(
                    let run = Run { place: new(), engine: None, restarts };
                    let case = tokio::time::timeout(DEADLINE, $case(run));
                    assert!(case.await.is_ok(), "{} took too long (restarts: {restarts})", stringify!($case));
                )*
            }
        };
    }
    cases![
        an_empty_store_is_at_zero,
        a_write_is_read_back,
        a_wrong_expectation_changes_nothing,
        a_key_that_was_deleted_can_be_made_anew,
        a_range_is_in_key_order_and_ends_with_its_prefix,
        a_range_counts_what_follows_it,
        each_past_revision_is_read_as_it_was,
        a_watch_tells_history_and_then_what_comes,
        a_watch_tells_only_its_prefix,
        a_watch_that_is_not_read_loses_nothing,
        compaction_forgets_the_past_and_nothing_else,
        revisions_to_come_are_refused,
        concurrent_writers_lose_no_update,
        a_dropped_write_is_done_or_not_done,
    ];
}

struct Run<P: Place> {
    place: P,
    engine: Option<P::Engine>,
    restarts: bool,
}

impl<P: Place> Run<P> {
    /// The engine for the next step: another one, if this run restarts it.
    async fn step(&mut self) -> &P::Engine {
        if self.restarts
            && let Some(engine) = self.engine.take()
        {
            self.place.close(engine).await;
        }
        if self.engine.is_none() {
            self.engine = Some(self.place.open().await);
        }
        self.engine.as_ref().expect("it was just opened")
    }

    async fn write(&mut self, write: Write) -> Revision {
        self.step().await.write(write).await.expect("write")
    }

    async fn all(&mut self, prefix: &str, at: Option<Revision>) -> Page {
        self.step().await.range(prefix, Bound::Unbounded, 0, at).await.expect("range")
    }
}

fn create(key: &str, value: &str) -> Write {
    Write::create(key.into(), bytes(value))
}

fn update(key: &str, at: Revision, value: &str) -> Write {
    Write::update(key.into(), at, bytes(value))
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn keys(page: &Page) -> Vec<&str> {
    page.entries.iter().map(|entry| entry.key.as_str()).collect()
}

async fn take(events: &mut BoxStream<'static, Result<Event, Error>>, count: usize) -> Vec<Event> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let next = tokio::time::timeout(DEADLINE / 2, events.next()).await;
        let next = next.unwrap_or_else(|_| panic!("{} of {count} events came", taken.len()));
        taken.push(next.expect("the stream goes on").expect("event"));
    }
    taken
}

async fn an_empty_store_is_at_zero<P: Place>(mut run: Run<P>) {
    assert_eq!(run.step().await.revision().await.expect("revision"), Revision(0));
    assert_eq!(run.step().await.get(&"a/b".into()).await.expect("get"), None);
    let page = run.all("", None).await;
    assert_eq!((page.entries.len(), page.revision, page.remaining), (0, Revision(0), 0));
}

async fn a_write_is_read_back<P: Place>(mut run: Run<P>) {
    let key = Key::from("pods/default/a");
    let made = run.write(create("pods/default/a", "one")).await;
    assert!(made > Revision(0));
    let entry = run.step().await.get(&key).await.expect("get");
    assert_eq!(entry, Some(Entry { key: key.clone(), value: bytes("one"), revision: made }));
    let changed = run.write(update("pods/default/a", made, "")).await;
    assert!(changed > made);
    let entry = run.step().await.get(&key).await.expect("get");
    assert_eq!(
        entry,
        Some(Entry { key: key.clone(), value: bytes(""), revision: changed }),
        "empty is not absent"
    );
    let gone = run.write(Write::delete(key.clone(), changed)).await;
    assert!(gone > changed);
    assert_eq!(run.step().await.get(&key).await.expect("get"), None);
    assert_eq!(run.step().await.revision().await.expect("revision"), gone);
}

async fn a_wrong_expectation_changes_nothing<P: Place>(mut run: Run<P>) {
    let made = run.write(create("a", "1")).await;
    let mut nothing = create("b", "");
    nothing.value = None;
    let cases = [
        (create("a", "2"), Some(made), "a create of what exists"),
        (update("a", Revision(made.0 + 1), "2"), Some(made), "an update of a later version"),
        (Write::delete("a".into(), Revision(0)), Some(made), "a delete of an earlier version"),
        (update("b", made, "2"), None, "an update of nothing"),
        (Write::delete("b".into(), made), None, "a delete of nothing"),
        (nothing, None, "a delete of what is expected absent"),
        (
            Write { key: "a".into(), expect: Expect::Absent, value: None },
            Some(made),
            "the same of what exists",
        ),
    ];
    for (write, present, what) in cases {
        match run.step().await.write(write.clone()).await {
            Err(Error::Conflict { key, found }) => assert_eq!((key, found), (write.key, present), "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    let page = run.all("", None).await;
    assert_eq!((keys(&page), page.revision), (vec!["a"], made));
    assert_eq!(page.entries[0].value, bytes("1"));
}

async fn a_key_that_was_deleted_can_be_made_anew<P: Place>(mut run: Run<P>) {
    let first = run.write(create("a", "1")).await;
    let gone = run.write(Write::delete("a".into(), first)).await;
    let second = run.write(create("a", "2")).await;
    assert!(second > gone);
    for stale in [first, gone] {
        let refused = run.step().await.write(update("a", stale, "3")).await;
        assert!(
            matches!(refused, Err(Error::Conflict { found: Some(found), .. }) if found == second),
            "{refused:?}"
        );
    }
    run.write(update("a", second, "3")).await;
}

async fn a_range_is_in_key_order_and_ends_with_its_prefix<P: Place>(mut run: Run<P>) {
    for key in [
        "pods/b/1",
        "pods/a/2",
        "pods",
        "pods/a/10",
        "pods0",
        "nodes/x",
        "pods/a/1",
        "podsets/a",
        "pods/\u{fffd}",
    ] {
        run.write(create(key, key)).await;
    }
    let page = run.all("pods/", None).await;
    assert_eq!(keys(&page), ["pods/a/1", "pods/a/10", "pods/a/2", "pods/b/1", "pods/\u{fffd}"]);
    assert!(page.entries.iter().all(|entry| entry.value == bytes(entry.key.as_str())));
    assert_eq!(keys(&run.all("pods/a/", None).await), ["pods/a/1", "pods/a/10", "pods/a/2"]);
    assert_eq!(run.all("", None).await.entries.len(), 9);
    assert_eq!(run.all("q", None).await.entries.len(), 0);
}

async fn a_range_counts_what_follows_it<P: Place>(mut run: Run<P>) {
    for key in ["a/1", "b/1", "b/2", "b/3", "b/4", "b/5", "c/1"] {
        run.write(create(key, "")).await;
    }
    let (two, four, middle) = (Key::from("b/2"), Key::from("b/4"), Key::from("b/2x"));
    let (before, behind) = (Key::from("a/1"), Key::from("c/1"));
    let cases: [(Bound<&Key>, usize, &[&str], u64); 8] = [
        (Bound::Unbounded, 2, &["b/1", "b/2"], 3),
        (Bound::Excluded(&two), 2, &["b/3", "b/4"], 1),
        (Bound::Excluded(&four), 2, &["b/5"], 0),
        (Bound::Included(&two), 2, &["b/2", "b/3"], 2),
        (Bound::Excluded(&middle), 0, &["b/3", "b/4", "b/5"], 0),
        (Bound::Excluded(&before), 1, &["b/1"], 4),
        (Bound::Excluded(&behind), 1, &[], 0),
        (Bound::Unbounded, 5, &["b/1", "b/2", "b/3", "b/4", "b/5"], 0),
    ];
    for (after, limit, expected, remaining) in cases {
        let page = run.step().await.range("b/", after, limit, None).await.expect("range");
        assert_eq!((keys(&page), page.remaining), (expected.to_vec(), remaining), "{after:?}, {limit}");
    }
}

/// Some writes of every kind on few keys, and the whole state after each.
async fn a_history<P: Place>(run: &mut Run<P>) -> Vec<(Revision, BTreeMap<Key, Entry>)> {
    let mut now: BTreeMap<Key, Entry> = BTreeMap::new();
    let mut states = vec![(Revision(0), now.clone())];
    for turn in 0..24_u64 {
        let key = Key::from(format!("{}/{}", ["a", "b"][(turn % 2) as usize], turn * 7 % 5));
        let value = bytes(&format!("value {turn}"));
        let write = match now.get(&key) {
            None => Write::create(key.clone(), value.clone()),
            Some(entry) if turn % 3 == 0 => Write::delete(key.clone(), entry.revision),
            Some(entry) => Write::update(key.clone(), entry.revision, value.clone()),
        };
        let deletes = write.value.is_none();
        let revision = run.write(write).await;
        if deletes {
            now.remove(&key);
        } else {
            now.insert(key.clone(), Entry { key, value, revision });
        }
        states.push((revision, now.clone()));
    }
    states
}

fn replay(state: &mut BTreeMap<Key, Entry>, event: &Event) {
    let Event { key, revision, previous, value } = event.clone();
    let before = state.get(&key).map(|entry| (entry.revision, entry.value.clone()));
    assert_eq!(before, previous, "what was before {key} at {revision}");
    match value {
        Some(value) => drop(state.insert(key.clone(), Entry { key, value, revision })),
        None => drop(state.remove(&key)),
    }
}

async fn each_past_revision_is_read_as_it_was<P: Place>(mut run: Run<P>) {
    let states = a_history(&mut run).await;
    for (revision, state) in &states {
        let page = run.all("", Some(*revision)).await;
        assert_eq!(page.revision, *revision);
        assert_eq!(page.entries, state.values().cloned().collect::<Vec<_>>(), "at {revision}");
        // The same in pages of two: each reads the same revision.
        let mut paged: Vec<Entry> = Vec::new();
        loop {
            let last = paged.last().map(|entry| entry.key.clone());
            let after = last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let engine = run.engine.as_ref().expect("open");
            let page = engine.range("", after, 2, Some(*revision)).await.expect("range");
            paged.extend(page.entries);
            assert_eq!(page.remaining, (state.len() - paged.len()) as u64, "at {revision}");
            if page.remaining == 0 {
                break;
            }
        }
        assert_eq!(paged, page.entries);
    }
}

async fn a_watch_tells_history_and_then_what_comes<P: Place>(mut run: Run<P>) {
    let states = a_history(&mut run).await;
    let last = states.last().expect("states").clone();
    for (nth, (from, state)) in states.iter().enumerate() {
        let mut events = run.step().await.watch("", *from).await.expect("watch");
        let mut state = state.clone();
        for (told, (revision, _)) in
            take(&mut events, states.len() - 1 - nth).await.iter().zip(&states[nth + 1..])
        {
            assert_eq!(told.revision, *revision, "from {from}");
            replay(&mut state, told);
        }
        assert_eq!(state, last.1, "from {from}");
    }
    // What comes, and after a restart what comes then, from where the last watch ended.
    let mut from = last.0;
    let mut state = last.1;
    for turn in 0..4 {
        let engine = run.step().await;
        let mut events = engine.watch("", from).await.expect("watch");
        assert!(events.next().now_or_never().is_none(), "nothing has happened");
        let written = engine.write(create(&format!("new/{turn}"), "")).await.expect("write");
        for event in take(&mut events, 1).await {
            assert_eq!(event.revision, written);
            replay(&mut state, &event);
            from = event.revision;
        }
        run.write(create(&format!("unseen/{turn}"), "")).await;
        let mut events = run.step().await.watch("", from).await.expect("watch");
        for event in take(&mut events, 1).await {
            replay(&mut state, &event);
            from = event.revision;
        }
    }
    assert_eq!(run.all("", None).await.entries, state.into_values().collect::<Vec<_>>());
}

async fn a_watch_tells_only_its_prefix<P: Place>(mut run: Run<P>) {
    a_history(&mut run).await;
    let now = run.step().await.revision().await.expect("revision");
    let mut whole = run.step().await.watch("", Revision(0)).await.expect("watch");
    let all = take(&mut whole, 24).await;
    let expected: Vec<Event> = all.into_iter().filter(|event| event.key.as_str().starts_with("b/")).collect();
    let engine = run.step().await;
    let mut events = engine.watch("b/", Revision(0)).await.expect("watch");
    assert_eq!(take(&mut events, expected.len()).await, expected);
    let mut live = engine.watch("b/", now).await.expect("watch");
    engine.write(create("a/live", "")).await.expect("write");
    let wanted = engine.write(create("b/live", "")).await.expect("write");
    for stream in [&mut events, &mut live] {
        let told = take(stream, 1).await.remove(0);
        assert_eq!((told.key.as_str(), told.revision), ("b/live", wanted));
    }
}

async fn a_watch_that_is_not_read_loses_nothing<P: Place>(mut run: Run<P>) {
    let engine = run.step().await;
    let mut events = engine.watch("a/", Revision(0)).await.expect("watch");
    let mut written = Vec::new();
    for turn in 0..150 {
        written.push(engine.write(create(&format!("a/{turn}"), "")).await.expect("write"));
    }
    let told: Vec<Revision> = take(&mut events, 150).await.iter().map(|event| event.revision).collect();
    assert_eq!(told, written);
    written = vec![engine.write(create("a/last", "")).await.expect("write")];
    assert_eq!(take(&mut events, 1).await[0].revision, written[0]);
}

async fn compaction_forgets_the_past_and_nothing_else<P: Place>(mut run: Run<P>) {
    let states = a_history(&mut run).await;
    let newest = states.last().expect("states").0;
    let refused = run.step().await.compact(Revision(newest.0 + 1)).await;
    assert!(matches!(refused, Err(Error::Future { .. })), "{refused:?}");
    let mut oldest = Revision(0);
    for nth in [5, 12, 3, 12, states.len() - 1] {
        run.step().await.compact(states[nth].0).await.expect("compact");
        oldest = oldest.max(states[nth].0);
        for (index, (revision, state)) in states.iter().enumerate() {
            let engine = run.step().await;
            let page = engine.range("", Bound::Unbounded, 0, Some(*revision)).await;
            let watch = engine.watch("", *revision).await;
            if *revision < oldest {
                let compacted = |error: &Error| matches!(error, Error::Compacted { asked, oldest: kept } if asked == revision && *kept == oldest);
                assert!(page.as_ref().is_err_and(compacted), "{page:?}");
                assert!(watch.err().as_ref().is_some_and(compacted), "a watch from {revision}");
            } else {
                assert_eq!(page.expect("page").entries, state.values().cloned().collect::<Vec<_>>());
                let mut state = state.clone();
                let told = take(&mut watch.expect("watch"), states.len() - 1 - index).await;
                told.iter().for_each(|event| replay(&mut state, event));
                assert_eq!(state, states.last().expect("states").1);
            }
        }
    }
    assert_eq!(run.step().await.revision().await.expect("revision"), newest);
    // What is there can be written on, and what was deleted made anew.
    for entry in states.last().expect("states").1.values() {
        run.write(Write::update(entry.key.clone(), entry.revision, bytes("after"))).await;
    }
    for (_, state) in &states {
        for key in state.keys() {
            if run.step().await.get(key).await.expect("get").is_none() {
                run.write(Write::create(key.clone(), bytes("after"))).await;
            }
        }
    }
    assert!(run.all("", None).await.entries.iter().all(|entry| entry.value == bytes("after")));
}

async fn revisions_to_come_are_refused<P: Place>(mut run: Run<P>) {
    let newest = run.write(create("a", "")).await;
    let next = Revision(newest.0 + 1);
    let page = run.step().await.range("", Bound::Unbounded, 0, Some(next)).await;
    assert!(
        matches!(page, Err(Error::Future { asked, newest: told }) if (asked, told) == (next, newest)),
        "{page:?}"
    );
    let watch = run.step().await.watch("", next).await;
    assert!(matches!(watch.err(), Some(Error::Future { .. })));
}

async fn concurrent_writers_lose_no_update<P: Place>(mut run: Run<P>) {
    const WRITERS: usize = 8;
    const ROUNDS: usize = 10;
    run.write(create("counter", "0")).await;
    run.step().await;
    let engine = Arc::new(run.engine.take().expect("open"));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let engine = engine.clone();
        writers.spawn(async move {
            let mut written = Vec::new();
            for round in 0..ROUNDS {
                written
                    .push(engine.write(create(&format!("own/{writer}/{round}"), "")).await.expect("write"));
                loop {
                    let entry = engine.get(&"counter".into()).await.expect("get").expect("counter");
                    let count: u64 =
                        std::str::from_utf8(&entry.value).expect("text").parse().expect("number");
                    match engine.write(update("counter", entry.revision, &(count + 1).to_string())).await {
                        Ok(revision) => break written.push(revision),
                        Err(Error::Conflict { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            written
        });
    }
    let written = writers.join_all().await;
    assert!(
        written.iter().all(|own| own.is_sorted_by(|one, next| one < next)),
        "later writes have later revisions"
    );
    let mut written: Vec<Revision> = written.into_iter().flatten().collect();
    written.sort();
    written.dedup();
    assert_eq!(written.len(), 2 * WRITERS * ROUNDS, "each write has its own revision");
    run.engine = Arc::into_inner(engine);
    let counter = run.step().await.get(&"counter".into()).await.expect("get").expect("counter");
    assert_eq!(counter.value, bytes(&(WRITERS * ROUNDS).to_string()));
    assert_eq!(run.all("own/", None).await.entries.len(), WRITERS * ROUNDS);
}

async fn a_dropped_write_is_done_or_not_done<P: Place>(mut run: Run<P>) {
    let mut at = run.write(create("a", "0")).await;
    for turn in 1..20 {
        let engine = run.step().await;
        let value = turn.to_string();
        let _ = engine.write(update("a", at, &value)).now_or_never();
        // A write that waits behind it settles which it was.
        engine.write(create(&format!("b/{turn}"), "")).await.expect("write");
        let entry = engine.get(&"a".into()).await.expect("get").expect("it is there");
        if entry.revision == at {
            assert_ne!(entry.value, bytes(&value));
        } else {
            assert_eq!(entry.value, bytes(&value));
            at = entry.revision;
        }
        let again = run.step().await.get(&"a".into()).await.expect("get");
        assert_eq!(again, Some(entry), "and it stays so");
    }
}
