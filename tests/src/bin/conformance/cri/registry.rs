//! The suite's images, served by our own registry: the parts of an OCI layout, each repository under its name without
//! the host.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use wharf_image::Digest;
use wharf_tests::LocalRegistry;

/// Its threads need a library to end that the stand-in for it has not: each child of the server dies once it has made all
/// its threads, and whether it has answered by then is a matter of luck.
const HTTPD: &str = "registry.k8s.io/e2e-test-images/httpd:2.4.39-4";
/// That library, of this machine.
const LIBRARY: &str = "libgcc_s.so.1";

pub struct Served {
    pub url: String,
    /// Digests by repository with its host.
    digests: BTreeMap<String, String>,
}

impl Served {
    /// The digest of what a repository has.
    pub fn digest_of(&self, repository: &str) -> anyhow::Result<String> {
        self.digests
            .get(repository)
            .cloned()
            .with_context(|| format!("there is no {repository} among the images"))
    }
}

/// Serves the images of `layout`, for as long as the runtime lives; what is unpacked goes below `dir`.
pub async fn serve(layout: &Path, dir: &Path) -> anyhow::Result<Served> {
    let unpacked = dir.join("layout");
    fs::create_dir(&unpacked)?;
    let tar = Command::new("tar").arg("-xf").arg(layout).arg("-C").arg(&unpacked).status().context("tar")?;
    ensure!(tar.success(), "{} cannot be unpacked", layout.display());
    let registry = LocalRegistry::serve(&dir.join("registry")).await?;
    let mut filled = Filled { registry, layout: unpacked, there: HashSet::new() };
    let mut digests = BTreeMap::new();
    let index: Value = serde_json::from_slice(&fs::read(filled.layout.join("index.json"))?)?;
    for manifest in index["manifests"].as_array().into_iter().flatten() {
        let name = manifest["annotations"]["org.opencontainers.image.ref.name"].as_str().context("a name")?;
        let (repository, tag) = name.rsplit_once(':').context("a tag")?;
        let (_, path) = repository.split_once('/').context("a host")?;
        digests.insert(repository.to_owned(), manifest["digest"].as_str().unwrap_or_default().to_owned());
        filled.put(path, manifest, tag).await.with_context(|| name.to_owned())?;
        if name == HTTPD {
            filled.complete(path, manifest, tag).await.with_context(|| name.to_owned())?;
        }
    }
    Ok(Served { url: filled.registry.url, digests })
}

/// A registry that is being filled.
struct Filled {
    registry: LocalRegistry,
    layout: PathBuf,
    /// Repositories with the blobs that they have.
    there: HashSet<(String, String)>,
}

impl Filled {
    /// Puts a manifest or an index with all that it names.
    async fn put(&mut self, repository: &str, descriptor: &Value, tag: &str) -> anyhow::Result<()> {
        let bytes = self.blob(descriptor)?;
        let document: Value = serde_json::from_slice(&bytes)?;
        for part in document["manifests"].as_array().into_iter().flatten() {
            let digest = part["digest"].as_str().context("a digest")?;
            Box::pin(self.put(repository, part, digest)).await?;
        }
        let layers = document["layers"].as_array().into_iter().flatten();
        for blob in layers.chain(document.get("config")) {
            let digest = blob["digest"].as_str().context("a digest")?.to_owned();
            if self.there.insert((repository.to_owned(), digest.clone())) {
                self.registry.put_blob(repository, &digest, self.blob(blob)?).await?;
            }
        }
        let form = descriptor["mediaType"].as_str().context("a media type")?;
        self.registry.put_manifest(repository, tag, form, bytes).await
    }

    /// Gives the image of this machine's sort, of an index, [`LIBRARY`].
    async fn complete(&mut self, repository: &str, index: &Value, tag: &str) -> anyhow::Result<()> {
        let (architecture, place) = match cfg!(target_arch = "aarch64") {
            true => ("arm64", "lib/aarch64-linux-gnu"),
            false => ("amd64", "lib/x86_64-linux-gnu"),
        };
        let index: Value = serde_json::from_slice(&self.blob(index)?)?;
        let mut all = index["manifests"].as_array().into_iter().flatten();
        let descriptor =
            all.find(|one| one["platform"]["architecture"] == architecture).context("its sort")?;
        let mut manifest: Value = serde_json::from_slice(&self.blob(descriptor)?)?;
        let mut config: Value = serde_json::from_slice(&self.blob(&manifest["config"])?)?;

        let path = format!("{place}/{LIBRARY}");
        let library = fs::read(Path::new("/").join(&path)).with_context(|| path.clone())?;
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(library.len() as u64);
        archive.append_data(&mut header, &path, library.as_slice())?;
        let layer = archive.into_inner()?;

        let digest = |bytes: &[u8]| Value::from(Digest::of(bytes).to_string());
        config["rootfs"]["diff_ids"].as_array_mut().context("diff_ids")?.push(digest(&layer));
        let config = serde_json::to_vec(&config)?;
        for (part, bytes) in [("digest", digest(&config)), ("size", config.len().into())] {
            manifest["config"][part] = bytes;
        }
        let form = "application/vnd.docker.image.rootfs.diff.tar";
        let described = json!({"mediaType": form, "digest": digest(&layer), "size": layer.len()});
        manifest["layers"].as_array_mut().context("layers")?.push(described);
        for bytes in [layer, config] {
            self.registry.put_blob(repository, &Digest::of(&bytes).to_string(), bytes).await?;
        }
        let form = descriptor["mediaType"].as_str().context("a media type")?;
        self.registry.put_manifest(repository, tag, form, serde_json::to_vec(&manifest)?).await
    }

    fn blob(&self, descriptor: &Value) -> anyhow::Result<Vec<u8>> {
        let digest = descriptor["digest"].as_str().context("a digest")?;
        Ok(fs::read(self.layout.join("blobs").join(digest.replace(':', "/")))?)
    }
}
