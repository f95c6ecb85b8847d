//! Making sandboxes, and finding and removing what is there.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use wharf_cri::v1;
use wharf_kit::event::Severity;

use super::super::config;
use super::super::state::Sandbox;
use super::record::attempt;
use super::{Done, Shared, event, log_directory, uid};
use crate::runtime::{Inventory, label};
use crate::users;
use crate::volumes::{self, Ready};

/// What the runtime has of a pod.
pub struct Adopted {
    pub sandbox: Option<Sandbox>,
    pub handler: String,
    /// Newest run first, with the sandbox's id.
    pub containers: Vec<v1::ContainerStatus>,
}

/// Makes the sandbox. `clean`: others of this pod may be there, and are removed first.
pub async fn sandbox(shared: Arc<Shared>, pod: Arc<Pod>, handler: String, attempt: u32, clean: bool) -> Done {
    let make = async {
        if clean {
            remove_sandboxes(&shared, uid(&pod)).await?;
        }
        let users = users::namespace(&shared.root, &pod).await?;
        let config =
            config::sandbox(&pod, attempt, &shared.logs, &shared.name, &shared.resolver, users.as_ref());
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
    let logs = log_directory(&shared, &pod);
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
fn status_of(status: v1::PodSandboxStatus) -> Sandbox {
    let network = status.network.unwrap_or_default();
    let ips = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
    Sandbox {
        ready: status.state == v1::PodSandboxState::SandboxReady as i32,
        attempt: status.metadata.map_or(0, |metadata| metadata.attempt),
        ips: ips.filter(|ip| !ip.is_empty()).collect(),
        id: status.id,
    }
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
    let result = remove_everything(&shared, uid(&pod), Some(&log_directory(&shared, &pod))).await;
    if let Err(words) = &result {
        event(&shared, &pod, None, Severity::Warning, "FailedKillPod", format!("error killing pod: {words}"));
    }
    Done::TornDown(result)
}

/// Removes the pod's sandboxes, its directory and, if given, its logs.
pub async fn remove_everything(shared: &Shared, uid: &str, logs: Option<&Path>) -> Result<(), String> {
    remove_sandboxes(shared, uid).await.map_err(|status| status.message().to_owned())?;
    shared.tokens.forget(uid);
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

/// Stops and removes a sandbox with all that is in it. Unknown ones are no error.
async fn remove_sandbox(shared: &Shared, id: &str) -> Result<(), tonic::Status> {
    let mut client = shared.runtime.runtime.clone();
    client.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() }).await?;
    client.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() }).await?;
    Ok(())
}
