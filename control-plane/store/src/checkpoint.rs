//! What wasm programs saved to go on from: taken over from their nodes, and given to the units that replace theirs.
//!
//! A job's units are attempts at an index, and an attempt goes on from the newest one before it that has saved anything. A
//! unit of a service goes on from nothing but its own, which its node has. Rows are no part of what is watched: no revision,
//! no change.
//!
//! **Invariant:** an earlier attempt never hides what a later one saved, whenever its node tells of it.
//! **Invariant:** states leave the store through [`Store::checkpoint_get`] alone.

use std::collections::{BTreeMap, BTreeSet};

use brig_api::checkpoint::{Checkpoint, CheckpointReport, CheckpointView};
use brig_api::lifecycle::UnitState;
use brig_api::object::Unit;
use brig_api::unit_spec::Runtime;
use brig_api::{NodeName, ResourceName, UnitId};

use crate::error::StoreError;
use crate::store::Store;
use crate::table::checkpoint::{
    JobIndex, OfAttempt, checkpoint_get, checkpoint_put, checkpoints_of_indices,
    checkpoints_of_unit, checkpoints_remove, checkpoints_remove_of_units,
};
use crate::table::unit::unit_by_id;
use crate::write::{Write, in_write};

/// From what a task of a unit goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resumption {
    /// The unit that is to go on.
    pub unit: UnitId,
    /// Its task.
    pub task: ResourceName,
    /// The unit that saved; see [`Store::checkpoint_get`].
    pub saved_by: UnitId,
}

impl Store {
    /// Takes over what tasks of units on that node have saved, in one transaction; says how many were kept. The others are of
    /// no use to anybody: not newer than what is known, of a unit that is gone, elsewhere, lost or has succeeded, or of an
    /// attempt after which another one has saved something.
    ///
    /// # Errors
    /// When the database fails; then none is kept.
    pub async fn checkpoints_report(
        &self,
        node: &NodeName,
        reports: &[CheckpointReport],
        now_ms: i64,
    ) -> Result<usize, StoreError> {
        let (kept, _) = in_write!(self, now_ms, |tx| take_over_all(&mut tx, node, reports).await)?;
        Ok(kept)
    }

    /// From what those units go on that have not begun: attempts after the first at an index of a job.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn resumptions(&self, units: &[&Unit]) -> Result<Vec<Resumption>, StoreError> {
        let again: Vec<_> = units
            .iter()
            .filter_map(|unit| Some((*unit, JobIndex::of(unit)?)))
            .filter(|(_, (_, attempt))| *attempt > 0)
            .collect();
        let indices: BTreeSet<_> = again.iter().map(|(_, (index, _))| index.clone()).collect();
        if indices.is_empty() {
            return Ok(Vec::new());
        }
        let mut db = self.pools().read().await?;
        let saved = checkpoints_of_indices(&mut db, &Vec::from_iter(indices)).await?;
        db.commit().await?;
        let mut by_index: BTreeMap<&JobIndex, Vec<&OfAttempt>> = BTreeMap::new();
        for one in &saved {
            by_index.entry(&one.index).or_default().push(one);
        }
        let mut found = Vec::new();
        for (unit, (index, attempt)) in &again {
            let mut newest: BTreeMap<&ResourceName, &OfAttempt> = BTreeMap::new();
            let before = by_index.get(index).into_iter().flatten();
            for one in before.filter(|one| one.attempt < *attempt) {
                let known = newest.entry(&one.task).or_insert(one);
                if one.attempt > known.attempt {
                    *known = one;
                }
            }
            let is_there = |name: &ResourceName| has_task(unit, name);
            found.extend(newest.into_iter().filter(|(task, _)| is_there(task)).map(
                |(task, one)| Resumption {
                    unit: unit.id.clone(),
                    task: task.clone(),
                    saved_by: one.unit.clone(),
                },
            ));
        }
        Ok(found)
    }

    /// What a task of a unit saved last. For the node of the unit that goes on from it, and for nobody else.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn checkpoint_get(
        &self,
        saved_by: &UnitId,
        task: &ResourceName,
    ) -> Result<Option<Checkpoint>, StoreError> {
        let mut db = self.pools().read().await?;
        let found = checkpoint_get(&mut db, saved_by, task).await?;
        db.commit().await?;
        Ok(found)
    }

    /// What is told of the checkpoints that a unit has saved, by task.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn checkpoint_views(&self, unit: &UnitId) -> Result<Vec<CheckpointView>, StoreError> {
        let mut db = self.pools().read().await?;
        let views = checkpoints_of_unit(&mut db, unit).await?;
        db.commit().await?;
        Ok(views)
    }
}

/// Has the unit a wasm task of that name?
fn has_task(unit: &Unit, name: &ResourceName) -> bool {
    let mut tasks = unit.template.tasks.iter();
    tasks.any(|task| {
        task.name == *name && task.variants.iter().any(|variant| variant.runtime() == Runtime::Wasm)
    })
}

async fn take_over_all(
    tx: &mut Write,
    node: &NodeName,
    reports: &[CheckpointReport],
) -> Result<usize, StoreError> {
    let mut kept = 0;
    for report in reports {
        kept += usize::from(take_over(tx, node, report).await?);
    }
    Ok(kept)
}

async fn take_over(
    tx: &mut Write,
    node: &NodeName,
    report: &CheckpointReport,
) -> Result<bool, StoreError> {
    let CheckpointReport { unit: id, task, checkpoint } = report;
    let Some(unit) = unit_by_id(&mut tx.db, id).await? else { return Ok(false) };
    let state = unit.status.state;
    let is_over = matches!(state, UnitState::Pending | UnitState::Lost | UnitState::Succeeded);
    if unit.node.as_ref() != Some(node) || is_over || !has_task(&unit, task) {
        return Ok(false);
    }
    let known = checkpoints_of_unit(&mut tx.db, id).await?;
    if known.iter().any(|known| known.task == *task && known.number >= checkpoint.number) {
        return Ok(false);
    }
    if let Some((index, attempt)) = JobIndex::of(&unit) {
        let mut others = checkpoints_of_indices(&mut tx.db, &[index]).await?;
        others.retain(|other| other.task == *task);
        if others.iter().any(|other| other.attempt > attempt) {
            return Ok(false);
        }
        others.retain(|other| other.attempt < attempt);
        checkpoints_remove(&mut tx.db, &others).await?;
    }
    checkpoint_put(&mut tx.db, id, task, checkpoint).await?;
    tx.keep_rows();
    Ok(true)
}

/// Removes what is needed no more, now that these units have succeeded: theirs, and what they went on from.
pub(crate) async fn checkpoints_done(tx: &mut Write, units: &[&Unit]) -> Result<(), StoreError> {
    let ids: Vec<_> = units.iter().map(|unit| &unit.id).collect();
    checkpoints_remove_of_units(&mut tx.db, &ids).await?;
    let again = units.iter().filter_map(|unit| JobIndex::of(unit));
    let again: Vec<_> = again.filter(|(_, attempt)| *attempt > 0).map(|(index, _)| index).collect();
    let left = checkpoints_of_indices(&mut tx.db, &again).await?;
    checkpoints_remove(&mut tx.db, &left).await
}
