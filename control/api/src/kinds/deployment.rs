//! Deployments.

use serde_json::Value;

use super::{Strategy, pod_spec, replicaset};
use crate::object::text;
use crate::status::FieldError;
use crate::validate::{at_least, immutable, one_of};

pub struct Deployment;

impl Strategy for Deployment {
    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        at_least(new, "/spec/replicas", "spec.replicas", 0, errors);
        at_least(new, "/spec/minReadySeconds", "spec.minReadySeconds", 0, errors);
        at_least(new, "/spec/revisionHistoryLimit", "spec.revisionHistoryLimit", 0, errors);
        replicaset::selector(new, errors);
        pod_spec::template(&new["spec"]["template"], "spec.template", Some("Always"), errors);
        one_of(new, "/spec/strategy/type", "spec.strategy.type", &["Recreate", "RollingUpdate"], errors);
        let strategy = &new["spec"]["strategy"];
        if text(strategy, "/type") == "Recreate"
            && strategy.get("rollingUpdate").is_some_and(|rolling| !rolling.is_null())
        {
            errors.push(FieldError::forbidden(
                "spec.strategy.rollingUpdate",
                "may not be specified when strategy `type` is 'Recreate'",
            ));
        }
        for field in ["maxSurge", "maxUnavailable"] {
            int_or_percent(strategy.pointer(&format!("/rollingUpdate/{field}")), field, errors);
        }
        let zero = |field: &str| match strategy.pointer(&format!("/rollingUpdate/{field}")) {
            Some(Value::Number(number)) => number.as_i64() == Some(0),
            Some(Value::String(percent)) => percent == "0%",
            _ => false,
        };
        if zero("maxSurge") && zero("maxUnavailable") {
            errors.push(FieldError::invalid(
                "spec.strategy.rollingUpdate.maxUnavailable",
                strategy["rollingUpdate"]["maxUnavailable"].clone(),
                "may not be 0 when `maxSurge` is 0",
            ));
        }
        let deadline = crate::object::number(new, "/spec/progressDeadlineSeconds");
        let ready = crate::object::number(new, "/spec/minReadySeconds").unwrap_or(0);
        if let Some(deadline) = deadline
            && deadline <= ready
        {
            errors.push(FieldError::invalid(
                "spec.progressDeadlineSeconds",
                deadline,
                "must be greater than minReadySeconds",
            ));
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        immutable(new, old, "/spec/selector", "spec.selector", errors);
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn int_or_percent(value: Option<&Value>, field: &str, errors: &mut Vec<FieldError>) {
    let field = format!("spec.strategy.rollingUpdate.{field}");
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
