//! A host in a directory of its own, guests built once, and an HTTP client of few words.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    io::Read,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use wharf_wasm::{Config, ContainerSpec, Event, Events, Exit, Host};

/// Nothing here takes long; a test that waits longer has failed.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub struct Harness {
    pub host: Host,
    pub events: Events,
    pub config: Config,
    process: Process,
    dir: TempDir,
}

/// A host process; ended when a test fails.
struct Process(u32);

impl Drop for Process {
    fn drop(&mut self) {
        if alive(self.0) {
            let _ = kill(Pid::from_raw(self.0 as i32), Signal::SIGKILL);
        }
    }
}

impl Harness {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// With a cache of its own.
    pub async fn with_empty_cache() -> Self {
        Self::with(|config| config.cache_dir = config.state_dir.with_file_name("cache")).await
    }

    pub async fn with(adapt: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        // Compiled once for all tests: the cache is made to be shared.
        let mut config = Config::new(dir.path().join("state"), build_dir().join("cache"));
        config.exe = env!("CARGO_BIN_EXE_wasm-host").into();
        adapt(&mut config);
        let (host, events) = Host::start(config.clone()).await.expect("a host");
        let process = Process(host.pid().await.expect("it runs"));
        Self { host, events, config, process, dir }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn pid(&self) -> u32 {
        self.process.0
    }

    /// Drops the handle as a shim that ends does, lets things happen, and finds the host again as the next one does.
    pub async fn restart_shim(self, meanwhile: impl AsyncFnOnce()) -> Self {
        let Self { host, events, config, process, dir } = self;
        drop((host, events));
        meanwhile().await;
        let (host, events) = Host::start(config.clone()).await.expect("the host that runs");
        assert_eq!(host.pid().await, Some(process.0), "no second host was started");
        Self { host, events, config, process, dir }
    }

    pub fn spec(&self, id: &str, guest: &str) -> ContainerSpec {
        let module = guest_path(guest);
        ContainerSpec {
            id: id.to_owned(),
            digest: digest(&module),
            module,
            args: vec![guest.to_owned()],
            env: Vec::new(),
            mounts: Vec::new(),
            address: Some(Ipv4Addr::LOCALHOST.into()),
            port: None,
            memory_limit: None,
            cpu: None,
            log_path: Some(self.dir.path().join(format!("{id}.log"))),
            stdin: false,
            stdin_once: false,
            terminal: false,
            pod: format!("pod-of-{id}"),
        }
    }

    /// A started service, and where it listens.
    pub async fn serve(&self, mut spec: ContainerSpec) -> SocketAddr {
        let at = free_address().await;
        spec.port = Some(at.port());
        let id = spec.id.clone();
        self.host.create(spec).await.expect("created");
        self.host.start_container(&id, None).await.expect("started");
        at
    }

    /// Runs a command to its end.
    pub async fn run(&mut self, id: &str, args: &[&str], adapt: impl FnOnce(&mut ContainerSpec)) -> Exit {
        self.run_guest("guest-command", id, args, adapt).await
    }

    pub async fn run_guest(
        &mut self,
        guest: &str,
        id: &str,
        args: &[&str],
        adapt: impl FnOnce(&mut ContainerSpec),
    ) -> Exit {
        let mut spec = self.spec(id, guest);
        spec.args.extend(args.iter().map(|&arg| arg.to_owned()));
        adapt(&mut spec);
        self.host.create(spec).await.expect("created");
        self.host.start_container(id, None).await.expect("started");
        self.exit_of(id).await
    }

    pub async fn event(&mut self) -> Event {
        within("an event", self.events.next()).await.expect("the host lives")
    }

    pub async fn exit_of(&mut self, id: &str) -> Exit {
        match self.event().await {
            Event::Exited { id: ended, exit } if ended == id => exit,
            other => panic!("not the end of {id}: {other:?}"),
        }
    }

    pub async fn no_event(&mut self) {
        // Whatever was on its way comes before the answer to a call made now, and this much later for certain.
        let _ = self.host.list().await;
        let none = tokio::time::timeout(Duration::from_millis(50), self.events.next()).await;
        assert!(none.is_err(), "nothing more was to be told: {none:?}");
    }

    /// The log's lines: stream, tag, text.
    pub fn log(&self, id: &str) -> Vec<(String, String, String)> {
        let text = std::fs::read_to_string(self.dir.path().join(format!("{id}.log"))).unwrap_or_default();
        let line = |line: &str| {
            let mut parts = line.splitn(4, ' ').skip(1).map(str::to_owned);
            let mut next = || parts.next().expect("four parts");
            (next(), next(), next())
        };
        text.lines().map(line).collect()
    }

    /// Ends the host and sees that nothing of it is left.
    pub async fn end(self) {
        let pid = self.pid();
        self.host.clone().shutdown().await.expect("shut down");
        eventually("the host is gone", async || !alive(pid)).await;
        assert!(!self.config.state_dir.join("host.sock").exists(), "its socket is gone too");
    }
}

/// Whether it still runs; one that waits to be reaped does not.
pub fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with('Z') && !rest.is_empty())
}

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("waited too long for: {what}"))
}

pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !holds().await {
        assert!(Instant::now() < until, "never held: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub async fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    listener.local_addr().expect("its address")
}

/// One request on a connection of its own.
pub async fn get(at: SocketAddr, path: &str) -> (u16, String) {
    within(path, request(at, "GET", path, "")).await.unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub async fn request(at: SocketAddr, method: &str, path: &str, body: &str) -> Result<(u16, String), String> {
    let told = |error: &dyn std::fmt::Display| error.to_string();
    let stream = TcpStream::connect(at).await.map_err(|error| told(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| told(&error))?;
    let connection = tokio::spawn(connection);
    let request = ::http::Request::builder().method(method).uri(path).header("host", "guest.test");
    let request =
        request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).map_err(|error| told(&error))?;
    let response = sender.send_request(request).await.map_err(|error| told(&error))?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.map_err(|error| told(&error))?.to_bytes();
    connection.abort();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

fn build_dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target directory").join("guests")
}

/// A guest of this repository, as a component; `core/NAME` as a core module. Built at the first call, unless
/// `WHARF_GUESTS` names a directory that has them.
pub fn guest_path(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let dir = BUILT.get_or_init(|| {
        if let Some(dir) = std::env::var_os("WHARF_GUESTS") {
            return dir.into();
        }
        build(&["-p", "greeter", "-p", "wharf-guests", "--target", "wasm32-wasip2"]);
        build(&["-p", "wharf-guests", "--bin", "guest-command", "--target", "wasm32-wasip1"]);
        build_dir().join("wasm32-wasip2/guest")
    });
    match name.strip_prefix("core/") {
        Some(name) => dir.join(format!("../../wasm32-wasip1/guest/{name}.wasm")),
        None => dir.join(format!("{name}.wasm")),
    }
}

fn build(what: &[&str]) {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--locked"]).args(what).args(["--profile", "guest", "--target-dir"]);
    let status = cargo.arg(build_dir()).current_dir(env!("CARGO_MANIFEST_DIR")).status();
    assert!(status.expect("cargo").success(), "the guests do not build");
}

pub fn digest(path: &Path) -> String {
    use sha2::{Digest, Sha256};
    let mut bytes = Vec::new();
    std::fs::File::open(path).expect("a module").read_to_end(&mut bytes).expect("readable");
    let hex: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The proportional set size of a process, in bytes.
pub fn pss(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("it runs");
    let line = text.lines().find(|line| line.starts_with("Pss:")).expect("a sum");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
}
