//! What can go wrong in the registry, and how the distribution specification has it said.

use std::path::{Path, PathBuf};

use axum::response::{IntoResponse, Response};
use brig_api::Digest;
use http::{HeaderValue, StatusCode, header};

use super::index::IndexError;

/// An error of the registry. `Display` is what its users see.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No endpoint of the distribution API.
    #[error(
        "`/v2/{path}` is no endpoint of a registry: expected /v2/<name>/manifests|blobs|tags|referrers/…"
    )]
    NoSuchPath {
        /// What follows `/v2/`.
        path: String,
    },
    /// The endpoint exists, the method does not.
    #[error("the registry does not do that: {0}")]
    Unsupported(&'static str),
    /// The repository's name breaks the rules.
    #[error(
        "`{name}` is no repository name: expected lower-case letters, digits, `.`, `_`, `-` in parts joined by slashes"
    )]
    NameInvalid {
        /// As given.
        name: String,
    },
    /// The tag breaks the rules.
    #[error("`{tag}` is no tag: expected at most 128 letters, digits, `.`, `_`, `-`")]
    TagInvalid {
        /// As given.
        tag: String,
    },
    /// A digest that is none, or of another algorithm.
    #[error(
        "`{given}` is no digest that this registry takes: expected `sha256:` and 64 hexadecimal digits"
    )]
    DigestInvalid {
        /// As given.
        given: String,
    },
    /// What was sent is not what its digest says.
    #[error("what was sent has the digest {found}, but {expected} was announced: send it again")]
    DigestMismatch {
        /// As announced.
        expected: Digest,
        /// Of the bytes that came.
        found: Digest,
    },
    /// No such blob.
    #[error(
        "the registry holds no blob {digest}: push it, or the artifact that it belongs to, again"
    )]
    BlobUnknown {
        /// Of the blob.
        digest: Digest,
    },
    /// The bytes on disk are no longer those that were pushed.
    #[error("the blob {digest} is corrupt on the registry's disk (its bytes have the digest {found}); it was set aside as {}: push the artifact that it belongs to again", .aside.display())]
    CorruptBlob {
        /// Of the blob.
        digest: Digest,
        /// Of the bytes on disk.
        found: Digest,
        /// Where the bytes are now.
        aside: PathBuf,
    },
    /// No such manifest.
    #[error("`{repository}` has no manifest `{wanted}`: `brig images` lists what there is")]
    ManifestUnknown {
        /// The repository.
        repository: String,
        /// Tag or digest.
        wanted: String,
    },
    /// A manifest that is none.
    #[error(transparent)]
    ManifestInvalid(#[from] brig_api::oci::InvalidDocument),
    /// A manifest that names what is not there.
    #[error(
        "the manifest names {digest} ({media_type}), which the registry does not hold: push it first"
    )]
    ManifestBlobUnknown {
        /// Of the missing blob or manifest.
        digest: Digest,
        /// By its descriptor.
        media_type: String,
    },
    /// A manifest that has another length for a blob.
    #[error("the manifest says that {digest} has {expected} bytes; it has {found}")]
    SizeMismatch {
        /// Of the blob.
        digest: Digest,
        /// By the manifest.
        expected: u64,
        /// On disk.
        found: u64,
    },
    /// No repository of that name.
    #[error("there is no repository `{repository}`: `brig images` lists what there is")]
    NameUnknown {
        /// As given.
        repository: String,
    },
    /// No such upload.
    #[error("no such upload: it was finished, cancelled or has expired; begin another")]
    UploadUnknown,
    /// A chunk that does not follow the one before.
    #[error("the upload has {offset} bytes; the next chunk begins there, not elsewhere")]
    OutOfOrder {
        /// Bytes that the upload has.
        offset: u64,
        /// Where to go on.
        location: String,
    },
    /// A body of another length than announced.
    #[error(
        "{announced} bytes were announced and {received} came: ask for the upload's state and go on from there"
    )]
    SizeInvalid {
        /// By the headers.
        announced: u64,
        /// Counted.
        received: u64,
    },
    /// More than the registry takes.
    #[error("it is larger than the {bytes_max} bytes that this registry takes")]
    TooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// The sender went away.
    #[error("the connection broke while {0} was being sent")]
    Receive(&'static str),
    /// No room left.
    #[error("the registry's disk is full (writing {}): free space there or run garbage collection, then push again", .path.display())]
    DiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// The disk failed otherwise.
    #[error("the registry cannot use {}: {source}", .path.display())]
    Storage {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The index of tags failed.
    #[error(transparent)]
    Index(#[from] IndexError),
}

impl RegistryError {
    /// An I/O error on `path`: [`Self::DiskFull`] where that is what it is.
    pub(crate) fn storage(path: &Path, source: std::io::Error) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        let path = path.to_owned();
        match source.kind() {
            StorageFull | QuotaExceeded => Self::DiskFull { path },
            _ => Self::Storage { path, source },
        }
    }

    /// Status and code of the distribution specification. `UNAVAILABLE` and `UNKNOWN` are no codes of the
    /// specification but those that its first implementation uses.
    fn status_and_code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::NoSuchPath { .. } => (StatusCode::NOT_FOUND, "UNSUPPORTED"),
            Self::Unsupported(_) => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
            Self::NameInvalid { .. } => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
            Self::TagInvalid { .. } => (StatusCode::BAD_REQUEST, "TAG_INVALID"),
            Self::DigestInvalid { .. } | Self::DigestMismatch { .. } => {
                (StatusCode::BAD_REQUEST, "DIGEST_INVALID")
            }
            Self::BlobUnknown { .. } | Self::CorruptBlob { .. } => {
                (StatusCode::NOT_FOUND, "BLOB_UNKNOWN")
            }
            Self::ManifestUnknown { .. } => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            Self::ManifestInvalid(_) => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
            Self::ManifestBlobUnknown { .. } => (StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN"),
            Self::SizeMismatch { .. } | Self::SizeInvalid { .. } => {
                (StatusCode::BAD_REQUEST, "SIZE_INVALID")
            }
            Self::NameUnknown { .. } => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
            Self::UploadUnknown => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            Self::OutOfOrder { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID"),
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
            Self::Receive(_) => (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID"),
            Self::DiskFull { .. } => (StatusCode::INSUFFICIENT_STORAGE, "UNAVAILABLE"),
            Self::Index(_) => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
            Self::Storage { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
        }
    }
}

impl IntoResponse for RegistryError {
    fn into_response(self) -> Response {
        let (status, code) = self.status_and_code();
        if status.is_server_error() {
            tracing::error!(error = %self, "the registry failed");
        }
        let body = serde_json::json!({ "errors": [{ "code": code, "message": self.to_string() }] });
        let mut response = (status, axum::Json(body)).into_response();
        if let Self::OutOfOrder { offset, location } = &self {
            let range = format!("0-{}", offset.saturating_sub(1));
            for (name, value) in [(header::RANGE, range), (header::LOCATION, location.clone())] {
                if let Ok(value) = HeaderValue::from_str(&value) {
                    response.headers_mut().insert(name, value);
                }
            }
        }
        response
    }
}
