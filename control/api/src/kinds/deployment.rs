//! Deployments.

use serde_json::Value;

use super::{Strategy, pod_spec, replicaset};
use crate::object::text;
use crate::status::FieldError;
use crate::validate::{at_least, immutable, int_or_percent, is_zero, one_of};

pub struct Deployment;

impl Strategy for Deployment {
    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        at_least(new, "/spec/replicas", "spec.replicas", 0, errors);
        at_least(new, "/spec/minReadySeconds", "spec.minReadySeconds", 0, errors);
        at_least(new, "/spec/revisionHistoryLimit", "spec.revisionHistoryLimit", 0, errors);
        replicaset::selector(new, "deployment", errors);
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
            let value = strategy.pointer(&format!("/rollingUpdate/{field}"));
            int_or_percent(value, &format!("spec.strategy.rollingUpdate.{field}"), errors);
        }
        let zero = |field: &str| strategy.pointer(&format!("/rollingUpdate/{field}")).is_some_and(is_zero);
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
