//! What the node, its pods and their containers use: the kubelet's `/stats/summary` and `/metrics/resource`.
//!
//! Nothing is kept and nothing runs while nobody asks: each question is put to the runtime ([`Stats::summary`]) and to the
//! kernel ([`machine`]). The two answers are the same numbers, as JSON and as text ([`text`]).

mod machine;
mod summary;
mod text;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use tracing::warn;
use wharf_cri::v1;

use self::machine::Usage;
use self::summary::{ContainerStats, Cpu, Memory, NodeStats, PodReference, PodStats, RuntimeStats};
use crate::runtime::{Runtime, label};

pub use summary::Summary;
pub use text::{TYPE, metrics};

/// Answers questions about usage.
pub struct Stats {
    node: String,
    /// On the file system that holds the pods' directories.
    root: PathBuf,
    runtime: Runtime,
    /// The machine's processor time when it was asked for last, and the rate that came of it.
    last: Mutex<Option<(Timestamp, u64, Option<u64>)>>,
}

/// How much a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    All,
    /// `only_cpu_and_memory=true`.
    CpuAndMemory,
}

impl Stats {
    pub fn new(node: String, root: PathBuf, runtime: Runtime) -> Self {
        Self { node, root, runtime, last: Mutex::default() }
    }

    /// Everything as it is now. Sandboxes that are no pods of this node are left out.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn summary(&self, scope: Scope) -> Result<Summary, tonic::Status> {
        let (mut one, mut two, mut three) =
            (self.runtime.runtime.clone(), self.runtime.runtime.clone(), self.runtime.runtime.clone());
        let (stats, sandboxes, containers) = tokio::try_join!(
            one.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default()),
            two.list_pod_sandbox(v1::ListPodSandboxRequest::default()),
            three.list_containers(v1::ListContainersRequest::default()),
        )?;
        let created: HashMap<String, i64> = sandboxes
            .into_inner()
            .items
            .into_iter()
            .map(|sandbox| (sandbox.id, sandbox.created_at))
            .chain(containers.into_inner().containers.into_iter().map(|one| (one.id, one.created_at)))
            .collect();
        let pods = stats.into_inner().stats;
        let mut pods: Vec<PodStats> =
            pods.into_iter().filter_map(|pod| of_pod(pod, &created, scope)).collect();
        pods.sort_by(|a, b| a.pod_ref.cmp(&b.pod_ref));
        Ok(Summary { node: self.node(scope).await, pods })
    }

    async fn node(&self, scope: Scope) -> NodeStats {
        let usage = Usage::read().unwrap_or_else(|error| {
            warn!(%error, "what this machine uses cannot be read");
            Usage::default()
        });
        let time = Timestamp::now();
        let cpu = usage.cpu_nanos.map(|used| Cpu {
            time,
            usage_nano_cores: self.rate(time, used),
            usage_core_nano_seconds: Some(used),
        });
        let memory = usage.memory.map(|memory| Memory {
            time,
            available_bytes: Some(memory.available),
            usage_bytes: Some(memory.usage),
            working_set_bytes: Some(memory.working_set),
            ..Memory::at(time)
        });
        let (mut fs, mut runtime) = (None, None);
        if scope == Scope::All {
            fs = machine::file_system(&self.root, time);
            runtime = self.images().await;
        }
        NodeStats { node_name: self.node.clone(), start_time: usage.booted, cpu, memory, fs, runtime }
    }

    /// The file system of the images: how full it is, and what they have of it.
    async fn images(&self) -> Option<RuntimeStats> {
        let asked = self.runtime.image.clone().image_fs_info(v1::ImageFsInfoRequest::default()).await;
        let found = asked.ok()?.into_inner().image_filesystems.into_iter().next()?;
        let mut fs = machine::file_system(&PathBuf::from(found.fs_id?.mountpoint), time(found.timestamp)?)?;
        fs.used_bytes = found.used_bytes.map(|bytes| bytes.value);
        fs.inodes_used = found.inodes_used.map(|inodes| inodes.value);
        Some(RuntimeStats { image_fs: fs })
    }

    /// Over the span since the last question, or the one before where that was less than a second ago.
    fn rate(&self, time: Timestamp, used: u64) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((then, had, rate)) = *last else {
            *last = Some((time, used, None));
            return None;
        };
        let span = time.duration_since(then).as_secs_f64();
        if span < 1.0 {
            return rate;
        }
        let rate = Some((used.saturating_sub(had) as f64 / span) as u64);
        *last = Some((time, used, rate));
        rate
    }
}

fn value(value: Option<v1::UInt64Value>) -> Option<u64> {
    value.map(|value| value.value)
}

/// CRI counts time in nanoseconds since the epoch; nothing is 0.
fn time(nanos: i64) -> Option<Timestamp> {
    Timestamp::from_nanosecond(nanos.into()).ok().filter(|_| nanos > 0)
}

fn cpu(cpu: v1::CpuUsage) -> Option<Cpu> {
    Some(Cpu {
        time: time(cpu.timestamp)?,
        usage_nano_cores: value(cpu.usage_nano_cores),
        usage_core_nano_seconds: value(cpu.usage_core_nano_seconds),
    })
}

fn memory(memory: v1::MemoryUsage) -> Option<Memory> {
    Some(Memory {
        time: time(memory.timestamp)?,
        available_bytes: value(memory.available_bytes),
        usage_bytes: value(memory.usage_bytes),
        working_set_bytes: value(memory.working_set_bytes),
        rss_bytes: value(memory.rss_bytes),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
    })
}

fn of_pod(pod: v1::PodSandboxStats, created: &HashMap<String, i64>, scope: Scope) -> Option<PodStats> {
    let attributes = pod.attributes?;
    // Sandboxes without the label are somebody else's.
    let uid = attributes.labels.get(label::POD_UID)?.clone();
    let metadata = attributes.metadata?;
    let linux = pod.linux?;
    let containers =
        linux.containers.into_iter().filter_map(|one| of_container(one, created, scope)).collect();
    let all = scope == Scope::All;
    Some(PodStats {
        pod_ref: PodReference { name: metadata.name, namespace: metadata.namespace, uid },
        start_time: created.get(&attributes.id).copied().and_then(time),
        containers,
        cpu: linux.cpu.and_then(cpu),
        memory: linux.memory.and_then(memory),
        network: linux.network.filter(|_| all).and_then(summary::network),
        process_stats: linux.process.filter(|_| all).and_then(summary::processes),
    })
}

fn of_container(
    container: v1::ContainerStats,
    created: &HashMap<String, i64>,
    scope: Scope,
) -> Option<ContainerStats> {
    let attributes = container.attributes?;
    let layer = container.writable_layer.filter(|_| scope == Scope::All);
    let rootfs = layer.and_then(|layer| {
        let place = PathBuf::from(layer.fs_id?.mountpoint);
        let mut fs = machine::file_system(&place, time(layer.timestamp)?)?;
        fs.used_bytes = value(layer.used_bytes);
        fs.inodes_used = value(layer.inodes_used);
        Some(fs)
    });
    Some(ContainerStats {
        name: attributes.metadata?.name,
        start_time: created.get(&attributes.id).copied().and_then(time),
        cpu: container.cpu.and_then(cpu),
        memory: container.memory.and_then(memory),
        rootfs,
    })
}
