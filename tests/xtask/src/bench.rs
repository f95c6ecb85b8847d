//! `cargo xtask bench NAME`: builds, then runs one of `tests/src/bin/bench.rs`' measurements.

use std::process::ExitCode;

use crate::build::{self, Places};
use crate::phase::Phases;
use crate::{Result, flag, nothing_more, prepare, value};

const NAMES: [&str; 2] = ["cri", "first-apply"];

pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let mut arguments = arguments.to_vec();
    let (check, json) = (flag(&mut arguments, "--check"), value(&mut arguments, "--json")?);
    if arguments.is_empty() {
        return Err(format!("name one of: {}", NAMES.join(", ")).into());
    }
    let name = arguments.remove(0);
    nothing_more(&arguments)?;
    if !NAMES.contains(&name.as_str()) {
        return Err(format!("there is no bench {name:?}; there is {}", NAMES.join(", ")).into());
    }
    prepare::need_root(&format!("bench {name}"))?;
    let (mut phases, places) = (Phases::new(), Places::find()?);
    phases.run("prepare", || prepare::run(&places, true))?;
    if name == "cri" {
        phases.run("prepare containerd", prepare::for_containerd)?;
    }
    build::all(&mut phases, &places)?;
    let mut bench = std::process::Command::new(places.target.join("debug/bench"));
    bench.arg(name).current_dir(std::env::current_dir()?);
    if check {
        bench.arg("--check");
    }
    if let Some(json) = json {
        bench.args(["--json", &json]);
    }
    places.tell(&mut bench);
    let status = phases.run("measure", || Ok(bench.status()?))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
