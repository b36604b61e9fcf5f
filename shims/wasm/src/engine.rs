//! The wasmtime engine: its settings, and what they are for.

use std::hash::{Hash, Hasher};
use std::num::NonZeroUsize;

use brig_api::unit_spec::Isolation;
use sha2::{Digest, Sha256};
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, ModuleVersionStrategy,
    PoolingAllocationConfig, WasmBacktraceDetails,
};

/// What compiled code is marked with besides wasmtime's own version. To be changed whenever the settings below
/// change in a way that wasmtime does not see.
const CODE_VERSION: &str = concat!("brig-", env!("CARGO_PKG_VERSION"), "-2");
/// Most guests of one shim at a time: tasks, and requests of http services. Each has a guarded stack, which is two
/// mappings from the beginning, and two more while it runs; the kernel's default of 65,530 mappings per process is the
/// wall. What is not used costs address space and those two mappings, no memory.
pub(crate) const GUESTS_MAX: u32 = 10_000;
/// Most of those that run on the engine with concurrency: both pools share the process's mappings. And most guests of a
/// shim that has one unit only: its requests.
const FEW_GUESTS_MAX: u32 = 1_000;
/// Instances, memories and tables per guest that the pool is sized for; components have a few of each.
const PARTS_PER_GUEST: u32 = 2;
/// Largest linear memory: all that 32 bits reach. A task's own limit is enforced by its limiter.
const MEMORY_BYTES_MAX: usize = 4 << 30;
/// Largest table in elements; interpreters keep every function of theirs in one.
const TABLE_ELEMENTS_MAX: usize = 100_000;
/// Largest bookkeeping of an instance; it grows with the number of functions.
const INSTANCE_BYTES_MAX: usize = 8 << 20;
/// Memory of a finished guest that is zeroed and kept instead of returned to the kernel.
const MEMORY_KEEP_BYTES: usize = 1 << 20;
/// The same for tables.
const TABLE_KEEP_BYTES: usize = 64 << 10;

/// Frames of a trap's backtrace.
const FRAMES_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not zero");

/// Whether the functions of a component may wait side by side: WASI 0.3. It costs every call into a guest something
/// (a start of a 0.2 component takes a third longer), so that there are two engines, and code of one is never given to
/// the other: their [`compatibility`] differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Concurrency {
    Off,
    On,
}

impl Concurrency {
    /// The word for it on the command line.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
        }
    }
}

/// What decides what compiled code looks like: the same for the compiler and for the shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) concurrency: Concurrency,
    /// In a shim of its own a guest is never interrupted, and so does not have to look whether it is: some loops are twice
    /// as fast. Its share of the processor is its cgroup's, and its end the process's.
    pub(crate) isolation: Isolation,
}

fn config(settings: Settings) -> wasmtime::Result<Config> {
    let is_concurrent = settings.concurrency == Concurrency::On;
    let mut config = Config::new();
    config
        .epoch_interruption(settings.isolation == Isolation::Namespace)
        // Modules that have debug information keep it in their compiled code; it is read after a trap only.
        .wasm_backtrace_details(WasmBacktraceDetails::Enable)
        .wasm_backtrace_max_frames(Some(FRAMES_MAX))
        .wasm_memory64(false)
        .wasm_component_model_async(is_concurrent)
        .concurrency_support(is_concurrent)
        .relaxed_simd_deterministic(true)
        .module_version(ModuleVersionStrategy::Custom(CODE_VERSION.to_owned()))?;
    Ok(config)
}

/// The engine of the one-shot compiler.
pub(crate) fn for_compiling(settings: Settings) -> wasmtime::Result<Engine> {
    Engine::new(&config(settings)?)
}

/// The engine of a shim: the same code, and a pool of slots for guests.
pub(crate) fn for_running(settings: Settings) -> wasmtime::Result<Engine> {
    let mut pooled = config(settings)?;
    pooled.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(settings)));
    match Engine::new(&pooled) {
        Ok(engine) => Ok(engine),
        Err(error) => {
            // A limit on address space or mappings. Everything works without the pool, starts take longer.
            tracing::warn!(error = format!("{error:#}"), "no room for a pool of guests");
            for_compiling(settings)
        }
    }
}

fn pool(settings: Settings) -> PoolingAllocationConfig {
    let guests = match settings {
        Settings { concurrency: Concurrency::Off, isolation: Isolation::Namespace } => GUESTS_MAX,
        _ => FEW_GUESTS_MAX,
    };
    let parts = guests * PARTS_PER_GUEST;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(guests)
        .total_core_instances(parts * 2)
        .total_memories(parts)
        .total_tables(parts)
        .total_stacks(guests)
        .max_core_instance_size(INSTANCE_BYTES_MAX)
        .max_component_instance_size(INSTANCE_BYTES_MAX)
        .max_tables_per_module(8)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_memory_size(MEMORY_BYTES_MAX)
        .linear_memory_keep_resident(MEMORY_KEEP_BYTES)
        .table_keep_resident(TABLE_KEEP_BYTES)
        .pagemap_scan(Enabled::Auto);
    pool
}

/// A name for everything that compiled code depends on: wasmtime's exact version and settings, the processor's
/// features, and our own version. Code compiled under another name is never looked at.
pub(crate) fn compatibility(engine: &Engine) -> String {
    struct Sha(Sha256);
    impl Hasher for Sha {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            0 // never asked for: the whole sum is taken instead
        }
    }
    let mut sum = Sha(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut sum);
    CODE_VERSION.hash(&mut sum);
    std::env::consts::ARCH.hash(&mut sum);
    let sum: [u8; 32] = sum.0.finalize().into();
    brig_api::Digest::of_sha256(&sum).hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiler_and_shim_agree_on_the_code_and_other_settings_do_not() {
        let mut names = std::collections::BTreeSet::new();
        for isolation in [Isolation::Namespace, Isolation::Unit] {
            for concurrency in [Concurrency::Off, Concurrency::On] {
                let settings = Settings { concurrency, isolation };
                let compiling = compatibility(&for_compiling(settings).unwrap());
                assert_eq!(compiling, compatibility(&for_running(settings).unwrap()));
                assert_eq!(
                    compiling,
                    compatibility(&for_compiling(settings).unwrap()),
                    "it is stable"
                );
                assert!(names.insert(compiling), "{settings:?} is like another");
            }
        }
        let settings = Settings { concurrency: Concurrency::Off, isolation: Isolation::Namespace };
        let mut other = config(settings).unwrap();
        other.module_version(ModuleVersionStrategy::Custom("other".into())).unwrap();
        assert!(names.insert(compatibility(&Engine::new(&other).unwrap())));
    }
}
