//! Kubernetes' own suite for CRI against `wharf shim`, in a network and a mount namespace of their own.

pub mod crictl;
pub mod kubelet;
mod registry;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use wharf_tests::{CriServer, isolate};

use crate::skips::Skips;
use report::Report;

const SKIPS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/compat/critest/skips.txt");
/// The suite's images, an OCI layout in an archive: each is there under its own name.
const LAYOUT: &str = "critest-images.oci.tar";
/// The digest of an image that nobody has any more, which one spec compares with; [`PRESENT`] takes its place.
const ABSENT: &str = "sha256:9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf";
/// The name of the image that takes its place.
const PRESENT: &str = "gcr.io/k8s-staging-cri-tools/test-image-digest";
/// Where the pods of the suite live.
const PODS: &str = "10.88.0.0/16";

/// Runs the specs whose names match `focus`, all without one; first as they are, then those of streams over WebSocket.
pub fn run(critest: &Path, images: &Path, focus: Option<&str>) -> anyhow::Result<ExitCode> {
    let layout = images.join(LAYOUT);
    ensure!(
        layout.is_file(),
        "{} is not there; name the folder of the suite's images with --images",
        layout.display()
    );
    isolate().context("make namespaces for the suite")?;
    let dir = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let registry =
        runtime.block_on(registry::serve(&layout, dir.path())).context("serve the suite's images")?;
    let critest = patched(critest, dir.path(), &registry.digest_of(PRESENT)?)?;
    let shim = CriServer::shim(dir.path(), &registry.url, PODS)?;
    let skips = Skips::read(Path::new(SKIPS))?;

    let began = Instant::now();
    let plain = suite(&critest, &shim, dir.path(), focus, &[])?;
    let sockets = ["-websocket-exec", "-websocket-attach", "-websocket-portforward"];
    let streams = match focus {
        None => suite(&critest, &shim, dir.path(), Some("Streaming"), &sockets)?,
        Some(_) => Report::default(),
    };
    println!();
    let mut good = true;
    for (report, what) in [(&plain, ""), (&streams, " over WebSocket")] {
        for spec in &report.failed {
            good = false;
            println!("failed{what}: {spec}");
        }
        for (spec, why) in &report.skipped {
            match skips.reason(spec) {
                Some(reason) => println!("skipped{what}: {spec}: {reason}"),
                None => {
                    good = false;
                    println!("skipped{what}, without leave: {spec}: {why}");
                }
            }
        }
    }
    println!(
        "{} passed, {} failed, {} skipped; over WebSocket {} passed, {} failed; in {:.0} s",
        plain.passed,
        plain.failed.len(),
        plain.skipped.len(),
        streams.passed,
        streams.failed.len(),
        began.elapsed().as_secs_f64()
    );
    ensure!(plain.passed > 0, "no spec has run");
    drop(shim);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The suite with the digest that it expects replaced by that of an image that there is; both are of one length.
fn patched(critest: &Path, dir: &Path, digest: &str) -> anyhow::Result<PathBuf> {
    let mut bytes = fs::read(critest).with_context(|| critest.display().to_string())?;
    let (absent, present) = (ABSENT.as_bytes(), digest.as_bytes());
    ensure!(absent.len() == present.len(), "{digest} is no digest");
    let places: Vec<usize> = bytes
        .windows(absent.len())
        .enumerate()
        .filter(|(_, bytes)| *bytes == absent)
        .map(|(at, _)| at)
        .collect();
    if places.is_empty() {
        bail!("{} does not compare with {ABSENT}: is this another version of it?", critest.display());
    }
    for at in places {
        bytes[at..at + present.len()].copy_from_slice(present);
    }
    let copy = dir.join("critest");
    fs::write(&copy, bytes)?;
    fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(copy)
}

fn suite(
    critest: &Path,
    shim: &CriServer,
    dir: &Path,
    focus: Option<&str>,
    flags: &[&str],
) -> anyhow::Result<Report> {
    let told = dir.join("report.json");
    let _ = fs::remove_file(&told);
    let mut command = Command::new(critest);
    command
        .arg(format!("-runtime-endpoint=unix://{}", shim.socket.display()))
        .arg(format!("-ginkgo.json-report={}", told.display()))
        .args(["-ginkgo.no-color", "-ginkgo.timeout=30m", "-ginkgo.succinct"])
        .args(flags)
        .current_dir(dir);
    if let Some(focus) = focus {
        command.arg(format!("-ginkgo.focus={focus}"));
    }
    // Its code says no more than its report.
    command.status().with_context(|| critest.display().to_string())?;
    Report::read(&told).context("read the suite's report")
}
