//! Manifests, tags that name them, and what refers to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderName};
use http_body_util::BodyExt as _;
use serde::Deserialize;

use super::super::disk::Entry;
use super::super::reply::{self, Refusal};
use super::super::{Incoming, Inner};
use super::route::Target;
use super::{Answer, CONTENT_DIGEST, blocking, created};
use crate::digest::Digest;
use crate::manifest::{DOCKER_LIST, DOCKER_MANIFEST, Descriptor, OCI_INDEX, OCI_MANIFEST};

const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

pub(super) async fn get_manifest(inner: Arc<Inner>, repo: String, target: Target, head: bool) -> Answer {
    blocking(move || {
        let digest = resolve(&inner, &repo, &target)?;
        let unknown = || Refusal::manifest_unknown(&digest);
        let entry = inner.disk.entry(&repo, &digest).ok_or_else(unknown)?;
        let response = if head {
            let mut response = reply::empty(StatusCode::OK);
            response.headers_mut().insert(header::CONTENT_LENGTH, entry.size.into());
            response
        } else {
            let bytes = std::fs::read(inner.disk.blob(&digest)).map_err(|_| unknown())?;
            reply::bytes(StatusCode::OK, bytes.into())
        };
        let response = reply::with(response, header::CONTENT_TYPE, &entry.media_type);
        Ok(reply::with(response, CONTENT_DIGEST, digest.as_str()))
    })
    .await
}

pub(super) async fn put_manifest(
    inner: Arc<Inner>,
    repo: String,
    target: Target,
    media_type: &str,
    body: Incoming,
) -> Answer {
    let bytes = whole(body, inner.config.manifest).await?;
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    let digest = Digest::of(&bytes);
    if let Target::Digest(wanted) = &target
        && *wanted != digest
    {
        return Err(Refusal::digest_invalid(format!("the manifest has digest {digest}, not {wanted}")));
    }
    let pushed: Pushed = serde_json::from_slice(&bytes).map_err(Refusal::manifest_invalid)?;
    let media_type = match (pushed.media_type, media_type) {
        (Some(inside), outside) if outside.is_empty() || inside == outside => inside,
        (Some(inside), outside) => {
            return Err(Refusal::manifest_invalid(format!(
                "its mediaType is {inside:?}, the request's Content-Type {outside:?}"
            )));
        }
        (None, _) => media_type.to_owned(),
    };
    let is_index = match media_type.as_str() {
        OCI_INDEX | DOCKER_LIST => true,
        OCI_MANIFEST | DOCKER_MANIFEST => false,
        other => return Err(Refusal::manifest_invalid(format!("media type {other:?} is not supported"))),
    };
    let (children, blobs, artifact_type) = match (is_index, pushed.manifests, pushed.config) {
        (true, Some(manifests), None) => {
            (manifests.into_iter().map(|m| m.digest).collect(), Vec::new(), pushed.artifact_type)
        }
        (false, None, Some(config)) => {
            let layers = pushed
                .layers
                .unwrap_or_default()
                .into_iter()
                .filter(|layer| layer.urls.as_ref().is_none_or(Vec::is_empty));
            let blobs: Vec<Digest> =
                std::iter::once(config.digest).chain(layers.map(|layer| layer.digest)).collect();
            (Vec::new(), blobs, pushed.artifact_type.or(Some(config.media_type)))
        }
        _ => return Err(Refusal::manifest_invalid(format!("it lacks the fields of {media_type}"))),
    };
    let subject = pushed.subject.map(|subject| subject.digest);
    let entry = Entry {
        media_type,
        size: bytes.len() as u64,
        artifact_type,
        annotations: pushed.annotations.unwrap_or_default(),
        subject: subject.clone(),
        orphaned: None,
        children,
        blobs,
    };
    let location = match &target {
        Target::Tag(tag) => format!("/v2/{repo}/manifests/{tag}"),
        Target::Digest(digest) => format!("/v2/{repo}/manifests/{digest}"),
    };
    let answer = created(&location, &digest);
    let overwrote = {
        let inner = inner.clone();
        blocking(move || store_manifest(&inner, &repo, &target, &digest, &entry, &bytes)).await?
    };
    if overwrote {
        collect_later(inner);
    }
    Ok(match subject {
        Some(subject) => reply::with(answer, SUBJECT, subject.as_str()),
        None => answer,
    })
}

pub(super) async fn delete_manifest(inner: Arc<Inner>, repo: String, target: Target) -> Answer {
    let deleter = inner.clone();
    let answer = blocking(move || {
        let disk = || Refusal::disk("delete the manifest");
        let inner = deleter;
        let _changing = inner.disk.changing();
        let digest = resolve(&inner, &repo, &target)?;
        if let Target::Tag(tag) = &target {
            inner.disk.remove_tag(&repo, tag).map_err(disk())?;
            inner.orphan(&repo, &digest).map_err(disk())?;
            return Ok(reply::empty(StatusCode::ACCEPTED));
        }
        let entry = inner.disk.entry(&repo, &digest).ok_or_else(|| Refusal::manifest_unknown(&digest))?;
        for tag in inner.disk.tags(&repo).map_err(disk())? {
            if inner.disk.tag(&repo, &tag).as_ref() == Some(&digest) {
                inner.disk.remove_tag(&repo, &tag).map_err(disk())?;
            }
        }
        inner.disk.remove_entry(&repo, &digest).map_err(disk())?;
        for child in entry.children {
            inner.orphan(&repo, &child).map_err(disk())?;
        }
        Ok(reply::empty(StatusCode::ACCEPTED))
    })
    .await?;
    collect_later(inner);
    Ok(answer)
}

pub(super) async fn referrers(
    inner: Arc<Inner>,
    repo: String,
    digest: Digest,
    wanted: Option<String>,
) -> Answer {
    blocking(move || {
        let entries = inner.disk.entries(&repo).map_err(Refusal::disk("list the manifests"))?;
        let of_subject = entries.into_iter().filter(|(_, entry)| entry.subject.as_ref() == Some(&digest));
        let of_type = of_subject.filter(|(_, entry)| wanted.is_none() || entry.artifact_type == wanted);
        let manifests: Vec<serde_json::Value> = of_type
            .map(|(digest, entry)| {
                let mut item = serde_json::json!({ "mediaType": entry.media_type, "digest": digest.as_str(), "size": entry.size });
                if let Some(artifact_type) = entry.artifact_type {
                    item["artifactType"] = artifact_type.into();
                }
                if !entry.annotations.is_empty() {
                    item["annotations"] = serde_json::json!(entry.annotations);
                }
                item
            })
            .collect();
        let index = serde_json::json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
        let response = reply::with(reply::json(StatusCode::OK, &index), header::CONTENT_TYPE, OCI_INDEX);
        Ok(match wanted {
            Some(_) => reply::with(response, HeaderName::from_static("oci-filters-applied"), "artifactType"),
            None => response,
        })
    })
    .await
}

/// A manifest's bytes.
async fn whole(mut body: Incoming, limit: u64) -> Result<Bytes, Refusal> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| Refusal::manifest_invalid(format!("the request broke off: {error}")))?;
        let Ok(chunk) = frame.into_data() else { continue };
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Err(Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "MANIFEST_INVALID",
                format!("a manifest may have {limit} bytes"),
            ));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}

fn resolve(inner: &Inner, repo: &str, target: &Target) -> Result<Digest, Refusal> {
    match target {
        Target::Digest(digest) => Ok(digest.clone()),
        Target::Tag(tag) => {
            inner.disk.tag(repo, tag).ok_or_else(|| Refusal::manifest_unknown(format!("{repo}:{tag}")))
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pushed {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Foreign>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    subject: Option<Descriptor>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Foreign {
    digest: Digest,
    /// A layer with these lives elsewhere.
    #[serde(default)]
    urls: Option<Vec<String>>,
}

/// Whether the tag named another manifest before.
fn store_manifest(
    inner: &Inner,
    repo: &str,
    target: &Target,
    digest: &Digest,
    entry: &Entry,
    bytes: &[u8],
) -> Result<bool, Refusal> {
    let disk = || Refusal::disk("keep the manifest");
    let _changing = inner.disk.changing();
    let lacking = |what: &Digest| {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            "MANIFEST_BLOB_UNKNOWN",
            format!("the manifest refers to {what}, which the repository does not have"),
        )
    };
    if let Some(missing) =
        entry.blobs.iter().find(|digest| !inner.disk.has_blob(repo, digest, inner.config.grace))
    {
        return Err(lacking(missing));
    }
    if let Some(missing) = entry.children.iter().find(|digest| inner.disk.entry(repo, digest).is_none()) {
        return Err(lacking(missing));
    }
    inner.disk.put_content(digest, bytes).map_err(disk())?;
    inner.disk.put_entry(repo, digest, entry).map_err(disk())?;
    let Target::Tag(tag) = target else { return Ok(false) };
    let before = inner.disk.tag(repo, tag);
    inner.disk.put_tag(repo, tag, digest).map_err(disk())?;
    match before.filter(|before| before != digest) {
        Some(before) => inner.orphan(repo, &before).map(|()| true).map_err(disk()),
        None => Ok(false),
    }
}

/// Collects garbage when there may be some, out of the request's way.
fn collect_later(inner: Arc<Inner>) {
    drop(tokio::task::spawn_blocking(move || {
        if let Err(error) = inner.collect() {
            tracing::warn!(%error, "could not collect garbage");
        }
    }));
}
