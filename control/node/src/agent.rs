//! Starts the parts and joins them; the dispatcher between what the API and the runtime say and the pods' workers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};
use wharf_cri::v1;
use wharf_kit::api::Rest;
use wharf_kit::event::Recorder;
use wharf_kit::view::Key;

use crate::follow::{Change, Part, follow};
use crate::images::Images;
use crate::objects::Objects;
use crate::pod::{self, Directory, Message, Shared};
use crate::registration::{self, Machine};
use crate::runtime::{self, Health, Inventory, Report, Runtime, label};
use crate::settle::{self, Settling};
use crate::tokens::Tokens;
use crate::{Config, Error, dns, server};

/// The node agent of one node.
#[derive(Debug)]
pub struct Node;

impl Node {
    /// Registers the node and runs its pods until `stop` is cancelled. Returns as soon as the node server listens:
    /// [`Handle::ready`] tells when the runtime and its network are up. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Those of the first moment: the listener, the certificates, the directories. Later troubles are retried and logged.
    pub async fn start(config: Config, stop: CancellationToken) -> Result<Handle, Error> {
        for path in [config.root.join("pods"), config.logs.clone()] {
            std::fs::create_dir_all(&path).map_err(|cause| Error::Directory { path, cause })?;
        }
        let machine = Machine::read(&config.root)?;
        let server = server::Server::bind(config.serving).await?;
        let address = server.address();
        let resolver = dns::parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()); // none: no names
        let runtime = Runtime::new(config.runtime);
        let rest = Rest::new(config.client.clone());
        let (health_tx, health) = watch::channel(Health::default());
        let (cidr_tx, cidr) = watch::channel(None);
        let (ready_tx, ready) = watch::channel(false);
        let (reports_tx, reports) = mpsc::channel(256);
        let (changes_tx, changes) = mpsc::channel(64);
        let (asks, asked) = settle::channel();
        let relist = Arc::new(Notify::new());
        let shared = Arc::new(Shared {
            name: config.name.clone(),
            host: config.address,
            host_ip: config.address.to_string(),
            api_server: config.api_server,
            root: config.root,
            logs: config.logs,
            images: Images::new(runtime.clone()),
            objects: Objects::new(rest.clone()),
            tokens: Tokens::new(rest.clone()),
            recorder: Recorder::start(config.client.clone(), "kubelet", &config.name, stop.clone()),
            health: health.clone(),
            machine: machine.resources,
            resolver,
            classes: Mutex::default(),
            directory: Directory::default(),
            runtime: runtime.clone(),
            rest: rest.clone(),
        });
        let registration = registration::Registration {
            name: config.name.clone(),
            address: config.address,
            port: address.port(),
            labels: config.labels,
            max_pods: config.max_pods,
            lease: config.lease,
            machine,
            rest,
            ghosts: asks,
        };

        let tracker = TaskTracker::new();
        tracker.spawn(runtime::keep(runtime, cidr, health_tx, reports_tx, stop.clone()));
        tracker.spawn(registration::keep(registration, health, cidr_tx, ready_tx, stop.clone()));
        let part = Part { path: "/api/v1/pods".to_owned(), fields: format!("spec.nodeName={}", config.name) };
        let client = config.client;
        let (following, again) = (stop.clone(), relist.clone());
        tracker.spawn(async move {
            let work = async {
                loop {
                    // Begun anew it lists, and what comes after is in order.
                    let following = follow(client.clone(), part.clone(), changes_tx.clone());
                    tokio::select! { () = following => return, () = again.notified() => {} }
                }
            };
            following.run_until_cancelled(work).await;
        });
        let dispatcher = Dispatcher {
            shared: shared.clone(),
            workers: HashMap::new(),
            tasks: JoinSet::new(),
            waiting: HashMap::new(),
            listed: false,
            found: None,
            settling: Settling::default(),
            cleaning: JoinSet::new(),
            relist,
            stop: stop.clone(),
        };
        tracker.spawn(dispatcher.run(changes, reports, asked));
        tracker.spawn(server.run(shared, stop));
        tracker.close();
        info!(node = config.name, server = %address, "node agent started");
        Ok(Handle { ready, server: address, tracker })
    }
}

/// A running agent.
#[derive(Debug)]
pub struct Handle {
    ready: watch::Receiver<bool>,
    server: SocketAddr,
    tracker: TaskTracker,
}

impl Handle {
    /// Waits until the Node was written as Ready. Cancel-safe; returns at once when it is.
    pub async fn ready(&mut self) {
        if self.ready.wait_for(|ready| *ready).await.is_err() {
            std::future::pending::<()>().await; // stopped before it was ready: it never will be
        }
    }

    /// Where the node server listens.
    pub fn server(&self) -> SocketAddr {
        self.server
    }

    /// Waits until every task of the agent ended, after its token was cancelled.
    pub async fn stopped(self) {
        self.tracker.wait().await;
    }
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    namespace: String,
    uid: Arc<str>,
}

/// Owns the workers. A pod's worker starts when both its object and the runtime's inventory are known, so that nothing
/// that runs already is started again.
struct Dispatcher {
    shared: Arc<Shared>,
    workers: HashMap<Arc<str>, pod::Handle>,
    tasks: JoinSet<Arc<str>>,
    /// Pods that were seen before the runtime was.
    waiting: HashMap<Arc<str>, (Key, Bytes)>,
    /// All pods of this node were listed once.
    listed: bool,
    /// What the runtime has of pods that have no worker (yet). None before the first connection.
    found: Option<HashMap<Arc<str>, Inventory>>,
    settling: Settling,
    /// What removes things of pods that have no worker.
    cleaning: JoinSet<()>,
    /// Has the pods listed afresh.
    relist: Arc<Notify>,
    stop: CancellationToken,
}

impl Dispatcher {
    async fn run(
        mut self,
        mut changes: mpsc::Receiver<Change>,
        mut reports: mpsc::Receiver<Report>,
        mut asked: settle::Asked,
    ) {
        loop {
            let clean = self.listed && self.found.is_some() && self.cleaning.is_empty();
            self.settling.settle(clean);
            tokio::select! {
                () = self.stop.cancelled() => break,
                Some(change) = changes.recv() => self.change(change).await,
                Some(report) = reports.recv() => self.report(report).await,
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => match ended {
                    Ok(uid) => {
                        self.workers.remove(&uid);
                        self.settling.ended(&uid);
                    }
                    Err(error) => warn!(%error, "a pod's worker failed"),
                },
                Some(_) = self.cleaning.join_next(), if !self.cleaning.is_empty() => {}
                Some(answer) = asked.recv() => {
                    self.settling.asked(answer);
                    // The first list, which is on its way, tells as much.
                    if self.listed {
                        self.relist.notify_one();
                    }
                }
            }
        }
        self.tasks.join_all().await; // they have the same token
    }

    async fn change(&mut self, change: Change) {
        match change {
            Change::Listed(pods) => {
                let mut seen = std::collections::HashSet::new();
                for raw in pods {
                    seen.extend(self.applied(raw).await);
                }
                let gone: Vec<_> = self
                    .workers
                    .keys()
                    .chain(self.waiting.keys())
                    .filter(|uid| !seen.contains(*uid))
                    .cloned()
                    .collect();
                for uid in &gone {
                    self.gone(uid).await;
                }
                self.settling.listed(gone.into_iter().filter(|uid| self.workers.contains_key(uid)));
                if !self.listed {
                    self.listed = true;
                    self.clean();
                }
            }
            Change::Applied(raw) => drop(self.applied(raw).await),
            Change::Deleted(raw) => {
                if let Some((_, uid)) = identity(&raw) {
                    self.gone(&uid).await;
                }
            }
        }
    }

    async fn applied(&mut self, raw: Bytes) -> Option<Arc<str>> {
        let (key, uid) = identity(&raw)?;
        if let Some(worker) = self.workers.get(&uid) {
            let _ = worker.inbox.send(Message::Pod(raw)).await; // one that just ended had nothing left to do
        } else if let Some(found) = &mut self.found {
            let inventory = found.remove(&uid);
            self.begin(uid.clone(), key, raw, inventory);
        } else {
            self.waiting.insert(uid.clone(), (key, raw));
        }
        Some(uid)
    }

    async fn gone(&mut self, uid: &Arc<str>) {
        self.waiting.remove(uid);
        if let Some(worker) = self.workers.get(uid) {
            let _ = worker.inbox.send(Message::Gone).await;
        }
    }

    fn begin(&mut self, uid: Arc<str>, key: Key, raw: Bytes, inventory: Option<Inventory>) {
        debug!(pod = %key, adopt = inventory.is_some(), "pod arrived");
        if let Some((handle, run)) = pod::start(self.shared.clone(), key, raw, inventory, self.stop.clone()) {
            let name = uid.clone();
            self.tasks.spawn(async move {
                run.await;
                name
            });
            self.workers.insert(uid, handle);
        }
    }

    async fn report(&mut self, report: Report) {
        match report {
            Report::Event(event) => {
                let Some(uid) = owner(&event) else { return };
                if let Some(worker) = self.workers.get(uid.as_str()) {
                    let _ = worker.inbox.send(Message::Runtime(event)).await;
                }
            }
            Report::Listed(mut all) => {
                for (uid, worker) in &self.workers {
                    let inventory = all.remove(uid).unwrap_or_default();
                    let _ = worker.inbox.send(Message::Inventory(inventory)).await;
                }
                for (uid, (key, raw)) in std::mem::take(&mut self.waiting) {
                    let inventory = all.remove(&uid);
                    self.begin(uid, key, raw, inventory);
                }
                self.found = Some(all);
                self.clean();
            }
        }
    }

    /// Once both sides are known: what belongs to no pod is removed.
    fn clean(&mut self) {
        let Some(found) = self.found.as_mut().filter(|_| self.listed) else { return };
        let strangers: Vec<(Arc<str>, Inventory)> = found.drain().collect();
        let known: std::collections::HashSet<Arc<str>> = self.workers.keys().cloned().collect();
        let shared = self.shared.clone();
        let stop = self.stop.clone();
        let work = async move {
            for (uid, inventory) in strangers {
                info!(
                    uid = &*uid,
                    sandboxes = inventory.sandboxes.len(),
                    "removing what is left of a pod that is gone"
                );
                if let Err(words) = pod::remove_everything(&shared, &uid, None).await {
                    warn!(uid = &*uid, error = words, "could not remove what is left of a pod");
                }
            }
            let leftovers = tokio::task::spawn_blocking(move || remove_leftovers(&shared, &known)).await;
            if let Ok(Err(error)) = leftovers {
                warn!(%error, "could not remove the directories of pods that are gone");
            }
        };
        self.cleaning.spawn(async move {
            stop.run_until_cancelled(work).await;
        });
    }
}

/// Directories of pods that are not known: volumes and logs.
fn remove_leftovers(shared: &Shared, known: &std::collections::HashSet<Arc<str>>) -> std::io::Result<()> {
    let known = |uid: &str| known.contains(uid) || shared.directory.all().iter().any(|pod| &*pod.uid == uid);
    for entry in std::fs::read_dir(shared.root.join("pods"))?.flatten() {
        if let Some(uid) = entry.file_name().to_str().filter(|uid| !known(uid)) {
            crate::volumes::remove(&shared.root, uid)?;
        }
    }
    for entry in std::fs::read_dir(&shared.logs)?.flatten() {
        // NAMESPACE_POD_UID; other things in this directory are not ours.
        let name = entry.file_name();
        let uid = name
            .to_str()
            .filter(|name| name.matches('_').count() == 2)
            .and_then(|name| name.rsplit('_').next());
        if uid.is_some_and(|uid| !known(uid)) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn identity(raw: &Bytes) -> Option<(Key, Arc<str>)> {
    match serde_json::from_slice::<Object>(raw) {
        Ok(Object { metadata }) => Some((Key::new(metadata.namespace, metadata.name), metadata.uid)),
        Err(error) => {
            warn!(%error, "an object in the list of pods is not understood");
            None
        }
    }
}

/// The pod that an event is about.
fn owner(event: &v1::ContainerEventResponse) -> Option<String> {
    let status = event.pod_sandbox_status.as_ref()?;
    let label = status.labels.get(label::POD_UID).cloned();
    label.or_else(|| status.metadata.as_ref().map(|metadata| metadata.uid.clone()))
}
