//! The built-in registry: the OCI distribution API (specification 1.1) under `/v2/`, blobs in a folder, tags in SQL.
//!
//! ```text
//! <data>/registry/blobs/sha256/ab/<hex>      every blob and manifest, once, whatever repositories name it
//! <data>/registry/uploads/<id>               what is being pushed; becomes a blob by fsync and rename
//! <data>/registry/referrers/<hex>/<hex>      an empty file: the second manifest is about the first
//! ```
//!
//! A tag is a row of the [`ArtifactIndex`]. A manifest without a tag is found by its digest until
//! [`Registry::collect`] sweeps it. Whoever knows a digest can read the blob: blobs belong to no repository.

mod blobs;
mod collect;
mod error;
mod facts;
mod handlers;
mod index;
mod manifests;
mod path;
#[cfg(test)]
mod tests;
mod uploads;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use brig_api::Digest;
use brig_api::object::{Artifact, ArtifactKind};
use brig_api::oci::{Document, Platform};
use brig_api::reference::{DEFAULT_TAG, Reference};
use brig_api::wasm::WasmFacts;

pub use collect::{Collected, GARBAGE_AGE_MIN};
pub use error::RegistryError;
pub use handlers::router;
pub use index::{ArtifactIndex, IndexError, IndexFuture, MemoryIndex, NewArtifact};

use blobs::BlobStore;
use facts::FactsKnown;
use uploads::Uploads;

/// Largest blob where the configuration names no other: larger than any layer seen in public registries.
pub const BLOB_BYTES_MAX_DEFAULT: u64 = 32 * 1024 * 1024 * 1024;

/// What a registry needs to know.
#[derive(Clone)]
pub struct RegistryConfig {
    /// The server's data folder; the registry keeps to `registry` below it.
    pub data: PathBuf,
    /// Largest blob that is taken.
    pub blob_bytes_max: u64,
    /// Reads the clock: ages of uploads and garbage depend on it.
    pub now: fn() -> SystemTime,
}

/// The built-in registry. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    blobs: BlobStore,
    uploads: Uploads,
    index: Arc<dyn ArtifactIndex>,
    referrers: PathBuf,
    facts: FactsKnown,
    config: RegistryConfig,
    /// Pushes of manifests share it, the collector has it alone: what a push found stays until it is committed.
    sweep: Arc<tokio::sync::RwLock<()>>,
}

/// What a reference of the built-in registry names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Media type of the manifest.
    pub media_type: String,
    /// What it is.
    pub kind: ArtifactKind,
    /// Of an index: is one of its images wasm?
    pub has_wasm: bool,
    /// Bytes of manifest, config and layers together.
    pub size_bytes: u64,
    /// What the program is and needs, of a wasm artifact that could be looked into.
    pub wasm: Option<Arc<WasmFacts>>,
}

fn has_wasm(document: &Document) -> bool {
    let Document::Index(index) = document else { return false };
    index.manifests.iter().any(|entry| entry.platform.as_ref().is_some_and(Platform::is_wasm))
}

impl Registry {
    /// Opens the registry in its folder, which is made where it is missing.
    ///
    /// # Errors
    /// [`RegistryError::Storage`] when a folder cannot be made.
    pub fn open(
        config: RegistryConfig,
        index: Arc<dyn ArtifactIndex>,
    ) -> Result<Self, RegistryError> {
        let root = config.data.join("registry");
        let blobs = BlobStore::open(&root.join("blobs"))?;
        let uploads = Uploads::open(root.join("uploads"), config.blob_bytes_max)?;
        let referrers = root.join("referrers");
        std::fs::create_dir_all(&referrers)
            .map_err(|source| RegistryError::storage(&referrers, source))?;
        let (facts, sweep) = (FactsKnown::default(), Arc::default());
        let inner = Inner { blobs, uploads, index, referrers, facts, config, sweep };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The digest of the manifest that `reference` names, so that a unit is admitted only with an artifact that
    /// exists. None when the registry does not hold it, or the reference names another registry.
    ///
    /// # Errors
    /// [`RegistryError`] when the index or the disk cannot be read.
    pub async fn resolve(&self, reference: &Reference) -> Result<Option<Digest>, RegistryError> {
        if reference.registry.is_some() {
            return Ok(None);
        }
        if let Some(digest) = &reference.digest {
            return match self.inner.manifest_by_digest(digest).await {
                Ok(found) => Ok(found.map(|_| digest.clone())),
                Err(RegistryError::CorruptBlob { .. }) => Ok(None),
                Err(error) => Err(error),
            };
        }
        let tag = reference.tag.as_deref().unwrap_or(DEFAULT_TAG);
        Ok(self.inner.index.get(&reference.repository, tag).await?.map(|found| found.digest))
    }

    /// What `reference` names: digest, kind and size. None as for [`Registry::resolve`].
    ///
    /// # Errors
    /// As [`Registry::resolve`]; also [`RegistryError::CorruptBlob`].
    pub async fn describe(
        &self,
        reference: &Reference,
    ) -> Result<Option<Described>, RegistryError> {
        let (digest, found) = match &reference.digest {
            Some(digest) if reference.registry.is_none() => {
                match self.inner.manifest_by_digest(digest).await {
                    // As when it had never been pushed: the next push brings it again.
                    Err(RegistryError::CorruptBlob { .. }) => return Ok(None),
                    found => (digest.clone(), found?),
                }
            }
            _ => {
                let Some(digest) = self.resolve(reference).await? else { return Ok(None) };
                let found = self.inner.manifest_by_digest(&digest).await?;
                (digest, found)
            }
        };
        let Some((bytes, document)) = found else { return Ok(None) };
        Ok(Some(Described {
            media_type: document.media_type().to_owned(),
            kind: self.inner.kind_of(&document).await?,
            has_wasm: has_wasm(&document),
            size_bytes: self.inner.size_of(&document, bytes.len()).await,
            wasm: self.inner.facts(&document).await?,
            digest,
        }))
    }

    /// All tags, of one repository or of all.
    ///
    /// # Errors
    /// [`RegistryError::Index`] when the index cannot be read.
    pub async fn list(&self, repository: Option<&str>) -> Result<Vec<Artifact>, RegistryError> {
        Ok(self.inner.index.list(repository).await?)
    }

    /// Removes what nothing names: see [`Collected`]. `pinned` are digests that are in use without a tag, such
    /// as those that running units were resolved to. Younger than `age` (at least [`GARBAGE_AGE_MIN`]) nothing
    /// is removed, because a push sends blobs first and the manifest last.
    ///
    /// # Errors
    /// [`RegistryError`] when the index or the disk cannot be read; what was removed until then stays removed.
    pub async fn collect(
        &self,
        pinned: &[Digest],
        age: Duration,
    ) -> Result<Collected, RegistryError> {
        self.inner.collect(pinned, age.max(GARBAGE_AGE_MIN)).await
    }
}
