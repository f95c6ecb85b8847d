//! LimitRanges: what pods get that ask for nothing, and what they may not ask.

use serde_json::{Value, json};

use crate::harness::{Harness, call, call_as};

const RANGES: &str = "/api/v1/namespaces/default/limitranges";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn range(name: &str, limits: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"limits": limits}})
}

fn pod(name: &str, containers: &[Value]) -> Value {
    let containers: Vec<Value> = containers
        .iter()
        .enumerate()
        .map(|(n, resources)| json!({"name": format!("c{n}"), "image": "i", "resources": resources}))
        .collect();
    json!({"metadata": {"name": name}, "spec": {"containers": containers}})
}

#[tokio::test]
async fn a_container_that_asks_for_nothing_gets_the_defaults_of_its_namespace() {
    let harness = Harness::start().await;
    let client = harness.local();
    let limits = json!([{"type": "Container", "default": {"cpu": "0.5", "memory": "64Mi"},
        "defaultRequest": {"cpu": "100m"}}]);
    assert_eq!(call(&client, "POST", RANGES, range("usual", limits)).await.0, 201);

    let mut asks =
        pod("asks", &[json!({}), json!({"requests": {"cpu": "200m"}, "limits": {"memory": "1Gi"}})]);
    asks["spec"]["initContainers"] = json!([{"name": "first", "image": "i"}]);
    let (code, made) = call(&client, "POST", PODS, asks).await;
    assert_eq!(code, 201, "{made}");
    let all =
        json!({"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "100m", "memory": "64Mi"}});
    assert_eq!(made["spec"]["containers"][0]["resources"], all);
    let some =
        json!({"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "200m", "memory": "1Gi"}});
    assert_eq!(made["spec"]["containers"][1]["resources"], some);
    assert_eq!(made["spec"]["initContainers"][0]["resources"], all);
    assert_eq!(
        made["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu, memory request for container c0; cpu, memory limit for container c0; \
         cpu limit for container c1; cpu, memory request for init container first; \
         cpu, memory limit for init container first"
    );
    assert_eq!(made["status"]["qosClass"], "Burstable", "by what it asks now");

    // Who asks for everything is left alone.
    let (_, own) = call(&client, "POST", PODS, pod("own", std::slice::from_ref(&all))).await;
    assert!(own["metadata"]["annotations"].is_null(), "{own}");
    // And what is there already may be changed as before.
    let merge = "application/merge-patch+json";
    let label = json!({"metadata": {"labels": {"a": "b"}}}).to_string();
    let (code, changed) = call_as(&client, "PATCH", &format!("{PODS}/asks"), merge, label).await;
    assert_eq!((code, &changed["spec"]), (200, &made["spec"]));
    // Elsewhere there are no such limits.
    call(&client, "POST", "/api/v1/namespaces", json!({"metadata": {"name": "free"}})).await;
    let account = json!({"metadata": {"name": "default"}, "automountServiceAccountToken": false});
    call(&client, "POST", "/api/v1/namespaces/free/serviceaccounts", account).await;
    let (_, free) = call(&client, "POST", "/api/v1/namespaces/free/pods", pod("free", &[json!({})])).await;
    assert_eq!(
        (&free["spec"]["containers"][0]["resources"], &free["status"]["qosClass"]),
        (&json!({}), &json!("BestEffort"))
    );
    harness.stop().await;
}

#[tokio::test]
async fn a_pod_that_asks_for_more_or_less_than_it_may_is_forbidden_in_kubernetes_words() {
    let harness = Harness::start().await;
    let client = harness.local();
    let limits = json!([
        {"type": "Container", "max": {"cpu": "500m"}, "min": {"cpu": "50m"}, "maxLimitRequestRatio": {"cpu": "4"}},
        {"type": "Pod", "max": {"cpu": "800m"}},
        {"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}},
    ]);
    let (code, made) = call(&client, "POST", RANGES, range("bounds", limits)).await;
    assert_eq!(code, 201, "{made}");
    let cpu = |request: &str, limit: &str| json!({"requests": {"cpu": request}, "limits": {"cpu": limit}});
    for (containers, why) in [
        (vec![cpu("500m", "500m")], ""),
        (
            vec![json!({"limits": {"cpu": "0.6"}})],
            "maximum cpu usage per Container is 500m, but limit is 600m",
        ),
        (
            vec![cpu("400m", "400m"), cpu("100m", "500m")],
            "[cpu max limit to request ratio per Container is 4, but \
            provided ratio is 5.000000, maximum cpu usage per Pod is 800m, but limit is 900m]",
        ),
        (
            vec![cpu("10m", "50m")],
            "[minimum cpu usage per Container is 50m, but request is 10m, \
            cpu max limit to request ratio per Container is 4, but provided ratio is 5.000000]",
        ),
        (vec![cpu("400m", "400m"), cpu("400m", "400m")], ""),
        (
            vec![cpu("300m", "400m"), cpu("300m", "500m")],
            "maximum cpu usage per Pod is 800m, but limit is 900m",
        ),
    ] {
        let (code, status) =
            call(&client, "POST", &format!("{PODS}?dryRun=All"), pod("p", &containers)).await;
        let message = status["message"].as_str().unwrap_or_default();
        match why {
            "" => assert_eq!(code, 201, "{status}"),
            why => {
                let whole = format!("pods \"p\" is forbidden: {why}");
                assert_eq!(message, whole);
                assert_eq!((code, &status["reason"]), (403, &json!("Forbidden")));
            }
        }
    }
    harness.stop().await;
}

#[tokio::test]
async fn a_range_that_contradicts_itself_is_refused() {
    let harness = Harness::start().await;
    let client = harness.local();
    for (item, field, words) in [
        (
            json!({"type": "Node"}),
            "type",
            "Invalid value: \"Node\": must be a standard limit type or fully qualified",
        ),
        (
            json!({"type": "Pod", "default": {"cpu": "1"}}),
            "default",
            "Forbidden: may not be specified when `type` is 'Pod'",
        ),
        (
            json!({"type": "PersistentVolumeClaim"}),
            "limits",
            "Required value: either minimum or maximum storage value is required, but neither was provided",
        ),
        (
            json!({"type": "Pod", "max": {"storage": "1"}}),
            "max[storage]",
            "Invalid value: \"storage\": must be a standard resource for containers",
        ),
        (
            json!({"type": "example.com/x", "max": {"gold": "1"}}),
            "max[gold]",
            "Invalid value: \"gold\": must be a standard resource type or fully qualified",
        ),
        (
            json!({"type": "Pod", "max": {"cpu": "1000m"}, "min": {"cpu": "2"}}),
            "min[cpu]",
            "Invalid value: \"2\": min value 2 is greater than max value 1",
        ),
        (
            json!({"type": "Container", "defaultRequest": {"cpu": "2"}, "max": {"cpu": "1"}}),
            "defaultRequest[cpu]",
            "Invalid value: \"2\": default request value 2 is greater than max value 1",
        ),
        (
            json!({"type": "Container", "defaultRequest": {"cpu": "1"}, "min": {"cpu": "2"}}),
            "defaultRequest[cpu]",
            "Invalid value: \"1\": min value 2 is greater than default request value 1",
        ),
        (
            json!({"type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "2"}}),
            "defaultRequest[cpu]",
            "Invalid value: \"2\": default request value 2 is greater than default limit value 1",
        ),
        (
            json!({"type": "Container", "default": {"cpu": "2"}, "max": {"cpu": "1"}}),
            "default[cpu]",
            "Invalid value: \"2\": default value 2 is greater than max value 1",
        ),
        (
            json!({"type": "Pod", "maxLimitRequestRatio": {"cpu": "0.5"}}),
            "maxLimitRequestRatio[cpu]",
            "Invalid value: \"500m\": ratio 500m is less than 1",
        ),
        (
            json!({"type": "Pod", "min": {"cpu": "1"}, "max": {"cpu": "2"}, "maxLimitRequestRatio": {"cpu": "3"}}),
            "maxLimitRequestRatio[cpu]",
            "Invalid value: \"3\": ratio 3 is greater than max/min = 2.000000",
        ),
        (
            json!({"type": "Container", "default": {"example.com/gpu": "2"}, "defaultRequest": {"example.com/gpu": "1"}}),
            "defaultRequest[example.com/gpu]",
            "Invalid value: \"1\": default value 2 must equal to defaultRequest value 1 in example.com/gpu",
        ),
    ] {
        let (code, status) = call(&client, "POST", RANGES, range("x", json!([item]))).await;
        let message = status["message"].as_str().unwrap_or_default();
        let whole = format!("spec.limits[0].{field}: {words}");
        assert!(code == 422 && message.contains(&whole), "{item}: {code} {message}\n{whole}");
    }
    let twice = json!([{"type": "Pod"}, {"type": "Pod"}]);
    let (code, status) = call(&client, "POST", RANGES, range("x", twice)).await;
    assert_eq!(
        (code, &status["message"]),
        (422, &json!("LimitRange \"x\" is invalid: spec.limits[1].type: Duplicate value: \"Pod\""))
    );
    harness.stop().await;
}
