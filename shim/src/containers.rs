//! The life of a container.

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use wharf_cri::v1::{
    ContainerConfig, ContainerEventType, ContainerState, LinuxContainerUser, PodSandboxState,
};
use wharf_image::{Image, Kind, WasmModule};

use crate::error::Error;
use crate::record;
use crate::sandboxes::new_id;
use crate::shim::{Container, Shim, now};
use crate::{files, spec, users};

/// How long the end of a killed container may take to be seen.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

impl Shim {
    /// Makes a container in a sandbox and tells its id. On an error nothing is left.
    pub async fn create_container(
        self: &Arc<Self>,
        sandbox: &str,
        mut config: ContainerConfig,
    ) -> Result<String, Error> {
        let sandbox = self.sandbox(sandbox)?;
        if sandbox.state() != PodSandboxState::SandboxReady {
            return Err(Error::Invalid(format!("pod sandbox {} is not ready", sandbox.id)));
        }
        let name = config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
        let image = self.image(name)?;
        let wasm = image.is_wasm();
        if !wasm && sandbox.is_wasm() {
            let why = format!("{name} is not a wasm image; the runtime handler \"wasm\" runs wasm alone");
            return Err(Error::Invalid(why));
        }
        for mounted in config.mounts.iter_mut().filter_map(|mount| mount.image.as_mut()) {
            mounted.image_ref = self.image(&mounted.image)?.id.to_string();
        }
        let user = if wasm { None } else { Some(self.user(&config, &image).await?) };
        let mut record = record::Container {
            id: new_id(),
            sandbox: sandbox.id.clone(),
            image_id: image.id.to_string(),
            wasm,
            created_at: now(),
            log_path: spec::log_path(sandbox.config(), &config),
            stop_signal: spec::stop_signal(&config, &image),
            user,
            config: Some(config),
            ..Default::default()
        };
        record.set_state(ContainerState::ContainerCreated);
        self.save_container(&record)?;
        // Known before it is made: an end must find it.
        let id = record.id.clone();
        let leases = self.leases(&record);
        self.containers().insert(id.clone(), Arc::new(Container::new(record.clone(), leases)));
        let made = match &image.kind {
            Kind::Wasm(module) => self.create_wasm(&record, &sandbox, &image, module).await,
            Kind::Oci => self.create_oci(&record, &sandbox, &image).await,
        };
        if let Err(error) = made {
            if !wasm {
                remove_dir(&self.container_dir(&id))?;
            }
            self.forget_container(&id)?;
            return Err(error);
        }
        self.publish(&sandbox.id, &id, ContainerEventType::ContainerCreatedEvent);
        Ok(id)
    }

    async fn create_wasm(
        &self,
        record: &record::Container,
        sandbox: &record::Sandbox,
        image: &Image,
        module: &WasmModule,
    ) -> Result<(), Error> {
        let (dir, mounts) = (self.files_dir(&record.id), record.config().mounts.clone());
        let laid = blocking(move || files::lay(&dir, &mounts)).await;
        let made = match laid {
            Ok(laid) => {
                let spec = spec::wasm(record, sandbox, image, module, laid);
                self.wasm()?.create(spec).await.map_err(Error::from)
            }
            Err(error) => Err(error),
        };
        if made.is_err() {
            self.remove_files(&record.id).await?;
        }
        made
    }

    async fn remove_files(&self, id: &str) -> Result<(), Error> {
        let dir = self.files_dir(id);
        blocking(move || files::remove(&dir)).await
    }

    async fn create_oci(
        &self,
        record: &record::Container,
        sandbox: &record::Sandbox,
        image: &Arc<Image>,
    ) -> Result<(), Error> {
        let none = || Error::Invalid(format!("pod sandbox {} has lost its pause process", sandbox.id));
        let pause = self.oci.pauses().into_iter().find(|pause| pause.id == sandbox.id).ok_or_else(none)?;
        // Held until the container has joined it.
        let target = self.target(record).await?;
        let dir = self.sandbox_dir(&sandbox.id);
        let layers = |id: &str| self.image(id).map(|image| self.images.lower_dirs(&image));
        let mut spec = spec::oci(record, sandbox, image, &pause, target.as_ref(), &dir, layers)?;
        spec.runtime = self.handlers.program(&sandbox.handler)?.map(Path::to_owned);
        let own = self.container_dir(&record.id);
        spec.rootfs = wharf_oci::Rootfs::Overlay {
            lower: self.images.lower_dirs(image),
            upper: own.join("upper"),
            work: own.join("work"),
        };
        self.oci.create(spec).await?;
        drop(target);
        Ok(())
    }

    /// The process namespace that the container shares, if it asks for that of another one of its pod.
    async fn target(&self, record: &record::Container) -> Result<Option<OwnedFd>, Error> {
        let Some(id) = spec::target(record.config()) else { return Ok(None) };
        let target = self.container(&id)?;
        let (id, sandbox, wasm, state) =
            target.with(|c| (c.id.clone(), c.sandbox.clone(), c.wasm, c.state()));
        if sandbox != record.sandbox {
            return Err(Error::Invalid(format!("target container {id} is of another pod sandbox")));
        }
        if wasm {
            let why = format!("target container {id} is wasm; it has no process namespace to share");
            return Err(Error::Invalid(why));
        }
        if state != ContainerState::ContainerRunning {
            return Err(Error::State { id, is: state_name(state), wanted: "running" });
        }
        Ok(Some(self.oci.namespace(&id, "pid").await?))
    }

    fn image(&self, name: &str) -> Result<Arc<Image>, Error> {
        self.images.status(name).ok_or_else(|| Error::Unknown { kind: "image", id: name.to_owned() })
    }

    /// Who a container of this image runs as.
    async fn user(&self, config: &ContainerConfig, image: &Image) -> Result<LinuxContainerUser, Error> {
        let passwd = self.image_file(image, "/etc/passwd").await?;
        let group = self.image_file(image, "/etc/group").await?;
        Ok(spec::identity(config, users::resolve(&spec::user(config, image), &passwd, &group)?))
    }

    async fn image_file(&self, image: &Image, path: &str) -> Result<String, Error> {
        let Some(found) = self.images.file(image, path).await? else { return Ok(String::new()) };
        let read = tokio::fs::read(&found).await;
        read.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .map_err(|cause| Error::Start { what: format!("read {path} of the image"), cause })
    }

    /// Starts a created container.
    pub async fn start_container(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let container = self.container(id)?;
        let (id, sandbox, wasm, state) =
            container.with(|c| (c.id.clone(), c.sandbox.clone(), c.wasm, c.state()));
        if state != ContainerState::ContainerCreated {
            return Err(Error::State { id, is: state_name(state), wanted: "created" });
        }
        if wasm {
            let pod = self.sandbox(&sandbox)?;
            let socket = self.own_socket(&id, &pod).await?;
            self.wasm()?.start_container(&id, socket).await?;
        } else {
            self.oci.start_container(&id).await?;
        }
        self.change(&container, |record| {
            record.started_at = now();
            // It may have ended already.
            if record.state() == ContainerState::ContainerCreated {
                record.set_state(ContainerState::ContainerRunning);
            }
            true
        })?;
        self.publish(&sandbox, &id, ContainerEventType::ContainerStartedEvent);
        Ok(())
    }

    /// The socket of a wasm service whose pod has its network elsewhere than in the wasm host's namespace: beside OCI
    /// containers, in the pod's, and with the node's network, here.
    async fn own_socket(&self, id: &str, sandbox: &record::Sandbox) -> Result<Option<OwnedFd>, Error> {
        if sandbox.netns.is_empty() && !sandbox.on_node_network() {
            return Ok(None);
        }
        let Some(port) = self.wasm()?.status(id).await?.port else { return Ok(None) };
        let failed = move |cause| Error::Start { what: format!("listen on port {port} of the pod"), cause };
        let netns = (!sandbox.netns.is_empty()).then(|| PathBuf::from(&sandbox.netns));
        let made = tokio::task::spawn_blocking(move || match netns {
            Some(netns) => wharf_sandbox::netns::within(&netns, || listen(port)).map_err(Error::from),
            None => listen(port).map_err(failed),
        });
        let socket = made.await.map_err(|cause| failed(std::io::Error::other(cause)))??;
        Ok(Some(socket.into()))
    }

    /// Asks a container to end and ends it when `grace` has passed. One that is not there, or is over, is no
    /// error.
    pub async fn stop_container(self: &Arc<Self>, id: &str, grace: Duration) -> Result<(), Error> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        let (id, wasm, state, signal) = container.with(|c| (c.id.clone(), c.wasm, c.state(), c.stop_signal));
        match state {
            ContainerState::ContainerExited => return Ok(()),
            // Never started: nothing runs in it that could end. Its removal ends it.
            ContainerState::ContainerCreated => return Ok(()),
            ContainerState::ContainerRunning | ContainerState::ContainerUnknown => {}
        }
        if wasm {
            match self.wasm()?.stop(&id, grace).await {
                Ok(_)
                | Err(
                    wharf_wasm::Error::Refused(wharf_wasm::Failure::Unknown { .. }) | wharf_wasm::Error::Died,
                ) => {}
                Err(error) => return Err(error.into()),
            }
        } else {
            if !grace.is_zero() {
                self.signal(&id, signal).await?;
                if tokio::time::timeout(grace, container.exited()).await.is_ok() {
                    return Ok(());
                }
            }
            self.signal(&id, nix::libc::SIGKILL).await?;
        }
        tokio::time::timeout(KILL_DEADLINE, container.exited())
            .await
            .map_err(|_| Error::Deaf { id, seconds: KILL_DEADLINE.as_secs() })
    }

    async fn signal(&self, id: &str, signal: i32) -> Result<(), Error> {
        match self.oci.signal(id, signal).await {
            // It ended meanwhile.
            Ok(()) | Err(wharf_oci::Error::Unknown(_) | wharf_oci::Error::State { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a container if need be and forgets it. One that is not there is no error.
    pub async fn remove_container(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        let (id, sandbox, wasm) = container.with(|c| (c.id.clone(), c.sandbox.clone(), c.wasm));
        self.stop_container(&id, Duration::ZERO).await?;
        if wasm {
            self.wasm()?.remove(&id).await?;
            self.remove_files(&id).await?;
        } else {
            match self.oci.remove(&id).await {
                Ok(()) | Err(wharf_oci::Error::Unknown(_)) => {}
                Err(error) => return Err(error.into()),
            }
            remove_dir(&self.container_dir(&id))?;
        }
        self.forget_container(&id)?;
        self.publish(&sandbox, &id, ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }

    /// After a container's log was moved away: makes it anew.
    pub async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        let container = self.container(id)?;
        let (id, wasm, state) = container.with(|c| (c.id.clone(), c.wasm, c.state()));
        if state != ContainerState::ContainerRunning {
            return Err(Error::State { id, is: state_name(state), wanted: "running" });
        }
        if wasm {
            self.wasm()?.reopen_log(&id).await?;
        } else {
            self.oci.reopen_log(&id).await?;
        }
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.expect("no work here panics")
}

/// On every address of the namespace, of both families where it has both.
fn listen(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
}

pub fn remove_dir(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Record { what: format!("the end of {}", path.display()), cause })
        }
        _ => Ok(()),
    }
}

pub fn state_name(state: ContainerState) -> &'static str {
    match state {
        ContainerState::ContainerCreated => "created",
        ContainerState::ContainerRunning => "running",
        ContainerState::ContainerExited => "exited",
        ContainerState::ContainerUnknown => "unknown",
    }
}
