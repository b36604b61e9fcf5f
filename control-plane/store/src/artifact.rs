//! The tags of the built-in registry.

use brig_api::object::{Artifact, ArtifactKind, Meta};
use brig_api::problem::FieldError;
use brig_api::reference::{is_repository, is_tag};
use brig_api::wasm::WasmFacts;
use brig_api::{Digest, Object};

use crate::error::StoreError;
use crate::store::Store;
use crate::table::artifact::{
    artifact_get, artifact_list, artifact_list_of_digest, artifact_put, artifact_remove,
};
use crate::write::{Write, in_write};

/// Longest media type, as RFC 6838 has it: two names of 127 characters and a slash.
const MEDIA_TYPE_BYTES_MAX: usize = 255;

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
    /// What the program is and needs, of a wasm artifact that could be looked into.
    pub wasm: Option<WasmFacts>,
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
        check(&artifact)?;
        let (artifact, _) = in_write!(self, now_ms, |tx| put(&mut tx, &artifact).await)?;
        Ok(artifact)
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
        if !is_repository(repository) || !is_tag(tag) {
            return Ok(None);
        }
        let mut db = self.pools().read().await?;
        let artifact = artifact_get(&mut db, repository, tag).await?;
        db.commit().await?;
        Ok(artifact)
    }

    /// All tags, in the order of repository and tag.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn artifact_list(&self) -> Result<Vec<Artifact>, StoreError> {
        let mut db = self.pools().read().await?;
        let artifacts = artifact_list(&mut db).await?;
        db.commit().await?;
        Ok(artifacts)
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
        if !is_repository(repository) || !is_tag(tag) {
            return Ok(false);
        }
        let (removed, _) =
            in_write!(self, now_ms, |tx| remove_tag(&mut tx, repository, tag).await)?;
        Ok(removed)
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
        if !is_repository(repository) {
            return Ok(0);
        }
        let (removed, _) =
            in_write!(self, now_ms, |tx| remove_digest(&mut tx, repository, digest).await)?;
        Ok(removed)
    }
}

fn check(artifact: &NewArtifact) -> Result<(), StoreError> {
    let mut faults = Vec::new();
    let mut fault = |path: &str, message: String| {
        faults.push(FieldError { path: path.to_owned(), message });
    };
    if !is_repository(&artifact.repository) {
        let expected = "expected lower-case names joined by slashes, such as `team-a/shop`";
        fault("repository", format!("`{}` is no repository: {expected}", artifact.repository));
    }
    if !is_tag(&artifact.tag) {
        let expected = "expected letters, digits, `_`, `.` and `-`, such as `1.4`";
        fault("tag", format!("`{}` is no tag: {expected}", artifact.tag));
    }
    if artifact.media_type.len() > MEDIA_TYPE_BYTES_MAX {
        fault("media_type", format!("is too long: at most {MEDIA_TYPE_BYTES_MAX} bytes"));
    }
    if faults.is_empty() { Ok(()) } else { Err(StoreError::Invalid(faults)) }
}

async fn put(tx: &mut Write, new: &NewArtifact) -> Result<Artifact, StoreError> {
    let existing = artifact_get(&mut tx.db, &new.repository, &new.tag).await?;
    let created_ms = existing.as_ref().map_or(tx.now_ms, |artifact| artifact.meta.created_ms);
    let artifact = Artifact {
        repository: new.repository.clone(),
        tag: new.tag.clone(),
        digest: new.digest.clone(),
        media_type: new.media_type.clone(),
        kind: new.kind,
        size_bytes: new.size_bytes,
        wasm: new.wasm.clone(),
        meta: Meta { revision: tx.revision(), created_ms },
    };
    if let Some(existing) = existing {
        let same = Artifact { meta: existing.meta.clone(), ..artifact.clone() };
        if existing == same {
            return Ok(existing);
        }
    }
    artifact_put(&mut tx.db, &artifact).await?;
    let object = Object::Artifact(artifact.clone());
    tx.normal(object.key(), "Pushed", format!("names {}", artifact.digest));
    tx.changed(object);
    Ok(artifact)
}

async fn remove(tx: &mut Write, artifact: Artifact) -> Result<(), StoreError> {
    artifact_remove(&mut tx.db, &artifact.repository, &artifact.tag).await?;
    let key = Object::Artifact(artifact).key();
    tx.normal(key.clone(), "Deleted", "was deleted");
    tx.deleted(key);
    Ok(())
}

async fn remove_tag(tx: &mut Write, repository: &str, tag: &str) -> Result<bool, StoreError> {
    let Some(artifact) = artifact_get(&mut tx.db, repository, tag).await? else {
        return Ok(false);
    };
    remove(tx, artifact).await?;
    Ok(true)
}

async fn remove_digest(
    tx: &mut Write,
    repository: &str,
    digest: &Digest,
) -> Result<u64, StoreError> {
    let artifacts = artifact_list_of_digest(&mut tx.db, repository, digest.as_str()).await?;
    let mut removed = 0;
    for artifact in artifacts {
        remove(tx, artifact).await?;
        removed += 1;
    }
    Ok(removed)
}
