//! The contract of the store: every case runs on SQLite and on PostgreSQL.

mod bulk;
mod checkpoints;
mod feed;
mod harness;
mod intent;
mod planning;
mod questions;
mod recovery;
mod scheduling;
mod usage;
