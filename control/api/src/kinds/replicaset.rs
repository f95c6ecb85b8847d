//! ReplicaSets.

use serde_json::Value;

use super::{Strategy, pod_spec};
use crate::object::{self, entries, list};
use crate::status::FieldError;
use crate::validate::{self, at_least, immutable};

pub struct ReplicaSet;

impl Strategy for ReplicaSet {
    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        at_least(new, "/spec/replicas", "spec.replicas", 0, errors);
        at_least(new, "/spec/minReadySeconds", "spec.minReadySeconds", 0, errors);
        selector(new, "replicaset", errors);
        pod_spec::template(&new["spec"]["template"], "spec.template", Some("Always"), errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        immutable(new, old, "/spec/selector", "spec.selector", errors);
    }

    fn has_generation(&self) -> bool {
        true
    }
}

/// A workload's selector is there, selects something, and selects its own template's pods; `kind` names the
/// workload to the user.
pub fn selector(workload: &Value, kind: &str, errors: &mut Vec<FieldError>) {
    let selector = &workload["spec"]["selector"];
    if selector.is_null() {
        errors.push(FieldError::required("spec.selector", ""));
    } else if entries(selector, "/matchLabels").next().is_none()
        && list(selector, "/matchExpressions").is_empty()
    {
        return errors.push(FieldError::invalid(
            "spec.selector",
            selector.clone(),
            format!("empty selector is invalid for {kind}"),
        ));
    }
    // Without a selector the template is not matched either.
    match validate::selector(selector) {
        Err(problem) => errors.push(FieldError::invalid("spec.selector", selector.clone(), problem)),
        Ok(parsed) => {
            let labels = object::labels(workload, "/spec/template/metadata/labels");
            if !parsed.is_some_and(|parsed| parsed.matches(&labels)) {
                errors.push(FieldError::invalid(
                    "spec.template.metadata.labels",
                    workload.pointer("/spec/template/metadata/labels").cloned().unwrap_or_default(),
                    "`selector` does not match template `labels`",
                ));
            }
        }
    }
}
