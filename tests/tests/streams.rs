//! exec, attach, cp and port-forward into real containers, with `wctl` and as other clients do it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::Stdio;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{AttachParams, TerminalSize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wharf_tests::{Space, eventually, manifest};

/// A running pod whose one container runs a line of shell, once.
fn shell(space: &Space, name: &str, line: &str, more: Value) {
    let mut pod = manifest::pod(name, "busybox:1", &["-c", line]);
    pod["spec"]["restartPolicy"] = json!("Never");
    let container = pod["spec"]["containers"][0].as_object_mut().expect("an object");
    container.extend(more.as_object().expect("an object").clone());
    space.apply(&[pod], false);
    eventually("the pod runs", || {
        let pod = space.get(&["pod", name]);
        match pod["status"]["phase"].as_str() {
            Some("Running") => Ok(()),
            _ => Err(pod["status"].to_string()),
        }
    });
}

/// Lasts as long as its pod.
const IDLE: &str = "trap exit TERM; while :; do sleep 1 & wait $!; done";

#[test]
fn a_command_says_what_it_says_and_its_exit_code_is_ours() {
    let space = Space::new("exec");
    shell(&space, "box", IDLE, json!({"env": [{"name": "WHARF", "value": "yes"}]}));
    let said = space.wctl(&["exec", "box", "--", "sh", "-c", "echo out $WHARF; echo err >&2; exit 7"]);
    assert_eq!((said.code, said.stdout.as_str(), said.stderr.as_str()), (Some(7), "out yes\n", "err\n"));
    let said = space.wctl_reading(&["exec", "-i", "box", "--", "cat"], "typed");
    assert_eq!(said.ok(), "typed", "the end of what is typed reaches the command");
    let said = space.wctl(&["exec", "box", "--", "seq", "200000"]);
    assert_eq!(said.ok().lines().count(), 200_000, "nothing of a large output is lost");
    let long = "x".repeat(3 << 20);
    let said = space.wctl_reading(&["exec", "-i", "box", "--", "sh", "-c", "wc -c"], &long);
    assert_eq!(said.ok().trim(), (3 << 20).to_string());

    space.wctl(&["exec", "box", "--", "/bin/none"]).fails_with(&["error: ", "/bin/none"]);
    space.wctl(&["exec", "none", "--", "true"]).fails_with(&["pods \"none\" not found"]);
    let errors = space.wctl(&["exec", "box", "-c", "other", "--", "true"]);
    errors.fails_with(&["container other is not valid for pod box"]);

    // A command ends with the client that wanted it.
    let mut command = space.cluster.command();
    command.args(["-n", "exec", "exec", "box", "--", "sleep", "54321"]).stdin(Stdio::null());
    let mut client = command.spawn().expect("it starts");
    let sleeps = || {
        let list = space.wctl(&["exec", "box", "--", "ps", "-o", "args"]).ok();
        list.lines().filter(|line| line.contains("sleep 54321")).count()
    };
    eventually("it runs", || if sleeps() == 1 { Ok(()) } else { Err("not yet".to_owned()) });
    client.kill().expect("it runs");
    client.wait().expect("it ends");
    eventually("it ends", || if sleeps() == 0 { Ok(()) } else { Err("it runs still".to_owned()) });
}

#[test]
fn a_command_can_have_a_terminal() {
    let space = Space::new("terminal");
    shell(&space, "box", IDLE, json!({}));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let pods: kube::Api<Pod> = kube::Api::namespaced(space.cluster.client().await, "terminal");
        let params = AttachParams::default().stdin(true).stdout(true).stderr(false).tty(true);
        let mut process = pods.exec("box", ["sh"], &params).await.expect("exec");
        let mut sizes = process.terminal_size().expect("a terminal has a size");
        let status = process.take_status().expect("a status");
        let (mut stdin, mut stdout) = (process.stdin().expect("stdin"), process.stdout().expect("stdout"));
        use futures::SinkExt as _;
        sizes.send(TerminalSize { width: 123, height: 45 }).await.expect("it is sent");
        let mut heard = String::new();
        // Until the size is there; what is typed comes back as well.
        let script =
            b"tty; until stty size | head -n 1; [ \"$(stty size)\" = '45 123' ]; do sleep 1; done; exit 3\n";
        stdin.write_all(script).await.expect("it is typed");
        let mut bytes = [0; 4096];
        let reading = async {
            while let Ok(n @ 1..) = stdout.read(&mut bytes).await {
                heard += &String::from_utf8_lossy(&bytes[..n]);
            }
        };
        tokio::time::timeout(wharf_tests::PATIENCE, reading).await.expect("it ends");
        assert!(heard.contains("/dev/pts/") && heard.contains("45 123"), "{heard}");
        let status = status.await.expect("a status");
        let causes = status.details.and_then(|details| details.causes).unwrap_or_default();
        assert_eq!(causes[0].message.as_deref(), Some("3"), "{causes:?}");
    });
}

#[test]
fn who_attaches_has_the_containers_own_streams() {
    let space = Space::new("attach");
    let line = "while read line; do echo said $line; done; echo over; sleep 1";
    shell(&space, "box", line, json!({"stdin": true, "stdinOnce": true}));
    let mut command = space.cluster.command();
    command.args(["-n", "attach", "attach", "-i", "box"]);
    let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut stdin = client.stdin.take().expect("a pipe");
    stdin.write_all(b"one\ntwo\n").expect("it reads");
    drop(stdin);
    let mut heard = String::new();
    client.stdout.take().expect("a pipe").read_to_string(&mut heard).expect("text");
    assert_eq!(heard, "said one\nsaid two\nover\n", "and the end of the input is the container's as well");
    assert!(client.wait().expect("it ends").success());
    let log = space.wctl(&["logs", "box"]).ok();
    assert!(log.starts_with("said one\nsaid two\nover\n"), "the log has it too: {log}");
}

/// A running pod of the component that says what it is told.
fn component(space: &Space, name: &str, more: Value) {
    let mut pod = manifest::pod(name, "guest-command:1", &["cat"]);
    pod["spec"]["restartPolicy"] = json!("Never");
    let container = pod["spec"]["containers"][0].as_object_mut().expect("an object");
    container.extend(json!({"stdin": true, "stdinOnce": true}).as_object().expect("an object").clone());
    container.extend(more.as_object().expect("an object").clone());
    pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    space.apply(&[pod], true);
}

#[test]
fn who_attaches_to_a_component_has_its_own_streams() {
    let space = Space::new("component");
    component(&space, "cat", json!({}));
    let mut command = space.cluster.command();
    command.args(["-n", "component", "attach", "-i", "cat"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut client = command.spawn().expect("it starts");
    client.stdin.take().expect("a pipe").write_all(b"one\ntwo\n").expect("it reads");
    let said = client.wait_with_output().expect("it ends");
    let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success(), "{err}");
    assert_eq!(out, "one\ntwo\n");
    assert!(err.contains("end of input"), "and its end is the component's as well: {err}");
}

#[test]
fn a_component_is_told_of_a_terminal_whose_lines_it_reads() {
    let space = Space::new("typed");
    component(&space, "cat", json!({"tty": true}));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let pods: kube::Api<Pod> = kube::Api::namespaced(space.cluster.client().await, "typed");
        let params = AttachParams::default().stdin(true).stdout(true).stderr(false).tty(true);
        let mut process = pods.exec("cat", ["guest", "terminal"], &params).await.expect("exec");
        let mut heard = String::new();
        process.stdout().expect("stdout").read_to_string(&mut heard).await.expect("text");
        assert_eq!(heard, "true true\r\n");

        let mut process = pods.attach("cat", &params).await.expect("attach");
        let (mut stdin, mut stdout) = (process.stdin().expect("stdin"), process.stdout().expect("stdout"));
        stdin.write_all(b"hello\r").await.expect("it is typed");
        let mut heard = String::new();
        let mut bytes = [0; 4096];
        let reading = async {
            let mut ends = false;
            while let Ok(n @ 1..) = stdout.read(&mut bytes).await {
                heard += &String::from_utf8_lossy(&bytes[..n]);
                if !ends && heard.matches("hello\r\n").count() == 2 {
                    ends = true;
                    stdin.write_all(b"\x04").await.expect("the end is typed");
                }
            }
        };
        tokio::time::timeout(wharf_tests::PATIENCE, reading).await.expect("it ends with its input");
        assert!(heard.starts_with("hello\r\nhello\r\n"), "what is typed is seen, and answered: {heard:?}");
    });
}

#[test]
fn an_ephemeral_container_looks_into_a_pod_and_does_not_come_again() {
    let space = Space::new("debug");
    shell(&space, "box", IDLE, json!({}));
    let line = "cat /proc/1/cmdline; echo; read line; echo heard $line; exit 3";
    let look = json!({
        "name": "look", "image": "registry.wharf/busybox:1", "args": ["-c", line],
        "stdin": true, "stdinOnce": true, "targetContainerName": "main",
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let pods: kube::Api<Pod> = kube::Api::namespaced(space.cluster.client().await, "debug");
        let patch = kube::api::Patch::Strategic(json!({"spec": {"ephemeralContainers": [look]}}));
        pods.patch_subresource("ephemeralcontainers", "box", &Default::default(), &patch)
            .await
            .expect("the pod takes it");
    });
    let state = || space.get(&["pod", "box"])["status"]["ephemeralContainerStatuses"][0].clone();
    let until = |what: &str| {
        eventually(what, || {
            let state = state();
            if state["state"][what].is_object() { Ok(()) } else { Err(state.to_string()) }
        });
    };
    until("running");
    let said = space.wctl_reading(&["attach", "-i", "box", "-c", "look"], "a word\n").ok();
    assert!(said.contains("heard a word"), "{said}");
    until("terminated");
    let state = state();
    assert_eq!((&state["state"]["terminated"]["exitCode"], &state["restartCount"]), (&json!(3), &json!(0)));
    let log = space.wctl(&["logs", "box", "-c", "look"]).ok();
    assert!(log.contains("while :; do sleep 1"), "process 1 is that of its target: {log}");
    let pod = space.get(&["pod", "box"]);
    assert_eq!(
        (&pod["status"]["phase"], &manifest::container_status(&pod)["ready"]),
        (&json!("Running"), &json!(true))
    );
}

#[test]
fn files_and_folders_are_copied_both_ways() {
    let space = Space::new("copy");
    shell(&space, "box", IDLE, json!({}));
    let here = tempfile::tempdir().expect("a folder");
    let path = |name: &str| here.path().join(name).display().to_string();
    fs::create_dir_all(here.path().join("tree/sub")).expect("a folder");
    let big: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
    fs::write(here.path().join("tree/sub/big"), &big).expect("a file");
    fs::write(here.path().join("tree/small"), "small\n").expect("a file");

    space.wctl(&["cp", &path("tree/small"), "box:/tmp/renamed"]).ok();
    assert_eq!(space.wctl(&["exec", "box", "--", "cat", "/tmp/renamed"]).ok(), "small\n");
    space.wctl(&["cp", &path("tree"), "box:/tmp"]).ok();
    assert_eq!(space.wctl(&["exec", "box", "--", "cat", "/tmp/tree/small"]).ok(), "small\n");
    space.wctl(&["cp", "copy/box:/tmp/tree", &path("back")]).ok();
    assert_eq!(fs::read(here.path().join("back/sub/big")).expect("it came back"), big);
    space.wctl(&["cp", "box:/tmp/renamed", &path("tree")]).ok();
    assert_eq!(fs::read_to_string(here.path().join("tree/renamed")).expect("into the folder"), "small\n");
    space.wctl(&["cp", "box:/tmp/none", &path("none")]).fails_with(&["tar in the container", "none"]);
    space.wctl(&["cp", &path("absent"), "box:/tmp"]).fails_with(&["cannot read", "absent"]);
}

#[test]
fn files_and_folders_of_a_component_are_copied_both_ways_without_a_program_in_it() {
    let space = Space::new("given");
    let mounts = json!([{"name": "data", "mountPath": "/data"}, {"name": "data", "mountPath": "/kept", "readOnly": true}]);
    component(&space, "cat", json!({"volumeMounts": mounts}));
    let here = tempfile::tempdir().expect("a folder");
    let path = |name: &str| here.path().join(name).display().to_string();
    fs::create_dir_all(here.path().join("tree/sub")).expect("a folder");
    fs::write(here.path().join("tree/sub/small"), "small\n").expect("a file");

    space.wctl(&["cp", &path("tree/sub/small"), "cat:/data/renamed"]).ok();
    assert_eq!(space.wctl(&["exec", "cat", "--", "guest", "read", "/kept/renamed"]).ok(), "small\n");
    space.wctl(&["cp", &path("tree"), "cat:/data"]).ok();
    space.wctl(&["cp", "cat:/data/tree", &path("back")]).ok();
    assert_eq!(fs::read_to_string(here.path().join("back/sub/small")).expect("it came back"), "small\n");
    space.wctl(&["cp", &path("tree/sub/small"), "cat:/kept/new"]).fails_with(&["Read-only file system"]);
    space.wctl(&["cp", &path("tree/sub/small"), "cat:/nowhere/new"]).fails_with(&["has what it mounts"]);
}

#[test]
fn ports_are_forwarded_to_a_shells_server() {
    let space = Space::new("ports");
    shell(&space, "box", "echo hello > /tmp/index.html; exec httpd -f -p 8080 -h /tmp", json!({}));
    let forward = space.forward("pod/box", 8080);
    for _ in 0..3 {
        assert_eq!(forward.get("/index.html"), "hello\n");
    }
}

#[test]
fn streams_leave_no_process_and_no_descriptor() {
    let space = Space::new("leftover");
    shell(&space, "box", IDLE, json!({}));
    let descriptors = || {
        let count = |pid: i32| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        let all = wharf_tests::processes(&space.cluster);
        all.iter().map(|process| count(process.pid)).sum::<usize>()
    };
    let twice = || {
        for _ in 0..2 {
            space.wctl(&["exec", "box", "--", "true"]).ok();
            space.wctl_reading(&["exec", "-i", "box", "--", "cat"], "x").ok();
        }
    };
    twice(); // what is made once and kept is there then
    let before = descriptors();
    for _ in 0..5 {
        twice();
    }
    // Other tests share the cluster and come and go: twenty commands that each left one would show.
    eventually("no descriptor is left", || {
        let now = descriptors();
        if now <= before + 10 { Ok(()) } else { Err(format!("{now} descriptors, {before} before")) }
    });
    let list = space.wctl(&["exec", "box", "--", "ps", "-o", "args"]).ok();
    assert!(!list.contains("cat"), "{list}");
}
