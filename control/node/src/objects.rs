//! ConfigMaps and Secrets, one at a time: a node may read just those that its pods name. Whoever needs an object's
//! changes shares one watch on it; the watch ends when nobody listens any more.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use base64::Engine as _;
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tracing::warn;
use wharf_kit::api::{self, Absent as _, Rest};
use wharf_kit::chain;
use wharf_kit::view::Key;

use crate::follow::{Change, Part, follow};

/// The two kinds that a pod can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKind {
    ConfigMap,
    Secret,
}

impl ObjectKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }

    pub fn lower(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
        }
    }

    fn kind(self) -> api::Kind {
        match self {
            Self::ConfigMap => api::Kind::core("ConfigMap", "configmaps"),
            Self::Secret => api::Kind::core("Secret", "secrets"),
        }
    }
}

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    pub kind: ObjectKind,
    pub namespace: String,
    pub name: String,
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}/{}", self.namespace, self.name)
    }
}

/// What is in it, by key; a ConfigMap's `binaryData` and a Secret's values are decoded.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Data {
    pub text: BTreeMap<String, Bytes>,
}

/// What is known of an object that is watched.
#[derive(Debug, Clone)]
pub enum Seen {
    /// Not asked yet.
    Unknown,
    Missing,
    Found(Arc<Data>),
}

/// The objects that pods of this node listen to.
pub struct Objects {
    rest: Rest,
    watched: Mutex<HashMap<ObjectName, Weak<Shared>>>,
}

/// Keeps the watch of one object going; ends it when the last one is dropped.
pub struct Shared {
    state: watch::Receiver<Seen>,
    task: tokio::task::AbortHandle,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    /// A receiver of the object's states; only good while this is held.
    pub fn changes(&self) -> watch::Receiver<Seen> {
        self.state.clone()
    }
}

impl Objects {
    pub fn new(rest: Rest) -> Arc<Self> {
        Arc::new(Self { rest, watched: Mutex::default() })
    }

    /// The object as it is now. One request, unless somebody watches it already.
    ///
    /// # Errors
    /// The API did not answer; that the object is not there is `None`.
    pub async fn get(&self, name: &ObjectName) -> Result<Option<Arc<Data>>, api::Error> {
        let watched = self.lock().get(name).and_then(Weak::upgrade);
        if let Some(shared) = watched {
            // A watch that says "missing" may lag behind: then ask.
            if let Seen::Found(data) = &*shared.state.borrow() {
                return Ok(Some(data.clone()));
            }
        }
        let key = Key::new(name.namespace.as_str(), name.name.as_str());
        let object: Option<Object> = self.rest.get(name.kind.kind(), &key).await.absent_ok()?;
        Ok(object.map(|object| Arc::new(object.data(name.kind))))
    }

    /// Joins the watch on the object, or begins it.
    pub fn watch(&self, name: &ObjectName) -> Arc<Shared> {
        let mut watched = self.lock();
        if let Some(shared) = watched.get(name).and_then(Weak::upgrade) {
            return shared;
        }
        watched.retain(|_, shared| shared.strong_count() > 0);
        let (tx, state) = watch::channel(Seen::Unknown);
        let part = Part {
            path: name.kind.kind().path(&name.namespace),
            fields: format!("metadata.name={}", name.name),
        };
        let (changes, received) = mpsc::channel(4);
        let (client, kind) = (self.rest.client().clone(), name.kind);
        let task =
            tokio::spawn(
                async move { tokio::join!(follow(client, part, changes), publish(kind, received, tx)) },
            );
        let shared = Arc::new(Shared { state, task: task.abort_handle() });
        watched.insert(name.clone(), Arc::downgrade(&shared));
        shared
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ObjectName, Weak<Shared>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Turns the changes of one object into its states.
async fn publish(kind: ObjectKind, mut changes: mpsc::Receiver<Change>, tx: watch::Sender<Seen>) {
    while let Some(change) = changes.recv().await {
        let object = match &change {
            Change::Listed(items) => items.first(),
            Change::Applied(object) => Some(object),
            Change::Deleted(_) => None,
        };
        let seen = match object.map(|bytes| serde_json::from_slice::<Object>(bytes)) {
            None => Seen::Missing,
            Some(Ok(object)) => Seen::Found(Arc::new(object.data(kind))),
            Some(Err(error)) => {
                warn!(error = %chain(&error), "a watched object is not understood");
                continue;
            }
        };
        tx.send_if_modified(|have| {
            let same = match (&*have, &seen) {
                (Seen::Found(old), Seen::Found(new)) => old == new,
                (Seen::Missing, Seen::Missing) => true,
                _ => false,
            };
            if !same {
                *have = seen;
            }
            !same
        });
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object {
    #[serde(default)]
    data: Option<BTreeMap<String, String>>,
    #[serde(default)]
    binary_data: Option<BTreeMap<String, String>>,
}

impl Object {
    fn data(self, kind: ObjectKind) -> Data {
        let decode = |text: String| {
            Bytes::from(base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default())
        };
        let plain = self.data.unwrap_or_default().into_iter();
        let binary =
            self.binary_data.unwrap_or_default().into_iter().map(|(key, value)| (key, decode(value)));
        Data {
            text: match kind {
                ObjectKind::ConfigMap => {
                    plain.map(|(key, value)| (key, Bytes::from(value))).chain(binary).collect()
                }
                ObjectKind::Secret => plain.map(|(key, value)| (key, decode(value))).collect(),
            },
        }
    }
}
