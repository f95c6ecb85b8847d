//! metrics.k8s.io and the proxy of nodes, with a node server that speaks for itself.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use serde_json::{Value, json};
use wharf_kit::identity::{ALPN_HTTP1, ClientAuth, server_config};

use crate::harness::{Harness, call, call_as, eventually, get, send};

const METRICS: &str = "/apis/metrics.k8s.io/v1beta1";
const PODS: &str = "/api/v1/namespaces/default/pods";
/// What the container uses all the time.
const HALF_A_CORE: f64 = 0.5;

/// A node server: of usage it tells that of one container in the pod of this uid; all else it echoes.
#[derive(Default)]
struct Node {
    uid: Mutex<String>,
    questions: AtomicUsize,
}

impl Node {
    fn summary(&self) -> String {
        self.questions.fetch_add(1, Ordering::Relaxed);
        let now = jiff::Timestamp::now();
        // As long as it exists it has used half a core.
        let used = (now.as_nanosecond() as f64 * HALF_A_CORE) as u64;
        let counted = |memory: u64| {
            json!({
                "cpu": {"time": now.to_string(), "usageCoreNanoSeconds": used},
                "memory": {"time": now.to_string(), "workingSetBytes": memory},
            })
        };
        let mut container = counted(8 << 20);
        container["name"] = json!("c");
        let uid = self.uid.lock().unwrap().clone();
        let pod =
            json!({"podRef": {"name": "a", "namespace": "default", "uid": uid}, "containers": [container]});
        json!({"node": counted(1 << 30), "pods": [pod]}).to_string()
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let asked = request.uri().to_string();
        let mut response = Response::new(Full::default());
        if asked.starts_with("/stats/summary") {
            *response.body_mut() = self.summary().into();
        } else if request.headers().contains_key("upgrade") {
            *response.status_mut() = StatusCode::IM_A_TEAPOT;
        } else {
            let method = request.method().clone();
            let credentials = request.headers().contains_key("authorization");
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let echo = format!("{method} {asked} {} {credentials}", String::from_utf8_lossy(&body));
            *response.body_mut() = echo.into();
            response.headers_mut().insert("x-own", "kept".parse().unwrap());
        }
        response
    }

    /// Serves, and makes the Node `n1` that leads here and `n2` that leads nowhere.
    async fn start(harness: &Harness, admin: &kube::Client) -> Arc<Self> {
        let pair = harness.ca.server("system:node:n1", &["127.0.0.1"]).unwrap();
        let tls = server_config(&pair, ClientAuth::Required(harness.ca.cert_pem()), ALPN_HTTP1).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let node = Arc::new(Self::default());
        let serving = node.clone();
        tokio::spawn(async move {
            let acceptor = tokio_rustls::TlsAcceptor::from(tls);
            while let Ok((stream, _)) = listener.accept().await {
                let stream = acceptor.accept(stream).await.unwrap();
                let node = serving.clone();
                let service = hyper::service::service_fn(move |request| {
                    let node = node.clone();
                    async move { Ok::<_, Infallible>(node.answer(request).await) }
                });
                let io = hyper_util::rt::TokioIo::new(stream);
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
            }
        });
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        for (name, port) in [("n1", port), ("n2", closed)] {
            let object = json!({"metadata": {"name": name, "labels": {"disk": name}}, "status": {
                "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            }});
            assert_eq!(call(admin, "POST", "/api/v1/nodes", object).await.0, 201);
        }
        node
    }

    /// Makes the pod `a` that it tells of, and `b` that runs nowhere.
    async fn run_pod(&self, admin: &kube::Client) {
        for name in ["a", "b"] {
            let pod = json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
            assert_eq!(call(admin, "POST", PODS, pod).await.0, 201);
        }
        let binding = json!({"metadata": {"name": "a"}, "target": {"kind": "Node", "name": "n1"}});
        assert_eq!(call(admin, "POST", &format!("{PODS}/a/binding"), binding).await.0, 201);
        let status = r#"{"status": {"phase": "Running"}}"#;
        let path = format!("{PODS}/a/status");
        let (code, pod) = call_as(admin, "PATCH", &path, "application/merge-patch+json", status).await;
        assert_eq!(code, 200, "{pod}");
        *self.uid.lock().unwrap() = pod["metadata"]["uid"].as_str().unwrap().to_owned();
    }
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_measured_when_it_is_asked_for_and_then_kept_for_a_while() {
    let harness = Harness::start().await;
    let admin = harness.admin();
    let node = Node::start(&harness, &admin).await;
    node.run_pod(&admin).await;

    let (code, pods) = get(&admin, &format!("{METRICS}/pods")).await;
    assert_eq!((code, names(&pods)), (200, vec!["a"]), "{pods}");
    assert_eq!((&pods["kind"], &pods["metadata"]), (&json!("PodMetricsList"), &json!({})));
    let pod = &pods["items"][0];
    assert_eq!((&pod["kind"], &pod["apiVersion"]), (&json!("PodMetrics"), &json!("metrics.k8s.io/v1beta1")));
    assert_eq!(pod["metadata"]["namespace"], "default");
    assert_eq!(pod["metadata"]["labels"], json!({"app": "a"}));
    assert!(pod["metadata"]["resourceVersion"].is_null(), "it is not stored");
    assert_eq!(pod["containers"][0]["name"], "c");
    let usage = &pod["containers"][0]["usage"];
    assert_eq!(usage["memory"], "8Mi");
    let cores: wharf_kit::quantity::Quantity = usage["cpu"].as_str().unwrap().parse().unwrap();
    assert!((499..=501).contains(&cores.millis()), "{usage}");
    let window: f64 = pod["window"].as_str().unwrap().trim_end_matches('s').parse().unwrap();
    assert!((1.0..20.0).contains(&window), "{pod}");
    let at: jiff::Timestamp = pod["timestamp"].as_str().unwrap().parse().unwrap();
    assert!(at <= jiff::Timestamp::now());

    assert_eq!(node.questions.load(Ordering::Relaxed), 2, "looked at twice, since nobody had looked before");
    let (_, nodes) = get(&admin, &format!("{METRICS}/nodes")).await;
    assert_eq!(names(&nodes), ["n1"], "a node that cannot be asked is left out of a list: {nodes}");
    assert_eq!(nodes["items"][0]["usage"]["memory"], "1Gi");
    let (code, one) = get(&admin, &format!("{METRICS}/namespaces/default/pods/a")).await;
    assert_eq!((code, &one), (200, pod), "the same answer again");
    assert_eq!(
        get(&admin, &format!("{METRICS}/nodes/n1")).await.1["metadata"]["labels"],
        json!({"disk": "n1"})
    );
    assert_eq!(node.questions.load(Ordering::Relaxed), 2, "nobody was asked again");

    // Selectors, and what is not there.
    assert_eq!(names(&get(&admin, &format!("{METRICS}/nodes?labelSelector=disk%3Dn2")).await.1), [""; 0]);
    assert_eq!(names(&get(&admin, &format!("{METRICS}/pods?labelSelector=app%3Da")).await.1), ["a"]);
    assert_eq!(names(&get(&admin, &format!("{METRICS}/namespaces/other/pods")).await.1), [""; 0]);
    for (path, code, words) in [
        ("nodes/n3", 404, "nodes.metrics.k8s.io \"n3\" not found"),
        ("namespaces/default/pods/b", 404, "pods.metrics.k8s.io \"b\" not found"),
        ("nodes/n2", 502, "could not reach the node server at 127.0.0.1"),
        ("pods?watch=true", 405, "the server does not allow this method"),
    ] {
        let (have, status) = get(&admin, &format!("{METRICS}/{path}")).await;
        assert_eq!(have, code, "{path}: {status}");
        assert!(status["message"].as_str().unwrap().contains(words), "{path}: {status}");
    }
    assert_eq!(call(&admin, "DELETE", &format!("{METRICS}/nodes/n1"), Value::Null).await.0, 405);

    // A container that began since is not in the answer that was kept.
    let began = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(60);
    let running = json!({"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {"startedAt": began}}});
    let status = json!({"status": {"containerStatuses": [running]}}).to_string();
    let path = format!("{PODS}/a/status");
    assert_eq!(call_as(&admin, "PATCH", &path, "application/merge-patch+json", status).await.0, 200);
    let ask = || async {
        assert_eq!(names(&get(&admin, &format!("{METRICS}/pods")).await.1), ["a"]);
        node.questions.load(Ordering::Relaxed)
    };
    eventually(ask, |questions| *questions == 3).await;
    get(&admin, &format!("{METRICS}/nodes")).await;
    assert_eq!(node.questions.load(Ordering::Relaxed), 3, "who asks about the node takes what is kept");

    let table = Request::get(format!("{METRICS}/namespaces/default/pods"))
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let table = send(&admin, table.body(Vec::new()).unwrap()).await;
    let table: Value = serde_json::from_slice(table.body()).unwrap();
    let columns = table["columnDefinitions"].as_array().unwrap().iter().map(|column| &column["name"]);
    assert_eq!(columns.collect::<Vec<_>>(), ["Name", "CPU", "Memory", "Window"]);
    assert_eq!((&table["rows"][0]["cells"][0], &table["rows"][0]["cells"][2]), (&json!("a"), &json!("8Mi")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_in_discovery_and_seen_by_those_who_see_pods() {
    let harness = Harness::start().await;
    let admin = harness.admin();
    let (_, found) = get(&admin, METRICS).await;
    let resources: Vec<_> = found["resources"].as_array().unwrap().iter().collect();
    for (resource, name, kind, namespaced) in
        [(resources[0], "nodes", "NodeMetrics", false), (resources[1], "pods", "PodMetrics", true)]
    {
        let want = json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["get", "list"]});
        assert_eq!(resource, &want);
    }
    let (code, document) = get(&admin, "/openapi/v3/apis/metrics.k8s.io/v1beta1").await;
    assert_eq!(code, 200);
    let schema = &document["components"]["schemas"]["io.k8s.metrics.pkg.apis.metrics.v1beta1.NodeMetrics"];
    assert_eq!(schema["required"], json!(["timestamp", "usage", "window"]));

    let binding = json!({
        "metadata": {"name": "look"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "viewer"}],
    });
    let path = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    assert_eq!(call(&admin, "POST", path, binding).await.0, 201);
    let viewer = harness.client("viewer", &[]);
    let own = format!("{METRICS}/namespaces/default/pods");
    eventually(|| async { get(&viewer, &own).await.0 }, |code| *code == 200).await;
    assert_eq!(get(&viewer, &format!("{METRICS}/pods")).await.0, 403, "not of all namespaces");
    assert_eq!(get(&viewer, &format!("{METRICS}/nodes")).await.0, 403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nodes_proxy_passes_on_what_is_asked_of_its_server() {
    let harness = Harness::start().await;
    let admin = harness.admin();
    Node::start(&harness, &admin).await;
    let ask = async |client: &kube::Client, method: &str, path: &str, upgrade: bool| {
        let request = Request::builder().method(method).uri(format!("/api/v1/nodes/{path}"));
        let request = request.header("authorization", "Basic secret");
        let request = match upgrade {
            true => request.header("connection", "Upgrade").header("upgrade", "echo"),
            false => request,
        };
        send(client, request.body(b"body".to_vec()).unwrap()).await
    };
    let text = |response: &http::Response<Vec<u8>>| String::from_utf8_lossy(response.body()).into_owned();

    let got = ask(&admin, "GET", "n1/proxy/healthz?a=b&c=%2F", false).await;
    assert_eq!((got.status().as_u16(), text(&got).as_str()), (200, "GET /healthz?a=b&c=%2F body false"));
    assert_eq!(got.headers()["x-own"], "kept");
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        let got = ask(&admin, method, "n1/proxy/run/a//b/", false).await;
        assert_eq!(text(&got), format!("{method} /run/a//b/ body false"), "its path goes on as it is");
    }
    assert_eq!(text(&ask(&admin, "POST", "n1/proxy", false).await), "POST / body false");
    let moved = ask(&admin, "GET", "n1/proxy?x=y", false).await;
    assert_eq!(
        (moved.status().as_u16(), &moved.headers()["location"]),
        (301, &"/api/v1/nodes/n1/proxy/?x=y".parse().unwrap())
    );

    let (_, node) = get(&admin, "/api/v1/nodes/n1").await;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().unwrap();
    assert_eq!(ask(&admin, "GET", &format!("https:n1:{port}/proxy/x"), false).await.status(), 200);
    for (wrong, code) in [("n1:22", 400), ("http:n1:10250", 400), ("n3", 404)] {
        assert_eq!(ask(&admin, "GET", &format!("{wrong}/proxy/x"), false).await.status(), code, "{wrong}");
    }

    // Who may get may not open streams: those do more than read.
    let role = json!({"metadata": {"name": "r"}, "rules": [{"apiGroups": [""], "resources": ["nodes/proxy"], "verbs": ["get"]}]});
    let group = "rbac.authorization.k8s.io";
    let binding = json!({
        "metadata": {"name": "r"}, "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "r"},
        "subjects": [{"apiGroup": group, "kind": "User", "name": "reader"}],
    });
    assert_eq!(call(&admin, "POST", &format!("/apis/{group}/v1/clusterroles"), role).await.0, 201);
    assert_eq!(call(&admin, "POST", &format!("/apis/{group}/v1/clusterrolebindings"), binding).await.0, 201);
    let reader = harness.client("reader", &[]);
    let healthz = || async { ask(&reader, "GET", "n1/proxy/healthz", false).await.status().as_u16() };
    eventually(healthz, |code| *code == 200).await;
    assert_eq!(ask(&reader, "POST", "n1/proxy/run", false).await.status(), 403);
    assert_eq!(ask(&reader, "GET", "n1/proxy/exec/a/b/c", true).await.status(), 403);
    assert_eq!(ask(&admin, "GET", "n1/proxy/exec/a/b/c", true).await.status(), 418, "the node's own answer");
}
