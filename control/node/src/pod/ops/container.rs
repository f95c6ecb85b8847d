//! Starting one container, stopping it, and looking how it ended.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod};
use tracing::{debug, warn};
use wharf_cri::v1;
use wharf_kit::chain;
use wharf_kit::event::Severity;

use super::super::config::{self, OwnFiles, Parts};
use super::super::state::{self, Exit, Record, Run, Sandbox};
use super::record::{exit, now, record};
use super::{Done, Pause, Shared, event, facts, uid};
use crate::ask::Asked;
use crate::dns;
use crate::env::{self, Found};
use crate::hook;
use crate::images::Image;
use crate::runtime::label;
use crate::users;
use crate::volumes::{self, Ready};

/// Why a container did not start.
#[derive(Debug)]
pub enum StartError {
    Config(config::Error),
    Create(String),
}

/// The container whose processes an ephemeral one shall see.
pub struct Target {
    pub name: String,
    /// Of its newest run, if it ever ran.
    pub id: Option<String>,
}

/// What [`start`] needs beside the pod.
pub struct Start {
    pub slot: usize,
    pub container: Container,
    pub target: Option<Target>,
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
const START_ERROR: &str = "StartError";

async fn start_container(shared: &Shared, pod: &Pod, what: &Start) -> Result<Record, StartError> {
    let Start { container, attempt, sandbox, image, .. } = what;
    let target = match &what.target {
        Some(Target { name, id: None }) => {
            return Err(StartError::Config(config::Error::NoTarget(name.clone())));
        }
        Some(Target { id: Some(id), .. }) => Some(id.as_str()),
        None => None,
    };
    let facts = facts(shared, pod, &sandbox.ips);
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
    let users = users::namespace(&shared.root, pod)
        .await
        .map_err(|error| StartError::Create(format!("the pod's users: {error}")))?;
    let parts = Parts {
        facts: &facts,
        container,
        attempt: *attempt,
        image,
        env: &env,
        volumes: &what.volumes,
        files: &files,
        users: users.as_ref(),
        target,
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
    let sandbox_config =
        config::sandbox(pod, sandbox.attempt, &shared.logs, &shared.name, &shared.resolver, users.as_ref());
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
            hash: state::hash(container),
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

/// What [`stop`] needs beside the pod.
pub struct Stop {
    pub asked: Asked,
    pub name: String,
    pub grace: Duration,
    /// Whose preStop hook, if it has one, goes first.
    pub container: Option<Container>,
}

/// Stops the container and tells how it ended. Tries for as long as the runtime does not answer.
pub async fn stop(shared: Arc<Shared>, pod: Arc<Pod>, what: Stop) -> Done {
    /// However long its hook took, a container gets this to end by itself; the kubelet's figure.
    const LEAST: Duration = Duration::from_secs(2);
    let Stop { asked, name, grace, container } = what;
    event(&shared, &pod, Some(&name), Severity::Normal, "Killing", format!("Stopping container {name}"));
    let mut client = shared.runtime.runtime.clone();
    let mut pause = Pause::new();
    let mut kill_at = Instant::now() + grace;
    let hook = container
        .as_ref()
        .and_then(|container| container.lifecycle.as_ref()?.pre_stop.as_ref().map(|hook| (container, hook)));
    if let Some((container, hook)) = hook.filter(|_| !grace.is_zero()) {
        let failed = match tokio::time::timeout(grace, hook::run(hook, container, &asked)).await {
            Ok(Ok(())) => None,
            Ok(Err(words)) => Some(words),
            Err(_) => Some("it did not end within the grace period".to_owned()),
        };
        if let Some(words) = failed {
            // The words may hold secrets of the container's: they are for the node's log alone, as the kubelet has it.
            debug!(container = name, error = words, "preStop hook failed");
            let message = "PreStopHook failed".to_owned();
            event(&shared, &pod, Some(&name), Severity::Warning, "FailedPreStopHook", message);
        }
        kill_at = kill_at.max(Instant::now() + LEAST);
    }
    let id = asked.container;
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
