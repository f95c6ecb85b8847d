//! Ending a cluster.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup;
use crate::error::{Error, at};
use crate::layout::{Cluster, node_name};

/// How long the keeper may take to end its processes in order.
const ORDERLY: Duration = Duration::from_secs(15);
/// How long killed processes may take to be gone.
const KILLED: Duration = Duration::from_secs(10);

/// What `down` leaves on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The cluster's data: the next `up` of this name goes on with it.
    Data,
    /// Nothing.
    Nothing,
}

/// Ends a cluster: its keeper in order, then whatever is left by force; then removes its mounts, namespaces and
/// cgroups. One that does not run is swept all the same, so a repeat finishes what was interrupted.
///
/// # Errors
/// [`Error::Unknown`] if there is no trace of it; [`Error::Left`] if processes survive being killed.
pub fn down(cluster: &Cluster, keep: Keep) -> Result<(), Error> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    if !cluster.data.exists() && !cluster.run.exists() {
        return Err(Error::Unknown { name: cluster.name.clone() });
    }
    if let Some(keeper) = cluster.keeper() {
        end(keeper);
    }
    sweep(cluster)?;
    if keep == Keep::Nothing && cluster.data.exists() {
        fs::remove_dir_all(&cluster.data).map_err(at("remove", &cluster.data))?;
    }
    Ok(())
}

/// Ends the processes of one node of a cluster that runs, and removes all that it had. Nothing is done about its Node
/// object. A node that is not there is no error.
///
/// # Errors
/// [`Error::NodeLeft`] if the keeper does not manage.
pub fn end_node(cluster: &Cluster, node: &str) -> Result<(), Error> {
    let (Some(mut memory), Some(keeper)) = (cluster.memory(), cluster.keeper()) else { return Ok(()) };
    if !memory.nodes.iter().any(|number| node_name(*number) == node) {
        return Ok(());
    }
    memory.nodes.retain(|number| node_name(*number) != node);
    cluster.remember(&memory)?;
    let _ = kill(Pid::from_raw(keeper), Signal::SIGHUP); // one that just ended took the node along
    let namespace = cluster.run.join("netns").join(node);
    let deadline = Instant::now() + ORDERLY;
    // The keeper removes this last. It takes a fraction of a second, once in a node's life.
    while namespace.exists() {
        if Instant::now() > deadline {
            return Err(Error::NodeLeft { node: node.to_owned(), log: cluster.logs().join("keeper.log") });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Kills what is left of a node's processes and removes its files, mounts and cgroups: the keeper's part of
/// [`end_node`].
///
/// # Errors
/// What the kernel says.
pub fn sweep_node(cluster: &Cluster, node: &str) -> Result<(), Error> {
    let left = cgroup::end_node(&cluster.name, node, KILLED)
        .map_err(at("remove the cgroups of", Path::new(node)))?;
    if left > 0 {
        return Err(Error::NodeLeft { node: node.to_owned(), log: cluster.logs().join("keeper.log") });
    }
    for dir in [&cluster.run, &cluster.data].map(|dir| dir.join("nodes").join(node)) {
        unmount_below(&dir)?;
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(at("remove", &dir))?;
        }
    }
    Ok(())
}

/// Asks the keeper to end and waits until it has.
fn end(keeper: i32) {
    let Ok(pidfd) = pidfd(keeper) else { return };
    if kill(Pid::from_raw(keeper), Signal::SIGTERM).is_err() {
        return;
    }
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(ORDERLY).expect("15 s fit");
    let _ = poll(&mut fds, timeout); // what is left is killed next
}

/// A descriptor that becomes readable when the process has ended.
fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and returns a new descriptor or -1; nobody else owns it.
    #[expect(unsafe_code, reason = "nix has no pidfd_open")]
    unsafe {
        let fd = nix::libc::syscall(nix::libc::SYS_pidfd_open, pid, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// Kills whatever came from the cluster's keeper and removes what a crash or a reboot left.
pub(crate) fn sweep(cluster: &Cluster) -> Result<(), Error> {
    if let Some(cgroup) = cgroup::unified(&cluster.name) {
        let left = cgroup::kill(&cgroup, KILLED);
        if left > 0 {
            return Err(Error::Left {
                name: cluster.name.clone(),
                count: left,
                procs: cgroup.join("cgroup.procs"),
            });
        }
    }
    unmount_below(&cluster.run)?;
    unmount_below(&cluster.data)?;
    cgroup::remove(&cluster.name, KILLED).map_err(at("remove the cgroups of", Path::new(&cluster.name)))?;
    if cluster.run.exists() {
        fs::remove_dir_all(&cluster.run).map_err(at("remove", &cluster.run))?;
    }
    Ok(())
}

/// Unmounts everything at or below `dir`, the last mounted first.
fn unmount_below(dir: &Path) -> Result<(), Error> {
    let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut below: Vec<_> = points.filter(|point| Path::new(point).starts_with(&dir)).collect();
    below.reverse();
    for point in below {
        let path = Path::new(&point);
        umount2(path, MntFlags::MNT_DETACH).map_err(io::Error::from).map_err(at("unmount", path))?;
    }
    Ok(())
}

/// The kernel writes blanks, tabs, newlines and backslashes of a path as `\ooo`.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |t, (from, to)| t.replace(from, to))
}
