//! Being written.

pub mod registry;
