//! ImageService: images by name, pulled and removed.

use tonic::{Request, Response, Status, async_trait};
use wharf_cri::v1::{self, image_service_server::ImageService};
use wharf_image::{Auth, Kind, Prefer, PullOptions, Reference};

use super::Service;
use crate::error::{Error, chain};
use crate::info;
use crate::lists::{self, Streamed, pages};
use crate::shim::{Shim, now};
use crate::view;

type Answer<T> = Result<Response<T>, Status>;

#[async_trait]
impl ImageService for Service {
    type StreamImagesStream = Streamed<v1::StreamImagesResponse>;

    async fn list_images(&self, request: Request<v1::ListImagesRequest>) -> Answer<v1::ListImagesResponse> {
        let images = lists::images(&self.shim, request.into_inner().filter);
        Ok(Response::new(v1::ListImagesResponse { images }))
    }

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        let all = lists::images(&self.shim, request.into_inner().filter);
        let message = |images| v1::StreamImagesResponse { images };
        Ok(Response::new(pages(all, message)))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Answer<v1::ImageStatusResponse> {
        let request = request.into_inner();
        let name = request.image.map(|spec| spec.image).unwrap_or_default();
        let image = self.shim.images.status(&name);
        let info = image.as_ref().filter(|_| request.verbose).map(|image| info::image(image));
        Ok(Response::new(v1::ImageStatusResponse {
            image: image.map(|image| view::image(&image)),
            info: info.unwrap_or_default(),
        }))
    }

    async fn pull_image(&self, request: Request<v1::PullImageRequest>) -> Answer<v1::PullImageResponse> {
        let request = request.into_inner();
        let spec = request.image.unwrap_or_default();
        let reference: Reference =
            spec.image.parse().map_err(|error| Error::Invalid(format!("image {:?}: {error}", spec.image)))?;
        let prefer = if crate::handlers::is_wasm(&spec.runtime_handler) { Prefer::Wasm } else { Prefer::Oci };
        let options = PullOptions { auth: request.auth.and_then(auth), prefer };
        let image = self.shim.images.pull(&reference, options).await.map_err(Error::from)?;
        if let Kind::Wasm(module) = &image.kind {
            precompile(&self.shim, module).await;
        }
        Ok(Response::new(v1::PullImageResponse { image_ref: image.id.to_string() }))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Answer<v1::RemoveImageResponse> {
        let name = request.into_inner().image.map(|spec| spec.image).unwrap_or_default();
        self.shim.images.remove(&name).await.map_err(Error::from)?;
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<v1::ImageFsInfoRequest>) -> Answer<v1::ImageFsInfoResponse> {
        let usage = self.shim.images.usage();
        let usage = v1::FilesystemUsage {
            timestamp: now(),
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: usage.mountpoint.display().to_string() }),
            used_bytes: Some(v1::UInt64Value { value: usage.used_bytes }),
            inodes_used: Some(v1::UInt64Value { value: usage.inodes_used }),
        };
        Ok(Response::new(v1::ImageFsInfoResponse {
            image_filesystems: vec![usage.clone()],
            container_filesystems: vec![usage],
        }))
    }
}

/// Compiles a module just pulled, so that its first start is quick. What is wrong with it is told when a
/// container of it is made.
async fn precompile(shim: &Shim, module: &wharf_image::WasmModule) {
    let Ok(host) = shim.wasm() else { return };
    if let Err(error) = host.precompile(&module.path, module.digest.as_str()).await {
        tracing::warn!(module = %module.digest, error = chain(&error), "could not compile ahead of time");
    }
}

fn auth(config: v1::AuthConfig) -> Option<Auth> {
    use wharf_image::Auth::{Basic, Bearer, Identity};
    match config {
        c if !c.registry_token.is_empty() => Some(Bearer(c.registry_token)),
        c if !c.username.is_empty() => Some(Basic { username: c.username, password: c.password }),
        c if !c.identity_token.is_empty() => Some(Identity(c.identity_token)),
        c if !c.auth.is_empty() => Auth::basic(&c.auth),
        _ => None,
    }
}
