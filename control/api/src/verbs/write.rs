//! create and update, and the pipeline that every write of an object takes.

use bytes::Bytes;
use http::{Response, header};
use serde_json::Value;
use wharf_store::{Error as StoreError, Revision, Write};

use super::{Call, WriteOptions, store_failed};
use crate::Body;
use crate::admission::{self, Operation};
use crate::authz::{self, Action, Attributes};
use crate::encode;
use crate::kinds::{Subresource, ephemeral};
use crate::object::{self, finalizers, map, metadata, restore, terminating, text};
use crate::protobuf;
use crate::represent;
use crate::schema::{self, Actor, Format, Type, Validation};
use crate::status::{FieldError, Result, Status};
use crate::validate;

/// A generated name that is taken is generated anew this often.
const NAME_ATTEMPTS: usize = 8;
/// A read-modify-write that loses against others is repeated this often before the client is told.
const WRITE_ATTEMPTS: usize = 32;

/// An object that was written, or found to be as it should.
pub struct Written {
    pub value: Bytes,
    pub revision: Revision,
    pub created: bool,
}

/// Where the body comes from, for [`Call::change`].
pub enum Missing {
    /// The object has to exist.
    NotFound,
    /// It is made from what the change gives for no object.
    Create,
}

impl Call {
    /// What the `Content-Type` says of a body that is to be of this kind.
    fn body_form(&self, api_version: &str, kind: &str) -> Result<BodyForm> {
        // Asked only where it matters: the answer reads the table of messages.
        let protobuf = || protobuf::has(api_version, kind);
        let type_ =
            self.headers.get(header::CONTENT_TYPE).map_or(Ok("application/json"), |value| value.to_str());
        let type_ =
            type_.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match type_.as_str() {
            "application/json" | "" => Ok(BodyForm::Text(Format::Json)),
            "application/yaml" | "application/x-yaml" | "text/yaml" => Ok(BodyForm::Text(Format::Yaml)),
            protobuf::MEDIA_TYPE if protobuf() => Ok(BodyForm::Protobuf),
            _ if protobuf() => Err(Status::unsupported_media(represent::ACCEPTED_PROTOBUF)),
            _ => Err(Status::unsupported_media(represent::ACCEPTED)),
        }
    }

    /// The body as an object of this kind.
    pub fn decode(&mut self, body: &[u8], options: &WriteOptions) -> Result<Value> {
        let kind = self.kind.clone();
        let mut object = self.decode_as(body, kind.ty(), &kind.api_version(), &kind.kind, options)?;
        self.check_identity(&mut object)?;
        Ok(object)
    }

    /// The body as an object of any type with a schema; which kind it says it is, is still to be checked.
    pub fn decode_as(
        &mut self,
        body: &[u8],
        ty: Type,
        api_version: &str,
        kind: &str,
        options: &WriteOptions,
    ) -> Result<Value> {
        let decoded = match self.body_form(api_version, kind)? {
            BodyForm::Text(format) => schema::decode(body, format, ty, options.validation),
            BodyForm::Protobuf => {
                let value = from_protobuf(body, api_version, kind)?;
                // Another kind's fields are no reason to complain of, that it is another kind is.
                if text(&value, "/kind") != kind || text(&value, "/apiVersion") != api_version {
                    return Ok(value);
                }
                schema::decode_value(value, ty, Validation::Ignore)
            }
        };
        let (object, warnings) = decoded.map_err(|error| Status::bad_request(error.for_kind(ty)))?;
        self.warnings.extend(warnings);
        Ok(object)
    }

    /// The body as an object of `kind`, whose fields are not looked at.
    pub fn body_value(&self, body: &[u8], api_version: &str, kind: &str) -> Result<Value> {
        let bad =
            |error: &dyn std::fmt::Display| Status::bad_request(format!("the body is no {kind}: {error}"));
        let value: Value = match self.body_form(api_version, kind)? {
            BodyForm::Text(Format::Json) => serde_json::from_slice(body).map_err(|error| bad(&error))?,
            BodyForm::Text(Format::Yaml) => serde_yaml::from_slice(body).map_err(|error| bad(&error))?,
            BodyForm::Protobuf => from_protobuf(body, api_version, kind)?,
        };
        if !value.is_object() {
            return Err(Status::bad_request(format!("the body is no {kind}")));
        }
        match text(&value, "/kind") {
            "" => Ok(value),
            found if found == kind => Ok(value),
            found => Err(Status::bad_request(format!("the body is a {found}, not a {kind}"))),
        }
    }

    /// Kind, version and namespace have to be those of the path; left out, they are filled in.
    pub fn check_identity(&self, object: &mut Value) -> Result<()> {
        let kind = &self.kind;
        let (api_version, own) = (text(object, "/apiVersion").to_owned(), kind.api_version());
        if !api_version.is_empty() && api_version != own {
            return Err(Status::bad_request(format!(
                "the API version in the data ({api_version}) does not match the expected API version ({own})"
            )));
        }
        let named = text(object, "/kind").to_owned();
        if !named.is_empty() && named != *kind.kind {
            return Err(Status::bad_request(format!(
                "{named} in version {:?} cannot be handled as a {}: the kind in the data ({named}) does not match the expected kind ({})",
                kind.version, kind.kind, kind.kind
            )));
        }
        map(object).insert("apiVersion".to_owned(), own.into());
        map(object).insert("kind".to_owned(), kind.kind.as_ref().into());
        let namespace = object::namespace(object).to_owned();
        if kind.namespaced {
            if !namespace.is_empty() && namespace != self.path.namespace {
                return Err(Status::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
            metadata(object).insert("namespace".to_owned(), self.path.namespace.as_str().into());
        } else if !namespace.is_empty() {
            return Err(Status::bad_request(
                "namespace may not be set on cluster-scoped objects: the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        Ok(())
    }

    pub async fn create(&mut self, body: Bytes) -> Result<Response<Body>> {
        let options = self.write_options("CreateOptions")?;
        let form = self.form()?;
        let object = self.decode(&body, &options)?;
        let written = self.create_object(object, &options, Track::Update).await?;
        represent::object(form, &self.kind, 201, &written.value, written.revision)
    }

    /// Makes a new object from a decoded body.
    pub async fn create_object(
        &mut self,
        object: Value,
        options: &WriteOptions,
        track: Track,
    ) -> Result<Written> {
        let generate = text(&object, "/metadata/generateName").to_owned();
        let generated = object::name(&object).is_empty() && !generate.is_empty();
        let off = &self.server.admission_off;
        admission::ready(&self.kind, &self.path.namespace, &object, &self.world(), off).await;
        for attempt in 1.. {
            let new = self.prepare_new(object.clone(), options, track)?;
            let key = self.kind.key(&self.path.namespace, object::name(&new));
            let value = encode::stored(&new);
            let mut taken = self.storage().get(key.as_str()).is_some();
            if !taken {
                self.charge(&new, None, options.dry_run).await?;
            }
            if !taken && !options.dry_run {
                taken = match self.storage().write(Write::create(key, value.clone())).await {
                    Ok(revision) => return Ok(Written { value, revision, created: true }),
                    Err(StoreError::Conflict { .. }) => true,
                    Err(error) => return Err(store_failed(error)),
                };
            }
            if !taken {
                return Ok(Written { value, revision: Revision(0), created: true });
            }
            if !generated || attempt == NAME_ATTEMPTS {
                return Err(Status::already_exists(&self.kind, object::name(&new)));
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// Everything that happens to a new object between decoding and the store.
    fn prepare_new(&self, mut new: Value, options: &WriteOptions, track: Track) -> Result<Value> {
        let kind = &self.kind;
        if !matches!(text(&new, "/metadata/resourceVersion"), "" | "0") {
            return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
        }
        let now = object::now();
        if kind.has(Subresource::Status) && !kind.strategy.keeps_new_status() {
            map(&mut new).remove("status");
        }
        schema::default(&mut new, kind.ty());
        if track == Track::Update {
            schema::track_update(None, &mut new, kind.ty(), &actor(options, None));
        }
        let meta = metadata(&mut new);
        for field in
            ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"]
        {
            meta.remove(field);
        }
        let prefix = meta.get("generateName").and_then(Value::as_str).unwrap_or_default().to_owned();
        if meta.get("name").and_then(Value::as_str).unwrap_or_default().is_empty() && !prefix.is_empty() {
            meta.insert("name".to_owned(), validate::generate_name(&prefix).into());
        }
        meta.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
        meta.insert("creationTimestamp".to_owned(), now.into());
        if kind.strategy.has_generation() {
            meta.insert("generation".to_owned(), 1.into());
        }
        kind.strategy.prepare_create(&mut new);
        let name = object::name(&new).to_owned();
        self.admit(Operation::Create, None, &name, &mut new, None)?;
        let mut errors = Vec::new();
        validate::metadata(&new, kind, &mut errors);
        kind.strategy.validate(&new, &mut errors);
        kind.strategy.validate_create(&new, &mut errors);
        if !errors.is_empty() {
            return Err(Status::invalid(&kind.group, &kind.kind, &name, errors));
        }
        self.check_escalation(&new, None)?;
        Ok(new)
    }

    pub fn admit(
        &self,
        operation: Operation,
        subresource: Option<Subresource>,
        name: &str,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<()> {
        let mut request = admission::Request {
            operation,
            kind: &self.kind,
            subresource,
            namespace: &self.path.namespace,
            name,
            user: &self.user,
            object,
            old,
        };
        admission::admit(&mut request, &self.world(), &self.server.admission_off)
    }

    fn world(&self) -> admission::World<'_> {
        admission::World { storage: self.storage(), kinds: &self.server.kinds }
    }

    pub async fn update(&mut self, body: Bytes, subresource: Option<Subresource>) -> Result<Response<Body>> {
        let options = self.write_options("UpdateOptions")?;
        let form = self.form()?;
        let object = self.decode(&body, &options)?;
        let name = object::name(&object);
        if name.is_empty() {
            return Err(Status::bad_request(
                "the name of the object (based on URL) was undeterminable: name must be provided",
            ));
        }
        if name != self.path.name {
            return Err(Status::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                self.path.name
            )));
        }
        let missing = match self.kind.strategy.create_on_update() && subresource.is_none() {
            true => Missing::Create,
            false => Missing::NotFound,
        };
        let change = Change { options: &options, subresource, missing, track: Track::Update };
        let written = self.change(change, |_, _| Ok(object.clone())).await?;
        let code = if written.created { 201 } else { 200 };
        represent::object(form, &self.kind, code, &written.value, written.revision)
    }

    /// Reads, changes and writes the object of the path, again if somebody else wrote meanwhile. `make` gives the
    /// wanted object from the present one, defaulted or not, and may be called more than once.
    pub async fn change(
        &mut self,
        change: Change<'_>,
        make: impl Fn(Option<&Value>, &mut Vec<String>) -> Result<Value>,
    ) -> Result<Written> {
        let key = self.key();
        let mut charged = false;
        for _ in 0..WRITE_ATTEMPTS {
            let Some(stored) = self.storage().get(key.as_str()) else {
                if let Missing::NotFound = change.missing {
                    return Err(self.not_found());
                }
                self.check_may_create()?;
                let mut warnings = Vec::new();
                let new = make(None, &mut warnings)?;
                self.warnings.append(&mut warnings);
                if !matches!(text(&new, "/metadata/uid"), "") {
                    let why = format!(
                        "Precondition failed: UID in precondition: {}, UID in object meta: ",
                        text(&new, "/metadata/uid")
                    );
                    return Err(Status::conflict(&self.kind, &self.path.name, &why));
                }
                match self.create_object(new, change.options, change.track).await {
                    Err(status) if status.reason() == "AlreadyExists" => continue,
                    other => return other,
                }
            };
            let old = encode::decoded(&stored.value, stored.revision).map_err(Status::internal)?;
            let mut warnings = Vec::new();
            let mut new = make(Some(&old), &mut warnings)?;
            let wanted = text(&new, "/metadata/resourceVersion").to_owned();
            if !matches!(wanted.as_str(), "" | "0") && wanted != stored.revision.to_string() {
                return Err(Status::modified(&self.kind, &self.path.name));
            }
            let uid = text(&new, "/metadata/uid");
            if !uid.is_empty() && uid != object::uid(&old) {
                let why = format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    object::uid(&old)
                );
                return Err(Status::conflict(&self.kind, &self.path.name, &why));
            }
            self.prepare_change(&mut new, &old, &change)?;
            if new == old {
                self.warnings.append(&mut warnings);
                let (value, revision) = (stored.value.clone(), stored.revision);
                return Ok(Written { value, revision, created: false });
            }
            // Of all objects a Service alone can come to use more.
            if !charged && change.subresource.is_none() && self.kind.is("", "services") {
                self.charge(&new, Some(&old), change.options.dry_run).await?;
                charged = true;
            }
            let value = encode::stored(&new);
            let gone = terminating(&new)
                && finalizers(&new).is_empty()
                && !self.kind.strategy.holds(&new)
                && object::number(&new, "/metadata/deletionGracePeriodSeconds").unwrap_or(0) == 0;
            if change.options.dry_run {
                self.warnings.append(&mut warnings);
                return Ok(Written { value, revision: stored.revision, created: false });
            }
            let write = match gone {
                true => Write::delete(key.clone(), stored.revision),
                false => Write::update(key.clone(), stored.revision, value.clone()),
            };
            match self.storage().write(write).await {
                Ok(revision) => {
                    self.warnings.append(&mut warnings);
                    return Ok(Written { value, revision, created: false });
                }
                Err(StoreError::Conflict { .. }) => {
                    // Reads are to show what we lost against before we look again.
                    self.storage().sync().await.map_err(store_failed)?;
                }
                Err(error) => return Err(store_failed(error)),
            }
        }
        Err(Status::modified(&self.kind, &self.path.name))
    }

    /// An apply or PUT that makes the object needs leave to create it, too.
    fn check_may_create(&self) -> Result<()> {
        let action = Action::Resource {
            group: &self.kind.group,
            resource: &self.kind.plural,
            subresource: "",
            namespace: &self.path.namespace,
            name: &self.path.name,
            fields: &[],
        };
        authz::check(&self.server.authorizers, &Attributes { user: &self.user, verb: "create", action })
    }

    /// Everything that happens to a changed object between decoding and the store.
    fn prepare_change(&self, new: &mut Value, old: &Value, change: &Change<'_>) -> Result<()> {
        let kind = &self.kind;
        let meta_old = &old["metadata"];
        {
            let name = text(new, "/metadata/name");
            if !name.is_empty() && name != self.path.name {
                return Err(Status::bad_request(format!(
                    "the name of the object ({name}) does not match the name on the URL ({})",
                    self.path.name
                )));
            }
        }
        // What only the server writes.
        let meta = metadata(new);
        for field in [
            "name",
            "namespace",
            "uid",
            "creationTimestamp",
            "generation",
            "generateName",
            "resourceVersion",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
        ] {
            match meta_old.get(field) {
                Some(value) => meta.insert(field.to_owned(), value.clone()),
                None => meta.remove(field),
            };
        }
        meta.remove("selfLink");
        match change.subresource {
            Some(Subresource::Status) => {
                let keys: Vec<String> = map(new)
                    .keys()
                    .chain(old.as_object().into_iter().flat_map(|old| old.keys()))
                    .cloned()
                    .collect();
                for key in keys.iter().filter(|key| !matches!(key.as_str(), "metadata" | "status")) {
                    restore(new, old, key);
                }
                match meta_old.get("ownerReferences") {
                    Some(owners) => metadata(new).insert("ownerReferences".to_owned(), owners.clone()),
                    None => metadata(new).remove("ownerReferences"),
                };
            }
            Some(Subresource::EphemeralContainers) => ephemeral::keep_alone(new, old),
            Some(_) => {}
            None if kind.has(Subresource::Status) => restore(new, old, "status"),
            None => {}
        }
        schema::default(new, kind.ty());
        if change.track == Track::Update {
            let subresource = change.subresource.map(Subresource::as_str);
            schema::track_update(Some(old), new, kind.ty(), &actor(change.options, subresource));
        }
        kind.strategy.prepare_update(new, old, change.subresource);
        self.admit(Operation::Update, change.subresource, &self.path.name, new, Some(old))?;
        // A binding is the scheduler's word on a pod, not a new version of what its author wants.
        if kind.strategy.has_generation()
            && change.subresource != Some(Subresource::Binding)
            && differs(new, old)
        {
            let generation = object::number(old, "/metadata/generation").unwrap_or(0) + 1;
            metadata(new).insert("generation".to_owned(), generation.into());
        }
        let mut errors = Vec::new();
        validate::metadata(new, kind, &mut errors);
        if terminating(old) {
            let added: Vec<String> = finalizers(new)
                .iter()
                .filter(|finalizer| !finalizers(old).contains(finalizer))
                .map(|finalizer| format!("{finalizer}"))
                .collect();
            if !added.is_empty() {
                errors.push(FieldError::forbidden(
                    "metadata.finalizers",
                    format!(
                        "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                        added.join(", ")
                    ),
                ));
            }
        }
        match change.subresource {
            Some(Subresource::Status) => kind.strategy.validate_status(new, old, &mut errors),
            Some(Subresource::Binding) => {}
            Some(Subresource::EphemeralContainers) => {
                kind.strategy.validate(new, &mut errors);
                ephemeral::validate_update(new, old, &mut errors);
            }
            _ => {
                kind.strategy.validate(new, &mut errors);
                kind.strategy.validate_update(new, old, &mut errors);
            }
        }
        if !errors.is_empty() {
            return Err(Status::invalid(&kind.group, &kind.kind, &self.path.name, errors));
        }
        self.check_signer(new, old, change.subresource)?;
        self.check_escalation(new, Some(old))
    }
}

/// How a body is written.
enum BodyForm {
    Text(Format),
    Protobuf,
}

/// A body in protobuf, refused in Kubernetes' words.
fn from_protobuf(body: &[u8], api_version: &str, kind: &str) -> Result<Value> {
    /// So much of a body that is something else is shown.
    const SHOWN: usize = 30;
    protobuf::decode(body, api_version, kind).map_err(|error| match error {
        protobuf::Error::TooLarge => Status::too_large_body(schema::MAX_BYTES),
        error @ (protobuf::Error::Empty | protobuf::Error::Prefix) => {
            let shown: String = body.iter().take(SHOWN).map(|byte| format!("{byte:02x}")).collect();
            let shown = match body {
                [] => "<empty>".to_owned(),
                [b'{', ..] => String::from_utf8_lossy(&body[..body.len().min(SHOWN)]).into_owned(),
                _ => shown,
            };
            let more = if body.len() > SHOWN { " ..." } else { "" };
            Status::bad_request(format!(
                "the object provided is unrecognized (must be of type {kind}): {error} ({shown}{more})"
            ))
        }
        error => {
            let (found, version) = match &error {
                protobuf::Error::Unregistered { kind, api_version } => (kind.as_str(), api_version.as_str()),
                _ => (kind, api_version),
            };
            let version = version.rsplit('/').next().unwrap_or_default();
            Status::bad_request(format!(
                "{found} in version {version:?} cannot be handled as a {kind}: {error}"
            ))
        }
    })
}

/// How a change is made.
pub struct Change<'a> {
    pub options: &'a WriteOptions,
    pub subresource: Option<Subresource>,
    pub missing: Missing,
    pub track: Track,
}

/// Who keeps the managed fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Track {
    /// The pipeline: whoever changes a field owns it.
    Update,
    /// Server-side apply did so already.
    Applied,
}

pub fn actor<'a>(options: &'a WriteOptions, subresource: Option<&'a str>) -> Actor<'a> {
    Actor { manager: &options.manager, subresource, now: jiff::Timestamp::now() }
}

/// Whether anything but metadata and status differs: what a generation counts.
fn differs(new: &Value, old: &Value) -> bool {
    let counted = |object: &Value| -> Vec<(String, Value)> {
        let fields = object.as_object().into_iter().flatten();
        fields
            .filter(|(key, _)| !matches!(key.as_str(), "metadata" | "status" | "apiVersion" | "kind"))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    };
    counted(new) != counted(old)
}
