//! The agent's loop: hears, decides (see [`crate::plan`]), executes. One task owns all state; whatever waits
//! (fetching, shims, the network) runs beside it and reports back as an [`Event`].

mod assign;
mod checkpoint;
mod execute;
mod recover;
mod report;
mod stream;
#[cfg(test)]
mod tests;
mod usage;
mod weight;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use brig_api::session::{Assignment, FromNode};
use brig_api::{ResourceName, UnitId};
use brig_shim::message::{FromShim, Request, StartTask, StopSignal, TaskKey, TaskState, TaskView};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::clock::now_ms;
use crate::disk::Disk;
use crate::event::{Event, StartOutcome};
use crate::plan::{self, Preparation, StopSent, Stray, TaskSeen, View, Wanted};
use crate::prepare::{Preparer, names_secrets};
use crate::record::{Phase, UnitRecord};
use crate::shims::{ShimEvent, ShimId, Shims};
use checkpoint::Checkpoints;
use usage::{METER_EVERY, Metered};
use weight::{WEIGH_EVERY, Weights};

/// Statuses that were not acknowledged are sent again after this time.
const RESEND: Duration = Duration::from_secs(10);
/// A unit that is set up within this time is never reported as `preparing`: to commit what is over in a moment would
/// make the disk and the database busy just when the unit starts.
const PREPARING_UNTOLD: Duration = Duration::from_millis(50);
/// Longest wait for units to end at shutdown, beyond the longest grace of any of them.
const SHUTDOWN_SLACK_MS: i64 = 10_000;
/// Longest wait for shims to take the word that they may end; one that does not hear it ends by itself when idle.
const SHIMS_END_WAIT: Duration = Duration::from_secs(30);
/// Records that one decision may lead to in a row; it is a fault of the plan if there are more.
const STEPS_MAX: usize = 16;

/// What a unit is to the agent: its record, and what it sees of its current attempt.
#[derive(Debug)]
pub(crate) struct Unit {
    assignment: Assignment,
    is_assignment_written: bool,
    /// Not this node's any more.
    is_withdrawn: bool,
    record: UnitRecord,
    tasks: BTreeMap<ResourceName, TaskSeen>,
    /// Tasks whose shim was asked to start them and has not answered.
    in_flight: BTreeSet<ResourceName>,
    stops: BTreeMap<ResourceName, StopSent>,
    preparation: Preparation,
    prepared: BTreeMap<ResourceName, StartTask>,
    has_secrets: bool,
    /// The newest report that a server has committed.
    acknowledged: u64,
    /// Reports are numbered above this: an agent before this one may have told what it could not write.
    sequence_floor: u64,
    metered: Metered,
    /// True once no more output comes.
    is_over: watch::Sender<bool>,
}

/// The agent.
pub(crate) struct Agent {
    disk: Arc<Disk>,
    preparer: Preparer,
    shims: Shims,
    units: BTreeMap<UnitId, Unit>,
    /// Units whose files were damaged: they get higher report numbers when they are assigned again.
    damaged: BTreeSet<UnitId>,
    /// Runs of tasks that shims have and nobody wants.
    strays: BTreeSet<TaskKey>,
    /// Runs that are being removed.
    collecting: usize,
    wakes: BTreeSet<(i64, UnitId)>,
    /// What wasm tasks saved, on its way to the control plane and from there.
    checkpoints: Checkpoints,
    weights: Weights,
    /// Units that began to be prepared and were not reported yet, and since when there is any.
    untold: BTreeSet<UnitId>,
    untold_since: Option<Instant>,
    session: Option<mpsc::Sender<FromNode>>,
    events: mpsc::Sender<Event>,
    token: Option<String>,
    address: IpAddr,
    boot_id: String,
    is_pausing: bool,
}

/// What an agent is made of.
pub(crate) struct Parts {
    pub disk: Arc<Disk>,
    pub preparer: Preparer,
    pub shims: Shims,
    pub events: mpsc::Sender<Event>,
    pub token: Option<String>,
    pub address: IpAddr,
    pub boot_id: String,
}

impl Agent {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            disk: parts.disk,
            preparer: parts.preparer,
            shims: parts.shims,
            units: BTreeMap::new(),
            damaged: BTreeSet::new(),
            strays: BTreeSet::new(),
            collecting: 0,
            wakes: BTreeSet::new(),
            checkpoints: Checkpoints::default(),
            weights: Weights::default(),
            untold: BTreeSet::new(),
            untold_since: None,
            session: None,
            events: parts.events,
            token: parts.token,
            address: parts.address,
            boot_id: parts.boot_id,
            is_pausing: false,
        }
    }

    /// Works until `shutdown`; then, with `stops_units`, until the units have ended.
    pub(crate) async fn run(
        &mut self,
        mut heard: mpsc::Receiver<Event>,
        shutdown: CancellationToken,
        stops_units: bool,
    ) {
        let mut resend = tokio::time::interval_at(Instant::now() + RESEND, RESEND);
        resend.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut meter = tokio::time::interval_at(Instant::now() + METER_EVERY, METER_EVERY);
        meter.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut weigh = tokio::time::interval(WEIGH_EVERY);
        weigh.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut give_up_ms = i64::MAX;
        self.decide_all();
        loop {
            let is_done = !self.has_live_tasks() && self.collecting == 0;
            if self.is_pausing && (is_done || now_ms() >= give_up_ms) {
                break;
            }
            let wake = self.next_wake(give_up_ms);
            let tell_at = self.untold_since.map(|since| since + PREPARING_UNTOLD);
            tokio::select! {
                event = heard.recv() => match event {
                    Some(event) => self.hear(event),
                    None => break,
                },
                () = tokio::time::sleep(wake) => self.wake(),
                () = until(tell_at) => self.tell_preparing(),
                _ = resend.tick() => {
                    self.send_unacknowledged();
                    self.send_checkpoints();
                }
                _ = meter.tick() => self.meter(),
                _ = weigh.tick(), if self.weights.is_due => self.weigh(),
                () = shutdown.cancelled(), if !self.is_pausing => {
                    if !stops_units {
                        break;
                    }
                    self.is_pausing = true;
                    give_up_ms = now_ms().saturating_add(self.longest_grace_ms());
                    self.decide_all();
                }
            }
        }
        if self.is_pausing {
            // What is said meanwhile is heard and dropped: who says it waits for room, and an answer waits behind it.
            let drain = async { while heard.recv().await.is_some() {} };
            tokio::select! {
                () = self.end_shims() => {}
                () = drain => {}
                () = tokio::time::sleep(SHIMS_END_WAIT) => {}
            }
        }
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::SessionUp(session) => {
                self.session = Some(session);
                self.send_unacknowledged();
                self.send_checkpoints_again();
            }
            Event::SessionDown => self.session = None,
            Event::Session(message, server) => self.hear_server(*message, &server),
            Event::Shim(shim, event) => self.hear_shim(&shim, event),
            Event::Prepared { unit, run, outcome } => self.hear_prepared(&unit, run, outcome),
            Event::StartAnswered { key, shim, outcome } => {
                self.hear_start_answer(&key, &shim, outcome);
            }
            Event::Used(shim, usages) => self.hear_used(&shim, usages),
            Event::Collected(key) => {
                self.collecting = self.collecting.saturating_sub(1);
                self.strays.remove(&key);
            }
            Event::CheckpointTurn => self.checkpoint_turn(),
            Event::Recovered => self.sweep(),
        }
    }

    fn hear_shim(&mut self, shim: &ShimId, event: ShimEvent) {
        match event {
            ShimEvent::Connected(mut tasks) => {
                tasks.retain(|view| self.is_of(shim, &view.key));
                self.hear_connected(shim, tasks);
            }
            ShimEvent::Heard(
                FromShim::Running { task, .. }
                | FromShim::Exited { task, .. }
                | FromShim::Checkpoint { task, .. },
            ) if !self.is_of(shim, &task) => {}
            ShimEvent::Heard(FromShim::Running { task, http }) => {
                self.see(shim, &task, TaskSeen::Running { http });
            }
            ShimEvent::Heard(FromShim::Exited { task, record }) => {
                self.look_for_last_checkpoint(&task);
                self.see(shim, &task, TaskSeen::Exited(record));
            }
            ShimEvent::Heard(FromShim::Checkpoint { task, .. }) => self.look_for_checkpoint(&task),
            ShimEvent::Heard(FromShim::Reply { .. }) => {}
            ShimEvent::Closed => {
                if self.live_keys(shim).next().is_some() {
                    self.look_after(shim.clone());
                }
            }
            ShimEvent::Gone => {
                self.weights.forget(shim);
                let lost: Vec<_> = self.live_keys(shim).collect();
                for key in lost {
                    self.judge(shim, &key);
                }
                if let Some(key) = shim.only_task()
                    && !self.is_current(key)
                {
                    self.collect(key.clone(), shim.clone());
                }
            }
        }
    }

    /// May a shim speak of that run? What it says is believed of its own tasks only, so that one that a guest has taken
    /// over does no harm to other namespaces; and a key becomes the name of a folder.
    fn is_of(&self, shim: &ShimId, key: &TaskKey) -> bool {
        let is_of = match plan::parse_key(key) {
            Some((unit, ..)) => match (self.units.get(&unit), shim.only_task()) {
                (Some(unit), _) => unit.shim_of(key) == *shim,
                (None, only) => only.is_none_or(|only| only == key),
            },
            None => false,
        };
        if !is_of {
            tracing::warn!(shim = ?shim, task.key = ?key.0, "a shim speaks of a task that is not its own");
        }
        is_of
    }

    fn hear_connected(&mut self, shim: &ShimId, tasks: Vec<TaskView>) {
        let there: BTreeSet<_> = tasks.iter().map(|view| view.key.clone()).collect();
        let missing: Vec<_> = self.live_keys(shim).filter(|key| !there.contains(key)).collect();
        for view in tasks {
            self.look_for_checkpoint(&view.key);
            let seen = match view.state {
                TaskState::Starting => TaskSeen::Starting,
                TaskState::Running { http } => TaskSeen::Running { http },
                TaskState::Exited(record) => TaskSeen::Exited(record),
            };
            self.see(shim, &view.key, seen);
        }
        for key in missing {
            self.judge(shim, &key);
        }
    }

    fn hear_start_answer(&mut self, key: &TaskKey, shim: &ShimId, outcome: StartOutcome) {
        let Some((unit_id, task)) = self.current(key) else { return };
        let Some(unit) = self.units.get_mut(&unit_id) else { return };
        unit.in_flight.remove(&task);
        match outcome {
            StartOutcome::Accepted => {
                // Had the shim died before this was heard, nobody would look again.
                let (shims, shim) = (self.shims.clone(), shim.clone());
                tokio::spawn(async move {
                    if !shims.is_connected(&shim).await {
                        shims.look_after(&shim).await;
                    }
                });
            }
            StartOutcome::Refused(fault) => {
                self.see(shim, key, TaskSeen::Exited(plan::setup_failed(&fault, now_ms())));
            }
            StartOutcome::Unknown => self.look_after(shim.clone()),
        }
        self.decide(&unit_id);
    }

    /// Takes in what a shim says about a task. What it said before may come again and changes nothing.
    fn see(&mut self, shim: &ShimId, key: &TaskKey, seen: TaskSeen) {
        let Some((unit_id, task)) = self.current(key) else {
            self.hear_stray(shim, key, &seen);
            return;
        };
        let Some(unit) = self.units.get_mut(&unit_id) else { return };
        let is_news = match unit.tasks.get(&task) {
            Some(TaskSeen::Exited(_) | TaskSeen::Lost) => false,
            Some(TaskSeen::Running { .. }) => seen != TaskSeen::Starting,
            _ => true,
        };
        if is_news {
            unit.tasks.insert(task, seen);
            self.weights.is_due = true;
            self.decide(&unit_id);
        }
    }

    fn hear_stray(&mut self, shim: &ShimId, key: &TaskKey, seen: &TaskSeen) {
        match plan::decide_stray(seen) {
            Stray::Kill => {
                tracing::info!(task.key = %key.0, "a shim has a task that nobody wants");
                self.strays.insert(key.clone());
                self.ask(shim, Request::Stop { task: key.clone(), how: StopSignal::Kill });
            }
            Stray::Collect => self.collect(key.clone(), shim.clone()),
        }
    }

    /// The current attempt's task of that key, if its exit is not recorded yet.
    fn current(&self, key: &TaskKey) -> Option<(UnitId, ResourceName)> {
        let (unit_id, task, run) = plan::parse_key(key)?;
        let record = &self.units.get(&unit_id)?.record;
        let is_current = record.phase == Phase::Started
            && record.run == run
            && !record.exits.contains_key(&task);
        is_current.then_some((unit_id, task))
    }

    fn is_current(&self, key: &TaskKey) -> bool {
        self.current(key).is_some()
    }

    /// Tasks that a shim has, as far as is known; without those that it was just asked to start.
    fn live_keys(&self, shim: &ShimId) -> impl Iterator<Item = TaskKey> {
        self.units.values().flat_map(move |unit| {
            let live = unit.tasks.iter().filter(|(task, seen)| {
                matches!(seen, TaskSeen::Starting | TaskSeen::Running { .. })
                    && !unit.in_flight.contains(*task)
            });
            live.map(|(task, _)| unit.key(task)).filter(move |key| unit.shim_of(key) == *shim)
        })
    }

    fn has_live_tasks(&self) -> bool {
        self.units.values().any(|unit| {
            unit.record.phase == Phase::Started
                && unit
                    .tasks
                    .values()
                    .any(|seen| matches!(seen, TaskSeen::Starting | TaskSeen::Running { .. }))
        })
    }

    fn longest_grace_ms(&self) -> i64 {
        let longest = self.units.values().map(|unit| unit.assignment.template.grace_ms).max();
        i64::try_from(longest.unwrap_or(0)).unwrap_or(i64::MAX).saturating_add(SHUTDOWN_SLACK_MS)
    }

    fn next_wake(&self, give_up_ms: i64) -> Duration {
        let next_ms = self.wakes.first().map_or(i64::MAX, |(at_ms, _)| *at_ms).min(give_up_ms);
        let wait_ms = next_ms.saturating_sub(now_ms()).max(0);
        // The timer's own limit is about two years.
        Duration::from_millis(u64::try_from(wait_ms).unwrap_or(0)).min(Duration::from_secs(86_400))
    }

    fn wake(&mut self) {
        let now_ms = now_ms();
        let mut due = BTreeSet::new();
        while self.wakes.first().is_some_and(|(at_ms, _)| *at_ms <= now_ms) {
            due.extend(self.wakes.pop_first().map(|(_, unit)| unit));
        }
        for unit in due {
            self.decide(&unit);
        }
    }

    fn decide_all(&mut self) {
        let ids: Vec<_> = self.units.keys().cloned().collect();
        for id in ids {
            self.decide(&id);
        }
    }

    /// Decides about a unit and executes, until nothing is to be recorded any more.
    fn decide(&mut self, id: &UnitId) {
        for _ in 0..STEPS_MAX {
            let Some(unit) = self.units.get(id) else { return };
            let now_ms = now_ms();
            let view = View {
                wanted: unit.wanted(self.is_pausing),
                template: &unit.assignment.template,
                grants: &unit.assignment.grants,
                record: &unit.record,
                tasks: &unit.tasks,
                preparation: &unit.preparation,
                has_secrets: unit.has_secrets,
                stops: &unit.stops,
                address: self.address,
                boot_id: &self.boot_id,
            };
            let actions = plan::decide(&view, now_ms);
            if !self.execute(id, actions, now_ms) {
                return;
            }
        }
        tracing::error!(unit.id = %id, "the plan for a unit does not come to rest");
    }

    fn look_after(&self, shim: ShimId) {
        let shims = self.shims.clone();
        tokio::spawn(async move { shims.look_after(&shim).await });
    }

    fn ask(&self, shim: &ShimId, request: Request) {
        let (shims, shim) = (self.shims.clone(), shim.clone());
        tokio::spawn(async move { shims.ask(&shim, request).await });
    }

    async fn end_shims(&self) {
        let known = self.shims.known();
        let asks = known.iter().map(|shim| self.shims.ask(shim, Request::Shutdown));
        futures::future::join_all(asks).await;
    }
}

/// Waits until that moment; for ever when there is none.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

impl Unit {
    fn new(assignment: Assignment, record: UnitRecord) -> Self {
        let is_over = record.phase == Phase::Ended;
        Self {
            has_secrets: !names_secrets(&assignment),
            assignment,
            is_assignment_written: false,
            is_withdrawn: false,
            record,
            tasks: BTreeMap::new(),
            in_flight: BTreeSet::new(),
            stops: BTreeMap::new(),
            preparation: Preparation::None,
            prepared: BTreeMap::new(),
            acknowledged: 0,
            sequence_floor: 0,
            metered: Metered::default(),
            is_over: watch::Sender::new(is_over),
        }
    }

    fn wanted(&self, is_pausing: bool) -> Wanted {
        if self.is_withdrawn {
            Wanted::Forget
        } else if !self.assignment.is_wanted {
            Wanted::Stop
        } else if is_pausing {
            Wanted::Pause
        } else {
            Wanted::Run
        }
    }

    fn key(&self, task: &ResourceName) -> TaskKey {
        TaskKey::new(&self.assignment.unit, task, self.record.run)
    }

    fn shim_of(&self, key: &TaskKey) -> ShimId {
        let namespace = &self.assignment.namespace;
        let task = plan::parse_key(key).and_then(|(_, name, _)| {
            self.assignment.template.tasks.iter().find(|task| task.name == name)
        });
        task.map_or_else(
            || ShimId::Wasm(namespace.clone()),
            |task| ShimId::of(namespace, task.program(), key),
        )
    }
}
