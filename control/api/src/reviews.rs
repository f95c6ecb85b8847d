//! Kinds that are never stored: who creates one gets it back answered. Who am I, may they, whose token is this.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::Response;
use serde_json::{Value, json};

use crate::authz::{self, Action, Attributes, Decision};
use crate::object::{list, map, text};
use crate::represent;
use crate::status::{FieldError, Result, Status};
use crate::verbs::Call;
use crate::{Body, UserInfo};

/// Answers a decoded review: gives its status.
pub type Review = fn(&Call, &Value) -> Result<Value>;

impl Call {
    /// Answers a review.
    pub fn review(&mut self, body: Bytes, review: Review) -> Result<Response<Body>> {
        let options = self.write_options("CreateOptions")?;
        let form = self.answer_form()?;
        let mut object = self.decode(&body, &options)?;
        let status = review(self, &object)?;
        map(&mut object).insert("status".to_owned(), status);
        represent::value(form, 201, &object)
    }

    fn review_invalid(&self, error: FieldError) -> Status {
        Status::invalid(&self.kind.group, &self.kind.kind, "", vec![error])
    }

    /// The answer to "may `user`", for the attributes in `spec`.
    fn access(&self, spec: &Value, user: &UserInfo) -> Result<Value> {
        let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
        let (field, value, why) = match (resource.is_object(), path.is_object()) {
            (true, true) => (
                "spec.nonResourceAttributes",
                path,
                "cannot be specified in combination with resourceAttributes",
            ),
            (false, false) => (
                "spec.resourceAttributes",
                resource,
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ),
            _ => ("", resource, ""),
        };
        if !field.is_empty() {
            return Err(self.review_invalid(FieldError::invalid(field, value.clone(), why)));
        }
        let fields: Vec<(String, String)> = list(resource, "/fieldSelector/requirements")
            .iter()
            .filter(|need| text(need, "/operator") == "In" && list(need, "/values").len() == 1)
            .map(|need| (text(need, "/key").to_owned(), text(need, "/values/0").to_owned()))
            .collect();
        let action = match path.is_object() {
            true => Action::Path(text(path, "/path")),
            false => Action::Resource {
                group: text(resource, "/group"),
                resource: text(resource, "/resource"),
                subresource: text(resource, "/subresource"),
                namespace: text(resource, "/namespace"),
                name: text(resource, "/name"),
                fields: &fields,
            },
        };
        let verb = text(if path.is_object() { path } else { resource }, "/verb");
        Ok(match authz::decide(&self.server.authorizers, &Attributes { user, verb, action }) {
            Decision::Allow => json!({"allowed": true}),
            Decision::NoOpinion(reason) if reason.is_empty() => json!({"allowed": false}),
            Decision::NoOpinion(reason) => json!({"allowed": false, "reason": reason}),
        })
    }
}

/// A user as reviews write one.
fn user_info(user: &UserInfo) -> Value {
    let mut info = json!({"username": user.name});
    if !user.uid.is_empty() {
        info["uid"] = json!(user.uid);
    }
    if !user.groups.is_empty() {
        info["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

pub fn self_subject(call: &Call, _review: &Value) -> Result<Value> {
    Ok(json!({"userInfo": user_info(&call.user)}))
}

pub fn token(call: &Call, review: &Value) -> Result<Value> {
    let token = text(review, "/spec/token");
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let bearer = &call.server.bearer;
    let mut audiences = strings(list(review, "/spec/audiences"));
    if audiences.is_empty() {
        audiences.clone_from(&bearer.audiences);
    }
    Ok(match bearer.holder(token, &audiences) {
        Ok(holder) => {
            json!({"authenticated": true, "user": user_info(&holder.user), "audiences": holder.audiences})
        }
        Err(refused) => json!({"user": {}, "error": refused.to_string()}),
    })
}

pub fn self_subject_access(call: &Call, review: &Value) -> Result<Value> {
    call.access(&review["spec"], &call.user)
}

pub fn subject_access(call: &Call, review: &Value) -> Result<Value> {
    let spec = &review["spec"];
    let (name, groups) = (text(spec, "/user"), strings(list(spec, "/groups")));
    if name.is_empty() && groups.is_empty() {
        let why = "at least one of user or group must be specified";
        return Err(call.review_invalid(FieldError::invalid("spec.user", name, why)));
    }
    let extra: BTreeMap<String, Vec<String>> = crate::object::entries(spec, "/extra")
        .map(|(key, values)| (key.to_owned(), strings(values.as_array().map_or(&[], Vec::as_slice))))
        .collect();
    let user = UserInfo { name: name.to_owned(), groups, uid: text(spec, "/uid").to_owned(), extra };
    call.access(spec, &user)
}

pub fn local_subject_access(call: &Call, review: &Value) -> Result<Value> {
    let spec = &review["spec"];
    if spec["nonResourceAttributes"].is_object() {
        let error = FieldError::invalid(
            "spec.nonResourceAttributes",
            spec["nonResourceAttributes"].clone(),
            "disallowed on this kind of request",
        );
        return Err(call.review_invalid(error));
    }
    let namespace = text(spec, "/resourceAttributes/namespace");
    if namespace != call.path.namespace {
        let why = "must match metadata.namespace";
        let error = FieldError::invalid("spec.resourceAttributes.namespace", namespace, why);
        return Err(call.review_invalid(error));
    }
    subject_access(call, review)
}

pub fn self_subject_rules(call: &Call, review: &Value) -> Result<Value> {
    let namespace = text(review, "/spec/namespace");
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for rule in call.server.rbac.rules_for(&call.user, namespace) {
        if rule.non_resource_urls.is_empty() {
            let mut told =
                json!({"verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources});
            if !rule.resource_names.is_empty() {
                told["resourceNames"] = json!(rule.resource_names);
            }
            resources.push(told);
        } else {
            paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
        }
    }
    let mut status = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false});
    if call.user.as_node().is_some() {
        status["incomplete"] = json!(true);
        status["evaluationError"] = json!("node authorizer does not support user rule resolution");
    }
    Ok(status)
}

fn strings(values: &[Value]) -> Vec<String> {
    values.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect()
}
