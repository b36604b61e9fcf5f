//! What the agent does next about a unit: a pure function of what is wanted, what is recorded and what is seen.
//!
//! [`decide`] answers with the record as it is to be from now on, and with what to do. The agent writes the record
//! first and asks again afterwards, until there is nothing to record: so each step is on disk before the
//! next begins, and an agent that is killed anywhere finds its way from the record and the shims' answers.
//!
//! ```text
//!             prepared             every task over, to be started again
//!  Preparing ─────────▶ Started ───────────────┐
//!     │  ▲ ▲               │                   ▼
//!     │  │ └───────────────┼──────── Backoff (until) ──┐
//!     │  └─ can't yet ─────┘                   ▲       │ stop
//!     └── fault, to be tried again ────────────┘       ▼
//!     └── fault or stop ───┴── every task over ──▶ Ended
//! ```

mod outcome;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::Endpoint;
use brig_api::placement::{Grants, TaskGrants};
use brig_api::unit_spec::{Program, Task, UnitTemplate};
use brig_api::usage::Usage;
use brig_api::{ResourceName, UnitId};
use brig_shim::exit::ExitRecord;
use brig_shim::message::TaskKey;

use crate::record::{Ending, Phase, UnitRecord};

pub use outcome::{BACKOFF_MS_FIRST, BACKOFF_MS_MAX, CRASH_LOOP_FAILURES, STEADY_MS, backoff_ms};

/// The exit code of a task that could not be set up, as container engines have it.
pub const SETUP_EXIT_CODE: i32 = 125;
/// The exit code of a task whose shim died: it was killed for that.
const LOST_EXIT_CODE: i32 = 137;

/// A task that was killed and is still there after this time is killed again, in milliseconds: the shim may not have
/// heard it.
pub const KILL_AGAIN_MS: i64 = 10_000;

/// What is wanted of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// That it runs.
    Run,
    /// That it ends and stays known.
    Stop,
    /// That it ends now and runs again when the agent is back.
    Pause,
    /// That it ends and nothing of it is left.
    Forget,
}

/// A task of the current attempt, as the shims and the disk show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskSeen {
    /// No shim was asked to start it.
    NotStarted,
    /// A shim has it or is being asked.
    Starting,
    /// Its program runs.
    Running {
        /// Where its http server listens, if it has one.
        http: Option<SocketAddr>,
    },
    /// It ended.
    Exited(ExitRecord),
    /// Its shim died and there is no record of how it ended.
    Lost,
}

/// How far the preparation of the current attempt is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preparation {
    /// Not begun.
    None,
    /// Going on.
    Underway,
    /// Everything is there.
    Ready,
    /// It can't be done now.
    Failed(Fault),
}

/// Why a unit could not be prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// For programs.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

/// What was done to end a task; in memory only, since ending a task twice does no harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopSent {
    /// When it was asked to end, Unix milliseconds.
    pub since_ms: i64,
    /// When it was killed last, Unix milliseconds.
    pub killed_ms: Option<i64>,
}

/// Everything that a decision rests on.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// What is wanted.
    pub wanted: Wanted,
    /// What it runs.
    pub template: &'a UnitTemplate,
    /// What its placement gave it.
    pub grants: &'a Grants,
    /// What is on disk.
    pub record: &'a UnitRecord,
    /// The tasks of the current attempt; those not named were not started.
    pub tasks: &'a BTreeMap<ResourceName, TaskSeen>,
    /// Of the current attempt.
    pub preparation: &'a Preparation,
    /// The secrets that it names are known.
    pub has_secrets: bool,
    /// Tasks of the current attempt that were asked to end.
    pub stops: &'a BTreeMap<ResourceName, StopSent>,
    /// Where the unit's servers are reached.
    pub address: IpAddr,
    /// The boot of the machine.
    pub boot_id: &'a str,
}

/// What to do; in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write this, and do nothing more of the list when that fails. Always first.
    Record(Box<UnitRecord>),
    /// Fetch and resolve everything for the current attempt.
    Prepare,
    /// Give a task to its shim.
    Start(ResourceName),
    /// Ask a task to end.
    Terminate(ResourceName),
    /// End a task.
    Kill(ResourceName),
    /// The exit is recorded: let the shim forget the task, remove its directories.
    Collect(ResourceName),
    /// Remove everything of the unit.
    Forget,
    /// Decide again then, Unix milliseconds.
    WakeAt(i64),
}

/// Decides. Called again after [`Action::Record`] was done.
#[must_use]
pub fn decide(view: &View<'_>, now_ms: i64) -> Vec<Action> {
    let mut next = view.record.clone();
    let mut actions = Vec::new();
    match next.phase {
        Phase::Preparing => preparing(view, now_ms, &mut next, &mut actions),
        Phase::Started => started(view, now_ms, &mut next, &mut actions),
        Phase::Backoff { until_ms } => {
            waiting(view, now_ms, until_ms, &mut next, &mut actions);
        }
        Phase::Ended if view.wanted == Wanted::Forget => actions.push(Action::Forget),
        Phase::Ended => {}
    }
    if next != *view.record {
        actions.insert(0, Action::Record(Box::new(next)));
    }
    actions
}

/// What to do about a task in a shim that belongs to no current attempt.
#[must_use]
pub fn decide_stray(seen: &TaskSeen) -> Stray {
    match seen {
        TaskSeen::Starting | TaskSeen::Running { .. } => Stray::Kill,
        TaskSeen::NotStarted | TaskSeen::Exited(_) | TaskSeen::Lost => Stray::Collect,
    }
}

/// See [`decide_stray`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stray {
    /// End it; its exit is heard of later.
    Kill,
    /// Let the shim forget it, remove its directories.
    Collect,
}

/// Takes a key apart again: unit, task, run.
#[must_use]
pub fn parse_key(key: &TaskKey) -> Option<(UnitId, ResourceName, u32)> {
    let mut parts = key.0.split('.');
    let unit = UnitId::new(parts.next()?).ok()?;
    let task = ResourceName::new(parts.next()?).ok()?;
    let run = parts.next()?.parse().ok()?;
    let parsed = (unit, task, run);
    (TaskKey::new(&parsed.0, &parsed.1, run) == *key).then_some(parsed)
}

fn preparing(view: &View<'_>, now_ms: i64, next: &mut UnitRecord, actions: &mut Vec<Action>) {
    match view.wanted {
        Wanted::Stop | Wanted::Forget => outcome::stopped(next, now_ms, None),
        Wanted::Pause => {}
        Wanted::Run => match view.preparation {
            Preparation::None if view.has_secrets => {
                next.report(UnitState::Preparing, None, None);
                actions.push(Action::Prepare);
            }
            Preparation::None => {
                let why = "waits for its secrets: they are kept in memory only, and no control plane has answered since the agent was started";
                next.report(UnitState::Preparing, None, Some(why.to_owned()));
            }
            Preparation::Underway => {}
            Preparation::Ready => {
                next.phase = Phase::Started;
                view.boot_id.clone_into(&mut next.boot_id);
            }
            Preparation::Failed(fault) => {
                outcome::prepare_failed(next, view.template.restart, fault, now_ms);
            }
        },
    }
}

fn waiting(
    view: &View<'_>,
    now_ms: i64,
    until_ms: i64,
    next: &mut UnitRecord,
    actions: &mut Vec<Action>,
) {
    match view.wanted {
        Wanted::Stop | Wanted::Forget => {
            let code = next.status.exit_code;
            outcome::stopped(next, now_ms, code);
        }
        Wanted::Pause => {}
        Wanted::Run => {
            // A clock that was set back must not make the wait longer than it can be.
            let longest = i64::try_from(BACKOFF_MS_MAX).unwrap_or(i64::MAX);
            if until_ms > now_ms && until_ms.saturating_sub(now_ms) <= longest {
                actions.push(Action::WakeAt(until_ms));
                return;
            }
            next.phase = Phase::Preparing;
            next.run = next.run.saturating_add(1);
            next.used = next.used.followed_by(next.used_by_exits());
            next.exits.clear();
            next.ending = None;
            next.running_since_ms = None;
            next.report_with(|status| {
                status.state = UnitState::Preparing;
                status.restarts = status.restarts.saturating_add(1);
            });
        }
    }
}

fn started(view: &View<'_>, now_ms: i64, next: &mut UnitRecord, actions: &mut Vec<Action>) {
    take_exits(view, now_ms, next, actions);
    if next.ending.is_none() {
        next.ending = outcome::decider(view.template, next).map(|task| Ending::ByItself { task });
    }
    match (view.wanted, &next.ending) {
        (Wanted::Stop | Wanted::Forget, None | Some(Ending::Paused)) => {
            next.ending = Some(Ending::Requested);
        }
        (Wanted::Pause, None) => next.ending = Some(Ending::Paused),
        _ => {}
    }
    match next.ending {
        None => return keep_running(view, now_ms, next, actions),
        Some(Ending::Requested) => {
            next.report(UnitState::Stopping, Some(Reason::Requested), None);
        }
        Some(Ending::Paused | Ending::ByItself { .. }) => {}
    }
    let live: Vec<_> = live_tasks(view, next).collect();
    if live.is_empty() {
        outcome::conclude(next, view, now_ms);
    }
    for task in live {
        end_task(view, now_ms, &task.name, actions);
    }
}

/// Records exits that are not recorded yet. The shim may forget them after that.
fn take_exits(view: &View<'_>, now_ms: i64, next: &mut UnitRecord, actions: &mut Vec<Action>) {
    for task in &view.template.tasks {
        let record = match view.tasks.get(&task.name) {
            Some(TaskSeen::Exited(record)) => record.clone(),
            Some(TaskSeen::Lost) => lost(now_ms),
            _ => continue,
        };
        if !next.exits.contains_key(&task.name) {
            next.exits.insert(task.name.clone(), record);
            actions.push(Action::Collect(task.name.clone()));
        }
    }
}

fn lost(now_ms: i64) -> ExitRecord {
    ExitRecord {
        code: LOST_EXIT_CODE,
        reason: Some(Reason::ShimLost),
        message: Some("the shim that ran it died, and how it ended is not known".to_owned()),
        finished_ms: now_ms,
        usage: Usage::default(),
    }
}

/// A task that could not be set up, as an exit.
#[must_use]
pub fn setup_failed(fault: &Fault, now_ms: i64) -> ExitRecord {
    ExitRecord {
        code: SETUP_EXIT_CODE,
        reason: Some(fault.reason),
        message: Some(fault.message.clone()),
        finished_ms: now_ms,
        usage: Usage::default(),
    }
}

pub(crate) fn has_failed(record: &ExitRecord) -> bool {
    record.code != 0 || record.reason.is_some()
}

fn live_tasks<'a>(view: &View<'a>, next: &UnitRecord) -> impl Iterator<Item = &'a Task> {
    view.template.tasks.iter().filter(|task| {
        let seen = view.tasks.get(&task.name);
        !next.exits.contains_key(&task.name)
            && matches!(seen, Some(TaskSeen::Starting | TaskSeen::Running { .. }))
    })
}

fn end_task(view: &View<'_>, now_ms: i64, task: &ResourceName, actions: &mut Vec<Action>) {
    let grace_ms = i64::try_from(view.template.grace_ms).unwrap_or(i64::MAX);
    match view.stops.get(task) {
        None => {
            actions.push(Action::Terminate(task.clone()));
            actions.push(Action::WakeAt(now_ms.saturating_add(grace_ms)));
        }
        Some(stop) => {
            let (since_ms, wait_ms) = match stop.killed_ms {
                None => (stop.since_ms, grace_ms),
                Some(killed_ms) => (killed_ms, KILL_AGAIN_MS),
            };
            let kill_ms = since_ms.saturating_add(wait_ms);
            // Set back, the clock would give a task more time than its grace.
            if now_ms >= kill_ms || now_ms < since_ms {
                actions.push(Action::Kill(task.clone()));
                actions.push(Action::WakeAt(now_ms.saturating_add(KILL_AGAIN_MS)));
            } else {
                actions.push(Action::WakeAt(kill_ms));
            }
        }
    }
}

/// Starts what is not started, and reports what runs.
fn keep_running(view: &View<'_>, now_ms: i64, next: &mut UnitRecord, actions: &mut Vec<Action>) {
    let mut is_starting = false;
    let mut endpoints = Vec::new();
    let grants = view.grants.by_task(view.template);
    for (task, grants) in view.template.tasks.iter().zip(&grants) {
        match view.tasks.get(&task.name) {
            None | Some(TaskSeen::NotStarted) => {
                is_starting = true;
                start(view, now_ms, task, next, actions);
            }
            Some(TaskSeen::Starting) => is_starting = true,
            Some(TaskSeen::Running { http }) => {
                if let Some(http) = http {
                    next.ports.insert(task.name.clone(), http.port());
                }
                endpoints.extend(endpoints_of(task, grants, *http, view.address));
            }
            Some(TaskSeen::Exited(_) | TaskSeen::Lost) => {}
        }
    }
    if is_starting {
        return;
    }
    next.running_since_ms.get_or_insert(now_ms);
    next.report_with(|status| {
        status.state = UnitState::Running;
        status.reason = None;
        status.message = None;
        status.exit_code = None;
        status.started_ms.get_or_insert(now_ms);
        status.endpoints = endpoints;
    });
}

fn start(
    view: &View<'_>,
    now_ms: i64,
    task: &Task,
    next: &mut UnitRecord,
    actions: &mut Vec<Action>,
) {
    match view.preparation {
        Preparation::None if view.has_secrets && !actions.contains(&Action::Prepare) => {
            actions.push(Action::Prepare);
        }
        Preparation::None | Preparation::Underway => {}
        Preparation::Ready => actions.push(Action::Start(task.name.clone())),
        Preparation::Failed(fault) => {
            next.exits.insert(task.name.clone(), setup_failed(fault, now_ms));
        }
    }
}

fn endpoints_of(
    task: &Task,
    grants: &TaskGrants,
    http: Option<SocketAddr>,
    address: IpAddr,
) -> Vec<Endpoint> {
    let endpoint = |port: u16, scheme: &str| Endpoint {
        task: task.name.clone(),
        address: SocketAddr::new(address, port).to_string(),
        scheme: scheme.to_owned(),
    };
    match task.program() {
        Program::Wasm(wasm) if wasm.http.is_some() => {
            http.map(|http| endpoint(http.port(), "http")).into_iter().collect()
        }
        Program::Wasm(_) | Program::Oci(_) => {
            grants.ports.iter().flatten().map(|port| endpoint(*port, "tcp")).collect()
        }
    }
}
