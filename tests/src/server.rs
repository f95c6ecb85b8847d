use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kube::config::{KubeConfigOptions, Kubeconfig};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Said, assets, eventually_async};

/// A `wharf server` in a process of its own, on 127.0.0.1, without a node. It is killed at its end.
pub struct Server {
    root: PathBuf,
    options: Vec<String>,
    port: u16,
    process: Option<Child>,
}

impl Server {
    /// Starts it with `options`; what it keeps and logs is in `root`.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(root: &Path, options: &[&str]) -> Self {
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let mut server = Self { root: root.to_owned(), options, port, process: None };
        server.revive();
        server
    }

    /// Starts it again as it was, or with what was changed.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn revive(&mut self) {
        let log =
            std::fs::File::options().create(true).append(true).open(self.root.join("log")).expect("a log");
        let at = format!("127.0.0.1:{}", self.port);
        let command = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(assets::wharf())
            .arg("server")
            .arg("--root")
            .arg(self.home())
            .args(["--listen", &at, "--san", "127.0.0.1"])
            .args(["--public-url", &format!("https://{at}")])
            .args(&self.options)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.process = Some(command.expect("wharf starts"));
    }

    /// Its `--root`.
    pub fn home(&self) -> PathBuf {
        self.root.join("server")
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }

    /// `kill -9`.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("kill");
            process.wait().expect("wait");
        }
    }

    /// Asks it to end, and waits until it did.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let pid = Pid::from_raw(process.id().try_into().expect("a process id"));
            kill(pid, Signal::SIGTERM).expect("it runs");
            process.wait().expect("wait");
        }
    }

    /// The configuration of a client with the administrator's certificate, once that is there.
    ///
    /// # Panics
    /// If it is not after a while.
    pub async fn config(&self) -> kube::Config {
        let path = self.home().join("admin.kubeconfig");
        eventually_async("the server wrote its kubeconfig", async || {
            let config = Kubeconfig::read_from(&path).map_err(|error| error.to_string())?;
            let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await;
            config.map_err(|error| format!("{error}; {}", self.log()))
        })
        .await
    }

    /// A client, once the server answers.
    ///
    /// # Panics
    /// If it does not after a while.
    pub async fn client(&self) -> kube::Client {
        let _ = rustls::crypto::ring::default_provider().install_default(); // all of a process share one
        eventually_async("the server answers", async || {
            let client = kube::Client::try_from(self.config().await).map_err(|error| error.to_string())?;
            let version = client.apiserver_version().await;
            version.map(|_| client).map_err(|error| format!("{error}; {}", self.log()))
        })
        .await
    }
}

/// Runs `wharf` to its end: a command that is no server.
///
/// # Panics
/// If it cannot be started.
pub fn wharf(arguments: &[&str]) -> Said {
    Said::by(Command::new(assets::wharf()).args(arguments), b"")
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
