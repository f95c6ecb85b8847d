//! delete and deletecollection.

use bytes::Bytes;
use futures::StreamExt;
use http::Response;
use serde::Deserialize;
use serde_json::Value;
use wharf_store::{Error as StoreError, Revision, Write};

use super::{Call, dry_run, store_failed};
use crate::Body;
use crate::admission::Operation;
use crate::encode;
use crate::object::{self, finalizers, metadata, number, terminating, text};
use crate::represent;
use crate::status::{FieldError, Result, Status};

const ATTEMPTS: usize = 32;
/// Deletes of a collection that are on their way to the store at one time.
const DELETES_AT_ONCE: usize = 64;

/// `DeleteOptions`, from the body, else from the query.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Options {
    grace_period_seconds: Option<i64>,
    propagation_policy: Option<String>,
    orphan_dependents: Option<bool>,
    preconditions: Option<Preconditions>,
    pub dry_run: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Preconditions {
    uid: Option<String>,
    resource_version: Option<String>,
}

impl Options {
    /// The same, for an object of exactly this version. `None` if they ask for a version already.
    pub fn at_version(&self, version: &str) -> Option<Self> {
        let mut preconditions = self.preconditions.clone().unwrap_or_default();
        if preconditions.resource_version.is_some() {
            return None;
        }
        preconditions.resource_version = Some(version.to_owned());
        Some(Self { preconditions: Some(preconditions), ..self.clone() })
    }

    /// # Errors
    /// 422 for a policy that is none, or one beside the older way to say it.
    pub fn check(self) -> Result<Self> {
        let invalid = |error| Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", vec![error]));
        if self.orphan_dependents.is_some() && self.propagation_policy.is_some() {
            return invalid(FieldError::invalid(
                "propagationPolicy",
                self.propagation_policy.unwrap_or_default(),
                "orphanDependents and deletionPropagation cannot be both set",
            ));
        }
        match self.propagation_policy.as_deref() {
            None | Some("Orphan" | "Background" | "Foreground") => Ok(self),
            Some(other) => invalid(FieldError::not_supported(
                "propagationPolicy",
                other,
                &["Foreground", "Background", "Orphan", "nil"],
            )),
        }
    }
}

/// What a delete did.
pub enum Deleted {
    /// The object is gone.
    Now { name: String, uid: String },
    /// It lives on until its grace is over and its finalizers are gone.
    Later { value: Bytes, revision: Revision },
}

impl Call {
    fn delete_options(&self, body: &[u8]) -> Result<Options> {
        let mut options = match body.iter().all(u8::is_ascii_whitespace) {
            true => Options::default(),
            false => serde_json::from_value(self.body_value(body, "v1", "DeleteOptions")?)
                .map_err(|error| Status::bad_request(format!("the body is no DeleteOptions: {error}")))?,
        };
        if let Some(seconds) = self.query.number("gracePeriodSeconds")? {
            options.grace_period_seconds = Some(seconds);
        }
        if let Some(policy) = self.query.text("propagationPolicy") {
            options.propagation_policy = Some(policy.to_owned());
        }
        if let Some(orphan) = self.query.maybe_flag("orphanDependents")? {
            options.orphan_dependents = Some(orphan);
        }
        options.dry_run.extend(self.query.all("dryRun").map(str::to_owned));
        options.check()
    }

    pub async fn delete(&self, body: Bytes) -> Result<Response<Body>> {
        let options = self.delete_options(&body)?;
        let form = self.form()?;
        let later_code = match options.propagation_policy.as_deref() {
            Some("Foreground" | "Orphan") => 202,
            _ if options.orphan_dependents == Some(true) => 202,
            _ => 200,
        };
        let name = self.path.name.clone();
        match self.delete_one(&name, &options, |_| ()).await? {
            Deleted::Now { name, uid } => {
                let deleted = Status::deleted(&self.kind, &name, &uid).to_json();
                represent::value(form, 200, &deleted)
            }
            Deleted::Later { value, revision } => {
                represent::object(form, &self.kind, later_code, &value, revision)
            }
        }
    }

    /// Deletes every object of the collection that is selected, and lists them as they were.
    pub async fn delete_collection(&self, body: Bytes) -> Result<Response<Body>> {
        let options = self.delete_options(&body)?;
        let form = self.form()?;
        let (meta, items) = self.select().await?;
        // Side by side, so that the store commits them together.
        let results: Vec<Result<_>> = futures::stream::iter(items)
            .map(|item| async {
                let name = item.key.as_str().rsplit('/').next().unwrap_or_default().to_owned();
                match self.delete_one(&name, &options, |_| ()).await {
                    Ok(_) => Ok(Some(item)),
                    Err(status) if status.code() == 404 => Ok(None),
                    Err(status) => Err(status),
                }
            })
            .buffered(DELETES_AT_ONCE)
            .collect()
            .await;
        let deleted = results.into_iter().filter_map(Result::transpose).collect::<Result<_>>()?;
        represent::list(form, &self.kind, &meta, deleted).await
    }

    /// Deletes one object; `note` writes down why in what lives on for a while.
    pub async fn delete_one(
        &self,
        name: &str,
        options: &Options,
        note: impl Fn(&mut Value),
    ) -> Result<Deleted> {
        let dry = dry_run("DeleteOptions", options.dry_run.iter().map(String::as_str))?;
        let key = self.kind.key(&self.path.namespace, name);
        for _ in 0..ATTEMPTS {
            let Some(stored) = self.storage().get(key.as_str()) else {
                return Err(Status::not_found(&self.kind, name));
            };
            let mut object = encode::decoded(&stored.value, stored.revision).map_err(Status::internal)?;
            self.check_preconditions(name, &object, options)?;
            self.admit(Operation::Delete, None, name, &mut object, None)?;
            let before = object.clone();
            note(&mut object);
            let gone = self.mark_deleted(&mut object, options);
            if !gone && object == before {
                return Ok(Deleted::Later { value: stored.value.clone(), revision: stored.revision });
            }
            let value = encode::stored(&object);
            let uid = object::uid(&object).to_owned();
            let done = |revision| match gone {
                true => Deleted::Now { name: name.to_owned(), uid: uid.clone() },
                false => Deleted::Later { value: value.clone(), revision },
            };
            if dry {
                return Ok(done(stored.revision));
            }
            let write = match gone {
                true => Write::delete(key.clone(), stored.revision),
                false => Write::update(key.clone(), stored.revision, value.clone()),
            };
            match self.storage().write(write).await {
                Ok(revision) => return Ok(done(revision)),
                Err(StoreError::Conflict { .. }) => {
                    self.storage().sync().await.map_err(store_failed)?;
                }
                Err(error) => return Err(store_failed(error)),
            }
        }
        Err(Status::modified(&self.kind, name))
    }

    pub fn check_preconditions(&self, name: &str, object: &Value, options: &Options) -> Result<()> {
        let Some(preconditions) = &options.preconditions else { return Ok(()) };
        let checks = [
            ("UID", &preconditions.uid, object::uid(object)),
            ("ResourceVersion", &preconditions.resource_version, text(object, "/metadata/resourceVersion")),
        ];
        for (what, wanted, found) in checks {
            if let Some(wanted) = wanted
                && wanted != found
            {
                let why = format!(
                    "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
                );
                return Err(Status::conflict(&self.kind, name, &why));
            }
        }
        Ok(())
    }

    /// Marks the object as being deleted; true if nothing keeps it.
    fn mark_deleted(&self, object: &mut Value, options: &Options) -> bool {
        let strategy = self.kind.strategy;
        set_propagation(object, options);
        let was_terminating = terminating(object);
        let grace = strategy.grace(object, options.grace_period_seconds);
        let present = number(object, "/metadata/deletionGracePeriodSeconds");
        // A second delete may only shorten the first's grace.
        let grace = match (was_terminating, present, grace) {
            (true, Some(present), Some(asked))
                if options.grace_period_seconds.is_none() || asked >= present =>
            {
                present
            }
            (_, _, Some(asked)) => asked,
            (true, Some(present), None) => present,
            (_, _, None) => 0,
        };
        if grace == 0 && finalizers(object).is_empty() && !strategy.holds(object) {
            return true;
        }
        if was_terminating && present == Some(grace) {
            return false;
        }
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace);
        let generation = number(object, "/metadata/generation").unwrap_or(0);
        let meta = metadata(object);
        meta.insert("deletionTimestamp".to_owned(), at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into());
        meta.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
        if generation > 0 {
            meta.insert("generation".to_owned(), (generation + 1).into());
        }
        strategy.prepare_delete(object);
        false
    }
}

/// What is to become of dependents is written into the finalizers, for the garbage collector.
fn set_propagation(object: &mut Value, options: &Options) {
    const ORPHAN: &str = "orphan";
    const FOREGROUND: &str = "foregroundDeletion";
    let wanted = match (options.propagation_policy.as_deref(), options.orphan_dependents) {
        (Some("Orphan"), _) | (None, Some(true)) => Some(ORPHAN),
        (Some("Foreground"), _) => Some(FOREGROUND),
        (Some(_), _) | (None, Some(false)) => None,
        (None, None) => return, // what the object says already
    };
    let mut kept: Vec<Value> = finalizers(object)
        .iter()
        .filter(|f| !matches!(f.as_str(), Some(ORPHAN | FOREGROUND)))
        .cloned()
        .collect();
    kept.extend(wanted.map(Value::from));
    match kept.is_empty() {
        true => metadata(object).remove("finalizers"),
        false => metadata(object).insert("finalizers".to_owned(), kept.into()),
    };
}
