//! The built-in registry: the OCI distribution API (1.1) over one directory.
//!
//! Enter at [`Registry::open`]; [`Registry::service`] is a tower service for requests whose path begins with `/v2/`.
//! Who may do what is decided before a request gets here. It has no task of its own: garbage is collected at open and
//! after a manifest is deleted or loses its tag, on a blocking thread.
//!
//! ```text
//! blobs/sha256/HEX              content, manifests too, shared by all repositories
//! repos/NAME/_blobs/HEX         the repository has this blob; the file's time says when it was last pushed or asked for
//! repos/NAME/_manifests/HEX     the repository has this manifest: JSON with what the API says of it
//! repos/NAME/_tags/TAG          the digest
//! uploads/UUID/{repo,data}      an upload in progress; it survives a restart
//! tmp/                          files not yet renamed to their place
//! ```
//! No part of a repository's name begins with `_`, so names nest without clashes.

mod collect;
mod disk;
mod http_api;
mod reply;
mod uploads;

use std::convert::Infallible;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;

use crate::error::Error;
use disk::Disk;
use uploads::Uploads;

/// What answers carry; blobs are streamed from their files.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// What requests carry, whatever the server that they came through.
type Incoming = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// How to keep a registry.
#[derive(Clone, Debug)]
pub struct Config {
    /// Made if absent.
    pub root: PathBuf,
    /// Bytes of one manifest; larger ones get 413.
    pub manifest: u64,
    /// Bytes of one blob; larger ones get 413.
    pub blob: u64,
    /// How long content that nothing refers to is kept: a push uploads blobs first and names them last.
    pub grace: Duration,
    /// How long an upload that gets no bytes is kept.
    pub upload_age: Duration,
}

impl Config {
    /// Everything default but the directory.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            manifest: 4 << 20, // the distribution specification's own figure
            blob: 16 << 30,
            grace: Duration::from_secs(60 * 60),
            upload_age: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// A registry over one directory. Clones share it.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    disk: Disk,
    uploads: Uploads,
}

impl Registry {
    /// Opens or makes a registry and collects its garbage. Blocks.
    ///
    /// # Errors
    /// [`Error::Busy`] if another process has it open, [`Error::Disk`].
    pub fn open(config: Config) -> Result<Self, Error> {
        let disk = Disk::open(&config.root)?;
        let uploads = Uploads::new(config.root.join("uploads"));
        let registry = Self { inner: Arc::new(Inner { config, disk, uploads }) };
        registry.collect()?;
        Ok(registry)
    }

    /// The API. Mount it without stripping anything from the path.
    pub fn service(&self) -> RegistryService {
        RegistryService { inner: self.inner.clone() }
    }

    /// Removes content that nothing refers to and whose grace has passed, and abandoned uploads. Blocks.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn collect(&self) -> Result<(), Error> {
        self.inner.collect()
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("root", &self.inner.config.root).finish_non_exhaustive()
    }
}

/// See [`Registry::service`]. Never fails: errors are answers.
#[derive(Clone)]
pub struct RegistryService {
    inner: Arc<Inner>,
}

impl<B> tower_service::Service<Request<B>> for RegistryService
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let inner = self.inner.clone();
        let request: Request<Incoming> = request.map(|body| {
            let body =
                body.map_frame(|frame| frame.map_data(|mut data| data.copy_to_bytes(data.remaining())));
            body.map_err(Into::into).boxed_unsync()
        });
        Box::pin(async move { Ok(http_api::answer(inner, request).await) })
    }
}
