//! What containers of a pod do for each other and are asked: order, probes, hooks, deadlines, credentials.

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, PostParams};
use serde_json::json;

use crate::harness::{Harness, condition, eventually, waiting};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_gates_what_follows_and_does_not_hold_a_pod_that_is_done() {
    let (harness, agent) = Harness::ready().await;
    harness.runtime.world().commands.insert("is up".into(), Some(3));
    let probe = json!({"exec": {"command": ["is", "up"]}, "periodSeconds": 1, "failureThreshold": 30, "timeoutSeconds": 2});
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "side", "image": "app:1", "restartPolicy": "Always", "startupProbe": probe}],
        "containers": [{"name": "main", "image": "app:1"}],
    });
    harness.create("job", spec).await;
    eventually("the sidecar is asked with its timeout", async || {
        let side = harness.runtime.running("side").ok_or("it does not run")?;
        let calls = harness.runtime.world().calls.clone();
        let want = format!("exec_sync {side} 2 is up");
        calls.contains(&want).then_some(()).ok_or(format!("{calls:?}"))
    })
    .await;
    let status = harness.until("job", "it waits", |status| waiting(status) == "PodInitializing").await;
    assert_eq!((condition(&status, "Initialized"), harness.runtime.running("main")), ("False", None));
    harness.runtime.world().commands.insert("is up".into(), Some(0));
    harness.until_ready("job").await;
    harness.runtime.exit("main", 0);
    let status = harness.until("job", "it succeeded", |status| status["phase"] == "Succeeded").await;
    assert!(status["initContainerStatuses"][0]["state"]["terminated"].is_object(), "{status}");
    assert_eq!(harness.runtime.running("side"), None, "the sidecar ended with it");
    assert_eq!(harness.runtime.calls("create_container"), 2);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_fails_or_takes_too_long_makes_a_container_unready_or_restarts_it() {
    let (harness, agent) = Harness::ready().await;
    let exec =
        |command: &str| json!({"exec": {"command": [command]}, "periodSeconds": 1, "failureThreshold": 1});
    let main = json!({"name": "main", "image": "app:1", "readinessProbe": exec("ready"), "livenessProbe": exec("alive")});
    harness.create("app", json!({"terminationGracePeriodSeconds": 3, "containers": [main]})).await;
    harness.until_ready("app").await;
    harness.runtime.world().commands.insert("ready".into(), Some(1));
    harness.until("app", "not ready", |status| condition(status, "Ready") == "False").await;
    harness.runtime.world().commands.insert("ready".into(), Some(0));
    harness.until_ready("app").await;
    harness.runtime.world().commands.insert("alive".into(), None);
    harness.until("app", "restarted", |status| status["containerStatuses"][0]["restartCount"] == 1).await;
    for words in [
        "Readiness probe failed: ready said 1",
        "Liveness probe failed: command timed out: \"alive\" timed out after 1s",
    ] {
        harness.until_told("app", "Unhealthy", words).await;
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_run_after_the_start_and_before_the_end() {
    let (harness, agent) = Harness::ready().await;
    harness.runtime.world().commands.insert("greet".into(), Some(1));
    let hooks = json!({"postStart": {"exec": {"command": ["greet"]}}, "preStop": {"exec": {"command": ["say", "bye"]}}});
    harness
        .create("app", json!({"containers": [{"name": "main", "image": "app:1", "lifecycle": hooks}]}))
        .await;
    let status =
        harness.until("app", "restarted", |status| status["containerStatuses"][0]["restartCount"] == 1).await;
    assert_ne!(condition(&status, "Ready"), "True", "who has not begun well is not ready");
    harness.until_told("app", "FailedPostStartHook", "PostStartHook failed").await;
    harness.runtime.world().commands.insert("greet".into(), Some(0));
    harness.until_ready("app").await;
    let main = harness.runtime.running("main").unwrap();
    harness.runtime.world().commands.insert("say bye".into(), Some(9));
    harness.delete("app").await;
    harness.until_gone("app").await;
    let calls = harness.runtime.world().calls.clone();
    let at = |start: String| calls.iter().position(|call| call.starts_with(&start)).ok_or(start);
    let (hook, stop) = (at(format!("exec_sync {main} 0 say bye")), at(format!("stop_container {main}")));
    assert!(hook.is_ok() && hook < stop, "{hook:?} {stop:?} {calls:?}");
    harness.until_told("app", "FailedPreStopHook", "PreStopHook failed").await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_past_its_deadline_fails_and_says_so() {
    let (harness, agent) = Harness::ready().await;
    let spec = json!({"activeDeadlineSeconds": 2, "terminationGracePeriodSeconds": 7, "containers": [{"name": "main", "image": "app:1"}]});
    harness.create("app", spec).await;
    harness.until_ready("app").await;
    let status = harness.until("app", "it failed", |status| status["phase"] == "Failed").await;
    assert_eq!(
        (&status["reason"], &status["message"]),
        (&json!("DeadlineExceeded"), &json!("Pod was active on the node longer than the specified deadline"))
    );
    let stop = harness.runtime.world().calls.iter().find(|call| call.starts_with("stop_container")).cloned();
    assert!(stop.as_ref().is_some_and(|stop| stop.ends_with(" 7")), "it had its grace: {stop:?}");
    agent.stop().await;
    let agent = harness.agent().await;
    harness.create_simple("another").await;
    harness.until_ready("another").await;
    assert_eq!(harness.runtime.calls("create_container"), 2, "it stays over");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pull_secrets_are_tried_in_turn_and_serve_nobody_else() {
    let (harness, agent) = Harness::ready().await;
    harness.runtime.world().passwords.insert("reg.example/team/app:1".into(), "right".into());
    let secrets: Api<Secret> = Api::default_namespaced(harness.client.clone());
    let auths = json!({"auths": {
        "reg.example/team": {"username": "old", "password": "wrong"}, "reg.example": {"username": "new", "password": "right"},
        "else.example": {"username": "else", "password": "right"},
    }});
    let secret = json!({"metadata": {"name": "pull"}, "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": auths.to_string()}});
    secrets.create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();
    let main = json!({"name": "main", "image": "reg.example/team/app:1", "imagePullPolicy": "Always"});
    harness.create("bare", json!({"containers": [main]})).await;
    harness.until("bare", "it is refused", |status| waiting(status) == "ErrImagePull").await;
    harness
        .create(
            "app",
            json!({"imagePullSecrets": [{"name": "gone"}, {"name": "pull"}], "containers": [main]}),
        )
        .await;
    harness.until_ready("app").await;
    let calls = harness.runtime.world().calls.clone();
    let pulls: Vec<_> =
        calls.iter().filter_map(|call| call.strip_prefix("pull_image reg.example/team/app:1 ")).collect();
    assert_eq!(pulls, ["", "old", "new"]);
    let words =
        "Unable to retrieve some image pull secrets (gone); attempting to pull the image may not succeed.";
    harness.until_told("app", "FailedToRetrieveImagePullSecret", words).await;
    agent.stop().await;
}
