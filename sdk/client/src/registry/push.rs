//! Sending blobs and manifests. A blob that the registry has is not sent; a broken transfer is continued.

use std::io::SeekFrom;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use brig_api::oci::Descriptor;
use brig_api::reference::Reference;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{StatusCode, header};
use reqwest::{Body, Response, Url};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use super::RegistryClient;
use super::endpoint::Endpoint;
use super::error::RegistryError;
use super::progress::Progress;
use super::transport::{Access, refusal};

/// Broken transfers in a row, without a byte of progress, after which a push gives up.
const TRIES_MAX: u32 = 5;
/// Wait before the second try; doubled for each further one.
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// Read and sent in pieces of this size.
const READ_BYTES: usize = 256 * 1024;

/// Where a blob's bytes are.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Memory(Bytes),
    /// A part of a file: from `offset`, as many bytes as the blob has.
    File {
        path: PathBuf,
        offset: u64,
    },
}

impl Source {
    /// The bytes from `start` to the end of a blob of `size` bytes, as a request's body. `sent` counts them.
    async fn body(
        &self,
        start: u64,
        size: u64,
        sent: Arc<AtomicU64>,
    ) -> Result<Body, RegistryError> {
        match self {
            Self::Memory(bytes) => {
                let start = usize::try_from(start).unwrap_or(usize::MAX).min(bytes.len());
                sent.store(size, Ordering::Relaxed);
                Ok(Body::from(bytes.slice(start..)))
            }
            Self::File { path, offset } => {
                let open = async {
                    let mut file = tokio::fs::File::open(path).await?;
                    file.seek(SeekFrom::Start(offset + start)).await?;
                    Ok(file)
                };
                let file = open.await.map_err(|source| RegistryError::file(path, source))?;
                let pieces =
                    ReaderStream::with_capacity(file.take(size.saturating_sub(start)), READ_BYTES);
                Ok(Body::wrap_stream(pieces.inspect(move |piece| {
                    if let Ok(piece) = piece {
                        sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
                    }
                })))
            }
        }
    }
}

impl RegistryClient {
    /// Sends a blob unless the registry has it; the bytes that were sent.
    pub(crate) async fn push_blob(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        source: &Source,
        progress: &dyn Progress,
    ) -> Result<u64, RegistryError> {
        let endpoint = self.inner.endpoint(reference)?;
        let url = endpoint.url(&format!("blobs/{}", blob.digest));
        let head = self.inner.send(&endpoint, Access::Push, |http| http.head(&url)).await?;
        if head.status().is_success() {
            progress.end(&blob.digest, true);
            return Ok(0);
        }
        if matches!(head.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(refusal(&endpoint, head).await);
        }
        progress.begin(&blob.digest, 0, blob.size);
        let mut upload = self.begin_upload(&endpoint).await?;
        let (mut offset, mut tries) = (0, 0);
        while offset < blob.size {
            let outcome =
                self.send_chunk(&endpoint, &upload, offset, blob, source, progress).await?;
            let error = match outcome {
                Ok(next) => {
                    upload = next;
                    break;
                }
                Err(error) => error,
            };
            tokio::time::sleep(RETRY_FIRST * 2_u32.pow(tries.min(TRIES_MAX))).await;
            let arrived = self.uploaded(&endpoint, &upload).await.unwrap_or(offset);
            tries = if arrived > offset { 1 } else { tries + 1 };
            if tries >= TRIES_MAX {
                return Err(error);
            }
            tracing::debug!(blob = %blob.digest, arrived, %error, "a transfer broke and is continued");
            offset = arrived.min(blob.size);
        }
        self.end_upload(&endpoint, upload, blob).await?;
        progress.end(&blob.digest, false);
        Ok(blob.size)
    }

    /// Names a manifest: the last step of a push.
    pub(crate) async fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: &Bytes,
    ) -> Result<(), RegistryError> {
        let endpoint = self.inner.endpoint(reference)?;
        let url = endpoint.url(&format!("manifests/{}", reference.wanted()));
        let request = |http: &reqwest::Client| {
            http.put(&url).header(header::CONTENT_TYPE, media_type).body(bytes.clone())
        };
        let response = self.inner.send(&endpoint, Access::Push, request).await?;
        success(&endpoint, response).await.map(drop)
    }

    async fn begin_upload(&self, endpoint: &Endpoint) -> Result<Url, RegistryError> {
        let url = endpoint.url("blobs/uploads/");
        let request = |http: &reqwest::Client| http.post(&url).header(header::CONTENT_LENGTH, 0);
        let response = self.inner.send(endpoint, Access::Push, request).await?;
        location(endpoint, &success(endpoint, response).await?)
    }

    /// Sends the bytes from `offset` on. The outer error ends the push, the inner one is worth another try.
    async fn send_chunk(
        &self,
        endpoint: &Endpoint,
        upload: &Url,
        offset: u64,
        blob: &Descriptor,
        source: &Source,
        progress: &dyn Progress,
    ) -> Result<Result<Url, RegistryError>, RegistryError> {
        let sent = Arc::new(AtomicU64::new(offset));
        let body = source.body(offset, blob.size, Arc::clone(&sent)).await?;
        let request = self
            .inner
            .http(endpoint)?
            .patch(upload.clone())
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, blob.size - offset)
            .header(header::CONTENT_RANGE, format!("{offset}-{}", blob.size - 1))
            .body(body);
        let sending = self.inner.send_once(endpoint, Access::Push, request);
        tokio::pin!(sending);
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        let response = loop {
            tokio::select! {
                response = &mut sending => break response,
                _ = tick.tick() => progress.advance(&blob.digest, sent.load(Ordering::Relaxed)),
            }
        };
        match response {
            Err(error @ RegistryError::Unreachable { .. }) => Ok(Err(error)),
            Err(error) => Err(error),
            Ok(response) => {
                let is_worth_a_try = response.status() == StatusCode::RANGE_NOT_SATISFIABLE
                    || (response.status().is_server_error()
                        && response.status() != StatusCode::INSUFFICIENT_STORAGE);
                match success(endpoint, response).await {
                    Ok(response) => location(endpoint, &response).map(Ok),
                    Err(error) if is_worth_a_try => Ok(Err(error)),
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Bytes of an upload that have arrived; None when the registry does not say.
    async fn uploaded(&self, endpoint: &Endpoint, upload: &Url) -> Option<u64> {
        let request = |http: &reqwest::Client| http.get(upload.clone());
        let response = self.inner.send(endpoint, Access::Push, request).await.ok()?;
        let range = response.headers().get(header::RANGE)?.to_str().ok()?;
        match range.trim_start_matches("bytes=").split_once('-')?.1.parse::<u64>().ok()? {
            // "0-0" is said of nothing as well as of one byte. Sending that byte again would be refused with
            // the right offset, so nothing is the better guess.
            0 => Some(0),
            last => last.checked_add(1),
        }
    }

    async fn end_upload(
        &self,
        endpoint: &Endpoint,
        mut upload: Url,
        blob: &Descriptor,
    ) -> Result<(), RegistryError> {
        upload.query_pairs_mut().append_pair("digest", blob.digest.as_str());
        let request =
            |http: &reqwest::Client| http.put(upload.clone()).header(header::CONTENT_LENGTH, 0);
        let response = self.inner.send(endpoint, Access::Push, request).await?;
        success(endpoint, response).await.map(drop)
    }
}

async fn success(endpoint: &Endpoint, response: Response) -> Result<Response, RegistryError> {
    if response.status().is_success() {
        return Ok(response);
    }
    Err(refusal(endpoint, response).await)
}

fn location(endpoint: &Endpoint, response: &Response) -> Result<Url, RegistryError> {
    response
        .headers()
        .get(header::LOCATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| endpoint.locate(text))
        .ok_or_else(|| RegistryError::Refused {
            registry: endpoint.registry.clone(),
            status: response.status().as_u16(),
            why: "it gave no usable address for the upload".to_owned(),
        })
}
