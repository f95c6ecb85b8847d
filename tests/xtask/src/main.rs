//! `cargo xtask`: everything a clone needs done, from a bare Debian on.
//!
//! It imports the standard library alone, so it builds before anything is installed. [`prepare`] then makes the machine
//! fit, [`build`] makes the programs and guests, and [`demo`], [`suite`] and [`bench`] use them. Each step is a phase
//! with its time ([`phase`]).

mod bench;
mod build;
mod command;
mod conformance;
mod demo;
mod forward;
mod go;
mod phase;
mod prepare;
mod python;
mod suite;
mod vm;

use std::process::ExitCode;

/// What went wrong, told to a person.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const HELP: &str = "\
Usage: cargo xtask COMMAND

  demo [--down]                      build all, start a cluster, run a wasm component and an OCI container on it
  test [--vm] [FILTER]               check the style, run the tests; with FILTER only the tests whose names have it;
                                     with --vm then the runtime's on cgroup v2, in a virtual machine
  bench NAME [--check] [--json FILE] measure; NAME is first-apply or cri. --check fails where a target is missed
  conformance kubectl [AREA]...      take a stock kubectl, built with Go, on a tour of a cluster
  conformance cri [--vm] [FOCUS]     run Kubernetes' suite for container runtimes, built with Go, against wharf shim;
                                     --images FOLDER has its images; with --vm on cgroup v2
  conformance crictl                 take a crictl, built with Go, on a tour of a wharf shim
  conformance kubelet                have a stock kubelet, built with Go, run static pods on a wharf shim
  build                              build what the others use
  help                               print this

  -v                                 show the output of every program that is run

CARGO_TARGET_DIR is honoured. Debian packages that are missing are installed, saying so.";

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let before = arguments.len();
    arguments.retain(|argument| argument != "-v" && argument != "--verbose");
    if arguments.len() < before {
        command::show_all();
    }
    let (name, rest) = match arguments.split_first() {
        Some((name, rest)) => (name.as_str(), rest),
        None => ("", &[][..]),
    };
    let done = match name {
        "demo" => demo::run(rest),
        "test" => suite::run(rest),
        "bench" => bench::run(rest),
        "build" => build::run(rest),
        "conformance" => conformance::run(rest),
        "help" | "--help" | "-h" => {
            println!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            eprintln!("{HELP}");
            return ExitCode::from(2);
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

/// Takes a flag out of the arguments, and tells whether it was there.
fn flag(arguments: &mut Vec<String>, name: &str) -> bool {
    let before = arguments.len();
    arguments.retain(|argument| argument != name);
    arguments.len() < before
}

/// Takes `--name VALUE` out of the arguments.
fn value(arguments: &mut Vec<String>, name: &str) -> Result<Option<String>> {
    let Some(at) = arguments.iter().position(|argument| argument == name) else { return Ok(None) };
    arguments.remove(at);
    if at == arguments.len() {
        return Err(format!("{name} needs a value").into());
    }
    Ok(Some(arguments.remove(at)))
}

/// Refuses what no command knows.
fn nothing_more(arguments: &[String]) -> Result<()> {
    match arguments {
        [] => Ok(()),
        more => Err(format!("not understood: {}; see `cargo xtask help`", more.join(" ")).into()),
    }
}
