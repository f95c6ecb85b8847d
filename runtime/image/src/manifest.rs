//! Manifests, indexes and configs: narrow views of the documents, for the fields that this crate reads.
//!
//! The bytes are kept as they came (they are what the digest names); these views are lenient about everything else in them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::digest::{Digest, Hasher};
use crate::error::Error;
use crate::image::ImageConfig;
use crate::images::Prefer;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// What to send as `Accept` for a manifest.
pub(crate) const ACCEPT: [&str; 4] = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST];

const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
const WASM_CONFIG: &str = "application/vnd.wasm.config."; // v0 is CNCF's, v1 is older wasm-to-oci's

/// A pointer to content.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Whether the blob is a wasm module or component, not an archive.
    pub(crate) fn is_wasm(&self) -> bool {
        matches!(
            self.media_type.as_str(),
            "application/wasm"
                | "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm"
                | "application/vnd.wasm.content.layer.v1+wasm"
                | "application/vnd.module.wasm.content.layer.v1+wasm"
        )
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
}

impl Platform {
    /// In the field: `wasi/wasm` (buildah, docker), `wasi/wasm32` (older), `wasip1/wasm`, `wasip2/wasm`.
    pub(crate) fn is_wasm(&self) -> bool {
        matches!(self.architecture.as_str(), "wasm" | "wasm32" | "wasm64")
            || matches!(self.os.as_str(), "wasi" | "wasip1" | "wasip2" | "wasip3")
    }

    fn is_native(&self) -> bool {
        self.os == "linux" && self.architecture == native_architecture()
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

/// This machine, in the words of the image specification (those of Go).
pub(crate) fn native_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

/// What a registry answers under a tag or digest.
#[derive(Debug)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    fs_layers: Option<IgnoredAny>,
}

/// Reads a manifest or index; which one, its own fields say (the Content-Type may only confirm it).
pub(crate) fn parse(bytes: &[u8], content_type: &str) -> Result<Document, Error> {
    let raw: Raw = serde_json::from_slice(bytes)
        .map_err(|e| Error::Content(format!("the manifest is malformed: {e}")))?;
    if raw.fs_layers.is_some() || raw.schema_version == Some(1) {
        return Err(Error::Content(
            "the manifest is of schema version 1, which nothing has pushed since 2017; push the image again"
                .into(),
        ));
    }
    let media_type = raw.media_type.as_deref().unwrap_or(content_type);
    let says_index = matches!(media_type, OCI_INDEX | DOCKER_LIST);
    let says_manifest = matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST);
    match (raw.manifests, raw.config, raw.layers) {
        // A document that is both could be read as either by others: refuse to choose.
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            Err(Error::Content("the manifest has both `manifests` and `config` or `layers`".into()))
        }
        (Some(manifests), None, None) if !says_manifest => Ok(Document::Index(manifests)),
        (None, Some(config), layers) if !says_index => Ok(Document::Manifest(Manifest {
            config,
            layers: layers.unwrap_or_default(),
            annotations: raw.annotations,
        })),
        _ => Err(Error::Content(format!(
            "the manifest of type {media_type:?} has neither the fields of a manifest nor of an index"
        ))),
    }
}

/// The entry of an index that this machine should run.
pub(crate) fn choose(entries: &[Descriptor], prefer: Prefer) -> Result<&Descriptor, Error> {
    let is_manifest = |d: &&Descriptor| d.media_type.is_empty() || ACCEPT.contains(&d.media_type.as_str());
    let native =
        || entries.iter().filter(is_manifest).find(|d| d.platform.as_ref().is_some_and(Platform::is_native));
    let wasm =
        || entries.iter().filter(is_manifest).find(|d| d.platform.as_ref().is_some_and(Platform::is_wasm));
    let found = match prefer {
        Prefer::Oci => native().or_else(wasm),
        Prefer::Wasm => wasm().or_else(native),
    };
    // An entry that names no platform is taken if it is the only one: there is nothing to choose.
    let bare = |d: &Descriptor| d.platform.as_ref().is_none_or(|p| *p == Platform::default());
    let found = found.or_else(|| {
        let mut all = entries.iter().filter(is_manifest).filter(|d| bare(d));
        all.next().filter(|_| all.next().is_none())
    });
    found.ok_or_else(|| {
        let offered: Vec<String> =
            entries.iter().map(|d| d.platform.clone().unwrap_or_default().to_string()).collect();
        let native = format!("linux/{}", native_architecture());
        Error::Platform {
            wanted: match prefer {
                Prefer::Oci => format!("{native} or wasm"),
                Prefer::Wasm => format!("wasm or {native}"),
            },
            offered: if offered.is_empty() { "no entries".into() } else { offered.join(", ") },
        }
    })
}

/// A config document, of an image or of a wasm artifact.
#[derive(Debug, Default)]
pub(crate) struct ConfigDocument {
    pub(crate) config: ImageConfig,
    /// Digests of the uncompressed layers, lowest first.
    pub(crate) diff_ids: Vec<Digest>,
    /// A wasm artifact's own list.
    pub(crate) layer_digests: Vec<Digest>,
}

impl ConfigDocument {
    pub(crate) fn platform(&self) -> Platform {
        Platform { os: self.config.os.clone(), architecture: self.config.architecture.clone() }
    }
}

/// Whether this config is an image's (or a wasm artifact's) and worth reading.
pub(crate) fn is_readable_config(descriptor: &Descriptor) -> bool {
    descriptor.media_type != OCI_EMPTY
}

pub(crate) fn is_wasm_config(descriptor: &Descriptor) -> bool {
    descriptor.media_type.starts_with(WASM_CONFIG)
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawConfig {
    #[serde(deserialize_with = "or_default")]
    architecture: String,
    #[serde(deserialize_with = "or_default")]
    os: String,
    #[serde(deserialize_with = "or_default")]
    config: RawProcess,
    #[serde(deserialize_with = "or_default")]
    rootfs: RawRootfs,
    #[serde(rename = "layerDigests", deserialize_with = "or_default")]
    layer_digests: Vec<Digest>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawRootfs {
    #[serde(deserialize_with = "or_default")]
    diff_ids: Vec<Digest>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RawProcess {
    #[serde(deserialize_with = "or_default")]
    user: String,
    #[serde(deserialize_with = "or_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    working_dir: String,
    #[serde(deserialize_with = "or_default")]
    exposed_ports: BTreeMap<String, IgnoredAny>,
    #[serde(deserialize_with = "or_default")]
    volumes: BTreeMap<String, IgnoredAny>,
    #[serde(deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    stop_signal: Option<String>,
}

pub(crate) fn parse_config(bytes: &[u8]) -> Result<ConfigDocument, Error> {
    let raw: RawConfig = serde_json::from_slice(bytes)
        .map_err(|e| Error::Content(format!("the image config is malformed: {e}")))?;
    let process = raw.config;
    Ok(ConfigDocument {
        config: ImageConfig {
            env: process.env,
            entrypoint: process.entrypoint,
            cmd: process.cmd,
            user: process.user,
            working_dir: process.working_dir,
            exposed_ports: process.exposed_ports.into_keys().collect(),
            stop_signal: process.stop_signal.filter(|signal| !signal.is_empty()),
            volumes: process.volumes.into_keys().collect(),
            labels: process.labels,
            os: raw.os,
            architecture: raw.architecture,
        },
        diff_ids: raw.rootfs.diff_ids,
        layer_digests: raw.layer_digests,
    })
}

/// The names of a stack of layers and of each stack below it, lowest first (image specification, "Layer ChainID").
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let id = match chain.last() {
            None => diff_id.clone(),
            Some(below) => {
                let mut hasher = Hasher::default();
                hasher.update(below.as_str().as_bytes());
                hasher.update(b" ");
                hasher.update(diff_id.as_str().as_bytes());
                hasher.finish()
            }
        };
        chain.push(id);
    }
    chain
}

/// Go writes absent lists and maps as `null`.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(os: &str, architecture: &str, n: u8) -> Descriptor {
        Descriptor {
            media_type: OCI_MANIFEST.into(),
            digest: Digest::of(&[n]),
            size: 1,
            platform: Some(Platform { os: os.into(), architecture: architecture.into() }),
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn the_preferred_platform_is_taken_and_the_other_one_where_it_is_absent() {
        let native = native_architecture();
        let both = [
            entry("windows", native, 0),
            entry("linux", "s390y", 1),
            entry("wasi", "wasm", 2),
            entry("linux", native, 3),
        ];
        assert_eq!(choose(&both, Prefer::Oci).unwrap().digest, both[3].digest);
        assert_eq!(choose(&both, Prefer::Wasm).unwrap().digest, both[2].digest);
        assert_eq!(choose(&both[..3], Prefer::Oci).unwrap().digest, both[2].digest);
        assert_eq!(choose(&both[3..], Prefer::Wasm).unwrap().digest, both[3].digest);
        let error = choose(&both[..2], Prefer::Oci).unwrap_err().to_string();
        assert!(error.contains("linux/s390y") && error.contains(native), "{error}");
        assert!(choose(&[], Prefer::Oci).is_err());
    }

    #[test]
    fn every_wasm_platform_of_the_field_is_known() {
        for (os, architecture) in
            [("wasi", "wasm"), ("wasi", "wasm32"), ("wasip1", "wasm"), ("wasip2", "wasm"), ("linux", "wasm")]
        {
            assert!(Platform { os: os.into(), architecture: architecture.into() }.is_wasm());
        }
        assert!(!Platform { os: "linux".into(), architecture: "amd64".into() }.is_wasm());
    }

    #[test]
    fn documents_that_could_be_read_two_ways_are_refused() {
        let d = format!(r#"{{"mediaType":"x","digest":"{}","size":1}}"#, Digest::of(b""));
        for bad in [
            format!(r#"{{"manifests":[],"config":{d}}}"#),
            format!(r#"{{"manifests":[],"layers":[{d}]}}"#),
            format!(r#"{{"mediaType":"{OCI_INDEX}","config":{d},"layers":[]}}"#),
            r#"{"schemaVersion":1,"fsLayers":[]}"#.into(),
            "{}".into(),
            "[]".into(),
            "".into(),
        ] {
            assert!(parse(bad.as_bytes(), OCI_MANIFEST).is_err(), "{bad}");
        }
        assert!(matches!(
            parse(format!(r#"{{"config":{d},"layers":[{d}]}}"#).as_bytes(), OCI_MANIFEST),
            Ok(Document::Manifest(_))
        ));
    }

    #[test]
    fn a_config_of_nulls_is_an_empty_config() {
        let text = r#"{"config":{"Env":null,"Entrypoint":null,"ExposedPorts":{"80/tcp":{}},"Volumes":null,"User":null},"rootfs":null,"layerDigests":null}"#;
        let config = parse_config(text.as_bytes()).unwrap().config;
        assert_eq!(config.exposed_ports, ["80/tcp"]);
        assert!(config.env.is_empty() && config.user.is_empty());
    }
}
