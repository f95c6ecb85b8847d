//! The node server, over real TLS.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use wharf_kit::identity::{ALPN_HTTP1, Pair, client_config};

use crate::harness::{Agent, Harness, eventually};

type Sender = hyper::client::conn::http1::SendRequest<Empty<Bytes>>;

async fn connect(harness: &Harness, agent: &Agent, user: &str, groups: &[&str]) -> Sender {
    let pair = harness.ca.client(user, groups).unwrap();
    over(harness, agent, Some(&pair)).await
}

async fn over(harness: &Harness, agent: &Agent, pair: Option<&Pair>) -> Sender {
    let tls = client_config(harness.ca.cert_pem(), pair, ALPN_HTTP1).unwrap();
    let stream = TcpStream::connect(agent.handle.server()).await.unwrap();
    let stream = TlsConnector::from(Arc::clone(&tls))
        .connect(ServerName::try_from("127.0.0.1").unwrap(), stream)
        .await
        .unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender
}

async fn get(sender: &mut Sender, path: &str) -> (StatusCode, String) {
    let request = Request::get(path).header("host", "node").body(Empty::new()).unwrap();
    sender.ready().await.unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_are_served_and_followed_to_the_end_of_the_container() {
    let (harness, agent) = Harness::ready().await;
    harness
        .create(
            "app",
            serde_json::json!({"restartPolicy": "Never", "containers": [{"name": "main", "image": "app:1"}]}),
        )
        .await;
    harness.until_ready("app").await;
    let mut sender = connect(&harness, &agent, "kube-apiserver-kubelet-client", &["system:masters"]).await;
    assert_eq!(get(&mut sender, "/healthz").await, (StatusCode::OK, "ok".to_owned()));
    let (status, body) = get(&mut sender, "/containerLogs/default/app/main").await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.starts_with("hello from container-"), "{body}");
    let (status, body) = get(&mut sender, "/containerLogs/default/app/main?previous=true").await;
    assert_eq!(
        (status, body.as_str()),
        (StatusCode::BAD_REQUEST, "previous terminated container \"main\" in pod \"app\" not found\n")
    );
    assert_eq!(get(&mut sender, "/containerLogs/default/none/main").await.0, StatusCode::NOT_FOUND);
    let (_, pods) = get(&mut sender, "/pods").await;
    let pods: serde_json::Value = serde_json::from_str(&pods).unwrap();
    assert_eq!(pods["items"][0]["metadata"]["name"], "app");

    let mut following = connect(&harness, &agent, "kube-apiserver-kubelet-client", &["system:masters"]).await;
    let followed =
        tokio::spawn(async move { get(&mut following, "/containerLogs/default/app/main?follow=true").await });
    harness.runtime.exit("main", 0);
    let (status, body) =
        tokio::time::timeout(crate::harness::DEADLINE, followed).await.expect("the stream ends").unwrap();
    assert_eq!(status, StatusCode::OK);
    assert!(body.starts_with("hello from container-"), "{body}");
    agent.stop().await;
}

/// A connection without a certificate.
async fn connect_bare(harness: &Harness, agent: &Agent) -> Sender {
    over(harness, agent, None).await
}

async fn get_with(sender: &mut Sender, path: &str, token: &str) -> StatusCode {
    let request =
        Request::get(path).header("host", "node").header("authorization", format!("Bearer {token}"));
    sender.ready().await.unwrap();
    sender.send_request(request.body(Empty::new()).unwrap()).await.unwrap().status()
}

/// Lets this subject get this subresource of nodes.
async fn allow(harness: &Harness, subresource: &str, subject: serde_json::Value) {
    let group = "rbac.authorization.k8s.io";
    let role = serde_json::json!({
        "metadata": {"name": "asker"},
        "rules": [{"apiGroups": [""], "resources": [subresource], "verbs": ["get"]}],
    });
    let binding = serde_json::json!({
        "metadata": {"name": "asker"}, "subjects": [subject],
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "asker"},
    });
    for (plural, object) in [("clusterroles", role), ("clusterrolebindings", binding)] {
        let request =
            Request::post(format!("/apis/{group}/v1/{plural}")).body(object.to_string().into_bytes());
        let _: serde_json::Value = harness.client.request(request.unwrap()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_let_in_without_a_credential_or_without_the_right() {
    let (harness, agent) = Harness::ready().await;
    let mut stranger = connect(&harness, &agent, "system:node:n2", &["system:nodes"]).await;
    for path in ["/healthz", "/pods", "/stats/summary", "/metrics/resource", "/containerLogs/a/b/c"] {
        assert_eq!(get(&mut stranger, path).await.0, StatusCode::FORBIDDEN, "{path}");
    }
    let (_, words) = get(&mut stranger, "/healthz").await;
    let want = "Forbidden (user=system:node:n2, verb=get, resource=nodes, subresource(s)=[healthz proxy])\n";
    assert_eq!(words, want);
    let mut bare = connect_bare(&harness, &agent).await;
    assert_eq!(get(&mut bare, "/healthz").await, (StatusCode::UNAUTHORIZED, "Unauthorized\n".to_owned()));
    assert_eq!(get_with(&mut bare, "/healthz", "made-up").await, StatusCode::UNAUTHORIZED);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_whose_holder_may_read_metrics_reads_those_and_nothing_else() {
    let (harness, agent) = Harness::ready().await;
    let subject = serde_json::json!({"kind": "ServiceAccount", "namespace": "default", "name": "scraper"});
    allow(&harness, "nodes/metrics", subject).await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let account = Request::post(accounts).body(br#"{"metadata": {"name": "scraper"}}"#.to_vec()).unwrap();
    let _: serde_json::Value = harness.client.request(account).await.unwrap();
    let ask = Request::post(format!("{accounts}/scraper/token")).body(b"{}".to_vec()).unwrap();
    let answer: serde_json::Value = harness.client.request(ask).await.unwrap();
    let token = answer["status"]["token"].as_str().unwrap().to_owned();
    let mut bare = connect_bare(&harness, &agent).await;
    // Roles become known a moment after they are written.
    eventually("it is let in", async || match get_with(&mut bare, "/metrics/resource", &token).await {
        StatusCode::OK => Ok(()),
        other => Err(other.to_string()),
    })
    .await;
    assert_eq!(get_with(&mut bare, "/stats/summary", &token).await, StatusCode::FORBIDDEN);
    assert_eq!(get_with(&mut bare, "/pods", &token).await, StatusCode::FORBIDDEN);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_told_as_the_kubelet_tells_it() {
    let (harness, agent) = Harness::ready().await;
    harness.runtime.world().usage.insert("main".to_owned(), (1_500_000_000, 8 << 20));
    let uid = harness.create_simple("app").await;
    harness.until_ready("app").await;
    let mut sender = connect(&harness, &agent, "kube-apiserver-kubelet-client", &["system:masters"]).await;

    let (status, body) = get(&mut sender, "/stats/summary").await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let summary: serde_json::Value = serde_json::from_str(&body).unwrap();
    let pod = &summary["pods"][0];
    assert_eq!(pod["podRef"], serde_json::json!({"name": "app", "namespace": "default", "uid": uid}));
    let container = &pod["containers"][0];
    assert_eq!(container["name"], "main");
    for whose in [pod, container] {
        assert_eq!(whose["cpu"]["usageCoreNanoSeconds"], 1_500_000_000_u64);
        assert_eq!(whose["memory"]["workingSetBytes"], 8 << 20);
        let at: jiff::Timestamp = whose["startTime"].as_str().unwrap().parse().unwrap();
        assert!(at <= jiff::Timestamp::now());
    }
    let node = &summary["node"];
    assert_eq!(node["nodeName"], crate::harness::NODE);
    for number in ["/cpu/usageCoreNanoSeconds", "/memory/workingSetBytes", "/fs/capacityBytes"] {
        assert!(node.pointer(number).and_then(serde_json::Value::as_u64).unwrap() > 0, "{number}: {node}");
    }
    let (_, body) = get(&mut sender, "/stats/summary?only_cpu_and_memory=true").await;
    let summary: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert!(summary["node"]["fs"].is_null() && !summary["node"]["cpu"].is_null(), "{body}");

    let (status, text) = get(&mut sender, "/metrics/resource").await;
    assert_eq!(status, StatusCode::OK);
    let of = r#"{container="main",namespace="default",pod="app"}"#;
    for start in [
        format!("container_cpu_usage_seconds_total{of} 1.5 "),
        format!("container_memory_working_set_bytes{of} 8388608 "),
        format!("container_start_time_seconds{of} "),
        r#"pod_cpu_usage_seconds_total{namespace="default",pod="app"} 1.5 "#.to_owned(),
        "node_memory_working_set_bytes ".to_owned(),
        "resource_scrape_error 0".to_owned(),
    ] {
        assert!(text.lines().any(|line| line.starts_with(&start)), "{start} is missing in\n{text}");
    }

    harness.serving.cancel(); // the runtime dies
    eventually("that is told", async || match get(&mut sender, "/metrics/resource").await {
        (StatusCode::OK, text) if text.ends_with("\nresource_scrape_error 1\n") => Ok(()),
        (status, text) => Err(format!("{status} {text}")),
    })
    .await;
    assert_eq!(get(&mut sender, "/stats/summary").await.0, StatusCode::INTERNAL_SERVER_ERROR);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_forward_is_handed_to_the_runtime_as_it_is() {
    let (harness, agent) = Harness::ready().await;
    // The runtime's streaming server: switches protocols and echoes.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    harness.runtime.world().streaming =
        format!("http://{}/portforward/TOKEN", listener.local_addr().unwrap());
    let streaming = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: SPDY/3.1\r\nx-stream-protocol-version: portforward.k8s.io\r\n\r\n").await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        String::from_utf8(head).unwrap()
    });
    harness.create_simple("app").await;
    harness.until_ready("app").await;
    let mut sender = connect(&harness, &agent, "kube-apiserver-kubelet-client", &["system:masters"]).await;
    let (status, _) = get(&mut sender, "/portForward/default/app").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "without an upgrade there is nothing to forward");
    let request = Request::post("/portForward/default/app")
        .header("host", "node")
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1");
    let request =
        request.header("x-stream-protocol-version", "portforward.k8s.io").body(Empty::new()).unwrap();
    sender.ready().await.unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["x-stream-protocol-version"], "portforward.k8s.io");
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    stream.write_all(b"uninterpreted \x00\xff").await.unwrap();
    let mut echo = [0; 16];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"uninterpreted \x00\xff");
    drop(stream);
    let head =
        tokio::time::timeout(crate::harness::DEADLINE, streaming).await.unwrap().unwrap().to_lowercase();
    assert!(
        head.starts_with("post /portforward/token http/1.1\r\n")
            && head.contains("\r\nupgrade: spdy/3.1\r\n"),
        "{head}"
    );
    eventually("it was asked once", async || {
        if harness.runtime.calls("port_forward") == 1 { Ok(()) } else { Err(String::new()) }
    })
    .await;
    agent.stop().await;
}
