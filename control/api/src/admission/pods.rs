//! What pods get beside what their author wrote.

use serde_json::{Value, json};

use super::{Request, World};
use crate::object::{child, entries, list, text};
use crate::status::{Result, Status};

/// Tolerated for this long after a node is gone, so that a short outage moves no pod; Kubernetes' default.
const TOLERATION_SECONDS: i64 = 300;

/// Checks that the runtime class exists, and takes its overhead and scheduling over into the pod.
pub fn runtime_class(request: &mut Request<'_>, world: &World<'_>) -> Result<()> {
    if !request.is_new_pod() {
        return Ok(());
    }
    let deny =
        |request: &Request<'_>, why: &str| Err(Status::forbidden_kind(request.kind, request.name, why));
    let name = text(request.object, "/spec/runtimeClassName").to_owned();
    let overhead = request.object.pointer("/spec/overhead").cloned();
    if name.is_empty() {
        return match overhead {
            Some(overhead) if entries(&overhead, "").next().is_some() => deny(
                request,
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
            ),
            _ => Ok(()),
        };
    }
    let Some(class) = world.object("node.k8s.io", "runtimeclasses", "", &name) else {
        return deny(request, &format!("pod rejected: RuntimeClass {name:?} not found"));
    };
    if let Some(fixed) = class.pointer("/overhead/podFixed") {
        if overhead.as_ref().is_some_and(|overhead| overhead != fixed) {
            return deny(
                request,
                "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
            );
        }
        child(request.object, "spec").insert("overhead".to_owned(), fixed.clone());
    } else if overhead.is_some_and(|overhead| entries(&overhead, "").next().is_some()) {
        return deny(
            request,
            "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
        );
    }
    for (key, value) in entries(&class, "/scheduling/nodeSelector") {
        let present = request.object.pointer("/spec/nodeSelector").and_then(|selector| selector.get(key));
        if present.is_some_and(|present| present != value) {
            let why = format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                value.as_str().unwrap_or_default(),
                present.and_then(Value::as_str).unwrap_or_default()
            );
            return deny(request, &why);
        }
        let spec = child(request.object, "spec");
        let selector = spec.entry("nodeSelector").or_insert_with(|| json!({}));
        crate::object::map(selector).insert(key.to_owned(), value.clone());
    }
    add_tolerations(request.object, list(&class, "/scheduling/tolerations").to_vec());
    Ok(())
}

pub fn default_toleration_seconds(request: &mut Request<'_>, _world: &World<'_>) -> Result<()> {
    if !request.is_new_pod() {
        return Ok(());
    }
    let missing =
        ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"].into_iter().filter(|taint| {
            !list(request.object, "/spec/tolerations").iter().any(|toleration| {
                let (key, effect) = (text(toleration, "/key"), text(toleration, "/effect"));
                (key == *taint || key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
            })
        });
    let added = missing
        .map(|taint| {
            json!({
                "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS,
            })
        })
        .collect();
    add_tolerations(request.object, added);
    Ok(())
}

fn add_tolerations(pod: &mut Value, added: Vec<Value>) {
    if added.is_empty() {
        return;
    }
    let tolerations = child(pod, "spec").entry("tolerations").or_insert_with(|| json!([]));
    if let Some(tolerations) = tolerations.as_array_mut() {
        for toleration in added {
            if !tolerations.contains(&toleration) {
                tolerations.push(toleration);
            }
        }
    }
}
