//! The cache of one view: what is in it, who is told of changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use tokio::sync::{Notify, watch};

use super::{Key, View};

/// A change of one object in a store. Neither side is missing on both ends.
#[derive(Debug)]
pub struct Change<'a, T> {
    pub key: &'a Key,
    /// Before; `None` if it is new.
    pub old: Option<&'a Arc<T>>,
    /// Now; `None` if it is gone.
    pub new: Option<&'a Arc<T>>,
}

impl<T> Change<'_, T> {
    /// The object as it is, or as it last was.
    pub fn object(&self) -> &Arc<T> {
        self.new.or(self.old).expect("a change has a side")
    }
}

type Subscriber<T> = Box<dyn FnMut(&Change<'_, T>) + Send>;

/// The cached objects of one view. Cheap to clone: all clones are one store.
pub struct Store<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Clone for Store<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<T: View> fmt::Debug for Store<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let progress = *self.shared.progress.borrow();
        out.debug_struct("Store")
            .field("kind", &T::KIND.kind)
            .field("len", &self.len())
            .field("at", &progress)
            .finish()
    }
}

struct Shared<T> {
    /// Taken for the whole of a change or a subscription, so that a subscriber sees every change once and
    /// in order. Always taken before `content`.
    subscribers: Mutex<Vec<Subscriber<T>>>,
    /// Taken briefly; never while a subscriber runs, so subscribers may read.
    content: RwLock<Content<T>>,
    progress: watch::Sender<Progress>,
}

struct Content<T> {
    objects: BTreeMap<Key, Arc<T>>,
    indexes: HashMap<&'static str, Indexed<T>>,
}

type ValuesOf<T> = Box<dyn Fn(&T) -> Vec<String> + Send + Sync>;
/// Value, then key: the objects that have the value.
type ByValue<T> = HashMap<String, BTreeMap<Key, Arc<T>>>;

struct Indexed<T> {
    values_of: ValuesOf<T>,
    index: Index<T>,
}

/// How far a store has followed the API.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Progress {
    listed: bool,
    revision: u64,
    /// Nothing feeds it any more.
    ended: bool,
}

impl<T: View> Store<T> {
    /// An empty store that nothing feeds; [`super::Hub`] gives those that a reflector feeds.
    pub(super) fn new() -> Self {
        let content = Content { objects: BTreeMap::new(), indexes: HashMap::new() };
        let shared = Shared {
            subscribers: Mutex::default(),
            content: RwLock::new(content),
            progress: watch::Sender::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// A store of these objects for tests of what reads stores: nothing feeds it.
    pub fn fixed(objects: impl IntoIterator<Item = T>) -> Self {
        let store = Self::new();
        store.replace(objects.into_iter().map(|object| (object.meta().key(), Arc::new(object))).collect(), 0);
        store
    }

    /// Waits until the first list is in the cache, or the hub has stopped before it was: whoever waits is to stop then,
    /// too, and looks at nothing.
    pub async fn ready(&self) {
        self.progress(|at| at.listed || at.ended).await;
    }

    /// Waits until every change up to `revision` (of any kind: the cluster counts once) that concerns this
    /// store is in it. Returns only when an event at or after `revision` came, so ask for the revision of an
    /// object of this store that was just written, not of another kind.
    pub async fn reached(&self, revision: u64) {
        self.progress(|at| at.listed && at.revision >= revision).await;
    }

    /// Waits until `test` holds for the object (`None`: there is none), and looks at each change.
    pub async fn until(&self, key: &Key, test: impl Fn(Option<&T>) -> bool) {
        self.progress(|_| test(self.get(key).as_deref())).await;
    }

    async fn progress(&self, test: impl Fn(&Progress) -> bool) {
        let mut progress = self.shared.progress.subscribe();
        // The sender lives in `self.shared`, so it cannot be gone.
        let _ = progress.wait_for(|at| test(at)).await;
    }

    pub fn is_ready(&self) -> bool {
        self.shared.progress.borrow().listed
    }

    /// The revision up to which the store has followed the API.
    pub fn revision(&self) -> u64 {
        self.shared.progress.borrow().revision
    }

    pub fn get(&self, key: &Key) -> Option<Arc<T>> {
        self.read(|content| content.objects.get(key).cloned())
    }

    /// Every object, ordered by key. For what is done per change, use an [`Index`].
    pub fn all(&self) -> Vec<Arc<T>> {
        self.read(|content| content.objects.values().cloned().collect())
    }

    /// The objects of a namespace, ordered by name.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<T>> {
        let first = Key::new(namespace, "");
        self.read(|content| {
            let from = content.objects.range(first..);
            from.take_while(|(key, _)| &*key.namespace == namespace)
                .map(|(_, object)| object.clone())
                .collect()
        })
    }

    pub fn len(&self) -> usize {
        self.read(|content| content.objects.len())
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The index called `name`, made now if no one has asked for it. Whoever asks first says what it
    /// holds: an object is found under each of `values_of(object)`.
    pub fn index(
        &self,
        name: &'static str,
        values_of: impl Fn(&T) -> Vec<String> + Send + Sync + 'static,
    ) -> Index<T> {
        let mut content = self.shared.content.write().expect("no holder of this lock panics");
        let Content { objects, indexes } = &mut *content;
        let made = indexes.entry(name).or_insert_with(|| {
            let made = Indexed { values_of: Box::new(values_of), index: Index { map: Arc::default() } };
            for (key, object) in objects.iter() {
                made.update(key, None, Some(object));
            }
            made
        });
        made.index.clone()
    }

    /// Calls `subscriber` now for each object there is, then at each change, in order, in the reflector's
    /// task: so it must be quick (put a key into a queue). It may read stores but not subscribe to this one.
    /// At the call the store and its indexes have the change already.
    pub fn on_change(&self, mut subscriber: impl FnMut(&Change<'_, T>) + Send + 'static) {
        let mut subscribers = self.subscribers();
        let present: Vec<_> = self.read(|content| content.objects.clone().into_iter().collect());
        for (key, object) in &present {
            subscriber(&Change { key, old: None, new: Some(object) });
        }
        subscribers.push(Box::new(subscriber));
    }

    /// The keys of changed objects for a task to await, starting with every key there is. A key that changes
    /// again before it was taken is given once, so what is held is bounded by the number of objects.
    pub fn changes(&self) -> Changes {
        let changes = Changes { pending: Arc::default() };
        let pending = changes.pending.clone();
        self.on_change(move |change| {
            pending.keys.lock().expect("no holder of this lock panics").insert(change.key.clone());
            pending.wake.notify_one();
        });
        changes
    }

    /// Puts one object in (or takes it out) and tells the subscribers.
    pub(super) fn set(&self, key: &Key, new: Option<Arc<T>>, revision: u64) {
        let mut subscribers = self.subscribers();
        self.change(&mut subscribers, key, new);
        self.advance(revision);
    }

    /// Makes the content what a list returned, and tells the subscribers of each difference.
    pub(super) fn replace(&self, listed: BTreeMap<Key, Arc<T>>, revision: u64) {
        let mut subscribers = self.subscribers();
        let gone: Vec<Key> = self.read(|content| {
            content.objects.keys().filter(|key| !listed.contains_key(key)).cloned().collect()
        });
        for key in &gone {
            self.change(&mut subscribers, key, None);
        }
        for (key, object) in listed {
            let same = self.get(&key).is_some_and(|old| {
                let (old, new) = (old.meta(), object.meta());
                old.uid == new.uid && old.resource_version == new.resource_version
            });
            if !same || revision == 0 {
                self.change(&mut subscribers, &key, Some(object));
            }
        }
        self.shared.progress.send_modify(|at| (at.listed, at.revision) = (true, revision));
    }

    /// Notes that nothing feeds the store any more.
    pub(super) fn end(&self) {
        self.shared.progress.send_modify(|at| at.ended = true);
    }

    /// Notes that everything up to `revision` is in the store.
    pub(super) fn advance(&self, revision: u64) {
        self.shared.progress.send_modify(|at| at.revision = at.revision.max(revision));
    }

    fn change(&self, subscribers: &mut [Subscriber<T>], key: &Key, new: Option<Arc<T>>) {
        let old = {
            let mut content = self.shared.content.write().expect("no holder of this lock panics");
            let old = match &new {
                Some(object) => content.objects.insert(key.clone(), object.clone()),
                None => content.objects.remove(key),
            };
            for indexed in content.indexes.values() {
                indexed.update(key, old.as_ref(), new.as_ref());
            }
            old
        };
        if old.is_none() && new.is_none() {
            return; // deleted before we knew of it
        }
        let change = Change { key, old: old.as_ref(), new: new.as_ref() };
        for subscriber in subscribers {
            subscriber(&change);
        }
    }

    fn read<R>(&self, look: impl FnOnce(&Content<T>) -> R) -> R {
        look(&self.shared.content.read().expect("no holder of this lock panics"))
    }

    fn subscribers(&self) -> MutexGuard<'_, Vec<Subscriber<T>>> {
        self.shared.subscribers.lock().expect("a subscriber that panicked has ended its reflector")
    }
}

/// Objects of a store by some value of theirs. Cheap to clone.
pub struct Index<T> {
    map: Arc<RwLock<ByValue<T>>>,
}

impl<T> Clone for Index<T> {
    fn clone(&self) -> Self {
        Self { map: self.map.clone() }
    }
}

impl<T> Index<T> {
    /// The objects under `value`, ordered by key.
    pub fn get(&self, value: &str) -> Vec<Arc<T>> {
        let map = self.map.read().expect("no holder of this lock panics");
        map.get(value).map(|objects| objects.values().cloned().collect()).unwrap_or_default()
    }

    pub fn contains(&self, value: &str) -> bool {
        self.map.read().expect("no holder of this lock panics").contains_key(value)
    }
}

impl<T> fmt::Debug for Index<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Index").finish_non_exhaustive()
    }
}

impl<T> Indexed<T> {
    fn update(&self, key: &Key, old: Option<&Arc<T>>, new: Option<&Arc<T>>) {
        let mut map = self.index.map.write().expect("no holder of this lock panics");
        for value in old.map(|old| (self.values_of)(old)).unwrap_or_default() {
            if let Some(objects) = map.get_mut(&value) {
                objects.remove(key);
                if objects.is_empty() {
                    map.remove(&value);
                }
            }
        }
        let Some(new) = new else { return };
        for value in (self.values_of)(new) {
            map.entry(value).or_default().insert(key.clone(), new.clone());
        }
    }
}

/// What [`Store::changes`] returns.
#[derive(Debug)]
pub struct Changes {
    pending: Arc<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    keys: Mutex<BTreeSet<Key>>,
    wake: Notify,
}

impl Changes {
    /// The next changed key. Cancel-safe: a key is lost only if it was returned.
    pub async fn next(&mut self) -> Key {
        loop {
            let woken = self.pending.wake.notified();
            if let Some(key) = self.pending.keys.lock().expect("no holder of this lock panics").pop_first() {
                return key;
            }
            woken.await;
        }
    }

    /// All keys that are waiting; empty if there is none.
    pub fn take(&mut self) -> BTreeSet<Key> {
        std::mem::take(&mut *self.pending.keys.lock().expect("no holder of this lock panics"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Meta;
    use super::*;
    use crate::api::Kind;
    use std::time::Duration;

    #[derive(Debug, serde::Deserialize)]
    struct Thing {
        metadata: Meta,
        colour: String,
    }

    impl View for Thing {
        const KIND: Kind = Kind::core("Thing", "things");
        fn meta(&self) -> &Meta {
            &self.metadata
        }
    }

    fn thing(name: &str, colour: &str, revision: u64) -> (Key, Arc<Thing>) {
        let metadata = Meta {
            name: name.into(),
            namespace: "ns".into(),
            uid: name.into(),
            resource_version: revision.to_string().into(),
            ..Meta::default()
        };
        let thing = Thing { metadata, colour: colour.to_owned() };
        (thing.metadata.key(), Arc::new(thing))
    }

    fn names(things: &[Arc<Thing>]) -> Vec<&str> {
        things.iter().map(|thing| &*thing.metadata.name).collect()
    }

    #[test]
    fn an_index_follows_its_objects_whenever_it_was_made() {
        let store = Store::<Thing>::new();
        let by_colour = |thing: &Thing| vec![thing.colour.clone()];
        let early = store.index("early", by_colour);
        for (key, object) in [thing("a", "red", 1), thing("b", "red", 2), thing("c", "blue", 3)] {
            store.set(&key, Some(object), 3);
        }
        let late = store.index("late", by_colour);
        let (key, object) = thing("a", "blue", 4);
        store.set(&key, Some(object), 4);
        store.set(&thing("c", "blue", 3).0, None, 5);
        for index in [early, late, store.index("early", |_| vec![])] {
            assert_eq!(names(&index.get("red")), ["b"]);
            assert_eq!(names(&index.get("blue")), ["a"]);
            assert!(!index.contains("green"));
        }
        assert_eq!(names(&store.in_namespace("ns")), ["a", "b"]);
        assert!(store.in_namespace("n").is_empty());
    }

    #[test]
    fn a_new_list_is_told_as_its_differences() {
        let store = Store::<Thing>::new();
        store.replace([thing("a", "red", 1), thing("b", "red", 2)].into(), 2);
        let log = Arc::new(Mutex::new(Vec::new()));
        let told = log.clone();
        store.on_change(move |change: &Change<'_, Thing>| {
            let mark = match (change.old, change.new) {
                (None, _) => "+",
                (_, None) => "-",
                _ => "~",
            };
            told.lock().unwrap().push(format!("{mark}{}", change.key.name));
        });
        store.replace([thing("b", "red", 2), thing("c", "red", 4)].into(), 4);
        store.replace([thing("b", "blue", 5), thing("c", "red", 4)].into(), 5);
        assert_eq!(*log.lock().unwrap(), ["+a", "+b", "-a", "+c", "~b"]);
    }

    #[tokio::test]
    async fn waiters_see_the_first_list_and_later_revisions() {
        let store = Store::<Thing>::new();
        assert!(!store.is_ready());
        let waiting = tokio::spawn({
            let store = store.clone();
            async move {
                store.ready().await;
                store.reached(9).await;
                store.until(&Key::new("ns", "a"), |thing| thing.is_none()).await;
            }
        });
        let (key, object) = thing("a", "red", 1);
        store.replace([(key.clone(), object)].into(), 1);
        store.advance(9);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        store.set(&key, None, 10);
        tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn changes_are_given_once_however_often_they_happened() {
        let store = Store::<Thing>::new();
        let mut changes = store.changes();
        for revision in 1..4 {
            let (key, object) = thing("a", "red", revision);
            store.set(&key, Some(object), revision);
        }
        assert_eq!(&*changes.next().await.name, "a");
        assert!(changes.take().is_empty());
    }
}
