//! Where the wasm shims of a node keep compiled code, as far as the agent must know it.

use std::path::{Path, PathBuf};

use brig_api::Digest;

/// The file with a program's code, below the `cache` of all shims, compiled for what `compatibility` names.
#[must_use]
pub fn path(cache: &Path, compatibility: &str, program: &Digest) -> PathBuf {
    cache.join(compatibility).join(format!("{}.code", program.hex()))
}
