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
/// Time for the next bytes of a body to come.
pub(crate) const PIECE_TIME_MAX: Duration = Duration::from_secs(60);
/// Bytes gathered before they are hashed and written.
const WRITE_BYTES: usize = 1024 * 1024;

/// The uploads in progress.
#[derive(Debug, Clone)]
pub(crate) struct Uploads {
    root: PathBuf,
    blob_bytes_max: u64,
    /// [`PIECE_TIME_MAX`]
    piece_time_max: Duration,
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
        let piece_time_max = PIECE_TIME_MAX;
        Ok(Self { root, blob_bytes_max, piece_time_max, sessions: Arc::default() })
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
        let (bytes_max, piece_time_max) = (self.blob_bytes_max, self.piece_time_max);
        let task = tokio::spawn(async move {
            let mut session = session.lock().await;
            let received = session.receive(body, announced, bytes_max, piece_time_max).await;
            received.map(|()| session.offset)
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
        let session = self.session(id).await?.lock_owned().await;
        let found = Digest::of_sha256(&session.hasher.clone().finalize().into());
        if found != *digest {
            self.cancel(id).await?;
            return Err(RegistryError::DigestMismatch { expected: digest.clone(), found });
        }
        let (uploads, id) = (self.clone(), id.clone());
        let (blobs, digest) = (blobs.clone(), digest.clone());
        // The session goes along and stays locked: whoever adds to the upload meanwhile, or after who asked went
        // away, would change the file between its digest and its new name.
        blocking(move || {
            let path = &session.path;
            let adopted = std::fs::File::open(path)
                .and_then(|file| file.sync_all())
                .map_err(|source| not_found_or_storage(path, source))
                .and_then(|()| blobs.adopt(path, &digest));
            uploads.lock().remove(&id);
            if adopted.is_err() {
                // Nothing half-done stays; that it may be gone already is no matter.
                let _ = std::fs::remove_file(path);
            }
            adopted
        })
        .await
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

/// Where the file of an upload should be: when it is not there, the upload was finished or cancelled meanwhile.
fn not_found_or_storage(path: &Path, source: std::io::Error) -> RegistryError {
    match source.kind() {
        std::io::ErrorKind::NotFound => RegistryError::UploadUnknown,
        _ => RegistryError::storage(path, source),
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
            Err(source) => return Err(not_found_or_storage(&path, source)),
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
        piece_time_max: Duration,
    ) -> Result<(), RegistryError> {
        let path = self.path.clone();
        let storage = |source| RegistryError::storage(&path, source);
        let mut file = tokio::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .await
            .map_err(|source| not_found_or_storage(&path, source))?;
        // A write that failed half-way may have left bytes that are not hashed.
        file.set_len(self.offset).await.map_err(storage)?;
        file.seek(SeekFrom::Start(self.offset)).await.map_err(storage)?;
        let mut stream = body.into_data_stream();
        let (mut gathered, mut received) = (Vec::with_capacity(WRITE_BYTES), 0_u64);
        let mut ended = Ok(());
        loop {
            // Who sends nothing for so long is gone, and whoever wants to go on with the upload waits for the lock.
            let Ok(piece) = tokio::time::timeout(piece_time_max, stream.next()).await else {
                ended = Err(RegistryError::Receive("a chunk"));
                break;
            };
            let Some(piece) = piece else { break };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_sends_nothing_more_holds_no_upload() {
        let dir = tempfile::tempdir().unwrap();
        let mut uploads = Uploads::open(dir.path().join("uploads"), 100).unwrap();
        uploads.piece_time_max = Duration::from_millis(50);
        let id = uploads.begin().await.unwrap();
        let first = futures::stream::iter([Ok::<_, std::io::Error>("hello")]);
        let body = Body::from_stream(first.chain(futures::stream::pending()));
        let stuck = tokio::time::timeout(Duration::from_secs(60), uploads.append(&id, body, None));
        let stuck = stuck.await.unwrap();
        assert!(matches!(stuck, Err(RegistryError::Receive(_))), "{stuck:?}");
        assert_eq!(uploads.offset(&id).await.unwrap(), 5, "what came stays");
    }
}
