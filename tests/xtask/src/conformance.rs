//! `cargo xtask conformance NAME`: other people's programs, built from pinned sources, against a cluster of ours.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use crate::build::{self, Places};
use crate::phase::Phases;
use crate::{Result, go, prepare};

const NAMES: [&str; 1] = ["kubectl"];
/// A kubectl whose version nobody set takes itself for v0.0.0; it is that of tests/compat/kubectl/go.mod.
const KUBECTL_VERSION: &str = "v1.36.6";

pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let Some((name, rest)) = arguments.split_first() else {
        return Err(format!("name one of: {}", NAMES.join(", ")).into());
    };
    if !NAMES.contains(&name.as_str()) {
        return Err(format!("there is no conformance {name:?}; there is {}", NAMES.join(", ")).into());
    }
    prepare::need_root(&format!("conformance {name}"))?;
    let (mut phases, places) = (Phases::new(), Places::find()?);
    let kubectl = phases.run("build kubectl", || kubectl(&places))?;
    phases.run("prepare", || prepare::run(&places, true))?;
    build::all(&mut phases, &places)?;
    let mut tour = Command::new(places.target.join("debug/conformance"));
    tour.arg(name).args(rest).env("WHARF_KUBECTL", kubectl);
    places.tell(&mut tour);
    let status = phases.run("tour", || Ok(tour.status()?))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn kubectl(places: &Places) -> Result<PathBuf> {
    let version = format!("-X k8s.io/component-base/version.gitVersion={KUBECTL_VERSION}");
    go::build(places, "kubectl", &["-ldflags", &version])
}
