//! Does what the plan says. Nothing here decides.

use std::sync::Arc;

use brig_api::lifecycle::Reason;
use brig_api::{ResourceName, UnitId};
use brig_shim::client::ClientError;
use brig_shim::code::Refusal;
use brig_shim::exit::ExitRecord;
use brig_shim::handover;
use brig_shim::message::{Request, StartProgram, StartTask, StopSignal, TaskKey};

use super::Agent;
use super::checkpoint::hand_over;
use crate::disk::Disk;
use crate::event::{Event, StartOutcome};
use crate::plan::{Action, Fault, Preparation, StopSent, TaskSeen};
use crate::record::{Phase, UnitRecord};
use crate::shims::{ShimId, Shims};

impl Agent {
    /// Executes; true when something was recorded, so that it has to be decided again.
    pub(super) fn execute(&mut self, id: &UnitId, actions: Vec<Action>, now_ms: i64) -> bool {
        let mut was_recorded = false;
        for action in actions {
            match action {
                Action::Record(record) => {
                    if !self.record(id, *record) {
                        return false;
                    }
                    was_recorded = true;
                }
                Action::Prepare => self.prepare(id),
                Action::Start(task) => self.start(id, &task),
                Action::Terminate(task) => self.stop(id, &task, now_ms, StopSignal::Terminate),
                Action::Kill(task) => self.stop(id, &task, now_ms, StopSignal::Kill),
                Action::Collect(task) => {
                    if let Some(unit) = self.units.get(id) {
                        let key = unit.key(&task);
                        let shim = unit.shim_of(&key);
                        self.collect(key, shim);
                    }
                }
                Action::Forget => {
                    self.forget(id);
                    return false;
                }
                Action::WakeAt(at_ms) => {
                    self.wakes.insert((at_ms, id.clone()));
                }
            }
        }
        was_recorded
    }

    /// Writes what a unit is to run, if it changed; false when it can't be written.
    pub(super) fn write_assignment(&mut self, id: &UnitId) -> bool {
        let Some(unit) = self.units.get_mut(id) else { return false };
        if unit.is_assignment_written && self.checkpoints.has_written(id) {
            return true;
        }
        let written = self.checkpoints.write_for(&self.disk, id);
        match written.and_then(|()| self.disk.write_assignment(&unit.assignment)) {
            Ok(()) => {
                unit.is_assignment_written = true;
                true
            }
            Err(error) => {
                self.disk_failed(id, &error);
                false
            }
        }
    }

    pub(super) fn record(&mut self, id: &UnitId, mut next: UnitRecord) -> bool {
        if !self.write_assignment(id) {
            return false;
        }
        let Some(unit) = self.units.get_mut(id) else { return false };
        // Of a task whose shim died it is not known what it used at last.
        for (task, exit) in &mut next.exits {
            exit.usage = exit.usage.or_newer(unit.metered.tasks.remove(task).unwrap_or_default());
        }
        let before = std::mem::replace(&mut unit.record, next);
        let is_report = before.status != unit.record.status;
        if is_report {
            unit.number_report();
        }
        // Flushed only when the shim's own record of an exit is removed after it. A crash of the machine ends every
        // task anyway; so losing what was written when one was started harms nobody.
        let flush = unit.record.exits.len() > before.exits.len();
        if let Err(error) = self.disk.write_record(id, &unit.record, flush) {
            unit.record = before;
            self.disk_failed(id, &error);
            return false;
        }
        if unit.record.run != before.run {
            unit.tasks.clear();
            unit.in_flight.clear();
            unit.stops.clear();
            unit.metered.tasks.clear();
        }
        if matches!(unit.record.phase, Phase::Backoff { .. } | Phase::Ended) {
            unit.preparation = Preparation::None;
            unit.prepared.clear();
        }
        let is_over = unit.record.phase == Phase::Ended;
        unit.is_over.send_if_modified(|over| std::mem::replace(over, is_over) != is_over);
        if is_report {
            self.report(id);
        }
        true
    }

    fn prepare(&mut self, id: &UnitId) {
        let Some(unit) = self.units.get_mut(id) else { return };
        unit.preparation = Preparation::Underway;
        let (preparer, events) = (self.preparer.clone(), self.events.clone());
        let (assignment, run) = (unit.assignment.clone(), unit.record.run);
        let ports = unit.record.ports.clone();
        tokio::spawn(async move {
            let outcome = preparer.prepare(&assignment, run, &ports).await;
            let event = Event::Prepared { unit: assignment.unit, run, outcome };
            // Nobody listens any more: the agent ends.
            let _ = events.send(event).await;
        });
    }

    pub(super) fn hear_prepared(
        &mut self,
        id: &UnitId,
        run: u32,
        outcome: Result<Vec<StartTask>, Fault>,
    ) {
        let Some(unit) = self.units.get_mut(id) else {
            // Withdrawn meanwhile: what was put in place after that (files of secrets) belongs to nobody.
            if let Err(error) = self.disk.remove_damaged(id) {
                tracing::warn!(unit.id = %id, error = %error, "can't remove a unit's files");
            }
            return;
        };
        if unit.record.run != run || unit.preparation != Preparation::Underway {
            return;
        }
        match outcome {
            Ok(tasks) => {
                let names = unit.assignment.template.tasks.iter().map(|task| task.name.clone());
                unit.prepared = names.zip(tasks).collect();
                unit.preparation = Preparation::Ready;
            }
            Err(fault) => unit.preparation = Preparation::Failed(fault),
        }
        self.decide(id);
    }

    fn start(&mut self, id: &UnitId, task: &ResourceName) {
        let Some(unit) = self.units.get_mut(id) else { return };
        let Some(start) = unit.prepared.get(task).cloned() else { return };
        unit.tasks.insert(task.clone(), TaskSeen::Starting);
        unit.in_flight.insert(task.clone());
        let shim = unit.shim_of(&start.key);
        let (shims, disk, events) = (self.shims.clone(), self.disk.clone(), self.events.clone());
        tokio::spawn(async move {
            let key = start.key.clone();
            let outcome = start_in_shim(&shims, &disk, &shim, start).await;
            // Nobody listens any more: the agent ends.
            let _ = events.send(Event::StartAnswered { key, shim, outcome }).await;
        });
    }

    fn stop(&mut self, id: &UnitId, task: &ResourceName, now_ms: i64, how: StopSignal) {
        let Some(unit) = self.units.get_mut(id) else { return };
        if unit.in_flight.contains(task) {
            // Decided again when the shim has answered; else the stop might overtake the start.
            return;
        }
        let killed_ms = (how == StopSignal::Kill).then_some(now_ms);
        let since_ms = unit.stops.get(task).map_or(now_ms, |stop| stop.since_ms);
        unit.stops.insert(task.clone(), StopSent { since_ms, killed_ms });
        let key = unit.key(task);
        let shim = unit.shim_of(&key);
        self.ask(&shim, Request::Stop { task: key, how });
    }

    /// Lets the shim forget a run and removes its directories.
    pub(super) fn collect(&mut self, key: TaskKey, shim: ShimId) {
        self.keep_checkpoint(&key);
        self.collecting += 1;
        let (shims, disk, events) = (self.shims.clone(), self.disk.clone(), self.events.clone());
        tokio::spawn(async move {
            shims.dismiss(&shim, key.clone()).await;
            if shim.only_task().is_some() {
                shims.forget(&shim);
            }
            remove_task(&disk, &shim, &key).await;
            // Nobody listens any more: the agent ends.
            let _ = events.send(Event::Collected(key)).await;
        });
    }

    fn forget(&mut self, id: &UnitId) {
        let Some(unit) = self.units.get(id) else { return };
        if let Err(error) = self.disk.remove_unit(&unit.assignment.namespace, id) {
            // Tried again, and its withdrawal stands in nothing but its absence from the assignments.
            self.disk_failed(id, &error);
            return;
        }
        self.units.remove(id);
        self.checkpoints.forget(id);
    }

    /// Finds out from the disk what became of a task that no shim has.
    pub(super) fn judge(&mut self, shim: &ShimId, key: &TaskKey) {
        let seen = seen_on_disk(&self.disk, shim, key, TaskSeen::Lost);
        if seen == TaskSeen::NotStarted {
            if let Some((unit_id, task)) = self.current(key)
                && let Some(unit) = self.units.get_mut(&unit_id)
            {
                unit.tasks.insert(task, seen);
                self.decide(&unit_id);
            }
        } else {
            self.see(shim, key, seen);
        }
    }
}

/// What the disk shows of a task; `unrecorded` when it was given to a shim and there is no exit.
pub(super) fn seen_on_disk(
    disk: &Disk,
    shim: &ShimId,
    key: &TaskKey,
    unrecorded: TaskSeen,
) -> TaskSeen {
    let dir = disk.task(shim, key);
    match ExitRecord::read(&dir) {
        Ok(Some(record)) => TaskSeen::Exited(record),
        // The directory is made just before the shim is asked: without it, nobody was.
        Ok(None) if !dir.exists() => TaskSeen::NotStarted,
        Ok(None) => unrecorded,
        Err(error) => {
            tracing::warn!(task.key = %key.0, error = %error, "an exit record is damaged");
            TaskSeen::Lost
        }
    }
}

async fn start_in_shim(
    shims: &Shims,
    disk: &Arc<Disk>,
    shim: &ShimId,
    start: StartTask,
) -> StartOutcome {
    let failed =
        |message: String| StartOutcome::Refused(Fault { reason: Reason::CreateFailed, message });
    let client = match shims.client_or_start(shim, &start).await {
        Ok(client) => client,
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            let cause = source.map_or_else(String::new, |source| format!(": {source}"));
            return failed(format!("no shim to run it: {error}{cause}"));
        }
    };
    if let Err(error) = make_dirs(disk, &start) {
        let dir = start.dir.display();
        return failed(format!("can't make the task's directory `{dir}`: {error}"));
    }
    if let Err(error) = hand_over(disk, &start) {
        return failed(format!("what it is to go on from can't be put in place: {error}"));
    }
    let handed_over = match handover::open(&start, client.owners()) {
        Ok(handed_over) => handed_over,
        Err(Refusal { reason, message }) => {
            return StartOutcome::Refused(Fault { reason, message });
        }
    };
    match client.start(start, handed_over).await {
        Ok(()) => StartOutcome::Accepted,
        Err(ClientError::Refused { reason, message }) => {
            StartOutcome::Refused(Fault { reason: reason.unwrap_or(Reason::CreateFailed), message })
        }
        Err(_) => StartOutcome::Unknown,
    }
}

fn make_dirs(disk: &Disk, start: &StartTask) -> std::io::Result<()> {
    if let StartProgram::Oci(_) = &start.program {
        std::fs::create_dir_all(disk.scratch(&start.key))?;
    }
    std::fs::create_dir_all(&start.dir)
}

async fn remove_task(disk: &Arc<Disk>, shim: &ShimId, key: &TaskKey) {
    let (disk, shim, removed) = (disk.clone(), shim.clone(), key.clone());
    let outcome = tokio::task::spawn_blocking(move || disk.remove_task(&shim, &removed)).await;
    if !matches!(outcome, Ok(Ok(()))) {
        tracing::warn!(task.key = %key.0, outcome = ?outcome, "can't remove a run's directories");
    }
}
