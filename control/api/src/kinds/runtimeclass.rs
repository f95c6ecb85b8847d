//! RuntimeClasses.

use serde_json::Value;

use super::Strategy;
use crate::object::{entries, text};
use crate::status::FieldError;
use crate::validate::{dns_label, immutable, labels, quantity};

pub struct RuntimeClass;

impl Strategy for RuntimeClass {
    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        let handler = text(new, "/handler");
        if let Err(problem) = dns_label(handler, false) {
            errors.push(FieldError::invalid("handler", handler, problem));
        }
        for (name, value) in entries(new, "/overhead/podFixed") {
            quantity(value, &format!("overhead.podFixed[{name}]"), errors);
        }
        labels(new, "/scheduling/nodeSelector", "scheduling.nodeSelector", errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        immutable(new, old, "/handler", "handler", errors);
    }
}
