//! `wharf keeper`: the one process of a development cluster that stays in the host's network namespace (D8).
//!
//! It makes the node's namespace, holds the listener on 127.0.0.1 and hands it down, starts shim and server inside
//! the namespace, restarts with back-off what dies, and reaps what loses its parent. It says on its standard output
//! how far it is, one word a line, then `ready` or `failed: WHY`, and closes it. When it is ended it ends server
//! and shim; containers are left to who asked (`wctl down` sweeps).

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use wharf_sandbox::{isolate, netns};

/// The network that joins the nodes of one development cluster; it exists in the cluster's namespaces alone.
const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 11);
const NODE_PREFIX: u8 = 24;
const API_PORT: u16 = 6443;
const NODE_NAME: &str = "node-1";
/// The first wait before a restart, doubled each time up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A process that ran this long starts again with the first wait.
const STEADY: Duration = Duration::from_secs(10);
/// How long server and shim may take to end before they are killed.
const GRACE: Duration = Duration::from_secs(8);
/// From the start of the server to its API.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// This program.
const SELF: &str = "/proc/self/exe";

#[derive(Args)]
pub struct Options {
    /// Name of the cluster
    #[arg(long)]
    name: String,
    /// Directory for what survives a boot
    #[arg(long)]
    data: PathBuf,
    /// Directory for what does not
    #[arg(long)]
    run: PathBuf,
    /// Port of 127.0.0.1 for the API
    #[arg(long)]
    port: u16,
    /// Give the cluster no way out
    #[arg(long)]
    isolated: bool,
}

pub fn run(options: Options) -> anyhow::Result<()> {
    let lock = take_lock(&options.run.join("keeper.lock"))?;
    // A terminal's end is not the cluster's.
    nix::unistd::setsid().context("leave the terminal's session")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(keep(&options));
    if let Err(error) = &done {
        // Nobody may listen any more; the log has it too.
        let _ = writeln!(io::stdout(), "failed: {error:#}");
    }
    drop(lock);
    done
}

fn take_lock(path: &Path) -> anyhow::Result<Flock<File>> {
    let file = File::options().create(true).truncate(false).read(true).write(true).open(path)?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, error)| error)
        .with_context(|| format!("another keeper holds {}", path.display()))?;
    lock.set_len(0)?;
    (&*lock).write_all(std::process::id().to_string().as_bytes())?;
    Ok(lock)
}

fn say(word: &str) {
    let _ = writeln!(io::stdout(), "{word}"); // who started us may be gone
}

async fn keep(options: &Options) -> anyhow::Result<()> {
    wharf_local::cgroup::join(&options.name).context("make the cluster's cgroup")?;
    nix::sys::prctl::set_child_subreaper(true).context("become the reaper of orphans")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port))
        .with_context(|| format!("listen on 127.0.0.1:{}", options.port))?;

    say("namespaces");
    let node_ns = options.run.join("netns").join(NODE_NAME);
    netns::create(&node_ns)?;
    isolate(&node_ns, NODE_ADDRESS, NODE_PREFIX).await?;

    let mut children = Children::new(signal(SignalKind::child())?);
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    if !options.isolated
        && let Some(plan) = way_out(options, &node_ns)
    {
        children.start(plan)?;
    }

    say("shim");
    children.start(shim(options, &node_ns))?;
    say("server");
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    children.start(server(options, &node_ns, listener.into(), Some(writer)))?;
    tokio::select! {
        ready = first_byte(reader) => ready.context("the server closed before it was ready")?,
        died = children.next() => {
            let name = died?;
            bail!("{name} ended: {}", last_words(&options.log(name)));
        }
        () = tokio::time::sleep(START_DEADLINE) => bail!("the server was not ready within {START_DEADLINE:?}"),
        _ = term.recv() => return children.end().await,
        _ = int.recv() => return children.end().await,
    }
    children.forget_ready();
    say("ready");
    close_stdout()?;
    loop {
        let waiting = children.next_due();
        tokio::select! {
            died = children.next() => children.restart_later(died?),
            name = due(waiting) => children.restart(name)?,
            _ = term.recv() => break,
            _ = int.recv() => break,
        }
    }
    children.end().await
}

impl Options {
    fn log(&self, name: &str) -> PathBuf {
        self.data.join("logs").join(format!("{name}.log"))
    }
}

/// What to start, where, and with which descriptors.
struct Plan {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    /// The host's own without.
    namespace: Option<PathBuf>,
    log: PathBuf,
    /// Handed down under their own numbers.
    kept: Vec<OwnedFd>,
    /// Handed down the first time only: told when the process is ready.
    ready: Option<OwnedFd>,
}

fn shim(options: &Options, namespace: &Path) -> Plan {
    let (data, run) = (options.data.display(), options.run.display());
    let pki = options.data.join("server/pki");
    let pki = pki.display();
    Plan {
        name: "shim",
        program: SELF.into(),
        arguments: words(&[
            "shim",
            &format!("--socket={run}/shim.sock"),
            &format!("--root={data}/shim"),
            &format!("--state={run}/shim"),
            &format!("--cgroup-parent={}", wharf_local::cgroup::pods(&options.name)),
            &format!("--registry=https://{NODE_ADDRESS}:{API_PORT}"),
            &format!("--registry-ca={pki}/ca.crt"),
            &format!("--registry-cert={pki}/node.crt"),
            &format!("--registry-key={pki}/node.key"),
        ]),
        namespace: Some(namespace.to_owned()),
        log: options.log("shim"),
        kept: Vec::new(),
        ready: None,
    }
}

fn server(options: &Options, namespace: &Path, listener: OwnedFd, ready: Option<OwnedFd>) -> Plan {
    let (data, run) = (options.data.display(), options.run.display());
    Plan {
        name: "server",
        program: SELF.into(),
        arguments: words(&[
            "server",
            &format!("--root={data}/server"),
            &format!("--listen={NODE_ADDRESS}:{API_PORT}"),
            &format!("--listen-fd={}", listener.as_raw_fd()),
            &format!("--public-url=https://127.0.0.1:{}", options.port),
            "--with-node",
            &format!("--node-name={NODE_NAME}"),
            &format!("--node-address={NODE_ADDRESS}"),
            &format!("--node-root={data}/node"),
            &format!("--node-logs={data}/logs/pods"),
            &format!("--runtime={run}/shim.sock"),
        ]),
        namespace: Some(namespace.to_owned()),
        log: options.log("server"),
        kept: vec![listener],
        ready,
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// User-mode forwarding to the host's network by `pasta`, where that is installed; without it the cluster is
/// isolated.
fn way_out(options: &Options, namespace: &Path) -> Option<Plan> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let Some(pasta) = std::env::split_paths(&path).map(|dir| dir.join("pasta")).find(|path| path.is_file())
    else {
        tracing::warn!(
            "pasta is not installed: nothing leaves the cluster's network; install Debian's passt"
        );
        return None;
    };
    Some(Plan {
        name: "pasta",
        program: pasta,
        arguments: words(&[
            "--foreground",
            "--quiet",
            "--config-net",
            "--no-map-gw", // the gateway must not stand for the host's own loopback
            "--ns-ifname=out",
            "--runas=0",
            "--tcp-ports=none",
            "--udp-ports=none",
            "--tcp-ns=none",
            "--udp-ns=none",
            &format!("--netns={}", namespace.display()),
        ]),
        namespace: None,
        log: options.log("pasta"),
        kept: Vec::new(),
        ready: None,
    })
}

/// The processes that are kept.
struct Children {
    signal: tokio::signal::unix::Signal,
    kept: HashMap<&'static str, Child>,
}

struct Child {
    plan: Plan,
    pid: Option<Pid>,
    started: Instant,
    wait: Duration,
    /// When it is started again.
    due: Option<Instant>,
}

impl Children {
    fn new(signal: tokio::signal::unix::Signal) -> Self {
        Self { signal, kept: HashMap::new() }
    }

    fn start(&mut self, plan: Plan) -> anyhow::Result<()> {
        let pid = spawn(&plan)?;
        let child = Child { pid: Some(pid), started: Instant::now(), wait: FIRST_WAIT, due: None, plan };
        self.kept.insert(child.plan.name, child);
        Ok(())
    }

    fn forget_ready(&mut self) {
        for child in self.kept.values_mut() {
            child.plan.ready = None;
        }
    }

    /// The name of the next kept process that ended. Orphans are reaped on the way. Cancel-safe.
    async fn next(&mut self) -> anyhow::Result<&'static str> {
        loop {
            while let Some((pid, status)) = reap()? {
                if let Some(child) = self.kept.values_mut().find(|child| child.pid == Some(pid)) {
                    child.pid = None;
                    tracing::warn!(process = child.plan.name, ?status, "ended");
                    return Ok(child.plan.name);
                }
            }
            if self.signal.recv().await.is_none() {
                bail!("no more signals");
            }
        }
    }

    fn restart_later(&mut self, name: &str) {
        let Some(child) = self.kept.get_mut(name) else { return };
        if child.started.elapsed() > STEADY {
            child.wait = FIRST_WAIT;
        }
        child.due = Some(Instant::now() + child.wait);
        child.wait = (child.wait * 2).min(LONGEST_WAIT);
    }

    /// The process whose restart is due next, and when.
    fn next_due(&self) -> Option<(Instant, &'static str)> {
        self.kept.values().filter_map(|child| Some((child.due?, child.plan.name))).min()
    }

    fn restart(&mut self, name: &str) -> anyhow::Result<()> {
        let Some(child) = self.kept.get_mut(name) else { return Ok(()) };
        child.due = None;
        child.pid = Some(spawn(&child.plan)?);
        child.started = Instant::now();
        tracing::info!(process = name, "restarted");
        Ok(())
    }

    /// Ends the server, then the shim, so that nobody asks a shim that is gone.
    async fn end(mut self) -> anyhow::Result<()> {
        for name in ["server", "shim", "pasta"] {
            let Some(pid) = self.kept.get(name).and_then(|child| child.pid) else { continue };
            let _ = kill(pid, Signal::SIGTERM);
            let deadline = tokio::time::Instant::now() + GRACE;
            while self.kept[name].pid.is_some() {
                match tokio::time::timeout_at(deadline, self.next()).await {
                    Ok(ended) => drop(ended?),
                    Err(_) => {
                        tracing::warn!(process = name, "did not end in time; killed");
                        let _ = kill(pid, Signal::SIGKILL);
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Waits until a restart is due; for ever if none is.
async fn due(waiting: Option<(Instant, &'static str)>) -> &'static str {
    let Some((due, name)) = waiting else { return std::future::pending().await };
    tokio::time::sleep_until(due.into()).await;
    name
}

/// Reaps one child that ended, ours or an orphan given to us.
fn reap() -> anyhow::Result<Option<(Pid, WaitStatus)>> {
    match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => Ok(None),
        Ok(status) => Ok(status.pid().map(|pid| (pid, status))),
        Err(error) => Err(error).context("wait for a child"),
    }
}

fn spawn(plan: &Plan) -> anyhow::Result<Pid> {
    let log = File::options().create(true).append(true).open(&plan.log);
    let log = log.with_context(|| format!("open {}", plan.log.display()))?;
    let mut command = Command::new(&plan.program);
    command.arg0(
        plan.program.file_name().filter(|_| plan.program != Path::new(SELF)).unwrap_or("wharf".as_ref()),
    );
    command.args(&plan.arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    if let Some(ready) = &plan.ready {
        command.arg(format!("--ready-fd={}", ready.as_raw_fd()));
    }
    let handed: Vec<_> = plan.kept.iter().chain(&plan.ready).collect();
    // This process has one thread that spawns, so nobody else inherits them meanwhile.
    for fd in &handed {
        fcntl(fd.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    // A child is born into the namespace of the thread that forks it.
    let spawned = match &plan.namespace {
        Some(namespace) => netns::within(namespace, || command.spawn()).map_err(anyhow::Error::from),
        None => command.spawn().map_err(anyhow::Error::from),
    };
    for fd in &handed {
        fcntl(fd.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    let child = spawned.with_context(|| format!("start the {}", plan.name))?;
    Ok(Pid::from_raw(child.id().try_into()?))
}

async fn first_byte(pipe: OwnedFd) -> anyhow::Result<()> {
    let read = tokio::task::spawn_blocking(move || File::from(pipe).read_exact(&mut [0]));
    Ok(read.await??)
}

fn close_stdout() -> anyhow::Result<()> {
    let null = File::options().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(null)?;
    Ok(())
}

/// The last line of a log that says something.
fn last_words(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned()
}
