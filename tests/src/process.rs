use std::collections::HashMap;
use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Cluster;

/// What a process of a cluster is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Keeper,
    Server,
    /// Of a node that is not the server's.
    Agent,
    Shim,
    WasmHost,
    Zygote,
    Monitor,
    Pause,
    /// Short-lived helpers of the above.
    Helper,
    /// What runs in an OCI container.
    Container,
}

/// A process of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process {
    pub kind: Kind,
    pub pid: i32,
    pub parent: i32,
}

impl Process {
    /// Kills it at once.
    ///
    /// # Panics
    /// If it is not there.
    #[track_caller]
    pub fn kill(&self) {
        kill(Pid::from_raw(self.pid), Signal::SIGKILL).expect("it ran");
    }

    /// As [`pss`].
    pub fn pss(&self) -> u64 {
        pss(self.pid)
    }
}

/// The proportional set size of a process, in bytes: shared pages are divided among those who share them.
pub fn pss(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Every process of a running cluster: its keeper and all that came from it.
pub fn processes(cluster: &Cluster) -> Vec<Process> {
    let Some(keeper) = cluster.local().keeper() else { return Vec::new() };
    // The keeper reaps orphans, so whatever came from the cluster is below it.
    let mut ours = descendants(keeper);
    ours.insert(keeper, 0);
    let mut found: Vec<Process> = ours
        .into_iter()
        .filter_map(|(pid, parent)| Some(Process { kind: kind(pid)?, pid, parent }))
        .collect();
    found.sort();
    found
}

/// All processes below `root`, each with its parent.
pub fn descendants(root: i32) -> HashMap<i32, i32> {
    let mut others: HashMap<i32, i32> = pids().filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut ours = HashMap::new();
    loop {
        let more: Vec<(i32, i32)> =
            others.extract_if(|_, parent| *parent == root || ours.contains_key(parent)).collect();
        if more.is_empty() {
            return ours;
        }
        ours.extend(more);
    }
}

/// Every process id of the machine.
pub(crate) fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The words of its command line; none for a kernel thread or a process that ended.
pub fn words(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything; the parent is the second word after it, the state the first.
    let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
    if rest.next()? == "Z" {
        return None;
    }
    rest.next()?.parse().ok()
}

fn kind(pid: i32) -> Option<Kind> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    match name.trim() {
        "wharf-zygote" => return Some(Kind::Zygote),
        "wharf-monitor" => return Some(Kind::Monitor),
        "wharf-pause" => return Some(Kind::Pause),
        _ => {}
    }
    let words = words(pid);
    Some(match words.get(1).map(String::as_str) {
        Some("keeper") => Kind::Keeper,
        Some("server") => Kind::Server,
        Some("node") => Kind::Agent,
        Some("shim") => Kind::Shim,
        Some("wasm-host") => Kind::WasmHost,
        Some("zygote" | "compile") => Kind::Helper,
        _ => Kind::Container,
    })
}
