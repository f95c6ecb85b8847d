//! StatefulSets: the order in which pods come, are updated and go is read from the history of a watch.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use wharf_controllers::views::Pod;
use wharf_kit::api::{Delete, Ignored, PatchKind};
use wharf_kit::view::{Hub, Key};

use crate::harness::*;
use crate::{LONG, image, patch};

fn set(name: &str, replicas: i32, extra: Value) -> Value {
    let mut set = deployment(name, replicas, "v1");
    set["kind"] = json!("StatefulSet");
    set["spec"]["serviceName"] = json!("peers");
    set["spec"].as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    set
}

fn whole(replicas: i64) -> Value {
    json!({"replicas": replicas, "readyReplicas": replicas, "updatedReplicas": replicas, "availableReplicas": replicas,
        "currentReplicas": replicas})
}

/// What becomes of pods, as it is seen: `+db-0`, `ready db-0`, `-db-0`.
fn story(world: &World) -> Arc<Mutex<Vec<String>>> {
    let story = Arc::<Mutex<Vec<String>>>::default();
    let told = story.clone();
    let hub = Hub::new(world.admin.client().clone(), world.stopping());
    hub.view::<Pod>().on_change(move |change| {
        let name = &change.key.name;
        let ready = |pod: Option<&Arc<Pod>>| pod.is_some_and(|pod| pod.ready_since().is_some());
        let mut story = told.lock().unwrap();
        match (change.old, change.new) {
            (None, Some(_)) => story.push(format!("+{name}")),
            (Some(_), None) => story.push(format!("-{name}")),
            (old, new) if !ready(old) && ready(new) => story.push(format!("ready {name}")),
            _ => {}
        }
    });
    story
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_comes_up_in_order_and_is_updated_in_reverse() {
    let world = World::start(LONG).await;
    world.add_node("n1", "8").await;
    world.add_node("n2", "8").await;
    let story = story(&world);
    let since = |from: usize| story.lock().unwrap()[from..].to_vec();
    world.admin.create::<Ignored>(STATEFUL_SETS, "default", &set("db", 3, json!({}))).await.unwrap();
    let first = world.status(STATEFUL_SETS, "db", whole(3)).await;
    let up = ["+db-0", "ready db-0", "+db-1", "ready db-1", "+db-2", "ready db-2"];
    world
        .wait("told", || async { if since(0).len() == 6 { Ok(()) } else { Err(format!("{:?}", since(0))) } })
        .await;
    assert_eq!(since(0), up);
    let pods = world.pods_of("db").await;
    for (number, pod) in pods.iter().enumerate() {
        let (name, labels) = (format!("db-{number}"), &pod["metadata"]["labels"]);
        assert_eq!((&pod["metadata"]["name"], &pod["spec"]["hostname"]), (&json!(name), &json!(name)));
        assert_eq!(pod["spec"]["subdomain"], "peers");
        assert_eq!(labels["statefulset.kubernetes.io/pod-name"], json!(name));
        assert_eq!(labels["apps.kubernetes.io/pod-index"], json!(number.to_string()));
        assert_eq!(labels["controller-revision-hash"], first["status"]["updateRevision"]);
    }

    // A canary first: those below the partition stay.
    let canary = json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 2}}}});
    patch(&world, STATEFUL_SETS, "default", "db", canary).await;
    patch(&world, STATEFUL_SETS, "default", "db", image("v2")).await;
    let half = json!({"replicas": 3, "readyReplicas": 3, "updatedReplicas": 1, "currentReplicas": 2});
    let half = world.status(STATEFUL_SETS, "db", half).await;
    assert_eq!(half["status"]["currentRevision"], first["status"]["updateRevision"]);
    assert_ne!(half["status"]["updateRevision"], first["status"]["updateRevision"]);
    let images = |pods: &[Value]| -> Vec<Value> {
        pods.iter().map(|pod| pod["spec"]["containers"][0]["image"].clone()).collect()
    };
    assert_eq!(images(&world.pods_of("db").await), ["v1", "v1", "v2"]);
    // One below it that goes comes back as it was.
    world.admin.delete::<Ignored>(PODS, &Key::new("default", "db-0"), &Delete::default()).await.unwrap();
    world
        .wait("db-0 is another", || async {
            let pods = world.pods_of("db").await;
            let other = pods.len() == 3
                && pods[0]["metadata"]["uid"] != json!(null)
                && pods[0]["status"]["phase"] == "Running"
                && story.lock().unwrap().iter().filter(|one| *one == "ready db-0").count() == 2;
            if other { Ok(()) } else { Err(json!(pods).to_string()) }
        })
        .await;
    assert_eq!(images(&world.pods_of("db").await), ["v1", "v1", "v2"]);
    let from = story.lock().unwrap().len();
    let all = json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}});
    patch(&world, STATEFUL_SETS, "default", "db", all).await;
    let done = world.status(STATEFUL_SETS, "db", whole(3)).await;
    assert_eq!(done["status"]["currentRevision"], done["status"]["updateRevision"]);
    let down = ["-db-1", "+db-1", "ready db-1", "-db-0", "+db-0", "ready db-0"];
    world
        .wait("told", || async {
            if since(from).len() == 6 { Ok(()) } else { Err(format!("{:?}", since(from))) }
        })
        .await;
    assert_eq!(since(from), down);

    // Scaled through the subresource, the highest goes first.
    let from = story.lock().unwrap().len();
    let scale = json!({"spec": {"replicas": 1}});
    let key = Key::new("default", "db");
    world.admin.patch::<Ignored>(STATEFUL_SETS, &key, "scale", PatchKind::Merge, &scale).await.unwrap();
    world.status(STATEFUL_SETS, "db", whole(1)).await;
    assert_eq!(since(from), ["-db-2", "-db-1"]);

    // One that failed is made again under its name.
    let before = world.pods_of("db").await;
    world.say(&before, "Failed").await;
    world
        .wait("made again", || async {
            let pods = world.pods_of("db").await;
            let again = pods.len() == 1
                && pods[0]["metadata"]["uid"] != before[0]["metadata"]["uid"]
                && pods[0]["status"]["phase"] == "Running";
            if again { Ok(()) } else { Err(json!(pods).to_string()) }
        })
        .await;
    world.status(STATEFUL_SETS, "db", whole(1)).await;
    world.quiet().await;
    world.admin.delete::<Ignored>(STATEFUL_SETS, &key, &Delete::default()).await.unwrap();
    world.none_left("default", &[STATEFUL_SETS, PODS, REVISIONS]).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parallel_set_does_not_wait_and_names_that_are_taken_are_awaited() {
    let world = World::start(LONG).await;
    world.add_node("n1", "8").await;
    // A stranger has the name of the second.
    let stranger = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "many-6", "namespace": "default"},
        "spec": {"containers": [{"name": "main", "image": "i"}]}});
    world.admin.create::<Ignored>(PODS, "default", &stranger).await.unwrap();
    let extra = json!({"podManagementPolicy": "Parallel", "ordinals": {"start": 5}});
    world.admin.create::<Ignored>(STATEFUL_SETS, "default", &set("many", 3, extra)).await.unwrap();
    world
        .wait("the event", || async {
            let events = world.list(EVENTS, "default").await;
            let told = |event: &Value| {
                let message = event["message"].as_str().unwrap_or_default();
                event["reason"] == "FailedCreate"
                    && message.starts_with("create Pod many-6 in StatefulSet many failed error: ")
            };
            if events.iter().any(told) { Ok(()) } else { Err(json!(events).to_string()) }
        })
        .await;
    world.admin.delete::<Ignored>(PODS, &Key::new("default", "many-6"), &Delete::default()).await.unwrap();
    world.status(STATEFUL_SETS, "many", whole(3)).await;
    let names: Vec<Value> =
        world.pods_of("many").await.iter().map(|pod| pod["metadata"]["name"].clone()).collect();
    assert_eq!(names, ["many-5", "many-6", "many-7"]);
    world.end().await;
}
