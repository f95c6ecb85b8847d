//! What the shim and the wasm host tell each other about containers.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr, os::fd::OwnedFd, path::PathBuf};

/// One container to be made from a component or core module.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Chosen by the caller, unique in the host for as long as the container is not removed.
    pub id: String,
    /// The program's bytes (WebAssembly binary, not text).
    pub module: PathBuf,
    /// `sha256:` and 64 hex digits, over those bytes.
    pub digest: String,
    /// The first is the program's name.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    /// The pod's own address in the host's network namespace. A service without one is started with a socket.
    pub address: Option<IpAddr>,
    /// Where a service listens unless `env` has `PORT`; 8080 if neither says.
    pub port: Option<u16>,
    /// Bytes, summed over all live instances: memories, tables, and what the host keeps for each of them.
    pub memory_limit: Option<u64>,
    pub cpu: Option<CpuQuota>,
    /// Written in the CRI log format, made when the first line is written. `None`: output is dropped.
    pub log_path: Option<PathBuf>,
    /// A command's standard input stays open for attached clients; without it, it is empty.
    #[serde(default)]
    pub stdin: bool,
    /// It ends with the first client that has ended its own.
    #[serde(default)]
    pub stdin_once: bool,
    /// A command is told that its input and output are a terminal.
    #[serde(default)]
    pub terminal: bool,
    /// Names the pod: containers of one pod have the same. Also the shim's to find its containers again.
    pub pod: String,
}

/// A directory of the host that the guest sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub host: PathBuf,
    /// An absolute path.
    pub guest: String,
    pub read_only: bool,
}

/// At most `quota_micros` of processor time in every `period_micros`, over all threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuQuota {
    pub quota_micros: u64,
    pub period_micros: u64,
}

/// What the program's exports make of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Exports `wasi:http/incoming-handler`: listens, one instance a request.
    Http,
    /// Exports `wasi:cli/run`, or is a core module that exports `_start`: runs once.
    Command,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    Created,
    Running { started_at: Timestamp },
    Exited { started_at: Option<Timestamp>, exit: Exit },
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub code: i32,
    pub reason: Reason,
    /// For people; of a trap, its text and backtrace. Empty when there is nothing to say.
    pub message: String,
    pub at: Timestamp,
}

/// In the words of Kubernetes' container statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    Completed,
    Error,
    #[serde(rename = "OOMKilled")]
    OomKilled,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OomKilled => "OOMKilled",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub id: String,
    pub pod: String,
    pub kind: Kind,
    pub created_at: Timestamp,
    pub state: State,
    pub log_path: Option<PathBuf>,
    /// Where a service listens, or is to listen.
    pub port: Option<u16>,
}

/// A program to be run in a container that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The first is the program's name. The container's own program runs with these, whatever the name; but `tar` and
    /// `test -d`, which cp needs, the host answers itself.
    pub args: Vec<String>,
    /// The program is told that its streams are a terminal.
    pub terminal: bool,
}

/// Descriptors for standard input and output. What is missing reads as empty, or takes everything. They become
/// non-blocking for everybody who has the same open files.
#[derive(Debug, Default)]
pub struct Stdio {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// What a container used since it started, or uses now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    pub cpu_nanos: u64,
    /// What counts against the limit now.
    pub memory_bytes: u64,
    pub memory_peak_bytes: u64,
    /// Zero: no limit.
    pub memory_limit_bytes: u64,
    /// Live now.
    pub instances: u64,
    pub requests: u64,
    /// Requests that ended in a trap.
    pub traps: u64,
    /// Requests that got 503 because the container or the host was full.
    pub refused: u64,
}

/// What happens to containers without being asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Once per container, whatever restarts; also after `stop` and `kill`. A container that is removed
    /// while it runs has none.
    Exited { id: String, exit: Exit },
    /// Requests of this service trapped. At most one a minute and container.
    Warning { id: String, message: String, traps: u64, at: Timestamp },
}
