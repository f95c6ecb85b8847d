//! `kill -9` of each process: what must go on goes on, what died comes back, and nothing runs twice.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use wharf_tests::manifest::{self, PORT, address, container_status};
use wharf_tests::{Cluster, Kind, Node, Process, eventually, processes};

/// A cluster in which both examples run, and nothing else.
struct Bed {
    cluster: Cluster,
    node: Node,
}

/// What tells whether a container is the one of before.
#[derive(Debug, PartialEq, Eq, Clone)]
struct Identity {
    pod: String,
    container: String,
    restarts: u64,
    address: Option<IpAddr>,
}

impl Bed {
    fn new() -> Self {
        let cluster = Cluster::up();
        cluster.push_images();
        let objects = [manifest::deployment("wasm", "greeter:1"), manifest::deployment("oci", "clock:1")];
        let text: Vec<String> = objects.iter().map(Value::to_string).collect();
        cluster.wctl_reading(&["apply", "-f", "-", "--wait", "--timeout", "60s"], &text.join("\n---\n")).ok();
        let node = cluster.node();
        Self { cluster, node }
    }

    /// The identity of the one pod of a Deployment.
    fn identity(&self, app: &str) -> Identity {
        let list = self.cluster.get(&["pods", "-l", &format!("app={app}")]);
        let pods = list["items"].as_array().expect("items");
        assert_eq!(pods.len(), 1, "one pod of {app} and no more: {list}");
        let status = container_status(&pods[0]);
        Identity {
            pod: pods[0]["metadata"]["uid"].as_str().expect("a uid").to_owned(),
            container: status["containerID"].as_str().unwrap_or_default().to_owned(),
            restarts: status["restartCount"].as_u64().unwrap_or(0),
            address: address(&pods[0]),
        }
    }

    fn both(&self) -> [Identity; 2] {
        ["wasm", "oci"].map(|app| self.identity(app))
    }

    fn of(&self, kind: Kind) -> Vec<Process> {
        processes(&self.cluster).into_iter().filter(|process| process.kind == kind).collect()
    }

    fn one(&self, kind: Kind) -> Process {
        let all = self.of(kind);
        assert_eq!(all.len(), 1, "one {kind:?}: {all:?}");
        all[0]
    }

    /// Kills the one process of a kind, and waits until there is another.
    fn kill_and_see_another(&self, kind: Kind) -> Process {
        let old = self.one(kind);
        old.kill();
        eventually(&format!("another {kind:?}"), || match self.of(kind)[..] {
            [new] if new.pid != old.pid => Ok(new),
            ref other => Err(format!("{other:?}")),
        })
    }

    /// Waits until the cluster does work again from end to end: a new pod runs and is gone.
    fn works(&self) {
        let pod = manifest::pod("proof", "guest-command:1", &["say", "done"]);
        let mut pod = pod;
        pod["spec"]["restartPolicy"] = json!("Never");
        eventually("the API answers", || {
            let said = self.cluster.wctl_reading(&["apply", "-f", "-"], &pod.to_string());
            if said.code == Some(0) { Ok(()) } else { Err(said.to_string()) }
        });
        eventually("a new pod runs", || {
            let phase = self.cluster.get(&["pod", "proof"])["status"]["phase"].clone();
            if phase == "Succeeded" { Ok(()) } else { Err(phase.to_string()) }
        });
        self.cluster.wctl(&["delete", "pod", "proof"]).ok();
    }

    fn serves(&self, app: &str) {
        eventually(&format!("{app} serves"), || {
            let Some(address) = self.identity(app).address else { return Err("no address".to_owned()) };
            match self.node.get(address, PORT, "/") {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    /// Asks a pod again and again until told to stop.
    fn ask(&self, address: IpAddr) -> Asking {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let thread = std::thread::spawn({
            let (node, stop, answered, failures) =
                (self.node.clone(), stop.clone(), answered.clone(), failures.clone());
            move || {
                let asked = node.within(|| {
                    while !stop.load(Ordering::Relaxed) {
                        match wharf_tests::get((address, PORT).into(), "/") {
                            Ok((200, _)) => {
                                answered.fetch_add(1, Ordering::Relaxed);
                            }
                            other => failures.lock().expect("no panic").push(format!("{other:?}")),
                        }
                        std::thread::sleep(Duration::from_millis(10)); // some hundred requests a second suffice
                    }
                    Ok(())
                });
                asked.expect("the node's namespace is there");
            }
        });
        Asking { stop, answered, failures, thread }
    }
}

struct Asking {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<String>>>,
    thread: JoinHandle<()>,
}

impl Asking {
    /// Ends it; every request must have been answered.
    fn was_always_answered(self, what: &str) {
        // What is killed may be back before many were asked.
        let asked = || self.answered.load(Ordering::Relaxed) + self.failures.lock().expect("no panic").len();
        eventually("enough were asked", || if asked() >= 20 { Ok(()) } else { Err(asked().to_string()) });
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it asked");
        let failures = self.failures.lock().expect("no panic");
        let answered = self.answered.load(Ordering::Relaxed);
        assert!(
            failures.is_empty(),
            "{what}: {} of {} failed: {failures:?}",
            failures.len(),
            answered + failures.len()
        );
    }
}

fn survives(kind: Kind) {
    let bed = Bed::new();
    let before = bed.both();
    let others: Vec<Process> = processes(&bed.cluster)
        .into_iter()
        .filter(|process| {
            matches!(process.kind, Kind::WasmHost | Kind::Monitor | Kind::Pause | Kind::Container)
        })
        .collect();
    let asking: Vec<_> = before.iter().filter_map(|one| Some(bed.ask(one.address?))).collect();
    assert_eq!(asking.len(), 2, "both have addresses: {before:?}");
    bed.kill_and_see_another(kind);
    bed.works();
    for asked in asking {
        asked.was_always_answered(&format!("{kind:?} killed"));
    }
    assert_eq!(bed.both(), before, "the same containers, not restarted");
    let after = processes(&bed.cluster);
    for process in others {
        assert!(after.iter().any(|now| now.pid == process.pid), "{process:?} is still there");
    }
    let monitors = after.iter().filter(|process| process.kind == Kind::Monitor).count();
    assert_eq!(monitors, 1, "nothing was started twice: {after:?}");
}

#[test]
fn a_killed_server_costs_no_workload_anything() {
    survives(Kind::Server);
}

#[test]
fn a_killed_shim_costs_no_workload_anything() {
    survives(Kind::Shim);
}

#[test]
fn a_killed_zygote_is_replaced_and_containers_start_again() {
    let bed = Bed::new();
    let before = bed.both();
    bed.one(Kind::Zygote).kill();
    bed.cluster.wctl(&["scale", "deployment/oci", "--replicas=2"]).ok();
    bed.cluster.wctl(&["rollout", "status", "deployment/oci", "--timeout", "30s"]).ok();
    assert_eq!(bed.identity("wasm"), before[0]);
    let list = bed.cluster.get(&["pods", "-l", "app=oci"]);
    let uids: Vec<_> =
        list["items"].as_array().into_iter().flatten().map(|pod| pod["metadata"]["uid"].clone()).collect();
    assert!(uids.iter().any(|uid| *uid == before[1].pod.as_str()), "the first is one of the two: {uids:?}");
}

#[test]
fn a_killed_wasm_host_costs_its_own_containers_alone_and_they_are_restarted_and_counted() {
    let bed = Bed::new();
    let [wasm, oci] = bed.both();
    let asking = bed.ask(oci.address.expect("an address"));
    bed.kill_and_see_another(Kind::WasmHost);
    eventually("the component is restarted and counted", || {
        let now = bed.identity("wasm");
        if now.restarts > wasm.restarts { Ok(()) } else { Err(format!("{now:?}")) }
    });
    bed.serves("wasm");
    asking.was_always_answered("the OCI pod, wasm host killed");
    assert_eq!(bed.identity("oci"), oci);
    let now = bed.identity("wasm");
    assert_eq!((now.pod, now.restarts), (wasm.pod, 1));
    assert_ne!(now.container, wasm.container);
}

#[test]
fn a_killed_monitor_costs_its_own_container_alone() {
    let bed = Bed::new();
    let [wasm, oci] = bed.both();
    let asking = bed.ask(wasm.address.expect("an address"));
    bed.one(Kind::Monitor).kill();
    eventually("the container is restarted and counted", || {
        let now = bed.identity("oci");
        if now.restarts > oci.restarts { Ok(()) } else { Err(format!("{now:?}")) }
    });
    bed.serves("oci");
    asking.was_always_answered("the wasm pod, monitor killed");
    assert_eq!(bed.identity("wasm"), wasm);
    assert_eq!(bed.identity("oci").restarts, 1);
    let end =
        container_status(&bed.cluster.get(&["pods", "-l", "app=oci"])["items"][0])["lastState"]["terminated"]
            .clone();
    assert_eq!(end["exitCode"], 137, "{end}");
    assert_eq!(bed.of(Kind::Monitor).len(), 1);
}

#[test]
fn writes_that_were_acknowledged_survive_a_killed_server() {
    let cluster = Cluster::up();
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let server =
            processes(&cluster).into_iter().find(|process| process.kind == Kind::Server).expect("a server");
        // The kill comes while writes are under way; those that wait for the next server count too.
        let killed = AtomicBool::new(false);
        let writer = std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                let (mut done, mut after) = (Vec::new(), 0);
                for nth in 0.. {
                    let name = format!("r{round}-{nth}");
                    let text = format!(
                        "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}}}, data: {{n: '{nth}'}}}}"
                    );
                    let was_killed = killed.load(Ordering::Relaxed);
                    match cluster.wctl_reading(&["apply", "-f", "-"], &text).code {
                        Some(0) => done.push(name),
                        _ => break,
                    }
                    after += usize::from(was_killed);
                    if after == 5 {
                        break;
                    }
                }
                done
            });
            std::thread::sleep(Duration::from_millis(300)); // some writes; how many does not matter
            server.kill();
            killed.store(true, Ordering::Relaxed);
            writing.join().expect("it wrote")
        });
        acknowledged.extend(writer);
        eventually("the API answers", || {
            let said = cluster.wctl(&["get", "namespaces"]);
            if said.code == Some(0) { Ok(()) } else { Err(said.to_string()) }
        });
    }
    assert!(!acknowledged.is_empty(), "some were acknowledged");
    let list = cluster.get(&["configmaps"]);
    let there: Vec<&str> = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|map| map["metadata"]["name"].as_str())
        .collect();
    let lost: Vec<_> = acknowledged.iter().filter(|name| !there.contains(&name.as_str())).collect();
    assert!(lost.is_empty(), "{lost:?} of {acknowledged:?}");
}

#[test]
fn a_cluster_that_was_ended_goes_on_with_its_data() {
    let bed = Bed::new();
    let context = bed.cluster.local().url();
    bed.cluster.wctl(&["down", &bed.cluster.name]).ok();
    assert_eq!(processes(&bed.cluster), []);
    bed.cluster.wctl(&["up", &bed.cluster.name, "--isolated"]).ok();
    assert_eq!(bed.cluster.local().url(), context, "its API is where it was");
    bed.serves("wasm");
    bed.serves("oci");
    bed.works();
}
