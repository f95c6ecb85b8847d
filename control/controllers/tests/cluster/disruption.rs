//! PodDisruptionBudgets: their numbers follow the pods.

use serde_json::{Value, json};
use wharf_kit::api::{Ignored, PatchKind};
use wharf_kit::view::Key;

use crate::harness::*;
use crate::{LONG, patch};

fn budget(name: &str, app: &str, spec: Value) -> Value {
    let mut budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": app}}}});
    budget["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    budget
}

fn numbers(expected: i32, healthy: i32, desired: i32, allowed: i32) -> Value {
    json!({"expectedPods": expected, "currentHealthy": healthy, "desiredHealthy": desired,
        "disruptionsAllowed": allowed})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_follows_its_pods_and_forgets_those_that_left() {
    let world = World::start(LONG).await;
    world.add_node("n1", "8").await;
    let share = budget("share", "web", json!({"maxUnavailable": "34%"}));
    world.admin.create::<Ignored>(BUDGETS, "default", &share).await.unwrap();
    world.status(BUDGETS, "share", numbers(0, 0, 0, 0)).await;
    world.admin.create::<Ignored>(DEPLOYMENTS, "default", &deployment("web", 3, "v1")).await.unwrap();
    let allowed = world.status(BUDGETS, "share", numbers(3, 3, 1, 2)).await;
    assert_eq!(allowed["status"]["conditions"][0]["reason"], "SufficientPods");
    let least = budget("least", "web", json!({"minAvailable": 3}));
    world.admin.create::<Ignored>(BUDGETS, "default", &least).await.unwrap();
    let refused = world.status(BUDGETS, "least", numbers(3, 3, 3, 0)).await;
    assert_eq!(refused["status"]["conditions"][0]["reason"], "InsufficientPods");

    // What an eviction writes: the pod counts as gone before it is seen going.
    let pod = world.pods_of("web").await.remove(0);
    let name = pod["metadata"]["name"].as_str().unwrap();
    let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let leaves = json!({"status": {"disruptionsAllowed": 1, "disruptedPods": {name: time}}});
    let key = Key::new("default", "share");
    world.admin.patch::<Ignored>(BUDGETS, &key, "status", PatchKind::Merge, &leaves).await.unwrap();
    let leaving = world.status(BUDGETS, "share", numbers(3, 2, 1, 1)).await;
    assert_eq!(leaving["status"]["disruptedPods"], json!({name: time}));
    let pod = Key::new("default", name);
    world.admin.delete::<Ignored>(PODS, &pod, &wharf_kit::api::Delete::default()).await.unwrap();
    let back = world.status(BUDGETS, "share", numbers(3, 3, 1, 2)).await;
    assert!(back["status"]["disruptedPods"].is_null(), "{back}");

    patch(&world, DEPLOYMENTS, "default", "web", json!({"spec": {"replicas": 1}})).await;
    world.status(BUDGETS, "share", numbers(1, 1, 0, 1)).await;
    world.status(BUDGETS, "least", numbers(1, 1, 3, 0)).await;

    // A Job cannot be scaled, so a share of its pods means nothing.
    let pods = json!({"metadata": {"labels": {"app": "sum"}}, "spec": {"restartPolicy": "Never",
        "containers": [{"name": "main", "image": "i"}]}});
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "sum", "namespace": "default"},
        "spec": {"template": pods}});
    world.admin.create::<Ignored>(JOBS, "default", &job).await.unwrap();
    let odd = budget("odd", "sum", json!({"maxUnavailable": 1}));
    world.admin.create::<Ignored>(BUDGETS, "default", &odd).await.unwrap();
    world
        .wait("a failure", || async {
            let odd = world.get(BUDGETS, "default", "odd").await.ok_or("absent")?;
            let why = &odd["status"]["conditions"][0];
            let told = why["reason"] == "SyncFailed"
                && why["message"] == "jobs.batch does not implement the scale subresource";
            if told { Ok(()) } else { Err(odd.to_string()) }
        })
        .await;
    world.quiet().await;
    world.end().await;
}
