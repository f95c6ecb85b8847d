//! Makes the machine fit for the work: Debian packages and Rust's targets.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use crate::{Result, build::Places, command};

/// A Debian package, why it is needed, and how to see that it is there where dpkg is not.
struct Package {
    name: &'static str,
    why: &'static str,
    shown_by: &'static [&'static str],
}

const PACKAGES: &[Package] = &[
    Package {
        name: "gcc",
        why: "links programs and compiles ring's and zstd's C",
        shown_by: &["cc", "--version"],
    },
    Package { name: "libc6-dev", why: "the C library to link with", shown_by: &["cc", "--version"] },
    Package { name: "pkg-config", why: "finds libseccomp", shown_by: &["pkg-config", "--version"] },
    Package {
        name: "libseccomp-dev",
        why: "libcontainer filters system calls with it",
        shown_by: &["pkg-config", "--exists", "libseccomp"],
    },
    Package { name: "protobuf-compiler", why: "reads the CRI's .proto", shown_by: &["protoc", "--version"] },
    Package {
        name: "libprotobuf-dev",
        why: "has the .proto files that etcd's include",
        shown_by: &["pkg-config", "--exists", "protobuf"],
    },
];

/// What the tests use beside that.
const FOR_TESTS: &[Package] = &[
    Package {
        name: "iproute2",
        why: "the tests count links, routes and rules with ip",
        shown_by: &["ip", "-V"],
    },
    Package {
        name: "nftables",
        why: "the tests count firewall rules with nft",
        shown_by: &["nft", "--version"],
    },
    Package {
        name: "etcd-server",
        why: "the tests of the store on etcd start members of their own",
        shown_by: &["etcd", "--version"],
    },
    Package {
        name: "busybox-static",
        why: "the tests run containers that have a shell, and start virtual machines with it",
        shown_by: &["busybox", "true"],
    },
    Package {
        name: "curl",
        why: "the tests run it in a pod, as a client of the cluster",
        shown_by: &["curl", "--version"],
    },
];

/// Other runtimes and networks, which ours works with in the tests, and is measured beside by `bench cri`.
const PEERS: &[Package] = &[
    Package {
        name: "runc",
        why: "the tests run containers by its runtime handler; containerd's run by it",
        shown_by: &["runc", "--version"],
    },
    Package {
        name: "crun",
        why: "the tests run containers by its runtime handler; containerd's run by it",
        shown_by: &["crun", "--version"],
    },
    Package {
        name: "containernetworking-plugins",
        why: "the tests have CNI make the networks of pods; containerd always has",
        shown_by: &["/usr/lib/cni/bridge", "--version"],
    },
    Package { name: "iptables", why: "CNI plugins call it", shown_by: &["iptables", "--version"] },
];

/// What the tests in a virtual machine use beside that.
const FOR_VM: &[Package] = &[
    Package {
        name: "qemu-system-x86",
        why: "runs another kernel",
        shown_by: &["qemu-system-x86_64", "--version"],
    },
    Package {
        name: "apparmor",
        why: "that kernel has AppArmor, whose profiles critest loads",
        shown_by: &["/sbin/apparmor_parser", "--version"],
    },
    Package { name: "sudo", why: "critest loads them by it", shown_by: &["sudo", "--version"] },
];

/// What `bench cri` needs beside those.
const CONTAINERD: &[Package] =
    &[Package { name: "containerd", why: "the peer", shown_by: &["containerd", "--version"] }];

/// For components, and for core modules.
const TARGETS: [&str; 2] = ["wasm32-wasip2", "wasm32-wasip1"];

/// For building, and where `tests` is set for the tests.
pub fn run(places: &Places, tests: bool) -> Result<()> {
    packages(PACKAGES.iter().chain(FOR_TESTS.iter().chain(PEERS).filter(|_| tests)))?;
    targets(places)
}

/// For the test of the Python client.
pub fn for_python() -> Result<()> {
    packages(&[Package {
        name: "python3-venv",
        why: "the tests drive the Python client",
        shown_by: &["/usr/bin/python3", "-c", "import ensurepip, venv"],
    }])
}

/// For the comparison with containerd.
pub fn for_containerd() -> Result<()> {
    packages(CONTAINERD.iter().chain(PEERS))
}

/// For the tests in a virtual machine.
pub fn for_vm() -> Result<()> {
    packages(FOR_VM)
}

/// Whether this process is root's.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Clusters need root; `what` is the command that was typed.
pub fn need_root(what: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    Err(format!(
        "a cluster needs root, for its namespaces and cgroups; run\n  sudo -E env PATH=\"$PATH\" cargo xtask {what}"
    )
    .into())
}

fn packages<'a>(wanted: impl IntoIterator<Item = &'a Package>) -> Result<()> {
    let missing: Vec<&Package> = wanted.into_iter().filter(|package| !is_there(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for Package { name, why, .. } in &missing {
        println!("    missing: {name} ({why})");
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    let by_hand = format!("apt-get update && apt-get install -y --no-install-recommends {}", names.join(" "));
    if !succeeds(&["apt-get", "--version"]) {
        return Err(format!("these are needed; on Debian they come by\n  {by_hand}").into());
    }
    if !is_root() {
        return Err(format!("these are needed; as root, run\n  {by_hand}").into());
    }
    println!("    installing {}", names.join(" "));
    // A fresh image has no package lists, an old one lists what is gone: then, and only then, they are fetched.
    if command::listen(&mut install(&names))?.success {
        return Ok(());
    }
    let updated = command::quiet(apt().arg("update"));
    updated
        .and_then(|_| command::quiet(&mut install(&names)))
        .map(drop)
        .map_err(|error| format!("{error}; the packages come by\n  {by_hand}").into())
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    apt
}

fn install(names: &[&str]) -> Command {
    let mut command = apt();
    command.args(["install", "-y", "--no-install-recommends"]).args(names);
    command
}

fn is_there(package: &Package) -> bool {
    let query = Command::new("dpkg-query").args(["-W", "-f=${Status}", package.name]).output();
    match query {
        Ok(answer) if String::from_utf8_lossy(&answer.stdout).contains("ok installed") => true,
        // Another package, or another system, may give the same.
        _ => succeeds(package.shown_by) && package.name != "libc6-dev",
    }
}

fn succeeds(words: &[&str]) -> bool {
    Command::new(words[0]).args(&words[1..]).output().is_ok_and(|output| output.status.success())
}

fn targets(places: &Places) -> Result<()> {
    let sysroot = command::output(places.rustc().args(["--print", "sysroot"]))?;
    for target in TARGETS {
        let there = || Path::new(sysroot.trim()).join("lib/rustlib").join(target).join("lib").is_dir();
        if there() {
            continue;
        }
        // rust-toolchain.toml names it, so newer rustups have fetched it already.
        println!("    missing: Rust's target {target}; asking rustup for it");
        let _ =
            command::listen(Command::new("rustup").args(["target", "add", target]).current_dir(&places.root));
        if !there() {
            return Err(format!(
                "Rust's target {target} is not there; `rustup target add {target}` in this folder installs it"
            )
            .into());
        }
    }
    Ok(())
}
