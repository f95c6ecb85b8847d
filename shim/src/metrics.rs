//! CRI's metrics of pods and containers: the names that cAdvisor gave them, each with its labels.
//!
//! A row of [`METRICS`] is a metric; [`of_container`] and [`of_link`] say what is known of each. A container of wasm has those
//! that the wasm host counts, and no others.

use std::sync::Arc;

use wharf_cri::v1::{self, ContainerState, MetricDescriptor, MetricType, UInt64Value};
use wharf_oci::Details;
use wharf_sandbox::Counters;

use crate::record::{Container, Sandbox};
use crate::shim::{Shim, now};
use crate::stats::{Layer, Links};

/// What every metric is labelled with.
const LABELS: [&str; 5] = ["pod", "namespace", "container", "id", "image"];
const DEVICE: &[&str] = &["device"];
const INTERFACE: &[&str] = &["interface"];
const SECOND: u64 = 1_000_000_000;

/// A metric: its name, labels beside [`LABELS`], whether it only grows, and what it tells.
type Metric = (&'static str, &'static [&'static str], MetricType, &'static str);

use MetricType::{Counter, Gauge};

#[rustfmt::skip]
const METRICS: &[Metric] = &[
    ("container_spec_cpu_period", &[], Gauge, "Length of the periods of the processor quota, in microseconds"),
    ("container_spec_cpu_shares", &[], Gauge, "Weight among those who want the processor"),
    ("container_spec_memory_limit_bytes", &[], Gauge, "Limit of memory, 0 without one"),
    ("container_spec_memory_swap_limit_bytes", &[], Gauge, "Limit of memory and swap together, 0 without one"),
    ("container_cpu_user_seconds_total", &[], Counter, "Processor time in its own code"),
    ("container_cpu_system_seconds_total", &[], Counter, "Processor time in the kernel"),
    ("container_cpu_usage_seconds_total", &[], Counter, "Processor time"),
    ("container_cpu_cfs_periods_total", &[], Counter, "Periods with a processor quota in force"),
    ("container_cpu_cfs_throttled_periods_total", &[], Counter, "Periods whose quota was used up"),
    ("container_cpu_cfs_throttled_seconds_total", &[], Counter, "Time that it waited for the next period"),
    ("container_memory_cache", &[], Gauge, "Pages of files, in bytes"),
    ("container_memory_rss", &[], Gauge, "Memory that is no page of a file, in bytes"),
    ("container_memory_kernel_usage", &[], Gauge, "Memory that the kernel holds for it, in bytes"),
    ("container_memory_mapped_file", &[], Gauge, "Mapped pages of files, in bytes"),
    ("container_memory_swap", &[], Gauge, "Swapped out, in bytes"),
    ("container_memory_failcnt", &[], Counter, "How often the limit of memory was hit"),
    ("container_memory_usage_bytes", &[], Gauge, "All memory, in bytes"),
    ("container_memory_max_usage_bytes", &[], Gauge, "The most memory so far, in bytes"),
    ("container_memory_working_set_bytes", &[], Gauge, "Memory without file pages that would be dropped first, in bytes"),
    ("container_memory_total_active_file_bytes", &[], Gauge, "File pages used lately, in bytes"),
    ("container_memory_total_inactive_file_bytes", &[], Gauge, "File pages not used lately, in bytes"),
    ("container_memory_failures_total", &["failure_type", "scope"], Counter, "Page faults"),
    ("container_oom_events_total", &[], Counter, "Processes that were killed for want of memory"),
    ("container_network_receive_bytes_total", INTERFACE, Counter, "Bytes received"),
    ("container_network_receive_packets_total", INTERFACE, Counter, "Packets received"),
    ("container_network_receive_packets_dropped_total", INTERFACE, Counter, "Packets dropped while receiving"),
    ("container_network_receive_errors_total", INTERFACE, Counter, "Errors while receiving"),
    ("container_network_transmit_bytes_total", INTERFACE, Counter, "Bytes sent"),
    ("container_network_transmit_packets_total", INTERFACE, Counter, "Packets sent"),
    ("container_network_transmit_packets_dropped_total", INTERFACE, Counter, "Packets dropped while sending"),
    ("container_network_transmit_errors_total", INTERFACE, Counter, "Errors while sending"),
    ("container_fs_inodes_free", DEVICE, Gauge, "Files that its file system has room for"),
    ("container_fs_inodes_total", DEVICE, Gauge, "Files that its file system can have"),
    ("container_fs_limit_bytes", DEVICE, Gauge, "Size of its file system"),
    ("container_fs_usage_bytes", DEVICE, Gauge, "Bytes that it wrote to its file system"),
    ("container_fs_reads_bytes_total", DEVICE, Counter, "Bytes read from a disk"),
    ("container_fs_reads_total", DEVICE, Counter, "Reads from a disk"),
    ("container_fs_writes_bytes_total", DEVICE, Counter, "Bytes written to a disk"),
    ("container_fs_writes_total", DEVICE, Counter, "Writes to a disk"),
    ("container_blkio_device_usage_total", &["device", "major", "minor", "operation"], Counter, "Bytes to and from a disk"),
    ("container_processes", &[], Gauge, "Processes"),
    ("container_file_descriptors", &[], Gauge, "Open files"),
    ("container_sockets", &[], Gauge, "Open sockets"),
    ("container_threads_max", &[], Gauge, "Threads that it may have, 0 without a limit"),
    ("container_threads", &[], Gauge, "Threads"),
    ("container_last_seen", &[], Gauge, "When this was found out, in seconds since the epoch"),
    ("container_start_time_seconds", &[], Gauge, "When it started, in seconds since the epoch"),
];

/// What [`pods`] may tell.
pub fn descriptors() -> Vec<MetricDescriptor> {
    let labels = |more: &[&str]| LABELS.iter().chain(more).map(|&label| label.to_owned()).collect();
    let describe = |(name, more, _, help): &Metric| MetricDescriptor {
        name: (*name).to_owned(),
        help: (*help).to_owned(),
        label_keys: labels(more),
    };
    METRICS.iter().map(describe).collect()
}

/// A value: the metric's name, the values of its labels beside [`LABELS`], and itself.
type Value = (&'static str, Vec<String>, u64);

/// The metrics of these pods and of their containers that run.
pub async fn pods(shim: &Shim, sandboxes: &[Arc<Sandbox>]) -> Vec<v1::PodSandboxMetrics> {
    let links = Links::here();
    let mut all = Vec::with_capacity(sandboxes.len());
    for sandbox in sandboxes {
        let metadata = sandbox.config().metadata.clone().unwrap_or_default();
        let labels = |container: &str, id: &str, image: &str| {
            [&metadata.name, &metadata.namespace, container, id, image].map(str::to_owned).to_vec()
        };
        let mut container_metrics = Vec::new();
        for container in shim.containers_of(&sandbox.id) {
            // One that ends meanwhile is left out.
            if container.state() == ContainerState::ContainerRunning
                && let Some(values) = measure(shim, &container).await
            {
                let config = container.config();
                let name = config.metadata.clone().unwrap_or_default().name;
                let image = config.image.clone().unwrap_or_default();
                let image = match image.user_specified_image.is_empty() {
                    true => image.image,
                    false => image.user_specified_image,
                };
                let labels = labels(&name, &container.id, &image);
                let metrics = metrics(&labels, values);
                container_metrics.push(v1::ContainerMetrics { container_id: container.id.clone(), metrics });
            }
        }
        let link = links.of(sandbox).map(of_link).unwrap_or_default();
        all.push(v1::PodSandboxMetrics {
            pod_sandbox_id: sandbox.id.clone(),
            metrics: metrics(&labels("", &sandbox.id, ""), link),
            container_metrics,
        });
    }
    all
}

fn metrics(labels: &[String], values: Vec<Value>) -> Vec<v1::Metric> {
    let timestamp = now();
    let metric = |(name, more, value): Value| {
        let (.., kind, _) = METRICS.iter().find(|(known, ..)| *known == name)?;
        Some(v1::Metric {
            name: name.to_owned(),
            timestamp,
            metric_type: (*kind).into(),
            label_values: [labels, &more].concat(),
            value: Some(UInt64Value { value }),
        })
    };
    values.into_iter().filter_map(metric).collect()
}

/// None of a container that its runtime does not know any more.
async fn measure(shim: &Shim, container: &Container) -> Option<Vec<Value>> {
    let mut values = match container.wasm {
        true => of_wasm(&shim.wasm().ok()?.stats(&container.id).await.ok()?),
        false => {
            let details = shim.oci.details(&container.id).await.ok()??;
            let layer = shim.layers.of(&container.id, shim.container_dir(&container.id)).await;
            let mut values = of_container(&details);
            values.extend(of_files(shim, layer));
            values
        }
    };
    let seconds = |nanos: i64| u64::try_from(nanos).unwrap_or(0) / SECOND;
    values.push(("container_last_seen", Vec::new(), seconds(now())));
    values.push(("container_start_time_seconds", Vec::new(), seconds(container.started_at)));
    Some(values)
}

fn of_wasm(stats: &wharf_wasm::Stats) -> Vec<Value> {
    let plain = |name, value| (name, Vec::new(), value);
    vec![
        plain("container_cpu_usage_seconds_total", stats.cpu_nanos / SECOND),
        plain("container_memory_usage_bytes", stats.memory_bytes),
        plain("container_memory_working_set_bytes", stats.memory_bytes),
        plain("container_memory_rss", stats.memory_bytes),
        plain("container_memory_max_usage_bytes", stats.memory_peak_bytes),
        plain("container_spec_memory_limit_bytes", stats.memory_limit_bytes),
    ]
}

fn of_container(details: &Details) -> Vec<Value> {
    let plain = |name, value| (name, Vec::new(), value);
    let faults = |kind: &str, value| {
        ("container_memory_failures_total", vec![kind.to_owned(), "container".to_owned()], value)
    };
    let stats = &details.stats;
    vec![
        plain("container_spec_cpu_period", details.cpu_period_micros),
        plain("container_spec_cpu_shares", details.cpu_shares),
        plain("container_spec_memory_limit_bytes", stats.memory_limit.unwrap_or(0)),
        plain("container_spec_memory_swap_limit_bytes", details.swap_limit.unwrap_or(0)),
        plain("container_cpu_user_seconds_total", details.cpu_user_nanos / SECOND),
        plain("container_cpu_system_seconds_total", details.cpu_system_nanos / SECOND),
        plain("container_cpu_usage_seconds_total", stats.cpu_usage_nanos / SECOND),
        plain("container_cpu_cfs_periods_total", details.periods),
        plain("container_cpu_cfs_throttled_periods_total", details.throttled_periods),
        plain("container_cpu_cfs_throttled_seconds_total", details.throttled_nanos / SECOND),
        plain("container_memory_cache", details.memory_cache),
        plain("container_memory_rss", stats.memory_rss),
        plain("container_memory_kernel_usage", details.memory_kernel),
        plain("container_memory_mapped_file", details.memory_mapped_file),
        plain("container_memory_swap", details.memory_swap),
        plain("container_memory_failcnt", details.memory_failures),
        plain("container_memory_usage_bytes", stats.memory_usage),
        plain("container_memory_max_usage_bytes", details.memory_peak),
        plain("container_memory_working_set_bytes", stats.memory_working_set),
        plain("container_memory_total_active_file_bytes", details.memory_active_file),
        plain("container_memory_total_inactive_file_bytes", details.memory_inactive_file),
        faults("pgfault", stats.page_faults),
        faults("pgmajfault", stats.major_page_faults),
        plain("container_oom_events_total", details.oom_kills),
        plain("container_processes", details.processes),
        plain("container_file_descriptors", details.open_files),
        plain("container_sockets", details.sockets),
        plain("container_threads_max", details.threads_max.unwrap_or(0)),
        plain("container_threads", stats.pids),
    ]
}

/// Its root file system: what it wrote, and what there is.
fn of_files(shim: &Shim, layer: Option<Layer>) -> Vec<Value> {
    let of = |name, value| (name, vec!["/".to_owned()], value);
    let mut values: Vec<Value> =
        layer.map(|layer| of("container_fs_usage_bytes", layer.bytes)).into_iter().collect();
    if let Ok(disk) = nix::sys::statvfs::statvfs(&shim.config.root) {
        values.extend([
            of("container_fs_limit_bytes", disk.blocks().saturating_mul(disk.fragment_size())),
            of("container_fs_inodes_total", disk.files()),
            of("container_fs_inodes_free", disk.files_free()),
        ]);
    }
    values
}

fn of_link(counters: Counters) -> Vec<Value> {
    let of = |name, value| (name, vec!["eth0".to_owned()], value);
    let (received, sent) = (counters.received, counters.sent);
    vec![
        of("container_network_receive_bytes_total", received.bytes),
        of("container_network_receive_packets_total", received.packets),
        of("container_network_receive_packets_dropped_total", received.dropped),
        of("container_network_receive_errors_total", received.errors),
        of("container_network_transmit_bytes_total", sent.bytes),
        of("container_network_transmit_packets_total", sent.packets),
        of("container_network_transmit_packets_dropped_total", sent.dropped),
        of("container_network_transmit_errors_total", sent.errors),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_a_descriptor_and_as_many_labels() {
        let values = of_container(&Details::default())
            .into_iter()
            .chain(of_link(Counters::default()))
            .chain(of_wasm(&wharf_wasm::Stats::default()));
        let labels = ["p", "n", "c", "i", "m"].map(str::to_owned);
        let descriptors = descriptors();
        for value in values {
            let name = value.0;
            let told = metrics(&labels, vec![value]);
            let [metric] = told.as_slice() else { panic!("{name} has no descriptor") };
            let descriptor = descriptors.iter().find(|known| known.name == name).unwrap();
            assert_eq!(metric.label_values.len(), descriptor.label_keys.len(), "{name}");
            assert_eq!(
                metric.metric_type() == Counter,
                name.ends_with("_total") || name.ends_with("_failcnt"),
                "{name}"
            );
        }
    }

    #[test]
    fn no_metric_is_described_twice() {
        let mut names: Vec<_> = METRICS.iter().map(|(name, ..)| name).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
