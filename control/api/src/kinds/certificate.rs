//! Certificate signing requests.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use wharf_kit::identity::Request;

use super::{Strategy, Subresource};
use crate::object::{self, list, number, text};
use crate::status::FieldError;
use crate::validate::path_segment;

/// The conditions that are written through `approval` alone.
const VERDICTS: [&str; 2] = ["Approved", "Denied"];
/// A certificate lives for ten minutes at least.
const LEAST_SECONDS: i64 = 600;

pub struct CertificateSigningRequest;

impl Strategy for CertificateSigningRequest {
    fn check_name(&self, name: &str, prefix: bool) -> Result<(), String> {
        path_segment(name, prefix)
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, subresource: Option<Subresource>) {
        // What was asked for stays, and who asked.
        object::map(new).insert("spec".to_owned(), old["spec"].clone());
        if subresource == Some(Subresource::Approval) {
            let conditions = new.pointer("/status/conditions").cloned();
            let mut status = old.get("status").cloned().unwrap_or_else(|| json!({}));
            match conditions {
                Some(conditions) => object::map(&mut status).insert("conditions".to_owned(), conditions),
                None => object::map(&mut status).remove("conditions"),
            };
            object::map(new).insert("status".to_owned(), status);
        }
        // A condition that does not tell its times was made now.
        let now = object::now();
        let conditions = new.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
        for condition in conditions.into_iter().flatten() {
            for time in ["lastUpdateTime", "lastTransitionTime"] {
                if text(condition, &format!("/{time}")).is_empty() {
                    object::map(condition).insert(time.to_owned(), json!(now));
                }
            }
        }
    }

    fn validate(&self, new: &Value, errors: &mut Vec<FieldError>) {
        let request = text(new, "/spec/request");
        let pem = STANDARD.decode(request).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        if let Err(error) = pem
            .ok_or("it is no PEM text".to_owned())
            .and_then(|pem| Request::read(&pem).map_err(|error| wharf_kit::chain(&error).to_string()))
        {
            errors.push(FieldError::invalid("spec.request", request, error));
        }
        if list(new, "/spec/usages").is_empty() {
            errors.push(FieldError::required("spec.usages", ""));
        }
        let signer = text(new, "/spec/signerName");
        let (domain, path) = signer.split_once('/').unwrap_or_default();
        if !domain.contains('.') || path.is_empty() {
            errors.push(FieldError::invalid(
                "spec.signerName",
                signer,
                "must be a fully qualified domain and path of the form 'example.com/signer-name'",
            ));
        }
        if let Some(seconds) = number(new, "/spec/expirationSeconds")
            && seconds < LEAST_SECONDS
        {
            errors.push(FieldError::invalid(
                "spec.expirationSeconds",
                seconds,
                "may not specify a duration less than 600 seconds (10 minutes)",
            ));
        }
        let verdicts = verdicts(new);
        if VERDICTS.iter().all(|verdict| verdicts.iter().any(|one| text(one, "/type") == *verdict)) {
            errors.push(FieldError::invalid(
                "status.conditions",
                "Denied",
                "Approved and Denied conditions are mutually exclusive",
            ));
        }
        for (n, condition) in list(new, "/status/conditions").iter().enumerate() {
            if VERDICTS.contains(&text(condition, "/type")) && text(condition, "/status") != "True" {
                let at = format!("status.conditions[{n}].status");
                errors.push(FieldError::not_supported(at, text(condition, "/status"), &["True"]));
            }
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        // A verdict is for good.
        let now = verdicts(new);
        for verdict in verdicts(old) {
            let kind = text(verdict, "/type");
            if !now.iter().any(|one| text(one, "/type") == kind) {
                errors.push(FieldError::forbidden(
                    "status.conditions",
                    format!("updates may not remove a condition of type {kind:?}"),
                ));
            }
        }
    }

    fn validate_status(&self, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        let kinds =
            |object| verdicts(object).iter().map(|one| text(one, "/type").to_owned()).collect::<Vec<_>>();
        if kinds(new) != kinds(old) {
            errors.push(FieldError::forbidden(
                "status.conditions",
                "updates may not add, change or remove a condition of type \"Approved\" or \"Denied\"",
            ));
        }
        let (before, after) = (text(old, "/status/certificate"), text(new, "/status/certificate"));
        if !before.is_empty() && before != after {
            errors.push(FieldError::forbidden(
                "status.certificate",
                "updates may not set certificate content once it was set",
            ));
        }
    }
}

fn verdicts(object: &Value) -> Vec<&Value> {
    list(object, "/status/conditions").iter().filter(|one| VERDICTS.contains(&text(one, "/type"))).collect()
}
