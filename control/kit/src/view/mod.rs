//! Narrow views: what a loop keeps of the objects it watches, and the reflectors that keep it current.
//!
//! A view is a struct with just the fields that its readers use; it is decoded straight from the bytes of
//! list and watch, so nothing else of an object is ever on the heap. Declare it, say what kind it views,
//! and ask the process's [`Hub`] for its [`Store`]:
//!
//! - one list and one watch per view (and [`Filter`]) and process, however many loops ask for it;
//! - [`Store::get`], [`Store::all`], [`Index::get`] read the cache, never the API;
//! - [`Store::on_change`] runs a function at each change, in order; [`Store::changes`] is the same for a task;
//! - [`Store::ready`] waits for the first list, [`Store::reached`] for a revision: what a loop that has
//!   just written awaits before it reads its cache again.
//!
//! A lost watch is taken up from the last revision or bookmark; 410 Gone lists afresh, and what happened in
//! between is told to readers as ordinary changes. Failures back off from 50 ms to 10 s.

mod meta;
mod reflector;
mod store;

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::api::Kind;

pub use meta::{Meta, OwnerRef, or_default};
pub use store::{Change, Changes, Index, Store};

/// Which objects of a kind: namespace (empty for kinds of the cluster) and name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl Key {
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object of the cluster.
    pub fn cluster(name: impl Into<Arc<str>>) -> Self {
        Self::new("", name)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            out.write_str(&self.name)
        } else {
            write!(out, "{}/{}", self.namespace, self.name)
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// A struct of the fields that some loop reads of one kind.
pub trait View: DeserializeOwned + Send + Sync + 'static {
    const KIND: Kind;

    fn meta(&self) -> &Meta;

    /// Called once after decoding: the place to precompute what would be computed at each read.
    fn prepare(&mut self) {}
}

/// Which objects a store holds; the default is all of the kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Filter {
    /// Empty: every namespace.
    pub namespace: String,
    /// A label selector in string form, or empty.
    pub labels: String,
    /// A field selector in string form, or empty.
    pub fields: String,
}

impl Filter {
    /// All objects that match a field selector: `spec.nodeName=n1`.
    pub fn fields(selector: impl Into<String>) -> Self {
        Self { fields: selector.into(), ..Self::default() }
    }
}

/// The watches of a process. Cheap to clone; its reflectors run until the token is cancelled.
#[derive(Clone)]
pub struct Hub {
    client: kube::Client,
    stop: CancellationToken,
    stores: Arc<Mutex<Stores>>,
}

type Stores = HashMap<(TypeId, Kind, Filter), Box<dyn Any + Send>>;

impl Hub {
    pub fn new(client: kube::Client, stop: CancellationToken) -> Self {
        Self { client, stop, stores: Arc::default() }
    }

    /// The store of all objects that `T` views. The first call starts its reflector (so it needs a tokio
    /// runtime); it returns at once, before anything is listed.
    pub fn view<T: View>(&self) -> Store<T> {
        self.view_of(Filter::default())
    }

    /// As [`Hub::view`] for some of the objects.
    pub fn view_of<T: View>(&self, filter: Filter) -> Store<T> {
        self.view_at(T::KIND, filter)
    }

    /// As [`Hub::view_of`] for another kind than the view's own: for views that fit every kind.
    pub fn view_at<T: View>(&self, kind: Kind, filter: Filter) -> Store<T> {
        let mut stores = self.stores.lock().expect("no holder of this lock panics");
        let slot = stores.entry((TypeId::of::<T>(), kind, filter.clone())).or_insert_with(|| {
            let store = Store::<T>::new();
            let run = reflector::run(self.client.clone(), kind, filter, store.clone());
            let (stop, fed) = (self.stop.clone(), store.clone());
            tokio::spawn(async move {
                stop.run_until_cancelled(run).await;
                fed.end();
            });
            Box::new(store)
        });
        slot.downcast_ref::<Store<T>>().expect("the slot of a type holds its store").clone()
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Hub").finish_non_exhaustive()
    }
}
