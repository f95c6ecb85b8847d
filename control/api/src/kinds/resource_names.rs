//! Which names resources may have, and where, in Kubernetes' words.

use wharf_kit::resources::{is_extended, is_huge_page, is_native};
use wharf_kit::selector::qualified_name_problem;

use crate::status::FieldError;

const OF_CONTAINERS: &[&str] = &["cpu", "ephemeral-storage", "memory"];

/// What a quota limits beside the resources of containers and hugepages.
const OF_QUOTAS: &[&str] = &[
    "configmaps",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];

/// What a quota may name without a domain.
fn is_of_quota(name: &str) -> bool {
    OF_CONTAINERS.contains(&name)
        || OF_QUOTAS.contains(&name)
        || is_huge_page(name.strip_prefix("requests.").unwrap_or(name))
}

/// A name that stands for a resource somewhere.
pub fn any(name: &str, field: &str, errors: &mut Vec<FieldError>) {
    if let Some(problem) = qualified_name_problem(name) {
        errors.push(FieldError::invalid(field, name, problem));
    } else if !name.contains('/') && name != "storage" && !is_of_quota(name) {
        let why = "must be a standard resource type or fully qualified";
        errors.push(FieldError::invalid(field, name, why));
    }
}

/// What containers ask for.
pub fn of_container(name: &str, field: &str, errors: &mut Vec<FieldError>) {
    any(name, field, errors);
    if !name.contains('/') {
        if !OF_CONTAINERS.contains(&name) && !is_huge_page(name) {
            errors.push(FieldError::invalid(field, name, "must be a standard resource for containers"));
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.push(FieldError::invalid(field, name, "doesn't follow extended resource name standard"));
    }
}

/// What quotas limit.
pub fn of_quota(name: &str, field: &str, errors: &mut Vec<FieldError>) {
    any(name, field, errors);
    if !name.contains('/') && !is_of_quota(name) {
        errors.push(FieldError::invalid(field, name, "must be a standard resource for quota"));
    }
}

/// Whether there are no fractions of it.
pub fn is_whole(name: &str) -> bool {
    let counted = OF_QUOTAS.contains(&name) && !name.starts_with("limits.") && !name.starts_with("requests.");
    counted || is_extended(name)
}

/// Whether a quota with this scope may limit it; what has a domain always may be.
pub fn has_scope(name: &str, scope: &str) -> bool {
    let computed =
        matches!(name.trim_start_matches("requests.").trim_start_matches("limits."), "cpu" | "memory");
    match scope {
        _ if !is_of_quota(name) => true,
        "BestEffort" => name == "pods",
        "CrossNamespacePodAffinity"
        | "NotBestEffort"
        | "NotTerminating"
        | "PriorityClass"
        | "Terminating" => name == "pods" || computed,
        _ => true,
    }
}
