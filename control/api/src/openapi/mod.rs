//! OpenAPI: what the served kinds look like, told to clients that ask (`kubectl explain`, apply, validation).
//!
//! Everything follows from the table of kinds and the merge schema: [`types`] describes the types, [`paths`] the
//! operations, for both versions of the specification ([`Dialect`]). [`Documents::make`] makes all documents at the
//! first request; they are shared from then on, each with its gzip form and the hash that is its ETag and, in version
//! 3, part of its URL. Version 2 goes out as JSON and as protobuf ([`gnostic`]), the only form client-go asks for.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::Body;
use crate::kinds::{Kind, Kinds};
use crate::represent::{json_response, media_types};
use crate::request::Query;
use crate::status::{Result, Status};

mod gnostic;
mod paths;
mod types;

/// The protobuf form of version 2 as clients ask for it; the constant of kube-openapi's handler.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// The same as it is answered: Go's clients refuse a media type with an `@`, which is why kube-openapi's handler says it so.
const V2_PROTOBUF_SAID: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
const JSON: &str = "application/json";
/// A URL with a hash names its content forever; a year is what HTTP calls so (RFC 9111).
const IMMUTABLE: &str = "public, max-age=31536000, immutable";

/// The two versions of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

/// One document in the forms it goes out in.
struct Document {
    type_: &'static str,
    plain: Bytes,
    gzip: Bytes,
    /// Hexadecimal SHA-256 of `plain`.
    hash: String,
}

/// All documents of a server.
pub struct Documents {
    index: Bytes,
    /// By what follows `/openapi/v3/`: `api/v1`, `apis/apps/v1`.
    v3: BTreeMap<String, Document>,
    v2: Document,
    v2_protobuf: Document,
}

impl Document {
    fn new(type_: &'static str, plain: Vec<u8>) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        let gzip = encoder.write_all(&plain).and_then(|()| encoder.finish());
        let gzip = gzip.expect("writing to memory does not fail").into();
        let digest = ring::digest::digest(&ring::digest::SHA256, &plain);
        let hash = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
        Self { type_, plain: plain.into(), gzip, hash }
    }

    /// Answers with the document, or 304 if the client has it; `forever` if the URL holds the hash.
    fn answer(&self, headers: &HeaderMap, forever: bool) -> Response<Body> {
        let tag = format!("\"{}\"", self.hash);
        let has = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
        let has =
            has.is_some_and(|tags| tags.split(',').any(|own| own.trim().trim_start_matches("W/") == tag));
        let mut response = match (has, wants_gzip(headers)) {
            (true, _) => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                response
            }
            (false, true) => {
                let mut response = Response::new(Body::from(self.gzip.clone()));
                response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                response
            }
            (false, false) => Response::new(Body::from(self.plain.clone())),
        };
        let mut set = |name: HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                response.headers_mut().insert(name, value);
            }
        };
        set(header::CONTENT_TYPE, self.type_);
        set(header::ETAG, &tag);
        set(header::VARY, "Accept-Encoding, Accept");
        set(header::CACHE_CONTROL, if forever { IMMUTABLE } else { "no-cache, private" });
        response
    }
}

/// Whether `Accept-Encoding` allows gzip.
fn wants_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let named = matches!(parts.next(), Some("gzip" | "*"));
        let quality = parts.find_map(|part| part.strip_prefix("q=")).and_then(|q| q.parse::<f32>().ok());
        named && quality.unwrap_or(1.0) > 0.0
    })
}

/// `api/v1`, `apis/apps/v1`.
fn group_version_path(kind: &Kind) -> String {
    match kind.group.is_empty() {
        true => format!("api/{}", kind.version),
        false => format!("apis/{}/{}", kind.group, kind.version),
    }
}

impl Documents {
    /// Makes all of them; takes long enough to be kept off the threads that serve.
    pub fn make(kinds: &Kinds, version: &str) -> Self {
        let mut groups: BTreeMap<String, Vec<&Kind>> = BTreeMap::new();
        for kind in kinds.rows() {
            groups.entry(group_version_path(kind)).or_default().push(kind);
        }
        let texts = types::descriptions();
        let info = json!({"title": "Kubernetes", "version": version});
        let v3: BTreeMap<String, Document> = groups
            .iter()
            .map(|(path, rows)| {
                let document = json!({
                    "openapi": "3.0.0", "info": info, "paths": paths::of(Dialect::V3, rows),
                    "components": {"schemas": types::of(Dialect::V3, rows, &texts)},
                });
                (path.clone(), Document::new(JSON, document.to_string().into_bytes()))
            })
            .collect();
        let index: BTreeMap<&String, Value> = v3
            .iter()
            .map(|(path, document)| {
                (path, json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={}", document.hash)}))
            })
            .collect();
        let all: Vec<&Kind> = groups.values().flatten().copied().collect();
        let v2 = json!({
            "swagger": "2.0", "info": info, "paths": paths::of(Dialect::V2, &all),
            "definitions": types::of(Dialect::V2, &all, &texts),
        });
        Self {
            index: json!({"paths": index}).to_string().into(),
            v3,
            v2_protobuf: Document::new(V2_PROTOBUF_SAID, gnostic::encode(&v2)),
            v2: Document::new(JSON, v2.to_string().into_bytes()),
        }
    }

    /// The answer to a request below `/openapi/`.
    pub fn answer(
        &self,
        method: &Method,
        path: &str,
        query: &Query,
        headers: &HeaderMap,
    ) -> Result<Response<Body>> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Err(Status::method_not_allowed());
        }
        let path = path.strip_suffix('/').unwrap_or(path);
        if path == "/openapi/v2" {
            let protobuf = match accepts(headers, &[JSON, V2_PROTOBUF])? {
                JSON => &self.v2,
                _ => &self.v2_protobuf,
            };
            return Ok(protobuf.answer(headers, false));
        }
        accepts(headers, &[JSON])?;
        if path == "/openapi/v3" {
            return Ok(json_response(200, self.index.clone()));
        }
        let name = path.strip_prefix("/openapi/v3/").ok_or_else(Status::no_route)?;
        let document = self.v3.get(name).ok_or_else(Status::no_route)?;
        match query.text("hash") {
            None => Ok(document.answer(headers, false)),
            Some(hash) if hash == document.hash => Ok(document.answer(headers, true)),
            // An old index; the content of that hash is gone.
            Some(_) => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
                let to = HeaderValue::from_str(&format!("{path}?hash={}", document.hash));
                response.headers_mut().insert(header::LOCATION, to.map_err(Status::internal)?);
                Ok(response)
            }
        }
    }
}

/// The best of `offered` that `Accept` names; the first if it names none.
fn accepts(headers: &HeaderMap, offered: &[&'static str]) -> Result<&'static str> {
    let accept: Vec<&str> =
        headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let accept = accept.join(",");
    if accept.trim().is_empty() {
        return Ok(offered[0]);
    }
    let named = media_types(&accept).into_iter().find_map(|media| match media.type_ {
        "*/*" | "application/*" => Some(offered[0]),
        // Its own name, and that which old clients use.
        V2_PROTOBUF_SAID | "application/com.github.googleapis.gnostic.OpenAPIv2+protobuf" => {
            offered.contains(&V2_PROTOBUF).then_some(V2_PROTOBUF)
        }
        type_ => offered.iter().copied().find(|own| *own == type_),
    });
    named.ok_or_else(|| Status::not_acceptable(&offered.join(", ")))
}

/// The documents, made by the first who asks.
pub type Shared = tokio::sync::OnceCell<Arc<Documents>>;
