//! Blobs on disk in the OCI image layout (`blobs/sha256/<hex>`), each checked before it gets its name.
//!
//! ```text
//! <root>/blobs/sha256/<hex>     whole and checked
//! <root>/partial/<hex>          the first bytes of a blob whose transfer broke, or goes on
//! ```

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use brig_api::Digest;
use sha2::{Digest as _, Sha256};

use super::error::RegistryError;

/// Read and hashed in pieces of this size.
const READ_BYTES: usize = 1024 * 1024;

/// A folder of blobs. Cheap to clone; several may share the folder.
#[derive(Debug, Clone)]
pub struct ContentStore {
    root: PathBuf,
}

/// A blob that is being written: locked against other writers until it is dropped.
#[derive(Debug)]
pub(crate) struct Partial {
    file: File,
    path: PathBuf,
    hasher: Sha256,
    pub(crate) length: u64,
}

/// Runs blocking file work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|gone| {
        Err(RegistryError::File { path: PathBuf::new(), source: std::io::Error::other(gone) })
    })
}

impl ContentStore {
    /// Opens the store in `root`, which is made where it is missing.
    ///
    /// # Errors
    /// [`RegistryError::File`] or [`RegistryError::DiskFull`] when a folder cannot be made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, RegistryError> {
        let root = root.into();
        for folder in [root.join("blobs/sha256"), root.join("partial")] {
            std::fs::create_dir_all(&folder)
                .map_err(|source| RegistryError::file(&folder, source))?;
        }
        Ok(Self { root })
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the blob is, if it is there.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Is the blob there? It was checked when it came.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Removes a blob, such as one that turned out corrupt.
    ///
    /// # Errors
    /// [`RegistryError::File`] when it is there and cannot be removed.
    pub fn remove(&self, digest: &Digest) -> Result<(), RegistryError> {
        let path = self.path(digest);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(RegistryError::file(&path, error))
            }
            _ => Ok(()),
        }
    }

    /// Reads a blob of at most `bytes_max` bytes and checks it; None when it is not there, too long or corrupt
    /// (a corrupt one is removed, so that it is fetched again).
    ///
    /// # Errors
    /// [`RegistryError::File`] when it cannot be read.
    pub fn read(&self, digest: &Digest, bytes_max: u64) -> Result<Option<Vec<u8>>, RegistryError> {
        let path = self.path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RegistryError::file(&path, source)),
        };
        let mut bytes = Vec::new();
        file.take(bytes_max)
            .read_to_end(&mut bytes)
            .map_err(|source| RegistryError::file(&path, source))?;
        if Digest::of_sha256(&Sha256::digest(&bytes).into()) == *digest {
            return Ok(Some(bytes));
        }
        self.remove(digest)?;
        Ok(None)
    }

    /// Hashes the blob on disk: its digest now, which is another when the disk or somebody changed it.
    ///
    /// # Errors
    /// [`RegistryError::File`] when it cannot be read.
    pub fn digest_on_disk(&self, digest: &Digest) -> Result<Digest, RegistryError> {
        let path = self.path(digest);
        let (hasher, _) = File::open(&path)
            .and_then(|mut file| hash(&mut file))
            .map_err(|source| RegistryError::file(&path, source))?;
        Ok(Digest::of_sha256(&hasher.finalize().into()))
    }

    /// Writes a small blob.
    ///
    /// # Errors
    /// [`RegistryError::DiskFull`] or [`RegistryError::File`]; nothing half-written stays.
    pub fn write(&self, digest: &Digest, bytes: &[u8]) -> Result<(), RegistryError> {
        if self.has(digest) {
            return Ok(());
        }
        let mut partial = self.begin(digest)?;
        let written = partial
            .restart()
            .and_then(|()| partial.write(bytes))
            .and_then(|()| self.finish(digest, &mut partial));
        if written.is_err() {
            partial.discard();
        }
        written.map(drop)
    }

    /// Opens what is there of a blob and waits until nobody else writes it. Blocks.
    pub(crate) fn begin(&self, digest: &Digest) -> Result<Partial, RegistryError> {
        let path = self.root.join("partial").join(digest.hex());
        let storage = |source| RegistryError::file(&path, source);
        loop {
            let mut file = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(storage)?;
            file.lock().map_err(storage)?;
            // Who had the lock before may have given the file its final name: then it is not ours.
            let is_same = {
                use std::os::unix::fs::MetadataExt as _;
                let (ours, there) = (file.metadata(), std::fs::metadata(&path));
                matches!((ours, there), (Ok(a), Ok(b)) if a.ino() == b.ino())
            };
            if !is_same {
                continue;
            }
            let (hasher, length) = hash(&mut file).map_err(storage)?;
            return Ok(Partial { file, path, hasher, length });
        }
    }

    /// Gives a whole blob its name. Its digest when that is not `digest`; the bytes are then thrown away.
    pub(crate) fn finish(
        &self,
        digest: &Digest,
        partial: &mut Partial,
    ) -> Result<Option<Digest>, RegistryError> {
        let found = Digest::of_sha256(&partial.hasher.clone().finalize().into());
        if found != *digest {
            partial.discard();
            return Ok(Some(found));
        }
        let path = self.path(digest);
        let folder = path.parent().unwrap_or(&self.root);
        partial
            .file
            .sync_all()
            .and_then(|()| std::fs::rename(&partial.path, &path))
            .and_then(|()| File::open(folder)?.sync_all())
            .map_err(|source| RegistryError::file(&path, source))?;
        Ok(None)
    }
}

impl Partial {
    /// Adds bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), RegistryError> {
        self.file.write_all(bytes).map_err(|source| RegistryError::file(&self.path, source))?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Begins from the first byte.
    pub(crate) fn restart(&mut self) -> Result<(), RegistryError> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .map_err(|source| RegistryError::file(&self.path, source))?;
        self.hasher = Sha256::new();
        self.length = 0;
        Ok(())
    }

    /// Throws the bytes away; the file too.
    pub(crate) fn discard(&mut self) {
        // A file that stays is only a wrong start for the next try, which checks the digest.
        let _ = self.file.set_len(0);
        let _ = std::fs::remove_file(&self.path);
    }
}

fn hash(file: &mut File) -> Result<(Sha256, u64), std::io::Error> {
    let (mut hasher, mut length) = (Sha256::new(), 0);
    let mut piece = vec![0; READ_BYTES];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok((hasher, length)),
            count => {
                hasher.update(&piece[..count]);
                length += count as u64;
            }
        }
    }
}
