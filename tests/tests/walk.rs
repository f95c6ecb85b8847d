//! What the demo does, through `wctl` alone.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::{Arc, mpsc};

use wharf_store::testing::Members;
use wharf_tests::manifest::PORT;
use wharf_tests::{Cluster, PATIENCE, Space, assets, eventually, get};

/// Applies the demo's folder and waits until it is available.
fn apply_examples(space: &Space) -> String {
    let folder = assets::manifests().display().to_string();
    space.wctl(&["apply", "-f", &folder, "--wait", "--timeout", "60s"]).ok()
}

#[test]
fn one_apply_runs_a_component_and_a_container_and_delete_leaves_nothing() {
    walk(&Space::new("walk"));
}

/// The cluster is put down and brought up again between: it finds its store by itself.
#[test]
fn the_same_holds_on_etcd_where_objects_outlive_the_cluster() {
    let folder = tempfile::tempdir().expect("a folder");
    let members = Members::start(folder.path(), 1);
    let store = format!("etcd://{}", members.config().members.join(","));
    let cluster = Arc::new(Cluster::on(&store));
    cluster.push_images();
    walk(&Space::of(cluster.clone(), "walk"));
    cluster
        .wctl_reading(&["apply", "-f", "-"], "{apiVersion: v1, kind: Namespace, metadata: {name: kept}}")
        .ok();
    cluster.wctl(&["down", &cluster.name]).ok();
    cluster.wctl(&["up", &cluster.name, "--isolated"]).ok();
    assert_eq!(cluster.get(&["namespace", "kept"])["status"]["phase"], "Active");
    assert!(!cluster.local().data.join("server/store.redb").exists(), "nothing of it is elsewhere");
}

fn walk(space: &Space) {
    let said = apply_examples(space);
    for line in [
        "configmap/greeter created",
        "deployment.apps/greeter created",
        "deployment.apps/clock created",
        "deployment \"greeter\" successfully rolled out",
    ] {
        assert!(said.contains(line), "{line:?} is missing in {said}");
    }

    let table = space.wctl(&["get", "pods", "-o", "wide"]).ok();
    let heading = table.lines().next().unwrap_or_default();
    for column in ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"] {
        assert!(heading.contains(column), "{column} is missing in {heading:?}");
    }
    assert_eq!(table.matches("Running").count(), 2, "{table}");

    let greeter = space.forward("deployment/greeter", PORT);
    let answer = greeter.get("/");
    assert!(answer.contains("Hello from a wasm component") && answer.contains("greeter-"), "{answer}");
    let clock = space.forward("deployment/clock", PORT);
    let answer = clock.get("/");
    assert!(answer.contains(r#""runtime":"oci""#), "{answer}");

    assert_eq!(
        space.wctl(&["scale", "deployment/greeter", "--replicas=3"]).ok(),
        "deployment.apps/greeter scaled to 3\n"
    );
    let said = space.wctl(&["rollout", "status", "deployment/greeter", "--timeout", "30s"]).ok();
    assert!(said.ends_with("deployment \"greeter\" successfully rolled out\n"), "{said}");
    assert_eq!(space.pods("greeter").len(), 3);

    // The manifests do not name the replicas, so applied again they change nothing.
    let said = apply_examples(space);
    for name in ["configmap/greeter", "deployment.apps/greeter", "deployment.apps/clock"] {
        assert!(said.contains(&format!("{name} unchanged")), "{said}");
    }
    assert_eq!(space.pods("greeter").len(), 3);

    let folder = assets::manifests().display().to_string();
    space.wctl(&["delete", "-f", &folder]).ok();
    eventually("no pod is left", || {
        let left = space.get(&["pods"])["items"].as_array().map_or(0, Vec::len);
        if left == 0 { Ok(()) } else { Err(format!("{left} pods")) }
    });
    let left = space.wctl(&["get", "deployments,replicasets,pods", "-o", "name"]).ok();
    assert_eq!(left, "");
}

#[test]
fn a_changed_config_map_is_seen_after_a_rollout_and_undo_goes_back() {
    let space = Space::new("rollout");
    let original = fs::read_to_string(assets::manifests().join("greeter.yaml")).expect("a manifest");
    let greets = |words: &str| {
        let forward = space.forward("deployment/greeter", PORT);
        let answer = forward.get("/");
        assert!(answer.contains(&format!("{words} from a wasm component")), "{answer}");
    };
    let wait = ["apply", "-f", "-", "--wait", "--timeout", "60s"];
    space.wctl_reading(&wait, &original).ok();
    greets("Hello");

    // As people do it: a new map beside the old one, so that going back finds what was.
    let changed = original
        .replace("greeting: Hello", "greeting: Good evening")
        .replace("name: greeter\n  labels", "name: greeter-2\n  labels");
    let changed = changed.replacen(
        "kind: Deployment\nmetadata:\n  name: greeter-2",
        "kind: Deployment\nmetadata:\n  name: greeter",
        1,
    );
    let changed = changed.replace(
        "configMapKeyRef:\n                  name: greeter",
        "configMapKeyRef:\n                  name: greeter-2",
    );
    assert_eq!(changed.matches("greeter-2").count(), 2, "{changed}");
    let said = space.wctl_reading(&wait, &changed).ok();
    assert!(said.contains("deployment.apps/greeter configured"), "{said}");
    greets("Good evening");

    let said = space.wctl(&["rollout", "undo", "deployment/greeter"]).ok();
    assert_eq!(said, "deployment.apps/greeter rolled back\n");
    space.wctl(&["rollout", "status", "deployment/greeter", "--timeout", "60s"]).ok();
    greets("Hello");
    let revision =
        space.get(&["deployment/greeter"])["metadata"]["annotations"]["deployment.kubernetes.io/revision"]
            .clone();
    assert_eq!(revision, "3");
}

#[test]
fn logs_follow_what_a_component_says_and_end_with_the_pod() {
    let space = Space::new("logs");
    space.apply(&[wharf_tests::manifest::deployment("talker", "guest-http:1")], true);
    let pod = space.pods("talker")[0]["metadata"]["name"].as_str().expect("a name").to_owned();
    let forward = space.forward(&pod, PORT);
    forward.get("/log?first");

    let mut follower = space.cluster.command();
    follower.args(["-n", space.name, "logs", "-f", &pod]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut follower = follower.spawn().expect("wctl");
    let lines = BufReader::new(follower.stdout.take().expect("a pipe")).lines();
    let (sender, heard) = mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
    // None at the end of the log.
    let next = || match heard.recv_timeout(PATIENCE) {
        Ok(line) => Some(line),
        Err(mpsc::RecvTimeoutError::Disconnected) => None,
        Err(timeout) => panic!("neither a line nor the end of the log: {timeout}"),
    };
    assert_eq!(next().as_deref(), Some("first"));
    get(forward.address, "/log?second").expect("an answer");
    assert_eq!(next().as_deref(), Some("second"));

    space.wctl(&["delete", "deployment/talker"]).ok();
    assert_eq!(next(), None, "the log ends with its container");
    assert!(follower.wait().expect("it ends").success());
}
