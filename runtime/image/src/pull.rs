//! One pull, from the manifest to a committed image.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::sync::mpsc;

use crate::client::{Fetched, Session, broken_off};
use crate::digest::{Digest, Hasher};
use crate::error::Error;
use crate::image::{Image, ImageId, Kind};
use crate::images::{Counters, Inner, PullOptions, blocking};
use crate::layer::{self, Bounds, Cancel, Fault};
use crate::manifest::{self, ConfigDocument, Descriptor, Document, Manifest};
use crate::reference::Reference;
use crate::store::{LayerFacts, Record, Scratch, Staged, blob_name};
use crate::wasm;

const ATTEMPTS: u32 = 4; // of one transfer: what a registry's restart or a full minute's rate limit costs is for the caller's back-off
const PAUSE: Duration = Duration::from_millis(200); // before the first repeat; doubles
const INDEX_DEPTH: usize = 3; // an index in an index exists in the field, deeper nesting does not
const QUEUE: usize = 16; // chunks between the network and the disk, some 16 KiB each

/// Asks each endpoint for the reference until one has it.
pub(crate) async fn pull(
    inner: Arc<Inner>,
    reference: Reference,
    options: PullOptions,
    counters: Arc<Counters>,
) -> Result<Arc<Image>, Error> {
    let started = std::time::Instant::now();
    let mut causes = Vec::new();
    for candidate in inner.registries.candidates(reference.host()) {
        let docker = inner.registries.docker_config.as_deref();
        let result = match inner.clients.session(&candidate, &reference, options.auth.as_ref(), docker) {
            Ok(session) => {
                Pull { inner: &inner, session: &session, counters: &counters }.run(&reference, &options).await
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(image) => {
                tracing::info!(%reference, id = %image.id, kind = image.kind.as_str(), size = image.size, from = candidate.endpoint.url,
                    took = ?started.elapsed(), "pulled image");
                return Ok(image);
            }
            Err(error) => causes.push(Arc::new(error)),
        }
    }
    Err(Error::Pull { reference: reference.to_string(), causes })
}

struct Pull<'a> {
    inner: &'a Arc<Inner>,
    session: &'a Session,
    counters: &'a Counters,
}

impl Pull<'_> {
    async fn run(&self, reference: &Reference, options: &PullOptions) -> Result<Arc<Image>, Error> {
        let top = self.manifest(reference.target()).await?;
        let top_digest = top.digest.clone();
        let (fetched, manifest) = self.descend(top, options).await?;
        self.check(&manifest)?;
        let store = &self.inner.store;
        let scratch = {
            let store = store.clone();
            blocking(move || store.scratch()).await?
        };
        let mut wanted = vec![fetched.digest.clone(), manifest.config.digest.clone()];
        wanted.extend(manifest.layers.iter().map(|layer| layer.digest.clone()));
        let _blobs = store.pin(wanted);

        let raw_config = self.config(&manifest.config).await?;
        let document = if manifest::is_readable_config(&manifest.config) {
            manifest::parse_config(&raw_config)?
        } else {
            ConfigDocument::default()
        };
        let size = fetched.bytes.len() as u64
            + manifest.config.size
            + manifest.layers.iter().map(|layer| layer.size).sum::<u64>();
        let mut record = Record {
            id: ImageId(manifest.config.digest.clone()),
            names: Default::default(),
            size,
            kind: Kind::Oci,
            config: document.config.clone(),
            annotations: manifest.annotations.clone(),
            raw_config: String::from_utf8_lossy(&raw_config).into_owned(),
            pulled: jiff::Timestamp::now(),
            chain: Vec::new(),
            blobs: vec![fetched.digest.clone(), manifest.config.digest.clone()],
            removed: false,
        };
        let mut staged = Vec::new();
        let _layers;
        if let Some(module) = wasm::artifact(&manifest, &document.config)? {
            self.module(module, &scratch).await?;
            let bound =
                document.diff_ids.contains(&module.digest) || document.layer_digests.contains(&module.digest);
            if !bound {
                record.id = ImageId(fetched.digest.clone());
            }
            let described = wasm::of_artifact(module, blob_name(&module.digest), &document.config);
            if record.config.entrypoint.is_empty() && record.config.cmd.is_empty() {
                record.config.entrypoint = vec![described.name.clone()];
            }
            record.kind = Kind::Wasm(described);
            record.blobs.push(module.digest.clone());
        } else {
            if document.diff_ids.len() != manifest.layers.len() {
                return Err(Error::Content(format!(
                    "the config names {} layers and the manifest {}",
                    document.diff_ids.len(),
                    manifest.layers.len()
                )));
            }
            record.chain = manifest::chain_ids(&document.diff_ids);
            _layers = store.pin(record.chain.iter().cloned());
            staged = self.layers(&manifest, &document, &record.chain, &scratch).await?;
        }

        let mut names = vec![reference.at(top_digest).to_string()];
        if reference.tag().is_some() {
            names.push(reference.to_string());
        }
        let store = store.clone();
        blocking(move || {
            store.keep_bytes(&scratch, &fetched.digest, &fetched.bytes)?;
            store.keep_bytes(&scratch, &manifest.config.digest, &raw_config)?;
            if !record.chain.is_empty() {
                record.kind = settle(&store, &document, &manifest, &record.chain, &staged)?;
            }
            let image = store.commit(record, staged, &names);
            drop(scratch); // after the layers have left it
            image
        })
        .await
    }

    async fn manifest(&self, target: &str) -> Result<Fetched, Error> {
        let limit = self.inner.limits.document;
        patiently(|| self.session.manifest(target, limit)).await
    }

    /// From an index to the manifest for this machine.
    async fn descend(
        &self,
        mut fetched: Fetched,
        options: &PullOptions,
    ) -> Result<(Fetched, Manifest), Error> {
        for _ in 0..=INDEX_DEPTH {
            match manifest::parse(&fetched.bytes, &fetched.media_type)? {
                Document::Manifest(manifest) => return Ok((fetched, manifest)),
                Document::Index(entries) => {
                    let entry = manifest::choose(&entries, options.prefer)?;
                    fetched = self.manifest(entry.digest.as_str()).await?;
                    if fetched.bytes.len() as u64 != entry.size {
                        return Err(Error::Content(format!(
                            "the index says that manifest {} has {} bytes, but it has {}",
                            entry.digest,
                            entry.size,
                            fetched.bytes.len()
                        )));
                    }
                }
            }
        }
        Err(Error::Content(format!("the index is nested deeper than {INDEX_DEPTH} levels")))
    }

    fn check(&self, manifest: &Manifest) -> Result<(), Error> {
        let limits = &self.inner.limits;
        if manifest.layers.len() > limits.layers {
            return Err(Error::Content(format!(
                "the image has {} layers, more than {}",
                manifest.layers.len(),
                limits.layers
            )));
        }
        if manifest.config.size > limits.document {
            return Err(Error::Content(format!("the config is larger than {} bytes", limits.document)));
        }
        match manifest.layers.iter().find(|layer| layer.size > limits.blob) {
            Some(layer) => {
                Err(Error::Content(format!("layer {} is larger than {} bytes", layer.digest, limits.blob)))
            }
            None => Ok(()),
        }
    }

    async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        const EMPTY: &[u8] = b"{}";
        if descriptor.digest == Digest::of(EMPTY) {
            return Ok(EMPTY.to_vec()); // some registries do not keep it, as the specification lets them
        }
        let (store, digest) = (self.inner.store.clone(), descriptor.digest.clone());
        if let Some(bytes) = blocking(move || Ok(store.read_blob(&digest))).await? {
            return Ok(bytes);
        }
        let fetch = async || {
            let (mut response, _) = self.session.blob(&descriptor.digest, 0).await?;
            let mut bytes = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(|e| broken_off("the config", &e))? {
                bytes.extend_from_slice(&chunk);
                if bytes.len() as u64 > descriptor.size {
                    break;
                }
            }
            Ok(bytes)
        };
        let bytes = patiently(fetch).await?;
        checked("config", descriptor, bytes.len() as u64, &Digest::of(&bytes))?;
        Ok(bytes)
    }

    /// Fetches a wasm module and keeps it as a blob.
    async fn module(&self, layer: &Descriptor, scratch: &Arc<Scratch>) -> Result<(), Error> {
        if self.inner.store.has_blob(&layer.digest) {
            return Ok(());
        }
        self.expect(layer);
        let file = scratch.path().join("module");
        self.transfer(layer, file.clone(), scratch).await?;
        let (store, digest) = (self.inner.store.clone(), layer.digest.clone());
        blocking(move || {
            let mut opened = File::open(&file).map_err(Error::disk("open the module"))?;
            if !wasm::is_wasm(&mut opened).map_err(Error::disk("read the module"))? {
                return Err(Error::Layer {
                    digest,
                    what: "its media type says wasm, its first bytes do not".into(),
                });
            }
            store.keep_file(&file, &digest)
        })
        .await?;
        self.counters.layers_done.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Fetches and unpacks the layers that are not here, some at a time.
    async fn layers(
        &self,
        manifest: &Manifest,
        document: &ConfigDocument,
        chain: &[Digest],
        scratch: &Arc<Scratch>,
    ) -> Result<Vec<Staged>, Error> {
        let missing: Vec<usize> =
            (0..chain.len()).filter(|i| !self.inner.store.has_layer(&chain[*i])).collect();
        for i in &missing {
            self.expect(&manifest.layers[*i]);
        }
        let cancel = Cancel::default();
        let _cancel = cancel.on_drop(); // unpacking runs on threads of its own, which a dropped pull must stop
        let unpack = |i: usize| {
            let (descriptor, diff_id, chain_id) = (&manifest.layers[i], &document.diff_ids[i], &chain[i]);
            let cancel = cancel.clone();
            async move { self.layer(i, descriptor, diff_id, chain_id, scratch, cancel).await }
        };
        let mut unpacked: Vec<(usize, Staged, Vec<PathBuf>)> = futures::stream::iter(missing)
            .map(unpack)
            .buffer_unordered(self.inner.limits.parallel.max(1))
            .try_collect()
            .await?;
        unpacked.sort_by_key(|(i, ..)| *i);
        let (store, chain) = (self.inner.store.clone(), chain.to_vec());
        blocking(move || {
            let staged: Vec<(usize, PathBuf)> =
                unpacked.iter().map(|(i, staged, _)| (*i, staged.dir.join("fs"))).collect();
            let dir = |i: usize| {
                let fresh = staged.iter().find(|(j, _)| *j == i).map(|(_, dir)| dir.clone());
                fresh.unwrap_or_else(|| store.layer_fs(&chain[i]))
            };
            // Lowest first: a layer inherits from ones that have inherited.
            for (i, _, implicit) in &unpacked {
                let below: Vec<PathBuf> = (0..*i).rev().map(dir).collect();
                layer::inherit(&dir(*i), implicit, &below)
                    .map_err(Error::disk("describe the directories of a layer"))?;
            }
            Ok(unpacked.into_iter().map(|(_, staged, _)| staged).collect())
        })
        .await
    }

    async fn layer(
        &self,
        i: usize,
        descriptor: &Descriptor,
        diff_id: &Digest,
        chain_id: &Digest,
        scratch: &Arc<Scratch>,
        cancel: Cancel,
    ) -> Result<(usize, Staged, Vec<PathBuf>), Error> {
        let archive = scratch.path().join(format!("{i}.archive"));
        self.transfer(descriptor, archive.clone(), scratch).await?;
        let bounds = Bounds { bytes: self.inner.limits.unpacked, entries: self.inner.limits.entries };
        let dir = scratch.path().join(format!("{i}.layer"));
        let (diff_id, chain_id, digest, kept) =
            (diff_id.clone(), chain_id.clone(), descriptor.digest.clone(), scratch.clone());
        let done = blocking(move || {
            let _kept = kept; // the directory must not go while this thread writes into it
            let fs = dir.join("fs");
            std::fs::create_dir_all(&fs).map_err(Error::disk("make a layer's directory"))?;
            let file = File::open(&archive).map_err(Error::disk("open a layer's archive"))?;
            let unpacked = layer::unpack(file, &fs, bounds, &cancel).map_err(|fault| match fault {
                Fault::Bad(what) => Error::Layer { digest: digest.clone(), what },
                Fault::Disk { what, cause } => {
                    Error::Disk { what: format!("{what} of layer {digest}"), cause }
                }
                Fault::Cancelled => Error::Layer { digest: digest.clone(), what: "cancelled".into() },
            })?;
            if unpacked.diff_id != diff_id {
                return Err(Error::Layer {
                    digest,
                    what: format!(
                        "the unpacked archive has digest {}, but the config says {diff_id}",
                        unpacked.diff_id
                    ),
                });
            }
            std::fs::remove_file(&archive).map_err(Error::disk("remove a layer's archive"))?;
            let facts = LayerFacts { chain_id, diff_id, bytes: unpacked.bytes, inodes: unpacked.inodes };
            Ok((i, Staged { dir, facts }, unpacked.implicit))
        })
        .await?;
        self.counters.layers_done.fetch_add(1, Ordering::Relaxed);
        Ok(done)
    }

    fn expect(&self, layer: &Descriptor) {
        self.counters.layers.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes.fetch_add(layer.size, Ordering::Relaxed);
    }

    /// Fetches a blob into a file, going on where a broken transfer stopped, and checks its size and digest.
    async fn transfer(
        &self,
        descriptor: &Descriptor,
        into: PathBuf,
        scratch: &Arc<Scratch>,
    ) -> Result<(), Error> {
        let mut sink = Sink::create(into, scratch.clone()).await?;
        let mut attempt = 0;
        loop {
            let counted = sink.written;
            match self.receive(descriptor, &mut sink).await {
                Ok(()) => break,
                Err(error) if error.is_transient() => {
                    // Progress resets the patience: a large blob over a bad line arrives in the end.
                    attempt = if sink.written > counted { 1 } else { attempt + 1 };
                    if attempt >= ATTEMPTS {
                        return Err(error);
                    }
                    tracing::debug!(digest = %descriptor.digest, at = sink.written, %error, "transfer broke off; trying again");
                    tokio::time::sleep(PAUSE * 2_u32.pow(attempt - 1)).await;
                }
                Err(error) => return Err(error),
            }
        }
        let (size, digest) = sink.finish().await?;
        checked("layer", descriptor, size, &digest)
    }

    async fn receive(&self, descriptor: &Descriptor, sink: &mut Sink) -> Result<(), Error> {
        if sink.written == descriptor.size && sink.written > 0 {
            return Ok(()); // it broke off after the last byte
        }
        let (mut response, begins) = self.session.blob(&descriptor.digest, sink.written).await?;
        let mut skip = sink.written - begins; // what a registry without ranges sends again
        let what = format!("layer {}", descriptor.digest);
        while let Some(mut chunk) = response.chunk().await.map_err(|e| broken_off(&what, &e))? {
            let again = skip.min(chunk.len() as u64);
            skip -= again;
            drop(chunk.split_to(usize::try_from(again).unwrap_or(usize::MAX)));
            if sink.written + chunk.len() as u64 > descriptor.size {
                return Err(Error::Layer {
                    digest: descriptor.digest.clone(),
                    what: format!(
                        "the registry sends more than the {} bytes that the manifest says",
                        descriptor.size
                    ),
                });
            }
            self.counters.bytes_done.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            sink.write(chunk).await?;
        }
        if sink.written < descriptor.size {
            return Err(Error::Layer {
                digest: descriptor.digest.clone(),
                what: format!(
                    "the registry sent {} bytes, the manifest says {}",
                    sink.written, descriptor.size
                ),
            });
        }
        Ok(())
    }
}

/// What the finished stack of layers is: told by looking at its program.
fn settle(
    store: &crate::store::Store,
    document: &ConfigDocument,
    manifest: &Manifest,
    chain: &[Digest],
    staged: &[Staged],
) -> Result<Kind, Error> {
    let staged_fs = |id: &Digest| staged.iter().find(|s| s.facts.chain_id == *id).map(|s| s.dir.join("fs"));
    let dirs: Vec<PathBuf> =
        chain.iter().rev().map(|id| staged_fs(id).unwrap_or_else(|| store.layer_fs(id))).collect();
    let Some(mut module) = wasm::in_layers(document, &manifest.annotations, &dirs)? else {
        return Ok(Kind::Oci);
    };
    // From where it is staged to where it will be.
    for id in chain {
        let inside = staged_fs(id).and_then(|dir| module.path.strip_prefix(&dir).map(Path::to_owned).ok());
        if let Some(inside) = inside {
            module.path = store.layer_fs(id).join(inside);
            break;
        }
    }
    if let Ok(relative) = module.path.strip_prefix(store.root()) {
        module.path = relative.to_owned();
    }
    Ok(Kind::Wasm(module))
}

fn checked(what: &str, descriptor: &Descriptor, size: u64, digest: &Digest) -> Result<(), Error> {
    if size != descriptor.size {
        return Err(Error::Content(format!(
            "{what} {} has {size} bytes, the manifest says {}",
            descriptor.digest, descriptor.size
        )));
    }
    if *digest != descriptor.digest {
        return Err(Error::Content(format!("{what} {} arrived with digest {digest}", descriptor.digest)));
    }
    Ok(())
}

/// Repeats what failed for a reason that may pass.
async fn patiently<T, F: Future<Output = Result<T, Error>>>(mut work: impl FnMut() -> F) -> Result<T, Error> {
    let mut pause = PAUSE;
    for _ in 1..ATTEMPTS {
        match work().await {
            Err(error) if error.is_transient() => {
                tracing::debug!(%error, "trying again");
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            settled => return settled,
        }
    }
    work().await
}

/// A file being written and hashed on a thread of its own, fed through a bounded queue. Dropping it ends the thread.
struct Sink {
    written: u64,
    /// None after the thread has ended.
    queue: Option<mpsc::Sender<Bytes>>,
    thread: tokio::task::JoinHandle<Result<(u64, Digest), Error>>,
}

impl Sink {
    async fn create(path: PathBuf, kept: Arc<Scratch>) -> Result<Self, Error> {
        let (queue, mut chunks) = mpsc::channel::<Bytes>(QUEUE);
        let thread = tokio::task::spawn_blocking(move || {
            let _kept = kept; // the directory must not go while this thread writes into it
            let mut file = File::create(&path).map_err(Error::disk("make a file for a blob"))?;
            let mut hasher = Hasher::default();
            let mut size = 0;
            while let Some(chunk) = chunks.blocking_recv() {
                hasher.update(&chunk);
                file.write_all(&chunk).map_err(Error::disk("write a blob"))?;
                size += chunk.len() as u64;
            }
            Ok((size, hasher.finish()))
        });
        Ok(Self { written: 0, queue: Some(queue), thread })
    }

    async fn write(&mut self, chunk: Bytes) -> Result<(), Error> {
        let len = chunk.len() as u64;
        let sent = match &self.queue {
            Some(queue) => queue.send(chunk).await.is_ok(),
            None => false,
        };
        if !sent {
            // The thread ended early: it says why.
            self.queue = None;
            joined((&mut self.thread).await)?;
            return Err(Error::Disk {
                what: "write a blob".into(),
                cause: std::io::Error::other("the writer ended"),
            });
        }
        self.written += len;
        Ok(())
    }

    async fn finish(mut self) -> Result<(u64, Digest), Error> {
        self.queue = None;
        joined((&mut self.thread).await)
    }
}

fn joined<T>(result: Result<Result<T, Error>, tokio::task::JoinError>) -> Result<T, Error> {
    match result {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(Error::Disk { what: "write a blob".into(), cause: std::io::Error::other(error) }),
    }
}
