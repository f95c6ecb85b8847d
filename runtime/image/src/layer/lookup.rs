//! Finds a file in a stack of layers as the mounted overlay would show it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf};

const LINKS: usize = 40; // as the kernel's own limit on symbolic links in one lookup

/// The regular file at `path` in these layers, topmost first. Symbolic links are followed within the image;
/// the answer itself is none, and lies in one of the layers.
pub(crate) fn lookup(layers: &[PathBuf], path: &Path) -> io::Result<Option<PathBuf>> {
    let mut ahead: VecDeque<OsString> = parts(path);
    let mut here: Vec<OsString> = Vec::new();
    let mut links = 0;
    while let Some(part) = ahead.pop_front() {
        if part == ".." {
            here.pop();
            continue;
        }
        here.push(part);
        let Some((found, meta)) = stat(layers, &here)? else { return Ok(None) };
        if meta.is_symlink() {
            links += 1;
            if links > LINKS {
                return Ok(None);
            }
            let target = fs::read_link(&found)?;
            if target.is_absolute() {
                here.clear();
            } else {
                here.pop();
            }
            for part in parts(&target).into_iter().rev() {
                ahead.push_front(part);
            }
        } else if meta.is_file() {
            return Ok(ahead.is_empty().then_some(found));
        } else if !meta.is_dir() {
            return Ok(None);
        }
    }
    Ok(None)
}

fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

/// What the overlay shows at this path, following no link: the topmost entry that nothing above hides.
pub(super) fn stat(layers: &[PathBuf], path: &[OsString]) -> io::Result<Option<(PathBuf, Metadata)>> {
    // The layers whose directory is part of the merged one so far, topmost first.
    let mut merged: Vec<PathBuf> = layers.to_vec();
    let mut found = None;
    for part in path {
        let mut next = Vec::new();
        found = None;
        for dir in &merged {
            let at = dir.join(part);
            let meta = match fs::symlink_metadata(&at) {
                Ok(meta) => meta,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if is_whiteout(&meta) {
                break;
            }
            let is_dir = meta.is_dir();
            if !is_dir && !next.is_empty() {
                break; // a directory above hides a file below
            }
            if found.is_none() {
                found = Some((at.clone(), meta));
            }
            if !is_dir {
                break;
            }
            let opaque = is_opaque(&at)?;
            next.push(at);
            if opaque {
                break;
            }
        }
        if found.is_none() {
            return Ok(None);
        }
        merged = next;
    }
    Ok(found)
}

fn is_whiteout(meta: &Metadata) -> bool {
    meta.file_type().is_char_device() && meta.rdev() == 0
}

fn is_opaque(dir: &Path) -> io::Result<bool> {
    let mut value = [0_u8; 1];
    match rustix::fs::lgetxattr(dir, "trusted.overlay.opaque", &mut value[..]) {
        Ok(n) => Ok(n == 1 && value == *b"y"),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP | rustix::io::Errno::RANGE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
