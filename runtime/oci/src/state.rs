//! What is on disk, and what a container's life looks like.
//!
//! Below the state directory, which is volatile (a reboot clears it with the processes):
//! ```text
//! containers/ID/meta.json      what clean-up must know
//!               monitor.sock   the monitor listens
//!               lock           held by who may still make something
//!               exit.json      written whole, once, when the container is over
//!               reported       the exit was handed to the shim
//!               bundle/        config.json and the mount point rootfs/
//!               lib/           libcontainer's own state
//! pauses/ID.json               the pause process
//! cgroups.json                 the parent cgroups that were not there before us
//! ```

use crate::error::{Error, at};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code; 128 + the signal's number when a signal ended it.
    pub code: i32,
    pub oom_killed: bool,
    /// `Completed`, `Error`, `OOMKilled`, or what went wrong on our side.
    pub reason: String,
    /// RFC 3339, UTC.
    pub started_at: Option<String>,
    /// RFC 3339, UTC.
    pub at: String,
}

impl Exit {
    pub(crate) fn new(code: i32, oom_killed: bool, started_at: Option<String>) -> Self {
        let reason = match (oom_killed, code) {
            (true, _) => "OOMKilled",
            (false, 0) => "Completed",
            (false, _) => "Error",
        };
        Self { code, oom_killed, reason: reason.to_owned(), started_at, at: now() }
    }

    /// The container went down with its monitor.
    pub(crate) fn orphaned() -> Self {
        let reason = "the container's monitor died".to_owned();
        Self { code: 137, oom_killed: false, reason, started_at: None, at: now() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// Not there yet: its creation is under way.
    Creating,
    /// Waits for [`crate::Oci::start_container`]. The pid is of the host's namespace.
    Created {
        pid: i32,
    },
    Running {
        pid: i32,
        started_at: String,
    },
    Exited(Exit),
}

impl Status {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created { .. } => "created",
            Self::Running { .. } => "running",
            Self::Exited(_) => "over",
        }
    }
}

pub(crate) fn now() -> String {
    jiff::Timestamp::now().to_string()
}

/// What must be known to clean up after a container whose shim and monitor are both gone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub id: String,
    pub cgroup: String,
    /// Deleted with the container.
    pub owned: Vec<PathBuf>,
}

/// Where, in the mount namespace of a container with a user namespace, its root and what is mounted into it are laid out: its
/// root has no right to pass through root's own directories. A temporary file system covers what the host has there.
pub(crate) const STAGE: &str = "/mnt";

/// One container's directory.
#[derive(Debug, Clone)]
pub(crate) struct Dir(pub PathBuf);

impl Dir {
    pub fn meta(&self) -> PathBuf {
        self.0.join("meta.json")
    }
    pub fn socket(&self) -> PathBuf {
        self.0.join("monitor.sock")
    }
    pub fn exit(&self) -> PathBuf {
        self.0.join("exit.json")
    }
    pub fn reported(&self) -> PathBuf {
        self.0.join("reported")
    }
    pub fn bundle(&self) -> PathBuf {
        self.0.join("bundle")
    }
    /// Locked by the monitor, and so by whatever it forked that has not become a program of the container's.
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }
    pub fn library(&self) -> PathBuf {
        self.0.join("lib")
    }
    /// Where its root and its mounts are laid out: in the bundle, or where a user namespace's root sees them.
    pub fn stage(&self, user: bool) -> PathBuf {
        if user { PathBuf::from(STAGE) } else { self.bundle() }
    }
}

/// Writes a file so that a reader sees all of it or the one before. Not synced: the directory does not outlive the
/// machine's run.
pub(crate) fn write(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let bytes = serde_json::to_vec(value).expect("our own types are plain data");
    let fresh = path.with_extension("new");
    fs::write(&fresh, bytes).map_err(at("write", &fresh))?;
    fs::rename(&fresh, path).map_err(at("rename to", path))
}

/// `None` if it is not there or not whole.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}
