//! Blobs and their uploads.

use std::collections::HashMap;
use std::sync::Arc;

use http::header::{self, HeaderName};
use http::{Response, StatusCode};
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;

use super::super::reply::{self, Refusal};
use super::super::uploads::Upload;
use super::super::{Body, Incoming, Inner};
use super::route::{self, parse_digest};
use super::{Answer, CONTENT_DIGEST, blocking, created};
use crate::digest::Digest;

const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");

pub(super) async fn get_blob(
    inner: Arc<Inner>,
    repo: String,
    digest: Digest,
    range: Option<&str>,
    head: bool,
) -> Answer {
    let path = inner.disk.blob(&digest);
    let unknown = Refusal::blob_unknown(&digest);
    let (checked, asked) = (inner.clone(), digest.clone());
    if !blocking(move || Ok(checked.disk.has_blob(&repo, &asked, checked.config.grace))).await? {
        return Err(unknown);
    }
    match reply::file(&path, range, head).await {
        Ok(response) => Ok(reply::with(response, CONTENT_DIGEST, digest.as_str())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(unknown),
        Err(error) => Err(Refusal::disk("read the blob")(error)),
    }
}

pub(super) async fn delete_blob(inner: Arc<Inner>, repo: String, digest: Digest) -> Answer {
    blocking(move || {
        let _changing = inner.disk.changing();
        if !inner.disk.has_blob(&repo, &digest, inner.config.grace) {
            return Err(Refusal::blob_unknown(&digest));
        }
        let entries = inner.disk.entries(&repo).map_err(Refusal::disk("list the manifests"))?;
        if let Some((by, _)) = entries.iter().find(|(_, entry)| entry.blobs.contains(&digest)) {
            return Err(Refusal::unsupported(format!("manifest {by} refers to the blob; delete that first")));
        }
        inner.disk.unlink_blob(&repo, &digest).map_err(Refusal::disk("delete the blob"))?;
        Ok(reply::empty(StatusCode::ACCEPTED))
    })
    .await
}

pub(super) async fn begin_upload(
    inner: Arc<Inner>,
    repo: String,
    query: &HashMap<String, String>,
    body: Incoming,
) -> Answer {
    if let (Some(mount), Some(from)) = (query.get("mount"), query.get("from")) {
        let digest = parse_digest(mount)?;
        let from = route::repo(from)?;
        let (disk, to) = (inner.clone(), repo.clone());
        let mounted = digest.clone();
        if blocking(move || disk.disk.mount(&to, &mounted, &from).map_err(Refusal::disk("mount the blob")))
            .await?
        {
            return Ok(created(&format!("/v2/{repo}/blobs/{digest}"), &digest));
        }
    }
    let (opener, to) = (inner.clone(), repo.clone());
    let (id, upload) =
        blocking(move || opener.uploads.begin(&to).map_err(Refusal::disk("begin the upload"))).await?;
    if query.contains_key("digest") {
        drop(upload);
        return finish_upload(inner, repo, id, query, None, body).await;
    }
    Ok(upload_status(StatusCode::ACCEPTED, &repo, id, 0))
}

pub(super) async fn append_upload(
    inner: Arc<Inner>,
    repo: String,
    id: Uuid,
    range: Option<&str>,
    body: Incoming,
) -> Answer {
    let mut upload = open_upload(&inner, &repo, id).await?;
    in_order(range, upload.len().await?, &repo, id)?;
    let len = upload.append(body, inner.config.blob).await?;
    Ok(upload_status(StatusCode::ACCEPTED, &repo, id, len))
}

pub(super) async fn finish_upload(
    inner: Arc<Inner>,
    repo: String,
    id: Uuid,
    query: &HashMap<String, String>,
    range: Option<&str>,
    body: Incoming,
) -> Answer {
    let mut upload = open_upload(&inner, &repo, id).await?;
    let wanted = parse_digest(query.get("digest").map(String::as_str).unwrap_or_default())?;
    in_order(range, upload.len().await?, &repo, id)?;
    upload.append(body, inner.config.blob).await?;
    let digest = upload.digest().await?;
    upload.over = true;
    let (data, repo_of) = (upload.data(), upload.repo.clone());
    blocking(move || {
        let kept = if digest == wanted {
            inner.disk.keep_blob(&repo_of, &digest, &data).map_err(Refusal::disk("keep the blob"))
        } else {
            Err(Refusal::digest_invalid(format!("the upload has digest {digest}, not {wanted}")))
        };
        inner.uploads.end(id);
        kept.map(|()| created(&format!("/v2/{repo_of}/blobs/{digest}"), &digest))
    })
    .await
}

pub(super) async fn upload_progress(inner: Arc<Inner>, repo: String, id: Uuid) -> Answer {
    let len = open_upload(&inner, &repo, id).await?.len().await?;
    Ok(upload_status(StatusCode::NO_CONTENT, &repo, id, len))
}

pub(super) async fn cancel_upload(inner: Arc<Inner>, repo: String, id: Uuid) -> Answer {
    let mut upload = open_upload(&inner, &repo, id).await?;
    upload.over = true;
    blocking(move || {
        inner.uploads.end(id);
        Ok(reply::empty(StatusCode::NO_CONTENT))
    })
    .await
}

/// A chunk must begin where the last one ended.
fn in_order(range: Option<&str>, len: u64, repo: &str, id: Uuid) -> Result<(), Refusal> {
    let Some(range) = range else { return Ok(()) };
    let range = range.strip_prefix("bytes ").unwrap_or(range);
    let from = range.split_once('-').and_then(|(from, _)| from.trim().parse::<u64>().ok());
    if from == Some(len) {
        return Ok(());
    }
    let mut refusal = Refusal::new(
        StatusCode::RANGE_NOT_SATISFIABLE,
        "BLOB_UPLOAD_INVALID",
        format!("the next chunk must begin at byte {len}, not {range:?}"),
    );
    refusal.headers = vec![
        (header::LOCATION, format!("/v2/{repo}/blobs/uploads/{id}")),
        (header::RANGE, format!("0-{}", len.saturating_sub(1))),
    ];
    Err(refusal)
}

/// The upload, for this request alone.
async fn open_upload(inner: &Inner, repo: &str, id: Uuid) -> Result<OwnedMutexGuard<Upload>, Refusal> {
    let unknown = || {
        let message = format!("upload unknown to registry: {id}");
        Refusal::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", message)
    };
    let upload = inner.uploads.find(id, repo).ok_or_else(unknown)?.lock_owned().await;
    if upload.over { Err(unknown()) } else { Ok(upload) }
}

fn upload_status(status: StatusCode, repo: &str, id: Uuid, len: u64) -> Response<Body> {
    let response =
        reply::with(reply::empty(status), header::LOCATION, &format!("/v2/{repo}/blobs/uploads/{id}"));
    let response = reply::with(response, header::RANGE, &format!("0-{}", len.saturating_sub(1)));
    reply::with(response, UPLOAD_ID, &id.to_string())
}
