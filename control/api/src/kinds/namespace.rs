//! Namespaces: they go in two steps, first their content, then they themselves.

use serde_json::{Value, json};

use super::{Strategy, Subresource};
use crate::object::{child, list, map, metadata, name};
use crate::validate;

pub struct Namespace;

/// Carries the namespace's name, so that selectors can name it.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

fn label_with_name(namespace: &mut Value) {
    let name = name(namespace).to_owned();
    if !name.is_empty() {
        let labels = metadata(namespace).entry("labels").or_insert_with(|| json!({}));
        map(labels).insert(NAME_LABEL.to_owned(), name.into());
    }
}

impl Strategy for Namespace {
    fn prepare_create(&self, new: &mut Value) {
        label_with_name(new);
        child(new, "spec").insert("finalizers".to_owned(), json!(["kubernetes"]));
        map(new).insert("status".to_owned(), json!({"phase": "Active"}));
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, subresource: Option<Subresource>) {
        label_with_name(new);
        if subresource != Some(Subresource::Finalize) {
            crate::object::restore(new, old, "spec");
        }
    }

    fn check_name(&self, name: &str, prefix: bool) -> Result<(), String> {
        validate::dns_label(name, prefix)
    }

    fn holds(&self, namespace: &Value) -> bool {
        !list(namespace, "/spec/finalizers").is_empty()
    }

    fn prepare_delete(&self, namespace: &mut Value) {
        child(namespace, "status").insert("phase".to_owned(), "Terminating".into());
    }
}
