//! PriorityClasses.

use serde_json::Value;

use super::Strategy;
use crate::object::{name, number, text};
use crate::status::FieldError;
use crate::validate::immutable;

/// The classes that every cluster has: name, value, and what they are for.
pub const SYSTEM: [(&str, i64, &str); 2] = [
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];
/// Above this is the system's.
const USER_MAX: i64 = 1_000_000_000;

pub struct PriorityClass;

impl Strategy for PriorityClass {
    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        let (name, value) = (name(new), number(new, "/value").unwrap_or_default());
        if name.starts_with("system-") {
            let known = SYSTEM.iter().any(|(known, own, _)| *known == name && *own == value);
            if !known {
                let why = format!(
                    "priority class names with 'system-' prefix are reserved for system use only. error: {name} is not a known system priority class"
                );
                errors.push(FieldError::forbidden("metadata.name", why));
            }
        } else if value > USER_MAX {
            let why = format!("maximum allowed value of a user defined priority is {USER_MAX}");
            errors.push(FieldError::forbidden("value", why));
        }
        let policy = text(new, "/preemptionPolicy");
        if !matches!(policy, "PreemptLowerPriority" | "Never") {
            let known = ["Never", "PreemptLowerPriority"];
            errors.push(FieldError::not_supported("preemptionPolicy", policy, &known));
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        if new["value"] != old["value"] {
            errors.push(FieldError::forbidden("value", "may not be changed in an update."));
        }
        immutable(new, old, "/preemptionPolicy", "preemptionPolicy", errors);
    }
}
