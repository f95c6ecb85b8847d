//! The store on disk, and its index in memory. Everything here blocks.
//!
//! Order makes it safe to die at any instant: content first (synced, then renamed to its name), the image's own file last.
//! What no image file names is rubbish, and rubbish is only removed while nothing pins, leases or names it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::Error;
use crate::image::{Image, ImageConfig, ImageId, Kind, WasmModule};
use crate::images::FsUsage;
use crate::reference::Reference;

/// See the module's documentation.
pub(crate) struct Store {
    root: PathBuf,
    state: Mutex<State>,
    /// Held while files of images come and go; taken before `state`, never after it.
    change: Mutex<()>,
    scratch: AtomicU64,
    /// Whether to wait for the disk. A kill needs no such wait, a power cut does.
    durable: bool,
    _lock: File,
}

#[derive(Default)]
struct State {
    records: HashMap<ImageId, Entry>,
    /// Tags and digests, to the image that has them now.
    names: HashMap<String, ImageId>,
    layers: HashMap<Digest, LayerFacts>,
    blobs: HashMap<Digest, u64>,
    /// Layers (by chain id) and blobs that pulls rely on.
    pins: HashMap<Digest, usize>,
    leases: HashMap<ImageId, usize>,
    sequence: u64,
}

struct Entry {
    record: Record,
    image: Arc<Image>,
}

/// What `images/HEX.json` holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: ImageId,
    /// Tags and digests, each with the number of the pull that gave it: after a crash in between, the higher one has it.
    pub(crate) names: BTreeMap<String, u64>,
    pub(crate) size: u64,
    /// A wasm module's path is relative to the store here.
    pub(crate) kind: Kind,
    pub(crate) config: ImageConfig,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) raw_config: String,
    pub(crate) pulled: jiff::Timestamp,
    pub(crate) chain: Vec<Digest>,
    pub(crate) blobs: Vec<Digest>,
    /// Removed while a container ran from it: hidden, and to be deleted when no lease is left.
    #[serde(default)]
    pub(crate) removed: bool,
}

/// What `layers/HEX32/layer.json` holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LayerFacts {
    pub(crate) chain_id: Digest,
    pub(crate) diff_id: Digest,
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// A directory below `tmp/` that is removed when its last owner is done with it.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.0);
        crate::images::off_the_runtime(move || {
            if let Err(error) = fs::remove_dir_all(&path) {
                tracing::warn!(path = %path.display(), %error, "could not remove what a pull left; the next start will");
            }
        });
    }
}

/// Keeps layers and blobs from being removed while a pull relies on them.
pub(crate) struct Pins {
    store: Arc<Store>,
    pinned: Vec<Digest>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut state = self.store.state();
        for digest in &self.pinned {
            if let Some(count) = state.pins.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    state.pins.remove(digest);
                }
            }
        }
    }
}

/// A layer that is unpacked in a [`Scratch`] as `fs`, beside nothing else.
pub(crate) struct Staged {
    pub(crate) dir: PathBuf,
    pub(crate) facts: LayerFacts,
}

impl Store {
    pub(crate) fn open(root: &Path, durable: bool) -> Result<Self, Error> {
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(root).map_err(Error::disk(format!("make {}", root.display())))?;
        fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .map_err(Error::disk(format!("make {} private", root.display())))?;
        let root = root.canonicalize().map_err(Error::disk(format!("resolve {}", root.display())))?;
        let lock = File::create(root.join("lock")).map_err(Error::disk("make the lock file"))?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::Busy(root)),
            Err(error) => return Err(Error::disk("lock the store")(error.into())),
        }
        match fs::remove_dir_all(root.join("tmp")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::disk("empty tmp")(error));
            }
            _ => {}
        }
        for dir in ["tmp", "blobs/sha256", "layers", "images"] {
            private.create(root.join(dir)).map_err(Error::disk(format!("make {dir}")))?;
        }
        let store = Self {
            state: Mutex::default(),
            change: Mutex::default(),
            scratch: AtomicU64::new(0),
            durable,
            _lock: lock,
            root,
        };
        store.load()?;
        Ok(store)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self) -> Result<(), Error> {
        let mut state = State::default();
        for (path, name) in listing(&self.root.join("blobs/sha256"))? {
            if let (Ok(digest), Ok(meta)) = (format!("sha256:{name}").parse(), fs::metadata(&path)) {
                state.blobs.insert(digest, meta.len());
            }
        }
        for (path, _) in listing(&self.root.join("layers"))? {
            let facts = fs::read(path.join("layer.json"))
                .ok()
                .and_then(|bytes| serde_json::from_slice::<LayerFacts>(&bytes).ok());
            match facts {
                Some(facts) if self.layer_dir(&facts.chain_id) == path && path.join("fs").is_dir() => {
                    state.layers.insert(facts.chain_id.clone(), facts);
                }
                _ => {
                    tracing::warn!(path = %path.display(), "removing a layer that is not whole");
                    fs::remove_dir_all(&path).map_err(Error::disk(format!("remove {}", path.display())))?;
                }
            }
        }
        let mut records = Vec::new();
        for (path, _) in listing(&self.root.join("images"))? {
            let record = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
            let whole = |record: &Record| {
                self.image_file(&record.id) == path
                    && record.chain.iter().all(|id| state.layers.contains_key(id))
                    && record.blobs.iter().all(|id| state.blobs.contains_key(id))
            };
            match record.filter(whole) {
                Some(record) => records.push(record),
                None => {
                    // Nothing of ours makes one; somebody deleted files. Without its file the image is simply pulled again.
                    tracing::warn!(path = %path.display(), "forgetting an image that is not whole");
                    fs::remove_file(&path).map_err(Error::disk(format!("remove {}", path.display())))?;
                }
            }
        }
        let mut newest: HashMap<String, u64> = HashMap::new();
        for (name, sequence) in records.iter().flat_map(|record| &record.names) {
            let known = newest.entry(name.clone()).or_default();
            *known = (*known).max(*sequence);
            state.sequence = state.sequence.max(*sequence);
        }
        for mut record in records {
            record.names.retain(|name, sequence| newest.get(name) == Some(sequence));
            for name in record.names.keys() {
                state.names.insert(name.clone(), record.id.clone());
            }
            let image = Arc::new(self.image_of(&record));
            state.records.insert(record.id.clone(), Entry { record, image });
        }
        *self.state() = state;
        Ok(())
    }

    // --- where things are ---

    fn image_file(&self, id: &ImageId) -> PathBuf {
        self.root.join("images").join(format!("{}.json", id.digest().hex()))
    }

    pub(crate) fn blob_file(&self, digest: &Digest) -> PathBuf {
        self.root.join(blob_name(digest))
    }

    /// Half of the chain id: overlayfs options for dozens of layers must fit one page, and 128 bits are enough to name them.
    fn layer_dir(&self, chain_id: &Digest) -> PathBuf {
        self.root.join("layers").join(&chain_id.hex()[..32])
    }

    pub(crate) fn layer_fs(&self, chain_id: &Digest) -> PathBuf {
        self.layer_dir(chain_id).join("fs")
    }

    pub(crate) fn lower_dirs(&self, image: &Image) -> Vec<PathBuf> {
        image.chain.iter().rev().map(|id| self.layer_fs(id)).collect()
    }

    // --- reading ---

    pub(crate) fn find(&self, what: &str) -> Option<Arc<Image>> {
        let state = self.state();
        let id = state.resolve(what)?;
        state.records.get(&id).filter(|entry| !entry.record.removed).map(|entry| entry.image.clone())
    }

    pub(crate) fn list(&self) -> Vec<Arc<Image>> {
        let state = self.state();
        let mut images: Vec<_> = state
            .records
            .values()
            .filter(|entry| !entry.record.removed)
            .map(|entry| entry.image.clone())
            .collect();
        images.sort_by(|a, b| a.id.cmp(&b.id));
        images
    }

    pub(crate) fn usage(&self) -> FsUsage {
        let state = self.state();
        let (mut bytes, mut inodes) = (0, 0);
        for layer in state.layers.values() {
            bytes += layer.bytes;
            inodes += layer.inodes;
        }
        for size in state.blobs.values() {
            bytes += size.div_ceil(4096) * 4096;
            inodes += 1;
        }
        FsUsage { mountpoint: self.root.clone(), used_bytes: bytes, inodes_used: inodes }
    }

    pub(crate) fn has_layer(&self, chain_id: &Digest) -> bool {
        self.state().layers.contains_key(chain_id)
    }

    /// The bytes of a blob, if it is here and small enough to have been written by [`Store::keep_bytes`].
    pub(crate) fn read_blob(&self, digest: &Digest) -> Option<Vec<u8>> {
        let known = self.state().blobs.contains_key(digest);
        known
            .then(|| fs::read(self.blob_file(digest)).ok())
            .flatten()
            .filter(|bytes| Digest::of(bytes) == *digest)
    }

    pub(crate) fn has_blob(&self, digest: &Digest) -> bool {
        self.state().blobs.contains_key(digest)
    }

    // --- writing ---

    pub(crate) fn scratch(&self) -> Result<Arc<Scratch>, Error> {
        let path = self.root.join("tmp").join(self.scratch.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir(&path).map_err(Error::disk(format!("make {}", path.display())))?;
        Ok(Arc::new(Scratch(path)))
    }

    pub(crate) fn pin(self: &Arc<Self>, digests: impl IntoIterator<Item = Digest>) -> Pins {
        let pinned: Vec<Digest> = digests.into_iter().collect();
        let mut state = self.state();
        for digest in &pinned {
            *state.pins.entry(digest.clone()).or_default() += 1;
        }
        drop(state);
        Pins { store: self.clone(), pinned }
    }

    /// Keeps a small blob. The caller has checked and pinned its digest.
    pub(crate) fn keep_bytes(&self, scratch: &Scratch, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        if self.has_blob(digest) {
            return Ok(());
        }
        let from = scratch.path().join(digest.hex());
        let mut file = File::create(&from).map_err(Error::disk("make a blob"))?;
        file.write_all(bytes).map_err(Error::disk("write a blob"))?;
        drop(file);
        self.keep_file(&from, digest)
    }

    /// Keeps a file of a scratch directory as a blob. The caller has checked and pinned its digest.
    pub(crate) fn keep_file(&self, from: &Path, digest: &Digest) -> Result<(), Error> {
        let file = File::open(from).map_err(Error::disk("open a blob"))?;
        if self.durable {
            file.sync_all().map_err(Error::disk("sync a blob"))?;
        }
        let size = file.metadata().map_err(Error::disk("measure a blob"))?.len();
        fs::rename(from, self.blob_file(digest)).map_err(Error::disk("keep a blob"))?;
        self.sync_dir(&self.root.join("blobs/sha256"))?;
        self.state().blobs.insert(digest.clone(), size);
        Ok(())
    }

    /// Makes an image out of kept blobs and staged layers, and gives it these names, taking them from whoever had them.
    pub(crate) fn commit(
        &self,
        mut record: Record,
        staged: Vec<Staged>,
        names: &[String],
    ) -> Result<Arc<Image>, Error> {
        for layer in &staged {
            let facts = serde_json::to_vec(&layer.facts).expect("digests and numbers become JSON");
            fs::write(layer.dir.join("layer.json"), facts).map_err(Error::disk("describe a layer"))?;
        }
        if self.durable && !staged.is_empty() {
            // One call for thousands of files; it must come before the renames that make them count.
            let root = File::open(&self.root).map_err(Error::disk("open the store"))?;
            rustix::fs::syncfs(&root).map_err(|e| Error::disk("sync the layers")(e.into()))?;
        }
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        for layer in staged {
            let target = self.layer_dir(&layer.facts.chain_id);
            if !self.has_layer(&layer.facts.chain_id) {
                fs::rename(&layer.dir, &target).map_err(Error::disk("keep a layer"))?;
                self.state().layers.insert(layer.facts.chain_id.clone(), layer.facts);
            }
        }
        self.sync_dir(&self.root.join("layers"))?;

        let mut state = self.state();
        state.sequence += 1;
        let sequence = state.sequence;
        if let Some(known) = state.records.get(&record.id) {
            record.names = known.record.names.clone();
            // Blobs of another manifest of the same image stay: its digest still names it.
            let known = known.record.blobs.clone();
            record.blobs.extend(known);
            record.blobs.sort();
            record.blobs.dedup();
        }
        record.names.extend(names.iter().map(|name| (name.clone(), sequence)));
        let mut robbed: Vec<Record> = Vec::new();
        for name in names {
            if let Some(owner) = state.names.get(name)
                && *owner != record.id
                && let Some(entry) = state.records.get(owner)
            {
                match robbed.iter_mut().find(|other| other.id == *owner) {
                    Some(other) => drop(other.names.remove(name)),
                    None => {
                        let mut other = entry.record.clone();
                        other.names.remove(name);
                        robbed.push(other);
                    }
                }
            }
        }
        drop(state);
        self.write_record(&record)?;
        for other in &robbed {
            self.write_record(other)?;
        }
        let image = Arc::new(self.image_of(&record));
        let mut state = self.state();
        for other in robbed {
            let image = Arc::new(self.image_of(&other));
            state.records.insert(other.id.clone(), Entry { record: other, image });
        }
        for name in names {
            state.names.insert(name.clone(), record.id.clone());
        }
        state.records.insert(record.id.clone(), Entry { record, image: image.clone() });
        Ok(image)
    }

    pub(crate) fn remove(&self, what: &str) -> Result<(), Error> {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let (id, leased, record) = {
            let state = self.state();
            let Some(id) = state.resolve(what) else { return Ok(()) };
            let Some(entry) = state.records.get(&id) else { return Ok(()) };
            (id.clone(), state.leases.contains_key(&id), entry.record.clone())
        };
        if leased {
            let hidden = Record { removed: true, names: BTreeMap::new(), ..record };
            self.write_record(&hidden)?;
            let mut state = self.state();
            state.names.retain(|_, owner| *owner != id);
            let image = Arc::new(self.image_of(&hidden));
            state.records.insert(id, Entry { record: hidden, image });
            return Ok(());
        }
        self.forget(&id)?;
        self.sweep()
    }

    pub(crate) fn lease(&self, id: &ImageId) -> Option<Arc<Image>> {
        let mut state = self.state();
        let image = state.records.get(id)?.image.clone();
        *state.leases.entry(id.clone()).or_default() += 1;
        Some(image)
    }

    /// Whether there is now something to [`Store::collect`].
    pub(crate) fn unlease(&self, id: &ImageId) -> bool {
        let mut state = self.state();
        let Some(count) = state.leases.get_mut(id) else { return false };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        state.leases.remove(id);
        state.records.get(id).is_some_and(|entry| entry.record.removed)
    }

    /// Deletes removed images that have no lease, and content that nothing needs.
    pub(crate) fn collect(&self) -> Result<(), Error> {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<ImageId> = {
            let state = self.state();
            let unused = state
                .records
                .values()
                .filter(|entry| entry.record.removed && !state.leases.contains_key(&entry.record.id));
            unused.map(|entry| entry.record.id.clone()).collect()
        };
        for id in gone {
            self.forget(&id)?;
        }
        self.sweep()
    }

    /// Deletes the image's file. `change` is held.
    fn forget(&self, id: &ImageId) -> Result<(), Error> {
        fs::remove_file(self.image_file(id)).map_err(Error::disk(format!("remove image {id}")))?;
        self.sync_dir(&self.root.join("images"))?;
        let mut state = self.state();
        state.records.remove(id);
        state.names.retain(|_, owner| owner != id);
        Ok(())
    }

    /// Deletes layers and blobs that no image file names and no pull has pinned. `change` is held.
    fn sweep(&self) -> Result<(), Error> {
        let (layers, blobs) = {
            let mut state = self.state();
            let mut needed: HashSet<Digest> = state.pins.keys().cloned().collect();
            for entry in state.records.values() {
                needed.extend(entry.record.chain.iter().cloned());
                needed.extend(entry.record.blobs.iter().cloned());
            }
            let layers: Vec<Digest> =
                state.layers.keys().filter(|id| !needed.contains(*id)).cloned().collect();
            let blobs: Vec<Digest> = state.blobs.keys().filter(|id| !needed.contains(*id)).cloned().collect();
            for id in &layers {
                state.layers.remove(id);
            }
            for id in &blobs {
                state.blobs.remove(id);
            }
            (layers, blobs)
        };
        // Out of the way by rename first: a pull that begins now must find the name free.
        let scratch = self.scratch()?;
        for id in &layers {
            fs::rename(self.layer_dir(id), scratch.path().join(id.hex()))
                .map_err(Error::disk(format!("remove layer {id}")))?;
        }
        for id in &blobs {
            fs::remove_file(self.blob_file(id)).map_err(Error::disk(format!("remove blob {id}")))?;
        }
        Ok(())
    }

    fn write_record(&self, record: &Record) -> Result<(), Error> {
        let scratch = self.scratch()?;
        let from = scratch.path().join("record");
        let bytes = serde_json::to_vec(record).expect("records become JSON");
        let mut file = File::create(&from).map_err(Error::disk("make an image's file"))?;
        file.write_all(&bytes).map_err(Error::disk("write an image's file"))?;
        if self.durable {
            file.sync_all().map_err(Error::disk("sync an image's file"))?;
        }
        fs::rename(&from, self.image_file(&record.id)).map_err(Error::disk("keep an image's file"))?;
        self.sync_dir(&self.root.join("images"))
    }

    /// Makes renames in a directory durable.
    fn sync_dir(&self, dir: &Path) -> Result<(), Error> {
        if !self.durable {
            return Ok(());
        }
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::disk(format!("sync {}", dir.display())))
    }

    fn image_of(&self, record: &Record) -> Image {
        let (mut repo_digests, mut repo_tags): (Vec<_>, Vec<_>) =
            record.names.keys().cloned().partition(|name| name.contains('@'));
        repo_digests.sort();
        repo_tags.sort();
        Image {
            id: record.id.clone(),
            repo_tags,
            repo_digests,
            size: record.size,
            kind: match &record.kind {
                Kind::Oci => Kind::Oci,
                Kind::Wasm(module) => {
                    Kind::Wasm(WasmModule { path: self.root.join(&module.path), ..module.clone() })
                }
            },
            config: record.config.clone(),
            annotations: record.annotations.clone(),
            raw_config: record.raw_config.clone(),
            pulled: record.pulled,
            chain: record.chain.clone(),
        }
    }
}

impl State {
    /// A name in any form, a whole id, or the beginning of one. Names go first: `cafebabe` may be both.
    fn resolve(&self, what: &str) -> Option<ImageId> {
        if let Ok(id) = what.parse::<ImageId>() {
            return self.records.contains_key(&id).then_some(id);
        }
        if let Ok(reference) = what.parse::<Reference>()
            && let Some(id) = self.names.get(&reference.to_string())
        {
            return Some(id.clone());
        }
        let hex = what.strip_prefix("sha256:").unwrap_or(what);
        if hex.len() < 6 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let mut found = self.records.keys().filter(|id| id.digest().hex().starts_with(hex));
        let id = found.next()?;
        found.next().is_none().then(|| id.clone())
    }
}

pub(crate) fn blob_name(digest: &Digest) -> PathBuf {
    Path::new("blobs/sha256").join(digest.hex())
}

fn listing(dir: &Path) -> Result<Vec<(PathBuf, String)>, Error> {
    let what = || Error::disk(format!("list {}", dir.display()));
    let mut found = Vec::new();
    for item in fs::read_dir(dir).map_err(what())? {
        let item = item.map_err(what())?;
        found.push((item.path(), item.file_name().to_string_lossy().into_owned()));
    }
    Ok(found)
}
