//! `cargo xtask test`: style, builds and every test, summed up in one line.

mod tally;

use std::process::{Command, ExitCode};

use crate::build::{self, Places};
use crate::phase::Phases;
use crate::{Result, command, go, prepare, python, vm};
use tally::Tally;

/// They build for wasm alone.
const GUESTS: [&str; 2] = ["greeter", "wharf-guests"];

pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let mut arguments = arguments.to_vec();
    let in_vm = crate::flag(&mut arguments, "--vm");
    let (filters, options): (Vec<_>, Vec<_>) = arguments.iter().partition(|word| !word.starts_with('-'));
    crate::nothing_more(&options.into_iter().cloned().collect::<Vec<_>>())?;
    prepare::need_root("test")?;
    let (mut phases, places) = (Phases::new(), Places::find()?);
    phases.run("prepare", || prepare::run(&places, true))?;
    let mut tally = Tally::default();
    // With a filter somebody works on something: the style is for the end.
    if filters.is_empty() {
        tally.check(phases.run("style: cargo fmt", || format(&places)));
        tally.check(phases.run("style: cargo clippy", || clippy(&places)));
    }
    if tally.check(build::all(&mut phases, &places)) {
        let built = phases
            .run("build the tests", || command::shown(places.cargo().args(["test", "--locked", "--no-run"])));
        if tally.check(built) {
            let ran = phases.run("tests", || tests(&places, &filters, &mut tally));
            tally.check(ran);
            if in_vm {
                let ran = phases.run("tests on cgroup v2", || on_cgroup_v2(&places, &mut tally));
                tally.check(ran);
            }
        }
    }
    phases.summary();
    Ok(tally.close())
}

fn format(places: &Places) -> Result<()> {
    command::quiet(places.cargo().args(["fmt", "--all", "--check"])).map(drop)
}

fn clippy(places: &Places) -> Result<()> {
    let mut cargo = places.cargo();
    cargo.args(["clippy", "--locked", "--workspace", "--all-targets"]);
    for guest in GUESTS {
        cargo.args(["--exclude", guest]);
    }
    command::shown(deny_warnings(&mut cargo))?;
    let mut cargo = places.cargo();
    cargo.args(["clippy", "--locked", "--target", "wasm32-wasip2", "--profile", "guest"]);
    for guest in GUESTS {
        cargo.args(["-p", guest]);
    }
    cargo.arg("--target-dir").arg(places.guest_target());
    command::shown(deny_warnings(&mut cargo))
}

fn deny_warnings(clippy: &mut Command) -> &mut Command {
    clippy.args(["--", "-D", "warnings"])
}

fn on_cgroup_v2(places: &Places, tally: &mut Tally) -> Result<()> {
    let skipped = vm::tests(places, |line| {
        if command::shows_all() {
            println!("{line}");
        }
        tally.hear(line);
    })?;
    match skipped {
        Some(why) => tally.skip(&format!("all tests on cgroup v2: {why}")),
        None => tally.end(true),
    }
    Ok(())
}

/// Runs the tests of all default members. Cargo runs one test program at a time, so clusters do not meet.
fn tests(places: &Places, filters: &[&String], tally: &mut Tally) -> Result<()> {
    let mut cargo = places.cargo();
    cargo.args(["test", "--locked", "--no-fail-fast", "--color", "never", "--"]).args(filters);
    places.tell(&mut cargo);
    python::tell(places, &mut cargo);
    go::tell(places, &mut cargo);
    let said = command::follow(&mut cargo, |line| {
        if command::shows_all() {
            println!("{line}");
        }
        tally.hear(line);
    })?;
    tally.end(said.success);
    Ok(())
}
