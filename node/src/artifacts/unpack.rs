//! Unpacks a layer's tar into a folder, in overlayfs's format. The tar may come from anybody.
//!
//! Nothing is written outside the folder: an entry's parent is opened by the kernel with the folder as its root
//! (`openat2`, `RESOLVE_IN_ROOT`), so that neither `..`, nor an absolute path, nor a link that an earlier entry
//! made leads out; the entry itself is made in that parent without following links. Device nodes are left out.
//!
//! Whiteouts (OCI image specification, `layer.md`) become what overlayfs wants: `.wh.NAME` a character device
//! 0/0 called NAME, `.wh..wh..opq` the attribute `trusted.overlay.opaque`.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use brig_api::Digest;
use brig_shim::tree;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid,
    XattrFlags,
};
use rustix::io::Errno;
use tar::EntryType;

use super::layers::UnpackLimits;
use super::tar_stream::{Entry, TarStream};

/// What begins the name of a whiteout.
const WHITEOUT: &[u8] = b".wh.";
/// What begins the names that are the format's own.
const WHITEOUT_META: &[u8] = b".wh..wh.";
/// Hides all that lower layers have in the folder.
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";
/// overlayfs's attribute for the same.
const OPAQUE: &str = "trusted.overlay.opaque";
/// Longest path or link; the kernel takes no longer one either.
const PATH_BYTES_MAX: usize = 4096;
/// Most memory for the times of folders. It is enough for those of 500,000 folders, and a hostile tar can name
/// millions with the longest paths.
const FOLDER_TIMES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// `openat2` may ask to be called again when something is renamed meanwhile.
const OPEN_TRIES_MAX: usize = 64;

/// A layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// No tar, or a broken one.
    #[error("{why}; the image is broken: build and push it again")]
    Broken {
        /// What is wrong.
        why: String,
    },
    /// The compressed stream is broken.
    #[error(
        "it cannot be read or decompressed ({0}); the image is broken: build and push it again"
    )]
    Read(#[source] std::io::Error),
    /// An entry wants out.
    #[error("its entry `{path}` {why}: the image is broken or hostile, and nothing of it is used")]
    Hostile {
        /// The entry.
        path: String,
        /// What it tries.
        why: &'static str,
    },
    /// More bytes than are taken.
    #[error("it is larger than {bytes_max} bytes when unpacked, the most that this node takes")]
    TooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// More files than are taken.
    #[error("it has more than {entries_max} files, the most that this node takes")]
    TooManyEntries {
        /// The limit.
        entries_max: u64,
    },
    /// Not the tar that the configuration names.
    #[error(
        "it unpacks to {found}, but the image's configuration names {expected}: build and push the image again"
    )]
    DiffId {
        /// By the configuration.
        expected: Digest,
        /// Of the tar.
        found: Digest,
    },
    /// A file cannot be made.
    #[error("its entry `{}` cannot be made here: {source}", .path.display())]
    Write {
        /// The entry.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// More was read than a limit allows; travels through readers as an I/O error.
#[derive(Debug, thiserror::Error)]
#[error("more than {bytes_max} bytes")]
pub(crate) struct LimitReached {
    pub(crate) bytes_max: u64,
}

impl UnpackError {
    pub(crate) fn broken(error: &std::io::Error) -> Self {
        Self::Broken { why: format!("a header cannot be read ({error})") }
    }

    pub(crate) fn read(error: std::io::Error) -> Self {
        let limit = error.get_ref().and_then(|inner| inner.downcast_ref::<LimitReached>());
        match limit {
            Some(limit) => Self::TooLarge { bytes_max: limit.bytes_max },
            None => Self::Read(error),
        }
    }
}

/// Unpacks a tar into the empty folder `root`, to the end of the stream.
pub(crate) fn unpack(
    reader: impl Read,
    root: &Path,
    limits: UnpackLimits,
) -> Result<(), UnpackError> {
    let at = |source| UnpackError::Write { path: root.to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(root, flags, Mode::empty()).map_err(|error| at(error.into()))?;
    let is_root = rustix::process::geteuid().is_root();
    let mut unpacker =
        Unpacker { root: folder, is_root, limits, made: 0, folder_times: FolderTimes::default() };
    let mut tar = TarStream::new(reader);
    while let Some(entry) = tar.next_entry()? {
        unpacker.count()?;
        unpacker.entry(&entry, &mut tar)?;
    }
    unpacker.set_folder_times();
    tar.drain()
}

struct Unpacker {
    root: OwnedFd,
    /// Only root may give files away and make whiteouts.
    is_root: bool,
    limits: UnpackLimits,
    made: u64,
    folder_times: FolderTimes,
}

/// Folders' times are set last: each file made in one changes it.
#[derive(Default)]
struct FolderTimes {
    kept: Vec<(PathBuf, i64)>,
    bytes: usize,
}

impl FolderTimes {
    /// Beyond what is kept, folders have the time at which they were unpacked.
    fn keep(&mut self, path: &Path, mtime: i64) {
        let bytes = path.as_os_str().len() + size_of::<(PathBuf, i64)>();
        if self.bytes + bytes <= FOLDER_TIMES_BYTES_MAX {
            self.bytes += bytes;
            self.kept.push((path.to_owned(), mtime));
        }
    }
}

/// The entry that is being made, for messages.
struct Place<'a> {
    parent: OwnedFd,
    name: &'a OsStr,
    path: &'a Path,
}

impl Place<'_> {
    fn fails(&self, error: impl Into<std::io::Error>) -> UnpackError {
        UnpackError::Write { path: self.path.to_owned(), source: error.into() }
    }
}

impl Unpacker {
    fn count(&mut self) -> Result<(), UnpackError> {
        self.made += 1;
        if self.made > self.limits.entries_max {
            return Err(UnpackError::TooManyEntries { entries_max: self.limits.entries_max });
        }
        Ok(())
    }

    fn entry<R: Read>(&mut self, entry: &Entry, tar: &mut TarStream<R>) -> Result<(), UnpackError> {
        let path = clean(&entry.path)?;
        let Some(name) = path.file_name() else {
            return self.root_folder(entry);
        };
        let parent = self.parent(&path, true)?;
        let place = Place { parent, name, path: &path };
        if name.as_bytes().starts_with(WHITEOUT) {
            return self.whiteout(&place);
        }
        match entry.entry_type {
            EntryType::Directory => self.folder(entry, &place),
            EntryType::Regular | EntryType::Continuous => self.file(entry, &place, tar),
            EntryType::Link => self.hard_link(entry, &place),
            EntryType::Symlink => self.symlink(entry, &place),
            EntryType::Fifo => self.fifo(entry, &place),
            EntryType::Char | EntryType::Block => {
                tracing::debug!(entry = %path.display(), "a device node of an image is left out");
                Ok(())
            }
            other => Err(UnpackError::Broken {
                why: format!("its entry `{}` is of an unknown kind ({other:?})", path.display()),
            }),
        }
    }

    /// Opens a path with the layer as its root: links in it are followed, but never out.
    fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut tries = 0;
        loop {
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) if tries < OPEN_TRIES_MAX => tries += 1,
                other => return other,
            }
        }
    }

    /// The folder that `path` is in; made where it is missing, if wanted.
    fn parent(&mut self, path: &Path, make: bool) -> Result<OwnedFd, UnpackError> {
        let fails =
            |error: Errno| UnpackError::Write { path: path.to_owned(), source: error.into() };
        let mut there = path.parent().unwrap_or_else(|| Path::new(""));
        // From the end: mostly nothing or the last folder is missing, and a long path is not walked once for each part.
        let mut missing = Vec::new();
        let mut folder = loop {
            match (self.open(there), there.file_name(), there.parent()) {
                (Ok(folder), ..) => break folder,
                (Err(Errno::NOENT), Some(name), Some(above)) if make => {
                    missing.push(name);
                    there = above;
                }
                (Err(error), ..) => return Err(fails(error)),
            }
        };
        let mut made = there.to_owned();
        for name in missing.into_iter().rev() {
            self.count()?;
            rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(0o755)).map_err(fails)?;
            made.push(name);
            folder = self.open(&made).map_err(fails)?;
        }
        Ok(folder)
    }

    fn root_folder(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        if entry.entry_type != EntryType::Directory {
            return Err(UnpackError::Hostile {
                path: "/".to_owned(),
                why: "would replace the root by something that is no directory",
            });
        }
        let parent = self.parent(Path::new("."), false)?;
        let place = Place { parent, name: OsStr::new("."), path: Path::new("/") };
        let folder = open_folder(&place)?;
        self.attributes(&folder, entry, &place)?;
        self.folder_times.keep(Path::new(""), entry.mtime);
        Ok(())
    }

    fn folder(&mut self, entry: &Entry, place: &Place<'_>) -> Result<(), UnpackError> {
        let existing = stat(place)?;
        let is_folder = existing.is_some_and(|stat| kind(&stat) == FileType::Directory);
        // A folder in the place of what this layer removes hides all that was in the removed one.
        let was_whiteout = existing
            .is_some_and(|stat| kind(&stat) == FileType::CharacterDevice && stat.st_rdev == 0);
        if !is_folder {
            remove(place)?;
            rustix::fs::mkdirat(&place.parent, place.name, Mode::from_raw_mode(0o700))
                .map_err(|error| place.fails(error))?;
        }
        let folder = open_folder(place)?;
        if was_whiteout {
            set_opaque(&folder, place)?;
        }
        self.attributes(&folder, entry, place)?;
        self.folder_times.keep(place.path, entry.mtime);
        Ok(())
    }

    fn file<R: Read>(
        &self,
        entry: &Entry,
        place: &Place<'_>,
        tar: &mut TarStream<R>,
    ) -> Result<(), UnpackError> {
        remove(place)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&place.parent, place.name, flags, Mode::from_raw_mode(0o600))
            .map_err(|error| place.fails(error))?;
        let mut file = std::fs::File::from(file);
        copy(tar, &mut file, place)?;
        let file = OwnedFd::from(file);
        self.attributes(&file, entry, place)?;
        rustix::fs::futimens(&file, &times(entry.mtime)).map_err(|error| place.fails(error))
    }

    fn hard_link(&mut self, entry: &Entry, place: &Place<'_>) -> Result<(), UnpackError> {
        let target = clean(&entry.link)?;
        let name = target.file_name().ok_or_else(|| UnpackError::Hostile {
            path: place.path.display().to_string(),
            why: "is a hard link to the root",
        })?;
        let folder = self.parent(&target, false)?;
        remove(place)?;
        // Without a flag the last part is not followed, should it be a link.
        rustix::fs::linkat(&folder, name, &place.parent, place.name, AtFlags::empty())
            .map_err(|error| place.fails(error))
    }

    fn symlink(&self, entry: &Entry, place: &Place<'_>) -> Result<(), UnpackError> {
        if entry.link.is_empty() || entry.link.len() > PATH_BYTES_MAX || entry.link.contains(&0) {
            return Err(UnpackError::Broken {
                why: format!("its link `{}` leads to no valid path", place.path.display()),
            });
        }
        remove(place)?;
        // Where it leads is its own matter: it is followed only with the layer, or the container, as root.
        rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), &place.parent, place.name)
            .and_then(|()| self.own(entry, place))
            .map_err(|error| place.fails(error))?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(&place.parent, place.name, &times(entry.mtime), flags)
            .map_err(|error| place.fails(error))
    }

    fn fifo(&self, entry: &Entry, place: &Place<'_>) -> Result<(), UnpackError> {
        remove(place)?;
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        rustix::fs::mknodat(&place.parent, place.name, FileType::Fifo, mode, 0)
            .and_then(|()| self.own(entry, place))
            .and_then(|()| rustix::fs::chmodat(&place.parent, place.name, mode, AtFlags::empty()))
            .map_err(|error| place.fails(error))
    }

    fn whiteout(&self, place: &Place<'_>) -> Result<(), UnpackError> {
        if place.name == OsStr::from_bytes(WHITEOUT_OPAQUE) {
            let folder =
                Place { parent: duplicate(place)?, name: OsStr::new("."), path: place.path };
            return set_opaque(&open_folder(&folder)?, &folder);
        }
        let name = place.name.as_bytes();
        if name.starts_with(WHITEOUT_META) {
            return Ok(());
        }
        let hidden = name.strip_prefix(WHITEOUT).unwrap_or_default();
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(UnpackError::Hostile {
                path: place.path.display().to_string(),
                why: "is a whiteout of no name",
            });
        }
        let hidden =
            Place { parent: duplicate(place)?, name: OsStr::from_bytes(hidden), path: place.path };
        // A whiteout is of lower layers only: what this layer has under the name stays.
        match stat(&hidden)? {
            Some(stat) if kind(&stat) == FileType::Directory => {
                set_opaque(&open_folder(&hidden)?, &hidden)
            }
            Some(_) => Ok(()),
            None => {
                let kind = FileType::CharacterDevice;
                rustix::fs::mknodat(&hidden.parent, hidden.name, kind, Mode::empty(), 0)
                    .map_err(|error| hidden.fails(error))
            }
        }
    }

    /// Owner first: a change of owner takes set-user-id bits and capabilities away.
    fn attributes(
        &self,
        file: &OwnedFd,
        entry: &Entry,
        place: &Place<'_>,
    ) -> Result<(), UnpackError> {
        if self.is_root {
            let (uid, gid) = owner(entry, place)?;
            rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(|error| place.fails(error))?;
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode & 0o7777))
            .map_err(|error| place.fails(error))?;
        for (name, value) in entry.xattrs.iter().filter(|(name, _)| is_taken(name)) {
            match rustix::fs::fsetxattr(file, name.as_str(), value, XattrFlags::empty()) {
                Err(Errno::NOTSUP | Errno::PERM) => {
                    tracing::debug!(name, "this disk takes no such attribute; it is left out");
                }
                other => other.map_err(|error| place.fails(error))?,
            }
        }
        Ok(())
    }

    fn own(&self, entry: &Entry, place: &Place<'_>) -> Result<(), Errno> {
        if !self.is_root {
            return Ok(());
        }
        let (uid, gid) = owner(entry, place).map_err(|_| Errno::INVAL)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(&place.parent, place.name, Some(uid), Some(gid), flags)
    }

    /// A folder that is gone again has no time to set, and a wrong time is no reason to fail.
    fn set_folder_times(&self) {
        for (path, mtime) in self.folder_times.kept.iter().rev() {
            if let Ok(folder) = self.open(path) {
                let _ = rustix::fs::utimensat(&folder, ".", &times(*mtime), AtFlags::empty());
            }
        }
    }
}

/// Capabilities and what users set; not what overlayfs or a security module would act on.
fn is_taken(name: &str) -> bool {
    name == "security.capability"
        || (name.starts_with("user.") && !name.starts_with("user.overlay."))
}

fn owner(entry: &Entry, place: &Place<'_>) -> Result<(Uid, Gid), UnpackError> {
    // The highest number means "no change" to the kernel.
    let id = |value: u64| u32::try_from(value).ok().filter(|id| *id != u32::MAX);
    match (id(entry.uid), id(entry.gid)) {
        (Some(uid), Some(gid)) => Ok((Uid::from_raw(uid), Gid::from_raw(gid))),
        _ => Err(UnpackError::Broken {
            why: format!("its entry `{}` has an impossible owner", place.path.display()),
        }),
    }
}

/// A path below the root: without a slash at its begin, without `.`; `..` is refused.
fn clean(path: &[u8]) -> Result<PathBuf, UnpackError> {
    let shown = || String::from_utf8_lossy(&path[..path.len().min(200)]).into_owned();
    if path.len() > PATH_BYTES_MAX || path.contains(&0) {
        return Err(UnpackError::Broken {
            why: format!("its entry `{}…` has no valid path", shown()),
        });
    }
    let mut clean = PathBuf::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                return Err(UnpackError::Hostile {
                    path: shown(),
                    why: "climbs out of its directory with `..`",
                });
            }
            part => clean.push(OsStr::from_bytes(part)),
        }
    }
    Ok(clean)
}

fn kind(stat: &rustix::fs::Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn stat(place: &Place<'_>) -> Result<Option<rustix::fs::Stat>, UnpackError> {
    match rustix::fs::statat(&place.parent, place.name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(place.fails(error)),
    }
}

/// Removes what an earlier entry of the layer put in the place.
fn remove(place: &Place<'_>) -> Result<(), UnpackError> {
    let Some(stat) = stat(place)? else { return Ok(()) };
    if kind(&stat) != FileType::Directory {
        return rustix::fs::unlinkat(&place.parent, place.name, AtFlags::empty())
            .map_err(|error| place.fails(error));
    }
    // The removal follows no links; the parent is named by its descriptor.
    let parent = PathBuf::from(format!("/proc/self/fd/{}", place.parent.as_raw_fd()));
    tree::remove(&parent.join(place.name)).map_err(|error| place.fails(error))
}

fn open_folder(place: &Place<'_>) -> Result<OwnedFd, UnpackError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&place.parent, place.name, flags, Mode::empty())
        .map_err(|error| place.fails(error))
}

fn duplicate(place: &Place<'_>) -> Result<OwnedFd, UnpackError> {
    place.parent.try_clone().map_err(|error| place.fails(error))
}

fn set_opaque(folder: &OwnedFd, place: &Place<'_>) -> Result<(), UnpackError> {
    rustix::fs::fsetxattr(folder, OPAQUE, b"y", XattrFlags::empty())
        .map_err(|error| place.fails(error))
}

fn times(mtime: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime, tv_nsec: 0 },
    }
}

/// As `std::io::copy`, but tells which side failed.
fn copy(
    from: &mut impl Read,
    to: &mut std::fs::File,
    place: &Place<'_>,
) -> Result<(), UnpackError> {
    let mut piece = vec![0; 128 * 1024];
    loop {
        let count = from.read(&mut piece).map_err(UnpackError::read)?;
        if count == 0 {
            return Ok(());
        }
        std::io::Write::write_all(to, &piece[..count]).map_err(|error| place.fails(error))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_folders_take_no_more_memory_than_their_limit() {
        let path = PathBuf::from("x".repeat(PATH_BYTES_MAX));
        let mut times = FolderTimes::default();
        let fit = FOLDER_TIMES_BYTES_MAX / (PATH_BYTES_MAX + size_of::<(PathBuf, i64)>());
        for _ in 0..fit + 1000 {
            times.keep(&path, 0);
        }
        assert_eq!(times.kept.len(), fit);
    }
}
