//! What containers use, in CRI's messages, the same for both runtimes.

use wharf_cri::v1::{self, UInt64Value};

use crate::error::Error;
use crate::record::Container;
use crate::shim::{Shim, now};
use crate::view;

/// The usage of one container now.
///
/// # Errors
/// That of its runtime, which does not know a container that is over.
pub async fn of(shim: &Shim, container: &Container) -> Result<v1::ContainerStats, Error> {
    let value = |value: u64| Some(UInt64Value { value });
    let timestamp = now();
    let (cpu_nanos, memory) = if container.wasm {
        let stats = shim.wasm()?.stats(&container.id).await?;
        let available =
            stats.memory_limit_bytes.checked_sub(stats.memory_bytes).filter(|_| stats.memory_limit_bytes > 0);
        let memory = v1::MemoryUsage {
            timestamp,
            working_set_bytes: value(stats.memory_bytes),
            usage_bytes: value(stats.memory_bytes),
            rss_bytes: value(stats.memory_bytes),
            available_bytes: available.and_then(value),
            ..Default::default()
        };
        (stats.cpu_nanos, memory)
    } else {
        let stats = shim.oci.stats(&container.id).await?.unwrap_or_default();
        let memory = v1::MemoryUsage {
            timestamp,
            working_set_bytes: value(stats.memory_working_set),
            usage_bytes: value(stats.memory_usage),
            rss_bytes: value(stats.memory_rss),
            available_bytes: stats
                .memory_limit
                .map(|limit| limit.saturating_sub(stats.memory_working_set))
                .and_then(value),
            ..Default::default()
        };
        (stats.cpu_usage_nanos, memory)
    };
    Ok(v1::ContainerStats {
        attributes: Some(view::container_attributes(container)),
        cpu: Some(v1::CpuUsage {
            timestamp,
            usage_core_nano_seconds: value(cpu_nanos),
            ..Default::default()
        }),
        memory: Some(memory),
        ..Default::default()
    })
}
