//! The registry's tags, kept in SQL.

use brig_api::Digest;
use brig_api::object::Artifact;
use brig_store::Store;
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::clock;
use crate::registry::{ArtifactIndex, IndexError, NewArtifact};

/// What the registry waits for.
type Kept<'a, T> = BoxFuture<'a, Result<T, IndexError>>;

/// Tags are rows of the store's artifacts.
pub(crate) struct StoreIndex(pub(crate) Store);

impl ArtifactIndex for StoreIndex {
    fn put(&self, new: NewArtifact) -> Kept<'_, ()> {
        let NewArtifact { repository, tag, digest, media_type, kind, size_bytes, wasm } = new;
        let new = brig_store::NewArtifact {
            repository,
            tag,
            digest,
            media_type,
            kind,
            size_bytes,
            wasm: wasm.map(|wasm| (*wasm).clone()),
        };
        async move {
            let put = self.0.artifact_put(new, clock::now_ms()).await;
            put.map(|_| ()).map_err(IndexError::new)
        }
        .boxed()
    }

    fn get<'a>(&'a self, repository: &'a str, tag: &'a str) -> Kept<'a, Option<Artifact>> {
        async move { self.0.artifact_get(repository, tag).await.map_err(IndexError::new) }.boxed()
    }

    fn list<'a>(&'a self, repository: Option<&'a str>) -> Kept<'a, Vec<Artifact>> {
        async move {
            let mut artifacts = self.0.artifact_list().await.map_err(IndexError::new)?;
            if let Some(repository) = repository {
                artifacts.retain(|artifact| artifact.repository == repository);
            }
            Ok(artifacts)
        }
        .boxed()
    }

    fn delete<'a>(&'a self, repository: &'a str, tag: &'a str) -> Kept<'a, bool> {
        async move {
            let deleted = self.0.artifact_delete(repository, tag, clock::now_ms()).await;
            deleted.map_err(IndexError::new)
        }
        .boxed()
    }

    fn delete_digest<'a>(&'a self, repository: &'a str, digest: &'a Digest) -> Kept<'a, usize> {
        async move {
            let now_ms = clock::now_ms();
            let deleted = self.0.artifact_delete_digest(repository, digest, now_ms).await;
            let deleted = deleted.map_err(IndexError::new)?;
            Ok(usize::try_from(deleted).unwrap_or(usize::MAX))
        }
        .boxed()
    }
}
