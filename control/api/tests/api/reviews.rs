//! Kinds that are answered and not stored, and acting as somebody else.

use http::Request;
use serde_json::{Value, json};

use crate::harness::{Harness, call, eventually, get, send};

const AUTHN: &str = "/apis/authentication.k8s.io/v1";
const AUTHZ: &str = "/apis/authorization.k8s.io/v1";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

async fn review(client: &kube::Client, path: &str, spec: Value) -> Value {
    let (code, answer) = call(client, "POST", path, json!({"spec": spec})).await;
    assert_eq!(code, 201, "{answer}");
    answer["status"].clone()
}

/// Gives `user` a cluster role in the namespace, or everywhere if that is empty, and waits until it holds.
async fn grant(harness: &Harness, user: &str, role: &str, namespace: &str) {
    let admin = harness.admin();
    let (path, kind) = match namespace {
        "" => (format!("{RBAC}/clusterrolebindings"), "ClusterRoleBinding"),
        _ => (format!("{RBAC}/namespaces/{namespace}/rolebindings"), "RoleBinding"),
    };
    let body = json!({
        "kind": kind, "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": format!("{user}-{role}")},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    });
    let (code, answer) = call(&admin, "POST", &path, body).await;
    assert_eq!(code, 201, "{answer}");
    let rules = format!("{AUTHZ}/selfsubjectrulesreviews");
    let client = harness.client(user, &[]);
    let place = if namespace.is_empty() { "default" } else { namespace };
    let everybody = review(&harness.client("nobody", &[]), &rules, json!({"namespace": place})).await;
    eventually(
        || review(&client, &rules, json!({"namespace": place})),
        |found| found["resourceRules"] != everybody["resourceRules"],
    )
    .await;
}

/// `VERB RESOURCE[.GROUP][/SUB] [NAMESPACE]` as attributes.
fn attributes(text: &str) -> Value {
    let mut words = text.split(' ');
    let (verb, resource) = (words.next().unwrap(), words.next().unwrap());
    let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    json!({"resourceAttributes": {
        "verb": verb, "group": group, "resource": resource, "subresource": sub,
        "namespace": words.next().unwrap_or_default()}})
}

#[tokio::test]
async fn the_default_roles_allow_what_their_names_say() {
    let harness = Harness::start().await;
    let users = [("v", "view"), ("e", "edit"), ("a", "admin")];
    for (user, role) in users {
        grant(&harness, user, role, "default").await;
    }
    grant(&harness, "root", "cluster-admin", "").await;
    // Who of view, edit, admin and cluster-admin may.
    for (what, may) in [
        ("get pods default", "vear"),
        ("list deployments.apps default", "vear"),
        ("watch serviceaccounts default", "vear"),
        ("get pods/log default", "vear"),
        ("get pods kube-system", "r"),
        ("get secrets default", "ear"),
        ("create pods default", "ear"),
        ("delete deployments.apps default", "ear"),
        ("patch deployments.apps/scale default", "ear"),
        ("create pods/portforward default", "ear"),
        ("create pods/eviction default", "ear"),
        ("create serviceaccounts/token default", "ear"),
        ("impersonate serviceaccounts default", "ear"),
        ("create roles.rbac.authorization.k8s.io default", "ar"),
        ("get rolebindings.rbac.authorization.k8s.io default", "ar"),
        ("create localsubjectaccessreviews.authorization.k8s.io default", "ar"),
        ("get nodes", "r"),
        ("update namespaces default", "r"),
        ("impersonate users", "r"),
        ("* * default", "r"),
    ] {
        for (user, _) in users.iter().chain(&[("root", "")]) {
            let path = format!("{AUTHZ}/selfsubjectaccessreviews");
            let status = review(&harness.client(user, &[]), &path, attributes(what)).await;
            assert_eq!(status["allowed"], may.contains(&user[..1]), "{user}: {what}");
        }
    }
}

#[tokio::test]
async fn access_of_others_is_told_to_who_may_ask() {
    let harness = Harness::start().await;
    let admin = harness.admin();
    grant(&harness, "v", "view", "default").await;
    let path = format!("{AUTHZ}/subjectaccessreviews");
    let ask = |user: Value, what: &str| {
        let mut spec = attributes(what);
        for (key, value) in user.as_object().unwrap() {
            spec[key] = value.clone();
        }
        spec
    };
    let may = async |user: Value, what: &str| {
        review(&admin, &path, ask(user, what)).await["allowed"].as_bool().unwrap()
    };
    assert!(may(json!({"user": "v"}), "get pods default").await);
    assert!(!may(json!({"user": "v"}), "delete pods default").await);
    assert!(may(json!({"user": "x", "groups": ["system:masters"]}), "delete pods default").await);
    let by_path = json!({"user": "x", "groups": ["system:authenticated"], "nonResourceAttributes": {"path": "/version", "verb": "get"}});
    assert_eq!(review(&admin, &path, by_path).await["allowed"], true);
    assert_eq!(call(&harness.client("v", &[]), "POST", &path, json!({"spec": {}})).await.0, 403);
    for (spec, message) in [
        (
            json!({"user": "v"}),
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
        (ask(json!({}), "get pods"), "at least one of user or group must be specified"),
        (
            ask(json!({"user": "v", "nonResourceAttributes": {}}), "get pods"),
            "cannot be specified in combination with resourceAttributes",
        ),
    ] {
        let (code, status) = call(&admin, "POST", &path, json!({"spec": spec})).await;
        assert_eq!(code, 422, "{status}");
        assert!(status["message"].as_str().unwrap().contains(message), "{status}");
    }
    let local = format!("{AUTHZ}/namespaces/default/localsubjectaccessreviews");
    assert_eq!(review(&admin, &local, ask(json!({"user": "v"}), "get pods default")).await["allowed"], true);
    let elsewhere = ask(json!({"user": "v"}), "get pods kube-system");
    assert_eq!(call(&admin, "POST", &local, json!({"spec": elsewhere})).await.0, 422);
}

#[tokio::test]
async fn rules_of_the_asker_are_listed() {
    let harness = Harness::start().await;
    grant(&harness, "e", "edit", "default").await;
    let path = format!("{AUTHZ}/selfsubjectrulesreviews");
    let client = harness.client("e", &[]);
    let rules = review(&client, &path, json!({"namespace": "default"})).await;
    let creates_pods = |rules: &Value| {
        rules["resourceRules"].as_array().unwrap().iter().any(|rule| {
            let has = |field: &str, value: &str| rule[field].as_array().unwrap().contains(&json!(value));
            has("verbs", "create") && has("resources", "pods") && has("apiGroups", "")
        })
    };
    assert!(creates_pods(&rules), "{rules}");
    assert_eq!(rules["incomplete"], false);
    assert!(!rules["nonResourceRules"].as_array().unwrap().is_empty());
    assert!(!creates_pods(&review(&client, &path, json!({"namespace": "kube-system"})).await));
    assert_eq!(call(&client, "POST", &path, json!({"spec": {}})).await.0, 400);
}

#[tokio::test]
async fn tokens_are_reviewed() {
    let harness = Harness::start().await;
    let admin = harness.admin();
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    call(&admin, "POST", accounts, json!({"metadata": {"name": "robot"}})).await;
    let (_, made) = call(
        &admin,
        "POST",
        &format!("{accounts}/robot/token"),
        json!({"spec": {"audiences": ["vault", "x"]}}),
    )
    .await;
    let token = &made["status"]["token"];
    let path = format!("{AUTHN}/tokenreviews");
    let status = review(&admin, &path, json!({"token": token, "audiences": ["vault", "y"]})).await;
    assert_eq!((&status["authenticated"], &status["audiences"]), (&json!(true), &json!(["vault"])));
    assert_eq!(status["user"]["username"], "system:serviceaccount:default:robot");
    for spec in
        [json!({"token": token}), json!({"token": token, "audiences": ["y"]}), json!({"token": "nonsense"})]
    {
        let status = review(&admin, &path, spec).await;
        assert!(status.get("authenticated").is_none() && status["error"].is_string(), "{status}");
        assert!(!status["error"].as_str().unwrap().contains("nonsense"), "{status}");
    }
    assert_eq!(call(&admin, "POST", &path, json!({"spec": {"token": ""}})).await.0, 400);
    assert_eq!(
        call(&harness.client("jane", &[]), "POST", &path, json!({"spec": {"token": "x"}})).await.0,
        403
    );
}

#[tokio::test]
async fn reviews_can_be_created_and_nothing_else() {
    let harness = Harness::start().await;
    let admin = harness.admin();
    for (group, count) in [(AUTHN, 2), (AUTHZ, 4)] {
        let (_, found) = get(&admin, group).await;
        let resources = found["resources"].as_array().unwrap();
        assert_eq!(resources.len(), count);
        assert!(resources.iter().all(|one| one["verbs"] == json!(["create"])), "{found}");
    }
    let path = format!("{AUTHZ}/selfsubjectaccessreviews");
    for (method, path) in [
        ("GET", path.clone()),
        ("DELETE", path.clone()),
        ("GET", format!("{path}/x")),
        ("PUT", format!("{path}/x")),
    ] {
        assert_eq!(call(&admin, method, &path, Value::Null).await.0, 405, "{method} {path}");
    }
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let ask = |accept: &str| {
        let body = json!({"spec": attributes("get pods")}).to_string().into_bytes();
        let request =
            Request::post(&path).header("content-type", "application/json").header("accept", accept);
        request.body(body).unwrap()
    };
    assert_eq!(send(&admin, ask(table)).await.status(), 406);
    assert_eq!(send(&admin, ask(&format!("{table},application/json"))).await.status(), 201);
    assert_eq!(send(&admin, ask("application/yaml")).await.headers()["content-type"], "application/yaml");
}

#[tokio::test]
async fn a_user_acts_as_another_if_a_role_says_so() {
    let harness = Harness::start().await;
    let admin = harness.admin();
    let role = json!({"metadata": {"name": "actor"}, "rules": [
        {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"], "resourceNames": ["jane"]},
        {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["groups"], "resourceNames": ["dev"]},
        {"verbs": ["impersonate"], "apiGroups": ["authentication.k8s.io"], "resources": ["userextras/scopes"], "resourceNames": ["view"]},
    ]});
    assert_eq!(call(&admin, "POST", &format!("{RBAC}/clusterroles"), role).await.0, 201);
    grant(&harness, "actor", "actor", "").await;
    let act = async |user: &str, headers: &[(&str, &str)]| -> (u16, Value) {
        let mut request = Request::post(format!("{AUTHN}/selfsubjectreviews"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.header("content-type", "application/json").body(b"{}".to_vec()).unwrap();
        let groups: &[&str] = if user == "kubernetes-admin" { &["system:masters"] } else { &[] };
        let answer = send(&harness.client(user, groups), request).await;
        (answer.status().as_u16(), serde_json::from_slice(answer.body()).unwrap())
    };
    let (code, found) = act(
        "actor",
        &[("Impersonate-User", "jane"), ("Impersonate-Group", "dev"), ("Impersonate-Extra-Scopes", "view")],
    )
    .await;
    assert_eq!(code, 201, "{found}");
    assert_eq!(
        found["status"]["userInfo"],
        json!({"username": "jane", "groups": ["dev", "system:authenticated"], "extra": {"scopes": ["view"]}})
    );
    for (headers, message) in [
        (
            vec![("Impersonate-User", "root")],
            "users \"root\" is forbidden: User \"actor\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
        ),
        (
            vec![("Impersonate-User", "jane"), ("Impersonate-Group", "system:masters")],
            "cannot impersonate resource \"groups\"",
        ),
        (
            vec![("Impersonate-User", "jane"), ("Impersonate-Group", "dev"), ("Impersonate-Group", "ops")],
            "groups \"ops\" is forbidden",
        ),
        (
            vec![("Impersonate-User", "jane"), ("Impersonate-Extra-Scopes", "edit")],
            "cannot impersonate resource \"userextras/scopes\" in API group \"authentication.k8s.io\"",
        ),
        (
            vec![("Impersonate-User", "jane"), ("Impersonate-Uid", "1")],
            "cannot impersonate resource \"uids\"",
        ),
        (
            vec![("Impersonate-User", "system:serviceaccount:a:b")],
            "cannot impersonate resource \"serviceaccounts\" in API group \"\" in the namespace \"a\"",
        ),
    ] {
        let (code, status) = act("actor", &headers).await;
        assert_eq!(code, 403, "{headers:?}");
        assert!(status["message"].as_str().unwrap().contains(message), "{status}");
    }
    assert_eq!(act("actor", &[("Impersonate-Group", "dev")]).await.0, 400);
    let (_, robot) = act("kubernetes-admin", &[("Impersonate-User", "system:serviceaccount:a:b")]).await;
    assert_eq!(
        robot["status"]["userInfo"]["groups"],
        json!(["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"])
    );
    let (_, anonymous) = act("kubernetes-admin", &[("Impersonate-User", "system:anonymous")]).await;
    // Who may act as anybody may act as a stranger, who may not even ask who they are.
    let message = anonymous["message"].as_str().unwrap_or_default();
    assert!(message.contains("User \"system:anonymous\" cannot create"), "{anonymous}");
}
