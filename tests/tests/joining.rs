//! A machine becomes a node with a token and a certificate request.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use wharf_tests::manifest::{self, container_status};
use wharf_tests::{Cluster, assets, eventually};

const TOKEN: &str = "abcdef.fedcba9876543210";

/// A further machine: it stands in the first node's network, and has no runtime.
struct Machine<'a> {
    cluster: &'a Cluster,
    name: &'static str,
}

impl Machine<'_> {
    fn pki(&self) -> PathBuf {
        self.cluster.dir().join(self.name).join("pki")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let dir = self.cluster.dir().join(self.name);
        let mut command = Command::new("timeout"); // nothing may hang
        command.arg("60").arg(assets::wharf()).arg("node");
        for (option, path) in
            [("pki", "pki"), ("node-root", "root"), ("node-logs", "logs"), ("runtime", "sock")]
        {
            command.arg(format!("--{option}={}", dir.join(path).display()));
        }
        command
            .args(["--node-address=10.64.0.11", "--node-port=10260"])
            .arg(format!("--node-name={}", self.name));
        if !arguments.iter().any(|argument| argument.starts_with("--server")) {
            command.arg("--server=https://10.64.0.11:6443");
        }
        command.args(arguments);
        command
    }

    /// What it says when it cannot join.
    #[track_caller]
    fn fails_with(&self, arguments: &[&str], words: &[&str]) {
        let run = || self.command(arguments).output();
        let output = self.cluster.node().within(run).expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is not told for {arguments:?}: {said}");
        }
        assert!(!self.pki().join("node.crt").exists(), "{arguments:?}");
        assert!(!said.contains("fedcba987654321"), "the token is told: {said}");
    }

    fn start(&self, arguments: &[&str]) -> Running {
        let run = || self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Running(self.cluster.node().within(run).expect("it starts"))
    }
}

/// Ended when it is dropped; `timeout` hands the signal on.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.0.id().cast_signed()),
            nix::sys::signal::Signal::SIGTERM,
        );
        let _ = self.0.wait();
    }
}

fn token(id: &str, expires: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
        "stringData": {
            "token-id": id, "token-secret": "fedcba9876543210", "expiration": expires,
            "usage-bootstrap-authentication": "true",
        },
    })
}

/// The certificate requests of a user, and of whom they are.
fn requests(cluster: &Cluster, user: &str) -> Vec<Value> {
    let list = cluster.get(&["certificatesigningrequests"]);
    let all = list["items"].as_array().cloned().unwrap_or_default();
    all.into_iter().filter(|one| one["spec"]["username"] == user).collect()
}

/// A token that was deleted is none.
#[track_caller]
fn machine_is_refused_with(cluster: &Cluster, arguments: &[&str]) {
    let late = Machine { cluster, name: "late" };
    late.fails_with(arguments, &["token is wrong or has expired"]);
}

#[test]
fn a_machine_with_a_token_becomes_a_node_and_one_without_a_good_one_is_told_why_not() {
    let cluster = Cluster::of_nodes(2, "40s");
    // The cluster's own second node came this way, and its token is gone.
    let own = cluster.local().data.join("nodes/node-2/pki");
    for file in ["node.crt", "node.key", "serving.crt", "serving.key"] {
        eventually(file, || own.join(file).exists().then_some(()).ok_or("absent".to_owned()));
        let mode = std::fs::metadata(own.join(file)).expect("it is there").permissions().mode() & 0o777;
        assert_eq!(mode, if file.ends_with("key") { 0o600 } else { 0o644 }, "{file}");
    }
    eventually("the keeper takes its token back", || {
        let secrets = cluster.get(&["secrets", "-n", "kube-system"]);
        let left = secrets["items"].as_array().into_iter().flatten();
        let left = left.filter(|one| one["type"] == "bootstrap.kubernetes.io/token").count();
        (left == 0 && !cluster.local().run.join("token").exists())
            .then_some(())
            .ok_or(format!("{left} secrets"))
    });
    assert!(!requests(&cluster, "system:node:node-2").is_empty(), "it asked for its server's certificate");

    let secrets = [token("abcdef", "2099-01-01T00:00:00Z"), token("oldold", "2020-01-01T00:00:00Z")];
    let text: Vec<String> = secrets.iter().map(Value::to_string).collect();
    cluster.wctl_reading(&["apply", "-f", "-"], &text.join("\n---\n")).ok();
    let machine = Machine { cluster: &cluster, name: "extra" };
    let ca = format!("--ca={}", cluster.local().data.join("server/pki/ca.crt").display());
    let token = format!("--token={TOKEN}");
    let none = format!("--ca-cert-hash=sha256:{}", "0".repeat(64));
    machine.fails_with(&[], &["--ca-cert-hash", "--ca FILE"]);
    machine.fails_with(&[&token, "--ca-cert-hash=sha256:12"], &["64 hexadecimal digits"]);
    machine.fails_with(&[&token, &none], &["has the pinned hash"]);
    machine.fails_with(&[&token, &none, "--server=https://10.64.0.11:9"], &["10.64.0.11:9", "refused"]);
    machine.fails_with(&[&ca], &["--token"]);
    machine.fails_with(&[&ca, "--token=nonsense"], &["not of the form"]);
    machine.fails_with(&[&ca, "--token=abcdef.fedcba9876543211"], &["token is wrong or has expired"]);
    machine.fails_with(&[&ca, "--token=oldold.fedcba9876543210"], &["token is wrong or has expired"]);
    // Another cluster's CA is not this one's.
    let foreign = Machine { cluster: &cluster, name: "foreign" };
    let other = Cluster::up();
    let theirs = format!("--ca={}", other.local().data.join("server/pki/ca.crt").display());
    foreign.fails_with(&[&token, &theirs], &["certificate"]);
    drop(other);

    // The command that `wctl` prints joins it, as it is.
    let said = cluster.wctl(&["token", "create", "--print-join-command", "--ttl", "10m"]);
    assert!(said.stderr.contains("has a network of its own on this machine"), "{said}");
    let printed = said.ok();
    let words: Vec<&str> = printed.split_whitespace().collect();
    assert_eq!(words[..4], ["wharf", "node", "--server", "https://10.64.0.11:6443"], "{printed}");
    let (id, _) = words[5].split_once('.').expect("a token");
    let user = format!("system:bootstrap:{id}");
    assert!(cluster.wctl(&["token", "list"]).ok().contains(id));
    let running = machine.start(&words[2..]);
    let node = || cluster.wctl(&["get", "node", "extra"]).code;
    eventually("it is a node", || (node() == Some(0)).then_some(()).ok_or(format!("{:?}", node())));
    let serving = machine.pki().join("serving.crt");
    eventually("its server has a certificate", || serving.exists().then_some(()).ok_or("absent".to_owned()));
    assert_eq!(requests(&cluster, &user).len(), 1);
    drop(running);
    cluster.wctl(&["token", "delete", id]).ok();
    machine_is_refused_with(&cluster, &words[2..]);
    // Another start takes what it has: no token, no request.
    cluster.wctl(&["delete", "node", "extra"]).ok();
    let _running = machine.start(&[]);
    eventually("it is a node again", || (node() == Some(0)).then_some(()).ok_or(format!("{:?}", node())));
    assert_eq!(requests(&cluster, &user).len(), 1);
    assert_eq!(requests(&cluster, "system:node:extra").len(), 1);
}

/// A container that runs until it is ended, on this node.
fn placed(name: &str, image: &str, node: &str) -> Value {
    let mut pod = manifest::pod(name, image, &[]);
    pod["spec"]["containers"][0].as_object_mut().expect("an object").remove("args");
    pod["spec"]["nodeName"] = json!(node);
    pod
}

#[test]
fn a_node_renews_its_certificates_while_it_serves_and_outlives_the_first_ones() {
    const LIFE: Duration = Duration::from_secs(10);
    let cluster = Cluster::down();
    let life = format!("--cluster-signing-duration={}s", LIFE.as_secs());
    cluster.wctl(&["up", &cluster.name, "--isolated", "--nodes", "2", &life]).ok();
    cluster.push_images();
    let pki = cluster.local().data.join("nodes/node-2/pki");
    eventually("both certificates are there", || {
        let missing = ["node.crt", "serving.crt"].into_iter().find(|file| !pki.join(file).exists());
        missing.map_or(Ok(()), |file| Err(file.to_owned()))
    });
    let certificates = || {
        ["node.crt", "serving.crt"]
            .map(|file| std::fs::read_to_string(pki.join(file)).expect("a certificate"))
    };
    let (first, over) = (certificates(), SystemTime::now() + LIFE);
    let apply = |pod: &Value| {
        cluster.wctl_reading(&["apply", "-f", "-", "--wait", "--timeout", "60s"], &pod.to_string()).ok();
    };
    apply(&placed("before", "clock:1", "node-2"));
    let ready = || {
        let node = cluster.get(&["node", "node-2"]);
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.into_iter().find(|one| one["type"] == "Ready").unwrap_or_default();
        (ready["status"].clone(), ready["lastTransitionTime"].clone())
    };
    let since = ready();
    assert_eq!(since.0, "True");
    eventually("its first certificates are over", || match over.elapsed() {
        Ok(past) if past > Duration::from_secs(1) => Ok(()), // certificates count whole seconds
        other => Err(format!("{other:?}")),
    });
    let renewed = certificates();
    assert!(renewed[0] != first[0] && renewed[1] != first[1], "both were renewed");

    // What the node asks of the server, what the server asks of the node, and images, whose puller reads the file.
    let lease = || cluster.get(&["lease", "node-2", "-n", "kube-node-lease"])["spec"]["renewTime"].clone();
    let last = lease();
    eventually("it goes on to renew its Lease", || match lease() {
        same if same == last => Err(same.to_string()),
        _ => Ok(()),
    });
    apply(&placed("after", "greeter:1", "node-2"));
    assert!(!cluster.wctl(&["logs", "before"]).ok().is_empty());
    assert_eq!(container_status(&cluster.get(&["pod", "before"]))["restartCount"], 0);
    assert_eq!(ready(), since, "it was ready all the while");
    // Two certificates, renewed at seven tenths of their life at the earliest.
    let most =
        2 * (2 + over.elapsed().unwrap_or_default().as_secs_f64() as usize / 7 + LIFE.as_secs() as usize / 7);
    let asked = requests(&cluster, "system:node:node-2").len();
    assert!(asked <= most, "{asked} requests, {most} would do");
}
