//! What a machine must have before a cluster is started on it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::Error;

const NAMESPACES: [&str; 5] = ["net", "ipc", "uts", "pid", "mnt"];

/// Checks the machine.
///
/// # Errors
/// [`Error::NotRoot`] or [`Error::Kernel`], with what to do.
pub fn machine() -> Result<(), Error> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    judge(&Kernel::read())
}

/// What is known of a kernel.
struct Kernel {
    namespaces: BTreeSet<&'static str>,
    cgroups: bool,
    overlay: bool,
    /// `None` where the machine has no list of modules, so that a module not seen may still be compiled in.
    bridge: Option<bool>,
    veth: Option<bool>,
}

impl Kernel {
    fn read() -> Self {
        let namespaces = NAMESPACES.into_iter().filter(|kind| Path::new("/proc/self/ns").join(kind).exists());
        let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let device = |module: &str| {
            let there = Path::new("/sys/module").join(module).exists() || loads(module);
            (there || built_in().exists()).then_some(there)
        };
        Self {
            namespaces: namespaces.collect(),
            cgroups: mounts
                .lines()
                .any(|line| line.split(' ').nth(2).is_some_and(|t| t.starts_with("cgroup"))),
            overlay: filesystems.split_whitespace().any(|word| word == "overlay") || loads("overlay"),
            bridge: device("bridge"),
            veth: device("veth"),
        }
    }
}

/// Names the first thing that is missing.
fn judge(kernel: &Kernel) -> Result<(), Error> {
    let missing =
        |what: &str, remedy: &str| Err(Error::Kernel { missing: what.to_owned(), remedy: remedy.to_owned() });
    if let Some(kind) = NAMESPACES.iter().find(|kind| !kernel.namespaces.contains(*kind)) {
        return missing(&format!("no {kind} namespaces"), "use a kernel with CONFIG_NAMESPACES");
    }
    if !kernel.overlay {
        return missing("no overlayfs", "run `modprobe overlay`");
    }
    if !kernel.cgroups {
        return missing("no cgroups are mounted", "mount them at /sys/fs/cgroup, as systemd does");
    }
    for (module, there) in [("bridge", kernel.bridge), ("veth", kernel.veth)] {
        if there == Some(false) {
            return missing(&format!("no {module} device"), &format!("run `modprobe {module}`"));
        }
    }
    Ok(())
}

fn built_in() -> PathBuf {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Path::new("/lib/modules").join(release.trim()).join("modules.builtin")
}

/// Asks for a kernel module, and tells whether it is there now or built in.
fn loads(module: &str) -> bool {
    if fs::read_to_string(built_in()).is_ok_and(|list| list.contains(&format!("/{module}.ko"))) {
        return true;
    }
    let asked = std::process::Command::new("modprobe").arg("--quiet").arg(module).status();
    asked.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> Kernel {
        let namespaces = NAMESPACES.into_iter().collect();
        Kernel { namespaces, cgroups: true, overlay: true, bridge: Some(true), veth: None }
    }

    #[test]
    fn what_is_missing_is_named_with_what_to_do() {
        assert!(judge(&whole()).is_ok());
        let few = NAMESPACES.into_iter().filter(|kind| *kind != "pid").collect();
        let cases = [
            (Kernel { namespaces: few, ..whole() }, ["no pid namespaces", "CONFIG_NAMESPACES"]),
            (Kernel { overlay: false, ..whole() }, ["no overlayfs", "modprobe overlay"]),
            (Kernel { cgroups: false, ..whole() }, ["no cgroups are mounted", "/sys/fs/cgroup"]),
            (Kernel { bridge: Some(false), ..whole() }, ["no bridge device", "modprobe bridge"]),
            (Kernel { veth: Some(false), ..whole() }, ["no veth device", "modprobe veth"]),
        ];
        for (kernel, words) in cases {
            let said = judge(&kernel).expect_err("something is missing").to_string();
            assert!(
                said.starts_with("this kernel cannot run a cluster")
                    && words.iter().all(|w| said.contains(w)),
                "{said}"
            );
        }
    }

    #[test]
    fn this_machine_which_runs_the_tests_lacks_nothing() {
        judge(&Kernel::read()).expect("the kernel is whole");
    }
}
