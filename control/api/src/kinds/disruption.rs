//! PodDisruptionBudgets.

use serde_json::Value;

use super::Strategy;
use crate::status::FieldError;
use crate::validate::{self, int_or_percent, one_of};

pub struct PodDisruptionBudget;

impl Strategy for PodDisruptionBudget {
    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        let spec = &new["spec"];
        let given = |field: &str| spec.get(field).filter(|value| !value.is_null());
        if given("minAvailable").is_some() && given("maxUnavailable").is_some() {
            let why = "minAvailable and maxUnavailable cannot be both set";
            errors.push(FieldError::invalid("spec", spec.clone(), why));
        }
        for field in ["minAvailable", "maxUnavailable"] {
            int_or_percent(given(field), &format!("spec.{field}"), errors);
        }
        if let Err(problem) = validate::selector(&spec["selector"]) {
            errors.push(FieldError::invalid("spec.selector", spec["selector"].clone(), problem));
        }
        let policies = ["AlwaysAllow", "IfHealthyBudget"];
        let field = "spec.unhealthyPodEvictionPolicy";
        one_of(new, "/spec/unhealthyPodEvictionPolicy", field, &policies, errors);
    }

    fn has_generation(&self) -> bool {
        true
    }
}
