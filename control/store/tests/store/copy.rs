//! Whole stores, copied between engines and files.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use tempfile::TempDir;
use wharf_store::testing::Members;
use wharf_store::{
    CopyError, Error, Etcd, EtcdSink, Expect, Key, Moment, Redb, RedbSink, Revision, Sink, SnapshotReader,
    SnapshotWriter, Source, Store, Write, copy,
};

/// More than a page of any engine has.
const OBJECTS: usize = 1234;

fn key(nth: usize) -> Key {
    format!("apps/deployments/default/{nth:05}").into()
}

/// Objects of all sizes, some of them changed, some deleted.
async fn fill(store: &impl Store) {
    let value = |nth: usize| Bytes::from(vec![b'a' + u8::try_from(nth % 26).expect("small"); nth % 300]);
    let writes =
        (0..OBJECTS).map(|nth| async move { store.write(Write::create(key(nth), value(nth))).await });
    let written: Vec<_> = futures::stream::iter(writes).buffered(64).collect().await;
    for (nth, at) in written.into_iter().enumerate().step_by(10) {
        let expect = Expect::At(at.expect("write"));
        let value = (nth % 20 == 0).then(|| Bytes::from(vec![0, 255, b'\n']));
        store.write(Write { key: key(nth), expect, value }).await.expect("write");
    }
    // The largest that etcd takes with its settings, and two that do not fit into one request.
    for name in ["large/1", "large/2"] {
        store.write(Write::create(name.into(), vec![7; 1_400_000].into())).await.expect("write");
    }
}

async fn content(store: &impl Store) -> BTreeMap<Key, Bytes> {
    let page = store.range("", Bound::Unbounded, 0, None).await.expect("range");
    page.entries.into_iter().map(|entry| (entry.key, entry.value)).collect()
}

/// `store` is a copy of what was at `before`: nothing from then is mistaken for its own, and it goes on.
async fn goes_on_from(store: &impl Store, before: Revision) {
    let newest = store.revision().await.expect("revision");
    assert!(newest > before);
    for old in [Revision(0), Revision(1), before, Revision(before.0 + 1), Revision(newest.0 - 1)] {
        let watch = store.watch("", old).await.err();
        assert!(matches!(watch, Some(Error::Compacted { .. })), "a watch from {old}: {watch:?}");
        let range = store.range("", Bound::Unbounded, 0, Some(old)).await;
        assert!(matches!(range, Err(Error::Compacted { .. })), "a read at {old}");
    }
    let page = store.range("", Bound::Unbounded, 0, None).await.expect("range");
    for entry in &page.entries {
        assert!(entry.revision > before && entry.revision <= newest, "{} at {}", entry.key, entry.revision);
    }
    let mut events = store.watch("", newest).await.expect("the present can be watched");
    assert!(events.next().now_or_never().is_none(), "nothing happened since");
    let old = store.get(&key(1)).await.expect("get").expect("it is there");
    let at = store.write(Write::update(key(1), old.revision, "new".into())).await.expect("write");
    let event = events.next().await.expect("an event").expect("event");
    assert_eq!((event.key, event.revision, event.previous), (key(1), at, Some((old.revision, old.value))));
    assert!(at > newest);
}

#[tokio::test]
async fn a_store_goes_to_a_file_to_etcd_and_back_with_all_that_it_has() {
    let folder = TempDir::new().expect("a folder");
    let members = Members::start(folder.path(), 1);
    let file = folder.path().join("snapshot");

    let first = Arc::new(Redb::open(folder.path().join("first")).await.expect("open"));
    fill(&*first).await;
    let (all, before) = (content(&*first).await, first.revision().await.expect("revision"));
    let source = Source::of(first.clone()).await.expect("source");
    let moment = source.moment;
    let written = copy(source, SnapshotWriter::create(&file, moment).expect("create"), |_| {}).await;
    assert_eq!(written.expect("a snapshot").objects, all.len() as u64);

    let snapshot = SnapshotReader::open(&file).expect("it is whole");
    assert_eq!((snapshot.moment.revision, snapshot.objects), (before, all.len() as u64));
    let sink = EtcdSink::begin(members.config(), snapshot.moment, false).await.expect("begin");
    let copied = copy(snapshot.source().expect("source"), sink, |_| {}).await.expect("restore");
    let second = Arc::new(Etcd::open_existing(members.config()).await.expect("open"));
    assert_eq!(second.revision().await.expect("revision"), copied.revision);
    assert_eq!(content(&*second).await, all);
    goes_on_from(&*second, before).await;

    let (all, before) = (content(&*second).await, second.revision().await.expect("revision"));
    let source = Source::of(second).await.expect("source");
    let sink = RedbSink::begin(folder.path().join("third"), source.moment, false).expect("begin");
    let mut told = 0;
    let copied = copy(source, sink, |objects| told = objects).await.expect("migrate");
    assert_eq!((copied.objects, told), (all.len() as u64, all.len() as u64));
    let third = Redb::open_existing(folder.path().join("third")).await.expect("open");
    assert_eq!(content(&third).await, all);
    goes_on_from(&third, before).await;
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .expect("list")
        .map(|entry| entry.expect("entry").file_name())
        .filter(|name| name.to_string_lossy().starts_with('.'))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The bytes of a snapshot of a few objects.
async fn snapshot(folder: &Path) -> Vec<u8> {
    use std::os::unix::fs::PermissionsExt as _;
    let store = Redb::open(folder.join("store")).await.expect("open");
    for nth in 0..3 {
        store.write(Write::create(key(nth), "value".into())).await.expect("write");
    }
    let source = Source::of(Arc::new(store)).await.expect("source");
    let file = folder.join("snapshot");
    let moment = source.moment;
    copy(source, SnapshotWriter::create(&file, moment).expect("create"), |_| {}).await.expect("copy");
    assert_eq!(std::fs::metadata(&file).expect("metadata").permissions().mode() & 0o777, 0o600);
    std::fs::read(file).expect("read")
}

#[tokio::test]
async fn a_snapshot_that_is_not_as_it_was_written_is_refused() {
    let folder = TempDir::new().expect("a folder");
    let whole = snapshot(folder.path()).await;
    let file = folder.path().join("changed");
    let open = |bytes: &[u8]| {
        std::fs::write(&file, bytes).expect("write");
        SnapshotReader::open(&file).map(|_| ())
    };
    open(&whole).expect("it is whole");
    for length in 0..whole.len() {
        let error = open(&whole[..length]).expect_err("it was cut off");
        let right = if length < 21 {
            matches!(error, CopyError::Foreign { .. })
        } else {
            matches!(error, CopyError::Truncated { at, .. } if at == length as u64)
        };
        assert!(right, "cut off at {length}: {error}");
    }
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 0x10;
        let error = open(&changed).expect_err("it was changed");
        let right = match error {
            CopyError::Foreign { .. } => at < 21,
            CopyError::Format { .. } => (21..25).contains(&at),
            CopyError::Truncated { .. } | CopyError::Damaged { .. } => at >= 25,
            _ => false,
        };
        assert!(right, "byte {at}: {error}");
    }
    let error = open(&[&whole[..], b"x"].concat()).expect_err("something follows");
    assert!(error.to_string().contains("something follows its end"), "{error}");
    let mut changed = whole.clone();
    let value = whole.windows(5).position(|window| window == b"value").expect("a value");
    changed[value] ^= 1;
    assert!(open(&changed).expect_err("a bit").to_string().contains("checksum"));
    let error = SnapshotReader::open(folder.path().join("missing")).err().expect("it is not there");
    assert!(matches!(error, CopyError::File { .. }), "{error}");
}

#[tokio::test]
async fn a_store_that_is_there_is_replaced_only_if_asked_and_only_by_a_whole_one() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("store");
    let begin = |replace| RedbSink::begin(&path, Moment::now(Revision(5)), replace);

    // Nothing is there: what is begun and not finished leaves nothing.
    drop(begin(false).expect("begin"));
    assert!(!path.exists());
    assert!(matches!(Redb::open_existing(&path).await, Err(CopyError::Missing { .. })));

    let store = Redb::open(&path).await.expect("open");
    let kept = store.write(Write::create("a".into(), "kept".into())).await.expect("write");
    let error = begin(true).err().expect("it is open").to_string();
    assert!(error.contains("open the file that is there"), "{error}");
    store.close().await;
    assert!(matches!(begin(false), Err(CopyError::Taken { revision, .. }) if revision == kept));

    let sink = begin(true).expect("begin");
    let error = Redb::open(&path).await.err().expect("nobody opens it meanwhile");
    assert!(std::error::Error::source(&error).expect("a cause").to_string().contains("already open"));
    drop(sink);
    let store = Redb::open(&path).await.expect("open");
    assert_eq!(store.get(&"a".into()).await.expect("get").expect("it is there").value, "kept");
    store.close().await;

    let revision = begin(true).expect("begin").finish().await.expect("finish");
    let store = Redb::open(&path).await.expect("open");
    assert_eq!(store.revision().await.expect("revision"), revision);
    assert!(content(&store).await.is_empty());

    std::fs::write(folder.path().join("other"), "what somebody wrote").expect("write");
    let error = RedbSink::begin(folder.path().join("other"), Moment::now(Revision(5)), true);
    assert!(error.is_err(), "what is no store is not replaced");
    assert_eq!(std::fs::read(folder.path().join("other")).expect("read"), b"what somebody wrote");
}

#[tokio::test]
async fn servers_of_an_etcd_notice_a_copy_and_see_no_object_go() {
    let folder = TempDir::new().expect("a folder");
    let members = Members::start(folder.path(), 1);
    let missing = Etcd::open_existing(members.config()).await.err().expect("nothing is there");
    assert!(matches!(missing, CopyError::Missing { .. }), "{missing}");

    let engine = members.engine().await;
    let at = engine.write(Write::create("a".into(), "1".into())).await.expect("write");
    let mut events = engine.watch("", at).await.expect("watch");
    let begin = |replace| EtcdSink::begin(members.config(), Moment::now(Revision(5)), replace);
    assert!(matches!(begin(false).await, Err(CopyError::Taken { revision, .. }) if revision == at));

    // Not finished: the store is neither the old one nor a new one.
    drop(begin(true).await.expect("begin"));
    let event = events.next().await.expect("an item");
    assert!(matches!(event, Err(Error::Engine { .. })), "{event:?}");
    assert!(engine.write(Write::create("b".into(), "2".into())).await.is_err());
    assert!(engine.get(&"a".into()).await.is_ok_and(|found| found.is_none()));
    assert!(engine.range("", Bound::Unbounded, 0, None).await.is_err());
    let error = Etcd::open(members.config()).await.err().expect("it is not finished");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.contains("was not finished"), "{cause}");
    assert!(Etcd::open_existing(members.config()).await.is_err());
    assert!(matches!(begin(false).await, Err(CopyError::Taken { revision, .. }) if revision == at));

    // Whoever was first is not to finish it.
    let (first, second) = (begin(true).await.expect("begin"), begin(true).await.expect("begin"));
    assert!(first.finish().await.is_err());
    let revision = second.finish().await.expect("finish");
    assert!(revision > at);
    let again = members.engine().await;
    assert_eq!(again.revision().await.expect("revision"), revision);
    assert!(engine.write(Write::create("b".into(), "2".into())).await.is_err(), "it is not its store");
    again.write(Write::create("b".into(), "2".into())).await.expect("write");
}
