//! ResourceQuotas: what is used follows what is there.

use serde_json::{Value, json};
use wharf_kit::api::{Delete, Ignored, Kind};
use wharf_kit::view::Key;

use crate::harness::*;
use crate::{LONG, patch};

const QUOTAS: Kind = Kind::core("ResourceQuota", "resourcequotas");

async fn counted(world: &World, name: &str, status: Value) {
    let look = || async {
        let quota = world.get(QUOTAS, "default", name).await.ok_or("absent")?;
        if quota["status"] == status { Ok(()) } else { Err(format!("{} is not {status}", quota["status"])) }
    };
    world.wait("counted", look).await;
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [
        {"name": "c", "image": "i", "resources": {"requests": {"cpu": "200m"}}}]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_or_ends_is_given_back() {
    let world = World::start(LONG).await;
    world
        .wait("the account", || async {
            world.get(ACCOUNTS, "default", "default").await.ok_or("absent".to_owned())
        })
        .await;
    world.admin.create::<Ignored>(PODS, "default", &pod("before")).await.unwrap();
    let quota = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
    let hard = json!({"pods": "3", "requests.cpu": "1", "count/pods": "9", "count/deployments.apps": "1"});
    world.admin.create::<Ignored>(QUOTAS, "default", &quota("q", json!({"hard": hard}))).await.unwrap();
    let scoped = json!({"hard": {"pods": "5"}, "scopes": ["BestEffort"]});
    world.admin.create::<Ignored>(QUOTAS, "default", &quota("scoped", scoped)).await.unwrap();
    let status = |hard: &Value, pods: &str, cpu: &str, all: &str| {
        json!({"hard": hard, "used": {"pods": pods, "requests.cpu": cpu, "count/pods": all,
            "count/deployments.apps": "0"}})
    };
    counted(&world, "q", status(&hard, "1", "200m", "1")).await;
    counted(&world, "scoped", json!({"hard": {"pods": "5"}, "used": {"pods": "0"}})).await;

    for name in ["a", "b"] {
        world.admin.create::<Ignored>(PODS, "default", &pod(name)).await.unwrap();
    }
    let full = world.admin.create::<Ignored>(PODS, "default", &pod("c")).await.unwrap_err();
    assert_eq!(full.code(), 403, "{full:?}");
    counted(&world, "q", status(&hard, "3", "600m", "3")).await;
    let ended = world.get(PODS, "default", "a").await.unwrap();
    world.say(&[ended], "Succeeded").await;
    counted(&world, "q", status(&hard, "2", "400m", "3")).await;
    world.admin.delete::<Ignored>(PODS, &Key::new("default", "b"), &Delete::default()).await.unwrap();
    counted(&world, "q", status(&hard, "1", "200m", "2")).await;
    world.admin.create::<Ignored>(PODS, "default", &pod("c")).await.unwrap();

    // What is limited changes with the spec, and what is used is kept to that.
    patch(&world, QUOTAS, "default", "q", json!({"spec": {"hard": {"pods": "7", "requests.cpu": null}}}))
        .await;
    let hard = json!({"pods": "7", "count/pods": "9", "count/deployments.apps": "1"});
    let used = json!({"pods": "2", "count/pods": "3", "count/deployments.apps": "0"});
    counted(&world, "q", json!({"hard": hard, "used": used})).await;
    // Whoever writes nonsense there sees it set right.
    world
        .admin
        .patch::<Ignored>(
            QUOTAS,
            &Key::new("default", "q"),
            "status",
            wharf_kit::api::PatchKind::Merge,
            &json!({"status": {"used": {"pods": "7"}}}),
        )
        .await
        .unwrap();
    counted(&world, "q", json!({"hard": hard, "used": used})).await;
    world.quiet().await;
    world.end().await;
}
