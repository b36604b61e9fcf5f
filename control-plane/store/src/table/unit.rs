//! The table `units`.

use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::{Desired, Meta, Owner, Unit, UnitStatus};
use brig_api::{Kind, NamespacePath, NodeName, PlanSequence, ResourceName, Revision, UnitId};

use super::{TemplateColumns, within};
use crate::columns::{cleaned, corrupt, from_json, id, named, number, to_json, unsigned};
use crate::database::{Tx, on_db};
use crate::error::StoreError;

macro_rules! select {
    ($tail:literal) => {
        concat!(
            "SELECT id, namespace, name, owner_kind, owner_name, owner_generation, owner_index, owner_attempt, \
             desired, state, reason, message, node, placed_by, restarts, exit_code, started_ms, finished_ms, \
             status_sequence, endpoints, remove_when_done, promised, grants, placed_ms, labels, template, revision, \
             created_ms FROM units ",
            $tail
        )
    };
}
const UNIT_BY_ID: &str = select!("WHERE id = $1");
const UNIT_BY_NAME: &str = select!("WHERE namespace = $1 AND name = $2");
const UNITS_WITHIN: &str = select!(
    "WHERE CAST($1 AS TEXT) IS NULL OR namespace = $1 OR substr(namespace, 1, length($1) + 1) = $1 || '/' \
     ORDER BY namespace, name"
);
const UNITS_ON_NODE: &str = select!(
    "WHERE node = $1 AND state NOT IN ('succeeded', 'failed', 'stopped', 'lost') ORDER BY id"
);
const UNITS_OF_OWNER: &str =
    "SELECT COUNT(*) FROM units WHERE namespace = $1 AND owner_kind = $2 AND owner_name = $3";
const UNIT_INSERT: &str = "INSERT INTO units (id, namespace, name, owner_kind, owner_name, owner_generation, \
    owner_index, owner_attempt, runtime, priority, cpu_milli, memory_bytes, disk_bytes, is_revocable, gang, \
    remove_when_done, labels, template, created_ms, desired, state, reason, message, node, placed_by, restarts, exit_code, started_ms, \
    finished_ms, status_sequence, endpoints, promised, grants, placed_ms, revision) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, \
    $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35)";
/// Everything else of a unit stays as it was created.
const UNIT_UPDATE: &str = "UPDATE units SET desired = $2, state = $3, reason = $4, message = $5, node = $6, \
    placed_by = $7, restarts = $8, exit_code = $9, started_ms = $10, finished_ms = $11, status_sequence = $12, \
    endpoints = $13, promised = $14, grants = $15, placed_ms = $16, revision = $17 WHERE id = $1";
const UNIT_REMOVE: &str = "DELETE FROM units WHERE id = $1";

#[derive(sqlx::FromRow)]
struct UnitRow {
    id: String,
    namespace: String,
    name: String,
    owner_kind: Option<String>,
    owner_name: Option<String>,
    owner_generation: Option<i64>,
    owner_index: Option<i64>,
    owner_attempt: Option<i64>,
    desired: String,
    state: String,
    reason: Option<String>,
    message: Option<String>,
    node: Option<String>,
    placed_by: Option<i64>,
    restarts: i64,
    exit_code: Option<i64>,
    started_ms: Option<i64>,
    finished_ms: Option<i64>,
    status_sequence: i64,
    endpoints: String,
    remove_when_done: bool,
    promised: Option<String>,
    grants: String,
    placed_ms: Option<i64>,
    labels: String,
    template: String,
    revision: i64,
    created_ms: i64,
}

/// The columns that change in a unit's life.
struct LifeColumns<'unit> {
    desired: &'static str,
    state: &'static str,
    reason: Option<&'static str>,
    message: Option<std::borrow::Cow<'unit, str>>,
    node: Option<&'unit str>,
    placed_by: Option<i64>,
    restarts: i64,
    exit_code: Option<i64>,
    started_ms: Option<i64>,
    finished_ms: Option<i64>,
    status_sequence: i64,
    endpoints: String,
    promised: Option<&'unit str>,
    grants: String,
    placed_ms: Option<i64>,
    revision: i64,
}

/// `run` and so on, as in JSON and SQL.
pub(crate) fn desired_name(desired: Desired) -> &'static str {
    match desired {
        Desired::Run => "run",
        Desired::Stop => "stop",
        Desired::Remove => "remove",
    }
}

fn desired_parse(text: &str) -> Option<Desired> {
    [Desired::Run, Desired::Stop, Desired::Remove]
        .into_iter()
        .find(|desired| desired_name(*desired) == text)
}

impl TryFrom<UnitRow> for Unit {
    type Error = StoreError;

    fn try_from(row: UnitRow) -> Result<Self, StoreError> {
        Ok(Self {
            owner: owner(&row)?,
            status: status(&row)?,
            id: id("units.id", &row.id)?,
            name: id("units.name", &row.name)?,
            namespace: id("units.namespace", &row.namespace)?,
            labels: from_json("units.labels", &row.labels)?,
            template: from_json("units.template", &row.template)?,
            desired: named("units.desired", desired_parse, &row.desired)?,
            remove_when_done: row.remove_when_done,
            node: row.node.map(|node| id("units.node", &node)).transpose()?,
            promised: row.promised.map(|node| id("units.promised", &node)).transpose()?,
            grants: from_json("units.grants", &row.grants)?,
            placed_ms: row.placed_ms,
            placed_by: row
                .placed_by
                .map(|plan| unsigned("units.placed_by", plan).map(PlanSequence))
                .transpose()?,
            meta: Meta {
                revision: Revision(unsigned("units.revision", row.revision)?),
                created_ms: row.created_ms,
            },
        })
    }
}

fn owner(row: &UnitRow) -> Result<Option<Owner>, StoreError> {
    let name = |name: &Option<String>| -> Result<ResourceName, StoreError> {
        id("units.owner_name", name.as_deref().unwrap_or_default())
    };
    let part =
        |value: Option<i64>| value.ok_or_else(|| corrupt("units", "an owner's number is missing"));
    Ok(match row.owner_kind.as_deref() {
        None => None,
        Some("service") => Some(Owner::Service {
            name: name(&row.owner_name)?,
            generation: unsigned("units.owner_generation", part(row.owner_generation)?)?,
        }),
        Some("job") => Some(Owner::Job {
            name: name(&row.owner_name)?,
            index: unsigned("units.owner_index", part(row.owner_index)?)?,
            attempt: unsigned("units.owner_attempt", part(row.owner_attempt)?)?,
        }),
        Some(other) => return Err(corrupt("units.owner_kind", format!("`{other}` is not known"))),
    })
}

fn status(row: &UnitRow) -> Result<UnitStatus, StoreError> {
    let reason = row.reason.as_deref();
    Ok(UnitStatus {
        state: named("units.state", UnitState::parse, &row.state)?,
        reason: reason.map(|reason| named("units.reason", Reason::parse, reason)).transpose()?,
        message: row.message.clone(),
        restarts: unsigned("units.restarts", row.restarts)?,
        exit_code: row.exit_code.map(|code| unsigned("units.exit_code", code)).transpose()?,
        started_ms: row.started_ms,
        finished_ms: row.finished_ms,
        endpoints: from_json("units.endpoints", &row.endpoints)?,
        sequence: unsigned("units.status_sequence", row.status_sequence)?,
    })
}

impl<'unit> LifeColumns<'unit> {
    fn new(unit: &'unit Unit) -> Result<Self, StoreError> {
        let status = &unit.status;
        Ok(Self {
            desired: desired_name(unit.desired),
            state: status.state.as_str(),
            reason: status.reason.map(Reason::as_str),
            message: status.message.as_deref().map(cleaned),
            node: unit.node.as_ref().map(NodeName::as_str),
            placed_by: unit.placed_by.map(|plan| number("placed_by", plan.0)).transpose()?,
            restarts: i64::from(status.restarts),
            exit_code: status.exit_code.map(i64::from),
            started_ms: status.started_ms,
            finished_ms: status.finished_ms,
            status_sequence: number("status.sequence", status.sequence)?,
            endpoints: to_json("endpoints", &status.endpoints)?,
            promised: unit.promised.as_ref().map(NodeName::as_str),
            grants: to_json("grants", &unit.grants)?,
            placed_ms: unit.placed_ms,
            revision: number("revision", unit.meta.revision.0)?,
        })
    }
}

/// The unit of that id.
pub(crate) async fn unit_by_id(db: &mut Tx, id: &UnitId) -> Result<Option<Unit>, StoreError> {
    let row: Option<UnitRow> = on_db!(db, |connection| {
        sqlx::query_as(UNIT_BY_ID).bind(id.as_str()).fetch_optional(connection).await
    })?;
    row.map(Unit::try_from).transpose()
}

/// The unit of that name.
pub(crate) async fn unit_by_name(
    db: &mut Tx,
    namespace: &NamespacePath,
    name: &str,
) -> Result<Option<Unit>, StoreError> {
    let row: Option<UnitRow> = on_db!(db, |connection| {
        let query = sqlx::query_as(UNIT_BY_NAME).bind(namespace.as_str()).bind(name);
        query.fetch_optional(connection).await
    })?;
    row.map(Unit::try_from).transpose()
}

/// All units, or those in a namespace and below it.
pub(crate) async fn unit_list(
    db: &mut Tx,
    namespace: Option<&NamespacePath>,
) -> Result<Vec<Unit>, StoreError> {
    let rows: Vec<UnitRow> = on_db!(db, |connection| {
        sqlx::query_as(UNITS_WITHIN).bind(within(namespace)).fetch_all(connection).await
    })?;
    rows.into_iter().map(Unit::try_from).collect()
}

/// Units on a node that have not ended, by id.
pub(crate) async fn unit_list_on_node(db: &mut Tx, node: &str) -> Result<Vec<Unit>, StoreError> {
    let rows: Vec<UnitRow> = on_db!(db, |connection| sqlx::query_as(UNITS_ON_NODE)
        .bind(node)
        .fetch_all(connection)
        .await)?;
    rows.into_iter().map(Unit::try_from).collect()
}

/// How many units a service or job has, ended ones too.
pub(crate) async fn unit_count_of_owner(
    db: &mut Tx,
    namespace: &NamespacePath,
    kind: Kind,
    name: &ResourceName,
) -> Result<i64, StoreError> {
    let (count,): (i64,) = on_db!(db, |connection| {
        let query = sqlx::query_as(UNITS_OF_OWNER)
            .bind(namespace.as_str())
            .bind(kind.as_str())
            .bind(name.as_str());
        query.fetch_one(connection).await
    })?;
    Ok(count)
}

/// Writes a new unit.
pub(crate) async fn unit_insert(db: &mut Tx, unit: &Unit) -> Result<(), StoreError> {
    let template = TemplateColumns::new(&unit.template)?;
    let life = LifeColumns::new(unit)?;
    let labels = to_json("labels", &*unit.labels)?;
    let owner_kind = unit.owner.as_ref().map(|owner| owner.kind().as_str());
    let owner_name = unit.owner.as_ref().map(|owner| owner.name().as_str());
    let (generation, index, attempt) = match &unit.owner {
        Some(Owner::Service { generation, .. }) => {
            (Some(number("generation", *generation)?), None, None)
        }
        Some(Owner::Job { index, attempt, .. }) => {
            (None, Some(i64::from(*index)), Some(i64::from(*attempt)))
        }
        None => (None, None, None),
    };
    on_db!(db, |connection| {
        let query = sqlx::query(UNIT_INSERT)
            .bind(unit.id.as_str())
            .bind(unit.namespace.as_str())
            .bind(unit.name.as_str())
            .bind(owner_kind)
            .bind(owner_name)
            .bind(generation)
            .bind(index)
            .bind(attempt)
            .bind(template.runtime)
            .bind(template.priority)
            .bind(template.cpu_milli)
            .bind(template.memory_bytes)
            .bind(template.disk_bytes)
            .bind(template.is_revocable)
            .bind(template.gang.as_deref())
            .bind(unit.remove_when_done)
            .bind(&labels)
            .bind(&template.template)
            .bind(unit.meta.created_ms)
            .bind(life.desired)
            .bind(life.state)
            .bind(life.reason)
            .bind(life.message.as_deref())
            .bind(life.node)
            .bind(life.placed_by)
            .bind(life.restarts)
            .bind(life.exit_code)
            .bind(life.started_ms)
            .bind(life.finished_ms)
            .bind(life.status_sequence)
            .bind(&life.endpoints)
            .bind(life.promised)
            .bind(&life.grants)
            .bind(life.placed_ms)
            .bind(life.revision);
        query.execute(connection).await.map(drop)
    })?;
    Ok(())
}

/// Writes what changes in a unit's life.
pub(crate) async fn unit_update(db: &mut Tx, unit: &Unit) -> Result<(), StoreError> {
    let life = LifeColumns::new(unit)?;
    on_db!(db, |connection| {
        let query = sqlx::query(UNIT_UPDATE)
            .bind(unit.id.as_str())
            .bind(life.desired)
            .bind(life.state)
            .bind(life.reason)
            .bind(life.message.as_deref())
            .bind(life.node)
            .bind(life.placed_by)
            .bind(life.restarts)
            .bind(life.exit_code)
            .bind(life.started_ms)
            .bind(life.finished_ms)
            .bind(life.status_sequence)
            .bind(&life.endpoints)
            .bind(life.promised)
            .bind(&life.grants)
            .bind(life.placed_ms)
            .bind(life.revision);
        query.execute(connection).await.map(drop)
    })?;
    Ok(())
}

/// Removes a unit's row, and its explanation.
pub(crate) async fn unit_remove(db: &mut Tx, id: &UnitId) -> Result<(), StoreError> {
    on_db!(db, |connection| {
        sqlx::query(UNIT_REMOVE).bind(id.as_str()).execute(connection).await.map(drop)
    })?;
    Ok(())
}
