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
use wharf_kit::identity::{ALPN_HTTP1, client_config};

use crate::harness::{Agent, Harness, eventually};

type Sender = hyper::client::conn::http1::SendRequest<Empty<Bytes>>;

async fn connect(harness: &Harness, agent: &Agent, user: &str, groups: &[&str]) -> Sender {
    let pair = harness.ca.client(user, groups).unwrap();
    let tls = client_config(harness.ca.cert_pem(), Some(&pair), ALPN_HTTP1).unwrap();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_api_server_may_ask_and_only_with_a_certificate() {
    let (harness, agent) = Harness::ready().await;
    let mut sender = connect(&harness, &agent, "system:node:n2", &["system:nodes"]).await;
    assert_eq!(get(&mut sender, "/healthz").await.0, StatusCode::FORBIDDEN);
    let tls = client_config(harness.ca.cert_pem(), None, ALPN_HTTP1).unwrap();
    let stream = TcpStream::connect(agent.handle.server()).await.unwrap();
    let refused = async {
        let mut stream =
            TlsConnector::from(tls).connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await?;
        stream.read_u8().await
    };
    assert!(refused.await.is_err(), "without a certificate there is no connection");
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
