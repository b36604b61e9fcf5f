//! The tasks of this shim: what agents ask of them, and what they are told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Bound;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use brig_api::lifecycle::Reason;
use brig_api::stdio::StdioFrame;
use brig_api::unit_spec::Isolation;
use brig_shim::exit::ExitRecord;
use brig_shim::frame::FRAME_BYTES_MAX;
use brig_shim::message::{
    FromShim, PROTOCOL_VERSION, Reply, StartProgram, StartTask, StopSignal, TaskKey, TaskState,
    TaskUsage, TaskView, USAGES_MAX,
};
use tokio::runtime::Handle;
use tokio::sync::{broadcast, watch};

use crate::clock::now_ms;
use crate::engine::GUESTS_MAX;
use crate::input::Attachment;
use crate::outcome::{Outcome, cut};
use crate::task::{self, Control, HandedOver, Machine};

/// Tasks of one shim that have not been removed. The rest of the pool's slots is for requests.
pub(crate) const TASKS_MAX: usize = GUESTS_MAX as usize * 9 / 10;
/// Bytes of JSON for a task in the answer to hello, besides the message of how it ended.
const VIEW_BYTES_MAX: usize = 640;
/// Bytes of such a message that there is room for however many tasks there are.
const MESSAGE_BYTES_MIN: usize = FRAME_BYTES_MAX / TASKS_MAX - VIEW_BYTES_MAX;
const _: () = assert!(MESSAGE_BYTES_MIN >= 256);
/// Events that a slow connection may lag behind; then it is closed, and hears the rest at its next hello.
const EVENTS_KEPT: usize = 4_096;
/// Time to tell an agent of an exit before the process ends.
const LAST_WORDS: Duration = Duration::from_millis(50);
/// How often an exit that could not be written (a full disk) is tried again.
const EXIT_RETRY: Duration = Duration::from_secs(1);

/// All tasks.
pub(crate) struct Tasks {
    machine: Arc<Machine>,
    guests: Handle,
    table: Mutex<BTreeMap<TaskKey, Entry>>,
    events: broadcast::Sender<FromShim>,
    count: watch::Sender<usize>,
}

struct Entry {
    state: TaskState,
    control: Arc<Control>,
}

impl Tasks {
    /// No tasks yet; guests will run on `guests`.
    pub(crate) fn new(machine: Arc<Machine>, guests: Handle) -> Arc<Self> {
        Arc::new(Self {
            machine,
            guests,
            table: Mutex::default(),
            events: broadcast::channel(EVENTS_KEPT).0,
            count: watch::Sender::new(0),
        })
    }

    /// Every task, and what happens from now on: between the two nothing is lost.
    pub(crate) fn hello(&self) -> (Reply, broadcast::Receiver<FromShim>) {
        let table = self.table();
        // All fit one frame. The messages of many tasks that ended while nobody listened are cut; the whole ones are in
        // their records.
        let room = FRAME_BYTES_MAX / table.len().max(1) - VIEW_BYTES_MAX;
        let tasks = table
            .iter()
            .map(|(key, entry)| TaskView { key: key.clone(), state: shortened(&entry.state, room) })
            .collect();
        let reply = Reply::Hello { version: PROTOCOL_VERSION, tasks };
        (reply, self.events.subscribe())
    }

    /// How many tasks there are, and when that changes.
    pub(crate) fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// Accepts a task; the rest is told by events. To be called on the control runtime.
    pub(crate) fn start(self: &Arc<Self>, start: StartTask, given: Vec<OwnedFd>) -> Reply {
        let StartProgram::Wasm(wasm) = start.program.clone() else {
            return refused(None, "this shim runs wasm programs, not containers");
        };
        let mut table = self.table();
        if table.contains_key(&start.key) {
            return Reply::Done;
        }
        if self.machine.isolation == Isolation::Unit && !table.is_empty() {
            return refused(None, "this shim is for one task, and has had it");
        }
        if table.len() >= TASKS_MAX {
            let message = format!("this shim has {TASKS_MAX} tasks, it takes no more on");
            return refused(Some(Reason::CreateFailed), &message);
        }
        let saved = {
            let (key, events) = (start.key.clone(), self.events.clone());
            // Whoever is not connected looks into the task's directory.
            move |number| drop(events.send(FromShim::Checkpoint { task: key.clone(), number }))
        };
        let (is_server, isolation) = (wasm.http.is_some(), self.machine.isolation);
        let control = Arc::new(Control::new(&start, is_server, isolation, Box::new(saved)));
        let entry = Entry { state: TaskState::Starting, control: Arc::clone(&control) };
        table.insert(start.key.clone(), entry);
        self.count.send_replace(table.len());
        drop(table);
        tracing::debug!(task = %start.key.0, namespace = %start.namespace, title = %start.title, "starting");
        let (key, dir, tasks) = (start.key.clone(), start.dir.clone(), Arc::clone(self));
        let running = {
            let (tasks, key) = (Arc::clone(self), key.clone());
            move |http| tasks.running(key, http)
        };
        let given = HandedOver::of(&start, given);
        let deadline_ms = wasm.deadline_ms;
        let guest = self.guests.spawn(task::run(
            Arc::clone(&self.machine),
            Arc::clone(&control),
            start,
            wasm,
            given,
            running,
        ));
        let is_alone = self.machine.isolation == Isolation::Unit;
        tokio::spawn(async move {
            let ended = tokio::select! {
                biased;
                outcome = guest => Some(outcome.unwrap_or_else(|error| {
                    tracing::error!(task = %key.0, error = %error, "running a task panicked");
                    Outcome::host_failed(&error.to_string())
                })),
                outcome = task::overdue(&control, deadline_ms), if is_alone => {
                    tasks.ended(key.clone(), dir.clone(), &control, outcome).await;
                    None
                }
            };
            match ended {
                Some(outcome) => tasks.ended(key, dir, &control, outcome).await,
                // Its thread computes on, and nothing but the end of the process ends that. Its exit is recorded.
                None => {
                    tokio::time::sleep(LAST_WORDS).await;
                    std::process::exit(0)
                }
            }
        });
        Reply::Done
    }

    /// Asks a task to end; one that has ended or is unknown stays as it is.
    pub(crate) fn stop(&self, key: &TaskKey, how: StopSignal) -> Reply {
        if let Some(entry) = self.table().get(key) {
            entry.control.stop.ask(how);
        }
        Reply::Done
    }

    /// The sender of a task's standard input; the answer where there can't be one.
    pub(crate) fn attach(&self, key: &TaskKey) -> Result<Attachment, Reply> {
        let table = self.table();
        let running = table.get(key).filter(|e| !matches!(e.state, TaskState::Exited(_)));
        let Some(entry) = running else {
            return Err(refused(None, "the task does not run: nothing can be sent to it"));
        };
        let Some(input) = &entry.control.input else {
            let message = "the task's standard input is empty: it runs without `stdin: true`";
            return Err(refused(None, message));
        };
        input.attach().map_err(|occupied| refused(None, &occupied.to_string()))
    }

    /// How a task ended, for the one who sends its input; None while it runs.
    pub(crate) fn end_of(&self, key: &TaskKey) -> Option<StdioFrame> {
        match self.table().get(key).map(|entry| &entry.state) {
            Some(TaskState::Exited(record)) => Some(StdioFrame::Exit(record.code)),
            Some(_) => None,
            None => Some(StdioFrame::Failed("the task has ended and was removed".to_owned())),
        }
    }

    /// What tasks use or have used, from after that key on.
    pub(crate) fn usage(&self, after: Option<&TaskKey>) -> Reply {
        let of = |entry: &Entry| match &entry.state {
            TaskState::Exited(record) => TaskUsage { used: record.usage, memory_bytes: 0 },
            _ => entry.control.usage(),
        };
        let table = self.table();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let some = table.range((from, Bound::Unbounded)).take(USAGES_MAX);
        Reply::Usage { tasks: some.map(|(key, entry)| (key.clone(), of(entry))).collect() }
    }

    /// Forgets an ended task.
    pub(crate) fn remove(&self, key: &TaskKey) -> Reply {
        let mut table = self.table();
        match table.get(key) {
            Some(Entry { state: TaskState::Exited(_), .. }) => {
                table.remove(key);
                self.count.send_replace(table.len());
                Reply::Done
            }
            Some(_) => refused(None, &format!("task {} has not ended: stop it first", key.0)),
            None => Reply::Done,
        }
    }

    fn running(&self, key: TaskKey, http: Option<SocketAddr>) {
        let mut table = self.table();
        if let Some(entry) = table.get_mut(&key) {
            entry.state = TaskState::Running { http };
            // Nobody is connected: then nobody is told, and the next hello has it.
            let _ = self.events.send(FromShim::Running { task: key, http });
        }
    }

    async fn ended(&self, key: TaskKey, dir: PathBuf, control: &Control, outcome: Outcome) {
        let Outcome { code, reason, message } = outcome;
        let usage = control.usage().used;
        let record = ExitRecord { code, reason, message, finished_ms: now_ms(), usage };
        tracing::debug!(task = %key.0, code, reason = ?reason, "ended");
        let mut is_written = write(&record, &dir).await;
        {
            let mut table = self.table();
            if let Some(entry) = table.get_mut(&key) {
                entry.state = TaskState::Exited(record.clone());
                let _ = self
                    .events
                    .send(FromShim::Exited { task: key.clone(), record: record.clone() });
            }
        }
        // Told from memory all the same; the record follows when the disk takes it.
        while !is_written && self.table().contains_key(&key) {
            tokio::time::sleep(EXIT_RETRY).await;
            is_written = write(&record, &dir).await;
        }
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<TaskKey, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A state with a message of at most so many bytes of JSON.
fn shortened(state: &TaskState, json_bytes_max: usize) -> TaskState {
    let mut state = state.clone();
    if let TaskState::Exited(ExitRecord { message: Some(message), .. }) = &mut state {
        *message = cut(message, json_bytes_max);
    }
    state
}

async fn write(record: &ExitRecord, dir: &std::path::Path) -> bool {
    let (record, dir) = (record.clone(), dir.to_owned());
    let path = dir.display().to_string();
    let written = tokio::task::spawn_blocking(move || record.write(&dir)).await;
    match written.map_err(std::io::Error::other).flatten() {
        Ok(()) => true,
        Err(error) => {
            tracing::error!(dir = path, error = %error, "an exit could not be recorded");
            false
        }
    }
}

fn refused(reason: Option<Reason>, message: &str) -> Reply {
    Reply::Refused { reason, message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use brig_api::usage::Usage;
    use brig_shim::frame::encode_message;

    use super::*;

    #[test]
    fn the_answer_to_hello_fits_a_frame_whatever_the_tasks_ended_with() {
        for text in ["x", "\"", "\\\n", "\u{1}", "\u{10ffff}"] {
            let Outcome { code, reason, message } = Outcome::host_failed(&text.repeat(8 << 10));
            let most = u64::MAX;
            let usage = Usage {
                cpu_ns: most,
                memory_byte_s: most,
                memory_peak_bytes: most,
                throttled_ns: most,
            };
            let record = ExitRecord { code, reason, message, finished_ms: i64::MIN, usage };
            let tasks = (0..TASKS_MAX)
                .map(|_| TaskView {
                    key: TaskKey("k".repeat(255)),
                    state: shortened(&TaskState::Exited(record.clone()), MESSAGE_BYTES_MIN),
                })
                .collect();
            let reply = Reply::Hello { version: PROTOCOL_VERSION, tasks };
            encode_message(&FromShim::Reply { id: most, reply }, &mut Vec::new()).unwrap();
        }
    }
}
