//! Where a cluster's objects are kept, as an operator sees it: stores that are copied, and servers that share one.

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams, WatchEvent, WatchParams};
use serde_json::json;
use wharf_store::testing::Members;
use wharf_tests::{Server, eventually_async, wharf};

async fn maps(server: &Server) -> Api<ConfigMap> {
    let maps = Api::namespaced(server.client().await, "default");
    eventually_async("the namespace is there", async || {
        maps.list(&Default::default()).await.map_err(|error| error.to_string())
    })
    .await;
    maps
}

fn map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"said": "kept"}})).expect("a map")
}

/// What a watch from `version` is told first.
async fn first(maps: &Api<ConfigMap>, version: &str) -> WatchEvent<ConfigMap> {
    let watch = maps.watch(&WatchParams::default(), version).await.expect("a watch");
    watch.boxed().next().await.expect("an event").expect("an event")
}

#[tokio::test]
async fn a_server_goes_on_with_its_objects_on_another_engine_and_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let members = Members::start(folder.path(), 1);
    let etcd = format!("etcd://{}/moved", members.config().members.join(","));
    let file = folder.path().join("snapshot").display().to_string();

    let mut server = Server::start(folder.path(), &[]);
    let root = server.home().display().to_string();
    let made = maps(&server).await.create(&PostParams::default(), &map("first")).await.expect("a map");
    let said = wharf(&["store", "snapshot", &file, "--root", &root]);
    assert!(said.code == Some(1) && said.stderr.contains("a running server; stop that first"), "{said}");
    server.stop();
    let said = wharf(&["store", "snapshot", &file, "--root", &root]).ok();
    assert!(said.starts_with(&file) && said.contains(" objects, as they were at revision "), "{said}");
    let said = wharf(&["store", "snapshot", &file, "--store", "etcd://127.0.0.1:1/moved"]);
    assert!(said.code == Some(1) && said.stderr.contains("could not open it"), "{said}");

    wharf(&["store", "restore", &file, "--store", &etcd]).ok();
    let said = wharf(&["store", "restore", &file, "--store", &etcd]);
    assert!(said.code == Some(1) && said.stderr.contains("--force replaces it"), "{said}");
    wharf(&["store", "restore", &file, "--store", &etcd, "--force"]).ok();

    let version = |map: &ConfigMap| map.metadata.resource_version.clone().expect("a resourceVersion");
    let number = |map: &ConfigMap| version(map).parse::<u64>().expect("a number");
    let same = |found: &ConfigMap| {
        assert_eq!((&found.data, &found.metadata.uid), (&made.data, &made.metadata.uid));
        assert!(number(found) > number(&made));
    };
    let mut over_etcd = Server::start(folder.path(), &["--store", &etcd]);
    let there = maps(&over_etcd).await;
    same(&there.get("first").await.expect("it was restored"));
    let told = first(&there, &version(&made)).await;
    assert!(matches!(&told, WatchEvent::Error(status) if status.code == 410), "{told:?}");
    let second = there.create(&PostParams::default(), &map("second")).await.expect("it goes on");
    // A snapshot is taken of an etcd while servers write to it.
    wharf(&["store", "snapshot", &file, "--store", &etcd]).ok();
    over_etcd.stop();

    let said = wharf(&["store", "migrate", "--from", &etcd, "--to", "redb", "--root", &root]);
    assert!(said.code == Some(1) && said.stderr.contains("--force replaces it"), "{said}");
    wharf(&["store", "migrate", "--from", &etcd, "--to", "redb", "--root", &root, "--force"]).ok();
    server.revive();
    let back = maps(&server).await;
    same(&back.get("first").await.expect("it came back"));
    assert!(number(&back.get("second").await.expect("it came along")) > number(&second));
    let told = first(&back, &version(&second)).await;
    assert!(matches!(&told, WatchEvent::Error(status) if status.code == 410), "{told:?}");
}
