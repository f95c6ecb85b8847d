//! Each failure says what, where and what to do, and exits with something else than 0.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;

use serde_json::{Value, json};
use wharf_tests::manifest::{self, PORT, container, container_status};
use wharf_tests::{Cluster, Space, assets, eventually, get};

/// Waits until the one container of the pod says something.
fn container_says(space: &Space, pod: &str, what: &str, says: impl Fn(&Value) -> bool) -> Value {
    eventually(what, || {
        let object = space.get(&["pod", pod]);
        let status = container_status(&object);
        if says(status) { Ok(status.clone()) } else { Err(object["status"].to_string()) }
    })
}

#[test]
fn malformed_yaml_is_told_with_file_document_and_line() {
    let space = Space::new("malformed");
    let file = space.cluster.dir().join("bad.yaml");
    std::fs::write(
        &file,
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: good\n---\napiVersion: v1\nkind: Config: Map\n",
    )
    .expect("a file");
    let path = file.display().to_string();
    let errors =
        space.wctl(&["apply", "-f", &path]).fails_with(&[&path, "document 2", "line 7", "malformed YAML"]);
    assert!(errors.starts_with("error: "), "{errors}");
    space.wctl(&["get", "configmap", "good"]).fails_with(&["not found"]); // nothing was applied
}

#[test]
fn an_unknown_kind_and_an_unknown_field_are_told_with_their_place() {
    let space = Space::new("unknown");
    let kind = "apiVersion: apps/v1\nkind: Deploymint\nmetadata: {name: a}\n";
    space.wctl_reading(&["apply", "-f", "-"], kind).fails_with(&[
        "standard input, document 1",
        "no kind \"Deploymint\"",
        "did you mean \"Deployment\"",
    ]);
    let field = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\n\
                 apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\ndatta: {}\n";
    let said = space.wctl_reading(&["apply", "-f", "-"], field);
    assert!(said.stdout.contains("configmap/a created"), "{said}");
    said.fails_with(&["standard input, document 2 (line 5)", "datta", "1 of 2 objects were not applied"]);
    space.wctl(&["get", "gizmos"]).fails_with(&["no resource type \"gizmos\""]);
}

#[test]
fn a_missing_image_is_told_in_the_registrys_own_words() {
    let space = Space::new("noimage");
    let object = manifest::deployment("absent", "nowhere:1");
    let said = space
        .wctl_reading(&["apply", "-f", "-", "--wait", "--timeout", "5s"], &object.to_string())
        .fails_with(&["deployment.apps/absent"]);
    assert!(said.contains("ErrImagePull") || said.contains("ImagePullBackOff"), "{said}");
    let pod = space.pods("absent")[0]["metadata"]["name"].as_str().expect("a name").to_owned();
    let status = container_says(&space, &pod, "the registry's words are shown", |status| {
        let waiting = &status["state"]["waiting"];
        waiting["message"].as_str().is_some_and(|words| words.to_lowercase().contains("unknown"))
    });
    assert!(
        status["state"]["waiting"]["message"].as_str().is_some_and(|words| words.contains("nowhere")),
        "{status}"
    );
    container_says(&space, &pod, "it backs off", |status| {
        status["state"]["waiting"]["reason"] == "ImagePullBackOff"
    });
    // Pushed later, it is found without anybody asking again.
    let greeter = assets::guest("greeter").display().to_string();
    space.cluster.wctl(&["image", "push", &greeter, "nowhere:1"]).ok();
    space.wctl(&["rollout", "status", "deployment/absent", "--timeout", "60s"]).ok();
}

#[test]
fn a_trap_is_a_crash_with_134_and_backs_off() {
    let space = Space::new("trap");
    space.apply(&[manifest::pod("panics", "guest-command:1", &["panic"])], false);
    let status = container_says(&space, "panics", "it crash-loops", |status| {
        status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
            && status["restartCount"].as_u64() > Some(0)
    });
    let end = &status["lastState"]["terminated"];
    assert_eq!((&end["exitCode"], &end["reason"]), (&json!(134), &json!("Error")), "{status}");
    assert!(end["message"].as_str().is_some_and(|message| message.contains("unreachable")), "{status}");
    let log = space.wctl(&["logs", "panics", "--previous"]).ok();
    assert!(log.contains("asked to"), "{log}");
    let wait = ["apply", "-f", "-", "--wait", "--timeout", "3s"];
    let again = manifest::pod("panics", "guest-command:1", &["panic"]).to_string();
    space.wctl_reading(&wait, &again).fails_with(&["pod/panics", "CrashLoopBackOff"]);
}

#[test]
fn a_guest_over_its_memory_limit_is_oom_killed_with_137() {
    let space = Space::new("oom");
    let mut pod = manifest::pod("grows", "guest-command:1", &["grow"]);
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "16Mi"}});
    space.apply(&[pod], false);
    let status =
        container_says(&space, "grows", "it ended", |status| !status["state"]["terminated"].is_null());
    let end = &status["state"]["terminated"];
    assert_eq!((&end["exitCode"], &end["reason"]), (&json!(137), &json!("OOMKilled")), "{status}");
    assert_eq!(space.get(&["pod", "grows"])["status"]["phase"], "Failed");
}

#[test]
fn a_trap_in_a_service_ends_that_request_alone() {
    let space = Space::new("service");
    let mut object = manifest::deployment("service", "guest-http:1");
    container(&mut object)["resources"] = json!({"limits": {"memory": "32Mi"}});
    space.apply(&[object], true);
    let forward = space.forward("deployment/service", PORT);
    for path in ["/panic", "/grow?200"] {
        assert_eq!(get(forward.address, path).expect("an answer").0, 500, "{path}");
        assert_eq!(forward.get("/"), "hello\n");
    }
    assert_eq!(container_status(&space.pods("service")[0])["restartCount"], 0);
}

#[test]
fn a_busy_port_is_told() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = taken.local_addr().expect("its address").port().to_string();
    let cluster = Cluster::down();
    cluster
        .wctl(&["up", &cluster.name, "--isolated", "--port", &port])
        .fails_with(&[&format!("127.0.0.1:{port} is taken"), "--port"]);
    let space = Space::new("busy");
    space.apply(&[manifest::deployment("web", "greeter:1")], true);
    space
        .wctl(&["port-forward", "deployment/web", &format!("{port}:{PORT}")])
        .fails_with(&[&format!("127.0.0.1:{port}"), "choose another local port"]);
}

#[test]
fn a_cluster_that_runs_is_not_started_again_and_one_that_is_unknown_not_ended() {
    let space = Space::new("again");
    let name = space.cluster.name.clone();
    space.cluster.wctl(&["up", &name, "--isolated"]).fails_with(&[&name, "runs already", "wctl down"]);
    space.cluster.wctl(&["down", "never-was"]).fails_with(&["no cluster \"never-was\"", "wctl up never-was"]);
    space.cluster.wctl(&["up", "Bad_Name"]).fails_with(&["no cluster name", "lower-case"]);
}

#[test]
fn without_root_up_says_so() {
    let cluster = Cluster::down();
    // Readable for anyone: cargo's target directory may be in a home that is not.
    let wctl = cluster.dir().join("wctl");
    std::fs::copy(assets::wctl(), &wctl).expect("a copy");
    for path in [cluster.dir(), &wctl] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, open).expect("opened");
    }
    let mut command = std::process::Command::new(&wctl);
    command.arg("--dir").arg(cluster.dir()).args(["up", &cluster.name, "--isolated"]).uid(65534).gid(65534);
    let output = command.output().expect("it runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("needs root") && errors.contains("sudo"), "{errors}");
}

#[test]
fn a_kernel_without_what_a_cluster_needs_is_told() {
    let cluster = Cluster::down();
    // A mount namespace of its own, in which no cgroups are mounted.
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", "umount --recursive --lazy /sys/fs/cgroup && exec \"$@\"", "sh"]);
    command.arg(assets::wctl()).arg("--dir").arg(cluster.dir()).args(["up", &cluster.name, "--isolated"]);
    let output = command.output().expect("unshare runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("no cgroups are mounted") && errors.contains("mount them at"), "{errors}");
}

#[test]
fn without_a_cluster_commands_say_how_to_get_one() {
    let cluster = Cluster::down();
    cluster.wctl(&["get", "pods"]).fails_with(&["no kubeconfig at", "wctl up"]);
}
