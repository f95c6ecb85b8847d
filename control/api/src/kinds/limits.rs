//! ResourceQuotas and LimitRanges: what a namespace may use, and what each thing in it may.

use std::collections::BTreeSet;

use serde_json::Value;
use wharf_kit::quantity::Quantity;

use super::Strategy;
use crate::object::{entries, list, text};
use crate::status::FieldError;
use crate::validate::{immutable, qualified_name, quantity};

pub struct ResourceQuota;

pub const SCOPES: &[&str] = &[
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
];

impl Strategy for ResourceQuota {
    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        for (name, amount) in entries(new, "/spec/hard") {
            let field = format!("spec.hard[{name}]");
            if let Some(name) = name.strip_prefix("count/").filter(|name| name.is_empty()) {
                errors.push(FieldError::invalid(&field, name, "must name a resource: count/RESOURCE.GROUP"));
            }
            let bare = name.trim_start_matches("requests.").trim_start_matches("limits.");
            if !name.starts_with("count/") {
                qualified_name(bare, &field, errors);
            }
            quantity(amount, &field, errors);
        }
        let mut seen = BTreeSet::new();
        for scope in list(new, "/spec/scopes").iter().filter_map(Value::as_str) {
            if !SCOPES.contains(&scope) {
                errors.push(FieldError::invalid("spec.scopes", scope, "unsupported scope"));
            }
            seen.insert(scope);
        }
        for (one, other) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
            if seen.contains(one) && seen.contains(other) {
                errors.push(FieldError::invalid(
                    "spec.scopes",
                    new["spec"]["scopes"].clone(),
                    "conflicting scopes",
                ));
            }
        }
        for (n, need) in list(new, "/spec/scopeSelector/matchExpressions").iter().enumerate() {
            let at = format!("spec.scopeSelector.matchExpressions[{n}]");
            let (scope, operator) = (text(need, "/scopeName"), text(need, "/operator"));
            let valued = matches!(operator, "In" | "NotIn");
            if !SCOPES.contains(&scope) {
                errors.push(FieldError::invalid(format!("{at}.scopeName"), scope, "unsupported scope"));
            }
            if !matches!(operator, "In" | "NotIn" | "Exists" | "DoesNotExist") {
                errors.push(FieldError::invalid(
                    format!("{at}.operator"),
                    operator,
                    "not a valid selector operator",
                ));
            } else if scope != "PriorityClass" && operator != "Exists" {
                let why = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
                errors.push(FieldError::invalid(format!("{at}.operator"), operator, why));
            }
            if valued && list(need, "/values").is_empty() {
                let why = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                errors.push(FieldError::required(format!("{at}.values"), why));
            }
            if !valued && !list(need, "/values").is_empty() {
                let why = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                errors.push(FieldError::invalid(format!("{at}.values"), need["values"].clone(), why));
            }
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        immutable(new, old, "/spec/scopes", "spec.scopes", errors);
    }
}

pub struct LimitRange;

impl Strategy for LimitRange {
    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        let mut types = BTreeSet::new();
        for (n, item) in list(new, "/spec/limits").iter().enumerate() {
            let at = format!("spec.limits[{n}]");
            let type_ = text(item, "/type");
            if type_.is_empty() {
                errors.push(FieldError::required(format!("{at}.type"), ""));
            }
            if !types.insert(type_) {
                errors.push(FieldError::duplicate(format!("{at}.type"), type_));
            }
            if type_ == "Pod" {
                for field in ["default", "defaultRequest"] {
                    if entries(item, &format!("/{field}")).next().is_some() {
                        let why = "may not be specified when `type` is 'Pod'";
                        errors.push(FieldError::forbidden(format!("{at}.{field}"), why));
                    }
                }
            }
            bounds(item, &at, errors);
        }
    }
}

/// The smaller bound of each pair is not above the larger one.
fn bounds(item: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let mut names = BTreeSet::new();
    for field in ["min", "max", "default", "defaultRequest", "maxLimitRequestRatio"] {
        for (name, amount) in entries(item, &format!("/{field}")) {
            quantity(amount, &format!("{at}.{field}[{name}]"), errors);
            names.insert(name);
        }
    }
    let amount = |field: &str, name: &str| -> Option<(String, Quantity)> {
        let text = item.get(field)?.get(name)?.as_str()?;
        Some((text.to_owned(), text.parse().ok()?))
    };
    for name in names {
        for (low, high, words) in [
            ("min", "max", ["min", "max"]),
            ("min", "defaultRequest", ["min", "default request"]),
            ("defaultRequest", "max", ["default request", "max"]),
            ("defaultRequest", "default", ["default request", "default limit"]),
            ("min", "default", ["min", "default"]),
            ("default", "max", ["default", "max"]),
        ] {
            if let (Some((low_text, low_amount)), Some((high_text, high_amount))) =
                (amount(low, name), amount(high, name))
                && low_amount > high_amount
            {
                let why =
                    format!("{} value {low_text} is greater than {} value {high_text}", words[0], words[1]);
                errors.push(FieldError::invalid(format!("{at}.{low}[{name}]"), low_text, why));
            }
        }
        let one = Quantity::from_millis(1000);
        if let Some((ratio, amount)) = amount("maxLimitRequestRatio", name)
            && amount < one
        {
            let why = format!("ratio {ratio} is less than 1");
            errors.push(FieldError::invalid(format!("{at}.maxLimitRequestRatio[{name}]"), ratio, why));
        }
    }
}
