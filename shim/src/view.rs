//! Records in CRI's messages.

use wharf_cri::v1;

use crate::record::{Container, Sandbox, namespaces};

pub fn sandbox_status(sandbox: &Sandbox) -> v1::PodSandboxStatus {
    let config = sandbox.config();
    v1::PodSandboxStatus {
        id: sandbox.id.clone(),
        metadata: config.metadata.clone(),
        state: sandbox.state,
        created_at: sandbox.created_at,
        network: Some(v1::PodSandboxNetworkStatus {
            ip: sandbox.address.clone(),
            additional_ips: more_ips(sandbox),
        }),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace { options: namespaces(config).cloned() }),
        }),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: sandbox.handler.clone(),
    }
}

fn more_ips(sandbox: &Sandbox) -> Vec<v1::PodIp> {
    let all = sandbox.cni.iter().flat_map(|cni| &cni.more_addresses);
    all.map(|ip| v1::PodIp { ip: ip.clone() }).collect()
}

pub fn sandbox_item(sandbox: &Sandbox) -> v1::PodSandbox {
    let config = sandbox.config();
    v1::PodSandbox {
        id: sandbox.id.clone(),
        metadata: config.metadata.clone(),
        state: sandbox.state,
        created_at: sandbox.created_at,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: sandbox.handler.clone(),
    }
}

pub fn container_status(container: &Container) -> v1::ContainerStatus {
    let config = container.config();
    v1::ContainerStatus {
        id: container.id.clone(),
        metadata: config.metadata.clone(),
        state: container.state,
        created_at: container.created_at,
        started_at: container.started_at,
        finished_at: container.finished_at,
        exit_code: container.exit_code,
        image: config.image.clone(),
        image_ref: container.image_id.clone(),
        image_id: container.image_id.clone(),
        reason: container.reason.clone(),
        message: container.message.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: config.mounts.clone(),
        log_path: container.log_path.clone(),
        resources: config
            .linux
            .as_ref()
            .and_then(|linux| linux.resources.clone())
            .map(|linux| v1::ContainerResources { linux: Some(linux), windows: None }),
        user: container.user.clone().map(|linux| v1::ContainerUser { linux: Some(linux) }),
        ..Default::default()
    }
}

pub fn container_item(container: &Container) -> v1::Container {
    let config = container.config();
    v1::Container {
        id: container.id.clone(),
        pod_sandbox_id: container.sandbox.clone(),
        metadata: config.metadata.clone(),
        image: config.image.clone(),
        image_ref: container.image_id.clone(),
        image_id: container.image_id.clone(),
        state: container.state,
        created_at: container.created_at,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
    }
}

pub fn container_attributes(container: &Container) -> v1::ContainerAttributes {
    let config = container.config();
    v1::ContainerAttributes {
        id: container.id.clone(),
        metadata: config.metadata.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
    }
}

pub fn sandbox_attributes(sandbox: &Sandbox) -> v1::PodSandboxAttributes {
    let config = sandbox.config();
    v1::PodSandboxAttributes {
        id: sandbox.id.clone(),
        metadata: config.metadata.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
    }
}

pub fn image(image: &wharf_image::Image) -> v1::Image {
    let kind = (wharf_cri::annotation::IMAGE_KIND.to_owned(), image.kind.as_str().to_owned());
    v1::Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid: image.config.uid().map(|value| v1::Int64Value { value }),
        username: image.config.username().to_owned(),
        spec: Some(v1::ImageSpec {
            image: image.id.to_string(),
            annotations: image.annotations.clone().into_iter().chain([kind]).collect(),
            ..Default::default()
        }),
        pinned: false,
    }
}
