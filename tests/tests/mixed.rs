//! Pods of both sorts, where a wasm service and OCI containers share address, localhost and volumes; and core modules.

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
