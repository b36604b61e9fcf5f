//! Tells somebody how far a transfer is: the command line draws bars, a node logs.

use brig_api::Digest;

/// Is told about transfers. Called often (per piece of a blob), from several tasks at once: be quick.
pub trait Progress: Send + Sync {
    /// A blob's transfer begins; `done` bytes are there from an earlier try.
    fn begin(&self, blob: &Digest, done: u64, total: u64);
    /// `done` bytes of the blob are there now. Goes back when a transfer starts again.
    fn advance(&self, blob: &Digest, done: u64);
    /// The blob is there whole; `was_known` when nothing had to be sent.
    fn end(&self, blob: &Digest, was_known: bool);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn begin(&self, _: &Digest, _: u64, _: u64) {}
    fn advance(&self, _: &Digest, _: u64) {}
    fn end(&self, _: &Digest, _: bool) {}
}
