//! Pods whose handler names another OCI runtime's binary.

use std::path::Path;
use wharf_cri::v1::{self, ContainerState};
use wharf_tests::{CriServer, LocalRegistry, Runtime, eventually_async, hide_second_cgroups, isolate};

const IMAGE: &str = "tests.test/shell:latest";
/// Debian's, and the handlers that name them.
const BINARIES: [&str; 2] = ["runc", "crun"];

/// Why it failed, in small letters.
fn why<T: std::fmt::Debug>(outcome: anyhow::Result<T>) -> String {
    format!("{:#}", outcome.expect_err("this must fail")).to_lowercase()
}

async fn a_life(runtime: &Runtime, shim: &mut CriServer, dir: &Path) -> anyhow::Result<()> {
    let script = "echo out; echo err >&2; trap 'exit 7' TERM; while :; do sleep 0.01; done";
    let pod = runtime.pod(IMAGE, &["sh", "-c", script], |_, _| {}).await?;
    eventually_async("its log to be written", async || {
        let log = pod.log();
        if log.contains("out\n") && log.contains("err\n") { Ok(()) } else { Err(log) }
    })
    .await;
    let answer = runtime.exec(&pod, &["sh", "-c", "echo $0; echo no >&2; exit 3", "yes"]).await?;
    assert_eq!((answer.stdout, answer.stderr, answer.exit_code), (b"yes\n".into(), b"no\n".into(), 3));
    let missing = runtime.exec(&pod, &["/no/such/program"]).await.map(|answer| answer.exit_code);
    assert!(why(missing).contains("no such file"));

    // Another shim finds it as its own.
    shim.replace()?;
    runtime.ready().await?;
    assert_eq!(runtime.status(&pod).await?.state(), ContainerState::ContainerRunning);
    assert_eq!(runtime.exec(&pod, &["true"]).await?.exit_code, 0);
    runtime.stop(&pod, 10).await?;
    let status = runtime.status(&pod).await?;
    assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
    runtime.remove(&pod).await?;

    let terminal = |_: &mut v1::PodSandboxConfig, container: &mut v1::ContainerConfig| container.tty = true;
    let pod = runtime.pod(IMAGE, &["sh", "-c", "test -t 1 && echo terminal; exit 9"], terminal).await?;
    eventually_async("it to end", async || {
        let status = runtime.status(&pod).await.map_err(|error| error.to_string())?;
        if status.exit_code == 9 && pod.log().contains("terminal") {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    runtime.remove(&pod).await?;

    // Users of its own: root of the container is nobody here.
    let users = |pod: &mut v1::PodSandboxConfig, container: &mut v1::ContainerConfig| {
        let mapping = v1::IdMapping { host_id: 200_000, container_id: 0, length: 65_536 };
        let mode = v1::NamespaceMode::Pod.into();
        let users = v1::UserNamespace { mode, uids: vec![mapping], gids: vec![mapping] };
        let options = Some(v1::NamespaceOption { userns_options: Some(users), ..Default::default() });
        pod.linux.get_or_insert_default().security_context = Some(v1::LinuxSandboxSecurityContext {
            namespace_options: options.clone(),
            ..Default::default()
        });
        container.linux.get_or_insert_default().security_context =
            Some(v1::LinuxContainerSecurityContext { namespace_options: options, ..Default::default() });
    };
    let map = "read inside outside count < /proc/self/uid_map; echo $inside $outside $count";
    let pod = runtime.pod(IMAGE, &["sh", "-c", &format!("{map}; exec sleep 1000")], users).await?;
    eventually_async("its users to be told", async || {
        if pod.log() == "0 200000 65536\n" { Ok(()) } else { Err(pod.log()) }
    })
    .await;
    let answer = runtime.exec(&pod, &["sh", "-c", map]).await?;
    assert_eq!(answer.stdout, b"0 200000 65536\n");
    runtime.remove(&pod).await?;

    // Memory of its own, of which it takes too much.
    let small = |_: &mut v1::PodSandboxConfig, container: &mut v1::ContainerConfig| {
        let resources = v1::LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..Default::default() };
        container.linux = Some(v1::LinuxContainerConfig { resources: Some(resources), ..Default::default() });
    };
    let eats = "x=0123456789abcdef; while :; do x=$x$x; done";
    let pod = runtime.pod(IMAGE, &["sh", "-c", eats], small).await?;
    eventually_async("it to be killed", async || {
        let status = runtime.status(&pod).await.map_err(|error| error.to_string())?;
        if status.reason == "OOMKilled" { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    runtime.remove(&pod).await?;

    let why = why(runtime.pod(IMAGE, &["/no/such/program"], |_, _| {}).await);
    assert!(why.contains(&format!("/{}: ", runtime.name)) && why.contains("no such file"), "{why}");
    for sandbox in runtime.sandboxes().await? {
        runtime.remove_sandbox(&sandbox.id).await?;
    }
    eventually_async("everything to go", async || {
        shim.reap();
        CriServer::nothing_is_left(dir)
    })
    .await;
    Ok(())
}

fn program(name: &str) -> Option<String> {
    let paths = ["/usr/bin", "/usr/sbin"].map(|dir| format!("{dir}/{name}"));
    paths.into_iter().find(|path| Path::new(path).is_file())
}

#[test]
fn their_pods_live_as_others_do() -> anyhow::Result<()> {
    isolate()?;
    hide_second_cgroups()?;
    let binaries = BINARIES.map(|name| program(name).unwrap_or_else(|| panic!("{name} is not installed")));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (shim, dir) = runtime.block_on(async {
        let dir = tempfile::tempdir()?;
        let registry = LocalRegistry::serve(&dir.path().join("registry")).await?;
        registry.put_shell("shell", &["/bin/sh"]).await?;
        let mut arguments = vec!["--network=bridge".to_owned(), "--pod-cidr=10.87.0.0/16".to_owned()];
        arguments
            .extend(BINARIES.iter().zip(&binaries).map(|(name, path)| format!("--runtime={name}={path}")));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut shim = CriServer::shim_with(dir.path(), &registry.url, &arguments)?;
        Runtime::of("wharf", &shim, "", dir.path()).pull(IMAGE).await?;
        for name in BINARIES {
            let runtime = Runtime::of(name, &shim, name, dir.path());
            a_life(&runtime, &mut shim, dir.path()).await?;
        }
        let unknown = Runtime::of("kata", &shim, "kata", dir.path()).pod(IMAGE, &["true"], |_, _| {}).await;
        let why = why(unknown).replace('\\', "");
        let words = r#"no runtime handler "kata"; there are ["", "oci", "wasm", "wasmtime", "crun", "runc"]"#;
        assert!(why.contains(words), "{why}");
        anyhow::Ok((shim, dir))
    })?;
    // Its clients first: it waits for them.
    drop(runtime);
    drop(shim);
    drop(dir);
    Ok(())
}
