//! Manifests: taken only when all that they name is there, found by tag or by digest, related by `subject`.

use std::time::Duration;

use axum::body::Body;
use brig_api::Digest;
use brig_api::oci::{ACCEPTED, Descriptor, Document, InvalidDocument, MANIFEST_BYTES_MAX};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::Inner;
use super::blobs::blocking;
use super::error::RegistryError;
use super::index::NewArtifact;
use super::path::Wanted;

/// Time for a manifest to arrive.
const MANIFEST_TIME_MAX: Duration = Duration::from_secs(60);
/// Characters of a media type that an error repeats.
const MEDIA_TYPE_SHOWN_MAX: usize = 100;

/// A manifest that was taken.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) digest: Digest,
    pub(crate) subject: Option<Digest>,
}

/// A manifest that was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
}

impl Inner {
    /// Takes a manifest under a tag or its digest.
    pub(crate) async fn put_manifest(
        &self,
        repository: String,
        wanted: Wanted,
        content_type: Option<&str>,
        body: Body,
    ) -> Result<Taken, RegistryError> {
        let limit = usize::try_from(MANIFEST_BYTES_MAX).unwrap_or(usize::MAX);
        let bytes = tokio::time::timeout(MANIFEST_TIME_MAX, axum::body::to_bytes(body, limit))
            .await
            .map_err(|_| RegistryError::Receive("a manifest"))?
            .map_err(|_| RegistryError::TooLarge { bytes_max: MANIFEST_BYTES_MAX })?;
        let document = Document::parse(&bytes, content_type)?;
        // It is given out under this type, from the address of the API: as a web page, say.
        if !ACCEPTED.contains(&document.media_type()) {
            let expected = ACCEPTED.join("` or `");
            let found = document.media_type().chars().take(MEDIA_TYPE_SHOWN_MAX).collect();
            return Err(InvalidDocument::MediaType { expected, found }.into());
        }
        let digest = Digest::of_sha256(&Sha256::digest(&bytes).into());
        if let Wanted::Digest(expected) = &wanted
            && *expected != digest
        {
            let expected = expected.clone();
            return Err(RegistryError::DigestMismatch { expected, found: digest });
        }
        // The collector waits: what is found here is still there when the tag names it.
        let _no_sweep = self.sweep.read().await;
        let children: Vec<_> = document.children().collect();
        let sizes = self.blobs.sizes(children.iter().map(|child| child.digest.clone())).await?;
        children.iter().zip(sizes).try_for_each(|(child, size)| check_child(child, size))?;
        let wasm = self.facts(&document).await?;
        let kind = self.kind_of(&document).await?;
        if let Wanted::Tag(tag) = &wanted
            && self.index.get(&repository, tag).await?.is_some_and(|named| {
                named.digest == digest
                    && named.media_type == document.media_type()
                    && named.kind == kind
                    && named.wasm.as_ref() == wasm.as_deref()
            })
            && self.blobs.renew(&digest, bytes.clone(), (self.config.now)()).await?
        {
            // Nothing has to be written, and nothing to be synced: a tag is committed after the manifest that it names
            // was on the disk.
            let subject = document.subject().map(|subject| subject.digest.clone());
            return Ok(Taken { digest, subject });
        }
        let size_bytes = self.size_of(&document, bytes.len()).await;
        self.blobs.write(&digest, bytes, self.uploads.scratch()).await?;
        let subject = document.subject().map(|subject| subject.digest.clone());
        if let Some(subject) = &subject {
            self.remember_referrer(subject, &digest).await?;
        }
        if let Wanted::Tag(tag) = wanted {
            let media_type = document.media_type().to_owned();
            let digest = digest.clone();
            let new = NewArtifact { repository, tag, digest, media_type, kind, size_bytes, wasm };
            self.index.put(new).await?;
        }
        Ok(Taken { digest, subject })
    }

    /// Bytes of a manifest and all that it names. For an index that includes what its manifests name.
    pub(crate) async fn size_of(&self, document: &Document, own: usize) -> u64 {
        let sizes = |document: &Document| -> u64 {
            document.children().fold(0, |sum: u64, child| sum.saturating_add(child.size))
        };
        let mut sum = (own as u64).saturating_add(sizes(document));
        if let Document::Index(index) = document {
            for child in &index.manifests {
                if let Ok(Some((_, document))) = self.manifest_by_digest(&child.digest).await {
                    sum = sum.saturating_add(sizes(&document));
                }
            }
        }
        sum
    }

    /// Finds a manifest by tag or digest.
    pub(crate) async fn manifest(
        &self,
        repository: &str,
        wanted: &Wanted,
    ) -> Result<Found, RegistryError> {
        let unknown = || RegistryError::ManifestUnknown {
            repository: repository.to_owned(),
            wanted: wanted.to_string(),
        };
        let digest = match wanted {
            Wanted::Digest(digest) => digest.clone(),
            Wanted::Tag(tag) => self.index.get(repository, tag).await?.ok_or_else(unknown)?.digest,
        };
        let (bytes, document) = self.manifest_by_digest(&digest).await?.ok_or_else(unknown)?;
        Ok(Found { digest, media_type: document.media_type().to_owned(), bytes })
    }

    /// Reads a manifest; None when there is no such blob or it is no manifest.
    pub(crate) async fn manifest_by_digest(
        &self,
        digest: &Digest,
    ) -> Result<Option<(Bytes, Document)>, RegistryError> {
        let bytes = self.blobs.read(digest, MANIFEST_BYTES_MAX).await?;
        Ok(bytes
            .and_then(|bytes| Document::parse(&bytes, None).ok().map(|document| (bytes, document))))
    }

    /// Removes a tag, or a manifest with all its tags in the repository. The manifest's bytes stay for others
    /// that name them; the collector sweeps them when nobody does.
    pub(crate) async fn delete_manifest(
        &self,
        repository: &str,
        wanted: &Wanted,
    ) -> Result<(), RegistryError> {
        let unknown = || RegistryError::ManifestUnknown {
            repository: repository.to_owned(),
            wanted: wanted.to_string(),
        };
        match wanted {
            Wanted::Tag(tag) => {
                if !self.index.delete(repository, tag).await? {
                    return Err(unknown());
                }
            }
            Wanted::Digest(digest) => {
                let _alone = self.sweep.write().await;
                if self.manifest_by_digest(digest).await?.is_none() {
                    return Err(unknown());
                }
                self.index.delete_digest(repository, digest).await?;
                if !self.mark(&[]).await?.contains(digest) {
                    self.blobs.remove(digest)?;
                }
            }
        }
        Ok(())
    }

    async fn remember_referrer(
        &self,
        subject: &Digest,
        referrer: &Digest,
    ) -> Result<(), RegistryError> {
        let folder = self.referrers.join(subject.hex());
        let path = folder.join(referrer.hex());
        blocking(move || {
            std::fs::create_dir_all(&folder)
                .and_then(|()| std::fs::File::create(&path))
                .map(drop)
                .map_err(|source| RegistryError::storage(&path, source))
        })
        .await
    }

    /// Digests of the manifests that are about `subject`.
    pub(crate) fn referrers_of(&self, subject: &Digest) -> Vec<Digest> {
        let Ok(entries) = std::fs::read_dir(self.referrers.join(subject.hex())) else {
            return Vec::new();
        };
        let digest = |entry: std::fs::DirEntry| {
            Digest::new(format!("sha256:{}", entry.file_name().to_str()?)).ok()
        };
        let mut found: Vec<Digest> = entries.flatten().filter_map(digest).collect();
        found.sort();
        found
    }

    /// Descriptors of the manifests that are about `subject`, for the referrers endpoint.
    pub(crate) async fn referrers(
        &self,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let mut found = Vec::new();
        for digest in self.referrers_of(subject) {
            let Some((bytes, document)) = self.manifest_by_digest(&digest).await? else { continue };
            let mut descriptor = Descriptor::new(document.media_type(), digest, bytes.len() as u64);
            let (own_type, annotations) = match document {
                Document::Image(manifest) => (
                    manifest.artifact_type.unwrap_or(manifest.config.media_type),
                    manifest.annotations,
                ),
                Document::Index(index) => {
                    (index.artifact_type.unwrap_or_default(), index.annotations)
                }
            };
            if artifact_type.is_none_or(|wanted| wanted == own_type) {
                descriptor.artifact_type = Some(own_type);
                descriptor.annotations = annotations;
                found.push(descriptor);
            }
        }
        Ok(found)
    }
}

/// A blob that a manifest names, and its size on disk if it is there.
fn check_child(child: &Descriptor, size: Option<u64>) -> Result<(), RegistryError> {
    match size {
        Some(found) if found == child.size => Ok(()),
        Some(found) => Err(RegistryError::SizeMismatch {
            digest: child.digest.clone(),
            expected: child.size,
            found,
        }),
        // A layer that may not be distributed stays where its URLs say.
        None if !child.urls.is_empty() => Ok(()),
        None => Err(RegistryError::ManifestBlobUnknown {
            digest: child.digest.clone(),
            media_type: child.media_type.clone(),
        }),
    }
}
