//! Kubernetes' objects in protobuf, the form that Go's typed clients prefer.
//!
//! The server works on JSON values; this module turns a message into one as Go's JSON would write the object, and a
//! value into the bytes that Go would write. Which field has which number says `control/api/schema/protobuf.txt`
//! (made from Kubernetes' own types by the Go program beside it), read at the first message.
//!
//! Around every object stands an envelope: `k8s\0`, then a `runtime.Unknown` with the kind and the object's
//! message. A watch sends envelopes in `WatchEvent`s, each behind its length.
//!
//! All of it is pure, and holds against any bytes: no message nests deeper than the table's types do, work and memory
//! are linear in the length, and what is read is no larger than the largest JSON body.

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Value, json};

use crate::object::text;
use table::{Message, Table};
use wire::{Fields, Payload, Writer};

mod decode;
mod encode;
mod table;
#[cfg(test)]
mod tests;
mod wire;

/// The media type of the form.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// The media type of a watch's frames.
pub const WATCH_MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf;stream=watch";
/// What every envelope begins with; runtime/serializer/protobuf of k8s.io/apimachinery.
const PREFIX: &[u8] = b"k8s\0";
/// Lists are handed on in pieces of about this size.
const CHUNK: usize = 64 << 10;

/// The fields of `runtime.Unknown`.
const TYPE_META: u32 = 1;
const RAW: u32 = 2;
const CONTENT_ENCODING: u32 = 3;
const CONTENT_TYPE: u32 = 4;
/// The fields of its `TypeMeta`.
const API_VERSION: u32 = 1;
const KIND: u32 = 2;

/// Why bytes are no object; in the words of Go's decoders.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("empty data")]
    Empty,
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Prefix,
    #[error("unexpected EOF")]
    Cut,
    #[error("proto: integer overflow")]
    Overflow,
    #[error("proto: illegal tag {0}")]
    Tag(u64),
    #[error("proto: unexpected end of group")]
    Group,
    #[error("proto: illegal wireType {0}")]
    IllegalType(u8),
    #[error("proto: wrong wireType for field {0}")]
    WireType(&'static str),
    #[error("field {0} holds no {1}")]
    Value(&'static str, &'static str),
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    Unregistered { kind: String, api_version: String },
    #[error("content encoding {0:?} is not supported")]
    Encoding(String),
    #[error("the object is larger than {} bytes of JSON", crate::schema::MAX_BYTES)]
    TooLarge,
}

/// Whether there is a protobuf form of a kind; some have none in Kubernetes, such as `Table`.
pub fn has(api_version: &str, kind: &str) -> bool {
    Table::get().kind(api_version, kind).is_some()
}

/// The object in an envelope, with its `apiVersion` and `kind`. Where the envelope does not tell them they are the
/// given ones.
///
/// # Errors
/// See [`Error`]. No input makes it panic.
pub fn decode(body: &[u8], api_version: &str, kind: &str) -> Result<Value, Error> {
    if body.is_empty() {
        return Err(Error::Empty);
    }
    let unknown = body.strip_prefix(PREFIX).ok_or(Error::Prefix)?;
    let (mut type_meta, mut raw): (&[u8], &[u8]) = (&[], &[]);
    for field in Fields::of(unknown) {
        match field? {
            (TYPE_META, Payload::Bytes(bytes)) => type_meta = bytes,
            (RAW, Payload::Bytes(bytes)) => raw = bytes,
            (CONTENT_ENCODING, Payload::Bytes(name)) if !name.is_empty() => {
                return Err(Error::Encoding(String::from_utf8_lossy(name).into_owned()));
            }
            _ => {}
        }
    }
    let (mut api_version, mut kind) = (api_version.to_owned(), kind.to_owned());
    for field in Fields::of(type_meta) {
        match field? {
            (API_VERSION, Payload::Bytes(name)) if !name.is_empty() => {
                api_version = String::from_utf8_lossy(name).into_owned();
            }
            (KIND, Payload::Bytes(name)) if !name.is_empty() => {
                kind = String::from_utf8_lossy(name).into_owned();
            }
            _ => {}
        }
    }
    let Some(message) = Table::get().kind(&api_version, &kind) else {
        return Err(Error::Unregistered { kind, api_version });
    };
    let mut object = decode::message(raw, message)?;
    object.insert("apiVersion".to_owned(), api_version.into());
    object.insert("kind".to_owned(), kind.into());
    Ok(Value::Object(object))
}

/// The envelope of an object of the kind that it names; `None` if its kind has no protobuf form.
pub fn encode(object: &Value) -> Option<Bytes> {
    encode_as(text(object, "/apiVersion"), text(object, "/kind"), object)
}

/// The envelope of an object of this kind, whatever the object itself says it is.
pub fn encode_as(api_version: &str, kind: &str, object: &Value) -> Option<Bytes> {
    Some(envelope(api_version, kind, Table::get().kind(api_version, kind)?, object))
}

/// The envelope of an object's metadata alone.
pub fn encode_metadata(object: &Value) -> Bytes {
    let (api_version, kind) = ("meta.k8s.io/v1", "PartialObjectMetadata");
    let message = Table::get().kind(api_version, kind).expect("the table has the kinds of every group");
    envelope(api_version, kind, message, object)
}

fn envelope(api_version: &str, kind: &str, message: &Message, object: &Value) -> Bytes {
    let mut out = Writer::default();
    envelope_end(&mut out);
    out.nested(RAW, |out| encode::message(out, message, object));
    envelope_start(&mut out, api_version, kind);
    out.finish()
}

/// What follows the object's message.
fn envelope_end(out: &mut Writer) {
    out.bytes(CONTENT_TYPE, b"");
    out.bytes(CONTENT_ENCODING, b"");
}

/// What stands before it.
fn envelope_start(out: &mut Writer, api_version: &str, kind: &str) {
    out.nested(TYPE_META, |out| {
        out.bytes(KIND, kind.as_bytes());
        out.bytes(API_VERSION, api_version.as_bytes());
    });
    out.raw(PREFIX);
}

/// A list's envelope in pieces, from its kind (`PodList`), its own metadata and its items; `None` if the kind has no
/// protobuf form. Only one item at a time is held as a value.
pub fn encode_list(
    api_version: &str,
    kind: &str,
    metadata: &Value,
    items: impl Iterator<Item = Value>,
) -> Option<Vec<Bytes>> {
    let list = Table::get().kind(api_version, kind)?;
    let (number, item) = list.items()?;
    let mut head = Writer::default();
    encode::message(&mut head, list, &json!({"metadata": metadata}));
    // The list's own fields have lower numbers than its items.
    let mut pieces = vec![Bytes::new(), head.finish()];
    let mut piece = BytesMut::new();
    for value in items {
        let mut out = Writer::default();
        out.nested(number, |out| encode::message(out, item, &value));
        piece.put_slice(&out.finish());
        if piece.len() >= CHUNK {
            pieces.push(piece.split().freeze());
        }
    }
    pieces.push(piece.freeze());
    let length = pieces.iter().map(Bytes::len).sum();
    let mut start = Writer::default();
    start.length(RAW, length);
    envelope_start(&mut start, api_version, kind);
    pieces[0] = start.finish();
    let mut end = Writer::default();
    envelope_end(&mut end);
    pieces.push(end.finish());
    Some(pieces)
}

/// A watch's frame: the length, then a `WatchEvent` with the envelope of its object.
pub fn frame(type_: &str, envelope: &[u8]) -> Bytes {
    let mut event = Writer::default();
    event.nested(2, |out| out.bytes(1, envelope)); // WatchEvent.object, RawExtension.raw
    event.bytes(1, type_.as_bytes()); // WatchEvent.type
    let length = u32::try_from(event.len()).expect("an object is far smaller than 4 GiB");
    event.raw(&length.to_be_bytes());
    event.finish()
}
