//! A control plane in this process: a real API server over redb in a temporary folder, scheduler and controllers as
//! their own users through its authorization and admission; and nodes that say they run whatever is bound to them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt as _;
use wharf_api::{ApiServer, UserInfo};
use wharf_controllers::views::Pod;
use wharf_kit::api::{Absent, Delete, Error, Ignored, Kind, PatchKind, Rest};
use wharf_kit::identity::Ca;
use wharf_kit::reconcile::{Controller, Next, Pass};
use wharf_kit::view::{Filter, Hub, Key, Store, View};

/// What holds at all holds long before this, on a machine that does much else.
const DEADLINE: Duration = Duration::from_secs(20);

pub const CA: &str = "-----BEGIN CERTIFICATE-----\nnot read by anyone here\n-----END CERTIFICATE-----\n";
pub const NODES: Kind = Kind::core("Node", "nodes").cluster();
pub const NAMESPACES: Kind = Kind::core("Namespace", "namespaces").cluster();
pub const PODS: Kind = Kind::core("Pod", "pods");
pub const EVENTS: Kind = Kind::core("Event", "events");
pub const MAPS: Kind = Kind::core("ConfigMap", "configmaps");
pub const ACCOUNTS: Kind = Kind::core("ServiceAccount", "serviceaccounts");
pub const DEPLOYMENTS: Kind = Kind::new("apps", "v1", "Deployment", "deployments");
pub const DAEMON_SETS: Kind = Kind::new("apps", "v1", "DaemonSet", "daemonsets");
pub const REVISIONS: Kind = Kind::new("apps", "v1", "ControllerRevision", "controllerrevisions");
pub const STATEFUL_SETS: Kind = Kind::new("apps", "v1", "StatefulSet", "statefulsets");
pub const CRON_JOBS: Kind = Kind::new("batch", "v1", "CronJob", "cronjobs");
pub const BUDGETS: Kind = Kind::new("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets");
pub const JOBS: Kind = Kind::new("batch", "v1", "Job", "jobs");
pub const SETS: Kind = Kind::new("apps", "v1", "ReplicaSet", "replicasets");
pub const CLUSTER_ROLES: Kind =
    Kind::new("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles").cluster();
const LEASES: Kind = Kind::new("coordination.k8s.io", "v1", "Lease", "leases");

pub struct World {
    pub admin: Rest,
    server: ApiServer,
    requests: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<()>>,
    stop: CancellationToken,
    _stop: DropGuard,
    _folder: tempfile::TempDir,
}

impl World {
    /// An API server, scheduler and controllers that take a node for silent after `node_grace`.
    pub async fn start(node_grace: Duration) -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let folder = tempfile::tempdir().unwrap();
        let store = wharf_store::Redb::open(folder.path().join("store.redb")).await.unwrap();
        let server = ApiServer::start(wharf_api::Config::default(), Arc::new(store)).await.unwrap();
        let stop = CancellationToken::new();
        let requests = Arc::new(AtomicUsize::new(0));
        let mut world = Self {
            admin: Rest::new(server.client(UserInfo::admin())),
            server,
            requests,
            tasks: Vec::new(),
            _stop: stop.clone().drop_guard(),
            stop,
            _folder: folder,
        };
        let config = wharf_controllers::Config {
            node_grace,
            signer: Some(Arc::new(Ca::generate("test-ca").unwrap())),
            ..wharf_controllers::Config::new(CA)
        };
        let controllers = world.counted("kube-controller-manager");
        world.tasks.push(wharf_controllers::start(controllers, config, world.stop.clone()));
        let scheduler = world.counted("kube-scheduler");
        world.tasks.push(wharf_scheduler::Scheduler::start(scheduler, world.stop.clone()));
        world
    }

    /// A client of a part of the control plane whose requests are counted.
    fn counted(&self, component: &str) -> kube::Client {
        let requests = self.requests.clone();
        let service = self.server.service(UserInfo::system(component));
        let service = service.map_request(move |request| {
            requests.fetch_add(1, Ordering::Relaxed);
            request
        });
        kube::Client::new(service, "default")
    }

    /// Cancelled when the world ends.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// The API as another user.
    pub fn user(&self, name: &str, groups: &[&str]) -> Rest {
        Rest::new(self.server.client(UserInfo::new(name, groups.iter().copied())))
    }

    /// Requests of scheduler and controllers so far.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Makes a node and the agent that speaks for it until the token is cancelled.
    pub async fn add_node(&self, name: &str, cpu: &str) -> CancellationToken {
        let stop = self.stop.child_token();
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        });
        self.admin.create::<Ignored>(NODES, "", &node).await.unwrap();
        let amounts = json!({"cpu": cpu, "memory": "32Gi", "pods": "110", "ephemeral-storage": "10Gi"});
        let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready",
            "lastHeartbeatTime": now(), "lastTransitionTime": now()});
        let status = json!({"status": {"capacity": amounts, "allocatable": amounts, "conditions": [ready]}});
        let key = Key::cluster(name);
        self.admin.patch::<Ignored>(NODES, &key, "status", PatchKind::Merge, &status).await.unwrap();
        self.heartbeat(name, stop.clone()).await;
        tokio::spawn(agent(self.admin.clone(), name.to_owned(), stop.clone()));
        stop
    }

    async fn heartbeat(&self, name: &str, stop: CancellationToken) {
        let (rest, name) = (self.admin.clone(), name.to_owned());
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "namespace": "kube-node-lease"},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": micro()},
        });
        rest.create::<Ignored>(LEASES, "kube-node-lease", &lease).await.unwrap();
        tokio::spawn(async move {
            let key = Key::new("kube-node-lease", name.as_str());
            let mut beat = tokio::time::interval(Duration::from_millis(300));
            while stop.run_until_cancelled(beat.tick()).await.is_some() {
                let renewal = json!({"spec": {"renewTime": micro()}});
                let _ = rest.patch::<Ignored>(LEASES, &key, "", PatchKind::Merge, &renewal).await;
            }
        });
    }

    pub async fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Value> {
        self.admin.get::<Value>(kind, &Key::new(namespace, name)).await.absent_ok().unwrap()
    }

    pub async fn list(&self, kind: Kind, namespace: &str) -> Vec<Value> {
        let mut list: Value = self.admin.at(http::Method::GET, kind.path(namespace), None).await.unwrap();
        match list["items"].take() {
            Value::Array(items) => items,
            _ => Vec::new(),
        }
    }

    /// Waits until `test` gives something, and says what it saw last if it never does.
    pub async fn wait<T, F: Future<Output = Result<T, String>>>(
        &self,
        what: &str,
        mut test: impl FnMut() -> F,
    ) -> T {
        let start = Instant::now();
        loop {
            match test().await {
                Ok(value) => return value,
                Err(last) if start.elapsed() > DEADLINE => panic!("never: {what}; last: {last}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// The pods of an `app`, ordered by name.
    pub async fn pods_of(&self, app: &str) -> Vec<Value> {
        let mut pods = self.list(PODS, "default").await;
        pods.retain(|pod| pod["metadata"]["labels"]["app"] == app);
        pods
    }

    /// Says that these pods are in this phase.
    pub async fn say(&self, pods: &[Value], phase: &str) {
        for pod in pods {
            let key = Key::new("default", pod["metadata"]["name"].as_str().unwrap());
            let status = json!({"status": {"phase": phase}});
            self.admin.patch::<Ignored>(PODS, &key, "status", PatchKind::Merge, &status).await.unwrap();
        }
    }

    /// Waits until the object's status has these fields, and the controller has seen its spec as it is.
    pub async fn status(&self, kind: Kind, name: &str, wanted: Value) -> Value {
        let look = || async {
            let object = self.get(kind, "default", name).await.ok_or("absent")?;
            let (status, generation) = (&object["status"], &object["metadata"]["generation"]);
            let observed = kind == JOBS || status["observedGeneration"] == *generation;
            let has = |(field, value): (&String, &Value)| status[field] == *value;
            let all = observed && wanted.as_object().unwrap().iter().all(has);
            if all { Ok(object) } else { Err(format!("{status} is not {wanted}")) }
        };
        self.wait("status", look).await
    }

    /// Waits until the Deployment says that so many replicas are updated, available, and all there are.
    pub async fn rolled_out(&self, namespace: &str, name: &str, replicas: i64) -> Value {
        self.wait("rolled out", || async {
            let deployment = self.get(DEPLOYMENTS, namespace, name).await.ok_or("absent")?;
            let status = &deployment["status"];
            let number = |field: &str| status[field].as_i64().unwrap_or(0);
            let done =
                ["replicas", "updatedReplicas", "availableReplicas"].iter().all(|f| number(f) == replicas)
                    && number("observedGeneration")
                        == deployment["metadata"]["generation"].as_i64().unwrap_or(-1)
                    && number("unavailableReplicas") == 0;
            if done { Ok(deployment) } else { Err(status.to_string()) }
        })
        .await
    }

    /// Waits until none of these kinds has an object in the namespace.
    pub async fn none_left(&self, namespace: &str, kinds: &[Kind]) {
        for kind in kinds {
            self.wait("all gone", || async {
                let left = self.list(*kind, namespace).await;
                if left.is_empty() { Ok(()) } else { Err(json!(left).to_string()) }
            })
            .await;
        }
    }

    /// Waits until the object is not there any more.
    pub async fn gone(&self, kind: Kind, namespace: &str, name: &str) {
        let look = || async {
            let found = self.get(kind, namespace, name).await;
            found.map_or(Ok(()), |object| Err(object.to_string()))
        };
        self.wait("gone", look).await;
    }

    /// Waits until nothing was asked for a second.
    pub async fn quiet(&self) {
        let look = || async {
            let before = self.requests();
            tokio::time::sleep(Duration::from_secs(1)).await;
            if self.requests() == before { Ok(()) } else { Err(format!("{before} requests")) }
        };
        self.wait("quiet", look).await;
    }

    /// Ends scheduler and controllers, and waits for that.
    pub async fn end(mut self) {
        self.stop.cancel();
        for task in self.tasks.drain(..) {
            tokio::time::timeout(DEADLINE, task).await.unwrap().unwrap();
        }
    }
}

pub fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [
                    {"name": "main", "image": image, "resources": {"requests": {"cpu": "100m"}}},
                ]},
            },
        },
    })
}

pub fn by_name(objects: &[Value]) -> BTreeMap<String, &Value> {
    objects.iter().map(|one| (one["metadata"]["name"].as_str().unwrap().to_owned(), one)).collect()
}

fn now() -> String {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap().to_string()
}

fn micro() -> String {
    Timestamp::from_microsecond(Timestamp::now().as_microsecond())
        .unwrap()
        .strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
        .to_string()
}

/// Says of each pod of its node that it runs and is ready, and of each deleted one that it ended.
async fn agent(rest: Rest, node: String, stop: CancellationToken) {
    let hub = Hub::new(rest.client().clone(), stop.clone());
    let pods = hub.view_of::<Pod>(Filter::fields(format!("spec.nodeName={node}")));
    let controller = Controller::new("agent", Agent { rest, pods: pods.clone() })
        .workers(8)
        .watches(&pods, |change| change.new.map(|_| change.key.clone()));
    controller.run(stop).await;
}

struct Agent {
    rest: Rest,
    pods: Store<Pod>,
}

impl Pass for Agent {
    type Key = Key;
    type Error = Error;

    async fn pass(&self, key: &Key) -> Result<Next, Error> {
        let Some(pod) = self.pods.get(key) else { return Ok(Next::Done) };
        if pod.metadata.is_deleting() {
            let how = Delete::exactly(&pod.metadata).with_grace(0);
            self.rest.delete::<Ignored>(Pod::KIND, key, &how).await.absent_ok()?;
        } else if matches!(pod.status.phase.as_deref(), None | Some("Pending")) {
            let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": now()});
            let status =
                json!({"status": {"phase": "Running", "conditions": [ready], "podIP": "10.128.0.9"}});
            self.rest
                .patch::<Ignored>(Pod::KIND, key, "status", PatchKind::Merge, &status)
                .await
                .absent_ok()?;
        }
        Ok(Next::Done)
    }
}
