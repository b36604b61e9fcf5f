//! Looks into a wasm file: what it is, what it imports and exports, how much memory it has, what made it.
//!
//! Only the sections that say so are read, the rest is skipped: an interpreter of 26 MB is looked through by reading
//! a few kilobytes. Nothing is compiled or validated; whether the code is right is seen by the compiler. Files are
//! hostile: whatever they claim, one look reads at most [`READ_BYTES_MAX`] and keeps what [`brig_api::wasm`] allows.
#![warn(missing_docs)]

mod names;
mod tally;
#[cfg(test)]
mod tests;
mod walk;

use std::io::{self, Read, Seek};

use brig_api::wasm::{WasmFacts, WasmForm};

pub use walk::READ_BYTES_MAX;

/// Why a file could not be looked into.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It does not begin as wasm does.
    #[error("it is no WebAssembly: it begins neither as a module nor as a component")]
    NotWasm,
    /// It is damaged, or was cut off.
    #[error("it is damaged at byte {offset}: {why}")]
    Broken {
        /// Where.
        offset: u64,
        /// How.
        why: String,
    },
    /// It can't be read.
    #[error("it can't be read: {0}")]
    Read(#[from] io::Error),
}

/// What the first bytes of a wasm binary say it is; None when they are not those of a wasm binary.
#[must_use]
pub fn form_of(bytes: &[u8]) -> Option<WasmForm> {
    match bytes.get(..8)? {
        b"\0asm\x01\0\0\0" => Some(WasmForm::Module),
        b"\0asm\x0d\0\x01\0" => Some(WasmForm::Component),
        _ => None,
    }
}

/// Looks into a wasm file. The kind is [`brig_api::wasm::WasmKind::Unknown`] when finding it out would cost too much.
///
/// # Errors
/// [`InspectError`]
pub fn inspect(file: impl Read + Seek) -> Result<WasmFacts, InspectError> {
    walk::walk(file)
}
