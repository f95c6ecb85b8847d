//! What goes over the host's socket, in the frames of `wharf-link`.

use crate::model::{ContainerSpec, Exec, Exit, Stats, Status};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

/// Raised when the two ends could no longer understand each other.
pub const VERSION: u32 = 2;
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
    /// With the socket of a service beside it, if it has one of its own.
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
    /// Answered at its end.
    Stream(Box<Streamed>),
    /// Ends a [`Request::Stream`] of this connection.
    Interrupt {
        call: u64,
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

/// Work in a container over descriptors, which travel beside it: those that `stdio` says are there, in its order.
#[derive(Debug, Serialize, Deserialize)]
pub struct Streamed {
    pub id: String,
    /// Chosen by the caller, unique in its connection.
    pub call: u64,
    pub what: Work,
    pub stdio: [bool; 3],
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Work {
    Exec(Exec),
    /// To the container's own input and output.
    Attach,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    Hello {
        version: u32,
        pid: u32,
    },
    Done,
    Exit(Exit),
    /// Of a [`Request::Stream`].
    Ended {
        code: i32,
    },
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
    #[error("container {id} is not running")]
    NotRunning { id: String },
    /// The program cannot be run in this container.
    #[error("{why}")]
    Exec { why: String },
    #[error("the wasm host failed: {why}")]
    Internal { why: String },
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Notice {
    Exited { id: String, exit: Exit },
    Warning { id: String, message: String, traps: u64, at: Timestamp },
}
