//! A registry on the loopback that is filled without a client.

use std::io::Write as _;
use std::path::Path;

use anyhow::ensure;
use flate2::{Compression, write::GzEncoder};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower::ServiceExt as _;
use wharf_image::Digest;
use wharf_image::registry::{Config, Registry, RegistryService};

use crate::assets;

/// Serves for as long as the runtime that it was made in.
pub struct LocalRegistry {
    service: RegistryService,
    pub url: String,
}

impl LocalRegistry {
    /// One that is empty and keeps what it gets in `dir`.
    pub async fn serve(dir: &Path) -> anyhow::Result<Self> {
        let registry = Registry::open(Config::new(dir))?;
        let service = registry.service();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = TowerToHyperService::new(registry.service());
                tokio::spawn(async move {
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(Self { service, url })
    }

    /// One that has `shell:latest`, an OCI image, and `guest:latest`, a component that serves HTTP.
    pub async fn of_both_sorts(dir: &Path) -> anyhow::Result<Self> {
        let registry = Self::serve(dir).await?;
        registry.put_shell("shell", &["/bin/sh"]).await?;
        registry.put_component("guest", &assets::guest("guest-http")).await?;
        Ok(registry)
    }

    pub async fn put_blob(&self, repository: &str, digest: &str, bytes: Vec<u8>) -> anyhow::Result<()> {
        let path = format!("{repository}/blobs/uploads/?digest={digest}");
        self.send(Method::POST, &path, "application/octet-stream", bytes).await
    }

    pub async fn put_manifest(
        &self,
        repository: &str,
        tag: &str,
        form: &str,
        bytes: Vec<u8>,
    ) -> anyhow::Result<()> {
        self.send(Method::PUT, &format!("{repository}/manifests/{tag}"), form, bytes).await
    }

    /// Puts an image of these layers, archives of tar each, as `REPOSITORY:latest`; `config` is what the field of that
    /// name says in an image's configuration.
    pub async fn put_image(
        &self,
        repository: &str,
        config: Value,
        layers: Vec<Vec<u8>>,
    ) -> anyhow::Result<()> {
        const FORM: &str = "application/vnd.oci.image";
        let (mut diff_ids, mut descriptors) = (Vec::new(), Vec::new());
        for layer in layers {
            diff_ids.push(Digest::of(&layer).to_string());
            let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
            packed.write_all(&layer)?;
            let packed = packed.finish()?;
            let digest = Digest::of(&packed).to_string();
            let form = format!("{FORM}.layer.v1.tar+gzip");
            descriptors.push(json!({"mediaType": form, "digest": digest, "size": packed.len()}));
            self.put_blob(repository, &digest, packed).await?;
        }
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({"architecture": architecture, "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = config.to_string().into_bytes();
        let digest = Digest::of(&config).to_string();
        let form = format!("{FORM}.manifest.v1+json");
        let manifest = json!({"schemaVersion": 2, "mediaType": form, "layers": descriptors,
            "config": {"mediaType": format!("{FORM}.config.v1+json"), "digest": digest, "size": config.len()}});
        self.put_blob(repository, &digest, config).await?;
        self.put_manifest(repository, "latest", &form, manifest.to_string().into_bytes()).await
    }

    /// Puts a component as `REPOSITORY:latest`.
    pub async fn put_component(&self, repository: &str, file: &Path) -> anyhow::Result<()> {
        let component = std::fs::read(file)?;
        let digest = Digest::of(&component).to_string();
        let config = json!({"architecture": "wasm", "os": "wasip2", "layerDigests": [digest]}).to_string();
        let config = config.into_bytes();
        let form = "application/vnd.oci.image.manifest.v1+json";
        let named = |form: &str, bytes: &[u8]| json!({"mediaType": form, "digest": Digest::of(bytes).to_string(), "size": bytes.len()});
        let manifest = json!({"schemaVersion": 2, "mediaType": form,
            "config": named("application/vnd.wasm.config.v0+json", &config),
            "layers": [named("application/wasm", &component)]});
        self.put_blob(repository, &Digest::of(&config).to_string(), config).await?;
        self.put_blob(repository, &digest, component).await?;
        self.put_manifest(repository, "latest", form, manifest.to_string().into_bytes()).await
    }

    /// Puts a shell with some tools as `REPOSITORY:latest`.
    pub async fn put_shell(&self, repository: &str, entrypoint: &[&str]) -> anyhow::Result<()> {
        let mut archive = tar::Builder::new(Vec::new());
        let busybox = std::fs::read(assets::busybox())?;
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(busybox.len() as u64);
        archive.append_data(&mut header, "bin/busybox", busybox.as_slice())?;
        for name in ["sh", "sleep", "true"] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            archive.append_link(&mut header, format!("bin/{name}"), "busybox")?;
        }
        self.put_image(repository, json!({"Entrypoint": entrypoint}), vec![archive.into_inner()?]).await
    }

    async fn send(&self, method: Method, path: &str, form: &str, bytes: Vec<u8>) -> anyhow::Result<()> {
        let request =
            Request::builder().method(method).uri(format!("/v2/{path}")).header("content-type", form);
        let request = request.header("content-length", bytes.len()).body(Full::new(bytes.into()))?;
        let request: Request<Full<hyper::body::Bytes>> = request;
        let answer = self.service.clone().oneshot(request).await?;
        ensure!(answer.status() == StatusCode::CREATED, "{path}: {}", answer.status());
        Ok(())
    }
}
