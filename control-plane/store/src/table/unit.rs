//! The table `units`.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::{Desired, Meta, Owner, Unit, UnitStatus};
use brig_api::spec::Labels;
use brig_api::unit_spec::UnitTemplate;
use brig_api::{Kind, NamespacePath, NodeName, PlanSequence, ResourceName, Revision, UnitId};
use futures::TryStreamExt as _;
use serde::de::DeserializeOwned;

use super::{TemplateColumns, kind, within};
use crate::columns::{cleaned, corrupt, from_json, id, named, number, to_json, unsigned};
use crate::database::{Tx, on_db};
use crate::error::StoreError;
use crate::many::{ROWS_MAX, execute_many, fetch_many};

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
const UNITS_BY_IDS: &str = select!("WHERE id IN (VALUES {rows})");
const UNIT_HOMES: &str = "SELECT id, namespace, node FROM units WHERE id IN (VALUES {rows})";
const UNITS_EXISTING: &str = "SELECT id FROM units WHERE id IN (VALUES {rows})";
const UNIT_NAMES_TAKEN: &str = "SELECT namespace, name FROM units WHERE (namespace, name) IN \
    (SELECT column1, column2 FROM (VALUES {rows}) AS asked)";
const UNITS_OF_OWNERS: &str = "WITH asked (namespace, kind, name) AS (VALUES {rows}) \
    SELECT asked.namespace, asked.kind, asked.name, (SELECT COUNT(*) FROM units \
    WHERE units.namespace = asked.namespace AND units.owner_kind = asked.kind AND units.owner_name = asked.name) \
    FROM asked";
const UNITS_INSERT: &str = "INSERT INTO units (id, namespace, name, owner_kind, owner_name, owner_generation, \
    owner_index, owner_attempt, runtime, priority, cpu_milli, memory_bytes, disk_bytes, is_revocable, gang, \
    remove_when_done, labels, template, created_ms, desired, state, reason, message, node, placed_by, restarts, \
    exit_code, started_ms, finished_ms, status_sequence, endpoints, promised, grants, placed_ms, revision) \
    VALUES {rows}";
/// Everything else of a unit stays as it was created.
const UNITS_UPDATE: &str = "WITH life (id, desired, state, reason, message, node, placed_by, restarts, exit_code, \
    started_ms, finished_ms, status_sequence, endpoints, promised, grants, runtime, placed_ms, revision) AS (VALUES {rows}) \
    UPDATE units SET desired = life.desired, state = life.state, reason = life.reason, message = life.message, \
    node = life.node, placed_by = life.placed_by, restarts = life.restarts, exit_code = life.exit_code, \
    started_ms = life.started_ms, finished_ms = life.finished_ms, status_sequence = life.status_sequence, \
    endpoints = life.endpoints, promised = life.promised, grants = life.grants, runtime = life.runtime, \
    placed_ms = life.placed_ms, revision = life.revision FROM life WHERE units.id = life.id";
const UNITS_REMOVE: &str = "DELETE FROM units WHERE id IN (VALUES {rows})";

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
    runtime: &'static str,
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

/// What equal rows have in common: units of one service or job share their template and their labels.
#[derive(Default)]
struct Shared {
    templates: HashMap<String, Arc<UnitTemplate>>,
    labels: HashMap<String, Arc<Labels>>,
}

/// The value of an equal text, read once.
fn shared<T: DeserializeOwned>(
    known: &mut HashMap<String, Arc<T>>,
    what: &str,
    text: String,
) -> Result<Arc<T>, StoreError> {
    if let Some(value) = known.get(&text) {
        return Ok(Arc::clone(value));
    }
    let value = Arc::new(from_json(what, &text)?);
    known.insert(text, Arc::clone(&value));
    Ok(value)
}

impl Shared {
    fn unit(&mut self, row: UnitRow) -> Result<Unit, StoreError> {
        Ok(Unit {
            owner: owner(&row)?,
            status: status(&row)?,
            id: id("units.id", &row.id)?,
            name: id("units.name", &row.name)?,
            namespace: id("units.namespace", &row.namespace)?,
            labels: shared(&mut self.labels, "units.labels", row.labels)?,
            template: shared(&mut self.templates, "units.template", row.template)?,
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

    fn units(&mut self, rows: Vec<UnitRow>) -> Result<Vec<Unit>, StoreError> {
        rows.into_iter().map(|row| self.unit(row)).collect()
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
            runtime: unit.runtime_label(),
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
    row.map(|row| Shared::default().unit(row)).transpose()
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
    row.map(|row| Shared::default().unit(row)).transpose()
}

/// All units, or those in a namespace and below it.
pub(crate) async fn unit_list(
    db: &mut Tx,
    namespace: Option<&NamespacePath>,
) -> Result<Vec<Unit>, StoreError> {
    let (mut shared, mut units) = (Shared::default(), Vec::new());
    // Row by row: the templates of all units together are large, and most are equal.
    on_db!(db, |connection| {
        let query = sqlx::query_as::<_, UnitRow>(UNITS_WITHIN).bind(within(namespace));
        let mut rows = query.fetch(connection);
        while let Some(row) = rows.try_next().await? {
            units.push(shared.unit(row)?);
        }
    });
    Ok(units)
}

/// Units on a node that have not ended, by id.
pub(crate) async fn unit_list_on_node(db: &mut Tx, node: &str) -> Result<Vec<Unit>, StoreError> {
    let rows: Vec<UnitRow> = on_db!(db, |connection| sqlx::query_as(UNITS_ON_NODE)
        .bind(node)
        .fetch_all(connection)
        .await)?;
    Shared::default().units(rows)
}

/// The units of those ids that exist, in no order.
pub(crate) async fn units_by_ids(db: &mut Tx, ids: &[&UnitId]) -> Result<Vec<Unit>, StoreError> {
    let rows = fetch_many!(db, UnitRow, UNITS_BY_IDS, 1, ids, |query, id| query.bind(id.as_str()));
    Shared::default().units(rows)
}

/// Namespace and node of those units that exist.
pub(crate) async fn unit_homes(
    db: &mut Tx,
    ids: &[&UnitId],
) -> Result<HashMap<UnitId, (NamespacePath, Option<NodeName>)>, StoreError> {
    let rows =
        fetch_many!(db, (String, String, Option<String>), UNIT_HOMES, 1, ids, |query, id| query
            .bind(id.as_str()));
    let homes = rows.iter().map(|(unit, namespace, node)| {
        let node = node.as_deref().map(|node| id("units.node", node)).transpose()?;
        Ok((id("units.id", unit)?, (id("units.namespace", namespace)?, node)))
    });
    homes.collect()
}

/// Which of those ids exist.
pub(crate) async fn units_existing(
    db: &mut Tx,
    ids: &[&UnitId],
) -> Result<HashSet<UnitId>, StoreError> {
    let rows =
        fetch_many!(db, (String,), UNITS_EXISTING, 1, ids, |query, id| query.bind(id.as_str()));
    rows.iter().map(|(text,)| id("units.id", text)).collect()
}

/// Which of those names units have.
pub(crate) async fn unit_names_taken(
    db: &mut Tx,
    names: &[(&NamespacePath, &ResourceName)],
) -> Result<HashSet<(NamespacePath, ResourceName)>, StoreError> {
    let rows = fetch_many!(db, (String, String), UNIT_NAMES_TAKEN, 2, names, |query,
                                                                              (
        namespace,
        name,
    )| {
        query.bind(namespace.as_str()).bind(name.as_str())
    });
    let taken = rows
        .iter()
        .map(|(namespace, name)| Ok((id("units.namespace", namespace)?, id("units.name", name)?)));
    taken.collect()
}

/// How many units each of those services and jobs has, ended ones too.
pub(crate) async fn unit_counts_of_owners(
    db: &mut Tx,
    owners: &[(&NamespacePath, Kind, &ResourceName)],
) -> Result<HashMap<(NamespacePath, Kind, ResourceName), i64>, StoreError> {
    let rows = fetch_many!(db, (String, String, String, i64), UNITS_OF_OWNERS, 3, owners, |query,
                                                                                           (
        namespace,
        kind,
        name,
    )| {
        query.bind(namespace.as_str()).bind(kind.as_str()).bind(name.as_str())
    });
    let counts = rows.iter().map(|(namespace, owner_kind, name, count)| {
        let namespace = id("units.namespace", namespace)?;
        Ok(((namespace, kind(owner_kind)?, id("units.owner_name", name)?), *count))
    });
    counts.collect()
}

/// The columns that stay as a unit was created, of equal templates and labels made once.
struct NewColumns<'unit> {
    unit: &'unit Unit,
    template: Arc<TemplateColumns>,
    labels: Arc<str>,
    owner: OwnerColumns,
    life: LifeColumns<'unit>,
}

/// The columns of templates and labels that units share, by the address of what they share: they are borrowed, so
/// none is another's meanwhile.
#[derive(Default)]
struct SharedColumns {
    templates: HashMap<usize, Arc<TemplateColumns>>,
    labels: HashMap<usize, Arc<str>>,
}

impl SharedColumns {
    fn row<'unit>(&mut self, unit: &'unit Unit) -> Result<NewColumns<'unit>, StoreError> {
        let template = match self.templates.entry(Arc::as_ptr(&unit.template).addr()) {
            Entry::Occupied(known) => Arc::clone(known.get()),
            Entry::Vacant(new) => {
                Arc::clone(new.insert(Arc::new(TemplateColumns::new(&unit.template)?)))
            }
        };
        let labels = match self.labels.entry(Arc::as_ptr(&unit.labels).addr()) {
            Entry::Occupied(known) => Arc::clone(known.get()),
            Entry::Vacant(new) => Arc::clone(new.insert(to_json("labels", &*unit.labels)?.into())),
        };
        let owner = OwnerColumns::new(unit.owner.as_ref())?;
        Ok(NewColumns { unit, template, labels, owner, life: LifeColumns::new(unit)? })
    }
}

/// The numbers of a unit's owner.
#[derive(Default)]
struct OwnerColumns {
    generation: Option<i64>,
    index: Option<i64>,
    attempt: Option<i64>,
}

impl OwnerColumns {
    fn new(owner: Option<&Owner>) -> Result<Self, StoreError> {
        Ok(match owner {
            Some(Owner::Service { generation, .. }) => {
                let generation = Some(number("generation", *generation)?);
                Self { generation, ..Self::default() }
            }
            Some(Owner::Job { index, attempt, .. }) => {
                let (index, attempt) = (Some(i64::from(*index)), Some(i64::from(*attempt)));
                Self { generation: None, index, attempt }
            }
            None => Self::default(),
        })
    }
}

/// Writes a new unit.
pub(crate) async fn unit_insert(db: &mut Tx, unit: &Unit) -> Result<(), StoreError> {
    units_insert(db, &[unit]).await
}

/// Writes new units.
pub(crate) async fn units_insert(db: &mut Tx, units: &[&Unit]) -> Result<(), StoreError> {
    let mut shared = SharedColumns::default();
    for chunk in units.chunks(ROWS_MAX) {
        let mut rows = Vec::with_capacity(chunk.len());
        for unit in chunk {
            rows.push(shared.row(unit)?);
        }
        execute_many!(db, UNITS_INSERT, 35, rows, |query, row| {
            let NewColumns { unit, template, labels, owner, life } = row;
            query
                .bind(unit.id.as_str())
                .bind(unit.namespace.as_str())
                .bind(unit.name.as_str())
                .bind(unit.owner.as_ref().map(|owner| owner.kind().as_str()))
                .bind(unit.owner.as_ref().map(|owner| owner.name().as_str()))
                .bind(owner.generation)
                .bind(owner.index)
                .bind(owner.attempt)
                .bind(life.runtime)
                .bind(template.priority)
                .bind(template.cpu_milli)
                .bind(template.memory_bytes)
                .bind(template.disk_bytes)
                .bind(template.is_revocable)
                .bind(template.gang.as_deref())
                .bind(unit.remove_when_done)
                .bind(&**labels)
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
                .bind(life.revision)
        });
    }
    Ok(())
}

/// Writes what changes in a unit's life.
pub(crate) async fn unit_update(db: &mut Tx, unit: &Unit) -> Result<(), StoreError> {
    units_update(db, &[unit]).await
}

/// Writes what changes in the lives of units, each named once.
pub(crate) async fn units_update(db: &mut Tx, units: &[&Unit]) -> Result<(), StoreError> {
    for chunk in units.chunks(ROWS_MAX) {
        let mut rows = Vec::with_capacity(chunk.len());
        for unit in chunk {
            rows.push((&unit.id, LifeColumns::new(unit)?));
        }
        execute_many!(db, UNITS_UPDATE, 18, rows, |query, (id, life)| query
            .bind(id.as_str())
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
            .bind(life.runtime)
            .bind(life.placed_ms)
            .bind(life.revision));
    }
    Ok(())
}

/// Removes the units' rows, and their explanations.
pub(crate) async fn units_remove(db: &mut Tx, ids: &[&UnitId]) -> Result<(), StoreError> {
    execute_many!(db, UNITS_REMOVE, 1, ids, |query, id| query.bind(id.as_str()));
    Ok(())
}
