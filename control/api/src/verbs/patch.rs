//! patch: JSON, merge, strategic merge, and server-side apply.

use bytes::Bytes;
use http::{Response, header};
use serde_json::Value;

use super::Call;
use super::write::{Change, Missing, Track, actor};
use crate::Body;
use crate::kinds::Subresource;
use crate::object;
use crate::represent;
use crate::schema::{self, ApplyError, patch};
use crate::status::{Cause, FieldError, Result, Status};

const ACCEPTED: &str = "application/json-patch+json, application/merge-patch+json, \
                        application/strategic-merge-patch+json, application/apply-patch+yaml";

impl Call {
    pub async fn patch(&mut self, body: Bytes, subresource: Option<Subresource>) -> Result<Response<Body>> {
        let form = self.form()?;
        let type_ =
            self.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let type_ = type_.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if type_ == "application/apply-patch+yaml" {
            return self.apply(body, subresource).await;
        }
        let options = self.write_options("PatchOptions")?;
        if options.force.is_some() {
            let error = FieldError::forbidden("force", "may not be specified for non-apply patch");
            return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", vec![error]));
        }
        let ty = self.kind.ty();
        let parsed = match type_.as_str() {
            "application/json-patch+json" => Value::Null,
            "application/merge-patch+json" | "application/strategic-merge-patch+json" => {
                let parsed: Value = serde_json::from_slice(&body)
                    .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
                if !parsed.is_object() {
                    return Err(Status::bad_request("error decoding patch: the patch is not an object"));
                }
                parsed
            }
            _ => return Err(Status::unsupported_media(ACCEPTED)),
        };
        let change =
            Change { options: &options, subresource, missing: Missing::NotFound, track: Track::Update };
        let validation = options.validation;
        let written = self
            .change(change, |old, warnings| {
                let Some(old) = old else { return Err(Status::internal("a patch needs an object")) };
                let mut new = old.clone();
                match type_.as_str() {
                    "application/json-patch+json" => {
                        patch::json_patch(&mut new, &body).map_err(patch_failed)?;
                    }
                    "application/merge-patch+json" => patch::merge_patch(&mut new, &parsed),
                    _ => patch::strategic_merge(&mut new, parsed.clone(), ty).map_err(patch_failed)?,
                }
                for field in ["apiVersion", "kind"] {
                    if new.get(field) != old.get(field) {
                        return Err(Status::patch_invalid(format!(
                            "the {field} of an object cannot be changed by a patch"
                        )));
                    }
                }
                if object::namespace(&new) != object::namespace(old) {
                    return Err(Status::bad_request(
                        "the namespace of the provided object does not match the namespace sent on the request",
                    ));
                }
                let (new, more) = schema::decode_value(new, ty, validation)
                    .map_err(|error| Status::patch_invalid(error.for_kind(ty)))?;
                warnings.extend(more);
                Ok(new)
            })
            .await?;
        represent::object(form, &self.kind, 200, &written.value, written.revision)
    }

    async fn apply(&mut self, body: Bytes, subresource: Option<Subresource>) -> Result<Response<Body>> {
        let form = self.form()?;
        if self.query.text("fieldManager").is_none() {
            let error = FieldError::required("fieldManager", "is required for apply patch");
            return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", vec![error]));
        }
        let options = self.write_options("PatchOptions")?;
        let force = options.force.unwrap_or(false);
        let ty = self.kind.ty();
        let mut config =
            schema::decode_applied(&body, ty).map_err(|error| Status::bad_request(error.for_kind(ty)))?;
        if config
            .pointer("/metadata/managedFields")
            .and_then(Value::as_array)
            .is_some_and(|fields| !fields.is_empty())
        {
            return Err(Status::bad_request("metadata.managedFields must be nil"));
        }
        let (version, kind) = (object::text(&config, "/apiVersion"), object::text(&config, "/kind"));
        if kind != &*self.kind.kind || version.is_empty() {
            let version = if version.is_empty() { "/" } else { version };
            return Err(Status::bad_request(format!("invalid object type: {version}, Kind={kind}")));
        }
        self.check_identity(&mut config)?;
        match object::name(&config) {
            "" => {
                let name = self.path.name.as_str().into();
                object::metadata(&mut config).insert("name".to_owned(), name);
            }
            name if name != self.path.name => {
                return Err(Status::bad_request(format!(
                    "the name of the object ({name}) does not match the name on the URL ({})",
                    self.path.name
                )));
            }
            _ => {}
        }
        let missing = if subresource.is_some() { Missing::NotFound } else { Missing::Create };
        let change = Change { options: &options, subresource, missing, track: Track::Applied };
        let sub = subresource.map(Subresource::as_str);
        let wanted = object::text(&config, "/metadata/resourceVersion").to_owned();
        let uid = object::text(&config, "/metadata/uid").to_owned();
        let written = self
            .change(change, |old, _| {
                let actor = actor(&options, sub);
                let mut new = schema::apply(old, &config, ty, &actor, force).map_err(apply_failed)?;
                // Preconditions, where the configuration has them.
                let meta = object::metadata(&mut new);
                for (field, value) in [("resourceVersion", &wanted), ("uid", &uid)] {
                    if !value.is_empty() {
                        meta.insert(field.to_owned(), value.as_str().into());
                    }
                }
                Ok(new)
            })
            .await?;
        let code = if written.created { 201 } else { 200 };
        represent::object(form, &self.kind, code, &written.value, written.revision)
    }
}

fn apply_failed(error: ApplyError) -> Status {
    let message = error.to_string();
    match error {
        ApplyError::Conflicts(conflicts) => {
            let causes = conflicts
                .into_iter()
                .map(|conflict| Cause {
                    reason: "FieldManagerConflict",
                    message: conflict.message(),
                    field: conflict.field,
                })
                .collect();
            Status::apply_conflict(message, causes)
        }
        ApplyError::Invalid(_) => Status::bad_request(message),
    }
}

pub fn patch_failed(error: patch::Error) -> Status {
    match error {
        patch::Error::Malformed(text) => Status::bad_request(text),
        patch::Error::TooLarge(text) => Status::too_large_patch(text),
        patch::Error::Rejected(text) => Status::rejected(text),
    }
}
