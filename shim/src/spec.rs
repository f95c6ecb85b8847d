//! CRI's configs, in the words of the runtime that is to follow them.

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use wharf_cri::annotation::PORT_PREFIX;
use wharf_cri::v1::{
    self, ContainerConfig, KeyValue, LinuxContainerSecurityContext, LinuxContainerUser, MountPropagation,
    NamespaceMode, PodSandboxConfig, SupplementalGroupsPolicy, security_profile::ProfileType,
};
use wharf_image::{Image, WasmModule};
use wharf_oci::{
    Capabilities, IdMappings, Mount, Namespaces, Pause, Propagation, Resources, Seccomp, UserNamespace,
};
use wharf_sandbox::{PortMapping, Protocol};

use crate::error::Error;
use crate::record::{Container, Sandbox};
use crate::user_namespace;
use crate::users::Identity;

/// The ports of the node that lead to the pod; none with the node's network, where the pod's ports are the node's.
///
/// # Errors
/// [`Error::Invalid`] if there can be no such port.
pub fn port_mappings(sandbox: &Sandbox) -> Result<Vec<PortMapping>, Error> {
    if sandbox.on_node_network() {
        return Ok(Vec::new());
    }
    let port = |number: i32| {
        let port = u16::try_from(number).ok().filter(|port| *port > 0);
        port.ok_or_else(|| Error::Invalid(format!("{number} is no port; ports are 1 to 65535")))
    };
    let address = |text: &str| match text.parse() {
        _ if text.is_empty() => Ok(None),
        Ok(address) if address == Ipv4Addr::UNSPECIFIED => Ok(None),
        Ok(address) => Ok(Some(address)),
        Err(_) => Err(Error::Invalid(format!("host IP {text:?} is no IPv4 address"))),
    };
    let mapped = sandbox.config().port_mappings.iter().filter(|mapping| mapping.host_port != 0);
    let mapped = mapped.map(|mapping| {
        Ok(PortMapping {
            protocol: match mapping.protocol() {
                v1::Protocol::Tcp => Protocol::Tcp,
                v1::Protocol::Udp => Protocol::Udp,
                v1::Protocol::Sctp => Protocol::Sctp,
            },
            host_ip: address(&mapping.host_ip)?,
            host_port: port(mapping.host_port)?,
            port: port(mapping.container_port)?,
        })
    });
    mapped.collect()
}

/// Where a container's log goes: the sandbox's directory and the container's path; empty if it asks for none.
pub fn log_path(sandbox: &PodSandboxConfig, config: &ContainerConfig) -> String {
    if sandbox.log_directory.is_empty() || config.log_path.is_empty() {
        return String::new();
    }
    Path::new(&sandbox.log_directory).join(&config.log_path).display().to_string()
}

/// The signal that asks a container to end: the config's, else the image's, else SIGTERM.
pub fn stop_signal(config: &ContainerConfig, image: &Image) -> i32 {
    let text = match config.stop_signal() {
        v1::Signal::RuntimeDefault => image.config.stop_signal.clone().unwrap_or_default(),
        signal => signal.as_str_name().to_owned(),
    };
    parse_signal(&text).unwrap_or(nix::libc::SIGTERM)
}

/// `SIGQUIT`, `QUIT`, `3`, `SIGRTMIN+3`.
fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset: i32 = if offset.is_empty() {
            0
        } else {
            offset.trim_start_matches(['+', 'P']).trim_start_matches("LUS").parse().ok()?
        };
        return (0..=30).contains(&offset).then(|| nix::libc::SIGRTMIN() + offset);
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

/// The command line: the config's command replaces the image's entry point and its arguments, the config's
/// arguments replace the image's arguments.
fn command(config: &ContainerConfig, image: &Image) -> Vec<String> {
    let from_image = &image.config;
    let mut command =
        if config.command.is_empty() { from_image.entrypoint.clone() } else { config.command.clone() };
    if config.args.is_empty() && config.command.is_empty() {
        command.extend(from_image.cmd.iter().cloned());
    } else {
        command.extend(config.args.iter().cloned());
    }
    command
}

/// The image's environment with the config's over it, in order.
fn environment(config: &ContainerConfig, image: &Image) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::new();
    let from_image = image.config.env.iter().filter_map(|pair| pair.split_once('='));
    let from_config = config.envs.iter().map(|KeyValue { key, value }| (key.as_str(), value.as_str()));
    for (key, value) in from_image.chain(from_config) {
        match env.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => value.clone_into(old),
            None => env.push((key.to_owned(), value.to_owned())),
        }
    }
    env
}

fn linux_resources(config: &ContainerConfig) -> v1::LinuxContainerResources {
    config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default()
}

/// CRI's limits, in which 0 and nothing say nothing.
pub fn resources(asked: v1::LinuxContainerResources) -> Resources {
    let said = |value: i64| (value != 0).then_some(value);
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    Resources {
        cpu_shares: positive(asked.cpu_shares),
        cpu_quota: said(asked.cpu_quota),
        cpu_period: positive(asked.cpu_period),
        memory_limit: said(asked.memory_limit_in_bytes),
        memory_swap_limit: said(asked.memory_swap_limit_in_bytes),
        hugepages: asked.hugepage_limits.into_iter().map(|pages| (pages.page_size, pages.limit)).collect(),
        unified: asked.unified.into_iter().collect(),
        cpuset_cpus: Some(asked.cpuset_cpus).filter(|cpus| !cpus.is_empty()),
        cpuset_mems: Some(asked.cpuset_mems).filter(|mems| !mems.is_empty()),
        pids_limit: None,
    }
}

/// What the wasm host is told; `mounts` are those of the config.
pub fn wasm(
    record: &Container,
    sandbox: &Sandbox,
    image: &Image,
    module: &WasmModule,
    mounts: Vec<wharf_wasm::Mount>,
) -> wharf_wasm::ContainerSpec {
    let config = record.config();
    let name = config.metadata.as_ref().map(|m| m.name.as_str()).unwrap_or_default();
    let mut args = command(config, image);
    if args.is_empty() {
        args.push(module.name.clone());
    }
    let port = sandbox.config().annotations.get(&format!("{PORT_PREFIX}{name}"));
    let resources = linux_resources(config);
    let cpu = (resources.cpu_quota > 0 && resources.cpu_period > 0).then(|| wharf_wasm::CpuQuota {
        quota_micros: resources.cpu_quota.unsigned_abs(),
        period_micros: resources.cpu_period.unsigned_abs(),
    });
    wharf_wasm::ContainerSpec {
        id: record.id.clone(),
        module: module.path.clone(),
        digest: module.digest.to_string(),
        args,
        env: environment(config, image),
        mounts,
        // Another pod's address is not in the host's namespace: its service is started with a socket.
        address: sandbox.address.parse().ok().filter(|_| sandbox.netns.is_empty()),
        port: port.and_then(|port| port.parse().ok()),
        memory_limit: u64::try_from(resources.memory_limit_in_bytes).ok().filter(|limit| *limit > 0),
        cpu,
        log_path: (!record.log_path.is_empty()).then(|| record.log_path.clone().into()),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        terminal: config.tty,
        pod: sandbox.id.clone(),
    }
}

/// Who the container runs as, as `user:group` for the image's files to resolve.
pub fn user(config: &ContainerConfig, image: &Image) -> String {
    let context = security(config);
    let group = context.run_as_group.as_ref().map(|group| format!(":{}", group.value)).unwrap_or_default();
    match (&context.run_as_user, context.run_as_username.as_str()) {
        (Some(uid), _) => format!("{}{group}", uid.value),
        (None, "") => image.config.user.clone(),
        (None, name) => format!("{name}{group}"),
    }
}

/// Who the container runs as, of whom the image's files say `user`, with the groups that the config adds.
pub fn identity(config: &ContainerConfig, user: Identity) -> LinuxContainerUser {
    let context = security(config);
    // The primary one is among them, as container runtimes have it.
    let mut groups = vec![i64::from(user.gid)];
    groups.extend(&context.supplemental_groups);
    if context.supplemental_groups_policy() == SupplementalGroupsPolicy::Merge {
        groups.extend(user.groups.into_iter().map(i64::from));
    }
    groups.sort_unstable();
    groups.dedup();
    LinuxContainerUser { uid: user.uid.into(), gid: user.gid.into(), supplemental_groups: groups }
}

fn security(config: &ContainerConfig) -> LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

/// The container whose process namespace the config asks for.
pub fn target(config: &ContainerConfig) -> Option<String> {
    let options = security(config).namespace_options?;
    (options.pid() == NamespaceMode::Target).then_some(options.target_id)
}

/// What the OCI runtime is told, but for the root file system. `target`: the process namespace that it shares; `layers`
/// gives those of an image.
///
/// # Errors
/// [`Error::Invalid`] if the config contradicts itself.
pub fn oci(
    record: &Container,
    sandbox: &Sandbox,
    image: &Image,
    pause: &Pause,
    target: Option<&OwnedFd>,
    pod_dir: &Path,
    layers: impl Fn(&str) -> Result<Vec<PathBuf>, Error>,
) -> Result<wharf_oci::ContainerSpec, Error> {
    let config = record.config();
    let context = security(config);
    if context.run_as_group.is_some() && context.run_as_user.is_none() && context.run_as_username.is_empty() {
        return Err(Error::Invalid("runAsGroup needs runAsUser".to_owned()));
    }
    let args = command(config, image);
    if args.is_empty() {
        return Err(Error::Invalid(
            "no command is specified, neither by the image nor by the pod".to_owned(),
        ));
    }
    let asked = linux_resources(config);
    let user = record.user.clone().unwrap_or_default();
    let id = |id: i64| {
        u32::try_from(id).map_err(|_| Error::Invalid(format!("{id} is no user's or group's number")))
    };
    let groups = user.supplemental_groups.into_iter().map(id).collect::<Result<_, _>>()?;
    let capabilities = context.capabilities.clone().unwrap_or_default();
    let options = context.namespace_options.as_ref();
    user_namespace::check(sandbox.config(), options.and_then(|options| options.userns_options.as_ref()))?;
    let users = user_namespace::mappings(sandbox.config())?;
    if users.is_some() && context.privileged {
        return Err(Error::Invalid("a privileged container has the node's user namespace".to_owned()));
    }
    let mut mounts = pod_mounts(config, pod_dir);
    for mount in &config.mounts {
        mounts.push(match &mount.image {
            Some(image) => image_volume(mount, layers(&image.image_ref)?)?,
            None => bind(mount, user_namespace::mapped(mount, users.as_ref())?)?,
        });
    }
    let cwd = if config.working_dir.is_empty() { &image.config.working_dir } else { &config.working_dir };
    Ok(wharf_oci::ContainerSpec {
        id: record.id.clone(),
        args,
        env: environment(config, image).into_iter().map(|(key, value)| format!("{key}={value}")).collect(),
        cwd: cwd.into(),
        user: wharf_oci::User { uid: id(user.uid)?, gid: id(user.gid)?, additional_gids: groups },
        mounts,
        namespaces: join(sandbox, &context, pause, target, users),
        oom_score_adj: i32::try_from(asked.oom_score_adj).ok().filter(|adj| *adj != 0),
        resources: resources(asked),
        capabilities: Capabilities {
            add: capabilities.add_capabilities,
            drop: capabilities.drop_capabilities,
        },
        privileged: context.privileged,
        no_new_privileges: context.no_new_privs,
        seccomp: seccomp(&context)?,
        apparmor: apparmor(&context),
        masked_paths: (!context.masked_paths.is_empty()).then(|| context.masked_paths.clone()),
        readonly_paths: (!context.readonly_paths.is_empty()).then(|| context.readonly_paths.clone()),
        readonly_rootfs: context.readonly_rootfs,
        devices: config
            .devices
            .iter()
            .map(|device| wharf_oci::Device {
                host_path: device.host_path.clone().into(),
                container_path: device.container_path.clone().into(),
                access: device.permissions.clone(),
            })
            .collect(),
        terminal: config.tty,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        log_path: (!record.log_path.is_empty()).then(|| record.log_path.clone().into()),
        cgroup_parent: cgroup_parent(sandbox.config()),
        ..wharf_oci::ContainerSpec::default()
    })
}

fn cgroup_parent(config: &PodSandboxConfig) -> Option<String> {
    let parent = &config.linux.as_ref()?.cgroup_parent;
    (!parent.is_empty()).then(|| parent.clone())
}

fn join(
    sandbox: &Sandbox,
    context: &LinuxContainerSecurityContext,
    pause: &Pause,
    target: Option<&OwnedFd>,
    users: Option<IdMappings>,
) -> Namespaces {
    let options = context.namespace_options.clone().unwrap_or_default();
    let host_network = sandbox.on_node_network();
    let host_ipc = options.ipc() == NamespaceMode::Node;
    Namespaces {
        network: (!sandbox.netns.is_empty()).then(|| sandbox.netns.clone().into()),
        ipc: if host_ipc { None } else { Some(pause.namespace("ipc")) },
        uts: if host_network { None } else { Some(pause.namespace("uts")) },
        pid: match (target, options.pid()) {
            (Some(target), _) => {
                Some(format!("/proc/{}/fd/{}", std::process::id(), target.as_raw_fd()).into())
            }
            (None, NamespaceMode::Pod) => Some(pause.namespace("pid")),
            (None, _) => None,
        },
        user: users.map(|mappings| UserNamespace { path: pause.namespace("user"), mappings }),
        host_network,
        host_ipc,
        host_uts: host_network,
        host_pid: options.pid() == NamespaceMode::Node,
    }
}

fn seccomp(context: &LinuxContainerSecurityContext) -> Result<Seccomp, Error> {
    let Some(profile) = context.seccomp.as_ref().filter(|_| !context.privileged) else {
        return Ok(Seccomp::Unconfined);
    };
    match profile.profile_type() {
        ProfileType::Unconfined => Ok(Seccomp::Unconfined),
        ProfileType::RuntimeDefault => Ok(Seccomp::RuntimeDefault),
        ProfileType::Localhost => fs::read_to_string(&profile.localhost_ref)
            .map(Seccomp::Profile)
            .map_err(|error| Error::Invalid(format!("seccomp profile {}: {error}", profile.localhost_ref))),
    }
}

/// The profile that is named. There is none for `RuntimeDefault`: what this runtime gives by default, it gives everywhere.
fn apparmor(context: &LinuxContainerSecurityContext) -> Option<String> {
    #[expect(deprecated, reason = "kubelets before 1.30 say it so")]
    let old = context.apparmor_profile.strip_prefix("localhost/");
    let named = match &context.apparmor {
        Some(profile) => {
            (profile.profile_type() == ProfileType::Localhost).then_some(profile.localhost_ref.as_str())
        }
        None => old,
    };
    named.filter(|_| !context.privileged).map(|name| name.trim_start_matches("localhost/").to_owned())
}

fn image_volume(mount: &v1::Mount, lower: Vec<PathBuf>) -> Result<Mount, Error> {
    let invalid =
        |why: &str| Err(Error::Invalid(format!("the image volume at {} {why}", mount.container_path)));
    if !mount.readonly {
        return invalid("must be read-only");
    }
    if !mount.host_path.is_empty() {
        return invalid("has a host path too");
    }
    Ok(Mount::Layers {
        lower,
        sub_path: mount.image_sub_path.clone().into(),
        destination: mount.container_path.clone().into(),
    })
}

fn bind(mount: &v1::Mount, mapped: bool) -> Result<Mount, Error> {
    if mount.host_path.is_empty() {
        let why = format!("the mount at {} has neither a host path nor an image", mount.container_path);
        return Err(Error::Invalid(why));
    }
    let propagation = match mount.propagation() {
        MountPropagation::PropagationPrivate => Propagation::Private,
        MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    };
    if mount.recursive_read_only && (!mount.readonly || propagation != Propagation::Private) {
        let why = "a recursively read-only mount must be read-only and have private propagation";
        return Err(Error::Invalid(why.to_owned()));
    }
    Ok(Mount::Bind {
        source: mount.host_path.clone().into(),
        destination: mount.container_path.clone().into(),
        readonly: mount.readonly,
        recursive_readonly: mount.recursive_read_only,
        propagation,
        mapped,
    })
}

/// What every container of the pod sees, unless it mounts something there itself.
fn pod_mounts(config: &ContainerConfig, pod_dir: &Path) -> Vec<Mount> {
    let own = |path: &str| config.mounts.iter().any(|mount| mount.container_path == path);
    let shared = [("/etc/resolv.conf", "resolv.conf"), ("/etc/hostname", "hostname"), ("/dev/shm", "shm")];
    shared
        .into_iter()
        .filter(|(path, file)| !own(path) && pod_dir.join(file).exists())
        .map(|(path, file)| Mount::Bind {
            source: pod_dir.join(file),
            destination: path.into(),
            readonly: false,
            recursive_readonly: false,
            propagation: Propagation::Private,
            mapped: false,
        })
        .collect()
}

/// Makes the files that the containers of an OCI pod share: /etc/resolv.conf, /etc/hostname and /dev/shm. Of a pod with a
/// user namespace they belong to `owner`, a user and a group.
///
/// # Errors
/// [`Error::Start`] if they cannot be written.
pub fn sandbox_files(dir: &Path, config: &PodSandboxConfig, owner: Option<(u32, u32)>) -> Result<(), Error> {
    use nix::mount::{MsFlags, mount};
    let failed = |what: &str| {
        let what = format!("make {what} of the pod");
        move |cause| Error::Start { what, cause }
    };
    let write = |name: &str, text: String| {
        let path = dir.join(name);
        let written = fs::write(&path, text).and_then(|()| match owner {
            Some((uid, gid)) => std::os::unix::fs::chown(&path, Some(uid), Some(gid)),
            None => Ok(()),
        });
        written.map_err(failed(name))
    };
    fs::create_dir_all(dir.join("shm")).map_err(failed("the files"))?;
    if let Some(dns) = &config.dns_config {
        let mut text = String::new();
        for server in &dns.servers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        for (word, values) in [("search", &dns.searches), ("options", &dns.options)] {
            if !values.is_empty() {
                text.push_str(&format!("{word} {}\n", values.join(" ")));
            }
        }
        write("resolv.conf", text)?;
    }
    if !config.hostname.is_empty() {
        write("hostname", format!("{}\n", config.hostname))?;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // 64 MiB is what container runtimes give.
    let (uid, gid) = owner.unwrap_or_default();
    let options = format!("mode=1777,size=64m,uid={uid},gid={gid}");
    mount(Some("shm"), &dir.join("shm"), Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(std::io::Error::from)
        .map_err(failed("/dev/shm"))
}

/// Undoes [`sandbox_files`]. A repeat changes nothing.
///
/// # Errors
/// [`Error::Record`] if something stays.
pub fn remove_sandbox_files(dir: &Path) -> Result<(), Error> {
    let _ = nix::mount::umount2(&dir.join("shm"), nix::mount::MntFlags::MNT_DETACH);
    match fs::remove_dir_all(dir) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Record { what: format!("the end of {}", dir.display()), cause })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_as_images_write_them() {
        for (text, number) in
            [("SIGQUIT", 3), ("quit", 3), ("15", 15), ("SIGRTMIN+3", nix::libc::SIGRTMIN() + 3)]
        {
            assert_eq!(parse_signal(text), Some(number), "{text}");
        }
        for text in ["", "0", "65", "SIGNONE", "SIGRTMIN+99"] {
            assert_eq!(parse_signal(text), None, "{text}");
        }
    }
}
