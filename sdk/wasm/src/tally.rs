//! Adds up linear memories: those of a module, and those of every module that a component instantiates.

use brig_api::wasm::WasmMemory;
use wasmparser::MemoryType;

const PAGE_BYTES_LOG2: u32 = 16;

/// No memory at all, to add to.
pub(crate) const NONE: WasmMemory =
    WasmMemory { count: 0, initial_bytes: 0, maximum_bytes: Some(0) };

/// `memory` and one more.
pub(crate) fn with(memory: WasmMemory, one: &MemoryType) -> WasmMemory {
    let page_log2 = one.page_size_log2.unwrap_or(PAGE_BYTES_LOG2);
    let bytes = |pages: u64| 1_u64.checked_shl(page_log2).unwrap_or(u64::MAX).saturating_mul(pages);
    let one = WasmMemory {
        count: 1,
        initial_bytes: bytes(one.initial),
        maximum_bytes: one.maximum.map(bytes),
    };
    sum(memory, one)
}

/// Both together.
pub(crate) fn sum(a: WasmMemory, b: WasmMemory) -> WasmMemory {
    WasmMemory {
        count: a.count.saturating_add(b.count),
        initial_bytes: a.initial_bytes.saturating_add(b.initial_bytes),
        maximum_bytes: a.maximum_bytes.zip(b.maximum_bytes).map(|(a, b)| a.saturating_add(b)),
    }
}
