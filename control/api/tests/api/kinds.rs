//! Kinds: discovery, every built-in one, and one that a test adds.

use serde_json::{Value, json};
use wharf_api::{Kind, Subresource};

use crate::harness::{Harness, call, call_as, get, send};

#[tokio::test]
async fn a_kind_is_a_row() {
    let kind = || {
        Kind::new("networking.k8s.io", "v1", "Ingress", "ingresses")
            .short_names(&["ing"])
            .subresources(&[Subresource::Status])
            .fields(&["spec.ingressClassName"])
    };
    let harness = Harness::with(|config| config.kinds.push(kind())).await;
    let client = harness.local();
    let path = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";
    let body = json!({"metadata": {"name": "i"}, "spec": {"ingressClassName": "x", "defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}});
    let (code, made) = call(&client, "POST", path, body).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!((&made["apiVersion"], &made["kind"]), (&json!("networking.k8s.io/v1"), &json!("Ingress")));
    assert_eq!(
        get(&client, &format!("{path}?fieldSelector=spec.ingressClassName%3Dx")).await.1["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}}).to_string();
    let (code, patched) =
        call_as(&client, "PATCH", &format!("{path}/i/status"), "application/merge-patch+json", status).await;
    assert_eq!((code, &patched["status"]["loadBalancer"]["ingress"][0]["ip"]), (200, &json!("1.2.3.4")));
    let apply =
        "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: j}\nspec: {ingressClassName: y}\n";
    assert_eq!(
        call_as(&client, "PATCH", &format!("{path}/j?fieldManager=m"), "application/apply-patch+yaml", apply)
            .await
            .0,
        201
    );
    let (_, found) = get(&client, "/apis/networking.k8s.io/v1").await;
    assert_eq!(
        (&found["resources"][0]["name"], &found["resources"][0]["shortNames"]),
        (&json!("ingresses"), &json!(["ing"]))
    );
    assert_eq!(call(&client, "DELETE", path, Value::Null).await.0, 200);
    // A row at a place that is taken is refused, not served by chance.
    let store = std::sync::Arc::new(
        wharf_store::Redb::open(tempfile::tempdir().unwrap().path().join("s")).await.unwrap(),
    );
    let config = wharf_api::Config { kinds: vec![kind(), kind()], ..wharf_api::Config::default() };
    assert!(matches!(wharf_api::ApiServer::start(config, store).await, Err(wharf_api::Error::Duplicate(_))));
}

#[tokio::test]
async fn stock_clients_discover_the_api() {
    let harness = Harness::start().await;
    let client = harness.admin();
    for discovery in [
        kube::Discovery::new(client.clone()).run().await.unwrap(),
        kube::Discovery::new(client.clone()).run_aggregated().await.unwrap(),
    ] {
        let group = discovery.get("apps").expect("the group is there");
        let (resource, capabilities) = group.recommended_kind("Deployment").unwrap();
        assert_eq!((resource.plural.as_str(), resource.api_version.as_str()), ("deployments", "apps/v1"));
        assert!(capabilities.supports_operation("watch"));
        assert!(
            capabilities.subresources.iter().any(|(sub, _)| sub.plural.ends_with("scale")),
            "{:?}",
            capabilities.subresources
        );
        let core = discovery.groups().find(|group| group.name().is_empty()).expect("the core group is there");
        assert_eq!(core.recommended_kind("Pod").unwrap().0.plural, "pods");
    }
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
    let request = http::Request::get("/apis").header("accept", accept).body(Vec::new()).unwrap();
    let response = send(&client, request).await;
    assert_eq!(
        response.headers()["content-type"],
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    );
    let (_, version) = get(&client, "/version").await;
    assert_eq!((&version["major"], &version["minor"]), (&json!("1"), &json!("36")));
    assert_eq!(get(&client, "/apis/none/v1").await.0, 404);
    assert_eq!(get(&client, "/apis/none").await.0, 404);
    assert_eq!(get(&client, "/api/v2").await.0, 404);
    assert_eq!(client.apiserver_version().await.unwrap().minor, "36");
}

#[tokio::test]
async fn every_cluster_has_its_first_objects() {
    let harness = Harness::start().await;
    let client = harness.local();
    let names = async |path: &str| -> Vec<String> {
        let (_, list) = get(&client, path).await;
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        names("/api/v1/namespaces").await,
        ["default", "kube-node-lease", "kube-public", "kube-system"]
    );
    assert_eq!(names("/apis/node.k8s.io/v1/runtimeclasses").await, ["oci", "wasm"]);
    let roles = names("/apis/rbac.authorization.k8s.io/v1/clusterroles").await;
    for role in ["admin", "cluster-admin", "edit", "system:node", "view", "wharf:registry-pusher"] {
        assert!(roles.iter().any(|name| name == role), "{role}");
    }
    // Names with a colon are paths too.
    assert_eq!(get(&client, "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node").await.0, 200);
}

#[tokio::test]
async fn every_kind_shows_a_table() {
    let harness = Harness::start().await;
    let client = harness.local();
    let meta = || json!({"name": "x"});
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let workload =
        json!({"metadata": meta(), "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let role_ref = json!({"kind": "ClusterRole", "name": "view", "apiGroup": "rbac.authorization.k8s.io"});
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let cases = [
        (
            "/api/v1/namespaces/default/configmaps".to_owned(),
            json!({"metadata": meta(), "data": {"a": "b"}}),
            json!(["x", 1]),
        ),
        (
            "/api/v1/namespaces/default/secrets".to_owned(),
            json!({"metadata": meta(), "stringData": {"a": "b"}}),
            json!(["x", "Opaque", 1]),
        ),
        (
            "/api/v1/namespaces/default/serviceaccounts".to_owned(),
            json!({"metadata": meta()}),
            json!(["x", 0]),
        ),
        (
            "/api/v1/namespaces/default/services".to_owned(),
            json!({"metadata": meta(), "spec": {"ports": [{"port": 80}]}}),
            json!(["x", "ClusterIP", "<none>", "<none>", "80/TCP"]),
        ),
        ("/api/v1/nodes".to_owned(), json!({"metadata": meta()}), json!(["x", "Unknown", "<none>"])),
        (
            "/apis/apps/v1/namespaces/default/deployments".to_owned(),
            workload.clone(),
            json!(["x", "0/1", 0, 0]),
        ),
        ("/apis/apps/v1/namespaces/default/replicasets".to_owned(), workload, json!(["x", 1, 0, 0])),
        (
            "/apis/coordination.k8s.io/v1/namespaces/default/leases".to_owned(),
            json!({"metadata": meta(), "spec": {"holderIdentity": "h"}}),
            json!(["x", "h"]),
        ),
        (
            "/apis/node.k8s.io/v1/runtimeclasses".to_owned(),
            json!({"metadata": meta(), "handler": "h"}),
            json!(["x", "h"]),
        ),
        (format!("{rbac}/namespaces/default/roles"), json!({"metadata": meta(), "rules": []}), json!(["x"])),
        (format!("{rbac}/clusterroles"), json!({"metadata": meta(), "rules": []}), json!(["x"])),
        (
            format!("{rbac}/namespaces/default/rolebindings"),
            json!({"metadata": meta(), "roleRef": role_ref, "subjects": []}),
            json!(["x", "ClusterRole/view"]),
        ),
        (
            format!("{rbac}/clusterrolebindings"),
            json!({"metadata": meta(), "roleRef": role_ref}),
            json!(["x", "ClusterRole/view"]),
        ),
    ];
    for (path, body, want) in cases {
        let (code, made) = call(&client, "POST", &path, body).await;
        assert_eq!(code, 201, "{path}: {made}");
        let request = http::Request::get(format!("{path}/x"))
            .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
            .body(Vec::new())
            .unwrap();
        let table: Value = serde_json::from_slice(send(&client, request).await.body()).unwrap();
        let want = want.as_array().unwrap();
        let cells = table["rows"][0]["cells"].as_array().unwrap_or_else(|| panic!("{path}: {table}"));
        assert_eq!(&cells[..want.len()], want.as_slice(), "{path}");
        assert_eq!(cells.len(), table["columnDefinitions"].as_array().unwrap().len(), "{path}");
    }
}
