//! `cargo xtask conformance NAME`: other people's programs, built from pinned sources, against ours.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use crate::build::{self, Places};
use crate::phase::Phases;
use crate::{Result, go, prepare, vm};

/// What is tried, the variable that names its program, and how that is built.
type Suite = (&'static str, &'static str, fn(&Places) -> Result<PathBuf>);

const SUITES: [Suite; 4] = [
    ("kubectl", "WHARF_KUBECTL", kubectl),
    ("cri", "WHARF_CRITEST", critest),
    ("crictl", "WHARF_CRICTL", crictl),
    ("kubelet", "WHARF_KUBELET", kubelet),
];
/// A kubectl whose version nobody set takes itself for v0.0.0; it is that of tests/compat/kubectl/go.mod.
const KUBECTL_VERSION: &str = "v1.36.6";
/// The same of a kubelet.
const KUBELET_VERSION: &str = "v1.36.5";

pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let mut arguments = arguments.to_vec();
    let in_vm = crate::flag(&mut arguments, "--vm");
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
    let good = phases.run("try", || {
        if in_vm {
            return on_cgroup_v2(&places, &suite);
        }
        places.tell(&mut suite);
        Ok(suite.status()?.success())
    })?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether it ended well there.
fn on_cgroup_v2(places: &Places, suite: &Command) -> Result<bool> {
    const WELL: &str = "the suite ended well";
    let text = |text: &OsStr| format!("'{}'", text.display());
    let variables = suite
        .get_envs()
        .map(|(name, value)| format!("{}={}", name.display(), text(value.unwrap_or_default())));
    let words = [suite.get_program()].into_iter().chain(suite.get_args()).map(text);
    let line: Vec<String> = variables.chain(words).collect();
    let mut good = false;
    let skipped = vm::run(places, &format!("{} 2>&1 && echo {WELL}\n", line.join(" ")), |line| {
        good |= line == WELL;
        println!("{line}");
    })?;
    match skipped {
        Some(why) => Err(format!("no virtual machine: {why}").into()),
        None => Ok(good),
    }
}

fn kubectl(places: &Places) -> Result<PathBuf> {
    kubernetes(places, "kubectl", KUBECTL_VERSION)
}

fn kubelet(places: &Places) -> Result<PathBuf> {
    kubernetes(places, "kubelet", KUBELET_VERSION)
}

fn kubernetes(places: &Places, name: &str, version: &str) -> Result<PathBuf> {
    let version = format!("-X k8s.io/component-base/version.gitVersion={version}");
    go::build(places, name, &["-ldflags", &version])
}

fn critest(places: &Places) -> Result<PathBuf> {
    go::build_tests(places, "critest", "sigs.k8s.io/cri-tools/cmd/critest")
}

fn crictl(places: &Places) -> Result<PathBuf> {
    go::build_package(places, "critest", "crictl", "sigs.k8s.io/cri-tools/cmd/crictl")
}
