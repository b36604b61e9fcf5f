//! What can go wrong between us and a registry, in words for its users.

use std::path::{Path, PathBuf};

use brig_api::Digest;

/// A push or pull failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The client's options make no sense.
    #[error("the registry client cannot be set up: {0}")]
    Setup(String),
    /// The reference names the built-in registry, and no server is known.
    #[error(
        "`{reference}` names the cluster's own registry, but no server is configured: give --server, or write the registry's host before the name"
    )]
    NoServer {
        /// The reference.
        reference: String,
    },
    /// Nobody answered, or the connection broke and stayed broken.
    #[error("could not reach the registry {registry}: {why}")]
    Unreachable {
        /// Host of the registry.
        registry: String,
        /// The causes in a row.
        why: String,
    },
    /// 401 or 403.
    #[error(
        "the registry {registry} does not let you at `{repository}` ({why}): log in (`docker login {registry}` writes the file that is read), or check the name"
    )]
    Unauthorised {
        /// Host of the registry.
        registry: String,
        /// The repository.
        repository: String,
        /// What the registry said.
        why: String,
    },
    /// No such manifest.
    #[error(
        "`{reference}` is not in the registry {registry}: check the name and the tag, or push it first"
    )]
    NotFound {
        /// The reference.
        reference: String,
        /// Host of the registry.
        registry: String,
    },
    /// A manifest names a blob that the registry does not have.
    #[error(
        "the registry {registry} has the manifest of `{repository}` but not its blob {digest} ({why}): push the artifact again"
    )]
    BlobMissing {
        /// Host of the registry.
        registry: String,
        /// The repository.
        repository: String,
        /// Of the blob.
        digest: Digest,
        /// What the registry said.
        why: String,
    },
    /// What came is not what was asked for.
    #[error(
        "the registry {registry} sent other bytes for the blob {expected} of `{repository}`: they have the digest {found}; they were thrown away. Its copy is corrupt: delete it there and push the artifact again"
    )]
    DigestMismatch {
        /// Host of the registry.
        registry: String,
        /// The repository.
        repository: String,
        /// As asked for.
        expected: Digest,
        /// Of what came.
        found: Digest,
    },
    /// The blob has another length than its manifest says.
    #[error("the blob {digest} of `{repository}` has {found} bytes; its manifest says {expected}")]
    SizeMismatch {
        /// The repository.
        repository: String,
        /// Of the blob.
        digest: Digest,
        /// By the manifest.
        expected: u64,
        /// Counted, at least.
        found: u64,
    },
    /// The manifest is none.
    #[error("what `{reference}` names cannot be read: {source}")]
    Manifest {
        /// The reference.
        reference: String,
        /// Why.
        source: brig_api::oci::InvalidDocument,
    },
    /// The registry refused for a reason of its own.
    #[error("the registry {registry} refused ({status}): {why}")]
    Refused {
        /// Host of the registry.
        registry: String,
        /// The HTTP status.
        status: u16,
        /// What the registry said.
        why: String,
    },
    /// No room left here.
    #[error("the disk is full: could not write {}; free space there and try again", .path.display())]
    DiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// A local file cannot be read or written.
    #[error("cannot use {}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file to push is no wasm.
    #[error("{} is {found}; expected a WebAssembly module or component (a file that begins with `\\0asm`): {hint}", .path.display())]
    NotWasm {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// The way out.
        hint: &'static str,
    },
    /// The file begins like wasm but is broken.
    #[error("{} is no valid WebAssembly: {why}; build it again", .path.display())]
    BrokenWasm {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        why: String,
    },
    /// The folder or tar is no OCI layout.
    #[error("{} is no OCI image layout: {why}; expected a folder or tar with `oci-layout`, `index.json` and `blobs/`, as `skopeo copy … oci:DIR` makes it", .path.display())]
    NotLayout {
        /// The folder or tar.
        path: PathBuf,
        /// What is missing or wrong.
        why: String,
    },
}

impl RegistryError {
    /// An I/O error on a local file: [`Self::DiskFull`] where that is what it is.
    pub(crate) fn file(path: &Path, source: std::io::Error) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        let path = path.to_owned();
        match source.kind() {
            StorageFull | QuotaExceeded => Self::DiskFull { path },
            _ => Self::File { path, source },
        }
    }
}

/// An error with its causes, in one line.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
