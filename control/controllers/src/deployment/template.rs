//! The template of a Deployment and those of its ReplicaSets.

use serde_json::{Value, json};
use wharf_kit::selector::LabelSelector;

use crate::template::{self, parsed, pruned};
use crate::views::{Deployment, ReplicaSet};

/// The label that tells the pods of a Deployment's templates apart.
pub const HASH_LABEL: &str = "pod-template-hash";

/// Whether the set was made from the Deployment's present template.
pub(crate) fn same(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let mut theirs = parsed(set.spec.template.as_deref());
    if let Some(labels) = theirs.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(HASH_LABEL);
    }
    pruned(parsed(deployment.spec.template.as_deref())) == pruned(theirs)
}

/// The hash of the template, and of how many names were taken already.
pub(crate) fn hash(deployment: &Deployment) -> String {
    template::hash(deployment.spec.template.as_deref(), deployment.status.collision_count)
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
