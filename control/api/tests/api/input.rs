//! Bad input of every sort gets the right answer, and the server goes on.

use http::Request;
use serde_json::{Value, json};

use crate::harness::{Harness, call, call_as, get, send};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test]
async fn malformed_requests_are_refused() {
    let harness = Harness::start().await;
    let client = harness.local();
    call(&client, "POST", MAPS, json!({"metadata": {"name": "a"}})).await;
    let json = "application/json";
    let one = format!("{MAPS}/a");
    let cases: &[(&str, &str, &str, &str, u16)] = &[
        ("POST", MAPS, json, "", 400),
        ("POST", MAPS, json, "{", 400),
        ("POST", MAPS, json, "[]", 400),
        ("POST", MAPS, json, "null", 422),
        ("POST", MAPS, json, "7", 400),
        ("POST", MAPS, json, r#"{"metadata":{"name":7}}"#, 400),
        ("POST", MAPS, json, r#"{"metadata":[]}"#, 400),
        ("POST", MAPS, json, r#"{"metadata":{"name":"x"},"data":{"k":{}}}"#, 400),
        ("POST", MAPS, json, r#"{"kind":"Secret","metadata":{"name":"x"}}"#, 400),
        ("POST", MAPS, json, r#"{"apiVersion":"v2","metadata":{"name":"x"}}"#, 400),
        ("POST", MAPS, json, r#"{"metadata":{"name":"x","namespace":"other"}}"#, 400),
        ("POST", MAPS, json, r#"{"metadata":{"name":"x","resourceVersion":"5"}}"#, 400),
        ("POST", MAPS, json, r#"{"metadata":{}}"#, 422),
        ("POST", MAPS, json, r#"{"metadata":{"name":"x/y"}}"#, 422),
        ("POST", MAPS, json, r#"{"metadata":{"name":"x","labels":{"a b":"c"}}}"#, 422),
        ("POST", MAPS, json, r#"{"metadata":{"name":"x"},"data":{"a/b":"c"}}"#, 422),
        ("POST", MAPS, "application/cbor", "k8s", 415),
        ("POST", MAPS, "text/plain", "{}", 415),
        ("POST", "/api/v1/configmaps", json, r#"{"metadata":{"name":"x"}}"#, 405),
        ("POST", &one, json, "{}", 405),
        ("PUT", MAPS, json, "{}", 405),
        ("PUT", &one, json, r#"{"metadata":{"name":"b"}}"#, 400),
        ("PUT", &one, json, r#"{"metadata":{}}"#, 400),
        ("PUT", &one, json, r#"{"metadata":{"name":"a","resourceVersion":"x"}}"#, 409),
        ("PUT", &one, json, r#"{"metadata":{"name":"a","uid":"x"}}"#, 409),
        ("OPTIONS", MAPS, json, "", 405),
        ("GET", "/api/v1/namespaces/default/nodes", json, "", 404),
        ("GET", "/api/v1/configmaps/a", json, "", 404),
        ("GET", "/api/v1/namespaces/default/configmaps/a/status", json, "", 404),
        ("GET", "/api/v1/namespaces/default/configmaps/a/b/c", json, "", 404),
        ("GET", "/api/v1/namespaces/default/pods/a/exec", json, "", 404),
        ("GET", "/api/v1/namespaces/%ff/configmaps", json, "", 400),
        ("GET", "/nothing", json, "", 404),
        ("GET", "/apis/apps/v1/x/y/z/w", json, "", 404),
        ("DELETE", &one, json, "{", 400),
        ("DELETE", &one, json, r#"{"propagationPolicy":"Never"}"#, 422),
        ("DELETE", &one, json, r#"{"kind":"Pod"}"#, 400),
        ("DELETE", "/api/v1/namespaces", json, "", 405),
        ("POST", "/version", json, "{}", 405),
    ];
    for (method, path, type_, body, want) in cases {
        let request = Request::builder()
            .method(*method)
            .uri(*path)
            .header("content-type", *type_)
            .body(body.as_bytes().to_vec())
            .unwrap();
        let response = send(&client, request).await;
        let text = String::from_utf8_lossy(response.body()).into_owned();
        assert_eq!(response.status().as_u16(), *want, "{method} {path} {body}: {text}");
        let status: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&status["kind"], &status["code"]),
            (&json!("Status"), &json!(want)),
            "{method} {path} {body}"
        );
    }
    for query in ["limit=x", "watch=maybe", "watch=1&timeoutSeconds=x", "dryRun=Some", "labelSelector=%ff"] {
        let code = if query.starts_with("dryRun") {
            call(&client, "POST", &format!("{MAPS}?{query}"), json!({"metadata": {"name": "z"}})).await.0
        } else {
            get(&client, &format!("{MAPS}?{query}")).await.0
        };
        assert!((400..500).contains(&code), "{query}: {code}");
    }
    let huge = json!({"metadata": {"name": "x"}, "data": {"k": "x".repeat(4 << 20)}});
    assert_eq!(call(&client, "POST", MAPS, huge).await.0, 413);
    let big = json!({"metadata": {"name": "x"}, "data": {"k": "x".repeat(2 << 20)}});
    assert_eq!(call(&client, "POST", MAPS, big).await.0, 422);
    let deep = format!("{}{}", r#"{"metadata":{"name":"x"},"data":"#, "[".repeat(100_000));
    assert_eq!(call_as(&client, "POST", MAPS, json, deep).await.0, 400);
    assert_eq!(get(&client, &one).await.0, 200);
}

#[tokio::test]
async fn objects_that_make_no_sense_are_invalid() {
    let harness = Harness::start().await;
    let client = harness.local();
    let container = |extra: Value| {
        let mut container = json!({"name": "c", "image": "i"});
        for (key, value) in extra.as_object().unwrap() {
            container[key] = value.clone();
        }
        json!({"containers": [container]})
    };
    let specs: &[(Value, &str)] = &[
        (json!({"containers": []}), "spec.containers: Required value"),
        (json!({"containers": [{"name": "c"}]}), "spec.containers[0].image: Required value"),
        (
            json!({"containers": [{"name": "C", "image": "i"}]}),
            "spec.containers[0].name: Invalid value: \"C\": a lowercase RFC 1123 label",
        ),
        (
            json!({"containers": [{"name": "c", "image": "i"}, {"name": "c", "image": "i"}]}),
            "spec.containers[1].name: Duplicate value: \"c\"",
        ),
        (
            container(json!({"ports": [{"containerPort": 70000}]})),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            container(json!({"ports": [{"containerPort": 80, "protocol": "ICMP"}]})),
            "spec.containers[0].ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ),
        (
            container(json!({"env": [{"name": "a=b"}]})),
            "spec.containers[0].env[0].name: Invalid value: \"a=b\": a valid environment variable name",
        ),
        (
            container(json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]})),
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
        ),
        (
            container(json!({"imagePullPolicy": "Sometimes"})),
            "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\"",
        ),
        (
            container(json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}})),
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            container(json!({"readinessProbe": {"httpGet": {"port": 0}}})),
            "spec.containers[0].readinessProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            container(json!({"livenessProbe": {}})),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
    ];
    for (spec, want) in specs {
        let (code, status) =
            call(&client, "POST", PODS, json!({"metadata": {"name": "p"}, "spec": spec})).await;
        let message = status["message"].as_str().unwrap();
        assert_eq!(code, 422, "{spec}: {message}");
        assert!(message.starts_with(&format!("Pod \"p\" is invalid: {want}")), "{spec}: {message}");
    }
    let mut policy = container(json!({}));
    policy["restartPolicy"] = json!("Perhaps");
    let (code, status) =
        call(&client, "POST", PODS, json!({"metadata": {"name": "p"}, "spec": policy})).await;
    assert_eq!(code, 422);
    assert_eq!(
        status["message"],
        "Pod \"p\" is invalid: spec.restartPolicy: Unsupported value: \"Perhaps\": supported values: \"Always\", \"OnFailure\", \"Never\""
    );
    let deployment = |selector: &str| {
        json!({"metadata": {"name": "d"}, "spec": {
            "selector": {"matchLabels": {"app": selector}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": container(json!({}))},
        }})
    };
    let (code, status) = call(&client, "POST", DEPLOYMENTS, deployment("other")).await;
    assert_eq!(code, 422);
    assert_eq!(
        status["message"],
        "Deployment.apps \"d\" is invalid: spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`"
    );
    assert_eq!(
        (&status["details"]["group"], &status["details"]["kind"]),
        (&json!("apps"), &json!("Deployment"))
    );
    assert_eq!(call(&client, "POST", DEPLOYMENTS, deployment("web")).await.0, 201);
    let change = json!({"spec": {"selector": {"matchLabels": {"more": "x"}}, "template": {"metadata": {"labels": {"more": "x"}}}}});
    let (code, status) = call_as(
        &client,
        "PATCH",
        &format!("{DEPLOYMENTS}/d"),
        "application/merge-patch+json",
        change.to_string(),
    )
    .await;
    assert_eq!(code, 422);
    assert!(status["message"].as_str().unwrap().ends_with("field is immutable"), "{status}");
}

#[tokio::test]
async fn what_is_marked_immutable_stays() {
    let harness = Harness::start().await;
    let client = harness.local();
    let secrets = "/api/v1/namespaces/default/secrets";
    call(&client, "POST", MAPS, json!({"metadata": {"name": "m"}, "data": {"k": "v"}, "immutable": true}))
        .await;
    let (_, made) =
        call(&client, "POST", secrets, json!({"metadata": {"name": "s"}, "stringData": {"k": "v"}})).await;
    assert_eq!((&made["data"], made.get("stringData")), (&json!({"k": "dg=="}), None));
    let merge = "application/merge-patch+json";
    for (path, patch) in [
        (format!("{MAPS}/m"), json!({"data": {"k": "w"}})),
        (format!("{MAPS}/m"), json!({"immutable": false})),
        (format!("{secrets}/s"), json!({"type": "other"})),
    ] {
        let (code, status) = call_as(&client, "PATCH", &path, merge, patch.to_string()).await;
        assert_eq!(code, 422, "{path} {patch}: {status}");
    }
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    assert_eq!(call_as(&client, "PATCH", &format!("{MAPS}/m"), merge, label.to_string()).await.0, 200);
}
