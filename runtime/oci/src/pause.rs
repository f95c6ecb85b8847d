//! A process that does nothing but hold a pod's namespaces.

use crate::{
    sys::{self, Side},
    users::{self, IdMappings},
    wire::PauseReady,
};
use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::{
        signal::{SigSet, Signal},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::{Gid, Uid},
};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};
use wharf_link::blocking::Socket;

/// What a pod's containers share beside the network.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PauseSpec {
    /// Under the same rules as a container's; also told apart from those.
    pub id: String,
    pub network: Network,
    /// For a user namespace of its own; the others then belong to it.
    pub users: Option<IdMappings>,
    /// For a UTS namespace of its own; without, the host's is kept.
    pub hostname: Option<String>,
    /// An IPC namespace of its own.
    pub ipc: bool,
    /// A process namespace of its own, in which this process is number 1 and reaps.
    pub pid: bool,
    /// Set after the namespaces were entered.
    pub sysctls: BTreeMap<String, String>,
    /// Clamped to what this process may set.
    pub oom_score_adj: Option<i32>,
}

/// Whose network the pod has.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub enum Network {
    #[default]
    Host,
    /// That of a namespace that there is.
    Path(PathBuf),
    /// A namespace of its own, with nothing in it.
    New,
}

/// A pause process that runs. Its namespaces are joined by path, `/proc/PID/ns/{ipc,uts,pid,net,user}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    pub id: String,
    pub pid: i32,
    /// In clock ticks since boot: with the pid it names one process for ever.
    pub started: u64,
}

impl Pause {
    /// The path of one of its namespaces: `ipc`, `uts`, `pid`, `net`, `user`.
    pub fn namespace(&self, kind: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/{kind}", self.pid))
    }
}

/// When a process started, in clock ticks since boot; `None` if there is none or only its corpse.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut rest = stat.rsplit_once(") ")?.1.split(' '); // the name before may hold anything
    if matches!(rest.next(), Some("Z" | "X")) {
        return None;
    }
    rest.nth(18)?.parse().ok()
}

/// The process's whole life, in a fork of the zygote.
pub(crate) fn run(spec: PauseSpec, connection: UnixStream) -> ! {
    let mut link = Socket::over(connection);
    let outcome = enter(&spec).and_then(|()| {
        // Only a child is inside a new process namespace.
        if spec.pid { sys::fork().map(Some) } else { Ok(None) }
    });
    let ready = match outcome {
        Ok(Some(Side::Child)) => {
            drop(link);
            settle(&spec)
        }
        Ok(Some(Side::Parent(pid))) => PauseReady::Running { pid },
        Ok(None) => PauseReady::Running { pid: std::process::id() as i32 },
        Err(cause) => PauseReady::Failed(format!("pause process of {}: {cause}", spec.id)),
    };
    let sent = link.send(&ready, Vec::new());
    drop(link);
    match (ready, sent) {
        (PauseReady::Running { .. }, Ok(())) if !spec.pid => settle(&spec),
        _ => sys::leave(0),
    }
}

fn enter(spec: &PauseSpec) -> io::Result<()> {
    let _ = rustix::thread::set_name(c"wharf-pause");
    if let Network::Path(path) = &spec.network {
        setns(fs::File::open(path)?, CloneFlags::CLONE_NEWNET)?;
    }
    if let Some(score) = spec.oom_score_adj {
        sys::set_oom_score(std::process::id() as i32, score);
    }
    if let Some(mappings) = &spec.users {
        users::enter_new(mappings)?;
    }
    let mut flags = CloneFlags::CLONE_NEWNS;
    flags.set(CloneFlags::CLONE_NEWNET, matches!(spec.network, Network::New));
    flags.set(CloneFlags::CLONE_NEWUTS, spec.hostname.is_some());
    flags.set(CloneFlags::CLONE_NEWIPC, spec.ipc);
    flags.set(CloneFlags::CLONE_NEWPID, spec.pid);
    unshare(flags)?;
    if let Some(hostname) = &spec.hostname {
        nix::unistd::sethostname(hostname)?;
    }
    for (name, value) in &spec.sysctls {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        fs::write(&path, value)
            .map_err(|cause| io::Error::new(cause.kind(), format!("sysctl {name}: {cause}")))?;
    }
    leave_files()
}

/// An empty, read-only root: nothing of the host is kept mounted by this process or found through it.
fn leave_files() -> io::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", "/proc", "tmpfs", flags, Some(c"size=4k,nr_inodes=1"))?; // any directory that is always there
    std::env::set_current_dir("/proc")?;
    nix::unistd::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")
}

/// Gives up every right, then waits for the end; as number 1 of a process namespace, reaps.
fn settle(spec: &PauseSpec) -> ! {
    const NOBODY: u32 = 65534;
    // The root of a user namespace of its own has no right outside, and there may be no nobody.
    let dropped = match &spec.users {
        Some(_) => Ok(()),
        None => nix::unistd::setgroups(&[])
            .and_then(|()| nix::unistd::setgid(Gid::from_raw(NOBODY)))
            .and_then(|()| nix::unistd::setuid(Uid::from_raw(NOBODY))),
    };
    // Not even the same user of a container may look into it.
    let hidden = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    if dropped.is_err() || hidden.is_err() {
        sys::leave(1);
    }
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    if spec.pid {
        signals.add(Signal::SIGCHLD);
    }
    let _ = signals.thread_block();
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status.pid().is_some())
                {
                }
            }
            _ => sys::leave(0),
        }
    }
}
