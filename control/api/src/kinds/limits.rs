//! ResourceQuotas and LimitRanges: what a namespace may use, and what each thing in it may.

use std::collections::BTreeSet;

use serde_json::Value;
use wharf_kit::quantity::Quantity;
use wharf_kit::resources::{Amounts, is_huge_page, is_native};
use wharf_kit::selector::qualified_name_problem;

use super::{Strategy, resource_names};
use crate::object::{entries, list, text};
use crate::status::FieldError;
use crate::validate::{immutable, quantity};

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
        hard(new, "/spec/hard", "spec.hard", errors);
        let limited: Vec<&str> = entries(new, "/spec/hard").map(|(name, _)| name).collect();
        let mut seen = BTreeSet::new();
        for scope in list(new, "/spec/scopes").iter().filter_map(Value::as_str) {
            let whole = || new["spec"]["scopes"].clone();
            if !SCOPES.contains(&scope) {
                errors.push(FieldError::invalid("spec.scopes", whole(), "unsupported scope"));
            }
            for _ in limited.iter().filter(|name| !resource_names::has_scope(name, scope)) {
                let why = "unsupported scope applied to resource";
                errors.push(FieldError::invalid("spec.scopes", whole(), why));
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
            for _ in limited.iter().filter(|name| !resource_names::has_scope(name, scope)) {
                let why = "unsupported scope applied to resource";
                errors.push(FieldError::invalid(&at, new["spec"]["scopeSelector"].clone(), why));
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

    fn validate_status(&self, new: &Value, _old: &Value, errors: &mut Vec<FieldError>) {
        hard(new, "/status/hard", "status.hard", errors);
        hard(new, "/status/used", "status.used", errors);
    }
}

/// The amounts of what a quota limits.
fn hard(quota: &Value, pointer: &str, field: &str, errors: &mut Vec<FieldError>) {
    for (name, amount) in entries(quota, pointer) {
        let field = format!("{field}[{name}]");
        resource_names::of_quota(name, &field, errors);
        let amount = quantity(amount, &field, errors);
        if let Some(amount) = amount.filter(|amount| resource_names::is_whole(name) && !amount.is_integer()) {
            errors.push(FieldError::invalid(field, amount.to_string(), "must be an integer"));
        }
    }
}

pub struct LimitRange;

impl Strategy for LimitRange {
    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        let mut types = BTreeSet::new();
        for (n, item) in list(new, "/spec/limits").iter().enumerate() {
            let at = format!("spec.limits[{n}]");
            let type_ = text(item, "/type");
            let problem = qualified_name_problem(type_).or_else(|| {
                let known = type_.contains('/') || matches!(type_, "Pod" | "Container" | CLAIM);
                (!known).then(|| "must be a standard limit type or fully qualified".to_owned())
            });
            if let Some(problem) = problem {
                errors.push(FieldError::invalid(format!("{at}.type"), type_, problem));
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
            let bounds = Bounds::of(item, type_, &at, errors);
            if type_ == CLAIM && !bounds.min.contains_key("storage") && !bounds.max.contains_key("storage") {
                let why = "either minimum or maximum storage value is required, but neither was provided";
                errors.push(FieldError::required(format!("{at}.limits"), why));
            }
            bounds.check(&at, errors);
        }
    }
}

const CLAIM: &str = "PersistentVolumeClaim";

/// The amounts of an entry of `spec.limits`.
#[derive(Default)]
struct Bounds {
    min: Amounts,
    max: Amounts,
    default: Amounts,
    request: Amounts,
    ratio: Amounts,
}

impl Bounds {
    /// Checks each amount by itself.
    fn of(item: &Value, type_: &str, at: &str, errors: &mut Vec<FieldError>) -> Self {
        let mut bounds = Self::default();
        for (field, into) in [
            ("max", &mut bounds.max),
            ("min", &mut bounds.min),
            ("default", &mut bounds.default),
            ("defaultRequest", &mut bounds.request),
            ("maxLimitRequestRatio", &mut bounds.ratio),
        ] {
            for (name, amount) in entries(item, &format!("/{field}")) {
                let at = format!("{at}.{field}[{name}]");
                match type_ {
                    "Pod" | "Container" => resource_names::of_container(name, &at, errors),
                    _ => resource_names::any(name, &at, errors),
                }
                into.extend(quantity(amount, &at, errors).map(|amount| (name.to_owned(), amount)));
            }
        }
        bounds
    }

    /// The smaller bound of each pair is not above the larger one.
    fn check(&self, at: &str, errors: &mut Vec<FieldError>) {
        let Self { min, max, default, request, ratio } = self;
        // Which of the two is at fault, and where.
        for (low, low_words, high, high_words, field, of_low) in [
            (min, "min", max, "max", "min", true),
            (min, "min", request, "default request", "defaultRequest", false),
            (request, "default request", max, "max", "defaultRequest", true),
            (request, "default request", default, "default limit", "defaultRequest", true),
            (min, "min", default, "default", "default", true),
            (default, "default", max, "max", "default", true),
        ] {
            for (name, low) in low {
                let Some(high) = high.get(name).filter(|high| low > high) else { continue };
                let why = format!("{low_words} value {low} is greater than {high_words} value {high}");
                let shown = if of_low { low } else { high };
                errors.push(FieldError::invalid(format!("{at}.{field}[{name}]"), shown.to_string(), why));
            }
        }
        for (name, most) in ratio {
            let field = format!("{at}.maxLimitRequestRatio[{name}]");
            if *most < Quantity::new(1) {
                let why = format!("ratio {most} is less than 1");
                errors.push(FieldError::invalid(field.as_str(), most.to_string(), why));
            }
            let between = min.get(name).zip(max.get(name)).filter(|(min, _)| !min.is_zero());
            if let Some(widest) = between.map(|(min, max)| max.ratio_to(*min))
                && most.ratio_to(Quantity::new(1)) > widest
            {
                let why = format!("ratio {most} is greater than max/min = {widest:.6}");
                errors.push(FieldError::invalid(field, most.to_string(), why));
            }
        }
        for (name, request) in request.iter().filter(|(name, _)| !may_be_overcommitted(name)) {
            if let Some(limit) = default.get(name).filter(|limit| *limit != request) {
                let why =
                    format!("default value {limit} must equal to defaultRequest value {request} in {name}");
                let field = format!("{at}.defaultRequest[{name}]");
                errors.push(FieldError::invalid(field, request.to_string(), why));
            }
        }
    }
}

fn may_be_overcommitted(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}
