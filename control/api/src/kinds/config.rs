//! ConfigMaps and Secrets.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::{Strategy, Subresource};
use crate::object::{child, entries, flag, map, text};
use crate::status::FieldError;
use crate::validate::{config_key, immutable};

/// The data of one object, as kube-apiserver limits it.
const DATA_MAX: usize = 1 << 20;
const IMMUTABLE: &str = "field is immutable when `immutable` is set";

pub struct ConfigMap;
pub struct Secret;

fn check_data(object: &Value, field: &str, total: &mut usize, errors: &mut Vec<FieldError>) {
    for (key, value) in entries(object, &format!("/{field}")) {
        if let Err(problem) = config_key(key) {
            errors.push(FieldError::invalid(format!("{field}[{key}]"), key, problem));
        }
        *total += value.as_str().map_or(0, str::len);
    }
}

/// Data of an object marked immutable stays, and so does the mark.
fn check_immutable(new: &Value, old: &Value, fields: &[&str], errors: &mut Vec<FieldError>) {
    if !flag(old, "/immutable") {
        return;
    }
    if !flag(new, "/immutable") {
        errors.push(FieldError::forbidden("immutable", IMMUTABLE));
    }
    for field in fields {
        if new.get(field) != old.get(field) {
            errors.push(FieldError::forbidden(*field, IMMUTABLE));
        }
    }
}

impl Strategy for ConfigMap {
    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        let mut total = 0;
        check_data(new, "data", &mut total, errors);
        check_data(new, "binaryData", &mut total, errors);
        for (key, _) in entries(new, "/binaryData") {
            if entries(new, "/data").any(|(other, _)| other == key) {
                errors.push(FieldError::invalid(
                    format!("data[{key}]"),
                    key,
                    "duplicate of key present in binaryData",
                ));
            }
        }
        if total > DATA_MAX {
            errors.push(FieldError::too_long("", DATA_MAX));
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        check_immutable(new, old, &["data", "binaryData"], errors);
    }
}

/// stringData is for writing only: it goes into data.
fn take_string_data(secret: &mut Value) {
    let Some(Value::Object(plain)) = map(secret).remove("stringData") else { return };
    let data = child(secret, "data");
    for (key, value) in plain {
        data.insert(key, STANDARD.encode(value.as_str().unwrap_or_default()).into());
    }
}

impl Strategy for Secret {
    fn prepare_create(&self, new: &mut Value) {
        take_string_data(new);
        if text(new, "/type").is_empty() {
            map(new).insert("type".to_owned(), "Opaque".into());
        }
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, _subresource: Option<Subresource>) {
        take_string_data(new);
        if text(new, "/type").is_empty() {
            crate::object::restore(new, old, "type");
        }
    }

    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        let mut total = 0;
        check_data(new, "data", &mut total, errors);
        for (key, value) in entries(new, "/data") {
            if STANDARD.decode(value.as_str().unwrap_or_default()).is_err() {
                errors.push(FieldError::invalid(
                    format!("data[{key}]"),
                    "<secret contents redacted>",
                    "must be base64",
                ));
            }
        }
        if total > DATA_MAX {
            errors.push(FieldError::too_long("data", DATA_MAX));
        }
        let required: &[&str] = match text(new, "/type") {
            "kubernetes.io/tls" => &["tls.crt", "tls.key"],
            "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
            "kubernetes.io/dockercfg" => &[".dockercfg"],
            "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
            _ => &[],
        };
        for key in required {
            if !entries(new, "/data").any(|(present, _)| present == *key) {
                errors.push(FieldError::required(format!("data[{key}]"), ""));
            }
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        immutable(new, old, "/type", "type", errors);
        check_immutable(new, old, &["data"], errors);
    }
}
