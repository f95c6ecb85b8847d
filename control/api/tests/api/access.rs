//! Who gets in, and what they may do.

use http::Request;
use serde_json::{Value, json};
use wharf_api::Extra;

use crate::harness::{Harness, call, call_as, eventually, get, send};

const PODS: &str = "/api/v1/namespaces/default/pods";

fn pod(name: &str, extra: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "c", "image": "i"}]});
    for (key, value) in extra.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn strangers_see_the_version_and_nothing_else() {
    let harness = Harness::start().await;
    let anonymous = harness.anonymous();
    for (path, code) in [
        ("/version", 200),
        ("/healthz", 200),
        ("/readyz", 200),
        ("/api", 403),
        (PODS, 403),
        ("/metrics", 403),
    ] {
        assert_eq!(get(&anonymous, path).await.0, code, "{path}");
    }
    let (_, status) = get(&anonymous, PODS).await;
    assert_eq!(
        status["message"],
        "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    let request = Request::get(PODS).header("authorization", "Bearer nonsense").body(Vec::new()).unwrap();
    let refused = send(&anonymous, request).await;
    assert_eq!(refused.status(), 401);
    let status: Value = serde_json::from_slice(refused.body()).unwrap();
    assert_eq!((&status["reason"], &status["message"]), (&json!("Unauthorized"), &json!("Unauthorized")));
}

#[tokio::test]
async fn roles_are_granted_by_bindings() {
    let harness = Harness::start().await;
    let (admin, user) = (harness.admin(), harness.client("jane", &["dev"]));
    assert_eq!(get(&user, "/apis").await.0, 200, "discovery is everybody's");
    let (code, status) = get(&user, &format!("{PODS}/x")).await;
    assert_eq!(code, 403);
    assert_eq!(
        status["message"],
        "pods \"x\" is forbidden: User \"jane\" cannot get resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    let (_, status) = get(&user, "/api/v1/nodes").await;
    assert_eq!(
        status["message"],
        "nodes is forbidden: User \"jane\" cannot list resource \"nodes\" in API group \"\" at the cluster scope"
    );
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let binding = json!({
        "metadata": {"name": "dev"}, "roleRef": {"kind": "ClusterRole", "name": "edit", "apiGroup": "rbac.authorization.k8s.io"},
        "subjects": [{"kind": "Group", "name": "dev"}],
    });
    assert_eq!(
        call(&admin, "POST", &format!("{rbac}/namespaces/default/rolebindings"), binding.clone()).await.0,
        201
    );
    eventually(async || get(&user, PODS).await.0, |code| *code == 200).await;
    assert_eq!(get(&user, "/api/v1/namespaces/kube-system/pods").await.0, 403);
    assert_eq!(call(&user, "POST", PODS, pod("p", json!({}))).await.0, 201);
    assert_eq!(get(&user, &format!("{PODS}/p/log")).await.0, 400, "it may ask; the pod has no node");
    // To patch is not to create.
    let patcher = json!({"metadata": {"name": "patcher"}, "rules": [{"verbs": ["patch", "get"], "apiGroups": [""], "resources": ["configmaps"]}]});
    assert_eq!(call(&admin, "POST", &format!("{rbac}/clusterroles"), patcher).await.0, 201);
    let to_joe = json!({
        "metadata": {"name": "joe"}, "roleRef": {"kind": "ClusterRole", "name": "patcher"},
        "subjects": [{"kind": "User", "name": "joe"}],
    });
    assert_eq!(call(&admin, "POST", &format!("{rbac}/clusterrolebindings"), to_joe).await.0, 201);
    let joe = harness.client("joe", &[]);
    let map = "/api/v1/namespaces/default/configmaps/m";
    eventually(async || get(&joe, map).await.0, |code| *code == 404).await;
    let apply = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\n";
    let path = format!("{map}?fieldManager=x");
    let (code, status) = call_as(&joe, "PATCH", &path, "application/apply-patch+yaml", apply).await;
    assert_eq!(code, 403);
    assert!(
        status["message"].as_str().unwrap().contains("cannot create resource \"configmaps\""),
        "{status}"
    );
    // Nobody gives what they do not have.
    let role = json!({"metadata": {"name": "r"}, "rules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]});
    let roles = format!("{rbac}/namespaces/default/roles");
    assert_eq!(call(&user, "POST", &roles, role.clone()).await.0, 403);
    let mut admins = binding;
    admins["metadata"]["name"] = json!("admins");
    admins["roleRef"]["name"] = json!("admin");
    assert_eq!(call(&admin, "POST", &format!("{rbac}/namespaces/default/rolebindings"), admins).await.0, 201);
    let refused = eventually(
        async || call(&user, "POST", &roles, role.clone()).await,
        |(code, status)| {
            *code == 403
                && status["message"]
                    .as_str()
                    .unwrap()
                    .contains("attempting to grant RBAC permissions not currently held")
        },
    );
    refused.await;
    let modest = json!({"metadata": {"name": "m"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "secrets"]}]});
    assert_eq!(call(&user, "POST", &roles, modest).await.0, 201);
    // A role that a binding refers to stays what it refers to.
    let change = json!({"roleRef": {"name": "view"}}).to_string();
    let path = format!("{rbac}/namespaces/default/rolebindings/dev");
    assert_eq!(call_as(&admin, "PATCH", &path, "application/merge-patch+json", change).await.0, 422);
}

#[tokio::test]
async fn a_node_sees_and_changes_what_is_its_own() {
    let harness = Harness::start().await;
    let admin = harness.admin();
    let node = harness.client("system:node:n1", &["system:nodes"]);
    assert_eq!(call(&node, "POST", "/api/v1/nodes", json!({"metadata": {"name": "n1"}})).await.0, 201);
    let (code, status) = call(&node, "POST", "/api/v1/nodes", json!({"metadata": {"name": "n2"}})).await;
    assert_eq!(code, 403, "{status}");
    let lease = |name: &str| json!({"metadata": {"name": name}, "spec": {"holderIdentity": name, "leaseDurationSeconds": 40}});
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    assert_eq!(call(&node, "POST", leases, lease("n1")).await.0, 201);
    assert_eq!(call(&node, "PUT", &format!("{leases}/n1"), lease("n1")).await.0, 200);
    assert_eq!(call(&node, "POST", leases, lease("n2")).await.0, 403);
    for name in ["seen", "unseen"] {
        let body = json!({"metadata": {"name": name}});
        assert_eq!(call(&admin, "POST", "/api/v1/namespaces/default/secrets", body).await.0, 201);
    }
    let volumes = json!({"volumes": [{"name": "v", "secret": {"secretName": "seen"}}]});
    call(&admin, "POST", PODS, pod("mine", volumes)).await;
    call(&admin, "POST", PODS, pod("other", json!({}))).await;
    assert_eq!(
        get(&node, "/api/v1/namespaces/default/secrets/seen").await.0,
        403,
        "no pod here refers to it yet"
    );
    for (name, to) in [("mine", "n1"), ("other", "n2")] {
        let body = json!({"target": {"kind": "Node", "name": to}});
        assert_eq!(call(&admin, "POST", &format!("{PODS}/{name}/binding"), body).await.0, 201);
    }
    let allowed = [
        ("/api/v1/nodes/n1", 200),
        ("/api/v1/nodes/n2", 403),
        ("/api/v1/nodes", 200), // to route to the others' pods
        ("/api/v1/nodes?fieldSelector=metadata.name%3Dn1", 200),
        ("/api/v1/pods", 403),
        ("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1", 200),
        ("/api/v1/pods?fieldSelector=spec.nodeName%3Dn2", 403),
        ("/api/v1/namespaces/default/pods/mine", 200),
        ("/api/v1/namespaces/default/pods/other", 403),
        ("/api/v1/namespaces/default/secrets/seen", 200),
        ("/api/v1/namespaces/default/secrets/unseen", 403),
        ("/api/v1/namespaces/default/secrets", 403),
        ("/apis/node.k8s.io/v1/runtimeclasses", 200),
    ];
    for (path, code) in allowed {
        let (found, answer) = get(&node, path).await;
        assert_eq!(found, code, "{path}: {answer}");
    }
    let merge = "application/merge-patch+json";
    let phase = json!({"status": {"phase": "Running"}}).to_string();
    assert_eq!(call_as(&node, "PATCH", &format!("{PODS}/mine/status"), merge, phase.clone()).await.0, 200);
    assert_eq!(call_as(&node, "PATCH", &format!("{PODS}/other/status"), merge, phase).await.0, 403);
    assert_eq!(call(&node, "POST", PODS, pod("new", json!({}))).await.0, 403);
    assert_eq!(call(&node, "DELETE", &format!("{PODS}/mine"), json!({"gracePeriodSeconds": 0})).await.0, 200);
    let label = json!({"metadata": {"labels": {"node-restriction.kubernetes.io/x": "y"}}}).to_string();
    assert_eq!(call_as(&node, "PATCH", "/api/v1/nodes/n1", merge, label).await.0, 403);
    let events = "/api/v1/namespaces/default/events";
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "mine", "namespace": "default"}, "reason": "Started", "type": "Normal"});
    assert_eq!(call(&node, "POST", events, event).await.0, 201);
}

#[tokio::test]
async fn mounted_services_are_behind_the_same_door() {
    let router = axum::Router::new().fallback(|request: axum::extract::Request| async move {
        let user = request.extensions().get::<wharf_api::UserInfo>().unwrap().name.clone();
        let method = request.method().clone();
        let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
        format!("{method} by {user}: {}", body.len())
    });
    let harness = Harness::with(|config| config.extra.push(("/v2/".to_owned(), Extra::new(router)))).await;
    let anonymous = send(&harness.anonymous(), Request::get("/v2/").body(Vec::new()).unwrap()).await;
    assert_eq!(anonymous.status(), 401);
    assert_eq!(anonymous.headers()["www-authenticate"], "Basic realm=\"wharf\"");
    let node = harness.client("system:node:n1", &["system:nodes"]);
    assert_eq!(get(&node, "/v2/").await, (200, json!("GET by system:node:n1: 0")));
    assert_eq!(get(&node, "/v2").await.0, 200);
    assert_eq!(call(&node, "PUT", "/v2/app/manifests/x", json!({})).await.0, 403);
    assert_eq!(get(&harness.client("jane", &[]), "/v2/").await.0, 403);
    // Bodies have no limit there.
    let big = vec![0; 5 << 20];
    let (code, answer) =
        call_as(&harness.admin(), "POST", "/v2/app/blobs/uploads/", "application/octet-stream", big).await;
    assert_eq!((code, answer), (200, json!(format!("POST by kubernetes-admin: {}", 5 << 20))));
}

#[tokio::test]
async fn requests_are_counted() {
    let harness = Harness::start().await;
    let client = harness.admin();
    for _ in 0..3 {
        get(&client, PODS).await;
    }
    let (_, text) = get(&client, "/metrics").await;
    let line = "apiserver_request_total{user=\"kubernetes-admin\",verb=\"list\",group=\"\",resource=\"pods\",subresource=\"\",code=\"200\"} 3";
    assert!(text.as_str().unwrap().contains(line), "{text}");
}

#[tokio::test]
async fn too_many_requests_are_told_to_come_again() {
    let harness = Harness::with(|config| config.max_in_flight = 0).await;
    let request = Request::get("/api/v1/namespaces").body(Vec::new()).unwrap();
    // A client with a connection of its own would come again by itself.
    let scheduler = harness.server.client(wharf_api::UserInfo::system("kube-scheduler"));
    let refused = send(&scheduler, request).await;
    assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].to_str().unwrap()), (429, "1"));
    assert_eq!(get(&harness.admin(), "/api/v1/namespaces").await.0, 200, "an operator gets in");
}
