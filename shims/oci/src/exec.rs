//! A program that runs in the container at somebody's request, its streams on the connection that asked.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use brig_api::request::ExecRequest;
use brig_api::stdio::{FRAME_PAYLOAD_BYTES_MAX, StdioFrame, TerminalSize};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::cgroup::Cgroups;
use crate::failure::Failure;
use crate::join::{Join, Report, Streams};
use crate::program::Program;
use crate::seccomp::Profile;
use crate::user::Identity;
use crate::{clock, sys};

/// How long output is waited for after the program ended, in milliseconds: a process that it left behind may hold
/// its streams for ever.
const DRAIN_MS: i64 = 200;
/// Most output that is passed on after that time, in bytes. It is what pipes hold at most: a reader that was slow shall
/// miss nothing of the program's own, and a process that writes for ever shall not be waited for.
const OVERDUE_BYTES_MAX: usize = 1 << 20;
/// Most input that waits for a program that does not read, in bytes; then the connection is not read either.
const STDIN_BYTES_MAX: usize = 256 << 10;
/// Longest report of the children, in bytes.
const REPORT_BYTES_MAX: usize = 64 << 10;
/// The TERM of a program with a terminal, where the container's environment has none.
const TERM_DEFAULT: &str = "xterm";
/// End of transmission: how a terminal is told that the input has ended.
const END_OF_INPUT: u8 = 4;

/// What a session needs to know about the container.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) init: Pid,
    pub(crate) cgroups: &'a Cgroups,
    pub(crate) identity: &'a Identity,
    pub(crate) profile: &'a Profile,
    pub(crate) env: &'a BTreeMap<String, String>,
    pub(crate) working_dir: &'a str,
}

/// A running program and our ends of its streams.
#[derive(Debug)]
pub(crate) struct Session {
    /// Until it has ended: its number may be another process's afterwards.
    joiner: Option<Pid>,
    process: Option<Pid>,
    report: Option<OwnedFd>,
    reported: Vec<u8>,
    failure: Option<Failure>,
    stdin: Option<OwnedFd>,
    stdin_pending: Vec<u8>,
    stdin_ends: bool,
    /// Standard output (or the terminal) and standard error.
    outputs: [Option<OwnedFd>; 2],
    /// The terminal, for its size.
    terminal: Option<OwnedFd>,
    exit_code: Option<i32>,
    drain_until: Option<i64>,
    /// Output that was read after that time.
    overdue_bytes: usize,
}

/// Which of a session's descriptors is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    /// Input can be written.
    Stdin,
    /// Output is there: 0 standard output, 1 standard error.
    Output(usize),
    /// The children report.
    Report,
}

impl Session {
    /// Starts `request` in the container.
    pub(crate) fn start(target: Target<'_>, request: &ExecRequest) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::system("preparing the streams", error);
        let mut env = target.env.clone();
        if request.terminal.is_some() {
            env.entry("TERM".to_owned()).or_insert_with(|| TERM_DEFAULT.to_owned());
        }
        let program = Program::new(&request.command, &env, &target.identity.home)?;
        let (streams, ends) = match request.terminal {
            Some(size) => open_terminal(target.init, size).map_err(failed)?,
            None => open_pipes().map_err(|error| failed(error.into()))?,
        };
        let (report, report_end) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
        rustix::io::ioctl_fionbio(&report, true).map_err(|error| failed(error.into()))?;
        let init = rustix::process::pidfd_open(target.init, PidfdFlags::empty())
            .map_err(|error| Failure::system("finding the container's process", error))?;
        let join = Join {
            init,
            cgroups: target.cgroups.directories().to_vec(),
            identity: target.identity.clone(),
            profile: target.profile.clone(),
            program,
            working_dir: target.working_dir.to_owned(),
            streams,
            report: report_end,
        };
        let joiner = join.spawn().map_err(|error| Failure::system("starting a process", error))?;
        let Ends { stdin, outputs, terminal } = ends;
        Ok(Self {
            joiner: Some(joiner),
            process: None,
            report: Some(report),
            reported: Vec::new(),
            failure: None,
            stdin: Some(stdin),
            stdin_pending: Vec::new(),
            stdin_ends: false,
            outputs,
            terminal,
            exit_code: None,
            drain_until: None,
            overdue_bytes: 0,
        })
    }

    /// What poll shall watch. Output only if the connection has room for it.
    pub(crate) fn watched(&self, has_room: bool) -> Vec<(Channel, BorrowedFd<'_>)> {
        let mut watched = Vec::new();
        if let Some(report) = &self.report {
            watched.push((Channel::Report, report.as_fd()));
        }
        if let Some(stdin) = self.stdin.as_ref().filter(|_| !self.stdin_pending.is_empty()) {
            watched.push((Channel::Stdin, stdin.as_fd()));
        }
        for (index, output) in self.outputs.iter().enumerate().filter(|_| has_room) {
            if let Some(output) = output {
                watched.push((Channel::Output(index), output.as_fd()));
            }
        }
        watched
    }

    /// More input may come.
    pub(crate) fn takes_input(&self) -> bool {
        self.stdin_pending.len() < STDIN_BYTES_MAX
    }

    /// When [`Self::last_frames`] must be asked even if nothing happens, on the steady clock.
    pub(crate) fn deadline_ms(&self) -> Option<i64> {
        self.drain_until
    }

    /// A descriptor is ready. Output comes back as a frame.
    pub(crate) fn serve(&mut self, channel: Channel) -> Option<StdioFrame> {
        match channel {
            Channel::Report => {
                self.read_report();
                None
            }
            Channel::Stdin => {
                self.write_stdin();
                None
            }
            Channel::Output(index) => self.read_output(index),
        }
    }

    /// Takes a frame of the other side.
    pub(crate) fn take(&mut self, frame: StdioFrame) {
        match frame {
            StdioFrame::Stdin(bytes) if bytes.is_empty() && self.terminal.is_some() => {
                self.stdin_pending.push(END_OF_INPUT);
            }
            StdioFrame::Stdin(bytes) if bytes.is_empty() => self.stdin_ends = true,
            StdioFrame::Stdin(bytes) if self.stdin.is_some() => self.stdin_pending.extend(bytes),
            StdioFrame::Resize(size) => self.resize(size),
            // Channels that only come from the program, and input after its end.
            _ => {}
        }
        self.write_stdin();
    }

    /// A child of the shim ended. True when it was one of this session.
    pub(crate) fn reap(&mut self, pid: Pid, code: i32) -> bool {
        if self.joiner == Some(pid) {
            self.joiner = None;
            return true;
        }
        // The joiner reports the process before it ends, and only then the process becomes our child.
        self.read_report();
        if self.process != Some(pid) || self.exit_code.is_some() {
            return false;
        }
        self.exit_code = Some(code);
        self.drain_until = Some(clock::steady_ms().saturating_add(DRAIN_MS));
        true
    }

    /// The frames that end the session, once there is nothing else to come. `has_room`: its output is being read.
    pub(crate) fn last_frames(&mut self, has_room: bool) -> Option<Vec<StdioFrame>> {
        if let Some(failure) = self.failure.take() {
            let message = format!("{}\n", failure.message).into_bytes();
            return Some(match failure.code {
                crate::failure::CODE_NOT_CREATED => vec![StdioFrame::Failed(failure.message)],
                code => vec![StdioFrame::Stderr(message), StdioFrame::Exit(code)],
            });
        }
        let code = self.exit_code?;
        // Without room nothing was read: what is in the pipes must not be lost.
        let is_drained = self.outputs.iter().all(Option::is_none)
            || has_room
                && self.is_overdue()
                && (self.overdue_bytes >= OVERDUE_BYTES_MAX || !self.has_output());
        is_drained.then(|| vec![StdioFrame::Exit(code)])
    }

    /// The program has ended, and its output was waited for long enough.
    fn is_overdue(&self) -> bool {
        self.drain_until.is_some_and(|until| clock::steady_ms() >= until)
    }

    /// Output can be read at once.
    fn has_output(&self) -> bool {
        self.outputs.iter().flatten().any(|output| {
            let mut ready = [PollFd::new(output, PollFlags::IN)];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            poll(&mut ready, Some(&now)).is_ok_and(|_| ready[0].revents().contains(PollFlags::IN))
        })
    }

    /// The other side has gone: hang up, as a terminal would.
    pub(crate) fn hang_up(&mut self) {
        self.read_report();
        if let Some(process) = self.process.filter(|_| self.exit_code.is_none()) {
            let _ = rustix::process::kill_process_group(process, rustix::process::Signal::HUP);
            let _ = sys::kill(process, libc::SIGHUP);
        }
    }

    fn read_report(&mut self) {
        let Some(report) = &self.report else { return };
        let mut bytes = [0; 4096];
        loop {
            match rustix::io::read(report, &mut bytes[..]) {
                Ok(0) => break,
                Ok(length) if self.reported.len() < REPORT_BYTES_MAX => {
                    self.reported.extend_from_slice(&bytes[..length]);
                }
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    self.parse_report();
                    return;
                }
                Err(_) => break,
            }
        }
        self.report = None;
        self.parse_report();
    }

    fn parse_report(&mut self) {
        for line in self.reported.split(|byte| *byte == b'\n') {
            match serde_json::from_slice(line) {
                Ok(Report::Started(pid)) => self.process = Pid::from_raw(pid),
                Ok(Report::Failed(failure)) => self.failure = Some(failure),
                Err(_) => {}
            }
        }
        let is_over = self.report.is_none();
        if is_over && self.process.is_none() && self.failure.is_none() {
            self.failure =
                Some(Failure::create("the program could not be started in the container"));
        }
    }

    fn write_stdin(&mut self) {
        let Some(stdin) = &self.stdin else {
            self.stdin_pending.clear();
            return;
        };
        while !self.stdin_pending.is_empty() {
            match rustix::io::write(stdin, &self.stdin_pending) {
                Ok(length) => {
                    self.stdin_pending.drain(..length);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => {
                    // It reads no more.
                    self.stdin_pending.clear();
                    self.stdin = None;
                    return;
                }
            }
        }
        if self.stdin_ends {
            self.stdin = None;
        }
    }

    fn read_output(&mut self, index: usize) -> Option<StdioFrame> {
        let output = self.outputs[index].take()?;
        let mut file = std::fs::File::from(output);
        let mut bytes = vec![0; FRAME_PAYLOAD_BYTES_MAX];
        match file.read(&mut bytes) {
            // A terminal says EIO when its last user has gone.
            Ok(0) => None,
            Ok(length) => {
                self.outputs[index] = Some(file.into());
                if self.is_overdue() {
                    self.overdue_bytes = self.overdue_bytes.saturating_add(length);
                }
                bytes.truncate(length);
                let is_stderr = index == 1;
                Some(if is_stderr { StdioFrame::Stderr(bytes) } else { StdioFrame::Stdout(bytes) })
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                self.outputs[index] = Some(file.into());
                None
            }
            Err(_) => None,
        }
    }

    fn resize(&self, size: TerminalSize) {
        if let Some(terminal) = &self.terminal {
            let _ = rustix::termios::tcsetwinsize(terminal, window(size));
        }
    }
}

/// Our ends of a session's streams.
struct Ends {
    stdin: OwnedFd,
    outputs: [Option<OwnedFd>; 2],
    terminal: Option<OwnedFd>,
}

fn open_pipes() -> rustix::io::Result<(Streams, Ends)> {
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
    let (stdin, stdin_end) = pipe()?;
    let (stdout_end, stdout) = pipe()?;
    let (stderr_end, stderr) = pipe()?;
    for end in [&stdin_end, &stdout_end, &stderr_end] {
        rustix::io::ioctl_fionbio(end, true)?;
    }
    let ends =
        Ends { stdin: stdin_end, outputs: [Some(stdout_end), Some(stderr_end)], terminal: None };
    Ok((Streams::Pipes([stdin, stdout, stderr]), ends))
}

/// Opens a terminal of the container's own, so that it has a name there. The container may have put anything into
/// its /dev, hence the checks.
fn open_terminal(init: Pid, size: TerminalSize) -> std::io::Result<(Streams, Ends)> {
    let root = format!("/proc/{}/root", init.as_raw_nonzero());
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, directory, Mode::empty())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let master = rustix::fs::openat2(&root, "dev/pts/ptmx", flags, Mode::empty(), resolve)?;
    if rustix::fs::fstat(&master)?.st_rdev != rustix::fs::makedev(5, 2) {
        return Err(std::io::Error::other("the container's /dev/pts/ptmx is no terminal"));
    }
    rustix::pty::unlockpt(&master)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    rustix::termios::tcsetwinsize(&master, window(size))?;
    let ends = Ends {
        stdin: master.try_clone()?,
        outputs: [Some(master.try_clone()?), None],
        terminal: Some(master),
    };
    Ok((Streams::Terminal(terminal), ends))
}

fn window(size: TerminalSize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session whose program is process 2, started by process 1, and our end of its standard output.
    fn session() -> (Session, OwnedFd) {
        let (stdin_end, stdin) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (stdout, stdout_end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
        rustix::io::ioctl_fionbio(&stdout, true).unwrap();
        drop(stdin_end);
        let session = Session {
            joiner: Pid::from_raw(1),
            process: Pid::from_raw(2),
            report: None,
            reported: Vec::new(),
            failure: None,
            stdin: Some(stdin),
            stdin_pending: Vec::new(),
            stdin_ends: false,
            outputs: [Some(stdout), None],
            terminal: None,
            exit_code: None,
            drain_until: None,
            overdue_bytes: 0,
        };
        (session, stdout_end)
    }

    fn pid(number: i32) -> Pid {
        Pid::from_raw(number).unwrap()
    }

    #[test]
    fn the_number_of_a_process_that_has_ended_belongs_to_another_one_day() {
        let (mut session, _stdout) = session();
        assert!(session.reap(pid(1), 0));
        assert!(!session.reap(pid(1), 9), "the joiner ends once");
        assert!(session.reap(pid(2), 3));
        assert!(!session.reap(pid(2), 9), "and so does the program");
        assert_eq!(session.exit_code, Some(3));
    }

    #[test]
    fn all_that_an_ended_program_has_written_comes_before_its_exit_however_late_it_is_read() {
        let (mut session, stdout) = session();
        let size = rustix::pipe::fcntl_setpipe_size(&stdout, 4 * FRAME_PAYLOAD_BYTES_MAX).unwrap();
        rustix::io::write(&stdout, &vec![b'x'; size]).unwrap();
        session.reap(pid(2), 0);
        session.drain_until = Some(clock::steady_ms());
        let mut received = 0;
        let last = loop {
            if let Some(frames) = session.last_frames(true) {
                break frames;
            }
            match session.serve(Channel::Output(0)) {
                Some(StdioFrame::Stdout(bytes)) => received += bytes.len(),
                other => panic!("expected output, got {other:?}"),
            }
        };
        assert_eq!((received, last), (size, vec![StdioFrame::Exit(0)]));
    }

    #[test]
    fn a_process_that_writes_for_ever_is_not_waited_for() {
        let (mut session, stdout) = session();
        session.reap(pid(2), 0);
        session.drain_until = Some(clock::steady_ms());
        let mut received = 0;
        rustix::io::write(&stdout, &[b'x'; 4096]).unwrap();
        while session.last_frames(true).is_none() {
            if let Some(StdioFrame::Stdout(bytes)) = session.serve(Channel::Output(0)) {
                received += bytes.len();
            }
            rustix::io::write(&stdout, &[b'x'; 4096]).unwrap();
        }
        assert!(received <= OVERDUE_BYTES_MAX + FRAME_PAYLOAD_BYTES_MAX, "{received}");
    }
}
