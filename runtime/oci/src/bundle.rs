//! From a [`ContainerSpec`] to the OCI runtime spec.

use crate::{
    Error, capability, cgroup,
    error::at,
    overlay, seccomp,
    spec::{ContainerSpec, Mount, Propagation, Resources, Seccomp},
    state::{self, Dir},
    users::{IdMapping, UserNamespace},
    wire::Laid,
};
use oci_spec::runtime::{
    Linux, LinuxCpu, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxHugepageLimit, LinuxIdMapping,
    LinuxIdMappingBuilder, LinuxMemory, LinuxNamespace, LinuxNamespaceType, LinuxPids, LinuxResources,
    Mount as OciMount, Process, Root, Spec, User, get_default_maskedpaths, get_default_readonly_paths,
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
/// that of [`overlay::laid`].
pub(crate) fn build(spec: &ContainerSpec, group: &str, dir: &Dir) -> Result<(Spec, Vec<Laid>), Error> {
    let invalid = |why: String| Err(Error::Invalid(why));
    if spec.args.is_empty() {
        return invalid("no command to run".to_owned());
    }
    if spec.namespaces.user.is_some() && dir.0.starts_with(state::STAGE) {
        return invalid(format!(
            "no user namespace can be had with a state directory below {}",
            state::STAGE
        ));
    }
    let (mounts, mut laid) = mounts(spec, group, dir)?;
    let namespaces = namespaces(spec, dir, &mut laid);
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
        .set_no_new_privileges(spec.no_new_privileges.then_some(true))
        .set_apparmor_profile(apparmor(spec)?);
    let mut root = Root::default();
    root.set_path(overlay::root(dir, spec.namespaces.user.is_some()))
        .set_readonly(Some(spec.readonly_rootfs));

    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces))
        .set_cgroups_path(Some(PathBuf::from(group)))
        .set_resources(Some(resources(&spec.resources, spec)?))
        .set_devices(Some(devices(spec)?))
        .set_seccomp(seccomp)
        .set_rootfs_propagation(shares.then(|| "shared".to_owned()))
        .set_sysctl((!spec.sysctls.is_empty()).then(|| spec.sysctls.clone().into_iter().collect()))
        .set_masked_paths(Some(paths(spec, &spec.masked_paths, get_default_maskedpaths)))
        .set_readonly_paths(Some(paths(spec, &spec.readonly_paths, get_default_readonly_paths)));

    // runc before 1.2 wants the maps of a namespace told even where it joins one.
    if let Some(user) = spec.namespaces.user.as_ref().filter(|_| spec.runtime.is_some()) {
        linux.set_uid_mappings(Some(maps(&user.mappings.uids)));
        linux.set_gid_mappings(Some(maps(&user.mappings.gids)));
    }

    let mut oci = Spec::default();
    // What is here is of no later one, and crun of Debian 12 knows none.
    oci.set_version("1.0.2".to_owned())
        .set_root(Some(root))
        .set_mounts(Some(mounts))
        .set_process(Some(process))
        .set_hostname(spec.hostname.clone().filter(|_| own_uts(spec)))
        .set_hooks(None)
        .set_annotations(None)
        .set_linux(Some(linux));
    Ok((oci, laid))
}

fn maps(mappings: &[IdMapping]) -> Vec<LinuxIdMapping> {
    let map = |mapping: &IdMapping| {
        let map = LinuxIdMappingBuilder::default().container_id(mapping.inside).host_id(mapping.outside);
        map.size(mapping.length).build().expect("every field of it has a value")
    };
    mappings.iter().map(map).collect()
}

/// The host's numbers of the container's user and group.
pub(crate) fn owner(spec: &ContainerSpec, uid: u32, gid: u32) -> Result<(u32, u32), Error> {
    let Some(UserNamespace { mappings, .. }) = &spec.namespaces.user else { return Ok((uid, gid)) };
    mappings
        .outside(uid, gid)
        .ok_or_else(|| Error::Invalid(format!("the user namespace has no user {uid} or no group {gid}")))
}

fn apparmor(spec: &ContainerSpec) -> Result<Option<String>, Error> {
    let Some(profile) = &spec.apparmor else { return Ok(None) };
    // Asked for in vain, it would be left out by the library.
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    if !enabled.is_ok_and(|enabled| enabled.starts_with('Y')) {
        let why =
            format!("AppArmor profile {profile:?} cannot be had: this machine's kernel has no AppArmor");
        return Err(Error::Invalid(why));
    }
    // Lines of `NAME (MODE)`; without securityfs the kernel says it later, and less clearly.
    let loaded = fs::read_to_string("/sys/kernel/security/apparmor/profiles");
    let is_it = |line: &str| line.rsplit_once(" (").is_some_and(|(name, _)| name == profile);
    if profile != "unconfined" && loaded.is_ok_and(|loaded| !loaded.lines().any(is_it)) {
        return Err(Error::Invalid(format!("AppArmor profile {profile:?} is not loaded on this machine")));
    }
    Ok(Some(profile.clone()))
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

fn namespaces(spec: &ContainerSpec, dir: &Dir, laid: &mut Vec<Laid>) -> Vec<LinuxNamespace> {
    use LinuxNamespaceType as Kind;
    let names = &spec.namespaces;
    let mut list = Vec::new();
    let mut add = |kind, path: Option<&PathBuf>, host: bool| {
        if !host {
            let mut path = path.cloned();
            // Root of a user namespace may not find them by itself: the pause process is hidden from it.
            if names.user.is_some() && kind != Kind::User {
                path = path.map(|source| lay(dir, true, laid, Laid::Host { source, mapped: false }));
            }
            let mut namespace = LinuxNamespace::default();
            namespace.set_typ(kind).set_path(path);
            list.push(namespace);
        }
    };
    add(Kind::Mount, None, false);
    let user = names.user.as_ref();
    add(Kind::User, user.map(|user| &user.path), user.is_none());
    add(Kind::Network, names.network.as_ref(), names.host_network);
    add(Kind::Ipc, names.ipc.as_ref(), names.host_ipc);
    add(Kind::Uts, names.uts.as_ref(), names.host_uts);
    add(Kind::Pid, names.pid.as_ref(), names.host_pid);
    // Version 1 shows a container its own groups by bind mounts; version 2 by a namespace.
    let v1 = matches!(cgroup::hierarchies(), cgroup::Hierarchies::V1(_));
    add(Kind::Cgroup, None, v1 || spec.privileged);
    list
}

/// Has the monitor lay out a source; where that will be.
fn lay(dir: &Dir, user: bool, laid: &mut Vec<Laid>, source: Laid) -> PathBuf {
    laid.push(source);
    overlay::laid(dir, user, laid.len() - 1)
}

fn resources(limits: &Resources, spec: &ContainerSpec) -> Result<LinuxResources, Error> {
    let mut resources = LinuxResources::default();
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(limits.cpu_shares)
        .set_quota(limits.cpu_quota.filter(|quota| *quota > 0))
        .set_period(limits.cpu_period)
        .set_cpus(limits.cpuset_cpus.clone())
        .set_mems(limits.cpuset_mems.clone());
    if cpu != LinuxCpu::default() {
        resources.set_cpu(Some(cpu));
    }
    if let Some(limit) = limits.memory_limit.filter(|limit| *limit > 0) {
        let mut memory = LinuxMemory::default();
        memory.set_limit(Some(limit)).set_swap(cgroup::swap(limits)?);
        resources.set_memory(Some(memory));
    }
    let pages = cgroup::hugepages(limits)?.map(|(size, limit)| {
        let mut pages = LinuxHugepageLimit::default();
        pages.set_page_size(size.clone()).set_limit(*limit as i64);
        pages
    });
    let pages: Vec<_> = pages.collect();
    if !pages.is_empty() {
        resources.set_hugepage_limits(Some(pages));
    }
    if !cgroup::unified(limits)?.is_empty() {
        resources.set_unified(Some(limits.unified.clone().into_iter().collect()));
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

fn mounts(spec: &ContainerSpec, group: &str, dir: &Dir) -> Result<(Vec<OciMount>, Vec<Laid>), Error> {
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
    ];
    // Of version 1 the library would mount what the container could write to, and hierarchies that it is not in.
    match cgroup::own(group) {
        None => {
            list.push(standard("cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "relatime", sys]))
        }
        Some(groups) => {
            let options = ["nosuid", "noexec", "nodev", "mode=755", "size=4k", "nr_inodes=64"];
            list.push(standard("tmpfs", "/sys/fs/cgroup", &options));
            for (controller, source) in groups {
                let at = Path::new("/sys/fs/cgroup").join(controller);
                list.push(mount("bind", &source, &at, &["bind", "nosuid", "noexec", "nodev", sys]));
            }
        }
    }
    let user = spec.namespaces.user.is_some();
    let mut laid = Vec::new();
    let mut lay = |source: Laid| lay(dir, user, &mut laid, source);
    for wanted in &spec.mounts {
        let mut made = match wanted {
            Mount::Tmpfs { destination, options } => {
                let options: Vec<&str> =
                    ["nosuid", "nodev"].into_iter().chain(options.iter().map(String::as_str)).collect();
                mount("tmpfs", Path::new("tmpfs"), destination, &options)
            }
            Mount::Bind { source, destination, readonly, recursive_readonly, propagation, mapped } => {
                let mut source = fs::canonicalize(source).map_err(at("find mount source", source))?;
                let access = match (readonly, recursive_readonly) {
                    (true, true) => "rro",
                    (true, false) => "ro",
                    (false, _) => "rw",
                };
                if user {
                    if *propagation == Propagation::Bidirectional {
                        let why = format!(
                            "{} cannot have mounts pass out of a user namespace",
                            destination.display()
                        );
                        return Err(Error::Invalid(why));
                    }
                    source = lay(Laid::Host { source, mapped: *mapped });
                }
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
