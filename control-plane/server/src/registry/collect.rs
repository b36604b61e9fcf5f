//! Garbage: mark what tags, pins and young manifests reach, sweep the rest when it is old enough.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use brig_api::Digest;
use brig_api::oci::{Document, MANIFEST_BYTES_MAX};

use super::Inner;
use super::blobs::blocking;
use super::error::RegistryError;

/// Nothing younger is swept, whatever is asked: a push in progress has blobs that no manifest names yet.
pub const GARBAGE_AGE_MIN: Duration = Duration::from_secs(60 * 60);

/// What a run of the collector removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// Blobs and manifests.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Uploads that nobody finished.
    pub uploads: usize,
}

impl Inner {
    pub(crate) async fn collect(
        &self,
        pinned: &[Digest],
        age: Duration,
    ) -> Result<Collected, RegistryError> {
        let now = (self.config.now)();
        let uploads = self.uploads.expire(now).await?;
        let alone = Arc::clone(&self.sweep).write_owned().await;
        let blobs = self.blobs.clone();
        let (stored, others) = blocking(move || blobs.walk()).await?;
        let is_young = move |touched| {
            now.duration_since(touched).is_ok_and(|since| since < age) || touched > now
        };
        // An untagged manifest that is still young keeps what it names: its tag may be on the way.
        let mut roots = pinned.to_vec();
        roots.extend(
            stored
                .iter()
                .filter(|blob| is_young(blob.touched) && blob.size <= MANIFEST_BYTES_MAX)
                .map(|blob| blob.digest.clone()),
        );
        let marked = self.mark(&roots).await?;
        let garbage: Vec<_> = stored
            .into_iter()
            .filter(|blob| !is_young(blob.touched) && !marked.contains(&blob.digest))
            .collect();
        let store = self.blobs.clone();
        let (blobs, bytes) = blocking(move || {
            // Also when nobody waits for the end any longer.
            let _alone = alone;
            for other in others {
                let _ = std::fs::remove_file(other);
            }
            let (mut blobs, mut bytes) = (0, 0);
            for blob in &garbage {
                // Marking takes a while: a client may have been told meanwhile that it need not push this one.
                if store.touched(&blob.digest).is_some_and(is_young) {
                    continue;
                }
                bytes += store.remove(&blob.digest)?;
                blobs += 1;
            }
            Ok((blobs, bytes))
        })
        .await?;
        tracing::info!(blobs, bytes, uploads, "the registry's garbage was collected");
        Ok(Collected { blobs, bytes, uploads })
    }

    /// All digests that the tags and `roots` reach, with the manifests that are about one of them.
    pub(crate) async fn mark(&self, roots: &[Digest]) -> Result<HashSet<Digest>, RegistryError> {
        let mut open: Vec<Digest> = roots.to_vec();
        open.extend(self.index.list(None).await?.into_iter().map(|artifact| artifact.digest));
        let mut marked = HashSet::new();
        while let Some(digest) = open.pop() {
            if !marked.insert(digest.clone()) {
                continue;
            }
            let document = match self.manifest_by_digest(&digest).await {
                Ok(found) => found.map(|(_, document)| document),
                // It is set aside and can keep nothing; the next push of it brings its blobs again.
                Err(RegistryError::CorruptBlob { .. }) => None,
                Err(error) => return Err(error),
            };
            let Some(document) = document else { continue };
            open.extend(self.referrers_of(&digest));
            match document {
                Document::Index(index) => {
                    open.extend(index.manifests.into_iter().map(|child| child.digest));
                }
                // Layers are not read: only what an index names can be a manifest.
                Document::Image(manifest) => {
                    marked.insert(manifest.config.digest);
                    marked.extend(manifest.layers.into_iter().map(|layer| layer.digest));
                }
            }
        }
        Ok(marked)
    }
}
