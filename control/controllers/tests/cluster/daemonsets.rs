//! DaemonSets, on nodes that come, are tainted and go.

use std::time::Duration;

use serde_json::{Value, json};
use wharf_kit::api::{Delete, Ignored, Propagation};
use wharf_kit::view::Key;

use crate::harness::*;
use crate::{LONG, image, patch};

fn set(name: &str, strategy: Value) -> Value {
    let mut set = deployment(name, 0, "v1");
    let spec = set["spec"].as_object_mut().unwrap();
    spec.remove("replicas");
    spec.insert("updateStrategy".to_owned(), strategy);
    set["kind"] = json!("DaemonSet");
    set
}

/// Waits until the set's pods are on these nodes and no others, all running, none going; and gives them by node.
async fn on(world: &World, name: &str, nodes: &[&str]) -> Vec<Value> {
    let look = || async {
        let mut pods = world.pods_of(name).await;
        let node = |pod: &Value| pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
        pods.sort_by_key(node);
        let settled = pods
            .iter()
            .all(|pod| pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null());
        let right = settled && pods.iter().map(node).collect::<Vec<_>>() == nodes;
        if right { Ok(pods) } else { Err(json!(pods).to_string()) }
    };
    world.wait("a pod on each node", look).await
}

fn numbers(nodes: i64) -> Value {
    json!({"desiredNumberScheduled": nodes, "currentNumberScheduled": nodes, "updatedNumberScheduled": nodes,
        "numberReady": nodes, "numberAvailable": nodes, "numberMisscheduled": 0, "numberUnavailable": null})
}

fn uids(pods: &[Value]) -> Vec<&str> {
    pods.iter().map(|pod| pod["metadata"]["uid"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_set_follows_the_nodes() {
    // The pods of a node that is gone are deleted after as long as a node may be silent.
    let world = World::start(Duration::from_secs(8)).await;
    world.add_node("n1", "4").await;
    world.add_node("n2", "4").await;
    world.admin.create::<Ignored>(DAEMON_SETS, "default", &set("log", json!(null))).await.unwrap();
    on(&world, "log", &["n1", "n2"]).await;
    let third = world.add_node("n3", "4").await;
    let pods = on(&world, "log", &["n1", "n2", "n3"]).await;
    world.status(DAEMON_SETS, "log", numbers(3)).await;

    // A cordoned node keeps its pod and gets it back; a tainted one keeps it and does not.
    patch(&world, NODES, "", "n1", json!({"spec": {"unschedulable": true}})).await;
    let key = |pod: &Value| Key::new("default", pod["metadata"]["name"].as_str().unwrap());
    world.admin.delete::<Ignored>(PODS, &key(&pods[0]), &Delete::default()).await.unwrap();
    world.gone(PODS, "default", pods[0]["metadata"]["name"].as_str().unwrap()).await;
    on(&world, "log", &["n1", "n2", "n3"]).await;
    let taint = |effect: &str| json!({"spec": {"taints": [{"key": "mine", "effect": effect}]}});
    patch(&world, NODES, "", "n2", taint("NoSchedule")).await;
    let misplaced = json!({"desiredNumberScheduled": 2, "numberMisscheduled": 1, "numberReady": 2});
    world.status(DAEMON_SETS, "log", misplaced).await;
    on(&world, "log", &["n1", "n2", "n3"]).await;
    patch(&world, NODES, "", "n2", taint("NoExecute")).await;
    on(&world, "log", &["n1", "n3"]).await;
    patch(&world, NODES, "", "n2", json!({"spec": {"taints": null}})).await;
    on(&world, "log", &["n1", "n2", "n3"]).await;

    // A pod that failed is replaced, one that someone deletes too, and those of a node that is gone go with it.
    let before = on(&world, "log", &["n1", "n2", "n3"]).await;
    world.say(&before[..1], "Failed").await;
    world.gone(PODS, "default", before[0]["metadata"]["name"].as_str().unwrap()).await;
    let after = on(&world, "log", &["n1", "n2", "n3"]).await;
    assert_eq!(uids(&before)[1..], uids(&after)[1..], "the others were left alone");
    third.cancel();
    world.admin.delete::<Ignored>(NODES, &Key::cluster("n3"), &Delete::default()).await.unwrap();
    on(&world, "log", &["n1", "n2"]).await;

    // Where its pods may go can be narrowed.
    patch(&world, NODES, "", "n2", json!({"metadata": {"labels": {"disk": "ssd"}}})).await;
    let narrow = json!({"spec": {"template": {"spec": {"nodeSelector": {"disk": "ssd"}}}}});
    patch(&world, DAEMON_SETS, "default", "log", narrow).await;
    on(&world, "log", &["n2"]).await;
    world.status(DAEMON_SETS, "log", numbers(1)).await;
    world.quiet().await;

    let key = Key::new("default", "log");
    world.admin.delete::<Ignored>(DAEMON_SETS, &key, &Delete::default()).await.unwrap();
    world.none_left("default", &[DAEMON_SETS, PODS, REVISIONS]).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_set_is_rolled_out_by_its_strategy_and_keeps_its_history() {
    let world = World::start(LONG).await;
    world.add_node("n1", "4").await;
    world.add_node("n2", "4").await;
    for (name, strategy) in [
        ("one-by-one", json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}})),
        ("surge", json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}})),
        ("by-hand", json!({"type": "OnDelete"})),
    ] {
        world.admin.create::<Ignored>(DAEMON_SETS, "default", &set(name, strategy)).await.unwrap();
        let first = on(&world, name, &["n1", "n2"]).await;
        let hash = |pods: &[Value]| pods[0]["metadata"]["labels"]["controller-revision-hash"].clone();
        patch(&world, DAEMON_SETS, "default", name, image("v2")).await;
        if name == "by-hand" {
            world.status(DAEMON_SETS, name, json!({"updatedNumberScheduled": null, "numberReady": 2})).await;
            assert_eq!(uids(&on(&world, name, &["n1", "n2"]).await), uids(&first));
            for pod in &first {
                let key = Key::new("default", pod["metadata"]["name"].as_str().unwrap());
                world.admin.delete::<Ignored>(PODS, &key, &Delete::default()).await.unwrap();
            }
        }
        world.status(DAEMON_SETS, name, numbers(2)).await;
        let second = on(&world, name, &["n1", "n2"]).await;
        assert!(second.iter().all(|pod| pod["spec"]["containers"][0]["image"] == "v2"), "{name}");
        assert_ne!(hash(&first), hash(&second), "{name}");
    }

    // Back to the first template: its revision is the newest, and the name is the same.
    let numbered = || async {
        let revisions = world.list(REVISIONS, "default").await;
        let of = |one: &&Value| one["metadata"]["ownerReferences"][0]["name"] == "one-by-one";
        let number = |one: &Value| {
            let template = &one["data"]["spec"]["template"];
            assert_eq!(template["$patch"], "replace", "{one}");
            let image = template["spec"]["containers"][0]["image"].as_str().unwrap().to_owned();
            (one["revision"].as_i64().unwrap(), image)
        };
        let mut all: Vec<_> = revisions.iter().filter(of).map(number).collect();
        all.sort();
        all
    };
    assert_eq!(numbered().await, [(1, "v1".to_owned()), (2, "v2".to_owned())]);
    patch(&world, DAEMON_SETS, "default", "one-by-one", image("v1")).await;
    world.status(DAEMON_SETS, "one-by-one", numbers(2)).await;
    assert_eq!(numbered().await, [(2, "v2".to_owned()), (3, "v1".to_owned())]);
    let limit = json!({"spec": {"revisionHistoryLimit": 0}});
    patch(&world, DAEMON_SETS, "default", "one-by-one", limit).await;
    let short = || async {
        let left = numbered().await;
        if left == [(3, "v1".to_owned())] { Ok(()) } else { Err(format!("{left:?}")) }
    };
    world.wait("a short history", short).await;

    // Its orphans are its successor's.
    let before = on(&world, "one-by-one", &["n1", "n2"]).await;
    let orphan = Delete::default().with_propagation(Propagation::Orphan);
    let key = Key::new("default", "one-by-one");
    world.admin.delete::<Ignored>(DAEMON_SETS, &key, &orphan).await.unwrap();
    world.gone(DAEMON_SETS, "default", "one-by-one").await;
    // A controller that has not seen the orphans yet makes pods too; of two on a node the older one stays, and times of
    // creation count whole seconds.
    let made = before.iter().map(|pod| pod["metadata"]["creationTimestamp"].as_str().unwrap()).max().unwrap();
    while jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string().as_str() <= made {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    world.admin.create::<Ignored>(DAEMON_SETS, "default", &set("one-by-one", json!(null))).await.unwrap();
    world.status(DAEMON_SETS, "one-by-one", numbers(2)).await;
    let kept = || async {
        let now = on(&world, "one-by-one", &["n1", "n2"]).await;
        if uids(&now) == uids(&before) { Ok(()) } else { Err(json!(now).to_string()) }
    };
    world.wait("the orphans are its own", kept).await;
    assert_eq!(numbered().await, [(3, "v1".to_owned())], "its history as well");
    world.end().await;
}
