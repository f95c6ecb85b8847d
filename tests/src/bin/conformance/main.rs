//! Other people's programs against ours. `cargo xtask conformance NAME` builds all and runs this.
//!
//! `conformance kubectl [AREA]...` takes a stock kubectl on a tour: [`areas`] says what is run and what has to come of
//! it, [`tour`] runs it and tells a line a command, [`skips`] knows what may be left out, and why.
//!
//! `conformance cri [--images FOLDER] [FOCUS]` runs [`cri`], Kubernetes' suite for container runtimes, against `wharf shim`;
//! `conformance crictl` takes a crictl on a tour of one, as `conformance kubectl` does, and `conformance kubelet`
//! has a stock kubelet run static pods on one.

mod areas;
mod cri;
mod guide;
mod pattern;
mod row;
mod skips;
mod tour;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};

/// The images of the suite for CRI, if they are where the project's shared files are.
const IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/images");

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("kubectl") => tour::take(&program("kubectl", "WHARF_KUBECTL")?, &arguments.collect::<Vec<_>>()),
        Some("cri") => {
            let mut arguments: Vec<String> = arguments.collect();
            let mut images = PathBuf::from(IMAGES);
            if let Some(at) = arguments.iter().position(|word| word == "--images") {
                images = arguments.get(at + 1).context("--images names a folder")?.into();
                arguments.drain(at..at + 2);
            }
            if arguments.len() > 1 {
                bail!("one focus at most, a regular expression; not {arguments:?}");
            }
            cri::run(&program("cri", "WHARF_CRITEST")?, &images, arguments.first().map(String::as_str))
        }
        Some("crictl") => cri::crictl::take(&program("crictl", "WHARF_CRICTL")?),
        Some("kubelet") => cri::kubelet::run(&program("kubelet", "WHARF_KUBELET")?),
        other => bail!("name what is to be tried, kubectl, cri, crictl or kubelet; not {other:?}"),
    }
}

fn program(name: &str, variable: &str) -> anyhow::Result<PathBuf> {
    let program = std::env::var_os(variable).with_context(|| {
        format!("{variable} is not set; `cargo xtask conformance {name}` builds what it names")
    })?;
    Ok(program.into())
}
