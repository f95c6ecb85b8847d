//! What a machine must have before a cluster is started on it.

use std::fs;
use std::path::Path;

use crate::error::Error;

/// Checks the machine.
///
/// # Errors
/// [`Error::NotRoot`] or [`Error::Kernel`], with what to do.
pub fn machine() -> Result<(), Error> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let cgroups =
        mounts.lines().filter_map(|line| line.split(' ').nth(2)).any(|kind| kind.starts_with("cgroup"));
    let namespaces =
        ["net", "ipc", "uts", "pid", "mnt"].map(|kind| (kind, Path::new("/proc/self/ns").join(kind)));
    let missing_namespace = namespaces.iter().find(|(_, path)| !path.exists());
    if let Some((kind, _)) = missing_namespace {
        return Err(missing(&format!("no {kind} namespaces"), "use a kernel with CONFIG_NAMESPACES"));
    }
    if !has_word(&filesystems, "overlay") && !loads("overlay") {
        return Err(missing("no overlayfs", "run `modprobe overlay`"));
    }
    if !cgroups {
        return Err(missing("no cgroups are mounted", "mount them at /sys/fs/cgroup, as systemd does"));
    }
    for module in ["bridge", "veth"] {
        // Compiled in or loaded, the kernel lists it; a machine without module information is taken at its word.
        if !Path::new("/sys/module").join(module).exists() && !loads(module) && has_modules() {
            return Err(missing(&format!("no {module} device"), &format!("run `modprobe {module}`")));
        }
    }
    Ok(())
}

fn missing(what: &str, remedy: &str) -> Error {
    Error::Kernel { missing: what.to_owned(), remedy: remedy.to_owned() }
}

fn has_word(text: &str, word: &str) -> bool {
    text.split_whitespace().any(|w| w == word)
}

fn has_modules() -> bool {
    Path::new("/lib/modules").join(release()).join("modules.builtin").exists()
}

fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Asks for a kernel module, and tells whether it is there now or built in.
fn loads(module: &str) -> bool {
    let builtin = Path::new("/lib/modules").join(release()).join("modules.builtin");
    if fs::read_to_string(builtin).is_ok_and(|list| list.contains(&format!("/{module}.ko"))) {
        return true;
    }
    let asked = std::process::Command::new("modprobe").arg("--quiet").arg(module).status();
    asked.is_ok_and(|status| status.success())
}
