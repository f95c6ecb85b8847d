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
    kernel(Path::new("/"), |module| {
        let asked = std::process::Command::new("modprobe").arg("--quiet").arg(module).status();
        asked.is_ok_and(|status| status.success())
    })
}

/// Checks the kernel by its files below `root`. `load` asks for a module, and tells whether it is there now.
fn kernel(root: &Path, load: impl Fn(&str) -> bool) -> Result<(), Error> {
    let missing =
        |what: &str, remedy: &str| Err(Error::Kernel { missing: what.to_owned(), remedy: remedy.to_owned() });
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let release = read("proc/sys/kernel/osrelease");
    // Empty on a machine without module information, which is taken at its word.
    let built_in = read(&format!("lib/modules/{}/modules.builtin", release.trim()));
    let has = |module: &str| built_in.contains(&format!("/{module}.ko")) || load(module);

    for kind in ["net", "ipc", "uts", "pid", "mnt"] {
        if fs::symlink_metadata(root.join("proc/self/ns").join(kind)).is_err() {
            return missing(&format!("no {kind} namespaces"), "use a kernel with CONFIG_NAMESPACES");
        }
    }
    if !read("proc/filesystems").split_whitespace().any(|word| word == "overlay") && !has("overlay") {
        return missing("no overlayfs", "run `modprobe overlay`");
    }
    let mounts = read("proc/self/mounts");
    if !mounts.lines().any(|line| line.split(' ').nth(2).is_some_and(|kind| kind.starts_with("cgroup"))) {
        return missing("no cgroups are mounted", "mount them at /sys/fs/cgroup, as systemd does");
    }
    for module in ["bridge", "veth"] {
        // Compiled in or loaded, the kernel lists it.
        if !root.join("sys/module").join(module).exists() && !has(module) && !built_in.is_empty() {
            return missing(&format!("no {module} device"), &format!("run `modprobe {module}`"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The files of a kernel that has everything, overlay and bridge compiled in and veth loaded.
    const FILES: [(&str, &str); 9] = [
        ("proc/sys/kernel/osrelease", "6.1.0\n"),
        ("proc/self/ns/net", ""),
        ("proc/self/ns/ipc", ""),
        ("proc/self/ns/uts", ""),
        ("proc/self/ns/pid", ""),
        ("proc/self/ns/mnt", ""),
        ("proc/self/mounts", "/dev/vda / ext4 rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"),
        (
            "lib/modules/6.1.0/modules.builtin",
            "kernel/fs/overlayfs/overlay.ko\nkernel/net/bridge/bridge.ko\n",
        ),
        ("sys/module/veth", ""),
    ];

    /// What is said of a kernel in which one of the files has other words (none: it is not there).
    fn said(changed: &str, words: Option<&str>) -> Result<(), String> {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in FILES {
            let text = if path == changed { words } else { Some(text) };
            let Some(text) = text else { continue };
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a file is in a directory")).expect("a directory");
            fs::write(path, text).expect("a file");
        }
        kernel(root.path(), |_| false).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_missing_is_named_with_what_to_do() {
        assert_eq!(said("", None), Ok(()));
        let modules = "lib/modules/6.1.0/modules.builtin";
        assert!(
            said(modules, None).is_err_and(|words| words.contains("overlay")),
            "nothing else tells of it"
        );
        for (path, words, parts) in [
            ("proc/self/ns/pid", None, ["no pid namespaces", "CONFIG_NAMESPACES"]),
            (modules, Some("kernel/net/bridge/bridge.ko"), ["no overlayfs", "modprobe overlay"]),
            (
                "proc/self/mounts",
                Some("/dev/vda / ext4 rw 0 0"),
                ["no cgroups are mounted", "/sys/fs/cgroup"],
            ),
            (modules, Some("kernel/fs/overlay.ko"), ["no bridge device", "modprobe bridge"]),
            ("sys/module/veth", None, ["no veth device", "modprobe veth"]),
        ] {
            let said = said(path, words).expect_err("something is missing");
            let (what, remedy) = (parts[0], parts[1]);
            assert_eq!(said.split(&[':', ';'][..]).nth(1).map(str::trim), Some(what), "{said}");
            assert!(said.contains(remedy), "{said}");
        }
    }
}
