//! Control groups of either version, by path: libcontainer makes a container's own, everything else is here.
//!
//! A path such as `/wharf/ID` is the same in every hierarchy of version 1 (a hybrid machine counts as version 1: its
//! unified hierarchy has no controller that we use), or in the one of version 2.

use crate::{
    error::{Error, at},
    spec::Resources,
    state,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

const ROOT: &str = "/sys/fs/cgroup";
/// The limit on memory with swap; there only where the kernel accounts swap.
const SWAP_V1: &str = "memory.memsw.limit_in_bytes";
/// How long a group may stay busy after its last process was killed: the kernel empties it a moment later.
const EMPTYING: Duration = Duration::from_secs(5);

/// What a container uses and used. Times in nanoseconds, the rest in bytes or counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    pub cpu_usage_nanos: u64,
    pub memory_usage: u64,
    /// Usage without file pages that the kernel would drop first.
    pub memory_working_set: u64,
    pub memory_rss: u64,
    /// `None` if there is no limit.
    pub memory_limit: Option<u64>,
    pub page_faults: u64,
    pub major_page_faults: u64,
    pub pids: u64,
}

/// The mounted hierarchies.
pub(crate) enum Hierarchies {
    /// Controller to mount point.
    V1(BTreeMap<String, PathBuf>),
    V2,
}

/// As `mountinfo` tells at the first call: they do not change while a machine runs.
pub(crate) fn hierarchies() -> &'static Hierarchies {
    static FOUND: OnceLock<Hierarchies> = OnceLock::new();
    FOUND.get_or_init(|| detect(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()))
}

fn detect(mountinfo: &str) -> Hierarchies {
    let mut v1 = BTreeMap::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(place) = left.split(' ').nth(4).filter(|place| place.starts_with(ROOT)) else { continue };
        let mut right = right.split(' ');
        if right.next() == Some("cgroup") {
            // Mounted as `cpu,cpuacct` or one by one; the options name what it has.
            let options = right.nth(1).unwrap_or_default();
            for controller in options.split(',').filter(|option| !matches!(*option, "rw" | "ro" | "xattr")) {
                v1.insert(controller.to_owned(), PathBuf::from(place));
            }
        }
    }
    if v1.contains_key("memory") || v1.contains_key("cpu") { Hierarchies::V1(v1) } else { Hierarchies::V2 }
}

fn below(mount: &Path, group: &str) -> PathBuf {
    mount.join(group.trim_start_matches('/'))
}

/// Where `group` is, once per hierarchy.
fn places(group: &str) -> Vec<PathBuf> {
    match hierarchies() {
        Hierarchies::V1(mounts) => {
            let mounts: BTreeSet<&PathBuf> = mounts.values().collect();
            mounts.into_iter().map(|mount| below(mount, group)).collect()
        }
        Hierarchies::V2 => vec![below(Path::new(ROOT), group)],
    }
}

/// The directories of a group of version 1 by controller; those of version 2 are shown by a namespace.
pub(crate) fn own(group: &str) -> Option<Vec<(&'static str, PathBuf)>> {
    let Hierarchies::V1(mounts) = hierarchies() else { return None };
    let controllers = mounts.iter().filter(|(name, _)| !name.contains('='));
    Some(controllers.map(|(name, mount)| (name.as_str(), below(mount, group))).collect())
}

/// Where the files of `controller` are for `group`.
pub(crate) fn place(controller: &str, group: &str) -> Option<PathBuf> {
    match hierarchies() {
        Hierarchies::V1(mounts) => mounts.get(controller).map(|mount| below(mount, group)),
        Hierarchies::V2 => Some(below(Path::new(ROOT), group)),
    }
}

pub(crate) fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

pub(crate) fn number(path: &Path) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

/// A value of a file of `name value` lines.
pub(crate) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// `None` if there is no such group.
pub(crate) fn stats(group: &str) -> Option<Stats> {
    let memory = place("memory", group)?;
    let text = read(&memory.join("memory.stat"))?;
    let stat = |name| field(&text, name).unwrap_or(0);
    let pids = place("pids", group).and_then(|dir| number(&dir.join("pids.current"))).unwrap_or(0);
    Some(match hierarchies() {
        Hierarchies::V1(_) => {
            let usage = number(&memory.join("memory.usage_in_bytes"))?;
            let limit = number(&memory.join("memory.limit_in_bytes"));
            Stats {
                cpu_usage_nanos: number(&place("cpuacct", group)?.join("cpuacct.usage"))?,
                memory_usage: usage,
                memory_working_set: usage.saturating_sub(stat("total_inactive_file")),
                memory_rss: stat("total_rss"),
                memory_limit: limit.filter(|limit| *limit < 1 << 62), // "no limit" is the largest number of pages
                page_faults: stat("total_pgfault"),
                major_page_faults: stat("total_pgmajfault"),
                pids,
            }
        }
        Hierarchies::V2 => {
            let usage = number(&memory.join("memory.current"))?;
            let cpu = read(&memory.join("cpu.stat"))?;
            Stats {
                cpu_usage_nanos: field(&cpu, "usage_usec")?.saturating_mul(1000),
                memory_usage: usage,
                memory_working_set: usage.saturating_sub(stat("inactive_file")),
                memory_rss: stat("anon"),
                memory_limit: number(&memory.join("memory.max")), // "max" is no number
                page_faults: stat("pgfault"),
                major_page_faults: stat("pgmajfault"),
                pids,
            }
        }
    })
}

/// How many processes of the group the kernel killed for want of memory.
pub(crate) fn oom_kills(group: &str) -> u64 {
    let file = match hierarchies() {
        Hierarchies::V1(_) => "memory.oom_control",
        Hierarchies::V2 => "memory.events",
    };
    let text = place("memory", group).and_then(|dir| read(&dir.join(file)));
    text.and_then(|text| field(&text, "oom_kill")).unwrap_or(0)
}

/// Every process of the group and of groups below it.
pub(crate) fn pids(group: &str) -> Vec<i32> {
    fn collect(dir: &Path, into: &mut Vec<i32>) {
        let Some(text) = read(&dir.join("cgroup.procs")) else { return };
        into.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                collect(&entry.path(), into);
            }
        }
    }
    let mut found = Vec::new();
    let dir = ["pids", "freezer", "memory", "devices"].iter().find_map(|controller| place(controller, group));
    if let Some(dir) = dir {
        collect(&dir, &mut found);
    }
    found
}

/// Kills what runs in the group, and what it starts meanwhile, and waits until nothing is left that `spare` does
/// not name.
///
/// # Errors
/// `TimedOut` when a process does not go away: it hangs in the kernel.
pub(crate) fn kill(group: &str, spare: &[i32]) -> io::Result<()> {
    let left = || pids(group).into_iter().filter(|pid| *pid > 0 && !spare.contains(pid)).collect::<Vec<_>>();
    let mut running = left();
    if running.is_empty() {
        return Ok(());
    }
    let freezer = match hierarchies() {
        Hierarchies::V2 => {
            let _ = fs::write(below(Path::new(ROOT), group).join("cgroup.kill"), "1");
            None
        }
        // Frozen, they cannot fork away from the kill.
        Hierarchies::V1(_) => place("freezer", group).map(|dir| dir.join("freezer.state")),
    };
    if let Some(freezer) = &freezer {
        let _ = fs::write(freezer, "FROZEN");
    }
    let until = Instant::now() + EMPTYING;
    loop {
        for pid in &running {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL);
        }
        if let Some(freezer) = &freezer {
            let _ = fs::write(freezer, "THAWED");
        }
        running = left();
        if running.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // The kernel has no event for this on version 1; it takes well under a millisecond.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Removes the group from every hierarchy, killing what still runs in it. One that is not there is no error.
pub(crate) fn remove(group: &str) -> Result<(), Error> {
    kill(group, &[]).map_err(at("empty cgroup", Path::new(group)))?;
    for dir in places(group) {
        remove_tree(&dir).map_err(at("remove cgroup", &dir))?;
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    let until = Instant::now() + EMPTYING;
    loop {
        match fs::remove_dir(dir) {
            Err(cause) if cause.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until => {
                for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                        remove_tree(&entry.path())?;
                    }
                }
                std::thread::sleep(Duration::from_millis(1)); // a killed process leaves the group a moment later
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => return other,
        }
    }
}

/// Changes the limits of a group that is there. What is `None` stays as it is.
pub(crate) fn update(group: &str, resources: &Resources) -> Result<(), Error> {
    let write = |controller: &str, file: &str, value: String| -> Result<(), Error> {
        let Some(dir) = place(controller, group) else {
            return Err(Error::Invalid(format!("this machine has no {controller} cgroup")));
        };
        let path = dir.join(file);
        fs::write(&path, value).map_err(at("write", &path))
    };
    let v1 = matches!(hierarchies(), Hierarchies::V1(_));
    if let Some(shares) = resources.cpu_shares {
        if v1 {
            write("cpu", "cpu.shares", shares.to_string())?;
        } else {
            write("cpu", "cpu.weight", weight(shares).to_string())?;
        }
    }
    match (resources.cpu_quota, resources.cpu_period) {
        (None, None) => {}
        (quota, period) if v1 => {
            if let Some(period) = period {
                write("cpu", "cpu.cfs_period_us", period.to_string())?;
            }
            if let Some(quota) = quota {
                write("cpu", "cpu.cfs_quota_us", quota.to_string())?;
            }
        }
        (quota, period) => {
            let quota = quota.filter(|quota| *quota > 0).map_or("max".to_owned(), |quota| quota.to_string());
            write("cpu", "cpu.max", format!("{quota} {}", period.unwrap_or(100_000)))?;
        }
    }
    let bytes = |limit: i64| match limit {
        0.. => limit.to_string(),
        _ if v1 => "-1".to_owned(),
        _ => "max".to_owned(),
    };
    let swap = swap(resources)?;
    match (resources.memory_limit, swap) {
        (None, _) => {}
        (Some(limit), Some(both)) if v1 => {
            // Memory may never be allowed more than memory with swap: which goes first depends on the direction.
            let swap_first = write("memory", SWAP_V1, bytes(both));
            write("memory", "memory.limit_in_bytes", bytes(limit))?;
            if swap_first.is_err() {
                write("memory", SWAP_V1, bytes(both))?;
            }
        }
        (Some(limit), None) if v1 => write("memory", "memory.limit_in_bytes", bytes(limit))?,
        (Some(limit), both) => {
            write("memory", "memory.max", bytes(limit))?;
            if let Some(both) = both {
                let swap = if both < 0 { both } else { both - limit };
                write("memory", "memory.swap.max", bytes(swap))?;
            }
        }
    }
    for (size, limit) in hugepages(resources)? {
        let file = if v1 { "limit_in_bytes" } else { "max" };
        write("hugetlb", &format!("hugetlb.{size}.{file}"), limit.to_string())?;
    }
    for (file, value) in unified(resources)? {
        write("", file, value.clone())?;
    }
    if let Some(limit) = resources.pids_limit {
        write("pids", "pids.max", if limit > 0 { limit.to_string() } else { "max".to_owned() })?;
    }
    if let Some(cpus) = &resources.cpuset_cpus {
        write("cpuset", "cpuset.cpus", cpus.clone())?;
    }
    if let Some(mems) = &resources.cpuset_mems {
        write("cpuset", "cpuset.mems", mems.clone())?;
    }
    Ok(())
}

/// Shares of 2 to 262144 on the scale of 1 to 10000, so that the defaults, 1024 and 100, meet too. The curve is that of
/// runc 1.3.2 (opencontainers/cgroups#20), which libcontainer follows: an update and a start mean the same.
fn weight(shares: u64) -> u64 {
    let log = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    // What is whole but for its last bits is not the next.
    ((10_f64.powf(exponent) - 1e-6).ceil() as u64).clamp(1, 10_000)
}

/// The limit on memory with swap, where one is to be set.
pub(crate) fn swap(resources: &Resources) -> Result<Option<i64>, Error> {
    let Some(limit) = resources.memory_limit else { return Ok(None) };
    match resources.memory_swap_limit {
        Some(both) if both >= 0 && (limit < 0 || both < limit) => {
            let why =
                format!("a limit of {both} bytes on memory with swap is below that of {limit} on memory");
            Err(Error::Invalid(why))
        }
        Some(both) => Ok(Some(both).filter(|_| matches!(hierarchies(), Hierarchies::V2) || limits_swap())),
        None => Ok(limits_swap().then_some(limit)),
    }
}

/// The limits on huge pages, by size. Where the machine cannot limit them, callers still name each size with 0.
pub(crate) fn hugepages(resources: &Resources) -> Result<impl Iterator<Item = (&String, &u64)>, Error> {
    let can = place("hugetlb", "/").is_some_and(|root| match hierarchies() {
        Hierarchies::V1(_) => true,
        Hierarchies::V2 => read(&root.join("cgroup.controllers"))
            .is_some_and(|names| names.split_whitespace().any(|name| name == "hugetlb")),
    });
    for (size, limit) in &resources.hugepages {
        if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(Error::Invalid(format!("{size:?} is no size of huge pages")));
        }
        if !can && *limit > 0 {
            return Err(Error::Invalid("this machine has no hugetlb cgroup".to_owned()));
        }
    }
    Ok(resources.hugepages.iter().filter(move |_| can))
}

/// What is written to files of version 2 as it is.
pub(crate) fn unified(resources: &Resources) -> Result<&BTreeMap<String, String>, Error> {
    let files = &resources.unified;
    if let Some(file) = files.keys().find(|file| file.contains('/') || !file.contains('.')) {
        return Err(Error::Invalid(format!("{file:?} is no file of a cgroup")));
    }
    match hierarchies() {
        Hierarchies::V1(_) if !files.is_empty() => {
            Err(Error::Invalid("this machine has cgroup v1, which has no unified files".to_owned()))
        }
        _ => Ok(files),
    }
}

/// Whether the machine accounts swap, so that a limit on memory with swap can be set.
pub(crate) fn limits_swap() -> bool {
    let file = match hierarchies() {
        Hierarchies::V1(_) => place("memory", "/").map(|dir| dir.join(SWAP_V1)),
        Hierarchies::V2 => return false, // the file is in groups below the root only; zero swap needs no entry
    };
    file.is_some_and(|file| file.exists())
}

/// The parents that were not there before we made containers below them, so that they go with the last of these.
pub(crate) struct Parents {
    file: PathBuf,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Ours to remove.
    made: BTreeSet<String>,
    users: BTreeMap<String, usize>,
}

impl Known {
    fn drop(&mut self, parent: &str) -> bool {
        // Someone else's group below it keeps it; then it is theirs.
        for dir in places(parent) {
            let _ = fs::remove_dir(dir);
        }
        self.made.remove(parent)
    }
}

/// `/a/b/c` has `/a/b` and `/a`, deepest first.
fn ancestors(group: &str) -> Vec<String> {
    let above = Path::new(group).ancestors().skip(1);
    above.filter_map(Path::to_str).filter(|path| path.len() > 1).map(str::to_owned).collect()
}

impl Parents {
    /// What an earlier run of the shim noted in `file` is known again.
    pub fn load(file: PathBuf) -> Self {
        let made = state::read(&file).unwrap_or_default();
        Self { file, known: Mutex::new(Known { made, users: BTreeMap::new() }) }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Known) -> T) -> T {
        act(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps the parents of `group` until [`Parents::release`].
    pub fn keep(&self, group: &str) -> Result<(), Error> {
        self.with(|known| {
            let mut news = false;
            let parents = ancestors(group);
            for parent in &parents {
                let users = known.users.entry(parent.clone()).or_default();
                *users += 1;
                if *users == 1 && !places(parent).iter().any(|dir| dir.exists()) {
                    news |= known.made.insert(parent.clone());
                }
            }
            if news {
                state::write(&self.file, &known.made)?;
            }
            // Of version 2 the library looks whether they are there and then makes them: two containers created at
            // once would meet.
            if let (Hierarchies::V2, Some(nearest)) = (hierarchies(), parents.first()) {
                let dir = below(Path::new(ROOT), nearest);
                fs::create_dir_all(&dir).map_err(at("make cgroup", &dir))?;
            }
            Ok(())
        })
    }

    /// Removes those parents that are ours and that nothing uses any more.
    pub fn release(&self, group: &str) -> Result<(), Error> {
        self.with(|known| {
            let mut news = false;
            for parent in ancestors(group) {
                let users = known.users.entry(parent.clone()).or_default();
                *users = users.saturating_sub(1);
                if *users > 0 {
                    continue;
                }
                known.users.remove(&parent);
                if !known.made.contains(&parent) {
                    continue;
                }
                news |= known.drop(&parent);
            }
            if news { state::write(&self.file, &known.made) } else { Ok(()) }
        })
    }

    /// Removes what an earlier run had made and nothing found uses: it died before it could.
    pub fn sweep(&self) -> Result<(), Error> {
        self.with(|known| {
            let unused = known.made.iter().rev().filter(|parent| !known.users.contains_key(*parent));
            let unused: Vec<String> = unused.cloned().collect(); // a path sorts before those below it
            for parent in &unused {
                known.drop(parent);
            }
            if unused.is_empty() { Ok(()) } else { state::write(&self.file, &known.made) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_machine_counts_as_version_1() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let Hierarchies::V1(mounts) = detect(hybrid) else { panic!("taken for version 2") };
        assert_eq!(mounts["cpuacct"], Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(mounts.len(), 3);
        assert!(matches!(detect("29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"), Hierarchies::V2));
    }

    #[test]
    fn shares_map_to_weights_end_to_end() {
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 100, 10_000));
        assert_eq!((weight(0), weight(512), weight(22_000)), (1, 59, 1204));
    }

    #[test]
    fn ancestors_come_deepest_first_without_the_root() {
        assert_eq!(ancestors("/a/b/c"), ["/a/b", "/a"]);
        assert!(ancestors("/a").is_empty());
    }
}
