//! What every part of the shim shares, and the ends of containers.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use wharf_cri::v1::{self, ContainerEventType, ContainerState, PodSandboxState};
use wharf_image::{Images, Lease};
use wharf_oci::Oci;
use wharf_sandbox::{Network, Range};
use wharf_wasm::Host;

use crate::Config;
use crate::error::{Error, chain};
use crate::events::Events;
use crate::handlers::Handlers;
use crate::record::{self, Files};
use crate::stats::{Layers, Rates};
use crate::streaming::Streaming;
use crate::view;

/// The exit code of a container that was killed (128 + SIGKILL).
pub const KILLED: i32 = 137;

/// One container as the shim holds it.
pub struct Container {
    record: Mutex<record::Container>,
    /// Told after every change of the record.
    changed: Notify,
    /// Keep the files of its image, and of those that it mounts, while the container exists.
    _leases: Vec<Lease>,
}

impl Container {
    pub fn new(record: record::Container, leases: Vec<Lease>) -> Self {
        Self { record: Mutex::new(record), changed: Notify::new(), _leases: leases }
    }

    /// The record as it is now.
    pub fn get(&self) -> record::Container {
        self.with(|record| record.clone())
    }

    pub fn with<T>(&self, read: impl FnOnce(&record::Container) -> T) -> T {
        read(&self.record.lock().expect("no holder of this lock panics"))
    }

    /// Returns once the container has exited. Cancel-safe.
    pub async fn exited(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.with(|record| record.state() == ContainerState::ContainerExited) {
                return;
            }
            changed.await;
        }
    }
}

/// One node's sandboxes and containers, and what they run on.
pub struct Shim {
    pub config: Config,
    pub handlers: Handlers,
    pub images: Images,
    pub network: Network,
    pub oci: Oci,
    pub streaming: Arc<Streaming>,
    pub events: Events,
    pub rates: Rates,
    pub layers: Layers,
    /// There once the node has its pod range: the host runs in the namespace that owns it.
    wasm: OnceLock<Host>,
    /// Held while the range is set, so that one host is started.
    configuring: tokio::sync::Mutex<()>,
    sandboxes: Mutex<HashMap<String, Arc<record::Sandbox>>>,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    pub sandbox_files: Files<record::Sandbox>,
    pub container_files: Files<record::Container>,
}

impl Shim {
    /// Opens the shim's directories and finds what runs.
    pub async fn open(config: Config, stop: CancellationToken) -> Result<Arc<Self>, Error> {
        let start = |what: &str| {
            let what = what.to_owned();
            move |cause| Error::Start { what, cause }
        };
        let state = &config.state;
        let handlers = Handlers::new(&config.runtimes)?;
        let sandbox_files =
            Files::open(&state.join("sandboxes")).map_err(start("open the sandbox records"))?;
        let container_files =
            Files::open(&state.join("containers")).map_err(start("open the container records"))?;
        let images = wharf_image::Config {
            registries: config.registries.clone(),
            ..wharf_image::Config::new(config.root.join("images"))
        };
        let images = Images::open(images).await?;
        let oci = wharf_oci::Config {
            cgroup_parent: config.cgroup_parent.clone(),
            ..wharf_oci::Config::new(state.join("oci"))
        };
        let (oci, oci_events) = Oci::start(oci).await?;
        let shim = Arc::new(Self {
            network: Network::open(&state.join("netns"))?,
            streaming: Streaming::start(stop.clone()).await.map_err(start("start the streaming server"))?,
            handlers,
            images,
            oci,
            events: Events::new(stop.clone()),
            rates: Rates::default(),
            layers: Layers::default(),
            wasm: OnceLock::new(),
            configuring: tokio::sync::Mutex::default(),
            sandboxes: Mutex::default(),
            containers: Mutex::default(),
            sandbox_files,
            container_files,
            config,
        });
        shim.recover(oci_events, stop).await?;
        Ok(shim)
    }

    /// Of the images whose files a container uses.
    pub fn leases(&self, record: &record::Container) -> Vec<Lease> {
        let mounted = record.config().mounts.iter().filter_map(|mount| mount.image.as_ref());
        let ids = mounted.map(|image| &image.image_ref).chain([&record.image_id]);
        ids.filter_map(|id| self.images.lease(&id.parse().ok()?)).collect()
    }

    pub fn range_file(&self) -> PathBuf {
        self.config.root.join("pod-range")
    }

    /// Gives the node its pod range, unless CNI's networks have their own: starts or finds the wasm host in the namespace
    /// that owns half of it, and writes the range down. A repeat changes nothing.
    pub async fn set_range(self: &Arc<Self>, range: Range) -> Result<(), Error> {
        let _one = self.configuring.lock().await;
        if self.config.with_cni {
            return Ok(());
        }
        if self.wasm.get().is_some() && self.network.range() == Some(range) {
            return Ok(());
        }
        self.network.configure(range).await?;
        for sandbox in self.sandboxes().values() {
            if let Ok(address) = sandbox.address.parse::<Ipv4Addr>() {
                self.network.reserve(address);
            }
        }
        self.start_wasm(Some(self.network.wasm_netns())).await?;
        std::fs::write(self.range_file(), range.to_string())
            .map_err(|cause| Error::Record { what: "the pod range".to_owned(), cause })
    }

    /// Starts or finds the wasm host, in this namespace or in one that there is.
    pub async fn start_wasm(self: &Arc<Self>, netns: Option<PathBuf>) -> Result<(), Error> {
        let config = wharf_wasm::Config {
            netns,
            ..wharf_wasm::Config::new(self.config.state.join("wasm"), self.config.root.join("compiled"))
        };
        let (host, events) = Host::start(config).await?;
        self.settle_wasm(&host).await?;
        tokio::spawn(self.clone().take_wasm_ends(events));
        let _ = self.wasm.set(host);
        Ok(())
    }

    /// The wasm host.
    ///
    /// # Errors
    /// [`wharf_sandbox::Error::NoRange`] until the node has its pod range.
    pub fn wasm(&self) -> Result<&Host, Error> {
        self.wasm.get().ok_or(Error::Network(wharf_sandbox::Error::NoRange))
    }

    /// Whether pods can be given a network.
    ///
    /// # Errors
    /// Why not.
    pub async fn network_ready(&self) -> Result<(), Error> {
        self.wasm()?;
        if self.config.with_cni {
            self.config.cni.status().await?;
        }
        Ok(())
    }

    async fn take_wasm_ends(self: Arc<Self>, mut events: wharf_wasm::Events) {
        while let Some(event) = events.next().await {
            match event {
                wharf_wasm::Event::Exited { id, exit } => self.ended(&id, exit.into()),
                wharf_wasm::Event::Warning { id, message, traps, .. } => {
                    tracing::warn!(container = id, traps, message, "requests trapped");
                }
            }
        }
    }

    pub async fn take_oci_ends(self: Arc<Self>, mut events: wharf_oci::Events, stop: CancellationToken) {
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = events.next() => event,
            };
            let (id, exit) = match event {
                None => return,
                Some(wharf_oci::Event::Exited { id, exit }) => (id, exit),
                Some(wharf_oci::Event::PauseExited { id }) => {
                    self.broken(&id);
                    continue;
                }
            };
            self.ended(&id, exit.into());
        }
    }

    /// A sandbox whose namespaces are gone runs nothing more: who made it ends it and makes another.
    fn broken(&self, id: &str) {
        let Some(sandbox) = self.sandboxes().get(id).cloned() else { return };
        let mut sandbox = record::Sandbox::clone(&sandbox);
        sandbox.set_state(PodSandboxState::SandboxNotready);
        match self.save_sandbox(sandbox) {
            Ok(()) => self.publish(id, id, ContainerEventType::ContainerStoppedEvent),
            Err(error) => tracing::error!(sandbox = id, error = chain(&error), "end not written down"),
        }
    }

    /// Writes down that a container was started by a shim that died before it had done so. A repeat changes nothing.
    pub fn started(&self, container: &Container, at: i64) -> Result<(), Error> {
        let changed = self.change(container, |record| {
            let is_news = record.state() == ContainerState::ContainerCreated;
            if is_news {
                record.set_state(ContainerState::ContainerRunning);
                record.started_at = at;
            }
            is_news
        });
        changed.map(drop)
    }

    /// Writes down that a container ended and tells everybody. A repeat changes nothing.
    pub fn ended(&self, id: &str, ending: Ending) {
        let Some(container) = self.containers().get(id).cloned() else { return };
        let changed = self.change(&container, |record| {
            if record.state() == ContainerState::ContainerExited {
                return false;
            }
            record.set_state(ContainerState::ContainerExited);
            record.exit_code = ending.code;
            record.reason = ending.reason;
            record.message = ending.message;
            record.finished_at = ending.at.max(record.started_at);
            true
        });
        match changed {
            Ok(false) => {}
            Ok(true) => self.publish(
                &container.with(|c| c.sandbox.clone()),
                id,
                ContainerEventType::ContainerStoppedEvent,
            ),
            Err(error) => tracing::error!(container = id, error = chain(&error), "end not written down"),
        }
    }

    /// Changes a container's record, writes it and wakes who waits; `false` from `change` means nothing changed.
    pub fn change(
        &self,
        container: &Container,
        change: impl FnOnce(&mut record::Container) -> bool,
    ) -> Result<bool, Error> {
        let saved = {
            let mut record = container.record.lock().expect("no holder of this lock panics");
            if !change(&mut record) {
                return Ok(false);
            }
            // While it is held, so that what came first is not written last.
            self.save_container(&record)
        };
        container.changed.notify_waiters();
        saved.map(|()| true)
    }

    pub fn save_container(&self, record: &record::Container) -> Result<(), Error> {
        let what = || format!("container {}", record.id);
        self.container_files.save(record).map_err(|cause| Error::Record { what: what(), cause })
    }

    pub fn save_sandbox(&self, record: record::Sandbox) -> Result<(), Error> {
        let what = || format!("sandbox {}", record.id);
        self.sandbox_files.save(&record).map_err(|cause| Error::Record { what: what(), cause })?;
        self.sandboxes().insert(record.id.clone(), Arc::new(record));
        Ok(())
    }

    pub fn forget_sandbox(&self, id: &str) -> Result<(), Error> {
        self.sandboxes().remove(id);
        self.sandbox_files
            .remove(id)
            .map_err(|cause| Error::Record { what: format!("the end of sandbox {id}"), cause })
    }

    pub fn forget_container(&self, id: &str) -> Result<(), Error> {
        self.containers().remove(id);
        self.rates.forget(id);
        self.layers.forget(id);
        let what = || format!("the end of container {id}");
        self.container_files.remove(id).map_err(|cause| Error::Record { what: what(), cause })
    }

    /// What an OCI container wrote: its overlay's upper and work directories.
    pub fn container_dir(&self, id: &str) -> PathBuf {
        self.containers_dir().join(id)
    }

    pub fn containers_dir(&self) -> PathBuf {
        self.config.root.join("containers")
    }

    /// The single files that a wasm container mounts.
    pub fn files_dir(&self, id: &str) -> PathBuf {
        self.config.state.join("files").join(id)
    }

    pub fn sandboxes(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<record::Sandbox>>> {
        self.sandboxes.lock().expect("no holder of this lock panics")
    }

    pub fn containers(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Container>>> {
        self.containers.lock().expect("no holder of this lock panics")
    }

    /// The sandbox of this id, or of an unambiguous beginning of it.
    pub fn sandbox(&self, id: &str) -> Result<Arc<record::Sandbox>, Error> {
        find(&self.sandboxes(), id).ok_or_else(|| Error::Unknown { kind: "pod sandbox", id: id.to_owned() })
    }

    /// The container of this id, or of an unambiguous beginning of it.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        find(&self.containers(), id).ok_or_else(|| Error::Unknown { kind: "container", id: id.to_owned() })
    }

    /// The records of a sandbox's containers, oldest first.
    pub fn containers_of(&self, sandbox: &str) -> Vec<record::Container> {
        let all = self.containers();
        let mut of: Vec<_> =
            all.values().filter(|c| c.with(|c| c.sandbox == sandbox)).map(|c| c.get()).collect();
        of.sort_by_key(|c| c.created_at);
        of
    }

    /// Publishes what happened to `id`, a container of `sandbox` or the sandbox itself.
    pub fn publish(&self, sandbox: &str, id: &str, kind: ContainerEventType) {
        let status = self.sandboxes().get(sandbox).map(|s| view::sandbox_status(s));
        let containers = self.containers_of(sandbox);
        self.events.publish(v1::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: now(),
            pod_sandbox_status: status,
            containers_statuses: containers.iter().map(view::container_status).collect(),
        });
    }
}

/// How a container ended.
pub struct Ending {
    code: i32,
    reason: String,
    message: String,
    /// Nanoseconds since the epoch.
    at: i64,
}

impl Ending {
    /// Of a container that was gone when the shim looked again.
    pub fn lost() -> Self {
        let message = "its runtime was gone when the shim started again".to_owned();
        Self { code: KILLED, reason: "Error".to_owned(), message, at: now() }
    }
}

impl From<wharf_oci::Exit> for Ending {
    fn from(exit: wharf_oci::Exit) -> Self {
        let words = ["Completed", "Error", "OOMKilled"];
        let (reason, message) = match words.contains(&exit.reason.as_str()) {
            true => (exit.reason, String::new()),
            false => ("Error".to_owned(), exit.reason),
        };
        Self { code: exit.code, reason, message, at: parsed(&exit.at) }
    }
}

impl From<wharf_wasm::Exit> for Ending {
    fn from(exit: wharf_wasm::Exit) -> Self {
        let reason = exit.reason.as_str().to_owned();
        Self { code: exit.code, reason, message: exit.message, at: nanos(exit.at) }
    }
}

fn find<T>(all: &HashMap<String, Arc<T>>, id: &str) -> Option<Arc<T>> {
    if let Some(found) = all.get(id) {
        return Some(found.clone());
    }
    if id.is_empty() {
        return None;
    }
    let mut like = all.iter().filter(|(key, _)| key.starts_with(id));
    match (like.next(), like.next()) {
        (Some((_, found)), None) => Some(found.clone()),
        _ => None,
    }
}

/// Nanoseconds since the epoch, as CRI counts time.
pub fn now() -> i64 {
    nanos(Timestamp::now())
}

/// Of RFC 3339.
pub fn parsed(at: &str) -> i64 {
    at.parse().map_or_else(|_| now(), nanos)
}

pub fn nanos(at: Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX)
}
