//! `wharf shim` beside containerd with crun and with runc: what a pod costs, in one run, by turns.

mod containerd;
mod images;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use wharf_tests::{CriServer, LocalRegistry, Pod, Runtime, descendants, isolate, pss, words};

use crate::figure::{Figures, Target, percentile};

/// Cycles of each runtime, after one that is not counted.
const CYCLES: usize = 60;
const EXECS: usize = 60;
/// Tasks that make pods at once, and how many each makes.
const AT_ONCE: usize = 4;
const EACH: usize = 15;
/// Idle pods whose memory is told.
const IDLE: usize = 20;
const PULLS: usize = 3;
/// How long every container sleeps; nothing else here has this word in its command line.
const WORKLOAD: &str = "3000000";
const MIB: f64 = 1024.0 * 1024.0;

pub fn measure(figures: &mut Figures) -> anyhow::Result<()> {
    isolate().context("make namespaces for the bench")?;
    containerd::make_room()?;
    let dir = tempfile::tempdir()?;
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(async {
        let registry = LocalRegistry::serve(&dir.path().join("registry")).await?;
        images::fill(&registry).await.context("make the images")?;
        by_turns(figures, dir.path(), &registry.url).await
    })
}

async fn by_turns(figures: &mut Figures, dir: &Path, registry: &str) -> anyhow::Result<()> {
    let shim_dir = dir.join("wharf");
    std::fs::create_dir(&shim_dir)?;
    let shim = CriServer::shim(&shim_dir, registry, "10.88.0.0/16")?;
    let wharf = Runtime::of("wharf", &shim, "", dir);
    wharf.ready().await?;
    figures.tell("idle_shim_pss", Some(pss(shim.pid()) as f64 / MIB), "MiB", Target::AtMost(20.0));
    wharf.pull(images::SHELL).await?;
    memory(figures, &wharf, "pod_overhead_pss", Target::AtMost(1.5)).await?;

    let peer = containerd::start(&dir.join("containerd"), registry)?;
    let (crun, runc) = (Runtime::of("crun", &peer, "crun", dir), Runtime::of("runc", &peer, "runc", dir));
    crun.ready().await?;
    crun.pull(images::SHELL).await?;
    crun.pull(images::PAUSE).await?;
    memory(figures, &crun, "pod_overhead_pss_containerd", Target::None).await?;

    let all = [&wharf, &crun, &runc];
    cycles(figures, all).await?;
    at_once(figures, all).await?;
    execs(figures, all).await?;
    pulls(figures, &wharf, &crun).await
}

/// Tells a value of ours, and how many times that of each peer it is.
fn compare(figures: &mut Figures, name: &str, unit: &str, values: [Option<f64>; 3], most: [Option<f64>; 2]) {
    let [ours, peers @ ..] = values;
    figures.tell(name, ours, unit, Target::None);
    for ((peer, theirs), most) in ["crun", "runc"].into_iter().zip(peers).zip(most) {
        figures.tell(&format!("{name}_{peer}"), theirs, unit, Target::None);
        let ratio = ours.zip(theirs).map(|(ours, theirs)| ours / theirs);
        let target = most.map_or(Target::None, Target::AtMost);
        figures.tell(&format!("{name}_to_{peer}"), ratio, "times", target);
    }
}

async fn pod(runtime: &Runtime) -> anyhow::Result<Pod> {
    runtime.pod(images::SHELL, &["sleep", WORKLOAD], |_, _| {}).await.with_context(|| runtime.name)
}

fn millis(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1000.0
}

/// Milliseconds of a pod's life: sandbox, container and start; and all, to the removal.
async fn cycle(runtime: &Runtime) -> anyhow::Result<(f64, f64)> {
    let began = Instant::now();
    let pod = pod(runtime).await?;
    let start = millis(began);
    runtime.remove(&pod).await.with_context(|| runtime.name)?;
    Ok((start, millis(began)))
}

const MOST: [Option<f64>; 2] = [Some(0.35), Some(0.3)];

async fn cycles(figures: &mut Figures, all: [&Runtime; 3]) -> anyhow::Result<()> {
    let (mut starts, mut wholes) = ([const { Vec::new() }; 3], [const { Vec::new() }; 3]);
    for nth in 0..=CYCLES {
        for (at, runtime) in all.into_iter().enumerate() {
            let (start, whole) = cycle(runtime).await?;
            if nth > 0 {
                starts[at].push(start);
                wholes[at].push(whole);
            }
        }
    }
    for (name, mut times) in [("pod_start", starts), ("pod_cycle", wholes)] {
        times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
        for (share, told) in [(0.5, "p50"), (0.95, "p95")] {
            let values = times.each_ref().map(|times| percentile(times, share));
            compare(figures, &format!("{name}_{told}"), "ms", values, MOST);
        }
    }
    Ok(())
}

async fn at_once(figures: &mut Figures, all: [&Runtime; 3]) -> anyhow::Result<()> {
    let mut took = [None; 3];
    for (at, runtime) in all.into_iter().enumerate() {
        let began = Instant::now();
        let tasks = (0..AT_ONCE).map(|_| async {
            for _ in 0..EACH {
                cycle(runtime).await?;
            }
            anyhow::Ok(())
        });
        futures::future::try_join_all(tasks).await?;
        took[at] = Some(millis(began) / (AT_ONCE * EACH) as f64);
    }
    compare(figures, "pod_cycle_4_at_once", "ms a pod", took, MOST);
    Ok(())
}

async fn execs(figures: &mut Figures, all: [&Runtime; 3]) -> anyhow::Result<()> {
    let mut pods = Vec::new();
    for runtime in all {
        pods.push(pod(runtime).await?);
    }
    let mut took = [const { Vec::new() }; 3];
    for nth in 0..=EXECS {
        for (at, runtime) in all.into_iter().enumerate() {
            let began = Instant::now();
            let answer = runtime.exec(&pods[at], &["true"]).await.with_context(|| runtime.name)?;
            if nth > 0 {
                took[at].push(millis(began));
            }
            ensure!(answer.exit_code == 0, "true failed");
        }
    }
    for (runtime, pod) in all.into_iter().zip(&pods) {
        runtime.remove(pod).await?;
    }
    took.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
    let values = took.each_ref().map(|times| percentile(times, 0.5));
    compare(figures, "exec_p50", "ms", values, [Some(0.7), None]);
    Ok(())
}

/// What all processes below this one take for each of [`IDLE`] pods, but for what runs in their containers.
async fn memory(figures: &mut Figures, runtime: &Runtime, name: &str, target: Target) -> anyhow::Result<()> {
    let own = || {
        let workload = |pid: &i32| words(*pid).iter().any(|word| word == WORKLOAD);
        let all: Vec<i32> =
            descendants(std::process::id() as i32).into_keys().filter(|pid| !workload(pid)).collect();
        (all.len(), all.into_iter().map(|pid| pss(pid) as f64).sum::<f64>())
    };
    let before = own();
    let mut pods = Vec::new();
    for _ in 0..IDLE {
        pods.push(pod(runtime).await?);
    }
    let after = own();
    ensure!(after.0 >= before.0 + 2 * IDLE, "what holds a pod and what watches its container is not found");
    let each = (after.1 - before.1) / IDLE as f64 / MIB;
    figures.tell(name, Some(each), "MiB", target);
    for pod in &pods {
        runtime.remove(pod).await?;
    }
    Ok(())
}

async fn pulls(figures: &mut Figures, wharf: &Runtime, peer: &Runtime) -> anyhow::Result<()> {
    let mut took = [Vec::new(), Vec::new()];
    for _ in 0..PULLS {
        for (at, runtime) in [wharf, peer].into_iter().enumerate() {
            let began = Instant::now();
            runtime.pull(images::LARGE).await.with_context(|| runtime.name)?;
            took[at].push(began.elapsed().as_secs_f64());
            runtime.forget(images::LARGE).await?;
        }
    }
    took.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
    let [ours, theirs] = took.map(|times| percentile(&times, 0.5));
    figures.tell("pull_200_MB", ours, "s", Target::None);
    figures.tell("pull_200_MB_containerd", theirs, "s", Target::None);
    let ratio = ours.zip(theirs).map(|(ours, theirs)| ours / theirs);
    figures.tell("pull_200_MB_to_containerd", ratio, "times", Target::AtMost(1.0));
    Ok(())
}
