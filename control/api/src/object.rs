//! Reading and changing objects that are held as JSON.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// The text at a JSON pointer such as `/spec/nodeName`; empty if it is absent or no text.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub fn number(object: &Value, pointer: &str) -> Option<i64> {
    object.pointer(pointer).and_then(Value::as_i64)
}

pub fn flag(object: &Value, pointer: &str) -> bool {
    object.pointer(pointer).and_then(Value::as_bool).unwrap_or(false)
}

/// The array at a pointer; empty if it is absent.
pub fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The entries of the object at a pointer.
pub fn entries<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    object
        .pointer(pointer)
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value))
}

/// The labels at a pointer.
pub fn labels(object: &Value, pointer: &str) -> BTreeMap<String, String> {
    let labels = entries(object, pointer);
    labels.map(|(key, value)| (key.to_owned(), value.as_str().unwrap_or_default().to_owned())).collect()
}

pub fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

pub fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

pub fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

/// Being deleted: gone once its finalizers are.
pub fn terminating(object: &Value) -> bool {
    !text(object, "/metadata/deletionTimestamp").is_empty()
}

pub fn finalizers(object: &Value) -> &[Value] {
    list(object, "/metadata/finalizers")
}

/// The object's own map; decoded bodies are always objects, anything else becomes one.
pub fn map(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    object.as_object_mut().expect("it was just made an object")
}

/// The map under `key`, made if it is absent or null.
pub fn child<'a>(object: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    let slot = map(object).entry(key).or_insert_with(|| Value::Object(Map::new()));
    map(slot)
}

pub fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    child(object, "metadata")
}

/// Takes over `key` from `old`, also its absence.
pub fn restore(new: &mut Value, old: &Value, key: &str) {
    match old.get(key) {
        Some(value) => map(new).insert(key.to_owned(), value.clone()),
        None => map(new).remove(key),
    };
}

/// Now, as object metadata writes it: whole seconds.
pub fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
