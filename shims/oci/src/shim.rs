//! The shim: one thread, one poll loop, one task.
//!
//! ```text
//!            Start          set up            exit, drained          Remove
//!  Waiting ─────────▶ (blocks) ─────▶ Live ─────────────────▶ Ended ────────▶ Over ──▶ ends
//!     │                  │ failed                               ▲
//!     │ nobody comes     └──────────────────────────────────────┘
//!     └────────────────────────────────────────────────────────────────────▶ ends
//! ```

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use brig_api::usage::Usage;
use brig_shim::exit::ExitRecord;
use brig_shim::message::{FromShim, StartProgram, StartTask, TaskKey, TaskState};
use brig_shim::tree;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, WaitOptions};

use crate::cgroup::{self, Hierarchies};
use crate::connection::Connection;
use crate::container::Directories;
use crate::failure::Failure;
use crate::record::Record;
use crate::rootfs::RootFs;
use crate::task::{self, ExitStatus, Task};
use crate::{clock, exec, sys};

/// A shim whose agent never asks for anything ends after this many milliseconds.
const UNUSED_MS: i64 = 60_000;
/// After its task was removed, a shim answers for so many more milliseconds, as long as somebody is connected.
const LINGER_MS: i64 = 10_000;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// Most connections at a time: the agent's own, a new agent's, and execs.
const CONNECTIONS_MAX: usize = 64;

/// Where a shim is in its life.
#[derive(Debug)]
pub(crate) enum Life {
    /// Nothing was started yet.
    Waiting {
        /// When it gives up, on the steady clock.
        until_ms: i64,
    },
    /// The task is there.
    Live(Box<StartTask>, Box<Task>),
    /// The task ended and is remembered until it is removed.
    Ended(TaskKey, Box<ExitRecord>),
    /// The task was removed, or there will be none.
    Over {
        /// When it ends although somebody is connected, on the steady clock.
        until_ms: i64,
    },
}

/// A shim.
#[derive(Debug)]
pub(crate) struct Shim {
    pub(crate) dir: PathBuf,
    listener: UnixListener,
    signals: OwnedFd,
    pub(crate) connections: BTreeMap<u64, Connection>,
    connections_made: u64,
    pub(crate) life: Life,
}

/// Whose descriptor is ready.
#[derive(Debug, Clone, Copy)]
enum Token {
    Signals,
    Listener,
    Connection(u64),
    Task(task::Channel),
    Session(u64, exec::Channel),
}

impl Shim {
    /// A shim in `dir` that is reached through `listener`.
    pub(crate) fn new(dir: &Path, listener: UnixListener) -> std::io::Result<Self> {
        listener.set_nonblocking(true)?;
        // Once more, so that whoever connects is told of this process, and not of the one that has bound the socket.
        rustix::net::listen(&listener, BACKLOG)?;
        let signals = sys::signals_as_descriptor()?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        let until_ms = clock::steady_ms().saturating_add(UNUSED_MS);
        Ok(Self {
            dir: dir.to_owned(),
            listener,
            signals,
            connections: BTreeMap::new(),
            connections_made: 0,
            life: Life::Waiting { until_ms },
        })
    }

    /// Serves until the task is over and removed.
    pub(crate) fn run(mut self) -> std::io::Result<()> {
        while !self.is_over() {
            for (token, ready) in self.wait()? {
                self.serve(token, ready);
            }
            self.settle();
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        let now = clock::steady_ms();
        match &self.life {
            Life::Waiting { until_ms } => self.connections.is_empty() && now >= *until_ms,
            Life::Over { until_ms } => self.connections.is_empty() || now >= *until_ms,
            Life::Live(..) | Life::Ended(..) => false,
        }
    }

    /// Waits until something is ready or a deadline passes.
    fn wait(&self) -> std::io::Result<Vec<(Token, PollFlags)>> {
        let mut watched: Vec<(Token, BorrowedFd<'_>, PollFlags)> = vec![
            (Token::Signals, self.signals.as_fd(), PollFlags::IN),
            (Token::Listener, self.listener.as_fd(), PollFlags::IN),
        ];
        if let Life::Live(_, task) = &self.life {
            let channels = task.watched().into_iter();
            watched.extend(channels.map(|(channel, fd)| (Token::Task(channel), fd, PollFlags::IN)));
        }
        for (id, connection) in &self.connections {
            let mut flags = PollFlags::empty();
            let session = connection.session.as_ref();
            if !connection.is_ending && session.is_none_or(exec::Session::takes_input) {
                flags |= PollFlags::IN;
            }
            if connection.has_output() {
                flags |= PollFlags::OUT;
            }
            watched.push((Token::Connection(*id), connection.stream().as_fd(), flags));
            for (channel, fd) in
                session.map(|session| session.watched(connection.has_room())).unwrap_or_default()
            {
                let flags =
                    if channel == exec::Channel::Stdin { PollFlags::OUT } else { PollFlags::IN };
                watched.push((Token::Session(*id, channel), fd, flags));
            }
        }
        let mut ready: Vec<_> =
            watched.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        match poll(&mut ready, self.timeout().as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let tokens = watched.iter().map(|(token, ..)| *token);
        let pairs = tokens.zip(ready.iter().map(PollFd::revents));
        Ok(pairs.filter(|(_, flags)| !flags.is_empty()).collect())
    }

    /// Until the next deadline; None when there is none.
    fn timeout(&self) -> Option<Timespec> {
        let life = match &self.life {
            Life::Waiting { until_ms } | Life::Over { until_ms } => Some(*until_ms),
            Life::Live(_, task) => task.deadline_ms(),
            Life::Ended(..) => None,
        };
        let sessions = self.connections.values().filter_map(|connection| {
            connection
                .session
                .as_ref()
                .filter(|_| connection.has_room())
                .and_then(exec::Session::deadline_ms)
        });
        let next = sessions.chain(life).min()?;
        let wait = next.saturating_sub(clock::steady_ms()).max(1);
        Some(Timespec { tv_sec: wait / 1_000, tv_nsec: wait % 1_000 * 1_000_000 })
    }

    fn serve(&mut self, token: Token, ready: PollFlags) {
        match token {
            Token::Signals => self.reap(),
            Token::Listener => self.accept(),
            Token::Task(channel) => {
                if let Life::Live(_, task) = &mut self.life {
                    task.serve(channel);
                }
            }
            Token::Session(id, channel) => {
                let Some(connection) = self.connections.get_mut(&id) else { return };
                let Some(session) = &mut connection.session else { return };
                if let Some(frame) = session.serve(channel) {
                    connection.send_stdio(&frame);
                }
            }
            Token::Connection(id) => self.serve_connection(id, ready),
        }
    }

    fn serve_connection(&mut self, id: u64, ready: PollFlags) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let mut is_there = true;
        if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            is_there = if connection.is_ending {
                !ready.intersects(PollFlags::HUP | PollFlags::ERR)
            } else {
                connection.read()
            };
        }
        if !is_there {
            if let Some(mut gone) = self.connections.remove(&id) {
                gone.hang_up();
            }
            return;
        }
        self.handle_frames(id);
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.connections.len() >= CONNECTIONS_MAX {
                tracing::warn!("a connection was refused: there are {CONNECTIONS_MAX} already");
                continue;
            }
            match Connection::new(stream) {
                Ok(connection) => {
                    self.connections_made += 1;
                    self.connections.insert(self.connections_made, connection);
                }
                Err(error) => tracing::warn!(%error, "a connection could not be taken"),
            }
        }
    }

    /// Collects ended children: the container's first process, execs, orphans that were adopted.
    fn reap(&mut self) {
        let mut buffer = [0; 1024];
        while rustix::io::read(&self.signals, &mut buffer[..]).is_ok_and(|length| length > 0) {}
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let status = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => ExitStatus::Code(code),
                (None, Some(signal)) => ExitStatus::Signal(signal),
                (None, None) => continue,
            };
            self.route_exit(pid, status);
        }
    }

    fn route_exit(&mut self, pid: Pid, status: ExitStatus) {
        if let Life::Live(_, task) = &mut self.life
            && task.reap(pid, status)
        {
            return;
        }
        for connection in self.connections.values_mut() {
            if connection.session.as_mut().is_some_and(|session| session.reap(pid, status.code())) {
                return;
            }
        }
    }

    /// What follows from everything that has just happened.
    fn settle(&mut self) {
        for connection in self.connections.values_mut().filter(|connection| !connection.is_ending) {
            let has_room = connection.has_room();
            let session = connection.session.as_mut();
            let frames = session.and_then(|session| session.last_frames(has_room));
            for frame in frames.into_iter().flatten() {
                connection.send_stdio(&frame);
                connection.is_ending = true;
            }
        }
        if let Life::Live(start, task) = &mut self.life
            && task.takes_note_of_running()
        {
            let running = FromShim::Running { task: start.key.clone(), http: None };
            self.tell(&running);
        }
        if let Life::Live(start, task) = &self.life
            && let Some(record) = task.ended(start.limits.memory_bytes)
        {
            if task.dropped_bytes() > 0 {
                tracing::warn!(
                    bytes = task.dropped_bytes(),
                    "output could not be logged and is lost"
                );
            }
            self.end(record);
        }
        self.connections.retain(|_, connection| {
            let is_there = connection.flush();
            let is_kept = is_there && (connection.has_output() || !connection.is_ending);
            if !is_kept {
                connection.hang_up();
            }
            is_kept
        });
    }

    /// Starts the task; how that went is told to everybody.
    pub(crate) fn start(&mut self, start: StartTask) {
        // The answer goes out before the work, which blocks.
        for connection in self.connections.values_mut() {
            connection.flush();
        }
        let StartProgram::Oci(program) = &start.program else { return };
        let record = Record {
            cgroup: cgroup::name(&start.key, &self.dir),
            scratch: program.scratch.clone(),
            init: None,
        };
        let started = record
            .write(&self.dir)
            .map_err(|error| Failure::system("recording the container", error))
            .and_then(|()| RootFs::enter_own_namespace())
            .and_then(|()| Task::start(&self.dir, &start));
        match started {
            Ok(task) => {
                tracing::info!(task = %start.key.0, title = %start.title, "the container was created");
                self.life = Life::Live(Box::new(start), Box::new(task));
            }
            Err(failure) => {
                tracing::warn!(task = %start.key.0, %failure, "the container could not be set up");
                let record = task::failure_record(&failure, Usage::default());
                self.life = Life::Ended(start.key.clone(), Box::new(record.clone()));
                self.finish(&start, record);
                self.clean_up(&start);
            }
        }
    }

    /// The task ended: record it, tell it, clean up.
    fn end(&mut self, record: ExitRecord) {
        let until_ms = clock::steady_ms();
        let Life::Live(start, task) = std::mem::replace(&mut self.life, Life::Over { until_ms })
        else {
            return;
        };
        tracing::info!(task = %start.key.0, code = record.code, "the container ended");
        self.life = Life::Ended(start.key.clone(), Box::new(record.clone()));
        self.finish(&start, record);
        drop(task);
        self.clean_up(&start);
    }

    /// Persist before announce. Where the disk is full, what the container wrote makes room first.
    fn finish(&mut self, start: &StartTask, record: ExitRecord) {
        if let Err(error) = record.write(&start.dir) {
            tracing::warn!(%error, "the exit could not be recorded; cleaning up and trying again");
            self.clean_up(start);
            if let Err(error) = record.write(&start.dir) {
                tracing::error!(%error, "the exit is told without a record on disk");
            }
        }
        self.tell(&FromShim::Exited { task: start.key.clone(), record });
        for connection in self.connections.values_mut() {
            connection.flush();
        }
    }

    fn clean_up(&self, start: &StartTask) {
        let StartProgram::Oci(program) = &start.program else { return };
        if let Err(error) =
            clean_up(&self.dir, &cgroup::name(&start.key, &self.dir), &program.scratch)
        {
            tracing::warn!(%error, "something of the container is left; `cleanup` removes it");
        }
    }

    /// To every connection that is not a session.
    fn tell(&mut self, message: &FromShim) {
        let greeted =
            |connection: &&mut Connection| connection.is_greeted && connection.session.is_none();
        for connection in self.connections.values_mut().filter(greeted) {
            connection.send(message);
        }
    }

    /// The task is forgotten, the shim about to end.
    pub(crate) fn conclude(&mut self) {
        self.life = Life::Over { until_ms: clock::steady_ms().saturating_add(LINGER_MS) };
    }

    /// Ends as soon as the answers are out.
    pub(crate) fn conclude_now(&mut self) {
        self.life = Life::Over { until_ms: clock::steady_ms() };
    }

    /// The task, as the agent knows it.
    pub(crate) fn task_state(&self) -> Option<(&TaskKey, TaskState)> {
        match &self.life {
            Life::Live(start, task) => Some((&start.key, task.state())),
            Life::Ended(key, record) => Some((key, TaskState::Exited((**record).clone()))),
            Life::Waiting { .. } | Life::Over { .. } => None,
        }
    }
}

/// Removes what a container leaves: processes, cgroups, files. Idempotent.
pub(crate) fn clean_up(dir: &Path, cgroup: &str, scratch: &Path) -> std::io::Result<()> {
    let cgroups = Hierarchies::of_this_machine()?.of_container(cgroup);
    cgroups.kill()?;
    cgroups.remove()?;
    tree::clear(scratch)?;
    Directories::of(dir).remove()?;
    tree::remove(&dir.join("etc"))?;
    Record::remove(dir)
}
