//! What a pod gets of its service account when it is made.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Harness, call, get, make_account};

const PODS: &str = "/api/v1/namespaces/default/pods";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

fn with(name: &str, spec: Value) -> Value {
    let mut pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

async fn make(client: &kube::Client, pod: Value) -> Value {
    let (code, made) = call(client, "POST", PODS, pod).await;
    assert_eq!(code, 201, "{made}");
    made
}

/// An account with these fields beside its name.
async fn account(client: &kube::Client, name: &str, fields: Value) {
    let mut account = fields;
    account["metadata"]["name"] = json!(name);
    let (code, made) = call(client, "POST", "/api/v1/namespaces/default/serviceaccounts", account).await;
    assert_eq!(code, 201, "{made}");
}

/// The refusal of this pod.
async fn refused(client: &kube::Client, pod: Value) -> String {
    let (code, status) = call(client, "POST", PODS, pod).await;
    assert_eq!((code, &status["reason"]), (403, &json!("Forbidden")), "{status}");
    status["message"].as_str().unwrap().to_owned()
}

/// The volume of the pod's token, if it has one; each container mounts it, read-only, where clients look.
fn token_volume(pod: &Value) -> Option<&Value> {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let volume =
        volumes.into_iter().find(|volume| volume["name"].as_str().unwrap().starts_with("kube-api-access-"));
    let mount =
        volume.map(|volume| json!({"name": volume["name"], "readOnly": true, "mountPath": MOUNT_PATH}));
    for container in pod["spec"]["containers"].as_array().unwrap() {
        let mounts = container["volumeMounts"].as_array().into_iter().flatten();
        let found = mounts.into_iter().find(|mount| mount["mountPath"] == MOUNT_PATH);
        assert_eq!(found, mount.as_ref(), "{pod}");
    }
    volume
}

#[tokio::test]
async fn a_pod_finds_its_token_where_clients_look_for_it() {
    let harness = Harness::start().await;
    let client = harness.admin();
    account(&client, "robot", json!({})).await;
    let mut pod = with(
        "",
        json!({
            "serviceAccountName": "robot",
            "initContainers": [{"name": "i", "image": "i"}],
            "volumes": [{"name": "own", "emptyDir": {}}],
            "containers": [
                {"name": "a", "image": "i", "volumeMounts": [{"name": "own", "mountPath": "/own"}]},
                {"name": "b", "image": "i", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]},
            ],
        }),
    );
    pod["metadata"] = json!({"generateName": "web-"});
    let made = make(&client, pod).await;
    assert_eq!(
        (&made["spec"]["serviceAccountName"], &made["spec"]["serviceAccount"]),
        (&json!("robot"), &json!("robot"))
    );
    let volume = &made["spec"]["volumes"][1];
    let name = volume["name"].as_str().unwrap();
    assert!(name.strip_prefix("kube-api-access-").is_some_and(|suffix| suffix.len() == 5), "{name}");
    assert_eq!(
        volume["projected"],
        json!({"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]})
    );
    let mounts = |at: &str| made["spec"].pointer(at).unwrap()["volumeMounts"].clone();
    let token = json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH});
    let own = json!({"name": "own", "mountPath": "/own"});
    assert_eq!(mounts("/initContainers/0"), json!([token]));
    assert_eq!(mounts("/containers/0"), json!([own, token]));
    let instead = json!({"name": "own", "mountPath": MOUNT_PATH});
    assert_eq!(mounts("/containers/1"), json!([instead]), "what its author put there stays");

    // Later writes of the pod add nothing.
    let path = format!("{PODS}/{}", made["metadata"]["name"].as_str().unwrap());
    let (code, again) = call(&client, "PUT", &path, get(&client, &path).await.1).await;
    assert_eq!((code, &again["spec"]), (200, &made["spec"]));
}

#[tokio::test]
async fn the_pods_word_on_its_token_goes_before_the_accounts() {
    let harness = Harness::start().await;
    let client = harness.admin();
    let sayings = [("silent", json!({})), ("yes", json!(true)), ("no", json!(false))];
    for (of_account, said) in &sayings {
        let fields = match said.as_bool() {
            Some(said) => json!({"automountServiceAccountToken": said}),
            None => json!({}),
        };
        account(&client, of_account, fields).await;
        for (of_pod, said_by_pod) in &sayings {
            let mut spec = json!({"serviceAccountName": of_account});
            if let Some(said) = said_by_pod.as_bool() {
                spec["automountServiceAccountToken"] = json!(said);
            }
            let pod = make(&client, with(&format!("{of_account}-{of_pod}"), spec)).await;
            let want = said_by_pod.as_bool().or(said.as_bool()).unwrap_or(true);
            assert_eq!(token_volume(&pod).is_some(), want, "account {of_account}, pod {of_pod}");
        }
    }
}

#[tokio::test]
async fn a_pod_that_brings_its_own_volume_gets_no_second() {
    let harness = Harness::start().await;
    let client = harness.admin();
    account(&client, "robot", json!({})).await;
    let volumes = json!([{"name": "kube-api-access-mine", "projected": {"sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}]}}]);
    let named = make(&client, with("a", json!({"serviceAccountName": "robot", "volumes": volumes}))).await;
    assert_eq!(token_volume(&named).unwrap()["name"], "kube-api-access-mine");
    assert_eq!(named["spec"]["volumes"].as_array().unwrap().len(), 1);
    let mounts = json!([{"name": "own", "mountPath": MOUNT_PATH}]);
    let spec = json!({
        "serviceAccountName": "robot", "volumes": [{"name": "own", "emptyDir": {}}],
        "containers": [{"name": "c", "image": "i", "volumeMounts": mounts}]});
    let covered = make(&client, with("b", spec)).await;
    assert_eq!(covered["spec"]["volumes"].as_array().unwrap().len(), 1, "nobody would mount it");
}

#[tokio::test]
async fn a_pod_needs_its_account_and_waits_for_the_first_of_a_namespace() {
    let harness = Harness::start().await;
    let client = harness.admin();
    assert_eq!(
        refused(&client, with("a", json!({"serviceAccountName": "robot"}))).await,
        "pods \"a\" is forbidden: error looking up service account default/robot: serviceaccount \"robot\" not found"
    );
    // The name that the field had once.
    let old = refused(&client, with("a", json!({"serviceAccount": "robot"}))).await;
    assert!(old.contains("default/robot"), "{old}");

    for name in ["new", "never"] {
        let namespace = json!({"metadata": {"name": name}});
        assert_eq!(call(&client, "POST", "/api/v1/namespaces", namespace).await.0, 201);
    }
    // The account comes when the pod already waits: it is not polled for, and the pod is not refused.
    let waiting = call(&client, "POST", "/api/v1/namespaces/new/pods", with("a", json!({})));
    let account = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        make_account(&client, "new").await;
    };
    let ((code, made), ()) = tokio::join!(waiting, account);
    assert_eq!((code, &made["spec"]["serviceAccountName"]), (201, &json!("default")), "{made}");

    let (code, status) = call(&client, "POST", "/api/v1/namespaces/never/pods", with("a", json!({}))).await;
    assert_eq!(
        (code, status["message"].as_str().unwrap()),
        (
            403,
            "pods \"a\" is forbidden: error looking up service account never/default: serviceaccount \"default\" not found"
        )
    );
}

#[tokio::test]
async fn the_accounts_pull_secrets_are_for_pods_without_any() {
    let harness = Harness::start().await;
    let client = harness.admin();
    account(&client, "puller", json!({"imagePullSecrets": [{"name": "a"}, {"name": "b"}]})).await;
    for (name, given, want) in [
        ("none", json!(null), json!([{"name": "a"}, {"name": "b"}])),
        ("empty", json!([]), json!([{"name": "a"}, {"name": "b"}])),
        ("own", json!([{"name": "c"}]), json!([{"name": "c"}])),
    ] {
        let spec = json!({"serviceAccountName": "puller", "imagePullSecrets": given});
        assert_eq!(make(&client, with(name, spec)).await["spec"]["imagePullSecrets"], want, "{name}");
    }
}

#[tokio::test]
async fn a_mirror_pod_needs_nothing_of_the_api() {
    let harness = Harness::start().await;
    let client = harness.admin();
    let mirror = |name: &str, spec: Value| {
        let mut pod = with(name, spec);
        pod["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
        pod
    };
    let plain = make(&client, mirror("a", json!({}))).await;
    assert_eq!((token_volume(&plain), plain["spec"].get("serviceAccountName")), (None, None));
    let projected = |source: Value| json!({"volumes": [{"name": "v", "projected": {"sources": [source]}}]});
    let env = |from: Value| json!({"containers": [{"name": "c", "image": "i", "env": [{"name": "E", "valueFrom": from}]}]});
    for (spec, why) in [
        (json!({"serviceAccountName": "default"}), "reference service accounts"),
        (json!({"imagePullSecrets": [{"name": "s"}]}), "reference secrets"),
        (json!({"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}), "reference secrets"),
        (env(json!({"secretKeyRef": {"name": "s", "key": "k"}})), "reference secrets"),
        (projected(json!({"secret": {"name": "s"}})), "reference secrets"),
        (
            projected(json!({"serviceAccountToken": {"path": "t"}})),
            "use ServiceAccountToken volume projections",
        ),
    ] {
        let said = refused(&client, mirror("b", spec)).await;
        assert_eq!(said, format!("pods \"b\" is forbidden: a mirror pod may not {why}"));
    }
}

#[tokio::test]
async fn an_account_can_limit_its_pods_to_the_secrets_that_it_names() {
    let harness = Harness::start().await;
    let client = harness.admin();
    account(
        &client,
        "strict",
        json!({"metadata": {"annotations": {"kubernetes.io/enforce-mountable-secrets": "true"}},
            "secrets": [{"name": "mine"}], "imagePullSecrets": [{"name": "pull"}]}),
    )
    .await;
    let strict = |name: &str, mut spec: Value| {
        spec["serviceAccountName"] = json!("strict");
        with(name, spec)
    };
    let container = |sort: &str, env: Value| {
        let mut spec = json!({});
        spec[sort] = json!([{"name": "c", "image": "i", "env": env["env"], "envFrom": env["envFrom"]}]);
        spec
    };
    let key = |name: &str| json!({"env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": name, "key": "k"}}}]});
    let all = |name: &str| json!({"envFrom": [{"secretRef": {"name": name}}]});
    let volume = |name: &str| json!({"volumes": [{"name": "v", "secret": {"secretName": name}}]});
    for (at, spec) in
        [volume("mine"), container("containers", key("mine")), container("containers", all("mine"))]
            .into_iter()
            .enumerate()
    {
        make(&client, strict(&format!("fine-{at}"), spec)).await;
    }
    let tail = "is not allowed because service account strict does not reference that secret";
    for (spec, why) in [
        (volume("other"), format!("volume with secret.secretName=\"other\" {tail}")),
        (
            container("containers", key("other")),
            format!("container c with envVar E referencing secret.secretName=\"other\" {tail}"),
        ),
        (
            container("containers", all("other")),
            format!("container c with envFrom referencing secret.secretName=\"other\" {tail}"),
        ),
        (
            json!({"imagePullSecrets": [{"name": "other"}]}),
            "imagePullSecrets[0].name=\"other\" is not allowed because service account strict does not reference that imagePullSecret".to_owned(),
        ),
    ] {
        assert_eq!(
            refused(&client, strict("b", spec)).await,
            format!("pods \"b\" is forbidden: {why}")
        );
    }
}
