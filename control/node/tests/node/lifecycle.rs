//! Pods from their creation to their end.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::harness::{Harness, NODE, condition, eventually, waiting};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_registers_becomes_ready_with_its_range_and_renews_its_lease() {
    let harness = Harness::new().await;
    let begun = Instant::now();
    let mut agent = harness.agent().await;
    let nodes: Api<Node> = Api::all(harness.client.clone());
    let ready = |node: &Node| {
        let conditions = node.status.as_ref()?.conditions.as_ref()?;
        Some(conditions.iter().find(|condition| condition.type_ == "Ready")?.status.clone())
    };
    eventually("the node is there and not ready", async || {
        let node = nodes.get_opt(NODE).await.unwrap().ok_or("absent")?;
        (ready(&node).as_deref() == Some("False")).then_some(()).ok_or(format!("{node:?}"))
    })
    .await;
    harness.give_range().await;
    agent.handle.ready().await;
    assert!(begun.elapsed() < Duration::from_secs(1), "took {:?}", begun.elapsed());
    let node = nodes.get(NODE).await.unwrap();
    assert_eq!(ready(&node).as_deref(), Some("True"));
    assert_eq!(harness.runtime.world().pod_cidr, "10.128.0.0/17");
    let labels = node.metadata.labels.as_ref().unwrap();
    assert_eq!((labels["kubernetes.io/hostname"].as_str(), labels["zone"].as_str()), (NODE, "a"));
    let status = node.status.unwrap();
    assert_eq!(status.capacity.as_ref().unwrap()["pods"].0, "10k");
    assert_eq!(
        status.daemon_endpoints.unwrap().kubelet_endpoint.unwrap().port,
        i32::from(agent.handle.server().port())
    );
    assert_eq!(status.node_info.as_ref().unwrap().container_runtime_version, "script://1");
    assert_eq!(status.runtime_handlers.unwrap().len(), 2);
    let leases: Api<Lease> = Api::namespaced(harness.client.clone(), "kube-node-lease");
    let lease = eventually("the lease is there", async || {
        leases.get_opt(NODE).await.unwrap().ok_or("absent".to_owned())
    })
    .await;
    assert_eq!(lease.spec.unwrap().holder_identity.as_deref(), Some(NODE));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_ready_soon_with_few_writes_and_leaves_nothing() {
    let (harness, agent) = Harness::ready().await;
    let begun = Instant::now();
    let uid = harness.create_simple("web").await;
    let status = harness.until_ready("web").await;
    eprintln!("create to ready: {:?}", begun.elapsed());
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["podIP"], "127.0.0.1");
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
    assert!(
        status["containerStatuses"][0]["containerID"].as_str().unwrap().starts_with("script://container-")
    );
    assert_eq!(status["observedGeneration"], 1);
    let conditions = status["conditions"].as_array().unwrap();
    assert!(conditions.iter().all(|condition| condition["status"] == "True"), "{conditions:?}");
    assert_eq!(
        harness.asked("PATCH /api/v1/namespaces/default/pods/web/status"),
        1,
        "it was told in one write"
    );

    assert!(harness.logs().join(format!("default_web_{uid}/main/0.log")).exists());
    harness.delete("web").await;
    harness.until_gone("web").await;
    assert_eq!(harness.runtime.calls("stop_container"), 1);
    assert!(harness.runtime.world().sandboxes.is_empty());
    assert!(!harness.root().join("pods").join(&uid).exists());
    assert!(!harness.logs().join(format!("default_web_{uid}")).exists());
    let reasons = harness.reasons("web").await;
    for reason in ["Pulled", "Created", "Started"] {
        assert!(reasons.iter().any(|have| have == reason), "{reason} in {reasons:?}");
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_handler_follows_the_images_and_the_runtime_class() {
    let (harness, agent) = Harness::ready().await;
    let guest = json!({"name": "g", "image": "guest.wasm:1", "ports": [{"containerPort": 8081}]});
    let app = json!({"name": "a", "image": "app:1"});
    harness.create("wasm", json!({"containers": [guest]})).await;
    harness.create("both", json!({"containers": [guest, app]})).await;
    harness.create("named", json!({"containers": [app], "runtimeClassName": "oci"})).await;
    for (name, handler) in [("wasm", "wasm"), ("both", ""), ("named", "oci")] {
        harness.until_ready(name).await;
        let world = harness.runtime.world();
        let sandbox = world
            .sandboxes
            .values()
            .find(|sandbox| sandbox.config.metadata.as_ref().unwrap().name == name)
            .unwrap();
        assert_eq!(sandbox.handler, handler, "{name}");
        if name != "named" {
            assert_eq!(sandbox.config.annotations["runtime.wharf.dev/port.g"], "8081");
        }
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn config_maps_and_secrets_reach_env_and_files_and_stay_current() {
    let (harness, agent) = Harness::ready().await;
    let spec = json!({
        "containers": [{
            "name": "main", "image": "app:1",
            "env": [{"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "greeting"}}}, {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "volumeMounts": [
                {"name": "settings", "mountPath": "/settings"}, {"name": "keys", "mountPath": "/keys"},
                {"name": "scratch", "mountPath": "/scratch"}, {"name": "scratch", "mountPath": "/part", "subPath": "a/b"}
            ],
        }],
        "volumes": [
            {"name": "settings", "configMap": {"name": "settings", "items": [{"key": "greeting", "path": "deep/greeting.txt", "mode": 0o400}]}},
            {"name": "keys", "secret": {"secretName": "keys"}},
            {"name": "scratch", "emptyDir": {}},
        ],
    });
    let uid = harness.create("app", spec).await;
    harness
        .until("app", "it waits for what is missing", |status| waiting(status) == "ContainerCreating")
        .await;
    eventually("an event says so", async || {
        harness.reasons("app").await.contains(&"FailedMount".to_owned()).then_some(()).ok_or(String::new())
    })
    .await;
    let maps: Api<ConfigMap> = Api::default_namespaced(harness.client.clone());
    let secrets: Api<Secret> = Api::default_namespaced(harness.client.clone());
    let map = json!({"metadata": {"name": "settings"}, "data": {"greeting": "hello"}});
    maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await.unwrap();
    let secret = json!({"metadata": {"name": "keys"}, "stringData": {"token": "hush"}});
    secrets.create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();
    harness.until_ready("app").await;

    let config = harness.runtime.config("main");
    let env: Vec<_> = config.envs.iter().map(|pair| (pair.key.as_str(), pair.value.as_str())).collect();
    let api = ["HOST", "PORT", "PORT_HTTPS"].map(|name| format!("KUBERNETES_SERVICE_{name}"));
    let api = api.iter().map(String::as_str).zip(["127.0.0.1", "6443", "6443"]);
    assert!(env.iter().copied().eq(api.chain([("GREETING", "hello"), ("IP", "127.0.0.1")])), "{env:?}");
    let host = |path: &str| {
        config
            .mounts
            .iter()
            .find(|mount| mount.container_path == path)
            .map(|mount| (mount.host_path.clone(), mount.readonly))
            .unwrap()
    };
    let (settings, readonly) = host("/settings");
    assert!(readonly, "files of a ConfigMap are never written by the container");
    let greeting = std::path::Path::new(&settings).join("deep/greeting.txt");
    assert_eq!(std::fs::read_to_string(&greeting).unwrap(), "hello");
    assert_eq!(std::fs::metadata(&greeting).unwrap().permissions().mode() & 0o777, 0o400);
    assert_eq!(
        std::fs::read_to_string(std::path::Path::new(&host("/keys").0).join("token")).unwrap(),
        "hush"
    );
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        mounts.lines().any(|line| line.contains(&host("/keys").0) && line.contains(" tmpfs ")),
        "secrets are kept in memory"
    );
    std::fs::write(std::path::Path::new(&host("/scratch").0).join("a/b/file"), "there").unwrap();
    assert_eq!(
        std::fs::read_to_string(std::path::Path::new(&host("/part").0).join("file")).unwrap(),
        "there"
    );
    assert!(std::fs::read_to_string(host("/etc/hosts").0).unwrap().contains("127.0.0.1\tapp\n"));

    let patch = json!({"data": {"greeting": "good day"}});
    maps.patch("settings", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    eventually("the file follows", async || {
        let text = std::fs::read_to_string(&greeting).unwrap();
        (text == "good day").then_some(()).ok_or(text)
    })
    .await;
    harness.delete("app").await;
    harness.until_gone("app").await;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&uid), "nothing of the pod stays mounted");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_env_without_its_object_is_a_config_error_until_it_appears() {
    let (harness, agent) = Harness::ready().await;
    let env = json!([{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "k"}}}]);
    harness.create("app", json!({"containers": [{"name": "main", "image": "app:1", "env": env}]})).await;
    let status = harness
        .until("app", "a config error", |status| waiting(status) == "CreateContainerConfigError")
        .await;
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["message"], "configmap \"late\" not found");
    let maps: Api<ConfigMap> = Api::default_namespaced(harness.client.clone());
    for (name, data) in [("other", json!({})), ("late", json!({"k": "v"}))] {
        let map = json!({"metadata": {"name": name}, "data": data});
        maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await.unwrap();
    }
    harness.until_ready("app").await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_pull_tells_the_registrys_words_and_backs_off() {
    let (harness, agent) = Harness::ready().await;
    harness.runtime.world().pull_errors.insert("gone:1".into(), "manifest unknown: gone:1".into());
    harness.create("app", json!({"containers": [{"name": "main", "image": "gone:1"}]})).await;
    let status = harness.until("app", "the error is shown", |status| waiting(status) == "ErrImagePull").await;
    assert!(
        status["containerStatuses"][0]["state"]["waiting"]["message"]
            .as_str()
            .unwrap()
            .contains("manifest unknown: gone:1")
    );
    let status =
        harness.until("app", "the back-off is shown", |status| waiting(status) == "ImagePullBackOff").await;
    assert!(
        status["containerStatuses"][0]["state"]["waiting"]["message"]
            .as_str()
            .unwrap()
            .contains("manifest unknown: gone:1")
    );
    assert_eq!((status["phase"].as_str(), harness.runtime.calls("pull_image")), (Some("Pending"), 1));
    harness.delete("app").await;
    harness.until_gone("app").await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_is_restarted_at_once_and_then_backed_off() {
    let (harness, agent) = Harness::ready().await;
    harness.create_simple("app").await;
    harness.until_ready("app").await;
    harness.runtime.exit("main", 3);
    let status = harness
        .until("app", "restarted", |status| {
            status["containerStatuses"][0]["restartCount"] == 1 && condition(status, "Ready") == "True"
        })
        .await;
    assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 3);
    harness.runtime.exit("main", 4);
    let status = harness.until("app", "backed off", |status| waiting(status) == "CrashLoopBackOff").await;
    let message = status["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap().to_owned();
    assert!(
        message.starts_with("back-off 10s restarting failed container=main pod=app_default("),
        "{message}"
    );
    assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 4);
    assert_eq!((status["phase"].as_str(), harness.runtime.calls("create_container")), (Some("Running"), 2));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_are_done_stay_done() {
    let (harness, agent) = Harness::ready().await;
    let spec = |policy: &str| json!({"restartPolicy": policy, "initContainers": [{"name": "first", "image": "app:2"}], "containers": [{"name": "main", "image": "app:1"}]});
    for (name, code, phase) in [("good", 0, "Succeeded"), ("bad", 7, "Failed")] {
        harness.create(name, spec("Never")).await;
        eventually("init runs", async || harness.runtime.running("first").map(|_| ()).ok_or(String::new()))
            .await;
        assert_eq!(harness.runtime.running("main"), None, "the init container comes first");
        harness.runtime.exit("first", 0);
        harness.until_ready(name).await;
        harness.runtime.exit("main", code);
        let status = harness.until(name, "it is over", |status| status["phase"] == phase).await;
        assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], code);
        assert_eq!(condition(&status, "Ready"), "False");
    }
    eventually("their sandboxes are stopped", async || {
        let ready = harness.runtime.world().sandboxes.values().filter(|sandbox| sandbox.ready).count();
        (ready == 0).then_some(()).ok_or(ready.to_string())
    })
    .await;
    assert_eq!(harness.runtime.world().containers.len(), 4, "their records stay");
    agent.stop().await;

    let agent = harness.agent().await;
    harness.create_simple("another").await;
    harness.until_ready("another").await;
    assert_eq!(
        harness.runtime.calls("run_pod_sandbox"),
        3,
        "a restarted agent starts nothing of a finished pod"
    );
    for name in ["good", "bad"] {
        harness.delete(name).await;
        harness.until_gone(name).await;
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_follows_its_probe_and_liveness_restarts() {
    let (harness, agent) = Harness::ready().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let probe = json!({"tcpSocket": {"port": port}, "periodSeconds": 1, "failureThreshold": 1});
    let ready = json!({"name": "main", "image": "app:1", "readinessProbe": probe, "livenessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1, "failureThreshold": 3}});
    harness.create("app", json!({"containers": [ready]})).await;
    harness.until_ready("app").await;
    drop(listener);
    harness.until("app", "not ready any more", |status| condition(status, "Ready") == "False").await;
    harness.until("app", "restarted", |status| status["containerStatuses"][0]["restartCount"] == 1).await;
    let _listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    harness.until_ready("app").await;
    let reasons = harness.reasons("app").await;
    assert!(
        reasons.contains(&"Unhealthy".to_owned()) && reasons.contains(&"Killing".to_owned()),
        "{reasons:?}"
    );
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_node_asks_nothing_but_its_lease() {
    let (harness, agent) = Harness::ready().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(harness.client.clone());
    let map = json!({"metadata": {"name": "settings"}, "data": {"k": "v"}});
    maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await.unwrap();
    for name in ["a", "b"] {
        let volume = json!({"name": "settings", "configMap": {"name": "settings"}});
        harness
            .create(name, json!({"containers": [{"name": "main", "image": "app:1"}], "volumes": [volume]}))
            .await;
        harness.until_ready(name).await;
    }
    assert_eq!(
        harness.asked("GET /api/v1/namespaces/default/configmaps"),
        2,
        "one list and one watch for both pods"
    );
    eventually("all events are sent", async || {
        let reasons = harness.reasons("b").await;
        reasons.contains(&"Started".to_owned()).then_some(()).ok_or(format!("{reasons:?}"))
    })
    .await;
    let before = harness.requests.lock().unwrap().len();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = harness.requests.lock().unwrap()[before..].to_vec();
    assert!(after.iter().all(|request| request.contains("/leases/")) && after.len() <= 1, "{after:?}");
    agent.stop().await;
}
