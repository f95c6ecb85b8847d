//! A `wharf shim` alone, for other people's clients of CRI.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{assets, eventually};

/// Leaves the host's network and mounts, before this process has a second thread. What is mounted from here on is seen by
/// the containers of its children, as a suite for CRI expects, and by nothing outside.
pub fn isolate() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    for flags in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
        mount(None::<&str>, "/", None::<&str>, flags | MsFlags::MS_REC, None::<&str>)?;
    }
    // Else names of interfaces in /sys are those of the host.
    mount(Some("sysfs"), "/sys/class/net", Some("sysfs"), MsFlags::empty(), None::<&str>).ok();
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("ip")?;
    ensure!(up.success(), "the loopback link does not come up");
    Ok(())
}

/// A server of CRI that ends with this, and with all that it left running.
pub struct CriServer {
    process: Child,
    pub socket: PathBuf,
}

impl CriServer {
    /// A `wharf shim` with all its files in `dir` and its pods in `pods`, which pulls from `registry` alone.
    pub fn shim(dir: &Path, registry: &str, pods: &str) -> anyhow::Result<Self> {
        let registries = dir.join("registries.json");
        let mirrors = serde_json::json!({"mirrors": [{"url": registry}], "mirrors_only": true});
        fs::write(&registries, serde_json::json!({"hosts": {"*": mirrors}}).to_string())?;
        let socket = dir.join("shim.sock");
        let mut command = Command::new(assets::wharf());
        command.arg("shim").arg("--socket").arg(&socket);
        command.arg("--root").arg(dir.join("root")).arg("--state").arg(dir.join("state"));
        command.args(["--cgroup-parent", &format!("/wharf-cri-{}", std::process::id()), "--pod-cidr", pods]);
        command.arg("--registries").arg(registries);
        Self::start(command, socket, &dir.join("shim.log"))
    }

    /// Starts `command`, which logs to `log`, and waits until it serves.
    pub fn start(mut command: Command, socket: PathBuf, log: &Path) -> anyhow::Result<Self> {
        nix::sys::prctl::set_child_subreaper(true)?;
        let log = File::create(log)?;
        let process = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let process = process.with_context(|| command.get_program().display().to_string())?;
        let server = Self { process, socket };
        eventually("the server of CRI serves", || {
            std::os::unix::net::UnixStream::connect(&server.socket)
                .map(drop)
                .map_err(|error| error.to_string())
        });
        Ok(server)
    }

    pub fn pid(&self) -> i32 {
        self.process.id() as i32
    }
}

impl Drop for CriServer {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.pid()), Signal::SIGTERM);
        let _ = self.process.wait();
        // It leaves what runs to its successor: here there is none, and orphans are this process's children.
        let own = format!("/proc/self/task/{}/children", std::process::id());
        loop {
            let children = fs::read_to_string(&own).unwrap_or_default();
            for child in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
                let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
            }
            if nix::sys::wait::waitpid(None, None).is_err() {
                return;
            }
        }
    }
}
