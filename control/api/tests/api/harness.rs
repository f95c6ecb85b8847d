//! A server of its own for each test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wharf_api::{ApiServer, Config, UserInfo};
use wharf_kit::client_ca::ClientCa;
use wharf_kit::identity::{ALPN_HTTP1, Ca, ClientAuth, client_config, server_config};
use wharf_store::Redb;

/// Long enough for a machine under load, and far from any test's normal time.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub struct Harness {
    pub server: ApiServer,
    pub ca: Ca,
    pub address: SocketAddr,
    stop: CancellationToken,
    serving: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Harness {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(configure: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Redb::open(dir.path().join("store.redb")).await.unwrap());
        let ca = Ca::generate("test-ca").unwrap();
        let pair = ca.server("kube-apiserver", &["127.0.0.1", "localhost"]).unwrap();
        let kubelet = ca.client("kube-apiserver-kubelet-client", &["system:masters"]).unwrap();
        let mut config = Config {
            tls: Some(server_config(&pair, ClientAuth::Optional(ca.cert_pem()), &[]).unwrap()),
            client_ca: Some(ClientCa::new(ca.cert_pem()).unwrap()),
            kubelet_client: Some(client_config(ca.cert_pem(), Some(&kubelet), ALPN_HTTP1).unwrap()),
            ..Config::default()
        };
        configure(&mut config);
        let server = ApiServer::start(config, store).await.unwrap();
        make_account(&server.client(UserInfo::admin()), "default").await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn({
            let (server, stop) = (server.clone(), stop.clone());
            async move { server.serve(listener, stop).await.unwrap() }
        });
        Self { server, ca, address, stop, serving: Some(serving), _dir: dir }
    }

    fn config(&self) -> kube::Config {
        let mut config = kube::Config::new(format!("https://{}", self.address).parse().unwrap());
        let roots = wharf_kit::identity::certificates(self.ca.cert_pem()).unwrap();
        config.root_cert = Some(roots.iter().map(|root| root.to_vec()).collect());
        config
    }

    /// A stock client with a client certificate.
    pub fn client(&self, user: &str, groups: &[&str]) -> kube::Client {
        let pair = self.ca.client(user, groups).unwrap();
        let mut config = self.config();
        use base64::Engine as _;
        let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        config.auth_info.client_certificate_data = Some(base64(&pair.cert_pem));
        config.auth_info.client_key_data = Some(base64(&pair.key_pem).into());
        kube::Client::try_from(config).unwrap()
    }

    pub fn admin(&self) -> kube::Client {
        self.client("kubernetes-admin", &["system:masters"])
    }

    /// Without a certificate.
    pub fn anonymous(&self) -> kube::Client {
        kube::Client::try_from(self.config()).unwrap()
    }

    /// With a bearer token.
    pub fn bearer(&self, token: &str) -> kube::Client {
        let mut config = self.config();
        config.auth_info.token = Some(token.to_owned().into());
        kube::Client::try_from(config).unwrap()
    }

    /// In this process.
    pub fn local(&self) -> kube::Client {
        self.server.client(UserInfo::admin())
    }

    /// Ends the server as an operator does, and shows that it ends.
    pub async fn stop(mut self) {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.serving.take().unwrap()).await.expect("the server ends").unwrap();
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The account of a namespace's pods, which the controllers make elsewhere; pods stay as they are written with it.
pub async fn make_account(client: &kube::Client, namespace: &str) {
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
    let account = json!({"metadata": {"name": "default"}, "automountServiceAccountToken": false});
    let (code, made) = call(client, "POST", &path, account).await;
    assert_eq!(code, 201, "{made}");
}

/// Sends a request as it is and gives status, headers and body.
pub async fn send(client: &kube::Client, request: Request<Vec<u8>>) -> Response<Vec<u8>> {
    let response = client.send(request.map(Body::from)).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = tokio::time::timeout(DEADLINE, body.collect_bytes()).await.expect("the body ends").unwrap();
    Response::from_parts(parts, bytes.to_vec())
}

/// A request with a JSON body, answered with JSON.
pub async fn call(client: &kube::Client, method: &str, path: &str, body: Value) -> (u16, Value) {
    call_as(client, method, path, "application/json", body.to_string()).await
}

pub async fn call_as(
    client: &kube::Client,
    method: &str,
    path: &str,
    content_type: &str,
    body: impl Into<Vec<u8>>,
) -> (u16, Value) {
    let body = body.into();
    let body = if body == b"null" { Vec::new() } else { body };
    let request =
        Request::builder().method(method).uri(path).header("content-type", content_type).body(body).unwrap();
    let response = send(client, request).await;
    let value = serde_json::from_slice(response.body())
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(response.body()).into_owned()));
    (response.status().as_u16(), value)
}

pub async fn get(client: &kube::Client, path: &str) -> (u16, Value) {
    call(client, "GET", path, Value::Null).await
}

/// Tries until `check` holds, and tells the last answer if it never does.
pub async fn eventually<T: std::fmt::Debug, F: Future<Output = T>>(
    mut attempt: impl FnMut() -> F,
    check: impl Fn(&T) -> bool,
) -> T {
    let end = tokio::time::Instant::now() + DEADLINE;
    loop {
        let last = attempt().await;
        if check(&last) {
            return last;
        }
        assert!(tokio::time::Instant::now() < end, "it never held; last seen: {last:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The lines of a watch.
pub struct Lines {
    body: Body,
    buffer: Vec<u8>,
}

impl Lines {
    pub async fn open(client: &kube::Client, path: &str, accept: &str) -> Self {
        let request = Request::builder().uri(path).header("accept", accept).body(Body::empty()).unwrap();
        let response = client.send(request).await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        Self { body: response.into_body(), buffer: Vec::new() }
    }

    /// The next event; `None` if the watch has ended.
    pub async fn next(&mut self) -> Option<Value> {
        use http_body_util::BodyExt as _;
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(DEADLINE, self.body.frame()).await.expect("an event comes")?;
            self.buffer.extend_from_slice(frame.unwrap().data_ref().unwrap());
        }
    }

    /// The next event as `TYPE name`.
    pub async fn brief(&mut self) -> String {
        let event = self.next().await.expect("the watch goes on");
        format!(
            "{} {}",
            event["type"].as_str().unwrap(),
            event["object"]["metadata"]["name"].as_str().unwrap_or("")
        )
    }
}
