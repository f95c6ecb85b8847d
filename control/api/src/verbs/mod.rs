//! What can be done with the objects of any kind.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Response, header};
use tokio_util::sync::CancellationToken;
use wharf_store::Error as StoreError;

use crate::kinds::Kind;
use crate::protobuf;
use crate::represent::{self, Form, Offer};
use crate::request::{Query, ResourcePath};
use crate::schema::Validation;
use crate::select::Selection;
use crate::server::Inner;
use crate::status::{Result, Status};
use crate::storage::Storage;
use crate::{Body, UserInfo};

pub mod delete;
pub mod patch;
pub mod read;
pub mod watch;
pub mod write;

/// One request for a resource, after authentication and authorization.
pub struct Call {
    pub server: Arc<Inner>,
    pub kind: Arc<Kind>,
    pub path: ResourcePath,
    pub query: Query,
    /// The query as it came, for those it is passed on to.
    pub raw_query: String,
    pub headers: HeaderMap,
    pub user: Arc<UserInfo>,
    pub selection: Selection,
    /// The connection is to end.
    pub stop: CancellationToken,
    /// Told to the client in `Warning` headers.
    pub warnings: Vec<String>,
}

/// What the query of a write says.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub manager: String,
    pub validation: Validation,
    pub force: Option<bool>,
}

/// Longest name of a field manager.
const MANAGER_MAX: usize = 128;
/// Warnings beyond this many bytes are left out of the answer's headers.
const WARNINGS_MAX: usize = 4096;

impl Call {
    pub fn storage(&self) -> &dyn Storage {
        &*self.server.storage
    }

    pub fn key(&self) -> wharf_store::Key {
        self.kind.key(&self.path.namespace, &self.path.name)
    }

    pub fn form(&self) -> Result<Form> {
        represent::negotiate(&self.headers, self.query.get("includeObject"), Offer::Objects(&self.kind))
    }

    pub fn has_protobuf(&self) -> bool {
        protobuf::has(&self.kind.api_version(), &self.kind.kind)
    }

    /// In which form an answer goes out that is no object of this kind.
    pub fn answer_form(&self) -> Result<Form> {
        represent::negotiate(&self.headers, None, Offer::Answer)
    }

    pub fn not_found(&self) -> Status {
        Status::not_found(&self.kind, &self.path.name)
    }

    /// `kind` is what refusals call them: `CreateOptions`, `UpdateOptions`, `PatchOptions`.
    pub fn write_options(&self, kind: &'static str) -> Result<WriteOptions> {
        let options_invalid = |error| options_invalid(kind, error);
        let dry_run = dry_run(kind, self.query.all("dryRun"))?;
        let validation = match self.query.text("fieldValidation") {
            None | Some("Warn") => Validation::Warn,
            Some("Strict") => Validation::Strict,
            Some("Ignore") => Validation::Ignore,
            Some(other) => {
                return Err(options_invalid(crate::status::FieldError::not_supported(
                    "fieldValidation",
                    other,
                    &["", "Ignore", "Strict", "Warn"],
                )));
            }
        };
        let manager = match self.query.text("fieldManager") {
            Some(name) if name.len() > MANAGER_MAX => {
                return Err(options_invalid(crate::status::FieldError::too_long(
                    "fieldManager",
                    MANAGER_MAX,
                )));
            }
            Some(name) if !name.chars().all(|c| !c.is_control()) => {
                return Err(options_invalid(crate::status::FieldError::invalid(
                    "fieldManager",
                    name,
                    "should only contain printable characters",
                )));
            }
            Some(name) => name.to_owned(),
            None => self.default_manager(),
        };
        Ok(WriteOptions { dry_run, manager, validation, force: self.query.maybe_flag("force")? })
    }

    /// The product name of the user agent: `kubectl` of `kubectl/v1.36.0 (linux/amd64)`.
    fn default_manager(&self) -> String {
        let agent =
            self.headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
        let name: String = agent.split('/').next().unwrap_or_default().chars().take(MANAGER_MAX).collect();
        match name.trim() {
            // In-process clients send no user agent; their user tells as much.
            "" => self.user.name.rsplit(':').next().unwrap_or("unknown").chars().take(MANAGER_MAX).collect(),
            name => name.to_owned(),
        }
    }

    /// Adds the warnings to an answer.
    pub fn warn(&self, mut response: Response<Body>) -> Response<Body> {
        let mut total = 0;
        for warning in &self.warnings {
            let text: String = warning.chars().filter(|c| !c.is_control()).collect();
            let quoted = format!("299 - {:?}", text);
            total += quoted.len();
            if total > WARNINGS_MAX {
                break;
            }
            if let Ok(value) = HeaderValue::from_str(&quoted) {
                response.headers_mut().append(header::WARNING, value);
            }
        }
        response
    }
}

/// Whether `dryRun` values ask for one.
pub fn dry_run<'a>(kind: &str, values: impl Iterator<Item = &'a str>) -> Result<bool> {
    let mut dry_run = false;
    for value in values {
        match value {
            "" => {}
            "All" => dry_run = true,
            other => {
                return Err(options_invalid(
                    kind,
                    crate::status::FieldError::not_supported("dryRun", serde_json::json!([other]), &["All"]),
                ));
            }
        }
    }
    Ok(dry_run)
}

fn options_invalid(kind: &str, error: crate::status::FieldError) -> Status {
    Status::invalid("meta.k8s.io", kind, "", vec![error])
}

/// What a failure of the store means to the client: with code 500 in any case, as kube-apiserver has it. What
/// certainly was not done may be asked again, which Retry-After tells; client-go then does so by itself. A write that
/// may have been done must not be: it gets neither that nor a reason, but the engine's own words, by which tools know
/// what will pass (`etcdserver: request timed out`).
pub fn store_failed(error: StoreError) -> Status {
    match error {
        StoreError::Compacted { asked, oldest } => Status::expired(format!(
            "The resourceVersion for the provided list is too old: {asked} ({oldest})"
        )),
        StoreError::Future { asked, newest } => Status::too_large_resource_version(asked.0, newest.0),
        StoreError::Lagged { at } => Status::expired(format!("too old resource version: {at}")),
        StoreError::Closed => Status::unavailable("the server is shutting down"),
        StoreError::Uncertain { .. } => {
            let text = wharf_kit::chain(&error).to_string();
            tracing::error!(error = text, "the outcome of a write is not known");
            Status::outcome_unknown(text)
        }
        StoreError::Engine { .. } => {
            let text = wharf_kit::chain(&error).to_string();
            tracing::error!(error = text, "the store failed");
            Status::server_timeout(text)
        }
        StoreError::Conflict { .. } => {
            tracing::error!(error = %wharf_kit::chain(&error), "the store failed");
            Status::internal(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_surely_not_done_may_be_asked_again_and_what_may_have_been_done_may_not() {
        let cause =
            || Arc::from(Box::<dyn std::error::Error + Send + Sync>::from("etcdserver: request timed out"));
        let told = |error| {
            let status = store_failed(error);
            (status.to_json(), status.headers().contains_key(header::RETRY_AFTER))
        };
        let (status, again) = told(StoreError::Engine { action: "read the newest revision", cause: cause() });
        assert_eq!((&status["code"], &status["reason"], again), (&500.into(), &"ServerTimeout".into(), true));

        let key = wharf_store::Key::from("/a");
        let (status, again) = told(StoreError::Uncertain { key, cause: cause() });
        assert_eq!(
            (&status["code"], &status["reason"], again),
            (&500.into(), &serde_json::Value::Null, false)
        );
        assert!(
            status["message"].as_str().is_some_and(|text| text.ends_with("etcdserver: request timed out"))
        );
    }
}
