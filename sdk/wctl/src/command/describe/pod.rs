//! Pods, and the templates that workloads make them from.

use serde_json::Value;

use super::page::{Page, scalar};
use super::{age, conditions, identity, pairs};

pub fn describe(page: &mut Page, pod: &Value) {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    identity(page, pod);
    page.field_if(0, "Priority", &spec["priority"]);
    page.field_if(0, "Runtime Class", &spec["runtimeClassName"]);
    page.field_if(0, "Service Account", &spec["serviceAccountName"]);
    let node = match (scalar(&spec["nodeName"]), scalar(&status["hostIP"])) {
        (node, _) if node.is_empty() => "<none>".to_owned(),
        (node, address) => format!("{node}/{address}"),
    };
    page.field(0, "Node", node);
    page.field_if(0, "Start Time", &status["startTime"]);
    let phase = match pod["metadata"]["deletionTimestamp"].as_str() {
        Some(_) => "Terminating".to_owned(),
        None => scalar(&status["phase"]),
    };
    page.field(0, "Status", phase);
    page.field_if(0, "Reason", &status["reason"]);
    page.field_if(0, "Message", &status["message"]);
    page.list(0, "IP", status["podIPs"].as_array().into_iter().flatten().map(|ip| scalar(&ip["ip"])));
    age(page, pod);
    for (list, statuses, heading) in [
        ("initContainers", "initContainerStatuses", "Init Containers"),
        ("containers", "containerStatuses", "Containers"),
        ("ephemeralContainers", "ephemeralContainerStatuses", "Ephemeral Containers"),
    ] {
        containers(page, 0, heading, &spec[list], &status[statuses]);
    }
    conditions(page, pod);
    volumes(page, 0, &spec["volumes"]);
    page.field_if(0, "QoS Class", &status["qosClass"]);
    page.list(0, "Node-Selectors", pairs(&spec["nodeSelector"], "="));
    page.list(0, "Tolerations", spec["tolerations"].as_array().into_iter().flatten().map(toleration));
}

/// The template of a workload.
pub fn template(page: &mut Page, template: &Value) {
    page.heading(0, "Pod Template");
    page.list(1, "Labels", pairs(&template["metadata"]["labels"], "="));
    let spec = &template["spec"];
    page.field_if(1, "Service Account", &spec["serviceAccountName"]);
    containers(page, 1, "Init Containers", &spec["initContainers"], &Value::Null);
    containers(page, 1, "Containers", &spec["containers"], &Value::Null);
    volumes(page, 1, &spec["volumes"]);
}

fn containers(page: &mut Page, depth: usize, heading: &str, containers: &Value, statuses: &Value) {
    let Some(containers) = containers.as_array().filter(|containers| !containers.is_empty()) else { return };
    page.heading(depth, heading);
    for container in containers {
        let statuses = statuses.as_array();
        let status = statuses.into_iter().flatten().find(|status| status["name"] == container["name"]);
        page.heading(depth + 1, &scalar(&container["name"]));
        self::container(page, depth + 2, container, status);
    }
}

fn container(page: &mut Page, at: usize, container: &Value, status: Option<&Value>) {
    let words = |value: &Value| value.as_array().into_iter().flatten().map(scalar).collect::<Vec<_>>();
    if let Some(status) = status {
        page.field_if(at, "Container ID", &status["containerID"]);
    }
    page.field_if(at, "Image", &container["image"]);
    if let Some(status) = status {
        page.field_if(at, "Image ID", &status["imageID"]);
    }
    let ports = container["ports"].as_array().into_iter().flatten().map(|port| {
        format!("{}/{}", scalar(&port["containerPort"]), port["protocol"].as_str().unwrap_or("TCP"))
    });
    let ports: Vec<_> = ports.collect();
    page.field(at, "Ports", if ports.is_empty() { "<none>".to_owned() } else { ports.join(", ") });
    for (field, name) in [("command", "Command"), ("args", "Args")] {
        if container[field].is_array() {
            page.list(at, name, words(&container[field]));
        }
    }
    if let Some(status) = status {
        state(page, at, "State", &status["state"]);
        state(page, at, "Last State", &status["lastState"]);
        page.field_if(at, "Ready", &status["ready"]);
        page.field_if(at, "Restart Count", &status["restartCount"]);
    }
    for (field, name) in [("limits", "Limits"), ("requests", "Requests")] {
        let quantities = pairs(&container["resources"][field], ": ");
        if !quantities.is_empty() {
            page.list(at, name, quantities);
        }
    }
    for (field, name) in
        [("livenessProbe", "Liveness"), ("readinessProbe", "Readiness"), ("startupProbe", "Startup")]
    {
        if container[field].is_object() {
            page.field(at, name, probe(&container[field]));
        }
    }
    let sources = container["envFrom"].as_array().into_iter().flatten().map(|source| {
        let (kind, of) = if source["secretRef"].is_object() {
            ("Secret", "secretRef")
        } else {
            ("ConfigMap", "configMapRef")
        };
        format!("all of {kind} {}", scalar(&source[of]["name"]))
    });
    let variables = container["env"].as_array().into_iter().flatten().map(variable);
    page.list(at, "Environment", sources.chain(variables));
    let mounts = container["volumeMounts"].as_array().into_iter().flatten().map(|mount| {
        let mode = if mount["readOnly"] == true { "ro" } else { "rw" };
        format!("{} from {} ({mode})", scalar(&mount["mountPath"]), scalar(&mount["name"]))
    });
    page.list(at, "Mounts", mounts);
}

fn state(page: &mut Page, at: usize, name: &str, state: &Value) {
    let Some((which, details)) = state.as_object().and_then(|state| state.iter().next()) else { return };
    let mut title = which.clone();
    title[..1].make_ascii_uppercase();
    page.field(at, name, title);
    for (field, name) in [
        ("reason", "Reason"),
        ("message", "Message"),
        ("exitCode", "Exit Code"),
        ("signal", "Signal"),
        ("startedAt", "Started"),
        ("finishedAt", "Finished"),
    ] {
        page.field_if(at, &format!("  {name}"), &details[field]);
    }
}

/// A probe on one line, as kubectl writes it.
fn probe(probe: &Value) -> String {
    let what = if let Some(command) = probe["exec"]["command"].as_array() {
        format!("exec [{}]", command.iter().map(scalar).collect::<Vec<_>>().join(" "))
    } else if probe["httpGet"].is_object() {
        let get = &probe["httpGet"];
        let scheme = get["scheme"].as_str().unwrap_or("HTTP").to_lowercase();
        format!(
            "http-get {scheme}://{}:{}{}",
            scalar(&get["host"]),
            scalar(&get["port"]),
            scalar(&get["path"])
        )
    } else if probe["tcpSocket"].is_object() {
        format!("tcp-socket {}:{}", scalar(&probe["tcpSocket"]["host"]), scalar(&probe["tcpSocket"]["port"]))
    } else {
        format!("grpc :{} {}", scalar(&probe["grpc"]["port"]), scalar(&probe["grpc"]["service"]))
    };
    let number = |field: &str| probe[field].as_i64().unwrap_or(0);
    format!(
        "{} delay={}s timeout={}s period={}s #success={} #failure={}",
        what.trim_end(),
        number("initialDelaySeconds"),
        number("timeoutSeconds"),
        number("periodSeconds"),
        number("successThreshold"),
        number("failureThreshold")
    )
}

fn variable(variable: &Value) -> String {
    let name = scalar(&variable["name"]);
    let from = &variable["valueFrom"];
    let Some((kind, source)) = from.as_object().and_then(|from| from.iter().next()) else {
        return format!("{name}: {}", scalar(&variable["value"]));
    };
    let text = |field: &str| scalar(&source[field]);
    match kind.as_str() {
        "fieldRef" => format!("{name}: ({})", text("fieldPath")),
        "resourceFieldRef" => format!("{name}: ({})", text("resource")),
        "secretKeyRef" => format!("{name}: <key {} of Secret {}>", text("key"), text("name")),
        _ => format!("{name}: <key {} of ConfigMap {}>", text("key"), text("name")),
    }
}

fn volumes(page: &mut Page, depth: usize, volumes: &Value) {
    let Some(volumes) = volumes.as_array().filter(|volumes| !volumes.is_empty()) else {
        return page.field(depth, "Volumes", "<none>");
    };
    page.heading(depth, "Volumes");
    for volume in volumes {
        page.heading(depth + 1, &scalar(&volume["name"]));
        for (kind, source) in volume.as_object().into_iter().flatten().filter(|(key, _)| *key != "name") {
            page.field(depth + 2, "Type", kind);
            for (key, value) in source.as_object().into_iter().flatten() {
                page.tree(depth + 2, &super::page::in_words(key), value);
            }
        }
    }
}

fn toleration(toleration: &Value) -> String {
    let text = |field: &str| scalar(&toleration[field]);
    let mut said = text("key");
    if !text("value").is_empty() {
        said = format!("{said}={}", text("value"));
    }
    if !text("effect").is_empty() {
        said = format!("{said}:{}", text("effect"));
    }
    if toleration["operator"] == "Exists" {
        said.push_str(" op=Exists");
    }
    if let Some(seconds) = toleration["tolerationSeconds"].as_i64() {
        said = format!("{said} for {seconds}s");
    }
    said.trim_start().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_is_told_with_what_its_containers_do() {
        let pod = json!({
            "kind": "Pod",
            "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"},
                "ownerReferences": [{"kind": "ReplicaSet", "name": "web-1", "controller": true}]},
            "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": "i:1",
                "env": [{"name": "A", "value": "1"},
                    {"name": "P", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
                "readinessProbe": {"httpGet": {"path": "/ok", "port": 80, "scheme": "HTTP"}, "periodSeconds": 1},
                "resources": {"limits": {"memory": "64Mi"}}}],
                "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]},
            "status": {"phase": "Running", "hostIP": "10.0.0.1", "containerStatuses": [{"name": "c", "restartCount": 2,
                "state": {"running": {"startedAt": "now"}},
                "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]},
        });
        let mut page = Page::default();
        describe(&mut page, &pod);
        let text = page.text();
        for part in [
            "Controlled By:  ReplicaSet/web-1",
            "node-1/10.0.0.1",
            "OOMKilled",
            "Exit Code:",
            "memory: 64Mi",
            "http-get http://:80/ok delay=0s",
            "P: <key k of Secret s>",
            "k:NoExecute op=Exists for 300s",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }
}
