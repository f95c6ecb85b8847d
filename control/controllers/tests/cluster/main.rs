//! Scheduler and controllers against a real API server: what a cluster's users see of them.

#![expect(clippy::unwrap_used, reason = "in helpers of tests as in tests")]

mod cronjobs;
mod daemonsets;
mod disruption;
mod harness;
mod jobs;
mod leader;
mod quotas;
mod statefulsets;

use std::time::{Duration, Instant};

use harness::*;
use serde_json::{Value, json};
use wharf_kit::api::{Absent, Delete, Ignored, PatchKind, Propagation};
use wharf_kit::view::Key;

const LONG: Duration = Duration::from_secs(40);

async fn patch(world: &World, kind: wharf_kit::api::Kind, namespace: &str, name: &str, patch: Value) {
    world
        .admin
        .patch::<Ignored>(kind, &Key::new(namespace, name), "", PatchKind::Merge, &patch)
        .await
        .unwrap();
}

fn image(image: &str) -> Value {
    // A merge patch replaces the list whole.
    json!({"spec": {"template": {"spec": {"containers": [
        {"name": "main", "image": image, "resources": {"requests": {"cpu": "100m"}}},
    ]}}}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_is_bound_rolled_out_rolled_back_and_collected() {
    let world = World::start(LONG).await;
    world.add_node("n1", "4").await;
    world.add_node("n2", "4").await;
    let start = Instant::now();
    world.admin.create::<Ignored>(DEPLOYMENTS, "default", &deployment("web", 3, "v1")).await.unwrap();
    world.rolled_out("default", "web", 3).await;
    println!("three pods created, bound, run and reported in {:?}", start.elapsed());

    let pods = world.list(PODS, "default").await;
    assert_eq!(pods.len(), 3);
    for pod in &pods {
        assert!(["n1", "n2"].contains(&pod["spec"]["nodeName"].as_str().unwrap()));
        let owner = &pod["metadata"]["ownerReferences"][0];
        assert_eq!(
            (&owner["kind"], &owner["controller"], &owner["blockOwnerDeletion"]),
            (&json!("ReplicaSet"), &json!(true), &json!(true))
        );
        assert!(pod["metadata"]["labels"]["pod-template-hash"].is_string());
    }

    // A rollout, and what it leaves.
    patch(&world, DEPLOYMENTS, "default", "web", image("v2")).await;
    let deployment = world.rolled_out("default", "web", 3).await;
    assert_eq!(deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "2");
    let conditions = deployment["status"]["conditions"].as_array().unwrap();
    let reasons: Vec<_> = conditions.iter().map(|one| one["reason"].as_str().unwrap()).collect();
    assert!(
        reasons.contains(&"MinimumReplicasAvailable") && reasons.contains(&"NewReplicaSetAvailable"),
        "{reasons:?}"
    );
    let sizes = |sets: Vec<Value>| {
        let mut sizes: Vec<_> = sets
            .iter()
            .map(|set| {
                let revision =
                    set["metadata"]["annotations"]["deployment.kubernetes.io/revision"].as_str().unwrap();
                (revision.to_owned(), set["spec"]["replicas"].as_i64().unwrap())
            })
            .collect();
        sizes.sort();
        sizes
    };
    let expect = |all: &[(&str, i64)]| all.iter().map(|(r, n)| ((*r).to_owned(), *n)).collect::<Vec<_>>();
    assert_eq!(sizes(world.list(SETS, "default").await), expect(&[("1", 0), ("2", 3)]));

    // Back: the old set becomes the newest revision.
    patch(&world, DEPLOYMENTS, "default", "web", image("v1")).await;
    world.rolled_out("default", "web", 3).await;
    assert_eq!(sizes(world.list(SETS, "default").await), expect(&[("2", 0), ("3", 3)]));

    patch(&world, DEPLOYMENTS, "default", "web", json!({"spec": {"replicas": 5}})).await;
    world.rolled_out("default", "web", 5).await;
    patch(&world, DEPLOYMENTS, "default", "web", json!({"spec": {"replicas": 1}})).await;
    world.rolled_out("default", "web", 1).await;

    // A deleted pod is replaced.
    let before = world
        .list(PODS, "default")
        .await
        .into_iter()
        .find(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let name = before.unwrap()["metadata"]["name"].as_str().unwrap().to_owned();
    world
        .admin
        .delete::<Ignored>(PODS, &Key::new("default", name.as_str()), &Delete::default())
        .await
        .unwrap();
    world
        .wait("replaced", || async {
            let pods = world.list(PODS, "default").await;
            let ready = |pod: &&Value| {
                pod["status"]["phase"] == "Running" && pod["metadata"]["name"] != name.as_str()
            };
            if pods.iter().filter(ready).count() == 1 && pods.len() == 1 {
                Ok(())
            } else {
                Err(json!(pods).to_string())
            }
        })
        .await;

    // Deleted: its sets and pods go too.
    world
        .admin
        .delete::<Ignored>(DEPLOYMENTS, &Key::new("default", "web"), &Delete::default())
        .await
        .unwrap();
    world.none_left("default", &[SETS, PODS, DEPLOYMENTS]).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletion_in_the_foreground_waits_and_orphans_live_on() {
    let world = World::start(LONG).await;
    world.add_node("n1", "8").await;
    for name in ["front", "orphan"] {
        world.admin.create::<Ignored>(DEPLOYMENTS, "default", &deployment(name, 2, "v1")).await.unwrap();
        world.rolled_out("default", name, 2).await;
    }
    let how = Delete::default().with_propagation(Propagation::Foreground);
    world.admin.delete::<Ignored>(DEPLOYMENTS, &Key::new("default", "front"), &how).await.unwrap();
    world
        .wait("gone", || async {
            let owned = |all: Vec<Value>| {
                all.into_iter().filter(|one| one["metadata"]["labels"]["app"] == "front").count()
            };
            let (sets, pods) =
                (owned(world.list(SETS, "default").await), owned(world.list(PODS, "default").await));
            match world.get(DEPLOYMENTS, "default", "front").await {
                Some(deployment) => Err(format!("{sets} sets, {pods} pods, {deployment}")),
                None => {
                    assert_eq!((sets, pods), (0, 0), "the owner went before those that block it");
                    Ok(())
                }
            }
        })
        .await;

    let how = Delete::default().with_propagation(Propagation::Orphan);
    world.admin.delete::<Ignored>(DEPLOYMENTS, &Key::new("default", "orphan"), &how).await.unwrap();
    world.none_left("default", &[DEPLOYMENTS]).await;
    let sets = world.list(SETS, "default").await;
    assert_eq!(sets.len(), 1);
    assert!(sets[0]["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty));
    // A new Deployment of that selector takes the orphan over, pods and all.
    let pods: Vec<_> = by_name(&world.list(PODS, "default").await).into_keys().collect();
    world.admin.create::<Ignored>(DEPLOYMENTS, "default", &deployment("orphan", 2, "v1")).await.unwrap();
    world.rolled_out("default", "orphan", 2).await;
    assert_eq!(by_name(&world.list(PODS, "default").await).into_keys().collect::<Vec<_>>(), pods);
    assert_eq!(world.list(SETS, "default").await.len(), 1);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_has_its_defaults_and_goes_with_all_that_is_in_it() {
    let world = World::start(LONG).await;
    world.add_node("n1", "8").await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    world.admin.create::<Ignored>(NAMESPACES, "", &namespace).await.unwrap();
    let right = || async {
        let map = world.get(MAPS, "shop", "kube-root-ca.crt").await.ok_or("no map")?;
        world.get(ACCOUNTS, "shop", "default").await.ok_or("no account")?;
        if map["data"] == json!({"ca.crt": CA}) { Ok(()) } else { Err(map.to_string()) }
    };
    world.wait("defaults", right).await;
    patch(&world, MAPS, "shop", "kube-root-ca.crt", json!({"data": {"ca.crt": "forged", "more": "x"}})).await;
    world.wait("put right", right).await;
    for (kind, name) in [(MAPS, "kube-root-ca.crt"), (ACCOUNTS, "default")] {
        world.admin.delete::<Ignored>(kind, &Key::new("shop", name), &Delete::default()).await.unwrap();
    }
    world.wait("made again", right).await;

    let mut web = deployment("web", 2, "v1");
    web["metadata"]["namespace"] = json!("shop");
    world.admin.create::<Ignored>(DEPLOYMENTS, "shop", &web).await.unwrap();
    world.rolled_out("shop", "web", 2).await;
    world.admin.delete::<Ignored>(NAMESPACES, &Key::cluster("shop"), &Delete::default()).await.unwrap();
    world.gone(NAMESPACES, "", "shop").await;
    world.none_left("shop", &[DEPLOYMENTS, SETS, PODS, MAPS, ACCOUNTS]).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_waits_for_finalizers_without_asking() {
    let world = World::start(LONG).await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    world.admin.create::<Ignored>(NAMESPACES, "", &namespace).await.unwrap();
    let kept = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "kept", "finalizers": ["example.com/hold"]},
    });
    world.admin.create::<Ignored>(MAPS, "shop", &kept).await.unwrap();
    world.admin.delete::<Ignored>(NAMESPACES, &Key::cluster("shop"), &Delete::default()).await.unwrap();
    world.none_left("shop", &[ACCOUNTS]).await;
    world.quiet().await;
    assert!(world.get(NAMESPACES, "", "shop").await.is_some(), "what is in it is still there");
    patch(&world, MAPS, "shop", "kept", json!({"metadata": {"finalizers": null}})).await;
    world.gone(NAMESPACES, "", "shop").await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_fits_nowhere_says_why_and_is_bound_when_a_node_comes() {
    let world = World::start(LONG).await;
    world.add_node("four", "4").await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "big", "namespace": "default"},
        "spec": {"containers": [{"name": "main", "image": "x", "resources": {"requests": {"cpu": "5"}}}]},
    });
    world.admin.create::<Ignored>(PODS, "default", &pod).await.unwrap();
    world
        .wait("says why", || async {
            let pod = world.get(PODS, "default", "big").await.ok_or("absent")?;
            let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let why = conditions.iter().find(|one| one["type"] == "PodScheduled");
            let why = why.filter(|one| one["message"] == "0/1 nodes are available: 1 Insufficient cpu.");
            let right = why.is_some_and(|one| one["status"] == "False" && one["reason"] == "Unschedulable");
            if right { Ok(()) } else { Err(pod["status"].to_string()) }
        })
        .await;
    // Both at once, so that it is the larger that is chosen and not the first.
    tokio::join!(world.add_node("ten", "10"), world.add_node("fifteen", "15"));
    world
        .wait("bound", || async {
            let pod = world.get(PODS, "default", "big").await.ok_or("absent")?;
            if pod["spec"]["nodeName"].is_string() { Ok(()) } else { Err(pod["status"].to_string()) }
        })
        .await;
    let again = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "second", "namespace": "default"},
        "spec": {"containers": [{"name": "main", "image": "x", "resources": {"requests": {"cpu": "5"}}}]},
    });
    world.admin.create::<Ignored>(PODS, "default", &again).await.unwrap();
    world
        .wait("events", || async {
            let events = world.list(wharf_kit::api::Kind::core("Event", "events"), "default").await;
            let has = |reason: &str| events.iter().any(|one| one["reason"] == reason);
            if has("FailedScheduling") && has("Scheduled") { Ok(()) } else { Err(json!(events).to_string()) }
        })
        .await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_has_its_range_and_falls_silent_and_comes_back() {
    let world = World::start(Duration::from_secs(1)).await;
    let agent = world.add_node("n1", "4").await;
    world.add_node("n2", "4").await;
    let mut ranges = Vec::new();
    for name in ["n1", "n2"] {
        let range = world
            .wait("range", || async {
                let node = world.get(NODES, "", name).await.ok_or("absent")?;
                let range = node["spec"]["podCIDR"].as_str().ok_or("none")?.to_owned();
                assert_eq!(node["spec"]["podCIDRs"], json!([range]));
                Ok(range)
            })
            .await;
        ranges.push(range);
    }
    ranges.sort();
    assert_eq!(ranges, ["10.128.0.0/17", "10.128.128.0/17"]);

    let taints = |node: &Value| -> Vec<String> {
        let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        taints
            .iter()
            .map(|one| format!("{}:{}", one["key"].as_str().unwrap(), one["effect"].as_str().unwrap()))
            .collect()
    };
    let tainted = |expected: &'static [&'static str]| {
        let world = &world;
        async move {
            world
                .wait("taints", || async {
                    let node = world.get(NODES, "", "n1").await.ok_or("absent")?;
                    if taints(&node) == expected { Ok(node) } else { Err(node.to_string()) }
                })
                .await
        }
    };
    tainted(&[]).await;
    agent.cancel();
    let node =
        tainted(&["node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute"])
            .await;
    assert_eq!(node["status"]["conditions"][0]["status"], "Unknown");
    assert_eq!(taints(&world.get(NODES, "", "n2").await.unwrap()), Vec::<String>::new());

    // It speaks again: first its Lease, then its status.
    let lease = wharf_kit::api::Kind::new("coordination.k8s.io", "v1", "Lease", "leases");
    let key = Key::new("kube-node-lease", "n1");
    let renewal = json!({"spec": {"renewTime": "2030-01-01T00:00:00.000000Z"}});
    world.admin.patch::<Ignored>(lease, &key, "", PatchKind::Merge, &renewal).await.unwrap();
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}]}});
    world
        .admin
        .patch::<Ignored>(NODES, &Key::cluster("n1"), "status", PatchKind::Merge, &ready)
        .await
        .unwrap();
    tainted(&[]).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_leave_a_silent_node_when_their_toleration_ends_and_a_deleted_node_takes_its_own_along() {
    let world = World::start(Duration::from_secs(1)).await;
    let first = world.add_node("n1", "4").await;
    let mut web = deployment("web", 2, "v1");
    let tolerates = |seconds: i64| {
        json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": seconds}])
    };
    web["spec"]["template"]["spec"]["tolerations"] = tolerates(1);
    let mut stays = deployment("stays", 1, "v1");
    stays["spec"]["template"]["spec"]["tolerations"] = tolerates(3600);
    for object in [&web, &stays] {
        world.admin.create::<Ignored>(DEPLOYMENTS, "default", object).await.unwrap();
    }
    world.rolled_out("default", "web", 2).await;
    world.rolled_out("default", "stays", 1).await;
    world.add_node("n2", "4").await;
    first.cancel();
    let active = |app: &'static str| {
        let world = &world;
        async move {
            let pods = world.list(PODS, "default").await.into_iter();
            let pods = pods.filter(|pod| pod["metadata"]["labels"]["app"] == app);
            pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect::<Vec<_>>()
        }
    };
    world
        .wait("they are back elsewhere", || async {
            let pods = active("web").await;
            let there = pods.iter().filter(|pod| pod["spec"]["nodeName"] == "n2").count();
            if there == 2 && pods.len() == 2 { Ok(()) } else { Err(json!(pods).to_string()) }
        })
        .await;
    let node = world.get(NODES, "", "n1").await.unwrap();
    let taint = node["spec"]["taints"].as_array().unwrap().iter().find(|one| one["effect"] == "NoExecute");
    let added: jiff::Timestamp = taint.unwrap()["timeAdded"].as_str().unwrap().parse().unwrap();
    // Nobody on the silent node confirms their end, so they are there still, and say why they go.
    let leaving: Vec<Value> = world.list(PODS, "default").await;
    let leaving: Vec<&Value> =
        leaving.iter().filter(|pod| !pod["metadata"]["deletionTimestamp"].is_null()).collect();
    assert_eq!(leaving.len(), 2, "{leaving:?}");
    for pod in leaving {
        // A deletion's time is that of its end: now and the grace period.
        let end: jiff::Timestamp = pod["metadata"]["deletionTimestamp"].as_str().unwrap().parse().unwrap();
        let grace = pod["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap();
        assert!(end.as_second() - grace > added.as_second(), "not before its toleration ends: {pod}");
        let conditions = pod["status"]["conditions"].as_array().unwrap();
        let why = conditions.iter().find(|one| one["type"] == "DisruptionTarget").expect("why it goes");
        assert_eq!(why["reason"], "DeletionByTaintManager");
    }
    assert_eq!(active("stays").await[0]["spec"]["nodeName"], "n1", "it tolerates the node for an hour");

    // A node that is deleted takes its pods along, whatever they tolerate.
    world.admin.delete::<Ignored>(NODES, &Key::cluster("n1"), &Delete::default()).await.unwrap();
    world
        .wait("none is left of the node that is gone", || async {
            let pods = world.list(PODS, "default").await;
            let there = pods.iter().filter(|pod| pod["spec"]["nodeName"] == "n2").count();
            if there == 3 && pods.len() == 3 { Ok(()) } else { Err(json!(pods).to_string()) }
        })
        .await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_nodes_are_issued_to_who_may_have_them() {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    use wharf_kit::identity::{Request, certificates, peer_identity};
    let world = World::start(LONG).await;
    let csrs = wharf_kit::api::Kind::new(
        "certificates.k8s.io",
        "v1",
        "CertificateSigningRequest",
        "certificatesigningrequests",
    )
    .cluster();
    let ask = |name: &str, user: &str, group: &str| {
        let none: [&str; 0] = [];
        let (_, pem) = Request::make(user, &[group], &none).unwrap();
        json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
            "spec": {
                "request": BASE64_STANDARD.encode(pem), "usages": ["client auth", "digital signature"],
                "signerName": "kubernetes.io/kube-apiserver-client-kubelet", "username": "kubernetes-admin",
                "expirationSeconds": 3600,
            },
        })
    };
    let condition = |csr: &Value, kind: &str| {
        let conditions = csr["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|one| one["type"] == kind)
    };
    let issued = |name: &'static str| {
        let world = &world;
        async move {
            world
                .wait("issued", || async {
                    let csr = world.get(csrs, "", name).await.ok_or("absent")?;
                    let certificate = csr["status"]["certificate"].as_str().map(str::to_owned);
                    certificate.ok_or(csr.to_string())
                })
                .await
        }
    };
    // A machine with a bootstrap token becomes a node, whoever it says that it is.
    let joining = world.user("system:bootstrap:abcdef", &["system:bootstrappers"]);
    let made: Value =
        joining.create(csrs, "", &ask("first", "system:node:n1", "system:nodes")).await.unwrap();
    assert_eq!(made["spec"]["username"], "system:bootstrap:abcdef");
    let pem = String::from_utf8(BASE64_STANDARD.decode(issued("first").await).unwrap()).unwrap();
    let peer = peer_identity(&certificates(&pem).unwrap()[0]).unwrap();
    assert_eq!((&*peer.user, &*peer.groups), ("system:node:n1", &["system:nodes".to_owned()][..]));
    // The node renews its own, and gets nobody else's.
    let node = world.user("system:node:n1", &["system:nodes"]);
    node.create::<Ignored>(csrs, "", &ask("renewal", "system:node:n1", "system:nodes")).await.unwrap();
    issued("renewal").await;
    let theft = node.create::<Ignored>(csrs, "", &ask("theft", "system:node:n2", "system:nodes")).await;
    let theft = theft.unwrap_err();
    assert_eq!(theft.code(), 403);
    assert!(theft.message().contains("can only create a node CSR with CN=system:node:n1"), "{theft:?}");
    joining.create::<Ignored>(csrs, "", &ask("masters", "system:node:n3", "system:masters")).await.unwrap();
    // A person may approve what nobody else did; what is no node's is not signed for all that.
    let verdict =
        json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "ByHand"}]}});
    let approve = |rest: wharf_kit::api::Rest, name: &'static str| {
        let verdict = verdict.clone();
        async move {
            rest.patch::<Ignored>(csrs, &Key::cluster(name), "approval", PatchKind::Merge, &verdict).await
        }
    };
    let mut alice = ask("alice", "alice", "developers");
    alice["spec"]["signerName"] = json!("kubernetes.io/kube-apiserver-client");
    world.admin.create::<Ignored>(csrs, "", &alice).await.unwrap();
    assert_eq!(approve(node.clone(), "alice").await.unwrap_err().code(), 403);
    // To write verdicts is not enough: the signer's leave is another right.
    let rbac =
        |kind, plural| wharf_kit::api::Kind::new("rbac.authorization.k8s.io", "v1", kind, plural).cluster();
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "judge"},
        "rules": [{"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests/approval"],
                   "verbs": ["update", "patch"]}],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "judge"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "judge"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "judge"}],
    });
    world.admin.create::<Ignored>(rbac("ClusterRole", "clusterroles"), "", &role).await.unwrap();
    world
        .admin
        .create::<Ignored>(rbac("ClusterRoleBinding", "clusterrolebindings"), "", &binding)
        .await
        .unwrap();
    world
        .wait("the role is known", || async {
            let refused = approve(world.user("judge", &[]), "alice").await.unwrap_err();
            assert_eq!(refused.code(), 403);
            let words = "user not permitted to approve requests with signerName";
            refused.message().contains(words).then_some(()).ok_or(refused.message())
        })
        .await;
    let waiting = world.get(csrs, "", "alice").await.unwrap();
    assert!(
        waiting["status"]["conditions"].is_null() && waiting["status"]["certificate"].is_null(),
        "{waiting}"
    );
    approve(world.admin.clone(), "alice").await.unwrap();
    issued("alice").await;
    approve(world.admin.clone(), "masters").await.unwrap();
    let failed = world
        .wait("failed", || async {
            let csr = world.get(csrs, "", "masters").await.ok_or("absent")?;
            condition(&csr, "Failed").ok_or(csr.to_string())
        })
        .await;
    assert!(failed["message"].as_str().unwrap().contains("system:nodes"), "{failed}");
    // What was asked, and a verdict once given, stay.
    let key = Key::cluster("first");
    let other = json!({"spec": {"username": "someone", "usages": ["any"]}});
    let after: Value = world.admin.patch(csrs, &key, "", PatchKind::Merge, &other).await.unwrap();
    assert_eq!(after["spec"], made["spec"]);
    let none = json!({"status": {"conditions": null}});
    for part in ["approval", "status"] {
        let refused = world.admin.patch::<Ignored>(csrs, &key, part, PatchKind::Merge, &none).await;
        assert_eq!(refused.unwrap_err().code(), 422, "{part}");
    }
    let changed = json!({"status": {"certificate": BASE64_STANDARD.encode("another")}});
    let refused = world.admin.patch::<Ignored>(csrs, &key, "status", PatchKind::Merge, &changed).await;
    assert_eq!(refused.unwrap_err().code(), 422);
    let mut nonsense = ask("nonsense", "system:node:n1", "system:nodes");
    nonsense["spec"]["request"] = json!(BASE64_STANDARD.encode("no request"));
    nonsense["spec"]["expirationSeconds"] = json!(60);
    let refused = world.admin.create::<Ignored>(csrs, "", &nonsense).await.unwrap_err();
    assert_eq!(refused.code(), 422);
    assert!(
        refused.message().contains("spec.request") && refused.message().contains("600 seconds"),
        "{refused:?}"
    );
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_control_plane_asks_for_nothing() {
    let world = World::start(LONG).await;
    world.add_node("n1", "4").await;
    world.admin.create::<Ignored>(DEPLOYMENTS, "default", &deployment("web", 3, "v1")).await.unwrap();
    world.rolled_out("default", "web", 3).await;
    world.quiet().await;
    let before = world.requests();
    tokio::time::sleep(Duration::from_secs(3)).await; // leases are renewed all the while
    assert_eq!(world.requests() - before, 0);
    // And it still works.
    let absent =
        world.admin.delete::<Ignored>(DEPLOYMENTS, &Key::new("default", "web"), &Delete::default()).await;
    absent.absent_ok().unwrap();
    world.none_left("default", &[SETS, PODS]).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_that_are_made_of_others_follow_them() {
    let world = World::start(LONG).await;
    let label = |name: &str| json!({format!("rbac.authorization.k8s.io/aggregate-to-{name}"): "true"});
    let rule =
        |resource: &str| json!({"apiGroups": ["example.com"], "resources": [resource], "verbs": ["get"]});
    let role = |name: &str, labels: Value, rules: Value| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": name, "labels": labels}, "rules": rules,
        })
    };
    let has = async |name: &str, rule: &Value, wanted: bool| {
        world
            .wait("aggregated", || async {
                let role = world.get(CLUSTER_ROLES, "", name).await.ok_or("absent")?;
                let found = role["rules"].as_array().is_some_and(|rules| rules.contains(rule));
                if found == wanted { Ok(()) } else { Err(role["rules"].to_string()) }
            })
            .await;
    };
    let things = role("things-view", label("view"), json!([rule("things")]));
    world.admin.create::<Ignored>(CLUSTER_ROLES, "", &things).await.unwrap();
    // view is part of edit, and edit of admin.
    for name in ["view", "edit", "admin"] {
        has(name, &rule("things"), true).await;
    }
    patch(&world, CLUSTER_ROLES, "", "things-view", json!({"rules": [rule("others")]})).await;
    for name in ["view", "edit", "admin"] {
        has(name, &rule("others"), true).await;
        has(name, &rule("things"), false).await;
    }
    // Who writes rules into a sum sees them go.
    patch(&world, CLUSTER_ROLES, "", "view", json!({"rules": [rule("mine")]})).await;
    has("view", &rule("mine"), false).await;
    has("view", &rule("others"), true).await;
    let how = Delete::default();
    world.admin.delete::<Ignored>(CLUSTER_ROLES, &Key::cluster("things-view"), &how).await.unwrap();
    has("admin", &rule("others"), false).await;
    world.end().await;
}
