//! watch: order, selectors, revisions, bookmarks, ends.

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use serde_json::{Value, json};

use crate::harness::{Harness, Lines, call, call_as, eventually, get};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const JSON: &str = "application/json";

async fn make(client: &kube::Client, name: &str, label: &str) -> String {
    let body = json!({"metadata": {"name": name, "labels": {"l": label}}});
    let (code, made) = call(client, "POST", MAPS, body).await;
    assert_eq!(code, 201);
    made["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

async fn relabel(client: &kube::Client, name: &str, label: &str) {
    let patch = json!({"metadata": {"labels": {"l": label}}});
    let path = format!("{MAPS}/{name}");
    assert_eq!(
        call_as(client, "PATCH", &path, "application/merge-patch+json", patch.to_string()).await.0,
        200
    );
}

async fn remove(client: &kube::Client, name: &str) {
    assert_eq!(call(client, "DELETE", &format!("{MAPS}/{name}"), Value::Null).await.0, 200);
}

#[tokio::test]
async fn changes_come_in_order_to_every_watcher() {
    let harness = Harness::start().await;
    let client = harness.admin();
    let at = make(&client, "a", "x").await;
    let mut since = Lines::open(&client, &format!("{MAPS}?watch=1&resourceVersion={at}"), JSON).await;
    let mut fresh = Lines::open(&client, &format!("{MAPS}?watch=true"), JSON).await;
    let mut zero = Lines::open(&harness.local(), &format!("{MAPS}?watch=1&resourceVersion=0"), JSON).await;
    make(&client, "b", "x").await;
    relabel(&client, "a", "y").await;
    remove(&client, "a").await;
    let changes = ["ADDED b", "MODIFIED a", "DELETED a"];
    for want in changes {
        assert_eq!(since.brief().await, want);
    }
    for want in ["ADDED a"].into_iter().chain(changes) {
        assert_eq!(fresh.brief().await, want);
        assert_eq!(zero.brief().await, want);
    }
}

#[tokio::test]
async fn a_selector_turns_leaving_into_deletion() {
    let harness = Harness::start().await;
    let client = harness.local();
    let mut watch = Lines::open(&client, &format!("{MAPS}?watch=1&labelSelector=l%3Dx"), JSON).await;
    make(&client, "other", "y").await;
    make(&client, "a", "x").await;
    assert_eq!(watch.brief().await, "ADDED a");
    relabel(&client, "a", "y").await;
    let left = watch.next().await.unwrap();
    assert_eq!((&left["type"], &left["object"]["metadata"]["labels"]["l"]), (&json!("DELETED"), &json!("x")));
    // It left at the revision of the change, not at that of its last state.
    let now = get(&client, &format!("{MAPS}/a")).await.1;
    assert_eq!(left["object"]["metadata"]["resourceVersion"], now["metadata"]["resourceVersion"]);
    relabel(&client, "a", "x").await;
    assert_eq!(watch.brief().await, "ADDED a");
    remove(&client, "a").await;
    assert_eq!(watch.brief().await, "DELETED a");
    let mut one =
        Lines::open(&client, &format!("{MAPS}?watch=1&fieldSelector=metadata.name%3Db"), JSON).await;
    make(&client, "c", "x").await;
    make(&client, "b", "x").await;
    assert_eq!(one.brief().await, "ADDED b");
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let harness = Harness::start().await;
    let client = harness.local();
    make(&client, "a", "x").await;
    let path = format!(
        "{MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    );
    let mut watch = Lines::open(&client, &path, JSON).await;
    assert_eq!(watch.brief().await, "ADDED a");
    let end = watch.next().await.unwrap();
    assert_eq!(end["type"], "BOOKMARK");
    assert_eq!(end["object"]["metadata"]["annotations"], json!({"k8s.io/initial-events-end": "true"}));
    assert!(end["object"]["metadata"]["resourceVersion"].is_string());
    make(&client, "b", "x").await;
    assert_eq!(watch.brief().await, "ADDED b");
    assert_eq!(get(&client, &format!("{MAPS}?watch=1&sendInitialEvents=true")).await.0, 422);
    assert_eq!(get(&client, &format!("{MAPS}?watch=1&resourceVersionMatch=NotOlderThan")).await.0, 422);
}

#[tokio::test]
async fn a_watch_ends_when_its_time_is_over_and_tells_where_it_stood() {
    let harness = Harness::start().await;
    let client = harness.local();
    let at = make(&client, "a", "x").await;
    let path = format!("{MAPS}?watch=1&resourceVersion={at}&timeoutSeconds=1&allowWatchBookmarks=true");
    let mut watch = Lines::open(&client, &path, JSON).await;
    // A change elsewhere moves the bookmark on.
    let (_, made) = call(&client, "POST", "/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await;
    let bookmark = watch.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn a_watch_can_show_tables() {
    let harness = Harness::start().await;
    let client = harness.local();
    make(&client, "a", "x").await;
    let mut watch =
        Lines::open(&client, &format!("{MAPS}?watch=1"), "application/json;as=Table;v=v1;g=meta.k8s.io")
            .await;
    let first = watch.next().await.unwrap();
    assert_eq!(
        (&first["object"]["kind"], &first["object"]["rows"][0]["cells"][0]),
        (&json!("Table"), &json!("a"))
    );
    assert_eq!(first["object"]["columnDefinitions"][1]["name"], "Data");
    make(&client, "b", "x").await;
    let second = watch.next().await.unwrap();
    assert_eq!(second["object"]["columnDefinitions"], json!([]));
}

#[tokio::test]
async fn stock_watchers_and_reflectors_work() {
    let harness = Harness::start().await;
    let client = harness.admin();
    make(&client, "a", "x").await;
    for config in [
        watcher::Config::default(),
        watcher::Config::default().streaming_lists(),
        watcher::Config::default().page_size(1),
    ] {
        let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
        let (store, writer) = reflector::store();
        let mut stream = Box::pin(watcher(maps, config).reflect(writer).applied_objects());
        let drive = tokio::spawn(async move { while let Some(Ok(_)) = stream.next().await {} });
        store.wait_until_ready().await.unwrap();
        assert_eq!(store.len(), 1);
        make(&client, "b", "x").await;
        eventually(async || store.len(), |len| *len == 2).await;
        remove(&client, "b").await;
        eventually(async || store.len(), |len| *len == 1).await;
        drive.abort();
    }
    harness.stop().await;
}

#[tokio::test]
async fn watches_end_with_the_server() {
    let harness = Harness::start().await;
    let mut watch = Lines::open(&harness.admin(), &format!("{MAPS}?watch=1"), JSON).await;
    harness.stop().await;
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn lists_and_watches_share_one_http2_connection() {
    use http_body_util::{BodyExt, Empty};
    let harness = Harness::start().await;
    let pair = harness.ca.client("kubernetes-admin", &["system:masters"]).unwrap();
    let tls = wharf_kit::identity::client_config(harness.ca.cert_pem(), Some(&pair), &[b"h2"]).unwrap();
    let stream = tokio::net::TcpStream::connect(harness.address).await.unwrap();
    let name = rustls::pki_types::ServerName::from(harness.address.ip());
    let stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    let connection = tokio::spawn(connection);
    let ask = async |query: &str| {
        let uri = format!("https://{}{MAPS}{query}", harness.address);
        let request = http::Request::get(uri).body(Empty::<bytes::Bytes>::new()).unwrap();
        sender.clone().send_request(request).await.unwrap()
    };
    let watches: Vec<_> = futures::future::join_all((0..50).map(|_| ask("?watch=1"))).await;
    make(&harness.local(), "a", "x").await;
    for mut watch in watches {
        let frame = tokio::time::timeout(crate::harness::DEADLINE, watch.body_mut().frame()).await.unwrap();
        let event: Value = serde_json::from_slice(frame.unwrap().unwrap().data_ref().unwrap()).unwrap();
        assert_eq!(event["object"]["metadata"]["name"], "a");
    }
    let list: Value =
        serde_json::from_slice(&ask("").await.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    harness.stop().await;
    drop(sender);
    connection.await.unwrap().unwrap();
}
