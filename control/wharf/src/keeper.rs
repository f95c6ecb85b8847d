//! `wharf keeper`: the one process of a development cluster that stays in the host's network namespace (D8).
//!
//! It makes the switch and a namespace for each node, holds the listener on 127.0.0.1 and hands it down, starts the
//! server (which is the first node too), the other nodes' agents and every node's shim inside their namespaces,
//! restarts with back-off what dies, and reaps what loses its parent. It says on its standard output how far it is,
//! one word a line, then `ready` or `failed: WHY`, and closes it. When it is ended it ends server, agents and shims;
//! containers are left to who asked (`wctl down` sweeps).

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
use jiff::SignedDuration;
use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use wharf_kit::api::{Absent as _, Delete, Ignored, Kind, Rest};
use wharf_kit::identity::{self, Pair};
use wharf_kit::renew::Current;
use wharf_kit::view::Key;
use wharf_local::token::Token;
use wharf_sandbox::{Switch, netns};

use crate::join::Wanted;
use crate::pki::Pki;
use crate::store::{EtcdOptions, Location};
use crate::{client, relay, server};

/// The network that joins the nodes of one development cluster; it exists in the cluster's namespaces alone. The
/// first node is at .11, the next at .12.
const NODES: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 0);
const NODE_PREFIX: u8 = 24;
const FIRST_NODE: u8 = 11;
/// Where the first node serves the API.
const API_PORT: u16 = 6443;
/// The first wait before a restart, doubled each time up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A process that ran this long starts again with the first wait.
const STEADY: Duration = Duration::from_secs(10);
/// How long server and shim may take to end before they are killed.
const GRACE: Duration = Duration::from_secs(8);
/// From the start of the server to its API.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// How long the token is good with which new nodes join.
const INVITATION: Duration = Duration::from_secs(10 * 60);
const SECRETS: Kind = Kind::core("Secret", "secrets");

/// The keeper's own part of the cluster's processes.
const KEEPER: &str = "keeper";
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
    /// Where objects are kept: redb, or etcd://HOST:PORT[,HOST:PORT...][/PREFIX]
    #[arg(long, default_value_t = Location::Redb(None))]
    store: Location,
    #[command(flatten)]
    etcd: EtcdOptions,
    /// Give the cluster no way out
    #[arg(long)]
    isolated: bool,
    /// Number of a node; the first runs the control plane
    #[arg(long = "node", default_value = "1")]
    nodes: Vec<u8>,
    /// A node silent for this long is taken for unreachable
    #[arg(long, default_value = server::NODE_GRACE)]
    node_monitor_grace_period: SignedDuration,
    /// What the certificates of those who ask for one live at most
    #[arg(long, default_value = server::SIGNING_DURATION)]
    cluster_signing_duration: SignedDuration,
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
    wharf_local::cgroup::join(&options.name, KEEPER).context("make the cluster's cgroup")?;
    nix::sys::prctl::set_child_subreaper(true).context("become the reaper of orphans")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port))
        .with_context(|| format!("listen on 127.0.0.1:{}", options.port))?;

    say("namespaces");
    let mut nodes: Vec<LocalNode> =
        options.nodes.iter().map(|number| LocalNode::new(options, *number)).collect();
    let switch = Switch::create(&options.run.join("netns/switch")).await?;
    for node in &nodes {
        netns::create(&node.namespace)?;
        switch.plug(&node.name, &node.namespace, node.address, NODE_PREFIX).await?;
    }

    if let Location::Etcd { members, .. } = &options.store {
        relay::lend(members, &nodes[0].namespace).await?;
    }

    let mut children = Children::new(signal(SignalKind::child())?);
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    if !options.isolated {
        let pasta = pasta();
        for node in &nodes {
            pasta.iter().try_for_each(|pasta| children.start(way_out(options, node, pasta)))?;
        }
    }

    say("shim");
    let pki = Pki::open(&options.data.join("server/pki"))?;
    for node in &nodes {
        children.start(shim(options, node))?;
    }
    say("server");
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    children.start(server(options, &nodes[0], listener.into(), Some(writer)))?;
    // Who is a node already needs nobody's leave to start.
    let (members, strangers): (Vec<&LocalNode>, Vec<&LocalNode>) =
        nodes[1..].iter().partition(|node| Wanted::client(&node.name).kept(&node.pki).is_some());
    for node in members {
        children.start(agent(options, node, &[], None))?;
    }
    tokio::select! {
        ready = first_byte(reader) => ready.context("the server closed before it was ready")?,
        died = children.next() => {
            let name = died?;
            bail!("{name} ended: {}", last_words(&options.log(&name)));
        }
        () = tokio::time::sleep(START_DEADLINE) => bail!("the server was not ready within {START_DEADLINE:?}"),
        _ = term.recv() => return children.end(|_| true).await,
        _ = int.recv() => return children.end(|_| true).await,
    }
    if !strangers.is_empty() {
        let invitation = Invitation::write(options, &pki).await?;
        let mut joined = Vec::new();
        for node in strangers {
            let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
            children.start(agent(options, node, &invitation.arguments, Some(writer)))?;
            joined.push(first_byte(reader));
        }
        tokio::spawn(invitation.keep_until(joined));
    }
    children.forget_ready();
    say("ready");
    close_stdout()?;
    loop {
        let waiting = children.next_due();
        tokio::select! {
            died = children.next() => children.restart_later(&died?),
            name = due(waiting) => children.restart(&name)?,
            // The list of nodes changed.
            _ = hangup.recv() => {
                let wanted = options.cluster().nodes();
                for node in nodes.extract_if(.., |node| !wanted.contains(&node.number)) {
                    // The rest of the cluster goes on; who asked sees that the node is left, and `wctl down` sweeps.
                    if let Err(error) = remove(options, &mut children, &node).await {
                        tracing::warn!(node = node.name, error = format!("{error:#}"), "could not be removed");
                    }
                }
            }
            _ = term.recv() => break,
            _ = int.recv() => break,
        }
    }
    children.end(|_| true).await
}

/// Ends a node for good.
async fn remove(options: &Options, children: &mut Children, node: &LocalNode) -> anyhow::Result<()> {
    children.end(|plan| plan.node == node.name).await?;
    children.kept.retain(|_, child| child.plan.node != node.name);
    wharf_local::sweep_node(&options.cluster(), &node.name)?;
    netns::remove(&node.namespace)?;
    tracing::info!(node = node.name, "removed");
    Ok(())
}

impl Options {
    fn cluster(&self) -> wharf_local::Cluster {
        wharf_local::Cluster { name: self.name.clone(), data: self.data.clone(), run: self.run.clone() }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.data.join("logs").join(format!("{name}.log"))
    }
}

/// A node of the cluster, and its places.
struct LocalNode {
    number: u8,
    name: String,
    address: Ipv4Addr,
    namespace: PathBuf,
    /// What survives a boot, and what does not.
    data: PathBuf,
    run: PathBuf,
    /// Its own certificate and key, and the CA.
    pki: PathBuf,
}

impl LocalNode {
    fn new(options: &Options, number: u8) -> Self {
        let name = wharf_local::node_name(number);
        let below = |dir: &Path| if number == 1 { dir.to_owned() } else { dir.join("nodes").join(&name) };
        let data = below(&options.data);
        Self {
            number,
            address: Ipv4Addr::from_bits(NODES.to_bits() + u32::from(FIRST_NODE + number - 1)),
            namespace: options.run.join("netns").join(&name),
            pki: data.join(if number == 1 { "server/pki" } else { "pki" }),
            data,
            run: below(&options.run),
            name,
        }
    }

    /// What a process of this node is called: `shim`, `shim-node-2`.
    fn called(&self, process: &str) -> String {
        if self.number == 1 { process.to_owned() } else { format!("{process}-{}", self.name) }
    }
}

/// A bootstrap token for the nodes that are new, and how they are told of it.
struct Invitation {
    token: Token,
    rest: Rest,
    file: PathBuf,
    arguments: Vec<String>,
}

impl Invitation {
    /// Makes the token known to the API server, which must be ready, and writes the file with it, for root alone.
    async fn write(options: &Options, pki: &Pki) -> anyhow::Result<Self> {
        let files = pki.files("admin");
        let admin = Current::new(&Pair::load(&files.cert, &files.key)?)?;
        let url = format!("https://127.0.0.1:{}", options.port);
        let rest = Rest::new(client::client(&url, pki.ca.cert_pem(), &admin, None, START_DEADLINE)?);
        let token = Token::generate();
        let expires = jiff::Timestamp::now() + SignedDuration::try_from(INVITATION)?;
        let object = token.object(Some(expires), "nodes of this cluster's own machine");
        rest.create::<Ignored>(SECRETS, "kube-system", &object).await.context("make a bootstrap token")?;
        let file = options.run.join("token");
        identity::write_private(&file, token.text().as_bytes())?;
        let ca = identity::certificates(pki.ca.cert_pem())?;
        let arguments = vec![
            format!("--token-file={}", file.display()),
            format!("--ca-cert-hash=sha256:{}", identity::public_key_hash(&ca[0])?),
        ];
        Ok(Self { token, rest, file, arguments })
    }

    /// Takes it back when all have joined, or when it has expired.
    async fn keep_until(self, joined: Vec<impl Future<Output = anyhow::Result<()>>>) {
        let all = async {
            for one in joined {
                if one.await.is_err() {
                    // Its agent ended before it had joined; the next needs the token too.
                    std::future::pending::<()>().await;
                }
            }
        };
        let _ = tokio::time::timeout(INVITATION, all).await;
        let key = Key::new("kube-system", self.token.secret_name().as_str());
        let gone = self.rest.delete::<Ignored>(SECRETS, &key, &Delete::default()).await.absent_ok();
        if let Err(error) = gone {
            tracing::warn!(
                error = wharf_kit::chain(&error).to_string(),
                "a bootstrap token stays until it expires"
            );
        }
        let _ = fs::remove_file(&self.file); // nobody can use it any more
    }
}

/// What to start, where, and with which descriptors.
struct Plan {
    name: String,
    /// Whose cgroup it is born into.
    node: String,
    cluster: String,
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

/// A process of ours on a node.
fn plan(options: &Options, node: &LocalNode, name: String, arguments: Vec<String>) -> Plan {
    Plan {
        node: node.name.clone(),
        cluster: options.name.clone(),
        program: SELF.into(),
        arguments,
        namespace: Some(node.namespace.clone()),
        log: options.log(&name),
        name,
        kept: Vec::new(),
        ready: None,
    }
}

fn api_url() -> String {
    format!("https://{}:{API_PORT}", Ipv4Addr::from_bits(NODES.to_bits() + u32::from(FIRST_NODE)))
}

fn shim(options: &Options, node: &LocalNode) -> Plan {
    let (data, run, pki) = (node.data.display(), node.run.display(), node.pki.display());
    let arguments = words(&[
        "shim",
        &format!("--socket={run}/shim.sock"),
        &format!("--root={data}/shim"),
        &format!("--state={run}/shim"),
        "--network=bridge",
        &format!("--cgroup-parent={}", wharf_local::cgroup::pods(&options.name, &node.name)),
        &format!("--registry={}", api_url()),
        &format!("--registry-ca={pki}/ca.crt"),
        &format!("--registry-cert={pki}/node.crt"),
        &format!("--registry-key={pki}/node.key"),
    ]);
    plan(options, node, node.called("shim"), arguments)
}

/// What server and agent are told of their node.
fn node_arguments(options: &Options, node: &LocalNode) -> Vec<String> {
    let (data, run, logs) = (node.data.display(), node.run.display(), options.data.display());
    words(&[
        &format!("--node-name={}", node.name),
        &format!("--node-address={}", node.address),
        &format!("--node-root={data}/node"),
        &format!("--node-logs={logs}/logs/{}", node.called("pods")),
        &format!("--runtime={run}/shim.sock"),
        &format!("--node-lease-duration={}", options.node_monitor_grace_period),
    ])
}

fn server(options: &Options, node: &LocalNode, listener: OwnedFd, ready: Option<OwnedFd>) -> Plan {
    let mut arguments = words(&[
        "server",
        &format!("--root={}/server", options.data.display()),
        &format!("--listen={}:{API_PORT}", node.address),
        &format!("--listen-fd={}", listener.as_raw_fd()),
        &format!("--public-url=https://127.0.0.1:{}", options.port),
        &format!("--node-monitor-grace-period={}", options.node_monitor_grace_period),
        &format!("--cluster-signing-duration={}", options.cluster_signing_duration),
        &format!("--store={}", options.store),
        "--with-node",
    ]);
    arguments.extend(options.etcd.arguments());
    arguments.extend(node_arguments(options, node));
    Plan { kept: vec![listener], ready, ..plan(options, node, "server".to_owned(), arguments) }
}

fn agent(options: &Options, node: &LocalNode, join: &[String], ready: Option<OwnedFd>) -> Plan {
    let mut arguments =
        words(&["node", &format!("--server={}", api_url()), &format!("--pki={}", node.pki.display())]);
    arguments.extend(node_arguments(options, node));
    arguments.extend_from_slice(join);
    Plan { ready, ..plan(options, node, node.name.clone(), arguments) }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// User-mode forwarding to the host's network, where it is installed; without it the cluster is isolated.
fn pasta() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let pasta = std::env::split_paths(&path).map(|dir| dir.join("pasta")).find(|path| path.is_file());
    if pasta.is_none() {
        tracing::warn!(
            "pasta is not installed: nothing leaves the cluster's network; install Debian's passt"
        );
    }
    pasta
}

fn way_out(options: &Options, node: &LocalNode, pasta: &Path) -> Plan {
    let arguments = words(&[
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
        &format!("--netns={}", node.namespace.display()),
    ]);
    let program = pasta.to_owned();
    Plan { program, namespace: None, ..plan(options, node, node.called("pasta"), arguments) }
}

/// The processes that are kept.
struct Children {
    signal: tokio::signal::unix::Signal,
    kept: HashMap<String, Child>,
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
        self.kept.insert(child.plan.name.clone(), child);
        Ok(())
    }

    fn forget_ready(&mut self) {
        for child in self.kept.values_mut() {
            child.plan.ready = None;
        }
    }

    /// The name of the next kept process that ended. Orphans are reaped on the way. Cancel-safe.
    async fn next(&mut self) -> anyhow::Result<String> {
        loop {
            while let Some((pid, status)) = reap()? {
                if let Some(child) = self.kept.values_mut().find(|child| child.pid == Some(pid)) {
                    child.pid = None;
                    tracing::warn!(process = child.plan.name, ?status, "ended");
                    return Ok(child.plan.name.clone());
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
    fn next_due(&self) -> Option<(Instant, String)> {
        self.kept.values().filter_map(|child| Some((child.due?, child.plan.name.clone()))).min()
    }

    fn restart(&mut self, name: &str) -> anyhow::Result<()> {
        let Some(child) = self.kept.get_mut(name) else { return Ok(()) };
        child.due = None;
        child.pid = Some(spawn(&child.plan)?);
        child.started = Instant::now();
        tracing::info!(process = name, "restarted");
        Ok(())
    }

    /// Ends these processes: agents and server, then shims, so that nobody asks a shim that is gone.
    async fn end(&mut self, these: impl Fn(&Plan) -> bool) -> anyhow::Result<()> {
        let is_shim = |name: &str| name == "shim" || name.starts_with("shim-");
        for shims in [false, true] {
            let deadline = tokio::time::Instant::now() + GRACE;
            let running: Vec<(String, Pid)> = self
                .kept
                .iter()
                .filter(|(name, child)| is_shim(name) == shims && these(&child.plan))
                .filter_map(|(name, child)| Some((name.clone(), child.pid?)))
                .collect();
            for (_, pid) in &running {
                let _ = kill(*pid, Signal::SIGTERM);
            }
            while let Some((name, pid)) = running.iter().find(|(name, _)| self.kept[name].pid.is_some()) {
                match tokio::time::timeout_at(deadline, self.next()).await {
                    Ok(ended) => self.restart_later(&ended?), // in case it is none of these
                    Err(_) => {
                        tracing::warn!(process = name, "did not end in time; killed");
                        let _ = kill(*pid, Signal::SIGKILL);
                        self.kept.entry(name.clone()).and_modify(|child| child.pid = None);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Waits until a restart is due; for ever if none is.
async fn due(waiting: Option<(Instant, String)>) -> String {
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
    // A process is born into its parent's cgroup; this one has one thread that spawns.
    wharf_local::cgroup::join(&plan.cluster, &plan.node).context("join the node's cgroup")?;
    let spawned = spawn_here(plan);
    wharf_local::cgroup::join(&plan.cluster, KEEPER).context("come back from the node's cgroup")?;
    spawned
}

fn spawn_here(plan: &Plan) -> anyhow::Result<Pid> {
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
