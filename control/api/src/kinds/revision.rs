//! ControllerRevisions: what a workload was, kept to go back to. Their data never changes.

use serde_json::Value;

use super::{Strategy, pod_spec};
use crate::status::FieldError;
use crate::validate::{at_least, immutable};

pub struct ControllerRevision;

impl Strategy for ControllerRevision {
    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        if new.get("data").is_none_or(Value::is_null) {
            errors.push(FieldError::required("data", "data is mandatory"));
        }
        at_least(new, "/revision", "revision", 0, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        immutable(new, old, "/data", "data", errors);
    }
}

pub struct PodTemplate;

impl Strategy for PodTemplate {
    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        pod_spec::template(&new["template"], "template", None, errors);
    }

    fn has_generation(&self) -> bool {
        true
    }
}
