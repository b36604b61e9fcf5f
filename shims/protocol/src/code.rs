//! Compiled code of wasm programs, as far as the agent and the shims' program must agree on it: where it is kept, and what
//! `brig-shim-wasm compile` and `compatibility` say, in JSON on standard output.

use std::path::{Path, PathBuf};

use brig_api::Digest;
use brig_api::lifecycle::Reason;
use brig_api::unit_spec::Isolation;
use serde::{Deserialize, Serialize};

/// The file with a program's code, below the `cache` of all shims, compiled for what `compatibility` names.
#[must_use]
pub fn path(cache: &Path, compatibility: &str, program: &Digest) -> PathBuf {
    cache.join(compatibility).join(format!("{}.code", program.hex()))
}

/// Names of everything that compiled code depends on. Code of one name is of no use under another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compatibilities {
    /// For the shims of namespaces: programs of WASI 0.2, and those of 0.3.
    pub namespace: [String; 2],
    /// The same for the shims of single units.
    pub unit: [String; 2],
}

impl Compatibilities {
    /// Those for shims of one kind.
    #[must_use]
    pub fn of(&self, isolation: Isolation) -> &[String; 2] {
        match isolation {
            Isolation::Namespace => &self.namespace,
            Isolation::Unit => &self.unit,
        }
    }
}

/// A program's code is in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compiled {
    /// What it was compiled for.
    pub compatibility: String,
    /// It was compiled now; else it was there and is sound.
    pub is_new: bool,
}

/// Why a program can't be compiled, or not be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

/// What `brig-shim-wasm compile` answers.
pub type CompileAnswer = Result<Compiled, Refusal>;
