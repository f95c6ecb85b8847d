//! ReplicaSets.

use serde_json::Value;
use wharf_kit::selector::LabelSelector;

use super::{Strategy, pod_spec};
use crate::object::{entries, list};
use crate::status::FieldError;
use crate::validate::{at_least, immutable};

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
    }
    let some = !selector.is_null();
    if some
        && entries(selector, "/matchLabels").next().is_none()
        && list(selector, "/matchExpressions").is_empty()
    {
        return errors.push(FieldError::invalid(
            "spec.selector",
            selector.clone(),
            format!("empty selector is invalid for {kind}"),
        ));
    }
    // Without a selector the template is not matched either.
    let typed: Result<Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector>, _> =
        serde_json::from_value(selector.clone());
    let parsed = typed.map_err(|error| error.to_string()).and_then(|typed| {
        typed.as_ref().map(LabelSelector::try_from).transpose().map_err(|error| error.to_string())
    });
    match parsed {
        Err(problem) => errors.push(FieldError::invalid("spec.selector", selector.clone(), problem)),
        Ok(parsed) => {
            let labels: std::collections::BTreeMap<String, String> =
                entries(workload, "/spec/template/metadata/labels")
                    .map(|(key, value)| (key.to_owned(), value.as_str().unwrap_or_default().to_owned()))
                    .collect();
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
