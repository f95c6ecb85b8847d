//! A runtime whose shim, zygote and monitors are killed at random while pods come and go.
#![expect(clippy::unwrap_used, reason = "these are tests, with helpers beside them")]

use std::collections::HashMap;
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::mpsc;
use tonic::transport::Channel;
use wharf_cri::v1::{
    self, ContainerEventType, ContainerState, image_service_client::ImageServiceClient,
    runtime_service_client::RuntimeServiceClient,
};
use wharf_tests::{CriServer, LocalRegistry, PATIENCE, descendants, eventually_async, isolate};

const IMAGE: &str = "tests.test/shell:latest";
/// Tasks that make pods, and how many each makes.
const TASKS: u64 = 4;
const PODS: u64 = 30;
/// The code of a container whose monitor was killed.
const KILLED: i32 = 137;

type Client = RuntimeServiceClient<Channel>;

/// Repeats a call that a killed shim has not answered.
async fn insist<T, F: Future<Output = Result<T, tonic::Status>>>(what: &str, call: impl Fn() -> F) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        match tokio::time::timeout_at(until.into(), call()).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(status)) => assert!(Instant::now() < until, "{what}: {status}"),
            Err(_) => panic!("{what} is not answered"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What came of a pod's container.
struct Outcome {
    id: String,
    wanted: i32,
    code: i32,
}

/// Makes a pod whose container ends by itself or has to be stopped, and removes it. None where a killed shim kept it from
/// being made: such a pod is removed in the end, by its record.
async fn cycle(client: &Client, random: &mut StdRng) -> Option<Outcome> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("pod-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut runtime = client.clone();
    let (wanted, stopped) =
        if random.random_bool(0.3) { (143, true) } else { (random.random_range(0..100), false) };
    let script = match stopped {
        true => "trap 'exit 143' TERM; while :; do sleep 0.01; done".to_owned(),
        false => format!("sleep 0.0{}; exit {wanted}", random.random_range(1..9)),
    };
    let config = v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata { name: name.clone(), uid: name, ..Default::default() }),
        ..Default::default()
    };
    let request = v1::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    let sandbox = runtime.run_pod_sandbox(request).await.ok()?.into_inner().pod_sandbox_id;
    let container = v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: IMAGE.to_owned(), ..Default::default() }),
        command: ["sh", "-c", &script].map(str::to_owned).to_vec(),
        linux: Some(v1::LinuxContainerConfig::default()),
        ..Default::default()
    };
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(container),
        sandbox_config: Some(config),
    };
    let id = runtime.create_container(request).await.ok()?.into_inner().container_id;
    runtime.start_container(v1::StartContainerRequest { container_id: id.clone() }).await.ok()?;
    if stopped {
        let request = || v1::StopContainerRequest { container_id: id.clone(), timeout: 10 };
        insist("stop_container", || async { client.clone().stop_container(request()).await }).await;
    }
    let until = Instant::now() + PATIENCE;
    let code = loop {
        let request = || v1::ContainerStatusRequest { container_id: id.clone(), verbose: false };
        let answer =
            insist("container_status", || async { client.clone().container_status(request()).await }).await;
        let status = answer.into_inner().status.unwrap();
        if status.state() == ContainerState::ContainerExited {
            break status.exit_code;
        }
        assert!(Instant::now() < until, "{id} does not end: {status:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    remove(client, &sandbox).await;
    Some(Outcome { id, wanted, code })
}

async fn remove(client: &Client, sandbox: &str) {
    let stop = || v1::StopPodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
    insist("stop_pod_sandbox", || async { client.clone().stop_pod_sandbox(stop()).await }).await;
    let remove = || v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
    insist("remove_pod_sandbox", || async { client.clone().remove_pod_sandbox(remove()).await }).await;
}

/// Tells the containers whose end is published, through whatever shim there is.
async fn listen(client: Client, ends: mpsc::UnboundedSender<String>) {
    loop {
        if let Ok(events) = client.clone().get_container_events(v1::GetEventsRequest {}).await {
            let mut events = events.into_inner();
            while let Some(Ok(event)) = events.next().await {
                let ended = event.container_event_type() == ContainerEventType::ContainerStoppedEvent;
                let of_sandbox = event.pod_sandbox_status.is_some_and(|pod| pod.id == event.container_id);
                if ended && !of_sandbox && ends.send(event.container_id).is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn named(comm: &str) -> Vec<i32> {
    let is =
        |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == comm);
    descendants(std::process::id() as i32).into_keys().filter(is).collect()
}

fn kill(pid: i32) -> bool {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).is_ok()
}

/// Kills until told to stop; how many monitors.
async fn killer(
    shim: &mut CriServer,
    random: &mut StdRng,
    stop: &mut tokio::sync::oneshot::Receiver<()>,
    quiet: Duration,
) -> usize {
    let mut monitors = 0;
    while stop.try_recv().is_err() {
        match random.random_range(0..3) {
            0 => shim.replace().unwrap(),
            1 => named("wharf-zygote").into_iter().for_each(|pid| {
                kill(pid);
            }),
            _ => {
                let all = named("wharf-monitor");
                if !all.is_empty() && kill(all[random.random_range(0..all.len())]) {
                    monitors += 1;
                }
            }
        }
        shim.reap();
        tokio::time::sleep(quiet.mul_f64(random.random_range(0.3..3.0))).await;
    }
    monitors
}

#[test]
fn ends_are_told_once_and_nothing_is_left_whatever_is_killed() {
    isolate().unwrap();
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (shim, dir) = runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let registry = LocalRegistry::serve(&dir.path().join("registry")).await.unwrap();
        registry.put_shell("shell", &["/bin/sh"]).await.unwrap();
        let mut shim = CriServer::shim(dir.path(), &registry.url, "10.87.0.0/16").unwrap();
        let channel = wharf_cri::connect(&shim.socket);
        let client = RuntimeServiceClient::new(channel.clone());
        let image = Some(v1::ImageSpec { image: IMAGE.to_owned(), ..Default::default() });
        let request = v1::PullImageRequest { image, ..Default::default() };
        ImageServiceClient::new(channel).pull_image(request).await.unwrap();

        // How long a pod lives when nobody kills.
        let began = Instant::now();
        cycle(&client, &mut StdRng::seed_from_u64(seed)).await.unwrap();
        let quiet = began.elapsed();

        let (ended, mut ends) = mpsc::unbounded_channel();
        let listener = tokio::spawn(listen(client.clone(), ended));
        let load = (0..TASKS).map(|task| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut random = StdRng::seed_from_u64(seed ^ task);
                let mut outcomes = Vec::new();
                for _ in 0..PODS {
                    outcomes.extend(cycle(&client, &mut random).await);
                }
                outcomes
            })
        });
        let load: Vec<_> = load.collect();
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let mut random = StdRng::seed_from_u64(!seed);
        let outcomes = async {
            let all = futures::future::join_all(load).await;
            let _ = stop.send(());
            all.into_iter().flat_map(Result::unwrap).collect::<Vec<_>>()
        };
        let (outcomes, monitors) =
            tokio::join!(outcomes, killer(&mut shim, &mut random, &mut stopped, quiet));

        let lost = outcomes.iter().filter(|one| one.code != one.wanted).count();
        for Outcome { id, wanted, code } in &outcomes {
            assert!(code == wanted || *code == KILLED, "{id} ended with {code}, not {wanted}");
        }
        assert!(lost <= monitors, "{lost} containers were killed, and {monitors} monitors");
        println!("{} containers ended, {lost} of them with their monitor", outcomes.len());
        assert!(outcomes.len() as u64 > TASKS, "hardly any pod was made");

        let request = || v1::ListPodSandboxRequest::default();
        let left = insist("list_pod_sandbox", || async { client.clone().list_pod_sandbox(request()).await })
            .await
            .into_inner()
            .items;
        for sandbox in left {
            shim.reap();
            remove(&client, &sandbox.id).await;
        }
        listener.abort();
        let mut told: HashMap<String, usize> = HashMap::new();
        while let Ok(id) = ends.try_recv() {
            *told.entry(id).or_default() += 1;
        }
        let twice: Vec<_> = told.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "told more than once: {twice:?}");
        eventually_async("everything to go", async || {
            shim.reap();
            CriServer::nothing_is_left(dir.path())
        })
        .await;
        (shim, dir)
    });
    // Its clients first: it waits for them.
    drop(runtime);
    drop(shim);
    drop(dir);
}
