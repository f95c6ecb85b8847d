//! Files read as images: a wasm module, an OCI layout, a root file system.

use std::fs::{self, File};
use std::io::{self, BufReader, Read as _, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Blob, Content, Document, Image, Scratch, Settings, hex};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Of the CNCF's "WebAssembly OCI artifact layout".
const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
const WASM_LAYER: &str = "application/wasm";

/// Tells what `source` is and reads it.
pub fn read(source: &Path, settings: &Settings) -> anyhow::Result<Image> {
    let meta = fs::metadata(source).with_context(|| format!("cannot read {}", source.display()))?;
    if meta.is_dir() {
        return if source.join("oci-layout").exists() {
            layout(source, None)
        } else {
            rootfs(source, settings)
        };
    }
    let mut head = [0; 8];
    let read = File::open(source)?.read(&mut head)?;
    match &head[..read] {
        [0, b'a', b's', b'm', kind @ ..] => wasm(source, kind),
        _ => archive(source),
    }
}

/// A module is told from a component by the layer field of its preamble (component-model Binary.md).
fn wasm(source: &Path, kind: &[u8]) -> anyhow::Result<Image> {
    let os = match kind {
        [1, 0, 0, 0] => "wasip1",
        [_, _, 1, 0] => "wasip2",
        _ => bail!("{} is WebAssembly of a version that is not known", source.display()),
    };
    let layer = Blob::of(fs::read(source)?);
    let title = source.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let config = json!({"architecture": "wasm", "os": os, "layerDigests": [layer.digest]});
    let layer_descriptor = json!({"mediaType": WASM_LAYER, "digest": layer.digest, "size": layer.size,
        "annotations": {"org.opencontainers.image.title": title}});
    Ok(assemble(WASM_CONFIG, &config, &[layer_descriptor], vec![layer], None))
}

fn assemble(
    config_type: &str,
    config: &Value,
    layers: &[Value],
    mut blobs: Vec<Blob>,
    scratch: Option<Scratch>,
) -> Image {
    let config = Blob::of(config.to_string().into_bytes());
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
        "config": {"mediaType": config_type, "digest": config.digest, "size": config.size}});
    blobs.push(config);
    Image { blobs, documents: vec![document(MANIFEST, manifest.to_string().into_bytes())], _scratch: scratch }
}

fn document(media_type: &str, bytes: Vec<u8>) -> Document {
    Document { digest: super::digest(&bytes), media_type: media_type.to_owned(), bytes }
}

/// Counts and hashes what passes through.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), size: 0 }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// One layer of everything in the folder, owned by root, at the time of the epoch: the same files give the same image.
fn rootfs(source: &Path, settings: &Settings) -> anyhow::Result<Image> {
    if settings.entrypoint.is_empty() {
        bail!("{} is a root file system; name its program with --entrypoint", source.display());
    }
    let path = std::env::temp_dir().join(format!("wctl-layer-{}.tar.gz", std::process::id()));
    let file = File::create_new(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let scratch = Scratch(path.clone());
    let compressed = Hashing::new(io::BufWriter::new(file));
    let mut archive = tar::Builder::new(Hashing::new(GzEncoder::new(compressed, Compression::fast())));
    archive.mode(tar::HeaderMode::Deterministic);
    archive.follow_symlinks(false);
    archive.append_dir_all(".", source).with_context(|| format!("cannot pack {}", source.display()))?;
    let plain = archive.into_inner()?;
    let diff_id = hex(&plain.hash.finalize());
    let mut compressed = plain.inner.finish()?;
    compressed.flush()?;
    let layer = Blob {
        digest: hex(&compressed.hash.finalize()),
        size: compressed.size,
        content: Content::File(path),
    };
    let mut program = json!({"Entrypoint": settings.entrypoint});
    if !settings.env.is_empty() {
        program["Env"] = settings.env.clone().into();
    }
    if !settings.workdir.is_empty() {
        program["WorkingDir"] = settings.workdir.clone().into();
    }
    let config = json!({"architecture": architecture(), "os": "linux", "config": program,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
    let descriptor = json!({"mediaType": LAYER, "digest": layer.digest, "size": layer.size});
    Ok(assemble(CONFIG, &config, &[descriptor], vec![layer], Some(scratch)))
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A tar archive of an OCI layout, compressed or not.
fn archive(source: &Path) -> anyhow::Result<Image> {
    let dir = std::env::temp_dir().join(format!("wctl-layout-{}", std::process::id()));
    fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let scratch = Scratch(dir.clone());
    let mut file = BufReader::new(File::open(source)?);
    let packed = io::BufRead::fill_buf(&mut file)?.starts_with(&[0x1f, 0x8b]);
    let unpacked = if packed {
        tar::Archive::new(flate2::read::GzDecoder::new(file)).unpack(&dir)
    } else {
        tar::Archive::new(file).unpack(&dir)
    };
    let no_image = || format!("{} is neither a wasm file nor an archive of an OCI layout", source.display());
    unpacked.with_context(no_image)?;
    if !dir.join("oci-layout").exists() {
        bail!("{}", no_image());
    }
    layout(&dir, Some(scratch))
}

/// An OCI image layout: `index.json` names manifests, which name blobs.
fn layout(dir: &Path, scratch: Option<Scratch>) -> anyhow::Result<Image> {
    let index = fs::read(dir.join("index.json")).context("the OCI layout has no index.json")?;
    let index: Value = serde_json::from_slice(&index).context("the layout's index.json is not JSON")?;
    let mut image = Image { blobs: Vec::new(), documents: Vec::new(), _scratch: scratch };
    match index["manifests"].as_array().map(Vec::as_slice) {
        Some([only]) => collect(dir, only, &mut image, 0)?,
        Some([]) | None => bail!("the layout's index.json names no image"),
        Some(many) => bail!("the layout has {} images; push a layout of one", many.len()),
    }
    Ok(image)
}

fn blob_path(dir: &Path, descriptor: &Value) -> anyhow::Result<PathBuf> {
    let digest = descriptor["digest"].as_str().unwrap_or_default();
    let (kind, hash) = digest.split_once(':').with_context(|| format!("{digest:?} is no digest"))?;
    if !(kind.chars().chain(hash.chars())).all(|c| c.is_ascii_alphanumeric()) {
        bail!("{digest:?} is no digest");
    }
    Ok(dir.join("blobs").join(kind).join(hash))
}

/// Takes a manifest, or an index with all it names; an index in an index in an index is enough.
fn collect(dir: &Path, descriptor: &Value, image: &mut Image, depth: usize) -> anyhow::Result<()> {
    if depth > 2 {
        bail!("the layout's indexes are nested too deeply");
    }
    let path = blob_path(dir, descriptor)?;
    let bytes =
        fs::read(&path).with_context(|| format!("the layout has no blob {}", descriptor["digest"]))?;
    let media_type =
        descriptor["mediaType"].as_str().unwrap_or(if depth == 0 { INDEX } else { MANIFEST }).to_owned();
    let document = document(&media_type, bytes);
    if Some(document.digest.as_str()) != descriptor["digest"].as_str() {
        bail!("the layout's blob {} is damaged: its bytes are {}", descriptor["digest"], document.digest);
    }
    let content: Value =
        serde_json::from_slice(&document.bytes).context("a manifest of the layout is not JSON")?;
    for child in content["manifests"].as_array().into_iter().flatten() {
        collect(dir, child, image, depth + 1)?;
    }
    let config = content["config"].is_object().then_some(&content["config"]);
    for child in config.into_iter().chain(content["layers"].as_array().into_iter().flatten()) {
        let path = blob_path(dir, child)?;
        let size =
            fs::metadata(&path).with_context(|| format!("the layout has no blob {}", child["digest"]))?.len();
        let digest = child["digest"].as_str().unwrap_or_default().to_owned();
        if !image.blobs.iter().any(|blob| blob.digest == digest) {
            image.blobs.push(Blob { digest, size, content: Content::File(path) });
        }
    }
    image.documents.push(document);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_and_a_module_are_told_apart_by_their_bytes() {
        let dir = tempfile::tempdir().unwrap();
        for (bytes, os) in [(b"\0asm\x01\0\0\0", "wasip1"), (b"\0asm\x0d\0\x01\0", "wasip2")] {
            let path = dir.path().join("x.bin");
            fs::write(&path, bytes).unwrap();
            let image = read(&path, &Settings::default()).unwrap();
            let Content::Memory(config) = &image.blobs[1].content else { panic!("the config is in memory") };
            assert_eq!(serde_json::from_slice::<Value>(config).unwrap()["os"], os);
        }
        fs::write(dir.path().join("text"), "hello, this is no image").unwrap();
        let error = read(&dir.path().join("text"), &Settings::default()).unwrap_err();
        assert!(error.to_string().contains("neither a wasm file nor"), "{error}");
    }

    #[test]
    fn a_root_file_system_gives_the_same_image_twice_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("server"), "program").unwrap();
        let settings = Settings { entrypoint: vec!["/server".to_owned()], ..Settings::default() };
        let first = read(dir.path(), &settings).unwrap();
        let (digest, path) = (first.documents[0].digest.clone(), first._scratch.as_ref().unwrap().0.clone());
        drop(first);
        assert!(!path.exists());
        assert_eq!(read(dir.path(), &settings).unwrap().documents[0].digest, digest);
        assert!(read(dir.path(), &Settings::default()).unwrap_err().to_string().contains("--entrypoint"));
    }
}
