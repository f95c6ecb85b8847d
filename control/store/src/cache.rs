//! The state of a store in memory, with its recent past.
//!
//! One follower task keeps a persistent ordered map up to date from one watch on the whole store, and a ring
//! of the last events. Reads clone the map (a pointer). A past revision is the present map with the ring's
//! events undone, so no snapshot costs anything until it is asked for. A watcher has no buffer of its own:
//! it reads the ring from where it stands, and is ended when the ring has passed it.

mod state;
mod watcher;

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use imbl::OrdMap;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{Error, Event, Key, Revision, Store, Write};
use state::State;
pub use watcher::Watcher;

/// Entries a page when the cache loads the store.
const LOAD_PAGE: usize = 1000;

/// Events that the follower applies under one lock, and with one wake-up, when so many wait.
const APPLY_AT_ONCE: usize = 1024;

/// Past states kept for the next page of a list, and how long one stays without being asked for. A client
/// that pages asks again within seconds; later the state is computed or read anew.
const PAST_KEPT: usize = 8;
const PAST_IDLE: Duration = Duration::from_secs(60);

/// How long the follower waits after a failed watch, doubled up to the second figure.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));

/// A value as it was stored, and what the cache's owner decoded from it once.
#[derive(Debug)]
pub struct Object<T> {
    pub key: Key,
    pub value: Bytes,
    /// The revision of the write that made this value.
    pub revision: Revision,
    /// Whatever lists and watches select by: labels, selectable fields.
    pub meta: T,
}

type Objects<T> = OrdMap<Key, Arc<Object<T>>>;
type Decode<T> = Box<dyn Fn(&Key, &Bytes) -> T + Send + Sync>;

/// A committed change; every watcher gets the same one.
#[derive(Debug)]
pub struct CacheEvent<T> {
    pub key: Key,
    pub revision: Revision,
    /// `None` if the key was created by this change.
    pub previous: Option<Arc<Object<T>>>,
    /// `None` if the key was deleted by this change.
    pub current: Option<Arc<Object<T>>>,
    /// The event as it goes out on the wire, in up to two forms, which are the watchers' to choose; filled by the first
    /// watcher that encodes it.
    pub encoded: [OnceLock<Bytes>; 2],
}

/// The objects under a prefix as they all were at one revision.
pub struct Snapshot<T> {
    objects: Objects<T>,
    prefix: Arc<str>,
    revision: Revision,
}

/// Serves reads, lists and watches of a store from memory. Clones share one state.
///
/// A write through [`Cache::write`] is seen by every read that begins after it was acknowledged.
pub struct Cache<S, T> {
    store: Arc<S>,
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    decode: Decode<T>,
    state: RwLock<State<T>>,
    past: Mutex<VecDeque<Past<T>>>,
    applied: watch::Sender<Applied>,
}

#[derive(Clone, Copy)]
struct Applied {
    revision: Revision,
    closed: bool,
}

struct Past<T> {
    /// What the state covers: everything, or the prefix that was read from the store.
    prefix: Arc<str>,
    revision: Revision,
    objects: Objects<T>,
    used: Instant,
}

impl<S: Store, T: Send + Sync + 'static> Cache<S, T> {
    /// Loads the whole store and follows it until `stop` is cancelled; then watches and waits end with
    /// [`Error::Closed`]. `decode` is called once for each value; a value that it cannot read is its own to
    /// represent in `T`, for the object is served all the same.
    pub async fn start(
        store: Arc<S>,
        decode: impl Fn(&Key, &Bytes) -> T + Send + Sync + 'static,
        stop: CancellationToken,
    ) -> Result<Self, Error> {
        let began = Instant::now();
        let (revision, objects) = load(&*store, &decode, "", None).await?;
        info!(objects = objects.len(), %revision, took = ?began.elapsed(), "store loaded");
        let (applied, _) = watch::channel(Applied { revision, closed: false });
        let shared = Arc::new(Shared {
            decode: Box::new(decode),
            state: RwLock::new(State::new(revision, objects)),
            past: Mutex::default(),
            applied,
        });
        tokio::spawn(follow(store.clone(), shared.clone(), stop));
        Ok(Self { store, shared })
    }

    /// The store behind.
    pub fn store(&self) -> &Arc<S> {
        &self.store
    }

    /// The revision up to which reads show everything.
    pub fn revision(&self) -> Revision {
        self.shared.applied.borrow().revision
    }

    /// The object of `key` now.
    pub fn get(&self, key: &str) -> Option<Arc<Object<T>>> {
        self.shared.read(|state| state.objects.get(key).cloned())
    }

    /// Commits `write` and waits until reads show it. A dropped future leaves the write done or not done.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub async fn write(&self, write: Write) -> Result<Revision, Error> {
        let revision = self.store.write(write).await?;
        // The write is durable. If the cache closes meanwhile, there are no later reads to be consistent with.
        let _ = self.wait_for(revision).await;
        Ok(revision)
    }

    /// Waits until reads show `revision`, which may be one that is not written yet.
    ///
    /// # Errors
    /// [`Error::Closed`] if the cache stops first.
    pub async fn wait_for(&self, revision: Revision) -> Result<(), Error> {
        let mut applied = self.shared.applied.subscribe();
        match applied.wait_for(|now| now.closed || now.revision >= revision).await {
            Ok(now) if now.revision >= revision => Ok(()),
            _ => Err(Error::Closed),
        }
    }

    /// Waits until reads show every write that any process was acknowledged before this call, also through
    /// another cache on the same store.
    pub async fn sync(&self) -> Result<Revision, Error> {
        let revision = self.store.revision().await?;
        self.wait_for(revision).await?;
        Ok(revision)
    }

    /// The objects whose key starts with `prefix`, at revision `at` (`None`: now). Free for the present,
    /// cheap for the recent past, read from the store for what is older.
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::Future`] if `at` is not in the history kept.
    pub async fn snapshot(&self, prefix: &str, at: Option<Revision>) -> Result<Snapshot<T>, Error> {
        let (revision, objects) = match at {
            None => self.shared.read(|state| (state.revision, state.objects.clone())),
            Some(at) => {
                self.reach(at).await?;
                (at, self.past(prefix, at).await?)
            }
        };
        Ok(Snapshot { objects, prefix: prefix.into(), revision })
    }

    /// Every change under `prefix` after revision `from`, then those to come, in the same order for all.
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::Future`] if `from` is not in the history kept.
    pub async fn watch(&self, prefix: &str, from: Revision) -> Result<Watcher<T>, Error> {
        self.reach(from).await?;
        let mut watcher = Watcher::new(self.shared.clone(), prefix, from);
        if watcher.needs_history() {
            // The whole store's history, not the prefix's: so its next event comes even if the prefix is quiet.
            watcher.replay(self.store.watch("", from).await?);
        }
        Ok(watcher)
    }

    /// Waits for a revision that the store has and the cache has not shown yet.
    async fn reach(&self, revision: Revision) -> Result<(), Error> {
        if revision <= self.revision() {
            return Ok(());
        }
        let newest = self.store.revision().await?;
        if revision > newest {
            return Err(Error::Future { asked: revision, newest });
        }
        self.wait_for(revision).await
    }

    /// The state at `at`, which covers `prefix` at least.
    async fn past(&self, prefix: &str, at: Revision) -> Result<Objects<T>, Error> {
        if let Some(known) = self.shared.recall(prefix, at) {
            return Ok(known);
        }
        let undo = self.shared.read(|state| Some((state.objects.clone(), state.since(at)?)));
        let (covers, objects) = match undo {
            Some((mut objects, events)) => {
                for event in events.iter().rev() {
                    match &event.previous {
                        Some(previous) => objects.insert(event.key.clone(), previous.clone()),
                        None => objects.remove(&event.key),
                    };
                }
                if events.is_empty() {
                    return Ok(objects); // the present needs no remembering
                }
                ("", objects)
            }
            None => (prefix, load(&*self.store, &self.shared.decode, prefix, Some(at)).await?.1),
        };
        self.shared.remember(Past {
            prefix: covers.into(),
            revision: at,
            objects: objects.clone(),
            used: Instant::now(),
        });
        Ok(objects)
    }
}

impl<T> Shared<T> {
    fn read<R>(&self, look: impl FnOnce(&State<T>) -> R) -> R {
        // A panic elsewhere cannot leave the state half changed: `apply` has no fallible step in the middle.
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<R>(&self, act: impl FnOnce(&mut State<T>) -> R) -> R {
        act(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn recall(&self, prefix: &str, at: Revision) -> Option<Objects<T>> {
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        let known = past.iter_mut().find(|past| past.revision == at && prefix.starts_with(&*past.prefix))?;
        known.used = Instant::now();
        Some(known.objects.clone())
    }

    fn remember(&self, state: Past<T>) {
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        if past.len() == PAST_KEPT {
            past.pop_front();
        }
        past.push_back(state);
    }

    fn apply(&self, events: Vec<Event>) {
        let decoded: Vec<_> = events
            .into_iter()
            .map(|Event { key, revision, value, .. }| {
                let object = value.map(|value| {
                    let meta = (self.decode)(&key, &value);
                    Arc::new(Object { key: key.clone(), value, revision, meta })
                });
                (key, revision, object)
            })
            .collect();
        let (revision, wake) = self.change(|state| state.apply(decoded));
        self.publish(revision, wake);
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        past.retain(|past| past.used.elapsed() < PAST_IDLE);
    }

    fn publish(&self, revision: Revision, wake: Vec<Arc<watch::Sender<Revision>>>) {
        self.applied.send_replace(Applied { revision, closed: false });
        for tip in wake {
            tip.send_replace(revision);
        }
    }
}

/// Reads the entries under `prefix` page by page at one revision.
async fn load<S: Store, T>(
    store: &S,
    decode: &(impl Fn(&Key, &Bytes) -> T + Sync + ?Sized),
    prefix: &str,
    mut at: Option<Revision>,
) -> Result<(Revision, Objects<T>), Error> {
    let mut objects = OrdMap::new();
    let mut last: Option<Key> = None;
    loop {
        let after = last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let page = store.range(prefix, after, LOAD_PAGE, at).await?;
        at = Some(page.revision);
        last = page.entries.last().map(|entry| entry.key.clone());
        for entry in page.entries {
            let meta = decode(&entry.key, &entry.value);
            let object =
                Object { key: entry.key.clone(), value: entry.value, revision: entry.revision, meta };
            objects.insert(entry.key, Arc::new(object));
        }
        if page.remaining == 0 {
            return Ok((page.revision, objects));
        }
    }
}

/// Keeps the state up to date until `stop` is cancelled or the store is closed.
async fn follow<S: Store, T: Send + Sync + 'static>(
    store: Arc<S>,
    shared: Arc<Shared<T>>,
    stop: CancellationToken,
) {
    let mut wait = BACK_OFF.0;
    loop {
        let from = shared.read(|state| state.revision);
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            ended = follow_once(&*store, &shared, from) => ended,
        };
        let ended = match ended {
            // Only if this task slept longer than history is kept. Watchers end too: they missed the same.
            Error::Compacted { .. } => match load(&*store, &shared.decode, "", None).await {
                Ok((revision, objects)) => {
                    warn!(%from, %revision, "the cache fell out of the store's history and was loaded again");
                    let wake = shared.change(|state| state.reset(revision, objects));
                    shared.publish(revision, wake);
                    continue;
                }
                Err(error) => error,
            },
            other => other,
        };
        if let Error::Closed = ended {
            break;
        }
        if shared.read(|state| state.revision) > from {
            wait = BACK_OFF.0;
        }
        error!(error = %ended, cause = ?std::error::Error::source(&ended), ?wait, "the watch on the store failed");
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(BACK_OFF.1),
        }
    }
    shared.change(State::close);
    shared.applied.send_modify(|applied| applied.closed = true);
}

/// Applies the events of one watch, and tells why it ended.
async fn follow_once<S: Store, T>(store: &S, shared: &Shared<T>, from: Revision) -> Error {
    let events = match store.watch("", from).await {
        Ok(events) => events,
        Err(error) => return error,
    };
    let mut chunks = events.ready_chunks(APPLY_AT_ONCE);
    while let Some(chunk) = chunks.next().await {
        let mut ended = None;
        let events =
            chunk.into_iter().filter_map(|event| event.map_err(|error| ended = Some(error)).ok()).collect();
        shared.apply(events);
        if let Some(error) = ended {
            return error;
        }
    }
    Error::Closed
}

impl<T> Snapshot<T> {
    /// The revision at which the objects were so.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The objects in key order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Object<T>>> {
        self.from(Bound::Included(&*self.prefix))
    }

    /// The objects that follow `key`, which need not exist, in key order.
    pub fn after<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a Arc<Object<T>>> {
        self.from(if key < &*self.prefix { Bound::Included(&*self.prefix) } else { Bound::Excluded(key) })
    }

    /// How many objects follow `key`. Takes time in proportion to the answer.
    pub fn remaining(&self, key: &str) -> usize {
        self.after(key).count()
    }

    /// The object of `key`, if it is under the prefix.
    pub fn get(&self, key: &str) -> Option<&Arc<Object<T>>> {
        if key.starts_with(&*self.prefix) { self.objects.get(key) } else { None }
    }

    fn from<'a>(&'a self, start: Bound<&'a str>) -> impl Iterator<Item = &'a Arc<Object<T>>> {
        self.objects
            .range::<_, str>((start, Bound::Unbounded))
            .map(|(_, object)| object)
            .take_while(|object| object.key.as_str().starts_with(&*self.prefix))
    }
}

impl<S, T> Clone for Cache<S, T> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), shared: self.shared.clone() }
    }
}

impl<T> Clone for Snapshot<T> {
    fn clone(&self) -> Self {
        Self { objects: self.objects.clone(), prefix: self.prefix.clone(), revision: self.revision }
    }
}
