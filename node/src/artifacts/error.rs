//! Why an artifact cannot be had or run, in words for its users, and which reason a unit gets for it.

use std::path::{Path, PathBuf};

use brig_api::Digest;
use brig_api::lifecycle::Reason;
use brig_api::reference::Reference;
use brig_client::registry::RegistryError;

use super::unpack::UnpackError;

/// An artifact could not be fetched, or cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The registry or the way to it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// No image for this machine.
    #[error(
        "`{reference}` is for {offered}; this node is {wanted}: push an image for {wanted}, or place the unit on another node (constraint on `arch`)"
    )]
    Platform {
        /// The reference.
        reference: String,
        /// What there is.
        offered: String,
        /// What this machine is.
        wanted: String,
    },
    /// An index within an index.
    #[error(
        "`{reference}` is an index whose entry {digest} is an index again; push the image itself"
    )]
    NestedIndex {
        /// The reference.
        reference: String,
        /// Of the inner index.
        digest: Digest,
    },
    /// Neither wasm nor an image.
    #[error(
        "`{reference}` is neither a wasm program nor a container image (its configuration is `{config}`): push it with `brig push`"
    )]
    NotRunnable {
        /// The reference.
        reference: String,
        /// Media type of the configuration.
        config: String,
    },
    /// The other kind than the task asks for.
    #[error(
        "`{reference}` is {found}, but the task asks for {wanted}: write {instead} in the manifest"
    )]
    WrongRuntime {
        /// The reference.
        reference: String,
        /// What it is.
        found: &'static str,
        /// What the task asks for.
        wanted: &'static str,
        /// What to write.
        instead: &'static str,
    },
    /// Says it is wasm and is not.
    #[error(
        "`{reference}` says that it is wasm, but holds {found}: push it again with `brig push FILE.wasm`"
    )]
    NotWasm {
        /// The reference.
        reference: String,
        /// What it is.
        found: &'static str,
    },
    /// A limit on the size.
    #[error("`{reference}` has {bytes} bytes; at most {bytes_max} are taken")]
    TooLarge {
        /// The reference.
        reference: String,
        /// By its manifest.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// A limit on the layers.
    #[error(
        "`{reference}` has {count} layers; at most {} are taken: squash the image",
        super::LAYERS_MAX
    )]
    TooManyLayers {
        /// The reference.
        reference: String,
        /// By its manifest.
        count: usize,
    },
    /// The image's configuration is unusable.
    #[error("the configuration of `{reference}` cannot be used: {why}")]
    Config {
        /// The reference.
        reference: String,
        /// What is wrong.
        why: String,
    },
    /// A layer cannot be unpacked.
    #[error("the layer {layer} of `{reference}` cannot be unpacked: {source}")]
    Layer {
        /// The reference.
        reference: String,
        /// Digest of the compressed layer.
        layer: Digest,
        /// Why.
        source: UnpackError,
    },
    /// As [`Self::Layer`], before it is known whose layer it is.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// No room left.
    #[error("the node's disk is full: could not write below {}; free space there or add a node with more", .path.display())]
    DiskFull {
        /// The file or folder.
        path: PathBuf,
    },
    /// A local file cannot be used.
    #[error("the node cannot use {}: {source}", .path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl ArtifactError {
    /// An I/O error on a local file: [`Self::DiskFull`] where that is what it is.
    pub(crate) fn file(path: &Path, source: std::io::Error) -> Self {
        let path = path.to_owned();
        if is_disk_full(&source) { Self::DiskFull { path } } else { Self::File { path, source } }
    }

    pub(crate) fn in_layer(self, reference: &Reference, layer: &Digest) -> Self {
        match self {
            Self::Unpack(source) => {
                Self::Layer { reference: reference.to_string(), layer: layer.clone(), source }
            }
            other => other,
        }
    }

    /// The reason that a unit gets.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::DiskFull { .. } | Self::Registry(RegistryError::DiskFull { .. }) => {
                Reason::DiskFull
            }
            Self::Registry(
                RegistryError::Manifest { .. }
                | RegistryError::DigestMismatch { .. }
                | RegistryError::SizeMismatch { .. },
            )
            | Self::Platform { .. }
            | Self::NestedIndex { .. }
            | Self::NotRunnable { .. }
            | Self::WrongRuntime { .. }
            | Self::NotWasm { .. }
            | Self::TooLarge { .. }
            | Self::TooManyLayers { .. }
            | Self::Config { .. }
            | Self::Layer { .. }
            | Self::Unpack(_) => Reason::InvalidArtifact,
            Self::Registry(_) | Self::File { .. } => Reason::PullFailed,
        }
    }
}

/// Does it mean that there is no room left?
pub(crate) fn is_disk_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}
