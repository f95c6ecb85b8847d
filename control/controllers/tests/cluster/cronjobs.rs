//! CronJobs. That a time has come does not wait for one: the schedule is of once a year, and the test says in the
//! status that the last Job was made long ago.

use serde_json::{Value, json};
use wharf_kit::api::{Delete, Ignored, PatchKind};
use wharf_kit::view::Key;

use crate::harness::*;
use crate::{LONG, patch};

fn cron(name: &str, policy: &str) -> Value {
    let pod = json!({"metadata": {"labels": {"app": name}}, "spec": {"restartPolicy": "Never",
        "containers": [{"name": "main", "image": "i"}]}});
    json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name, "namespace": "default"},
        "spec": {"schedule": "0 0 1 1 *", "concurrencyPolicy": policy, "successfulJobsHistoryLimit": 1,
            "jobTemplate": {"metadata": {"labels": {"of": name}}, "spec": {"template": pod}}},
    })
}

/// Lets a time of the schedule have come since the last Job.
async fn come(world: &World, name: &str, last: &str) {
    let status = json!({"status": {"lastScheduleTime": last}});
    let key = Key::new("default", name);
    world.admin.patch::<Ignored>(CRON_JOBS, &key, "status", PatchKind::Merge, &status).await.unwrap();
}

/// Waits until the CronJob has so many Jobs, of which so many are active.
async fn jobs(world: &World, name: &str, all: usize, active: usize) -> Vec<Value> {
    let look = || async {
        let mut jobs = world.list(JOBS, "default").await;
        jobs.retain(|job| job["metadata"]["labels"]["of"] == name);
        let cron = world.get(CRON_JOBS, "default", name).await.ok_or("absent")?;
        let listed = cron["status"]["active"].as_array().map_or(0, Vec::len);
        if (jobs.len(), listed) == (all, active) { Ok(jobs) } else { Err(json!([jobs, cron]).to_string()) }
    };
    world.wait("jobs", look).await
}

/// Waits until the only pod of the app runs, and ends it.
async fn end_pod(world: &World, app: &str) {
    let look = || async {
        let pods = world.pods_of(app).await;
        let running: Vec<Value> =
            pods.iter().filter(|pod| pod["status"]["phase"] == "Running").cloned().collect();
        if running.len() == 1 { Ok(running) } else { Err(json!(pods).to_string()) }
    };
    let pods = world.wait("a pod runs", look).await;
    world.say(&pods, "Succeeded").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cron_job_makes_a_job_when_its_time_has_come_and_keeps_so_many() {
    let world = World::start(LONG).await;
    world.add_node("n1", "8").await;
    world.admin.create::<Ignored>(CRON_JOBS, "default", &cron("year", "Allow")).await.unwrap();
    world.quiet().await;
    assert!(world.list(JOBS, "default").await.is_empty(), "its time has not come");
    come(&world, "year", "2020-06-01T00:00:00Z").await;
    let first = jobs(&world, "year", 1, 1).await.remove(0);
    let meta = &first["metadata"];
    let told = meta["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"].as_str().unwrap();
    let time: jiff::Timestamp = told.parse().unwrap();
    assert!(told.ends_with("-01-01T00:00:00Z"), "{told}");
    assert_eq!(meta["name"], format!("year-{}", time.as_second() / 60));
    assert_eq!(meta["ownerReferences"][0]["kind"], "CronJob");
    let made = world.get(CRON_JOBS, "default", "year").await.unwrap();
    assert_eq!(made["status"]["lastScheduleTime"], told);
    assert_eq!(made["status"]["active"][0]["uid"], meta["uid"]);
    end_pod(&world, "year").await;
    jobs(&world, "year", 1, 0).await;
    let ended = world.get(CRON_JOBS, "default", "year").await.unwrap();
    assert!(ended["status"]["lastSuccessfulTime"].is_string(), "{ended}");

    // Of one that ended earlier no trace is kept: a Job for an earlier year, made as the controller would.
    let mut earlier = first.clone();
    earlier["metadata"] = json!({"name": "year-1", "namespace": "default", "labels": {"of": "year"},
        "ownerReferences": meta["ownerReferences"]});
    earlier["spec"] = json!({"template": cron("year", "Allow")["spec"]["jobTemplate"]["spec"]["template"]});
    world.admin.create::<Ignored>(JOBS, "default", &earlier).await.unwrap();
    end_pod(&world, "year").await;
    let left = jobs(&world, "year", 1, 0).await;
    assert_eq!(left.len(), 1);

    // Suspended, it lets a time pass.
    patch(&world, CRON_JOBS, "default", "year", json!({"spec": {"suspend": true}})).await;
    for job in &left {
        let key = Key::new("default", job["metadata"]["name"].as_str().unwrap());
        world.admin.delete::<Ignored>(JOBS, &key, &Delete::default()).await.unwrap();
    }
    come(&world, "year", "2020-06-01T00:00:00Z").await;
    jobs(&world, "year", 0, 0).await;
    world.quiet().await;
    jobs(&world, "year", 0, 0).await;
    patch(&world, CRON_JOBS, "default", "year", json!({"spec": {"suspend": false}})).await;
    jobs(&world, "year", 1, 1).await;
    world.admin.delete::<Ignored>(CRON_JOBS, &Key::new("default", "year"), &Delete::default()).await.unwrap();
    world.none_left("default", &[CRON_JOBS, JOBS, PODS]).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_still_runs_keeps_the_next_back_or_makes_room_for_it() {
    let world = World::start(LONG).await;
    world.add_node("n1", "8").await;
    for policy in ["Forbid", "Replace"] {
        let name = policy.to_lowercase();
        world.admin.create::<Ignored>(CRON_JOBS, "default", &cron(&name, policy)).await.unwrap();
        come(&world, &name, "2020-06-01T00:00:00Z").await;
        let first = jobs(&world, &name, 1, 1).await;
        // Another schedule gives another time, and so another name.
        patch(&world, CRON_JOBS, "default", &name, json!({"spec": {"schedule": "0 0 2 1 *"}})).await;
        come(&world, &name, "2020-06-01T00:00:00Z").await;
        if policy == "Forbid" {
            let told = || async {
                let events = world.list(EVENTS, "default").await;
                let told = events.iter().any(|event| event["reason"] == "JobAlreadyActive");
                if told { Ok(()) } else { Err(json!(events).to_string()) }
            };
            world.wait("the event", told).await;
            assert_eq!(jobs(&world, &name, 1, 1).await[0]["metadata"]["uid"], first[0]["metadata"]["uid"]);
            end_pod(&world, &name).await;
            jobs(&world, &name, 2, 1).await;
        } else {
            let other = || async {
                let jobs = jobs(&world, &name, 1, 1).await;
                let other = jobs[0]["metadata"]["uid"] != first[0]["metadata"]["uid"];
                if other { Ok(()) } else { Err(json!(jobs).to_string()) }
            };
            world.wait("another job", other).await;
        }
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_whose_job_cannot_be_made_stays_due_and_the_rest_is_told() {
    let world = World::start(LONG).await;
    // Somebody's Job has the name that the CronJob's would have.
    let year = jiff::Timestamp::now().strftime("%Y-01-01T00:00:00Z").to_string();
    let due: jiff::Timestamp = year.parse().unwrap();
    let mut foreign = cron("taken", "Allow")["spec"]["jobTemplate"].take();
    foreign["metadata"] = json!({"name": format!("taken-{}", due.as_second() / 60), "namespace": "default"});
    foreign["spec"]["suspend"] = json!(true);
    world.admin.create::<Ignored>(JOBS, "default", &foreign).await.unwrap();
    world.admin.create::<Ignored>(CRON_JOBS, "default", &cron("taken", "Allow")).await.unwrap();
    world.quiet().await;
    let gone = json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "gone", "namespace": "default", "uid": "u"}]);
    let last = "2020-06-01T00:00:00Z";
    let status = json!({"status": {"lastScheduleTime": last, "active": gone}});
    let key = Key::new("default", "taken");
    world.admin.patch::<Ignored>(CRON_JOBS, &key, "status", PatchKind::Merge, &status).await.unwrap();
    let cron = world
        .wait("the Job that is gone is no longer told", || async {
            let cron = world.get(CRON_JOBS, "default", "taken").await.ok_or("absent")?;
            if cron["status"]["active"].is_null() { Ok(cron) } else { Err(cron.to_string()) }
        })
        .await;
    assert_eq!(cron["status"]["lastScheduleTime"], last, "its time is still to come");
    world.end().await;
}
