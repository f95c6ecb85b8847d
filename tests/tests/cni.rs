//! Pods whose networks Debian's CNI plugins make.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use wharf_cri::v1;
use wharf_tests::{CriServer, LocalRegistry, Runtime, eventually_async, isolate};

const SHELL: &str = "tests.test/shell:latest";
const COMPONENT: &str = "tests.test/guest:latest";
/// Where Debian has the plugins.
const PLUGINS: &str = "/usr/lib/cni";

fn network(dir: &Path, bridge: &str, subnet: &str) -> anyhow::Result<()> {
    let ipam = json!({"type": "host-local", "ranges": [[{"subnet": subnet}]],
        "routes": [{"dst": "0.0.0.0/0"}], "dataDir": dir.join("ipam")});
    let list = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [
        {"type": "bridge", "bridge": bridge, "isGateway": true, "ipMasq": true, "ipam": ipam},
        {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}},
    ]});
    fs::create_dir_all(dir.join("net.d"))?;
    Ok(fs::write(dir.join("net.d/10-pods.conflist"), list.to_string())?)
}

fn get(at: &str) -> Result<String, String> {
    match wharf_tests::get(at.parse().map_err(|error| format!("{at}: {error}"))?, "/") {
        Ok((200, body)) => Ok(body),
        other => Err(format!("{at}: {other:?}")),
    }
}

/// What the plugins keep: addresses, links and rules.
fn kept(dir: &Path) -> Vec<String> {
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().expect(program);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let addresses = fs::read_dir(dir.join("ipam/pods")).into_iter().flatten().flatten();
    let addresses = addresses.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut all: Vec<String> = addresses.filter(|name| name.starts_with("10.")).collect();
    let links = said("ip", &["-o", "link"]);
    all.extend(links.lines().filter(|line| line.contains("master cni")).map(str::to_owned));
    let rules = said("iptables-save", &["-t", "nat"]);
    all.extend(
        rules.lines().filter(|line| line.contains("CNI-DN-") || line.contains("id: ")).map(str::to_owned),
    );
    all
}

fn port(host: i32) -> impl FnOnce(&mut v1::PodSandboxConfig, &mut v1::ContainerConfig) {
    move |pod, _| {
        let mapping = v1::PortMapping { host_port: host, container_port: 8080, ..Default::default() };
        pod.port_mappings = vec![mapping];
    }
}

async fn walk(dir: &Path) -> anyhow::Result<CriServer> {
    let registry = LocalRegistry::of_both_sorts(&dir.join("registry")).await?;
    let net = dir.join("net.d").display().to_string();
    let arguments = ["--network=cni", "--cni-conf-dir", &net, "--cni-bin-dir", PLUGINS];
    let mut shim = CriServer::shim_with(dir, &registry.url, &arguments)?;
    let runtime = Runtime::of("wharf", &shim, "", dir);
    let wasm = Runtime::of("wasm", &shim, "wasm", dir);
    runtime.pull(SHELL).await?;
    wasm.pull(COMPONENT).await?;

    // A kubelet waits for whoever installs the network.
    let words = format!("there is no configuration of a CNI network in {net} yet");
    let conditions = runtime.conditions().await?;
    assert!(
        conditions
            .iter()
            .any(|one| !one.status && one.r#type == "NetworkReady" && one.message.ends_with(&words)),
        "{conditions:?}"
    );
    let early = runtime.pod(SHELL, &["true"], |_, _| {}).await.map_err(|error| format!("{error:#}"));
    assert!(early.as_ref().is_err_and(|why| why.contains(&words)), "{early:?}");
    network(dir, "cni0", "10.86.0.0/24")?;
    runtime.ready().await?;

    let serve = ["/bin/busybox", "sh", "-c", "echo from a pod > index.html; exec busybox httpd -f -p 8080"];
    let pod = runtime.pod(SHELL, &serve, port(18080)).await?;
    let addresses = runtime.addresses(&pod).await?;
    assert!(matches!(&addresses[..], [address] if address.starts_with("10.86.0.")), "{addresses:?}");
    for at in [format!("{}:8080", addresses[0]), "127.0.0.1:18080".to_owned()] {
        eventually_async("the pod answers", async || {
            let answer = get(&at)?;
            if answer.ends_with("from a pod\n") { Ok(()) } else { Err(answer) }
        })
        .await;
    }
    let component = wasm.pod(COMPONENT, &[], port(18081)).await?;
    let address = wasm.addresses(&component).await?.remove(0);
    for at in [format!("{address}:8080"), "127.0.0.1:18081".to_owned()] {
        eventually_async("the component answers", async || {
            let answer = get(&at)?;
            if answer.contains("hello") { Ok(()) } else { Err(answer) }
        })
        .await;
    }
    let before = kept(dir);
    assert!(before.len() >= 2 + 2 + 2, "{before:?}");

    // Another shim, and without the configuration: each pod goes by that which it came with.
    shim.replace()?;
    runtime.ready().await?;
    fs::remove_dir_all(dir.join("net.d"))?;
    for pod in [&pod, &component] {
        runtime.remove(pod).await?;
    }
    for sandbox in runtime.sandboxes().await? {
        runtime.remove_sandbox(&sandbox.id).await?;
    }
    assert_eq!(kept(dir), Vec::<String>::new());

    // One address for pods beside the gateway's: the second pod gets none, and leaves nothing.
    network(dir, "cni1", "10.86.1.0/30")?;
    let pod = runtime.pod(SHELL, &["sleep", "1000"], |_, _| {}).await?;
    let one = kept(dir);
    let full = runtime.pod(SHELL, &["true"], |_, _| {}).await.map_err(|error| format!("{error:#}"));
    let words = "the CNI plugin bridge ADD failed: failed to allocate for range 0: no IP addresses available";
    assert!(full.as_ref().is_err_and(|why| why.contains(words)), "{full:?}");
    assert_eq!(kept(dir), one);
    runtime.remove(&pod).await?;
    assert_eq!(kept(dir), Vec::<String>::new());
    eventually_async("everything to go", async || {
        shim.reap();
        CriServer::nothing_is_left(dir)
    })
    .await;
    Ok(shim)
}

#[test]
fn pods_are_connected_by_plugins_and_nothing_of_it_is_left() -> anyhow::Result<()> {
    assert!(Path::new(PLUGINS).join("bridge").is_file(), "containernetworking-plugins is not installed");
    isolate()?;
    let dir = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let shim = runtime.block_on(walk(dir.path()))?;
    // Its clients first: it waits for them.
    drop(runtime);
    drop(shim);
    Ok(())
}
