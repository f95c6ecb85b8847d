//! Checks that many kinds share: names, labels, annotations, quantities; in Kubernetes' words.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as Selector;
use serde_json::Value;
use wharf_kit::quantity::Quantity;
use wharf_kit::selector::{LabelSelector, label_value_problem, qualified_name_problem};

use crate::kinds::Kind;
use crate::object::{entries, finalizers, flag, list, name, namespace, text};
use crate::status::FieldError;

/// All annotations of an object together, keys and values.
const ANNOTATIONS_MAX: usize = 256 << 10;
const LABEL_MAX: usize = 63;
const SUBDOMAIN_MAX: usize = 253;
/// What a generated name adds to its prefix.
const SUFFIX: usize = 5;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";

/// A prefix of a generated name may end as a name may not.
fn prefix_of(name: &str, prefix: bool) -> String {
    match prefix && name.ends_with('-') {
        true => format!("{}a", &name[..name.len() - 1]),
        false => name.to_owned(),
    }
}

fn is_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty() && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

pub fn dns_subdomain(name: &str, prefix: bool) -> Result<(), String> {
    let name = prefix_of(name, prefix);
    if name.len() > SUBDOMAIN_MAX {
        return Err(format!("must be no more than {SUBDOMAIN_MAX} bytes"));
    }
    if name.split('.').all(is_label) { Ok(()) } else { Err(SUBDOMAIN.to_owned()) }
}

pub fn dns_label(name: &str, prefix: bool) -> Result<(), String> {
    let name = prefix_of(name, prefix);
    if name.len() > LABEL_MAX {
        return Err(format!("must be no more than {LABEL_MAX} bytes"));
    }
    if is_label(&name) { Ok(()) } else { Err(LABEL.to_owned()) }
}

/// What can stand in a path: the names of RBAC kinds.
pub fn path_segment(name: &str, prefix: bool) -> Result<(), String> {
    match name {
        "." | ".." if !prefix => Err(format!("may not be '{name}'")),
        _ if name.contains('/') => Err("may not contain '/'".to_owned()),
        _ if name.contains('%') => Err("may not contain '%'".to_owned()),
        _ => Ok(()),
    }
}

/// A service or port name: IANA's.
pub fn port_name(name: &str) -> Result<(), &'static str> {
    let ok = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.len() > 15 {
        Err("must be no more than 15 characters")
    } else if !name.bytes().all(ok) {
        Err("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    } else if !name.bytes().any(|byte| byte.is_ascii_lowercase()) {
        Err("must contain at least one letter (a-z)")
    } else if name.contains("--") {
        Err("must not contain consecutive hyphens")
    } else if name.starts_with('-') || name.ends_with('-') {
        Err("must not begin or end with a hyphen")
    } else {
        Ok(())
    }
}

/// Keys of ConfigMaps and Secrets.
pub fn config_key(key: &str) -> Result<(), String> {
    let ok = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if key.len() > SUBDOMAIN_MAX {
        return Err(format!("must be no more than {SUBDOMAIN_MAX} bytes"));
    }
    if key.is_empty() || !key.bytes().all(ok) {
        return Err("a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')".to_owned());
    }
    match key {
        "." | ".." => Err(format!("must not be '{key}'")),
        _ if key.starts_with("..") => Err("must not start with '..'".to_owned()),
        _ => Ok(()),
    }
}

/// A name for a prefix: five letters and digits that are hard to confuse and make no words.
pub fn generate_name(prefix: &str) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut name: String = prefix.chars().take(SUBDOMAIN_MAX - SUFFIX).collect();
    name.truncate(LABEL_MAX - SUFFIX);
    name.extend((0..SUFFIX).map(|_| char::from(LETTERS[rand::random_range(0..LETTERS.len())])));
    name
}

pub fn qualified_name(name: &str, field: &str, errors: &mut Vec<FieldError>) {
    if let Some(problem) = qualified_name_problem(name) {
        errors.push(FieldError::invalid(field, name, problem));
    }
}

/// A label selector of an object, if there is one.
///
/// # Errors
/// What is wrong with it.
pub fn selector(selector: &Value) -> Result<Option<LabelSelector>, String> {
    let typed: Option<Selector> =
        serde_json::from_value(selector.clone()).map_err(|error| error.to_string())?;
    typed.as_ref().map(LabelSelector::try_from).transpose().map_err(|error| error.to_string())
}

pub fn labels(object: &Value, pointer: &str, field: &str, errors: &mut Vec<FieldError>) {
    for (key, value) in entries(object, pointer) {
        qualified_name(key, field, errors);
        let value = value.as_str().unwrap_or_default();
        if let Some(problem) = label_value_problem(value) {
            errors.push(FieldError::invalid(field, value, problem));
        }
    }
}

/// Annotations of an object or of a template.
pub fn annotations(object: &Value, pointer: &str, field: &str, errors: &mut Vec<FieldError>) {
    let mut total = 0;
    for (key, value) in entries(object, pointer) {
        qualified_name(&key.to_lowercase(), field, errors);
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > ANNOTATIONS_MAX {
        errors.push(FieldError::too_long(field, ANNOTATIONS_MAX));
    }
}

/// The metadata of any object.
pub fn metadata(object: &Value, kind: &Kind, errors: &mut Vec<FieldError>) {
    let generate = text(object, "/metadata/generateName");
    if !generate.is_empty()
        && let Err(problem) = kind.strategy.check_name(generate, true)
    {
        errors.push(FieldError::invalid("metadata.generateName", generate, problem));
    }
    match name(object) {
        "" => errors.push(FieldError::required("metadata.name", "name or generateName is required")),
        name => {
            if let Err(problem) = kind.strategy.check_name(name, false) {
                errors.push(FieldError::invalid("metadata.name", name, problem));
            }
            // It is a path segment and part of a key, whatever the kind allows.
            else if let Err(problem) = path_segment(name, false) {
                errors.push(FieldError::invalid("metadata.name", name, problem));
            }
        }
    }
    if kind.namespaced
        && let Err(problem) = dns_label(namespace(object), false)
    {
        errors.push(FieldError::invalid("metadata.namespace", namespace(object), problem));
    }
    labels(object, "/metadata/labels", "metadata.labels", errors);
    annotations(object, "/metadata/annotations", "metadata.annotations", errors);
    for finalizer in finalizers(object).iter().filter_map(Value::as_str) {
        qualified_name(finalizer, "metadata.finalizers", errors);
        if !finalizer.contains('/') && !matches!(finalizer, "orphan" | "foregroundDeletion" | "kubernetes") {
            errors.push(FieldError::invalid(
                "metadata.finalizers",
                finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
    let has = |wanted: &str| finalizers(object).iter().any(|finalizer| finalizer == wanted);
    if has("orphan") && has("foregroundDeletion") {
        errors.push(FieldError::invalid(
            "metadata.finalizers",
            Value::from(finalizers(object)),
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
    owner_references(object, errors);
}

fn owner_references(object: &Value, errors: &mut Vec<FieldError>) {
    let owners = list(object, "/metadata/ownerReferences");
    for owner in owners {
        for (pointer, field, why) in [
            ("/apiVersion", "apiVersion", "version must not be empty"),
            ("/kind", "kind", "must not be empty"),
            ("/name", "name", "must not be empty"),
            ("/uid", "uid", "must not be empty"),
        ] {
            if text(owner, pointer).is_empty() {
                errors.push(FieldError::invalid(format!("metadata.ownerReferences.{field}"), "", why));
            }
        }
    }
    if owners.iter().filter(|owner| flag(owner, "/controller")).count() > 1 {
        errors.push(FieldError::invalid(
            "metadata.ownerReferences",
            Value::from(owners),
            "Only one reference can have Controller set to true",
        ));
    }
}

/// A resource amount; `None` and an error if it does not parse or is negative.
pub fn quantity(value: &Value, field: &str, errors: &mut Vec<FieldError>) -> Option<Quantity> {
    let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match shown.parse::<Quantity>() {
        Ok(quantity) if quantity.is_negative() => {
            errors.push(FieldError::invalid(field, shown, "must be greater than or equal to 0"));
            None
        }
        Ok(quantity) => Some(quantity),
        Err(error) => {
            errors.push(FieldError::invalid(field, shown, error.to_string()));
            None
        }
    }
}

pub fn at_least(object: &Value, pointer: &str, field: &str, least: i64, errors: &mut Vec<FieldError>) {
    if let Some(number) = crate::object::number(object, pointer)
        && number < least
    {
        errors.push(FieldError::invalid(field, number, format!("must be greater than or equal to {least}")));
    }
}

pub fn one_of(object: &Value, pointer: &str, field: &str, allowed: &[&str], errors: &mut Vec<FieldError>) {
    let value = text(object, pointer);
    if !value.is_empty() && !allowed.contains(&value) {
        errors.push(FieldError::not_supported(field, value, allowed));
    }
}

/// A number that is not negative, or a percentage.
pub fn int_or_percent(value: Option<&Value>, field: &str, errors: &mut Vec<FieldError>) {
    match value {
        Some(Value::Number(number)) if number.as_i64().is_some_and(|number| number < 0) => {
            errors.push(FieldError::invalid(
                field,
                number.as_i64().unwrap_or(0),
                "must be greater than or equal to 0",
            ));
        }
        Some(Value::String(percent)) => {
            let number = percent.strip_suffix('%').and_then(|digits| digits.parse::<u32>().ok());
            if number.is_none() {
                errors.push(FieldError::invalid(
                    field,
                    percent.as_str(),
                    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
                ));
            }
        }
        _ => {}
    }
}

/// Whether a number or percentage is nothing.
pub fn is_zero(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(percent) => percent == "0%",
        _ => false,
    }
}

/// `field` may not change once it is set.
pub fn immutable(new: &Value, old: &Value, pointer: &str, field: &str, errors: &mut Vec<FieldError>) {
    let (new, old) = (new.pointer(pointer), old.pointer(pointer));
    if new != old {
        errors.push(FieldError::invalid(field, new.cloned().unwrap_or_default(), "field is immutable"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_as_kubernetes_does() {
        for (name, subdomain, label) in [
            ("web", true, true),
            ("a.b", true, false),
            ("", false, false),
            ("-a", false, false),
            ("a-", false, false),
            ("A", false, false),
            ("a..b", false, false),
            ("a_b", false, false),
            ("1", true, true),
        ] {
            assert_eq!(dns_subdomain(name, false).is_ok(), subdomain, "{name:?}");
            assert_eq!(dns_label(name, false).is_ok(), label, "{name:?}");
        }
        assert!(dns_subdomain("web-", true).is_ok());
        assert!(dns_label(&"a".repeat(64), false).is_err());
        assert!(generate_name("web-").starts_with("web-"));
        assert_eq!(generate_name("web-").len(), 9);
    }
}
