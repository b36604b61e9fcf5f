//! Blobs on disk, named by their digest. A blob is there whole or not at all: it comes by fsync and rename.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use brig_api::Digest;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::error::RegistryError;

/// Read and hashed in pieces of this size.
const READ_BYTES: usize = 256 * 1024;

/// A folder of blobs.
#[derive(Debug, Clone)]
pub(crate) struct BlobStore {
    root: PathBuf,
}

/// A blob in the store, as the collector sees it.
#[derive(Debug, Clone)]
pub(crate) struct StoredBlob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) touched: SystemTime,
}

/// Runs blocking file work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(gone) => Err(RegistryError::Storage {
            path: PathBuf::new(),
            source: std::io::Error::other(gone),
        }),
    }
}

impl BlobStore {
    pub(crate) fn open(root: &Path) -> Result<Self, RegistryError> {
        let sha256 = root.join("sha256");
        std::fs::create_dir_all(&sha256)
            .map_err(|source| RegistryError::storage(&sha256, source))?;
        Ok(Self { root: sha256 })
    }

    /// Where the blob is, if it is there.
    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join(hex.get(..2).unwrap_or_default()).join(hex)
    }

    /// The lengths of blobs; None for one that is not there.
    pub(crate) async fn sizes(
        &self,
        digests: impl Iterator<Item = Digest>,
    ) -> Result<Vec<Option<u64>>, RegistryError> {
        let paths: Vec<_> = digests.map(|digest| self.path(&digest)).collect();
        let size = |path: PathBuf| match std::fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(RegistryError::storage(&path, source)),
        };
        blocking(move || paths.into_iter().map(size).collect()).await
    }

    /// As [`Self::size`], and makes the blob young again, so that the collector leaves it to the push that asked.
    pub(crate) async fn touch(
        &self,
        digest: &Digest,
        now: SystemTime,
    ) -> Result<Option<u64>, RegistryError> {
        let path = self.path(digest);
        blocking(move || {
            let file = match std::fs::OpenOptions::new().append(true).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(source) => return Err(RegistryError::storage(&path, source)),
            };
            file.set_modified(now)
                .and_then(|()| file.metadata())
                .map(|metadata| Some(metadata.len()))
                .map_err(|source| RegistryError::storage(&path, source))
        })
        .await
    }

    /// Is this small blob there, with these bytes? Then makes it young again, as [`Self::touch`] does.
    pub(crate) async fn renew(
        &self,
        digest: &Digest,
        bytes: Bytes,
        now: SystemTime,
    ) -> Result<bool, RegistryError> {
        let path = self.path(digest);
        blocking(move || {
            let storage = |source| RegistryError::storage(&path, source);
            let file = match std::fs::OpenOptions::new().read(true).append(true).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
                Err(source) => return Err(storage(source)),
            };
            let mut found = Vec::with_capacity(bytes.len() + 1);
            (&file).take(bytes.len() as u64 + 1).read_to_end(&mut found).map_err(storage)?;
            if found != bytes {
                return Ok(false);
            }
            file.set_modified(now).map_err(storage)?;
            Ok(true)
        })
        .await
    }

    /// Moves a finished and synced file in as the blob `digest`; the caller has checked the digest.
    pub(crate) fn adopt(&self, file: &Path, digest: &Digest) -> Result<(), RegistryError> {
        let path = self.path(digest);
        let folder = path.parent().unwrap_or(&self.root);
        let storage = |source| RegistryError::storage(&path, source);
        std::fs::create_dir_all(folder).map_err(storage)?;
        std::fs::rename(file, &path).map_err(storage)?;
        let sync = |folder: &Path| std::fs::File::open(folder).and_then(|folder| folder.sync_all());
        sync(folder).and_then(|()| sync(&self.root)).map_err(storage)
    }

    /// Writes a small blob, such as a manifest.
    pub(crate) async fn write(
        &self,
        digest: &Digest,
        bytes: Bytes,
        scratch: PathBuf,
    ) -> Result<(), RegistryError> {
        let (store, digest) = (self.clone(), digest.clone());
        blocking(move || {
            let written = std::fs::File::create(&scratch).and_then(|mut file| {
                std::io::Write::write_all(&mut file, &bytes)?;
                file.sync_all()
            });
            let done = written
                .map_err(|source| RegistryError::storage(&scratch, source))
                .and_then(|()| store.adopt(&scratch, &digest));
            if done.is_err() {
                // Nothing half-written stays; that it may be gone already is no matter.
                let _ = std::fs::remove_file(&scratch);
            }
            done
        })
        .await
    }

    /// Reads a small blob whole and checks it. None when it is not there or larger than `bytes_max`.
    pub(crate) async fn read(
        &self,
        digest: &Digest,
        bytes_max: u64,
    ) -> Result<Option<Bytes>, RegistryError> {
        let (store, digest) = (self.clone(), digest.clone());
        blocking(move || {
            let path = store.path(&digest);
            let storage = |source| RegistryError::storage(&path, source);
            let file = match std::fs::File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(source) => return Err(storage(source)),
            };
            if file.metadata().map_err(storage)?.len() > bytes_max {
                return Ok(None);
            }
            let mut bytes = Vec::new();
            file.take(bytes_max).read_to_end(&mut bytes).map_err(storage)?;
            let found = Digest::of_sha256(&Sha256::digest(&bytes).into());
            if found != digest {
                return Err(store.set_aside(&digest, found));
            }
            Ok(Some(Bytes::from(bytes)))
        })
        .await
    }

    /// Moves a corrupt blob out of the way, so that the next push sends it again, and says so.
    pub(crate) fn set_aside(&self, digest: &Digest, found: Digest) -> RegistryError {
        let path = self.path(digest);
        let aside = path.with_extension("corrupt");
        if let Err(error) = std::fs::rename(&path, &aside) {
            tracing::warn!(blob = %digest, %error, "a corrupt blob could not be set aside");
        }
        RegistryError::CorruptBlob { digest: digest.clone(), found, aside }
    }

    /// When the blob was touched last.
    pub(crate) fn touched(&self, digest: &Digest) -> Option<SystemTime> {
        std::fs::metadata(self.path(digest)).and_then(|metadata| metadata.modified()).ok()
    }

    /// Removes a blob; the bytes that it had.
    pub(crate) fn remove(&self, digest: &Digest) -> Result<u64, RegistryError> {
        let path = self.path(digest);
        let size = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(size),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(source) => Err(RegistryError::storage(&path, source)),
        }
    }

    /// All blobs, and the files beside them that are none: corrupt ones that were set aside.
    pub(crate) fn walk(&self) -> Result<(Vec<StoredBlob>, Vec<PathBuf>), RegistryError> {
        let (mut blobs, mut others) = (Vec::new(), Vec::new());
        let entries = |path: &Path| -> Result<Vec<std::fs::DirEntry>, RegistryError> {
            std::fs::read_dir(path)
                .and_then(Iterator::collect)
                .map_err(|source| RegistryError::storage(path, source))
        };
        for folder in entries(&self.root)? {
            for entry in entries(&folder.path())? {
                let Ok(metadata) = entry.metadata() else { continue };
                let name = entry.file_name();
                let digest =
                    name.to_str().and_then(|hex| Digest::new(format!("sha256:{hex}")).ok());
                match (digest, metadata.modified()) {
                    (Some(digest), Ok(touched)) => {
                        blobs.push(StoredBlob { digest, size: metadata.len(), touched });
                    }
                    _ => others.push(entry.path()),
                }
            }
        }
        Ok((blobs, others))
    }
}

/// Reads a blob from `start` in pieces, `length` bytes in all. A whole blob is hashed on the way, and its last
/// piece is sent only when the digest is right: a reader of a corrupt blob sees the transfer break, not end.
pub(crate) fn read_in_pieces(
    store: BlobStore,
    digest: Digest,
    start: u64,
    length: u64,
    is_whole: bool,
) -> impl futures::Stream<Item = Result<Bytes, std::io::Error>> + Send {
    async_stream::try_stream! {
        use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
        let mut file = tokio::fs::File::open(store.path(&digest)).await?;
        file.set_max_buf_size(READ_BYTES);
        if start > 0 {
            file.seek(std::io::SeekFrom::Start(start)).await?;
        }
        let mut left = length;
        let mut hasher = Sha256::new();
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(READ_BYTES);
            let mut piece = vec![0; want];
            file.read_exact(&mut piece).await?;
            left -= want as u64;
            if is_whole {
                hasher.update(&piece);
            }
            if is_whole && left == 0 {
                let found = Digest::of_sha256(&std::mem::take(&mut hasher).finalize().into());
                if found != digest {
                    let error = store.set_aside(&digest, found);
                    tracing::error!(%error, "a blob is corrupt");
                    Err(std::io::Error::other(error))?;
                }
            }
            yield Bytes::from(piece);
        }
    }
}
