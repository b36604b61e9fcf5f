//! Removes file trees that somebody else made: a container's files, a layer.
//!
//! A program may make directories in directories as long as it likes, far deeper than any path can name. The
//! standard library's removal holds a descriptor and a stack frame for each level, so such a tree would outlast it,
//! or end the process. Here both are bounded: what lies too deep is moved up first.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Levels that are gone down from the top; each takes two descriptors.
const DEPTH_MAX: usize = 32;
/// How often a directory is emptied that is not empty afterwards. Reading a directory while it changes may leave
/// entries out; that they come back without end means that somebody makes them.
const TRIES_MAX: usize = 64;

/// Removes a file or a directory with everything in it. Links are removed, not followed. That it is not there is no
/// error.
///
/// # Errors
/// Those of the filesystem. What could be removed is gone all the same.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            clear(path)?;
            unless_absent(std::fs::remove_dir(path))
        }
        Ok(_) => unless_absent(std::fs::remove_file(path)),
        Err(error) => unless_absent(Err(error)),
    }
}

/// Removes everything in a directory, but not itself. That it is not there is no error.
///
/// # Errors
/// As [`remove`].
pub fn clear(path: &Path) -> io::Result<()> {
    let top = match rustix::fs::open(path, directory_flags(), Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened?,
    };
    let mut moved = Moved { top: &top, count: 0 };
    let mut has_failed = false;
    loop {
        match empty(top.as_fd(), 0, &mut moved) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // Moving may need room on the disk, which the removal of the others has made.
            Err(_) if !has_failed => has_failed = true,
            Err(error) => return Err(error.into()),
        }
    }
}

/// What was moved up into the top directory.
struct Moved<'a> {
    top: &'a OwnedFd,
    count: u64,
}

impl Moved<'_> {
    fn take(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        loop {
            self.count += 1;
            let name_on_top = format!(".too-deep-{}", self.count);
            match rustix::fs::renameat(parent, name, self.top, name_on_top) {
                // The tree has such a name already.
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                outcome => return outcome,
            }
        }
    }
}

/// Removes or moves every entry that `directory` has now, and says how many it had. One that can't be removed does not
/// keep the others; the last error is told.
fn empty(directory: BorrowedFd<'_>, depth: usize, moved: &mut Moved<'_>) -> Result<usize, Errno> {
    let mut count = 0;
    let mut failure = None;
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        count += 1;
        let removed = if is_directory(directory, name, entry.file_type()) {
            remove_directory(directory, name, depth, moved)
        } else {
            rustix::fs::unlinkat(directory, name, AtFlags::empty())
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => failure = Some(error),
        }
    }
    failure.map_or(Ok(count), Err)
}

fn remove_directory(
    parent: BorrowedFd<'_>,
    name: &CStr,
    depth: usize,
    moved: &mut Moved<'_>,
) -> Result<(), Errno> {
    let mut tries = 0;
    loop {
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) if tries < TRIES_MAX => tries += 1,
            outcome => return outcome,
        }
        if depth == DEPTH_MAX {
            return moved.take(parent, name);
        }
        let directory = rustix::fs::openat(parent, name, directory_flags(), Mode::empty())?;
        empty(directory.as_fd(), depth + 1, moved)?;
    }
}

fn is_directory(parent: BorrowedFd<'_>, name: &CStr, kind: FileType) -> bool {
    match kind {
        FileType::Directory => true,
        // Not every filesystem says it in the directory.
        FileType::Unknown => rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
        _ => false,
    }
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

fn unless_absent(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Resource, Rlimit};

    use super::*;

    #[test]
    fn a_tree_goes_and_what_its_links_lead_to_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        std::fs::create_dir_all(tree.join("a/b/c")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("kept"), "x").unwrap();
        std::fs::write(tree.join("a/b/file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("a/link")).unwrap();
        std::os::unix::fs::symlink("nowhere", tree.join("dangling")).unwrap();
        clear(&tree).unwrap();
        assert_eq!(std::fs::read_dir(&tree).unwrap().count(), 0);
        std::os::unix::fs::symlink(&outside, tree.join("link")).unwrap();
        remove(&tree.join("link")).unwrap();
        for _ in 0..2 {
            remove(&tree).unwrap();
            clear(&tree).unwrap();
        }
        assert!(!tree.exists() && outside.join("kept").exists());
    }

    #[test]
    fn a_tree_deeper_than_descriptors_and_paths_reach_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        // Far fewer descriptors than levels; enough for the other tests of this process.
        let limit = rustix::process::getrlimit(Resource::Nofile);
        let limit = Rlimit { current: Some(256), ..limit };
        rustix::process::setrlimit(Resource::Nofile, limit).unwrap();
        let mut level = rustix::fs::open(dir.path(), directory_flags(), Mode::empty()).unwrap();
        for number in 0..3_000 {
            // A name of those that are moved up is in the way.
            let name = if number == 0 { ".too-deep-1" } else { "d" };
            rustix::fs::mkdirat(&level, name, Mode::RWXU).unwrap();
            level = rustix::fs::openat(&level, name, directory_flags(), Mode::empty()).unwrap();
        }
        drop(level);
        clear(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
