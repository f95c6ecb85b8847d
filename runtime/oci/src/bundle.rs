//! From a [`ContainerSpec`] to the OCI runtime spec.

use crate::{
    Error, capability, cgroup,
    error::at,
    seccomp,
    spec::{ContainerSpec, Mount, Propagation, Resources, Seccomp},
    state::Dir,
    wire::Laid,
};
use oci_spec::runtime::{
    Linux, LinuxCpu, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxMemory, LinuxNamespace,
    LinuxNamespaceType, LinuxPids, LinuxResources, Mount as OciMount, Process, Root, Spec, User,
    get_default_maskedpaths, get_default_readonly_paths,
};
use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Never mounted over: what these hide is the kernel's own.
const RESERVED: [&str; 2] = ["/", "/proc"];

/// The spec, and the sources of those bind mounts that the monitor must lay out first: their place in the list is
/// their place in [`Dir::laid`].
pub(crate) fn build(spec: &ContainerSpec, group: &str, dir: &Dir) -> Result<(Spec, Vec<Laid>), Error> {
    let invalid = |why: String| Err(Error::Invalid(why));
    if spec.args.is_empty() {
        return invalid("no command to run".to_owned());
    }
    let (mounts, laid) = mounts(spec, dir)?;
    let shares = laid.iter().any(|one| matches!(one, Laid::Shared(_)));
    let capabilities = capability::sets(&spec.capabilities, spec.privileged)?;
    let seccomp = match &spec.seccomp {
        _ if spec.privileged => None,
        Seccomp::Unconfined => None,
        Seccomp::RuntimeDefault => {
            Some(seccomp::default(capabilities.bounding().as_ref().expect("capability::sets fills all sets")))
        }
        Seccomp::Profile(json) => Some(seccomp::parse(json)?),
    };

    let mut user = User::default();
    user.set_uid(spec.user.uid)
        .set_gid(spec.user.gid)
        .set_additional_gids(Some(spec.user.additional_gids.clone()));
    let mut process = Process::default();
    process
        .set_terminal(Some(spec.terminal))
        .set_user(user)
        .set_args(Some(spec.args.clone()))
        .set_env(Some(environment(spec)))
        .set_cwd(cwd(spec))
        .set_capabilities(Some(capabilities))
        .set_rlimits(None)
        // Not `Some(false)`: the library would load seccomp only after the capability for it is gone.
        .set_no_new_privileges(spec.no_new_privileges.then_some(true));
    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs")).set_readonly(Some(spec.readonly_rootfs));

    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces(spec)))
        .set_cgroups_path(Some(PathBuf::from(group)))
        .set_resources(Some(resources(&spec.resources, spec)?))
        .set_devices(Some(devices(spec)?))
        .set_seccomp(seccomp)
        .set_rootfs_propagation(shares.then(|| "shared".to_owned()))
        .set_sysctl((!spec.sysctls.is_empty()).then(|| spec.sysctls.clone().into_iter().collect()))
        .set_masked_paths(Some(paths(spec, &spec.masked_paths, get_default_maskedpaths)))
        .set_readonly_paths(Some(paths(spec, &spec.readonly_paths, get_default_readonly_paths)));

    let mut oci = Spec::default();
    oci.set_version("1.2.0".to_owned())
        .set_root(Some(root))
        .set_mounts(Some(mounts))
        .set_process(Some(process))
        .set_hostname(spec.hostname.clone().filter(|_| own_uts(spec)))
        .set_hooks(None)
        .set_annotations(None)
        .set_linux(Some(linux));
    Ok((oci, laid))
}

fn own_uts(spec: &ContainerSpec) -> bool {
    spec.namespaces.uts.is_none() && !spec.namespaces.host_uts
}

pub(crate) fn cwd(spec: &ContainerSpec) -> PathBuf {
    if spec.cwd.as_os_str().is_empty() { PathBuf::from("/") } else { spec.cwd.clone() }
}

fn environment(spec: &ContainerSpec) -> Vec<String> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut env: Vec<String> = Vec::with_capacity(spec.env.len() + 2);
    let defaults = [PATH.to_owned()].into_iter().chain(spec.terminal.then(|| "TERM=xterm".to_owned()));
    for entry in defaults.chain(spec.env.iter().cloned()) {
        env.retain(|earlier| name(earlier) != name(&entry));
        env.push(entry);
    }
    env
}

fn paths(spec: &ContainerSpec, own: &Option<Vec<String>>, default: fn() -> Vec<String>) -> Vec<String> {
    match own {
        Some(paths) => paths.clone(),
        None if spec.privileged => Vec::new(),
        None => default(),
    }
}

fn namespaces(spec: &ContainerSpec) -> Vec<LinuxNamespace> {
    use LinuxNamespaceType as Kind;
    let names = &spec.namespaces;
    let mut list = Vec::new();
    let mut add = |kind, path: Option<&PathBuf>, host: bool| {
        if !host {
            let mut namespace = LinuxNamespace::default();
            namespace.set_typ(kind).set_path(path.cloned());
            list.push(namespace);
        }
    };
    add(Kind::Mount, None, false);
    add(Kind::Network, names.network.as_ref(), names.host_network);
    add(Kind::Ipc, names.ipc.as_ref(), names.host_ipc);
    add(Kind::Uts, names.uts.as_ref(), names.host_uts);
    add(Kind::Pid, names.pid.as_ref(), names.host_pid);
    // Version 1 shows a container its own groups by bind mounts; version 2 by a namespace.
    let v1 = matches!(cgroup::hierarchies(), cgroup::Hierarchies::V1(_));
    add(Kind::Cgroup, None, v1 || spec.privileged);
    list
}

fn resources(limits: &Resources, spec: &ContainerSpec) -> Result<LinuxResources, Error> {
    let mut resources = LinuxResources::default();
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(limits.cpu_shares)
        .set_quota(limits.cpu_quota)
        .set_period(limits.cpu_period)
        .set_cpus(limits.cpuset_cpus.clone())
        .set_mems(limits.cpuset_mems.clone());
    if cpu != LinuxCpu::default() {
        resources.set_cpu(Some(cpu));
    }
    if let Some(limit) = limits.memory_limit {
        let mut memory = LinuxMemory::default();
        memory.set_limit(Some(limit)).set_swap(cgroup::limits_swap().then_some(limit));
        resources.set_memory(Some(memory));
    }
    if let Some(limit) = limits.pids_limit {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        resources.set_pids(Some(pids));
    }
    let mut rules = vec![device_rule(spec.privileged, None, "rwm")];
    for device in spec.devices.iter().filter(|_| !spec.privileged) {
        let (kind, major, minor) = node(&device.host_path)?;
        rules.push(device_rule(true, Some((kind, major, minor)), &device.access));
    }
    resources.set_devices(Some(rules));
    Ok(resources)
}

fn device_rule(allow: bool, device: Option<(LinuxDeviceType, i64, i64)>, access: &str) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow).set_access(Some(access.to_owned()));
    match device {
        Some((kind, major, minor)) => {
            rule.set_typ(Some(kind)).set_major(Some(major)).set_minor(Some(minor));
        }
        None => {
            rule.set_typ(Some(LinuxDeviceType::A));
        }
    }
    rule
}

fn node(path: &Path) -> Result<(LinuxDeviceType, i64, i64), Error> {
    let meta = fs::metadata(path).map_err(at("look at device", path))?;
    let kind = match meta.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        _ => return Err(Error::Invalid(format!("{} is not a device", path.display()))),
    };
    let (major, minor) = (nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()));
    Ok((kind, major as i64, minor as i64))
}

fn devices(spec: &ContainerSpec) -> Result<Vec<LinuxDevice>, Error> {
    let mut list = Vec::new();
    let mut add = |host: &Path, path: &Path| -> Result<(), Error> {
        let (kind, major, minor) = node(host)?;
        let meta = fs::metadata(host).map_err(at("look at device", host))?;
        let mut device = LinuxDevice::default();
        device
            .set_path(path.to_owned())
            .set_typ(kind)
            .set_major(major)
            .set_minor(minor)
            .set_file_mode(Some(meta.mode() & 0o7777))
            .set_uid(Some(meta.uid()))
            .set_gid(Some(meta.gid()));
        list.push(device);
        Ok(())
    };
    for device in &spec.devices {
        add(&device.host_path, &device.container_path)?;
    }
    if spec.privileged {
        // The nodes of /dev itself; what lies in directories below is mostly not a device or made per container.
        for entry in fs::read_dir("/dev").map_err(at("read", Path::new("/dev")))?.flatten() {
            let is_node = entry.file_type().is_ok_and(|kind| kind.is_char_device() || kind.is_block_device());
            let own = matches!(entry.file_name().to_str(), Some("console" | "ptmx" | "tty") | None);
            if is_node && !own {
                add(&entry.path(), &entry.path())?;
            }
        }
    }
    Ok(list)
}

fn mount(kind: &str, source: &Path, destination: &Path, options: &[&str]) -> OciMount {
    let mut mount = OciMount::default();
    mount
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.to_owned()))
        .set_destination(destination.to_owned())
        .set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}

fn mounts(spec: &ContainerSpec, dir: &Dir) -> Result<(Vec<OciMount>, Vec<Laid>), Error> {
    let sys = if spec.privileged { "rw" } else { "ro" };
    let standard =
        |kind: &str, at: &str, options: &[&str]| mount(kind, Path::new(kind), Path::new(at), options);
    let mut list = vec![
        standard("proc", "/proc", &["nosuid", "noexec", "nodev"]),
        standard("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        standard(
            "devpts",
            "/dev/pts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        standard("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        standard("tmpfs", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        standard("sysfs", "/sys", &["nosuid", "noexec", "nodev", sys]),
        standard("cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "relatime", sys]),
    ];
    let mut laid = Vec::new();
    let mut lay = |source: Laid| {
        laid.push(source);
        dir.laid(laid.len() - 1)
    };
    for wanted in &spec.mounts {
        let mut made = match wanted {
            Mount::Tmpfs { destination, options } => {
                let options: Vec<&str> =
                    ["nosuid", "nodev"].into_iter().chain(options.iter().map(String::as_str)).collect();
                mount("tmpfs", Path::new("tmpfs"), destination, &options)
            }
            Mount::Bind { source, destination, readonly, recursive_readonly, propagation } => {
                let mut source = fs::canonicalize(source).map_err(at("find mount source", source))?;
                let access = match (readonly, recursive_readonly) {
                    (true, true) => "rro",
                    (true, false) => "ro",
                    (false, _) => "rw",
                };
                let propagation = match propagation {
                    Propagation::Private => "rprivate",
                    Propagation::HostToContainer => "rslave",
                    Propagation::Bidirectional => {
                        source = lay(Laid::Shared(source));
                        "rshared"
                    }
                };
                mount("bind", &source, destination, &["rbind", propagation, access])
            }
            Mount::Layers { lower, sub_path, destination } => {
                let source = lay(Laid::Layers { lower: lower.clone(), sub_path: sub_path.clone() });
                mount("bind", &source, destination, &["rbind", "rprivate", "ro"])
            }
        };
        let destination = made.destination().clone();
        if !destination.is_absolute() || RESERVED.iter().any(|reserved| destination == Path::new(reserved)) {
            return Err(Error::Invalid(format!("cannot mount at {}", destination.display())));
        }
        made.set_destination(destination.clone());
        list.retain(|usual| *usual.destination() != destination);
        list.push(made);
    }
    Ok((list, laid))
}
