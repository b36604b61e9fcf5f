//! The one task of a shim: set up, running, draining its output, ended.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use brig_api::lifecycle::Reason;
use brig_api::logline::Stream;
use brig_api::usage::{MemoryOverTime, Usage};
use brig_shim::exit::{ExitRecord, MESSAGE_BYTES_MAX};
use brig_shim::log::LogWriter;
use brig_shim::message::{StartOci, StartProgram, StartTask, StopSignal, TaskState, TaskUsage};
use rustix::pipe::PipeFlags;
use rustix::process::Pid;

use crate::cgroup::{self, Cgroups, Hierarchies};
use crate::container::{self, Directories, End, Stdio};
use crate::exec::Target;
use crate::failure::Failure;
use crate::program::Program;
use crate::record::{Process, Record};
use crate::rootfs::{self, RootFs};
use crate::seccomp::Profile;
use crate::spec::{self, Host, Plan};
use crate::user::{self, Identity};
use crate::{clock, signal, sys};

/// Read at once from the program, in bytes.
const READ_BYTES: usize = 64 << 10;
/// How long output is waited for after the container ended, in milliseconds: a process outside that was handed one
/// of its streams may hold it for ever.
const DRAIN_MS: i64 = 500;
/// Longest report of a failed launch, in bytes.
const REPORT_BYTES_MAX: usize = 64 << 10;

/// A container that was created.
#[derive(Debug)]
pub(crate) struct Task {
    init: Pid,
    cgroups: Cgroups,
    identity: Identity,
    profile: Profile,
    /// Unmounted when the task is dropped.
    _root: RootFs,
    log: LogWriter,
    outputs: [Option<OwnedFd>; 2],
    report: Option<OwnedFd>,
    reported: Vec<u8>,
    phase: Phase,
    is_stop_asked: bool,
    is_running_news: bool,
    memory: MemoryOverTime,
    started_ns: u64,
    /// Its memory was looked at while it ran.
    is_sampled: bool,
}

/// Launching → Running → Draining; what comes after is an exit record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The container is there, its program not yet known to run.
    Launching,
    /// The program runs.
    Running,
    /// The first process ended; the rest of the output is read.
    Draining { status: ExitStatus, until_ms: i64 },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    /// By itself, with a code.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

impl ExitStatus {
    /// The one number that says both: 128 + signal for a signal.
    pub(crate) fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal.saturating_add(128),
        }
    }
}

/// Which of a task's descriptors is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    /// 0 standard output, 1 standard error.
    Output(usize),
    /// The launch went well or not.
    Report,
}

impl Task {
    /// Sets a container up and lets its program run.
    pub(crate) fn start(dir: &Path, start: &StartTask) -> Result<Self, Failure> {
        let StartProgram::Oci(program) = &start.program else {
            return Err(Failure::create("this shim runs containers only"));
        };
        rootfs::check_mounts(&start.mounts)?;
        let log = LogWriter::open(start.log.clone())
            .map_err(|error| Failure::system("opening the task's log", error))?;
        let hierarchies = Hierarchies::of_this_machine()
            .map_err(|error| Failure::system("finding the cgroup hierarchies", error))?;
        let root = RootFs::mount(program)?;
        root.check_own_directories()?;
        let identity = user::resolve(root.directory(), &program.user)?;
        root.make_working_dir(&program.working_dir, &start.mounts)?;
        let host_name = rootfs::host_name(&start.title);
        let files = rootfs::write_network_files(&dir.join("etc"), &host_name)?;
        root.make_way_for(&files)?;
        let cgroup = cgroup::name(&start.key, dir);
        let spec = spec::build(Plan {
            start,
            program,
            identity: &identity,
            host: &Host::of_this_machine(&hierarchies),
            host_name: &host_name,
            cgroup: &cgroup,
            root: root.path(),
            files: &files,
        })?;
        let launch = Program::new(&program.args, &start.env, &identity.home)?;
        let profile = Profile::compile().map_err(|error| Failure::create(error.to_string()))?;
        let directories = Directories::make(dir)
            .map_err(|error| Failure::system("making the state directory", error))?;
        let pipes = Pipes::open().map_err(|error| Failure::system("making pipes", error))?;
        let launched = (launch, profile.clone());
        let init = container::create_and_start(
            &directories,
            &spec,
            launched,
            End::Later,
            &pipes.stdio,
            &pipes.report_end,
        )?;
        let process = Process::of(init)
            .map_err(|error| Failure::system("finding the container's process", error))?;
        Record { cgroup: cgroup.clone(), scratch: program.scratch.clone(), init: Some(process) }
            .write(dir)
            .map_err(|error| Failure::system("recording the container", error))?;
        Ok(Self {
            init,
            cgroups: hierarchies.of_container(&cgroup),
            identity,
            profile,
            _root: root,
            log,
            outputs: pipes.outputs.map(Some),
            report: Some(pipes.report),
            reported: Vec::new(),
            phase: Phase::Launching,
            is_stop_asked: false,
            is_running_news: false,
            memory: MemoryOverTime::default(),
            started_ns: clock::steady_ns(),
            is_sampled: false,
        })
    }

    /// How it is, for the agent.
    pub(crate) fn state(&self) -> TaskState {
        match self.phase {
            Phase::Launching => TaskState::Starting,
            Phase::Running | Phase::Draining { .. } => TaskState::Running { http: None },
        }
    }

    /// What poll shall watch.
    pub(crate) fn watched(&self) -> Vec<(Channel, BorrowedFd<'_>)> {
        let report = self.report.iter().map(|fd| (Channel::Report, fd.as_fd()));
        let outputs = self.outputs.iter().enumerate();
        let outputs =
            outputs.filter_map(|(index, fd)| Some((Channel::Output(index), fd.as_ref()?.as_fd())));
        report.chain(outputs).collect()
    }

    /// When [`Self::ended`] must be asked even if nothing happens, on the steady clock.
    pub(crate) fn deadline_ms(&self) -> Option<i64> {
        match self.phase {
            Phase::Draining { until_ms, .. } => Some(until_ms),
            _ => None,
        }
    }

    /// A descriptor is ready.
    pub(crate) fn serve(&mut self, channel: Channel) {
        match channel {
            Channel::Output(index) => self.read_output(index),
            Channel::Report => self.read_report(),
        }
    }

    /// True once, when the program is known to run (or to have run).
    pub(crate) fn takes_note_of_running(&mut self) -> bool {
        std::mem::take(&mut self.is_running_news)
    }

    /// A child of the shim ended; true when it was this task's first process.
    pub(crate) fn reap(&mut self, pid: Pid, status: ExitStatus) -> bool {
        if pid != self.init || matches!(self.phase, Phase::Draining { .. }) {
            return false;
        }
        self.read_report();
        let until_ms = clock::steady_ms().saturating_add(DRAIN_MS);
        self.phase = Phase::Draining { status, until_ms };
        true
    }

    /// The record of its end, once there is nothing more to come.
    pub(crate) fn ended(&self, memory_limit: u64) -> Option<ExitRecord> {
        let Phase::Draining { status, until_ms } = self.phase else { return None };
        let is_drained = self.outputs.iter().all(Option::is_none) || clock::steady_ms() >= until_ms;
        is_drained.then(|| {
            let usage = self.used_in_all();
            match serde_json::from_slice::<Failure>(&self.reported) {
                Ok(failure) => failure_record(&failure, usage),
                Err(_) => self.exit_record(status, memory_limit, usage),
            }
        })
    }

    fn exit_record(&self, status: ExitStatus, memory_limit: u64, usage: Usage) -> ExitRecord {
        let how = How {
            status,
            memory_kills: self.cgroups.memory_kills(),
            memory_limit,
            is_stop_asked: self.is_stop_asked,
        };
        let (code, reason, message) = how.explain();
        ExitRecord { code, reason, message, finished_ms: clock::unix_ms(), usage }
    }

    /// Asks it to end, or ends it.
    pub(crate) fn stop(&mut self, how: StopSignal, program: &StartOci) {
        if matches!(self.phase, Phase::Draining { .. }) {
            return;
        }
        self.is_stop_asked = true;
        let number = match how {
            StopSignal::Terminate => {
                program.stop_signal.as_deref().and_then(signal::number).unwrap_or(libc::SIGTERM)
            }
            StopSignal::Interrupt => libc::SIGINT,
            // The kernel ends a process namespace with its first process.
            StopSignal::Kill => libc::SIGKILL,
        };
        if let Err(error) = sys::kill(self.init, number) {
            tracing::warn!(%error, signal = number, "the container's process could not be signalled");
        }
    }

    /// What it uses. Its memory counts from one call to the next as what it was at the first of them.
    pub(crate) fn usage(&mut self) -> TaskUsage {
        let (mut usage, now_ns) = (self.cgroups.usage(), clock::steady_ns());
        if !matches!(self.phase, Phase::Draining { .. }) {
            self.memory.is_now(usage.memory_bytes, now_ns);
            self.is_sampled = true;
        }
        usage.used.memory_byte_s = self.memory.byte_s(now_ns);
        usage
    }

    /// What it used, now that it has ended. One that ended before anybody asked counts as if it had always had the most that
    /// it ever had.
    fn used_in_all(&self) -> Usage {
        let (mut used, mut memory) = (self.cgroups.usage().used, self.memory);
        if !self.is_sampled {
            memory.is_now(used.memory_peak_bytes, self.started_ns);
        }
        used.memory_byte_s = memory.byte_s(clock::steady_ns());
        used
    }

    /// What an exec needs; None when the program does not run.
    pub(crate) fn target<'a>(
        &'a self,
        start: &'a StartTask,
        program: &'a StartOci,
    ) -> Option<Target<'a>> {
        (self.phase == Phase::Running).then_some(Target {
            init: self.init,
            cgroups: &self.cgroups,
            identity: &self.identity,
            profile: &self.profile,
            env: &start.env,
            working_dir: &program.working_dir,
        })
    }

    /// Output that the log could not take, in bytes.
    pub(crate) fn dropped_bytes(&self) -> u64 {
        self.log.dropped_bytes()
    }

    fn read_output(&mut self, index: usize) {
        let Some(output) = &self.outputs[index] else { return };
        let mut bytes = [0; READ_BYTES];
        match rustix::io::read(output, &mut bytes[..]) {
            Ok(0) => self.outputs[index] = None,
            Ok(length) => {
                let stream = if index == 0 { Stream::Stdout } else { Stream::Stderr };
                self.log.write(clock::unix_ms(), stream, &bytes[..length]);
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(_) => self.outputs[index] = None,
        }
    }

    /// Reads what the launch said; the end without a word means that the program runs.
    fn read_report(&mut self) {
        let Some(report) = &self.report else { return };
        let mut bytes = [0; 4096];
        loop {
            match rustix::io::read(report, &mut bytes[..]) {
                Ok(0) => break,
                Ok(length) if self.reported.len() < REPORT_BYTES_MAX => {
                    self.reported.extend_from_slice(&bytes[..length]);
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => break,
            }
        }
        self.report = None;
        if self.reported.is_empty() && self.phase == Phase::Launching {
            self.phase = Phase::Running;
            self.is_running_news = true;
        }
    }
}

/// The record of a task that could not be set up.
pub(crate) fn failure_record(failure: &Failure, usage: Usage) -> ExitRecord {
    let mut message = failure.message.clone();
    message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
    ExitRecord {
        code: failure.code,
        reason: Some(failure.reason),
        message: Some(message),
        finished_ms: clock::unix_ms(),
        usage,
    }
}

/// Everything that decides how an exit is told.
#[derive(Debug, Clone, Copy)]
struct How {
    status: ExitStatus,
    memory_kills: u64,
    memory_limit: u64,
    is_stop_asked: bool,
}

impl How {
    fn explain(self) -> (i32, Option<Reason>, Option<String>) {
        let code = self.status.code();
        let memory_message = || {
            let limit = brig_api::Bytes(self.memory_limit);
            let what = if code == 0 { "a process of it was killed" } else { "killed" };
            format!(
                "{what} because the memory limit of {limit} was reached: raise `memory`, or use less"
            )
        };
        if self.memory_kills > 0 && code != 0 && !self.is_stop_asked {
            return (code, Some(Reason::OutOfMemory), Some(memory_message()));
        }
        let message = (self.memory_kills > 0).then(memory_message);
        match self.status {
            _ if self.is_stop_asked => (code, None, message),
            ExitStatus::Code(0) => (0, None, message),
            ExitStatus::Code(_) => (code, Some(Reason::ExitedNonZero), None),
            ExitStatus::Signal(number) => {
                let name = signal::name(number);
                (code, Some(Reason::Signalled), Some(format!("ended by signal {number} ({name})")))
            }
        }
    }
}

/// The pipes between container and shim.
struct Pipes {
    stdio: Stdio,
    outputs: [OwnedFd; 2],
    report: OwnedFd,
    report_end: Arc<OwnedFd>,
}

impl Pipes {
    fn open() -> std::io::Result<Self> {
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
        let (stdout_end, stdout) = pipe()?;
        let (stderr_end, stderr) = pipe()?;
        let (report, report_end) = pipe()?;
        for end in [&stdout_end, &stderr_end, &report] {
            rustix::io::ioctl_fionbio(end, true)?;
        }
        let stdin = OwnedFd::from(std::fs::File::open("/dev/null")?);
        Ok(Self {
            stdio: Stdio { stdin, stdout, stderr },
            outputs: [stdout_end, stderr_end],
            report,
            report_end: Arc::new(report_end),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_told_as_what_they_were() {
        let how = |status, memory_kills, is_stop_asked| {
            let how = How { status, memory_kills, memory_limit: 64 << 20, is_stop_asked };
            let (code, reason, message) = how.explain();
            (code, reason, message.unwrap_or_default())
        };
        use ExitStatus::{Code, Signal};
        assert_eq!(how(Code(0), 0, false), (0, None, String::new()));
        assert_eq!(how(Code(3), 0, false), (3, Some(Reason::ExitedNonZero), String::new()));
        let (code, reason, message) = how(Signal(11), 0, false);
        assert_eq!((code, reason), (139, Some(Reason::Signalled)));
        assert!(message.contains("SIGSEGV"), "{message}");
        assert_eq!(how(Signal(9), 0, true), (137, None, String::new()));
        let (code, reason, message) = how(Signal(9), 1, false);
        assert_eq!((code, reason), (137, Some(Reason::OutOfMemory)));
        assert!(message.contains("64Mi"), "{message}");
        assert_eq!(how(Code(137), 1, false).1, Some(Reason::OutOfMemory));
        let (code, reason, message) = how(Code(0), 1, false);
        assert_eq!((code, reason), (0, None));
        assert!(message.contains("a process of it"), "{message}");
    }
}
