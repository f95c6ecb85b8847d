//! A `wharf shim` alone, for other people's clients of CRI.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::{assets, descendants, eventually, words};

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

/// Shows what runs in this mount namespace the first version of cgroups alone, where the machine has both: crun does not
/// understand that. It writes files where it thinks that the second is, so these are nobody else's.
pub fn hide_second_cgroups() -> anyhow::Result<()> {
    let unified = Path::new("/sys/fs/cgroup/unified");
    if unified.exists() {
        mount(Some("tmpfs"), unified, Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .context("hide cgroup v2")?;
    }
    Ok(())
}

/// A server of CRI that ends with this, and with all that it left running.
pub struct CriServer {
    command: Command,
    process: Child,
    pub socket: PathBuf,
}

impl CriServer {
    /// A `wharf shim` with all its files in `dir` and its pods in `pods`, which pulls from `registry` alone.
    pub fn shim(dir: &Path, registry: &str, pods: &str) -> anyhow::Result<Self> {
        Self::shim_with(dir, registry, &["--network", "bridge", "--pod-cidr", pods])
    }

    /// The same, with these arguments.
    pub fn shim_with(dir: &Path, registry: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let registries = dir.join("registries.json");
        let mirrors = serde_json::json!({"mirrors": [{"url": registry}], "mirrors_only": true});
        fs::write(&registries, serde_json::json!({"hosts": {"*": mirrors}}).to_string())?;
        let socket = dir.join("shim.sock");
        let mut command = Command::new(assets::wharf());
        command.arg("shim").arg("--socket").arg(&socket);
        command.arg("--root").arg(dir.join("root")).arg("--state").arg(dir.join("state"));
        command.args(["--cgroup-parent", &format!("/{}", Self::cgroup())]);
        command.arg("--registries").arg(registries).args(arguments);
        Self::start(command, socket, &dir.join("shim.log"))
    }

    /// Starts `command`, which logs to `log`, and waits until it serves.
    pub fn start(mut command: Command, socket: PathBuf, log: &Path) -> anyhow::Result<Self> {
        nix::sys::prctl::set_child_subreaper(true)?;
        let log = File::create(log)?;
        let process = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let process = process.with_context(|| command.get_program().display().to_string())?;
        let server = Self { command, process, socket };
        server.serves();
        Ok(server)
    }

    fn serves(&self) {
        eventually("the server of CRI serves", || {
            std::os::unix::net::UnixStream::connect(&self.socket).map(drop).map_err(|error| error.to_string())
        });
    }

    /// Kills it at once, which leaves all that it runs, and starts another.
    pub fn replace(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        self.process = self.command.spawn()?;
        self.serves();
        Ok(())
    }

    /// Reaps what others left to this process and has ended. Until then a pod's process namespace is not over.
    pub fn reap(&self) {
        let zombies = own_children().into_iter().filter(|pid| *pid != self.pid());
        for pid in zombies {
            let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
        }
    }

    /// The cgroup of pods that name none, below every hierarchy.
    pub fn cgroup() -> String {
        format!("wharf-cri-{}", std::process::id())
    }

    /// That a shim in `dir` has no more than one without pods may have; else what.
    pub fn nothing_is_left(dir: &Path) -> Result<(), String> {
        let mine = ["shim", "zygote", "wasm-host"];
        let left: Vec<_> = descendants(std::process::id() as i32)
            .into_keys()
            .map(|pid| (pid, words(pid)))
            .filter(|(_, words)| !words.get(1).is_some_and(|word| mine.contains(&word.as_str())))
            .collect();
        let names = |dir: &Path| -> Vec<String> {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        let mut files = Vec::new();
        for folder in [
            "root/containers",
            "state/sandboxes",
            "state/containers",
            "state/pods",
            "state/oci/containers",
            "state/oci/pauses",
        ] {
            files.extend(names(&dir.join(folder)).into_iter().map(|name| format!("{folder}/{name}")));
        }
        files.extend(names(&dir.join("state/netns")).into_iter().filter(|name| name.starts_with("pod-")));
        let groups = groups();
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        let below = format!("{}/", dir.display());
        let is_pods =
            |line: &&str| line.contains(&below) && (line.contains("/pod-") || line.contains(" - overlay "));
        let mounts: Vec<_> = mounts.lines().filter(is_pods).collect();
        let links = names(Path::new("/sys/class/net")).into_iter().filter(|name| name.starts_with("wh-"));
        let links: Vec<_> = links.collect();
        if left.is_empty() && files.is_empty() && groups.is_empty() && mounts.is_empty() && links.is_empty() {
            return Ok(());
        }
        Err(format!("{left:?} {files:?} {groups:?} {mounts:?} {links:?}"))
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
        loop {
            for child in own_children() {
                let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
            }
            if waitpid(None, None).is_err() {
                break;
            }
        }
        // Neither a runtime that was killed nor containerd removes it.
        groups().iter().for_each(|group| remove_groups(group));
    }
}

/// That of [`CriServer::cgroup`] in each hierarchy that has it.
fn groups() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let groups = hierarchies.chain([root.to_owned()]).map(|hierarchy| hierarchy.join(CriServer::cgroup()));
    groups.filter(|group| group.join("cgroup.procs").exists()).collect()
}

/// A group goes once those in it are gone; its files are the kernel's.
fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        remove_groups(&entry.path());
    }
    let _ = fs::remove_dir(group);
}

fn own_children() -> Vec<i32> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let children = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    children
        .flat_map(|pids| pids.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}
