//! Parts of the machine's file tree for processes in a user namespace of their own.
//!
//! In such a namespace root is nobody outside, and nobody's files are root's. A mount with mapped owners shows the files
//! of this machine's users there as those of the namespace's users of the same numbers: what root owns is root's. Nothing on
//! disk changes.
#![expect(unsafe_code, reason = "mount_setattr has no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

/// From linux/mount.h.
const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NOSUID: u64 = 0x2;
const MOUNT_ATTR_NODEV: u64 = 0x4;
const MOUNT_ATTR_NOEXEC: u64 = 0x8;
const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;

/// What may be done there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Files are read, and executed.
    Read,
    /// Files are read and written, and not executed.
    Write,
}

/// A copy of the mounts below a path, which is nowhere in the file tree yet. Without devices and set-user-id programs;
/// `owners` is the user namespace that is to find its own users in it.
///
/// # Errors
/// Those of the filesystem; that the path is not there, above all.
pub fn clone(path: &Path, access: Access, owners: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    clone_at(CWD, path, OpenTreeFlags::empty(), access, owners)
}

/// The same of a directory in a place where others may have put links: none is followed, anywhere on the way.
///
/// # Errors
/// As [`clone`]; `FilesystemLoop` for a link.
pub fn clone_directly(path: &Path, access: Access, owners: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let found = rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve)?;
    clone_at(found.as_fd(), Path::new(""), OpenTreeFlags::AT_EMPTY_PATH, access, owners)
}

fn clone_at(
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OpenTreeFlags,
    access: Access,
    owners: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let flags = flags
        | OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(dir, path, flags)?;
    let access = match access {
        Access::Read => MOUNT_ATTR_RDONLY,
        Access::Write => MOUNT_ATTR_NOEXEC,
    };
    set(&tree, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | access, None)?;
    match set(&tree, MOUNT_ATTR_IDMAP, Some(owners)) {
        // A filesystem that can't: its files have the owners that they have, and what others may read can be read.
        Ok(()) | Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(tree),
        Err(error) => Err(error.into()),
    }
}

/// A directory of such a copy, open.
///
/// # Errors
/// As [`clone`]; `NotADirectory`.
pub fn open_dir(path: &Path, access: Access, owners: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let tree = clone(path, access, owners)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(&tree, ".", flags, Mode::empty())?)
}

/// Sets attributes of all mounts of a copy.
fn set(tree: &OwnedFd, attributes: u64, owners: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let owners = owners.map_or(0, |owners| u64::try_from(owners.as_raw_fd()).unwrap_or(0));
    let attributes =
        libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: owners };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the path is empty and ended with NUL, the attributes are whole and of the size that is told, the
    // descriptors are open for as long as the call takes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        return Ok(());
    }
    let code = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    Err(Errno::from_raw_os_error(code))
}
