//! DaemonSets, StatefulSets and CronJobs on two nodes, and `wctl` over their changes.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wharf_tests::{Cluster, eventually};

/// A workload of a kind of apps/v1 whose pods have the label `app`, run until they are ended, and are ready a while
/// after they started.
fn workload(kind: &str, name: &str) -> Value {
    let labels = json!({"app": name});
    json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
                    "name": "main", "image": "registry.wharf/clock:1",
                    "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
                }]},
            },
        },
    })
}

fn apply(cluster: &Cluster, object: &Value) -> String {
    let arguments = ["apply", "-f", "-", "--wait", "--timeout", "60s"];
    cluster.wctl_reading(&arguments, &object.to_string()).ok()
}

/// The pods of a workload that are not ending.
fn pods(cluster: &Cluster, app: &str) -> Vec<Value> {
    let list = cluster.get(&["pods", "-l", &format!("app={app}")]);
    let items = list["items"].as_array().cloned().unwrap_or_default();
    items.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect()
}

/// A word of each pod, in order.
fn words(pods: &[Value], pointer: &str) -> Vec<String> {
    let mut words: Vec<String> =
        pods.iter().filter_map(|pod| pod.pointer(pointer)?.as_str().map(str::to_owned)).collect();
    words.sort();
    words
}

/// The value of the variable ROUND in a workload's template.
fn round(cluster: &Cluster, what: &str) -> Value {
    cluster.get(&[what])["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"].clone()
}

fn set_round(mut object: Value, round: &str) -> Value {
    object["spec"]["template"]["spec"]["containers"][0]["env"] = json!([{"name": "ROUND", "value": round}]);
    object["metadata"]["annotations"] = json!({"kubernetes.io/change-cause": format!("round {round}")});
    object
}

#[test]
fn workloads_of_every_kind_run_on_two_nodes_and_roll_out_and_back() {
    let cluster = Cluster::of_nodes(2, "40s");
    cluster.push_images();
    a_daemon_set_has_a_pod_on_each_node(&cluster);
    a_stateful_set_has_stable_names_in_order(&cluster);
    a_cron_job_runs_jobs_and_one_is_made_by_hand(&cluster);
    a_deployment_pauses_and_resumes(&cluster);
    a_drain_tells_what_a_budget_refuses_and_ends_in_its_time(&cluster);
}

fn a_daemon_set_has_a_pod_on_each_node(cluster: &Cluster) {
    let (wctl, nodes) = (|arguments: &[&str]| cluster.wctl(arguments), ["node-1", "node-2"]);
    let done = "daemon set \"each\" successfully rolled out";
    let each = workload("DaemonSet", "each");
    let said = apply(cluster, &set_round(each.clone(), "1"));
    assert!(said.contains(done), "{said}");
    assert_eq!(words(&pods(cluster, "each"), "/spec/nodeName"), nodes);
    let first = words(&pods(cluster, "each"), "/metadata/uid");

    // A pod that is deleted comes back on its node.
    let lost = words(&pods(cluster, "each"), "/metadata/name").remove(0);
    wctl(&["delete", "pod", &lost]).ok();
    eventually("each node has its pod again", || {
        let now = pods(cluster, "each");
        if words(&now, "/spec/nodeName") == nodes { Ok(()) } else { Err(format!("{} pods", now.len())) }
    });

    apply(cluster, &set_round(each, "2"));
    let said = wctl(&["rollout", "status", "daemonset/each", "--timeout", "60s"]).ok();
    assert_eq!(said.lines().last(), Some(done), "{said}");
    let second = words(&pods(cluster, "each"), "/metadata/uid");
    assert!(second.len() == 2 && second.iter().all(|uid| !first.contains(uid)), "all were replaced");
    let said = wctl(&["rollout", "history", "daemonset/each"]).ok();
    assert_eq!(
        said,
        "daemonset.apps/each\nREVISION   CHANGE-CAUSE\n1          round 1\n2          round 2\n"
    );
    let said = wctl(&["rollout", "history", "daemonset/each", "--revision", "1"]).ok();
    assert!(said.starts_with("daemonset.apps/each with revision #1\nPod Template:"), "{said}");
    assert!(said.contains("ROUND") && said.contains("registry.wharf/clock:1"), "{said}");
    assert_eq!(wctl(&["rollout", "undo", "daemonset/each"]).ok(), "daemonset.apps/each rolled back\n");
    assert_eq!(round(cluster, "daemonset/each"), "1");
    wctl(&["rollout", "status", "daemonset/each", "--timeout", "60s"]).ok();
    wctl(&["rollout", "undo", "daemonset/each", "--to-revision", "9"])
        .fails_with(&["unable to find specified revision 9 in history"]);
    wctl(&["rollout", "pause", "daemonset/each"])
        .fails_with(&["daemonsets.apps \"each\" pausing is not supported"]);
    wctl(&["rollout", "status", "configmap/kube-root-ca.crt"]).fails_with(&["has no rollouts"]);
    wctl(&["rollout", "status", "daemonset/none"]).fails_with(&["daemonsets.apps \"none\" not found"]);
    wctl(&["delete", "daemonset/each"]).ok();
}

fn a_stateful_set_has_stable_names_in_order(cluster: &Cluster) {
    let wctl = |arguments: &[&str]| cluster.wctl(arguments);
    let mut named = workload("StatefulSet", "named");
    named["spec"]["serviceName"] = json!("named");
    named["spec"]["replicas"] = json!(3);
    let said = apply(cluster, &named);
    assert!(said.contains("partitioned roll out complete: 3 new pods have been updated..."), "{said}");
    let names = ["named-0", "named-1", "named-2"];
    let before = pods(cluster, "named");
    assert_eq!(words(&before, "/metadata/name"), names);
    // Each was made when the one before it was ready.
    let pod = |name: &str| cluster.get(&["pod", name]);
    let time = |value: &Value| value.as_str().expect("a time").to_owned();
    let ready_at = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.iter().find(|one| one["type"] == "Ready").expect("a condition").clone();
        time(&ready["lastTransitionTime"])
    };
    for two in names.windows(2) {
        let (first, next) = (pod(two[0]), pod(two[1]));
        let (ready, made) = (ready_at(&first), time(&next["metadata"]["creationTimestamp"]));
        assert!(ready <= made, "{} was ready at {ready}, {} made at {made}", two[0], two[1]);
        assert_eq!(next["metadata"]["labels"]["apps.kubernetes.io/pod-index"], two[1][6..], "{next}");
        assert_eq!(
            (&next["spec"]["hostname"], &next["spec"]["subdomain"]),
            (&json!(two[1]), &json!("named"))
        );
    }
    // A pod that is deleted comes back under its name.
    let uid = pod("named-1")["metadata"]["uid"].clone();
    wctl(&["delete", "pod", "named-1"]).ok();
    eventually("named-1 is another", || {
        let now = pods(cluster, "named");
        let is_new =
            now.iter().any(|pod| pod["metadata"]["name"] == "named-1" && pod["metadata"]["uid"] != uid);
        if is_new { Ok(()) } else { Err(words(&now, "/metadata/name").join(" ")) }
    });
    wctl(&["rollout", "status", "statefulset/named", "--timeout", "60s"]).ok();

    let said = wctl(&["rollout", "restart", "statefulset/named"]).ok();
    assert_eq!(said, "statefulset.apps/named restarted\n");
    let said = wctl(&["rollout", "status", "statefulset/named", "--timeout", "90s"]).ok();
    assert!(said.ends_with("partitioned roll out complete: 3 new pods have been updated...\n"), "{said}");
    let old = words(&before, "/metadata/uid");
    let after = pods(cluster, "named");
    assert_eq!(words(&after, "/metadata/name"), names);
    assert!(words(&after, "/metadata/uid").iter().all(|uid| !old.contains(uid)), "all were replaced");
    let said = wctl(&["rollout", "history", "statefulset/named"]).ok();
    assert!(said.contains("1          <none>\n2          <none>\n"), "{said}");

    // The last goes first.
    wctl(&["scale", "statefulset/named", "--replicas=1"]).ok();
    eventually("named-0 alone is left", || match words(&pods(cluster, "named"), "/metadata/name") {
        left if left == ["named-0"] => Ok(()),
        left => Err(left.join(" ")),
    });
    wctl(&["delete", "statefulset/named"]).ok();
}

fn a_cron_job_runs_jobs_and_one_is_made_by_hand(cluster: &Cluster) {
    let wctl = |arguments: &[&str]| cluster.wctl(arguments);
    let cron = json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "tick"},
        "spec": {"schedule": "* * * * *", "jobTemplate": {
            "metadata": {"labels": {"app": "tick"}},
            "spec": {"template": {
                "metadata": {"labels": {"app": "tick"}},
                "spec": {"restartPolicy": "Never", "containers": [{
                    "name": "main", "image": "registry.wharf/busybox:1", "args": ["-c", "echo tick"],
                }]},
            }},
        }},
    });
    apply(cluster, &cron);
    let said = wctl(&["create", "job", "by-hand", "--from", "cronjob/tick"]).ok();
    assert_eq!(said, "job.batch/by-hand created\n");
    wctl(&["wait", "job/by-hand", "--for", "condition=Complete", "--timeout", "60s"]).ok();
    let job = cluster.get(&["job", "by-hand"]);
    assert_eq!(job["metadata"]["ownerReferences"][0]["name"], "tick", "{job}");
    assert_eq!(job["metadata"]["annotations"]["cronjob.kubernetes.io/instantiate"], "manual");
    let pods = cluster.get(&["pods", "-l", "batch.kubernetes.io/job-name=by-hand"]);
    let pod = pods["items"][0]["metadata"]["name"].as_str().expect("a pod");
    assert_eq!(wctl(&["logs", pod]).ok(), "tick\n");
    let said = wctl(&["create", "job", "by-hand", "--image", "registry.wharf/busybox:1", "--", "/bin/true"]);
    said.fails_with(&["jobs.batch \"by-hand\" already exists"]);
    wctl(&["create", "job", "late", "--from", "job/by-hand"]).fails_with(&["no CronJob", "cronjob/NAME"]);

    // A minute begins within a minute.
    let last = "jsonpath={.status.lastScheduleTime}";
    wctl(&["wait", "cronjob/tick", "--for", last, "--timeout", "90s"]).ok();
    let own = || {
        let jobs = cluster.get(&["jobs", "-l", "app=tick"])["items"].as_array().cloned().unwrap_or_default();
        jobs.into_iter().find(|job| job["metadata"]["name"] != "by-hand")
    };
    let own = eventually("its own job is there", || own().ok_or("none".to_owned()));
    let own = own["metadata"]["name"].as_str().expect("a name");
    assert!(own.starts_with("tick-"), "{own}");
    wctl(&["wait", &format!("job/{own}"), "--for", "condition=Complete", "--timeout", "60s"]).ok();
    wctl(&["delete", "cronjob/tick"]).ok();
}

fn a_deployment_pauses_and_resumes(cluster: &Cluster) {
    let wctl = |arguments: &[&str]| cluster.wctl(arguments);
    let web = workload("Deployment", "web");
    apply(cluster, &web);
    assert_eq!(wctl(&["rollout", "pause", "deployment/web"]).ok(), "deployment.apps/web paused\n");
    wctl(&["rollout", "pause", "deployment/web"]).fails_with(&["deployments.apps \"web\" is already paused"]);
    wctl(&["rollout", "restart", "deployment/web"]).fails_with(&["can't restart paused deployment"]);
    wctl(&["rollout", "undo", "deployment/web"]).fails_with(&["you cannot rollback a paused deployment"]);
    assert_eq!(wctl(&["rollout", "resume", "deployment/web"]).ok(), "deployment.apps/web resumed\n");
    wctl(&["rollout", "resume", "deployment/web"]).fails_with(&["deployments.apps \"web\" is not paused"]);
    wctl(&["rollout", "undo", "deployment/web"])
        .fails_with(&["no rollout history found for deployment \"web\""]);
    apply(cluster, &set_round(web, "2"));
    let said = wctl(&["rollout", "undo", "deployment/web", "--to-revision", "2"]).ok();
    assert_eq!(said, "deployment.apps/web skipped rollback (current template already matches revision 2)\n");
    wctl(&["delete", "deployment/web"]).ok();
}

fn a_drain_tells_what_a_budget_refuses_and_ends_in_its_time(cluster: &Cluster) {
    let wctl = |arguments: &[&str]| cluster.wctl(arguments);
    let mut guarded = workload("Deployment", "guarded");
    guarded["spec"]["template"]["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "node-2"});
    apply(cluster, &guarded);
    let budget = json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "guarded"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "guarded"}}},
    });
    apply(cluster, &budget);
    let began = Instant::now();
    wctl(&["drain", "node-2", "--timeout", "2s"]).fails_with(&[
        "error when evicting pods/\"guarded-",
        "Cannot evict pod as it would violate the pod's disruption budget.",
        "was not evicted in time",
    ]);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    wctl(&["delete", "pdb/guarded"]).ok();
    let said = wctl(&["drain", "node-2", "--timeout", "60s"]).ok();
    assert!(said.contains("node/node-2 drained"), "{said}");
    wctl(&["uncordon", "node-2"]).ok();
    wctl(&["delete", "deployment/guarded"]).ok();
}
