//! Pushing to and pulling from registries: the cluster's own and any other that speaks the OCI distribution API.
//!
//! Everything that comes in is streamed to disk, hashed on the way and kept only when its digest is right. A
//! broken download is continued where it broke, in this process or the next. Why this is not built on a crate
//! for registries is told in docs/registry.md.

mod auth;
mod credentials;
mod endpoint;
mod error;
mod layout;
mod progress;
mod pull;
mod push;
mod store;
#[cfg(test)]
mod tests;
mod transport;
pub mod wasm;

use std::collections::BTreeSet;
use std::sync::Arc;

use brig_api::Digest;

pub use credentials::{Credential, Credentials};
pub use error::RegistryError;
pub use progress::{Progress, Quiet};
pub use store::ContentStore;

/// How registries are reached.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// Base URL of the cluster's server, such as `http://127.0.0.1:7117`: where references without a host go.
    pub builtin: Option<String>,
    /// The token for the cluster's server.
    pub builtin_token: Option<String>,
    /// Hosts (`host` or `host:port`) that are spoken to without TLS. Loopback hosts always may be.
    pub insecure: BTreeSet<String>,
    /// Who we are to other registries.
    pub credentials: Credentials,
}

/// A client of registries. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RegistryClient {
    inner: Arc<transport::Transport>,
}

/// A manifest as a registry gave it, checked.
#[derive(Debug, Clone)]
pub struct FetchedManifest {
    /// SHA-256 of the bytes.
    pub digest: Digest,
    /// The bytes, which the digest is of.
    pub bytes: bytes::Bytes,
    /// What they say.
    pub document: brig_api::oci::Document,
}

/// What a push or pull did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transferred {
    /// Digest of the manifest or index that the reference names.
    pub digest: Digest,
    /// Bytes of blobs that went over the wire.
    pub bytes_sent: u64,
    /// Blobs that were there already.
    pub blobs_known: usize,
}

impl RegistryClient {
    /// A client with these options.
    ///
    /// # Errors
    /// [`RegistryError::Setup`] when the options make no sense or TLS cannot be set up.
    pub fn new(options: RegistryOptions) -> Result<Self, RegistryError> {
        Ok(Self { inner: Arc::new(transport::Transport::new(options)?) })
    }
}
