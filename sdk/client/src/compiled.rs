//! Compiled code of wasm programs, as nodes keep it for one another at the control plane.

use brig_api::{Code, Digest};
use bytes::Bytes;
use futures::Stream;
use reqwest::{Body, Method};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use crate::error::ClientError;
use crate::http::Client;

/// Longest transfer of compiled code, either way: what takes longer is compiled sooner.
const TRANSFER_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(120);

impl Client {
    /// Writes what the control plane keeps of this program, compiled for `compatibility`, to `into`; false when it keeps
    /// nothing. Whoever asks checks what comes.
    ///
    /// # Errors
    /// [`ClientError`]; also when there are more than `bytes_max` bytes, or when they can't be written.
    pub async fn compiled_code_fetch(
        &self,
        compatibility: &str,
        program: &Digest,
        into: &mut (impl AsyncWrite + Unpin),
        bytes_max: u64,
    ) -> Result<bool, ClientError> {
        let request =
            self.request(Method::GET, &path(compatibility, program)).timeout(TRANSFER_TIME_MAX);
        let mut response = match self.send(request).await {
            Ok(response) => response,
            Err(ClientError::Problem(problem)) if problem.code == Code::NotFound => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let broken = |error: Box<dyn std::error::Error + Send + Sync>| ClientError::Broken(error);
        let mut left = bytes_max;
        while let Some(piece) = response.chunk().await.map_err(|error| broken(Box::new(error)))? {
            left = left
                .checked_sub(piece.len() as u64)
                .ok_or_else(|| self.unexpected(format!("more than {bytes_max} bytes")))?;
            into.write_all(&piece).await.map_err(|error| broken(Box::new(error)))?;
        }
        into.flush().await.map_err(|error| broken(Box::new(error)))?;
        Ok(true)
    }

    /// Gives the control plane this program's code, compiled for `compatibility`, to keep.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn compiled_code_keep(
        &self,
        compatibility: &str,
        program: &Digest,
        code: impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static,
    ) -> Result<(), ClientError> {
        let request = self
            .request(Method::POST, &path(compatibility, program))
            .timeout(TRANSFER_TIME_MAX)
            .header(reqwest::header::CONTENT_TYPE, "application/octet-stream")
            .body(Body::wrap_stream(code));
        self.send(request).await.map(drop)
    }
}

fn path(compatibility: &str, program: &Digest) -> String {
    format!("/v1/compiled-code/{compatibility}/{program}")
}
