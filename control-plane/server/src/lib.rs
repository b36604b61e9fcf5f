//! The control plane as a server: the `/v1` API, watches, node sessions, the registry, and the loop that plans.
//!
//! ```text
//!  clients ──▶ access ──▶ route ──▶ api ──────▶ store (SQL)
//!                                    ▲            │ commits
//!  nodes ◀──▶ node::session ◀── feed ◀────────────┤
//!                 │ contact       │               │
//!                 └──────────▶ conductor ─────────┘ brig_core::plan, plan_commit
//! ```
//!
//! **Invariant:** nothing acts on a change before it is committed; everything acts on the feed of commits.
//! **Invariant:** the server's memory holds nothing that SQL does not: it can be killed at any moment.
#![warn(missing_docs)]

mod access;
mod api;
mod app;
mod clock;
mod compiled;
mod conductor;
mod config;
mod extract;
mod feed;
mod housekeeping;
mod index;
mod limits;
mod node;
mod problem;
mod questions;
pub mod registry;
mod route;
mod serve;
mod server;
#[cfg(test)]
mod tests;

pub use config::{ServerConfig, StartError};
pub use server::{Handle, run};
