//! OpenAPI documents, as kubectl and client-go read them.

use std::io::Read as _;

use http::Request;
use serde_json::Value;

use crate::harness::{Harness, send};

async fn get(client: &kube::Client, path: &str, headers: &[(&str, &str)]) -> (u16, http::HeaderMap, Vec<u8>) {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = send(client, request.body(Vec::new()).unwrap()).await;
    let (parts, body) = response.into_parts();
    (parts.status.as_u16(), parts.headers, body)
}

async fn json(client: &kube::Client, path: &str) -> Value {
    let (code, _, body) = get(client, path, &[]).await;
    assert_eq!(code, 200, "{path}");
    serde_json::from_slice(&body).unwrap()
}

/// Every `$ref` of a document.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[tokio::test]
async fn each_served_group_version_has_a_document_whose_references_lead_somewhere() {
    let harness = Harness::start().await;
    let client = harness.admin();
    let index = json(&client, "/openapi/v3").await;
    let groups = json(&client, "/apis").await;
    let mut wanted = vec!["api/v1".to_owned()];
    for group in groups["groups"].as_array().unwrap() {
        for version in group["versions"].as_array().unwrap() {
            wanted.push(format!("apis/{}", version["groupVersion"].as_str().unwrap()));
        }
    }
    wanted.sort();
    let found: Vec<&String> = index["paths"].as_object().unwrap().keys().collect();
    assert_eq!(found, wanted.iter().collect::<Vec<_>>());
    for (path, entry) in index["paths"].as_object().unwrap() {
        let document = json(&client, entry["serverRelativeURL"].as_str().unwrap()).await;
        let mut all = Vec::new();
        references(&document, &mut all);
        assert!(!all.is_empty(), "{path}");
        for reference in all {
            let at = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(at).is_some_and(Value::is_object), "{path}: {reference}");
        }
    }
    let v2 = json(&client, "/openapi/v2").await;
    let mut all = Vec::new();
    references(&v2, &mut all);
    assert!(all.iter().all(|reference| v2.pointer(&reference[1..]).is_some_and(Value::is_object)));
}

#[tokio::test]
async fn a_kinds_patch_and_schema_say_what_kubectl_looks_for() {
    let harness = Harness::start().await;
    let apps = json(&harness.admin(), "/openapi/v3/apis/apps/v1").await;
    let patch = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
    assert_eq!(patch["x-kubernetes-action"], "patch");
    assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
    let names: Vec<&str> =
        patch["parameters"].as_array().unwrap().iter().filter_map(|own| own["name"].as_str()).collect();
    assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
    assert!(patch["requestBody"]["content"]["application/apply-patch+yaml"].is_object());
    let schemas = &apps["components"]["schemas"];
    let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(
        deployment["x-kubernetes-group-version-kind"],
        serde_json::json!([{"group": "apps", "version": "v1", "kind": "Deployment"}])
    );
    assert_eq!(deployment["description"], "Deployment enables declarative updates for Pods and ReplicaSets.");
    let strategy = &schemas["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["strategy"];
    assert_eq!(strategy["x-kubernetes-patch-strategy"], "retainKeys");
    assert_eq!(strategy["allOf"][0]["$ref"], "#/components/schemas/io.k8s.api.apps.v1.DeploymentStrategy");
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-list-type"], "map");
    assert_eq!(containers["x-kubernetes-list-map-keys"], serde_json::json!(["name"]));
    assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    let scale = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["get"];
    assert_eq!(scale["x-kubernetes-group-version-kind"]["group"], "autoscaling");
}

#[tokio::test]
async fn documents_are_cached_by_their_hash_and_compressed_when_asked() {
    let harness = Harness::start().await;
    let client = harness.admin();
    let index = json(&client, "/openapi/v3").await;
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    let (code, headers, plain) = get(&client, url, &[]).await;
    assert_eq!(code, 200);
    assert!(headers["cache-control"].to_str().unwrap().contains("immutable"));
    let tag = headers["etag"].to_str().unwrap().to_owned();
    let (code, _, body) = get(&client, url, &[("If-None-Match", &tag)]).await;
    assert_eq!((code, body.len()), (304, 0));
    let (code, headers, packed) = get(&client, url, &[("Accept-Encoding", "gzip;q=0.9, br")]).await;
    assert_eq!((code, headers["content-encoding"].to_str().unwrap()), (200, "gzip"));
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut unpacked).unwrap();
    assert_eq!(unpacked, plain);
    assert!(packed.len() * 4 < plain.len(), "{} of {}", packed.len(), plain.len());
    let (_, headers, _) = get(&client, url, &[("Accept-Encoding", "gzip;q=0")]).await;
    assert!(headers.get("content-encoding").is_none());
    let (code, headers, _) = get(&client, "/openapi/v3/apis/apps/v1?hash=OLD", &[]).await;
    assert_eq!((code, headers["location"].to_str().unwrap()), (301, url));
    let (_, headers, _) = get(&client, "/openapi/v3/apis/apps/v1", &[]).await;
    assert!(!headers["cache-control"].to_str().unwrap().contains("immutable"));
    let (code, _, _) = get(&client, "/openapi/v3/apis/nothing/v1", &[]).await;
    assert_eq!(code, 404);
    let (code, _, _) = get(&client, url, &[("Accept", "image/png")]).await;
    assert_eq!(code, 406);
}

/// Fields of one protobuf message that hold bytes: number and content.
fn fields(mut message: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(message: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let (byte, rest) = message.split_first().unwrap();
            *message = rest;
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return value;
            }
        }
    }
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        let value = varint(&mut message);
        if key & 7 == 2 {
            let (content, rest) = message.split_at(usize::try_from(value).unwrap());
            found.push((key >> 3, content.to_vec()));
            message = rest;
        }
    }
    found
}

fn field(message: &[u8], number: u64) -> Vec<u8> {
    fields(message).into_iter().find(|(own, _)| *own == number).expect("the field is there").1
}

#[tokio::test]
async fn version_2_goes_out_as_gnostics_protobuf() {
    const TYPE: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let harness = Harness::start().await;
    let client = harness.admin();
    let (code, headers, body) = get(&client, "/openapi/v2", &[("Accept", TYPE)]).await;
    // A media type with an `@` is none to Go's clients.
    let said = TYPE.replace('@', ".");
    assert_eq!((code, headers["content-type"].to_str().unwrap()), (200, said.as_str()));
    assert_eq!(field(&body, 1), b"2.0");
    let json = json(&client, "/openapi/v2").await;
    let names = |message: Vec<u8>, number| -> Vec<String> {
        let pairs = fields(&message).into_iter().filter(|(own, _)| *own == number);
        pairs.map(|(_, pair)| String::from_utf8(field(&pair, 1)).unwrap()).collect()
    };
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(field(&body, 9), 1), keys(&json["definitions"]));
    assert_eq!(names(field(&body, 8), 2), keys(&json["paths"]));
    let deployment = fields(&field(&body, 9))
        .into_iter()
        .find(|(_, pair)| field(pair, 1) == b"io.k8s.api.apps.v1.Deployment")
        .map(|(_, pair)| field(&pair, 2))
        .unwrap();
    assert_eq!(field(&deployment, 4), b"Deployment enables declarative updates for Pods and ReplicaSets.");
    let extension = field(&deployment, 31);
    assert_eq!(field(&extension, 1), b"x-kubernetes-group-version-kind");
    let yaml: Value = serde_json::from_slice(&field(&field(&extension, 2), 2)).unwrap();
    assert_eq!(yaml[0]["kind"], "Deployment");
}
