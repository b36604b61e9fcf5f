//! The tags of the built-in registry.

use brig_api::Digest;
use brig_api::object::{Artifact, ArtifactKind};

use crate::error::StoreError;
use crate::store::Store;

/// A tag to set, and what it is to name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewArtifact {
    /// `team-a/shop`.
    pub repository: String,
    /// `1.4`.
    pub tag: String,
    /// Digest of the manifest.
    pub digest: Digest,
    /// Media type of the manifest.
    pub media_type: String,
    /// What it is.
    pub kind: ArtifactKind,
    /// Bytes of manifest, config and layers together.
    pub size_bytes: u64,
}

impl Store {
    /// Sets a tag, whatever it named before. Takes no revision when it named the same.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for a repository or tag that is none.
    pub async fn artifact_put(
        &self,
        artifact: NewArtifact,
        now_ms: i64,
    ) -> Result<Artifact, StoreError> {
        Err(StoreError::being_written())
    }

    /// What a tag names.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn artifact_get(
        &self,
        repository: &str,
        tag: &str,
    ) -> Result<Option<Artifact>, StoreError> {
        Err(StoreError::being_written())
    }

    /// All tags, in the order of repository and tag.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn artifact_list(&self) -> Result<Vec<Artifact>, StoreError> {
        Err(StoreError::being_written())
    }

    /// Removes a tag. False when there was none.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn artifact_delete(
        &self,
        repository: &str,
        tag: &str,
        now_ms: i64,
    ) -> Result<bool, StoreError> {
        Err(StoreError::being_written())
    }

    /// Removes every tag of the repository that names this digest; gives how many there were.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn artifact_delete_digest(
        &self,
        repository: &str,
        digest: &Digest,
        now_ms: i64,
    ) -> Result<u64, StoreError> {
        Err(StoreError::being_written())
    }
}
