//! Where a path leads.

use http::StatusCode;
use percent_encoding::percent_decode_str;
use uuid::Uuid;

use super::super::reply::Refusal;
use crate::digest::Digest;
use crate::reference::{check_repository, is_tag};

/// Where a path leads. The names in it are checked: none can leave its directory.
pub(super) enum Route {
    Ping,
    Catalog,
    Tags { repo: String },
    Manifest { repo: String, target: Target },
    Blob { repo: String, digest: Digest },
    Uploads { repo: String },
    Upload { repo: String, id: Uuid },
    Referrers { repo: String, digest: Digest },
}

pub(super) enum Target {
    Tag(String),
    Digest(Digest),
}

pub(super) fn route(path: &str) -> Result<Route, Refusal> {
    let nowhere = || Refusal::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", format!("no such path: {path}"));
    let decoded = percent_decode_str(path).decode_utf8().map_err(|_| nowhere())?;
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

pub(super) fn repo(name: &str) -> Result<String, Refusal> {
    match check_repository(name) {
        Ok(()) => Ok(name.to_owned()),
        Err(what) => {
            Err(Refusal::new(StatusCode::BAD_REQUEST, "NAME_INVALID", format!("repository {name:?} {what}")))
        }
    }
}

pub(super) fn parse_digest(text: &str) -> Result<Digest, Refusal> {
    text.parse().map_err(Refusal::digest_invalid)
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
}
