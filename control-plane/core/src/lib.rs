//! The pure core: the model of the cluster, and every decision about it. No I/O, no clock, no random source.
//!
//! ```text
//!   change feed ──▶ Model ──┐
//!                           ├──▶ plan() = reconcile ▶ queue ▶ filter ▶ score ▶ place ──▶ Plan ──▶ (store commits it)
//!   what nodes hold ────────┤
//!   now, silent nodes ──────┘
//! ```
//!
//! **Invariant:** the same model and moment give the same plan, byte for byte.
//! **Invariant:** nothing acts on a plan before the store has committed it.
#![warn(missing_docs)]

pub mod commit;
pub mod model;
pub mod plan;
pub mod reconcile;
pub mod simulate;

mod agenda;
mod candidates;
mod draft;
mod explain;
mod gang;
mod ground;
mod holdings;
mod index;
mod judge;
mod names;
mod obstacle;
mod place;
mod preempt;
mod queue;
mod tournament;
mod vector;

pub use holdings::Holdings;
pub use model::Model;
pub use plan::{Decision, Moment, Plan, plan, preview, why, why_on};
pub use simulate::{Arrival, Scenario, simulate};

#[cfg(test)]
mod tests;
