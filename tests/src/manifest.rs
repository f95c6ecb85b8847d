//! Objects for tests: as plain as they can be, to be changed where a test needs more.

use serde_json::{Value, json};

/// The port that the examples and guests listen on.
pub const PORT: u16 = 8080;

/// A Deployment of one pod that is ready when `/` answers, and whose pods have the label `app`.
pub fn deployment(name: &str, image: &str) -> Value {
    let labels = json!({"app": name});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "terminationGracePeriodSeconds": 5,
                    "containers": [{
                        "name": "main",
                        "image": format!("registry.wharf/{image}"),
                        "ports": [{"containerPort": PORT}],
                        "readinessProbe": {"httpGet": {"path": "/", "port": PORT}, "periodSeconds": 1},
                    }],
                },
            },
        },
    })
}

/// A pod of one container that runs a command.
pub fn pod(name: &str, image: &str, args: &[&str]) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "containers": [{"name": "main", "image": format!("registry.wharf/{image}"), "args": args}],
        },
    })
}

/// The container of a Deployment made here.
pub fn container(deployment: &mut Value) -> &mut Value {
    &mut deployment["spec"]["template"]["spec"]["containers"][0]
}

/// What a pod says about its one container.
pub fn container_status(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

/// The pod's address, once it has one.
pub fn address(pod: &Value) -> Option<std::net::IpAddr> {
    pod["status"]["podIP"].as_str()?.parse().ok()
}
