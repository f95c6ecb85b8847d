//! The volumes of a pod, and the references to its own fields.

use std::collections::BTreeSet;

use serde_json::Value;

use super::pod_spec::name_of;
use crate::object::{entries, list, number, text};
use crate::status::FieldError;
use crate::validate::{qualified_name, quantity};

type Errors = Vec<FieldError>;

/// Checks the volumes and gives their names.
pub fn volumes(spec: &Value, field: &str, errors: &mut Errors) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (n, volume) in list(spec, "/volumes").iter().enumerate() {
        let at = format!("{field}.volumes[{n}]");
        let name = text(volume, "/name");
        name_of(name, &format!("{at}.name"), errors);
        if !name.is_empty() && !names.insert(name.to_owned()) {
            errors.push(FieldError::duplicate(format!("{at}.name"), name));
        }
        let sources: Vec<(&str, &Value)> =
            entries(volume, "").filter(|(key, value)| *key != "name" && !value.is_null()).collect();
        match sources.as_slice() {
            [] => errors.push(FieldError::required(at, "must specify a volume type")),
            [(source, value)] => volume_source(source, value, &at, errors),
            [_, (second, _), ..] => errors.push(FieldError::forbidden(
                format!("{at}.{second}"),
                "may not specify more than 1 volume type",
            )),
        }
    }
    names
}

fn volume_source(source: &str, value: &Value, at: &str, errors: &mut Errors) {
    let required = |pointer: &str, name: &str, errors: &mut Errors| {
        if text(value, pointer).is_empty() {
            errors.push(FieldError::required(format!("{at}.{source}.{name}"), ""));
        }
    };
    match source {
        "configMap" => required("/name", "name", errors),
        "secret" => required("/secretName", "secretName", errors),
        "persistentVolumeClaim" => required("/claimName", "claimName", errors),
        "hostPath" => {
            required("/path", "path", errors);
            if text(value, "/path").split('/').any(|part| part == "..") {
                errors.push(FieldError::invalid(
                    format!("{at}.hostPath.path"),
                    text(value, "/path"),
                    "must not contain '..'",
                ));
            }
        }
        "emptyDir" => {
            if let Some(limit) = value.get("sizeLimit") {
                quantity(limit, &format!("{at}.emptyDir.sizeLimit"), errors);
            }
        }
        _ => {}
    }
    let at = format!("{at}.{source}");
    match source {
        "configMap" | "secret" => key_items(value, &at, errors),
        "downwardAPI" => field_items(value, &at, errors),
        "projected" => {
            for (n, source) in list(value, "/sources").iter().enumerate() {
                projection(source, &format!("{at}.sources[{n}]"), errors);
            }
        }
        _ => return,
    }
    mode(value, "/defaultMode", &format!("{at}.defaultMode"), errors);
}

/// One source of a projected volume.
fn projection(source: &Value, at: &str, errors: &mut Errors) {
    let given: Vec<(&str, &Value)> = entries(source, "").filter(|(_, value)| !value.is_null()).collect();
    let (name, value) = match given.as_slice() {
        [one] => *one,
        [] => return errors.push(FieldError::required(at, "must specify a source")),
        [_, (second, _), ..] => {
            return errors.push(FieldError::forbidden(
                format!("{at}.{second}"),
                "may not specify more than 1 volume type",
            ));
        }
    };
    let at = format!("{at}.{name}");
    match name {
        "configMap" | "secret" => {
            if text(value, "/name").is_empty() {
                errors.push(FieldError::required(format!("{at}.name"), ""));
            }
            key_items(value, &at, errors);
        }
        "downwardAPI" => field_items(value, &at, errors),
        "serviceAccountToken" => {
            if let Some(seconds) = number(value, "/expirationSeconds")
                && let Some(problem) = crate::tokens::life_problem(seconds)
            {
                errors.push(FieldError::invalid(format!("{at}.expirationSeconds"), seconds, problem));
            }
            path(value, &at, errors);
        }
        _ => {}
    }
}

fn key_items(value: &Value, at: &str, errors: &mut Errors) {
    for (n, item) in list(value, "/items").iter().enumerate() {
        let at = format!("{at}.items[{n}]");
        if text(item, "/key").is_empty() {
            errors.push(FieldError::required(format!("{at}.key"), ""));
        }
        path(item, &at, errors);
        mode(item, "/mode", &format!("{at}.mode"), errors);
    }
}

fn field_items(value: &Value, at: &str, errors: &mut Errors) {
    for (n, item) in list(value, "/items").iter().enumerate() {
        let at = format!("{at}.items[{n}]");
        path(item, &at, errors);
        match (item.get("fieldRef"), item.get("resourceFieldRef")) {
            (Some(_), Some(_)) => errors.push(FieldError::invalid(
                at.as_str(),
                "resource",
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            )),
            (Some(field), None) => field_ref(field, &format!("{at}.fieldRef"), VOLUME_FIELDS, errors),
            (None, Some(field)) => {
                resource_field_ref(field, &format!("{at}.resourceFieldRef"), true, errors);
            }
            (None, None) => errors
                .push(FieldError::required(at.as_str(), "one of fieldRef and resourceFieldRef is required")),
        }
        mode(item, "/mode", &format!("{at}.mode"), errors);
    }
}

/// Fields of a pod that a file may tell, beside single labels and annotations.
const VOLUME_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// A `fieldRef` to one of `known`, or to a single label or annotation.
pub fn field_ref(value: &Value, at: &str, known: &[&str], errors: &mut Errors) {
    let path = text(value, "/fieldPath");
    let single = path.strip_suffix("']").and_then(|rest| rest.split_once("['"));
    match single {
        _ if path.is_empty() => errors.push(FieldError::required(format!("{at}.fieldPath"), "")),
        Some(("metadata.labels" | "metadata.annotations", key)) => {
            qualified_name(&key.to_lowercase(), &format!("{at}.fieldPath"), errors);
        }
        None if known.contains(&path) => {}
        _ => errors.push(FieldError::not_supported(format!("{at}.fieldPath"), path, known)),
    }
}

/// A `resourceFieldRef`; in a volume it has to name its container.
pub fn resource_field_ref(value: &Value, at: &str, in_volume: bool, errors: &mut Errors) {
    const KNOWN: &[&str] = &[
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let resource = text(value, "/resource");
    if in_volume && text(value, "/containerName").is_empty() {
        errors.push(FieldError::required(format!("{at}.containerName"), ""));
    }
    if resource.is_empty() {
        errors.push(FieldError::required(format!("{at}.resource"), ""));
    } else if !KNOWN.contains(&resource) {
        errors.push(FieldError::not_supported(format!("{at}.resource"), resource, KNOWN));
    }
    if let Some(divisor) = value.get("divisor") {
        quantity(divisor, &format!("{at}.divisor"), errors);
    }
}

fn mode(value: &Value, pointer: &str, field: &str, errors: &mut Errors) {
    if let Some(mode) = number(value, pointer)
        && !(0..=0o777).contains(&mode)
    {
        errors.push(FieldError::invalid(
            field,
            mode,
            "must be a number between 0 and 0777 (octal), both inclusive",
        ));
    }
}

/// The path of a file in a volume.
fn path(value: &Value, at: &str, errors: &mut Errors) {
    let (path, field) = (text(value, "/path"), format!("{at}.path"));
    if path.is_empty() {
        errors.push(FieldError::required(field, ""));
    } else if path.starts_with("..") && !path.starts_with("../") && path != ".." {
        errors.push(FieldError::invalid(field, path, "must not start with '..'"));
    } else {
        relative(path, &field, errors);
    }
}

/// A path that stays below where it starts.
pub fn relative(path: &str, field: &str, errors: &mut Errors) {
    if path.starts_with('/') {
        errors.push(FieldError::invalid(field, path, "must be a relative path"));
    } else if path.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(field, path, "must not contain '..'"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn projected_sources_are_checked_each_by_its_kind() {
        let good = json!([
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt", "mode": 0o400}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}},
                {"path": "tier", "fieldRef": {"fieldPath": "metadata.labels['example.com/Tier']"}},
                {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu", "divisor": "1m"}}]}},
        ]);
        let check = |source: Value| {
            let mut errors = Vec::new();
            let spec = json!({"volumes": [{"name": "v", "projected": {"sources": source}}]});
            volumes(&spec, "spec", &mut errors);
            errors.iter().map(|error| format!("{error:?}")).collect::<Vec<_>>()
        };
        assert_eq!(check(good), [""; 0]);
        for (source, want) in [
            (json!({}), "must specify a source"),
            (json!({"secret": {"name": "a"}, "configMap": {"name": "b"}}), "may not specify more than 1"),
            (json!({"serviceAccountToken": {"path": "t", "expirationSeconds": 599}}), "less than 10 minutes"),
            (json!({"serviceAccountToken": {"path": "../t"}}), "must not contain '..'"),
            (json!({"serviceAccountToken": {"path": "..t"}}), "must not start with '..'"),
            (
                json!({"secret": {"name": "a", "items": [{"key": "k", "path": "p", "mode": 512}]}}),
                "0777 (octal)",
            ),
            (
                json!({"downwardAPI": {"items": [{"path": "p", "fieldRef": {"fieldPath": "status.podIP"}}]}}),
                "status.podIP",
            ),
            (
                json!({"downwardAPI": {"items": [{"path": "p", "resourceFieldRef": {"resource": "limits.cpu"}}]}}),
                "containerName",
            ),
            (json!({"downwardAPI": {"items": [{"path": "p"}]}}), "one of fieldRef and resourceFieldRef"),
        ] {
            let errors = check(json!([source]));
            assert!(errors.len() == 1 && errors[0].contains(want), "{source}: {errors:?}");
        }
    }
}
