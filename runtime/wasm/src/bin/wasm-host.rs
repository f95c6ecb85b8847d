//! The processes of this crate as a program of their own: what the tests start, and a way to run a wasm host without
//! the whole of `wharf`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(|name| name.to_str()) {
        Some("wasm-host") => wharf_wasm::host::main(args),
        Some("compile") => wharf_wasm::compile::main(args),
        _ => {
            eprintln!("usage: wasm-host wasm-host|compile ORDERS");
            ExitCode::from(2)
        }
    }
}
