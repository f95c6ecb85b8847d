//! A stock kubelet over `wharf shim`, alone with static pods, as it would have containerd.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use wharf_tests::{CriServer, LocalRegistry, eventually, isolate};

/// Where it answers in clear, without asking who wants to know.
const KUBELET: &str = "127.0.0.1:10255";
const PODS: &str = "10.88.0.0/16";

pub fn run(kubelet: &Path) -> anyhow::Result<ExitCode> {
    isolate()?;
    // A kubelet wants a node with an address and a way out.
    for words in [
        "link add node0 type bridge",
        "addr add 10.64.0.11/24 dev node0",
        "link set node0 up",
        "route add default via 10.64.0.1",
    ] {
        let done = Command::new("ip").args(words.split(' ')).status().context("ip")?;
        ensure!(done.success(), "ip {words}");
    }
    let dir = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let registry = runtime.block_on(LocalRegistry::of_both_sorts(&dir.path().join("registry")))?;
    // The kubelet tells the range of pods.
    let shim = CriServer::shim_with(dir.path(), &registry.url, &["--network", "bridge"])?;
    let kubelet = Kubelet::start(kubelet, dir.path(), &shim)?;
    kubelet.tour()?;
    drop(kubelet);
    drop(shim);
    println!("the tour is done");
    Ok(ExitCode::SUCCESS)
}

struct Kubelet {
    process: Child,
    manifests: PathBuf,
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Kubelet {
    fn start(program: &Path, dir: &Path, shim: &CriServer) -> anyhow::Result<Self> {
        let (manifests, root, config) =
            (dir.join("manifests"), dir.join("kubelet"), dir.join("kubelet.json"));
        fs::create_dir(&manifests)?;
        let settings = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "staticPodPath": manifests, "podCIDR": PODS, "address": "127.0.0.1", "readOnlyPort": 10255,
            "containerRuntimeEndpoint": format!("unix://{}", shim.socket.display()),
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
            // Without groups of the kubelet's own, which it would leave; then it panics over a pod with limits.
            "cgroupDriver": "cgroupfs", "cgroupsPerQOS": false, "enforceNodeAllocatable": [], "failCgroupV1": false,
            "failSwapOn": false, "resolvConf": "", "fileCheckFrequency": "1s", "syncFrequency": "5s",
            "podLogsDir": dir.join("pods"),
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
        });
        fs::write(&config, settings.to_string())?;
        let log = File::create(dir.join("kubelet.log"))?;
        let mut command = Command::new(program);
        command
            .arg("--config")
            .arg(&config)
            .arg("--root-dir")
            .arg(&root)
            .arg("--cert-dir")
            .arg(dir.join("pki"));
        command.args(["--hostname-override", "node", "--node-ip", "10.64.0.11"]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = command.spawn().with_context(|| program.display().to_string())?;
        let kubelet = Self { process, manifests };
        eventually("the kubelet answers", || get(KUBELET, "/healthz").map(drop));
        Ok(kubelet)
    }

    fn put(&self, name: &str, spec: &Value) -> anyhow::Result<()> {
        let metadata = json!({"name": name, "namespace": "default", "labels": {"app": name}});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
        Ok(fs::write(self.manifests.join(format!("{name}.json")), pod.to_string())?)
    }

    /// Waits for a pod whose status is as wanted, and gives that.
    fn until(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let status = eventually(&format!("{name}: {what}"), || {
            let pods: Value =
                serde_json::from_str(&get(KUBELET, "/pods")?).map_err(|error| error.to_string())?;
            let name = format!("{name}-node");
            let mut all = pods["items"].as_array().into_iter().flatten();
            let pod = all.find(|pod| pod["metadata"]["name"] == *name).ok_or("it is not there")?;
            if wanted(&pod["status"]) { Ok(pod["status"].clone()) } else { Err(pod["status"].to_string()) }
        });
        println!("  {name}: {what}");
        status
    }

    fn tour(&self) -> anyhow::Result<()> {
        let ready = |status: &Value| {
            let mut conditions = status["conditions"].as_array().into_iter().flatten();
            conditions.any(|one| one["type"] == "Ready" && one["status"] == "True")
        };
        let serve = "echo served by $POD > /data/index.html; exec busybox httpd -f -p 8080 -h /data";
        self.put("web", &json!({
            "initContainers": [{"name": "first", "image": "tests.test/shell", "command": ["sh", "-c", "echo first > /data/first"],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            "containers": [{"name": "main", "image": "tests.test/shell", "command": ["sh", "-c", serve],
                "env": [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                "securityContext": {"allowPrivilegeEscalation": false, "seccompProfile": {"type": "RuntimeDefault"}},
                "ports": [{"containerPort": 8080, "hostPort": 18080}],
                "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
                "livenessProbe": {"exec": {"command": ["sh", "-c", "read word < /data/first; test $word = first"]}, "periodSeconds": 1}}],
            "volumes": [{"name": "data", "emptyDir": {}}],
        }))?;
        let status = self.until("web", "is ready, with an init container, probes and a volume", ready);
        let ip = status["podIP"].as_str().context("an address")?;
        for at in [format!("{ip}:8080"), "127.0.0.1:18080".to_owned()] {
            ensure!(
                get(&at, "/").is_ok_and(|body| body.contains("served by web-node")),
                "{at} does not answer"
            );
        }
        println!("  web: answers at its address and its port of the node");

        self.put(
            "wasm",
            &json!({"containers": [{"name": "main", "image": "tests.test/guest",
            "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}}]}),
        )?;
        let status = self.until("wasm", "a component is ready", ready);
        let ip = status["podIP"].as_str().context("an address")?;
        ensure!(
            get(&format!("{ip}:8080"), "/").is_ok_and(|body| body.contains("hello")),
            "it does not answer"
        );

        self.put(
            "ends",
            &json!({"restartPolicy": "OnFailure", "containers": [{"name": "main", "image": "tests.test/shell",
            "command": ["sh", "-c", "echo once more; exit 3"]}]}),
        )?;
        self.until("ends", "is restarted after its exit code", |status| {
            let container = &status["containerStatuses"][0];
            container["restartCount"].as_i64() >= Some(1)
                && container["lastState"]["terminated"]["exitCode"] == 3
        });

        let summary = eventually("the kubelet has a summary", || {
            let summary: Value =
                serde_json::from_str(&get(KUBELET, "/stats/summary")?).map_err(|error| error.to_string())?;
            let mut pods = summary["pods"].as_array().into_iter().flatten();
            let used = |pod: &&Value| {
                pod["podRef"]["name"] == "web-node"
                    && pod["containers"][0]["memory"]["workingSetBytes"].as_i64() > Some(0)
            };
            if pods.any(|pod| used(&pod)) { Ok(summary) } else { Err(summary.to_string()) }
        });
        ensure!(summary["node"].is_object(), "no node in {summary}");
        println!("  the summary of usage has it");

        for name in ["web", "wasm", "ends"] {
            fs::remove_file(self.manifests.join(format!("{name}.json")))?;
        }
        eventually("every pod is gone", || {
            let pods: Value =
                serde_json::from_str(&get(KUBELET, "/pods")?).map_err(|error| error.to_string())?;
            if pods["items"].as_array().is_none_or(Vec::is_empty) { Ok(()) } else { Err(pods.to_string()) }
        });
        println!("  pods go with their manifests");
        Ok(())
    }
}

/// The body of an answer of code 200.
fn get(at: &str, path: &str) -> Result<String, String> {
    match wharf_tests::get(at.parse().map_err(|error| format!("{at}: {error}"))?, path) {
        Ok((200, body)) => Ok(body),
        other => Err(format!("{at}{path}: {other:?}")),
    }
}
