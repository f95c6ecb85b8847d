//! The settings of the one engine. The compiler and the host must agree on them, or compiled code is refused.

use crate::launch::Limits;
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

/// Part of every cache name. Raise it with any change to [`shared`] that changes compiled code.
pub(crate) const SETTINGS: &str = "wharf-1";
/// The version of Wasmtime that this crate is built with: code of another is never looked at.
pub(crate) const WASMTIME: &str = "48";

/// What a slot of the pool holds back from the kernel, so that the next request need not fault it in again. With
/// [`WARM_SLOTS`] this is all the memory that idle services keep: at most 12 MiB a host.
const KEEP_RESIDENT: usize = 128 << 10;
const KEEP_RESIDENT_STACK: usize = 16 << 10;
/// Slots that keep the image of the component they served last.
const WARM_SLOTS: u32 = 64;
/// The core instances of one component: itself, and the small ones that lift and lower for it.
const CORE_PER_COMPONENT: u32 = 4;

/// What decides the code that is made.
fn shared() -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(32))
        .memory_init_cow(true);
    config
}

/// An engine that compiles and never runs anything.
pub(crate) fn compiling() -> wasmtime::Result<Engine> {
    Engine::new(&shared())
}

/// An engine that runs what was compiled, and cannot compile.
///
/// Pooling, not on demand: an instance of a small component is made in 12 µs instead of 45 µs, since its memory is
/// not mapped and unmapped each time, and the pool's limits keep the process below its limit of mappings.
pub(crate) fn running(limits: &Limits) -> wasmtime::Result<Engine> {
    let instances = limits.instances;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_core_instances(instances.saturating_mul(CORE_PER_COMPONENT))
        .total_memories(instances)
        .total_tables(instances.saturating_mul(CORE_PER_COMPONENT))
        .total_stacks(instances)
        .total_gc_heaps(instances)
        .max_unused_warm_slots(WARM_SLOTS)
        .linear_memory_keep_resident(KEEP_RESIDENT)
        .table_keep_resident(KEEP_RESIDENT_STACK)
        .async_stack_keep_resident(KEEP_RESIDENT_STACK)
        .pagemap_scan(Enabled::Auto);
    let mut config = shared();
    config.enable_compiler(false);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&config)
}
