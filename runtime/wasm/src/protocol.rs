//! What goes over the host's socket, in the frames of `wharf-link`.

use crate::model::{ContainerSpec, Exit, Stats, Status};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

/// Raised when the two ends could no longer understand each other.
pub const VERSION: u32 = 1;
/// Statuses in one answer to [`Request::List`]: some 1 KiB each, well below a frame's 1 MiB.
pub const LIST_PAGE: usize = 256;
/// Where in the state directory the host listens.
pub const SOCKET: &str = "host.sock";

#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    Hello,
    /// From now on notices go to this connection: first the exits that nobody acknowledged, then what happens.
    Subscribe,
    Acknowledge {
        id: String,
    },
    Precompile {
        module: PathBuf,
        digest: String,
    },
    Create(Box<ContainerSpec>),
    Start {
        id: String,
    },
    Stop {
        id: String,
        grace: Duration,
    },
    Kill {
        id: String,
    },
    Remove {
        id: String,
    },
    ReopenLog {
        id: String,
    },
    Status {
        id: String,
    },
    Stats {
        id: String,
    },
    /// Those whose id is greater than `after`, in order of id.
    List {
        after: Option<String>,
    },
    Shutdown,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    Hello {
        version: u32,
        pid: u32,
    },
    Done,
    Exit(Exit),
    Status(Status),
    Stats(Stats),
    /// Fewer than [`LIST_PAGE`]: there are no more.
    List(Vec<Listed>),
    Failed(Failure),
}

/// One container in a list.
#[derive(Debug, Serialize, Deserialize)]
pub struct Listed {
    pub status: Status,
    /// Its end is still to come, or was not acknowledged.
    pub untold: bool,
}

/// Why the host did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Failure {
    #[error("no container {id}")]
    Unknown { id: String },
    #[error("a container {id} exists already")]
    Exists { id: String },
    /// The module cannot be run, whoever asks: malformed, not a component, imports that the host does not have.
    #[error("{why}")]
    Module { why: String },
    /// The container cannot be run as specified: no such directory, address in use.
    #[error("{why}")]
    Spec { why: String },
    /// It ran before; a container starts once.
    #[error("{id} cannot be started: it has exited")]
    Exited { id: String },
    #[error("the wasm host failed: {why}")]
    Internal { why: String },
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Notice {
    Exited { id: String, exit: Exit },
    Warning { id: String, message: String, traps: u64, at: Timestamp },
}
