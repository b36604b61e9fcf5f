//! The one place that calls libcontainer: creates a container from a spec and starts it, in a forked helper.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use oci_spec::runtime::Spec;
use rustix::process::Pid;

use crate::failure::Failure;
use crate::program::{self, Program};
use crate::seccomp::Profile;
use crate::{helper, sys};

/// The container's id in the library; its state directory belongs to one shim, so it need not differ.
const ID: &str = "container";
/// How long the library may take, in seconds: far more than a busy disk needs.
const CREATE_SECONDS: i64 = 60;

/// The container's standard streams, as it gets them.
#[derive(Debug)]
pub(crate) struct Stdio {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// What becomes of the container's first process when the shim dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It goes on, until somebody cleans up.
    Later,
    /// It dies, too.
    WithShim,
}

/// Where a shim keeps what the library needs.
#[derive(Debug)]
pub(crate) struct Directories {
    /// Holds config.json.
    pub(crate) bundle: PathBuf,
    /// The library's own.
    pub(crate) state: PathBuf,
}

impl Directories {
    /// Those of the shim in `dir`, made anew.
    pub(crate) fn make(dir: &Path) -> std::io::Result<Self> {
        let directories = Self::of(dir);
        directories.remove()?;
        std::fs::create_dir(&directories.bundle)?;
        std::fs::create_dir(&directories.state)?;
        Ok(directories)
    }

    /// Those of the shim in `dir`.
    pub(crate) fn of(dir: &Path) -> Self {
        Self { bundle: dir.join("bundle"), state: dir.join("state") }
    }

    /// Removes them; they need not be there.
    pub(crate) fn remove(&self) -> std::io::Result<()> {
        for dir in [&self.bundle, &self.state] {
            match std::fs::remove_dir_all(dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Creates the container and lets its program run. Returns the first process, a child of the shim.
///
/// Whether the program itself could be run is reported through `report` (a [`Failure`], or nothing and the end).
pub(crate) fn create_and_start(
    directories: &Directories,
    spec: &Spec,
    launch: (Program, Profile),
    end: End,
    stdio: &Stdio,
    report: &Arc<OwnedFd>,
) -> Result<Pid, Failure> {
    spec.save(directories.bundle.join("config.json"))
        .map_err(|error| Failure::create(format!("writing the runtime spec: {error}")))?;
    let (program, profile) = launch;
    let executor = Launcher { program, profile, end, report: Arc::clone(report) };
    let keep = [stdio.stdin.as_fd(), stdio.stdout.as_fd(), stdio.stderr.as_fd(), report.as_fd()];
    let pid = helper::run("setting up the container", CREATE_SECONDS, &keep, || {
        let copy = |fd: &OwnedFd| fd.try_clone();
        let stdio = [copy(&stdio.stdin), copy(&stdio.stdout), copy(&stdio.stderr)];
        let [Ok(stdin), Ok(stdout), Ok(stderr)] = stdio else {
            return Err(Failure::create("setting up the container: too many open files"));
        };
        let create = || -> anyhow::Result<i32> {
            let mut container = ContainerBuilder::new(ID.to_owned(), SyscallType::default())
                .with_root_path(&directories.state)?
                .with_executor(executor)
                .with_stdin(stdin)
                .with_stdout(stdout)
                .with_stderr(stderr)
                .as_init(&directories.bundle)
                .with_systemd(false)
                .with_detach(true)
                .as_sibling(true)
                .build()?;
            let pid = container.pid().ok_or_else(|| anyhow::anyhow!("it has no process"))?;
            container.start()?;
            Ok(pid.as_raw())
        };
        create().map_err(|error| describe(&error))
    })?;
    Pid::from_raw(pid).ok_or_else(|| Failure::create("setting up the container: no process id"))
}

fn describe(error: &anyhow::Error) -> Failure {
    let is_full = error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        io.is_some_and(|error| error.kind() == std::io::ErrorKind::StorageFull)
    });
    if is_full {
        return Failure::system(
            "setting up the container",
            std::io::Error::from_raw_os_error(libc::ENOSPC),
        );
    }
    Failure::create(format!("setting up the container: {error:#}"))
}

/// The last step inside the container: load the seccomp profile, become the program.
#[derive(Debug, Clone)]
struct Launcher {
    program: Program,
    profile: Profile,
    end: End,
    report: Arc<OwnedFd>,
}

impl Executor for Launcher {
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        if self.end == End::WithShim {
            let signal = Some(rustix::process::Signal::KILL);
            if let Err(error) = rustix::process::set_parent_process_death_signal(signal) {
                let failure = Failure::system("tying the program to its shim", error);
                program::report(&self.report, &failure);
                sys::exit_now(failure.code)
            }
        }
        let failure = match self.profile.apply() {
            Ok(()) => self.program.execute(),
            Err(error) => Failure::create(error.to_string()),
        };
        program::report(&self.report, &failure);
        sys::exit_now(failure.code)
    }

    /// Nothing is checked beforehand: running the program says best whether it can be run.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    /// The program's environment is passed to it by `execve` and never becomes this process's own.
    fn setup_envs(
        &self,
        _: std::collections::HashMap<String, String>,
    ) -> Result<(), libcontainer::workload::ExecutorSetEnvsError> {
        Ok(())
    }
}
