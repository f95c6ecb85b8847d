//! ResourceQuotas: what is charged, and what is refused.

use serde_json::{Value, json};

use crate::harness::{Harness, call, call_as, get};
use crate::two_servers::Pair;

const SPACE: &str = "/api/v1/namespaces/default";

fn pod(name: &str, resources: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}})
}

/// A quota as its controller left it: nothing is used.
async fn quota(client: &kube::Client, name: &str, hard: Value, more: Value) {
    let used: Value = hard.as_object().unwrap().keys().map(|name| (name.clone(), json!("0"))).collect();
    let mut quota = json!({"metadata": {"name": name}, "spec": {"hard": hard}});
    quota["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let (code, made) = call(client, "POST", &format!("{SPACE}/resourcequotas"), quota).await;
    assert_eq!(code, 201, "{made}");
    let status = json!({"status": {"hard": hard, "used": used}}).to_string();
    let path = format!("{SPACE}/resourcequotas/{name}/status");
    let (code, written) = call_as(client, "PATCH", &path, "application/merge-patch+json", status).await;
    assert_eq!(code, 200, "{written}");
}

async fn used(client: &kube::Client, name: &str) -> Value {
    get(client, &format!("{SPACE}/resourcequotas/{name}")).await.1["status"]["used"].clone()
}

async fn refused(client: &kube::Client, plural: &str, object: Value, words: &str) {
    let (code, status) = call(client, "POST", &format!("{SPACE}/{plural}"), object).await;
    assert_eq!((code, status["message"].as_str().unwrap_or_default()), (403, words), "{status}");
}

#[tokio::test]
async fn what_is_made_is_charged_until_no_more_is_left() {
    let harness = Harness::start().await;
    let client = harness.local();
    let hard = json!({"pods": "2", "requests.cpu": "1", "limits.memory": "1Gi"});
    quota(&client, "compute", hard, json!({})).await;
    quota(&client, "objects", json!({"count/configmaps": "1", "count/deployments.apps": "0"}), json!({}))
        .await;
    quota(&client, "idle", json!({"pods": "0"}), json!({"scopes": ["BestEffort"]})).await;
    let asks = |cpu: &str| json!({"requests": {"cpu": cpu}, "limits": {"memory": "256Mi"}});

    let made = call(&client, "POST", &format!("{SPACE}/pods"), pod("a", asks("600m"))).await;
    assert_eq!(made.0, 201, "{}", made.1);
    let after_one = json!({"pods": "1", "requests.cpu": "600m", "limits.memory": "256Mi"});
    assert_eq!(used(&client, "compute").await, after_one);
    refused(&client, "pods", pod("b", asks("500m")),
        "pods \"b\" is forbidden: exceeded quota: compute, requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1").await;
    refused(
        &client,
        "pods",
        pod("b", json!({})),
        "pods \"b\" is forbidden: failed quota: compute: must specify limits.memory for: c; requests.cpu for: c",
    )
    .await;
    // What is not written is not charged: a name that is taken, a dry run, what is invalid.
    let (code, taken) = call(&client, "POST", &format!("{SPACE}/pods"), pod("a", asks("1m"))).await;
    assert_eq!((code, &taken["reason"]), (409, &json!("AlreadyExists")));
    assert_eq!(call(&client, "POST", &format!("{SPACE}/pods?dryRun=All"), pod("b", asks("1m"))).await.0, 201);
    assert_eq!(call(&client, "POST", &format!("{SPACE}/pods"), pod("No", asks("1m"))).await.0, 422);
    assert_eq!(used(&client, "compute").await, after_one);
    refused(&client, "pods?dryRun=All", pod("b", asks("1")),
        "pods \"b\" is forbidden: exceeded quota: compute, requested: requests.cpu=1, used: requests.cpu=600m, limited: requests.cpu=1").await;

    let map = |name: &str| json!({"metadata": {"name": name}});
    assert_eq!(call(&client, "POST", &format!("{SPACE}/configmaps"), map("one")).await.0, 201);
    refused(&client, "configmaps", map("two"),
        "configmaps \"two\" is forbidden: exceeded quota: objects, requested: count/configmaps=1, used: count/configmaps=1, limited: count/configmaps=1").await;
    // Apply makes objects, too.
    let applied = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "two"}}).to_string();
    let path = format!("{SPACE}/configmaps/two?fieldManager=t");
    assert_eq!(call_as(&client, "PATCH", &path, "application/apply-patch+yaml", applied).await.0, 403);
    harness.stop().await;
}

#[tokio::test]
async fn a_service_that_changes_its_type_is_charged_for_what_it_then_uses() {
    let harness = Harness::start().await;
    let client = harness.local();
    quota(&client, "net", json!({"services": "1", "services.nodeports": "1"}), json!({})).await;
    let service = |port: i32| json!({"name": format!("p{port}"), "port": port});
    let one = json!({"metadata": {"name": "s"}, "spec": {"ports": [service(1)]}});
    assert_eq!(call(&client, "POST", &format!("{SPACE}/services"), one).await.0, 201);
    assert_eq!(used(&client, "net").await, json!({"services": "1", "services.nodeports": "0"}));
    let merge = async |spec: Value| {
        let body = json!({"spec": spec}).to_string();
        call_as(&client, "PATCH", &format!("{SPACE}/services/s"), "application/merge-patch+json", body).await
    };
    assert_eq!(merge(json!({"type": "NodePort"})).await.0, 200);
    assert_eq!(used(&client, "net").await, json!({"services": "1", "services.nodeports": "1"}));
    let (code, status) = merge(json!({"ports": [service(1), service(2)]})).await;
    assert_eq!(
        (code, &status["message"]),
        (
            403,
            &json!(
                "services \"s\" is forbidden: exceeded quota: net, requested: services.nodeports=1, used: services.nodeports=1, limited: services.nodeports=1"
            )
        )
    );
    harness.stop().await;
}

/// Makes many pods at once through these clients: just as many are made as may be.
async fn race(clients: &[kube::Client]) {
    const AT_ONCE: usize = 60;
    const MOST: usize = 23;
    let most = MOST.to_string();
    quota(&clients[0], "a", json!({"pods": most, "requests.cpu": "100"}), json!({})).await;
    quota(&clients[0], "b", json!({"count/pods": most}), json!({"scopes": []})).await;
    let mut makers = tokio::task::JoinSet::new();
    for number in 0..AT_ONCE {
        let client = clients[number % clients.len()].clone();
        makers.spawn(async move {
            let object = pod(&format!("p{number}"), json!({"requests": {"cpu": "1"}}));
            call(&client, "POST", &format!("{SPACE}/pods"), object).await
        });
    }
    let answers = makers.join_all().await;
    for (code, status) in &answers {
        let message = status["message"].as_str().unwrap_or_default();
        assert!(*code == 201 || (*code == 403 && message.contains("exceeded quota")), "{code} {message}");
    }
    let made = answers.iter().filter(|(code, _)| *code == 201).count();
    let (_, list) = get(&clients[0], &format!("{SPACE}/pods")).await;
    assert_eq!(made, list["items"].as_array().unwrap().len());
    assert_eq!(made, MOST);
    let [a, b] = [used(&clients[0], "a").await, used(&clients[0], "b").await];
    assert_eq!([&a["pods"], &a["requests.cpu"], &b["count/pods"]], [most.as_str(); 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_never_use_more_than_there_is() {
    let harness = Harness::start().await;
    race(&[harness.local()]).await;
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_do_they_through_two_servers() {
    let pair = Pair::start().await;
    let clients = pair.clients();
    let account = json!({"metadata": {"name": "default"}, "automountServiceAccountToken": false});
    assert_eq!(call(&clients[0], "POST", &format!("{SPACE}/serviceaccounts"), account).await.0, 201);
    race(&clients).await;
}

#[tokio::test]
async fn a_quota_that_limits_nothing_known_is_refused() {
    let harness = Harness::start().await;
    let client = harness.local();
    for (spec, words) in [
        (
            json!({"hard": {"gold": "1"}}),
            "spec.hard[gold]: Invalid value: \"gold\": must be a standard resource for quota",
        ),
        (
            json!({"hard": {"count/": "1"}}),
            "spec.hard[count/]: Invalid value: \"count/\": name part must be non-empty",
        ),
        (json!({"hard": {"pods": "1.5"}}), "spec.hard[pods]: Invalid value: \"1500m\": must be an integer"),
        (
            json!({"hard": {"count/pods": "500m"}}),
            "spec.hard[count/pods]: Invalid value: \"500m\": must be an integer",
        ),
        (
            json!({"hard": {"requests.cpu": "1"}, "scopes": ["BestEffort"]}),
            "spec.scopes: Invalid value: [\"BestEffort\"]: unsupported scope applied to resource",
        ),
        (
            json!({"hard": {"services": "1"}, "scopes": ["Terminating"]}),
            "unsupported scope applied to resource",
        ),
        (
            json!({"hard": {"pods": "1"}, "scopes": ["Never"]}),
            "spec.scopes: Invalid value: [\"Never\"]: unsupported scope",
        ),
    ] {
        let quota = json!({"metadata": {"name": "x"}, "spec": spec});
        let (code, status) = call(&client, "POST", &format!("{SPACE}/resourcequotas"), quota).await;
        let message = status["message"].as_str().unwrap_or_default();
        assert!(code == 422 && message.contains(words), "{spec}: {code} {message}");
    }
    harness.stop().await;
}
