//! A part of a volume, mounted. A container may write into its volumes while another is being started, so a path that was
//! looked at is not used again: the part is opened once, in a way in which the kernel leaves the volume for no link, and
//! what was opened is bind-mounted to a place that no container reaches.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, mkdirat};

use super::{Error, Ready};

/// What one volume mount of a container is bound to.
#[derive(Debug, PartialEq, Eq)]
pub struct Bound {
    pub host_path: PathBuf,
    pub readonly: bool,
}

impl Ready {
    /// Resolves a mount of volume `name`, with the (expanded) `sub_path`. `place`: a name for it, `CONTAINER/NTH`.
    /// `None` where the pod has no such volume.
    ///
    /// # Errors
    /// The sub-path leaves the volume, or is not there and may not be made.
    pub fn bind(
        &self,
        name: &str,
        sub_path: &str,
        readonly: bool,
        place: &str,
    ) -> Option<Result<Bound, Error>> {
        let volume = self.paths.get(name)?;
        let resolved = if sub_path.is_empty() {
            Ok(volume.path.clone())
        } else {
            let target = self.sub_paths.join(name).join(place);
            open(&volume.path, sub_path, volume.own).and_then(|part| mount(&part, &target)).map(|()| target)
        };
        Some(match resolved {
            Ok(host_path) => Ok(Bound { host_path, readonly: readonly || volume.readonly }),
            Err(cause) => Err(Error::SubPath { volume: name.to_owned(), path: sub_path.to_owned(), cause }),
        })
    }
}

/// Opens `base/sub`, with all links followed and never outside `base`. `create`: what is missing is made.
fn open(base: &Path, sub: &str, create: bool) -> io::Result<OwnedFd> {
    let sub = Path::new(sub);
    if !sub.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a path below the volume"));
    }
    let base = nix::fcntl::open(base, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let below = |path: &Path, flags: OFlag| {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&base, path, how).map_err(|errno| match errno {
            Errno::EXDEV => {
                io::Error::new(io::ErrorKind::InvalidInput, "a link in it leads out of the volume")
            }
            errno => errno.into(),
        })
    };
    match below(sub, OFlag::O_PATH) {
        Err(error) if create && error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    let mut at = PathBuf::from(".");
    for part in sub.components() {
        let parent = below(&at, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        at.push(part);
        match mkdirat(&parent, part.as_os_str(), Mode::from_bits_truncate(0o777)) {
            // The umask cut it.
            Ok(()) => {
                fchmod(below(&at, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?, Mode::from_bits_truncate(0o777))?;
            }
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    below(sub, OFlag::O_PATH)
}

/// Mounts what was opened on `target`, in place of what an earlier run of the container had there.
fn mount(part: &OwnedFd, target: &Path) -> io::Result<()> {
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match nix::mount::umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {} // an error: nothing is mounted there
        Err(errno) => return Err(errno.into()),
    }
    let directory = SFlag::from_bits_truncate(fstat(part)?.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
    match std::fs::symlink_metadata(target) {
        Ok(old) if old.is_dir() == directory => {}
        Ok(old) if old.is_dir() => std::fs::remove_dir(target)?,
        Ok(_) => std::fs::remove_file(target)?,
        Err(_) => {}
    }
    if directory {
        std::fs::create_dir_all(target)?;
    } else {
        std::fs::File::options().create(true).append(true).open(target)?;
    }
    // The link in /proc leads to the very thing that was opened, wherever its path leads by now.
    let source = format!("/proc/self/fd/{}", part.as_raw_fd());
    nix::mount::mount(
        Some(source.as_str()),
        target,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn parts_stay_below_their_volume_whatever_links_say() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("v");
        std::fs::create_dir_all(base.join("a/b")).unwrap();
        symlink("/etc", base.join("out")).unwrap();
        symlink("../v2", base.join("beside")).unwrap();
        symlink("a", base.join("in")).unwrap();
        symlink("../in/b", base.join("a/round")).unwrap();
        let real = |path: &str, create| {
            let part = open(&base, path, create)?;
            std::fs::read_link(format!("/proc/self/fd/{}", part.as_raw_fd()))
        };
        let base = base.canonicalize().unwrap();
        assert_eq!(real("in/b", false).unwrap(), base.join("a/b"));
        assert_eq!(real("a/round", false).unwrap(), base.join("a/b"));
        assert_eq!(real("in/new/dir", true).unwrap(), base.join("a/new/dir"));
        assert_eq!(std::fs::metadata(base.join("a/new")).unwrap().permissions().mode() & 0o777, 0o777);
        let refused = [
            ("missing", false),
            ("out", true),
            ("out/new", true),
            ("beside/x", true),
            ("../x", true),
            ("/etc", true),
        ];
        for (path, create) in refused {
            assert!(real(path, create).is_err(), "{path}");
        }
        assert!(!dir.path().join("v2").exists() && !Path::new("/etc/new").exists());
    }

    #[test]
    fn what_was_opened_stays_mounted_though_a_link_takes_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let (base, target) = (dir.path().join("v"), dir.path().join("subs/main/0"));
        std::fs::create_dir_all(base.join("part")).unwrap();
        std::fs::write(base.join("part/file"), "mine").unwrap();
        let part = open(&base, "part", false).unwrap();
        std::fs::rename(base.join("part"), base.join("moved")).unwrap();
        symlink("/etc", base.join("part")).unwrap();
        mount(&part, &target).unwrap();
        let seen = std::fs::read_to_string(target.join("file"));
        // A file takes the place of a directory when the container is started again.
        mount(&open(&base, "moved/file", false).unwrap(), &target).unwrap();
        let file = std::fs::read_to_string(&target);
        nix::mount::umount2(&target, MntFlags::MNT_DETACH).unwrap();
        assert_eq!((seen.unwrap().as_str(), file.unwrap().as_str()), ("mine", "mine"));
    }
}
