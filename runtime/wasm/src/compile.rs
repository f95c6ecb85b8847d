//! The compiler process: a module comes in at standard input, compiled code leaves at standard output.
//!
//! The module is a stranger's, so the process that reads it has nothing to lose: limits on memory and processor time
//! set before the first byte is read, no privileges, no files but those two. What it made is trusted as far as the
//! process that asked for it says so, with a MAC; it never holds the key.

use crate::engine;
use nix::{
    sys::resource::{Resource, setrlimit},
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsString,
    io::{Read, Write},
    process::ExitCode,
};

/// The user that owns nothing.
const NOBODY: u32 = 65534;
/// Exit code of a compiler that found fault with the module; what is wrong is on standard error.
pub(crate) const REFUSED: i32 = 3;
/// The largest file that a compiler may write.
const LARGEST: u64 = 2 << 30;

/// What a compiler process is told on its command line, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    pub memory_bytes: u64,
    pub cpu_seconds: u64,
}

/// The entry of the compiler process. Call it before any thread or runtime exists; `args` are those after the
/// ones of [`crate::Config::compile_args`].
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let orders = args.into_iter().next().and_then(|orders| serde_json::from_str(orders.to_str()?).ok());
    let Some(orders) = orders else {
        eprintln!("this is started by the wasm host alone");
        return ExitCode::from(2);
    };
    if let Err(cause) = confine(&orders) {
        eprintln!("could not limit the compiler: {cause}");
        return ExitCode::FAILURE;
    }
    let mut module = Vec::new();
    if let Err(cause) = std::io::stdin().lock().read_to_end(&mut module) {
        eprintln!("could not read the module: {cause}");
        return ExitCode::FAILURE;
    }
    let compiled = engine::compiling().and_then(|engine| {
        let mut builder = wasmtime::CodeBuilder::new(&engine);
        builder.wasm_binary(&module[..], None)?;
        if is_core(&module) {
            builder.compile_module_serialized()
        } else {
            builder.compile_component_serialized()
        }
    });
    match compiled {
        Ok(code) => match std::io::stdout().lock().write_all(&code) {
            Ok(()) => ExitCode::SUCCESS,
            Err(cause) => {
                eprintln!("could not write the compiled code: {cause}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(REFUSED as u8)
        }
    }
}

/// Whether it is a core module, not a component: the layer field of the preamble tells (component-model Binary.md).
fn is_core(module: &[u8]) -> bool {
    module.get(6..8) == Some(&[0, 0])
}

fn confine(orders: &Orders) -> nix::Result<()> {
    let limits = [
        (Resource::RLIMIT_AS, orders.memory_bytes),
        (Resource::RLIMIT_CPU, orders.cpu_seconds),
        (Resource::RLIMIT_FSIZE, LARGEST),
        (Resource::RLIMIT_CORE, 0),
    ];
    for (resource, limit) in limits {
        setrlimit(resource, limit, limit)?;
    }
    if Uid::effective().is_root() {
        setgroups(&[])?;
        let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        setresgid(group, group, group)?;
        setresuid(user, user, user)?;
    }
    nix::sys::prctl::set_no_new_privs()
}
