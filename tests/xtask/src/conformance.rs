//! `cargo xtask conformance NAME`: other people's programs, built from pinned sources, against ours.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use crate::build::{self, Places};
use crate::phase::Phases;
use crate::{Result, go, prepare};

/// What is tried, the variable that names its program, and how that is built.
type Suite = (&'static str, &'static str, fn(&Places) -> Result<PathBuf>);

const SUITES: [Suite; 2] = [("kubectl", "WHARF_KUBECTL", kubectl), ("cri", "WHARF_CRITEST", critest)];
/// A kubectl whose version nobody set takes itself for v0.0.0; it is that of tests/compat/kubectl/go.mod.
const KUBECTL_VERSION: &str = "v1.36.6";

pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let names = SUITES.map(|(name, ..)| name).join(", ");
    let Some((name, rest)) = arguments.split_first() else {
        return Err(format!("name one of: {names}").into());
    };
    let Some((name, variable, build)) = SUITES.into_iter().find(|(known, ..)| known == name) else {
        return Err(format!("there is no conformance {name:?}; there is {names}").into());
    };
    prepare::need_root(&format!("conformance {name}"))?;
    let (mut phases, places) = (Phases::new(), Places::find()?);
    let program = phases.run(&format!("build the programs of {name}"), || build(&places))?;
    phases.run("prepare", || prepare::run(&places, true))?;
    build::all(&mut phases, &places)?;
    let mut suite = Command::new(places.target.join("debug/conformance"));
    suite.arg(name).args(rest).env(variable, program);
    places.tell(&mut suite);
    let status = phases.run("try", || Ok(suite.status()?))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn kubectl(places: &Places) -> Result<PathBuf> {
    let version = format!("-X k8s.io/component-base/version.gitVersion={KUBECTL_VERSION}");
    go::build(places, "kubectl", &["-ldflags", &version])
}

fn critest(places: &Places) -> Result<PathBuf> {
    go::build_tests(places, "critest", "sigs.k8s.io/cri-tools/cmd/critest")
}
