//! `unit_checkpoints` and `checkpoint_states`. The second one is read here alone.

use brig_api::checkpoint::{Checkpoint, CheckpointView, State};
use brig_api::object::{Owner, Unit};
use brig_api::{NamespacePath, ResourceName, UnitId};

use crate::columns::{corrupt, id, number, unsigned};
use crate::database::{Tx, on_db};
use crate::error::StoreError;
use crate::many::{execute_many, fetch_many};

const OF_UNIT: &str =
    "SELECT task, number, saved_ms, bytes FROM unit_checkpoints WHERE unit_id = $1 ORDER BY task";
/// From the few that have saved something to their units, and not from all units of a job: `CROSS JOIN` keeps SQLite to it.
const OF_INDICES: &str = "SELECT u.namespace, u.owner_name, u.owner_index, u.owner_attempt, c.unit_id, c.task \
    FROM unit_checkpoints c CROSS JOIN units u WHERE u.id = c.unit_id AND u.owner_kind = 'job' \
    AND (u.namespace, u.owner_name, u.owner_index) IN \
    (SELECT column1, column2, column3 FROM (VALUES {rows}) AS asked)";
const WITH_STATE: &str = "SELECT c.number, c.saved_ms, s.state FROM unit_checkpoints c \
    JOIN checkpoint_states s ON s.unit_id = c.unit_id AND s.task = c.task WHERE c.unit_id = $1 AND c.task = $2";
const PUT: &str = "INSERT INTO unit_checkpoints (unit_id, task, number, saved_ms, bytes) VALUES ($1, $2, $3, $4, $5) \
    ON CONFLICT (unit_id, task) DO UPDATE SET number = excluded.number, saved_ms = excluded.saved_ms, \
    bytes = excluded.bytes";
const STATE_PUT: &str = "INSERT INTO checkpoint_states (unit_id, task, state) VALUES ($1, $2, $3) \
    ON CONFLICT (unit_id, task) DO UPDATE SET state = excluded.state";
const REMOVE: &str = "DELETE FROM unit_checkpoints WHERE (unit_id, task) IN (SELECT column1, column2 FROM (VALUES {rows}) AS asked)";
const REMOVE_OF_UNITS: &str = "DELETE FROM unit_checkpoints WHERE unit_id IN (VALUES {rows})";

/// A checkpoint of one attempt at a job's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OfAttempt {
    pub(crate) index: JobIndex,
    pub(crate) attempt: u32,
    pub(crate) unit: UnitId,
    pub(crate) task: ResourceName,
}

/// A job's index: its attempts go on from one another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct JobIndex {
    pub(crate) namespace: NamespacePath,
    pub(crate) job: ResourceName,
    pub(crate) index: u32,
}

impl JobIndex {
    /// That of a unit, and which attempt the unit is; None when no job made it.
    pub(crate) fn of(unit: &Unit) -> Option<(Self, u32)> {
        let Some(Owner::Job { name, index, attempt }) = &unit.owner else { return None };
        let (namespace, job) = (unit.namespace.clone(), name.clone());
        Some((Self { namespace, job, index: *index }, *attempt))
    }
}

/// What is told of a unit's checkpoints, by task.
pub(crate) async fn checkpoints_of_unit(
    db: &mut Tx,
    unit: &UnitId,
) -> Result<Vec<CheckpointView>, StoreError> {
    let rows: Vec<(String, i64, i64, i64)> = on_db!(db, |connection| {
        sqlx::query_as(OF_UNIT).bind(unit.as_str()).fetch_all(connection).await
    })?;
    let views = rows.iter().map(|(task, number, saved_ms, bytes)| {
        Ok(CheckpointView {
            task: id("unit_checkpoints.task", task)?,
            number: unsigned("unit_checkpoints.number", *number)?,
            saved_ms: *saved_ms,
            bytes: unsigned("unit_checkpoints.bytes", *bytes)?,
        })
    });
    views.collect()
}

/// The checkpoints of every attempt at those indices, in no order.
pub(crate) async fn checkpoints_of_indices(
    db: &mut Tx,
    indices: &[JobIndex],
) -> Result<Vec<OfAttempt>, StoreError> {
    type Row = (String, String, i64, i64, String, String);
    let rows = fetch_many!(db, Row, OF_INDICES, 3, indices, |query, index| query
        .bind(index.namespace.as_str())
        .bind(index.job.as_str())
        .bind(i64::from(index.index)));
    let found = rows.iter().map(|(namespace, job, index, attempt, unit, task)| {
        let index = JobIndex {
            namespace: id("units.namespace", namespace)?,
            job: id("units.owner_name", job)?,
            index: unsigned("units.owner_index", *index)?,
        };
        Ok(OfAttempt {
            index,
            attempt: unsigned("units.owner_attempt", *attempt)?,
            unit: id("unit_checkpoints.unit_id", unit)?,
            task: id("unit_checkpoints.task", task)?,
        })
    });
    found.collect()
}

/// A checkpoint with its state.
pub(crate) async fn checkpoint_get(
    db: &mut Tx,
    unit: &UnitId,
    task: &ResourceName,
) -> Result<Option<Checkpoint>, StoreError> {
    let row: Option<(i64, i64, Vec<u8>)> = on_db!(db, |connection| {
        let query = sqlx::query_as(WITH_STATE).bind(unit.as_str()).bind(task.as_str());
        query.fetch_optional(connection).await
    })?;
    let Some((number, saved_ms, state)) = row else { return Ok(None) };
    let number = unsigned("unit_checkpoints.number", number)?;
    let state = State::new(state).map_err(|error| corrupt("checkpoint_states.state", error))?;
    Ok(Some(Checkpoint { number, saved_ms, state }))
}

/// Writes a checkpoint in place of the one that the task had.
pub(crate) async fn checkpoint_put(
    db: &mut Tx,
    unit: &UnitId,
    task: &ResourceName,
    checkpoint: &Checkpoint,
) -> Result<(), StoreError> {
    let state = checkpoint.state.bytes();
    let bytes = i64::try_from(state.len()).unwrap_or(i64::MAX);
    let number = number("number", checkpoint.number)?;
    on_db!(db, |connection| {
        let query = sqlx::query(PUT)
            .bind(unit.as_str())
            .bind(task.as_str())
            .bind(number)
            .bind(checkpoint.saved_ms)
            .bind(bytes);
        query.execute(connection).await.map(drop)
    })?;
    on_db!(db, |connection| {
        let query = sqlx::query(STATE_PUT).bind(unit.as_str()).bind(task.as_str()).bind(state);
        query.execute(connection).await.map(drop)
    })?;
    Ok(())
}

/// Removes those checkpoints.
pub(crate) async fn checkpoints_remove(
    db: &mut Tx,
    checkpoints: &[OfAttempt],
) -> Result<(), StoreError> {
    execute_many!(db, REMOVE, 2, checkpoints, |query, one| query
        .bind(one.unit.as_str())
        .bind(one.task.as_str()));
    Ok(())
}

/// Removes the checkpoints of those units.
pub(crate) async fn checkpoints_remove_of_units(
    db: &mut Tx,
    units: &[&UnitId],
) -> Result<(), StoreError> {
    execute_many!(db, REMOVE_OF_UNITS, 1, units, |query, unit| query.bind(unit.as_str()));
    Ok(())
}
