//! Pods: binding, eviction, graceful deletion, admission, and what the node server answers.

use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, LogParams};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wharf_kit::identity::{ALPN_HTTP1, ClientAuth, peer_identity, server_config};

use crate::harness::{Harness, call, call_as, get};

const PODS: &str = "/api/v1/namespaces/default/pods";

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn binding(name: &str, node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"kind": "Node", "name": node}})
}

#[tokio::test]
async fn a_pod_is_completed_bound_and_deleted_with_grace() {
    let harness = Harness::start().await;
    let client = harness.local();
    let (code, made) = call(&client, "POST", PODS, pod("a")).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(
        (&made["status"]["phase"], &made["status"]["qosClass"]),
        (&json!("Pending"), &json!("BestEffort"))
    );
    assert_eq!(made["spec"]["serviceAccountName"], "default");
    assert_eq!((&made["spec"]["priority"], &made["spec"]["restartPolicy"]), (&json!(0), &json!("Always")));
    assert_eq!(made["spec"]["tolerations"].as_array().unwrap().len(), 2);
    assert_eq!(made["metadata"]["generation"], 1);
    let bind = format!("{PODS}/a/binding");
    let (code, status) = call(&client, "POST", &bind, binding("a", "n1")).await;
    assert_eq!((code, &status["status"]), (201, &json!("Success")));
    let (code, status) = call(&client, "POST", &bind, binding("a", "n2")).await;
    assert_eq!(code, 409);
    assert_eq!(
        status["message"],
        "Operation cannot be fulfilled on pods \"a\": pod a is already assigned to node \"n1\""
    );
    let (_, bound) = get(&client, &format!("{PODS}/a")).await;
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(
        (&bound["status"]["conditions"][0]["type"], &bound["status"]["conditions"][0]["status"]),
        (&json!("PodScheduled"), &json!("True"))
    );
    assert_eq!(
        get(&client, "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").await.1["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    // Bound, so it has its grace; a second delete can only shorten it.
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let marked = pods.delete("a", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(marked.metadata.deletion_grace_period_seconds, Some(30));
    let longer = pods.delete("a", &DeleteParams::default().grace_period(60)).await.unwrap().left().unwrap();
    assert_eq!(longer.metadata.deletion_timestamp, marked.metadata.deletion_timestamp);
    let shorter = pods.delete("a", &DeleteParams::default().grace_period(5)).await.unwrap().left().unwrap();
    assert_eq!(shorter.metadata.deletion_grace_period_seconds, Some(5));
    assert!(pods.delete("a", &DeleteParams::default().grace_period(0)).await.unwrap().is_right());
    assert!(pods.get_opt("a").await.unwrap().is_none());
    // Unscheduled, so nobody has to stop it.
    call(&client, "POST", PODS, pod("b")).await;
    assert!(pods.delete("b", &DeleteParams::default()).await.unwrap().is_right());
    assert_eq!(call(&client, "POST", &format!("{PODS}/b/binding"), binding("b", "n")).await.0, 404);
}

#[tokio::test]
async fn eviction_deletes_with_grace() {
    let harness = Harness::start().await;
    let client = harness.local();
    call(&client, "POST", PODS, pod("a")).await;
    call(&client, "POST", &format!("{PODS}/a/binding"), binding("a", "n1")).await;
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "a"}});
    let (code, _) = call(&client, "POST", &format!("{PODS}/a/eviction"), eviction).await;
    assert_eq!(code, 201);
    assert_eq!(get(&client, &format!("{PODS}/a")).await.1["metadata"]["deletionGracePeriodSeconds"], 30);
}

#[tokio::test]
async fn a_budget_lets_as_many_pods_go_as_its_status_allows() {
    const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let harness = Harness::start().await;
    let client = harness.local();
    let merge = async |path: &str, patch: Value| {
        let (code, answer) =
            call_as(&client, "PATCH", path, "application/merge-patch+json", patch.to_string()).await;
        assert_eq!(code, 200, "{answer}");
    };
    let evict = async |name: &str| {
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
        call(&client, "POST", &format!("{PODS}/{name}/eviction"), eviction).await
    };
    let budget = |name: &str, app: &str| {
        json!({"metadata": {"name": name},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": app}}}})
    };
    let ready = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    for (name, app) in [("a", "web"), ("b", "web"), ("c", "two"), ("waiting", "web"), ("unready", "web")] {
        let mut pod = pod(name);
        pod["metadata"]["labels"] = json!({"app": app});
        call(&client, "POST", PODS, pod).await;
        call(&client, "POST", &format!("{PODS}/{name}/binding"), binding(name, "n1")).await;
        match name {
            "waiting" => {}
            "unready" => {
                merge(&format!("{PODS}/{name}/status"), json!({"status": {"phase": "Running"}})).await
            }
            _ => merge(&format!("{PODS}/{name}/status"), ready.clone()).await,
        }
    }
    for (name, app) in [("web", "web"), ("one", "two"), ("other", "two")] {
        assert_eq!(call(&client, "POST", BUDGETS, budget(name, app)).await.0, 201);
    }
    let cause = |status: &Value| status["details"]["causes"][0]["message"].as_str().unwrap().to_owned();
    // Nothing goes before the budget was looked at.
    let (code, status) = evict("a").await;
    assert_eq!((code, status["details"]["retryAfterSeconds"].as_u64()), (429, Some(10)), "{status}");
    assert_eq!(cause(&status), "The disruption budget web is still being processed by the server.");
    let looked = json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2,
        "desiredHealthy": 1, "expectedPods": 2,
        "conditions": [{"type": "DisruptionAllowed", "status": "True", "reason": "SufficientPods", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    merge(&format!("{BUDGETS}/web/status"), looked).await;
    // Of evictions at once only so many pass.
    let both = tokio::join!(evict("a"), evict("b"));
    let (gone, stays) = match (both.0.0, both.1.0) {
        (201, 429) => ("a", "b"),
        (429, 201) => ("b", "a"),
        other => panic!("one of two passes: {other:?}"),
    };
    let (_, evicted) = get(&client, &format!("{PODS}/{gone}")).await;
    let conditions = evicted["status"]["conditions"].as_array().unwrap();
    let told = conditions.iter().find(|one| one["type"] == "DisruptionTarget").expect("it says why it goes");
    assert_eq!(told["reason"], "EvictionByEvictionAPI");
    let (_, taken) = get(&client, &format!("{BUDGETS}/web")).await;
    assert_eq!(taken["status"]["disruptionsAllowed"], 0);
    assert!(taken["status"]["disruptedPods"][gone].is_string(), "{taken}");
    assert_eq!(taken["status"]["conditions"][0]["reason"], "InsufficientPods");
    let (code, status) = evict(stays).await;
    assert_eq!(code, 429);
    assert_eq!(status["message"], "Cannot evict pod as it would violate the pod's disruption budget.");
    assert_eq!(status["details"]["causes"][0]["reason"], "DisruptionBudget");
    assert_eq!(cause(&status), "The disruption budget web needs 1 healthy pods and has 2 currently");
    assert!(get(&client, &format!("{PODS}/{stays}")).await.1["metadata"]["deletionTimestamp"].is_null());
    // What disturbs nobody goes: a pod that does not run yet, and one that is not ready while enough others are.
    assert_eq!(evict("waiting").await.0, 201);
    assert_eq!(evict("unready").await.0, 201);
    let (code, status) = evict("c").await;
    assert_eq!((code, status["reason"].as_str()), (500, Some("InternalError")), "{status}");
    let mut odd = budget("odd", "web");
    odd["spec"]["selector"] =
        json!({"matchExpressions": [{"key": "app", "operator": "Near", "values": ["web"]}]});
    assert_eq!(call(&client, "POST", BUDGETS, odd).await.0, 422, "a selector that says nothing");
}

#[tokio::test]
async fn an_eviction_honours_its_delete_options() {
    let harness = Harness::start().await;
    let client = harness.local();
    call(&client, "POST", PODS, pod("a")).await;
    call(&client, "POST", &format!("{PODS}/a/binding"), binding("a", "n1")).await;
    let evict = async |options: Value| {
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "a"},
            "deleteOptions": options});
        call(&client, "POST", &format!("{PODS}/a/eviction"), eviction).await.0
    };
    assert_eq!(evict(json!({"preconditions": {"resourceVersion": "1"}})).await, 409);
    assert_eq!(evict(json!({"preconditions": {"uid": "another"}})).await, 409);
    assert_eq!(evict(json!({"propagationPolicy": "Sideways"})).await, 422);
    assert_eq!(evict(json!({"dryRun": ["All"]})).await, 201);
    assert!(get(&client, &format!("{PODS}/a")).await.1["metadata"]["deletionTimestamp"].is_null());
    assert_eq!(evict(json!({"gracePeriodSeconds": 7})).await, 201);
    assert_eq!(get(&client, &format!("{PODS}/a")).await.1["metadata"]["deletionGracePeriodSeconds"], 7);
}

#[tokio::test]
async fn a_pod_keeps_its_spec_but_for_the_image() {
    let harness = Harness::start().await;
    let client = harness.local();
    call(&client, "POST", PODS, pod("a")).await;
    let path = format!("{PODS}/a");
    let patch = async |patch: Value| {
        call_as(&client, "PATCH", &path, "application/strategic-merge-patch+json", patch.to_string()).await
    };
    let (code, changed) = patch(json!({"spec": {"containers": [{"name": "c", "image": "j"}]}})).await;
    assert_eq!((code, &changed["metadata"]["generation"]), (200, &json!(2)));
    assert_eq!(patch(json!({"spec": {"activeDeadlineSeconds": 5}})).await.0, 200);
    let (code, status) = patch(json!({"spec": {"hostname": "h"}})).await;
    assert_eq!(code, 422);
    assert!(
        status["message"].as_str().unwrap().starts_with(
            "Pod \"a\" is invalid: spec: Forbidden: pod updates may not change fields other than"
        )
    );
    assert_eq!(patch(json!({"spec": {"activeDeadlineSeconds": 9}})).await.0, 422);
}

#[tokio::test]
async fn runtime_classes_are_checked_and_taken_over() {
    let harness = Harness::start().await;
    let client = harness.local();
    let with = |name: &str, class: &str| {
        let mut pod = pod(name);
        pod["spec"]["runtimeClassName"] = json!(class);
        pod
    };
    assert_eq!(call(&client, "POST", PODS, with("a", "wasm")).await.0, 201);
    let (code, status) = call(&client, "POST", PODS, with("b", "none")).await;
    assert_eq!(code, 403);
    assert_eq!(status["message"], "pods \"b\" is forbidden: pod rejected: RuntimeClass \"none\" not found");
    let class = json!({
        "metadata": {"name": "big"}, "handler": "oci", "overhead": {"podFixed": {"memory": "10Mi"}},
        "scheduling": {"nodeSelector": {"kind": "big"}},
    });
    assert_eq!(call(&client, "POST", "/apis/node.k8s.io/v1/runtimeclasses", class).await.0, 201);
    let (_, made) = call(&client, "POST", PODS, with("c", "big")).await;
    assert_eq!(
        (&made["spec"]["overhead"], &made["spec"]["nodeSelector"]),
        (&json!({"memory": "10Mi"}), &json!({"kind": "big"}))
    );
}

/// A node server that speaks for itself: it answers logs, and echoes what is port-forwarded.
async fn node_server(harness: &Harness) -> u16 {
    let pair = harness.ca.server("system:node:n1", &["127.0.0.1"]).unwrap();
    let tls = server_config(&pair, ClientAuth::Required(harness.ca.cert_pem()), ALPN_HTTP1).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(tls);
        while let Ok((stream, _)) = listener.accept().await {
            let stream = acceptor.accept(stream).await.unwrap();
            let user = peer_identity(&stream.get_ref().1.peer_certificates().unwrap()[0]).unwrap().user;
            let user = Arc::new(user);
            let service =
                hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
                    let user = user.clone();
                    async move {
                        let path = request.uri().to_string();
                        let mut response = http::Response::new(String::new());
                        let streams = ["/portForward/", "/exec/", "/attach/"];
                        if streams.iter().any(|prefix| path.starts_with(prefix)) {
                            response.headers_mut().insert("asked", path.parse().unwrap());
                            *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
                            response.headers_mut().insert("upgrade", "echo".parse().unwrap());
                            response.headers_mut().insert("connection", "Upgrade".parse().unwrap());
                            tokio::spawn(async move {
                                let upgraded = hyper::upgrade::on(&mut request).await.unwrap();
                                let mut io = hyper_util::rt::TokioIo::new(upgraded);
                                let mut bytes = [0; 4];
                                io.read_exact(&mut bytes).await.unwrap();
                                io.write_all(&bytes).await.unwrap();
                            });
                        } else if path.contains("previous=true") {
                            *response.status_mut() = http::StatusCode::BAD_REQUEST;
                            *response.body_mut() =
                                "previous terminated container \"c\" in pod \"a\" not found".to_owned();
                        } else {
                            *response.body_mut() = format!("{user} {path}\n");
                        }
                        Ok::<_, std::convert::Infallible>(response)
                    }
                });
            let io = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(io, service).with_upgrades(),
            );
        }
    });
    port
}

#[tokio::test]
async fn logs_and_port_forwards_go_to_the_node() {
    let harness = Harness::start().await;
    let client = harness.admin();
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    call(&client, "POST", PODS, pod("a")).await;
    let unscheduled = pods.logs("a", &LogParams::default()).await.unwrap_err();
    assert!(unscheduled.to_string().contains("pod a does not have a host assigned"), "{unscheduled}");
    let port = node_server(&harness).await;
    let node = json!({"metadata": {"name": "n1"}, "status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }});
    assert_eq!(call(&client, "POST", "/api/v1/nodes", node).await.0, 201);
    call(&client, "POST", &format!("{PODS}/a/binding"), binding("a", "n1")).await;
    let log = pods.logs("a", &LogParams { tail_lines: Some(3), ..LogParams::default() }).await.unwrap();
    assert_eq!(log, "kube-apiserver-kubelet-client /containerLogs/default/a/c?tailLines=3\n");
    let wrong = LogParams { container: Some("x".to_owned()), ..LogParams::default() };
    let wrong = pods.logs("a", &wrong).await.unwrap_err();
    assert!(wrong.to_string().contains("container x is not valid for pod a"), "{wrong}");
    let previous = LogParams { previous: true, ..LogParams::default() };
    let refused = pods.logs("a", &previous).await.unwrap_err();
    assert!(
        refused.to_string().contains("previous terminated container \"c\" in pod \"a\" not found"),
        "{refused}"
    );

    // Any upgrade goes through as it is.
    let request = http::Request::get(format!("{PODS}/a/portforward?ports=80"))
        .header("connection", "Upgrade")
        .header("upgrade", "echo")
        .body(kube::client::Body::empty())
        .unwrap();
    let mut response = client.send(request).await.unwrap();
    assert_eq!(response.status(), 101, "{:?}", response.body_mut().frame().await);
    let mut io = hyper_util::rt::TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    io.write_all(b"ping").await.unwrap();
    let mut bytes = [0; 4];
    tokio::time::timeout(crate::harness::DEADLINE, io.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(&bytes, b"ping");
    assert_eq!(get(&client, &format!("{PODS}/a/portforward")).await.0, 400);

    // So do commands, in a node server's words; what cannot be meant is refused before.
    let upgrade = async |client: &kube::Client, method: &str, path: &str| {
        let request = http::Request::builder()
            .method(method)
            .uri(format!("{PODS}/a/{path}"))
            .header("connection", "Upgrade")
            .header("upgrade", "echo")
            .body(kube::client::Body::empty())
            .unwrap();
        let response = client.send(request).await.unwrap();
        let status = response.status().as_u16();
        let asked = response.headers().get("asked").map(|asked| asked.to_str().unwrap().to_owned());
        let body = match status {
            101 => String::new(),
            _ => String::from_utf8(response.into_body().collect_bytes().await.unwrap().to_vec()).unwrap(),
        };
        (status, asked.unwrap_or(body))
    };
    let command = "exec?command=sh&command=-c&command=a%26b&stdin=true&stdout=1&tty=true&container=c";
    let asked = "/exec/default/a/c?input=1&output=1&tty=1&command=sh&command=-c&command=a%26b".to_owned();
    assert_eq!(upgrade(&client, "GET", command).await, (101, asked.clone()));
    assert_eq!(upgrade(&client, "POST", command).await, (101, asked));
    let asked = "/attach/default/a/c?output=1&error=1".to_owned();
    assert_eq!(upgrade(&client, "POST", "attach?stdout=true&stderr=true").await, (101, asked));
    for (path, why) in [
        ("exec?stdout=1", "you must specify at least 1 command for the container"),
        ("exec?command=sh", "you must specify at least 1 of stdin, stdout, stderr"),
        ("exec?command=sh&stdout=1&container=x", "container x is not valid for pod a"),
    ] {
        let (code, body) = upgrade(&client, "GET", path).await;
        assert!(code == 400 && body.contains(why), "{path}: {code} {body}");
    }
    let (code, body) = get(&client, &format!("{PODS}/a/exec?command=sh&stdout=1")).await;
    assert!(code == 400 && body.to_string().contains("Upgrade request required"), "{code} {body}");

    // A WebSocket's GET takes the permission of a POST as well.
    for (verbs, method, code) in [
        (json!(["get"]), "GET", 403),
        (json!(["create"]), "GET", 403),
        (json!(["create"]), "POST", 101),
        (json!(["get", "create"]), "GET", 101),
    ] {
        let role = json!({"metadata": {"name": "enter"}, "rules":
            [{"apiGroups": [""], "resources": ["pods/exec"], "verbs": verbs}]});
        let roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
        let binding = json!({"metadata": {"name": "enter"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "enter"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "eve"}]});
        assert_eq!(call(&client, "POST", &format!("{roles}/roles"), role).await.0, 201);
        assert_eq!(call(&client, "POST", &format!("{roles}/rolebindings"), binding).await.0, 201);
        let eve = harness.client("eve", &[]);
        let got = upgrade(&eve, method, command).await;
        assert_eq!(got.0, code, "{method} with {verbs}: {}", got.1);
        for kind in ["roles", "rolebindings"] {
            assert_eq!(call(&client, "DELETE", &format!("{roles}/{kind}/enter"), json!(null)).await.0, 200);
        }
    }
}

#[tokio::test]
async fn a_pods_class_says_its_priority() {
    let harness = Harness::start().await;
    let client = harness.admin();
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
    let make = async |spec: Value| {
        let mut spec = spec;
        spec["containers"] = json!([{"name": "c", "image": "i"}]);
        let body = json!({"metadata": {"generateName": "p-"}, "spec": spec});
        let (code, pod) = call(&client, "POST", "/api/v1/namespaces/default/pods", body).await;
        let message = pod["message"].as_str().unwrap_or_default().to_owned();
        (code, pod["spec"].clone(), message)
    };
    let class = async |name: &str, fields: Value| {
        let mut body = json!({"metadata": {"name": name}});
        for (key, value) in fields.as_object().unwrap() {
            body[key] = value.clone();
        }
        let (code, answer) = call(&client, "POST", classes, body).await;
        (code, answer["message"].as_str().unwrap_or_default().to_owned())
    };
    let (_, spec, _) = make(json!({})).await;
    assert_eq!((&spec["priority"], &spec["preemptionPolicy"]), (&json!(0), &json!("PreemptLowerPriority")));
    let (_, spec, _) = make(json!({"priorityClassName": "system-node-critical"})).await;
    assert_eq!(spec["priority"], 2_000_001_000);
    assert_eq!(class("high", json!({"value": 1000, "preemptionPolicy": "Never"})).await.0, 201);
    let (_, spec, _) = make(json!({"priorityClassName": "high"})).await;
    assert_eq!((&spec["priority"], &spec["preemptionPolicy"]), (&json!(1000), &json!("Never")));
    for (spec, message) in [
        (json!({"priorityClassName": "none"}), "no PriorityClass with name none was found"),
        (
            json!({"priorityClassName": "high", "priority": 5}),
            "the integer value of priority (5) must not be provided in pod spec; priority admission controller computed 1000 from the given PriorityClass name",
        ),
        (
            json!({"priorityClassName": "high", "preemptionPolicy": "PreemptLowerPriority"}),
            "the string value of PreemptionPolicy (PreemptLowerPriority) must not be provided",
        ),
    ] {
        let (code, _, text) = make(spec).await;
        assert_eq!(code, 403);
        assert!(text.contains(message), "{text}");
    }
    for (name, fields, code, message) in [
        ("mid", json!({"value": 10, "globalDefault": true}), 201, ""),
        (
            "more",
            json!({"value": 11, "globalDefault": true}),
            403,
            "PriorityClass mid is already marked as default. Only one default can exist",
        ),
        (
            "huge",
            json!({"value": 1_000_000_001}),
            422,
            "maximum allowed value of a user defined priority is 1000000000",
        ),
        ("system-mine", json!({"value": 1}), 422, "reserved for system use only"),
        (
            "odd",
            json!({"value": 1, "preemptionPolicy": "Always"}),
            422,
            "supported values: \"Never\", \"PreemptLowerPriority\"",
        ),
    ] {
        let (found, text) = class(name, fields).await;
        assert_eq!(found, code, "{text}");
        assert!(text.contains(message), "{text}");
    }
    let (_, spec, _) = make(json!({})).await;
    assert_eq!((&spec["priorityClassName"], &spec["priority"]), (&json!("mid"), &json!(10)));
    let (code, answer) = call(&client, "DELETE", &format!("{classes}/system-node-critical"), json!({})).await;
    assert_eq!(code, 403, "{answer}");
    assert_eq!(call(&client, "DELETE", &format!("{classes}/high"), json!({})).await.0, 200);
}

#[tokio::test]
async fn ephemeral_containers_are_added_to_a_pod_and_never_changed() {
    let harness = Harness::start().await;
    let client = harness.local();
    let forbidden = "ephemeral containers not allowed in pod template";
    let template = json!({"metadata": {"name": "t"}, "template": {"spec": {
        "containers": [{"name": "c", "image": "i"}], "ephemeralContainers": [{"name": "look", "image": "i"}]}}});
    let (_, status) = call(&client, "POST", "/api/v1/namespaces/default/podtemplates", template).await;
    assert!(status["message"].as_str().unwrap().contains(forbidden), "{status}");
    let mut early = pod("a");
    early["spec"]["ephemeralContainers"] = json!([{"name": "look", "image": "i"}]);
    let (code, status) = call(&client, "POST", PODS, early).await;
    let why = "Pod \"a\" is invalid: spec.ephemeralContainers: Forbidden: cannot be set on create";
    assert_eq!((code, status["message"].as_str()), (422, Some(why)));

    let (code, _) = call(&client, "POST", PODS, pod("a")).await;
    assert_eq!(code, 201);
    let path = format!("{PODS}/a/ephemeralcontainers");
    let strategic = "application/strategic-merge-patch+json";
    let patch = async |container: Value| {
        // What it says of anything else is not heard.
        let patch = json!({"metadata": {"labels": {"x": "y"}}, "spec": {
            "activeDeadlineSeconds": 5, "ephemeralContainers": [container]}});
        call_as(&client, "PATCH", &path, strategic, patch.to_string()).await
    };
    let look =
        json!({"name": "look", "image": "i:1", "stdin": true, "tty": true, "targetContainerName": "c"});
    let (code, patched) = patch(look).await;
    assert_eq!(code, 200, "{patched}");
    let added = &patched["spec"]["ephemeralContainers"][0];
    assert_eq!((&added["name"], &added["imagePullPolicy"]), (&json!("look"), &json!("IfNotPresent")));
    assert_eq!(added["terminationMessagePath"], "/dev/termination-log");
    assert_eq!(
        (&patched["metadata"]["generation"], &patched["metadata"]["labels"]),
        (&json!(2), &Value::Null)
    );
    assert_eq!(patched["spec"]["activeDeadlineSeconds"], Value::Null);
    let managed = patched["metadata"]["managedFields"].as_array().unwrap();
    assert!(managed.iter().any(|one| one["subresource"] == "ephemeralcontainers"), "{managed:?}");

    for (container, why) in [
        (json!({"name": "c", "image": "i"}), "spec.ephemeralContainers[0].name: Duplicate value: \"c\""),
        (
            json!({"name": "x", "image": "i", "targetContainerName": "look"}),
            "spec.ephemeralContainers[0].targetContainerName: Not found: \"look\"",
        ),
        (
            json!({"name": "x", "image": "i", "ports": [{"containerPort": 80}]}),
            "spec.ephemeralContainers[0].ports: Forbidden: cannot be set for an Ephemeral Container",
        ),
        (
            json!({"name": "x", "image": "i", "resources": {"limits": {"cpu": "1"}}}),
            "spec.ephemeralContainers[0].resources: Forbidden: cannot be set for an Ephemeral Container",
        ),
        (
            json!({"name": "x", "image": "i", "livenessProbe": {"tcpSocket": {"port": 80}}}),
            "spec.ephemeralContainers[0].livenessProbe: Forbidden: cannot be set for an Ephemeral Container",
        ),
        (
            json!({"name": "x", "image": "i", "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}),
            "spec.ephemeralContainers[0].lifecycle: Forbidden: cannot be set for an Ephemeral Container",
        ),
        (json!({"name": "x"}), "spec.ephemeralContainers[0].image: Required value"),
        (
            json!({"name": "look", "image": "i:2"}),
            "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"look\" may not be changed",
        ),
    ] {
        let (code, status) = patch(container).await;
        let message = status["message"].as_str().unwrap_or_default();
        assert!(code == 422 && message.contains(why), "{code} {message} without {why}");
    }
    let (_, mut read) = get(&client, &path).await;
    assert_eq!(
        (&read["kind"], &read["spec"]["ephemeralContainers"][0]["image"]),
        (&json!("Pod"), &json!("i:1"))
    );
    let more = json!({"name": "more", "image": "i"});
    read["spec"]["ephemeralContainers"].as_array_mut().unwrap().push(more);
    let (code, updated) = call(&client, "PUT", &path, read.clone()).await;
    assert_eq!(
        (code, updated["spec"]["ephemeralContainers"].as_array().unwrap().len()),
        (200, 2),
        "{updated}"
    );
    let mut fewer = updated;
    fewer["spec"]["ephemeralContainers"].as_array_mut().unwrap().pop();
    let why = "existing ephemeral containers \"more\" may not be removed";
    let (code, status) = call(&client, "PUT", &path, fewer.clone()).await;
    assert!(code == 422 && status["message"].as_str().unwrap().contains(why), "{status}");
    let (code, status) = call(&client, "PUT", &format!("{PODS}/a"), fewer).await;
    assert!(
        code == 422 && status["message"].as_str().unwrap().contains("pod updates may not change"),
        "{status}"
    );
}
