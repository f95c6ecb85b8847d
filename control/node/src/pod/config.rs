//! A pod in CRI's words: the sandbox's and the containers' configurations. Pure but for the volumes' paths.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use k8s_openapi::api::core::v1::{Capabilities, Container, Pod, PodSpec, SeccompProfile, SecurityContext};
use wharf_cri::{annotation, v1};

use super::state::hash;
use crate::env::{Facts, expand};
use crate::images::{Image, Kind};
use crate::runtime::label;
use crate::volumes::{self, Ready};
use crate::{dns, logs, resources};

/// Why a container cannot be configured: what `CreateContainerConfigError` says.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Env(#[from] crate::env::Error),
    #[error(transparent)]
    Volume(#[from] volumes::Error),
    #[error("unable to find target container {0}")]
    NoTarget(String),
    #[error("volume \"{0}\" of a volumeMount is not among the pod's volumes")]
    NoVolume(String),
    #[error("container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})")]
    Root { pod: String, container: String },
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: \"{pod}\", container: {container})"
    )]
    UnknownUser { user: String, pod: String, container: String },
}

/// Names that every sandbox and container of the pod carries.
fn labels(pod: &Pod) -> HashMap<String, String> {
    let meta = &pod.metadata;
    [(label::POD_NAME, &meta.name), (label::POD_NAMESPACE, &meta.namespace), (label::POD_UID, &meta.uid)]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.clone().unwrap_or_default()))
        .collect()
}

fn spec_of(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
    pod.spec.as_ref().unwrap_or(&EMPTY)
}

/// The pod's host name; that of the node for a pod in the node's network.
pub fn hostname<'a>(pod: &'a Pod, node: &'a str) -> &'a str {
    let spec = spec_of(pod);
    if spec.host_network == Some(true) {
        return node;
    }
    let name = spec.hostname.as_deref().or(pod.metadata.name.as_deref()).unwrap_or_default();
    // The kernel takes 64 bytes with the final zero.
    let cut = name.get(..63).unwrap_or(name);
    cut.trim_end_matches(['-', '.'])
}

/// The sandbox's configuration.
pub fn sandbox(
    pod: &Pod,
    attempt: u32,
    logs: &Path,
    node: &str,
    resolver: &v1::DnsConfig,
    users: Option<&v1::UserNamespace>,
) -> v1::PodSandboxConfig {
    let spec = spec_of(pod);
    let meta = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let own: HashMap<String, String> = meta.labels.clone().unwrap_or_default().into_iter().collect();
    let mut annotations: HashMap<String, String> =
        meta.annotations.clone().unwrap_or_default().into_iter().collect();
    for container in &spec.containers {
        let tcp = |port: &&k8s_openapi::api::core::v1::ContainerPort| {
            port.protocol.as_deref().unwrap_or("TCP") == "TCP"
        };
        if let Some(port) = container.ports.iter().flatten().find(tcp) {
            annotations.insert(
                format!("{}{}", annotation::PORT_PREFIX, container.name),
                port.container_port.to_string(),
            );
        }
    }
    let host_network = spec.host_network == Some(true);
    let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
    let port_mappings = ports
        .filter(|port| !host_network && port.host_port.is_some_and(|port| port > 0))
        .map(|port| v1::PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => v1::Protocol::Udp,
                Some("SCTP") => v1::Protocol::Sctp,
                _ => v1::Protocol::Tcp,
            } as i32,
            container_port: port.container_port,
            host_port: port.host_port.unwrap_or_default(),
            host_ip: text(&port.host_ip),
        })
        .collect();
    let context = spec.security_context.as_ref();
    let privileged = spec
        .containers
        .iter()
        .any(|c| c.security_context.as_ref().is_some_and(|context| context.privileged == Some(true)));
    let sysctls = context.and_then(|context| context.sysctls.as_ref()).into_iter().flatten();
    let security = v1::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(spec, users)),
        run_as_user: context.and_then(|context| context.run_as_user).map(int),
        run_as_group: context
            .and_then(|context| context.run_as_group)
            .filter(|_| context.is_some_and(|c| c.run_as_user.is_some()))
            .map(int),
        supplemental_groups: groups(spec),
        supplemental_groups_policy: groups_policy(spec),
        privileged,
        seccomp: Some(seccomp(context.and_then(|context| context.seccomp_profile.as_ref()))),
        ..Default::default()
    };
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: text(&meta.name),
            uid: text(&meta.uid),
            namespace: text(&meta.namespace),
            attempt,
        }),
        hostname: hostname(pod, node).to_owned(),
        log_directory: logs::pod_directory(logs, &text(&meta.namespace), &text(&meta.name), &text(&meta.uid))
            .display()
            .to_string(),
        dns_config: Some(dns::for_pod(spec, resolver)),
        port_mappings,
        labels: own.into_iter().chain(labels(pod)).collect(),
        annotations,
        linux: Some(v1::LinuxPodSandboxConfig {
            // The runtime's own default parent: the shim owns the cgroups of what it runs.
            cgroup_parent: String::new(),
            security_context: Some(security),
            sysctls: sysctls.map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect(),
            overhead: None,
            resources: Some(resources::linux_pod(spec)),
        }),
        windows: None,
    }
}

/// Files on the node that are mounted into a container beside its volumes.
pub struct OwnFiles {
    /// `/etc/hosts`; none in the node's network.
    pub hosts: Option<String>,
    /// Where the termination message is written.
    pub termination: String,
}

/// What a container's configuration is made of.
pub struct Parts<'a> {
    pub facts: &'a Facts<'a>,
    pub container: &'a Container,
    pub attempt: u32,
    pub image: &'a Image,
    /// Resolved already; see [`crate::env::build`].
    pub env: &'a [(String, String)],
    pub volumes: &'a Ready,
    pub files: &'a OwnFiles,
    /// The pod's user namespace, if it has one of its own.
    pub users: Option<&'a v1::UserNamespace>,
    /// The id of the container whose process namespace it joins.
    pub target: Option<&'a str>,
}

/// One container's configuration.
///
/// # Errors
/// A mount that does not resolve, or a user that may not be root and is.
pub fn container(parts: &Parts<'_>) -> Result<v1::ContainerConfig, Error> {
    let Parts { facts, container, attempt, image, env, volumes, files, users, target } = *parts;
    let pod = facts.pod;
    let spec = spec_of(pod);
    let known: BTreeMap<&str, &str> =
        env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let text = |text: &String| expand(text, |name| known.get(name).copied());
    let mut security = security(spec, container, users);
    if let (Some(id), Some(options)) = (target, &mut security.namespace_options) {
        options.pid = v1::NamespaceMode::Target as i32;
        id.clone_into(&mut options.target_id);
    }
    check_user(pod, spec, container, image)?;
    let oci = image.kind == Kind::Oci;

    let mut mounts = Vec::new();
    for (nth, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let sub_path = match (&mount.sub_path_expr, &mount.sub_path) {
            (Some(expression), _) if !expression.is_empty() => text(expression),
            (_, Some(path)) => path.clone(),
            _ => String::new(),
        };
        let readonly = mount.read_only == Some(true);
        let bound = volumes
            .bind(&mount.name, &sub_path, readonly, &format!("{}/{nth}", container.name))
            .ok_or_else(|| Error::NoVolume(mount.name.clone()))??;
        mounts.push(v1::Mount {
            container_path: mount.mount_path.clone(),
            host_path: bound.host_path.display().to_string(),
            readonly: bound.readonly,
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => v1::MountPropagation::PropagationHostToContainer,
                Some("Bidirectional") => v1::MountPropagation::PropagationBidirectional,
                _ => v1::MountPropagation::PropagationPrivate,
            } as i32,
            recursive_read_only: mount.recursive_read_only.as_deref() == Some("Enabled"),
            ..Default::default()
        });
    }
    let taken = |path: &str, mounts: &[v1::Mount]| {
        mounts.iter().any(|mount| mount.container_path.trim_end_matches('/') == path)
    };
    if let Some(hosts) = files.hosts.as_ref().filter(|_| oci && !taken("/etc/hosts", &mounts)) {
        mounts.push(file_mount("/etc/hosts", hosts));
    }
    let message_path = container.termination_message_path.as_deref().unwrap_or(DEFAULT_TERMINATION_PATH);
    if oci && !message_path.is_empty() && !taken(message_path, &mounts) {
        mounts.push(file_mount(message_path, &files.termination));
    }

    if let Some(users) = users {
        for mount in &mut mounts {
            mount.uid_mappings.clone_from(&users.uids);
            mount.gid_mappings.clone_from(&users.gids);
        }
    }

    let grace = spec.termination_grace_period_seconds.unwrap_or(30).to_string();
    let policy = container.termination_message_policy.clone().unwrap_or_else(|| "File".to_owned());
    let annotations = [
        (label::CONTAINER_HASH, hash(container)),
        (label::RESTART_COUNT, attempt.to_string()),
        (label::TERMINATION_PATH, message_path.to_owned()),
        (label::TERMINATION_POLICY, policy),
        (label::POD_GRACE, grace),
    ];
    let mut labels = labels(pod);
    labels.insert(label::CONTAINER_NAME.to_owned(), container.name.clone());
    let name = container.image.clone().unwrap_or_default();
    Ok(v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: container.name.clone(), attempt }),
        image: Some(v1::ImageSpec {
            image: image.id.clone(),
            user_specified_image: name,
            ..Default::default()
        }),
        command: container.command.iter().flatten().map(text).collect(),
        args: container.args.iter().flatten().map(text).collect(),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: env
            .iter()
            .map(|(key, value)| v1::KeyValue { key: key.clone(), value: value.clone() })
            .collect(),
        mounts,
        labels,
        annotations: annotations.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        log_path: logs::relative(&container.name, attempt),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(resources::linux(container, spec, facts.allocatable)),
            security_context: Some(security),
        }),
        ..Default::default()
    })
}

/// Kubernetes' default for `terminationMessagePath`.
const DEFAULT_TERMINATION_PATH: &str = "/dev/termination-log";

fn file_mount(container_path: &str, host_path: &str) -> v1::Mount {
    v1::Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.to_owned(),
        ..Default::default()
    }
}

fn int(value: i64) -> v1::Int64Value {
    v1::Int64Value { value }
}

fn namespaces(spec: &PodSpec, users: Option<&v1::UserNamespace>) -> v1::NamespaceOption {
    use v1::NamespaceMode::{Container, Node, Pod};
    let shared = |host: Option<bool>, otherwise| if host == Some(true) { Node } else { otherwise };
    v1::NamespaceOption {
        network: shared(spec.host_network, Pod) as i32,
        pid: shared(spec.host_pid, if spec.share_process_namespace == Some(true) { Pod } else { Container })
            as i32,
        ipc: shared(spec.host_ipc, Pod) as i32,
        target_id: String::new(),
        userns_options: users.cloned(),
    }
}

fn groups(spec: &PodSpec) -> Vec<i64> {
    let Some(context) = &spec.security_context else { return Vec::new() };
    context.supplemental_groups.iter().flatten().copied().chain(context.fs_group).collect()
}

fn groups_policy(spec: &PodSpec) -> i32 {
    let policy =
        spec.security_context.as_ref().and_then(|context| context.supplemental_groups_policy.as_deref());
    (if policy == Some("Strict") {
        v1::SupplementalGroupsPolicy::Strict
    } else {
        v1::SupplementalGroupsPolicy::Merge
    }) as i32
}

/// Unset means the runtime's default profile: safe unless somebody says otherwise.
fn seccomp(profile: Option<&SeccompProfile>) -> v1::SecurityProfile {
    use v1::security_profile::ProfileType;
    let (kind, local) = match profile {
        Some(profile) if profile.type_ == "Unconfined" => (ProfileType::Unconfined, String::new()),
        Some(profile) if profile.type_ == "Localhost" => {
            (ProfileType::Localhost, profile.localhost_profile.clone().unwrap_or_default())
        }
        _ => (ProfileType::RuntimeDefault, String::new()),
    };
    v1::SecurityProfile { profile_type: kind as i32, localhost_ref: local }
}

/// What a container may not see of the kernel, unless it is privileged or asks for it all; the same lists as in other runtimes.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn security(
    spec: &PodSpec,
    container: &Container,
    users: Option<&v1::UserNamespace>,
) -> v1::LinuxContainerSecurityContext {
    let pod = spec.security_context.as_ref();
    let own = container.security_context.as_ref();
    let privileged = own.is_some_and(|own| own.privileged == Some(true));
    let user = own.and_then(|own| own.run_as_user).or(pod.and_then(|pod| pod.run_as_user));
    let group = own.and_then(|own| own.run_as_group).or(pod.and_then(|pod| pod.run_as_group));
    let open = privileged || own.is_some_and(|own| own.proc_mount.as_deref() == Some("Unmasked"));
    let paths =
        |list: &[&str]| if open { Vec::new() } else { list.iter().map(|path| (*path).to_owned()).collect() };
    let profile =
        own.and_then(|own| own.seccomp_profile.as_ref()).or(pod.and_then(|pod| pod.seccomp_profile.as_ref()));
    v1::LinuxContainerSecurityContext {
        capabilities: own.and_then(|own| own.capabilities.as_ref()).map(capabilities),
        privileged,
        namespace_options: Some(namespaces(spec, users)),
        run_as_user: user.map(int),
        run_as_group: group.map(int),
        readonly_rootfs: own.is_some_and(|own| own.read_only_root_filesystem == Some(true)),
        supplemental_groups: groups(spec),
        supplemental_groups_policy: groups_policy(spec),
        no_new_privs: own.is_some_and(|own| own.allow_privilege_escalation == Some(false)),
        masked_paths: paths(MASKED),
        readonly_paths: paths(READONLY),
        seccomp: Some(if privileged && profile.is_none() {
            v1::SecurityProfile {
                profile_type: v1::security_profile::ProfileType::Unconfined as i32,
                localhost_ref: String::new(),
            }
        } else {
            seccomp(profile)
        }),
        ..Default::default()
    }
}

fn capabilities(of: &Capabilities) -> v1::Capability {
    v1::Capability {
        add_capabilities: of.add.clone().unwrap_or_default(),
        drop_capabilities: of.drop.clone().unwrap_or_default(),
        add_ambient_capabilities: Vec::new(),
    }
}

/// `runAsNonRoot`, as far as the image tells.
fn check_user(pod: &Pod, spec: &PodSpec, container: &Container, image: &Image) -> Result<(), Error> {
    let context: Option<&SecurityContext> = container.security_context.as_ref();
    let pod_context = spec.security_context.as_ref();
    let strict =
        context.and_then(|own| own.run_as_non_root).or(pod_context.and_then(|pod| pod.run_as_non_root))
            == Some(true);
    if !strict || image.kind == Kind::Wasm {
        return Ok(()); // a wasm guest has no user
    }
    let meta = &pod.metadata;
    let name = format!(
        "{}_{}({})",
        meta.name.as_deref().unwrap_or_default(),
        meta.namespace.as_deref().unwrap_or_default(),
        meta.uid.as_deref().unwrap_or_default()
    );
    let asked = context.and_then(|own| own.run_as_user).or(pod_context.and_then(|pod| pod.run_as_user));
    match asked.or(image.uid) {
        Some(0) => Err(Error::Root { pod: name, container: container.name.clone() }),
        Some(_) => Ok(()),
        None if image.username.is_empty() => {
            Err(Error::Root { pod: name, container: container.name.clone() })
        }
        None => Err(Error::UnknownUser {
            user: image.username.clone(),
            pod: name,
            container: container.name.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "u-1", "labels": {"app": "web"}, "annotations": {"note": "x"}},
            "spec": {
                "hostname": "front",
                "securityContext": {"runAsUser": 1000, "fsGroup": 2000, "sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}]},
                "containers": [
                    {"name": "a", "image": "i:1", "command": ["/bin/$(NAME)"], "ports": [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 8080, "hostPort": 80}],
                     "securityContext": {"readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}},
                    {"name": "b", "image": "i:2", "securityContext": {"privileged": true, "runAsNonRoot": true, "runAsUser": 0}},
                ]
            }
        }))
        .unwrap()
    }

    #[test]
    fn the_sandbox_names_the_pod_and_its_wasm_ports() {
        let config = sandbox(&pod(), 2, Path::new("/logs"), "n", &v1::DnsConfig::default(), None);
        assert_eq!(config.log_directory, "/logs/ns_web_u-1");
        assert_eq!(config.hostname, "front");
        assert_eq!(config.labels[label::POD_UID], "u-1");
        assert_eq!(config.labels["app"], "web");
        assert_eq!(config.annotations["runtime.wharf.dev/port.a"], "8080");
        assert!(!config.annotations.contains_key("runtime.wharf.dev/port.b"));
        assert_eq!(config.port_mappings.len(), 1);
        let security = config.linux.unwrap().security_context.unwrap();
        assert_eq!(security.supplemental_groups, [2000]);
        assert_eq!(security.namespace_options.unwrap().pid, v1::NamespaceMode::Container as i32);
    }

    #[tokio::test]
    async fn containers_get_command_user_and_limits() {
        let pod = pod();
        let machine = resources::Machine { cpu_millis: 1000, memory: 1 << 30, storage: 0 };
        let facts = Facts {
            pod: &pod,
            node: "n",
            host_ip: "h",
            pod_ips: &[],
            api_server: ("a", 6443),
            allocatable: &machine,
        };
        let dir = tempfile::tempdir().unwrap();
        let objects = crate::objects::Objects::new(wharf_kit::api::Rest::new(crate::pod::nowhere()));
        let tokens = crate::tokens::Tokens::new(wharf_kit::api::Rest::new(crate::pod::nowhere()));
        let volumes = volumes::prepare(dir.path(), &facts, &objects, &tokens).await.unwrap();
        let image = Image { id: "sha256:1".into(), kind: Kind::Oci, uid: Some(5), username: String::new() };
        let files = OwnFiles { hosts: Some("/h".into()), termination: "/t".into() };
        let env = [("NAME".to_owned(), "sh".to_owned())];
        let make = |index: usize| {
            let container = &pod.spec.as_ref().unwrap().containers[index];
            super::container(&Parts {
                facts: &facts,
                container,
                attempt: 3,
                image: &image,
                env: &env,
                volumes: &volumes,
                files: &files,
                users: None,
                target: (index == 0).then_some("other"),
            })
        };
        let config = make(0).unwrap();
        assert_eq!(config.command, ["/bin/sh"]);
        assert_eq!(config.log_path, "a/3.log");
        assert_eq!(config.annotations[label::RESTART_COUNT], "3");
        assert_eq!(
            config.mounts.iter().map(|mount| mount.container_path.as_str()).collect::<Vec<_>>(),
            ["/etc/hosts", "/dev/termination-log"]
        );
        let security = config.linux.unwrap().security_context.unwrap();
        assert!(security.readonly_rootfs && security.no_new_privs && !security.masked_paths.is_empty());
        assert_eq!(security.run_as_user.unwrap().value, 1000);
        let namespaces = security.namespace_options.unwrap();
        assert_eq!((namespaces.pid, &*namespaces.target_id), (v1::NamespaceMode::Target as i32, "other"));
        assert!(matches!(make(1), Err(Error::Root { .. })));
    }
}
