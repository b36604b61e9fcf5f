//! The file tree of a container: an overlay over the image's layers, in a mount namespace of the shim's own, so
//! that no mount is left behind however the shim ends.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use brig_api::lifecycle::Reason;
use brig_shim::message::{BindMount, StartOci};
use brig_shim::tree;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
};
use rustix::thread::UnshareFlags;

use crate::failure::Failure;
use crate::sys;
use crate::user::open_in_root;

/// Where engines mount things themselves: nothing of a unit's may cover it.
const RESERVED: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Largest /etc/hosts and /etc/resolv.conf that is taken over from the host, in bytes.
const HOST_FILE_BYTES_MAX: usize = 64 << 10;

/// A mounted root.
#[derive(Debug)]
pub(crate) struct RootFs {
    path: PathBuf,
    directory: OwnedFd,
}

impl RootFs {
    /// Gives the process a mount namespace of its own. Mounts that the host makes or ends later still show.
    pub(crate) fn enter_own_namespace() -> Result<(), Failure> {
        let failed = |error: Errno| Failure::system("making a mount namespace", error);
        sys::unshare(UnshareFlags::NEWNS).map_err(failed)?;
        let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", flags).map_err(failed)
    }

    /// Mounts the overlay of `program` in its scratch directory.
    pub(crate) fn mount(program: &StartOci) -> Result<Self, Failure> {
        tree::clear(&program.scratch)
            .map_err(|error| Failure::system("clearing the scratch directory", error))?;
        let path = program.scratch.join("root");
        let layers = layers(program)?;
        let upper = program.scratch.join("upper");
        let failed = |error: io::Error| {
            Failure::system(&format!("mounting the image's {} layers", layers.len()), error)
        };
        make_upper(&upper, &layers).map_err(failed)?;
        for dir in [&path, &program.scratch.join("work")] {
            std::fs::create_dir(dir).map_err(failed)?;
        }
        mount_overlay(&layers, &program.scratch, &path).map_err(|error| failed(error.into()))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        Ok(Self { path, directory })
    }

    /// Where it is, in the shim's mount namespace.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The root directory.
    pub(crate) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// Refuses an image in which a directory of [`RESERVED`] is a link. The library mounts on it as the container would
    /// find it, but then fills /dev by its path on the host, where the link would lead to a directory of the host.
    pub(crate) fn check_own_directories(&self) -> Result<(), Failure> {
        for at in RESERVED {
            let name = at.trim_start_matches('/');
            match rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => {}
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
                Ok(_) => {
                    let message = format!("the image's {at} is not a directory: rebuild the image");
                    return Err(Failure::new(Reason::InvalidArtifact, message));
                }
                Err(error) => {
                    return Err(Failure::system(&format!("looking at the image's {at}"), error));
                }
            }
        }
        Ok(())
    }

    /// Removes links to nothing from where `files` will be mounted: the library makes a file to mount on, but none
    /// through a link. Images of whole systems have such a link for /etc/resolv.conf.
    pub(crate) fn make_way_for(&self, files: &[BindMount]) -> Result<(), Failure> {
        for BindMount { at, .. } in files {
            let failed = |error: Errno| {
                Failure::system(&format!("making room for the container's {at}"), error)
            };
            let Some((parent, name)) = at.rsplit_once('/') else { continue };
            if !matches!(open_in_root(&self.directory, at, OFlags::PATH), Err(Errno::NOENT)) {
                continue;
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            match open_in_root(&self.directory, parent, flags)
                .and_then(|parent| rustix::fs::unlinkat(parent, name, AtFlags::empty()))
            {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    /// Makes the working directory where the image has none, never outside the root. What lies below a mount is
    /// left to the mount.
    pub(crate) fn make_working_dir(&self, dir: &str, mounts: &[BindMount]) -> Result<(), Failure> {
        if !dir.starts_with('/') {
            let message = format!("working directory `{dir}` is not absolute: write it from `/`");
            return Err(Failure::create(message));
        }
        if mounts.iter().any(|mount| Path::new(dir).starts_with(&mount.at)) {
            return Ok(());
        }
        let failed =
            |error: Errno| Failure::system(&format!("making the working directory `{dir}`"), error);
        let mut so_far = String::new();
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let mut parent = rustix::io::fcntl_dupfd_cloexec(&self.directory, 3).map_err(failed)?;
        for name in dir.split('/').filter(|name| !name.is_empty() && *name != ".") {
            so_far.push('/');
            so_far.push_str(name);
            parent = match open_in_root(&self.directory, &so_far, flags) {
                Ok(found) => found,
                Err(Errno::NOENT) => {
                    let mode = Mode::from_raw_mode(0o755);
                    rustix::fs::mkdirat(parent.as_fd(), name, mode).map_err(|error| match error {
                        Errno::EXIST => Failure::create(format!(
                            "working directory `{dir}`: `{so_far}` is a link to nothing in the image"
                        )),
                        error => failed(error),
                    })?;
                    open_in_root(&self.directory, &so_far, flags).map_err(failed)?
                }
                Err(error) => return Err(failed(error)),
            };
        }
        Ok(())
    }
}

impl Drop for RootFs {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(&self.path, UnmountFlags::DETACH) {
            tracing::warn!(%error, "the root could not be unmounted");
        }
    }
}

/// The layers, lowest first, each of them there; an empty one for an image without layers.
fn layers(program: &StartOci) -> Result<Vec<PathBuf>, Failure> {
    if program.layers.is_empty() {
        let empty = program.scratch.join("empty");
        std::fs::create_dir(&empty)
            .map_err(|error| Failure::system("making an empty layer", error))?;
        return Ok(vec![empty]);
    }
    if let Some(missing) = program.layers.iter().find(|layer| !layer.is_dir()) {
        let message = format!(
            "image layer {} is missing on this node: pull the image again",
            missing.display()
        );
        return Err(Failure::create(message));
    }
    Ok(program.layers.clone())
}

/// The root directory of an overlay has the owner and mode of its upper directory: take those of the image.
fn make_upper(upper: &Path, layers: &[PathBuf]) -> io::Result<()> {
    std::fs::create_dir(upper)?;
    if let Some(top) = layers.last() {
        let metadata = std::fs::metadata(top)?;
        std::os::unix::fs::chown(upper, Some(metadata.uid()), Some(metadata.gid()))?;
        std::fs::set_permissions(upper, std::fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    }
    Ok(())
}

fn mount_overlay(layers: &[PathBuf], scratch: &Path, at: &Path) -> Result<(), Errno> {
    use rustix::mount::{
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
    };
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let mut one_by_one = Ok(());
    for layer in layers.iter().rev() {
        one_by_one = fsconfig_set_string(&fs, "lowerdir+", layer);
        if one_by_one.is_err() {
            break;
        }
    }
    if one_by_one == Err(Errno::INVAL) {
        // Linux before 6.5: all in one string, which must fit a page.
        let escaped =
            |layer: &PathBuf| layer.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:");
        let all: Vec<_> = layers.iter().rev().map(escaped).collect();
        fsconfig_set_string(&fs, "lowerdir", all.join(":"))?;
    } else {
        one_by_one?;
    }
    fsconfig_set_string(&fs, "upperdir", scratch.join("upper"))?;
    fsconfig_set_string(&fs, "workdir", scratch.join("work"))?;
    // What a container wrote goes away with it: no need to wait for the disk.
    let _ = fsconfig_set_flag(&fs, "volatile");
    fsconfig_create(&fs)?;
    let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)?;
    move_mount(&mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Checks what a unit wants mounted: sources are there, targets are clean paths that cover nothing of ours.
pub(crate) fn check_mounts(mounts: &[BindMount]) -> Result<(), Failure> {
    for mount in mounts {
        let refused = |why: String| {
            Failure::new(Reason::MountRefused, format!("mount at `{}`: {why}", mount.at))
        };
        let target = Path::new(&mount.at);
        let is_clean = mount.at.starts_with('/')
            && mount.at.len() > 1
            && !mount.at.contains('\0')
            && !mount.at.split('/').any(|part| part == ".." || part == ".");
        if !is_clean {
            return Err(refused("expected an absolute path below `/` without `..`".to_owned()));
        }
        if let Some(reserved) = RESERVED.iter().find(|reserved| target.starts_with(reserved)) {
            return Err(refused(format!(
                "`{reserved}` belongs to the container itself: choose another path"
            )));
        }
        if !mount.source.exists() {
            let source = mount.source.display();
            return Err(refused(format!("`{source}` is not there on this node: create it first")));
        }
    }
    Ok(())
}

/// Writes the container's /etc/hosts, /etc/hostname and /etc/resolv.conf into `dir` and says where they belong. The
/// network is the host's, so names resolve as on the host.
pub(crate) fn write_network_files(dir: &Path, host_name: &str) -> Result<Vec<BindMount>, Failure> {
    let failed = |error: io::Error| Failure::system("writing the container's /etc files", error);
    std::fs::create_dir_all(dir).map_err(failed)?;
    let mut hosts = host_file("/etc/hosts");
    if !hosts.split_whitespace().any(|word| word == "localhost") {
        hosts.push_str("127.0.0.1 localhost\n::1 localhost\n");
    }
    hosts.push_str(&format!("\n127.0.1.1 {host_name}\n"));
    let files = [
        ("hosts", hosts),
        ("hostname", format!("{host_name}\n")),
        ("resolv.conf", host_file("/etc/resolv.conf")),
    ];
    let mut mounts = Vec::new();
    for (name, text) in files {
        let source = dir.join(name);
        std::fs::write(&source, text).map_err(failed)?;
        std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o644))
            .map_err(failed)?;
        mounts.push(BindMount { source, at: format!("/etc/{name}"), read_only: true });
    }
    Ok(mounts)
}

fn host_file(path: &str) -> String {
    let mut text = std::fs::read_to_string(path).unwrap_or_default();
    text.truncate(text.floor_char_boundary(HOST_FILE_BYTES_MAX));
    text
}

/// `unit/task` as a host name: a DNS label.
pub(crate) fn host_name(title: &str) -> String {
    let label: String = title
        .chars()
        .map(|character| if character.is_ascii_alphanumeric() { character } else { '-' })
        .take(brig_api::id::NAME_BYTES_MAX)
        .collect();
    let label = label.trim_matches('-').to_ascii_lowercase();
    if label.is_empty() { "container".to_owned() } else { label }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_may_cover_nothing_of_the_container_itself() {
        let mount = |source: &str, at: &str| {
            check_mounts(&[BindMount { source: source.into(), at: at.into(), read_only: false }])
        };
        assert!(mount("/", "/data").is_ok());
        for bad in ["", "/", "data", "/a/../proc", "/proc/sys", "/sys", "/dev/shm", "/a\0b", "/./x"]
        {
            assert_eq!(mount("/", bad).unwrap_err().reason, Reason::MountRefused, "{bad:?}");
        }
        assert!(mount("/no/such/source", "/data").unwrap_err().message.contains("/no/such/source"));
    }

    #[test]
    fn titles_become_host_names() {
        assert_eq!(host_name("web-1/main"), "web-1-main");
        assert_eq!(host_name("/"), "container");
        assert_eq!(host_name(&"x".repeat(100)).len(), 63);
    }
}
