//! The distribution API: which request does what.

mod blobs;
mod lists;
mod manifests;
mod route;

use std::collections::HashMap;
use std::sync::Arc;

use http::header::{self, HeaderName};
use http::{Method, Request, Response, StatusCode};

use super::reply::{self, Refusal};
use super::{Body, Incoming, Inner};
use crate::digest::Digest;
use blobs::{
    append_upload, begin_upload, cancel_upload, delete_blob, finish_upload, get_blob, upload_progress,
};
use lists::{catalog, tags};
use manifests::{delete_manifest, get_manifest, put_manifest, referrers};
use route::{Route, route};

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

type Answer = Result<Response<Body>, Refusal>;

pub(super) async fn answer(inner: Arc<Inner>, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let result = match route(parts.uri.path()) {
        Ok(route) => dispatch(inner, route, &parts, body).await,
        Err(refusal) => Err(refusal),
    };
    let response = result.unwrap_or_else(Refusal::answer);
    reply::with(response, API_VERSION, "registry/2.0")
}

async fn dispatch(inner: Arc<Inner>, route: Route, parts: &http::request::Parts, body: Incoming) -> Answer {
    let query = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
    let query: HashMap<String, String> = query.into_owned().collect();
    let header = |name: HeaderName| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let head = parts.method == Method::HEAD;
    match (route, &parts.method) {
        (Route::Ping, &Method::GET | &Method::HEAD) => {
            Ok(reply::json(StatusCode::OK, &serde_json::json!({})))
        }
        (Route::Catalog, &Method::GET) => catalog(inner, &query).await,
        (Route::Tags { repo }, &Method::GET) => tags(inner, repo, &query).await,
        (Route::Referrers { repo, digest }, &Method::GET) => {
            referrers(inner, repo, digest, query.get("artifactType").cloned()).await
        }
        (Route::Manifest { repo, target }, &Method::GET | &Method::HEAD) => {
            get_manifest(inner, repo, target, head).await
        }
        (Route::Manifest { repo, target }, &Method::PUT) => {
            let media_type = header(header::CONTENT_TYPE).unwrap_or_default();
            put_manifest(inner, repo, target, media_type, body).await
        }
        (Route::Manifest { repo, target }, &Method::DELETE) => delete_manifest(inner, repo, target).await,
        (Route::Blob { repo, digest }, &Method::GET | &Method::HEAD) => {
            get_blob(inner, repo, digest, header(header::RANGE), head).await
        }
        (Route::Blob { repo, digest }, &Method::DELETE) => delete_blob(inner, repo, digest).await,
        (Route::Uploads { repo }, &Method::POST) => begin_upload(inner, repo, &query, body).await,
        (Route::Upload { repo, id }, &Method::GET) => upload_progress(inner, repo, id).await,
        (Route::Upload { repo, id }, &Method::PATCH) => {
            append_upload(inner, repo, id, header(header::CONTENT_RANGE), body).await
        }
        (Route::Upload { repo, id }, &Method::PUT) => {
            finish_upload(inner, repo, id, &query, header(header::CONTENT_RANGE), body).await
        }
        (Route::Upload { repo, id }, &Method::DELETE) => cancel_upload(inner, repo, id).await,
        (_, method) => Err(Refusal::unsupported(format!("method {method} does not apply here"))),
    }
}

fn created(location: &str, digest: &Digest) -> Response<Body> {
    let response = reply::with(reply::empty(StatusCode::CREATED), header::LOCATION, location);
    reply::with(response, CONTENT_DIGEST, digest.as_str())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => {
            Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "UNKNOWN", "the server is shutting down"))
        }
    }
}
