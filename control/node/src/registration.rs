//! The Node object: created, kept true, and its lease renewed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use wharf_kit::api::{self, Ignored, Kind, PatchKind, Rest};
use wharf_kit::chain;
use wharf_kit::view::Key;

use crate::follow::{Change, Part, follow};
use crate::runtime::Health;
use crate::{Error, resources, settle};

const NODES: Kind = Kind::core("Node", "nodes").cluster();
const LEASES: Kind = Kind::new("coordination.k8s.io", "v1", "Lease", "leases");
/// Kubernetes' own namespace for these leases.
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// An unchanged status is written again after this, as the kubelet does.
const REFRESH: Duration = Duration::from_secs(300);
/// What we are, as `kubectl get nodes` shows it.
const VERSION: &str = concat!("v1.36.0-wharf", env!("CARGO_PKG_VERSION"));

/// What this machine is.
#[derive(Debug, Clone)]
pub struct Machine {
    pub resources: resources::Machine,
    kernel: String,
    os_image: String,
    machine_id: String,
    system_uuid: String,
    boot_id: String,
}

impl Machine {
    /// Reads it from the kernel. `root` is on the file system that holds the pods' directories.
    ///
    /// # Errors
    /// The kernel does not tell its memory or that file system's size.
    pub fn read(root: &Path) -> Result<Self, Error> {
        let failed = |what| move |cause| Error::Machine { what, cause };
        let invalid = || std::io::Error::from(std::io::ErrorKind::InvalidData);
        let meminfo = std::fs::read_to_string("/proc/meminfo").map_err(failed("memory"))?;
        let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let memory = total.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<i64>().ok());
        let memory = memory.ok_or_else(invalid).map_err(failed("memory"))? * 1024;
        let disk = nix::sys::statvfs::statvfs(root).map_err(|errno| failed("disk")(errno.into()))?;
        let storage = i64::try_from(disk.blocks() as u128 * disk.fragment_size() as u128).unwrap_or(i64::MAX);
        let cpus = std::thread::available_parallelism().map_err(failed("processors"))?.get();
        let uname = nix::sys::utsname::uname().map_err(|errno| failed("kernel version")(errno.into()))?;
        let read =
            |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default(); // not on every machine
        let release = read("/etc/os-release");
        let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        let machine_id = read("/etc/machine-id");
        let uuid = read("/sys/class/dmi/id/product_uuid");
        Ok(Self {
            resources: resources::Machine {
                cpu_millis: i64::try_from(cpus).unwrap_or(1) * 1000,
                memory,
                storage,
            },
            kernel: uname.release().to_string_lossy().into_owned(),
            os_image: pretty.unwrap_or("Linux").trim_matches('"').to_owned(),
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id: read("/proc/sys/kernel/random/boot_id"),
        })
    }
}

/// As Go names the architectures.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "riscv64" => "riscv64",
        other => other,
    }
}

/// What the Node object is made of.
pub struct Registration {
    pub name: String,
    pub address: IpAddr,
    /// The node server's.
    pub port: u16,
    pub labels: BTreeMap<String, String>,
    pub max_pods: u32,
    /// How long a lease is good.
    pub lease: Duration,
    pub machine: Machine,
    pub rest: Rest,
    /// Asked before the node says that it is ready.
    pub ghosts: settle::Asks,
}

/// The parts of a Node that we read.
#[derive(Debug, Default, Deserialize)]
struct Node {
    metadata: Meta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
struct Meta {
    #[serde(default)]
    uid: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default, rename = "podCIDR")]
    pod_cidr: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Status {
    #[serde(default)]
    conditions: Option<Vec<Condition>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    r#type: String,
    status: String,
    #[serde(default)]
    last_transition_time: Option<Timestamp>,
}

impl Registration {
    fn key(&self) -> Key {
        Key::cluster(self.name.as_str())
    }

    fn labels(&self) -> BTreeMap<&str, &str> {
        let own = [
            ("kubernetes.io/hostname", self.name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", architecture()),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", architecture()),
        ];
        self.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).chain(own).collect()
    }

    fn capacity(&self) -> Value {
        let resources = &self.machine.resources;
        json!({
            "cpu": (resources.cpu_millis / 1000).to_string(),
            "memory": format!("{}Ki", resources.memory / 1024),
            "ephemeral-storage": format!("{}Ki", resources.storage / 1024),
            "pods": self.max_pods.to_string(),
        })
    }

    /// Pure: the status now; `times` are those of the last transitions. `settled`: no ghost runs.
    fn status(
        &self,
        health: &Health,
        settled: bool,
        times: &mut BTreeMap<String, (String, Timestamp)>,
        now: Timestamp,
    ) -> Value {
        let ready = health.ready() && settled;
        let unready = if health.ready() {
            "pods that are gone from the API are still being ended"
        } else if health.message.is_empty() {
            "container runtime status check may not have completed yet"
        } else {
            &health.message
        };
        let mut condition = |kind: &str, on: bool, reason: &str, message: &str| {
            let status = if on { "True" } else { "False" };
            let entry = times.entry(kind.to_owned()).or_insert_with(|| (status.to_owned(), now));
            if entry.0 != status {
                *entry = (status.to_owned(), now);
            }
            json!({"type": kind, "status": status, "reason": reason, "message": message, "lastHeartbeatTime": now.to_string(), "lastTransitionTime": entry.1.to_string()})
        };
        let conditions = [
            condition(
                "MemoryPressure",
                false,
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available",
            ),
            condition("DiskPressure", false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            condition(
                "PIDPressure",
                false,
                "KubeletHasSufficientPID",
                "kubelet has sufficient PID available",
            ),
            if ready {
                condition("Ready", true, "KubeletReady", "kubelet is posting ready status")
            } else {
                condition("Ready", false, "KubeletNotReady", unready)
            },
        ];
        let handlers: Vec<Value> = health
            .handlers
            .iter()
            .map(|handler| {
                let features = handler.features.unwrap_or_default();
                json!({"name": handler.name, "features": {"recursiveReadOnlyMounts": features.recursive_read_only_mounts, "userNamespaces": features.user_namespaces}})
            })
            .collect();
        let machine = &self.machine;
        json!({
            "capacity": self.capacity(),
            "allocatable": self.capacity(),
            "addresses": [{"type": "InternalIP", "address": self.address.to_string()}, {"type": "Hostname", "address": self.name}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.port}},
            "conditions": conditions,
            "nodeInfo": {
                "architecture": architecture(),
                "bootID": machine.boot_id,
                "containerRuntimeVersion": health.version,
                "kernelVersion": machine.kernel,
                "kubeProxyVersion": "",
                "kubeletVersion": VERSION,
                "machineID": machine.machine_id,
                "operatingSystem": "linux",
                "osImage": machine.os_image,
                "systemUUID": machine.system_uuid,
            },
            "runtimeHandlers": handlers,
            "features": {"supplementalGroupsPolicy": health.supplemental_groups_policy},
        })
    }

    /// Creates the Node, or takes over the one that is there.
    async fn register(&self, status: &Value) -> Result<Node, api::Error> {
        let body = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": self.labels()},
            "status": status,
        });
        match self.rest.create::<Node>(NODES, "", &body).await {
            Err(error) if error.is_already_exists() => {
                let patch = json!({"metadata": {"labels": self.labels()}});
                self.rest.patch::<Node>(NODES, &self.key(), "", PatchKind::Merge, &patch).await
            }
            other => other,
        }
    }
}

/// Keeps the Node until `stop`. Sends its pod range when it has one; `ready` when it was written as Ready.
pub async fn keep(
    registration: Registration,
    health: watch::Receiver<Health>,
    pod_cidr: watch::Sender<Option<String>>,
    ready: watch::Sender<bool>,
    stop: CancellationToken,
) {
    let work = async {
        let (uid_tx, uid) = watch::channel(String::new());
        tokio::join!(
            keep_node(&registration, health, pod_cidr, ready, uid_tx),
            keep_lease(&registration, uid)
        );
    };
    stop.run_until_cancelled(work).await;
}

/// What came from the watch on our own Node.
enum Seen {
    There(Node),
    Gone,
}

fn understood(change: Change) -> Option<Seen> {
    let raw = match change {
        Change::Listed(mut items) => items.pop(),
        Change::Applied(raw) => Some(raw),
        Change::Deleted(_) => None,
    };
    match raw.map(|raw| serde_json::from_slice::<Node>(&raw)) {
        None => Some(Seen::Gone),
        Some(Ok(node)) => Some(Seen::There(node)),
        Some(Err(error)) => {
            warn!(error = %chain(&error), "our Node object is not understood");
            None
        }
    }
}

async fn keep_node(
    registration: &Registration,
    mut health: watch::Receiver<Health>,
    pod_cidr: watch::Sender<Option<String>>,
    ready: watch::Sender<bool>,
    uid: watch::Sender<String>,
) {
    const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
    let mut times = BTreeMap::new();
    let (seen_tx, mut seen) = mpsc::channel(4);
    let mut pause = PAUSES.0;
    let learn = |node: &Node| {
        let cidr = node.spec.pod_cidr.clone().filter(|cidr| !cidr.is_empty());
        pod_cidr.send_if_modified(|have| {
            let changed = cidr.is_some() && *have != cidr;
            if changed {
                have.clone_from(&cidr);
            }
            changed
        });
        uid.send_if_modified(|have| {
            let changed = *have != node.metadata.uid;
            have.clone_from(&node.metadata.uid);
            changed
        });
    };

    let mut watching = false;
    let part =
        Part { path: "/api/v1/nodes".to_owned(), fields: format!("metadata.name={}", registration.name) };
    let watcher = follow(registration.rest.client().clone(), part, seen_tx);
    let mut watcher = std::pin::pin!(watcher);

    // The first list is the dispatcher's own; until it is carried out, what an earlier run left may still run.
    let mut settling = Some(registration.ghosts.ask().await);
    let mut registered = false;
    let mut dirty = true;
    let mut written: Option<Value> = None;
    loop {
        if dirty {
            let now =
                Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_else(|_| Timestamp::now());
            let state = health.borrow_and_update().clone();
            let status = registration.status(&state, settling.is_none(), &mut times, now);
            let ready_now = state.ready() && settling.is_none();
            let result = if registered {
                registration
                    .rest
                    .patch::<Ignored>(
                        NODES,
                        &registration.key(),
                        "status",
                        PatchKind::Merge,
                        &json!({"status": status}),
                    )
                    .await
                    .map(drop)
            } else {
                match registration.register(&status).await {
                    Ok(node) => {
                        info!(node = registration.name, "registered");
                        registered = true;
                        learn(&node);
                        // A Node that was there keeps its times; one whose create dropped the status needs it written.
                        for old in node.status.conditions.iter().flatten() {
                            let at = old.last_transition_time.unwrap_or(now);
                            times.entry(old.r#type.clone()).and_modify(|entry| {
                                if entry.0 == old.status {
                                    entry.1 = at
                                }
                            });
                        }
                        let told = |kind: &str| {
                            node.status
                                .conditions
                                .iter()
                                .flatten()
                                .find(|condition| condition.r#type == kind)
                                .map(|condition| condition.status == "True")
                        };
                        if told("Ready") != Some(ready_now) || node.status.conditions.is_none() {
                            continue;
                        }
                        Ok(())
                    }
                    Err(error) => Err(error),
                }
            };
            match result {
                Ok(()) => {
                    dirty = false;
                    pause = PAUSES.0;
                    written = Some(comparable(&status));
                    if ready_now != *ready.borrow() {
                        info!(
                            node = registration.name,
                            ready = ready_now,
                            reason = state.message,
                            "the node's readiness changed"
                        );
                    }
                    ready.send_replace(ready_now);
                }
                Err(error) => {
                    if error.is_not_found() {
                        registered = false;
                    }
                    warn!(error = %chain(&error), "could not write our Node");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                    continue;
                }
            }
            watching = true;
        }
        tokio::select! {
            () = &mut watcher, if watching => {}
            Some(change) = seen.recv() => match understood(change) {
                Some(Seen::There(node)) => {
                    learn(&node);
                    let given_up = node.status.conditions.iter().flatten().any(|condition| {
                        condition.r#type == "Ready" && condition.status == "Unknown"
                    });
                    if given_up && settling.is_none() {
                        warn!(node = registration.name, "the cluster gave this node up: ending pods that are gone");
                        settling = Some(registration.ghosts.ask().await);
                    }
                }
                None => {}
                Some(Seen::Gone) => {
                    info!(node = registration.name, "our Node was deleted: registering anew");
                    registered = false;
                    dirty = true;
                    settling = Some(registration.ghosts.ask().await);
                }
            },
            () = done(&mut settling) => {
                settling = None;
                dirty = true;
            }
            Ok(()) = health.changed() => {
                let now = Timestamp::now();
                let status = registration.status(&health.borrow(), settling.is_none(), &mut times.clone(), now);
                dirty = written.as_ref() != Some(&comparable(&status));
            }
            () = tokio::time::sleep(REFRESH) => dirty = true,
        }
    }
}

/// Waits until what was asked is answered; for ever if nothing was.
async fn done(settling: &mut Option<oneshot::Receiver<()>>) {
    let answered = match settling {
        Some(answer) => answer.await.is_ok(),
        None => false,
    };
    if !answered {
        std::future::pending::<()>().await;
    }
}

/// The status without its heartbeats and times.
fn comparable(status: &Value) -> Value {
    let mut status = status.clone();
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        if let Some(condition) = condition.as_object_mut() {
            condition.remove("lastHeartbeatTime");
            condition.remove("lastTransitionTime");
        }
    }
    status
}

async fn keep_lease(registration: &Registration, mut uid: watch::Receiver<String>) {
    let key = Key::new(LEASE_NAMESPACE, registration.name.as_str());
    // The lease is owned by the Node, so that it goes with it.
    if uid.wait_for(|uid| !uid.is_empty()).await.is_err() {
        return;
    }
    let mut wait = Duration::from_millis(200);
    loop {
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        let renewal = json!({"spec": {"holderIdentity": registration.name, "leaseDurationSeconds": registration.lease.as_secs().max(1), "renewTime": now}});
        let renewed = match registration
            .rest
            .patch::<Ignored>(LEASES, &key, "", PatchKind::Merge, &renewal)
            .await
        {
            Err(error) if error.is_not_found() => {
                let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": registration.name, "uid": uid.borrow().clone()}]);
                let mut lease = renewal;
                lease["metadata"] = json!({"name": registration.name, "namespace": LEASE_NAMESPACE, "ownerReferences": owner});
                registration.rest.create::<Ignored>(LEASES, LEASE_NAMESPACE, &lease).await
            }
            other => other,
        };
        match renewed {
            Ok(_) => {
                wait = Duration::from_millis(200);
                tokio::time::sleep(registration.lease / 4).await;
            }
            Err(error) => {
                debug!(error = %chain(&error), "could not renew our lease");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(registration.lease / 4);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_tells_the_machine_and_keeps_times_of_transitions() {
        let dir = tempfile::tempdir().unwrap();
        let registration = Registration {
            name: "n1".into(),
            address: "192.0.2.1".parse().unwrap(),
            port: 10250,
            labels: BTreeMap::from([("zone".into(), "a".into())]),
            max_pods: 10_000,
            lease: Duration::from_secs(40),
            machine: Machine::read(dir.path()).unwrap(),
            rest: Rest::new(
                tokio::runtime::Runtime::new().unwrap().block_on(async { crate::pod::nowhere() }),
            ),
            ghosts: settle::channel().0,
        };
        let mut times = BTreeMap::new();
        let at = |second| Timestamp::from_second(second).unwrap();
        let health = Health::default();
        let first = registration.status(&health, true, &mut times, at(10));
        assert_eq!(first["capacity"]["pods"], "10000");
        let ready = |status: &Value| status["conditions"][3].clone();
        assert_eq!(
            (ready(&first)["status"].clone(), ready(&first)["reason"].clone()),
            (json!("False"), json!("KubeletNotReady"))
        );
        let health = Health {
            connected: true,
            runtime_ready: true,
            network_ready: true,
            version: "wharf://1".into(),
            ..health
        };
        let second = registration.status(&health, true, &mut times, at(20));
        assert_eq!(ready(&second)["lastTransitionTime"], "1970-01-01T00:00:20Z");
        assert_eq!(second["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:10Z");
        let third = registration.status(&health, true, &mut times, at(30));
        assert_eq!(ready(&third)["lastTransitionTime"], "1970-01-01T00:00:20Z");
        assert_eq!(comparable(&third), comparable(&second));
        assert_ne!(comparable(&second), comparable(&first));
        let haunted = registration.status(&health, false, &mut times, at(40));
        assert_eq!(ready(&haunted)["status"], "False");
        assert!(ready(&haunted)["message"].as_str().unwrap().contains("gone from the API"));
        assert_eq!(registration.labels()["kubernetes.io/hostname"], "n1");
        assert!(third["nodeInfo"]["kubeletVersion"].as_str().unwrap().starts_with("v1.36.0-wharf"));
    }
}
