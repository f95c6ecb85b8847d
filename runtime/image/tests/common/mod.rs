//! A real registry on a real socket, and images to push to it.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tower_service::Service as _;
use wharf_image::registry::{self, Body, Registry};
use wharf_image::{Config, Digest, Endpoint, HostConfig, Images, RegistriesConfig};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const TAR_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// What a hook makes of a request: an answer, or none to let the registry answer.
pub type Hook = Box<dyn Fn(&Request<Incoming>) -> Option<Response<Body>> + Send + Sync>;

pub struct Server {
    pub dir: TempDir,
    pub registry: Registry,
    pub addr: SocketAddr,
    pub url: String,
    /// `METHOD path` of each request, in order.
    pub log: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub async fn start() -> Self {
        Self::with(None, None).await
    }

    pub async fn hooked(
        hook: impl Fn(&Request<Incoming>) -> Option<Response<Body>> + Send + Sync + 'static,
    ) -> Self {
        Self::with(Some(Box::new(hook)), None).await
    }

    pub async fn with(hook: Option<Hook>, tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(registry::Config::new(dir.path())).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let hook: Arc<Hook> = Arc::new(hook.unwrap_or_else(|| Box::new(|_| None)));
        let service = registry.service();
        let task = tokio::spawn({
            let log = log.clone();
            async move {
                loop {
                    let Ok((stream, _)) = listener.accept().await else { continue };
                    let (service, hook, log, tls) = (service.clone(), hook.clone(), log.clone(), tls.clone());
                    tokio::spawn(async move {
                        let answer = hyper::service::service_fn(move |request: Request<Incoming>| {
                            log.lock().unwrap().push(format!(
                                "{} {}",
                                request.method(),
                                request.uri().path()
                            ));
                            let hooked = hook(&request);
                            let mut service = service.clone();
                            async move {
                                match hooked {
                                    Some(response) => Ok(response),
                                    None => service.call(request).await,
                                }
                            }
                        });
                        let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                        let _ = match tls {
                            Some(tls) => match tls.accept(stream).await {
                                Ok(stream) => builder.serve_connection(TokioIo::new(stream), answer).await,
                                Err(_) => return,
                            },
                            None => builder.serve_connection(TokioIo::new(stream), answer).await,
                        };
                    });
                }
            }
        });
        Self { dir, registry, addr, url: format!("{scheme}://{addr}"), log, task }
    }

    pub fn requests(&self, what: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.contains(what)).count()
    }

    /// The reference of this repository and tag at this server.
    pub fn reference(&self, rest: &str) -> wharf_image::Reference {
        format!("{}/{rest}", self.addr).parse().unwrap()
    }

    /// Where the registry keeps a blob: tests damage it there.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join("blobs/sha256").join(digest.hex())
    }

    pub async fn push_blob(&self, repo: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let url = format!("{}/v2/{repo}/blobs/uploads/?digest={digest}", self.url);
        let response = client().post(url).body(bytes.to_vec()).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::CREATED, "{}", response.text().await.unwrap());
        digest
    }

    pub async fn push_document(
        &self,
        repo: &str,
        target: &str,
        media_type: &str,
        document: &Value,
    ) -> (Digest, u64) {
        let bytes = serde_json::to_vec(document).unwrap();
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        let target = if target.is_empty() { digest.as_str() } else { target };
        let url = format!("{}/v2/{repo}/manifests/{target}", self.url);
        let response = client().put(url).header("content-type", media_type).body(bytes).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::CREATED, "{}", response.text().await.unwrap());
        (digest, size)
    }

    /// Pushes an image; empty tag: by digest alone.
    pub async fn push(&self, repo: &str, tag: &str, image: &TestImage) -> Pushed {
        let mut layers = Vec::new();
        for layer in &image.layers {
            let digest = self.push_blob(repo, &layer.blob).await;
            let mut item =
                json!({ "mediaType": layer.media_type, "digest": digest.as_str(), "size": layer.blob.len() });
            if let Some(title) = &layer.title {
                item["annotations"] = json!({ "org.opencontainers.image.title": title });
            }
            layers.push(item);
        }
        let config = image.config_bytes();
        let config_digest = self.push_blob(repo, &config).await;
        let mut document = json!({
            "schemaVersion": 2,
            "mediaType": image.media_type,
            "config": { "mediaType": image.config_type, "digest": config_digest.as_str(), "size": config.len() },
            "layers": layers,
        });
        if !image.annotations.is_null() {
            document["annotations"] = image.annotations.clone();
        }
        let (digest, size) = self.push_document(repo, tag, image.media_type, &document).await;
        Pushed { config: config_digest, manifest: digest, size }
    }

    /// Pushes an index over pushed images, each with its platform.
    pub async fn push_index(
        &self,
        repo: &str,
        tag: &str,
        media_type: &str,
        entries: &[(&Pushed, &str, &str)],
    ) -> Digest {
        let item_type = if media_type == DOCKER_LIST { DOCKER_MANIFEST } else { OCI_MANIFEST };
        let manifests: Vec<Value> = entries
            .iter()
            .map(|(pushed, os, architecture)| {
                json!({ "mediaType": item_type, "digest": pushed.manifest.as_str(), "size": pushed.size,
                        "platform": { "os": os, "architecture": architecture } })
            })
            .collect();
        let document = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
        self.push_document(repo, tag, media_type, &document).await.0
    }
}

pub struct Pushed {
    pub config: Digest,
    pub manifest: Digest,
    pub size: u64,
}

#[derive(Clone)]
pub struct TestLayer {
    pub media_type: &'static str,
    pub blob: Vec<u8>,
    pub diff_id: Digest,
    pub title: Option<String>,
}

impl TestLayer {
    pub fn plain(tar: Vec<u8>) -> Self {
        Self { media_type: TAR, diff_id: Digest::of(&tar), blob: tar, title: None }
    }

    pub fn gzip(tar: &[u8]) -> Self {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(tar).unwrap();
        Self { media_type: TAR_GZIP, diff_id: Digest::of(tar), blob: encoder.finish().unwrap(), title: None }
    }

    pub fn zstd(tar: &[u8]) -> Self {
        Self {
            media_type: TAR_ZSTD,
            diff_id: Digest::of(tar),
            blob: zstd::encode_all(tar, 1).unwrap(),
            title: None,
        }
    }

    pub fn module(media_type: &'static str, module: &[u8]) -> Self {
        Self { media_type, blob: module.to_vec(), diff_id: Digest::of(module), title: None }
    }
}

#[derive(Clone)]
pub struct TestImage {
    pub media_type: &'static str,
    pub config_type: &'static str,
    pub layers: Vec<TestLayer>,
    /// `config` of the config document.
    pub process: Value,
    pub os: &'static str,
    pub architecture: &'static str,
    pub annotations: Value,
    /// Instead of the config document.
    pub config: Option<Vec<u8>>,
}

impl TestImage {
    pub fn of(layers: Vec<TestLayer>) -> Self {
        Self {
            media_type: OCI_MANIFEST,
            config_type: OCI_CONFIG,
            layers,
            process: json!({ "Cmd": ["/bin/app"] }),
            os: "linux",
            architecture: native(),
            annotations: Value::Null,
            config: None,
        }
    }

    pub fn config_bytes(&self) -> Vec<u8> {
        if let Some(config) = &self.config {
            return config.clone();
        }
        let diff_ids: Vec<&str> = self.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        serde_json::to_vec(&json!({
            "os": self.os, "architecture": self.architecture, "config": self.process,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        }))
        .unwrap()
    }
}

pub fn native() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// An archive; the closure adds entries with the helpers of [`Archive`].
pub fn tar(fill: impl FnOnce(&mut Archive)) -> Vec<u8> {
    let mut archive = Archive(tar::Builder::new(Vec::new()));
    fill(&mut archive);
    archive.0.into_inner().unwrap()
}

pub struct Archive(pub tar::Builder<Vec<u8>>);

impl Archive {
    pub fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size as u64);
        header.set_mtime(1_700_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header
    }

    /// Writes the name as it is: the tar crate itself refuses hostile ones.
    pub fn raw(&mut self, name: &str, link: &str, mut header: tar::Header, data: &[u8]) -> &mut Self {
        let old = header.as_old_mut();
        old.name.fill(0);
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname.fill(0);
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    /// Ends a chain of calls in a closure that gives nothing back.
    pub fn done(&mut self) {}

    pub fn file(&mut self, name: &str, data: impl AsRef<[u8]>) -> &mut Self {
        self.file_mode(name, 0o644, data)
    }

    pub fn file_mode(&mut self, name: &str, mode: u32, data: impl AsRef<[u8]>) -> &mut Self {
        let data = data.as_ref();
        self.raw(name, "", Self::header(tar::EntryType::Regular, mode, data.len()), data)
    }

    pub fn dir(&mut self, name: &str, mode: u32) -> &mut Self {
        self.raw(name, "", Self::header(tar::EntryType::Directory, mode, 0), b"")
    }

    pub fn symlink(&mut self, name: &str, target: &str) -> &mut Self {
        self.raw(name, target, Self::header(tar::EntryType::Symlink, 0o777, 0), b"")
    }

    pub fn hard_link(&mut self, name: &str, target: &str) -> &mut Self {
        self.raw(name, target, Self::header(tar::EntryType::Link, 0o644, 0), b"")
    }
}

/// A smallest core module.
pub fn module(n: u8) -> Vec<u8> {
    // A custom section with one byte makes modules differ.
    [b"\0asm\x01\0\0\0".as_slice(), &[0, 3, 1, b'n', n]].concat()
}

pub fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

pub async fn open(root: &Path) -> Images {
    open_with(root, RegistriesConfig::default()).await
}

pub async fn open_with(root: &Path, registries: RegistriesConfig) -> Images {
    Images::open(Config { registries, durable: false, ..Config::new(root) }).await.unwrap()
}

pub fn mirrored(host: &str, endpoint: Endpoint) -> RegistriesConfig {
    let config = HostConfig { mirrors: vec![endpoint], mirrors_only: true, ..HostConfig::default() };
    RegistriesConfig { hosts: [(host.to_owned(), config)].into(), ..RegistriesConfig::default() }
}

pub fn reply(status: u16, body: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(status).body(body).unwrap()
}

/// Everything below a directory but directories, as relative paths. What goes away meanwhile is not there.
pub fn files(dir: &Path) -> Vec<String> {
    fn walk(dir: &Path, root: &Path, found: &mut Vec<String>) {
        let gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
        let items = match std::fs::read_dir(dir) {
            Err(error) if dir != root && gone(&error) => return,
            items => items.unwrap(),
        };
        for item in items {
            let item = item.unwrap();
            if item.file_type().unwrap().is_dir() {
                walk(&item.path(), root, found);
            } else {
                found.push(item.path().strip_prefix(root).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    let mut found = Vec::new();
    walk(dir, dir, &mut found);
    found.sort();
    found
}

/// Waits until nothing is left of unfinished work, and says what is there otherwise.
pub async fn until_clean(root: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left: Vec<_> = std::fs::read_dir(root.join("tmp")).unwrap().collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left behind: {left:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
