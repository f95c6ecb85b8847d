//! What to run, in plain data that knows neither CRI nor the OCI runtime spec.

use crate::users::UserNamespace;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

/// One container. Fields not named by a caller keep their `Default`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Letters, digits, `_`, `.`, `+` and `-`, at most 128; unique among this runtime's containers and pauses.
    pub id: String,
    /// The binary of another OCI runtime, with runc's command line, that makes this container; libcontainer without.
    pub runtime: Option<PathBuf>,
    pub rootfs: Rootfs,
    /// At least one. Looked up in the container's own PATH when it has no slash.
    pub args: Vec<String>,
    /// `NAME=value`; the last of two with one name wins.
    pub env: Vec<String>,
    /// Absolute, `/` when empty; made in the container if it is not there.
    pub cwd: PathBuf,
    pub user: User,
    /// In this order, after the usual /proc, /dev, /sys; one at a usual place replaces it.
    pub mounts: Vec<Mount>,
    pub hostname: Option<String>,
    pub namespaces: Namespaces,
    pub resources: Resources,
    /// Clamped to what this process may set.
    pub oom_score_adj: Option<i32>,
    pub capabilities: Capabilities,
    /// All capabilities and devices, nothing masked, seccomp off, /sys and cgroups writable.
    pub privileged: bool,
    pub no_new_privileges: bool,
    pub seccomp: Seccomp,
    /// A profile of AppArmor that is loaded into the kernel; that of this process without.
    pub apparmor: Option<String>,
    /// `None` for the usual ones.
    pub masked_paths: Option<Vec<String>>,
    /// `None` for the usual ones.
    pub readonly_paths: Option<Vec<String>>,
    pub readonly_rootfs: bool,
    /// Beside null, zero, full, random, urandom, tty and the pseudo terminals.
    pub devices: Vec<Device>,
    /// Only of namespaces that the container makes itself; those of a pod go to its pause process.
    pub sysctls: BTreeMap<String, String>,
    pub terminal: bool,
    /// Keep standard input open; else it reads as empty.
    pub stdin: bool,
    /// Only the first who attaches to the standard input may write to it; it ends with that attachment.
    pub stdin_once: bool,
    /// In the CRI format; its directory is made. No log is kept without.
    pub log_path: Option<PathBuf>,
    /// Absolute cgroup path that the container's own is made in; [`crate::Config::cgroup_parent`] without.
    pub cgroup_parent: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Rootfs {
    /// `lower` from the topmost layer to the lowest. `upper` and `work` are made if missing, must be on one file
    /// system, and are deleted with the container.
    Overlay { lower: Vec<PathBuf>, upper: PathBuf, work: PathBuf },
    /// A directory used as it is.
    Dir(PathBuf),
}

impl Default for Rootfs {
    fn default() -> Self {
        Self::Dir(PathBuf::new())
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Mount {
    /// A file or directory of the host; symbolic links in `source` are followed on the host.
    Bind {
        source: PathBuf,
        destination: PathBuf,
        readonly: bool,
        /// With `readonly`, what is mounted below it too.
        recursive_readonly: bool,
        propagation: Propagation,
        /// With a user namespace: what belongs to a number there belongs to that number here.
        mapped: bool,
    },
    /// The files of an image, from the topmost layer to the lowest; read-only, and programs in it run.
    Layers {
        lower: Vec<PathBuf>,
        /// A directory or file of the image, for all of it when empty. Links in it do not lead out of the image.
        sub_path: PathBuf,
        destination: PathBuf,
    },
    /// Options as mount(8) spells them, e.g. `size=64m`.
    Tmpfs { destination: PathBuf, options: Vec<String> },
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

/// For each kind: a path joins that namespace, e.g. `/proc/PID/ns/ipc`; `None` makes a new one; host flags use the
/// host's.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Namespaces {
    pub network: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    pub pid: Option<PathBuf>,
    /// To join; the host's without. Namespaces that are joined with it belong to it.
    pub user: Option<UserNamespace>,
    pub host_network: bool,
    pub host_ipc: bool,
    pub host_uts: bool,
    pub host_pid: bool,
}

/// What is `None` is not limited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// 2 to 262144, as cgroup v1 counts.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time per period; below 0 no limit.
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// Bytes; below 0 no limit.
    pub memory_limit: Option<i64>,
    /// Bytes of memory and swap together, not less than `memory_limit`. Without, no swap is allowed on top of that, where
    /// version 1 of cgroups accounts it.
    pub memory_swap_limit: Option<i64>,
    /// Page size, as in `2MB`, to bytes.
    pub hugepages: BTreeMap<String, u64>,
    /// Files of cgroup v2 and what is written to them.
    pub unified: BTreeMap<String, String>,
    pub pids_limit: Option<i64>,
    /// As in `0-2,7`.
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
}

/// Changes to the set that other container runtimes give by default. Names with or without `CAP_`; `ALL` means all
/// that this process may give.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Capabilities {
    pub add: Vec<String>,
    pub drop: Vec<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub enum Seccomp {
    #[default]
    Unconfined,
    RuntimeDefault,
    /// A profile in the OCI runtime spec's JSON.
    Profile(String),
}

/// A device of the host, put into the container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Device {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    /// Some of `r`, `w`, `m`.
    pub access: String,
}
