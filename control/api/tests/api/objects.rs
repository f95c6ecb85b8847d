//! create, get, update, delete of plain objects; finalizers, dry run, preconditions.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::harness::{Harness, call, get};

fn map(name: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        data: Some([("k".to_owned(), "v".to_owned())].into()),
        ..ConfigMap::default()
    }
}

#[tokio::test]
async fn objects_are_made_read_changed_and_deleted_over_tls_and_in_process() {
    let harness = Harness::start().await;
    for client in [harness.admin(), harness.local()] {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
        let made = maps.create(&PostParams::default(), &map("a")).await.unwrap();
        assert!(made.metadata.uid.is_some() && made.metadata.creation_timestamp.is_some());
        let read = maps.get("a").await.unwrap();
        assert_eq!(read, made);
        let listed = maps.list(&ListParams::default()).await.unwrap();
        assert_eq!(listed.items.len(), 1);
        let mut changed = read.clone();
        changed.data.as_mut().unwrap().insert("k".to_owned(), "w".to_owned());
        let changed = maps.replace("a", &PostParams::default(), &changed).await.unwrap();
        assert_ne!(changed.metadata.resource_version, read.metadata.resource_version);
        // The old version is not taken.
        let stale = maps.replace("a", &PostParams::default(), &read).await.unwrap_err();
        let kube::Error::Api(status) = stale else { panic!("{stale}") };
        assert_eq!(status.code, 409);
        assert_eq!(
            status.message,
            "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
        );
        // The same again writes nothing.
        let same = maps.replace("a", &PostParams::default(), &changed).await.unwrap();
        assert_eq!(same.metadata.resource_version, changed.metadata.resource_version);
        maps.delete("a", &DeleteParams::default()).await.unwrap();
        assert!(maps.get_opt("a").await.unwrap().is_none());
    }
    harness.stop().await;
}

#[tokio::test]
async fn errors_have_kubernetes_words() {
    let harness = Harness::start().await;
    let client = harness.local();
    let maps = "/api/v1/namespaces/default/configmaps";
    let (code, status) = get(&client, &format!("{maps}/x")).await;
    assert_eq!(code, 404);
    assert_eq!(
        status,
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "configmaps \"x\" not found", "reason": "NotFound",
            "details": {"name": "x", "kind": "configmaps"}, "code": 404})
    );
    let body = json!({"metadata": {"name": "x"}});
    assert_eq!(call(&client, "POST", maps, body.clone()).await.0, 201);
    let (code, status) = call(&client, "POST", maps, body.clone()).await;
    assert_eq!((code, &status["message"]), (409, &json!("configmaps \"x\" already exists")));
    let (code, status) = call(&client, "POST", "/api/v1/namespaces/none/configmaps", body.clone()).await;
    assert_eq!((code, &status["message"]), (404, &json!("namespaces \"none\" not found")));
    let (code, status) = get(&client, "/apis/apps/v1/namespaces/default/deployments/x").await;
    assert_eq!((code, &status["message"]), (404, &json!("deployments.apps \"x\" not found")));
    assert_eq!(status["details"], json!({"name": "x", "group": "apps", "kind": "deployments"}));
    let (code, status) = call(&client, "POST", maps, json!({"metadata": {"name": "A_b"}})).await;
    assert_eq!(code, 422);
    assert!(status["message"].as_str().unwrap().starts_with(
        "ConfigMap \"A_b\" is invalid: metadata.name: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain must"
    ));
    assert_eq!(status["details"]["causes"][0]["reason"], "FieldValueInvalid");
    assert_eq!(status["details"]["causes"][0]["field"], "metadata.name");
    let (code, status) = get(&client, "/api/v1/nothings").await;
    assert_eq!((code, &status["message"]), (404, &json!("the server could not find the requested resource")));
    // The answer to a delete that is done tells what went.
    let (code, status) = call(&client, "DELETE", &format!("{maps}/x"), json!(null)).await;
    assert_eq!(
        (code, &status["status"], &status["details"]["kind"]),
        (200, &json!("Success"), &json!("configmaps"))
    );
}

#[tokio::test]
async fn names_are_generated() {
    let harness = Harness::start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(harness.local());
    let mut wanted = map("");
    wanted.metadata.name = None;
    wanted.metadata.generate_name = Some("web-".to_owned());
    let a = maps.create(&PostParams::default(), &wanted).await.unwrap();
    let b = maps.create(&PostParams::default(), &wanted).await.unwrap();
    assert_ne!(a.metadata.name, b.metadata.name);
    assert!(a.metadata.name.unwrap().starts_with("web-"));
}

#[tokio::test]
async fn a_dry_run_answers_and_changes_nothing() {
    let harness = Harness::start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(harness.local());
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let made = maps.create(&dry, &map("a")).await.unwrap();
    assert!(made.metadata.uid.is_some());
    assert!(maps.get_opt("a").await.unwrap().is_none());
    maps.create(&PostParams::default(), &map("a")).await.unwrap();
    let params = PatchParams { dry_run: true, ..PatchParams::default() };
    let patched = maps.patch("a", &params, &Patch::Merge(json!({"data": {"k": "dry"}}))).await.unwrap();
    assert_eq!(patched.data.unwrap()["k"], "dry");
    assert_eq!(maps.get("a").await.unwrap().data.unwrap()["k"], "v");
    maps.delete("a", &DeleteParams { dry_run: true, ..DeleteParams::default() }).await.unwrap();
    assert!(maps.get_opt("a").await.unwrap().is_some());
}

#[tokio::test]
async fn finalizers_keep_an_object_until_they_are_gone() {
    let harness = Harness::start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(harness.local());
    let mut kept = map("a");
    kept.metadata.finalizers = Some(vec!["example.com/hold".to_owned()]);
    maps.create(&PostParams::default(), &kept).await.unwrap();
    let marked = maps.delete("a", &DeleteParams::default()).await.unwrap().left().expect("it lives on");
    assert!(marked.metadata.deletion_timestamp.is_some());
    assert_eq!(marked.metadata.deletion_grace_period_seconds, Some(0));
    // No new ones while it goes.
    let more = json!({"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}});
    let refused = maps.patch("a", &PatchParams::default(), &Patch::Merge(more)).await.unwrap_err();
    assert!(
        refused.to_string().contains("no new finalizers can be added if the object is being deleted"),
        "{refused}"
    );
    let none = json!({"metadata": {"finalizers": null}});
    maps.patch("a", &PatchParams::default(), &Patch::Merge(none)).await.unwrap();
    assert!(maps.get_opt("a").await.unwrap().is_none());
}

#[tokio::test]
async fn propagation_becomes_finalizers() {
    let harness = Harness::start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(harness.local());
    for (params, finalizer) in
        [(DeleteParams::foreground(), "foregroundDeletion"), (DeleteParams::orphan(), "orphan")]
    {
        maps.create(&PostParams::default(), &map("a")).await.unwrap();
        let marked =
            maps.delete("a", &params).await.unwrap().left().expect("it waits for the garbage collector");
        assert_eq!(marked.metadata.finalizers, Some(vec![finalizer.to_owned()]));
        // Asking for the background takes the wait away.
        maps.delete("a", &DeleteParams::background()).await.unwrap();
        assert!(maps.get_opt("a").await.unwrap().is_none());
    }
}

#[tokio::test]
async fn preconditions_guard_a_delete() {
    let harness = Harness::start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(harness.local());
    let made = maps.create(&PostParams::default(), &map("a")).await.unwrap();
    let with = |uid: &str| DeleteParams {
        preconditions: Some(kube::api::Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
        ..DeleteParams::default()
    };
    let refused = maps.delete("a", &with("other")).await.unwrap_err();
    assert!(refused.to_string().contains("Precondition failed: UID in precondition: other"), "{refused}");
    maps.delete("a", &with(&made.metadata.uid.unwrap())).await.unwrap();
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let harness = Harness::start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(harness.local());
    for (name, label) in [("a", "x"), ("b", "x"), ("c", "y")] {
        let mut new = map(name);
        new.metadata.labels = Some([("l".to_owned(), label.to_owned())].into());
        maps.create(&PostParams::default(), &new).await.unwrap();
    }
    maps.delete_collection(&DeleteParams::default(), &ListParams::default().labels("l=x")).await.unwrap();
    let left = maps.list(&ListParams::default()).await.unwrap();
    assert_eq!(left.items.iter().map(|m| m.metadata.name.clone().unwrap()).collect::<Vec<_>>(), ["c"]);
}

#[tokio::test]
async fn a_namespace_goes_in_two_steps_and_takes_nothing_new_meanwhile() {
    let harness = Harness::start().await;
    let client = harness.local();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let made = call(&client, "POST", "/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await.1;
    assert_eq!(made["spec"], json!({"finalizers": ["kubernetes"]}));
    assert_eq!(made["status"], json!({"phase": "Active"}));
    assert_eq!(made["metadata"]["labels"], json!({"kubernetes.io/metadata.name": "n"}));
    namespaces.delete("n", &DeleteParams::default()).await.unwrap();
    let going = namespaces.get("n").await.unwrap();
    assert_eq!(going.status.unwrap().phase.as_deref(), Some("Terminating"));
    let (code, refused) =
        call(&client, "POST", "/api/v1/namespaces/n/configmaps", json!({"metadata": {"name": "a"}})).await;
    assert_eq!(code, 403);
    assert_eq!(
        refused["message"],
        "configmaps \"a\" is forbidden: unable to create new content in namespace n because it is being terminated"
    );
    assert_eq!(refused["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let finalized = json!({"metadata": {"name": "n"}, "spec": {"finalizers": []}});
    assert_eq!(call(&client, "PUT", "/api/v1/namespaces/n/finalize", finalized).await.0, 200);
    assert!(namespaces.get_opt("n").await.unwrap().is_none());
    let kept = namespaces.delete("default", &DeleteParams::default()).await.unwrap_err();
    assert!(kept.to_string().contains("this namespace may not be deleted"), "{kept}");
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let start = async || {
        let store = std::sync::Arc::new(wharf_store::Redb::open(path.clone()).await.unwrap());
        (wharf_api::ApiServer::start(wharf_api::Config::default(), store.clone()).await.unwrap(), store)
    };
    let (server, store) = start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(server.client(wharf_api::UserInfo::admin()));
    let made = maps.create(&PostParams::default(), &map("a")).await.unwrap();
    drop((maps, server));
    // The cache's task lets go of the store when it sees that the last handle is gone.
    let store =
        crate::harness::eventually(async || std::sync::Arc::strong_count(&store), |count| *count == 1)
            .await
            .eq(&1)
            .then(|| std::sync::Arc::into_inner(store).unwrap())
            .unwrap();
    store.close().await;
    let (server, _store) = start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(server.client(wharf_api::UserInfo::admin()));
    assert_eq!(maps.get("a").await.unwrap(), made);
}
