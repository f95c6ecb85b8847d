//! patch and server-side apply through the server.

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::harness::{Harness, call, call_as, get, send};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn deployment(image: &str, replicas: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
        },
    })
}

#[tokio::test]
async fn every_patch_type_patches() {
    let harness = Harness::start().await;
    let client = harness.local();
    let path = format!("{MAPS}/a");
    call(&client, "POST", MAPS, json!({"metadata": {"name": "a"}, "data": {"k": "v", "l": "w"}})).await;
    let patches = [
        (
            "application/json-patch+json",
            json!([{"op": "replace", "path": "/data/k", "value": "1"}]),
            json!({"k": "1", "l": "w"}),
        ),
        ("application/merge-patch+json", json!({"data": {"l": null}}), json!({"k": "1"})),
        ("application/strategic-merge-patch+json", json!({"data": {"m": "2"}}), json!({"k": "1", "m": "2"})),
    ];
    for (type_, patch, want) in patches {
        let (code, patched) = call_as(&client, "PATCH", &path, type_, patch.to_string()).await;
        assert_eq!((code, &patched["data"]), (200, &want), "{type_}: {patched}");
    }
    let bad = [
        ("application/json-patch+json", "{}", 400),
        ("application/json-patch+json", r#"[{"op":"test","path":"/data/k","value":"no"}]"#, 422),
        ("application/merge-patch+json", "[", 400),
        ("application/merge-patch+json", r#"{"metadata":{"name":"b"}}"#, 400),
        ("application/merge-patch+json", r#"{"metadata":{"resourceVersion":"1"}}"#, 409),
        ("application/json", "{}", 415),
        ("text/plain", "{}", 415),
    ];
    for (type_, patch, want) in bad {
        let (code, status) = call_as(&client, "PATCH", &path, type_, patch).await;
        assert_eq!(code, want, "{type_} {patch}: {status}");
    }
    let (code, _) =
        call_as(&client, "PATCH", &format!("{MAPS}/none"), "application/merge-patch+json", "{}").await;
    assert_eq!(code, 404);
}

#[tokio::test]
async fn apply_makes_changes_and_removes() {
    let harness = Harness::start().await;
    let client = harness.admin();
    let api: Api<Deployment> = Api::default_namespaced(client.clone());
    let apply = PatchParams::apply("wctl");
    let made = api.patch("web", &apply, &Patch::Apply(deployment("i:1", json!(2)))).await.unwrap();
    assert_eq!(made.metadata.generation, Some(1));
    let managed = made.metadata.managed_fields.clone().unwrap();
    assert_eq!(
        (managed.len(), managed[0].manager.as_deref(), managed[0].operation.as_deref()),
        (1, Some("wctl"), Some("Apply"))
    );
    // Applied again, nothing is written.
    let same = api.patch("web", &apply, &Patch::Apply(deployment("i:1", json!(2)))).await.unwrap();
    assert_eq!(same.metadata.resource_version, made.metadata.resource_version);
    let changed = api.patch("web", &apply, &Patch::Apply(deployment("i:2", Value::Null))).await.unwrap();
    assert_eq!(changed.metadata.generation, Some(2));
    let spec = changed.spec.unwrap();
    assert_eq!(spec.template.spec.unwrap().containers[0].image.as_deref(), Some("i:2"));
    // A field that is no longer applied is gone, so its default is back.
    assert_eq!(spec.replicas, Some(1));
}

#[tokio::test]
async fn fields_of_others_are_conflicts_until_forced() {
    let harness = Harness::start().await;
    let client = harness.local();
    let path = "/apis/apps/v1/namespaces/default/deployments/web";
    let apply = async |manager: &str, force: bool, body: &Value| {
        let path = format!("{path}?fieldManager={manager}&force={force}");
        call_as(&client, "PATCH", &path, "application/apply-patch+yaml", body.to_string()).await
    };
    assert_eq!(apply("a", false, &deployment("i", json!(2))).await.0, 201);
    assert_eq!(apply("b", false, &deployment("i", json!(2))).await.0, 200, "equal values are shared");
    let (code, status) = apply("b", false, &deployment("i", json!(3))).await;
    assert_eq!(code, 409);
    assert_eq!(status["message"], "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas");
    assert_eq!(
        status["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"a\"", "field": ".spec.replicas"}])
    );
    assert_eq!(apply("b", true, &deployment("i", json!(3))).await.1["spec"]["replicas"], 3);
    let (code, _) = call_as(
        &client,
        "PATCH",
        path,
        "application/apply-patch+yaml",
        deployment("i", json!(3)).to_string(),
    )
    .await;
    assert_eq!(code, 422, "an apply needs a field manager");
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: y\ndata:\n  k: v\n";
    let (code, made) =
        call_as(&client, "PATCH", &format!("{MAPS}/y?fieldManager=m"), "application/apply-patch+yaml", yaml)
            .await;
    assert_eq!((code, &made["data"]), (201, &json!({"k": "v"})));
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let harness = Harness::start().await;
    let client = harness.local();
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let path = format!("{deployments}/web");
    let mut body = deployment("i", json!(2));
    body["status"] = json!({"replicas": 9});
    let (code, made) = call(&client, "POST", deployments, body).await;
    assert_eq!((code, made["status"].get("replicas")), (201, None));
    let merge = "application/merge-patch+json";
    let both = json!({"spec": {"replicas": 5}, "status": {"replicas": 4}}).to_string();
    let (_, main) = call_as(&client, "PATCH", &path, merge, both.clone()).await;
    assert_eq!((&main["spec"]["replicas"], main["status"].get("replicas")), (&json!(5), None));
    assert_eq!(main["metadata"]["generation"], 2);
    let (_, status) = call_as(&client, "PATCH", &format!("{path}/status"), merge, both).await;
    assert_eq!((&status["spec"]["replicas"], &status["status"]["replicas"]), (&json!(5), &json!(4)));
    assert_eq!(status["metadata"]["generation"], 2, "a status is no new generation");
    // scale reads and writes the replicas alone.
    let (_, scale) = get(&client, &format!("{path}/scale")).await;
    assert_eq!(scale["kind"], "Scale");
    assert_eq!(
        (&scale["spec"], &scale["status"]),
        (&json!({"replicas": 5}), &json!({"replicas": 4, "selector": "app=web"}))
    );
    let (code, scaled) = call_as(
        &client,
        "PATCH",
        &format!("{path}/scale"),
        merge,
        json!({"spec": {"replicas": 7}}).to_string(),
    )
    .await;
    assert_eq!((code, &scaled["spec"]["replicas"]), (200, &json!(7)));
    let mut stale = scale;
    stale["spec"]["replicas"] = json!(1);
    assert_eq!(call(&client, "PUT", &format!("{path}/scale"), stale).await.0, 409);
    let negative = json!({"metadata": {"name": "web"}, "spec": {"replicas": -1}});
    assert_eq!(call(&client, "PUT", &format!("{path}/scale"), negative).await.0, 422);
    let api: Api<Deployment> = Api::default_namespaced(client.clone());
    assert_eq!(api.get("web").await.unwrap().spec.unwrap().replicas, Some(7));
    assert_eq!(get(&client, "/api/v1/namespaces/default/configmaps/x/scale").await.0, 404);
}

#[tokio::test]
async fn unknown_fields_are_refused_told_or_passed_over() {
    let harness = Harness::start().await;
    let client = harness.local();
    let body = r#"{"metadata":{"name":"NAME"},"data":{"k":"v"},"dtaa":{},"data":{"k":"w"}}"#;
    let post = async |validation: &str, name: &str| {
        let request = http::Request::post(format!("{MAPS}?fieldValidation={validation}"))
            .header("content-type", "application/json")
            .body(body.replace("NAME", name).into_bytes())
            .unwrap();
        send(&client, request).await
    };
    let strict = post("Strict", "a").await;
    assert_eq!(strict.status(), 400);
    let text = String::from_utf8_lossy(strict.body()).into_owned();
    assert!(
        text.contains(r#"strict decoding error: "#) && text.contains(r#"unknown field \"dtaa\""#),
        "{text}"
    );
    let warn = post("Warn", "b").await;
    assert_eq!(warn.status(), 201);
    let warnings: Vec<_> =
        warn.headers().get_all("warning").iter().map(|w| w.to_str().unwrap().to_owned()).collect();
    assert!(warnings.contains(&r#"299 - "unknown field \"dtaa\"""#.to_owned()), "{warnings:?}");
    let ignore = post("Ignore", "c").await;
    assert_eq!((ignore.status().as_u16(), ignore.headers().contains_key("warning")), (201, false));
    assert_eq!(post("Perhaps", "d").await.status(), 422);
}
