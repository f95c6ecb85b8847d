//! What of the API reaches a pod's volumes.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::harness::{Harness, eventually, waiting};

fn mounted(harness: &Harness, at: &str) -> PathBuf {
    let config = harness.runtime.config("main");
    let mount = config.mounts.iter().find(|mount| mount.container_path == at).unwrap();
    PathBuf::from(&mount.host_path)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_projected_volume_holds_tokens_maps_and_fields_and_follows_each() {
    let (harness, agent) = Harness::ready().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(harness.client.clone());
    let map = json!({"metadata": {"name": "ca"}, "data": {"ca.crt": "CERT"}});
    maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await.unwrap();
    harness.tokens.lock().unwrap().0 = 2; // renewed after 1.6 s
    let spec = json!({
        "securityContext": {"runAsUser": 1234},
        "containers": [{"name": "main", "image": "app:1", "resources": {"limits": {"memory": "64Mi"}},
            "volumeMounts": [{"name": "access", "mountPath": "/access"}]}],
        "volumes": [{"name": "access", "projected": {"defaultMode": 0o444, "sources": [
            {"serviceAccountToken": {"path": "token", "audience": "vault", "expirationSeconds": 3607}},
            {"configMap": {"name": "ca", "items": [{"key": "ca.crt", "path": "ca/ca.crt"}]}},
            {"secret": {"name": "none", "optional": true}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}},
                {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                {"path": "tier", "fieldRef": {"fieldPath": "metadata.labels['tier']"}},
                {"path": "memory", "mode": 0o400, "resourceFieldRef": {"containerName": "main", "resource": "limits.memory", "divisor": "1Mi"}}]}},
        ]}}],
    });
    let uid = harness.create("app", spec).await;
    harness.until_ready("app").await;
    let access = mounted(&harness, "/access");
    let read = |name: &str| std::fs::read_to_string(access.join(name)).unwrap();
    let mode = |name: &str| std::fs::metadata(access.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((read("ca/ca.crt"), read("namespace")), ("CERT".to_owned(), "default".to_owned()));
    assert_eq!((read("labels"), read("memory")), ("app=\"app\"".to_owned(), "64".to_owned()));
    assert_eq!((read("tier").as_str(), mode("memory"), mode("namespace")), ("", 0o400, 0o444));
    assert_eq!(mode("token"), 0o600, "the pod's one user may read its token, and nobody else");
    assert_eq!(std::fs::metadata(access.join("token")).unwrap().uid(), 1234);
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(&access.display().to_string())).unwrap();
    assert!(line.contains(" tmpfs "), "no disk keeps a token: {line}");
    let asked = harness.tokens.lock().unwrap().1[0].clone();
    assert_eq!(
        (&asked["spec"]["audiences"], &asked["spec"]["expirationSeconds"]),
        (&json!(["vault"]), &json!(3607))
    );
    assert_eq!(
        (&asked["spec"]["boundObjectRef"]["name"], &asked["spec"]["boundObjectRef"]["uid"]),
        (&json!("app"), &json!(uid))
    );
    assert_eq!(harness.asked("POST /api/v1/namespaces/default/serviceaccounts/default/token"), 1);

    let patch = json!({"metadata": {"labels": {"tier": "front"}}});
    harness.pods().patch("app", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    harness.tokens.lock().unwrap().0 = 3600;
    eventually("labels and token are new", async || {
        let now = (read("tier"), read("token"));
        if now.0 == "front" && now.1 == "token-2" { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    assert_eq!(harness.tokens.lock().unwrap().1.len(), 2, "a change of other sources asks for no token");
    harness.delete("app").await;
    harness.until_gone("app").await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sub_path_is_mounted_by_itself_and_one_that_cannot_be_recovers() {
    let (harness, agent) = Harness::ready().await;
    let spec = json!({
        "containers": [{"name": "main", "image": "app:1",
            "env": [{"name": "PART", "valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['part']"}}}],
            "volumeMounts": [{"name": "scratch", "mountPath": "/part", "subPathExpr": "$(PART)"}, {"name": "scratch", "mountPath": "/all"}]}],
        "volumes": [{"name": "scratch", "emptyDir": {}}],
    });
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app", "annotations": {"part": "../out"}}, "spec": spec});
    pod["spec"]["nodeName"] = json!(crate::harness::NODE);
    harness.pods().create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    harness.until("app", "it is refused", |status| waiting(status) == "CreateContainerConfigError").await;
    let patch = json!({"metadata": {"annotations": {"part": "a/b"}}});
    harness.pods().patch("app", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    harness.until_ready("app").await;
    std::fs::write(mounted(&harness, "/all").join("a/b/file"), "there").unwrap();
    assert_eq!(std::fs::read_to_string(mounted(&harness, "/part").join("file")).unwrap(), "there");
    harness.delete("app").await;
    harness.until_gone("app").await;
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(&harness.root().display().to_string()), "nothing stays mounted");
    agent.stop().await;
}
