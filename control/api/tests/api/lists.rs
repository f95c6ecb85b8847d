//! list: selectors, pages, revisions, tables.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};
use wharf_store::{Revision, Store};

use crate::harness::{Harness, call, get, send};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn make(client: &kube::Client, name: &str, labels: Value) {
    let body = json!({"metadata": {"name": name, "labels": labels}});
    assert_eq!(call(client, "POST", MAPS, body).await.0, 201);
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn selectors_select() {
    let harness = Harness::start().await;
    let client = harness.local();
    make(&client, "a", json!({"app": "x", "tier": "front"})).await;
    make(&client, "b", json!({"app": "x"})).await;
    make(&client, "c", json!({"app": "y"})).await;
    let cases: &[(&str, &[&str])] = &[
        ("labelSelector=app%3Dx", &["a", "b"]),
        ("labelSelector=app%21%3Dx", &["c"]),
        ("labelSelector=app+in+(x,y),!tier", &["b", "c"]),
        ("labelSelector=tier", &["a"]),
        ("fieldSelector=metadata.name%3Db", &["b"]),
        ("fieldSelector=metadata.name!%3Db,metadata.namespace%3Ddefault", &["a", "c"]),
        ("labelSelector=app%3Dx&fieldSelector=metadata.name%3Dc", &[]),
        ("", &["a", "b", "c"]),
    ];
    for (query, want) in cases {
        let (code, list) = get(&client, &format!("{MAPS}?{query}")).await;
        assert_eq!((code, names(&list).as_slice()), (200, *want), "{query}");
    }
    let (code, status) = get(&client, &format!("{MAPS}?fieldSelector=data.x%3Dy")).await;
    assert_eq!(code, 400);
    assert!(
        status["message"].as_str().unwrap().starts_with("\"data.x\" is not a known field selector"),
        "{status}"
    );
    let (code, status) = get(&client, &format!("{MAPS}?labelSelector=app%3D%3D%3D")).await;
    assert_eq!(code, 400);
    // The parser's words, once.
    assert_eq!(status["message"], "unable to parse requirement: found '=', expected: identifier");
}

#[tokio::test]
async fn pages_show_one_revision_and_expire_when_it_is_forgotten() {
    let harness = Harness::start().await;
    let client = harness.local();
    for name in ["a", "b", "c", "d", "e"] {
        make(&client, name, json!({})).await;
    }
    let (_, first) = get(&client, &format!("{MAPS}?limit=2")).await;
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    // What comes and goes between the pages is not seen.
    make(&client, "bb", json!({})).await;
    assert_eq!(call(&client, "DELETE", &format!("{MAPS}/c"), Value::Null).await.0, 200);
    let (_, second) = get(&client, &format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!(names(&second), ["c", "d"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    assert_eq!(second["metadata"]["remainingItemCount"], 1);
    let token = second["metadata"]["continue"].as_str().unwrap().to_owned();
    let (_, third) = get(&client, &format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!(names(&third), ["e"]);
    assert_eq!(third["metadata"].get("continue"), None);
    // kube's own paging sees the same.
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let page = maps.list(&ListParams::default().limit(3)).await.unwrap();
    let rest = ListParams::default().limit(3).continue_token(&page.metadata.continue_.unwrap());
    assert_eq!(page.items.len() + maps.list(&rest).await.unwrap().items.len(), 5);
    let (code, status) = get(&client, &format!("{MAPS}?continue=nonsense")).await;
    assert_eq!(code, 400, "{status}");
    let (code, _) = get(&client, &format!("{MAPS}?continue={token}&resourceVersion=5")).await;
    assert_eq!(code, 400);
}

#[tokio::test]
async fn an_expired_page_says_so_and_gives_a_token_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = std::sync::Arc::new(wharf_store::Redb::open(path).await.unwrap());
    let start = async || {
        let server = wharf_api::ApiServer::start(wharf_api::Config::default(), store.clone()).await.unwrap();
        server.client(wharf_api::UserInfo::admin())
    };
    let client = start().await;
    for name in ["a", "b", "c"] {
        make(&client, name, json!({})).await;
    }
    let (_, first) = get(&client, &format!("{MAPS}?limit=1")).await;
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    let at: u64 = first["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    make(&client, "d", json!({})).await;
    store.compact(Revision(at + 1)).await.unwrap();
    // Another server has no memory of that revision.
    let client = start().await;
    let (code, status) = get(&client, &format!("{MAPS}?limit=1&continue={token}")).await;
    assert_eq!((code, &status["reason"]), (410, &json!("Expired")));
    let token = status["metadata"]["continue"].as_str().unwrap();
    let (code, rest) = get(&client, &format!("{MAPS}?continue={token}")).await;
    assert_eq!((code, names(&rest)), (200, vec!["b", "c", "d"]));
    let (code, status) =
        get(&client, &format!("{MAPS}?resourceVersion={at}&resourceVersionMatch=Exact")).await;
    assert_eq!((code, &status["reason"]), (410, &json!("Expired")));
    // A watch tells it in the stream.
    let (code, event) = get(&client, &format!("{MAPS}?watch=1&resourceVersion=1")).await;
    assert_eq!((code, &event["type"], &event["object"]["code"]), (200, &json!("ERROR"), &json!(410)));
}

#[tokio::test]
async fn revisions_mean_what_kubernetes_says() {
    let harness = Harness::start().await;
    let client = harness.local();
    make(&client, "a", json!({})).await;
    let (_, list) = get(&client, MAPS).await;
    let at = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    make(&client, "b", json!({})).await;
    let cases: &[(String, u16, Option<&[&str]>)] = &[
        ("resourceVersion=0".to_owned(), 200, Some(&["a", "b"])),
        (format!("resourceVersion={at}"), 200, Some(&["a", "b"])),
        (format!("resourceVersion={at}&resourceVersionMatch=NotOlderThan"), 200, Some(&["a", "b"])),
        (format!("resourceVersion={at}&resourceVersionMatch=Exact"), 200, Some(&["a"])),
        ("resourceVersionMatch=Exact".to_owned(), 422, None),
        ("resourceVersion=0&resourceVersionMatch=Exact".to_owned(), 422, None),
        ("resourceVersion=x".to_owned(), 400, None),
    ];
    for (query, code, want) in cases {
        let (found, list) = get(&client, &format!("{MAPS}?{query}")).await;
        assert_eq!(found, *code, "{query}: {list}");
        if let Some(want) = want {
            assert_eq!(names(&list).as_slice(), *want, "{query}");
        }
    }
    let (code, status) =
        get(&client, &format!("{MAPS}?resourceVersion=999999&resourceVersionMatch=Exact")).await;
    assert_eq!((code, &status["details"]["causes"][0]["reason"]), (504, &json!("ResourceVersionTooLarge")));
}

#[tokio::test]
async fn long_lists_are_streamed_whole() {
    let harness = Harness::start().await;
    let client = harness.admin();
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    for n in 0..20 {
        let body = json!({"metadata": {"name": format!("m{n}")}, "data": {"k": "x".repeat(30_000)}});
        assert_eq!(call(&client, "POST", MAPS, body).await.0, 201);
    }
    let list = maps.list(&ListParams::default()).await.unwrap();
    assert_eq!(list.items.len(), 20);
    assert!(list.items.iter().all(|map| map.data.as_ref().unwrap()["k"].len() == 30_000));
}

async fn accept(client: &kube::Client, path: &str, accept: &str) -> (u16, Value) {
    let request = http::Request::builder().uri(path).header("accept", accept).body(Vec::new()).unwrap();
    let response = send(client, request).await;
    let text = String::from_utf8_lossy(response.body()).into_owned();
    (response.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

#[tokio::test]
async fn tables_and_other_forms_are_negotiated() {
    let harness = Harness::start().await;
    let client = harness.local();
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let pods = "/api/v1/namespaces/default/pods";
    assert_eq!(call(&client, "POST", pods, pod).await.0, 201);
    let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
    let (_, table) = accept(&client, &format!("{pods}?limit=500"), kubectl).await;
    assert_eq!((&table["kind"], &table["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
    let columns: Vec<_> = table["columnDefinitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| (c["name"].as_str().unwrap(), c["priority"].as_i64().unwrap()))
        .collect();
    assert_eq!(
        columns,
        [
            ("Name", 0),
            ("Ready", 0),
            ("Status", 0),
            ("Restarts", 0),
            ("Age", 0),
            ("IP", 1),
            ("Node", 1),
            ("Nominated Node", 1),
            ("Readiness Gates", 1)
        ]
    );
    let cells = table["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(cells[..4], [json!("p"), json!("0/1"), json!("Pending"), json!("0")]);
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(table["rows"][0]["object"]["metadata"]["name"], "p");
    let (_, one) = accept(&client, &format!("{pods}/p"), kubectl).await;
    assert_eq!((&one["kind"], one["rows"].as_array().unwrap().len()), (&json!("Table"), 1));
    let (_, partial) =
        accept(&client, pods, "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1").await;
    assert_eq!(
        (&partial["kind"], &partial["items"][0].get("spec")),
        (&json!("PartialObjectMetadataList"), &None)
    );
    assert!(partial["items"][0]["metadata"]["resourceVersion"].is_string());
    let (code, yaml) = accept(&client, &format!("{pods}/p"), "application/yaml").await;
    assert!(code == 200 && yaml.as_str().unwrap().contains("name: p"));
    let (code, status) = accept(&client, pods, "application/cbor").await;
    assert_eq!((code, &status["reason"]), (406, &json!("NotAcceptable")));
    let cbor_first = "application/cbor, application/json";
    assert_eq!(accept(&client, pods, cbor_first).await.1["kind"], "PodList");
}
