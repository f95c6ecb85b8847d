use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::presence::Presence;
use crate::{assets, process};

/// What the machine holds that a cluster could leave behind. While it is there, other tests' clusters wait.
#[derive(Debug)]
pub struct Census {
    things: BTreeSet<String>,
    _alone: Presence,
}

/// How long a kernel may take to free what nobody holds any more.
const SETTLING: Duration = Duration::from_secs(10);

impl Census {
    /// Counts processes, mounts, network namespaces, cgroups, and the host's links, addresses, routes, rules and
    /// firewall.
    pub fn take() -> Self {
        let alone = Presence::alone();
        Self { things: things(), _alone: alone }
    }

    /// What is there now and was not then, and what is gone. Empty is how it should be.
    fn differences(&self) -> Vec<String> {
        let now = things();
        let more = now.difference(&self.things).map(|thing| format!("left: {thing}"));
        // Processes and cgroups of others come and go; of the host's network nothing may be missing.
        let network = |thing: &&String| thing.starts_with("ip ") || thing.starts_with("nft ");
        let less = self.things.difference(&now).filter(network);
        more.chain(less.map(|thing| format!("gone: {thing}"))).collect()
    }

    /// Checks that the machine is as it was.
    ///
    /// # Panics
    /// With the differences, if they are still there after a while.
    #[track_caller]
    pub fn assert_unchanged(&self) {
        let until = Instant::now() + SETTLING;
        loop {
            let differences = self.differences();
            if differences.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "the machine is not as it was:\n{}", differences.join("\n"));
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn things() -> BTreeSet<String> {
    let mut things = BTreeSet::new();
    things.extend(processes());
    things.extend(lines("mount", &fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()));
    things.extend(network_namespaces());
    cgroups(Path::new("/sys/fs/cgroup"), &mut things);
    for command in [
        "ip -o link show",
        "ip -o address show",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "ip -4 rule show",
        "ip -6 rule show",
        "nft --stateless list ruleset",
    ] {
        things.extend(lines(command, &said(command)));
    }
    things
}

/// Those that could be a cluster's: our program, or in a namespace or root of their own. (A build or a shell that
/// somebody starts meanwhile is none of them.)
fn processes() -> Vec<String> {
    let (wharf, own_net, own_root) = (assets::wharf(), net(std::process::id()), root(std::process::id()));
    let mut found = Vec::new();
    for pid in process::pids() {
        let words = process::words(pid);
        if words.first().is_none_or(String::is_empty) {
            continue;
        }
        let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let elsewhere = net(pid as u32) != own_net || root(pid as u32) != own_root;
        if exe == wharf || elsewhere {
            found.push(format!("process {pid}: {}", words.join(" ")));
        }
    }
    found
}

fn net(pid: u32) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/net")).ok().map(|file| file.ino())
}

fn root(pid: u32) -> Option<(u64, u64)> {
    fs::metadata(format!("/proc/{pid}/root/")).ok().map(|file| (file.dev(), file.ino()))
}

/// Those that a process is in or a mount holds.
fn network_namespaces() -> BTreeSet<String> {
    let in_use = process::pids().filter_map(|pid| net(pid as u32));
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // The fourth field of an nsfs mount is net:[INODE].
    let mounted: Vec<u64> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(3)?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok())
        .collect();
    in_use.chain(mounted).map(|inode| format!("network namespace {inode}")).collect()
}

fn cgroups(dir: &Path, things: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            things.insert(format!("cgroup {}", entry.path().display()));
            cgroups(&entry.path(), things);
        }
    }
}

fn lines(what: &str, text: &str) -> Vec<String> {
    text.lines().map(|line| format!("{what}: {}", without_times(line))).collect()
}

/// Addresses and routes that a router told of have a time to live, which runs.
fn without_times(line: &str) -> String {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    for timed in ["expires", "valid_lft", "preferred_lft"] {
        if let Some(at) = words.iter().position(|word| *word == timed) {
            words.drain(at..words.len().min(at + 2));
        }
    }
    words.join(" ")
}

fn said(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output();
    let output = output.unwrap_or_else(|error| panic!("`{line}`: {error}; `cargo xtask test` installs it"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
