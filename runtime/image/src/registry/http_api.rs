//! The distribution API: which request does what.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use serde::Deserialize;
use uuid::Uuid;

use super::disk::Entry;
use super::reply::{self, Refusal};
use super::{Body, Incoming, Inner};
use crate::digest::Digest;
use crate::manifest::{DOCKER_LIST, DOCKER_MANIFEST, Descriptor, OCI_INDEX, OCI_MANIFEST};
use crate::reference::{check_repository, is_tag};

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

type Answer = Result<Response<Body>, Refusal>;

/// Where a path leads. The names in it are checked: none can leave its directory.
enum Route {
    Ping,
    Catalog,
    Tags { repo: String },
    Manifest { repo: String, target: Target },
    Blob { repo: String, digest: Digest },
    Uploads { repo: String },
    Upload { repo: String, id: Uuid },
    Referrers { repo: String, digest: Digest },
}

enum Target {
    Tag(String),
    Digest(Digest),
}

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
    let query = query(parts.uri.query().unwrap_or_default());
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
            let media_type = header(header::CONTENT_TYPE)
                .unwrap_or_default()
                .split(';')
                .next()
                .unwrap_or_default()
                .trim()
                .to_owned();
            let bytes = whole(body, inner.config.manifest).await?;
            put_manifest(inner, repo, target, media_type, bytes).await
        }
        (Route::Manifest { repo, target }, &Method::DELETE) => delete_manifest(inner, repo, target).await,
        (Route::Blob { repo, digest }, &Method::GET | &Method::HEAD) => {
            get_blob(inner, repo, digest, header(header::RANGE), head).await
        }
        (Route::Blob { repo, digest }, &Method::DELETE) => delete_blob(inner, repo, digest).await,
        (Route::Uploads { repo }, &Method::POST) => begin_upload(inner, repo, &query, body).await,
        (Route::Upload { repo, id }, &Method::GET) => {
            let upload = find_upload(&inner, &repo, id)?;
            let len = upload.lock().await.len().await?;
            Ok(upload_status(StatusCode::NO_CONTENT, &repo, id, len))
        }
        (Route::Upload { repo, id }, &Method::PATCH) => {
            append_upload(inner, repo, id, header(header::CONTENT_RANGE), body).await
        }
        (Route::Upload { repo, id }, &Method::PUT) => {
            finish_upload(inner, repo, id, &query, header(header::CONTENT_RANGE), body).await
        }
        (Route::Upload { repo, id }, &Method::DELETE) => {
            let upload = find_upload(&inner, &repo, id)?;
            let mut upload = upload.lock().await;
            upload.over = true;
            blocking(move || {
                inner.uploads.end(id);
                Ok(reply::empty(StatusCode::NO_CONTENT))
            })
            .await
        }
        (_, method) => Err(Refusal::unsupported(format!("method {method} does not apply here"))),
    }
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

// --- blobs ---

async fn get_blob(
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

async fn delete_blob(inner: Arc<Inner>, repo: String, digest: Digest) -> Answer {
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

async fn begin_upload(
    inner: Arc<Inner>,
    repo: String,
    query: &HashMap<String, String>,
    body: Incoming,
) -> Answer {
    if let (Some(mount), Some(from)) = (query.get("mount"), query.get("from")) {
        let digest = parse_digest(mount)?;
        check_repository(from).map_err(|what| {
            Refusal::new(StatusCode::BAD_REQUEST, "NAME_INVALID", format!("repository {from:?} {what}"))
        })?;
        let (disk, to, from) = (inner.clone(), repo.clone(), from.clone());
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

async fn append_upload(
    inner: Arc<Inner>,
    repo: String,
    id: Uuid,
    range: Option<&str>,
    body: Incoming,
) -> Answer {
    let upload = find_upload(&inner, &repo, id)?;
    let mut upload = upload.lock().await;
    if upload.over {
        return Err(upload_unknown(id));
    }
    in_order(range, upload.len().await?, &repo, id)?;
    let len = upload.append(body, inner.config.blob).await?;
    Ok(upload_status(StatusCode::ACCEPTED, &repo, id, len))
}

async fn finish_upload(
    inner: Arc<Inner>,
    repo: String,
    id: Uuid,
    query: &HashMap<String, String>,
    range: Option<&str>,
    body: Incoming,
) -> Answer {
    let upload = find_upload(&inner, &repo, id)?;
    let mut upload = upload.lock().await;
    if upload.over {
        return Err(upload_unknown(id));
    }
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

fn find_upload(
    inner: &Inner,
    repo: &str,
    id: Uuid,
) -> Result<Arc<tokio::sync::Mutex<super::uploads::Upload>>, Refusal> {
    inner.uploads.find(id, repo).ok_or_else(|| upload_unknown(id))
}

fn upload_unknown(id: Uuid) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", format!("upload unknown to registry: {id}"))
}

fn upload_status(status: StatusCode, repo: &str, id: Uuid, len: u64) -> Response<Body> {
    let response =
        reply::with(reply::empty(status), header::LOCATION, &format!("/v2/{repo}/blobs/uploads/{id}"));
    let response = reply::with(response, header::RANGE, &format!("0-{}", len.saturating_sub(1)));
    reply::with(response, UPLOAD_ID, &id.to_string())
}

fn created(location: &str, digest: &Digest) -> Response<Body> {
    let response = reply::with(reply::empty(StatusCode::CREATED), header::LOCATION, location);
    reply::with(response, CONTENT_DIGEST, digest.as_str())
}

// --- manifests ---

async fn get_manifest(inner: Arc<Inner>, repo: String, target: Target, head: bool) -> Answer {
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

async fn put_manifest(
    inner: Arc<Inner>,
    repo: String,
    target: Target,
    media_type: String,
    bytes: Bytes,
) -> Answer {
    let digest = Digest::of(&bytes);
    if let Target::Digest(wanted) = &target
        && *wanted != digest
    {
        return Err(Refusal::digest_invalid(format!("the manifest has digest {digest}, not {wanted}")));
    }
    let pushed: Pushed = serde_json::from_slice(&bytes).map_err(Refusal::manifest_invalid)?;
    let media_type = match (pushed.media_type, media_type.as_str()) {
        (Some(inside), outside) if outside.is_empty() || inside == outside => inside,
        (Some(inside), outside) => {
            return Err(Refusal::manifest_invalid(format!(
                "its mediaType is {inside:?}, the request's Content-Type {outside:?}"
            )));
        }
        (None, _) => media_type,
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

async fn delete_manifest(inner: Arc<Inner>, repo: String, target: Target) -> Answer {
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

/// Collects garbage when there may be some, out of the request's way.
fn collect_later(inner: Arc<Inner>) {
    drop(tokio::task::spawn_blocking(move || {
        if let Err(error) = inner.collect() {
            tracing::warn!(%error, "could not collect garbage");
        }
    }));
}

async fn referrers(inner: Arc<Inner>, repo: String, digest: Digest, wanted: Option<String>) -> Answer {
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

// --- lists ---

async fn catalog(inner: Arc<Inner>, query: &HashMap<String, String>) -> Answer {
    let repos =
        blocking(move || inner.disk.catalog().map_err(Refusal::disk("list the repositories"))).await?;
    let (page, link) = page(repos, query, "/v2/_catalog")?;
    Ok(linked(reply::json(StatusCode::OK, &serde_json::json!({ "repositories": page })), link))
}

async fn tags(inner: Arc<Inner>, repo: String, query: &HashMap<String, String>) -> Answer {
    let name = repo.clone();
    let tags = blocking(move || {
        let disk = || Refusal::disk("list the tags");
        let tags = inner.disk.tags(&repo).map_err(disk())?;
        if tags.is_empty() && inner.disk.entries(&repo).map_err(disk())?.is_empty() {
            return Err(Refusal::new(
                StatusCode::NOT_FOUND,
                "NAME_UNKNOWN",
                format!("repository name not known to registry: {repo}"),
            ));
        }
        Ok(tags)
    })
    .await?;
    let (page, link) = page(tags, query, &format!("/v2/{name}/tags/list"))?;
    Ok(linked(reply::json(StatusCode::OK, &serde_json::json!({ "name": name, "tags": page })), link))
}

/// One page of a sorted list, with the link to the next one.
fn page(
    all: Vec<String>,
    query: &HashMap<String, String>,
    path: &str,
) -> Result<(Vec<String>, Option<String>), Refusal> {
    let count = match query.get("n") {
        Some(n) => n.parse::<usize>().map_err(|_| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                "PAGINATION_NUMBER_INVALID",
                format!("n={n:?} is no number"),
            )
        })?,
        None => usize::MAX,
    };
    let after = query.get("last").map(String::as_str).unwrap_or_default();
    let mut rest = all.into_iter().filter(|name| name.as_str() > after);
    let page: Vec<String> = rest.by_ref().take(count).collect();
    let link = match (rest.next(), page.last()) {
        (Some(_), Some(last)) => Some(format!("<{path}?n={count}&last={last}>; rel=\"next\"")),
        _ => None,
    };
    Ok((page, link))
}

fn linked(response: Response<Body>, link: Option<String>) -> Response<Body> {
    match link {
        Some(link) => reply::with(response, header::LINK, &link),
        None => response,
    }
}

// --- reading requests ---

fn route(path: &str) -> Result<Route, Refusal> {
    let nowhere = || Refusal::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", format!("no such path: {path}"));
    let decoded = percent_decode(path).ok_or_else(nowhere)?;
    let rest = match decoded.strip_prefix("/v2").ok_or_else(nowhere)? {
        "" | "/" => return Ok(Route::Ping),
        "/_catalog" => return Ok(Route::Catalog),
        rest => rest.strip_prefix('/').ok_or_else(nowhere)?,
    };
    // A repository's name may hold any of these words, so the last one in the path counts.
    if let Some(name) = rest.strip_suffix("/tags/list") {
        return Ok(Route::Tags { repo: repo(name)? });
    }
    let parts: Vec<&str> = rest.rsplitn(4, '/').collect(); // last first
    let name_before = |n: usize| -> String {
        let all: Vec<&str> = rest.split('/').collect();
        all[..all.len().saturating_sub(n)].join("/")
    };
    match parts.as_slice() {
        ["", "uploads", "blobs", _] => Ok(Route::Uploads { repo: repo(&name_before(3))? }),
        [id, "uploads", "blobs", _] => {
            let repo = repo(&name_before(3))?;
            let id = Uuid::parse_str(id).map_err(|_| {
                Refusal::new(
                    StatusCode::NOT_FOUND,
                    "BLOB_UPLOAD_UNKNOWN",
                    format!("upload unknown to registry: {id}"),
                )
            })?;
            Ok(Route::Upload { repo, id })
        }
        ["uploads", "blobs", ..] => Ok(Route::Uploads { repo: repo(&name_before(2))? }),
        [digest, "blobs", ..] => {
            Ok(Route::Blob { repo: repo(&name_before(2))?, digest: parse_digest(digest)? })
        }
        [digest, "referrers", ..] => {
            Ok(Route::Referrers { repo: repo(&name_before(2))?, digest: parse_digest(digest)? })
        }
        [target, "manifests", ..] => {
            let repo = repo(&name_before(2))?;
            let target = if target.contains(':') {
                Target::Digest(parse_digest(target)?)
            } else if is_tag(target) {
                Target::Tag((*target).to_owned())
            } else {
                return Err(Refusal::new(
                    StatusCode::BAD_REQUEST,
                    "TAG_INVALID",
                    format!("tag {target:?} is malformed"),
                ));
            };
            Ok(Route::Manifest { repo, target })
        }
        _ => Err(nowhere()),
    }
}

fn repo(name: &str) -> Result<String, Refusal> {
    match check_repository(name) {
        Ok(()) => Ok(name.to_owned()),
        Err(what) => {
            Err(Refusal::new(StatusCode::BAD_REQUEST, "NAME_INVALID", format!("repository {name:?} {what}")))
        }
    }
}

fn parse_digest(text: &str) -> Result<Digest, Refusal> {
    text.parse().map_err(Refusal::digest_invalid)
}

fn query(text: &str) -> HashMap<String, String> {
    let pairs = text
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs
        .filter_map(|(key, value)| Some((percent_decode(key)?, percent_decode(&value.replace('+', " "))?)))
        .collect()
}

/// None if it is not UTF-8 in the end.
fn percent_decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
        let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(out).ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn said(path: &str) -> String {
        match route(path) {
            Ok(Route::Ping) => "ping".into(),
            Ok(Route::Catalog) => "catalog".into(),
            Ok(Route::Tags { repo }) => format!("tags {repo}"),
            Ok(Route::Manifest { repo, target: Target::Tag(tag) }) => format!("manifest {repo} {tag}"),
            Ok(Route::Manifest { repo, target: Target::Digest(_) }) => format!("manifest {repo} digest"),
            Ok(Route::Blob { repo, .. }) => format!("blob {repo}"),
            Ok(Route::Uploads { repo }) => format!("uploads {repo}"),
            Ok(Route::Upload { repo, .. }) => format!("upload {repo}"),
            Ok(Route::Referrers { repo, .. }) => format!("referrers {repo}"),
            Err(refusal) => refusal.code.into(),
        }
    }

    #[test]
    fn paths_lead_where_the_specification_says_and_nowhere_else() {
        let digest = Digest::of(b"").to_string();
        let encoded = digest.replace(':', "%3A");
        let id = Uuid::new_v4();
        for (path, expected) in [
            ("/v2", "ping"),
            ("/v2/", "ping"),
            ("/v2/_catalog", "catalog"),
            ("/v2/a/tags/list", "tags a"),
            ("/v2/a/b/c/tags/list", "tags a/b/c"),
            ("/v2/a/manifests/1.0", "manifest a 1.0"),
            ("/v2/a/b/manifests/latest", "manifest a/b latest"),
            (&format!("/v2/a/manifests/{digest}"), "manifest a digest"),
            (&format!("/v2/a/b/blobs/{encoded}"), "blob a/b"),
            (&format!("/v2/a/referrers/{digest}"), "referrers a"),
            ("/v2/a/blobs/uploads/", "uploads a"),
            ("/v2/a/blobs/uploads", "uploads a"),
            ("/v2/a/b/c/blobs/uploads/", "uploads a/b/c"),
            (&format!("/v2/a/b/blobs/uploads/{id}"), "upload a/b"),
            ("/v2/blobs/uploads/manifests/x", "manifest blobs/uploads x"),
            ("/v2/../etc/manifests/x", "NAME_INVALID"),
            ("/v2/a/%2e%2e/b/manifests/x", "NAME_INVALID"),
            ("/v2/a/_tags/manifests/x", "NAME_INVALID"),
            ("/v2/A/manifests/x", "NAME_INVALID"),
            ("/v2/a/manifests/..", "TAG_INVALID"),
            ("/v2/a/manifests/%2e%2e%2fx", "NAME_UNKNOWN"),
            ("/v2/a/blobs/../x", "NAME_UNKNOWN"),
            ("/v2/a/blobs/sha256:..", "DIGEST_INVALID"),
            ("/v2/a/blobs/uploads/..", "BLOB_UPLOAD_UNKNOWN"),
            ("/v2/manifests/x", "NAME_INVALID"),
            ("/v3/a", "NAME_UNKNOWN"),
            ("/v2/%ff", "NAME_UNKNOWN"),
        ] {
            assert_eq!(said(path), expected, "{path}");
        }
    }

    #[test]
    fn pages_follow_each_other_to_the_end() {
        let all: Vec<String> = ["a", "b", "c"].map(String::from).into();
        let mut query = HashMap::from([("n".to_owned(), "2".to_owned())]);
        let (first, link) = page(all.clone(), &query, "/p").unwrap();
        assert_eq!(
            (first, link.as_deref()),
            (vec!["a".into(), "b".into()], Some("</p?n=2&last=b>; rel=\"next\""))
        );
        query.insert("last".into(), "b".into());
        assert_eq!(page(all, &query, "/p").unwrap(), (vec!["c".into()], None));
    }
}
