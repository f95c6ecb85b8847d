//! Attributes of files: owner, mode, times, extended attributes.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};

use super::lookup;

/// What an archive says about one entry besides its content.
#[derive(Debug, Clone)]
pub(super) struct Attributes {
    pub(super) mode: Mode,
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    pub(super) times: Timestamps,
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
}

/// Extended attributes that an image may bring. Never overlayfs' own (an image could redirect directories with them),
/// nor labels of the host's security modules.
pub(super) fn is_allowed_xattr(name: &str) -> bool {
    name == "security.capability"
        || name == "system.posix_acl_access"
        || name == "system.posix_acl_default"
        || (name.starts_with("user.") && !name.starts_with("user.overlay."))
}

pub(super) fn times(seconds: i64, nanoseconds: u32) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Applies owner, mode and extended attributes to an open file or directory, in the order that keeps
/// setuid bits and capabilities: a change of owner clears both.
pub(super) fn apply(fd: impl AsFd, attributes: &Attributes) -> rustix::io::Result<()> {
    rustix::fs::fchown(&fd, Some(attributes.uid), Some(attributes.gid))?;
    rustix::fs::fchmod(&fd, attributes.mode)?;
    for (name, value) in &attributes.xattrs {
        match rustix::fs::fsetxattr(&fd, name.as_str(), value, XattrFlags::empty()) {
            // A file system without them holds the rest of the image all the same.
            Ok(()) | Err(rustix::io::Errno::NOTSUP) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Applies owner and times to what cannot be opened (links, devices), and the mode to what has one.
pub(super) fn apply_at(
    dir: impl AsFd,
    name: &OsString,
    attributes: &Attributes,
    has_mode: bool,
) -> rustix::io::Result<()> {
    rustix::fs::chownat(&dir, name, Some(attributes.uid), Some(attributes.gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if has_mode {
        rustix::fs::chmodat(&dir, name, attributes.mode, AtFlags::empty())?;
    }
    rustix::fs::utimensat(&dir, name, &attributes.times, AtFlags::SYMLINK_NOFOLLOW)
}

/// Gives directories that an archive uses without describing them the attributes of the same directory below:
/// in an overlay the topmost directory's attributes count, and a `/tmp` must not lose its mode to a layer that adds a file in it.
///
/// `lower` is topmost first.
pub(crate) fn inherit(layer: &Path, implicit: &[PathBuf], lower: &[PathBuf]) -> io::Result<()> {
    if lower.is_empty() {
        return Ok(());
    }
    let root = File::open(layer)?;
    for path in implicit {
        let parts: Vec<OsString> = path.iter().map(ToOwned::to_owned).collect();
        let below = if parts.is_empty() {
            let dir = &lower[0];
            Some((dir.clone(), fs::symlink_metadata(dir)?))
        } else {
            lookup::stat(lower, &parts)?
        };
        let Some((_, meta)) = below.filter(|(_, meta)| meta.is_dir()) else { continue };
        let at: &Path = if parts.is_empty() { Path::new(".") } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        // A directory reached through a link of this layer is described where it really is.
        let Ok(dir) = rustix::fs::openat2(&root, at, flags, Mode::empty(), resolve) else { continue };
        rustix::fs::fchown(&dir, Some(Uid::from_raw(meta.uid())), Some(Gid::from_raw(meta.gid())))?;
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(meta.mode() & 0o7777))?;
        rustix::fs::futimens(&dir, &times(meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap_or(0)))?;
    }
    Ok(())
}
