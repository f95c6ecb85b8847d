//! Nodes.

use serde_json::Value;

use super::Strategy;
use crate::object::{entries, list, text};
use crate::status::FieldError;
use crate::validate::{one_of, qualified_name, quantity};

pub struct Node;

impl Strategy for Node {
    fn keeps_new_status(&self) -> bool {
        true // a node registers with what it has
    }

    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        let mut seen = Vec::new();
        for (n, taint) in list(new, "/spec/taints").iter().enumerate() {
            let at = format!("spec.taints[{n}]");
            let (key, effect) = (text(taint, "/key"), text(taint, "/effect"));
            qualified_name(key, &format!("{at}.key"), errors);
            if effect.is_empty() {
                errors.push(FieldError::required(format!("{at}.effect"), ""));
            }
            one_of(
                taint,
                "/effect",
                &format!("{at}.effect"),
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
                errors,
            );
            if seen.contains(&(key, effect)) {
                errors.push(FieldError::duplicate(at, taint.clone()));
            }
            seen.push((key, effect));
        }
        for field in ["capacity", "allocatable"] {
            for (name, value) in entries(new, &format!("/status/{field}")) {
                quantity(value, &format!("status.{field}[{name}]"), errors);
            }
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        for field in ["podCIDR", "providerID"] {
            let pointer = format!("/spec/{field}");
            let (before, after) = (text(old, &pointer), text(new, &pointer));
            if !before.is_empty() && before != after {
                errors.push(FieldError::forbidden(
                    format!("spec.{field}"),
                    "node updates may not change it except from \"\" to valid",
                ));
            }
        }
    }
}
