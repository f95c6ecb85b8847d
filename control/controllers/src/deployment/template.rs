//! Pod templates: are two the same, and what is one's short name.

use serde_json::{Map, Value, json};
use wharf_kit::selector::LabelSelector;

use crate::views::{Deployment, ReplicaSet};

/// The label that tells the pods of a Deployment's templates apart.
pub const HASH_LABEL: &str = "pod-template-hash";

/// The characters of names made from hashes: no vowels, so no words; as in Kubernetes.
const SAFE: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

fn parsed(raw: Option<&serde_json::value::RawValue>) -> Value {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_else(|| json!({}))
}

/// Whether the set was made from the Deployment's present template.
pub(crate) fn same(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let mut theirs = parsed(set.spec.template.as_deref());
    if let Some(labels) = theirs.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(HASH_LABEL);
    }
    pruned(parsed(deployment.spec.template.as_deref())) == pruned(theirs)
}

/// Without what says nothing: nulls, and empty maps and the keys that hold them.
fn pruned(value: Value) -> Value {
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

/// The hash of the template, and of how many names were taken already.
pub(crate) fn hash(deployment: &Deployment) -> String {
    let mut hasher = Fnv(0x811c_9dc5);
    feed(&pruned(parsed(deployment.spec.template.as_deref())), &mut hasher);
    if let Some(collisions) = deployment.status.collision_count {
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

/// The Deployment's template with the hash among its labels.
pub(crate) fn with_hash(deployment: &Deployment, hash: &str) -> Value {
    let mut template = parsed(deployment.spec.template.as_deref());
    template["metadata"]["labels"][HASH_LABEL] = json!(hash);
    template
}

/// The Deployment's selector, narrowed to one template.
pub(crate) fn selector_with_hash(deployment: &Deployment, hash: &str) -> Value {
    let mut selector = parsed(deployment.spec.selector.as_deref());
    selector["matchLabels"][HASH_LABEL] = json!(hash);
    selector
}

pub(crate) fn selector(deployment: &Deployment) -> Option<LabelSelector> {
    serde_json::from_str(deployment.spec.selector.as_deref()?.get()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(template: &str) -> Deployment {
        serde_json::from_str(&format!(
            r#"{{"metadata":{{"name":"web"}},"spec":{{"selector":{{"matchLabels":{{"app":"web"}}}},"template":{template}}}}}"#
        ))
        .unwrap()
    }

    #[test]
    fn the_order_of_fields_does_not_matter_and_their_values_do() {
        let one = deployment(r#"{"metadata":{"labels":{"app":"web"}},"spec":{"a":1,"b":[1,2]}}"#);
        let two = deployment(
            r#"{"spec":{"b":[1,2],"a":1,"c":null},"metadata":{"labels":{"app":"web"},"creationTimestamp":null}}"#,
        );
        let other = deployment(r#"{"metadata":{"labels":{"app":"web"}},"spec":{"a":1,"b":[2,1]}}"#);
        assert_eq!(hash(&one), hash(&two));
        assert_ne!(hash(&one), hash(&other));
        let mut collided = deployment(r#"{"metadata":{"labels":{"app":"web"}},"spec":{"a":1,"b":[1,2]}}"#);
        collided.status.collision_count = Some(1);
        assert_ne!(hash(&one), hash(&collided));
    }

    #[test]
    fn a_set_is_known_by_its_template_without_the_hash() {
        let one = deployment(r#"{"metadata":{"labels":{"app":"web"}},"spec":{"volumes":[{"emptyDir":{}}]}}"#);
        let set = |template: &Value| -> ReplicaSet {
            serde_json::from_str(&json!({"spec": {"template": template}}).to_string()).unwrap()
        };
        let mut template = with_hash(&one, "abc");
        assert_eq!(template["metadata"]["labels"], json!({"app": "web", HASH_LABEL: "abc"}));
        assert!(same(&one, &set(&template)));
        template["spec"]["volumes"][0]["emptyDir"] = json!({"medium": "Memory"});
        assert!(!same(&one, &set(&template)));
        assert_eq!(selector_with_hash(&one, "abc")["matchLabels"], json!({"app": "web", HASH_LABEL: "abc"}));
    }
}
