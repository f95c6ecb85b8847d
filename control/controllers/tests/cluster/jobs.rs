//! Jobs, whose pods the test ends as it likes.

use serde_json::{Value, json};
use wharf_kit::api::{Delete, Ignored, PatchKind};
use wharf_kit::view::Key;

use crate::harness::*;
use crate::{LONG, patch};

fn job(name: &str, spec: Value) -> Value {
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": "default"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "i"}]}}},
    });
    job["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    job
}

async fn pods(world: &World, name: &str) -> Vec<Value> {
    let mut pods = world.list(PODS, "default").await;
    pods.retain(|pod| pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] == name);
    pods
}

/// Waits until so many of the Job's pods run, and gives them.
async fn running(world: &World, name: &str, wanted: usize) -> Vec<Value> {
    let look = || async {
        let mut pods = pods(world, name).await;
        pods.retain(|pod| {
            pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null()
        });
        if pods.len() == wanted { Ok(pods) } else { Err(json!(pods).to_string()) }
    };
    world.wait("running", look).await
}

async fn end(world: &World, pods: &[Value], phase: &str) {
    for pod in pods {
        let key = Key::new("default", pod["metadata"]["name"].as_str().unwrap());
        let status = json!({"status": {"phase": phase}});
        world.admin.patch::<Ignored>(PODS, &key, "status", PatchKind::Merge, &status).await.unwrap();
    }
}

async fn condition(world: &World, name: &str, kind: &str) -> Value {
    let look = || async {
        let job = world.get(JOBS, "default", name).await.ok_or("absent")?;
        let conditions = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().any(|one| one["type"] == kind && one["status"] == "True");
        if found { Ok(job) } else { Err(job["status"].to_string()) }
    };
    world.wait(kind, look).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_completes_when_enough_pods_succeeded_and_goes_with_them() {
    let world = World::start(LONG).await;
    world.add_node("n1", "8").await;
    let spec = json!({"completions": 3, "parallelism": 2});
    world.admin.create::<Ignored>(JOBS, "default", &job("sum", spec)).await.unwrap();
    let first = running(&world, "sum", 2).await;
    assert_eq!(first[0]["metadata"]["finalizers"], json!(["batch.kubernetes.io/job-tracking"]));
    assert_eq!(first[0]["metadata"]["ownerReferences"][0]["kind"], "Job");
    end(&world, &first, "Succeeded").await;
    end(&world, &running(&world, "sum", 1).await, "Succeeded").await;
    let done = condition(&world, "sum", "Complete").await;
    assert_eq!(done["status"]["succeeded"], 3);
    assert!(done["status"]["completionTime"].is_string() && done["status"]["active"].is_null(), "{done}");
    let pods = pods(&world, "sum").await;
    assert_eq!(pods.len(), 3);
    assert!(pods.iter().all(|pod| pod["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty)));
    world.admin.delete::<Ignored>(JOBS, &Key::new("default", "sum"), &Delete::default()).await.unwrap();

    // One that still runs goes as well: nothing waits for a count that nobody makes.
    world.admin.create::<Ignored>(JOBS, "default", &job("cut", json!({}))).await.unwrap();
    running(&world, "cut", 1).await;
    world.admin.delete::<Ignored>(JOBS, &Key::new("default", "cut"), &Delete::default()).await.unwrap();
    world.none_left("default", &[JOBS, PODS]).await;

    // And one whose time has passed goes by itself.
    let spec = json!({"ttlSecondsAfterFinished": 0});
    world.admin.create::<Ignored>(JOBS, "default", &job("brief", spec)).await.unwrap();
    end(&world, &running(&world, "brief", 1).await, "Succeeded").await;
    world.none_left("default", &[JOBS, PODS]).await;
    world.quiet().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_fails_when_its_pods_did_too_often_and_ends_those_that_run() {
    let world = World::start(LONG).await;
    world.add_node("n1", "8").await;
    let spec = json!({"completions": 2, "parallelism": 2, "backoffLimit": 0});
    world.admin.create::<Ignored>(JOBS, "default", &job("bad", spec)).await.unwrap();
    let pods = running(&world, "bad", 2).await;
    end(&world, &pods[..1], "Failed").await;
    let failed = condition(&world, "bad", "Failed").await;
    assert_eq!(failed["status"]["failed"], 2, "the one that was ended counts: {failed}");
    assert_eq!(failed["status"]["conditions"][0]["reason"], "BackoffLimitExceeded");
    running(&world, "bad", 0).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_indexed_job_is_suspended_and_resumed_index_by_index() {
    let world = World::start(LONG).await;
    world.add_node("n1", "8").await;
    let spec = json!({"completions": 2, "parallelism": 2, "completionMode": "Indexed"});
    world.admin.create::<Ignored>(JOBS, "default", &job("parts", spec)).await.unwrap();
    let index = |pod: &Value| {
        pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"].as_str().unwrap().to_owned()
    };
    let mut pods = running(&world, "parts", 2).await;
    pods.sort_by_key(index);
    assert_eq!(pods.iter().map(index).collect::<Vec<_>>(), ["0", "1"]);
    assert_eq!(pods[1]["spec"]["hostname"], "parts-1");
    assert_eq!(pods[1]["spec"]["containers"][0]["env"][0]["name"], "JOB_COMPLETION_INDEX");
    end(&world, &pods[1..], "Succeeded").await;
    let counted = || async {
        let job = world.get(JOBS, "default", "parts").await.ok_or("absent")?;
        if job["status"]["completedIndexes"] == "1" { Ok(()) } else { Err(job["status"].to_string()) }
    };
    world.wait("counted", counted).await;
    patch(&world, JOBS, "default", "parts", json!({"spec": {"suspend": true}})).await;
    let suspended = condition(&world, "parts", "Suspended").await;
    assert!(suspended["status"]["startTime"].is_null());
    running(&world, "parts", 0).await;
    patch(&world, JOBS, "default", "parts", json!({"spec": {"suspend": false}})).await;
    let rest = running(&world, "parts", 1).await;
    assert_eq!(index(&rest[0]), "0");
    end(&world, &rest, "Succeeded").await;
    let done = condition(&world, "parts", "Complete").await;
    assert_eq!(
        (&done["status"]["completedIndexes"], &done["status"]["succeeded"]),
        (&json!("0,1"), &json!(2))
    );
    world.end().await;
}
