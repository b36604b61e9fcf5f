//! Reads files in a folder that a shim can write, and that may hold anything, should the shim have been taken over by what
//! it runs: links to the node's own files, pipes that nobody writes to, files without end.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

/// Opens a regular file for reading. No link is followed, anywhere on the way to it.
///
/// # Errors
/// Those of the filesystem; `InvalidData` for what is no regular file or lies behind a link.
pub fn open(path: &Path) -> io::Result<File> {
    // A pipe without a writer would hold up who opens it for reading.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(open_directly(path, flags)?);
    if !file.metadata()?.is_file() {
        let message = format!("{} is no regular file", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(file)
}

/// The whole of such a file.
///
/// # Errors
/// As [`open`]; `InvalidData` for one with more than `bytes_max`.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > bytes_max {
        let message = format!("{} is larger than {bytes_max} bytes", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(bytes)
}

fn open_directly(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve) {
        Err(rustix::io::Errno::LOOP) => {
            let message = format!("{} lies behind a link", path.display());
            Err(io::Error::new(io::ErrorKind::InvalidData, message))
        }
        opened => Ok(opened?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_that_no_link_leads_to_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().canonicalize().unwrap().join(name);
        std::fs::create_dir(at("dir")).unwrap();
        std::fs::write(at("dir/file"), b"text").unwrap();
        assert_eq!(read(&at("dir/file"), 4).unwrap(), b"text");
        let too_large = read(&at("dir/file"), 3).unwrap_err();
        assert!(too_large.to_string().contains("larger than 3"), "{too_large}");
        std::os::unix::fs::symlink(at("dir/file"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("dir"), at("dir-link")).unwrap();
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(CWD, at("pipe"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        for refused in ["link", "dir-link/file", "pipe", "dir"] {
            let error = open(&at(refused)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{refused}: {error}");
        }
        assert_eq!(open(&at("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
