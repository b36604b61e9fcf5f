//! One task from its start to its end.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use brig_api::lifecycle::Reason;
use brig_api::unit_spec::Isolation;
use brig_api::usage::Usage;
use brig_shim::message::{StartTask, StartWasm, TaskUsage};
use wasmtime::{ResourceLimiter, Store, UpdateDeadline};

use crate::checkpoint::{OnSaved, TaskCheckpoint};
use crate::host::{ComponentHost, CoreHost, Grants};
use crate::http_server;
use crate::input::Input;
use crate::keyvalue::Stores;
use crate::memory::MemoryAccount;
use crate::meter::{Meter, Slice};
use crate::outcome::{Outcome, Refusal, refusal, trap_report};
use crate::output::TaskLog;
use crate::program::{Program, Programs, Ready};
use crate::rig::Rig;
use crate::stop::Stop;
use crate::turns::Turns;

/// Most bytes that a component may pass to its host in one call.
const CALL_BYTES_MAX: usize = 16 << 20;

/// Time that a task has to come to its end when nothing interrupts it. Those that wait for something need none.
const OVERDUE: Duration = Duration::from_millis(20);

/// What all tasks of a shim share.
pub(crate) struct Machine {
    pub(crate) programs: Programs,
    pub(crate) stores: Stores,
    pub(crate) turns: Arc<Turns>,
    /// With `Unit`, there is one task, nothing interrupts it, and the process ends with it.
    pub(crate) isolation: Isolation,
}

/// What can be seen and asked of a task from outside while it runs.
pub(crate) struct Control {
    pub(crate) stop: Arc<Stop>,
    /// None of a task whose standard input is empty.
    pub(crate) input: Option<Arc<Input>>,
    meter: Arc<Meter>,
    memory: Arc<MemoryAccount>,
    isolation: Isolation,
    checkpoint: Arc<TaskCheckpoint>,
}

impl Control {
    /// `on_saved` is called whenever the task has saved where it is.
    pub(crate) fn new(
        start: &StartTask,
        is_server: bool,
        isolation: Isolation,
        on_saved: OnSaved,
    ) -> Self {
        // Its cgroup holds a task of its own to its limit.
        let cpu_limit_milli = match isolation {
            Isolation::Namespace => start.limits.cpu_limit_milli,
            Isolation::Unit => 0,
        };
        Self {
            checkpoint: Arc::new(TaskCheckpoint::new(&start.dir, is_server, on_saved)),
            stop: Arc::new(Stop::new(is_server)),
            isolation,
            input: start.stdin.then(Arc::default),
            meter: Meter::new(cpu_limit_milli, start.limits.cpu_request_milli),
            memory: MemoryAccount::new(start.limits.memory_bytes),
        }
    }

    pub(crate) fn usage(&self) -> TaskUsage {
        let used = Usage {
            cpu_ns: match self.isolation {
                Isolation::Namespace => self.meter.used_ns(),
                // What runs without a pause is not metered before it ends.
                Isolation::Unit => process_cpu_ns(),
            },
            memory_byte_s: self.memory.byte_s(),
            memory_peak_bytes: self.memory.peak(),
            throttled_ns: self.meter.throttled_ns(),
        };
        TaskUsage { used, memory_bytes: self.memory.now() }
    }
}

/// The processor time of this process, in nanoseconds.
fn process_cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let ns = i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
    u64::try_from(ns).unwrap_or(0)
}

/// A task that has been set up.
pub(crate) struct Task {
    /// That of its program.
    rig: Rig,
    turns: Arc<Turns>,
    pub(crate) control: Arc<Control>,
    pub(crate) grants: Grants,
    pub(crate) log: Arc<TaskLog>,
    pub(crate) deadline_ms: Option<u64>,
}

/// The guest was cut off because its task was asked to end.
#[derive(Debug, thiserror::Error)]
#[error("the task was asked to end")]
struct CutOff;

impl Task {
    /// A store for a new guest, with the task's limits on it.
    fn store<T: 'static>(
        &self,
        host: T,
        slice: &Arc<Slice>,
        limiter: fn(&mut T) -> &mut dyn ResourceLimiter,
    ) -> Store<T> {
        let mut store = Store::new(&self.rig.engine, host);
        store.limiter(limiter);
        if self.control.isolation == Isolation::Unit {
            return store;
        }
        let (slice, stop) = (Arc::clone(slice), Arc::clone(&self.control.stop));
        store.epoch_deadline_callback(move |_| -> wasmtime::Result<UpdateDeadline> {
            if stop.is_cut() {
                return Err(wasmtime::Error::new(CutOff));
            }
            Ok(slice.on_tick())
        });
        store.set_epoch_deadline(1);
        store
    }

    /// A store for a core guest.
    fn core_store(&self, slice: &Arc<Slice>) -> Result<Store<CoreHost>, Refusal> {
        let host = self.grants.core_host(&self.control.memory)?;
        Ok(self.store(host, slice, |host| &mut host.limiter))
    }

    /// A store for a component guest.
    pub(crate) fn component_store(
        &self,
        slice: &Arc<Slice>,
    ) -> Result<Store<ComponentHost>, Refusal> {
        let host = self.grants.component_host(&self.control.memory)?;
        let mut store = self.store(host, slice, |host| &mut host.limiter);
        store.set_hostcall_fuel(CALL_BYTES_MAX);
        Ok(store)
    }

    /// Runs a guest within the task's processor limit until it ends, is cut off, or its deadline passes.
    pub(crate) async fn run_guest(
        &self,
        slice: &Arc<Slice>,
        guest: impl Future<Output = Outcome>,
    ) -> Outcome {
        let stop = &self.control.stop;
        let guest = slice.metered(&self.rig.ticker, &self.turns, guest);
        tokio::select! {
            biased;
            // First, for most requests end in their first poll: they never wait for the others. A guest that runs on
            // sees by itself that it is cut off.
            outcome = guest => outcome,
            () = stop.cut() => Outcome::stopped(stop.code()),
            outcome = self.deadline() => outcome,
        }
    }

    async fn deadline(&self) -> Outcome {
        match self.deadline_ms {
            Some(deadline_ms) => {
                tokio::time::sleep(Duration::from_millis(deadline_ms)).await;
                Outcome::deadline(deadline_ms)
            }
            None => std::future::pending().await,
        }
    }

    /// What a call into a guest failed with.
    pub(crate) fn outcome_of(&self, error: &wasmtime::Error) -> Outcome {
        if error.is::<CutOff>() {
            return Outcome::stopped(self.control.stop.code());
        }
        self.log_trap(error);
        Outcome::of_error(error)
    }

    /// What instantiating a guest failed with.
    pub(crate) fn outcome_of_instantiation(&self, error: &wasmtime::Error) -> Outcome {
        if error.is::<CutOff>() {
            return Outcome::stopped(self.control.stop.code());
        }
        self.log_trap(error);
        Outcome::of_instantiation_error(error)
    }

    /// Where a guest trapped, in full: its status has the first frames only.
    fn log_trap(&self, error: &wasmtime::Error) {
        if let Some(report) = trap_report(error) {
            self.log.note(&report);
        }
    }

    /// A new meter slice for a guest.
    pub(crate) fn slice(&self) -> Arc<Slice> {
        Slice::new(&self.control.meter)
    }

    /// The task's memory.
    pub(crate) fn memory(&self) -> &MemoryAccount {
        &self.control.memory
    }
}

/// What came with a task's start: the directories of its mounts, and the socket that it serves http on.
pub(crate) struct HandedOver {
    directories: Vec<OwnedFd>,
    http: Option<OwnedFd>,
}

impl HandedOver {
    pub(crate) fn of(start: &StartTask, mut descriptors: Vec<OwnedFd>) -> Self {
        let rest = descriptors.split_off(start.mounts.len().min(descriptors.len()));
        Self { directories: descriptors, http: rest.into_iter().next() }
    }
}

/// Sets a task up and runs it to its end. `on_running` is called once, when the program begins or the server
/// accepts.
pub(crate) async fn run(
    machine: Arc<Machine>,
    control: Arc<Control>,
    start: StartTask,
    wasm: StartWasm,
    given: HandedOver,
    on_running: impl FnOnce(Option<SocketAddr>) + Send,
) -> Outcome {
    let stop = Arc::clone(&control.stop);
    let set_up = set_up(&machine, control, &start, &wasm, given.directories);
    let (task, ready) = tokio::select! {
        biased;
        () = stop.asked() => return Outcome::stopped(stop.code()),
        result = set_up => match result {
            Ok(task) => task,
            Err(refusal) => return refusal.into(),
        },
    };
    let log = Arc::clone(&task.log);
    let mut outcome = match &ready.program {
        Program::Core(pre) => {
            on_running(None);
            run_core(&task, pre).await
        }
        Program::Command(pre) => {
            on_running(None);
            run_command(&task, pre).await
        }
        Program::AsyncCommand(pre) => {
            on_running(None);
            run_async_command(&task, pre).await
        }
        Program::Http(pre) => match given.http {
            Some(socket) => {
                http_server::run(Arc::new(task), pre, socket, wasm.http_limits, on_running).await
            }
            None => refusal(Reason::CreateFailed, "no socket to serve http on").into(),
        },
    };
    if log.dropped_bytes() > 0 && outcome.message.is_none() {
        outcome.message = Some(format!(
            "{} bytes of its output could not be written: is the disk full?",
            log.dropped_bytes()
        ));
    }
    outcome
}

/// Waits until a task that nothing interrupts must end all the same, and has had its time to.
pub(crate) async fn overdue(control: &Control, deadline_ms: Option<u64>) -> Outcome {
    let deadline = async {
        match deadline_ms {
            Some(deadline_ms) => {
                tokio::time::sleep(Duration::from_millis(deadline_ms)).await;
                Outcome::deadline(deadline_ms)
            }
            None => std::future::pending().await,
        }
    };
    let outcome = tokio::select! {
        () = control.stop.cut() => Outcome::stopped(control.stop.code()),
        outcome = deadline => outcome,
    };
    tokio::time::sleep(OVERDUE).await;
    outcome
}

async fn set_up(
    machine: &Machine,
    control: Arc<Control>,
    start: &StartTask,
    wasm: &StartWasm,
    directories: Vec<OwnedFd>,
) -> Result<(Task, Arc<Ready>), Refusal> {
    let log = TaskLog::new(start.log.clone());
    let ready = machine.programs.get(wasm).await?;
    ready.check(wasm, start.limits.memory_bytes)?;
    let (input, checkpoint) = (control.input.as_ref(), &control.checkpoint);
    let grants = Grants::new(start, wasm, directories, &log, input, &machine.stores, checkpoint);
    let (rig, turns) = (ready.rig.clone(), Arc::clone(&machine.turns));
    Ok((Task { rig, turns, control, grants, log, deadline_ms: wasm.deadline_ms }, ready))
}

async fn run_core(task: &Task, pre: &wasmtime::InstancePre<CoreHost>) -> Outcome {
    let slice = task.slice();
    let mut store = match task.core_store(&slice) {
        Ok(store) => store,
        Err(refusal) => return refusal.into(),
    };
    let guest = async {
        let instance = match pre.instantiate_async(&mut store).await {
            Ok(instance) => instance,
            Err(error) => return task.outcome_of_instantiation(&error),
        };
        let called = match instance.get_typed_func::<(), ()>(&mut store, "_start") {
            Ok(start) => start.call_async(&mut store, ()).await,
            Err(error) => {
                let message = format!("`_start` is no function without parameters: {error:#}");
                return refusal(Reason::InvalidArtifact, message).into();
            }
        };
        called.map_or_else(|error| task.outcome_of(&error), |()| Outcome::exited(0))
    };
    task.run_guest(&slice, guest).await
}

async fn run_command(
    task: &Task,
    pre: &wasmtime_wasi::p2::bindings::CommandPre<ComponentHost>,
) -> Outcome {
    let slice = task.slice();
    let mut store = match task.component_store(&slice) {
        Ok(store) => store,
        Err(refusal) => return refusal.into(),
    };
    let guest = async {
        let command = match pre.instantiate_async(&mut store).await {
            Ok(command) => command,
            Err(error) => return task.outcome_of_instantiation(&error),
        };
        match command.wasi_cli_run().call_run(&mut store).await {
            Ok(Ok(())) => Outcome::exited(0),
            Ok(Err(())) => Outcome::exited(1),
            Err(error) => task.outcome_of(&error),
        }
    };
    task.run_guest(&slice, guest).await
}

async fn run_async_command(
    task: &Task,
    pre: &wasmtime_wasi::p3::bindings::CommandPre<ComponentHost>,
) -> Outcome {
    let slice = task.slice();
    let mut store = match task.component_store(&slice) {
        Ok(store) => store,
        Err(refusal) => return refusal.into(),
    };
    let guest = async {
        let command = match pre.instantiate_async(&mut store).await {
            Ok(command) => command,
            Err(error) => return task.outcome_of_instantiation(&error),
        };
        let called =
            store.run_concurrent(async |store| command.wasi_cli_run().call_run(store).await).await;
        match called.flatten() {
            Ok(Ok(())) => Outcome::exited(0),
            Ok(Err(())) => Outcome::exited(1),
            Err(error) => task.outcome_of(&error),
        }
    };
    task.run_guest(&slice, guest).await
}
