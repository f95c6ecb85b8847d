//! DaemonSets.

use serde_json::Value;

use super::{Strategy, pod_spec, replicaset};
use crate::object::{list, text};
use crate::status::FieldError;
use crate::validate::{at_least, immutable, int_or_percent, is_zero, one_of};

pub struct DaemonSet;

impl Strategy for DaemonSet {
    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        at_least(new, "/spec/minReadySeconds", "spec.minReadySeconds", 0, errors);
        at_least(new, "/spec/revisionHistoryLimit", "spec.revisionHistoryLimit", 0, errors);
        replicaset::selector(new, "daemonset", errors);
        pod_spec::template(&new["spec"]["template"], "spec.template", Some("Always"), errors);
        let (strategy, at) = (&new["spec"]["updateStrategy"], "spec.updateStrategy");
        one_of(strategy, "/type", &format!("{at}.type"), &["OnDelete", "RollingUpdate"], errors);
        if text(strategy, "/type") != "RollingUpdate" {
            return;
        }
        let Some(rolling) = strategy.get("rollingUpdate").filter(|rolling| !rolling.is_null()) else {
            return errors.push(FieldError::required(format!("{at}.rollingUpdate"), ""));
        };
        let at = format!("{at}.rollingUpdate");
        for field in ["maxUnavailable", "maxSurge"] {
            int_or_percent(rolling.get(field), &format!("{at}.{field}"), errors);
        }
        let zero = |field: &str| rolling.get(field).is_none_or(is_zero);
        if zero("maxUnavailable") && zero("maxSurge") {
            errors
                .push(FieldError::required(format!("{at}.maxUnavailable"), "cannot be 0 when maxSurge is 0"));
        }
        if !zero("maxUnavailable") && !zero("maxSurge") {
            errors.push(FieldError::invalid(
                format!("{at}.maxSurge"),
                rolling["maxSurge"].clone(),
                "may not be set when maxUnavailable is non-zero",
            ));
        }
        // Two pods of a node cannot have the same of its ports, so a surge would never come up.
        let ports = list(new, "/spec/template/spec/containers").iter().flat_map(|one| list(one, "/ports"));
        if !zero("maxSurge") && ports.into_iter().any(|port| port.get("hostPort").is_some()) {
            errors.push(FieldError::invalid(
                format!("{at}.maxSurge"),
                rolling["maxSurge"].clone(),
                "host ports cannot be used when maxSurge is non-zero",
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
