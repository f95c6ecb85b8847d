//! Events.

use serde_json::Value;

use super::Strategy;
use crate::object::{namespace, text};
use crate::status::FieldError;

pub struct Event;

pub const FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "type",
];

impl Strategy for Event {
    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        let involved = text(new, "/involvedObject/namespace");
        let own = namespace(new);
        // Events about cluster-wide objects are in the default namespace, or in the system's.
        let fits = involved == own || (involved.is_empty() && matches!(own, "default" | "kube-system"));
        if !fits {
            errors.push(FieldError::invalid(
                "involvedObject.namespace",
                involved,
                "does not match event.namespace",
            ));
        }
    }

    fn create_on_update(&self) -> bool {
        true
    }
}
