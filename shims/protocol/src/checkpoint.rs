//! The newest checkpoint of a task, as a file in a directory: replaced by rename, so that it is whole at any moment.
//!
//! The agent puts it into a run's directory before the run begins, the shim replaces it whenever the program saves, and
//! the agent takes it from there. The file has 16 bytes in front of the state: its number and its time, big-endian.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use brig_api::checkpoint::{Checkpoint, STATE_BYTES_MAX, State};
use rustix::fs::{Mode, OFlags, fsync, openat, renameat};
use rustix::io::Errno;

/// The file's name in a run's directory.
pub const CHECKPOINT_NAME: &str = "checkpoint";
/// No link is followed, and nothing waits for the other end of a pipe that somebody has put there.
const NO_LINKS: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
/// Number and time.
const HEAD_BYTES: usize = 16;

/// Writes it; when this returns it is on the disk, also after a crash of the machine.
///
/// # Errors
/// Those of the filesystem.
pub fn write(path: &Path, checkpoint: &Checkpoint) -> io::Result<()> {
    let (folder, name) = folder_of(path)?;
    let mut new = name.to_owned();
    new.push(".new");
    // Others read it as well: the shim may have another user. Nobody else enters the directory.
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | NO_LINKS;
    let mut file = File::from(openat(&folder, &new, flags, mode)?);
    file.write_all(&checkpoint.number.to_be_bytes())?;
    file.write_all(&checkpoint.saved_ms.to_be_bytes())?;
    file.write_all(checkpoint.state.bytes())?;
    file.sync_all()?;
    renameat(&folder, &new, &folder, name)?;
    Ok(fsync(&folder)?)
}

/// Moves it from one directory to another, in place of the one there.
///
/// # Errors
/// Those of the filesystem.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let ((from, old), (to, new)) = (folder_of(from)?, folder_of(to)?);
    renameat(&from, old, &to, new)?;
    Ok(fsync(&to)?)
}

/// Reads it; None when there is none. Who wrote it is not trusted: no link is followed, and no more is read than a
/// checkpoint can have.
///
/// # Errors
/// Those of the filesystem, and `InvalidData` for what is no checkpoint.
pub fn read(path: &Path) -> io::Result<Option<Checkpoint>> {
    let Some(mut file) = open(path)? else { return Ok(None) };
    let (number, saved_ms) = head(&mut file)?;
    let mut state = Vec::new();
    file.take(STATE_BYTES_MAX as u64 + 1).read_to_end(&mut state)?;
    let state = State::new(state).map_err(invalid)?;
    Ok(Some(Checkpoint { number, saved_ms, state }))
}

/// The number of the checkpoint there; None when there is none.
///
/// # Errors
/// As [`read`].
pub fn number(path: &Path) -> io::Result<Option<u64>> {
    match open(path)? {
        Some(mut file) => Ok(Some(head(&mut file)?.0)),
        None => Ok(None),
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    let opened = folder_of(path).and_then(|(folder, name)| {
        Ok(File::from(openat(&folder, name, OFlags::RDONLY | NO_LINKS, Mode::empty())?))
    });
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    let sizes = HEAD_BYTES as u64..=(HEAD_BYTES + STATE_BYTES_MAX) as u64;
    if !metadata.is_file() || !sizes.contains(&metadata.len()) {
        return Err(invalid(format!("a checkpoint is a file of {sizes:?} bytes")));
    }
    Ok(Some(file))
}

/// The directory that it is in, which may itself be of somebody's making that is not trusted, and its name there.
fn folder_of(path: &Path) -> io::Result<(OwnedFd, &OsStr)> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL.into());
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok((rustix::fs::open(folder, flags, Mode::empty())?, name))
}

fn head(file: &mut File) -> io::Result<(u64, i64)> {
    let (mut number, mut saved_ms) = ([0; 8], [0; 8]);
    file.read_exact(&mut number)?;
    file.read_exact(&mut saved_ms)?;
    let number = u64::from_be_bytes(number);
    // A database has no larger one.
    i64::try_from(number).map_err(invalid)?;
    Ok((number, i64::from_be_bytes(saved_ms)))
}

fn invalid(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(number: u64, state: Vec<u8>) -> Checkpoint {
        Checkpoint { number, saved_ms: -7, state: State::new(state).unwrap() }
    }

    #[test]
    fn the_last_one_that_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CHECKPOINT_NAME);
        assert_eq!((read(&path).unwrap(), number(&path).unwrap()), (None, None));
        for saved in [checkpoint(1, vec![1; STATE_BYTES_MAX]), checkpoint(2, vec![])] {
            write(&path, &saved).unwrap();
            assert_eq!(number(&path).unwrap(), Some(saved.number));
            assert_eq!(read(&path).unwrap(), Some(saved));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_checkpoint_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CHECKPOINT_NAME);
        let secret = dir.path().join("secret");
        write(&secret, &checkpoint(1, b"of somebody else".to_vec())).unwrap();
        let refuses = || {
            assert!(read(&path).is_err() && number(&path).is_err());
            std::fs::remove_dir(&path).or_else(|_| std::fs::remove_file(&path)).unwrap();
        };
        std::os::unix::fs::symlink(&secret, &path).unwrap();
        refuses();
        std::fs::create_dir(&path).unwrap();
        refuses();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::RUSR, 0)
            .unwrap();
        refuses();
        let run = dir.path().join("run");
        std::os::unix::fs::symlink(dir.path(), &run).unwrap();
        assert!(read(&run.join("secret")).is_err() && rename(&run.join("secret"), &path).is_err());
        assert!(write(&run.join("secret"), &checkpoint(2, vec![])).is_err());
        assert_eq!(number(&secret).unwrap(), Some(1));
        for bytes in [0, HEAD_BYTES - 1, HEAD_BYTES + STATE_BYTES_MAX + 1] {
            std::fs::write(&path, vec![0; bytes]).unwrap();
            refuses();
        }
    }
}
