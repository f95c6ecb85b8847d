//! Starting a cluster.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::check;
use crate::down::sweep;
use crate::error::{Error, at};
use crate::layout::{Cluster, Memory};

/// How to start a cluster.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The port of 127.0.0.1 for the API; the one of the last time, or a free one, if none is given.
    pub port: Option<u16>,
    /// No way out of the cluster's network.
    pub isolated: bool,
    /// How many nodes; as many as the last time, or one, if none is given.
    pub nodes: Option<u8>,
    /// Where objects are kept: `--store` and its kin of `wharf server`; as the last time, or on redb, if none are given.
    pub store: Vec<String>,
    /// A node silent for this long is taken for unreachable: Kubernetes' node-monitor-grace-period.
    pub node_grace: Option<Duration>,
    /// What the certificates of those who ask for one live at most: Kubernetes' cluster-signing-duration.
    pub signing_duration: Option<Duration>,
    /// The `wharf` program; the one beside this program, else that in PATH, if none is given.
    pub wharf: Option<PathBuf>,
}

/// What the keeper says on its way up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    Namespaces,
    Shim,
    Server,
}

/// Starts a cluster, or goes on with the data of a known one, and returns when its API answers.
///
/// `progress` is called when a phase begins.
///
/// # Errors
/// What is wrong with the machine or the options, or what the keeper said before it gave up; nothing runs then.
pub fn up(cluster: &Cluster, options: &Options, mut progress: impl FnMut(Phase)) -> Result<(), Error> {
    check::machine()?;
    if cluster.runs() {
        return Err(Error::Runs { name: cluster.name.clone() });
    }
    let wharf = binary(options.wharf.clone())?;
    sweep(cluster)?; // of a crash or a reboot
    let port = port(options.port.or_else(|| cluster.memory().map(|m| m.port)))?;
    let nodes = options.nodes.map_or_else(|| cluster.nodes(), |count| (1..=count).collect());
    let known = || cluster.memory().map(|memory| memory.store).unwrap_or_default();
    let store = if options.store.is_empty() { known() } else { options.store.clone() };
    cluster.remember(&Memory {
        port,
        isolated: options.isolated,
        nodes: nodes.clone(),
        store: store.clone(),
    })?;
    let logs = cluster.logs();
    fs::create_dir_all(&logs).map_err(at("make", &logs))?;
    fs::create_dir_all(&cluster.run).map_err(at("make", &cluster.run))?;
    let log = logs.join("keeper.log");
    let failed = |why: String| Error::Start { name: cluster.name.clone(), why, log: log.clone() };

    let mut command = Command::new(&wharf);
    command.arg("keeper").arg("--name").arg(&cluster.name);
    command
        .arg("--data")
        .arg(&cluster.data)
        .arg("--run")
        .arg(&cluster.run)
        .arg("--port")
        .arg(port.to_string());
    for number in &nodes {
        command.arg(format!("--node={number}"));
    }
    command.args(&store);
    if let Some(grace) = options.node_grace {
        command.arg("--node-monitor-grace-period").arg(format!("{}ms", grace.as_millis()));
    }
    if let Some(duration) = options.signing_duration {
        command.arg("--cluster-signing-duration").arg(format!("{}ms", duration.as_millis()));
    }
    if options.isolated {
        command.arg("--isolated");
    }
    let errors = File::options().create(true).append(true).open(&log).map_err(at("open", &log))?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).current_dir("/");
    let mut keeper = command.spawn().map_err(|cause| failed(format!("{}: {cause}", wharf.display())))?;

    // The keeper names each phase, then `ready` or `failed: WHY`; then it closes the pipe.
    let said = BufReader::new(keeper.stdout.take().expect("it is piped"));
    for line in said.lines() {
        let line = line.map_err(|cause| failed(cause.to_string()))?;
        match line.as_str() {
            "namespaces" => progress(Phase::Namespaces),
            "shim" => progress(Phase::Shim),
            "server" => progress(Phase::Server),
            "ready" => return Ok(()),
            other => {
                let why = other.strip_prefix("failed: ").unwrap_or(other).to_owned();
                let _ = keeper.wait();
                sweep(cluster)?;
                return Err(failed(why));
            }
        }
    }
    let status = keeper.wait().map_err(|cause| failed(cause.to_string()))?;
    sweep(cluster)?;
    Err(failed(format!("its keeper ended with {status}")))
}

/// A port of 127.0.0.1 that is free: the one wanted, or any.
fn port(wanted: Option<u16>) -> Result<u16, Error> {
    let port = wanted.unwrap_or(0);
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|listener| listener.local_addr()) {
        Ok(address) => Ok(address.port()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(Error::Port { port }),
        Err(cause) => {
            Err(Error::File { action: "listen on", path: format!("127.0.0.1:{port}").into(), cause })
        }
    }
}

fn binary(given: Option<PathBuf>) -> Result<PathBuf, Error> {
    let own = std::env::current_exe().unwrap_or_default();
    let beside = own.parent().map(|dir| dir.join("wharf")).unwrap_or_default();
    if let Some(given) = given {
        return fs::canonicalize(&given).map_err(at("find", &given));
    }
    if beside.is_file() {
        return Ok(beside);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|dir| dir.join("wharf")).filter(|path| path.is_file());
    found.next().ok_or(Error::NoBinary { beside: own })
}
