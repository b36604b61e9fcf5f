//! Whole agents against a scripted control plane and a scripted shim.

mod fake_server;
mod fake_shim;
mod lifecycle;
mod recovery;
mod session;
