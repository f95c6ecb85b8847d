//! The `kube` crate as any program uses it: nothing here knows that the cluster is Wharf.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures::{AsyncBufReadExt as _, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, reflector, wait};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wharf_tests::manifest::{self, PORT};
use wharf_tests::{PATIENCE, Space, eventually_async};

fn config_map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"key": value}})).expect("a ConfigMap")
}

fn value(map: &ConfigMap) -> Option<&str> {
    map.data.as_ref()?.get("key").map(String::as_str)
}

/// The code of an error that the API server told.
fn code<T: std::fmt::Debug>(result: kube::Result<T>) -> u16 {
    match result {
        Err(kube::Error::Api(status)) => status.code,
        other => panic!("not an API error: {other:?}"),
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited too long for {what}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_created_read_replaced_patched_listed_and_deleted() {
    let space = Space::new("crud");
    let api: Api<ConfigMap> = Api::namespaced(space.cluster.client().await, space.name);
    let made = api.create(&PostParams::default(), &config_map("a", "1")).await.expect("created");
    assert!(made.metadata.uid.is_some() && made.metadata.creation_timestamp.is_some(), "{made:?}");
    assert_eq!(code(api.create(&PostParams::default(), &config_map("a", "1")).await), 409);

    let mut read = api.get("a").await.expect("there");
    read.data = Some(BTreeMap::from([("key".to_owned(), "2".to_owned())]));
    let replaced = api.replace("a", &PostParams::default(), &read).await.expect("replaced");
    assert_eq!(value(&replaced), Some("2"));
    assert_eq!(code(api.replace("a", &PostParams::default(), &read).await), 409, "its version is an old one");

    let patch = Patch::Merge(json!({"metadata": {"labels": {"team": "blue"}}}));
    let patched = api.patch("a", &PatchParams::default(), &patch).await.expect("patched");
    let team = patched.metadata.labels.as_ref().and_then(|labels| labels.get("team"));
    assert_eq!((value(&patched), team.map(String::as_str)), (Some("2"), Some("blue")));

    api.create(&PostParams::default(), &config_map("b", "3")).await.expect("created");
    let names = async |params: ListParams| {
        let list = api.list(&params).await.expect("a list");
        list.items.into_iter().filter_map(|map| map.metadata.name).collect::<Vec<_>>()
    };
    assert_eq!(names(ListParams::default().labels("team=blue")).await, ["a"]);
    assert_eq!(names(ListParams::default().fields("metadata.name=b")).await, ["b"]);
    let page = api.list(&ListParams::default().limit(1)).await.expect("a page");
    let rest = page.metadata.continue_.as_deref().filter(|token| !token.is_empty()).expect("there is more");
    let rest = api.list(&ListParams::default().limit(10).continue_token(rest)).await.expect("the rest");
    assert!(rest.items.iter().any(|map| map.metadata.name.as_deref() == Some("b")), "{:?}", rest.items);

    api.delete("a", &DeleteParams::default()).await.expect("deleted");
    assert_eq!(code(api.get("a").await), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn applied_fields_belong_to_their_manager_and_leave_with_it() {
    let space = Space::new("apply");
    let api: Api<ConfigMap> = Api::namespaced(space.cluster.client().await, space.name);
    let object = |data: serde_json::Value| {
        Patch::Apply(
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shared"}, "data": data}),
        )
    };
    let blue = PatchParams::apply("blue");
    let red = PatchParams::apply("red");
    api.patch("shared", &blue, &object(json!({"key": "blue", "mine": "1"}))).await.expect("applied");
    api.patch("shared", &red, &object(json!({"theirs": "2"}))).await.expect("applied beside");

    let refused = api.patch("shared", &red, &object(json!({"key": "red", "theirs": "2"}))).await;
    match &refused {
        Err(kube::Error::Api(status)) => {
            assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
            assert!(
                status.message.contains("blue") && status.message.contains(".data.key"),
                "{}",
                status.message
            );
        }
        other => panic!("no conflict: {other:?}"),
    }
    let forced =
        api.patch("shared", &red.clone().force(), &object(json!({"key": "red", "theirs": "2"}))).await;
    assert_eq!(value(&forced.expect("forced")), Some("red"));

    let left = api.patch("shared", &blue, &object(json!({}))).await.expect("applied");
    let keys: Vec<_> = left.data.unwrap_or_default().into_keys().collect();
    assert_eq!(keys, ["key", "theirs"], "what blue alone owned is gone, what it lost is not its to remove");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_sees_every_change_in_order() {
    let space = Space::new("watcher");
    let api: Api<ConfigMap> = Api::namespaced(space.cluster.client().await, space.name);
    api.create(&PostParams::default(), &config_map("before", "0")).await.expect("created");
    let config = watcher::Config::default().fields("metadata.name!=kube-root-ca.crt");
    let mut events = pin!(kube::runtime::watcher(api.clone(), config));
    let mut seen = Vec::new();
    let mut acted = false;
    within("the deletion", async {
        while let Some(event) = events.try_next().await.expect("the watch holds") {
            match event {
                Event::Init => {}
                Event::InitApply(map) => seen.push(format!("had {}", map.metadata.name.unwrap_or_default())),
                Event::InitDone if !acted => {
                    acted = true;
                    api.create(&PostParams::default(), &config_map("a", "1")).await.expect("created");
                    let patch = Patch::Merge(json!({"data": {"key": "2"}}));
                    api.patch("a", &PatchParams::default(), &patch).await.expect("patched");
                    api.delete("a", &DeleteParams::default()).await.expect("deleted");
                }
                Event::InitDone => {}
                Event::Apply(map) => seen.push(format!("a={}", value(&map).unwrap_or_default())),
                Event::Delete(map) => {
                    seen.push(format!("gone {}", map.metadata.name.unwrap_or_default()));
                    break;
                }
            }
        }
    })
    .await;
    assert_eq!(seen, ["had before", "a=1", "a=2", "gone a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reflector_holds_what_is_there() {
    let space = Space::new("reflector");
    let api: Api<ConfigMap> = Api::namespaced(space.cluster.client().await, space.name);
    let (reader, writer) = reflector::store();
    let config = watcher::Config::default().labels("kept=yes");
    let stream = kube::runtime::watcher(api.clone(), config).default_backoff().reflect(writer);
    let task = tokio::spawn(async move { pin!(stream).for_each(async |_| {}).await });
    within("the first list", reader.wait_until_ready()).await.expect("the writer lives");
    for name in ["x", "y"] {
        let mut map = config_map(name, name);
        map.metadata.labels = Some(BTreeMap::from([("kept".to_owned(), "yes".to_owned())]));
        api.create(&PostParams::default(), &map).await.expect("created");
    }
    let names = || {
        let mut names: Vec<_> = reader.state().iter().filter_map(|map| map.metadata.name.clone()).collect();
        names.sort();
        names
    };
    let is = |expected: &[&str]| if names() == expected { Ok(()) } else { Err(format!("{:?}", names())) };
    eventually_async("both are held", async || is(&["x", "y"])).await;
    // One that loses its label is gone for who selects by it.
    let patch = Patch::Merge(json!({"metadata": {"labels": {"kept": "no"}}}));
    api.patch("x", &PatchParams::default(), &patch).await.expect("patched");
    eventually_async("one is held", async || is(&["y"])).await;
    task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_stream_and_ports_forward() {
    let space = Space::new("streams");
    let client = space.cluster.client().await;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), space.name);
    let object: Deployment =
        serde_json::from_value(manifest::deployment("talker", "guest-http:1")).expect("a Deployment");
    let made = deployments.create(&PostParams::default(), &object).await.expect("created");
    let pods: Api<Pod> = Api::namespaced(client, space.name);
    let name = eventually_async("there is a pod", async || {
        let list = pods
            .list(&ListParams::default().labels("app=talker"))
            .await
            .map_err(|error| error.to_string())?;
        list.items.into_iter().find_map(|pod| pod.metadata.name).ok_or_else(|| "none".to_owned())
    })
    .await;
    let ready = wait::await_condition(pods.clone(), &name, |pod: Option<&Pod>| {
        let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
    });
    within("the pod to be ready", ready).await.expect("watched");

    let mut forwarder = pods.portforward(&name, &[PORT]).await.expect("forwarded");
    let mut stream = forwarder.take_stream(PORT).expect("a stream");
    stream
        .write_all(b"GET /log?heard HTTP/1.1\r\nhost: pod\r\nconnection: close\r\n\r\n")
        .await
        .expect("sent");
    let mut answer = String::new();
    within("the answer", stream.read_to_string(&mut answer)).await.expect("read");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("logged"), "{answer}");

    let params = LogParams { follow: true, ..Default::default() };
    let mut lines = pods.log_stream(&name, &params).await.expect("a log").lines();
    assert_eq!(within("a line", lines.try_next()).await.expect("read").as_deref(), Some("heard"));
    assert_eq!(pods.logs(&name, &LogParams::default()).await.expect("the log"), "heard\n");

    // A stock client deletes in the foreground too: the answer comes at once, the end when the pods are gone.
    deployments.delete("talker", &DeleteParams::foreground()).await.expect("deleted");
    let uid = made.metadata.uid.expect("a uid");
    let gone = wait::await_condition(deployments, "talker", wait::conditions::is_deleted(&uid));
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("in time").expect("watched");
    assert!(pods.list(&ListParams::default().labels("app=talker")).await.expect("a list").items.is_empty());
}
