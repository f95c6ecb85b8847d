//! Pods.

use serde_json::{Value, json};
use wharf_kit::quantity::Quantity;

use super::{Strategy, Subresource, ephemeral, pod_spec};
use crate::object::{child, entries, list, map, number, restore, text};
use crate::status::FieldError;

pub struct Pod;

/// The node's name comes first: the node authorizer looks there.
pub const FIELDS: &[&str] = &[
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.nominatedNodeName",
];

const UPDATE_REFUSED: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

impl Strategy for Pod {
    fn prepare_create(&self, new: &mut Value) {
        let class = qos_class(new);
        map(new).insert("status".to_owned(), json!({"phase": "Pending", "qosClass": class}));
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, subresource: Option<Subresource>) {
        if subresource == Some(Subresource::Status) {
            let class = old.pointer("/status/qosClass").cloned().unwrap_or_default();
            child(new, "status").insert("qosClass".to_owned(), class);
            return;
        }
        if subresource.is_none() {
            restore(new, old, "status");
        }
    }

    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        let volumes = pod_spec::validate(&new["spec"], "spec", errors);
        ephemeral::validate(&new["spec"], &volumes, errors);
    }

    fn validate_create(&self, new: &Value, errors: &mut Vec<FieldError>) {
        if !list(new, "/spec/ephemeralContainers").is_empty() {
            errors.push(FieldError::forbidden("spec.ephemeralContainers", "cannot be set on create"));
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        let (mut ours, theirs) = (new["spec"].clone(), &old["spec"]);
        for containers in ["containers", "initContainers"] {
            let (Some(new), Some(old)) = (
                ours.get_mut(containers).and_then(Value::as_array_mut),
                theirs.get(containers).and_then(Value::as_array),
            ) else {
                continue;
            };
            if new.len() != old.len() {
                let what = if containers == "containers" { "containers" } else { "init containers" };
                return errors.push(FieldError::forbidden(
                    format!("spec.{containers}"),
                    format!("pod updates may not add or remove {what}"),
                ));
            }
            for (new, old) in new.iter_mut().zip(old) {
                restore(new, old, "image");
            }
        }
        let deadline = |spec: &Value| number(spec, "/activeDeadlineSeconds");
        match (deadline(&ours), deadline(theirs)) {
            (Some(new), Some(old)) if new > old => errors.push(FieldError::invalid(
                "spec.activeDeadlineSeconds",
                new,
                "must be less than or equal to previous value",
            )),
            (None, Some(_)) => errors.push(FieldError::invalid(
                "spec.activeDeadlineSeconds",
                Value::Null,
                "must not update from a positive integer to nil value",
            )),
            _ => restore(&mut ours, theirs, "activeDeadlineSeconds"),
        }
        if list(theirs, "/tolerations").iter().all(|old| list(&ours, "/tolerations").contains(old)) {
            restore(&mut ours, theirs, "tolerations");
        }
        if number(theirs, "/terminationGracePeriodSeconds").is_some_and(|old| old < 0)
            && number(&ours, "/terminationGracePeriodSeconds") == Some(1)
        {
            restore(&mut ours, theirs, "terminationGracePeriodSeconds");
        }
        if list(&ours, "/schedulingGates").iter().all(|gate| list(theirs, "/schedulingGates").contains(gate))
        {
            restore(&mut ours, theirs, "schedulingGates");
        }
        if ours != *theirs {
            errors.push(FieldError::forbidden("spec", UPDATE_REFUSED));
        }
    }

    fn grace(&self, pod: &Value, asked: Option<i64>) -> Option<i64> {
        if text(pod, "/spec/nodeName").is_empty()
            || matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
        {
            return Some(0);
        }
        let grace = asked.or_else(|| number(pod, "/spec/terminationGracePeriodSeconds")).unwrap_or(30);
        Some(if grace < 0 { 1 } else { grace })
    }

    fn has_generation(&self) -> bool {
        true
    }
}

/// Guaranteed, Burstable or BestEffort, by the requests and limits of cpu and memory.
pub fn qos_class(pod: &Value) -> &'static str {
    let containers: Vec<&Value> =
        list(pod, "/spec/containers").iter().chain(list(pod, "/spec/initContainers")).collect();
    let amount = |container: &Value, what: &str, resource: &str| -> Option<Quantity> {
        let found = entries(container, &format!("/resources/{what}")).find(|(name, _)| *name == resource)?;
        found.1.as_str()?.parse().ok().filter(|quantity: &Quantity| !quantity.is_zero())
    };
    let mut any = false;
    let mut guaranteed = true;
    for container in containers {
        for resource in ["cpu", "memory"] {
            let (request, limit) =
                (amount(container, "requests", resource), amount(container, "limits", resource));
            any |= request.is_some() || limit.is_some();
            guaranteed &= match (&request, &limit) {
                (Some(request), Some(limit)) => request == limit,
                (None, Some(_)) => true,
                _ => false,
            };
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
