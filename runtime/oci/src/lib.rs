//! Runs OCI containers through youki's libcontainer, with one small process per container.
//!
//! Enter at [`Oci::start`] in the shim, and give [`zygote::main`] the process before anything else has run in it when
//! the arguments say so ([`Config::exe`], [`Config::exe_args`]). What runs where:
//!
//! - the **shim** holds an [`Oci`]: prepares the bundle, keeps one connection per container, cleans up;
//! - the **zygote** ([`zygote`]) is the same binary re-executed, single-threaded and almost empty. In: one message per
//!   process wanted. Out: a fork. It ends with the shim and is started again when it dies; nothing else ends with it;
//! - a **monitor** per container (a fork of the zygote) owns the container's stdio, writes its log, reaps it, leaves
//!   `exit.json` and ends. It listens on a socket in the state directory, so that the next shim finds it again. For
//!   create and start it forks a short-lived child that calls libcontainer, since the library changes its caller;
//! - a **pause** process per pod that wants one holds the pod's namespaces (ipc, uts, pid).
//!
//! A container's root is an overlay mounted in that container's own mount namespace: the host's mount table never
//! has it, and nothing is left to unmount. State lives in files below [`Config::state_dir`] (see [`state`]): what a
//! restarted shim needs is there or asked of the monitors.
//!
//! Which low-level runtime is used is a matter of the monitor's create child alone (`monitor/create.rs`): another OCI
//! runtime binary would be called there.

mod bundle;
mod capability;
mod cgroup;
mod details;
mod end;
mod error;
mod exec;
mod monitor;
mod oci;
mod overlay;
mod pause;
mod recover;
mod seccomp;
mod spec;
mod state;
mod sys;
mod terminal;
mod users;
mod wire;
pub mod zygote;

pub use cgroup::Stats;
pub use details::Details;
pub use error::Error;
pub use exec::{Attached, Exec, Stdio};
pub use oci::{Config, Event, Events, Oci};
pub use pause::{Network, Pause, PauseSpec};
pub use spec::{
    Capabilities, ContainerSpec, Device, Mount, Namespaces, Propagation, Resources, Rootfs, Seccomp, User,
};
pub use state::{Exit, Status};
pub use users::{IdMapping, IdMappings, UserNamespace};
