//! All SQL of the control plane, on SQLite and on PostgreSQL: what users asked for, what was decided, what happened.
//!
//! One [`Store`] per process, cheap to clone. A method is one transaction: it takes effect whole or not at all. Every
//! write that changes something takes the next [`brig_api::Revision`] and appends to the change feed; a write that
//! changes nothing takes none.
//!
//! **Invariant:** revisions have no gaps, and the feed holds every change of a kept revision, in order.
//! **Invariant:** writers take their turns: each locks the counter of revisions before it reads anything.
//! **Invariant:** whatever was committed is announced, whether or not who asked for it still waits.
//! **Invariant:** secrets' texts leave the store through [`Store::texts_for`] alone, and what programs saved through
//! [`Store::checkpoint_get`].
#![warn(missing_docs)]

mod apply;
mod artifact;
mod checkpoint;
mod command;
mod event;
mod feed;
mod lease;
mod node;
mod object;
mod plan;
mod sql;
mod status;
mod store;
mod text;
mod usage;

mod classify;
mod columns;
mod database;
mod error;
mod many;
mod schema;
mod table;
mod write;

pub use artifact::NewArtifact;
pub use checkpoint::Resumption;
pub use error::StoreError;
pub use event::EventFilter;
pub use plan::Committed;
pub use store::{Backend, Store};
