//! One worker a pod: an actor that keeps what it knows in [`state`], decides in [`plan`], acts through [`ops`] and tells
//! the API in [`status`]. Messages wake it; it carries out what the plan says until nothing is left to do.

mod backoff;
mod config;
mod ops;
mod plan;
mod state;
mod status;
mod worker;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use wharf_cri::v1;
use wharf_kit::api::Rest;
use wharf_kit::event::Recorder;
use wharf_kit::view::Key;

use crate::images::Images;
use crate::objects::Objects;
use crate::probe::Purpose;
use crate::resources::Machine;
use crate::runtime::{Health, Inventory, Runtime};
use crate::tokens::Tokens;

pub use ops::remove_everything;
pub use worker::Worker;

/// What all workers of a node share.
pub struct Shared {
    /// The node's.
    pub name: String,
    pub host: IpAddr,
    /// The same as text.
    pub host_ip: String,
    pub api_server: (String, u16),
    pub root: PathBuf,
    pub logs: PathBuf,
    pub rest: Rest,
    pub runtime: Runtime,
    pub images: Images,
    pub objects: Arc<Objects>,
    pub tokens: Tokens,
    pub recorder: Recorder,
    pub health: watch::Receiver<Health>,
    pub machine: Machine,
    pub resolver: v1::DnsConfig,
    /// Handlers of the RuntimeClasses seen so far.
    pub classes: Mutex<HashMap<String, String>>,
    pub directory: Directory,
}

/// What a worker is told.
#[derive(Debug)]
pub enum Message {
    /// The pod's object as it is now.
    Pod(Bytes),
    /// The pod's object is gone.
    Gone,
    /// Something happened in its sandbox.
    Runtime(Box<v1::ContainerEventResponse>),
    /// All that the runtime has of it, after the connection was made anew.
    Inventory(Inventory),
    /// A probe came to a new verdict about a container's run.
    Verdict { slot: usize, id: String, purpose: Purpose, good: bool },
}

/// A pod as the node server needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub uid: Arc<str>,
    /// The object, encoded.
    pub raw: Bytes,
    pub sandbox: Option<String>,
    pub containers: Vec<Brief>,
}

/// A container as the node server needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Brief {
    pub name: String,
    /// Of the newest run; none before the first.
    pub attempt: Option<u32>,
    /// What the runtime calls the run, while it runs.
    pub id: Option<String>,
    /// It runs, or may still write its log.
    pub running: bool,
    /// Why it does not.
    pub waiting: String,
}

/// The node's pods by name, for the node server.
#[derive(Debug, Default)]
pub struct Directory(Mutex<HashMap<Key, watch::Receiver<Snapshot>>>);

impl Directory {
    pub fn find(&self, key: &Key) -> Option<watch::Receiver<Snapshot>> {
        self.lock().get(key).cloned()
    }

    pub fn all(&self) -> Vec<Snapshot> {
        self.lock().values().map(|pod| pod.borrow().clone()).collect()
    }

    pub fn insert(&self, key: Key, pod: watch::Receiver<Snapshot>) {
        self.lock().insert(key, pod);
    }

    /// Forgets the pod, unless another of the same name took its place.
    pub fn remove(&self, key: &Key, uid: &str) {
        let mut pods = self.lock();
        if pods.get(key).is_some_and(|pod| &*pod.borrow().uid == uid) {
            pods.remove(key);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, watch::Receiver<Snapshot>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker's inbox, as its dispatcher holds it.
#[derive(Debug, Clone)]
pub struct Handle {
    pub inbox: mpsc::Sender<Message>,
}

/// A worker drains its inbox whatever it is doing, so this is rarely used up; who sends waits then.
const INBOX: usize = 16;

/// Starts the worker of a pod. `inventory`: what the runtime had of it when last listed.
pub fn start(
    shared: Arc<Shared>,
    key: Key,
    raw: Bytes,
    inventory: Option<Inventory>,
    stop: CancellationToken,
) -> Option<(Handle, impl Future<Output = ()> + Send)> {
    let (inbox, messages) = mpsc::channel(INBOX);
    let worker = Worker::new(shared, key, raw, inventory, messages, inbox.clone())?;
    Some((Handle { inbox }, worker.run(stop)))
}

/// Who is asked at this address, by tests that run no command; no runtime is there.
#[cfg(test)]
pub fn asked_at(address: IpAddr) -> crate::ask::Asked {
    let channel = wharf_cri::connect(std::path::Path::new("/nowhere"));
    crate::ask::Asked { address: Some(address), container: String::new(), runtime: Runtime::new(channel) }
}

/// A client of an API that is not there, for tests that need none.
#[cfg(test)]
pub fn nowhere() -> kube::Client {
    let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
        Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("there is no API in this test"))
    });
    kube::Client::new(service, "default")
}
