//! Goes on where an agent before this one ended: reads the records, finds the shims, clears away what is left over.

use std::collections::BTreeSet;
use std::io;

use super::execute::seen_on_disk;
use super::{Agent, Unit};
use crate::disk::Loaded;
use crate::event::Event;
use crate::plan::TaskSeen;
use crate::record::Phase;

/// Numbers that an agent before this one may have used for reports it could not write (a full disk).
const SEQUENCE_GAP: u64 = 1 << 16;

impl Agent {
    /// Takes in everything that is on disk, and begins to look after the shims.
    ///
    /// # Errors
    /// When the data directory can't be read.
    pub(crate) fn recover(&mut self) -> io::Result<()> {
        let (loaded, damaged) = self.disk.units()?;
        for unit in &damaged {
            self.disk.remove_damaged(unit)?;
        }
        self.damaged = damaged.into_iter().collect();
        let mut shims: BTreeSet<_> = self.disk.shims()?.into_iter().collect();
        for Loaded { assignment, record } in loaded {
            let id = assignment.unit.clone();
            let mut unit = Unit::new(assignment, record);
            unit.is_assignment_written = true;
            unit.sequence_floor = unit.record.status.sequence.saturating_add(SEQUENCE_GAP);
            if unit.record.phase == Phase::Started {
                self.recover_tasks(&mut unit);
                shims.extend(unit.tasks.keys().map(|task| unit.shim_of(&unit.key(task))));
            }
            self.units.insert(id, unit);
        }
        self.recover_checkpoints();
        // Put in place for a unit that was withdrawn meanwhile, by an agent that was killed then.
        if let Err(error) = self.disk.retain_secrets(self.units.keys()) {
            tracing::warn!(error = %error, "can't remove files of secrets that nobody needs");
        }
        // Somebody who wanted to read them may have made their folder just then.
        if let Err(error) = self.disk.retain_wasm_logs(self.units.keys()) {
            tracing::warn!(error = %error, "can't remove logs that nobody needs");
        }
        let (all, events) = (self.shims.clone(), self.events.clone());
        tokio::spawn(async move {
            futures::future::join_all(shims.iter().map(|shim| all.look_after(shim))).await;
            // Nobody listens any more: the agent ends.
            let _ = events.send(Event::Recovered).await;
        });
        Ok(())
    }

    /// What is known before any shim has answered. No task has survived another boot.
    fn recover_tasks(&self, unit: &mut Unit) {
        let is_same_boot = unit.record.boot_id == self.boot_id;
        for task in &unit.assignment.template.tasks {
            if unit.record.exits.contains_key(&task.name) {
                continue;
            }
            let unrecorded = if is_same_boot { TaskSeen::Starting } else { TaskSeen::Lost };
            let key = unit.key(&task.name);
            let seen = match seen_on_disk(&self.disk, &unit.shim_of(&key), &key, unrecorded) {
                // What was written shortly before a crash of the machine may be missing: don't run it twice.
                TaskSeen::NotStarted if !is_same_boot => TaskSeen::Lost,
                seen => seen,
            };
            unit.tasks.insert(task.name.clone(), seen);
        }
    }

    /// Removes directories of runs that nobody wants and no shim has.
    pub(super) fn sweep(&mut self) {
        let Ok(tasks) = self.disk.tasks() else { return };
        for (shim, key) in tasks {
            if self.is_current(&key) || self.strays.contains(&key) {
                continue;
            }
            self.keep_checkpoint(&key);
            tracing::info!(task.key = %key.0, "removes what a run has left");
            if let Err(error) = self.disk.remove_task(&shim, &key) {
                tracing::warn!(task.key = %key.0, error = %error, "can't remove a run's directories");
            }
        }
    }
}
