//! What is known of an image once it is here.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, DigestError};

/// Names an image by content: the digest of its config, so equal images of two registries are one.
///
/// Where the config does not bind the layers (the empty config of an artifact), it is the digest of the manifest instead.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(pub(crate) Digest);

impl ImageId {
    /// `sha256:…`, as CRI wants it.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The digest itself.
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ImageId {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        text.parse().map(Self)
    }
}

/// One image of the store. A snapshot: later pulls and removals do not change it.
#[derive(Clone, Debug)]
pub struct Image {
    /// See [`ImageId`].
    pub id: ImageId,
    /// Names with a tag, complete (`docker.io/library/busybox:latest`), sorted.
    pub repo_tags: Vec<String>,
    /// Names with the digest that the registry gave (of the index, where there is one), sorted.
    pub repo_digests: Vec<String>,
    /// Bytes as transferred: manifest, config and compressed layers.
    pub size: u64,
    /// What runs it.
    pub kind: Kind,
    /// What the image says about its process. For a wasm artifact without one, `entrypoint` is the module's name.
    pub config: ImageConfig,
    /// The manifest's annotations.
    pub annotations: BTreeMap<String, String>,
    /// The image's config document as the registry sent it (verbose answers show it).
    pub raw_config: String,
    /// When it was last pulled.
    pub pulled: jiff::Timestamp,
    /// The chain ids of its layers, lowest first; empty for wasm artifacts.
    pub(crate) chain: Vec<Digest>,
}

impl Image {
    /// Whether a wasm host runs it.
    pub fn is_wasm(&self) -> bool {
        matches!(self.kind, Kind::Wasm(_))
    }
}

/// What runs an image. Told from the manifest, the config and the file itself, never from a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A root file system with a native program.
    Oci,
    /// A wasm module or component.
    Wasm(WasmModule),
}

impl Kind {
    /// `oci` or `wasm`, the value of the annotation `runtime.wharf.dev/kind`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Oci => "oci",
            Self::Wasm(_) => "wasm",
        }
    }
}

/// The module that a wasm image runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WasmModule {
    /// The file, read-only, there as long as the image is or a lease on it.
    pub path: PathBuf,
    /// Of the file's bytes: the key for compiled code.
    pub digest: Digest,
    /// Bytes of the file.
    pub size: u64,
    /// `args[0]` when the container names no command: the path in the image, or the artifact's title.
    pub name: String,
    /// The exported function to call, from an entry point written `path#function`.
    pub function: Option<String>,
}

/// The part of an image's config that a runtime needs. Absent fields are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `NAME=value`.
    pub env: Vec<String>,
    /// The command that is kept when arguments are given.
    pub entrypoint: Vec<String>,
    /// The default arguments, or the command where there is no entry point.
    pub cmd: Vec<String>,
    /// `user`, `uid`, `user:group`, … as written.
    pub user: String,
    /// Absolute; empty means `/`.
    pub working_dir: String,
    /// `8080/tcp`, sorted.
    pub exposed_ports: Vec<String>,
    /// `SIGQUIT`, `3`, `SIGRTMIN+3`, as written.
    pub stop_signal: Option<String>,
    /// Absolute paths, sorted.
    pub volumes: Vec<String>,
    /// The image's labels.
    pub labels: BTreeMap<String, String>,
    /// `linux`, `wasip1`, …
    pub os: String,
    /// `amd64`, `wasm`, …
    pub architecture: String,
}

impl ImageConfig {
    /// The numeric user, as CRI's `Image.uid` wants it: none if the image names none, or names it by name.
    pub fn uid(&self) -> Option<i64> {
        self.user_part().parse().ok()
    }

    /// The user's name, as CRI's `Image.username` wants it: empty if there is none or it is a number.
    pub fn username(&self) -> &str {
        let user = self.user_part();
        if user.parse::<i64>().is_ok() { "" } else { user }
    }

    fn user_part(&self) -> &str {
        self.user.split(':').next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_number_or_a_name() {
        let table = [
            ("", None, ""),
            ("1002", Some(1002), ""),
            ("www-data", None, "www-data"),
            ("1003:1004", Some(1003), ""),
            ("www-data:1004", None, "www-data"),
        ];
        for (user, uid, name) in table {
            let config = ImageConfig { user: user.into(), ..ImageConfig::default() };
            assert_eq!((config.uid(), config.username()), (uid, name), "{user}");
        }
    }
}
