//! Strict decoding: bytes to a [`Value`] that is as the schema says, and nothing else.
//!
//! One visitor walks JSON, YAML or a `Value` along the schema. It drops unknown fields and nulls, brings numbers,
//! times and amounts into the one form that Kubernetes stores, and finds what is wrong with its path. Messages are
//! worded as kube-apiserver words them.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::model::{Shape, Type};
use super::scalar;
use super::trail::{Path, State, Step};

/// Bodies larger than this are refused, as in kube-apiserver.
pub const MAX_BYTES: usize = 3 * 1024 * 1024;
/// The YAML reader's time grows with the length times the depth of `[` and `{`, and it looks at depth only afterwards.
/// Length times the number of brackets bounds that product; so many units take it some two seconds.
const MAX_YAML_WORK: usize = 1_000_000_000;

/// How bytes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON value.
    Json,
    /// One YAML document (JSON is one too).
    Yaml,
}

/// What becomes of unknown and duplicate fields: `fieldValidation` of the request. Unknown fields are never kept;
/// of duplicate fields the last one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validation {
    /// They are an error.
    Strict,
    /// They are told.
    Warn,
    /// They are passed over.
    Ignore,
}

/// Why bytes are not an object of the type. [`DecodeError::for_kind`] gives the message of the answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// 413: more than [`MAX_BYTES`].
    #[error("Request entity too large: limit is {MAX_BYTES}")]
    TooLarge,
    /// 400: neither JSON nor YAML.
    #[error("{0}")]
    Syntax(String),
    /// 400: a field holds what it cannot hold.
    #[error("{0}")]
    Type(String),
    /// 400: unknown or duplicate fields, under [`Validation::Strict`].
    #[error("strict decoding error: {}", .0.join(", "))]
    Strict(Vec<String>),
    /// 400: fields of an apply configuration that the schema does not have.
    #[error("{}", undeclared(paths))]
    Undeclared {
        /// `namespace/name` as the configuration has them.
        object: String,
        /// Such as `.spec.replica`.
        paths: Vec<String>,
    },
}

fn undeclared(paths: &[String]) -> String {
    match paths {
        [only] => format!("{only}: field not declared in schema"),
        paths => {
            let lines: Vec<_> =
                paths.iter().map(|path| format!("  {path}: field not declared in schema")).collect();
            format!("errors:\n{}", lines.join("\n"))
        }
    }
}

impl DecodeError {
    /// The message of the BadRequest that answers it.
    pub fn for_kind(&self, ty: Type) -> String {
        match (self, ty.gvk()) {
            (Self::Type(_) | Self::Strict(_), Some(gvk)) => {
                format!(
                    "{} in version {:?} cannot be handled as a {}: {self}",
                    gvk.kind, gvk.version, gvk.kind
                )
            }
            (Self::Undeclared { object, .. }, Some(gvk)) => {
                format!("failed to create typed patch object ({object}; {gvk}): {self}")
            }
            _ => self.to_string(),
        }
    }
}

/// Decodes a request body. Gives the object, and one warning for each unknown or duplicate field under
/// [`Validation::Warn`].
///
/// # Errors
/// See [`DecodeError`]. No input makes it panic; nesting is limited to 128.
pub fn decode(
    bytes: &[u8],
    format: Format,
    ty: Type,
    validation: Validation,
) -> Result<(Value, Vec<String>), DecodeError> {
    let mut state = State::of(format);
    let value = read(bytes, format, ty, &mut state)?;
    state.finish(value, validation)
}

/// As [`decode`], for an object that is a value already: the outcome of a patch.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode_value(
    value: Value,
    ty: Type,
    validation: Validation,
) -> Result<(Value, Vec<String>), DecodeError> {
    let mut state = State::default();
    let value = Root { ty, state: &mut state }.deserialize(value);
    let value = state.outcome(value.map_err(|error| DecodeError::Syntax(error.to_string())))?;
    state.finish(value, validation)
}

/// Decodes the body of a server-side apply: YAML or JSON, in which every field must be known.
///
/// # Errors
/// See [`DecodeError`]; unknown fields are [`DecodeError::Undeclared`].
pub fn decode_applied(bytes: &[u8], ty: Type) -> Result<Value, DecodeError> {
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    // kubectl sends JSON under the YAML media type; that reader is several times faster.
    let format = if first == Some(&b'{') { Format::Json } else { Format::Yaml };
    let mut state = State::of(format);
    let value = match read(bytes, format, ty, &mut state) {
        // A YAML flow mapping begins as JSON does.
        Err(DecodeError::Syntax(_)) if format == Format::Json => {
            state = State::of(Format::Yaml);
            read(bytes, Format::Yaml, ty, &mut state)?
        }
        read => read?,
    };
    if !state.unknown.is_empty() {
        let paths = state.unknown.iter().map(|path| format!(".{path}")).collect();
        return Err(DecodeError::Undeclared { object: super::apply::named(&value), paths });
    }
    state.finish(value, Validation::Strict).map(|(value, _)| value)
}

fn read(bytes: &[u8], format: Format, ty: Type, state: &mut State) -> Result<Value, DecodeError> {
    if bytes.len() > MAX_BYTES {
        return Err(DecodeError::TooLarge);
    }
    let value = match format {
        Format::Json => {
            let mut reader = serde_json::Deserializer::from_slice(bytes);
            let value = Root { ty, state: &mut *state }.deserialize(&mut reader);
            let value = value.and_then(|value| reader.end().map(|()| value));
            value.map_err(|error| DecodeError::Syntax(format!("json parse error: {error}")))
        }
        Format::Yaml => {
            let brackets = bytes.iter().filter(|byte| matches!(byte, b'[' | b'{')).count();
            if brackets.saturating_mul(bytes.len()) > MAX_YAML_WORK {
                let message =
                    "error converting YAML to JSON: yaml: too many brackets for its length; send it as JSON";
                return Err(DecodeError::Syntax(message.to_owned()));
            }
            let reader = serde_yaml::Deserializer::from_slice(bytes);
            let value = Root { ty, state: &mut *state }.deserialize(reader);
            value
                .map_err(|error| DecodeError::Syntax(format!("error converting YAML to JSON: yaml: {error}")))
        }
    };
    state.outcome(value)
}

/// Reads one value of a shape. Gives `None` for null.
struct Seed<'a> {
    shape: &'a Shape,
    /// The struct that the field is of, for messages.
    owner: Option<Type>,
    path: Path<'a>,
    state: &'a mut State,
}

/// The shape of a whole object is not in the schema's text: objects are visited by type.
struct Root<'a> {
    ty: Type,
    state: &'a mut State,
}

impl Seed<'_> {
    fn mismatch<E: serde::de::Error>(self, found: &str) -> E {
        let place = match self.owner {
            Some(owner) => format!("Go struct field {}.{}", owner.go_struct(), self.path.print(false)),
            None => "Go value".to_owned(),
        };
        let expected = self.shape.go_name();
        self.state.fatal = Some(format!("json: cannot unmarshal {found} into {place} of type {expected}"));
        E::custom("wrong type")
    }

    fn fail<E: serde::de::Error>(self, message: String) -> E {
        self.state.fatal = Some(message);
        E::custom("malformed value")
    }

    fn number<E: serde::de::Error>(self, number: &Number) -> Result<Option<Value>, E> {
        let whole = number.as_i64();
        let fits = |low: i64, high: i64| whole.filter(|value| (low..=high).contains(value));
        match self.shape {
            Shape::Int32 | Shape::IntOrString => match fits(i32::MIN.into(), i32::MAX.into()) {
                Some(value) => Ok(Some(value.into())),
                None if *self.shape == Shape::IntOrString => {
                    let found = format!("number {number}");
                    Err(Seed { shape: &Shape::Int32, ..self }.mismatch(&found))
                }
                None => Err(self.mismatch(&format!("number {number}"))),
            },
            Shape::Int64 => match whole {
                Some(value) => Ok(Some(value.into())),
                None => Err(self.mismatch(&format!("number {number}"))),
            },
            Shape::Double => Ok(Some(Value::Number(number.clone()))),
            Shape::Quantity => self.quantity(&number.to_string()),
            _ => Err(self.mismatch("number")),
        }
    }

    fn quantity<E: serde::de::Error>(self, text: &str) -> Result<Option<Value>, E> {
        match scalar::quantity(text) {
            Ok(canonical) => Ok(Some(canonical.into())),
            Err(what) => Err(self.fail(what.to_owned())),
        }
    }

    fn text<E: serde::de::Error>(self, text: String) -> Result<Option<Value>, E> {
        match self.shape {
            Shape::String | Shape::IntOrString => Ok(Some(Value::String(text))),
            Shape::Quantity => self.quantity(&text),
            Shape::Time | Shape::MicroTime => match scalar::time(&text, *self.shape == Shape::MicroTime) {
                Ok(canonical) => Ok(Some(canonical.into())),
                Err(what) => Err(self.fail(what)),
            },
            Shape::Bytes => match scalar::base64(text) {
                Ok(canonical) => Ok(Some(canonical.into())),
                Err(at) => Err(self.fail(format!("illegal base64 data at input byte {at}"))),
            },
            // YAML 1.1, which Kubernetes reads, knows more forms than YAML 1.2.
            Shape::Bool
                if self.state.yaml && matches!(text.as_str(), "yes" | "on" | "Yes" | "On" | "YES" | "ON") =>
            {
                Ok(Some(true.into()))
            }
            Shape::Bool
                if self.state.yaml && matches!(text.as_str(), "no" | "off" | "No" | "Off" | "NO" | "OFF") =>
            {
                Ok(Some(false.into()))
            }
            Shape::Int32 | Shape::Int64
                if self.state.yaml && text.len() > 1 && text.starts_with('0') && text.len() < 20 =>
            {
                match i64::from_str_radix(&text, 8) {
                    Ok(value) => self.number(&value.into()),
                    Err(_) => Err(self.mismatch("string")),
                }
            }
            _ => Err(self.mismatch("string")),
        }
    }

    /// What null means where something must stand: in lists and maps.
    fn zero(shape: &Shape) -> Option<Value> {
        Some(match shape {
            Shape::String | Shape::Bytes => "".into(),
            Shape::Bool => false.into(),
            Shape::Int32 | Shape::Int64 | Shape::IntOrString | Shape::Double => 0.into(),
            Shape::Quantity => "0".into(),
            Shape::Struct(_) => Value::Object(Map::new()),
            Shape::Any | Shape::Object => Value::Null,
            Shape::Time | Shape::MicroTime | Shape::List(_) | Shape::Map(_) => return None,
        })
    }
}

impl<'de> DeserializeSeed<'de> for Root<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Root<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        let path = Path { parent: None, step: Step::Root };
        structure(map, self.ty, &path, self.state).map(Some)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
        Err(self.mismatch("array"))
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Self::Value, E> {
        Err(self.mismatch("string"))
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<Self::Value, E> {
        Err(self.mismatch("bool"))
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Self::Value, E> {
        Err(self.mismatch("number"))
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Self::Value, E> {
        Err(self.mismatch("number"))
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Self::Value, E> {
        Err(self.mismatch("number"))
    }
}

impl Root<'_> {
    fn mismatch<E: serde::de::Error>(self, found: &str) -> E {
        let expected = self.ty.go_name();
        self.state.fatal = Some(format!("json: cannot unmarshal {found} into Go value of type {expected}"));
        E::custom("wrong type")
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        if matches!(self.shape, Shape::Any | Shape::Object) {
            let value: Value = serde::Deserialize::deserialize(deserializer)?;
            return Ok(Some(value).filter(|value| !value.is_null()));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Self::Value, E> {
        match self.shape {
            Shape::Bool => Ok(Some(value.into())),
            Shape::IntOrString => Err(Seed { shape: &Shape::Int32, ..self }.mismatch("bool")),
            _ => Err(self.mismatch("bool")),
        }
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Self::Value, E> {
        self.number(&value.into())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Self::Value, E> {
        self.number(&value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Self::Value, E> {
        match Number::from_f64(value) {
            Some(number) => self.number(&number),
            None => Err(self.mismatch("number")),
        }
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
        self.text(text.to_owned())
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Self::Value, E> {
        self.text(text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let Shape::List(item) = self.shape else { return Err(self.mismatch("array")) };
        let mut out = Vec::new();
        loop {
            let path = Path { parent: Some(&self.path), step: Step::Item(out.len()) };
            let seed = Seed { shape: item, owner: self.owner, path, state: &mut *self.state };
            match seq.next_element_seed(seed)? {
                None => return Ok(Some(Value::Array(out))),
                Some(value) => out.push(value.or_else(|| Seed::zero(item)).unwrap_or_default()),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        if let Some(ty) = self.shape.as_type() {
            return structure(map, ty, &self.path, self.state).map(Some);
        }
        let Shape::Map(item) = self.shape else { return Err(self.mismatch("object")) };
        let mut out = Map::new();
        while let Some(key) = map.next_key_seed(Key)? {
            let path = Path { parent: Some(&self.path), step: Step::Key(&key) };
            if out.contains_key(&key) {
                self.state.fault(false, path.print(true));
            }
            let seed = Seed { shape: item, owner: self.owner, path, state: &mut *self.state };
            match map.next_value_seed(seed)?.or_else(|| Seed::zero(item)) {
                Some(value) => out.insert(key, value),
                None => out.remove(&key),
            };
        }
        Ok(Some(Value::Object(out)))
    }
}

/// An object of a type.
fn structure<'de, A: MapAccess<'de>>(
    mut map: A,
    ty: Type,
    path: &Path<'_>,
    state: &mut State,
) -> Result<Value, A::Error> {
    let mut out = Map::new();
    let mut seen = 0_u128;
    while let Some(key) = map.next_key_seed(Key)? {
        let here = Path { parent: Some(path), step: Step::Field(&key) };
        let Some(at) = ty.field_index(&key) else {
            state.fault(true, here.print(true));
            map.next_value::<IgnoredAny>()?;
            continue;
        };
        if seen & (1 << at) != 0 {
            state.fault(false, here.print(true));
        }
        seen |= 1 << at;
        let seed = Seed { shape: &ty.fields()[at].shape, owner: Some(ty), path: here, state: &mut *state };
        match map.next_value_seed(seed)? {
            Some(value) => out.insert(key, value),
            None => out.remove(&key),
        };
    }
    Ok(Value::Object(out))
}

/// A key: text, or one of the plain values that YAML allows.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Key {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<String, E> {
        Ok(text)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<String, E> {
        Ok("null".to_owned())
    }
}
