//! scale, binding, eviction and finalize.

use bytes::Bytes;
use http::Response;
use http::header;
use serde_json::{Value, json};

use crate::Body;
use crate::encode;
use crate::kinds::{Kind, Subresource, columns};
use crate::object::{self, child, list, metadata, number, terminating, text};
use crate::represent::{self, Offer};
use crate::request::Verb;
use crate::schema::{self, patch};
use crate::status::{FieldError, Result, Status};
use crate::verbs::write::{Change, Missing, Track};
use crate::verbs::{Call, WriteOptions};

impl Call {
    /// A body of another kind than the path's, decoded by that kind's schema.
    pub fn decode_other(
        &mut self,
        body: &[u8],
        group: &str,
        kind: &str,
        options: &WriteOptions,
    ) -> Result<Value> {
        let ty = schema::Schema::get().kind(group, "v1", kind);
        let ty = ty.ok_or_else(|| Status::internal(format!("there is no schema of {kind}")))?;
        let version = format!("{group}/v1");
        let mut value = self.decode_as(body, ty, &version, kind, options)?;
        for (field, own) in [("kind", kind), ("apiVersion", version.as_str())] {
            match text(&value, &format!("/{field}")) {
                "" => {}
                found if found == own => {}
                found => {
                    let why = format!("the body's {field} is {found}, not {own}");
                    return Err(Status::bad_request(why));
                }
            }
            object::map(&mut value).insert(field.to_owned(), own.into());
        }
        Ok(value)
    }

    pub fn get_scale(&self) -> Result<Response<Body>> {
        let kind = Kind::new("autoscaling", "v1", "Scale", "scale").columns(columns::SCALE);
        let include = self.query.get("includeObject");
        let form = represent::negotiate(&self.headers, include, Offer::Objects(&kind))?;
        let stored = self.storage().get(self.key().as_str()).ok_or_else(|| self.not_found())?;
        let object = encode::decoded(&stored.value, stored.revision).map_err(Status::internal)?;
        represent::object(form, &kind, 200, &encode::stored(&scale(&object)), stored.revision)
    }

    pub async fn set_scale(&mut self, verb: Verb, body: Bytes) -> Result<Response<Body>> {
        let options =
            self.write_options(if verb == Verb::Patch { "PatchOptions" } else { "UpdateOptions" })?;
        let form = self.answer_form()?;
        let type_ =
            self.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let type_ = type_.split(';').next().unwrap_or_default().trim().to_owned();
        let given = match (verb, type_.as_str()) {
            (Verb::Update, _) => self.body_value(&body, "autoscaling/v1", "Scale")?,
            (_, "application/json-patch+json") => Value::Null,
            // All fields of a Scale are plain, so a strategic merge is a merge, and an apply of one is too.
            (_, "application/merge-patch+json" | "application/strategic-merge-patch+json") => {
                serde_json::from_slice(&body).map_err(|error| Status::bad_request(error.to_string()))?
            }
            (_, "application/apply-patch+yaml") => {
                serde_yaml::from_slice(&body).map_err(|error| Status::bad_request(error.to_string()))?
            }
            _ => {
                return Err(Status::unsupported_media(
                    "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml",
                ));
            }
        };
        let name = self.path.name.clone();
        let change = Change {
            options: &options,
            subresource: Some(Subresource::Scale),
            missing: Missing::NotFound,
            track: Track::Update,
        };
        let written = self
            .change(change, |old, _| {
                let Some(old) = old else { return Err(Status::internal("a scale needs an object")) };
                let mut wanted = scale(old);
                if verb == Verb::Update {
                    wanted = given.clone();
                } else if given.is_null() {
                    patch::json_patch(&mut wanted, &body).map_err(crate::verbs::patch::patch_failed)?;
                } else {
                    patch::merge_patch(&mut wanted, &given);
                }
                let replicas =
                    match wanted.pointer("/spec/replicas") {
                        None | Some(Value::Null) => 0,
                        Some(replicas) => replicas
                            .as_i64()
                            .filter(|replicas| i32::try_from(*replicas).is_ok())
                            .ok_or_else(|| Status::bad_request("spec.replicas is no 32-bit integer"))?,
                    };
                if replicas < 0 {
                    let error =
                        FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
                    return Err(Status::invalid("autoscaling", "Scale", &name, vec![error]));
                }
                let mut new = old.clone();
                child(&mut new, "spec").insert("replicas".to_owned(), replicas.into());
                for (field, pointer) in
                    [("resourceVersion", "/metadata/resourceVersion"), ("uid", "/metadata/uid")]
                {
                    match text(&wanted, pointer) {
                        "" => {
                            metadata(&mut new).remove(field);
                        }
                        value => {
                            metadata(&mut new).insert(field.to_owned(), value.into());
                        }
                    }
                }
                Ok(new)
            })
            .await?;
        let object = encode::decoded(&written.value, written.revision).map_err(Status::internal)?;
        represent::value(form, 200, &scale(&object))
    }

    /// Binds a pod to the node that the Binding names.
    pub async fn bind(&mut self, body: Bytes) -> Result<Response<Body>> {
        let options = self.write_options("CreateOptions")?;
        let form = self.answer_form()?;
        let binding = self.body_value(&body, "v1", "Binding")?;
        let node = text(&binding, "/target/name").to_owned();
        let target_kind = text(&binding, "/target/kind");
        if !matches!(target_kind, "" | "Node") {
            let error = FieldError::not_supported("target.kind", target_kind, &["Node", "<empty>"]);
            return Err(Status::invalid("", "Binding", &self.path.name, vec![error]));
        }
        if node.is_empty() {
            let error = FieldError::required("target.name", "");
            return Err(Status::invalid("", "Binding", &self.path.name, vec![error]));
        }
        let (uid, annotations) =
            (text(&binding, "/metadata/uid").to_owned(), binding.pointer("/metadata/annotations"));
        let (kind, name) = (self.kind.clone(), self.path.name.clone());
        let change = Change {
            options: &options,
            subresource: Some(Subresource::Binding),
            missing: Missing::NotFound,
            track: Track::Update,
        };
        self.change(change, |old, _| {
            let Some(old) = old else { return Err(Status::internal("a binding needs a pod")) };
            let conflict = |why: String| Err(Status::conflict(&kind, &name, &why));
            if terminating(old) {
                return conflict(format!("pod {name} is being deleted, cannot be assigned to a host"));
            }
            let bound = text(old, "/spec/nodeName");
            if !bound.is_empty() {
                return conflict(format!("pod {name} is already assigned to node {bound:?}"));
            }
            if !list(old, "/spec/schedulingGates").is_empty() {
                return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
            }
            let mut new = old.clone();
            if !uid.is_empty() {
                metadata(&mut new).insert("uid".to_owned(), uid.as_str().into());
            }
            for (key, value) in annotations.into_iter().filter_map(Value::as_object).flatten() {
                child_of_metadata(&mut new, "annotations").insert(key.clone(), value.clone());
            }
            child(&mut new, "spec").insert("nodeName".to_owned(), node.as_str().into());
            set_condition(&mut new, "PodScheduled", "True");
            Ok(new)
        })
        .await?;
        represent::value(form, 201, &Status::success(201).to_json())
    }

    /// Sets a namespace's own finalizers, whose removal ends its deletion.
    pub async fn finalize(&mut self, body: Bytes) -> Result<Response<Body>> {
        let options = self.write_options("UpdateOptions")?;
        let form = self.form()?;
        let given = self.decode(&body, &options)?;
        if object::name(&given) != self.path.name {
            return Err(Status::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({})",
                object::name(&given),
                self.path.name
            )));
        }
        let change = Change {
            options: &options,
            subresource: Some(Subresource::Finalize),
            missing: Missing::NotFound,
            track: Track::Update,
        };
        let written = self
            .change(change, |old, _| {
                let Some(old) = old else { return Err(Status::internal("finalize needs an object")) };
                let mut new = old.clone();
                let finalizers = given.pointer("/spec/finalizers").cloned().unwrap_or_else(|| json!([]));
                child(&mut new, "spec").insert("finalizers".to_owned(), finalizers);
                for field in ["resourceVersion", "uid"] {
                    match given["metadata"].get(field) {
                        Some(value) => metadata(&mut new).insert(field.to_owned(), value.clone()),
                        None => metadata(&mut new).remove(field),
                    };
                }
                Ok(new)
            })
            .await?;
        represent::object(form, &self.kind, 200, &written.value, written.revision)
    }

    /// Adds what a default role lacks, rules above all, unless its owner turned that off.
    pub async fn complete_role(&mut self, wanted: &Value, options: &WriteOptions) -> Result<()> {
        let change = Change { options, subresource: None, missing: Missing::NotFound, track: Track::Update };
        self.change(change, |old, _| {
            let Some(old) = old else { return Err(Status::internal("the role went away")) };
            let mut new = old.clone();
            let manual = old
                .pointer("/metadata/annotations")
                .and_then(|annotations| annotations.get("rbac.authorization.kubernetes.io/autoupdate"))
                .is_some_and(|value| value == "false");
            if !manual {
                for (label, value) in object::entries(wanted, "/metadata/labels") {
                    let labels = child_of_metadata(&mut new, "labels");
                    labels.entry(label).or_insert_with(|| value.clone());
                }
                if wanted["aggregationRule"].is_object() {
                    // Its rules are the controller's to find.
                    let role = object::map(&mut new);
                    role.entry("aggregationRule").or_insert_with(|| wanted["aggregationRule"].clone());
                } else {
                    let mut rules = list(old, "/rules").to_vec();
                    for rule in list(wanted, "/rules") {
                        if !rules.contains(rule) {
                            rules.push(rule.clone());
                        }
                    }
                    object::map(&mut new).insert("rules".to_owned(), rules.into());
                }
            }
            Ok(new)
        })
        .await?;
        Ok(())
    }
}

fn child_of_metadata<'a>(object: &'a mut Value, key: &str) -> &'a mut serde_json::Map<String, Value> {
    let slot = metadata(object).entry(key).or_insert_with(|| json!({}));
    object::map(slot)
}

fn set_condition(pod: &mut Value, type_: &str, status: &str) {
    let now = object::now();
    let conditions = child(pod, "status").entry("conditions").or_insert_with(|| json!([]));
    let Some(conditions) = conditions.as_array_mut() else { return };
    let new = json!({"type": type_, "status": status, "lastProbeTime": null, "lastTransitionTime": now});
    match conditions.iter_mut().find(|condition| text(condition, "/type") == type_) {
        Some(condition) if text(condition, "/status") == status => {}
        Some(condition) => *condition = new,
        None => conditions.push(new),
    }
}

/// autoscaling/v1 Scale of a Deployment or ReplicaSet.
fn scale(object: &Value) -> Value {
    let selector = &object["spec"]["selector"];
    let mut parts: Vec<String> = object::entries(selector, "/matchLabels")
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    for need in list(selector, "/matchExpressions") {
        let values: Vec<&str> = list(need, "/values").iter().filter_map(Value::as_str).collect();
        let (key, values) = (text(need, "/key"), values.join(","));
        parts.push(match text(need, "/operator") {
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            "NotIn" => format!("{key} notin ({values})"),
            _ => format!("{key} in ({values})"),
        });
    }
    let mut meta = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(field) {
            meta[field] = value.clone();
        }
    }
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": meta,
        "spec": {"replicas": number(object, "/spec/replicas").unwrap_or(0)},
        "status": {"replicas": number(object, "/status/replicas").unwrap_or(0), "selector": parts.join(",")},
    })
}
