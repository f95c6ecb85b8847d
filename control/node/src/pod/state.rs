//! What a worker knows of its pod. Plain data: [`super::plan`] decides on it, [`super::status`] tells it to the API.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};
use tokio::time::Instant;

use super::backoff::{Restarts, Tries};
use crate::images::{self, Image};

/// What part a container plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container that keeps running (`restartPolicy: Always`).
    Sidecar,
    Main,
    /// Added while the pod runs, to look into it. Runs once, and the pod does not depend on it.
    Ephemeral,
}

impl Role {
    /// Whether it runs before the main containers.
    pub fn is_init(self) -> bool {
        matches!(self, Self::Init | Self::Sidecar)
    }

    /// Whether the pod's life depends on it: whether it is initialized, ready, over.
    pub fn counts(self) -> bool {
        self != Self::Ephemeral
    }
}

/// One run of a container, as the runtime tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub id: String,
    pub attempt: u32,
    /// Of the parts of the spec that a running container cannot change; see [`hash`].
    pub hash: String,
    pub image_id: String,
    pub run: Run,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Run {
    Created,
    Running { since: Timestamp },
    Exited(Exit),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub started: Timestamp,
    pub finished: Timestamp,
    pub code: i32,
    pub reason: String,
    pub message: String,
}

impl Record {
    pub fn exit(&self) -> Option<&Exit> {
        match &self.run {
            Run::Exited(exit) => Some(exit),
            Run::Created | Run::Running { .. } => None,
        }
    }

    pub fn running(&self) -> bool {
        matches!(self.run, Run::Running { .. })
    }
}

/// The image of a container, as far as the next start is concerned.
#[derive(Debug, Clone, PartialEq)]
pub enum ImageState {
    /// To be looked for, and pulled if the policy says so.
    Wanted,
    Here(Arc<Image>),
    /// Not here; tried again at `tries.retry_at`. `shown`: the error itself was told, now it is the back-off.
    Failed {
        error: images::Error,
        tries: Tries,
        shown: bool,
    },
}

/// What is being done with a container right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    Pulling,
    Starting,
    /// The runtime kills it at this time.
    Stopping {
        kill_at: Instant,
    },
    /// For a ConfigMap or Secret to appear.
    Waiting,
}

/// Why a container could not be made, in the API's words.
#[derive(Debug, Clone, PartialEq)]
pub struct Trouble {
    pub reason: &'static str,
    pub message: String,
    pub tries: Tries,
}

/// A container of the pod, over all its runs.
#[derive(Debug, Clone)]
pub struct Slot {
    pub name: String,
    pub role: Role,
    pub image: ImageState,
    /// The newest run.
    pub current: Option<Record>,
    /// The run before it.
    pub last: Option<Record>,
    pub restarts: u32,
    pub backoff: Restarts,
    /// After an exit: not before this.
    pub restart_at: Option<Instant>,
    pub trouble: Option<Trouble>,
    pub doing: Option<Doing>,
    /// Its startup probe succeeded, or it has none and runs.
    pub started: bool,
    /// Its readiness probe says so, or it has none and is started.
    pub ready: bool,
    /// It must end: a probe failed or its spec changed. The grace to give.
    pub doomed: Option<Duration>,
}

impl Slot {
    fn new(name: &str, role: Role) -> Self {
        Self {
            name: name.to_owned(),
            role,
            image: ImageState::Wanted,
            current: None,
            last: None,
            restarts: 0,
            backoff: Restarts::default(),
            restart_at: None,
            trouble: None,
            doing: None,
            started: false,
            ready: false,
            doomed: None,
        }
    }

    pub fn running(&self) -> bool {
        self.current.as_ref().is_some_and(Record::running)
    }

    pub fn exit(&self) -> Option<&Exit> {
        self.current.as_ref().and_then(Record::exit)
    }

    /// Notes that the current run ended; `now` begins the wait before the next.
    pub fn ended(&mut self, exit: Exit, now: Instant) {
        let Some(record) = &mut self.current else { return };
        if record.exit().is_some() {
            return; // told twice
        }
        let ran = Duration::try_from(exit.finished.duration_since(exit.started)).unwrap_or_default();
        record.run = Run::Exited(exit);
        self.restart_at = Some(now + self.backoff.ended(ran));
        self.image = ImageState::Wanted;
        self.started = false;
        self.ready = false;
        self.doomed = None;
        if matches!(self.doing, Some(Doing::Stopping { .. })) {
            self.doing = None;
        }
    }
}

/// The pod's sandbox in the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    pub id: String,
    pub attempt: u32,
    /// False when it is stopped or died: containers need another one.
    pub ready: bool,
    pub ips: Vec<String>,
}

/// What is being done with the pod as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodDoing {
    /// Finding out what the runtime has of it.
    Adopting,
    Volumes,
    Sandbox,
    /// Stopping the sandbox of a pod that has finished.
    Releasing,
    /// Removing everything of it.
    TearingDown,
}

#[derive(Debug, Clone, PartialEq)]
pub enum VolumeState {
    Wanted,
    Ready,
    /// Told to the user; either retried at `tries.retry_at` or when an object appears.
    Failed {
        message: String,
        tries: Tries,
        waiting: bool,
    },
}

/// The pod shall end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// When each container is killed at the latest.
    pub kill_at: Instant,
}

/// All of it.
#[derive(Debug, Clone)]
pub struct State {
    pub slots: Vec<Slot>,
    pub sandbox: Option<Sandbox>,
    pub sandbox_attempts: u32,
    /// Of making the sandbox, or of removing things.
    pub tries: Tries,
    /// The runtime's words about the last failure.
    pub sandbox_error: Option<String>,
    pub volumes: VolumeState,
    pub doing: Option<PodDoing>,
    pub ending: Option<Ending>,
    /// When `activeDeadlineSeconds` are over.
    pub deadline: Option<Instant>,
    /// They are: the pod has failed.
    pub expired: bool,
    /// Nothing of it is left on this node.
    pub removed: bool,
    /// The sandbox of the finished pod was stopped.
    pub released: bool,
    /// The API says that it has succeeded or failed: nothing of it starts again.
    pub over: bool,
    pub handler: Handler,
    /// The handler of its sandbox, once decided: it stays for the pod's life.
    pub chosen: Option<String>,
}

/// Which runtime handler a pod wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handler {
    /// Told by the images.
    Auto,
    Named(String),
    /// The RuntimeClass could not be read yet.
    Unknown,
}

impl State {
    pub fn new(spec: &PodSpec) -> Self {
        let init = spec.init_containers.iter().flatten().map(|container| {
            let role = if container.restart_policy.as_deref() == Some("Always") {
                Role::Sidecar
            } else {
                Role::Init
            };
            Slot::new(&container.name, role)
        });
        let main = spec.containers.iter().map(|container| Slot::new(&container.name, Role::Main));
        let mut state = Self {
            slots: init.chain(main).collect(),
            sandbox: None,
            sandbox_attempts: 0,
            tries: Tries::none(),
            sandbox_error: None,
            volumes: VolumeState::Wanted,
            doing: None,
            ending: None,
            deadline: None,
            expired: false,
            removed: false,
            released: false,
            over: false,
            chosen: None,
            handler: if spec.runtime_class_name.is_some() { Handler::Unknown } else { Handler::Auto },
        };
        state.add_ephemeral(spec);
        state
    }

    /// Knows the ephemeral containers of the pod that came since. Behind the others, so that these keep their places.
    pub fn add_ephemeral(&mut self, spec: &PodSpec) {
        for container in spec.ephemeral_containers.iter().flatten() {
            if !self.slots.iter().any(|slot| slot.name == container.name) {
                self.slots.push(Slot::new(&container.name, Role::Ephemeral));
            }
        }
    }

    /// Nothing is under way.
    pub fn quiet(&self) -> bool {
        let busy = |slot: &Slot| {
            matches!(slot.doing, Some(Doing::Pulling | Doing::Starting | Doing::Stopping { .. }))
        };
        self.doing.is_none() && !self.slots.iter().any(busy)
    }
}

/// The container of a slot.
pub fn container<'a>(pod: &'a Pod, name: &str) -> Option<Cow<'a, Container>> {
    let spec = pod.spec.as_ref()?;
    let mut lasting = spec.init_containers.iter().flatten().chain(&spec.containers);
    lasting.find(|container| container.name == name).map(Cow::Borrowed).or_else(|| {
        let mut ephemeral = spec.ephemeral_containers.iter().flatten();
        ephemeral.find(|container| container.name == name).map(|container| Cow::Owned(common(container)))
    })
}

/// An ephemeral container's part that other containers have too; no probes, ports, hooks or resources, which it may not have.
fn common(container: &EphemeralContainer) -> Container {
    let of = container.clone();
    Container {
        name: of.name,
        image: of.image,
        command: of.command,
        args: of.args,
        working_dir: of.working_dir,
        env_from: of.env_from,
        env: of.env,
        volume_mounts: of.volume_mounts,
        volume_devices: of.volume_devices,
        termination_message_path: of.termination_message_path,
        termination_message_policy: of.termination_message_policy,
        image_pull_policy: of.image_pull_policy,
        security_context: of.security_context,
        stdin: of.stdin,
        stdin_once: of.stdin_once,
        tty: of.tty,
        ..Container::default()
    }
}

/// The container whose processes this one shall see; empty if it is no ephemeral one or names none.
pub fn target<'a>(pod: &'a Pod, name: &str) -> &'a str {
    let ephemeral = pod.spec.iter().flat_map(|spec| spec.ephemeral_containers.iter().flatten());
    let named = ephemeral.into_iter().find(|container| container.name == name);
    named.and_then(|container| container.target_container_name.as_deref()).unwrap_or_default()
}

/// Changes exactly when a running container must be replaced: its image is the one mutable field that asks for it.
pub fn hash(container: &Container) -> String {
    // FNV-1a, 64 bits: stable across versions of this program, which std's hasher is not.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in [container.name.as_str(), container.image.as_deref().unwrap_or_default()] {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}
