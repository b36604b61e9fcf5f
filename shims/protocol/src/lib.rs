//! What every shim shares: the protocol with the agent, the frames it travels in, logs and exit records on disk.
//!
//! A shim is a small process that owns running tasks and outlives the agent. The agent starts it with a
//! listening unix socket as file descriptor 0 and `--dir DIR` (its own state directory), and connects to
//! `DIR/shim.sock`. Every task has a directory of its own ([`message::StartTask::dir`]) in which the shim
//! records the exit before it tells anybody ([`exit`]); the agent removes it once it has recorded the exit itself.
#![warn(missing_docs)]

pub mod checkpoint;
pub mod client;
pub mod code;
pub mod exit;
pub mod file;
pub mod frame;
pub mod handover;
pub mod log;
pub mod mapped;
pub mod message;
pub mod tree;
pub mod worker;
