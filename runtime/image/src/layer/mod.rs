//! Layers: from an archive to a directory that overlayfs can take as one of its lower ones.

#[cfg(test)]
mod fuzz;
mod lookup;
mod meta;
mod read;
mod unpack;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use lookup::lookup;
pub(crate) use meta::inherit;
pub(crate) use unpack::unpack;

use crate::digest::Digest;

/// What came out of an archive.
#[derive(Debug)]
pub(crate) struct Unpacked {
    /// Of the uncompressed archive, to its last byte.
    pub(crate) diff_id: Digest,
    /// Bytes on disk, in whole blocks.
    pub(crate) bytes: u64,
    /// Files and directories.
    pub(crate) inodes: u64,
    /// Directories that the archive uses without an entry of their own; "" is the layer's root.
    /// Theirs are the attributes of the same directory below: see [`inherit`].
    pub(crate) implicit: Vec<PathBuf>,
}

/// Why an archive did not become a layer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// The archive's fault.
    #[error("{0}")]
    Bad(String),
    /// The disk's fault.
    #[error("could not {what}: {cause}")]
    Disk { what: String, cause: std::io::Error },
    /// Nobody waits for it any more.
    #[error("cancelled")]
    Cancelled,
}

/// Bounds for one archive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

/// Told by whoever waits for blocking work that it is in vain.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Cancels when dropped.
    pub(crate) fn on_drop(&self) -> CancelOnDrop {
        CancelOnDrop(self.clone())
    }
}

pub(crate) struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}
