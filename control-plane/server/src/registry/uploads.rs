//! Blobs on their way in: one file each, hashed while it is written, so that the end of an upload costs no reading.
//!
//! An upload can be continued after a broken connection (the bytes that came stay) and after a restart of the
//! server (the file is hashed again). A failed write, such as on a full disk, removes the file.

use std::collections::HashMap;
use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::body::Body;
use brig_api::Digest;
use futures::StreamExt as _;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};

use super::blobs::{BlobStore, blocking};
use super::error::RegistryError;
use super::path::UploadId;

/// An upload that nobody touched for so long is removed.
pub(crate) const UPLOAD_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Bytes gathered before they are hashed and written.
const WRITE_BYTES: usize = 1024 * 1024;

/// The uploads in progress.
#[derive(Debug, Clone)]
pub(crate) struct Uploads {
    root: PathBuf,
    blob_bytes_max: u64,
    sessions: Arc<Mutex<HashMap<UploadId, Arc<tokio::sync::Mutex<Session>>>>>,
}

/// What is known of an upload: exactly the first `offset` bytes of its file are hashed.
#[derive(Debug)]
struct Session {
    path: PathBuf,
    hasher: Sha256,
    offset: u64,
}

impl Uploads {
    pub(crate) fn open(root: PathBuf, blob_bytes_max: u64) -> Result<Self, RegistryError> {
        std::fs::create_dir_all(&root).map_err(|source| RegistryError::storage(&root, source))?;
        Ok(Self { root, blob_bytes_max, sessions: Arc::default() })
    }

    /// Begins an upload.
    pub(crate) async fn begin(&self) -> Result<UploadId, RegistryError> {
        let id = UploadId::random();
        let path = self.root.join(id.as_str());
        tokio::fs::File::create_new(&path)
            .await
            .map_err(|source| RegistryError::storage(&path, source))?;
        let session = Session { path, hasher: Sha256::new(), offset: 0 };
        self.lock().insert(id.clone(), Arc::new(tokio::sync::Mutex::new(session)));
        Ok(id)
    }

    /// A name for a file that is being written beside the uploads.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.root.join(UploadId::random().as_str())
    }

    /// Bytes that the upload has.
    pub(crate) async fn offset(&self, id: &UploadId) -> Result<u64, RegistryError> {
        let session = self.session(id).await?;
        let offset = session.lock().await.offset;
        Ok(offset)
    }

    /// Adds `body`; the bytes that the upload then has. `announced` is the length by the headers.
    ///
    /// Runs as a task of its own: when the sender goes away, what came is still written and hashed.
    pub(crate) async fn append(
        &self,
        id: &UploadId,
        body: Body,
        announced: Option<u64>,
    ) -> Result<u64, RegistryError> {
        let session = self.session(id).await?;
        let bytes_max = self.blob_bytes_max;
        let task = tokio::spawn(async move {
            let mut session = session.lock().await;
            session.receive(body, announced, bytes_max).await.map(|()| session.offset)
        });
        let done = task.await.unwrap_or(Err(RegistryError::Receive("a chunk")));
        if matches!(
            done,
            Err(RegistryError::DiskFull { .. }
                | RegistryError::Storage { .. }
                | RegistryError::TooLarge { .. })
        ) {
            self.cancel(id).await?;
        }
        done
    }

    /// Ends the upload as the blob `digest`.
    pub(crate) async fn finish(
        &self,
        id: &UploadId,
        digest: &Digest,
        blobs: &BlobStore,
    ) -> Result<(), RegistryError> {
        let session = self.session(id).await?;
        let (path, found) = {
            let session = session.lock().await;
            (session.path.clone(), Digest::of_sha256(&session.hasher.clone().finalize().into()))
        };
        if found != *digest {
            self.cancel(id).await?;
            return Err(RegistryError::DigestMismatch { expected: digest.clone(), found });
        }
        let (blobs, digest) = (blobs.clone(), digest.clone());
        let adopted = blocking(move || {
            std::fs::File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(|source| RegistryError::storage(&path, source))?;
            blobs.adopt(&path, &digest)
        })
        .await;
        self.cancel(id).await?;
        adopted
    }

    /// Forgets the upload and removes its file.
    pub(crate) async fn cancel(&self, id: &UploadId) -> Result<(), RegistryError> {
        self.lock().remove(id);
        let path = self.root.join(id.as_str());
        match tokio::fs::remove_file(&path).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(RegistryError::storage(&path, error))
            }
            _ => Ok(()),
        }
    }

    /// Removes uploads that nobody touched for [`UPLOAD_AGE_MAX`]; how many there were.
    pub(crate) async fn expire(&self, now: SystemTime) -> Result<usize, RegistryError> {
        let root = self.root.clone();
        let old = blocking(move || expired(&root, now)).await?;
        for id in &old {
            self.cancel(id).await?;
        }
        Ok(old.len())
    }

    async fn session(
        &self,
        id: &UploadId,
    ) -> Result<Arc<tokio::sync::Mutex<Session>>, RegistryError> {
        if let Some(session) = self.lock().get(id) {
            return Ok(Arc::clone(session));
        }
        let session = Session::reopen(self.root.join(id.as_str())).await?;
        let session = Arc::new(tokio::sync::Mutex::new(session));
        Ok(Arc::clone(self.lock().entry(id.clone()).or_insert(session)))
    }

    fn lock(
        &self,
    ) -> std::sync::MutexGuard<'_, HashMap<UploadId, Arc<tokio::sync::Mutex<Session>>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn expired(root: &Path, now: SystemTime) -> Result<Vec<UploadId>, RegistryError> {
    let entries = std::fs::read_dir(root).map_err(|source| RegistryError::storage(root, source))?;
    let is_old = |entry: &std::fs::DirEntry| {
        let touched = entry.metadata().and_then(|metadata| metadata.modified());
        touched.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > UPLOAD_AGE_MAX))
    };
    Ok(entries
        .flatten()
        .filter(is_old)
        .filter_map(|entry| entry.file_name().to_str().and_then(UploadId::parse))
        .collect())
}

impl Session {
    /// An upload that an earlier process began.
    async fn reopen(path: PathBuf) -> Result<Self, RegistryError> {
        let mut file = match tokio::fs::File::open(&path).await {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(RegistryError::UploadUnknown);
            }
            Err(source) => return Err(RegistryError::storage(&path, source)),
        };
        let (mut hasher, mut offset) = (Sha256::new(), 0);
        let mut piece = vec![0; WRITE_BYTES];
        loop {
            match file.read(&mut piece).await {
                Ok(0) => return Ok(Self { path, hasher, offset }),
                Ok(length) => {
                    hasher.update(&piece[..length]);
                    offset += length as u64;
                }
                Err(source) => return Err(RegistryError::storage(&path, source)),
            }
        }
    }

    async fn receive(
        &mut self,
        body: Body,
        announced: Option<u64>,
        bytes_max: u64,
    ) -> Result<(), RegistryError> {
        let path = self.path.clone();
        let storage = |source| RegistryError::storage(&path, source);
        let mut file =
            tokio::fs::OpenOptions::new().write(true).open(&path).await.map_err(storage)?;
        // A write that failed half-way may have left bytes that are not hashed.
        file.set_len(self.offset).await.map_err(storage)?;
        file.seek(SeekFrom::Start(self.offset)).await.map_err(storage)?;
        let mut stream = body.into_data_stream();
        let (mut gathered, mut received) = (Vec::with_capacity(WRITE_BYTES), 0_u64);
        let mut ended = Ok(());
        while let Some(piece) = stream.next().await {
            let Ok(piece) = piece else {
                ended = Err(RegistryError::Receive("a chunk"));
                break;
            };
            received += piece.len() as u64;
            gathered.extend_from_slice(&piece);
            if self.offset + gathered.len() as u64 > bytes_max {
                return Err(RegistryError::TooLarge { bytes_max });
            }
            if gathered.len() >= WRITE_BYTES {
                self.write(&mut file, &mut gathered).await.map_err(storage)?;
            }
        }
        self.write(&mut file, &mut gathered).await.map_err(storage)?;
        ended?;
        match announced {
            Some(announced) if announced != received => {
                Err(RegistryError::SizeInvalid { announced, received })
            }
            _ => Ok(()),
        }
    }

    /// Hashes only what is written: a flush shows the errors of the writes before it.
    async fn write(
        &mut self,
        file: &mut tokio::fs::File,
        gathered: &mut Vec<u8>,
    ) -> Result<(), std::io::Error> {
        file.write_all(gathered).await?;
        file.flush().await?;
        self.hasher.update(&gathered);
        self.offset += gathered.len() as u64;
        gathered.clear();
        Ok(())
    }
}
