//! The cgroups of a cluster: one of the unified hierarchy that all its processes are born into, and on machines
//! with cgroup v1 one in each controller, that limits containers.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The cgroup of a cluster's processes in the unified hierarchy, if the machine has that mounted.
pub(crate) fn unified(name: &str) -> Option<PathBuf> {
    mounts().into_iter().find(|(kind, _)| kind == "cgroup2").map(|(_, path)| path.join(dir_name(name)))
}

fn dir_name(name: &str) -> String {
    format!("wharf-{name}")
}

/// The mounted cgroup hierarchies, as file system type and mount point.
fn mounts() -> Vec<(String, PathBuf)> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fields = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields
        .filter(|fields| fields.len() > 2 && fields[2].starts_with("cgroup"))
        .map(|fields| (fields[2].to_owned(), fields[1].into()))
        .collect()
}

/// Where, in each hierarchy, the cgroups of the containers of a cluster's node go.
pub fn pods(name: &str, node: &str) -> String {
    format!("/{}/pods/{node}", dir_name(name))
}

/// Moves the calling process into a cgroup of the cluster in the unified hierarchy; what it starts is born there.
/// `part` is a node, or `keeper`. It is a leaf: a cgroup with processes may not limit cgroups below it. Without that
/// hierarchy, nothing.
///
/// # Errors
/// The kernel's.
pub fn join(name: &str, part: &str) -> io::Result<()> {
    let Some(cgroup) = unified(name) else { return Ok(()) };
    let leaf = cgroup.join(PROCESSES).join(part);
    fs::create_dir_all(&leaf)?;
    fs::write(leaf.join("cgroup.procs"), "0")
}

/// Where a cluster's own processes are, beside [`pods`].
const PROCESSES: &str = "processes";

/// Kills what runs on one node, and removes its cgroups in every hierarchy. Returns how many processes are left.
///
/// # Errors
/// The first cgroup that the kernel refuses to remove.
pub(crate) fn end_node(name: &str, node: &str, patience: Duration) -> io::Result<usize> {
    let parts = [PROCESSES, "pods"].map(|part| format!("{}/{part}/{node}", dir_name(name)));
    if let Some((_, mount)) = mounts().into_iter().find(|(kind, _)| kind == "cgroup2") {
        let left: usize = parts.iter().map(|part| kill(&mount.join(part), patience)).sum();
        if left > 0 {
            return Ok(left);
        }
    }
    parts.iter().try_for_each(|part| remove_below(part, patience))?;
    Ok(0)
}

/// How many processes are in the cgroup and below.
pub(crate) fn population(cgroup: &Path) -> usize {
    let own = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default().lines().count();
    own + children(cgroup).iter().map(|child| population(child)).sum::<usize>()
}

/// Kills every process of the cgroup and below, and waits until they are gone, at most `patience`.
/// Returns how many are left.
pub(crate) fn kill(cgroup: &Path, patience: Duration) -> usize {
    let deadline = Instant::now() + patience;
    loop {
        if population(cgroup) == 0 {
            return 0;
        }
        // Since Linux 5.14 the kernel kills them all at once, forks included.
        let _ = fs::write(cgroup.join("cgroup.kill"), "1");
        if Instant::now() > deadline {
            return population(cgroup);
        }
        // The kernel has no event for "empty" on a cgroup without inotify; this runs for milliseconds at `down`.
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Removes the cluster's cgroups in every hierarchy. Nothing may run in them; the kernel may still be busy with
/// processes that were just killed, and is given `patience` for that.
///
/// # Errors
/// The first that the kernel refuses to remove.
pub(crate) fn remove(name: &str, patience: Duration) -> io::Result<()> {
    remove_below(&dir_name(name), patience)
}

fn remove_below(path: &str, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let removed = mounts().into_iter().try_for_each(|(_, mount)| remove_tree(&mount.join(path)));
        match removed {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5)); // as above
            }
            removed => return removed,
        }
    }
}

fn remove_tree(cgroup: &Path) -> io::Result<()> {
    for child in children(cgroup) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(cgroup) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn children(cgroup: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
