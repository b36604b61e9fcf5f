//! Benchmarks of the whole system; see `benches/`. Figures and how to repeat them are in docs/benchmarks.md.

mod daemon;
pub mod process;
mod shim;

pub use daemon::{Daemon, build};
pub use shim::Shim;

/// Sleeps for an hour: a subscription of `poll_oneoff` to the clock.
pub const SLEEP: &str = r#"(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (i64.const 3600000000000))
    (drop (call $poll (i32.const 0) (i32.const 4096) (i32.const 1) (i32.const 8192)))))"#;
