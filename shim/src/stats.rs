//! What containers and pods use, in CRI's messages, the same for both runtimes.
//!
//! The numbers are the kernel's (cgroups, link counters, blocks on disk) and the wasm host's own: the processor time of
//! the threads that ran a container's guests, and the memory that counts against its limit. What a runtime does not
//! know is left out, never guessed: guests of wasm have no processes, no disk and no link of their own.
//!
//! Nothing is measured while nobody asks. [`Rates`] makes a rate of two questions, [`Layers`] walks a container's
//! files at most once in a while.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use wharf_cri::v1::{self, ContainerState, UInt64Value};
use wharf_sandbox::{Counters, Traffic};

use crate::error::Error;
use crate::record::{Container, Sandbox};
use crate::shim::{Shim, now};
use crate::view;

/// Containers that are asked at once: each is a few small files or one message.
const AT_ONCE: usize = 16;

fn some(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

/// The usage of one container now.
///
/// # Errors
/// That of its runtime, which does not know a container that is over.
pub async fn container(shim: &Shim, container: &Container) -> Result<v1::ContainerStats, Error> {
    Ok(measure(shim, container).await?.stats)
}

/// As [`container`], of many. One that ends meanwhile is left out.
pub async fn containers(shim: &Shim, containers: &[Container]) -> Vec<v1::ContainerStats> {
    measure_all(shim, containers).await.into_iter().map(|one| one.stats).collect()
}

async fn measure_all(shim: &Shim, containers: &[Container]) -> Vec<Measured> {
    let asked: Vec<_> = containers.iter().map(|one| measure(shim, one)).collect();
    let mut answers = futures::stream::iter(asked).buffered(AT_ONCE);
    let mut measured = Vec::with_capacity(containers.len());
    while let Some(answer) = answers.next().await {
        measured.extend(answer);
    }
    measured
}

/// The counters of the pods' links.
pub struct Links(Traffic);

impl Links {
    pub fn here() -> Self {
        Self(Traffic::here().unwrap_or_else(|error| {
            tracing::warn!(%error, "the counters of the pods' links cannot be read");
            Traffic::default()
        }))
    }

    /// That of one pod, if it has one of its own.
    pub fn of(&self, sandbox: &Sandbox) -> Option<Counters> {
        match sandbox.cni {
            // Only its plugins know what is at the link's other end.
            Some(_) => Traffic::inside(Path::new(&sandbox.netns)).ok().flatten(),
            None => self.0.of_pod(&sandbox.id),
        }
    }
}

/// The usage of these pods now.
pub async fn sandboxes(shim: &Shim, sandboxes: &[&Sandbox]) -> Vec<v1::PodSandboxStats> {
    let links = Links::here();
    let mut all = Vec::with_capacity(sandboxes.len());
    for pod in sandboxes {
        all.push(sandbox(shim, pod, &links).await);
    }
    all
}

async fn sandbox(shim: &Shim, sandbox: &Sandbox, links: &Links) -> v1::PodSandboxStats {
    let running: Vec<Container> = shim
        .containers_of(&sandbox.id)
        .into_iter()
        .filter(|container| container.state() == ContainerState::ContainerRunning)
        .collect();
    let measured = measure_all(shim, &running).await;
    let timestamp = now();
    let (cpu, memory) = sums(timestamp, &measured);
    let processes: Option<u64> = measured.iter().filter_map(|one| one.processes).reduce(|a, b| a + b);
    let network = links.of(sandbox).map(|counters| {
        let eth0 = v1::NetworkInterfaceUsage {
            name: "eth0".to_owned(),
            rx_bytes: some(counters.received.bytes),
            rx_errors: some(counters.received.errors),
            tx_bytes: some(counters.sent.bytes),
            tx_errors: some(counters.sent.errors),
        };
        v1::NetworkUsage { timestamp, default_interface: Some(eth0.clone()), interfaces: vec![eth0] }
    });
    v1::PodSandboxStats {
        attributes: Some(view::sandbox_attributes(sandbox)),
        linux: Some(v1::LinuxPodSandboxStats {
            cpu: Some(cpu),
            memory: Some(memory),
            network,
            process: processes.map(|count| v1::ProcessUsage { timestamp, process_count: some(count) }),
            containers: measured.into_iter().map(|one| one.stats).collect(),
            ..Default::default()
        }),
        windows: None,
    }
}

/// A pod's usage is that of its containers that run: they have no cgroup around them all.
fn sums(timestamp: i64, containers: &[Measured]) -> (v1::CpuUsage, v1::MemoryUsage) {
    let cpus = || containers.iter().filter_map(|one| one.stats.cpu.as_ref());
    let memories = || containers.iter().filter_map(|one| one.stats.memory.as_ref());
    // None if no container tells it.
    let sum = |values: &mut dyn Iterator<Item = Option<UInt64Value>>| {
        values.flatten().map(|value| value.value).reduce(u64::saturating_add).and_then(some)
    };
    let cpu = v1::CpuUsage {
        timestamp,
        usage_core_nano_seconds: sum(&mut cpus().map(|cpu| cpu.usage_core_nano_seconds)),
        usage_nano_cores: sum(&mut cpus().map(|cpu| cpu.usage_nano_cores)),
        psi: None,
    };
    let memory = v1::MemoryUsage {
        timestamp,
        working_set_bytes: sum(&mut memories().map(|memory| memory.working_set_bytes)),
        usage_bytes: sum(&mut memories().map(|memory| memory.usage_bytes)),
        rss_bytes: sum(&mut memories().map(|memory| memory.rss_bytes)),
        page_faults: sum(&mut memories().map(|memory| memory.page_faults)),
        major_page_faults: sum(&mut memories().map(|memory| memory.major_page_faults)),
        // What is left of several limits is nobody's to use.
        available_bytes: None,
        psi: None,
    };
    (cpu, memory)
}

struct Measured {
    stats: v1::ContainerStats,
    /// None where the runtime has none.
    processes: Option<u64>,
}

async fn measure(shim: &Shim, container: &Container) -> Result<Measured, Error> {
    let timestamp = now();
    let (cpu_nanos, memory, processes) = if container.wasm {
        let stats = shim.wasm()?.stats(&container.id).await?;
        let available =
            stats.memory_limit_bytes.checked_sub(stats.memory_bytes).filter(|_| stats.memory_limit_bytes > 0);
        let memory = v1::MemoryUsage {
            timestamp,
            working_set_bytes: some(stats.memory_bytes),
            usage_bytes: some(stats.memory_bytes),
            rss_bytes: some(stats.memory_bytes),
            available_bytes: available.and_then(some),
            ..Default::default()
        };
        (stats.cpu_nanos, memory, None)
    } else {
        let stats = shim.oci.stats(&container.id).await?.unwrap_or_default();
        let memory = v1::MemoryUsage {
            timestamp,
            working_set_bytes: some(stats.memory_working_set),
            usage_bytes: some(stats.memory_usage),
            rss_bytes: some(stats.memory_rss),
            available_bytes: stats
                .memory_limit
                .map(|limit| limit.saturating_sub(stats.memory_working_set))
                .and_then(some),
            page_faults: some(stats.page_faults),
            major_page_faults: some(stats.major_page_faults),
            psi: None,
        };
        (stats.cpu_usage_nanos, memory, Some(stats.pids))
    };
    let cpu = v1::CpuUsage {
        timestamp,
        usage_core_nano_seconds: some(cpu_nanos),
        usage_nano_cores: shim.rates.see(&container.id, timestamp, cpu_nanos).and_then(some),
        psi: None,
    };
    let writable_layer = if container.wasm { None } else { writable_layer(shim, &container.id).await };
    let stats = v1::ContainerStats {
        attributes: Some(view::container_attributes(container)),
        cpu: Some(cpu),
        memory: Some(memory),
        writable_layer,
        ..Default::default()
    };
    Ok(Measured { stats, processes })
}

async fn writable_layer(shim: &Shim, id: &str) -> Option<v1::FilesystemUsage> {
    let directory = shim.container_dir(id);
    let layer = shim.layers.of(id, directory).await?;
    Some(v1::FilesystemUsage {
        timestamp: layer.at,
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: shim.containers_dir().display().to_string() }),
        used_bytes: some(layer.bytes),
        inodes_used: some(layer.inodes),
    })
}

/// How fast containers use up processor time: over the span between two questions.
#[derive(Default)]
pub struct Rates(Mutex<HashMap<String, Rate>>);

struct Rate {
    /// Nanoseconds since the epoch.
    at: i64,
    used: u64,
    nano_cores: Option<u64>,
}

/// Questions nearer to each other than this get the answer before: a shorter span tells of scheduling, not of use.
const LEAST_SPAN: i64 = 1_000_000_000;

impl Rates {
    /// Notes what a container had used at a time; its rate since it was noted before.
    fn see(&self, id: &str, at: i64, used: u64) -> Option<u64> {
        let mut rates = locked(&self.0);
        let Some(rate) = rates.get_mut(id) else {
            rates.insert(id.to_owned(), Rate { at, used, nano_cores: None });
            return None;
        };
        let span = at.saturating_sub(rate.at);
        if span >= LEAST_SPAN {
            let grown = u128::from(used.saturating_sub(rate.used)) * 1_000_000_000;
            let nano_cores = u64::try_from(grown / u128::from(span.unsigned_abs())).unwrap_or(u64::MAX);
            *rate = Rate { at, used, nano_cores: Some(nano_cores) };
        }
        rate.nano_cores
    }

    /// The container is gone.
    pub fn forget(&self, id: &str) {
        locked(&self.0).remove(id);
    }
}

/// What containers wrote into their layers.
#[derive(Default)]
pub struct Layers(Mutex<HashMap<String, (Instant, Layer)>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// When it was looked at, in nanoseconds since the epoch.
    pub at: i64,
    pub bytes: u64,
    pub inodes: u64,
}

/// A layer is walked once in this time at most; containerd's snapshotter has the same.
const WALK_EVERY: Duration = Duration::from_secs(10);

impl Layers {
    /// As of the last look; none while it is being removed.
    pub async fn of(&self, id: &str, directory: PathBuf) -> Option<Layer> {
        let known = locked(&self.0).get(id).copied();
        if let Some((_, layer)) = known.filter(|(walked, _)| walked.elapsed() < WALK_EVERY) {
            return Some(layer);
        }
        let walked = tokio::task::spawn_blocking(move || walk(&directory)).await;
        let (bytes, inodes) = walked.ok()?.ok()?; // it is being removed
        let layer = Layer { at: now(), bytes, inodes };
        locked(&self.0).insert(id.to_owned(), (Instant::now(), layer));
        Some(layer)
    }

    /// The container is gone.
    pub fn forget(&self, id: &str) {
        locked(&self.0).remove(id);
    }
}

/// The bytes of the blocks below a directory, and how many files and directories there are, itself included.
fn walk(directory: &Path) -> std::io::Result<(u64, u64)> {
    let own = std::fs::symlink_metadata(directory)?;
    let mut linked = std::collections::HashSet::new();
    let mut todo = vec![directory.to_owned()];
    let (mut bytes, mut inodes) = (own.blocks() * 512, 1);
    while let Some(directory) = todo.pop() {
        // What goes meanwhile takes no room any more.
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(found) = entry.metadata() else { continue }; // does not follow links
            if found.is_dir() {
                todo.push(entry.path());
            } else if found.nlink() > 1 && !linked.insert((found.dev(), found.ino())) {
                continue; // the same file under another name
            }
            bytes += found.blocks() * 512;
            inodes += 1;
        }
    }
    Ok((bytes, inodes))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn a_rate_spans_the_time_between_two_questions() {
        let rates = Rates::default();
        assert_eq!(rates.see("a", 10 * SECOND, 5_000), None, "one look is no rate");
        assert_eq!(rates.see("a", 12 * SECOND, 1_000_005_000), Some(500_000_000), "1 s in 2 s");
        assert_eq!(rates.see("a", 12 * SECOND + 1, 2_000_005_000), Some(500_000_000), "too soon");
        assert_eq!(rates.see("a", 13 * SECOND, 2_000_005_000), Some(1_000_000_000));
        rates.forget("a");
        assert_eq!(rates.see("a", 20 * SECOND, 3_000_000_000), None, "another of the same name is a new one");
    }

    #[test]
    fn a_layer_counts_each_file_once_whatever_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("layer");
        std::fs::create_dir_all(layer.join("sub")).unwrap();
        let (empty, _) = walk(&layer).unwrap();
        std::fs::write(layer.join("sub/file"), vec![1; 40_000]).unwrap();
        std::fs::hard_link(layer.join("sub/file"), layer.join("again")).unwrap();
        std::os::unix::fs::symlink("/", layer.join("out")).unwrap();
        let (bytes, inodes) = walk(&layer).unwrap();
        assert_eq!(inodes, 4, "two directories, a file and a link that is not followed");
        assert!((40_000..80_000).contains(&(bytes - empty)), "{bytes} after {empty}");
        assert!(walk(&dir.path().join("absent")).is_err());
    }
}
