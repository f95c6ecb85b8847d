//! Roles and bindings.

use serde_json::Value;

use super::Strategy;
use crate::object::{list, map, text};
use crate::status::FieldError;
use crate::validate::{immutable, path_segment};

const GROUP: &str = "rbac.authorization.k8s.io";

pub struct Role;
pub struct ClusterRole;
pub struct Binding {
    /// For the whole cluster: it can refer to a ClusterRole only.
    pub cluster: bool,
}

fn rules(role: &Value, namespaced: bool, errors: &mut Vec<FieldError>) {
    for (n, rule) in list(role, "/rules").iter().enumerate() {
        let at = format!("rules[{n}]");
        let (urls, resources) = (list(rule, "/nonResourceURLs"), list(rule, "/resources"));
        if list(rule, "/verbs").is_empty() {
            errors.push(FieldError::required(format!("{at}.verbs"), "verbs must contain at least one value"));
        }
        if !urls.is_empty() {
            if namespaced {
                errors.push(FieldError::invalid(
                    format!("{at}.nonResourceURLs"),
                    Value::from(urls),
                    "namespaced rules cannot apply to non-resource URLs",
                ));
            }
            if !resources.is_empty() || !list(rule, "/apiGroups").is_empty() {
                errors.push(FieldError::invalid(
                    format!("{at}.nonResourceURLs"),
                    Value::from(urls),
                    "rules cannot apply to both regular resources and non-resource URLs",
                ));
            }
            continue;
        }
        if list(rule, "/apiGroups").is_empty() {
            errors.push(FieldError::required(
                format!("{at}.apiGroups"),
                "resource rules must supply at least one api group",
            ));
        }
        if resources.is_empty() {
            errors.push(FieldError::required(
                format!("{at}.resources"),
                "resource rules must supply at least one resource",
            ));
        }
    }
}

impl Strategy for Role {
    fn check_name(&self, name: &str, prefix: bool) -> Result<(), String> {
        path_segment(name, prefix)
    }

    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        rules(new, true, errors);
    }
}

impl Strategy for ClusterRole {
    fn check_name(&self, name: &str, prefix: bool) -> Result<(), String> {
        path_segment(name, prefix)
    }

    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        rules(new, false, errors);
    }
}

/// Fills in the groups that follow from the kinds.
fn default_groups(binding: &mut Value) {
    if let Some(role) = binding.get_mut("roleRef")
        && text(role, "/apiGroup").is_empty()
    {
        map(role).insert("apiGroup".to_owned(), GROUP.into());
    }
    for subject in binding.get_mut("subjects").and_then(Value::as_array_mut).into_iter().flatten() {
        if matches!(text(subject, "/kind"), "User" | "Group") && text(subject, "/apiGroup").is_empty() {
            map(subject).insert("apiGroup".to_owned(), GROUP.into());
        }
    }
}

impl Strategy for Binding {
    fn prepare_create(&self, new: &mut Value) {
        default_groups(new);
    }

    fn prepare_update(&self, new: &mut Value, _old: &Value, _subresource: Option<super::Subresource>) {
        default_groups(new);
    }

    fn check_name(&self, name: &str, prefix: bool) -> Result<(), String> {
        path_segment(name, prefix)
    }

    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        let group = text(new, "/roleRef/apiGroup");
        if group != GROUP {
            errors.push(FieldError::not_supported("roleRef.apiGroup", group, &[GROUP]));
        }
        let kind = text(new, "/roleRef/kind");
        let allowed: &[&str] = if self.cluster { &["ClusterRole"] } else { &["Role", "ClusterRole"] };
        if !allowed.contains(&kind) {
            errors.push(FieldError::not_supported("roleRef.kind", kind, allowed));
        }
        if text(new, "/roleRef/name").is_empty() {
            errors.push(FieldError::required("roleRef.name", ""));
        }
        for (n, subject) in list(new, "/subjects").iter().enumerate() {
            let at = format!("subjects[{n}]");
            if text(subject, "/name").is_empty() {
                errors.push(FieldError::required(format!("{at}.name"), ""));
            }
            match text(subject, "/kind") {
                "ServiceAccount" if self.cluster && text(subject, "/namespace").is_empty() => {
                    errors.push(FieldError::required(format!("{at}.namespace"), ""));
                }
                "ServiceAccount" | "User" | "Group" => {}
                other => errors.push(FieldError::not_supported(
                    format!("{at}.kind"),
                    other,
                    &["ServiceAccount", "User", "Group"],
                )),
            }
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        if new.get("roleRef") != old.get("roleRef") {
            immutable(new, old, "/roleRef", "roleRef", errors);
        }
    }
}
