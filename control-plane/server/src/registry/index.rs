//! Where tags are kept: a trait, so that the registry knows no SQL, and a form in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use brig_api::Digest;
use brig_api::object::{Artifact, ArtifactKind, Meta};
use brig_api::wasm::WasmFacts;
use futures::FutureExt;
use futures::future::BoxFuture;

/// The index of tags could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("the index of artifacts cannot be used just now: {source}")]
pub struct IndexError {
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl IndexError {
    /// Wraps what the index's keeper says.
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { source: source.into() }
    }
}

/// What a push tells the index.
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
    pub wasm: Option<Arc<WasmFacts>>,
}

/// The result of a call to the index.
pub type IndexFuture<'a, T> = BoxFuture<'a, Result<T, IndexError>>;

/// Keeps the registry's tags.
pub trait ArtifactIndex: Send + Sync {
    /// Sets a tag; the same tag may have named something else before.
    fn put(&self, artifact: NewArtifact) -> IndexFuture<'_, ()>;
    /// What a tag names.
    fn get<'a>(&'a self, repository: &'a str, tag: &'a str) -> IndexFuture<'a, Option<Artifact>>;
    /// All tags of a repository, or of all repositories, in the order of repository and tag.
    fn list<'a>(&'a self, repository: Option<&'a str>) -> IndexFuture<'a, Vec<Artifact>>;
    /// Removes a tag; false when there was none.
    fn delete<'a>(&'a self, repository: &'a str, tag: &'a str) -> IndexFuture<'a, bool>;
    /// Removes all tags of a repository that name `digest`, and says how many there were.
    fn delete_digest<'a>(
        &'a self,
        repository: &'a str,
        digest: &'a Digest,
    ) -> IndexFuture<'a, usize> {
        async move {
            let mut removed = 0;
            for artifact in self.list(Some(repository)).await? {
                if artifact.digest == *digest && self.delete(repository, &artifact.tag).await? {
                    removed += 1;
                }
            }
            Ok(removed)
        }
        .boxed()
    }
}

/// Tags in memory: for tests, and for a registry that need not outlive its process.
#[derive(Debug, Default)]
pub struct MemoryIndex {
    tags: Mutex<BTreeMap<(String, String), Artifact>>,
}

impl MemoryIndex {
    fn with<T>(
        &self,
        work: impl FnOnce(&mut BTreeMap<(String, String), Artifact>) -> T,
    ) -> Result<T, IndexError> {
        Ok(work(&mut self.tags.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl ArtifactIndex for MemoryIndex {
    fn put(&self, new: NewArtifact) -> IndexFuture<'_, ()> {
        let key = (new.repository.clone(), new.tag.clone());
        let artifact = Artifact {
            repository: new.repository,
            tag: new.tag,
            digest: new.digest,
            media_type: new.media_type,
            kind: new.kind,
            size_bytes: new.size_bytes,
            wasm: new.wasm.map(|wasm| (*wasm).clone()),
            meta: Meta::default(),
        };
        let done = self.with(|tags| {
            tags.insert(key, artifact);
        });
        async move { done }.boxed()
    }

    fn get<'a>(&'a self, repository: &'a str, tag: &'a str) -> IndexFuture<'a, Option<Artifact>> {
        let found = self.with(|tags| tags.get(&(repository.to_owned(), tag.to_owned())).cloned());
        async move { found }.boxed()
    }

    fn list<'a>(&'a self, repository: Option<&'a str>) -> IndexFuture<'a, Vec<Artifact>> {
        let found = self.with(|tags| {
            let wanted = |artifact: &&Artifact| {
                repository.is_none_or(|repository| repository == artifact.repository)
            };
            tags.values().filter(wanted).cloned().collect()
        });
        async move { found }.boxed()
    }

    fn delete<'a>(&'a self, repository: &'a str, tag: &'a str) -> IndexFuture<'a, bool> {
        let removed =
            self.with(|tags| tags.remove(&(repository.to_owned(), tag.to_owned())).is_some());
        async move { removed }.boxed()
    }
}
