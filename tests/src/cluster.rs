use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use tempfile::TempDir;

use crate::presence::Presence;
use crate::{Census, Forward, Node, Said, assets};

/// A cluster without a way out. Dropping it purges it; in a test that failed its logs are shown first.
pub struct Cluster {
    pub name: String,
    dir: TempDir,
    pushed: OnceLock<()>,
    /// None while a census is taken of it.
    _presence: Option<Presence>,
}

impl Cluster {
    /// Brings one up and waits until it is ready.
    ///
    /// # Panics
    /// If `wctl up` fails.
    #[track_caller]
    pub fn up() -> Self {
        Self::down().started()
    }

    /// Brings one up with several nodes. One that is silent for `grace` is taken for unreachable.
    ///
    /// # Panics
    /// If `wctl up` fails.
    #[track_caller]
    pub fn of_nodes(nodes: u8, grace: &str) -> Self {
        let cluster = Self::down();
        let (name, nodes) = (&cluster.name, nodes.to_string());
        let grace = format!("--node-monitor-grace-period={grace}");
        cluster.wctl(&["up", name, "--isolated", "--nodes", &nodes, &grace]).ok();
        cluster
    }

    /// Brings one of two nodes up while nobody else may: to be found in the census.
    ///
    /// # Panics
    /// If `wctl up` fails.
    #[track_caller]
    pub fn up_in(_: &Census) -> Self {
        let cluster = Self::named(None);
        cluster.wctl(&["up", &cluster.name, "--isolated", "--nodes", "2"]).ok();
        cluster
    }

    /// Brings one up whose objects are at `store`.
    ///
    /// # Panics
    /// If `wctl up` fails.
    #[track_caller]
    pub fn on(store: &str) -> Self {
        let cluster = Self::down();
        cluster.wctl(&["up", &cluster.name, "--isolated", "--store", store]).ok();
        cluster
    }

    #[track_caller]
    fn started(self) -> Self {
        self.wctl(&["up", &self.name, "--isolated"]).ok();
        self
    }

    /// One that was not brought up yet: its name and its directory.
    pub fn down() -> Self {
        Self::named(Some(Presence::one_of_many()))
    }

    fn named(presence: Option<Presence>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let nth = COUNT.fetch_add(1, Ordering::Relaxed);
        // Short: the paths of its unix sockets may have 107 bytes.
        let dir =
            tempfile::Builder::new().prefix("wh").rand_bytes(4).tempdir_in("/tmp").expect("a directory");
        let name = format!("t{}-{nth}", std::process::id());
        Self { name, dir, pushed: OnceLock::new(), _presence: presence }
    }

    /// `wctl` for this cluster.
    pub fn command(&self) -> Command {
        let mut command = Command::new(assets::wctl());
        command.env_remove("SUDO_UID");
        command
            .env("WHARF_DIR", self.dir.path())
            .env("KUBECONFIG", self.kubeconfig())
            .env("WHARF_BIN", assets::wharf());
        command
    }

    /// Runs `wctl` to its end.
    pub fn wctl(&self, arguments: &[&str]) -> Said {
        Said::by(self.command().args(arguments), b"")
    }

    /// Runs `wctl` with something on its standard input.
    pub fn wctl_reading(&self, arguments: &[&str], stdin: &str) -> Said {
        Said::by(self.command().args(arguments), stdin.as_bytes())
    }

    /// Pushes the examples and the tests' guests into its registry, once: `greeter:1`, `clock:1`, `guest-http:1`,
    /// `guest-command:1`, `guest-core:1` (the same as a core module of WASI 0.1), `busybox:1`.
    #[track_caller]
    pub fn push_images(&self) {
        self.pushed.get_or_init(|| {
            for guest in ["greeter", "guest-http", "guest-command"] {
                let path = assets::guest(guest);
                let said = self.wctl(&["image", "push", &path.display().to_string(), &format!("{guest}:1")]);
                assert_eq!(said.ok().trim(), format!("registry.wharf/{guest}:1"));
            }
            let path = assets::core_guest("guest-command").display().to_string();
            self.wctl(&["image", "push", &path, "guest-core:1"]).ok();
            let bin = self.dir.path().join("busybox/bin");
            fs::create_dir_all(&bin).expect("a folder");
            fs::copy(assets::busybox(), bin.join("busybox")).expect("a copy");
            fs::create_dir_all(self.dir.path().join("busybox/tmp")).expect("a folder");
            for name in [
                "sh", "true", "cat", "tar", "test", "sleep", "stty", "seq", "head", "httpd", "ps", "tty",
                "wc", "wget",
            ] {
                std::os::unix::fs::symlink("busybox", bin.join(name)).expect("a link");
            }
            let rootfs = self.dir.path().join("busybox").display().to_string();
            self.wctl(&["image", "push", &rootfs, "busybox:1", "--entrypoint", "/bin/sh"]).ok();
            let rootfs = self.dir.path().join("clock");
            fs::create_dir_all(&rootfs).expect("a folder");
            fs::copy(assets::clock(), rootfs.join("clock")).expect("a copy");
            let rootfs = rootfs.display().to_string();
            self.wctl(&["image", "push", &rootfs, "clock:1", "--entrypoint", "/clock"]).ok();
        });
    }

    /// A stock client, made from the kubeconfig that `wctl up` wrote.
    ///
    /// # Panics
    /// If that kubeconfig is no good.
    pub async fn client(&self) -> kube::Client {
        let _ = rustls::crypto::ring::default_provider().install_default(); // all of a process share one
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig()).expect("a kubeconfig");
        let options =
            KubeConfigOptions { context: Some(format!("wharf-{}", self.name)), ..Default::default() };
        let config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("a good kubeconfig");
        kube::Client::try_from(config).expect("a client")
    }

    /// Objects as JSON: `get` with these words.
    #[track_caller]
    pub fn get(&self, words: &[&str]) -> Value {
        self.wctl(&[&["get"], words, &["-o", "json"]].concat()).json()
    }

    /// Its first node's network.
    pub fn node(&self) -> Node {
        self.node_called("node-1")
    }

    /// A node's network; that of the `switch` between them, too.
    pub fn node_called(&self, name: &str) -> Node {
        Node::at(self.local().run.join("netns").join(name))
    }

    /// A forwarded port of a pod in the namespace `default`.
    #[track_caller]
    pub fn forward(&self, what: &str, port: u16) -> Forward {
        Forward::start(self.command(), what, port)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// Its places, as `wctl` knows them.
    pub fn local(&self) -> wharf_local::Cluster {
        let layout = wharf_local::Layout::below(self.dir.path());
        layout.cluster(&self.name).expect("the name is a name")
    }

    /// Ends it and deletes everything.
    #[track_caller]
    pub fn purge(&self) {
        self.wctl(&["down", &self.name, "--purge"]).ok();
    }

    /// The last lines of its logs.
    pub fn last_words(&self) -> String {
        const LINES: usize = 40;
        let mut words = String::new();
        for entry in fs::read_dir(self.local().logs()).into_iter().flatten().flatten() {
            let Ok(text) = fs::read_to_string(entry.path()) else { continue };
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(LINES)..].join("\n");
            words.push_str(&format!("--- {} ---\n{tail}\n", entry.file_name().to_string_lossy()));
        }
        words
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.last_words());
        }
        if self.local().data.exists() || self.local().run.exists() {
            let said = self.wctl(&["down", &self.name, "--purge"]);
            if said.code != Some(0) {
                eprintln!("not ended: {said}");
            }
        }
    }
}
