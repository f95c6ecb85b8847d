//! Pods as clients of their own cluster: with the account, the CA and the address that they find in themselves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use wharf_tests::manifest::{PORT, container_status, deployment, pod};
use wharf_tests::{Space, assets, eventually};

const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Debian's curl with the libraries that it is linked to, and a shell: a root file system in `folder`.
fn curl(folder: &Path) {
    let linked = Command::new("ldd").arg("/usr/bin/curl").output().expect("ldd");
    assert!(linked.status.success(), "{linked:?}");
    let linked = String::from_utf8(linked.stdout).expect("paths");
    let libraries = linked.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    for file in libraries.chain(["/usr/bin/curl".into()]) {
        let to = folder.join(file.strip_prefix("/").expect("an absolute path"));
        fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        fs::copy(&file, to).expect("a copy");
    }
    fs::create_dir_all(folder.join("bin")).expect("a folder");
    fs::copy(assets::busybox(), folder.join("bin/sh")).expect("a copy");
}

#[test]
fn a_pod_asks_the_api_with_what_it_finds_in_itself() {
    let space = Space::new("in-cluster");
    let folder = tempfile::tempdir().expect("a folder");
    curl(folder.path());
    space
        .wctl(&["image", "push", &folder.path().display().to_string(), "curl:1", "--entrypoint", "/bin/sh"])
        .ok();
    // The CA is checked: curl ends with 60 if the server's certificate is not one of its, or names another address.
    let ask = format!(
        "read -r token <{ACCOUNT}/token; read -r namespace <{ACCOUNT}/namespace; \
         exec /usr/bin/curl -sS --max-time 20 --cacert {ACCOUNT}/ca.crt -H \"Authorization: Bearer $token\" \
         https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/api/v1/namespaces/$namespace/pods"
    );
    let asks = |name: &str| {
        let mut object = pod(name, "curl:1", &["-c", &ask]);
        object["spec"]["containers"][0]["command"] = json!(["/bin/sh"]);
        object["spec"]["restartPolicy"] = json!("Never");
        space.apply(&[object], false);
        eventually("it has asked", || {
            let pod = space.get(&[&format!("pod/{name}")]);
            let ended = &container_status(&pod)["state"]["terminated"]["exitCode"];
            if ended.is_null() { Err(pod["status"].to_string()) } else { Ok(()) }
        });
        space.wctl(&["logs", name]).json()
    };
    let refused = asks("stranger");
    assert_eq!(
        refused["message"],
        "pods is forbidden: User \"system:serviceaccount:in-cluster:default\" cannot list resource \"pods\" \
         in API group \"\" in the namespace \"in-cluster\""
    );
    let rights = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "see"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "in-cluster"}],
    });
    space.apply(&[rights], false);
    let list = asks("viewer");
    let names: Vec<_> =
        list["items"].as_array().into_iter().flatten().map(|pod| &pod["metadata"]["name"]).collect();
    assert_eq!(names, ["stranger", "viewer"], "{list}");
}

#[test]
fn a_component_finds_its_account_and_the_address_of_the_api_too() {
    let space = Space::new("in-wasm");
    space.apply(&[deployment("reads", "guest-http:1")], true);
    let forward = space.forward("deployment/reads", PORT);
    assert_eq!(forward.get(&format!("/read?{ACCOUNT}/namespace")), "in-wasm");
    assert!(forward.get(&format!("/read?{ACCOUNT}/ca.crt")).starts_with("-----BEGIN CERTIFICATE-----"));
    assert_eq!(forward.get(&format!("/read?{ACCOUNT}/token")).split('.').count(), 3, "a JWT");
}
