//! What a worker does, each as one future that ends in a [`Done`]. They hold no state of the worker's and may be dropped
//! at any time: what they leave behind is found by the next adoption or teardown.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::{Value, json};
use tracing::warn;
use wharf_cri::v1;
use wharf_kit::api::{self, Delete, Ignored, Kind, PatchKind};
use wharf_kit::chain;
use wharf_kit::event::{Severity, Subject};
use wharf_kit::view::Key;

use super::Shared;
use super::config::{self, OwnFiles, Parts};
use super::state::{Exit, Record, Run, Sandbox};
use crate::env::{self, Facts, Found};
use crate::images::{self, Image, Policy};
use crate::objects::{ObjectName, Seen};
use crate::runtime::{Inventory, label};
use crate::volumes::{self, Ready};
use crate::{dns, logs};

/// How an operation ended.
pub enum Done {
    Class(String),
    Volumes(Result<Ready, volumes::Error>),
    /// An object behind the volumes changed.
    SourcesChanged,
    Image {
        slot: usize,
        result: Result<Arc<Image>, images::Error>,
    },
    Sandbox(Result<Sandbox, String>),
    Started {
        slot: usize,
        attempt: u32,
        result: Result<Record, StartError>,
    },
    Stopped {
        id: String,
        exit: Option<Exit>,
    },
    /// A closer look at a container of which an event told too little. No exit: it is not there any more.
    Looked {
        id: String,
        exit: Option<Exit>,
    },
    /// How a run ended that was found ended.
    Words {
        slot: usize,
        id: String,
        exit: Exit,
    },
    /// The object for which a slot (or, none, the volumes) waited is there.
    Appeared {
        slot: Option<usize>,
    },
    Adopted(Result<Adopted, String>),
    Released(Result<(), String>),
    TornDown(Result<(), String>),
    Written(Result<(), api::Error>),
    Deleted,
}

/// Why a container did not start.
#[derive(Debug)]
pub enum StartError {
    Config(config::Error),
    Create(String),
}

/// What the runtime has of a pod.
pub struct Adopted {
    pub sandbox: Option<Sandbox>,
    pub handler: String,
    /// Newest run first, with the sandbox's id.
    pub containers: Vec<v1::ContainerStatus>,
}

/// A pod's identity for the API and for events.
pub fn subject(pod: &Pod) -> Subject {
    let meta = &pod.metadata;
    Subject {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        key: Key::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        ),
        uid: meta.uid.clone().unwrap_or_default(),
        field: String::new(),
    }
}

pub const PODS: Kind = Kind::core("Pod", "pods");
const CLASSES: Kind = Kind::new("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses").cluster();

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn event(
    shared: &Shared,
    pod: &Pod,
    container: Option<&str>,
    severity: Severity,
    reason: &str,
    message: String,
) {
    let mut subject = subject(pod);
    if let Some(container) = container {
        subject.field = format!("spec.containers{{{container}}}");
    }
    shared.recorder.record(&subject, severity, reason, message);
}

/// Doubling pauses between tries that nobody needs to hear of each time.
struct Pause(Duration);

impl Pause {
    fn new() -> Self {
        Self(Duration::from_millis(100))
    }
    async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(Duration::from_secs(10));
    }
}

/// The handler of a RuntimeClass; waits until it can be read. Handlers never change, so each is asked for once.
pub async fn class(shared: Arc<Shared>, pod: Arc<Pod>, name: String) -> Done {
    #[derive(serde::Deserialize)]
    struct Class {
        handler: String,
    }
    let mut pause = Pause::new();
    loop {
        let known =
            shared.classes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(&name).cloned();
        if let Some(handler) = known {
            return Done::Class(handler);
        }
        match shared.rest.get::<Class>(CLASSES, &Key::cluster(name.as_str())).await {
            Ok(class) => {
                shared
                    .classes
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .insert(name.clone(), class.handler);
            }
            Err(error) => {
                let message = format!("could not read RuntimeClass \"{name}\": {}", error.message());
                event(&shared, &pod, None, Severity::Warning, "FailedCreatePodSandBox", message);
                pause.wait().await;
            }
        }
    }
}

pub async fn volumes(shared: Arc<Shared>, pod: Arc<Pod>, ips: Vec<String>) -> Done {
    let facts = Facts {
        pod: &pod,
        node: &shared.name,
        host_ip: &shared.host_ip,
        pod_ips: &ips,
        allocatable: &shared.machine,
    };
    Done::Volumes(volumes::prepare(&shared.root, &facts, &shared.objects).await)
}

/// Ends when the object is there (with the key).
pub async fn appears(
    shared: Arc<Shared>,
    object: ObjectName,
    key: Option<String>,
    slot: Option<usize>,
) -> Done {
    let watched = shared.objects.watch(&object);
    let mut changes = watched.changes();
    let there = |seen: &Seen| match (seen, &key) {
        (Seen::Found(data), Some(key)) => data.text.contains_key(key),
        (Seen::Found(_), None) => true,
        (Seen::Unknown | Seen::Missing, _) => false,
    };
    let _ = changes.wait_for(there).await; // cannot end before us: we hold the watch
    Done::Appeared { slot }
}

/// Sees that the image is here, and tells in events how.
pub async fn image(
    shared: Arc<Shared>,
    pod: Arc<Pod>,
    container: Container,
    slot: usize,
    sandbox: Option<v1::PodSandboxConfig>,
) -> Done {
    let name = container.image.clone().unwrap_or_default();
    let tell = |severity, reason: &str, message| {
        event(&shared, &pod, Some(&container.name), severity, reason, message)
    };
    let policy = Policy::of(container.image_pull_policy.as_deref(), &name);
    let result = async {
        if name.trim().is_empty() || name.contains(char::is_whitespace) {
            return Err(images::Error::Name { image: name.clone() });
        }
        if policy != Policy::Always {
            if let Some(image) = shared.images.present(&name).await? {
                tell(
                    Severity::Normal,
                    "Pulled",
                    format!("Container image \"{name}\" already present on machine"),
                );
                return Ok(image);
            }
            if policy == Policy::Never {
                return Err(images::Error::Never { image: name.clone() });
            }
        }
        tell(Severity::Normal, "Pulling", format!("Pulling image \"{name}\""));
        let begun = Instant::now();
        let image = shared.images.pull(&name, sandbox).await?;
        tell(
            Severity::Normal,
            "Pulled",
            format!("Successfully pulled image \"{name}\" in {} ms", begun.elapsed().as_millis()),
        );
        Ok(image)
    };
    let result = result.await;
    if let Err(error) = &result {
        tell(Severity::Warning, "Failed", error.to_string());
        tell(Severity::Warning, "Failed", format!("Error: {}", error.reason()));
    }
    Done::Image { slot, result }
}

/// Stops and removes a sandbox with all that is in it. Unknown ones are no error.
async fn remove_sandbox(shared: &Shared, id: &str) -> Result<(), tonic::Status> {
    let mut client = shared.runtime.runtime.clone();
    client.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() }).await?;
    client.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() }).await?;
    Ok(())
}

/// Removes all sandboxes of the pod.
async fn remove_sandboxes(shared: &Shared, uid: &str) -> Result<(), tonic::Status> {
    let label_selector = HashMap::from([(label::POD_UID.to_owned(), uid.to_owned())]);
    let filter = Some(v1::PodSandboxFilter { label_selector, ..Default::default() });
    let list = shared
        .runtime
        .runtime
        .clone()
        .list_pod_sandbox(v1::ListPodSandboxRequest { filter })
        .await?
        .into_inner();
    for sandbox in list.items {
        remove_sandbox(shared, &sandbox.id).await?;
    }
    Ok(())
}

/// Makes the sandbox. `clean`: others of this pod may be there, and are removed first.
pub async fn sandbox(shared: Arc<Shared>, pod: Arc<Pod>, handler: String, attempt: u32, clean: bool) -> Done {
    let make = async {
        if clean {
            remove_sandboxes(&shared, uid(&pod)).await?;
        }
        let config = config::sandbox(&pod, attempt, &shared.logs, &shared.name, &shared.resolver);
        let mut client = shared.runtime.runtime.clone();
        let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: handler };
        let id = client.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        let status = client
            .pod_sandbox_status(v1::PodSandboxStatusRequest { pod_sandbox_id: id, verbose: false })
            .await?;
        let status = status
            .into_inner()
            .status
            .ok_or_else(|| tonic::Status::internal("the runtime tells no status of the new sandbox"))?;
        Ok::<_, tonic::Status>(self::status_of(status))
    };
    // The runtime opens log files below this directory; a kubelet makes it first.
    let meta = &pod.metadata;
    let logs = logs::pod_directory(
        &shared.logs,
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
        uid(&pod),
    );
    let result = match tokio::fs::create_dir_all(&logs).await {
        Ok(()) => make.await.map_err(|status| status.message().to_owned()),
        Err(error) => Err(format!("could not make the log directory {}: {error}", logs.display())),
    };
    if let Err(words) = &result {
        event(
            &shared,
            &pod,
            None,
            Severity::Warning,
            "FailedCreatePodSandBox",
            format!("Failed to create pod sandbox: {words}"),
        );
    }
    Done::Sandbox(result)
}

/// A sandbox as CRI tells it.
pub fn status_of(status: v1::PodSandboxStatus) -> Sandbox {
    let network = status.network.unwrap_or_default();
    let ips = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
    Sandbox {
        ready: status.state == v1::PodSandboxState::SandboxReady as i32,
        attempt: status.metadata.map_or(0, |metadata| metadata.attempt),
        ips: ips.filter(|ip| !ip.is_empty()).collect(),
        id: status.id,
    }
}

/// What [`start`] needs beside the pod.
pub struct Start {
    pub slot: usize,
    pub container: Container,
    pub attempt: u32,
    pub sandbox: Sandbox,
    pub image: Arc<Image>,
    pub volumes: Arc<Ready>,
    /// Containers whose time is over: the run before the last.
    pub stale: Vec<String>,
    /// An earlier try may have left a container of this attempt.
    pub again: bool,
}

/// Creates and starts one container.
pub async fn start(shared: Arc<Shared>, pod: Arc<Pod>, what: Start) -> Done {
    let (slot, attempt) = (what.slot, what.attempt);
    let tell = |severity, reason: &str, message| {
        event(&shared, &pod, Some(&what.container.name), severity, reason, message)
    };
    let result = start_container(&shared, &pod, &what).await;
    match &result {
        Ok(record) => {
            tell(Severity::Normal, "Created", format!("Container created: {}", what.container.name));
            match record.exit().filter(|exit| exit.reason == START_ERROR) {
                Some(exit) => tell(Severity::Warning, "Failed", format!("Error: {}", exit.message)),
                None => {
                    tell(Severity::Normal, "Started", format!("Container started: {}", what.container.name))
                }
            }
        }
        Err(StartError::Config(error)) => {
            tell(Severity::Warning, "Failed", format!("Error: {}", chain(error)))
        }
        Err(StartError::Create(words)) => tell(Severity::Warning, "Failed", format!("Error: {words}")),
    }
    Done::Started { slot, attempt, result }
}

/// The reason of a run that never began.
pub const START_ERROR: &str = "StartError";

async fn start_container(shared: &Shared, pod: &Pod, what: &Start) -> Result<Record, StartError> {
    let Start { container, attempt, sandbox, image, .. } = what;
    let facts = Facts {
        pod,
        node: &shared.name,
        host_ip: &shared.host_ip,
        pod_ips: &sandbox.ips,
        allocatable: &shared.machine,
    };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut found = Found::new();
    for object in env::objects(namespace, container) {
        let data = shared
            .objects
            .get(&object)
            .await
            .map_err(|error| StartError::Create(chain(&error).to_string()))?;
        found.insert(object, data);
    }
    let env = env::build(container, &facts, &found).map_err(|error| StartError::Config(error.into()))?;
    let directory = volumes::pod_directory(&shared.root, uid(pod));
    let files = own_files(pod, &shared.name, sandbox, container, *attempt, &directory).await;
    let files = files.map_err(|error| {
        StartError::Create(format!("could not write below {}: {error}", directory.display()))
    })?;
    let parts = Parts {
        facts: &facts,
        container,
        attempt: *attempt,
        image,
        env: &env,
        volumes: &what.volumes,
        files: &files,
    };
    let config = config::container(&parts).map_err(StartError::Config)?;

    let create = |status: tonic::Status| StartError::Create(status.message().to_owned());
    let mut client = shared.runtime.runtime.clone();
    let mut stale = what.stale.clone();
    if what.again {
        let label_selector = HashMap::from([(label::CONTAINER_NAME.to_owned(), container.name.clone())]);
        let filter = Some(v1::ContainerFilter {
            pod_sandbox_id: sandbox.id.clone(),
            label_selector,
            ..Default::default()
        });
        let list =
            client.list_containers(v1::ListContainersRequest { filter }).await.map_err(create)?.into_inner();
        let same = list
            .containers
            .into_iter()
            .filter(|have| have.metadata.as_ref().is_some_and(|metadata| metadata.attempt == *attempt));
        stale.extend(same.map(|have| have.id));
    }
    for id in stale {
        client.remove_container(v1::RemoveContainerRequest { container_id: id }).await.map_err(create)?;
    }
    let sandbox_config = config::sandbox(pod, sandbox.attempt, &shared.logs, &shared.name, &shared.resolver);
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: sandbox.id.clone(),
        config: Some(config),
        sandbox_config: Some(sandbox_config),
    };
    let id = client.create_container(request).await.map_err(create)?.into_inner().container_id;
    let started = client.start_container(v1::StartContainerRequest { container_id: id.clone() }).await;
    let status = client
        .container_status(v1::ContainerStatusRequest { container_id: id.clone(), verbose: false })
        .await;
    let status = status.ok().and_then(|status| status.into_inner().status);
    let mut record = match status {
        Some(status) => record(shared, pod, &status).await,
        None => Record {
            id,
            attempt: *attempt,
            hash: super::state::hash(container),
            image_id: image.id.clone(),
            run: Run::Created,
        },
    };
    match started {
        Ok(_) if record.run == Run::Created => record.run = Run::Running { since: now() },
        Ok(_) => {}
        // The run is over before it began: back-off and restart policy are those of any other exit.
        Err(_) if record.exit().is_some() => {}
        Err(status) => {
            let now = now();
            let message = status.message().to_owned();
            record.run = Run::Exited(Exit {
                started: now,
                finished: now,
                code: 128,
                reason: START_ERROR.to_owned(),
                message,
            });
        }
    }
    Ok(record)
}

/// Whole seconds, as the API keeps times.
pub fn now() -> Timestamp {
    seconds(Timestamp::now())
}

fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn nanos(value: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(value)).map_or(Timestamp::UNIX_EPOCH, seconds)
}

/// Writes the hosts file and makes the file for the termination message.
async fn own_files(
    pod: &Pod,
    node: &str,
    sandbox: &Sandbox,
    container: &Container,
    attempt: u32,
    directory: &Path,
) -> std::io::Result<OwnFiles> {
    let spec = pod.spec.as_ref();
    let of_container = directory.join("containers").join(&container.name);
    tokio::fs::create_dir_all(&of_container).await?;
    let termination = of_container.join(attempt.to_string());
    let file = tokio::fs::File::create(&termination).await?;
    // Whatever user the container runs as may write it.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666)).await?;
    let mut hosts = None;
    if spec.is_none_or(|spec| spec.host_network != Some(true)) {
        let name = config::hostname(pod, node);
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let subdomain = spec
            .and_then(|spec| spec.subdomain.as_ref())
            .map(|subdomain| format!("{subdomain}.{namespace}.svc.cluster.local"));
        let text = dns::hosts_file(
            &sandbox.ips,
            name,
            subdomain.as_deref(),
            spec.and_then(|spec| spec.host_aliases.as_ref()),
        );
        let path = directory.join("etc-hosts");
        tokio::fs::write(&path, text).await?;
        hosts = Some(path.display().to_string());
    }
    Ok(OwnFiles { hosts, termination: termination.display().to_string() })
}

/// A run as CRI tells it. For an ended one the container's last words are looked up.
pub async fn record(shared: &Shared, pod: &Pod, status: &v1::ContainerStatus) -> Record {
    let mut record = record_of(status);
    if record.exit().is_some() {
        record.run = Run::Exited(exit(shared, pod, status).await);
    }
    record
}

/// The same without what must be read from files.
pub fn record_of(status: &v1::ContainerStatus) -> Record {
    let run = match status.state() {
        v1::ContainerState::ContainerCreated => Run::Created,
        v1::ContainerState::ContainerRunning => Run::Running { since: nanos(status.started_at) },
        v1::ContainerState::ContainerExited | v1::ContainerState::ContainerUnknown => {
            Run::Exited(bare_exit(status))
        }
    };
    Record {
        id: status.id.clone(),
        attempt: attempt(status),
        hash: status.annotations.get(label::CONTAINER_HASH).cloned().unwrap_or_default(),
        image_id: if status.image_id.is_empty() { status.image_ref.clone() } else { status.image_id.clone() },
        run,
    }
}

fn attempt(status: &v1::ContainerStatus) -> u32 {
    let told = status.annotations.get(label::RESTART_COUNT).and_then(|count| count.parse().ok());
    told.or(status.metadata.as_ref().map(|metadata| metadata.attempt)).unwrap_or(0)
}

/// How it ended, as the runtime alone tells it.
fn bare_exit(status: &v1::ContainerStatus) -> Exit {
    let unknown = status.state() == v1::ContainerState::ContainerUnknown;
    let code = if unknown { 137 } else { status.exit_code };
    let reason = match (status.reason.as_str(), code) {
        ("", _) if unknown => "ContainerStatusUnknown",
        ("", 0) => "Completed",
        ("", _) => "Error",
        (reason, _) => reason,
    };
    let finished = if status.finished_at > 0 { nanos(status.finished_at) } else { now() };
    let started = if status.started_at > 0 { nanos(status.started_at) } else { finished };
    Exit { started, finished, code, reason: reason.to_owned(), message: status.message.clone() }
}

/// How it ended, with what it left in its termination message (or its log, if so asked).
pub async fn exit(shared: &Shared, pod: &Pod, status: &v1::ContainerStatus) -> Exit {
    /// A termination message is not read beyond this, as in Kubernetes.
    const LONGEST: u64 = 4096;
    let mut exit = bare_exit(status);
    let name = status.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
    let attempt = attempt(status);
    let file = volumes::pod_directory(&shared.root, uid(pod))
        .join("containers")
        .join(&name)
        .join(attempt.to_string());
    let meta = &pod.metadata;
    let log = logs::pod_directory(
        &shared.logs,
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
        uid(pod),
    )
    .join(logs::relative(&name, attempt));
    let fall_back = exit.code != 0
        && status
            .annotations
            .get(label::TERMINATION_POLICY)
            .is_some_and(|policy| policy == "FallbackToLogsOnError");
    let words = tokio::task::spawn_blocking(move || {
        use std::io::Read as _;
        let mut text = Vec::new();
        if let Ok(file) = std::fs::File::open(file) {
            let _ = file.take(LONGEST).read_to_end(&mut text); // what cannot be read is no message
        }
        if text.is_empty() && fall_back {
            return logs::last_words(&log).unwrap_or_default();
        }
        String::from_utf8_lossy(&text).into_owned()
    });
    let words = words.await.unwrap_or_default();
    exit.message = match (exit.message.as_str(), words.as_str()) {
        (own, "") => own.to_owned(),
        ("", words) => words.to_owned(),
        (own, words) => format!("{own}: {words}"),
    };
    exit
}

/// Stops the container and tells how it ended. Tries for as long as the runtime does not answer.
pub async fn stop(shared: Arc<Shared>, pod: Arc<Pod>, id: String, name: String, grace: Duration) -> Done {
    event(&shared, &pod, Some(&name), Severity::Normal, "Killing", format!("Stopping container {name}"));
    let mut client = shared.runtime.runtime.clone();
    let mut pause = Pause::new();
    let kill_at = Instant::now() + grace;
    loop {
        let left = kill_at.saturating_duration_since(Instant::now());
        let timeout = i64::try_from(left.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        match client.stop_container(v1::StopContainerRequest { container_id: id.clone(), timeout }).await {
            Ok(_) => break,
            Err(status) if status.code() == tonic::Code::NotFound => break,
            Err(status) => {
                warn!(container = id, error = status.message(), "could not stop the container, trying again");
                pause.wait().await;
            }
        }
    }
    let exit = look_at(&shared, &pod, &id).await;
    Done::Stopped { id, exit }
}

/// Reads what a container that ended before we came left behind.
pub async fn words(shared: Arc<Shared>, pod: Arc<Pod>, slot: usize, status: v1::ContainerStatus) -> Done {
    let exit = exit(&shared, &pod, &status).await;
    Done::Words { slot, id: status.id, exit }
}

/// Asks how the container ended; none if the runtime does not know it.
pub async fn look(shared: Arc<Shared>, pod: Arc<Pod>, id: String) -> Done {
    let exit = look_at(&shared, &pod, &id).await;
    Done::Looked { id, exit }
}

async fn look_at(shared: &Shared, pod: &Pod, id: &str) -> Option<Exit> {
    let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    let status = shared.runtime.runtime.clone().container_status(request).await.ok()?.into_inner().status?;
    let over =
        matches!(status.state(), v1::ContainerState::ContainerExited | v1::ContainerState::ContainerUnknown);
    if over { Some(exit(shared, pod, &status).await) } else { None }
}

/// Finds out what the runtime has of the pod; removes sandboxes that an earlier life left beside the newest.
pub async fn adopt(shared: Arc<Shared>, uid: String, inventory: Option<Inventory>) -> Done {
    Done::Adopted(adopt_now(&shared, &uid, inventory).await.map_err(|status| status.message().to_owned()))
}

async fn adopt_now(
    shared: &Shared,
    uid: &str,
    inventory: Option<Inventory>,
) -> Result<Adopted, tonic::Status> {
    let client = shared.runtime.runtime.clone();
    let inventory = match inventory {
        Some(inventory) => inventory,
        None => {
            let label_selector = HashMap::from([(label::POD_UID.to_owned(), uid.to_owned())]);
            let filter =
                Some(v1::PodSandboxFilter { label_selector: label_selector.clone(), ..Default::default() });
            let mut sandboxes = client
                .clone()
                .list_pod_sandbox(v1::ListPodSandboxRequest { filter })
                .await?
                .into_inner()
                .items;
            sandboxes.sort_by_key(|sandbox| (sandbox.state, std::cmp::Reverse(sandbox.created_at)));
            let filter = Some(v1::ContainerFilter { label_selector, ..Default::default() });
            let containers = client
                .clone()
                .list_containers(v1::ListContainersRequest { filter })
                .await?
                .into_inner()
                .containers;
            Inventory { sandboxes, containers }
        }
    };
    let mut adopted = Adopted { sandbox: None, handler: String::new(), containers: Vec::new() };
    let statuses = futures::stream::iter(inventory.containers).map(|container| {
        let mut client = client.clone();
        async move {
            let request = v1::ContainerStatusRequest { container_id: container.id, verbose: false };
            match client.container_status(request).await {
                Ok(status) => Ok(status.into_inner().status),
                Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
                Err(status) => Err(status),
            }
        }
    });
    let statuses: Vec<_> = statuses.buffered(8).try_collect().await?;
    adopted.containers = statuses.into_iter().flatten().collect();
    adopted.containers.sort_by_key(|status| std::cmp::Reverse(attempt(status)));
    for (index, sandbox) in inventory.sandboxes.into_iter().enumerate() {
        if index > 0 {
            remove_sandbox(shared, &sandbox.id).await?;
            continue;
        }
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.id, verbose: false };
        match client.clone().pod_sandbox_status(request).await {
            Ok(status) => {
                let status = status.into_inner().status.unwrap_or_default();
                adopted.handler.clone_from(&status.runtime_handler);
                adopted.sandbox = Some(status_of(status));
            }
            Err(status) if status.code() == tonic::Code::NotFound => {}
            Err(status) => return Err(status),
        }
    }
    Ok(adopted)
}

/// Stops the sandbox of a finished pod: its address is free again, its records stay.
pub async fn release(shared: Arc<Shared>, id: String) -> Done {
    let stopped = shared
        .runtime
        .runtime
        .clone()
        .stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id })
        .await;
    Done::Released(stopped.map(drop).map_err(|status| status.message().to_owned()))
}

/// Removes everything of the pod from this node.
pub async fn tear_down(shared: Arc<Shared>, pod: Arc<Pod>, volumes: Option<Arc<Ready>>) -> Done {
    drop(volumes);
    let meta = &pod.metadata;
    let logs = logs::pod_directory(
        &shared.logs,
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
        uid(&pod),
    );
    let result = remove_everything(&shared, uid(&pod), Some(&logs)).await;
    if let Err(words) = &result {
        event(&shared, &pod, None, Severity::Warning, "FailedKillPod", format!("error killing pod: {words}"));
    }
    Done::TornDown(result)
}

/// Removes the pod's sandboxes, its directory and, if given, its logs.
pub async fn remove_everything(shared: &Shared, uid: &str, logs: Option<&Path>) -> Result<(), String> {
    remove_sandboxes(shared, uid).await.map_err(|status| status.message().to_owned())?;
    let (root, owned) = (shared.root.clone(), uid.to_owned());
    let removed = tokio::task::spawn_blocking(move || volumes::remove(&root, &owned)).await;
    removed
        .map_err(std::io::Error::other)
        .flatten()
        .map_err(|error| format!("could not remove the volumes of pod {uid}: {error}"))?;
    if let Some(logs) = logs {
        match tokio::fs::remove_dir_all(logs).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(format!("could not remove {}: {error}", logs.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Writes the changed parts of the status.
pub async fn write(shared: Arc<Shared>, key: Key, uid: String, status: Value) -> Done {
    let body = json!({"metadata": {"uid": uid}, "status": status});
    let written = shared.rest.patch::<Ignored>(PODS, &key, "status", PatchKind::Merge, &body).await;
    Done::Written(written.map(drop))
}

/// Deletes the API object for good. Tries until the API says that it is done or that there is none.
pub async fn delete(shared: Arc<Shared>, key: Key, uid: String) -> Done {
    let how = Delete { uid, ..Delete::default() }.with_grace(0);
    let mut pause = Pause::new();
    loop {
        match shared.rest.delete::<Ignored>(PODS, &key, &how).await {
            Ok(_) => return Done::Deleted,
            Err(error) if error.is_not_found() || error.is_conflict() => return Done::Deleted,
            Err(error) => {
                warn!(pod = %key, error = %chain(&error), "could not delete the pod's object, trying again")
            }
        }
        pause.wait().await;
    }
}
