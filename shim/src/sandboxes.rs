//! The life of a pod sandbox.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use wharf_cri::v1::{ContainerEventType, NamespaceMode, PodSandboxConfig, PodSandboxState};
use wharf_oci::{IdMappings, Network, PauseSpec};
use wharf_sandbox::PortMapping;

use crate::error::{Error, chain};
use crate::record::{Sandbox, namespaces, network_mode};
use crate::shim::{Shim, now};

impl Shim {
    /// Makes a sandbox and tells its id. On an error nothing is left.
    pub async fn run_sandbox(
        self: &Arc<Self>,
        config: PodSandboxConfig,
        handler: String,
    ) -> Result<String, Error> {
        self.handlers.program(&handler)?;
        if config.metadata.is_none() {
            return Err(Error::Invalid("the sandbox config has no metadata".to_owned()));
        }
        let id = new_id();
        let mut record = Sandbox {
            id: id.clone(),
            handler,
            created_at: now(),
            config: Some(config),
            ..Default::default()
        };
        record.set_state(PodSandboxState::SandboxNotready);
        // Written before anything is made, so that a crash leaves no namespace that nobody knows.
        self.save_sandbox(record.clone())?;
        if let Err(error) = self.build(&mut record).await {
            if let Err(also) = self.unmake(&record).await {
                tracing::error!(sandbox = id, error = chain(&also), "could not undo a failed sandbox");
            }
            self.forget_sandbox(&id)?;
            return Err(error);
        }
        record.set_state(PodSandboxState::SandboxReady);
        self.save_sandbox(record)?;
        self.publish(&id, &id, ContainerEventType::ContainerCreatedEvent);
        self.publish(&id, &id, ContainerEventType::ContainerStartedEvent);
        Ok(id)
    }

    async fn build(&self, record: &mut Sandbox) -> Result<(), Error> {
        let mappings = crate::spec::port_mappings(record)?;
        let users = crate::user_namespace::mappings(record.config())?;
        if record.is_wasm() {
            if users.is_some() {
                let why = "a wasm pod has no processes, and so no user namespace; take hostUsers: true or leave it out";
                return Err(Error::Invalid(why.to_owned()));
            }
            if self.config.with_cni {
                return self.connect(record, &mappings, None).await;
            }
            if !record.on_node_network() {
                let address = self.network.take_wasm_address()?;
                record.address = address.to_string();
                self.network.publish(address, &mappings).await?;
            }
            return Ok(());
        }
        let owner = users.as_ref().and_then(|users| users.outside(0, 0));
        // What a user namespace is to have rights over is made by a process in it.
        let inside = users.is_some();
        if inside {
            let pause = self.oci.pause(pause_spec(record, users)).await?;
            self.connect(record, &mappings, Some(pause.namespace("net"))).await?;
        } else {
            self.connect(record, &mappings, None).await?;
        }
        self.save_sandbox(record.clone())?;
        crate::spec::sandbox_files(&self.sandbox_dir(&record.id), record.config(), owner)?;
        if !inside {
            self.oci.pause(pause_spec(record, None)).await?;
        }
        Ok(())
    }

    /// Gives a pod its network: in a new namespace, or in one that was made for it.
    async fn connect(
        &self,
        record: &mut Sandbox,
        mappings: &[PortMapping],
        made: Option<PathBuf>,
    ) -> Result<(), Error> {
        if record.on_node_network() {
            return Ok(());
        }
        if self.config.with_cni {
            return self.connect_by_cni(record, mappings, made).await;
        }
        let pod = self.network.attach(&record.id, made).await?;
        record.address = pod.address.to_string();
        record.netns = pod.netns.display().to_string();
        Ok(self.network.publish(pod.address, mappings).await?)
    }

    /// Ends a sandbox and all in it. One that is not there, or is stopped, is no error.
    pub async fn stop_sandbox(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let Ok(record) = self.sandbox(id) else { return Ok(()) };
        for container in self.containers_of(&record.id) {
            self.stop_container(&container.id, Duration::ZERO).await?;
        }
        if record.state() == PodSandboxState::SandboxNotready
            && record.address.is_empty()
            && record.netns.is_empty()
        {
            return Ok(());
        }
        self.unmake(&record).await?;
        let mut record = Sandbox::clone(&record);
        record.set_state(PodSandboxState::SandboxNotready);
        record.disconnect();
        let id = record.id.clone();
        self.save_sandbox(record)?;
        self.publish(&id, &id, ContainerEventType::ContainerStoppedEvent);
        Ok(())
    }

    /// Stops a sandbox if need be and forgets it and its containers. One that is not there is no error.
    pub async fn remove_sandbox(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let Ok(record) = self.sandbox(id) else { return Ok(()) };
        self.stop_sandbox(&record.id).await?;
        for container in self.containers_of(&record.id) {
            self.remove_container(&container.id).await?;
        }
        self.publish(&record.id, &record.id, ContainerEventType::ContainerDeletedEvent);
        self.forget_sandbox(&record.id)
    }

    /// Undoes what [`Self::build`] did, in whatever state it is.
    pub async fn unmake(&self, record: &Sandbox) -> Result<(), Error> {
        let address = record.address.parse().ok().filter(|_| record.cni.is_none());
        if let Some(own) = address
            && !crate::spec::port_mappings(record)?.is_empty()
        {
            self.network.unpublish(|address| address == own).await?;
        }
        if record.is_wasm() && record.netns.is_empty() {
            if let Some(address) = address {
                self.network.release(address);
            }
            return Ok(());
        }
        match self.oci.remove_pause(&record.id).await {
            Ok(()) | Err(wharf_oci::Error::Unknown(_)) => {}
            Err(error) => return Err(error.into()),
        }
        self.disconnect_by_cni(record).await?;
        if !record.on_node_network() {
            self.network.detach(&record.id, address).await?;
        }
        crate::spec::remove_sandbox_files(&self.sandbox_dir(&record.id))
    }

    /// Where the files of a sandbox are that its containers see.
    pub fn sandbox_dir(&self, id: &str) -> PathBuf {
        self.config.state.join("pods").join(id)
    }
}

fn pause_spec(record: &Sandbox, users: Option<IdMappings>) -> PauseSpec {
    let config = record.config();
    let options = namespaces(config).cloned().unwrap_or_default();
    PauseSpec {
        id: record.id.clone(),
        network: match record.netns.as_str() {
            _ if users.is_some() => Network::New,
            "" => Network::Host,
            netns => Network::Path(netns.into()),
        },
        users,
        // A pod on the node's network has the node's name too.
        hostname: (network_mode(config) != NamespaceMode::Node).then(|| config.hostname.clone()),
        ipc: options.ipc() != NamespaceMode::Node,
        pid: options.pid() == NamespaceMode::Pod,
        sysctls: sysctls(record),
        ..Default::default()
    }
}

/// Those that are asked for, over what a pod with a network of its own has everywhere: no port and no ping needs a right,
/// since nobody else is there to be disturbed.
fn sysctls(record: &Sandbox) -> BTreeMap<String, String> {
    let config = record.config();
    let asked = config.linux.as_ref().map(|linux| linux.sysctls.clone()).unwrap_or_default();
    let mut all = BTreeMap::new();
    if network_mode(config) != NamespaceMode::Node {
        all.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        // A user namespace has not so many groups.
        if !matches!(crate::user_namespace::mappings(config), Ok(Some(_))) {
            all.insert("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
        }
    }
    all.extend(asked);
    all
}

/// 32 random bytes in hexadecimal digits, as container runtimes name things.
pub fn new_id() -> String {
    use std::fmt::Write as _;
    let bytes: [u8; 32] = rand::random();
    bytes.iter().fold(String::with_capacity(64), |mut id, byte| {
        write!(id, "{byte:02x}").expect("writing to a string does not fail");
        id
    })
}
