//! The programs and guests under test: named in the environment by xtask, else beside the test program.

use std::path::{Path, PathBuf};

/// The `wharf` program.
pub fn wharf() -> PathBuf {
    found("WHARF_BIN", target().join("debug/wharf"))
}

/// The `wctl` program.
pub fn wctl() -> PathBuf {
    found("WCTL_BIN", target().join("debug/wctl"))
}

/// A component of `sdk/examples` or `tests/guests`, such as `greeter`.
pub fn guest(name: &str) -> PathBuf {
    there(guests().join(format!("{name}.wasm")))
}

/// The same as a core module of WASI 0.1.
pub fn core_guest(name: &str) -> PathBuf {
    there(guests().join(format!("../../wasm32-wasip1/guest/{name}.wasm")))
}

fn guests() -> PathBuf {
    let dir = std::env::var_os("WHARF_GUESTS").map(PathBuf::from);
    dir.unwrap_or_else(|| target().join("guests/wasm32-wasip2/guest"))
}

/// A shell and its tools in one static program, from Debian's busybox-static.
pub fn busybox() -> PathBuf {
    there("/bin/busybox".into())
}

/// The static HTTP server of `sdk/examples/clock`.
pub fn clock() -> PathBuf {
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    found("WHARF_CLOCK", target().join("guests").join(host).join("guest/clock"))
}

/// The manifests that the demo applies.
pub fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk/examples/manifests")
}

fn found(variable: &str, otherwise: PathBuf) -> PathBuf {
    there(std::env::var_os(variable).map_or(otherwise, PathBuf::from))
}

fn there(path: PathBuf) -> PathBuf {
    assert!(path.is_file(), "{} is not built; `cargo xtask build` builds it", path.display());
    path
}

/// Cargo's target directory: test programs are in `debug/deps` of it, others in `debug`.
fn target() -> PathBuf {
    let own = std::env::current_exe().expect("a process knows its program");
    let debug = own.ancestors().find(|dir| dir.ends_with("debug")).expect("cargo puts programs into debug");
    debug.parent().expect("debug is in the target directory").to_owned()
}
