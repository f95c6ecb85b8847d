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
/// Pooling, not on demand: measured below on 2 cores, an instance with a small memory is made, called and dropped in
/// 6 µs instead of 32 µs, since its memory is not mapped and unmapped each time, and the pool's size bounds what the
/// process maps. The price: 13 ms at the start, and 2 mappings a slot (8,056 with 4,000 slots) for the stacks' guards.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;
    use wasmtime::{
        Store,
        component::{Component, Linker},
    };

    /// What chose the pool; prints the figures for this machine.
    #[test]
    #[ignore = "a measure, not a check"]
    fn instances_from_the_pool_against_those_on_demand() {
        let text = r#"(component (core module $m (memory 17) (data (i32.const 70000) "some") (func (export "f")))
            (core instance $i (instantiate $m)) (func (export "f") (canon lift (core func $i "f"))))"#;
        let code = compiling().expect("engine").precompile_component(&wat::parse_str(text).expect("text"));
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("code");
        std::fs::write(&path, code.expect("compiled")).expect("written");
        let mut config = shared();
        config.enable_compiler(false);
        let began = Instant::now();
        let pool = running(&Limits::default()).expect("engine");
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps").lines().count();
        println!("the pool is made in {:?} and has {maps} mappings", began.elapsed());
        for (name, engine) in [("on demand", Engine::new(&config).expect("engine")), ("pool", pool)] {
            #[expect(unsafe_code, reason = "as the cache does")]
            // SAFETY: the file was made by Wasmtime just now and stays as it is.
            let component = unsafe { Component::deserialize_file(&engine, &path) }.expect("code");
            let ready = Linker::<()>::new(&engine).instantiate_pre(&component).expect("no imports");
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
            runtime.block_on(async {
                let mut began = Instant::now();
                for round in 0..11_000 {
                    if round == 1000 {
                        began = Instant::now();
                    }
                    let mut store = Store::new(&engine, ());
                    store.set_epoch_deadline(1);
                    let instance = ready.instantiate_async(&mut store).await.expect("instance");
                    let f = instance.get_typed_func::<(), ()>(&mut store, "f").expect("function");
                    f.call_async(&mut store, ()).await.expect("called");
                }
                println!("{name}: {:?} an instance", began.elapsed() / 10_000);
            });
        }
    }
}
