//! Fills in what nobody said, as Kubernetes' v1 defaults do.
//!
//! Fixed values come from `defaults.txt`; here are the walk over the object and the rules that depend on other
//! fields. Defaulting is idempotent.

use serde_json::{Map, Value, json};

use super::model::{Presence, Shape, Type};

type Object = Map<String, Value>;

/// Fills in the defaults of `ty` and of everything in it. `object` must have been decoded; a value of the wrong
/// kind is left as it is.
pub fn default(object: &mut Value, ty: Type) {
    if let Value::Object(map) = object
        && ty.0.defaulted
    {
        walk(map, ty);
    }
}

fn walk(object: &mut Object, ty: Type) {
    if let Some(rule) = rule(ty.name()) {
        rule(object);
    }
    for field in ty.fields() {
        if !object.contains_key(field.name) {
            let value = match (&field.default, field.presence) {
                (Some(value), _) => value.clone(),
                (None, Presence::EmptyObject) => json!({}),
                (None, Presence::Optional | Presence::Null) => continue,
            };
            object.insert(field.name.to_owned(), value);
        }
    }
    object.retain(|name, value| {
        let Some(field) = ty.field(name) else { return true };
        descend(value, &field.shape);
        // Go leaves an empty list or map out.
        let empty = match (&*value, &field.shape) {
            (Value::Array(items), Shape::List(_)) => items.is_empty(),
            (Value::Object(map), Shape::Map(_)) => map.is_empty(),
            _ => false,
        };
        !empty || field.required || field.presence != Presence::Optional || field.default.is_some()
    });
    if let Some(rule) = late_rule(ty.name()) {
        rule(object);
    }
}

fn descend(value: &mut Value, shape: &Shape) {
    match (value, shape) {
        (Value::Object(object), Shape::Struct(_)) => {
            if let Some(ty) = shape.as_type().filter(|ty| ty.0.defaulted) {
                walk(object, ty);
            }
        }
        (Value::Array(items), Shape::List(item)) => items.iter_mut().for_each(|value| descend(value, item)),
        (Value::Object(object), Shape::Map(item)) => {
            object.values_mut().for_each(|value| descend(value, item))
        }
        _ => {}
    }
}

type Rule = fn(&mut Object);

/// What depends on fields as they were given.
fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "core.v1.PodSpec" => pod_spec,
        "core.v1.Container" | "core.v1.EphemeralContainer" => container,
        "core.v1.Service" => service,
        "core.v1.Secret" => secret,
        "core.v1.NodeStatus" => node_status,
        "rbac.v1.Subject" => subject,
        "batch.v1.Job" => job,
        "core.v1.LimitRangeItem" => limits,
        _ => return None,
    })
}

/// What depends on fields that have defaults themselves.
fn late_rule(name: &str) -> Option<Rule> {
    Some(match name {
        "core.v1.Pod" => pod,
        "apps.v1.DeploymentStrategy" => deployment_strategy,
        "apps.v1.DaemonSetUpdateStrategy" => daemon_set_strategy,
        "apps.v1.StatefulSetUpdateStrategy" => stateful_set_strategy,
        _ => return None,
    })
}

/// Whether this file has a rule for the type of that name.
pub(super) fn has_rule(name: &str) -> bool {
    rule(name).is_some() || late_rule(name).is_some()
}

fn set(object: &mut Object, name: &str, value: impl FnOnce() -> Value) {
    if !object.contains_key(name) {
        object.insert(name.to_owned(), value());
    }
}

fn objects<'a>(object: &'a mut Object, name: &str) -> impl Iterator<Item = &'a mut Object> {
    object.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

fn pod_spec(spec: &mut Object) {
    // Two names of one thing; the newer one wins.
    let account = spec.get("serviceAccountName").or_else(|| spec.get("serviceAccount")).cloned();
    if let Some(account) = account.filter(|account| account.as_str().is_some_and(|name| !name.is_empty())) {
        spec.insert("serviceAccountName".to_owned(), account.clone());
        spec.insert("serviceAccount".to_owned(), account);
    }
    for volume in objects(spec, "volumes") {
        if volume.len() == 1 && volume.contains_key("name") {
            volume.insert("emptyDir".to_owned(), json!({}));
        }
    }
}

fn container(container: &mut Object) {
    if !container.contains_key("imagePullPolicy") {
        let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
        let policy = if names_latest(image) { "Always" } else { "IfNotPresent" };
        container.insert("imagePullPolicy".to_owned(), policy.into());
    }
}

/// Whether an image reference means the tag `latest`: it says so, or has neither a tag nor a digest.
fn names_latest(image: &str) -> bool {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let last = name.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => digest.is_none() && !image.is_empty(),
    }
}

/// What only whole pods get, not templates.
fn pod(pod: &mut Object) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    set(spec, "enableServiceLinks", || true.into());
    let host_network = spec.get("hostNetwork").and_then(Value::as_bool).unwrap_or_default();
    for list in ["initContainers", "containers"] {
        for container in objects(spec, list) {
            if let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) {
                requests_from_limits(resources);
            }
            if host_network {
                for port in objects(container, "ports") {
                    if let Some(number) = port.get("containerPort").cloned() {
                        set(port, "hostPort", || number);
                    }
                }
            }
        }
    }
}

fn requests_from_limits(resources: &mut Object) {
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    if limits.is_empty() {
        return;
    }
    set(resources, "requests", || json!({}));
    if let Some(requests) = resources.get_mut("requests").and_then(Value::as_object_mut) {
        for (name, amount) in limits {
            requests.entry(name).or_insert(amount);
        }
    }
}

fn deployment_strategy(strategy: &mut Object) {
    if let Some(rolling) = rolling(strategy) {
        set(rolling, "maxSurge", || "25%".into());
        set(rolling, "maxUnavailable", || "25%".into());
    }
}

/// The `rollingUpdate` of a strategy that is one.
fn rolling(strategy: &mut Object) -> Option<&mut Object> {
    if strategy.get("type").and_then(Value::as_str) != Some("RollingUpdate") {
        return None;
    }
    set(strategy, "rollingUpdate", || json!({}));
    strategy.get_mut("rollingUpdate").and_then(Value::as_object_mut)
}

fn daemon_set_strategy(strategy: &mut Object) {
    if let Some(rolling) = rolling(strategy) {
        set(rolling, "maxSurge", || 0.into());
        set(rolling, "maxUnavailable", || 1.into());
    }
}

fn stateful_set_strategy(strategy: &mut Object) {
    if let Some(rolling) = rolling(strategy) {
        set(rolling, "partition", || 0.into());
    }
}

/// A Job alone gets these, not the template of one in a CronJob.
fn job(job: &mut Object) {
    set(job, "spec", || json!({}));
    let labels = job.get("spec").and_then(|spec| spec.pointer("/template/metadata/labels")).cloned();
    if let (Some(labels), Some(meta)) = (labels, job.get_mut("metadata").and_then(Value::as_object_mut)) {
        set(meta, "labels", || labels);
    }
    let Some(spec) = job.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if !spec.contains_key("completions") && !spec.contains_key("parallelism") {
        spec.insert("completions".to_owned(), 1.into());
    }
    set(spec, "parallelism", || 1.into());
    // Failures are counted for each index alone where an index has a limit.
    let limit = if spec.contains_key("backoffLimitPerIndex") { i32::MAX } else { 6 };
    set(spec, "backoffLimit", || limit.into());
    set(spec, "completionMode", || "NonIndexed".into());
    set(spec, "suspend", || false.into());
    set(spec, "manualSelector", || false.into());
    let replace = if spec.contains_key("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    set(spec, "podReplacementPolicy", || replace.into());
}

/// A limit nobody set is the most there may be; a request nobody set is the limit, or else the least.
fn limits(item: &mut Object) {
    if item.get("type").and_then(Value::as_str) != Some("Container") {
        return;
    }
    for (field, source) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
        let Some(amounts) = item.get(source).and_then(Value::as_object).cloned() else { continue };
        set(item, field, || json!({}));
        if let Some(into) = item.get_mut(field).and_then(Value::as_object_mut) {
            for (name, amount) in amounts {
                into.entry(name).or_insert(amount);
            }
        }
    }
}

fn service(service: &mut Object) {
    let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if spec.get("sessionAffinity").and_then(Value::as_str) == Some("ClientIP") {
        // Three hours, as Kubernetes has it.
        let config = spec.entry("sessionAffinityConfig").or_insert_with(|| json!({}));
        if let Some(config) = config.as_object_mut() {
            let client = config.entry("clientIP").or_insert_with(|| json!({}));
            if let Some(client) = client.as_object_mut() {
                set(client, "timeoutSeconds", || 10_800.into());
            }
        }
    }
    let kind = spec.get("type").and_then(Value::as_str).unwrap_or("ClusterIP").to_owned();
    let has_external_ips =
        spec.get("externalIPs").and_then(Value::as_array).is_some_and(|ips| !ips.is_empty());
    if kind != "ExternalName" {
        set(spec, "internalTrafficPolicy", || "Cluster".into());
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && has_external_ips) {
        set(spec, "externalTrafficPolicy", || "Cluster".into());
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", || true.into());
    }
    for port in objects(spec, "ports") {
        if let Some(number) = port.get("port").cloned() {
            let unset = |value: &Value| *value == json!(0) || *value == json!("");
            if port.get("targetPort").is_none_or(unset) {
                port.insert("targetPort".to_owned(), number);
            }
        }
    }
}

/// Text given as `stringData` is what `data` holds, encoded; it is never stored.
fn secret(secret: &mut Object) {
    use base64::Engine as _;
    let Some(Value::Object(text)) = secret.remove("stringData") else { return };
    if let Value::Object(data) = secret.entry("data").or_insert_with(|| json!({})) {
        for (name, value) in text {
            let encoded =
                base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap_or_default());
            data.insert(name, encoded.into());
        }
    }
}

fn subject(subject: &mut Object) {
    let group = match subject.get("kind").and_then(Value::as_str) {
        Some("User" | "Group") => "rbac.authorization.k8s.io",
        _ => return, // the core group is written as nothing
    };
    set(subject, "apiGroup", || group.into());
}

/// What a node has can be used, unless it says how much of it.
fn node_status(status: &mut Object) {
    if let Some(capacity) = status.get("capacity").cloned() {
        set(status, "allocatable", || capacity);
    }
}
