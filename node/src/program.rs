//! Where programs come from: what the agent needs of whoever fetches artifacts.

use std::path::PathBuf;

use brig_api::unit_spec::Runtime;
use brig_api::{Digest, NamespacePath};
use futures::future::BoxFuture;

use crate::plan::Fault;

/// A program that is on this machine and was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// A wasm module or component.
    Wasm {
        /// The file.
        path: PathBuf,
        /// Its digest.
        digest: Digest,
    },
    /// An image for one platform.
    Image {
        /// What it says about how to run it.
        config: ImageConfig,
        /// Unpacked layers, lowest first.
        layers: Vec<PathBuf>,
    },
}

/// The part of an image's configuration that a container is made from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageConfig {
    /// `amd64` and so on; empty when the image does not say.
    pub architecture: String,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// The program.
    pub entrypoint: Vec<String>,
    /// Its default arguments, or the program where there is no entrypoint.
    pub cmd: Vec<String>,
    /// `user[:group]`; empty for root.
    pub user: String,
    /// Working directory; empty for the root directory.
    pub working_dir: String,
    /// Such as `SIGQUIT`.
    pub stop_signal: Option<String>,
}

/// Fetches programs. What is there already is answered at once.
pub trait Programs: Send + Sync + 'static {
    /// Fetches what `reference` names for a unit of `namespace`, to be run in `runtime`: some references name something
    /// for each. What comes may be for the other one all the same.
    fn fetch<'a>(
        &'a self,
        namespace: &'a NamespacePath,
        reference: &'a str,
        runtime: Runtime,
    ) -> BoxFuture<'a, Result<Fetched, Fault>>;
}
