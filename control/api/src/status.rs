//! Kubernetes' `Status`: every answer that is not an object, with the reasons and words clients match on.

use http::{HeaderMap, HeaderValue, header};
use serde::Serialize;
use serde_json::json;

use crate::kinds::Kind;

pub type Result<T, E = Status> = std::result::Result<T, E>;

/// An answer of kind `Status`. Most are failures and travel as the `Err` of a verb; boxed, so a `Result` stays small.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", .0.message)]
pub struct Status(Box<Inner>);

#[derive(Clone, Debug, Default)]
struct Inner {
    code: u16,
    /// Empty where Kubernetes gives none.
    reason: &'static str,
    message: String,
    details: Details,
    /// A token to go on with an expired list.
    continue_: Option<String>,
    challenge: Option<&'static str>,
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    causes: Vec<Cause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_seconds: Option<u32>,
}

/// One reason among several, with the field it is about.
#[derive(Clone, Debug, Serialize)]
pub struct Cause {
    pub reason: &'static str,
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// What was asked for, as errors name it: `pods`, `deployments.apps`.
fn qualified(resource: &str, group: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

impl Status {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { code, reason, message: message.into(), ..Inner::default() }))
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        self.0.details.group = group.to_owned();
        self.0.details.kind = kind.to_owned();
        self.0.details.name = name.to_owned();
        self
    }

    pub fn code(&self) -> u16 {
        self.0.code
    }

    pub fn reason(&self) -> &'static str {
        self.0.reason
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    pub fn not_found(kind: &Kind, name: &str) -> Self {
        let message = format!("{} {name:?} not found", qualified(&kind.plural, &kind.group));
        Self::new(404, "NotFound", message).about(&kind.group, &kind.plural, name)
    }

    /// No such path, or no such resource.
    pub fn no_route() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", qualified(&kind.plural, &kind.group));
        Self::new(409, "AlreadyExists", message).about(&kind.group, &kind.plural, name)
    }

    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let resource = qualified(&kind.plural, &kind.group);
        let message = format!("Operation cannot be fulfilled on {resource} {name:?}: {why}");
        Self::new(409, "Conflict", message).about(&kind.group, &kind.plural, name)
    }

    /// The object changed since the caller read it.
    pub fn modified(kind: &Kind, name: &str) -> Self {
        Self::conflict(
            kind,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// Server-side apply met fields of other managers; one cause a field.
    pub fn apply_conflict(message: String, causes: Vec<Cause>) -> Self {
        let mut status = Self::new(409, "Conflict", message);
        status.0.details.causes = causes;
        status
    }

    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let what = qualified(resource, group);
        let message = match (resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (_, true) => format!("{what} is forbidden: {why}"),
            _ => format!("{what} {name:?} is forbidden: {why}"),
        };
        Self::new(403, "Forbidden", message).about(group, resource, name)
    }

    pub fn forbidden_kind(kind: &Kind, name: &str, why: &str) -> Self {
        Self::forbidden(&kind.group, &kind.plural, name, why)
    }

    pub fn with_cause(mut self, reason: &'static str, message: impl Into<String>, field: &str) -> Self {
        self.0.details.causes.push(Cause { reason, message: message.into(), field: field.to_owned() });
        self
    }

    /// Validation found `errors`; there is at least one.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: Vec<FieldError>) -> Self {
        let text = match errors.as_slice() {
            [one] => one.to_string(),
            many => {
                let mut seen: Vec<String> = Vec::new();
                for error in many {
                    let text = error.to_string();
                    if !seen.contains(&text) {
                        seen.push(text);
                    }
                }
                if let [one] = seen.as_slice() { one.clone() } else { format!("[{}]", seen.join(", ")) }
            }
        };
        let message = format!("{} {name:?} is invalid: {text}", qualified(kind, group));
        let mut status = Self::new(422, "Invalid", message).about(group, kind, name);
        status.0.details.causes = errors
            .into_iter()
            .map(|error| Cause { reason: error.kind.reason(), message: error.body(), field: error.field })
            .collect();
        status
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// A 401 with a `WWW-Authenticate` header.
    pub fn challenge(challenge: &'static str) -> Self {
        let mut status = Self::unauthorized();
        status.0.challenge = Some(challenge);
        status
    }

    pub fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }

    pub fn not_acceptable(accepted: &str) -> Self {
        Self::new(406, "NotAcceptable", format!("only the following media types are accepted: {accepted}"))
    }

    pub fn unsupported_media(accepted: &str) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {accepted}"
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// A revision that history no longer reaches.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// A continue token whose revision is gone; `token` goes on from the same key at the newest revision.
    pub fn expired_continue(token: String) -> Self {
        let mut status = Self::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new \
             list without the continue parameter, or use the continue token in this response to retrieve the \
             remainder of the results. Continuing with the provided token results in an inconsistent list - objects \
             that were created, modified, or deleted between the time the first chunk was returned and now may show \
             up in the list.",
        );
        status.0.continue_ = Some(token);
        status
    }

    pub fn too_large_resource_version(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        let mut status = Self::new(504, "Timeout", message).with_cause(
            "ResourceVersionTooLarge",
            "Too large resource version",
            "",
        );
        status.0.details.retry_after_seconds = Some(1);
        status
    }

    pub fn too_large_body(limit: usize) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }

    pub fn too_large_patch(message: String) -> Self {
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// A patch that is well-formed and does not fit the object.
    pub fn rejected(message: String) -> Self {
        Self::new(422, "Invalid", message)
    }

    /// A patch whose outcome is no object of its kind.
    pub fn patch_invalid(message: String) -> Self {
        let mut status = Self::new(422, "Invalid", message.clone());
        status.0.details.causes =
            vec![Cause { reason: "FieldValueInvalid", message, field: "patch".to_owned() }];
        status
    }

    pub fn too_many_requests() -> Self {
        Self::try_again("The server has received too many requests, please try again later.", Some(1))
    }

    /// 429, and in how many seconds it may be otherwise, if that is known.
    pub fn try_again(message: &str, seconds: Option<u32>) -> Self {
        let mut status = Self::new(429, "TooManyRequests", message);
        status.0.details.retry_after_seconds = seconds;
        status
    }

    pub fn timeout() -> Self {
        let mut status =
            Self::new(504, "Timeout", "Timeout: request did not complete within the allotted timeout");
        status.0.details.retry_after_seconds = Some(1);
        status
    }

    /// What could not be done now and was not: ask again.
    pub fn server_timeout(cause: impl std::fmt::Display) -> Self {
        let message = format!("the operation could not be completed at this time, please try again: {cause}");
        let mut status = Self::new(500, "ServerTimeout", message);
        status.0.details.retry_after_seconds = Some(1);
        status
    }

    /// Nobody knows whether it was done; `cause` in the words of the store's engine.
    pub fn outcome_unknown(cause: String) -> Self {
        Self::new(500, "", cause)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    pub fn internal(message: impl std::fmt::Display) -> Self {
        let text = message.to_string();
        Self::new(500, "InternalError", format!("Internal error occurred: {text}")).with_cause("", text, "")
    }

    /// What another server answered, in its words.
    pub fn relayed(code: u16, message: String) -> Self {
        let reason = match code {
            400 => "BadRequest",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            409 => "Conflict",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            500..=599 => "InternalError",
            _ => "",
        };
        Self::new(code, reason, message)
    }

    /// The answer to a delete that is done: which object went.
    pub fn deleted(kind: &Kind, name: &str, uid: &str) -> Self {
        let mut status = Self::new(200, "", "").about(&kind.group, &kind.plural, name);
        status.0.details.uid = uid.to_owned();
        status
    }

    /// The plain success of a subresource, for example 201 of a binding.
    pub fn success(code: u16) -> Self {
        Self::new(code, "", "")
    }

    pub fn to_json(&self) -> serde_json::Value {
        let Inner { code, reason, message, details, continue_, .. } = &*self.0;
        let mut metadata = json!({});
        if let Some(token) = continue_ {
            metadata["continue"] = json!(token);
        }
        let ok = *code < 400;
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata,
            "status": if ok { "Success" } else { "Failure" },
        });
        if !message.is_empty() {
            status["message"] = json!(message);
        }
        if !reason.is_empty() {
            status["reason"] = json!(reason);
        }
        let mut details = serde_json::to_value(details).unwrap_or_default();
        // A cause without a reason has no such key.
        if let Some(causes) = details.get_mut("causes").and_then(|causes| causes.as_array_mut()) {
            for cause in causes.iter_mut().filter_map(|cause| cause.as_object_mut()) {
                if cause.get("reason").is_some_and(|reason| reason == "") {
                    cause.remove("reason");
                }
            }
        }
        if details.as_object().is_some_and(|details| !details.is_empty()) {
            status["details"] = details;
        }
        if ok {
            // Kubernetes leaves the code out of a success within a 2xx answer, and gives it elsewhere.
            if *code != 200 {
                status["code"] = json!(code);
            }
        } else {
            status["code"] = json!(code);
        }
        status
    }

    /// What goes with the answer besides its body.
    pub fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(seconds) = self.0.details.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(challenge) = self.0.challenge {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        headers
    }
}

/// What validation says of one field, in Kubernetes' words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    pub field: String,
    kind: FieldErrorKind,
    /// The value as it is shown, already quoted or encoded; empty where none is shown.
    value: String,
    detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FieldErrorKind {
    Required,
    Invalid,
    Duplicate,
    NotSupported,
    Forbidden,
    NotFound,
    TooLong,
    TooMany,
}

impl FieldErrorKind {
    fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::Duplicate => "FieldValueDuplicate",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::NotFound => "FieldValueNotFound",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid => "Invalid value",
            Self::Duplicate => "Duplicate value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "Not found",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
        }
    }
}

fn shown(value: &serde_json::Value) -> String {
    value.to_string()
}

impl FieldError {
    fn new(kind: FieldErrorKind, field: impl Into<String>, value: String, detail: impl Into<String>) -> Self {
        Self { field: field.into(), kind, value, detail: detail.into() }
    }

    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Required, field, String::new(), detail)
    }

    pub fn invalid(
        field: impl Into<String>,
        value: impl Into<serde_json::Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self::new(FieldErrorKind::Invalid, field, shown(&value.into()), detail)
    }

    pub fn duplicate(field: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        Self::new(FieldErrorKind::Duplicate, field, shown(&value.into()), "")
    }

    pub fn not_found(field: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        Self::new(FieldErrorKind::NotFound, field, shown(&value.into()), "")
    }

    pub fn not_supported(
        field: impl Into<String>,
        value: impl Into<serde_json::Value>,
        supported: &[&str],
    ) -> Self {
        let list: Vec<String> = supported.iter().map(|value| format!("{value:?}")).collect();
        let detail = format!("supported values: {}", list.join(", "));
        Self::new(FieldErrorKind::NotSupported, field, shown(&value.into()), detail)
    }

    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Forbidden, field, String::new(), detail)
    }

    pub fn too_many(field: impl Into<String>, count: usize, max: usize) -> Self {
        let detail = format!("must have at most {max} items");
        Self::new(FieldErrorKind::TooMany, field, count.to_string(), detail)
    }

    pub fn too_long(field: impl Into<String>, max: usize) -> Self {
        Self::new(FieldErrorKind::TooLong, field, String::new(), format!("may not be more than {max} bytes"))
    }

    /// The text without the field.
    fn body(&self) -> String {
        let mut text = self.kind.words().to_owned();
        if !self.value.is_empty() {
            text.push_str(": ");
            text.push_str(&self.value);
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}
