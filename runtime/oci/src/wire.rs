//! What shim, zygote and monitors say to each other.

use crate::{pause::PauseSpec, state::Status};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// To the zygote. There is no answer: the new process speaks for itself on the connection sent with the request, and
/// one that could not be forked shows as that connection's end.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Fork {
    /// With two descriptors: the connection and the listening socket.
    Monitor,
    /// With one: a connection for one [`PauseReady`].
    Pause(PauseSpec),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum PauseReady {
    Running { pid: i32 },
    Failed(String),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Create(Box<Plan>),
    Start,
    /// To the container's first process.
    Signal(i32),
    Status,
    ReopenLog,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    Status(Status),
}

/// A monitor has no news of its own: it leaves `exit.json` and closes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Nothing {}

/// What a monitor must know beside the bundle's `config.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub id: String,
    /// The container's directory: see [`crate::state`].
    pub dir: PathBuf,
    pub rootfs: crate::spec::Rootfs,
    pub cwd: PathBuf,
    /// Bind mounts whose propagation to the host is kept; each becomes a directory in `dir`, by its place here.
    pub shared: Vec<PathBuf>,
    pub cgroup: String,
    /// Who owns the pipes.
    pub uid: u32,
    pub gid: u32,
    pub terminal: bool,
    pub stdin: bool,
    pub log_path: Option<PathBuf>,
    pub oom_score_adj: Option<i32>,
    /// Seconds that each call into libcontainer may take.
    pub deadline: u64,
}
