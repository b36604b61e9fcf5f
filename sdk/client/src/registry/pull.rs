//! Fetching manifests and blobs. A broken transfer goes on where it broke; what comes is checked.

use std::time::Duration;

use brig_api::Digest;
use brig_api::oci::{self, Descriptor, Document, InvalidDocument, MANIFEST_BYTES_MAX};
use brig_api::reference::Reference;
use bytes::Bytes;
use http::{StatusCode, header};
use reqwest::Response;
use sha2::{Digest as _, Sha256};

use super::endpoint::Endpoint;
use super::error::RegistryError;
use super::progress::Progress;
use super::store::{ContentStore, Partial, blocking};
use super::transport::{Access, broke_because, read_whole, refusal, unreachable_because};
use super::{FetchedManifest, RegistryClient, Transferred};

/// Broken transfers in a row, without a byte of progress, after which a pull gives up.
const TRIES_MAX: u32 = 5;
/// Wait before the second try; doubled for each further one.
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// Bytes gathered before they are written.
const WRITE_BYTES: usize = 1024 * 1024;

/// How a try to fetch a blob ended, when not with an error that ends the pull.
enum Try {
    Whole,
    /// The connection broke, for this reason.
    Broke(String),
}

impl RegistryClient {
    /// Fetches the manifest that `reference` names and checks its digest.
    ///
    /// # Errors
    /// [`RegistryError`]: not found, unauthorised, unreachable, or not what was asked for.
    pub async fn manifest(&self, reference: &Reference) -> Result<FetchedManifest, RegistryError> {
        let endpoint = self.inner.endpoint(reference)?;
        let url = endpoint.url(&format!("manifests/{}", reference.wanted()));
        let request = |http: &reqwest::Client| {
            http.get(&url).header(header::ACCEPT, oci::ACCEPTED.join(", "))
        };
        let response = self.inner.send(&endpoint, Access::Pull, request).await?;
        if response.status() == StatusCode::NOT_FOUND {
            let (reference, registry) = (reference.to_string(), endpoint.registry);
            return Err(RegistryError::NotFound { reference, registry });
        }
        if !response.status().is_success() {
            return Err(refusal(&endpoint, response).await);
        }
        let announced = response
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .map(|text| text.split(';').next().unwrap_or(text).trim().to_owned());
        let limit = usize::try_from(MANIFEST_BYTES_MAX).unwrap_or(usize::MAX);
        let bytes = read_whole(response, limit)
            .await
            .map_err(|error| unreachable_because(&endpoint, error))?
            .ok_or_else(|| RegistryError::Manifest {
                reference: reference.to_string(),
                source: InvalidDocument::TooLarge(MANIFEST_BYTES_MAX.saturating_add(1)),
            })?;
        let bytes = Bytes::from(bytes);
        let digest = Digest::of_sha256(&Sha256::digest(&bytes).into());
        if let Some(expected) = reference.digest.as_ref().filter(|expected| **expected != digest) {
            return Err(mismatch(&endpoint, expected, digest));
        }
        let document = Document::parse(&bytes, announced.as_deref()).map_err(|source| {
            RegistryError::Manifest { reference: reference.to_string(), source }
        })?;
        Ok(FetchedManifest { digest, bytes, document })
    }

    /// Fetches a blob into `store`, unless it is there. Bytes of an earlier try are used.
    ///
    /// # Errors
    /// [`RegistryError`]: missing, corrupt at the registry, unreachable, disk full.
    pub async fn blob(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        store: &ContentStore,
        progress: &dyn Progress,
    ) -> Result<u64, RegistryError> {
        if store.has(&blob.digest) {
            progress.end(&blob.digest, true);
            return Ok(0);
        }
        let endpoint = self.inner.endpoint(reference)?;
        let begin = (store.clone(), blob.digest.clone());
        let mut partial = blocking(move || begin.0.begin(&begin.1)).await?;
        if store.has(&blob.digest) {
            partial.discard();
            progress.end(&blob.digest, true);
            return Ok(0);
        }
        let was_begun = partial.length > 0;
        progress.begin(&blob.digest, partial.length.min(blob.size), blob.size);
        let before = partial.length;
        let partial = self.fetch(&endpoint, blob, partial, progress).await?;
        let mut found = finish(store, blob, partial).await?;
        if found.is_some() && was_begun {
            // The bytes of the earlier try may be the wrong ones: once more, all of it.
            let again = (store.clone(), blob.digest.clone());
            let fresh = blocking(move || again.0.begin(&again.1)).await?;
            let fresh = self.fetch(&endpoint, blob, fresh, progress).await?;
            found = finish(store, blob, fresh).await?;
        }
        match found {
            Some(found) => Err(mismatch(&endpoint, &blob.digest, found)),
            None => {
                progress.end(&blob.digest, false);
                Ok(blob.size.saturating_sub(before))
            }
        }
    }

    /// Fetches everything that `reference` names into `store`: the manifest, and for an index each of its
    /// manifests, with all blobs.
    ///
    /// # Errors
    /// As [`Self::manifest`] and [`Self::blob`].
    pub async fn pull(
        &self,
        reference: &Reference,
        store: &ContentStore,
        progress: &dyn Progress,
    ) -> Result<(FetchedManifest, Transferred), RegistryError> {
        let top = self.manifest(reference).await?;
        let mut done = Transferred { digest: top.digest.clone(), bytes_sent: 0, blobs_known: 0 };
        let mut manifests = vec![top.clone()];
        if let Document::Index(index) = &top.document {
            for child in &index.manifests {
                let pinned = reference.pinned(child.digest.clone());
                manifests.push(self.manifest(&pinned).await?);
            }
        }
        // The manifests last, and the top one last of all: what is there names nothing that is not.
        for manifest in manifests.iter().rev() {
            if let Document::Image(image) = &manifest.document {
                for blob in std::iter::once(&image.config).chain(&image.layers) {
                    let bytes = self.blob(reference, blob, store, progress).await?;
                    done.bytes_sent += bytes;
                    done.blobs_known += usize::from(bytes == 0);
                }
            }
            store.write(&manifest.digest, &manifest.bytes)?;
        }
        Ok((top, done))
    }

    /// Fetches the bytes that `partial` lacks, in as many tries as it takes.
    async fn fetch(
        &self,
        endpoint: &Endpoint,
        blob: &Descriptor,
        mut partial: Partial,
        progress: &dyn Progress,
    ) -> Result<Partial, RegistryError> {
        if partial.length > blob.size {
            partial.restart()?;
        }
        let mut tries = 0;
        loop {
            if partial.length == blob.size {
                return Ok(partial);
            }
            let before = partial.length;
            let (back, outcome) = self.fetch_once(endpoint, blob, partial, progress).await?;
            partial = back;
            let why = match outcome {
                Try::Whole => return Ok(partial),
                Try::Broke(why) => why,
            };
            tries = if partial.length > before { 1 } else { tries + 1 };
            if tries >= TRIES_MAX {
                return Err(RegistryError::Unreachable {
                    registry: endpoint.registry.clone(),
                    why,
                });
            }
            tracing::debug!(blob = %blob.digest, done = partial.length, why, "a transfer broke and is continued");
            tokio::time::sleep(RETRY_FIRST * 2_u32.pow(tries - 1)).await;
        }
    }

    async fn fetch_once(
        &self,
        endpoint: &Endpoint,
        blob: &Descriptor,
        mut partial: Partial,
        progress: &dyn Progress,
    ) -> Result<(Partial, Try), RegistryError> {
        let url = endpoint.url(&format!("blobs/{}", blob.digest));
        let offset = partial.length;
        let request = |http: &reqwest::Client| {
            let request = http.get(&url);
            match offset {
                0 => request,
                offset => request.header(header::RANGE, format!("bytes={offset}-")),
            }
        };
        let response = match self.inner.send(endpoint, Access::Pull, request).await {
            Ok(response) => response,
            Err(RegistryError::Unreachable { why, .. }) => return Ok((partial, Try::Broke(why))),
            Err(error) => return Err(error),
        };
        match response.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(&response, offset) => {}
            // The registry does not do ranges, or has another idea of the blob: all of it, then.
            StatusCode::OK => partial.restart()?,
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if offset > 0 => {
                partial.restart()?;
                return Ok((
                    partial,
                    Try::Broke("it sent another range than asked for".to_owned()),
                ));
            }
            StatusCode::NOT_FOUND => {
                let why = refusal(endpoint, response).await.to_string();
                return Err(RegistryError::BlobMissing {
                    registry: endpoint.registry.clone(),
                    repository: endpoint.repository.clone(),
                    digest: blob.digest.clone(),
                    why,
                });
            }
            status if status.is_server_error() && status != StatusCode::INSUFFICIENT_STORAGE => {
                let why = refusal(endpoint, response).await.to_string();
                return Ok((partial, Try::Broke(why)));
            }
            _ => return Err(refusal(endpoint, response).await),
        }
        receive(endpoint, blob, partial, response, progress).await
    }
}

async fn receive(
    endpoint: &Endpoint,
    blob: &Descriptor,
    mut partial: Partial,
    mut response: Response,
    progress: &dyn Progress,
) -> Result<(Partial, Try), RegistryError> {
    let mut gathered = Vec::with_capacity(WRITE_BYTES);
    loop {
        let next = response.chunk().await;
        if let Ok(Some(piece)) = &next {
            gathered.extend_from_slice(piece);
        }
        let length = partial.length + gathered.len() as u64;
        if length > blob.size {
            partial.discard();
            return Err(RegistryError::SizeMismatch {
                repository: endpoint.repository.clone(),
                digest: blob.digest.clone(),
                expected: blob.size,
                found: length,
            });
        }
        if gathered.len() >= WRITE_BYTES || !matches!(next, Ok(Some(_))) {
            (partial, gathered) = write(partial, gathered).await?;
            progress.advance(&blob.digest, partial.length);
        }
        match next {
            Ok(Some(_)) => {}
            Ok(None) if partial.length == blob.size => return Ok((partial, Try::Whole)),
            Ok(None) => return Ok((partial, Try::Broke("the transfer ended early".to_owned()))),
            Err(error) => return Ok((partial, Try::Broke(broke_because(error)))),
        }
    }
}

/// Writes what was gathered. On a full disk the file goes too: a half download would keep the disk full.
async fn write(
    mut partial: Partial,
    mut gathered: Vec<u8>,
) -> Result<(Partial, Vec<u8>), RegistryError> {
    blocking(move || {
        let written = partial.write(&gathered);
        if written.is_err() {
            partial.discard();
        }
        written?;
        gathered.clear();
        Ok((partial, gathered))
    })
    .await
}

/// Flushes to the disk, which takes seconds for a large blob.
async fn finish(
    store: &ContentStore,
    blob: &Descriptor,
    mut partial: Partial,
) -> Result<Option<Digest>, RegistryError> {
    let (store, digest) = (store.clone(), blob.digest.clone());
    blocking(move || store.finish(&digest, &mut partial)).await
}

fn starts_at(response: &Response, offset: u64) -> bool {
    response
        .headers()
        .get(header::CONTENT_RANGE)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.strip_prefix("bytes ")?.split_once('-')?.0.parse::<u64>().ok())
        == Some(offset)
}

fn mismatch(endpoint: &Endpoint, expected: &Digest, found: Digest) -> RegistryError {
    RegistryError::DigestMismatch {
        registry: endpoint.registry.clone(),
        repository: endpoint.repository.clone(),
        expected: expected.clone(),
        found,
    }
}
