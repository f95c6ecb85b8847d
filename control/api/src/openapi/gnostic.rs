//! Version 2 as protobuf: the messages of gnostic's OpenAPIv2.proto, written from the JSON document by a table.
//!
//! Only what our documents hold is in the table; anything else in them is a fault that a test finds. Extensions
//! (`x-…`) and defaults are carried as YAML text, of which JSON is a part.

use prost::encoding::{WireType, encode_key, encode_varint};
use serde_json::{Map, Value};

/// A message: its fields, and the number of its list of extensions.
struct Message {
    extensions: u32,
    fields: &'static [Field],
}

/// The JSON key, the numbers from this message inward (more than one where gnostic has a message of one field between),
/// and what is there.
type Field = (&'static str, &'static [u32], Form);

enum Form {
    Text,
    Texts,
    Flag,
    /// YAML in an `Any`.
    Yaml,
    Yamls,
    One(&'static Message),
    /// A JSON object as a list of pairs: name (1) and value (2), the value within these numbers.
    Named(&'static Message, &'static [u32]),
    /// Parameters, which are of another message for each place they can be in.
    Parameters,
}

static DOCUMENT: Message = Message {
    extensions: 16,
    fields: &[
        ("swagger", &[1], Form::Text),
        ("info", &[2], Form::One(&INFO)),
        ("paths", &[8, 2], Form::Named(&PATH_ITEM, &[])),
        ("definitions", &[9, 1], Form::Named(&SCHEMA, &[])),
    ],
};
static INFO: Message =
    Message { extensions: 7, fields: &[("title", &[1], Form::Text), ("version", &[2], Form::Text)] };
static PATH_ITEM: Message = Message {
    extensions: 10,
    fields: &[
        ("get", &[2], Form::One(&OPERATION)),
        ("put", &[3], Form::One(&OPERATION)),
        ("post", &[4], Form::One(&OPERATION)),
        ("delete", &[5], Form::One(&OPERATION)),
        ("patch", &[8], Form::One(&OPERATION)),
        ("parameters", &[9], Form::Parameters),
    ],
};
static OPERATION: Message = Message {
    extensions: 13,
    fields: &[
        ("description", &[3], Form::Text),
        ("operationId", &[5], Form::Text),
        ("produces", &[6], Form::Texts),
        ("consumes", &[7], Form::Texts),
        ("parameters", &[8], Form::Parameters),
        ("responses", &[9, 1], Form::Named(&RESPONSE, &[1])),
    ],
};
static RESPONSE: Message = Message {
    extensions: 5,
    fields: &[("description", &[1], Form::Text), ("schema", &[2, 1], Form::One(&SCHEMA))],
};
static SCHEMA: Message = Message {
    extensions: 31,
    fields: &[
        ("$ref", &[1], Form::Text),
        ("format", &[2], Form::Text),
        ("description", &[4], Form::Text),
        ("default", &[5], Form::Yaml),
        ("required", &[19], Form::Texts),
        ("enum", &[20], Form::Yamls),
        ("additionalProperties", &[21, 1], Form::One(&SCHEMA)),
        ("type", &[22, 1], Form::Text),
        ("items", &[23, 1], Form::One(&SCHEMA)),
        ("properties", &[25, 1], Form::Named(&SCHEMA, &[])),
    ],
};
static BODY: Message = Message {
    extensions: 6,
    fields: &[
        ("name", &[2], Form::Text),
        ("in", &[3], Form::Text),
        ("required", &[4], Form::Flag),
        ("schema", &[5], Form::One(&SCHEMA)),
    ],
};
static QUERY: Message = Message {
    extensions: 23,
    fields: &[
        ("in", &[2], Form::Text),
        ("description", &[3], Form::Text),
        ("name", &[4], Form::Text),
        ("type", &[6], Form::Text),
    ],
};
static PATH: Message = Message {
    extensions: 22,
    fields: &[
        ("required", &[1], Form::Flag),
        ("in", &[2], Form::Text),
        ("description", &[3], Form::Text),
        ("name", &[4], Form::Text),
        ("type", &[5], Form::Text),
    ],
};

/// The document as protobuf.
pub fn encode(document: &Value) -> Vec<u8> {
    message(&DOCUMENT, document)
}

fn object(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

fn message(message: &Message, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in object(value) {
        if key.starts_with("x-") {
            bytes(&mut out, message.extensions, &named(key, &yaml(value)));
            continue;
        }
        let field = message.fields.iter().find(|(name, ..)| name == key);
        let (_, numbers, form) = field.unwrap_or_else(|| panic!("gnostic's table has no {key}"));
        put(&mut out, numbers, form, value);
    }
    out
}

fn put(out: &mut Vec<u8>, numbers: &[u32], form: &Form, value: &Value) {
    let (number, inner) = match numbers {
        [number] => (*number, &[][..]),
        [number, inner @ ..] => (*number, inner),
        [] => return,
    };
    if !inner.is_empty() {
        let mut wrapped = Vec::new();
        put(&mut wrapped, inner, form, value);
        return bytes(out, number, &wrapped);
    }
    match form {
        Form::Text => bytes(out, number, value.as_str().unwrap_or_default().as_bytes()),
        Form::Texts => {
            for text in value.as_array().into_iter().flatten().filter_map(Value::as_str) {
                bytes(out, number, text.as_bytes());
            }
        }
        Form::Flag => {
            encode_key(number, WireType::Varint, out);
            encode_varint(u64::from(value == &Value::Bool(true)), out);
        }
        Form::Yaml => bytes(out, number, &yaml(value)),
        Form::Yamls => {
            value.as_array().into_iter().flatten().for_each(|value| bytes(out, number, &yaml(value)));
        }
        Form::One(of) => bytes(out, number, &message(of, value)),
        Form::Named(of, within) => {
            for (name, value) in object(value) {
                bytes(out, number, &named(name, &wrap(within, message(of, value))));
            }
        }
        Form::Parameters => {
            for parameter in value.as_array().into_iter().flatten() {
                // ParametersItem, then Parameter, then NonBodyParameter.
                let (of, within): (_, &[u32]) = match parameter["in"].as_str() {
                    Some("body") => (&BODY, &[1, 1]),
                    Some("path") => (&PATH, &[1, 2, 4]),
                    _ => (&QUERY, &[1, 2, 3]),
                };
                bytes(out, number, &wrap(within, message(of, parameter)));
            }
        }
    }
}

/// A field of bytes, text or a message.
fn bytes(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

fn wrap(numbers: &[u32], value: Vec<u8>) -> Vec<u8> {
    numbers.iter().rev().fold(value, |value, number| {
        let mut out = Vec::new();
        bytes(&mut out, *number, &value);
        out
    })
}

fn named(name: &str, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    bytes(&mut out, 1, name.as_bytes());
    bytes(&mut out, 2, value);
    out
}

/// gnostic's `Any`.
fn yaml(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    bytes(&mut out, 2, format!("{value}\n").as_bytes());
    out
}
