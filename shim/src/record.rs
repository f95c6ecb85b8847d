//! What the shim remembers of sandboxes and containers, on disk and in memory.
//!
//! A record is a protobuf message beside CRI's own, so it embeds the configs as the caller sent them and is
//! written with one encoding. Each has a file of its own, replaced by rename; it lies on the volatile file
//! system, since containers do not outlive a boot either.

use std::fs;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use prost::Message;
use wharf_cri::v1;

/// A pod sandbox.
#[derive(Clone, PartialEq, Message)]
pub struct Sandbox {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(message, optional, tag = "2")]
    pub config: Option<v1::PodSandboxConfig>,
    /// The runtime handler as the caller named it.
    #[prost(string, tag = "3")]
    pub handler: String,
    #[prost(enumeration = "v1::PodSandboxState", tag = "4")]
    pub state: i32,
    /// Nanoseconds since the epoch.
    #[prost(int64, tag = "5")]
    pub created_at: i64,
    /// Empty with the node's network.
    #[prost(string, tag = "6")]
    pub address: String,
    /// The pod's network namespace; empty with the node's network, and for wasm pods unless CNI makes their networks.
    #[prost(string, tag = "7")]
    pub netns: String,
    /// Where CNI plugins make the pod's network.
    #[prost(message, optional, tag = "8")]
    pub cni: Option<Cni>,
}

/// What CNI plugins want again when the pod goes.
#[derive(Clone, PartialEq, Message)]
pub struct Cni {
    /// [`wharf_sandbox::cni::Configuration`] as text.
    #[prost(string, tag = "1")]
    pub configuration: String,
    /// Empty until they are done.
    #[prost(string, tag = "2")]
    pub result: String,
    #[prost(string, repeated, tag = "3")]
    pub more_addresses: Vec<String>,
}

/// A container.
#[derive(Clone, PartialEq, Message)]
pub struct Container {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub sandbox: String,
    #[prost(message, optional, tag = "3")]
    pub config: Option<v1::ContainerConfig>,
    #[prost(string, tag = "4")]
    pub image_id: String,
    /// Whether it runs in the wasm host.
    #[prost(bool, tag = "5")]
    pub wasm: bool,
    #[prost(enumeration = "v1::ContainerState", tag = "6")]
    pub state: i32,
    /// Nanoseconds since the epoch, as are those that follow; 0: not yet.
    #[prost(int64, tag = "7")]
    pub created_at: i64,
    #[prost(int64, tag = "8")]
    pub started_at: i64,
    #[prost(int64, tag = "9")]
    pub finished_at: i64,
    #[prost(int32, tag = "10")]
    pub exit_code: i32,
    #[prost(string, tag = "11")]
    pub reason: String,
    #[prost(string, tag = "12")]
    pub message: String,
    /// Absolute; empty if the caller asked for no log.
    #[prost(string, tag = "13")]
    pub log_path: String,
    /// The signal that asks it to stop.
    #[prost(int32, tag = "14")]
    pub stop_signal: i32,
    /// Who its first process runs as; none in the wasm host.
    #[prost(message, optional, tag = "15")]
    pub user: Option<v1::LinuxContainerUser>,
}

impl Sandbox {
    pub fn config(&self) -> &v1::PodSandboxConfig {
        self.config.as_ref().expect("a record is made with its config")
    }

    pub fn is_wasm(&self) -> bool {
        crate::handlers::is_wasm(&self.handler)
    }

    /// Once its network is unmade.
    pub fn disconnect(&mut self) {
        self.address.clear();
        self.netns.clear();
        self.cni = None;
    }

    /// Whether the pod shares the node's network.
    pub fn on_node_network(&self) -> bool {
        network_mode(self.config()) == v1::NamespaceMode::Node
    }
}

/// The network namespace that a sandbox config asks for.
pub fn network_mode(config: &v1::PodSandboxConfig) -> v1::NamespaceMode {
    namespaces(config).map_or(v1::NamespaceMode::Pod, |options| options.network())
}

/// The namespace options of a sandbox config.
pub fn namespaces(config: &v1::PodSandboxConfig) -> Option<&v1::NamespaceOption> {
    config.linux.as_ref()?.security_context.as_ref()?.namespace_options.as_ref()
}

impl Container {
    pub fn config(&self) -> &v1::ContainerConfig {
        self.config.as_ref().expect("a record is made with its config")
    }
}

/// What has an id and a file named by it.
pub trait Record: Message + Default {
    fn id(&self) -> &str;
}

impl Record for Sandbox {
    fn id(&self) -> &str {
        &self.id
    }
}

impl Record for Container {
    fn id(&self) -> &str {
        &self.id
    }
}

/// The files of one kind of record.
pub struct Files<R> {
    dir: PathBuf,
    record: PhantomData<fn() -> R>,
}

impl<R: Record> Files<R> {
    /// Opens the directory, making it if it is not there.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned(), record: PhantomData })
    }

    /// Every record. A file that cannot be read as one is left where it is and named in the log: what it
    /// stood for is cleaned up as unknown by its runtime.
    pub fn load(&self) -> io::Result<Vec<R>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_none_or(|ext| ext != "pb") {
                continue;
            }
            match R::decode(fs::read(&path)?.as_slice()) {
                Ok(record) => records.push(record),
                Err(error) => tracing::error!(path = %path.display(), %error, "record cannot be read"),
            }
        }
        Ok(records)
    }

    /// Writes or replaces a record. The file system is volatile, so nothing is synced.
    pub fn save(&self, record: &R) -> io::Result<()> {
        let path = self.path(record.id());
        let next = path.with_extension("next");
        fs::write(&next, record.encode_to_vec())?;
        fs::rename(next, path)
    }

    /// Removes a record. One that is not there is no error.
    pub fn remove(&self, id: &str) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.pb"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_again_and_broken_ones_do_not_hide_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let files: Files<Sandbox> = Files::open(dir.path()).unwrap();
        let one = Sandbox { id: "one".to_owned(), handler: "wasm".to_owned(), ..Default::default() };
        files.save(&one).unwrap();
        files.save(&Sandbox { id: "gone".to_owned(), ..Default::default() }).unwrap();
        files.remove("gone").unwrap();
        files.remove("gone").unwrap();
        fs::write(dir.path().join("broken.pb"), [0xff; 7]).unwrap();
        assert_eq!(files.load().unwrap(), [one]);
    }
}
