//! A real API server in this process, a scripted runtime and an agent between them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use wharf_api::{ApiServer, UserInfo};
use wharf_kit::identity::Ca;
use wharf_kit::renew::Current;
use wharf_node::{Config, Handle, Listen, Node, Serving};
use wharf_store::Redb;

use crate::cri::Runtime;

pub const DEADLINE: Duration = Duration::from_secs(20);
pub const NODE: &str = "n1";

pub struct Harness {
    pub api: ApiServer,
    pub client: kube::Client,
    pub runtime: Runtime,
    pub ca: Ca,
    pub directory: tempfile::TempDir,
    /// The agent's requests, as `METHOD path`.
    pub requests: Arc<Mutex<Vec<String>>>,
    /// How long the next tokens of service accounts are good for, in seconds, and what was asked for each.
    pub tokens: Arc<Mutex<(i64, Vec<Value>)>>,
    /// Ends the runtime's server.
    pub serving: CancellationToken,
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.serving.cancel();
        // A test that failed leaves no mounts.
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|point| std::path::Path::new(point).starts_with(self.directory.path()));
        for point in below {
            let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// An agent that runs.
pub struct Agent {
    pub handle: Handle,
    stop: CancellationToken,
}

impl Agent {
    pub async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.handle.stopped()).await.expect("the agent stops");
    }
}

type Answer = UnsyncBoxBody<bytes::Bytes, tower::BoxError>;

/// Answers a TokenRequest: `token-1`, `token-2`, ….
fn token(tokens: &Mutex<(i64, Vec<Value>)>, asked: &[u8]) -> http::Response<Answer> {
    let mut tokens = tokens.lock().unwrap();
    tokens.1.push(serde_json::from_slice(asked).unwrap());
    let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(tokens.0);
    let status = json!({"token": format!("token-{}", tokens.1.len()), "expirationTimestamp": expires});
    let answer = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "status": status});
    let body = Full::from(answer.to_string()).map_err(|never| match never {}).boxed_unsync();
    http::Response::builder().status(201).body(body).unwrap()
}

fn user(name: &str, groups: &[&str]) -> UserInfo {
    let groups =
        groups.iter().map(|group| (*group).to_owned()).chain(["system:authenticated".to_owned()]).collect();
    UserInfo { name: name.to_owned(), groups, uid: String::new(), extra: BTreeMap::new() }
}

impl Harness {
    pub async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Redb::open(directory.path().join("store.redb")).await.unwrap());
        let api = ApiServer::start(wharf_api::Config::default(), store).await.unwrap();
        let client = api.client(user("kubernetes-admin", &["system:masters"]));
        // The controllers make the account of a namespace's pods; without its token they stay as they are written.
        let account = json!({"metadata": {"name": "default"}, "automountServiceAccountToken": false});
        let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
        accounts.create(&PostParams::default(), &serde_json::from_value(account).unwrap()).await.unwrap();
        let runtime = Runtime::new(directory.path());
        let serving = runtime.serve();
        runtime.world().images.extend([
            ("app:1".to_owned(), false),
            ("app:2".to_owned(), false),
            ("guest.wasm:1".to_owned(), true),
        ]);
        Self {
            api,
            client,
            runtime,
            ca: Ca::generate("test").unwrap(),
            directory,
            requests: Arc::default(),
            tokens: Arc::new(Mutex::new((3600, Vec::new()))),
            serving,
        }
    }

    /// A harness with a Ready node.
    pub async fn ready() -> (Self, Agent) {
        let this = Self::new().await;
        let mut agent = this.agent().await;
        this.give_range().await;
        tokio::time::timeout(DEADLINE, agent.handle.ready()).await.expect("the node becomes ready");
        (this, agent)
    }

    /// How many requests of the agent so far begin so.
    pub fn asked(&self, start: &str) -> usize {
        self.requests.lock().unwrap().iter().filter(|request| request.starts_with(start)).count()
    }

    pub fn root(&self) -> PathBuf {
        self.directory.path().join("node")
    }

    pub fn logs(&self) -> PathBuf {
        self.directory.path().join("logs")
    }

    pub async fn agent(&self) -> Agent {
        let stop = CancellationToken::new();
        let (requests, tokens) = (self.requests.clone(), self.tokens.clone());
        let api = self.api.service(user("system:node:n1", &["system:nodes"]));
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (api, tokens) = (api.clone(), tokens.clone());
            requests.lock().unwrap().push(format!("{} {}", request.method(), request.uri().path()));
            async move {
                // Tokens are ours to give, so that a test can give short-lived ones.
                if request.uri().path().ends_with("/token") {
                    let body = request.into_body().collect().await?.to_bytes();
                    return Ok(token(&tokens, &body));
                }
                let response = api.oneshot(request).await?;
                Ok::<_, tower::BoxError>(
                    response.map(|body| body.map_err(tower::BoxError::from).boxed_unsync()),
                )
            }
        });
        let client = kube::Client::new(service, "default");
        let config = Config {
            name: NODE.to_owned(),
            client,
            runtime: wharf_cri::connect(&self.runtime.socket),
            address: "127.0.0.1".parse().unwrap(),
            api_server: ("127.0.0.1".to_owned(), 6443),
            root: self.root(),
            logs: self.logs(),
            serving: Serving {
                listen: Listen::Address("127.0.0.1:0".parse().unwrap()),
                identity: Current::new(&self.ca.server("system:node:n1", &["127.0.0.1"]).unwrap()).unwrap(),
                client_ca: self.ca.cert_pem().to_owned(),
            },
            labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
            max_pods: wharf_node::DEFAULT_MAX_PODS,
            lease: wharf_node::DEFAULT_LEASE,
        };
        Agent { handle: Node::start(config, stop.clone()).await.unwrap(), stop }
    }

    /// What the IPAM controller does.
    pub async fn give_range(&self) {
        let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(self.client.clone());
        eventually("the node registers", async || {
            nodes.get_opt(NODE).await.unwrap().map(|_| ()).ok_or("absent".to_owned())
        })
        .await;
        let patch = json!({"spec": {"podCIDR": "10.128.0.0/17", "podCIDRs": ["10.128.0.0/17"]}});
        nodes.patch(NODE, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::default_namespaced(self.client.clone())
    }

    /// Creates a pod on the node; `spec` without it.
    pub async fn create(&self, name: &str, mut spec: Value) -> String {
        spec["nodeName"] = json!(NODE);
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec});
        let pod =
            self.pods().create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        pod.metadata.uid.unwrap()
    }

    /// One container named `main` with image `app:1`.
    pub async fn create_simple(&self, name: &str) -> String {
        self.create(name, json!({"containers": [{"name": "main", "image": "app:1"}]})).await
    }

    pub async fn delete(&self, name: &str) {
        self.pods().delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// Waits until the status fulfils the condition, and returns it.
    pub async fn until(&self, name: &str, what: &str, fine: impl Fn(&Value) -> bool) -> Value {
        eventually(what, async || {
            let pod = self.pods().get(name).await.map_err(|error| error.to_string())?;
            let status = serde_json::to_value(pod.status).unwrap();
            if fine(&status) { Ok(status) } else { Err(status.to_string()) }
        })
        .await
    }

    pub async fn until_ready(&self, name: &str) -> Value {
        self.until(name, "the pod is ready", |status| condition(status, "Ready") == "True").await
    }

    pub async fn until_gone(&self, name: &str) {
        eventually("the pod is gone", async || match self.pods().get_opt(name).await.unwrap() {
            None => Ok(()),
            Some(pod) => Err(format!("{pod:?}")),
        })
        .await;
    }

    /// Waits until an event of the pod of this reason says this.
    pub async fn until_told(&self, pod: &str, reason: &str, message: &str) {
        let events: Api<k8s_openapi::api::core::v1::Event> = Api::default_namespaced(self.client.clone());
        eventually("an event tells it", async || {
            let events = events.list(&Default::default()).await.map_err(|error| error.to_string())?;
            let about = events.items.into_iter().filter(|event| {
                event.involved_object.name.as_deref() == Some(pod) && event.reason.as_deref() == Some(reason)
            });
            let told: Vec<_> = about.filter_map(|event| event.message).collect();
            if told.iter().any(|told| told == message) { Ok(()) } else { Err(format!("{told:?}")) }
        })
        .await;
    }

    /// Reasons of the pod's events so far.
    pub async fn reasons(&self, pod: &str) -> Vec<String> {
        let events: Api<k8s_openapi::api::core::v1::Event> = Api::default_namespaced(self.client.clone());
        let events = events.list(&Default::default()).await.unwrap();
        let about =
            events.items.into_iter().filter(|event| event.involved_object.name.as_deref() == Some(pod));
        about.filter_map(|event| event.reason).collect()
    }
}

pub fn condition<'a>(status: &'a Value, kind: &str) -> &'a str {
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions
        .iter()
        .find(|condition| condition["type"] == kind)
        .and_then(|condition| condition["status"].as_str())
        .unwrap_or("")
}

/// The reason why the first container waits.
pub fn waiting(status: &Value) -> &str {
    status["containerStatuses"][0]["state"]["waiting"]["reason"].as_str().unwrap_or("")
}

/// Tries until it succeeds; the last failure is in the panic.
pub async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Result<T, String>) -> T {
    let begun = tokio::time::Instant::now();
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(last) => assert!(begun.elapsed() < DEADLINE, "{what}: not in time; last: {last}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
