//! A message as the JSON object that Go would write of it.
//!
//! As in Go, fields come in any order and number: of plain values the last one counts, messages are merged, items are
//! appended, unknown fields are passed over. What Go's JSON has even if it is empty is filled in afterwards, once.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::map::Entry;
use serde_json::{Map, Value, json};

use super::Error;
use super::table::{Field, Message, Shape};
use super::wire::{Fields, Payload, varint};
use crate::schema::MAX_BYTES;

/// What a value costs besides its content: quotes, colon and comma.
const ENTRY: usize = 4;
/// How many lists and objects JSON text within a message may nest: what is stored has to be read again, of which
/// serde_json does 128, and no message is deeper than 20 (a test looks).
const JSON_DEPTH: usize = 100;
/// RFC 3339 has no earlier year.
const YEAR_ZERO: i64 = -62_167_219_200;

/// # Errors
/// Bytes that are no such message, or one that is too large as JSON.
pub fn message(bytes: &[u8], message: &'static Message) -> Result<Map<String, Value>, Error> {
    let mut reader = Reader { left: MAX_BYTES };
    let mut object = Map::new();
    reader.message(bytes, message, &mut object)?;
    reader.complete(message, &mut object)?;
    Ok(object)
}

struct Reader {
    /// How many bytes of JSON may still come of it. A message can be many times smaller than its JSON.
    left: usize,
}

impl Reader {
    fn charge(&mut self, bytes: usize) -> Result<(), Error> {
        self.left = self.left.checked_sub(bytes.saturating_add(ENTRY)).ok_or(Error::TooLarge)?;
        Ok(())
    }

    fn message(
        &mut self,
        bytes: &[u8],
        message: &'static Message,
        into: &mut Map<String, Value>,
    ) -> Result<(), Error> {
        for field in Fields::of(bytes) {
            let (number, payload) = field?;
            if let Some(field) = message.field(number) {
                self.field(field, payload, into)?;
            }
        }
        Ok(())
    }

    fn field(
        &mut self,
        field: &'static Field,
        payload: Payload<'_>,
        into: &mut Map<String, Value>,
    ) -> Result<(), Error> {
        match &field.shape {
            Shape::Message(inner) if field.inline => {
                self.message(field.bytes(payload)?, Message::at(*inner), into)
            }
            Shape::Message(inner) => {
                let inner_object = self.slot(field, into, || Value::Object(Map::new()))?;
                let inner_object = inner_object.as_object_mut().expect("this field is an object or absent");
                self.message(field.bytes(payload)?, Message::at(*inner), inner_object)
            }
            Shape::List(item) => {
                // Numbers may come packed: many in one field, or none.
                let packed = match payload {
                    Payload::Bytes(packed) if matches!(**item, Shape::Int32 | Shape::Int64) => Some(packed),
                    _ => None,
                };
                if packed.is_some_and(<[u8]>::is_empty) {
                    return Ok(());
                }
                let list = self.slot(field, into, || json!([]))?;
                let list = list.as_array_mut().expect("this field is a list or absent");
                match packed {
                    Some(mut packed) => {
                        while !packed.is_empty() {
                            let number = Payload::Varint(varint(&mut packed)?);
                            list.push(self.value(field, item, number)?);
                        }
                    }
                    None => list.push(self.value(field, item, payload)?),
                }
                Ok(())
            }
            Shape::Map(item) => {
                let map = self.slot(field, into, || Value::Object(Map::new()))?;
                let map = map.as_object_mut().expect("this field is an object or absent");
                self.entry(field, item, field.bytes(payload)?, map)
            }
            shape => {
                let value = self.value(field, shape, payload)?;
                if field.pointer || field.always || !is_empty(&value) {
                    into.insert(field.name.to_owned(), value);
                } else {
                    into.remove(field.name);
                }
                Ok(())
            }
        }
    }

    /// The field's value, made if it is not there.
    fn slot<'a>(
        &mut self,
        field: &Field,
        into: &'a mut Map<String, Value>,
        make: impl FnOnce() -> Value,
    ) -> Result<&'a mut Value, Error> {
        match into.entry(field.name) {
            Entry::Occupied(present) => Ok(present.into_mut()),
            Entry::Vacant(absent) => {
                self.charge(field.name.len() + 2)?;
                Ok(absent.insert(make()))
            }
        }
    }

    /// One entry of a map: a message of key and value.
    fn entry(
        &mut self,
        field: &'static Field,
        item: &'static Shape,
        bytes: &[u8],
        map: &mut Map<String, Value>,
    ) -> Result<(), Error> {
        let (mut key, mut value) = (String::new(), None);
        for part in Fields::of(bytes) {
            match part? {
                (1, Payload::Bytes(text)) => key = String::from_utf8_lossy(text).into_owned(),
                (2, payload) => value = Some(payload),
                _ => {}
            }
        }
        self.charge(key.len())?;
        let value = match value {
            Some(payload) => self.value(field, item, payload)?,
            None if matches!(item, Shape::Bytes) => json!(""),
            None => empty(item),
        };
        map.insert(key, value);
        Ok(())
    }

    /// A value of one payload.
    fn value(
        &mut self,
        field: &'static Field,
        shape: &'static Shape,
        payload: Payload<'_>,
    ) -> Result<Value, Error> {
        let value = match shape {
            Shape::Bool => json!(field.number_in(payload)? != 0),
            // As in Go, what does not fit is cut.
            Shape::Int32 => json!(field.number_in(payload)? as i32),
            Shape::Int64 => json!(field.number_in(payload)? as i64),
            Shape::String => {
                let bytes = field.bytes(payload)?;
                self.charge(bytes.len())?;
                String::from_utf8_lossy(bytes).into()
            }
            Shape::Bytes => {
                let bytes = field.bytes(payload)?;
                self.charge(bytes.len() / 3 * 4)?;
                STANDARD.encode(bytes).into()
            }
            Shape::Quantity => {
                let text = last_text(field.bytes(payload)?, 1)?.unwrap_or(b"0");
                if text.is_empty() {
                    return Err(Error::Value(field.name, "quantity"));
                }
                self.charge(text.len())?;
                String::from_utf8_lossy(text).into()
            }
            Shape::IntOrString => self.int_or_string(field, field.bytes(payload)?)?,
            Shape::Time => time(field, field.bytes(payload)?, false)?,
            Shape::MicroTime => time(field, field.bytes(payload)?, true)?,
            Shape::Json => {
                let text = last_text(field.bytes(payload)?, 1)?.unwrap_or_default();
                self.charge(text.len())?;
                let value = match text.is_empty() {
                    true => Ok(Value::Null),
                    false => serde_json::from_slice(text),
                };
                let value = value.ok().filter(|value| no_deeper(value, JSON_DEPTH));
                value.ok_or(Error::Value(field.name, "JSON"))?
            }
            Shape::Items => {
                let mut items = Vec::new();
                for item in Fields::of(field.bytes(payload)?) {
                    if let (1, Payload::Bytes(text)) = item? {
                        self.charge(text.len())?;
                        items.push(String::from_utf8_lossy(text).into());
                    }
                }
                Value::Array(items)
            }
            Shape::Message(inner) => {
                let mut object = Map::new();
                self.message(field.bytes(payload)?, Message::at(*inner), &mut object)?;
                Value::Object(object)
            }
            // No list or map of Kubernetes' holds lists or maps.
            Shape::List(_) | Shape::Map(_) => return Err(Error::WireType(field.name)),
        };
        self.charge(field.name.len())?;
        Ok(value)
    }

    fn int_or_string(&mut self, field: &'static Field, bytes: &[u8]) -> Result<Value, Error> {
        let (mut type_, mut number, mut text): (u64, u64, &[u8]) = (0, 0, b"");
        for part in Fields::of(bytes) {
            match part? {
                (1, Payload::Varint(value)) => type_ = value,
                (2, Payload::Varint(value)) => number = value,
                (3, Payload::Bytes(value)) => text = value,
                _ => {}
            }
        }
        match type_ {
            0 => Ok(json!(number as i32)),
            1 => {
                self.charge(text.len())?;
                Ok(String::from_utf8_lossy(text).into())
            }
            _ => Err(Error::Value(field.name, "IntOrString")),
        }
    }

    /// Fills in what Go's JSON has even if it is empty, here and in everything below.
    fn complete(&mut self, message: &'static Message, object: &mut Map<String, Value>) -> Result<(), Error> {
        for field in message.fields() {
            if let (true, Shape::Message(inner)) = (field.inline, &field.shape) {
                self.complete(Message::at(*inner), object)?;
                continue;
            }
            if field.always && !object.contains_key(field.name) {
                self.charge(field.name.len() + 4)?;
                let value = if field.pointer { Value::Null } else { empty(&field.shape) };
                object.insert(field.name.to_owned(), value);
            }
            if let Some(value) = object.get_mut(field.name) {
                self.complete_value(&field.shape, value)?;
            }
        }
        Ok(())
    }

    fn complete_value(&mut self, shape: &'static Shape, value: &mut Value) -> Result<(), Error> {
        match (shape, value) {
            (Shape::Message(inner), Value::Object(object)) => self.complete(Message::at(*inner), object),
            (Shape::List(item), Value::Array(values)) => {
                values.iter_mut().try_for_each(|value| self.complete_value(item, value))
            }
            (Shape::Map(item), Value::Object(values)) => {
                values.values_mut().try_for_each(|value| self.complete_value(item, value))
            }
            _ => Ok(()),
        }
    }
}

impl Field {
    fn bytes<'a>(&self, payload: Payload<'a>) -> Result<&'a [u8], Error> {
        match payload {
            Payload::Bytes(bytes) => Ok(bytes),
            _ => Err(Error::WireType(self.name)),
        }
    }

    fn number_in(&self, payload: Payload<'_>) -> Result<u64, Error> {
        match payload {
            Payload::Varint(number) => Ok(number),
            _ => Err(Error::WireType(self.name)),
        }
    }
}

/// The last field of this number that holds bytes.
fn last_text(message: &[u8], number: u32) -> Result<Option<&[u8]>, Error> {
    let mut found = None;
    for field in Fields::of(message) {
        match field? {
            (at, Payload::Bytes(bytes)) if at == number => found = Some(bytes),
            _ => {}
        }
    }
    Ok(found)
}

/// A Timestamp of seconds and nanoseconds; no field at all means no time.
fn time(field: &'static Field, bytes: &[u8], micro: bool) -> Result<Value, Error> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0i64, 0i32);
    for part in Fields::of(bytes) {
        match part? {
            (1, Payload::Varint(value)) => seconds = value as i64,
            (2, Payload::Varint(value)) if micro => nanos = value as i32 / 1000 * 1000,
            _ => {}
        }
    }
    let time = (seconds >= YEAR_ZERO).then(|| Timestamp::new(seconds, nanos).ok()).flatten();
    let time = time.ok_or(Error::Value(field.name, "time"))?;
    let form = if micro { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(time.strftime(form).to_string().into())
}

fn no_deeper(value: &Value, depth: usize) -> bool {
    match value {
        Value::Array(items) => depth > 0 && items.iter().all(|item| no_deeper(item, depth - 1)),
        Value::Object(fields) => depth > 0 && fields.values().all(|field| no_deeper(field, depth - 1)),
        _ => true,
    }
}

/// What Go's `omitempty` leaves out.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(_) => false,
    }
}

/// A value that nobody set, as Go's JSON writes it.
fn empty(shape: &Shape) -> Value {
    match shape {
        Shape::String => json!(""),
        Shape::Bool => json!(false),
        Shape::Int32 | Shape::Int64 | Shape::IntOrString => json!(0),
        Shape::Quantity => json!("0"),
        Shape::Message(_) => Value::Object(Map::new()),
        Shape::Bytes | Shape::Time | Shape::MicroTime | Shape::Json | Shape::Items => Value::Null,
        Shape::List(_) | Shape::Map(_) => Value::Null,
    }
}
