//! A scripted runtime: a CRI server on a unix socket that runs nothing, remembers what it was told, and does what the
//! test says. It keeps its world over a restart of the server, as a shim does.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::net::UnixListener;
use tokio::sync::broadcast;
use tokio_stream::Stream;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{BroadcastStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use wharf_cri::annotation;
use wharf_cri::v1::{self, *};

pub struct Sandbox {
    pub config: PodSandboxConfig,
    pub handler: String,
    pub ready: bool,
    created: i64,
}

pub struct Container {
    pub config: ContainerConfig,
    pub sandbox: String,
    pub state: ContainerState,
    created: i64,
    started: i64,
    finished: i64,
    code: i32,
}

#[derive(Default)]
pub struct World {
    pub sandboxes: BTreeMap<String, Sandbox>,
    pub containers: BTreeMap<String, Container>,
    /// Images by name, and whether they are wasm.
    pub images: HashMap<String, bool>,
    /// What a pull of these is answered with.
    pub pull_errors: HashMap<String, String>,
    /// The password without which a pull of these is refused.
    pub passwords: HashMap<String, String>,
    /// How commands end: their exit codes, 0 if nothing is said; none: they take longer than they may.
    pub commands: HashMap<String, Option<i32>>,
    /// What the next starts of containers are answered with.
    pub start_errors: VecDeque<String>,
    pub calls: Vec<String>,
    pub pod_cidr: String,
    /// What containers of these names use: processor time in nanoseconds, memory in bytes. The others use nothing.
    pub usage: HashMap<String, (u64, u64)>,
    /// Where a port-forward is sent.
    pub streaming: String,
    next: u64,
}

/// Handle on the scripted runtime.
#[derive(Clone)]
pub struct Runtime {
    world: Arc<Mutex<World>>,
    events: broadcast::Sender<ContainerEventResponse>,
    pub socket: PathBuf,
}

fn now() -> i64 {
    jiff::Timestamp::now().as_nanosecond() as i64
}

impl Runtime {
    pub fn new(directory: &Path) -> Self {
        Self { world: Arc::default(), events: broadcast::channel(64).0, socket: directory.join("cri.sock") }
    }

    /// Serves until the token is cancelled, then ends as a killed process does; the world stays.
    pub fn serve(&self) -> CancellationToken {
        let _ = std::fs::remove_file(&self.socket);
        let stop = CancellationToken::new();
        let (this, token) = (self.clone(), stop.clone());
        // In a tokio runtime of its own: with that go all connections.
        let (bound_tx, bound) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = UnixListener::bind(&this.socket).unwrap();
                bound_tx.send(()).unwrap();
                let server = tonic::transport::Server::builder()
                    .add_service(runtime_service_server::RuntimeServiceServer::new(this.clone()))
                    .add_service(image_service_server::ImageServiceServer::new(this.clone()))
                    .serve_with_incoming(UnixListenerStream::new(listener));
                tokio::select! {
                    () = token.cancelled() => {}
                    served = server => served.unwrap(),
                }
                let _ = std::fs::remove_file(&this.socket);
            });
        });
        bound.recv().unwrap();
        stop
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    pub fn calls(&self, name: &str) -> usize {
        self.world().calls.iter().filter(|call| call.split(' ').next() == Some(name)).count()
    }

    /// The newest container of this name that runs.
    pub fn running(&self, name: &str) -> Option<String> {
        let world = self.world();
        let mut found = world.containers.iter().filter(|(_, container)| {
            container.state == ContainerState::ContainerRunning
                && container.config.metadata.as_ref().unwrap().name == name
        });
        found.next_back().map(|(id, _)| id.clone())
    }

    /// The configuration of the newest container of this name.
    pub fn config(&self, name: &str) -> ContainerConfig {
        let world = self.world();
        let mut found = world
            .containers
            .values()
            .filter(|container| container.config.metadata.as_ref().unwrap().name == name);
        found.next_back().unwrap().config.clone()
    }

    /// Ends the container that runs under this name.
    pub fn exit(&self, name: &str, code: i32) {
        let id = self.running(name).expect("it runs");
        self.end(&id, code);
    }

    fn end(&self, id: &str, code: i32) {
        {
            let mut world = self.world();
            let Some(container) = world.containers.get_mut(id) else { return };
            if container.state != ContainerState::ContainerRunning {
                return;
            }
            container.state = ContainerState::ContainerExited;
            container.finished = now();
            container.code = code;
        }
        self.tell(id, ContainerEventType::ContainerStoppedEvent);
    }

    /// The sandbox dies, and all in it.
    pub fn kill_sandbox(&self, id: &str) {
        let inside: Vec<_> = self
            .world()
            .containers
            .iter()
            .filter(|(_, container)| container.sandbox == id)
            .map(|(id, _)| id.clone())
            .collect();
        self.world().sandboxes.get_mut(id).unwrap().ready = false;
        for container in inside {
            self.end(&container, 137);
        }
        self.tell(id, ContainerEventType::ContainerStoppedEvent);
    }

    fn tell(&self, id: &str, kind: ContainerEventType) {
        let world = self.world();
        let sandbox = world.containers.get(id).map_or(id, |container| &container.sandbox);
        let event = ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind as i32,
            created_at: now(),
            pod_sandbox_status: world.sandboxes.get(sandbox).map(|found| sandbox_status(sandbox, found)),
            containers_statuses: world
                .containers
                .iter()
                .filter(|(_, container)| container.sandbox == sandbox)
                .map(|(id, container)| status(id, container))
                .collect(),
        };
        let _ = self.events.send(event);
    }
}

impl World {
    fn id(&mut self, prefix: &str) -> String {
        self.next += 1;
        format!("{prefix}{:04}", self.next)
    }
}

fn sandbox_status(id: &str, sandbox: &Sandbox) -> PodSandboxStatus {
    PodSandboxStatus {
        id: id.to_owned(),
        metadata: sandbox.config.metadata.clone(),
        state: if sandbox.ready { PodSandboxState::SandboxReady } else { PodSandboxState::SandboxNotready }
            as i32,
        created_at: sandbox.created,
        network: Some(PodSandboxNetworkStatus { ip: "127.0.0.1".into(), additional_ips: vec![] }),
        linux: None,
        labels: sandbox.config.labels.clone(),
        annotations: sandbox.config.annotations.clone(),
        runtime_handler: sandbox.handler.clone(),
    }
}

fn status(id: &str, container: &Container) -> ContainerStatus {
    ContainerStatus {
        id: id.to_owned(),
        metadata: container.config.metadata.clone(),
        state: container.state as i32,
        created_at: container.created,
        started_at: container.started,
        finished_at: container.finished,
        exit_code: container.code,
        image: container.config.image.clone(),
        image_ref: container.config.image.clone().unwrap().image,
        image_id: container.config.image.clone().unwrap().image,
        labels: container.config.labels.clone(),
        annotations: container.config.annotations.clone(),
        log_path: container.config.log_path.clone(),
        ..Default::default()
    }
}

fn used_cpu(nanos: u64) -> CpuUsage {
    let usage_core_nano_seconds = Some(UInt64Value { value: nanos });
    CpuUsage { timestamp: now(), usage_core_nano_seconds, ..Default::default() }
}

fn used_memory(bytes: u64) -> MemoryUsage {
    MemoryUsage {
        timestamp: now(),
        working_set_bytes: Some(UInt64Value { value: bytes }),
        ..Default::default()
    }
}

fn selected(labels: &HashMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

macro_rules! missing {
    ($($name:ident($request:ty) -> $response:ty;)*) => {
        // As async_trait writes them: it does not look into macros.
        $(fn $name<'life0, 'async_trait>(&'life0 self, _: Request<$request>) -> Pin<Box<dyn Future<Output = Result<Response<$response>, Status>> + Send + 'async_trait>>
        where
            'life0: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($name))) })
        })*
    };
}

#[tonic::async_trait]
impl runtime_service_server::RuntimeService for Runtime {
    async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "script".into(),
            runtime_version: "1".into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let network = !self.world().pod_cidr.is_empty();
        let condition =
            |kind: &str, status| RuntimeCondition { r#type: kind.into(), status, ..Default::default() };
        let conditions = vec![condition("RuntimeReady", true), condition("NetworkReady", network)];
        let handler = |name: &str| RuntimeHandler { name: name.into(), features: None };
        Ok(Response::new(StatusResponse {
            status: Some(RuntimeStatus { conditions }),
            runtime_handlers: vec![handler(""), handler("wasm")],
            ..Default::default()
        }))
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Result<Response<UpdateRuntimeConfigResponse>, Status> {
        self.world().pod_cidr = request.into_inner().runtime_config.unwrap().network_config.unwrap().pod_cidr;
        Ok(Response::new(Default::default()))
    }

    type GetContainerEventsStream = Streamed<ContainerEventResponse>;
    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        let events = BroadcastStream::new(self.events.subscribe());
        Ok(Response::new(Box::pin(
            events.map(|event| event.map_err(|error| Status::data_loss(error.to_string()))),
        )))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<RunPodSandboxRequest>,
    ) -> Result<Response<RunPodSandboxResponse>, Status> {
        let request = request.into_inner();
        let mut world = self.world();
        let id = world.id("sandbox-");
        world.calls.push(format!("run_pod_sandbox {id}"));
        let sandbox = Sandbox {
            config: request.config.unwrap(),
            handler: request.runtime_handler,
            ready: true,
            created: now(),
        };
        world.sandboxes.insert(id.clone(), sandbox);
        Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id: id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Result<Response<StopPodSandboxResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        self.world().calls.push(format!("stop_pod_sandbox {id}"));
        if self.world().sandboxes.get(&id).is_some_and(|sandbox| sandbox.ready) {
            self.kill_sandbox(&id);
        }
        Ok(Response::new(Default::default()))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Result<Response<RemovePodSandboxResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        let mut world = self.world();
        world.calls.push(format!("remove_pod_sandbox {id}"));
        world.sandboxes.remove(&id);
        world.containers.retain(|_, container| container.sandbox != id);
        Ok(Response::new(Default::default()))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Result<Response<PodSandboxStatusResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        let world = self.world();
        let sandbox = world.sandboxes.get(&id).ok_or_else(|| Status::not_found(id.clone()))?;
        Ok(Response::new(PodSandboxStatusResponse {
            status: Some(sandbox_status(&id, sandbox)),
            ..Default::default()
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Result<Response<ListPodSandboxResponse>, Status> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let world = self.world();
        let items = world
            .sandboxes
            .iter()
            .filter(|(_, sandbox)| selected(&sandbox.config.labels, &filter.label_selector))
            .map(|(id, sandbox)| {
                let status = sandbox_status(id, sandbox);
                v1::PodSandbox {
                    id: status.id,
                    metadata: status.metadata,
                    state: status.state,
                    created_at: status.created_at,
                    labels: status.labels,
                    annotations: status.annotations,
                    runtime_handler: status.runtime_handler,
                }
            });
        Ok(Response::new(ListPodSandboxResponse { items: items.collect() }))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Result<Response<CreateContainerResponse>, Status> {
        let request = request.into_inner();
        let mut world = self.world();
        if !world.sandboxes.get(&request.pod_sandbox_id).is_some_and(|sandbox| sandbox.ready) {
            return Err(Status::failed_precondition("sandbox is not ready"));
        }
        let id = world.id("container-");
        let config = request.config.unwrap();
        let metadata = config.metadata.clone().unwrap();
        world.calls.push(format!("create_container {} {}", metadata.name, metadata.attempt));
        let container = Container {
            config,
            sandbox: request.pod_sandbox_id,
            state: ContainerState::ContainerCreated,
            created: now(),
            started: 0,
            finished: 0,
            code: 0,
        };
        world.containers.insert(id.clone(), container);
        Ok(Response::new(CreateContainerResponse { container_id: id }))
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Result<Response<StartContainerResponse>, Status> {
        let id = request.into_inner().container_id;
        let mut world = self.world();
        if let Some(words) = world.start_errors.pop_front() {
            return Err(Status::unknown(words));
        }
        let container = world.containers.get_mut(&id).ok_or_else(|| Status::not_found(id.clone()))?;
        container.state = ContainerState::ContainerRunning;
        container.started = now();
        let (path, sandbox) = (container.config.log_path.clone(), container.sandbox.clone());
        let log = Path::new(&world.sandboxes[&sandbox].config.log_directory).join(path);
        std::fs::create_dir_all(log.parent().unwrap())?;
        std::fs::write(log, format!("{} stdout F hello from {id}\n", jiff::Timestamp::now()))?;
        Ok(Response::new(Default::default()))
    }

    async fn stop_container(
        &self,
        request: Request<StopContainerRequest>,
    ) -> Result<Response<StopContainerResponse>, Status> {
        let StopContainerRequest { container_id, timeout } = request.into_inner();
        self.world().calls.push(format!("stop_container {container_id} {timeout}"));
        self.end(&container_id, 143);
        Ok(Response::new(Default::default()))
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Result<Response<RemoveContainerResponse>, Status> {
        let id = request.into_inner().container_id;
        let mut world = self.world();
        world.calls.push(format!("remove_container {id}"));
        world.containers.remove(&id);
        Ok(Response::new(Default::default()))
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let world = self.world();
        let found = world.containers.iter().filter(|(_, container)| {
            selected(&container.config.labels, &filter.label_selector)
                && (filter.pod_sandbox_id.is_empty() || filter.pod_sandbox_id == container.sandbox)
        });
        let containers = found.map(|(id, container)| v1::Container {
            id: id.clone(),
            pod_sandbox_id: container.sandbox.clone(),
            metadata: container.config.metadata.clone(),
            state: container.state as i32,
            created_at: container.created,
            labels: container.config.labels.clone(),
            annotations: container.config.annotations.clone(),
            ..Default::default()
        });
        Ok(Response::new(ListContainersResponse { containers: containers.collect() }))
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Result<Response<ContainerStatusResponse>, Status> {
        let id = request.into_inner().container_id;
        let world = self.world();
        let container = world.containers.get(&id).ok_or_else(|| Status::not_found(id.clone()))?;
        Ok(Response::new(ContainerStatusResponse {
            status: Some(status(&id, container)),
            ..Default::default()
        }))
    }

    async fn exec_sync(
        &self,
        request: Request<ExecSyncRequest>,
    ) -> Result<Response<ExecSyncResponse>, Status> {
        let ExecSyncRequest { container_id, cmd, timeout } = request.into_inner();
        let mut world = self.world();
        let command = cmd.join(" ");
        world.calls.push(format!("exec_sync {container_id} {timeout} {command}"));
        match world.commands.get(&command).copied().unwrap_or(Some(0)) {
            Some(exit_code) => {
                let stdout = format!("{command} said {exit_code}").into_bytes();
                Ok(Response::new(ExecSyncResponse { stdout, stderr: Vec::new(), exit_code }))
            }
            None => Err(Status::deadline_exceeded("command timed out")),
        }
    }

    async fn port_forward(
        &self,
        request: Request<PortForwardRequest>,
    ) -> Result<Response<PortForwardResponse>, Status> {
        let mut world = self.world();
        let id = request.into_inner().pod_sandbox_id;
        world.calls.push(format!("port_forward {id}"));
        Ok(Response::new(PortForwardResponse { url: world.streaming.clone() }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        _: Request<ListPodSandboxStatsRequest>,
    ) -> Result<Response<ListPodSandboxStatsResponse>, Status> {
        let world = self.world();
        let stats = world.sandboxes.iter().filter(|(_, sandbox)| sandbox.ready).map(|(id, sandbox)| {
            let running = world.containers.iter().filter(|(_, container)| {
                container.sandbox == *id && container.state == ContainerState::ContainerRunning
            });
            let of = |name: &str| world.usage.get(name).copied().unwrap_or_default();
            let containers: Vec<_> = running
                .map(|(id, container)| {
                    let (cpu, memory) = of(&container.config.metadata.as_ref().unwrap().name);
                    ContainerStats {
                        attributes: Some(ContainerAttributes {
                            id: id.clone(),
                            metadata: container.config.metadata.clone(),
                            labels: container.config.labels.clone(),
                            ..Default::default()
                        }),
                        cpu: Some(used_cpu(cpu)),
                        memory: Some(used_memory(memory)),
                        ..Default::default()
                    }
                })
                .collect();
            let sum = |value: fn(&ContainerStats) -> u64| containers.iter().map(value).sum::<u64>();
            let cpu = sum(|one| one.cpu.unwrap().usage_core_nano_seconds.unwrap().value);
            let memory = sum(|one| one.memory.unwrap().working_set_bytes.unwrap().value);
            PodSandboxStats {
                attributes: Some(PodSandboxAttributes {
                    id: id.clone(),
                    metadata: sandbox.config.metadata.clone(),
                    labels: sandbox.config.labels.clone(),
                    ..Default::default()
                }),
                linux: Some(LinuxPodSandboxStats {
                    cpu: Some(used_cpu(cpu)),
                    memory: Some(used_memory(memory)),
                    containers,
                    ..Default::default()
                }),
                windows: None,
            }
        });
        Ok(Response::new(ListPodSandboxStatsResponse { stats: stats.collect() }))
    }

    missing! {
        update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
        reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
        exec(ExecRequest) -> ExecResponse;
        attach(AttachRequest) -> AttachResponse;
        container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
        list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
        pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
        checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
        list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
        list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
        runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
        update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
        stream_pod_sandboxes(StreamPodSandboxesRequest) -> Self::StreamPodSandboxesStream;
        stream_containers(StreamContainersRequest) -> Self::StreamContainersStream;
        stream_container_stats(StreamContainerStatsRequest) -> Self::StreamContainerStatsStream;
        stream_pod_sandbox_stats(StreamPodSandboxStatsRequest) -> Self::StreamPodSandboxStatsStream;
        stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest) -> Self::StreamPodSandboxMetricsStream;
    }
    type StreamPodSandboxesStream = Streamed<StreamPodSandboxesResponse>;
    type StreamContainersStream = Streamed<StreamContainersResponse>;
    type StreamContainerStatsStream = Streamed<StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Streamed<StreamPodSandboxStatsResponse>;
    type StreamPodSandboxMetricsStream = Streamed<StreamPodSandboxMetricsResponse>;
}

#[tonic::async_trait]
impl image_service_server::ImageService for Runtime {
    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        let name = request.into_inner().image.unwrap().image;
        let world = self.world();
        let image = world.images.get(&name).map(|wasm| {
            let kind = if *wasm { annotation::KIND_WASM } else { annotation::KIND_OCI };
            let annotations = HashMap::from([(annotation::IMAGE_KIND.to_owned(), kind.to_owned())]);
            Image {
                id: format!("sha256:{name}"),
                repo_tags: vec![name.clone()],
                spec: Some(ImageSpec { image: name, annotations, ..Default::default() }),
                ..Default::default()
            }
        });
        Ok(Response::new(ImageStatusResponse { image, info: HashMap::new() }))
    }

    async fn pull_image(
        &self,
        request: Request<PullImageRequest>,
    ) -> Result<Response<PullImageResponse>, Status> {
        let PullImageRequest { image, auth, .. } = request.into_inner();
        let (name, auth) = (image.unwrap().image, auth.unwrap_or_default());
        let mut world = self.world();
        world.calls.push(format!("pull_image {name} {}", auth.username));
        if world.passwords.get(&name).is_some_and(|password| *password != auth.password) {
            return Err(Status::permission_denied(format!("pull access denied for {name}")));
        }
        if let Some(words) = world.pull_errors.get(&name) {
            return Err(Status::not_found(words.clone()));
        }
        world.images.insert(name.clone(), name.contains("wasm"));
        Ok(Response::new(PullImageResponse { image_ref: format!("sha256:{name}") }))
    }

    missing! {
        list_images(ListImagesRequest) -> ListImagesResponse;
        remove_image(RemoveImageRequest) -> RemoveImageResponse;
        image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
        stream_images(StreamImagesRequest) -> Self::StreamImagesStream;
    }
    type StreamImagesStream = Streamed<StreamImagesResponse>;
}
