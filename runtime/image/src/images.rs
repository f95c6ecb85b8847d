//! The handle that others hold.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};

use crate::client::{Auth, Clients};
use crate::error::Error;
use crate::image::{Image, ImageId};
use crate::pull;
use crate::reference::Reference;
use crate::registries::RegistriesConfig;
use crate::store::Store;

/// How to open the images of a node.
#[derive(Clone, Debug)]
pub struct Config {
    /// Made if absent, with mode 0700: unpacked layers hold setuid programs. On a file system that overlayfs takes as lower.
    pub root: PathBuf,
    /// How to reach registries.
    pub registries: RegistriesConfig,
    /// What an image may cost.
    pub limits: Limits,
    /// Whether an image is on the disk, not just in the page cache, when its pull returns. Off is quicker, and safe against
    /// kills but not against power cuts.
    pub durable: bool,
}

impl Config {
    /// Everything default but the directory.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            registries: RegistriesConfig::default(),
            limits: Limits::default(),
            durable: true,
        }
    }
}

/// Bounds against hostile or broken images. Reaching one fails the pull.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of one manifest or config. The distribution specification asks registries to take manifests of 4 MiB.
    pub document: u64,
    /// Bytes of one blob as transferred.
    pub blob: u64,
    /// Bytes of one layer unpacked.
    pub unpacked: u64,
    /// Entries of one layer.
    pub entries: u64,
    /// Layers of one image; overlayfs takes 500.
    pub layers: usize,
    /// Layers transferred at a time, in one pull.
    pub parallel: usize,
    /// How long a registry may be silent in the middle of an answer.
    pub silence: std::time::Duration,
}

impl Default for Limits {
    fn default() -> Self {
        const GIB: u64 = 1 << 30;
        Self {
            document: 4 << 20,
            blob: 16 * GIB,
            unpacked: 32 * GIB,
            entries: 1_000_000,
            layers: 200,
            parallel: 3,
            silence: std::time::Duration::from_secs(60),
        }
    }
}

/// What to take from an index that has both. The other is taken where this one is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Prefer {
    /// linux on this machine's architecture.
    #[default]
    Oci,
    /// `wasi/wasm`, `wasip1/wasm` or `wasip2/wasm`.
    Wasm,
}

/// How to pull.
#[derive(Clone, Debug, Default)]
pub struct PullOptions {
    /// For the registry of the reference, never for its mirrors.
    pub auth: Option<Auth>,
    /// See [`Prefer`].
    pub prefer: Prefer,
}

/// How far a pull is. Totals grow as manifests arrive; layers that were here already do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Layers to transfer.
    pub layers: usize,
    /// Layers transferred and unpacked.
    pub layers_done: usize,
    /// Bytes to transfer.
    pub bytes: u64,
    /// Bytes transferred.
    pub bytes_done: u64,
}

/// What the store takes on its file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsUsage {
    /// The store's directory.
    pub mountpoint: PathBuf,
    /// Bytes of blobs and unpacked layers.
    pub used_bytes: u64,
    /// Files and directories of them.
    pub inodes_used: u64,
}

/// Counters behind [`Progress`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) layers: AtomicUsize,
    pub(crate) layers_done: AtomicUsize,
    pub(crate) bytes: AtomicU64,
    pub(crate) bytes_done: AtomicU64,
}

type Flight = Shared<BoxFuture<'static, Result<Arc<Image>, Arc<Error>>>>;
/// Callers with other credentials do not ride along.
type FlightKey = (Reference, Prefer, Option<Auth>);

struct InFlight {
    flight: WeakShared<BoxFuture<'static, Result<Arc<Image>, Arc<Error>>>>,
    counters: Arc<Counters>,
}

pub(crate) struct Inner {
    pub(crate) store: Arc<Store>,
    pub(crate) registries: RegistriesConfig,
    pub(crate) limits: Limits,
    pub(crate) clients: Clients,
    flights: Mutex<HashMap<FlightKey, InFlight>>,
}

/// The images of a node. Clones share one store.
///
/// # Guarantees
/// - An image that [`Images::status`] or [`Images::list`] shows is whole: every layer unpacked and checked against its digests.
/// - A pull that fails, is dropped, or dies with the process changes no image and leaves no name.
/// - What a [`Lease`] names stays on disk until the lease is dropped, whatever is removed meanwhile.
#[derive(Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

impl Images {
    /// Opens or makes a store, removing what unfinished pulls left.
    ///
    /// # Errors
    /// [`Error::Busy`] if another process has it open, [`Error::Config`], [`Error::Disk`].
    pub async fn open(config: Config) -> Result<Self, Error> {
        config.registries.check()?;
        let root = config.root.clone();
        let store = blocking(move || Store::open(&root, config.durable)).await?;
        Ok(Self {
            inner: Arc::new(Inner {
                store: Arc::new(store),
                clients: Clients::new(config.limits.silence),
                registries: config.registries,
                limits: config.limits,
                flights: Mutex::default(),
            }),
        })
    }

    /// Brings an image here, or makes sure that what is here is what the registry has now, and names it.
    ///
    /// Concurrent pulls of one reference with the same options are one transfer. Dropping the future (a deadline)
    /// stops the transfer unless somebody else waits for it too; a repeat starts over, but for layers that are here.
    ///
    /// # Errors
    /// [`Error::Pull`]; its text says what each endpoint answered.
    pub async fn pull(&self, reference: &Reference, options: PullOptions) -> Result<Arc<Image>, Arc<Error>> {
        let flight = self.fly(reference, options);
        flight.await
    }

    fn fly(&self, reference: &Reference, options: PullOptions) -> Flight {
        let key: FlightKey = (reference.clone(), options.prefer, options.auth.clone());
        let mut flights = self.inner.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&key).and_then(|known| known.flight.upgrade()) {
            return flight;
        }
        let counters = Arc::new(Counters::default());
        let landing = Landing { inner: self.inner.clone(), key: key.clone(), counters: counters.clone() };
        let work = {
            let (inner, reference, counters) = (self.inner.clone(), reference.clone(), counters.clone());
            async move {
                let _landing = landing; // takes the flight off the list, finished or dropped
                pull::pull(inner, reference, options, counters).await.map_err(Arc::new)
            }
        };
        let flight = work.boxed().shared();
        if let Some(weak) = flight.downgrade() {
            flights.insert(key, InFlight { flight: weak, counters });
        }
        flight
    }

    /// How far the pull of this reference is; none if there is none.
    pub fn progress(&self, reference: &Reference) -> Option<Progress> {
        let flights = self.inner.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, known) = flights.iter().find(|((of, ..), _)| of == reference)?;
        let counters = &known.counters;
        Some(Progress {
            layers: counters.layers.load(Ordering::Relaxed),
            layers_done: counters.layers_done.load(Ordering::Relaxed),
            bytes: counters.bytes.load(Ordering::Relaxed),
            bytes_done: counters.bytes_done.load(Ordering::Relaxed),
        })
    }

    /// The image of this name or id: any form of a reference, `sha256:…`, or the beginning of an id's hexadecimal digits
    /// (at least 6, and of one image only).
    pub fn status(&self, name_or_id: &str) -> Option<Arc<Image>> {
        self.inner.store.find(name_or_id)
    }

    /// All images, sorted by id.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.inner.store.list()
    }

    /// Removes an image with all its names, given any of them or its id. One that is not here is no error.
    ///
    /// It is gone from [`Images::list`] when this returns; its files go when no [`Lease`] is left.
    /// Dropping the future does not undo it.
    ///
    /// # Errors
    /// [`Error::Disk`]; the image is then still there.
    pub async fn remove(&self, name_or_id: &str) -> Result<(), Error> {
        let (store, what) = (self.inner.store.clone(), name_or_id.to_owned());
        blocking(move || store.remove(&what)).await
    }

    /// Keeps an image's files while held. None if there is no such image.
    ///
    /// Also finds an image that was removed while leased, until [`Images::collect`]: so a restarted shim
    /// leases again what its containers run, then collects.
    pub fn lease(&self, id: &ImageId) -> Option<Lease> {
        let image = self.inner.store.lease(id)?;
        Some(Lease {
            lower_dirs: self.inner.store.lower_dirs(&image),
            image,
            store: self.inner.store.clone(),
        })
    }

    /// The directories to mount as overlayfs' `lowerdir`, topmost first. Empty for wasm artifacts and empty images.
    /// Hold a [`Lease`] while they are mounted.
    pub fn lower_dirs(&self, image: &Image) -> Vec<PathBuf> {
        self.inner.store.lower_dirs(image)
    }

    /// Finds a file in an image without mounting it (`/etc/passwd`, a wasm module named by the pod), following symbolic links within it.
    ///
    /// # Errors
    /// [`Error::Disk`] if a directory cannot be read.
    pub async fn file(&self, image: &Image, path: impl AsRef<Path>) -> Result<Option<PathBuf>, Error> {
        let (dirs, path) = (self.lower_dirs(image), path.as_ref().to_owned());
        blocking(move || {
            crate::layer::lookup(&dirs, &path)
                .map_err(Error::disk(format!("look for {} in the image", path.display())))
        })
        .await
    }

    /// Removes what no image names and no lease keeps. Call once after a start, when every running container has its lease again.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub async fn collect(&self) -> Result<(), Error> {
        let store = self.inner.store.clone();
        blocking(move || store.collect()).await
    }

    /// What the store takes on disk, from its own books.
    pub fn usage(&self) -> FsUsage {
        self.inner.store.usage()
    }
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images").field("root", &self.inner.store.root()).finish_non_exhaustive()
    }
}

/// Keeps the files of one image on disk while it exists.
pub struct Lease {
    image: Arc<Image>,
    lower_dirs: Vec<PathBuf>,
    store: Arc<Store>,
}

impl Lease {
    /// The image.
    pub fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// See [`Images::lower_dirs`].
    pub fn lower_dirs(&self) -> &[PathBuf] {
        &self.lower_dirs
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.store.unlease(&self.image.id) {
            let store = self.store.clone();
            off_the_runtime(move || {
                if let Err(error) = store.collect() {
                    tracing::warn!(%error, "could not remove an image that is no longer used");
                }
            });
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("image", &self.image.id).finish_non_exhaustive()
    }
}

struct Landing {
    inner: Arc<Inner>,
    key: FlightKey,
    counters: Arc<Counters>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut flights = self.inner.flights.lock().unwrap_or_else(PoisonError::into_inner);
        // A new flight may have begun between the last waiter's going and this.
        if flights.get(&self.key).is_some_and(|known| Arc::ptr_eq(&known.counters, &self.counters)) {
            flights.remove(&self.key);
        }
    }
}

/// Runs disk work where it may block; it is finished even if the future is dropped.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Error::Disk {
            what: "start disk work".into(),
            cause: std::io::Error::other("the runtime is shutting down"),
        }),
    }
}

/// Runs disk work from a destructor: on a thread for it if there is a runtime, here and now if not.
pub(crate) fn off_the_runtime(work: impl FnOnce() + Send + 'static) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(work)),
        Err(_) => work(),
    }
}
