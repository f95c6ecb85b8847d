//! `cargo xtask demo`: a wasm component and an OCI container answer from one new cluster of two nodes.

use std::path::Path;
use std::process::{Command, ExitCode};

use crate::build::{self, Places};
use crate::forward::Forward;
use crate::phase::Phases;
use crate::{Result, command, flag, nothing_more, prepare};

const NAME: &str = "demo";
const MANIFESTS: &str = "sdk/examples/manifests";
/// That of both examples.
const PORT: u16 = 8080;

pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let mut arguments = arguments.to_vec();
    let down = flag(&mut arguments, "--down");
    nothing_more(&arguments)?;
    prepare::need_root("demo")?;
    let (mut phases, places) = (Phases::new(), Places::find()?);
    let walked = walk(&mut phases, &places);
    if down {
        let ended = phases.run("wctl down", || said(wctl(&places).args(["down", NAME, "--purge"])));
        walked?;
        ended?;
        phases.summary();
        return Ok(ExitCode::SUCCESS);
    }
    walked
        .map_err(|error| format!("{error}\nthe cluster may still run; `wctl down {NAME} --purge` ends it"))?;
    phases.summary();
    let wctl = places.wctl();
    println!(
        "\nThe cluster runs on. To go on:\n\
         \x20 export PATH=\"{}:$PATH\"\n\
         \x20 wctl get pods -o wide\n\
         \x20 wctl logs deployment/clock\n\
         \x20 wctl scale deployment/greeter --replicas=3\n\
         \x20 wctl port-forward deployment/greeter 8080:{PORT}    and then: curl http://127.0.0.1:8080/\n\
         \x20 wctl apply -f {MANIFESTS} --wait                 after a change there\n\
         \x20 wctl down {NAME} --purge                            ends it and deletes its data",
        wctl.parent().unwrap_or(Path::new(".")).display()
    );
    Ok(ExitCode::SUCCESS)
}

fn walk(phases: &mut Phases, places: &Places) -> Result<()> {
    phases.run("prepare", || prepare::run(places, false))?;
    build::all(phases, places)?;
    phases.run("wctl up", || up(places))?;
    phases.run("wctl image push", || {
        said(
            in_cluster(places)
                .args(["image", "push"])
                .arg(places.guests().join("greeter.wasm"))
                .arg("greeter:1"),
        )?;
        let rootfs = places.target.join("demo-rootfs");
        std::fs::create_dir_all(&rootfs)?;
        std::fs::copy(places.clock(), rootfs.join("clock"))?;
        let mut push = in_cluster(places);
        push.args(["image", "push"]).arg(&rootfs).args(["clock:1", "--entrypoint", "/clock"]);
        said(&mut push)
    })?;
    phases.run("wctl apply", || said(in_cluster(places).args(["apply", "-f", MANIFESTS, "--wait"])))?;
    phases.run("wctl get pods", || said(in_cluster(places).args(["get", "pods", "-o", "wide"])))?;
    phases.run("two answers over HTTP", || {
        for deployment in ["greeter", "clock"] {
            let forward = Forward::start(in_cluster(places), &format!("deployment/{deployment}"), PORT)?;
            println!("    {deployment}: {}", forward.get("/")?.trim_end());
        }
        Ok(())
    })
}

fn up(places: &Places) -> Result<()> {
    let mut up = wctl(places);
    let started = command::listen(up.args(["up", NAME, "--nodes", "2"]))?;
    if started.success {
        print!("{}", indented(&started.text));
        return Ok(());
    }
    if started.text.contains("runs already") {
        println!("    the cluster {NAME:?} runs already, and is used as it is (`wctl down {NAME}` ends it)");
        return Ok(());
    }
    Err(started.text.trim_end().trim_start_matches("error: ").to_owned().into())
}

/// Runs `wctl` and shows what it says.
fn said(wctl: &mut Command) -> Result<()> {
    let said = command::listen(wctl)?;
    if !said.success {
        return Err(said.text.trim_end().trim_start_matches("error: ").to_owned().into());
    }
    if !command::shows_all() {
        print!("{}", indented(&said.text));
    }
    Ok(())
}

fn wctl(places: &Places) -> Command {
    let mut wctl = Command::new(places.wctl());
    wctl.current_dir(&places.root);
    wctl
}

fn in_cluster(places: &Places) -> Command {
    let mut wctl = wctl(places);
    wctl.arg(format!("--context=wharf-{NAME}"));
    wctl
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}
