//! Pod templates as values: are two the same, and what is one's short name.

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

/// The characters of names made from hashes: no vowels, so no words; as in Kubernetes.
const SAFE: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

pub(crate) fn parsed(raw: Option<&RawValue>) -> Value {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_else(|| json!({}))
}

/// Without what says nothing: nulls, and empty maps and the keys that hold them.
pub(crate) fn pruned(value: Value) -> Value {
    let says_nothing = |value: &Value| value.is_null() || value.as_object().is_some_and(Map::is_empty);
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(key, value)| (key, pruned_inner(value)));
            Value::Object(fields.filter(|(_, value)| !says_nothing(value)).collect())
        }
        other => other,
    }
}

/// Deeper down an empty map can mean something (`emptyDir: {}`): only nulls go.
fn pruned_inner(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(fields.map(|(key, value)| (key, pruned_inner(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(pruned_inner).collect()),
        other => other,
    }
}

/// The hash of a template, and of how many names made from it were taken already.
pub(crate) fn hash(template: Option<&RawValue>, collisions: Option<i32>) -> String {
    let mut hasher = Fnv(0x811c_9dc5);
    feed(&pruned(parsed(template)), &mut hasher);
    if let Some(collisions) = collisions {
        hasher.write(&collisions.to_le_bytes());
    }
    hasher.0.to_string().bytes().map(|digit| SAFE[usize::from(digit) % SAFE.len()] as char).collect()
}

/// FNV-1a, 32 bits.
struct Fnv(u32);

impl Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }
}

/// The same for the same value, in whatever order its fields were written.
fn feed(value: &Value, hasher: &mut Fnv) {
    match value {
        Value::Object(fields) => {
            let mut keys: Vec<&String> = fields.keys().collect();
            keys.sort();
            hasher.write(b"{");
            for key in keys {
                hasher.write(key.as_bytes());
                hasher.write(b":");
                feed(&fields[key], hasher);
            }
            hasher.write(b"}");
        }
        Value::Array(items) => {
            hasher.write(b"[");
            for item in items {
                feed(item, hasher);
                hasher.write(b",");
            }
            hasher.write(b"]");
        }
        other => hasher.write(other.to_string().as_bytes()),
    }
}
