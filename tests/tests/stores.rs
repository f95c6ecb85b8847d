//! Where a cluster's objects are kept, as an operator sees it: stores that are copied, and servers that share one.

use std::fs;
use std::path::Path;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use kube::api::{Api, ListParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;
use wharf_store::testing::{Files, Members};
use wharf_tests::{Server, eventually_async, wharf};

async fn maps(server: &Server) -> Api<ConfigMap> {
    let maps = Api::namespaced(server.client().await, "default");
    eventually_async("the namespace is there", async || {
        maps.list(&ListParams::default()).await.map_err(|error| error.to_string())
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

/// The first `count` maps that a watch from `version` tells of, with their revisions.
async fn order(maps: Api<ConfigMap>, version: String, count: usize) -> Vec<(String, String)> {
    let watch = maps.watch(&WatchParams::default().timeout(60), &version).await.expect("a watch");
    let told = watch.try_filter_map(async |event| {
        let (WatchEvent::Added(map) | WatchEvent::Modified(map) | WatchEvent::Deleted(map)) = event else {
            return Ok(None);
        };
        let name = map.metadata.name.unwrap_or_default();
        Ok(Some((name, map.metadata.resource_version.unwrap_or_default())))
    });
    told.take(count).try_collect().await.expect("events")
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_share_an_etcd_and_the_second_takes_over_when_the_first_is_killed() {
    const WRITES: usize = 20;
    let folder = tempfile::tempdir().expect("a folder");
    let members = Members::start(folder.path(), 1);
    let etcd = format!("etcd://{}/shared", members.config().members.join(","));
    let roots = ["one", "two"].map(|name| folder.path().join(name));
    roots.iter().for_each(|root| fs::create_dir(root).expect("a folder"));

    let mut one = Server::start(&roots[0], &["--store", &etcd]);
    let here = maps(&one).await;
    // What an operator does: the authority and the key of tokens are the cluster's, all else is a server's own.
    let pki = roots[1].join("server/pki");
    fs::create_dir_all(&pki).expect("a folder");
    for name in ["ca.crt", "ca.key", "sa.key"] {
        fs::copy(one.home().join("pki").join(name), pki.join(name)).expect("a copy");
    }
    let two = Server::start(&roots[1], &["--store", &etcd]);
    let there = maps(&two).await;

    let version = here.list(&ListParams::default()).await.expect("a list").metadata.resource_version;
    let version = version.expect("a resourceVersion");
    let watches = [&here, &there].map(|maps| tokio::spawn(order(maps.clone(), version.clone(), WRITES)));
    for nth in 0..WRITES {
        let (writes, reads) = if nth % 2 == 0 { (&here, &there) } else { (&there, &here) };
        let name = format!("map-{nth}");
        writes.create(&PostParams::default(), &map(&name)).await.expect("a map");
        reads.get(&name).await.expect("the other server shows it at once");
    }
    let [first, second] = watches;
    let told = first.await.expect("a watch");
    assert_eq!(told.len(), WRITES);
    assert_eq!(told, second.await.expect("a watch"), "one order");

    // Each takes the other's tokens: it is known who asks, who may not do this.
    let accounts: Api<ServiceAccount> = Api::namespaced(one.client().await, "default");
    let asked = TokenRequest::default();
    let token = eventually_async("there is a service account", async || {
        let made = accounts.create_token_request("default", &PostParams::default(), &asked).await;
        made.map_err(|error| error.to_string())
    })
    .await;
    let mut config = two.config().await;
    config.auth_info = kube::config::AuthInfo::default();
    config.auth_info.token = token.status.and_then(|status| status.token).map(Into::into);
    let pod = Api::<ConfigMap>::namespaced(kube::Client::try_from(config).expect("a client"), "kube-system");
    let refused = pod.list(&ListParams::default()).await.expect_err("it may not");
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 403), "{refused:?}");

    let client = two.client().await;
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-system");
    let led_by = async |server: &Server| {
        let identity = fs::read_to_string(server.home().join("identity")).expect("an identity");
        for name in ["kube-scheduler", "kube-controller-manager"] {
            let lease = leases.get(name).await.map_err(|error| error.to_string())?;
            let holder = lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
            if holder != identity.trim() {
                return Err(format!("{name} is led by {holder}"));
            }
        }
        Ok(())
    };
    eventually_async("the first leads", async || led_by(&one).await).await;
    one.kill();
    let deployment = json!({"metadata": {"name": "web"}, "spec": {
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "web", "image": "web:1"}]}},
    }});
    let deployment: Deployment = serde_json::from_value(deployment).expect("a deployment");
    let deployments = Api::namespaced(client.clone(), "default");
    deployments.create(&PostParams::default(), &deployment).await.expect("the second serves on");
    eventually_async("the second leads", async || led_by(&two).await).await;
    let pods: Api<Pod> = Api::namespaced(client, "default");
    eventually_async("its controllers make the pod, and its scheduler finds no node for it", async || {
        let pods = pods.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
        let status = pods.items.first().and_then(|pod| pod.status.as_ref());
        let conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
        let refused = conditions.filter(|one| one.type_ == "PodScheduled" && one.status == "False").count();
        if refused == 1 { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
}

/// How a store is asked for: `--store` and its kin.
fn asked(members: &Members, more: &[(&str, &Path)]) -> Vec<String> {
    let store = format!("--store=etcd://{}", members.config().members.join(","));
    let more = more.iter().map(|(option, file)| format!("--etcd-{option}={}", file.display()));
    std::iter::once(store).chain(more).collect()
}

/// A server serves with the options `right`; those that are wrong are told so, with the option that mends it.
async fn serves_who_asks_rightly(folder: &Path, right: &[String], wrong: &[(Vec<String>, &str)]) {
    let root = folder.join("one");
    fs::create_dir(&root).expect("a folder");
    let right: Vec<&str> = right.iter().map(String::as_str).collect();
    let mut server = Server::start(&root, &right);
    maps(&server).await.create(&PostParams::default(), &map("kept")).await.expect("a map");
    server.stop();
    server.revive();
    maps(&server).await.get("kept").await.expect("it was kept");
    server.stop();
    std::thread::scope(|scope| {
        for (options, says) in wrong {
            scope.spawn(|| refused(options, says));
        }
    });
}

/// Who asks for a store with `options` is told what `says` how to mend it.
fn refused(options: &[String], says: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (file, root) = (path("snapshot"), path("server"));
    let snapshot: &[&str] = &["store", "snapshot", &file];
    let server: &[&str] = &["server", "--listen=127.0.0.1:0", "--root", &root];
    std::thread::scope(|scope| {
        for command in [snapshot, server] {
            scope.spawn(|| {
                let options = options.iter().map(String::as_str);
                let said = wharf(&command.iter().copied().chain(options).collect::<Vec<_>>());
                assert!(
                    said.code == Some(1) && said.stderr.contains(says),
                    "it is to say {says:?}: {said:?}"
                );
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_shows_its_certificate_to_an_etcd_that_asks_for_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let members = Members::start_with_tls(folder.path(), 1);
    let files = members.files().expect("TLS");
    let strangers = tempfile::tempdir().expect("a folder");
    let stranger = Files::make(strangers.path(), std::net::Ipv4Addr::LOCALHOST);
    let (cert, key) = (("certfile", &*files.cert), ("keyfile", &*files.key));
    let right = asked(&members, &[("cafile", &files.ca), cert, key]);
    let wrong = [
        (asked(&members, &[]), "--etcd-cafile"),
        (asked(&members, &[("cafile", &stranger.ca), cert, key]), "--etcd-cafile"),
        (asked(&members, &[("cafile", &files.ca)]), "--etcd-certfile and --etcd-keyfile"),
        (
            asked(
                &members,
                &[("cafile", &files.ca), ("certfile", &stranger.cert), ("keyfile", &stranger.key)],
            ),
            "the certificate of --etcd-certfile",
        ),
        (asked(&members, &[("cafile", &files.ca), cert, ("keyfile", &stranger.key)]), "--etcd-keyfile"),
    ];
    serves_who_asks_rightly(folder.path(), &right, &wrong).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_tells_an_etcd_with_users_who_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: String| {
        let file = folder.path().join(name);
        fs::write(&file, text).expect("a file");
        file
    };
    let mut members = Members::start(folder.path(), 1);
    let nobody = file("nobody", "wharf:wrong".to_owned());
    let too_early = asked(&members, &[("userfile", &nobody)]);
    refused(&too_early, "leave out --etcd-userfile");
    members.ask_for_user().await;
    let user = members.config().user.expect("a user");
    let known = file("known", format!("{}:{}\n", user.name, user.password));
    let right = asked(&members, &[("userfile", &known)]);
    let elsewhere = vec![format!("{}/other", right[0]), right[1].clone()];
    let wrong = [
        (asked(&members, &[]), "--etcd-userfile or WHARF_ETCD_USER names the user"),
        (asked(&members, &[("userfile", &nobody)]), "by that password"),
        (elsewhere, "readwrite on all keys under the prefix"),
    ];
    serves_who_asks_rightly(folder.path(), &right, &wrong).await;
}
