//! A runtime, driven as a kubelet drives it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use tonic::transport::Channel;
use wharf_cri::v1::{
    self, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};

use crate::{CriServer, PATIENCE};

/// One runtime handler of a server of CRI.
#[derive(Clone)]
pub struct Runtime {
    pub name: &'static str,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    handler: &'static str,
    logs: PathBuf,
}

/// A pod with one container that runs.
#[derive(Clone, Debug)]
pub struct Pod {
    pub sandbox: String,
    pub container: String,
    log: PathBuf,
}

impl Pod {
    /// What its container wrote, without times and streams.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).map(|line| format!("{line}\n")).collect()
    }
}

impl Runtime {
    pub fn of(name: &'static str, server: &CriServer, handler: &'static str, dir: &Path) -> Self {
        let channel = wharf_cri::connect(&server.socket);
        Self {
            name,
            runtime: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel),
            handler,
            logs: dir.join("logs"),
        }
    }

    /// Waits until it says that it can run pods.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.conditions().await {
                Ok(conditions) if conditions.iter().all(|condition| condition.status) => return Ok(()),
                last => ensure!(Instant::now() < until, "{} is not ready: {last:?}", self.name),
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    pub async fn pull(&self, image: &str) -> anyhow::Result<()> {
        let image = Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
        self.images.clone().pull_image(v1::PullImageRequest { image, ..Default::default() }).await?;
        Ok(())
    }

    pub async fn forget(&self, image: &str) -> anyhow::Result<()> {
        let image = Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
        self.images.clone().remove_image(v1::RemoveImageRequest { image }).await?;
        Ok(())
    }

    /// Makes a pod and starts its container, configured as `with` says.
    pub async fn pod(
        &self,
        image: &str,
        command: &[&str],
        with: impl FnOnce(&mut v1::PodSandboxConfig, &mut v1::ContainerConfig),
    ) -> anyhow::Result<Pod> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}-{}", self.name, NEXT.fetch_add(1, Ordering::Relaxed));
        let mut runtime = self.runtime.clone();
        let mut config = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: name.clone(),
                uid: name.clone(),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.clone(),
            log_directory: self.logs.join(&name).display().to_string(),
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}", CriServer::cgroup()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut container = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
            image: Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() }),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            log_path: "main.log".to_owned(),
            linux: Some(v1::LinuxContainerConfig::default()),
            ..Default::default()
        };
        with(&mut config, &mut container);
        let request = v1::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: self.handler.to_owned(),
        };
        let sandbox = runtime.run_pod_sandbox(request).await.context("RunPodSandbox")?;
        let sandbox = sandbox.into_inner().pod_sandbox_id;
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(container),
            sandbox_config: Some(config),
        };
        let container = runtime.create_container(request).await.context("CreateContainer")?;
        let container = container.into_inner().container_id;
        let request = v1::StartContainerRequest { container_id: container.clone() };
        runtime.start_container(request).await.context("StartContainer")?;
        Ok(Pod { sandbox, container, log: self.logs.join(name).join("main.log") })
    }

    /// Ends a pod and removes it.
    pub async fn remove(&self, pod: &Pod) -> anyhow::Result<()> {
        let mut runtime = self.runtime.clone();
        self.stop(pod, 0).await?;
        let request = v1::RemoveContainerRequest { container_id: pod.container.clone() };
        runtime.remove_container(request).await.context("RemoveContainer")?;
        self.remove_sandbox(&pod.sandbox).await
    }

    pub async fn remove_sandbox(&self, sandbox: &str) -> anyhow::Result<()> {
        let mut runtime = self.runtime.clone();
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
        runtime.stop_pod_sandbox(request).await.context("StopPodSandbox")?;
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
        runtime.remove_pod_sandbox(request).await.context("RemovePodSandbox")?;
        Ok(())
    }

    /// Runs a program in a pod to its end.
    pub async fn exec(&self, pod: &Pod, command: &[&str]) -> anyhow::Result<v1::ExecSyncResponse> {
        let request = v1::ExecSyncRequest {
            container_id: pod.container.clone(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: 10,
        };
        Ok(self.runtime.clone().exec_sync(request).await.context("ExecSync")?.into_inner())
    }

    pub async fn stop(&self, pod: &Pod, seconds: i64) -> anyhow::Result<()> {
        let request = v1::StopContainerRequest { container_id: pod.container.clone(), timeout: seconds };
        self.runtime.clone().stop_container(request).await.context("StopContainer")?;
        Ok(())
    }

    pub async fn status(&self, pod: &Pod) -> anyhow::Result<v1::ContainerStatus> {
        let request = v1::ContainerStatusRequest { container_id: pod.container.clone(), verbose: false };
        let status = self.runtime.clone().container_status(request).await?.into_inner().status;
        status.context("the container has no status")
    }

    /// The addresses of a pod.
    pub async fn addresses(&self, pod: &Pod) -> anyhow::Result<Vec<String>> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.sandbox.clone(), verbose: false };
        let status = self.runtime.clone().pod_sandbox_status(request).await?.into_inner().status;
        let network = status.and_then(|status| status.network).context("the pod has no network")?;
        Ok([network.ip].into_iter().chain(network.additional_ips.into_iter().map(|ip| ip.ip)).collect())
    }

    /// Every sandbox that there is.
    pub async fn sandboxes(&self) -> anyhow::Result<Vec<v1::PodSandbox>> {
        let request = v1::ListPodSandboxRequest::default();
        Ok(self.runtime.clone().list_pod_sandbox(request).await?.into_inner().items)
    }

    /// Its conditions.
    pub async fn conditions(&self) -> anyhow::Result<Vec<v1::RuntimeCondition>> {
        let status = self.runtime.clone().status(v1::StatusRequest::default()).await?;
        Ok(status.into_inner().status.unwrap_or_default().conditions)
    }
}
