//! What shim, zygote and monitors say to each other.

use crate::{pause::PauseSpec, state::Status, users::UserNamespace};
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
    /// Another process in the container. Answered at its end. The descriptors beside it are those of its standard
    /// streams that it has, in their order; with a terminal there are none.
    Exec {
        /// What [`Request::KillExec`] names it by; the caller's choice, and of its connection alone.
        token: u64,
        args: Vec<String>,
        streams: ExecStreams,
    },
    /// Ends a process of [`Request::Exec`]; one that is over, or never was, is no error.
    KillExec(u64),
    /// Follows the container's output from now on: the descriptors beside it, pipes to write to, get a copy of it
    /// until the container is over. Who lets its pipe run full is let go.
    Attach {
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ExecStreams {
    /// Which of stdin, stdout and stderr came along; the others are /dev/null.
    Pipes([bool; 3]),
    /// The terminal's other end goes to who listens on this socket.
    Terminal(PathBuf),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    Status(Status),
    /// The exit code of a process of [`Request::Exec`]; 128 + N after signal N.
    Ended(i32),
    /// With the writing end of the container's standard input, or its terminal, if it was asked for and is there.
    Attached,
}

/// A monitor has no news of its own: it leaves `exit.json` and closes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Nothing {}

/// The source of a bind mount that is not there as it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Laid {
    /// A path of the host whose mounts go on to pass both ways.
    Shared(PathBuf),
    /// A path of the host that the container's root may not reach by itself.
    Host { source: PathBuf, mapped: bool },
    /// [`crate::Mount::Layers`].
    Layers { lower: Vec<PathBuf>, sub_path: PathBuf },
}

/// What a monitor must know beside the bundle's `config.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub id: String,
    /// The container's directory: see [`crate::state`].
    pub dir: PathBuf,
    /// The binary of another OCI runtime that is to make it.
    pub runtime: Option<PathBuf>,
    pub rootfs: crate::spec::Rootfs,
    pub cwd: PathBuf,
    /// What is bind-mounted and must be laid out first; each gets a path in `dir`, by its place here.
    pub laid: Vec<Laid>,
    pub cgroup: String,
    pub user: Option<UserNamespace>,
    /// Who owns the pipes, in the host's numbers.
    pub uid: u32,
    pub gid: u32,
    pub terminal: bool,
    pub stdin: bool,
    /// The first attached writer's end is the end of the standard input.
    pub stdin_once: bool,
    pub log_path: Option<PathBuf>,
    pub oom_score_adj: Option<i32>,
    /// Seconds that each call into libcontainer may take.
    pub deadline: u64,
}
