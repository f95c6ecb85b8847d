//! Several nodes are one cluster.

use std::net::IpAddr;
use std::process::Command;

use serde_json::{Value, json};
use wharf_tests::manifest::{self, PORT, address, container_status};
use wharf_tests::{Cluster, eventually};

/// A pod that answers over HTTP, on this node.
fn placed(name: &str, image: &str, node: &str) -> Value {
    let mut pod = manifest::pod(name, image, &[]);
    pod["spec"]["containers"][0].as_object_mut().expect("an object").remove("args");
    pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": PORT}]);
    pod["spec"]["nodeName"] = json!(node);
    pod
}

fn apply(cluster: &Cluster, objects: &[Value]) {
    let text: Vec<String> = objects.iter().map(Value::to_string).collect();
    let arguments = ["apply", "-f", "-", "--wait", "--timeout", "60s"];
    cluster.wctl_reading(&arguments, &text.join("\n---\n")).ok();
}

/// The routes by which a node reaches the others' pods.
fn routes(cluster: &Cluster, node: &str) -> String {
    let run = || Command::new("ip").args(["-4", "route", "show", "proto", "87"]).output();
    let output = cluster.node_called(node).within(run).expect("ip runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn pods_of_both_sorts_are_reached_from_every_node_and_a_deleted_node_has_no_route() {
    let cluster = Cluster::of_nodes(3, "40s");
    let status = cluster.wctl(&["status"]).ok();
    for node in ["node-1", "node-2", "node-3"] {
        assert!(status.contains(&format!("node {node}: Ready")), "{status}");
    }
    cluster.push_images();
    let pods: Vec<Value> = ["node-1", "node-2", "node-3"]
        .iter()
        .flat_map(|node| {
            [
                placed(&format!("wasm-{node}"), "greeter:1", node),
                placed(&format!("oci-{node}"), "clock:1", node),
            ]
        })
        .collect();
    apply(&cluster, &pods);
    let addresses: Vec<(String, IpAddr)> = pods
        .iter()
        .map(|pod| {
            let name = pod["metadata"]["name"].as_str().expect("a name").to_owned();
            let pod = cluster.get(&["pod", &name]);
            (name, address(&pod).expect("it has an address"))
        })
        .collect();
    for from in ["node-1", "node-2", "node-3"] {
        for (name, address) in &addresses {
            let what = format!("{name} answers {from}");
            eventually(&what, || match cluster.node_called(from).get(*address, PORT, "/") {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}")),
            });
        }
    }
    // Logs and forwarded ports go to the node that has the pod.
    let logs = cluster.wctl(&["logs", "oci-node-3"]).ok();
    assert!(!logs.is_empty(), "it says that it listens");
    assert!(cluster.forward("pod/oci-node-2", PORT).get("/").contains("oci"));

    // What one node may do, another may not do in its place.
    let other = identity_of(&cluster, "node-2");
    let by = |arguments: &[&str]| {
        let mut command = cluster.command();
        let output = command.env("KUBECONFIG", &other).args(arguments).output().expect("it runs");
        let words = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&words).into_owned())
    };
    let secret = "{apiVersion: v1, kind: Secret, metadata: {name: theirs}}";
    cluster.wctl_reading(&["apply", "-f", "-"], secret).ok();
    for (arguments, may) in [
        (&["get", "pod", "oci-node-2"] as &[&str], true),
        (&["get", "pod", "oci-node-1"], false),
        (&["delete", "pod", "oci-node-1", "--no-wait"], false),
        (&["get", "secret", "theirs"], false),
        (&["get", "lease", "node-2", "-n", "kube-node-lease"], true),
        (&["get", "lease", "node-1", "-n", "kube-node-lease"], false),
        (&["cordon", "node-1"], false),
    ] {
        let (could, words) = by(arguments);
        assert_eq!(could, may, "{arguments:?}: {words}");
        assert!(may || words.to_lowercase().contains("forbidden"), "{arguments:?}: {words}");
    }

    // A node's range is no longer routed when the node is gone.
    let range = cluster.get(&["node", "node-3"])["spec"]["podCIDR"].as_str().expect("a range").to_owned();
    assert!(routes(&cluster, "node-1").contains(&range), "{}", routes(&cluster, "node-1"));
    assert_eq!(routes(&cluster, "node-2").lines().count(), 2);
    assert_eq!(container_status(&cluster.get(&["pod", "oci-node-3"]))["restartCount"], 0);
    let mut web = manifest::deployment("web", "greeter:1");
    web["spec"]["replicas"] = json!(3);
    apply(&cluster, &[web]);
    cluster.wctl(&["node", "delete", "node-1", "--force"]).fails_with(&[
        "node-1",
        "control plane",
        "wctl down",
    ]);
    cluster.wctl(&["drain", "node-3"]).fails_with(&["pod default/oci-node-3", "no controller", "--force"]);
    let said = cluster.wctl(&["node", "delete", "node-3", "--force"]).ok();
    for line in [
        "node/node-3 already cordoned",
        "pod/oci-node-3 -n default evicted",
        "node/node-3 drained",
        "node/node-3 deleted",
    ] {
        assert!(said.contains(line), "{line:?} is missing in {said}");
    }
    cluster.wctl(&["get", "node", "node-3"]).fails_with(&["not found"]);
    assert!(!cluster.local().run.join("netns/node-3").exists(), "its network is gone");
    eventually("no route leads there", || match routes(&cluster, "node-1") {
        left if left.contains(&range) => Err(left),
        _ => Ok(()),
    });
    cluster.wctl(&["rollout", "status", "deployment/web", "--timeout", "60s"]).ok();
    let pods = cluster.get(&["pods"]);
    assert!(
        pods["items"].as_array().expect("a list").iter().all(|pod| pod["spec"]["nodeName"] != "node-3"),
        "{pods}"
    );

    assert_eq!(cluster.wctl(&["cordon", "node-2"]).ok(), "node/node-2 cordoned\n");
    assert_eq!(cluster.get(&["node", "node-2"])["spec"]["unschedulable"], true);
    assert_eq!(cluster.wctl(&["uncordon", "node-2"]).ok(), "node/node-2 uncordoned\n");

    // The next start is with the nodes that are left.
    cluster.wctl(&["down", &cluster.name]).ok();
    let said = cluster.wctl(&["up", &cluster.name, "--isolated"]).ok();
    assert!(said.contains("node-1, node-2\n"), "{said}");
}

/// A kubeconfig with which a node speaks to the API.
fn identity_of(cluster: &Cluster, node: &str) -> std::path::PathBuf {
    let (local, path) = (cluster.local(), cluster.dir().join("node.kubeconfig"));
    let pki = local.data.join("nodes").join(node).join("pki").display().to_string();
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "node",
        "clusters": [{"name": "c", "cluster": {"server": local.url(), "certificate-authority": format!("{pki}/ca.crt")}}],
        "users": [{"name": "u", "user": {
            "client-certificate": format!("{pki}/node.crt"), "client-key": format!("{pki}/node.key"),
        }}],
        "contexts": [{"name": "node", "context": {"cluster": "c", "user": "u"}}],
    });
    std::fs::write(&path, config.to_string()).expect("a file");
    path
}

/// The node's condition Ready.
fn ready(cluster: &Cluster, node: &str) -> String {
    let node = cluster.get(&["node", node]);
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.iter().find(|one| one["type"] == "Ready");
    ready.and_then(|one| one["status"].as_str()).unwrap_or("none").to_owned()
}

/// Cuts the node's way to the others, or mends it.
fn uplink(cluster: &Cluster, node: &str, state: &str) {
    let run = || Command::new("ip").args(["link", "set", node, state]).status();
    assert!(cluster.node_called("switch").within(run).expect("ip runs").success());
}

#[test]
fn pods_of_a_node_that_is_cut_off_are_back_elsewhere_and_it_comes_back_without_them() {
    let cluster = Cluster::of_nodes(3, "3s");
    cluster.push_images();
    let objects: Vec<Value> = [("web", "greeter:1", 6), ("clock", "clock:1", 3)]
        .into_iter()
        .map(|(name, image, replicas)| {
            let mut object = manifest::deployment(name, image);
            object["spec"]["replicas"] = json!(replicas);
            object["spec"]["template"]["spec"]["tolerations"] = json!([{
                "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": 1,
            }]);
            object
        })
        .collect();
    apply(&cluster, &objects);
    let pods = || -> Vec<Value> {
        let list = cluster.get(&["pods"]);
        list["items"].as_array().cloned().unwrap_or_default()
    };
    let (lost, kept): (Vec<Value>, Vec<Value>) =
        pods().into_iter().partition(|pod| pod["spec"]["nodeName"] == "node-3");
    assert!(lost.len() >= 2, "the scheduler spreads them: {lost:?}");
    let name = |pod: &Value| pod["metadata"]["name"].as_str().expect("a name").to_owned();
    let answers = |node: &str, pod: &Value| {
        let address = address(pod).expect("it has an address");
        cluster.node_called(node).get(address, PORT, "/").is_ok_and(|(code, _)| code == 200)
    };

    // Under load: pods elsewhere are asked all the while, and always answer.
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let (kept, answers) = (&kept, &answers);
        let load = scope.spawn(move || {
            let (mut asked, mut failed) = (0, 0);
            while stopped.try_recv().is_err_and(|error| error == std::sync::mpsc::TryRecvError::Empty) {
                for pod in kept {
                    asked += 1;
                    failed += usize::from(!answers("node-1", pod));
                }
                std::thread::sleep(std::time::Duration::from_millis(50)); // a load, not a flood
            }
            (asked, failed)
        });
        uplink(&cluster, "node-3", "down");
        let began = std::time::Instant::now();
        eventually("all pods run elsewhere", || {
            let there: Vec<Value> = pods()
                .into_iter()
                .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
                .filter(|pod| pod["spec"]["nodeName"] != "node-3")
                .filter(|pod| container_status(pod)["ready"] == true)
                .collect();
            if there.len() == 9 {
                Ok(())
            } else {
                Err(format!("{} of 9; node-3: {}", there.len(), ready(&cluster, "node-3")))
            }
        });
        let took = began.elapsed();
        println!("pods of a node that was cut off ran elsewhere after {took:?} (grace 3 s, toleration 1 s)");
        assert!(took > std::time::Duration::from_secs(3), "no node is given up before its time: {took:?}");
        drop(stop);
        let (asked, failed) = load.join().expect("it asked");
        assert!(asked > 0 && failed == 0, "{failed} of {asked} requests to other nodes' pods failed");
    });

    // It is cut off, not dead: what it ran, it runs.
    assert_eq!(ready(&cluster, "node-3"), "Unknown");
    for pod in &lost {
        assert!(answers("node-3", pod), "{} runs on", name(pod));
        cluster.wctl(&["delete", "pod", &name(pod), "--grace-period", "0", "--no-wait"]).ok();
    }
    uplink(&cluster, "node-3", "up");
    eventually("the node is back", || match ready(&cluster, "node-3").as_str() {
        "True" => Ok(()),
        other => Err(other.to_owned()),
    });
    for pod in &lost {
        assert!(!answers("node-3", pod), "{} is a ghost", name(pod));
    }
    eventually("pods may go there again", || {
        let node = cluster.get(&["node", "node-3"]);
        if node["spec"]["taints"].as_array().is_none_or(Vec::is_empty) {
            Ok(())
        } else {
            Err(node["spec"].to_string())
        }
    });
    apply(&cluster, &[placed("again", "greeter:1", "node-3")]);
}
