//! The node agent: runs what a control plane assigns to this machine, and reports how it is.
//!
//! Reading order: [`record`] is what is known of a unit, [`plan`] decides about it, `agent` hears and executes;
//! `prepare` makes a unit ready, `shims` reaches the processes that run tasks, `session` the control plane.
//! [`disk`] says what is where. For operators: `docs/node.md`.
#![warn(missing_docs)]

mod agent;
pub mod artifacts;
mod clock;
mod compiled;
pub mod config;
pub mod disk;
mod event;
mod facts;
mod fetch;
mod held;
mod logs;
pub mod plan;
mod prepare;
pub mod program;
pub mod record;
mod run;
mod session;
mod shims;
mod streams;
#[cfg(test)]
mod tests;

pub use config::NodeConfig;
pub use run::{RunError, run, run_with};
pub use shims::ShimId;
pub use tokio_util::sync::CancellationToken;
