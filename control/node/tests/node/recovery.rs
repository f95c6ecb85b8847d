//! The agent, the runtime and sandboxes come and go; what runs goes on and nothing runs twice.

use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use serde_json::json;

use crate::harness::{Harness, NODE, condition, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_agent_adopts_what_runs_and_removes_what_nobody_knows() {
    let (harness, agent) = Harness::ready().await;
    harness.create_simple("stays").await;
    let gone = harness.create_simple("goes").await;
    harness.until_ready("stays").await;
    harness.until_ready("goes").await;
    agent.stop().await;
    assert_eq!(harness.runtime.calls("stop_container"), 0, "stopping the agent touches no container");
    harness.pods().delete("goes", &kube::api::DeleteParams::default().grace_period(0)).await.unwrap();
    harness.until_gone("goes").await;

    let agent = harness.agent().await;
    eventually("the stranger is removed", async || {
        let left = harness.runtime.world().sandboxes.len();
        (left == 1 && !harness.root().join("pods").join(&gone).exists()).then_some(()).ok_or(left.to_string())
    })
    .await;
    // An exit after the adoption is noticed and counted.
    let first = harness.runtime.running("main").unwrap();
    harness.runtime.exit("main", 1);
    let status = harness
        .until("stays", "restarted", |status| {
            status["containerStatuses"][0]["restartCount"] == 1 && condition(status, "Ready") == "True"
        })
        .await;
    assert!(
        status["containerStatuses"][0]["lastState"]["terminated"]["containerID"]
            .as_str()
            .unwrap()
            .ends_with(&first)
    );
    assert_eq!((harness.runtime.calls("run_pod_sandbox"), harness.runtime.calls("create_container")), (2, 3));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_goes_away_makes_the_node_unready_and_nothing_is_lost() {
    let (harness, mut agent) = Harness::ready().await;
    harness.create_simple("app").await;
    harness.create_simple("calm").await;
    harness.until_ready("app").await;
    harness.until_ready("calm").await;
    harness.serving.cancel();
    let nodes: Api<Node> = Api::all(harness.client.clone());
    let ready = async || {
        let node = nodes.get(NODE).await.unwrap();
        node.status
            .unwrap()
            .conditions
            .unwrap()
            .into_iter()
            .find(|condition| condition.type_ == "Ready")
            .unwrap()
            .status
    };
    eventually("the node is not ready", async || {
        if ready().await == "False" { Ok(()) } else { Err("ready".to_owned()) }
    })
    .await;
    // It ends while nobody listens.
    harness.runtime.exit("main", 9);
    let _serving = harness.runtime.serve();
    eventually("the node is ready again", async || {
        if ready().await == "True" { Ok(()) } else { Err("not ready".to_owned()) }
    })
    .await;
    agent.handle.ready().await;
    eventually("the one that ended was restarted, the other was not", async || {
        let mut counts = Vec::new();
        for name in ["app", "calm"] {
            let pod = harness.pods().get(name).await.unwrap();
            counts.push(pod.status.unwrap().container_statuses.unwrap()[0].restart_count);
        }
        counts.sort_unstable();
        (counts == [0, 1]).then_some(()).ok_or(format!("{counts:?}"))
    })
    .await;
    assert_eq!(harness.runtime.calls("run_pod_sandbox"), 2);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_sandbox_is_made_anew_and_its_containers_count_a_restart() {
    let (harness, agent) = Harness::ready().await;
    harness.create_simple("app").await;
    harness.until_ready("app").await;
    let sandbox = harness.runtime.world().sandboxes.keys().next().unwrap().clone();
    harness.runtime.kill_sandbox(&sandbox);
    harness
        .until("app", "it runs again", |status| {
            status["containerStatuses"][0]["restartCount"] == 1 && condition(status, "Ready") == "True"
        })
        .await;
    let left: Vec<_> = harness.runtime.world().sandboxes.keys().cloned().collect();
    assert!(left.len() == 1 && left[0] != sandbox, "the dead one is removed: {left:?}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_comes_before_its_runtime_waits_for_it() {
    let harness = Harness::new().await;
    harness.serving.cancel();
    eventually("the socket is gone", async || {
        if harness.runtime.socket.exists() { Err(String::new()) } else { Ok(()) }
    })
    .await;
    let mut agent = harness.agent().await;
    harness.give_range().await;
    harness.create("early", json!({"containers": [{"name": "main", "image": "app:1"}]})).await;
    let _serving = harness.runtime.serve();
    agent.handle.ready().await;
    harness.until_ready("early").await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_fails_is_shown_and_tried_again() {
    let (harness, agent) = Harness::ready().await;
    harness.runtime.world().start_errors.push_back("exec: \"nope\": not found".into());
    harness.create_simple("app").await;
    let status = harness
        .until("app", "restarted", |status| {
            status["containerStatuses"][0]["restartCount"] == 1 && condition(status, "Ready") == "True"
        })
        .await;
    let last = &status["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!(
        (last["exitCode"].as_i64(), last["reason"].as_str(), last["message"].as_str()),
        (Some(128), Some("StartError"), Some("exec: \"nope\": not found"))
    );
    agent.stop().await;
}
