//! Finds the running wasm host of a state directory, or starts one.

use crate::{client::Error, protocol::SOCKET};
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsString,
    fs::{DirBuilder, OpenOptions},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{io::AsyncReadExt, process::Command};
use wharf_link::Socket;

/// From the start of the process to its socket. Setting up an engine of 4,000 slots takes some 20 ms.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// What a host prints to its standard output once its socket takes connections.
pub(crate) const READY: &str = "ready\n";

/// Where a wasm host lives and what it may use.
#[derive(Debug, Clone)]
pub struct Config {
    /// Made if absent, with mode 0700.
    pub state_dir: PathBuf,
    /// Compiled code. May be shared by the hosts of one machine. Made if absent, with mode 0700.
    pub cache_dir: PathBuf,
    /// The program that contains [`crate::host::main`] and [`crate::compile::main`].
    pub exe: PathBuf,
    /// What makes `exe` call [`crate::host::main`] with the arguments after these.
    pub host_args: Vec<OsString>,
    /// What makes `exe` call [`crate::compile::main`] with the arguments after these.
    pub compile_args: Vec<String>,
    /// A network namespace to enter before anything else, such as `/run/netns/NAME`.
    pub netns: Option<PathBuf>,
    pub limits: Limits,
}

impl Config {
    /// Re-executes the running program, with `wasm-host` and `compile` as its first argument.
    pub fn new(state_dir: impl Into<PathBuf>, cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            cache_dir: cache_dir.into(),
            exe: "/proc/self/exe".into(),
            host_args: vec!["wasm-host".into()],
            compile_args: vec!["compile".into()],
            netns: None,
            limits: Limits::default(),
        }
    }
}

/// What one host process may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Guests that compute at the same moment; 0: as many as there are processors.
    pub executors: usize,
    /// Live instances of components, over all containers. Each takes 2 of the 65,530 mappings of a process at the start
    /// and some 4 more while it lives, so 4,000 leave more than half of them; idle services have none.
    pub instances: u32,
    /// Open HTTP connections over all containers: with a listener for each of 10,000 services this stays below the
    /// usual 20,000 descriptors.
    pub connections: usize,
    /// Memory that compiling one module may take.
    pub compile_memory_bytes: u64,
    /// Processor time that compiling one module may take.
    pub compile_cpu_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            executors: 0,
            instances: 4_000,
            connections: 8_000,
            compile_memory_bytes: 4 << 30,
            compile_cpu_seconds: 120,
        }
    }
}

/// What a host process is told on its command line, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    pub state_dir: PathBuf,
    pub cache_dir: PathBuf,
    pub compile_args: Vec<String>,
    pub netns: Option<PathBuf>,
    pub limits: Limits,
}

/// A connection to the host that runs there; `None` if none does.
pub(crate) async fn find(state_dir: &Path) -> Result<Option<Socket>, Error> {
    match Socket::connect(state_dir.join(SOCKET)).await {
        Ok(socket) => Ok(Some(socket)),
        Err(wharf_link::Error::Closed) => Ok(None),
        Err(cause) => Err(Error::Link(cause)),
    }
}

/// Starts a host process and waits until it listens. It is in a session of its own and outlives this process.
pub(crate) async fn start(config: &Config) -> Result<Socket, Error> {
    let failed = |what: &str, cause: std::io::Error| Error::Start { why: format!("{what}: {cause}") };
    for dir in [&config.state_dir, &config.cache_dir] {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|cause| failed(&dir.display().to_string(), cause))?;
    }
    let log_path = config.state_dir.join("host.log");
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&log_path);
    let log = log.map_err(|cause| failed(&log_path.display().to_string(), cause))?;
    let orders = Orders {
        state_dir: config.state_dir.clone(),
        cache_dir: config.cache_dir.clone(),
        compile_args: config.compile_args.clone(),
        netns: config.netns.clone(),
        limits: config.limits.clone(),
    };
    let orders = serde_json::to_string(&orders).map_err(|cause| Error::Start { why: cause.to_string() })?;
    let mut command = Command::new(&config.exe);
    command.args(&config.host_args).arg(orders).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    command.env_clear().current_dir("/");
    for name in ["RUST_LOG", "RUST_BACKTRACE"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    let mut child = command.spawn().map_err(|cause| failed(&config.exe.display().to_string(), cause))?;
    let mut said = String::new();
    let stdout = child.stdout.take().expect("it was piped above");
    let read = tokio::time::timeout(START_DEADLINE, stdout.take(4096).read_to_string(&mut said)).await;
    if said != READY {
        let _ = child.start_kill();
        let why = match read {
            Err(_) => format!("it was not ready after {} s", START_DEADLINE.as_secs()),
            Ok(_) if said.is_empty() => format!("it ended at once; see {}", log_path.display()),
            Ok(_) => said.trim().to_owned(),
        };
        let _ = child.wait().await;
        return Err(Error::Start { why });
    }
    tokio::spawn(async move {
        // Reaps it for as long as this process is its parent.
        if let Ok(status) = child.wait().await {
            tracing::warn!(%status, "wasm host ended");
        }
    });
    find(&config.state_dir).await?.ok_or_else(|| Error::Start { why: "it ended at once".to_owned() })
}
