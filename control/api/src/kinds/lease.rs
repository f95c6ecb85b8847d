//! Leases.

use serde_json::Value;

use super::Strategy;
use crate::object::number;
use crate::status::FieldError;
use crate::validate::at_least;

pub struct Lease;

impl Strategy for Lease {
    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        if let Some(seconds) = number(new, "/spec/leaseDurationSeconds")
            && seconds <= 0
        {
            errors.push(FieldError::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
        }
        at_least(new, "/spec/leaseTransitions", "spec.leaseTransitions", 0, errors);
    }

    fn create_on_update(&self) -> bool {
        true
    }
}
