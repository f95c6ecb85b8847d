//! A runtime, driven as a kubelet drives it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tonic::transport::Channel;
use wharf_cri::v1::{
    self, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use wharf_tests::{CriServer, PATIENCE};

use super::images;

/// How long every container sleeps; nothing else here has this word in its command line.
pub const WORKLOAD: &str = "3000000";

pub struct Runtime {
    pub name: &'static str,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    handler: &'static str,
    logs: PathBuf,
}

/// A pod with one container that runs.
pub struct Pod {
    sandbox: String,
    container: String,
}

/// Milliseconds.
pub struct Cycle {
    /// Sandbox, container and start.
    pub start: f64,
    /// All, to the removal.
    pub whole: f64,
}

fn millis(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1000.0
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
            let status = self.runtime.clone().status(v1::StatusRequest::default()).await;
            let conditions = status.map(|status| status.into_inner().status.unwrap_or_default().conditions);
            match conditions {
                Ok(conditions) if conditions.iter().all(|condition| condition.status) => return Ok(()),
                last => ensure!(Instant::now() < until, "{} is not ready: {last:?}", self.name),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
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

    /// Makes a pod and starts its container.
    pub async fn pod(&self) -> anyhow::Result<Pod> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}-{}", self.name, NEXT.fetch_add(1, Ordering::Relaxed));
        let mut runtime = self.runtime.clone();
        let config = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: name.clone(),
                uid: name.clone(),
                namespace: "bench".to_owned(),
                attempt: 0,
            }),
            hostname: name.clone(),
            log_directory: self.logs.join(&name).display().to_string(),
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: format!("/wharf-bench-{}", std::process::id()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let request = v1::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: self.handler.to_owned(),
        };
        let sandbox = runtime.run_pod_sandbox(request).await.context("RunPodSandbox")?;
        let sandbox = sandbox.into_inner().pod_sandbox_id;
        let container = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
            image: Some(v1::ImageSpec { image: images::SHELL.to_owned(), ..Default::default() }),
            command: ["sleep", WORKLOAD].map(str::to_owned).to_vec(),
            log_path: "main.log".to_owned(),
            linux: Some(v1::LinuxContainerConfig::default()),
            ..Default::default()
        };
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(container),
            sandbox_config: Some(config),
        };
        let container = runtime.create_container(request).await.context("CreateContainer")?;
        let container = container.into_inner().container_id;
        let request = v1::StartContainerRequest { container_id: container.clone() };
        runtime.start_container(request).await.context("StartContainer")?;
        Ok(Pod { sandbox, container })
    }

    /// Ends a pod and removes it.
    pub async fn remove(&self, pod: &Pod) -> anyhow::Result<()> {
        let mut runtime = self.runtime.clone();
        let (sandbox, container) = (&pod.sandbox, &pod.container);
        let request = v1::StopContainerRequest { container_id: container.clone(), timeout: 0 };
        runtime.stop_container(request).await.context("StopContainer")?;
        let request = v1::RemoveContainerRequest { container_id: container.clone() };
        runtime.remove_container(request).await.context("RemoveContainer")?;
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() };
        runtime.stop_pod_sandbox(request).await.context("StopPodSandbox")?;
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox.clone() };
        runtime.remove_pod_sandbox(request).await.context("RemovePodSandbox")?;
        Ok(())
    }

    pub async fn cycle(&self) -> anyhow::Result<Cycle> {
        let began = Instant::now();
        let pod = self.pod().await?;
        let start = millis(began);
        self.remove(&pod).await?;
        Ok(Cycle { start, whole: millis(began) })
    }

    /// Runs `true` in a pod; the milliseconds that it took.
    pub async fn exec(&self, pod: &Pod) -> anyhow::Result<f64> {
        let request = v1::ExecSyncRequest {
            container_id: pod.container.clone(),
            cmd: vec!["true".to_owned()],
            timeout: 10,
        };
        let began = Instant::now();
        let answer = self.runtime.clone().exec_sync(request).await.context("ExecSync")?.into_inner();
        ensure!(answer.exit_code == 0, "true failed");
        Ok(millis(began))
    }
}
