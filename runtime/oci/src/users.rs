//! User namespaces: made with their mappings, and files seen through those.

use crate::sys::{self, Side};
use libcontainer::syscall::{
    Syscall,
    linux::{AT_EMPTY_PATH, LinuxSyscall, MountAttr},
};
use nix::{
    sched::{CloneFlags, unshare},
    sys::wait::waitpid,
    unistd::{Gid, Pid, Uid},
};
use serde::{Deserialize, Serialize};
use std::{
    fmt::Write as _,
    fs,
    io::{self, Read as _, Write as _},
    net::Shutdown,
    os::{
        fd::{AsRawFd as _, BorrowedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
};

/// `MOUNT_ATTR_IDMAP` of mount_setattr(2), Linux 5.12.
const IDMAP: u64 = 0x0010_0000;

/// `length` numbers from `inside` on in the namespace are those from `outside` on in the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    pub inside: u32,
    pub outside: u32,
    pub length: u32,
}

/// What user_namespaces(7) calls the maps of a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMappings {
    pub uids: Vec<IdMapping>,
    pub gids: Vec<IdMapping>,
}

impl IdMappings {
    /// The host's numbers of a user and a group of the namespace; `None` if it has no such.
    pub fn outside(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        let of = |mappings: &[IdMapping], id: u32| {
            mappings.iter().find_map(|mapping| {
                let nth = id.checked_sub(mapping.inside).filter(|nth| *nth < mapping.length)?;
                mapping.outside.checked_add(nth)
            })
        };
        Some((of(&self.uids, uid)?, of(&self.gids, gid)?))
    }
}

/// One that there is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// `/proc/PID/ns/user`
    pub path: PathBuf,
    pub mappings: IdMappings,
}

/// Moves this process into a new user namespace, as its root. Only for a process with one thread.
///
/// # Errors
/// The kernel's, among others if the mappings overlap.
pub(crate) fn enter_new(mappings: &IdMappings) -> io::Result<()> {
    let (mut ours, mut theirs) = UnixStream::pair()?;
    let child = match sys::fork()? {
        Side::Child => {
            drop(ours);
            // Only who has rights outside may map numbers of others.
            let _ = theirs.read_exact(&mut [0]).and_then(|()| {
                let said = write_maps(std::os::unix::process::parent_id(), mappings);
                theirs.write_all(said.map_or_else(|cause| cause.to_string(), |()| String::new()).as_bytes())
            });
            sys::leave(0)
        }
        Side::Parent(pid) => Pid::from_raw(pid),
    };
    drop(theirs);
    let made = unshare(CloneFlags::CLONE_NEWUSER).map_err(io::Error::from).and_then(|()| {
        ours.write_all(&[1])?;
        ours.shutdown(Shutdown::Write)?;
        let mut refused = String::new();
        ours.read_to_string(&mut refused)?;
        if refused.is_empty() { Ok(()) } else { Err(io::Error::other(refused)) }
    });
    drop(ours);
    let _ = waitpid(child, None);
    made?;
    nix::unistd::setgroups(&[])?;
    nix::unistd::setgid(Gid::from_raw(0))?;
    Ok(nix::unistd::setuid(Uid::from_raw(0))?)
}

fn write_maps(pid: u32, mappings: &IdMappings) -> io::Result<()> {
    for (file, mappings) in [("uid_map", &mappings.uids), ("gid_map", &mappings.gids)] {
        let mut text = String::new();
        for IdMapping { inside, outside, length } in mappings {
            writeln!(text, "{inside} {outside} {length}").map_err(io::Error::other)?;
        }
        fs::write(format!("/proc/{pid}/{file}"), text).map_err(|cause| {
            io::Error::new(cause.kind(), format!("{file} of the user namespace: {cause}"))
        })?;
    }
    Ok(())
}

/// Files below `tree`, a mount that is nowhere yet, belong to whom they belong to inside the namespace.
///
/// # Errors
/// `InvalidInput` if their file system cannot be seen so.
pub(crate) fn map(tree: BorrowedFd<'_>, namespace: &fs::File) -> io::Result<()> {
    let attributes = MountAttr {
        attr_set: IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?,
    };
    LinuxSyscall
        .mount_setattr(tree, Path::new(""), AT_EMPTY_PATH, &attributes, size_of::<MountAttr>())
        .map_err(|cause| io::Error::other(format!("its owners cannot be mapped: {cause}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_namespace_are_found_outside() {
        let mapping = |inside, outside, length| IdMapping { inside, outside, length };
        let mappings = IdMappings {
            uids: vec![mapping(0, 100_000, 10), mapping(10, 5, 1)],
            gids: vec![mapping(0, 200_000, 65_536)],
        };
        assert_eq!(mappings.outside(0, 0), Some((100_000, 200_000)));
        assert_eq!(mappings.outside(10, 65_535), Some((5, 265_535)));
        assert_eq!(mappings.outside(11, 0), None);
        assert_eq!(mappings.outside(0, 65_536), None);
    }
}
