//! Ephemeral containers: guests in a pod that runs, which are added through a subresource of their own and stay, unchanged,
//! for as long as the pod does.

use std::collections::BTreeSet;

use serde_json::Value;

use super::pod_spec;
use crate::object::{child, list, metadata, text};
use crate::status::FieldError;

/// Where they are in a pod.
const POINTER: &str = "/spec/ephemeralContainers";
const FIELD: &str = "spec.ephemeralContainers";

/// What they may have; Kubernetes' list. It says what is allowed, so that a new field of containers waits to be thought of.
const ALLOWED: &[&str] = &[
    "name",
    "targetContainerName",
    "image",
    "command",
    "args",
    "workingDir",
    "envFrom",
    "env",
    "volumeMounts",
    "volumeDevices",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "imagePullPolicy",
    "securityContext",
    "stdin",
    "stdinOnce",
    "tty",
];

/// Makes `new` what the subresource can make of `old`: other ephemeral containers, and whoever owns them.
pub fn keep_alone(new: &mut Value, old: &Value) {
    let containers = new.pointer_mut(POINTER).map(Value::take);
    let managed = metadata(new).remove("managedFields");
    new.clone_from(old);
    match containers {
        Some(containers) => child(new, "spec").insert("ephemeralContainers".to_owned(), containers),
        None => child(new, "spec").remove("ephemeralContainers"),
    };
    if let Some(managed) = managed {
        metadata(new).insert("managedFields".to_owned(), managed);
    }
}

/// Checks those of a pod, whose volumes are named `volumes`.
pub fn validate(spec: &Value, volumes: &BTreeSet<String>, errors: &mut Vec<FieldError>) {
    let others: BTreeSet<&str> = ["/containers", "/initContainers"]
        .into_iter()
        .flat_map(|containers| list(spec, containers))
        .map(|container| text(container, "/name"))
        .collect();
    let mut names = others.clone();
    for (n, container) in list(spec, "/ephemeralContainers").iter().enumerate() {
        let at = format!("{FIELD}[{n}]");
        let name = text(container, "/name");
        pod_spec::name_of(name, &format!("{at}.name"), errors);
        pod_spec::container(container, &at, volumes, false, errors);
        if !name.is_empty() && !names.insert(name) {
            errors.push(FieldError::duplicate(format!("{at}.name"), name));
        }
        let target = text(container, "/targetContainerName");
        if !target.is_empty() && !others.contains(target) {
            errors.push(FieldError::not_found(format!("{at}.targetContainerName"), target));
        }
        let forbidden =
            |field: String| FieldError::forbidden(field, "cannot be set for an Ephemeral Container");
        let given = container.as_object().into_iter().flatten().filter(|(_, value)| !empty(value));
        for (field, _) in given.filter(|(field, _)| !ALLOWED.contains(&field.as_str())) {
            errors.push(forbidden(format!("{at}.{field}")));
        }
        for (m, mount) in list(container, "/volumeMounts").iter().enumerate() {
            for field in ["subPath", "subPathExpr"] {
                if !text(mount, &format!("/{field}")).is_empty() {
                    errors.push(forbidden(format!("{at}.volumeMounts[{m}].{field}")));
                }
            }
        }
    }
}

/// Nothing was said: `resources: {}` and the like.
fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.values().all(empty),
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Those that are there stay as they are. Their order is nobody's: a strategic merge changes it.
pub fn validate_update(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    for before in list(old, POINTER) {
        let name = text(before, "/name");
        let now = list(new, POINTER).iter().find(|container| text(container, "/name") == name);
        let what = match now {
            Some(now) if now == before => continue,
            Some(_) => "changed",
            None => "removed",
        };
        let why = format!("existing ephemeral containers {name:?} may not be {what}");
        errors.push(FieldError::forbidden(FIELD, why));
    }
}
