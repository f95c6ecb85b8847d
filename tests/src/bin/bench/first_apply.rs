//! From nothing to a cluster, and from `wctl apply` to the first answer of what was applied.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::watcher;
use serde_json::Value;
use wharf_tests::manifest::{self, PORT};
use wharf_tests::{Cluster, Kind, Node, assets, eventually, get, processes};

use crate::figure::{Figures, Target, percentile};

/// Of the wasm Deployment, after one that is not counted.
const RUNS: usize = 30;
/// What takes longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries to reach a pod that does not listen yet.
const RETRY: Duration = Duration::from_micros(500);
const MIB: f64 = 1024.0 * 1024.0;

pub fn measure(figures: &mut Figures) -> anyhow::Result<()> {
    for (name, path) in [("wharf_size", assets::wharf()), ("wctl_size", assets::wctl())] {
        figures.tell(name, Some(fs::metadata(path)?.len() as f64 / MIB), "MiB", Target::None);
    }

    let began = Instant::now();
    let cluster = Cluster::up();
    figures.tell("up_to_ready", Some(began.elapsed().as_secs_f64()), "s", Target::AtMost(2.0));

    let began = Instant::now();
    cluster.push_images();
    figures.tell("push_four_images", Some(began.elapsed().as_secs_f64()), "s", Target::None);

    let runtime = tokio::runtime::Runtime::new()?;
    let addresses = runtime.block_on(addresses(&cluster))?;
    let mut prober = Prober { node: cluster.node(), addresses, known: HashMap::new(), used: HashSet::new() };

    let folder = assets::manifests().display().to_string();
    let cold = both(&cluster, &mut prober, &folder)?;
    figures.tell("apply_to_both_answers_cold", Some(cold.as_secs_f64()), "s", Target::None);
    cluster.wctl(&["delete", "-f", &folder]).ok();
    no_pods(&cluster);
    let warm = both(&cluster, &mut prober, &folder)?;
    figures.tell("apply_to_both_answers", Some(warm.as_secs_f64()), "s", Target::AtMost(5.0));

    let mut took = Vec::with_capacity(RUNS);
    for nth in 0..=RUNS {
        let name = format!("run-{nth}");
        let mut object = manifest::deployment(&name, "greeter:1");
        manifest::container(&mut object)["readinessProbe"] = Value::Null; // ready when it runs; the answer is asked for
        let one = once(&cluster, &mut prober, &name, &object)?;
        if nth > 0 {
            took.push(one.as_secs_f64() * 1000.0);
        }
        cluster.wctl(&["delete", "deployment", &name]).ok();
    }
    took.sort_by(f64::total_cmp);
    figures.tell("first_apply_p50", percentile(&took, 0.5), "ms", Target::AtMost(150.0));
    figures.tell("first_apply_p99", percentile(&took, 0.99), "ms", Target::AtMost(1000.0));

    memory(&cluster, figures);
    Ok(())
}

/// Sends the address of each pod, with its label `app`, as soon as the API tells it.
async fn addresses(cluster: &Cluster) -> anyhow::Result<mpsc::Receiver<(String, IpAddr)>> {
    let (sender, receiver) = mpsc::channel();
    let api: Api<Pod> = Api::default_namespaced(cluster.client().await);
    let mut objects = Box::pin(watcher(api, watcher::Config::default()));
    // The watch is open before anything is applied.
    while !matches!(objects.try_next().await?.context("the watch ended")?, watcher::Event::InitDone) {}
    tokio::spawn(async move {
        let mut objects = pin!(objects);
        while let Some(event) = objects.next().await {
            let Ok(watcher::Event::Apply(pod)) = event else { continue };
            let app = pod.metadata.labels.as_ref().and_then(|labels| labels.get("app"));
            let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()?.parse().ok());
            if let (Some(app), Some(address)) = (app, address)
                && sender.send((app.clone(), address)).is_err()
            {
                break;
            }
        }
    });
    Ok(receiver)
}

/// Asks pods at their own addresses, from their node.
struct Prober {
    node: Node,
    addresses: mpsc::Receiver<(String, IpAddr)>,
    known: HashMap<String, IpAddr>,
    /// Addresses of pods that are gone: late news about them is no news.
    used: HashSet<IpAddr>,
}

impl Prober {
    /// Waits for the address of a pod of `app`, then for its first 200; tells when that was read.
    fn first_answer(&mut self, app: &str) -> anyhow::Result<Instant> {
        let until = Instant::now() + PATIENCE;
        let address = loop {
            if let Some(address) = self.known.remove(app) {
                break address;
            }
            let left = until.saturating_duration_since(Instant::now());
            let (who, address) =
                self.addresses.recv_timeout(left).with_context(|| format!("no address of {app}"))?;
            if !self.used.contains(&address) {
                self.known.insert(who, address);
            }
        };
        self.used.insert(address);
        let at = SocketAddr::new(address, PORT);
        let answered = self.node.within(|| {
            loop {
                match get(at, "/") {
                    Ok((200, _)) => return Ok(Instant::now()),
                    last if Instant::now() > until => {
                        return Err(std::io::Error::other(format!("{app} at {at}: {last:?}")));
                    }
                    _ => std::thread::sleep(RETRY),
                }
            }
        });
        Ok(answered?)
    }
}

fn both(cluster: &Cluster, prober: &mut Prober, folder: &str) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let mut apply = cluster.command();
    let mut child = apply.args(["apply", "-f", folder]).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let (clock, greeter) = (prober.first_answer("clock"), prober.first_answer("greeter"));
    ensure!(child.wait()?.success(), "wctl apply failed");
    Ok(clock?.max(greeter?) - began)
}

fn once(cluster: &Cluster, prober: &mut Prober, name: &str, object: &Value) -> anyhow::Result<Duration> {
    let file = cluster.dir().join("run.yaml");
    fs::write(&file, object.to_string())?;
    let mut apply = cluster.command();
    apply.arg("apply").arg("-f").arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
    let began = Instant::now();
    let mut child = apply.spawn()?;
    let answered = prober.first_answer(name);
    ensure!(child.wait()?.success(), "wctl apply failed");
    Ok(answered? - began)
}

fn no_pods(cluster: &Cluster) {
    eventually("no pod is left", || {
        let left = cluster.get(&["pods"])["items"].as_array().map_or(0, Vec::len);
        if left == 0 { Ok(()) } else { Err(format!("{left} pods")) }
    });
}

/// The memory of each process while both examples run and nothing happens.
fn memory(cluster: &Cluster, figures: &mut Figures) {
    eventually("only the two examples are left", || {
        let left = cluster.get(&["pods"])["items"].as_array().map_or(0, Vec::len);
        if left == 2 { Ok(()) } else { Err(format!("{left} pods")) }
    });
    let (mut ours, mut server_side) = (HashMap::<Kind, (usize, f64)>::new(), 0.0);
    for process in processes(cluster) {
        let pss = process.pss() as f64 / MIB;
        let entry = ours.entry(process.kind).or_default();
        entry.0 += 1;
        entry.1 += pss;
        if process.kind != Kind::Container {
            server_side += pss;
        }
    }
    for kind in
        [Kind::Server, Kind::Shim, Kind::WasmHost, Kind::Keeper, Kind::Zygote, Kind::Monitor, Kind::Pause]
    {
        let (count, pss) = ours.get(&kind).copied().unwrap_or_default();
        let name = format!("idle_pss_{}", format!("{kind:?}").to_lowercase());
        figures.tell(&name, (count > 0).then_some(pss), "MiB", Target::None);
    }
    figures.tell("idle_pss_all", Some(server_side), "MiB", Target::AtMost(80.0));
}
