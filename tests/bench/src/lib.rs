//! Benchmarks of the whole system; see `benches/`. Figures and how to repeat them are in docs/benchmarks.md.

mod daemon;
pub mod process;
mod shim;

pub use daemon::{Daemon, build};
pub use shim::Shim;
