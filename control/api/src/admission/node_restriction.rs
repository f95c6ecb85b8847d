//! A node agent changes its own Node, Lease and pods only, and cannot move itself where others' pods go.

use serde_json::Value;

use super::{Operation, Request, World};
use crate::kinds::Subresource;
use crate::object::{entries, list, text};
use crate::status::{Result, Status};

/// Labels under these prefixes are the administrator's to set.
const RESTRICTED: &str = "node-restriction.kubernetes.io/";

pub fn admit(request: &mut Request<'_>, world: &World<'_>) -> Result<()> {
    let Some(node) = request.user.as_node() else { return Ok(()) };
    let deny = |why: String| Err(Status::forbidden_kind(request.kind, request.name, &why));
    let name = match request.name {
        "" => text(request.object, "/metadata/name"),
        name => name,
    };
    match (&*request.kind.group, &*request.kind.plural) {
        ("", "nodes") => {
            if name != node {
                return deny(format!("node {node:?} is not allowed to modify node {name:?}"));
            }
            if request.subresource.is_none() && request.operation != Operation::Delete {
                let changed = restricted_changes(request.object, request.old);
                if !changed.is_empty() {
                    return deny(format!("is not allowed to modify labels: {}", changed.join(", ")));
                }
                let taints = |object: &Value| object.pointer("/spec/taints").cloned().unwrap_or(Value::Null);
                if request.old.is_some_and(|old| taints(old) != taints(request.object)) {
                    return deny(format!("node {node:?} is not allowed to modify taints"));
                }
            }
            Ok(())
        }
        ("coordination.k8s.io", "leases") if request.namespace != "kube-node-lease" || name != node => {
            deny(format!("can only access node lease with the same name as the requesting node, {node:?}"))
        }
        ("", "pods") => {
            if request.operation == Operation::Create && request.subresource.is_none() {
                return deny(format!("node {node:?} is not allowed to create pods"));
            }
            let bound = match request.old {
                Some(pod) => text(pod, "/spec/nodeName").to_owned(),
                None => world
                    .object("", "pods", request.namespace, name)
                    .map(|pod| text(&pod, "/spec/nodeName").to_owned())
                    .unwrap_or_default(),
            };
            if bound != node {
                return deny(format!("node {node:?} can only act on pods with spec.nodeName set to itself"));
            }
            if request.operation == Operation::Update && request.subresource != Some(Subresource::Status) {
                return deny(format!("node {node:?} can only update the status of pods"));
            }
            let labels = |object: &Value| object.pointer("/metadata/labels").cloned().unwrap_or(Value::Null);
            if request.operation == Operation::Update
                && request.old.is_some_and(|old| labels(old) != labels(request.object))
            {
                return deny(format!("node {node:?} cannot update labels through pod status"));
            }
            Ok(())
        }
        ("", "serviceaccounts") if request.subresource == Some(Subresource::Token) => {
            match token_binding(request, world, node) {
                None => Ok(()),
                Some(why) => deny(why),
            }
        }
        _ => Ok(()),
    }
}

/// Why a node may not have the token it asks for: it has to be bound to a pod of this node.
fn token_binding(request: &Request<'_>, world: &World<'_>, node: &str) -> Option<String> {
    let reference = &request.object["spec"]["boundObjectRef"];
    let (version, kind) = (text(reference, "/apiVersion"), text(reference, "/kind"));
    let (name, uid) = (text(reference, "/name"), text(reference, "/uid"));
    if version != "v1" || kind != "Pod" || name.is_empty() {
        return Some("node requested token not bound to a pod".to_owned());
    }
    if uid.is_empty() {
        return Some("node requested token with a pod binding without a uid".to_owned());
    }
    let Some(pod) = world.object("", "pods", request.namespace, name) else {
        return Some(format!("pod {name:?} not found"));
    };
    if text(&pod, "/metadata/uid") != uid {
        return Some(format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        ));
    }
    if text(&pod, "/spec/nodeName") != node {
        return Some("node requested token bound to a pod scheduled on a different node".to_owned());
    }
    // What the pod's own volumes ask for, and no other: a node cannot be its pods elsewhere (KEP-4412).
    let audience = match list(&*request.object, "/spec/audiences") {
        [] => "",
        [one] => one.as_str().unwrap_or_default(),
        _ => return Some("node may only request 0 or 1 audiences".to_owned()),
    };
    let named = list(&pod, "/spec/volumes")
        .iter()
        .flat_map(|volume| list(volume, "/projected/sources"))
        .filter_map(|source| source.get("serviceAccountToken"))
        .any(|source| text(source, "/audience") == audience);
    (!named).then(|| format!("node is not authorized to request tokens for audience {audience:?}"))
}

/// Restricted labels that differ between the two.
fn restricted_changes(new: &Value, old: Option<&Value>) -> Vec<String> {
    let labels = |object: &Value| -> std::collections::BTreeMap<String, Value> {
        entries(object, "/metadata/labels")
            .filter(|(key, _)| key.starts_with(RESTRICTED) || key.contains(&format!(".{RESTRICTED}")))
            .map(|(key, value)| (key.to_owned(), value.clone()))
            .collect()
    };
    let (new, old) = (labels(new), old.map(labels).unwrap_or_default());
    let keys: std::collections::BTreeSet<&String> = new.keys().chain(old.keys()).collect();
    keys.into_iter().filter(|key| new.get(*key) != old.get(*key)).cloned().collect()
}
