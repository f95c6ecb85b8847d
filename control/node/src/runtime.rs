//! The runtime behind CRI: its health, and its stream of container events.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tracing::{debug, info, warn};
use wharf_cri::v1::{
    self, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};

/// Labels and annotations by which a kubelet finds its things again in a runtime.
pub mod label {
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    /// Annotations.
    pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
    pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
    pub const TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
    pub const TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
    pub const POD_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
}

/// How the runtime is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    /// It answers, and its events flow.
    pub connected: bool,
    pub runtime_ready: bool,
    pub network_ready: bool,
    /// Why one of them is not.
    pub message: String,
    /// `NAME://VERSION`, once known.
    pub version: String,
    pub name: String,
    pub handlers: Vec<v1::RuntimeHandler>,
    pub supplemental_groups_policy: bool,
}

impl Health {
    pub fn ready(&self) -> bool {
        self.connected && self.runtime_ready && self.network_ready
    }
}

/// One pod's things in the runtime, newest sandbox first.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    pub sandboxes: Vec<v1::PodSandbox>,
    pub containers: Vec<v1::Container>,
}

/// What the runtime task tells the dispatcher.
#[derive(Debug)]
pub enum Report {
    /// All that exists, by pod uid, after a (re)connection.
    Listed(HashMap<Arc<str>, Inventory>),
    /// Something happened to a container or a sandbox.
    Event(Box<v1::ContainerEventResponse>),
}

/// The two CRI services. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    pub runtime: RuntimeServiceClient<Channel>,
    pub image: ImageServiceClient<Channel>,
}

/// Messages of a big node's list can be large: ten thousand containers are some MB.
const LARGEST_MESSAGE: usize = 64 << 20;

impl Runtime {
    pub fn new(channel: Channel) -> Self {
        Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(LARGEST_MESSAGE),
            image: ImageServiceClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE),
        }
    }
}

/// Keeps the connection until `stop`: publishes `health`, hands the pod range over, sends reports.
pub async fn keep(
    runtime: Runtime,
    mut pod_cidr: watch::Receiver<Option<String>>,
    health: watch::Sender<Health>,
    reports: mpsc::Sender<Report>,
    stop: CancellationToken,
) {
    const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
    let mut pause = PAUSES.0;
    loop {
        let mut connected = false;
        let round = connection(&runtime, &mut pod_cidr, &health, &reports, &mut connected);
        let end = tokio::select! {
            () = stop.cancelled() => return,
            end = round => end,
        };
        let message = match end {
            Ok(()) => "the runtime closed its event stream".to_owned(),
            Err(status) => format!("the runtime does not answer: {}", status.message()),
        };
        if connected {
            pause = PAUSES.0;
            warn!(message, "lost the container runtime");
        } else {
            debug!(message, "no container runtime yet");
        }
        health.send_modify(|health| {
            health.connected = false;
            health.runtime_ready = false;
            health.network_ready = false;
            health.message = message;
        });
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

async fn connection(
    runtime: &Runtime,
    pod_cidr: &mut watch::Receiver<Option<String>>,
    health: &watch::Sender<Health>,
    reports: &mpsc::Sender<Report>,
    connected: &mut bool,
) -> Result<(), tonic::Status> {
    let mut client = runtime.runtime.clone();
    let version = client.version(v1::VersionRequest::default()).await?.into_inner();
    let mut cidr = pod_cidr.borrow_and_update().clone();
    // First the stream, then the list: what happens between is in both, what happens after is in the stream.
    let mut events = client.get_container_events(v1::GetEventsRequest {}).await?.into_inner();
    let listed = list(&mut client).await?;
    *connected = true;
    info!(
        name = version.runtime_name,
        version = version.runtime_version,
        pods = listed.len(),
        "connected to the container runtime"
    );
    // A closed channel means that the agent ends.
    let _ = reports.send(Report::Listed(listed)).await;
    if let Some(cidr) = &cidr {
        hand_over(&mut client, cidr).await?;
    }
    let mut again = publish(&mut client, &version, health).await?;
    loop {
        tokio::select! {
            event = events.message() => match event? {
                Some(event) => drop(reports.send(Report::Event(Box::new(event))).await),
                None => return Ok(()),
            },
            Ok(()) = pod_cidr.changed() => {
                cidr.clone_from(&pod_cidr.borrow_and_update());
                if let Some(cidr) = &cidr {
                    hand_over(&mut client, cidr).await?;
                }
                again = publish(&mut client, &version, health).await?;
            }
            // Not ready for another reason than a missing range: it has no way to tell us when that is over.
            () = tokio::time::sleep(Duration::from_secs(1)), if again && cidr.is_some() => {
                again = publish(&mut client, &version, health).await?;
            }
        }
    }
}

async fn hand_over(client: &mut RuntimeServiceClient<Channel>, cidr: &str) -> Result<(), tonic::Status> {
    let network_config = Some(v1::NetworkConfig { pod_cidr: cidr.to_owned() });
    let request =
        v1::UpdateRuntimeConfigRequest { runtime_config: Some(v1::RuntimeConfig { network_config }) };
    client.update_runtime_config(request).await.map(drop)
}

/// Asks for the status and publishes it. True if it is not ready.
async fn publish(
    client: &mut RuntimeServiceClient<Channel>,
    version: &v1::VersionResponse,
    health: &watch::Sender<Health>,
) -> Result<bool, tonic::Status> {
    let status = client.status(v1::StatusRequest::default()).await?.into_inner();
    let conditions = status.status.unwrap_or_default().conditions;
    let find = |name: &str| conditions.iter().find(|condition| condition.r#type == name);
    let is = |name: &str| find(name).is_some_and(|condition| condition.status);
    let why: Vec<String> = ["RuntimeReady", "NetworkReady"]
        .into_iter()
        .filter(|name| !is(name))
        .map(|name| match find(name) {
            Some(condition) => {
                format!("container runtime {name}=false: {}: {}", condition.reason, condition.message)
            }
            None => format!("container runtime does not tell {name}"),
        })
        .collect();
    let now = Health {
        connected: true,
        runtime_ready: is("RuntimeReady"),
        network_ready: is("NetworkReady"),
        message: why.join("; "),
        version: format!("{}://{}", version.runtime_name, version.runtime_version),
        name: version.runtime_name.clone(),
        handlers: status.runtime_handlers,
        supplemental_groups_policy: status
            .features
            .is_some_and(|features| features.supplemental_groups_policy),
    };
    let ready = now.ready();
    health.send_if_modified(|have| {
        let changed = *have != now;
        *have = now;
        changed
    });
    Ok(!ready)
}

async fn list(
    client: &mut RuntimeServiceClient<Channel>,
) -> Result<HashMap<Arc<str>, Inventory>, tonic::Status> {
    let sandboxes = client.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?.into_inner().items;
    let containers =
        client.list_containers(v1::ListContainersRequest::default()).await?.into_inner().containers;
    let mut all: HashMap<Arc<str>, Inventory> = HashMap::new();
    let mut owner: HashMap<String, Arc<str>> = HashMap::new();
    for sandbox in sandboxes {
        // Sandboxes without the label are somebody else's (crictl's, say) and left alone.
        let Some(uid) = sandbox.labels.get(label::POD_UID).map(|uid| Arc::<str>::from(uid.as_str())) else {
            continue;
        };
        owner.insert(sandbox.id.clone(), uid.clone());
        all.entry(uid).or_default().sandboxes.push(sandbox);
    }
    for container in containers {
        if let Some(inventory) = owner.get(&container.pod_sandbox_id).and_then(|uid| all.get_mut(uid)) {
            inventory.containers.push(container);
        }
    }
    for inventory in all.values_mut() {
        inventory.sandboxes.sort_by_key(|sandbox| (sandbox.state, std::cmp::Reverse(sandbox.created_at)));
    }
    Ok(all)
}
