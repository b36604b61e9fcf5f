//! Unpacked layers, each once, named by the digest of its tar: what several images share is on disk once.

use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use brig_api::Digest;
use brig_shim::tree;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::error::{ArtifactError, is_disk_full};
use super::unpack::{LimitReached, UnpackError, unpack};

/// What begins the name of a folder that is not done.
const UNPACKING: &str = ".unpacking-";
/// Bytes that say what a file is.
const HEAD_BYTES: u64 = 1024;
/// The compressed layer is read in pieces of this size.
const READ_BYTES: usize = 256 * 1024;

/// How much a layer may unpack to: against tars that are small only while they are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Most bytes of the tar.
    pub bytes_max: u64,
    /// Most files and folders.
    pub entries_max: u64,
}

impl Default for UnpackLimits {
    /// Far above real images: the largest public ones (machine learning) have layers of some 15 GB and images of
    /// some 500,000 files.
    fn default() -> Self {
        Self { bytes_max: 64 * 1024 * 1024 * 1024, entries_max: 2_000_000 }
    }
}

/// A folder of unpacked layers.
#[derive(Debug, Clone)]
pub(crate) struct LayerStore {
    root: PathBuf,
    limits: UnpackLimits,
    tries: Arc<AtomicU64>,
}

/// Runs blocking file work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ArtifactError> + Send + 'static,
) -> Result<T, ArtifactError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|gone| {
        Err(ArtifactError::File { path: PathBuf::new(), source: std::io::Error::other(gone) })
    })
}

/// The first bytes of a file.
pub(crate) async fn read_head(path: &Path) -> Result<Vec<u8>, ArtifactError> {
    let path = path.to_owned();
    blocking(move || {
        let mut head = Vec::new();
        std::fs::File::open(&path)
            .and_then(|file| file.take(HEAD_BYTES).read_to_end(&mut head))
            .map_err(|source| ArtifactError::file(&path, source))?;
        Ok(head)
    })
    .await
}

/// The bytes of a file that an image has: of the highest layer that has it. None when none has, when a layer above
/// takes it away, or when it is larger than `bytes_max`. Links lead nowhere outside of their layer. Blocks.
pub(crate) fn read_file(
    layers: &[PathBuf],
    path: &Path,
    bytes_max: u64,
) -> Result<Option<Vec<u8>>, ArtifactError> {
    for layer in layers.iter().rev() {
        let fails = |source: std::io::Error| ArtifactError::file(layer, source);
        let root = std::fs::File::open(layer).map_err(fails)?;
        // Not to wait for a pipe's other end, should it be one.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
        let file = match opened {
            Ok(file) => std::fs::File::from(file),
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            // A character device that nothing drives: overlayfs's mark for what a layer takes away.
            Err(Errno::NXIO | Errno::NODEV | Errno::ACCESS | Errno::PERM) => return Ok(None),
            Err(error) => return Err(fails(error.into())),
        };
        let metadata = file.metadata().map_err(fails)?;
        if !metadata.is_file() || metadata.len() > bytes_max {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(bytes_max).read_to_end(&mut bytes).map_err(fails)?;
        return Ok(Some(bytes));
    }
    Ok(None)
}

impl LayerStore {
    /// Opens the folder and removes what a crash left.
    pub(crate) fn open(root: PathBuf, limits: UnpackLimits) -> Result<Self, ArtifactError> {
        let fails = |source| ArtifactError::file(&root, source);
        std::fs::create_dir_all(&root).map_err(fails)?;
        for entry in std::fs::read_dir(&root).map_err(fails)? {
            let entry = entry.map_err(fails)?;
            // One that can't be removed takes room, which is no reason for the node not to run.
            if entry.file_name().to_string_lossy().starts_with(UNPACKING)
                && let Err(error) = tree::remove(&entry.path())
            {
                tracing::warn!(
                    path = %entry.path().display(), error = %error, "a layer half-done can't be removed"
                );
            }
        }
        Ok(Self { root, limits, tries: Arc::default() })
    }

    /// The unpacked layer, if it is there.
    pub(crate) fn find(&self, diff_id: &Digest) -> Option<PathBuf> {
        let path = self.root.join(diff_id.hex());
        path.is_dir().then_some(path)
    }

    /// Unpacks a compressed layer beside its place, checks the digest of its tar, and moves it there. Blocks.
    pub(crate) fn unpack(&self, blob: &Path, diff_id: &Digest) -> Result<PathBuf, ArtifactError> {
        // A name for each try: one whose asker has gone away may still be at work.
        let nth = self.tries.fetch_add(1, Ordering::Relaxed);
        let scratch = self.root.join(format!("{UNPACKING}{nth}-{}", diff_id.hex()));
        let done = self
            .unpack_into(&scratch, blob, diff_id)
            .and_then(|()| self.give_name(&scratch, self.root.join(diff_id.hex())));
        // What stays is removed at the next start.
        let _ = tree::remove(&scratch);
        done
    }

    fn give_name(&self, scratch: &Path, path: PathBuf) -> Result<PathBuf, ArtifactError> {
        match std::fs::rename(scratch, &path) {
            // Another try was faster; both have the same digest.
            Err(_) if path.is_dir() => return Ok(path),
            other => other,
        }
        .and_then(|()| std::fs::File::open(&self.root)?.sync_all())
        .map_err(|source| ArtifactError::file(&path, source))?;
        Ok(path)
    }

    fn unpack_into(
        &self,
        scratch: &Path,
        blob: &Path,
        diff_id: &Digest,
    ) -> Result<(), ArtifactError> {
        use std::os::unix::fs::PermissionsExt as _;
        let fails = |source| ArtifactError::file(scratch, source);
        tree::remove(scratch).map_err(fails)?;
        std::fs::create_dir(scratch).map_err(fails)?;
        std::fs::set_permissions(scratch, std::fs::Permissions::from_mode(0o755)).map_err(fails)?;
        let file = std::fs::File::open(blob).map_err(|source| ArtifactError::file(blob, source))?;
        let tar = decompress(file).map_err(UnpackError::read)?;
        let mut measured = Measured {
            inner: tar,
            hasher: Sha256::new(),
            read: 0,
            bytes_max: self.limits.bytes_max,
        };
        unpack(&mut measured, scratch, self.limits).map_err(|error| match error {
            UnpackError::Write { source, .. } if is_disk_full(&source) => {
                ArtifactError::DiskFull { path: self.root.clone() }
            }
            other => ArtifactError::Unpack(other),
        })?;
        let found = Digest::of_sha256(&measured.hasher.finalize().into());
        if found != *diff_id {
            return Err(UnpackError::DiffId { expected: diff_id.clone(), found }.into());
        }
        // Once it has its name it counts as whole, after a power cut too.
        let folder = std::fs::File::open(scratch).map_err(fails)?;
        rustix::fs::syncfs(&folder).map_err(|error| fails(error.into()))
    }
}

/// By the first bytes, not by the media type: they are never wrong.
fn decompress(file: std::fs::File) -> Result<Box<dyn Read>, std::io::Error> {
    let mut file = BufReader::with_capacity(READ_BYTES, file);
    let head = file.fill_buf()?;
    if head.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(file)));
    }
    if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Ok(Box::new(zstd::stream::read::Decoder::with_buffer(file)?));
    }
    Ok(Box::new(file))
}

/// Hashes what is read and stops at a limit.
struct Measured<R> {
    inner: R,
    hasher: Sha256,
    read: u64,
    bytes_max: u64,
}

impl<R: Read> Read for Measured<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.read += count as u64;
        if self.read > self.bytes_max {
            return Err(std::io::Error::other(LimitReached { bytes_max: self.bytes_max }));
        }
        Ok(count)
    }
}
