//! Network namespaces as files: made, entered and removed by path.
//!
//! A namespace lives as long as its file is mounted, whoever runs in it. Everything here that changes a
//! thread's namespace does so on a thread of its own, which ends with the work.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::Error;

/// Makes a network namespace with its loopback down and mounts it at `path`.
///
/// Blocks for about a millisecond.
///
/// # Errors
/// [`Error::Namespace`] if the kernel refuses; nothing is left at `path` then.
pub fn create(path: &Path) -> Result<(), Error> {
    mount_at(path, "make", || {
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let own = format!("/proc/self/task/{}/ns/net", nix::unistd::gettid());
            Ok(mount(Some(own.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
        })
    })
}

/// Mounts a network namespace that there is, e.g. `/proc/PID/ns/net`, at `path`.
///
/// # Errors
/// [`Error::Namespace`] if the kernel refuses; nothing is left at `path` then.
pub fn adopt(namespace: &Path, path: &Path) -> Result<(), Error> {
    mount_at(path, "adopt", || {
        Ok(mount(Some(namespace), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
    })
}

fn mount_at(path: &Path, action: &'static str, mount: impl FnOnce() -> io::Result<()>) -> Result<(), Error> {
    let failed = |cause| Error::Namespace { action, path: path.to_owned(), cause };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    File::create_new(path).map_err(failed)?;
    mount().map_err(|cause| {
        let _ = fs::remove_file(path);
        failed(cause)
    })
}

/// Unmounts and removes the namespace at `path`. One that is not there is no error.
///
/// # Errors
/// [`Error::Namespace`] if the file cannot be removed.
pub fn remove(path: &Path) -> Result<(), Error> {
    // Not mounted: a crash between the two steps of `create` or of `remove`.
    let _ = umount2(path, MntFlags::MNT_DETACH);
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(Error::Namespace { action: "remove", path: path.to_owned(), cause })
        }
        _ => Ok(()),
    }
}

/// Whether a namespace is mounted at `path`: the file is there and not a plain one.
pub fn exists(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

/// Runs `work` on a thread of its own inside the namespace at `path` and gives back its result.
///
/// Sockets that it opens stay in that namespace, wherever they are used later.
///
/// # Errors
/// [`Error::Namespace`] if the namespace cannot be entered, or with the cause that `work` gives.
pub fn within<T: Send>(path: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> Result<T, Error> {
    on_thread(|| {
        enter(path)?;
        work()
    })
    .map_err(|cause| Error::Namespace { action: "work in", path: path.to_owned(), cause })
}

/// Moves the calling thread into the namespace at `path`, for good. For a process about to start another.
///
/// # Errors
/// The kernel's, or that of opening the file.
pub fn enter(path: &Path) -> io::Result<()> {
    setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
    Ok(())
}

fn on_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)?
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the namespace thread panicked")))
    })
}
