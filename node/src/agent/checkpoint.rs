//! What wasm tasks saved through `brig:unit/checkpoint`: kept beside the unit, put into the directory of its next run, told
//! to the control plane, and taken from there when the unit goes on from another node's.
//!
//! ```text
//!   program ─save─▶ shim ─▶ namespaces/…/KEY/checkpoint ───────────────┐ told, the newest of each task
//!                              ▲            │ the run is over           ▼
//!             the next run ────┤            ▼                     control plane
//!                              └── units/ID/checkpoints/TASK ◀──────────┘ of the unit that this one replaces
//! ```
//!
//! A file with a larger number is newer, wherever it lies. **Invariant:** a run begins with the newest that this node has.
//! States are never logged; who wrote a file is not trusted.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use brig_api::checkpoint::{Checkpoint, CheckpointReport, STATE_BYTES_MAX};
use brig_api::session::{Assignment, CHECKPOINTS_MAX, FromNode};
use brig_api::{NamespacePath, ResourceName, UnitId};
use brig_shim::checkpoint::{self, CHECKPOINT_NAME};
use brig_shim::message::{StartProgram, StartTask, TaskKey};

use super::{Agent, Unit};
use crate::disk::Disk;
use crate::event::Event;
use crate::plan::parse_key;
use crate::shims::ShimId;

/// The folder in a unit's directory.
const FOLDER: &str = "checkpoints";
/// Bytes that a node tells the control plane in a second, so that no node keeps the database busy.
const TOLD_BYTES_S: u64 = 8 << 20;
/// Least time from one message to the next, which is a transaction each: what is saved meanwhile goes with it.
const TOLD_EVERY: Duration = Duration::from_millis(100);
/// States from the control plane that wait for room on the disk. Beyond them a unit waits for the next session.
const UNWRITTEN_MAX: usize = 64;

/// A task of a unit.
type Whose = (UnitId, ResourceName);

/// What is on its way.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    known: BTreeMap<UnitId, BTreeMap<ResourceName, Known>>,
    /// Those that the control plane has not, oldest first; some may be gone.
    waiting: VecDeque<Whose>,
    /// Sent and not answered.
    in_flight: Vec<Whose>,
    /// The next ones are not sent before their turn.
    rests: bool,
    /// Those from the control plane that could not be written; None where there was no room in memory either.
    unwritten: BTreeMap<UnitId, BTreeMap<ResourceName, Option<Checkpoint>>>,
}

/// What is known of a task's checkpoints.
#[derive(Debug, Default)]
struct Known {
    newest: u64,
    /// The newest that the control plane has.
    told: u64,
    is_waiting: bool,
}

impl Checkpoints {
    /// Writes what the control plane gave for a unit and what could not be written then.
    pub(super) fn write_for(&mut self, disk: &Disk, unit: &UnitId) -> io::Result<()> {
        let Some(tasks) = self.unwritten.get_mut(unit) else { return Ok(()) };
        while let Some(entry) = tasks.first_entry() {
            let Some(given) = entry.get() else {
                let why = "what it is to go on from did not fit; the control plane gives it again with its next session";
                return Err(io::Error::new(io::ErrorKind::StorageFull, why));
            };
            write_kept(disk, unit, entry.key(), given)?;
            entry.remove();
        }
        self.unwritten.remove(unit);
        Ok(())
    }

    fn hold(&mut self, unit: UnitId, task: ResourceName, given: Checkpoint) {
        let held = self.unwritten.values().flat_map(BTreeMap::values).flatten().count();
        let given = (held < UNWRITTEN_MAX).then_some(given);
        self.unwritten.entry(unit).or_default().insert(task, given);
    }

    /// Has everything been written that the control plane gave for a unit?
    pub(super) fn has_written(&self, unit: &UnitId) -> bool {
        !self.unwritten.contains_key(unit)
    }

    fn known(&mut self, (unit, task): &Whose) -> &mut Known {
        self.known.entry(unit.clone()).or_default().entry(task.clone()).or_default()
    }

    /// A task has this one. It waits to be told, unless it was.
    fn has(&mut self, whose: Whose, number: u64) {
        let known = self.known(&whose);
        known.newest = known.newest.max(number);
        if known.newest > known.told && !known.is_waiting {
            known.is_waiting = true;
            self.waiting.push_back(whose);
        }
    }

    fn next(&mut self) -> Option<Whose> {
        let next = self.waiting.pop_front()?;
        self.known(&next).is_waiting = false;
        Some(next)
    }

    /// What is on its way did not arrive: it goes first.
    fn take_back(&mut self) {
        while let Some(whose) = self.in_flight.pop() {
            let known = self.known(&whose);
            if !std::mem::replace(&mut known.is_waiting, true) {
                self.waiting.push_front(whose);
            }
        }
    }

    /// Nothing of the unit is on this node any more.
    pub(super) fn forget(&mut self, unit: &UnitId) {
        self.known.remove(unit);
        self.unwritten.remove(unit);
    }
}

impl Agent {
    /// Everything that is found when the agent starts is told again: what the control plane has is not known.
    pub(super) fn recover_checkpoints(&mut self) {
        let mut found = Vec::new();
        for (id, unit) in &self.units {
            for task in &unit.assignment.template.tasks {
                if let Some((number, _)) = unit.newest_checkpoint(&self.disk, &task.name) {
                    found.push(((id.clone(), task.name.clone()), number));
                }
            }
        }
        for (whose, number) in found {
            self.checkpoints.has(whose, number);
        }
    }

    /// A run has ended: what it saved last goes ahead of how it ended, as far as can be, for another unit may go on from it
    /// as soon as that is known.
    pub(super) fn look_for_last_checkpoint(&mut self, key: &TaskKey) {
        let rested = std::mem::replace(&mut self.checkpoints.rests, false);
        self.look_for_checkpoint(key);
        self.checkpoints.rests |= rested;
    }

    /// A run may have saved something: tells it, if that is so.
    pub(super) fn look_for_checkpoint(&mut self, key: &TaskKey) {
        let Some((unit, task)) = self.current(key) else { return };
        let Some(namespace) = self.units.get(&unit).map(|unit| &unit.assignment.namespace) else {
            return;
        };
        let number = noted(key, checkpoint::number(&run_file(&self.disk, namespace, key)));
        if let Some(number) = number {
            self.tell_checkpoint((unit, task), number);
        }
    }

    /// A run's directory is about to go: keeps what it saved, unless there is something newer.
    pub(super) fn keep_checkpoint(&mut self, key: &TaskKey) {
        let Some((unit, task, _)) = parse_key(key) else { return };
        let Some(namespace) = self.units.get(&unit).map(|unit| &unit.assignment.namespace) else {
            return;
        };
        if let Some(number) = noted(key, keep(&self.disk, namespace, &unit, &task, key)) {
            self.tell_checkpoint((unit, task), number);
        }
    }

    fn tell_checkpoint(&mut self, whose: Whose, number: u64) {
        self.checkpoints.has(whose, number);
        self.send_checkpoints();
    }

    /// The last ones that were sent are far enough behind.
    pub(super) fn checkpoint_turn(&mut self) {
        self.checkpoints.rests = false;
        self.send_checkpoints();
    }

    /// Sends the next ones, if none are on their way.
    pub(super) fn send_checkpoints(&mut self) {
        let Some(session) = self.session.clone() else { return };
        if self.checkpoints.rests || !self.checkpoints.in_flight.is_empty() {
            return;
        }
        let (mut reports, mut bytes) = (Vec::new(), 0);
        while reports.len() < CHECKPOINTS_MAX
            && bytes < STATE_BYTES_MAX
            && let Some(whose) = self.checkpoints.next()
        {
            if let Some(report) = self.checkpoint_report(&whose) {
                bytes += report.checkpoint.state.bytes().len();
                reports.push(report);
                self.checkpoints.in_flight.push(whose);
            }
        }
        if reports.is_empty() {
            return;
        }
        if session.try_send(FromNode::Checkpoints { reports }).is_err() {
            // Full or closed: sent again with the statuses.
            return self.checkpoints.take_back();
        }
        self.checkpoints.rests = true;
        let events = self.events.clone();
        tokio::spawn(async move {
            tokio::time::sleep(pause_after(bytes)).await;
            // Nobody listens any more: the agent ends.
            let _ = events.send(Event::CheckpointTurn).await;
        });
    }

    fn checkpoint_report(&self, (id, task): &Whose) -> Option<CheckpointReport> {
        let unit = self.units.get(id)?;
        let (_, file) = unit.newest_checkpoint(&self.disk, task)?;
        let checkpoint = noted(&unit.key(task), checkpoint::read(&file))?;
        Some(CheckpointReport { unit: id.clone(), task: task.clone(), checkpoint })
    }

    /// A session began: whatever was on its way is not.
    pub(super) fn send_checkpoints_again(&mut self) {
        self.checkpoints.take_back();
        self.send_checkpoints();
    }

    /// The control plane has them, or wants them no more.
    pub(super) fn checkpoints_kept(&mut self, reports: &[(UnitId, ResourceName, u64)]) {
        self.checkpoints.in_flight.clear();
        for (unit, task, number) in reports {
            let known = self.checkpoints.known.get_mut(unit).and_then(|tasks| tasks.get_mut(task));
            if let Some(known) = known {
                known.told = known.told.max(*number);
            }
        }
        self.send_checkpoints();
    }

    /// Takes what a unit that is about to be assigned goes on from.
    pub(super) fn take_checkpoint(&mut self, id: UnitId, task: ResourceName, given: Checkpoint) {
        if let Some(unit) = self.units.get(&id)
            && let Some((number, _)) = unit.newest_checkpoint(&self.disk, &task)
            && number >= given.number
        {
            return;
        }
        let (whose, number) = ((id.clone(), task.clone()), given.number);
        if let Err(error) = write_kept(&self.disk, &id, &task, &given) {
            tracing::warn!(unit.id = %id, error = %error, "can't write what a unit goes on from");
            // Its assignment, which comes next, is not begun before this is written.
            self.checkpoints.hold(id, task, given);
        } else if let Some(tasks) = self.checkpoints.unwritten.get_mut(&id) {
            // An earlier session's.
            tasks.remove(&task);
        }
        // It came from there.
        let known = self.checkpoints.known(&whose);
        (known.newest, known.told) = (known.newest.max(number), known.told.max(number));
    }
}

impl Unit {
    /// The number and the place of what a task saved last: in its run's directory, or kept from a run before.
    fn newest_checkpoint(&self, disk: &Disk, task: &ResourceName) -> Option<(u64, PathBuf)> {
        let key = self.key(task);
        let Assignment { unit, namespace, .. } = &self.assignment;
        let files = [run_file(disk, namespace, &key), kept_file(disk, unit, task)];
        let found = files
            .into_iter()
            .filter_map(|file| Some((noted(&key, checkpoint::number(&file))?, file)));
        found.max_by_key(|(number, _)| *number)
    }
}

/// Puts the newest checkpoint of a task into the directory of a run that is about to begin.
///
/// # Errors
/// Those of the filesystem: the run must not begin, for it would begin anew.
pub(super) fn hand_over(disk: &Disk, start: &StartTask) -> io::Result<()> {
    let StartProgram::Wasm(_) = &start.program else { return Ok(()) };
    let Some((unit, task, run)) = parse_key(&start.key) else { return Ok(()) };
    if let Some(before) = run.checked_sub(1) {
        // An agent that was killed may not have come to it.
        keep(disk, &start.namespace, &unit, &task, &TaskKey::new(&unit, &task, before))?;
    }
    let kept = kept_file(disk, &unit, &task);
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", kept.display()));
    let Some(newest) = checkpoint::number(&kept).map_err(named)? else { return Ok(()) };
    let own = run_file(disk, &start.namespace, &start.key);
    if checkpoint::number(&own).ok().flatten().is_some_and(|number| number >= newest) {
        return Ok(());
    }
    match checkpoint::read(&kept).map_err(named)? {
        Some(found) => checkpoint::write(&own, &found),
        None => Ok(()),
    }
}

/// Moves what a run has saved to its unit, unless there is something newer; its number, if it was moved.
fn keep(
    disk: &Disk,
    namespace: &NamespacePath,
    unit: &UnitId,
    task: &ResourceName,
    key: &TaskKey,
) -> io::Result<Option<u64>> {
    let own = run_file(disk, namespace, key);
    let Some(number) = checkpoint::number(&own)? else { return Ok(None) };
    let kept = kept_file(disk, unit, task);
    // What can't be read is no better than what the run has.
    if checkpoint::number(&kept).ok().flatten().is_some_and(|before| before >= number) {
        return Ok(None);
    }
    std::fs::create_dir_all(disk.unit(unit).join(FOLDER))?;
    checkpoint::rename(&own, &kept)?;
    Ok(Some(number))
}

fn write_kept(
    disk: &Disk,
    unit: &UnitId,
    task: &ResourceName,
    given: &Checkpoint,
) -> io::Result<()> {
    std::fs::create_dir_all(disk.unit(unit).join(FOLDER))?;
    checkpoint::write(&kept_file(disk, unit, task), given)
}

fn kept_file(disk: &Disk, unit: &UnitId, task: &ResourceName) -> PathBuf {
    disk.unit(unit).join(FOLDER).join(task.as_str())
}

/// Where a wasm task's run saves, whichever its shim.
fn run_file(disk: &Disk, namespace: &NamespacePath, key: &TaskKey) -> PathBuf {
    disk.task(&ShimId::Wasm(namespace.clone()), key).join(CHECKPOINT_NAME)
}

/// What was found, if anything. What can't be read is told in the log.
fn noted<T>(key: &TaskKey, found: io::Result<Option<T>>) -> Option<T> {
    found.unwrap_or_else(|error| {
        tracing::warn!(task.key = %key.0, error = %error, "a checkpoint can't be read");
        None
    })
}

/// How long the next ones wait.
fn pause_after(bytes: usize) -> Duration {
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    Duration::from_micros(bytes.saturating_mul(1_000_000) / TOLD_BYTES_S).max(TOLD_EVERY)
}

#[cfg(test)]
mod tests {
    use brig_api::checkpoint::State;
    use brig_api::lifecycle::Reason;
    use brig_api::session::ToNode;

    use super::*;
    use crate::agent::report::tests::agent;
    use crate::plan::Preparation;
    use crate::tests::fake_server::assignment;

    fn given() -> Checkpoint {
        Checkpoint { number: 3, saved_ms: 1, state: State::new(b"three".to_vec()).unwrap() }
    }

    fn give(agent: &mut Agent, unit: &str) -> UnitId {
        let (unit, task) = (UnitId::new(unit).unwrap(), "main".parse().unwrap());
        let message = ToNode::Checkpoint { unit: unit.clone(), task, checkpoint: given() };
        agent.hear_server(message, "");
        unit
    }

    fn assign(agent: &mut Agent, unit: &UnitId) {
        let units = vec![assignment(unit.as_str(), "never")];
        agent.hear_server(ToNode::Assign { units }, "");
    }

    #[tokio::test]
    async fn a_unit_does_not_begin_before_what_it_goes_on_from_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, _lock) = Disk::open(dir.path()).unwrap();
        let mut agent = agent(disk);
        let file =
            |agent: &Agent, unit: &UnitId| kept_file(&agent.disk, unit, &"main".parse().unwrap());
        // Something in the way stands for a full disk, which tests can't have.
        let block = |agent: &Agent, unit: &str| {
            let folder = agent.disk.unit(&UnitId::new(unit).unwrap());
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(FOLDER), "").unwrap();
        };
        let has_begun =
            |agent: &Agent, unit: &UnitId| agent.units[unit].preparation != Preparation::None;
        let names: Vec<_> = (0..=UNWRITTEN_MAX).map(|number| format!("u{number}")).collect();
        names.iter().for_each(|name| block(&agent, name));
        let units: Vec<_> = names.iter().map(|name| give(&mut agent, name)).collect();
        for unit in [&units[0], &units[UNWRITTEN_MAX]] {
            assign(&mut agent, unit);
            assert_eq!(agent.units[unit].record.status.reason, Some(Reason::DiskFull));
            assert!(!has_begun(&agent, unit));
            std::fs::remove_file(agent.disk.unit(unit).join(FOLDER)).unwrap();
            agent.decide(unit);
        }
        assert!(has_begun(&agent, &units[0]));
        assert_eq!(checkpoint::read(&file(&agent, &units[0])).unwrap(), Some(given()));
        // For the last one there was no room in memory either.
        let last = &units[UNWRITTEN_MAX];
        assert!(!has_begun(&agent, last) && !file(&agent, last).exists());
        give(&mut agent, last.as_str());
        agent.decide(last);
        assert!(has_begun(&agent, last) && file(&agent, last).exists());
        assert!(agent.checkpoints.known[last].values().all(|known| known.told == 3));
    }
}
