//! Where a cluster's files are, and which clusters there are.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::error::{Error, at};

/// Where clusters keep their files.
#[derive(Clone, Debug)]
pub struct Layout {
    data: PathBuf,
    run: PathBuf,
}

impl Default for Layout {
    fn default() -> Self {
        Self { data: "/var/lib/wharf".into(), run: "/run/wharf".into() }
    }
}

impl Layout {
    /// Everything below one directory: what `--dir` asks for, and the tests.
    pub fn below(dir: &Path) -> Self {
        Self { data: dir.join("data"), run: dir.join("run") }
    }

    /// The cluster of this name, whether it exists or not.
    ///
    /// # Errors
    /// [`Error::Name`] if it can be no name.
    pub fn cluster(&self, name: &str) -> Result<Cluster, Error> {
        let fits = name.len() <= 30
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && !name.ends_with('-');
        if !fits {
            return Err(Error::Name(name.to_owned()));
        }
        Ok(Cluster { name: name.to_owned(), data: self.data.join(name), run: self.run.join(name) })
    }
}

/// Every cluster that has data or runs, by name.
pub fn list(layout: &Layout) -> Vec<Cluster> {
    let entries = fs::read_dir(&layout.data).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut clusters: Vec<_> = names.filter_map(|name| layout.cluster(&name).ok()).collect();
    clusters.sort_by(|a, b| a.name.cmp(&b.name));
    clusters
}

/// One cluster's places.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub name: String,
    /// What survives a boot.
    pub data: PathBuf,
    /// What does not: sockets, namespaces, records of what runs.
    pub run: PathBuf,
}

/// What a cluster keeps about itself from one `up` to the next.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// The port of 127.0.0.1 that the API is served on.
    pub port: u16,
    /// No way out of the cluster's network.
    pub isolated: bool,
    /// The numbers of its nodes; none in what was written before there could be several.
    #[serde(default)]
    pub nodes: BTreeSet<u8>,
    /// Where objects are kept: options of `wharf server`.
    #[serde(default)]
    pub store: Vec<String>,
}

/// As many nodes as a development cluster can have: each is a handful of processes on one machine.
pub const MAX_NODES: u8 = 64;

/// The name of a development cluster's node by its number, from 1.
pub fn node_name(number: u8) -> String {
    format!("node-{number}")
}

impl Cluster {
    /// The name of its kubeconfig context.
    pub fn context(&self) -> String {
        format!("wharf-{}", self.name)
    }

    /// The kubeconfig of its administrator, written by the server.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.data.join("server/admin.kubeconfig")
    }

    /// What its processes log.
    pub fn logs(&self) -> PathBuf {
        self.data.join("logs")
    }

    /// Whether its keeper runs: the keeper holds a lock for as long as it lives.
    pub fn runs(&self) -> bool {
        let Ok(file) = File::open(self.lock()) else { return false };
        Flock::lock(file, FlockArg::LockSharedNonblock).is_err()
    }

    /// The keeper's process id, if it runs.
    pub fn keeper(&self) -> Option<i32> {
        self.runs().then(|| fs::read_to_string(self.lock()).ok()?.trim().parse().ok())?
    }

    /// The keeper's lock, which holds its process id.
    pub fn lock(&self) -> PathBuf {
        self.run.join("keeper.lock")
    }

    pub(crate) fn remember(&self, memory: &Memory) -> Result<(), Error> {
        let path = self.data.join("cluster.json");
        fs::create_dir_all(&self.data).map_err(at("make", &self.data))?;
        let text = serde_json::to_vec_pretty(memory).expect("plain data");
        fs::write(&path, text).map_err(at("write", &path))
    }

    pub(crate) fn memory(&self) -> Option<Memory> {
        serde_json::from_slice(&fs::read(self.data.join("cluster.json")).ok()?).ok()
    }

    /// The numbers of its nodes, always with 1.
    pub fn nodes(&self) -> BTreeSet<u8> {
        let mut nodes = self.memory().map(|memory| memory.nodes).unwrap_or_default();
        nodes.insert(1);
        nodes
    }

    /// Where its API is served, if it was ever up.
    pub fn url(&self) -> Option<String> {
        Some(format!("https://127.0.0.1:{}", self.memory()?.port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_break_a_path_or_a_hostname_are_refused() {
        let layout = Layout::default();
        for good in ["dev", "a", "team-1"] {
            assert!(layout.cluster(good).is_ok(), "{good}");
        }
        for bad in ["", "Dev", "1a", "-a", "a-", "a/b", "..", "a_b", "a.b", &"a".repeat(31)] {
            assert!(layout.cluster(bad).is_err(), "{bad:?} was taken");
        }
    }
}
