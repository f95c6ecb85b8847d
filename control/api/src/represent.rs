//! The forms in which objects go out: JSON, YAML and protobuf, as they are, as a `Table`, or their metadata alone.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use wharf_store::Revision;

use crate::Body;
use crate::encode;
use crate::kinds::{Column, Kind, Priority, columns};
use crate::protobuf;
use crate::status::{Result, Status};
use crate::storage::Stored;

/// What may be asked for with `Accept`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Json,
    Yaml,
    Protobuf,
    /// In JSON: Kubernetes has no other form of it.
    Table(Include),
    Metadata(Wire),
}

/// How metadata alone is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    Json,
    Protobuf,
}

/// What is to go out, and so which forms there are besides JSON and YAML.
#[derive(Clone, Copy)]
pub enum Offer<'a> {
    /// A stored object or more: `Table`s and metadata too, and protobuf if the kind has it.
    Objects(&'a Kind),
    /// An object that is not stored, of a kind that Kubernetes has: protobuf too.
    Answer,
}

impl Offer<'_> {
    /// Asked only where it matters: the answer reads the table of messages.
    fn protobuf(self) -> bool {
        match self {
            Self::Objects(kind) => protobuf::has(&kind.api_version(), &kind.kind),
            Self::Answer => true,
        }
    }

    fn accepted(self) -> &'static str {
        if self.protobuf() { ACCEPTED_PROTOBUF } else { ACCEPTED }
    }
}

/// What each row of a `Table` carries of its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    None,
    Metadata,
    Object,
}

/// The media types of bodies and answers; in Kubernetes' order.
pub const ACCEPTED: &str = "application/json, application/yaml";
pub const ACCEPTED_PROTOBUF: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
/// Lists are sent in pieces of about this size; larger pieces gain nothing on a socket.
const CHUNK: usize = 64 << 10;

/// One entry of an `Accept` header.
pub struct MediaType<'a> {
    pub type_: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> MediaType<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        self.parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }
}

/// The entries of an `Accept` header, best first.
pub fn media_types(accept: &str) -> Vec<MediaType<'_>> {
    let mut types: Vec<(f32, MediaType<'_>)> = accept
        .split(',')
        .map(|entry| {
            let mut parts = entry.split(';').map(str::trim);
            let type_ = parts.next().unwrap_or_default();
            let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
            let media = MediaType { type_, parameters };
            (media.get("q").and_then(|q| q.parse().ok()).unwrap_or(1.0), media)
        })
        .filter(|(q, _)| *q > 0.0)
        .collect();
    types.sort_by(|a, b| b.0.total_cmp(&a.0));
    types.into_iter().map(|(_, media)| media).collect()
}

/// The first form that is both asked for and there.
///
/// # Errors
/// 406 if none is.
pub fn negotiate(headers: &HeaderMap, include: Option<&str>, offer: Offer<'_>) -> Result<Form> {
    let include = match include.unwrap_or_default() {
        "" | "Metadata" => Include::Metadata,
        "None" => Include::None,
        "Object" => Include::Object,
        other => {
            return Err(Status::bad_request(format!(
                "includeObject: Invalid value: {other:?}: must be 'Metadata', 'Object', 'None', or empty"
            )));
        }
    };
    let accepts: Vec<&str> =
        headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let accept = accepts.join(",");
    if accept.trim().is_empty() {
        return Ok(Form::Json);
    }
    for media in media_types(&accept) {
        let plain = match media.type_ {
            "application/json" | "application/*" | "*/*" => Form::Json,
            "application/yaml" => Form::Yaml,
            protobuf::MEDIA_TYPE => Form::Protobuf,
            _ => continue,
        };
        match (media.get("as"), plain) {
            (None, Form::Protobuf) if !offer.protobuf() => {}
            (None, plain) => return Ok(plain),
            (Some(_), Form::Yaml) => {}
            (Some(_), _) if matches!(offer, Offer::Answer) || media.get("g") != Some("meta.k8s.io") => {}
            (Some("Table"), Form::Json) if matches!(media.get("v"), Some("v1" | "v1beta1")) => {
                return Ok(Form::Table(include));
            }
            (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), plain)
                if media.get("v") == Some("v1") =>
            {
                let wire = if plain == Form::Protobuf { Wire::Protobuf } else { Wire::Json };
                return Ok(Form::Metadata(wire));
            }
            (Some(_), _) => {}
        }
    }
    Err(Status::not_acceptable(offer.accepted()))
}

/// Whether `Accept` asks first for aggregated discovery; which version of it.
pub fn wants_aggregated_discovery(headers: &HeaderMap) -> Option<&'static str> {
    let accept = headers.get(header::ACCEPT)?.to_str().ok()?;
    for media in media_types(accept) {
        match (media.type_, media.get("as"), media.get("v")) {
            ("application/json", Some("APIGroupDiscoveryList"), Some("v2")) => return Some("v2"),
            ("application/json", Some("APIGroupDiscoveryList"), Some("v2beta1")) => return Some("v2beta1"),
            ("application/json" | protobuf::MEDIA_TYPE | "*/*", None, _) => return None,
            _ => {}
        }
    }
    None
}

pub fn json_response(code: u16, body: impl Into<Body>) -> Response<Body> {
    typed_response(code, "application/json", body)
}

pub fn typed_response(code: u16, type_: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(type_));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

fn yaml_response(code: u16, value: &impl serde::Serialize) -> Result<Response<Body>> {
    let text = serde_yaml::to_string(value).map_err(Status::internal)?;
    Ok(typed_response(code, "application/yaml", text))
}

/// An object that is not stored, whole: a `Status`, a review.
pub fn value(form: Form, code: u16, value: &Value) -> Result<Response<Body>> {
    match form {
        Form::Yaml => yaml_response(code, value),
        Form::Protobuf | Form::Metadata(Wire::Protobuf) => match protobuf::encode(value) {
            Some(bytes) => Ok(typed_response(code, protobuf::MEDIA_TYPE, bytes)),
            None => Ok(json_response(code, value.to_string())),
        },
        _ => Ok(json_response(code, value.to_string())),
    }
}

/// A `Status` with the headers that go with it.
pub fn status(form: Form, status: &Status) -> Response<Body> {
    // JSON always works.
    let mut response = value(form, status.code(), &status.to_json())
        .unwrap_or_else(|_| json_response(status.code(), status.to_json().to_string()));
    response.headers_mut().extend(status.headers());
    response
}

/// One object, as it is stored.
pub fn object(
    form: Form,
    kind: &Kind,
    code: u16,
    stored: &[u8],
    revision: Revision,
) -> Result<Response<Body>> {
    match form {
        Form::Json => Ok(json_response(code, encode::spliced(stored, revision))),
        Form::Yaml => yaml_response(code, &encode::decoded(stored, revision).map_err(Status::internal)?),
        Form::Protobuf | Form::Metadata(Wire::Protobuf) => {
            Ok(typed_response(code, protobuf::MEDIA_TYPE, envelope(form, kind, stored, revision)))
        }
        Form::Metadata(Wire::Json) => Ok(json_response(code, metadata_only(stored, revision))),
        Form::Table(include) => {
            let mut out = BytesMut::new();
            table_open(&mut out, kind, &json!({"resourceVersion": revision.to_string()}), true);
            row(&mut out, kind, stored, revision, include);
            out.put_slice(b"]}");
            Ok(json_response(code, out.freeze()))
        }
    }
}

/// A stored object in protobuf, whole or its metadata.
fn envelope(form: Form, kind: &Kind, stored: &[u8], revision: Revision) -> Bytes {
    // Bytes that are no JSON never get into the store through this server.
    let object = encode::decoded(stored, revision).unwrap_or_default();
    match form {
        Form::Metadata(_) => protobuf::encode_metadata(&object),
        _ => protobuf::encode_as(&kind.api_version(), &kind.kind, &object)
            .expect("the form is offered only where the kind has it"),
    }
}

/// `PartialObjectMetadata` of a stored object.
pub fn metadata_only(stored: &[u8], revision: Revision) -> Bytes {
    #[derive(Deserialize)]
    struct Metadata<'a> {
        #[serde(borrow)]
        metadata: &'a RawValue,
    }
    let metadata =
        serde_json::from_slice::<Metadata<'_>>(stored).map_or("{}", |object| object.metadata.get());
    let whole =
        format!(r#"{{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{metadata}}}"#);
    encode::spliced(whole.as_bytes(), revision)
}

fn shown_columns(kind: &Kind) -> &'static [Column] {
    if kind.columns.is_empty() { columns::DEFAULT } else { kind.columns }
}

/// Everything of a `Table` before its first row.
fn table_open(out: &mut BytesMut, kind: &Kind, metadata: &Value, definitions: bool) {
    let columns: Vec<Value> = shown_columns(kind)
        .iter()
        .filter(|_| definitions)
        .map(|column| {
            json!({
                "name": column.name, "type": column.type_, "format": column.format, "description": "",
                "priority": i32::from(column.priority == Priority::Wide),
            })
        })
        .collect();
    let columns = Value::from(columns);
    out.put_slice(
        format!(
            r#"{{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{metadata},"columnDefinitions":{columns},"rows":["#
        )
        .as_bytes(),
    );
}

fn row(out: &mut BytesMut, kind: &Kind, stored: &[u8], revision: Revision, include: Include) {
    let decoded: Value = serde_json::from_slice(stored).unwrap_or_default();
    let now = jiff::Timestamp::now();
    let cells: Vec<Value> = shown_columns(kind).iter().map(|column| (column.cell)(&decoded, now)).collect();
    out.put_slice(br#"{"cells":"#);
    out.put_slice(Value::from(cells).to_string().as_bytes());
    match include {
        Include::None => {}
        Include::Metadata => {
            out.put_slice(br#","object":"#);
            out.put_slice(&metadata_only(stored, revision));
        }
        Include::Object => {
            out.put_slice(br#","object":"#);
            encode::splice_into(out, stored, revision);
        }
    }
    out.put_u8(b'}');
}

/// A list's own metadata.
pub struct ListMeta {
    pub revision: Revision,
    pub continue_: Option<String>,
    pub remaining: Option<usize>,
}

impl ListMeta {
    fn to_json(&self) -> Value {
        let mut metadata = json!({});
        if self.revision != encode::UNSTORED {
            metadata["resourceVersion"] = json!(self.revision.to_string());
        }
        if let Some(token) = &self.continue_ {
            metadata["continue"] = json!(token);
        }
        if let Some(remaining) = self.remaining {
            metadata["remainingItemCount"] = json!(remaining);
        }
        metadata
    }
}

/// A list of stored objects; a long one is encoded while it is sent, or off the threads that serve.
pub async fn list(
    form: Form,
    kind: &Arc<Kind>,
    meta: &ListMeta,
    items: Vec<Stored>,
) -> Result<Response<Body>> {
    let metadata = meta.to_json();
    if let Form::Protobuf | Form::Metadata(Wire::Protobuf) = form {
        // It begins with its length, so all of it has to be there first.
        let (api_version, name) = match form {
            Form::Metadata(_) => ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadataList".to_owned()),
            _ => (kind.api_version(), format!("{}List", kind.kind)),
        };
        let encode = move || {
            let items =
                items.iter().map(|item| encode::decoded(&item.value, item.revision).unwrap_or_default());
            protobuf::encode_list(&api_version, &name, &metadata, items)
        };
        let pieces = tokio::task::spawn_blocking(encode).await.map_err(Status::internal)?;
        let pieces = pieces.ok_or_else(|| Status::internal("a list of this kind has no protobuf form"))?;
        let pieces = pieces.into_iter().map(Ok::<_, std::convert::Infallible>);
        let body = Body::from_stream(futures::stream::iter(pieces));
        return Ok(typed_response(200, protobuf::MEDIA_TYPE, body));
    }
    let mut head = BytesMut::new();
    match form {
        Form::Table(_) => table_open(&mut head, kind, &metadata, true),
        Form::Metadata(_) => head.put_slice(
            format!(r#"{{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":{metadata},"items":["#)
                .as_bytes(),
        ),
        Form::Json | Form::Yaml | Form::Protobuf => {
            let (name, version) = (&kind.kind, Value::from(kind.api_version()));
            head.put_slice(
                format!(r#"{{"kind":"{name}List","apiVersion":{version},"metadata":{metadata},"items":["#).as_bytes(),
            );
        }
    }
    let mut pieces =
        Pieces { form, kind: kind.clone(), items: items.into_iter(), first: true, done: false, out: head };
    if form == Form::Yaml {
        let whole: BytesMut = pieces.flatten().collect();
        let value: Value = serde_json::from_slice(&whole).map_err(Status::internal)?;
        return yaml_response(200, &value);
    }
    let first = pieces.next().unwrap_or_default();
    if pieces.done {
        return Ok(json_response(200, first));
    }
    let all = std::iter::once(first).chain(pieces).map(Ok::<_, std::convert::Infallible>);
    Ok(json_response(200, Body::from_stream(futures::stream::iter(all))))
}

/// A list's bytes, piece by piece.
struct Pieces {
    form: Form,
    kind: Arc<Kind>,
    items: std::vec::IntoIter<Stored>,
    first: bool,
    done: bool,
    out: BytesMut,
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        while self.out.len() < CHUNK {
            let Some(item) = self.items.next() else {
                self.out.put_slice(b"]}\n");
                self.done = true;
                break;
            };
            if !std::mem::take(&mut self.first) {
                self.out.put_u8(b',');
            }
            match self.form {
                Form::Json | Form::Yaml | Form::Protobuf => {
                    encode::splice_into(&mut self.out, &item.value, item.revision);
                }
                Form::Metadata(_) => self.out.put_slice(&metadata_only(&item.value, item.revision)),
                Form::Table(include) => row(&mut self.out, &self.kind, &item.value, item.revision, include),
            }
        }
        Some(self.out.split().freeze())
    }
}

/// The media type of a watch.
pub fn watch_type(form: Form) -> &'static str {
    match form {
        Form::Protobuf | Form::Metadata(Wire::Protobuf) => protobuf::WATCH_MEDIA_TYPE,
        _ => "application/json",
    }
}

/// One event of a watch that is about no stored object: a bookmark, an error.
pub fn plain_event(form: Form, type_: &str, object: &Value) -> Bytes {
    let envelope = match form {
        Form::Protobuf | Form::Metadata(Wire::Protobuf) => protobuf::encode(object),
        _ => None,
    };
    match envelope {
        Some(envelope) => protobuf::frame(type_, &envelope),
        None => format!("{}\n", json!({"type": type_, "object": object})).into(),
    }
}

/// One event of a watch: a line `{"type":…,"object":…}`, or a frame in protobuf.
pub fn event(form: Form, kind: &Kind, type_: &str, stored: &[u8], revision: Revision, first: bool) -> Bytes {
    if let Form::Protobuf | Form::Metadata(Wire::Protobuf) = form {
        return protobuf::frame(type_, &envelope(form, kind, stored, revision));
    }
    let mut out = BytesMut::with_capacity(stored.len() + 96);
    out.put_slice(br#"{"type":""#);
    out.put_slice(type_.as_bytes());
    out.put_slice(br#"","object":"#);
    match form {
        Form::Table(include) => {
            table_open(&mut out, kind, &json!({"resourceVersion": revision.to_string()}), first);
            row(&mut out, kind, stored, revision, include);
            out.put_slice(b"]}");
        }
        Form::Metadata(_) => out.put_slice(&metadata_only(stored, revision)),
        _ => encode::splice_into(&mut out, stored, revision),
    }
    out.put_slice(b"}\n");
    out.freeze()
}
