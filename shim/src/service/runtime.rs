//! RuntimeService: sandboxes, containers, their events and streams.

use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use tonic::{Request, Response, Status, async_trait};
use wharf_cri::v1::{self, NamespaceMode, runtime_service_server::RuntimeService};

use super::Service;
use crate::error::{Error, chain};
use crate::info::{self, Info};
use crate::lists::{self, Streamed, pages};
use crate::record::network_mode;
use crate::streaming::{Call, MOST_PORTS, Target, Wants, process};
use crate::{metrics, stats, view};

type Answer<T> = Result<Response<T>, Status>;

fn ready(kind: &str, ready: Result<(), Error>) -> v1::RuntimeCondition {
    v1::RuntimeCondition {
        r#type: kind.to_owned(),
        status: ready.is_ok(),
        reason: if ready.is_ok() { String::new() } else { format!("{kind}Not") },
        message: ready.map_or_else(|error| chain(&error), |()| String::new()),
    }
}

/// The streams of an exec or attach, as CRI wants them to be asked for.
fn wants([stdin, stdout, stderr, tty]: [bool; 4]) -> Result<Wants, Error> {
    if tty && stderr {
        return Err(Error::Invalid("tty and stderr cannot both be true".to_owned()));
    }
    if !stdin && !stdout && !stderr {
        return Err(Error::Invalid("one of stdin, stdout or stderr must be set".to_owned()));
    }
    Ok(Wants { stdin, stdout, stderr, tty })
}

#[async_trait]
impl RuntimeService for Service {
    type StreamPodSandboxesStream = Streamed<v1::StreamPodSandboxesResponse>;
    type StreamContainersStream = Streamed<v1::StreamContainersResponse>;
    type StreamContainerStatsStream = Streamed<v1::StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Streamed<v1::StreamPodSandboxStatsResponse>;
    type StreamPodSandboxMetricsStream = Streamed<v1::StreamPodSandboxMetricsResponse>;
    type GetContainerEventsStream = Streamed<v1::ContainerEventResponse>;

    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        Ok(Response::new(v1::VersionResponse {
            version: "0.1.0".to_owned(), // of the kubelet's runtime API: always this
            runtime_name: "wharf".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: "v1".to_owned(),
        }))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        let network = self.shim.network_ready().await;
        let conditions = vec![ready("RuntimeReady", Ok(())), ready("NetworkReady", network)];
        Ok(Response::new(v1::StatusResponse {
            status: Some(v1::RuntimeStatus { conditions }),
            runtime_handlers: self.shim.handlers.list(),
            features: Some(v1::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
            }),
            info: if request.into_inner().verbose { info::runtime(&self.shim) } else { Info::new() },
        }))
    }

    async fn update_runtime_config(
        &self,
        request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answer<v1::UpdateRuntimeConfigResponse> {
        let network = request.into_inner().runtime_config.and_then(|config| config.network_config);
        if let Some(network) = network.filter(|network| !network.pod_cidr.is_empty()) {
            let range = network
                .pod_cidr
                .parse()
                .map_err(|error: wharf_sandbox::Error| Error::Invalid(error.to_string()))?;
            self.shim.set_range(range).await?;
        }
        Ok(Response::new(v1::UpdateRuntimeConfigResponse {}))
    }

    async fn runtime_config(
        &self,
        _: Request<v1::RuntimeConfigRequest>,
    ) -> Answer<v1::RuntimeConfigResponse> {
        let cgroup_driver = v1::CgroupDriver::Cgroupfs.into();
        Ok(Response::new(v1::RuntimeConfigResponse {
            linux: Some(v1::LinuxRuntimeConfiguration { cgroup_driver }),
        }))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Answer<v1::RunPodSandboxResponse> {
        let request = request.into_inner();
        let config = request.config.unwrap_or_default();
        let pod_sandbox_id = self.shim.run_sandbox(config, request.runtime_handler).await?;
        Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        self.shim.stop_sandbox(&request.into_inner().pod_sandbox_id).await?;
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        self.shim.remove_sandbox(&request.into_inner().pod_sandbox_id).await?;
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        let request = request.into_inner();
        let sandbox = self.shim.sandbox(&request.pod_sandbox_id)?;
        let containers = self.shim.containers_of(&sandbox.id);
        Ok(Response::new(v1::PodSandboxStatusResponse {
            status: Some(view::sandbox_status(&sandbox)),
            containers_statuses: containers.iter().map(view::container_status).collect(),
            info: if request.verbose { info::sandbox(&self.shim, &sandbox) } else { Info::new() },
            timestamp: crate::shim::now(),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        let items = lists::sandboxes(&self.shim, request.into_inner().filter);
        Ok(Response::new(v1::ListPodSandboxResponse { items }))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        let request = request.into_inner();
        let config = request.config.unwrap_or_default();
        let container_id = self.shim.create_container(&request.pod_sandbox_id, config).await?;
        Ok(Response::new(v1::CreateContainerResponse { container_id }))
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Answer<v1::StartContainerResponse> {
        self.shim.start_container(&request.into_inner().container_id).await?;
        Ok(Response::new(v1::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Answer<v1::StopContainerResponse> {
        let request = request.into_inner();
        let grace = Duration::from_secs(request.timeout.max(0).unsigned_abs());
        self.shim.stop_container(&request.container_id, grace).await?;
        Ok(Response::new(v1::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        self.shim.remove_container(&request.into_inner().container_id).await?;
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        let request = request.into_inner();
        let container = self.shim.container(&request.container_id)?.get();
        Ok(Response::new(v1::ContainerStatusResponse {
            status: Some(view::container_status(&container)),
            info: if request.verbose { info::container(&self.shim, &container) } else { Info::new() },
        }))
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Answer<v1::ListContainersResponse> {
        let containers = lists::containers(&self.shim, request.into_inner().filter);
        Ok(Response::new(v1::ListContainersResponse { containers }))
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        self.shim.reopen_log(&request.into_inner().container_id).await?;
        Ok(Response::new(v1::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Answer<v1::ExecSyncResponse> {
        let request = request.into_inner();
        let limit = u64::try_from(request.timeout).ok().filter(|seconds| *seconds > 0);
        let limit = limit.map(Duration::from_secs);
        let output = self.shim.exec_sync(&request.container_id, request.cmd, limit).await?;
        Ok(Response::new(v1::ExecSyncResponse {
            stdout: output.stdout,
            stderr: output.stderr,
            exit_code: output.code,
        }))
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        let request = request.into_inner();
        let wants = wants([request.stdin, request.stdout, request.stderr, request.tty])?;
        let (id, _) = self.shim.running(&request.container_id)?;
        let shim = self.shim.clone();
        let join = move |session| process::exec(shim, id, request.cmd, wants, session).boxed();
        let url = self.shim.streaming.url(Call::Exec(wants, Box::new(join))).map_err(Error::from)?;
        Ok(Response::new(v1::ExecResponse { url }))
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Answer<v1::AttachResponse> {
        let request = request.into_inner();
        let wants = wants([request.stdin, request.stdout, request.stderr, request.tty])?;
        let (id, _) = self.shim.running(&request.container_id)?;
        let shim = self.shim.clone();
        let join = move |session| process::attach(shim, id, wants, session).boxed();
        let url = self.shim.streaming.url(Call::Attach(wants, Box::new(join))).map_err(Error::from)?;
        Ok(Response::new(v1::AttachResponse { url }))
    }

    async fn port_forward(
        &self,
        request: Request<v1::PortForwardRequest>,
    ) -> Answer<v1::PortForwardResponse> {
        let request = request.into_inner();
        let sandbox = self.shim.sandbox(&request.pod_sandbox_id)?;
        let ports = request.port.iter().map(|port| u16::try_from(*port).ok().filter(|port| *port > 0));
        let ports = ports.collect::<Option<Vec<_>>>().filter(|ports| ports.len() <= MOST_PORTS);
        let ports = ports
            .ok_or_else(|| Error::Invalid(format!("ports are 1 to 65535, at most {MOST_PORTS} of them")))?;
        let target = if network_mode(sandbox.config()) == NamespaceMode::Node {
            Target::Address(std::net::Ipv4Addr::LOCALHOST)
        } else if sandbox.netns.is_empty() {
            let none = || Error::Invalid(format!("pod sandbox {} has no address any more", sandbox.id));
            Target::Address(sandbox.address.parse().map_err(|_| none())?)
        } else {
            Target::Namespace(sandbox.netns.clone().into())
        };
        let url = self.shim.streaming.url(Call::PortForward(target, ports)).map_err(Error::from)?;
        Ok(Response::new(v1::PortForwardResponse { url }))
    }

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Answer<v1::ContainerStatsResponse> {
        let container = self.shim.container(&request.into_inner().container_id)?.get();
        let stats = Some(stats::container(&self.shim, &container).await?);
        Ok(Response::new(v1::ContainerStatsResponse { stats }))
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Answer<v1::ListContainerStatsResponse> {
        let stats = lists::container_stats(&self.shim, request.into_inner().filter).await;
        Ok(Response::new(v1::ListContainerStatsResponse { stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Answer<v1::PodSandboxStatsResponse> {
        let sandbox = self.shim.sandbox(&request.into_inner().pod_sandbox_id)?;
        let stats = stats::sandboxes(&self.shim, &[&*sandbox]).await.pop();
        Ok(Response::new(v1::PodSandboxStatsResponse { stats }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answer<v1::ListPodSandboxStatsResponse> {
        let stats = lists::sandbox_stats(&self.shim, request.into_inner().filter).await;
        Ok(Response::new(v1::ListPodSandboxStatsResponse { stats }))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Answer<v1::ListMetricDescriptorsResponse> {
        Ok(Response::new(v1::ListMetricDescriptorsResponse { descriptors: metrics::descriptors() }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Answer<v1::ListPodSandboxMetricsResponse> {
        let pod_metrics = lists::sandbox_metrics(&self.shim).await;
        Ok(Response::new(v1::ListPodSandboxMetricsResponse { pod_metrics }))
    }

    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        Ok(Response::new(self.shim.events.listen().map(Ok).boxed()))
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        self.shim.update_container(&request.container_id, request.linux.unwrap_or_default()).await?;
        Ok(Response::new(v1::UpdateContainerResourcesResponse {}))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<v1::UpdatePodSandboxResourcesResponse> {
        let request = request.into_inner();
        self.shim.update_sandbox(&request.pod_sandbox_id, request.overhead, request.resources)?;
        Ok(Response::new(v1::UpdatePodSandboxResourcesResponse {}))
    }

    /// A container is written down by CRIU, which is no part of this runtime: libcontainer can call it, and nothing
    /// could restore what it wrote, since CRI has no call for that.
    async fn checkpoint_container(
        &self,
        _: Request<v1::CheckpointContainerRequest>,
    ) -> Answer<v1::CheckpointContainerResponse> {
        Err(Status::unimplemented("containers cannot be checkpointed: this runtime has no CRIU"))
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let all = lists::sandboxes(&self.shim, request.into_inner().filter);
        let message = |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes };
        Ok(Response::new(pages(all, message)))
    }

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let all = lists::containers(&self.shim, request.into_inner().filter);
        let message = |containers| v1::StreamContainersResponse { containers };
        Ok(Response::new(pages(all, message)))
    }

    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let all = lists::container_stats(&self.shim, request.into_inner().filter).await;
        let message = |container_stats| v1::StreamContainerStatsResponse { container_stats };
        Ok(Response::new(pages(all, message)))
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let all = lists::sandbox_stats(&self.shim, request.into_inner().filter).await;
        let message = |pod_sandbox_stats| v1::StreamPodSandboxStatsResponse { pod_sandbox_stats };
        Ok(Response::new(pages(all, message)))
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let all = lists::sandbox_metrics(&self.shim).await;
        let message = |pod_sandbox_metrics| v1::StreamPodSandboxMetricsResponse { pod_sandbox_metrics };
        Ok(Response::new(pages(all, message)))
    }
}
