//! Pods of both sorts, where a wasm service and OCI containers share address, localhost and volumes; and core modules.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::json;
use wharf_tests::manifest::{PORT, address, container, container_status, deployment, pod};
use wharf_tests::{Space, eventually};

#[test]
fn a_container_asks_the_component_beside_it_at_localhost_and_shares_a_volume() {
    let space = Space::new("mixed");
    let mut object = deployment("mixed", "guest-http:1");
    let mounts = json!([{"name": "shared", "mountPath": "/shared"}]);
    container(&mut object)["volumeMounts"] = mounts.clone();
    let ask = format!(
        "until wget -q -O /shared/answer http://127.0.0.1:{PORT}/; do sleep 0.1; done; \
         wget -q -O - 'http://127.0.0.1:{PORT}/read?/shared/answer'; \
         wget -q -O - 'http://127.0.0.1:{PORT}/write?/shared/note'; cat /shared/note; exec sleep 100000"
    );
    let pod = &mut object["spec"]["template"]["spec"];
    pod["volumes"] = json!([{"name": "shared", "emptyDir": {}}]);
    let containers = pod["containers"].as_array_mut().expect("containers");
    containers.push(json!({
        "name": "asks",
        "image": "registry.wharf/busybox:1",
        "command": ["/bin/sh", "-c", ask],
        "volumeMounts": mounts,
    }));
    // Available: so the node's probe was answered at the pod's own address.
    space.apply(&[object], true);
    let pods = space.pods("mixed");
    assert_eq!(pods.len(), 1);
    let name = pods[0]["metadata"]["name"].as_str().expect("a name");
    eventually("it was answered", || {
        let said = space.wctl(&["logs", name, "-c", "asks"]);
        let whole = said.stdout.contains("hello\nwritten\nwritten by a guest\n");
        if whole { Ok(()) } else { Err(said.to_string()) }
    });
    let at = address(&pods[0]).expect("an address");
    assert_eq!(space.cluster.node().get(at, PORT, "/").expect("an answer").0, 200);
    let forward = space.forward(name, PORT);
    assert!(forward.get("/").contains("hello"));
}

#[test]
fn a_core_module_runs_to_its_own_exit_code() {
    let space = Space::new("core");
    for (name, args, phase, code) in
        [("says", vec!["say", "a word"], "Succeeded", 0), ("ends", vec!["exit", "200"], "Failed", 200)]
    {
        let mut object = pod(name, "guest-core:1", &args);
        object["spec"]["restartPolicy"] = json!("Never");
        space.apply(&[object], false);
        eventually("it has ended", || {
            let pod = space.get(&[&format!("pod/{name}")]);
            let ended = container_status(&pod)["state"]["terminated"]["exitCode"] == code;
            if ended && pod["status"]["phase"] == phase { Ok(()) } else { Err(pod["status"].to_string()) }
        });
    }
    assert_eq!(space.wctl(&["logs", "says"]).ok(), "a word\n");
}

#[test]
fn a_component_reads_a_single_file_of_a_volume() {
    let space = Space::new("files");
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "words"},
        "data": {"text": "a word\n", "other": "not this"}});
    let mut object = pod("reads", "guest-command:1", &["read", "/etc/app/text"]);
    object["spec"]["restartPolicy"] = json!("Never");
    object["spec"]["volumes"] = json!([{"name": "words", "configMap": {"name": "words"}}]);
    object["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "words", "mountPath": "/etc/app/text", "subPath": "text"}]);
    space.apply(&[map, object], false);
    eventually("it has ended", || {
        let pod = space.get(&["pod/reads"]);
        if pod["status"]["phase"] == "Succeeded" { Ok(()) } else { Err(pod["status"].to_string()) }
    });
    assert_eq!(space.wctl(&["logs", "reads"]).ok(), "a word\n");
}

#[test]
fn root_of_a_pod_with_users_of_its_own_is_nobody_on_the_node() {
    let space = Space::new("users");
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "words"}, "data": {"text": "a word\n"}});
    let script =
        "cat /words/text; id -u; echo mine > /data/file && stat -c %u /data/file; cat /proc/self/uid_map";
    let pods = ["one", "other"].map(|name| {
        let mut object = pod(name, "busybox:1", &[]);
        let spec = &mut object["spec"];
        spec["hostUsers"] = json!(false);
        spec["restartPolicy"] = json!("Never");
        spec["volumes"] =
            json!([{"name": "words", "configMap": {"name": "words"}}, {"name": "data", "emptyDir": {}}]);
        let main = &mut spec["containers"][0];
        main["command"] = json!(["/bin/sh", "-c", script]);
        main["volumeMounts"] =
            json!([{"name": "words", "mountPath": "/words"}, {"name": "data", "mountPath": "/data"}]);
        object
    });
    space.apply(&[vec![map], pods.to_vec()].concat(), false);
    let firsts = ["one", "other"].map(|name| {
        eventually("it has ended", || {
            let pod = space.get(&[&format!("pod/{name}")]);
            if pod["status"]["phase"] == "Succeeded" { Ok(()) } else { Err(pod["status"].to_string()) }
        });
        let log = space.wctl(&["logs", name]).ok();
        let words: Vec<&str> = log.split_whitespace().collect();
        let ["a", "word", "0", "0", "0", first, "65536"] = words[..] else { panic!("{log}") };
        first.parse::<u32>().expect("a number")
    });
    assert!(firsts[0] != firsts[1] && firsts.iter().all(|first| *first >= 1 << 16), "{firsts:?}");
}

#[test]
fn a_port_of_the_node_leads_to_a_pod_of_either_sort_until_it_is_gone() {
    let space = Space::new("ports");
    let node = space.cluster.node();
    let addresses = [IpAddr::V4(Ipv4Addr::LOCALHOST), node_address(&space)];
    for (name, image, port, says) in
        [("wasm", "guest-http:1", 18081, "hello"), ("oci", "clock:1", 18082, r#""runtime":"oci""#)]
    {
        let mut object = deployment(name, image);
        container(&mut object)["ports"] = json!([{"containerPort": PORT, "hostPort": port}]);
        space.apply(&[object], true);
        for address in addresses {
            let (code, answer) = node.get(address, port, "/").expect("an answer");
            assert!(code == 200 && answer.contains(says), "{name} at {address}: {code} {answer}");
        }
        space.wctl(&["delete", "deployment", name]).ok();
        eventually("the port is free", || match node.get(addresses[1], port, "/") {
            Ok(answer) => Err(format!("{answer:?}")),
            Err(_) => Ok(()),
        });
    }
}

fn node_address(space: &Space) -> IpAddr {
    let node = space.get(&["node", "node-1"]);
    let addresses = node["status"]["addresses"].as_array().cloned().unwrap_or_default();
    let internal = addresses.iter().find(|one| one["type"] == "InternalIP").expect("an address");
    internal["address"].as_str().and_then(|text| text.parse().ok()).expect("it is one")
}
