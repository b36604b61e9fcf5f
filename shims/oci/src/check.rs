//! `brig-shim-oci check`: can containers run on this machine, and if not, why?

use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};
use rustix::thread::UnshareFlags;
use serde::Serialize;

use crate::cgroup::Hierarchies;
use crate::failure::Failure;
use crate::helper;
use crate::rootfs::RootFs;
use crate::seccomp::Profile;
use crate::spec::CGROUP_PARENT;
use crate::{sys, worker};

/// How long a check may take, in seconds.
const CHECK_SECONDS: i64 = 10;
/// What containers need to be limited.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// The answer, printed as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Containers can run here.
    pub(crate) is_usable: bool,
    /// Why not, each a sentence with the way out.
    pub(crate) problems: Vec<String>,
    /// Why wasm shims can't be run in containers with users of their own although containers can be run; nothing when they
    /// can.
    pub(crate) no_workers: Vec<String>,
}

/// Tries everything that a container needs. Overlays are tried in `dir`.
pub(crate) fn check(dir: &Path) -> Report {
    let mut problems = Vec::new();
    if rustix::process::geteuid().is_root() {
        problems.extend(cgroups().err());
        problems.extend(namespaces_and_overlay(dir).err().map(|failure| failure.message));
    } else {
        problems.push("containers need root: run the node as root".to_owned());
    }
    problems.extend(Profile::compile().err().map(|error| error.to_string()));
    let no_workers = match problems.as_slice() {
        [] => {
            worker::try_namespaces(dir).err().map(|failure| failure.message).into_iter().collect()
        }
        problems => problems.to_vec(),
    };
    Report { is_usable: problems.is_empty(), problems, no_workers }
}

fn cgroups() -> Result<(), String> {
    let unusable = |error: std::io::Error| format!("cgroups can't be used: {error}");
    let hierarchies = Hierarchies::of_this_machine().map_err(unusable)?;
    if hierarchies.is_empty() {
        return Err("no cgroup hierarchy is mounted: mount cgroup2 on /sys/fs/cgroup".to_owned());
    }
    let known = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let controllers =
        std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    for controller in CONTROLLERS {
        let is_in_older = known.lines().any(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            matches!(fields[..], [name, hierarchy, _, "1"] if name == controller && hierarchy != "0")
        });
        if !is_in_older && !controllers.split_whitespace().any(|name| name == controller) {
            return Err(format!(
                "the cgroup controller `{controller}` is not there: enable it in the kernel"
            ));
        }
    }
    for mount in hierarchies.mount_points() {
        let parent = mount.join(CGROUP_PARENT.trim_start_matches('/'));
        let probe = parent.join(format!("check-{}", std::process::id()));
        std::fs::create_dir_all(&probe)
            .and_then(|()| std::fs::remove_dir(&probe))
            .map_err(|error| format!("no cgroup can be made in {}: {error}", parent.display()))?;
    }
    Ok(())
}

fn namespaces_and_overlay(dir: &Path) -> Result<(), Failure> {
    helper::run("trying namespaces", CHECK_SECONDS, &[], || {
        RootFs::enter_own_namespace()?;
        let flags = UnshareFlags::NEWPID
            | UnshareFlags::NEWIPC
            | UnshareFlags::NEWUTS
            | UnshareFlags::NEWCGROUP;
        sys::unshare(flags).map_err(|error| Failure::system("making namespaces", error))?;
        let base = dir.join(format!("check-{}", std::process::id()));
        let result = try_overlay(&base).map_err(|error| {
            Failure::system(&format!("mounting an overlay in {}", dir.display()), error)
        });
        let _ = std::fs::remove_dir_all(&base);
        result
    })
}

fn try_overlay(base: &Path) -> std::io::Result<()> {
    use rustix::mount::{
        fsconfig_create, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
    };
    for name in ["lower", "upper", "work", "root"] {
        std::fs::create_dir_all(base.join(name))?;
    }
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (option, name) in [("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work")] {
        fsconfig_set_string(&fs, option, base.join(name))?;
    }
    fsconfig_create(&fs)?;
    let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let root = base.join("root");
    move_mount(&mount, "", CWD, &root, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    unmount(&root, rustix::mount::UnmountFlags::DETACH)?;
    Ok(())
}
