//! `brig-shim-oci --dir DIR worker`: runs a wasm shim in a container and looks after it to its end.
//!
//! The shim takes the agent's connections itself: it gets the listening socket as its standard input. What is left to do
//! here is to set the container up, to make the shim's sockets ([`crate::sockets`]), and to remove its cgroup. Should this process be killed, the shim dies with it
//! and `cleanup` does the rest.
//!
//! The container has nothing but what [`Worker`] names. All of it is mounted here, in a mount namespace of this process's
//! own, with mapped owners ([`mapped`]): inside is root, who is nobody outside and owns there what root owns here.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use brig_shim::handover;
use brig_shim::mapped::{self, Access};
use brig_shim::message::TaskKey;
use brig_shim::worker::Worker;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, WaitOptions};
use rustix::thread::UnshareFlags;

use crate::cgroup::{self, Hierarchies};
use crate::container::{self, Directories, End, Stdio};
use crate::failure::Failure;
use crate::program::Program;
use crate::record::{Process, Record};
use crate::rootfs::RootFs;
use crate::seccomp::Profile;
use crate::sockets::Sockets;
use crate::spec::{self, Host, Users};
use crate::{helper, shim, sys};

/// Where the container's root and the library's files are, in this process's own mount namespace: a directory that every
/// machine has and that everybody may pass through, for the container's root is nobody here.
const STAGE: &str = "/tmp";
/// Size of what is on the stage itself: empty directories, and the library's files.
const STAGE_SIZE: &str = "4m";
/// How long a user namespace may take to be made, in seconds.
const NAMESPACE_SECONDS: i64 = 10;
/// What a shim finds of the machine besides, where it is there: to look names up.
const NAME_FILES: [&str; 4] =
    ["/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/gai.conf"];
/// Longest report of a failed launch, in bytes.
const REPORT_BYTES_MAX: usize = 64 << 10;

/// Runs the worker of `dir` until it has ended.
pub(crate) fn run(dir: &Path) -> anyhow::Result<()> {
    let worker = Worker::read(dir).context("reading what to run")?;
    let socket = sys::take_inherited(0).context("standard input is not the listening socket")?;
    let _ = rustix::process::setsid();
    rustix::process::chdir("/").context("leaving the working directory")?;
    let signals = sys::signals_as_descriptor()?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    // Its path is covered by the stage, perhaps.
    let dir_fd = rustix::fs::open(dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let near = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir_fd)));
    let cgroup = cgroup::name(&TaskKey(worker.name.clone()), dir);
    // A worker has no files of its own to remove: there is no such directory.
    let record = Record { cgroup, scratch: dir.join("scratch"), init: None };
    let (init, way) = start(&worker, &record, socket, &near).inspect_err(|_| {
        let _ = shim::clean_up(&near, &record.cgroup, &near.join("scratch"));
    })?;
    look_after(&signals, init, way)?;
    shim::clean_up(&near, &record.cgroup, &near.join("scratch")).context("cleaning up")
}

/// Gives the worker of `dir` its weight among all that want the processor, in thousandths of a core. What has ended has none.
pub(crate) fn weigh(dir: &Path, cpu_milli: u64) -> anyhow::Result<()> {
    let Some(record) = Record::read(dir)? else { return Ok(()) };
    Ok(Hierarchies::of_this_machine()?.of_container(&record.cgroup).weigh(cpu_milli)?)
}

/// Starts it; its first process, and the way by which that hands the making of sockets over.
fn start(
    worker: &Worker,
    record: &Record,
    socket: OwnedFd,
    dir: &Path,
) -> anyhow::Result<(Pid, OwnedFd)> {
    let users = Users::numbered(worker.users);
    // For the case that what follows is cut short.
    record.write(dir).context("recording the container")?;
    RootFs::enter_own_namespace().map_err(anyhow::Error::from)?;
    let root = Stage::set(worker, users)?;
    let hierarchies = Hierarchies::of_this_machine()?;
    let host = Host::of_this_machine(&hierarchies);
    let spec = spec::build_worker(worker, users, &host, &record.cgroup, &root.root)?;
    let home = [("HOME".to_owned(), "/".to_owned())].into();
    let launch = Program::new(&worker.args, &home, "/").map_err(anyhow::Error::from)?;
    let profile = Profile::compile()?;
    let (way, stdout) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let stderr = io::stderr().as_fd().try_clone_to_owned()?;
    let stdio = Stdio { stdin: socket, stdout, stderr };
    let (report, report_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let report_end = Arc::new(report_end);
    let init = container::create_and_start(
        &root.directories,
        &spec,
        (launch, profile),
        End::WithShim,
        &stdio,
        &report_end,
    )
    .map_err(anyhow::Error::from)?;
    let process = Process::of(init).context("finding the container's process")?;
    Record { init: Some(process), ..record.clone() }
        .write(dir)
        .context("recording the container")?;
    drop(report_end);
    let mut said = vec![0; REPORT_BYTES_MAX];
    let count = rustix::io::read(&report, &mut said[..])?;
    anyhow::ensure!(
        count == 0,
        "the shim can't be run: {}",
        String::from_utf8_lossy(&said[..count])
    );
    Ok((init, way))
}

/// Makes the worker's sockets until it has ended. A request to end is left to the agent, which ends the shim itself.
fn look_after(signals: &OwnedFd, init: Pid, way: OwnedFd) -> io::Result<()> {
    let mut way = Some(way);
    let mut sockets: Option<Sockets> = None;
    loop {
        let mut ready = vec![PollFd::new(signals, PollFlags::IN)];
        ready.extend(way.iter().map(|way| PollFd::new(way, PollFlags::IN)));
        ready.extend(sockets.iter().map(|sockets| PollFd::new(sockets.calls(), PollFlags::IN)));
        match poll(&mut ready, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_other_ready = ready.get(1).is_some_and(|other| !other.revents().is_empty());
        if is_other_ready && let Some(way) = way.take() {
            let mut descriptors = VecDeque::new();
            handover::receive(&way, &mut [0], &mut descriptors)?;
            sockets = descriptors.pop_front().map(Sockets::new);
        } else if is_other_ready && let Some(calls) = &sockets {
            match calls.answer() {
                // Whoever asked does not wait any more.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%error, "the shim gets no more sockets");
                    sockets = None;
                }
                Ok(()) => {}
            }
        }
        let mut buffer = [0; 1024];
        while rustix::io::read(signals, &mut buffer[..]).is_ok_and(|length| length > 0) {}
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if pid == init {
                tracing::info!(status = ?status, "the shim has ended");
                return Ok(());
            }
        }
    }
}

/// The container's file tree.
struct Stage {
    root: PathBuf,
    directories: Directories,
}

impl Stage {
    /// Opens everything first, by its path, and covers that with the stage then.
    fn set(worker: &Worker, users: Users) -> anyhow::Result<Self> {
        let owners = users.namespace().map_err(anyhow::Error::from)?;
        let mut trees = Vec::new();
        let files = NAME_FILES.map(PathBuf::from).into_iter().filter(|path| path.exists());
        for path in worker.readable.iter().cloned().chain(files) {
            let tree = mapped::clone(&path, Access::Read, owners.as_fd())
                .with_context(|| format!("opening {}", path.display()))?;
            let is_dir = path.is_dir();
            trees.push((path, is_dir, tree));
        }
        for path in worker.writable.iter().cloned() {
            // Another shim of the namespace can write where the folders of single tasks are.
            let tree = mapped::clone_directly(&path, Access::Write, owners.as_fd())
                .with_context(|| format!("opening {}", path.display()))?;
            trees.push((path, true, tree));
        }
        mount_stage().context("mounting the stage")?;
        let stage = Path::new(STAGE);
        let root = stage.join("root");
        for dir in ["proc", "dev"] {
            std::fs::create_dir_all(root.join(dir))?;
        }
        for (path, is_dir, tree) in trees {
            let at = root.join(path.strip_prefix("/").unwrap_or(&path));
            place(&at, is_dir, &tree).with_context(|| format!("mounting {}", path.display()))?;
        }
        let directories = Directories::make(stage)?;
        Ok(Self { root, directories })
    }
}

fn mount_stage() -> Result<(), Errno> {
    use rustix::mount::{fsconfig_create, fsconfig_set_string, fsmount, fsopen, move_mount};
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (option, value) in [("mode", "755"), ("size", STAGE_SIZE)] {
        fsconfig_set_string(&fs, option, value)?;
    }
    fsconfig_create(&fs)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    move_mount(&mount, "", CWD, STAGE, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn place(at: &Path, is_dir: bool, tree: &OwnedFd) -> io::Result<()> {
    if is_dir {
        std::fs::create_dir_all(at)?;
    } else {
        at.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::File::create(at)?;
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(tree, "", CWD, at, flags)?)
}

impl Users {
    /// A user namespace with this range, to map the owners of mounts by; it has no processes.
    fn namespace(self) -> Result<OwnedFd, Failure> {
        let failed = |error: io::Error| Failure::system("making a user namespace", error);
        let (ours, theirs) = io::pipe().map_err(failed)?;
        let child = sys::fork().map_err(failed)?;
        let Some(child) = child else {
            drop(ours);
            let made = sys::unshare(UnshareFlags::NEWUSER).is_ok();
            let _ = io::Write::write(&mut &theirs, &[u8::from(made)]);
            // It is killed long before.
            let time = rustix::time::Timespec { tv_sec: NAMESPACE_SECONDS, tv_nsec: 0 };
            let _ = rustix::thread::nanosleep(&time);
            sys::exit_now(0);
        };
        drop(theirs);
        let namespace = self.of_process(child, ours);
        let _ = rustix::process::kill_process(child, rustix::process::Signal::KILL);
        let _ = rustix::process::waitpid(Some(child), WaitOptions::empty());
        namespace.map_err(failed)
    }

    fn of_process(self, process: Pid, mut ready: io::PipeReader) -> io::Result<OwnedFd> {
        let mut made = [0];
        io::Read::read_exact(&mut ready, &mut made)?;
        if made != [1] {
            return Err(io::Error::other("user namespaces can't be made here"));
        }
        let dir = PathBuf::from(format!("/proc/{}", process.as_raw_nonzero()));
        for map in ["uid_map", "gid_map"] {
            std::fs::write(dir.join(map), format!("0 {} {}\n", self.first, self.count))?;
        }
        Ok(std::fs::File::open(dir.join("ns/user"))?.into())
    }
}

/// Tries what a worker's container needs besides what every container does.
pub(crate) fn try_namespaces(dir: &Path) -> Result<(), Failure> {
    let users = Users::numbered(0);
    helper::run("trying a user namespace", NAMESPACE_SECONDS, &[], || {
        let owners = users.namespace()?;
        let tree = mapped::clone(dir, Access::Read, owners.as_fd())
            .map_err(|error| Failure::system("mapping the owners of files", error))?;
        drop(tree);
        Ok(())
    })
}
