//! The child's side of exec: joins a running container and becomes a program in it, with everything that the
//! container's first process was given and nothing more. (libcontainer's own exec loads no seccomp profile.)

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::process::{DumpableBehavior, Pid, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, ThreadNameSpaceType, Uid};
use serde::{Deserialize, Serialize};

use crate::capabilities;
use crate::failure::Failure;
use crate::program::Program;
use crate::seccomp::Profile;
use crate::spec::OPEN_FILES_MAX;
use crate::sys::{self, StandardStream};
use crate::user::Identity;

/// Everything that joining needs, collected before the fork.
#[derive(Debug)]
pub(crate) struct Join {
    /// The container's first process.
    pub(crate) init: OwnedFd,
    pub(crate) cgroups: Vec<PathBuf>,
    pub(crate) identity: Identity,
    pub(crate) profile: Profile,
    pub(crate) program: Program,
    pub(crate) working_dir: String,
    pub(crate) streams: Streams,
    /// Takes [`Report`]s, one a line; closes when the program runs.
    pub(crate) report: OwnedFd,
}

/// The standard streams of the program.
#[derive(Debug)]
pub(crate) enum Streams {
    /// One end of a pipe each.
    Pipes([OwnedFd; 3]),
    /// A terminal of the container.
    Terminal(OwnedFd),
}

/// What the children say to the shim.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The program's process, as the host numbers it.
    Started(i32),
    /// It could not be run.
    Failed(Failure),
}

impl Join {
    /// Forks the joining process. It ends as soon as it has made the program's process, which then is the shim's
    /// child, because the shim adopts orphans.
    pub(crate) fn spawn(self) -> std::io::Result<Pid> {
        match sys::fork()? {
            Some(joiner) => Ok(joiner),
            None => {
                sys::restore_signals();
                if let Err(failure) = self.join() {
                    self.report(&Report::Failed(failure));
                }
                sys::exit_now(0)
            }
        }
    }

    fn join(&self) -> Result<(), Failure> {
        let failed =
            |doing: &'static str| move |error: rustix::io::Errno| Failure::system(doing, error);
        let mut keep = self.streams.descriptors();
        keep.extend([self.init.as_fd(), self.report.as_fd()]);
        sys::close_all_but(&keep).map_err(|error| Failure::system("closing descriptors", error))?;
        // Nothing in the container may look into this process while it is more powerful than the container.
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(failed("protecting the process"))?;
        for cgroup in &self.cgroups {
            std::fs::write(cgroup.join("cgroup.procs"), "0")
                .map_err(|error| Failure::system("joining the container's cgroup", error))?;
        }
        let namespaces = ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::CONTROL_GROUP
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::PROCESS_ID;
        rustix::thread::move_into_thread_name_spaces(self.init.as_fd(), namespaces)
            .map_err(failed("joining the container's namespaces"))?;
        // Only a child is inside the process namespace.
        match sys::fork()
            .map_err(|error| Failure::system("starting a process in the container", error))?
        {
            Some(pid) => {
                self.report(&Report::Started(pid.as_raw_nonzero().get()));
                Ok(())
            }
            None => {
                let failure = match self.confine() {
                    Ok(()) => self.program.execute(),
                    Err(failure) => failure,
                };
                self.report(&Report::Failed(failure.clone()));
                sys::exit_now(failure.code)
            }
        }
    }

    /// From here on in the program's own process, inside the container.
    fn confine(&self) -> Result<(), Failure> {
        let failed =
            |doing: &'static str| move |error: rustix::io::Errno| Failure::system(doing, error);
        rustix::process::setsid().map_err(failed("starting a session"))?;
        self.streams
            .attach()
            .map_err(|error| Failure::system("attaching the standard streams", error))?;
        sys::close_on_exec_from_3()
            .map_err(|error| Failure::system("closing descriptors", error))?;
        set_limits().map_err(failed("setting limits"))?;
        rustix::process::chdir(self.working_dir.as_str()).map_err(|error| {
            Failure::system(
                &format!("changing to the working directory `{}`", self.working_dir),
                error,
            )
        })?;
        let inside =
            rustix::process::getcwd(Vec::new()).map_err(failed("reading the working directory"))?;
        if !inside.to_bytes().starts_with(b"/") {
            return Err(Failure::create("the working directory is not inside the container"));
        }
        self.become_user().map_err(failed("becoming the container's user"))?;
        rustix::thread::set_no_new_privs(true).map_err(failed("giving up new privileges"))?;
        self.profile.apply().map_err(|error| Failure::create(error.to_string()))
    }

    fn become_user(&self) -> rustix::io::Result<()> {
        let allowed = capabilities::in_kernel();
        for number in 0..u64::BITS {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            // Numbers that this kernel does not know are refused: nothing to drop there.
            if !allowed.contains(capability)
                && rustix::thread::capability_is_in_bounding_set(capability).unwrap_or(false)
            {
                rustix::thread::remove_capability_from_bounding_set(capability)?;
            }
        }
        let groups: Vec<_> = self.identity.groups.iter().map(|id| Gid::from_raw(*id)).collect();
        rustix::thread::set_thread_groups(&groups)?;
        let (uid, gid) = (Uid::from_raw(self.identity.uid), Gid::from_raw(self.identity.gid));
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        let granted = if self.identity.is_root() { allowed } else { CapabilitySet::empty() };
        rustix::thread::clear_ambient_capability_set()?;
        let sets = CapabilitySets {
            effective: granted,
            permitted: granted,
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, sets)
    }

    fn report(&self, report: &Report) {
        let mut line = serde_json::to_vec(report).unwrap_or_default();
        line.push(b'\n');
        let _ = rustix::io::write(&self.report, &line);
    }
}

/// The limits that the runtime spec gives the container's first process.
fn set_limits() -> rustix::io::Result<()> {
    let hard = rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(OPEN_FILES_MAX);
    let files = Some(OPEN_FILES_MAX.min(hard));
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: files, maximum: files })?;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
}

impl Streams {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Pipes(pipes) => pipes.iter().map(AsFd::as_fd).collect(),
            Self::Terminal(terminal) => vec![terminal.as_fd()],
        }
    }

    fn attach(&self) -> std::io::Result<()> {
        let [stdin, stdout, stderr] = match self {
            Self::Pipes([stdin, stdout, stderr]) => [stdin, stdout, stderr],
            Self::Terminal(terminal) => {
                rustix::process::ioctl_tiocsctty(terminal)?;
                [terminal, terminal, terminal]
            }
        };
        sys::become_standard_stream(stdin.as_fd(), StandardStream::Input)?;
        sys::become_standard_stream(stdout.as_fd(), StandardStream::Output)?;
        sys::become_standard_stream(stderr.as_fd(), StandardStream::Error)
    }
}
