//! A JSON object as the message that Go would write of it, to the byte.
//!
//! Objects are as the schema says when they come here. A value of another type counts as one that is not set.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::table::{Field, Message, Shape};
use super::wire::Writer;

/// Writes the fields of a message, the last one first as [`Writer`] wants it.
pub fn message(out: &mut Writer, message: &Message, object: &Value) {
    for field in message.fields().iter().rev() {
        match (&field.shape, object.get(field.name).filter(|value| !value.is_null())) {
            (Shape::Message(inner), _) if field.inline => {
                out.nested(field.number, |out| self::message(out, Message::at(*inner), object));
            }
            (shape, Some(value)) => field_of(out, field, shape, value),
            (_, None) if field.pointer => {}
            (Shape::Bytes | Shape::Items | Shape::List(_) | Shape::Map(_), None) => {}
            (shape, None) => one(out, field.number, shape, &Value::Null),
        }
    }
}

fn field_of(out: &mut Writer, field: &Field, shape: &Shape, value: &Value) {
    match shape {
        Shape::List(item) => {
            for value in value.as_array().into_iter().flatten().rev() {
                one(out, field.number, item, value);
            }
        }
        Shape::Map(item) => {
            let mut entries: Vec<_> = value.as_object().into_iter().flatten().collect();
            entries.sort_unstable_by_key(|(key, _)| *key); // as Go does, so that equal maps have equal bytes
            for (key, value) in entries.into_iter().rev() {
                out.nested(field.number, |out| {
                    if !(value.is_null() && matches!(**item, Shape::Bytes)) {
                        one(out, 2, item, value);
                    }
                    out.bytes(1, key.as_bytes());
                });
            }
        }
        shape => one(out, field.number, shape, value),
    }
}

/// One value with its tag.
fn one(out: &mut Writer, number: u32, shape: &Shape, value: &Value) {
    match shape {
        Shape::String => out.bytes(number, value.as_str().unwrap_or_default().as_bytes()),
        Shape::Bool => out.varint(number, value.as_bool().unwrap_or_default().into()),
        // Numbers below zero are written with all 64 bits.
        Shape::Int32 | Shape::Int64 => out.varint(number, value.as_i64().unwrap_or_default() as u64),
        Shape::Bytes => {
            let bytes = STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default();
            out.bytes(number, &bytes);
        }
        Shape::Quantity => {
            let amount = match value {
                Value::String(text) if !text.is_empty() => text.clone(),
                Value::Number(number) => number.to_string(),
                _ => "0".to_owned(),
            };
            out.nested(number, |out| out.bytes(1, amount.as_bytes()));
        }
        Shape::IntOrString => out.nested(number, |out| {
            out.bytes(3, value.as_str().unwrap_or_default().as_bytes());
            out.varint(2, value.as_i64().unwrap_or_default() as u64);
            out.varint(1, value.is_string().into());
        }),
        Shape::Time | Shape::MicroTime => out.nested(number, |out| {
            let time = value.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
            if let Some(time) = time {
                // Timestamps count their nanoseconds forwards, also before 1970.
                let nanos = time.as_nanosecond().rem_euclid(1_000_000_000) as u64;
                let micro = matches!(shape, Shape::MicroTime);
                out.varint(2, if micro { nanos / 1000 * 1000 } else { 0 });
                out.varint(1, time.as_nanosecond().div_euclid(1_000_000_000) as i64 as u64);
            }
        }),
        Shape::Json => out.nested(number, |out| {
            if !value.is_null() {
                out.bytes(1, value.to_string().as_bytes());
            }
        }),
        Shape::Items => out.nested(number, |out| {
            for item in value.as_array().into_iter().flatten().rev() {
                out.bytes(1, item.as_str().unwrap_or_default().as_bytes());
            }
        }),
        Shape::Message(inner) => out.nested(number, |out| {
            message(out, Message::at(*inner), value);
        }),
        Shape::List(_) | Shape::Map(_) => {} // no list or map of Kubernetes' holds lists or maps
    }
}
