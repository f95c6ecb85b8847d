//! The rules of workloads and of what limits them: each refused in Kubernetes' words.

use serde_json::{Value, json};

use crate::harness::{Harness, call, call_as, get};

const APPS: &str = "/apis/apps/v1/namespaces/default";
const BATCH: &str = "/apis/batch/v1/namespaces/default";
const CORE: &str = "/api/v1/namespaces/default";
const POLICY: &str = "/apis/policy/v1/namespaces/default";
const DISCOVERY: &str = "/apis/discovery.k8s.io/v1/namespaces/default";

fn template(policy: &str) -> Value {
    json!({"metadata": {"labels": {"app": "a"}}, "spec": {
        "restartPolicy": policy, "containers": [{"name": "c", "image": "i"}]}})
}

fn workload(spec: Value) -> Value {
    let mut all = json!({"selector": {"matchLabels": {"app": "a"}}, "template": template("Always")});
    merge(&mut all, spec);
    json!({"metadata": {"name": "x"}, "spec": all})
}

fn job(spec: Value) -> Value {
    let mut all = json!({"template": template("Never")});
    merge(&mut all, spec);
    json!({"metadata": {"name": "x"}, "spec": all})
}

fn cron(spec: Value) -> Value {
    let mut all = json!({"schedule": "@hourly", "jobTemplate": {"spec": {"template": template("Never")}}});
    merge(&mut all, spec);
    json!({"metadata": {"name": "x"}, "spec": all})
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, from) => *into = from,
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_in_kubernetes_words() {
    let harness = Harness::start().await;
    let client = harness.local();
    let rolling = |fields: Value| json!({"updateStrategy": {"rollingUpdate": fields}});
    for (path, object, words) in [
        (
            format!("{APPS}/daemonsets"),
            workload(json!({"selector": {"matchLabels": {"app": "b"}}})),
            "`selector` does not match template `labels`",
        ),
        (
            format!("{APPS}/daemonsets"),
            workload(rolling(json!({"maxUnavailable": 0}))),
            "cannot be 0 when maxSurge is 0",
        ),
        (
            format!("{APPS}/daemonsets"),
            workload(rolling(json!({"maxSurge": 1}))),
            "may not be set when maxUnavailable is non-zero",
        ),
        (
            format!("{APPS}/daemonsets"),
            workload(json!({"updateStrategy": {"type": "Never"}})),
            "Unsupported value: \"Never\": supported values: \"OnDelete\", \"RollingUpdate\"",
        ),
        (
            format!("{APPS}/daemonsets"),
            workload(json!({"template": {"spec": {"restartPolicy": "Never"}}})),
            "Unsupported value: \"Never\": supported values: \"Always\"",
        ),
        (
            format!("{APPS}/statefulsets"),
            workload(json!({"podManagementPolicy": "Any"})),
            "supported values: \"OrderedReady\", \"Parallel\"",
        ),
        (
            format!("{APPS}/statefulsets"),
            workload(json!({"volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]})),
            "spec.volumeClaimTemplates: Forbidden: is not supported by this server",
        ),
        (
            format!("{APPS}/statefulsets"),
            workload(json!({"replicas": -1})),
            "must be greater than or equal to 0",
        ),
        (
            format!("{APPS}/statefulsets"),
            workload(json!({"updateStrategy": {"type": "OnDelete", "rollingUpdate": {"partition": 1}}})),
            "only allowed for updateStrategy 'RollingUpdate'",
        ),
        (
            format!("{APPS}/controllerrevisions"),
            json!({"metadata": {"name": "x"}, "revision": 1}),
            "data is mandatory",
        ),
        (
            format!("{BATCH}/jobs"),
            job(json!({"template": {"spec": {"restartPolicy": "Always"}}})),
            "valid values: \"OnFailure\", \"Never\"",
        ),
        (
            format!("{BATCH}/jobs"),
            job(json!({"completionMode": "Indexed", "parallelism": 1})),
            "when completion mode is Indexed",
        ),
        (
            format!("{BATCH}/jobs"),
            job(json!({"selector": {"matchLabels": {"app": "a"}}})),
            "`selector` not auto-generated",
        ),
        (
            format!("{BATCH}/jobs"),
            job(json!({"backoffLimitPerIndex": 1})),
            "requires indexed completion mode",
        ),
        (
            format!("{BATCH}/cronjobs"),
            cron(json!({"schedule": "61 * * * *"})),
            "spec.schedule: Invalid value",
        ),
        (
            format!("{BATCH}/cronjobs"),
            cron(json!({"schedule": "TZ=UTC 1 * * * *"})),
            "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        ),
        (
            format!("{BATCH}/cronjobs"),
            cron(json!({"timeZone": "Mars/Olympus"})),
            "unknown time zone Mars/Olympus",
        ),
        (
            format!("{BATCH}/cronjobs"),
            cron(json!({"concurrencyPolicy": "Maybe"})),
            "supported values: \"Allow\", \"Forbid\", \"Replace\"",
        ),
        (
            format!("{CORE}/resourcequotas"),
            json!({"metadata": {"name": "x"}, "spec": {"hard": {"pods": "-1"}}}),
            "spec.hard[pods]: Invalid value: \"-1\": must be greater than or equal to 0",
        ),
        (
            format!("{CORE}/resourcequotas"),
            json!({"metadata": {"name": "x"}, "spec": {"scopes": ["BestEffort", "NotBestEffort"]}}),
            "conflicting scopes",
        ),
        (
            format!("{CORE}/limitranges"),
            json!({"metadata": {"name": "x"}, "spec": {"limits": [{"type": "Container", "min": {"cpu": "2"}, "max": {"cpu": "1"}}]}}),
            "min value 2 is greater than max value 1",
        ),
        (
            format!("{CORE}/endpoints"),
            json!({"metadata": {"name": "x"}, "subsets": [{"addresses": [{"ip": "127.0.0.1"}]}]}),
            "may not be in the loopback range",
        ),
        (
            format!("{POLICY}/poddisruptionbudgets"),
            json!({"metadata": {"name": "x"}, "spec": {"minAvailable": 1, "maxUnavailable": 1}}),
            "minAvailable and maxUnavailable cannot be both set",
        ),
        (
            format!("{DISCOVERY}/endpointslices"),
            json!({"metadata": {"name": "x"}, "addressType": "IPv4", "endpoints": [{"addresses": ["::1"]}]}),
            "must be an IPv4 address",
        ),
    ] {
        let (code, status) = call(&client, "POST", &path, object.clone()).await;
        let message = status["message"].as_str().unwrap_or_default();
        assert!(code == 422 && message.contains(words), "{path} {object}: {code} {message}");
    }
    harness.stop().await;
}

#[tokio::test]
async fn what_nobody_said_is_filled_in_and_what_may_not_change_stays() {
    let harness = Harness::start().await;
    let client = harness.local();
    let (code, made) = call(&client, "POST", &format!("{BATCH}/jobs"), job(json!({}))).await;
    assert_eq!(code, 201, "{made}");
    let uid = made["metadata"]["uid"].clone();
    assert_eq!(made["spec"]["selector"], json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}));
    assert_eq!(made["spec"]["template"]["metadata"]["labels"]["batch.kubernetes.io/job-name"], "x");
    assert_eq!(made["metadata"]["labels"], json!({"app": "a"}));
    for (field, value) in [
        ("completions", json!(1)),
        ("parallelism", json!(1)),
        ("backoffLimit", json!(6)),
        ("completionMode", json!("NonIndexed")),
        ("suspend", json!(false)),
        ("podReplacementPolicy", json!("TerminatingOrFailed")),
    ] {
        assert_eq!(made["spec"][field], value, "{field}");
    }
    let merge = |path: String, patch: Value| {
        let client = client.clone();
        async move { call_as(&client, "PATCH", &path, "application/merge-patch+json", patch.to_string()).await }
    };
    let (code, refused) = merge(format!("{BATCH}/jobs/x"), json!({"spec": {"completions": 2}})).await;
    assert!(code == 422 && refused["message"].as_str().unwrap().contains("field is immutable"), "{refused}");
    let (code, changed) = merge(format!("{BATCH}/jobs/x"), json!({"spec": {"parallelism": 2}})).await;
    assert_eq!((code, &changed["metadata"]["generation"]), (200, &json!(2)));

    let set = workload(json!({"serviceName": "s"}));
    let (_, made) = call(&client, "POST", &format!("{APPS}/statefulsets"), set).await;
    assert_eq!(
        made["spec"]["updateStrategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}})
    );
    assert_eq!(made["spec"]["podManagementPolicy"], "OrderedReady");
    let (code, refused) =
        merge(format!("{APPS}/statefulsets/x"), json!({"spec": {"serviceName": "t"}})).await;
    let words = "updates to statefulset spec for fields other than 'replicas'";
    assert!(code == 422 && refused["message"].as_str().unwrap().contains(words), "{refused}");
    let (code, scaled) =
        merge(format!("{APPS}/statefulsets/x/scale"), json!({"spec": {"replicas": 4}})).await;
    assert_eq!((code, &scaled["spec"]["replicas"]), (200, &json!(4)));

    let (_, made) = call(&client, "POST", &format!("{APPS}/daemonsets"), workload(json!({}))).await;
    let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}});
    assert_eq!(made["spec"]["updateStrategy"], rolling);
    let range = json!({"metadata": {"name": "x"}, "spec": {"limits": [
        {"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}]}});
    let (_, made) = call(&client, "POST", &format!("{CORE}/limitranges"), range).await;
    let limits = &made["spec"]["limits"][0];
    assert_eq!(limits["default"], json!({"cpu": "2"}));
    assert_eq!(limits["defaultRequest"], json!({"cpu": "2", "memory": "1Mi"}));
    harness.stop().await;
}

#[tokio::test]
async fn workloads_are_shown_as_kubectl_shows_them() {
    let harness = Harness::start().await;
    let client = harness.local();
    for (path, object, name, cells) in [
        (format!("{BATCH}/jobs"), job(json!({"completions": 3})), "Completions", json!("0/3")),
        (
            format!("{BATCH}/cronjobs"),
            cron(json!({"timeZone": "Europe/Berlin"})),
            "Timezone",
            json!("Europe/Berlin"),
        ),
        (format!("{APPS}/daemonsets"), workload(json!({})), "Node Selector", json!("<none>")),
        (format!("{APPS}/statefulsets"), workload(json!({})), "Ready", json!("0/1")),
        (
            format!("{POLICY}/poddisruptionbudgets"),
            json!({"metadata": {"name": "x"}, "spec": {"minAvailable": "50%"}}),
            "Min Available",
            json!("50%"),
        ),
    ] {
        assert_eq!(call(&client, "POST", &path, object).await.0, 201, "{path}");
        let request = http::Request::get(&path)
            .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
            .body(Vec::new())
            .unwrap();
        let table: Value =
            serde_json::from_slice(crate::harness::send(&client, request).await.body()).unwrap();
        let columns = table["columnDefinitions"].as_array().unwrap();
        let at = columns.iter().position(|column| column["name"] == name).unwrap();
        assert_eq!(table["rows"][0]["cells"][at], cells, "{path}");
    }
    let (code, found) = get(&client, "/apis/batch/v1").await;
    assert_eq!(code, 200);
    let names: Vec<_> =
        found["resources"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
    assert_eq!(names, ["cronjobs", "cronjobs/status", "jobs", "jobs/status"]);
    harness.stop().await;
}
