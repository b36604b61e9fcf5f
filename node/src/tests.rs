//! Whole agents against a scripted control plane and a scripted shim.

mod checkpoints;
pub(crate) mod fake_compiler;
pub(crate) mod fake_server;
mod fake_shim;
pub(crate) mod lifecycle;
mod recovery;
mod session;
