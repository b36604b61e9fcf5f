//! The tables `nodes` and `node_attributes`.

use std::collections::{BTreeMap, HashMap};

use brig_api::object::{Meta, Node, NodeFacts, NodeState};
use brig_api::unit_spec::Runtime;
use brig_api::{Bytes, MilliCpu, NodeName, Resources, Revision};

use super::amounts;
use crate::columns::{from_json, id, named, number, text, to_json, unsigned};
use crate::database::{Tx, on_db};
use crate::error::StoreError;
use crate::many::{execute_many, fetch_many};

macro_rules! select {
    ($tail:literal) => {
        concat!(
            "SELECT name, state, state_since_ms, cpu_milli, memory_bytes, disk_bytes, scalars, runs_wasm, runs_oci, \
             address, agent_version, boot_id, taints, volumes, revision, created_ms FROM nodes ",
            $tail
        )
    };
}
const NODE_GET: &str = select!("WHERE name = $1");
const NODES: &str = select!("ORDER BY name");
const ATTRIBUTES: &str = "SELECT node, name, value FROM node_attributes \
    WHERE CAST($1 AS TEXT) IS NULL OR node = $1 ORDER BY node, name";
const NODE_PUT: &str = "INSERT INTO nodes (name, state, state_since_ms, cpu_milli, memory_bytes, disk_bytes, \
    scalars, runs_wasm, runs_oci, address, agent_version, boot_id, taints, volumes, revision, created_ms) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) \
    ON CONFLICT (name) DO UPDATE SET state = excluded.state, state_since_ms = excluded.state_since_ms, \
    cpu_milli = excluded.cpu_milli, memory_bytes = excluded.memory_bytes, disk_bytes = excluded.disk_bytes, \
    scalars = excluded.scalars, runs_wasm = excluded.runs_wasm, runs_oci = excluded.runs_oci, \
    address = excluded.address, agent_version = excluded.agent_version, boot_id = excluded.boot_id, \
    taints = excluded.taints, volumes = excluded.volumes, revision = excluded.revision";
const NODES_NAMED: &str = select!("WHERE name IN (VALUES {rows})");
const ATTRIBUTES_OF: &str =
    "SELECT node, name, value FROM node_attributes WHERE node IN (VALUES {rows})";
const NODE_STATES: &str = "SELECT name, state FROM nodes WHERE name IN (VALUES {rows})";
const NODES_SWITCH: &str = "WITH switch (name, state, state_since_ms, revision) AS (VALUES {rows}) \
    UPDATE nodes SET state = switch.state, state_since_ms = switch.state_since_ms, revision = switch.revision \
    FROM switch WHERE nodes.name = switch.name";
const ATTRIBUTES_REMOVE: &str = "DELETE FROM node_attributes WHERE node = $1";
const ATTRIBUTE_INSERT: &str =
    "INSERT INTO node_attributes (node, name, value) VALUES ($1, $2, $3)";
const NODE_REMOVE: &str = "DELETE FROM nodes WHERE name = $1";

#[derive(sqlx::FromRow)]
struct NodeRow {
    name: String,
    state: String,
    state_since_ms: i64,
    cpu_milli: i64,
    memory_bytes: i64,
    disk_bytes: i64,
    scalars: String,
    runs_wasm: bool,
    runs_oci: bool,
    address: String,
    agent_version: String,
    boot_id: String,
    taints: String,
    volumes: String,
    revision: i64,
    created_ms: i64,
}

type Attributes = BTreeMap<String, BTreeMap<String, String>>;

fn node(row: NodeRow, attributes: &mut Attributes) -> Result<Node, StoreError> {
    let runs = [(row.runs_wasm, Runtime::Wasm), (row.runs_oci, Runtime::Oci)];
    Ok(Node {
        name: id("nodes.name", &row.name)?,
        facts: NodeFacts {
            allocatable: Resources {
                cpu: MilliCpu(unsigned("nodes.cpu_milli", row.cpu_milli)?),
                memory: Bytes(unsigned("nodes.memory_bytes", row.memory_bytes)?),
                disk: Bytes(unsigned("nodes.disk_bytes", row.disk_bytes)?),
                scalars: from_json("nodes.scalars", &row.scalars)?,
            },
            attributes: attributes.remove(&row.name).unwrap_or_default(),
            taints: from_json("nodes.taints", &row.taints)?,
            volumes: from_json("nodes.volumes", &row.volumes)?,
            runtimes: runs
                .into_iter()
                .filter_map(|(runs, runtime)| runs.then_some(runtime))
                .collect(),
            address: row.address,
            agent_version: row.agent_version,
            boot_id: row.boot_id,
        },
        state: named("nodes.state", NodeState::parse, &row.state)?,
        state_since_ms: row.state_since_ms,
        held_artifacts: None,
        meta: Meta {
            revision: Revision(unsigned("nodes.revision", row.revision)?),
            created_ms: row.created_ms,
        },
    })
}

async fn attributes(db: &mut Tx, node: Option<&str>) -> Result<Attributes, StoreError> {
    let rows: Vec<(String, String, String)> =
        on_db!(db, |connection| sqlx::query_as(ATTRIBUTES).bind(node).fetch_all(connection).await)?;
    Ok(by_node(rows))
}

fn by_node(rows: Vec<(String, String, String)>) -> Attributes {
    let mut attributes = Attributes::new();
    for (node, name, value) in rows {
        attributes.entry(node).or_default().insert(name, value);
    }
    attributes
}

/// The node of that name.
pub(crate) async fn node_get(db: &mut Tx, name: &str) -> Result<Option<Node>, StoreError> {
    let row: Option<NodeRow> = on_db!(db, |connection| sqlx::query_as(NODE_GET)
        .bind(name)
        .fetch_optional(connection)
        .await)?;
    let Some(row) = row else {
        return Ok(None);
    };
    node(row, &mut attributes(db, Some(name)).await?).map(Some)
}

/// All nodes.
pub(crate) async fn node_list(db: &mut Tx) -> Result<Vec<Node>, StoreError> {
    let rows: Vec<NodeRow> =
        on_db!(db, |connection| sqlx::query_as(NODES).fetch_all(connection).await)?;
    let mut attributes = attributes(db, None).await?;
    rows.into_iter().map(|row| node(row, &mut attributes)).collect()
}

/// The nodes of those names that exist, in no order.
pub(crate) async fn nodes_named(db: &mut Tx, names: &[&NodeName]) -> Result<Vec<Node>, StoreError> {
    let rows =
        fetch_many!(db, NodeRow, NODES_NAMED, 1, names, |query, name| query.bind(name.as_str()));
    let found =
        fetch_many!(db, (String, String, String), ATTRIBUTES_OF, 1, names, |query, name| query
            .bind(name.as_str()));
    let mut attributes = by_node(found);
    rows.into_iter().map(|row| node(row, &mut attributes)).collect()
}

/// The states of the nodes of those names that exist.
pub(crate) async fn node_states(
    db: &mut Tx,
    names: &[&NodeName],
) -> Result<HashMap<NodeName, NodeState>, StoreError> {
    let rows = fetch_many!(db, (String, String), NODE_STATES, 1, names, |query, name| query
        .bind(name.as_str()));
    let states = rows.iter().map(|(name, state)| {
        Ok((id("nodes.name", name)?, named("nodes.state", NodeState::parse, state)?))
    });
    states.collect()
}

/// Writes the states of nodes, each named once; the rest of them stays.
pub(crate) async fn nodes_switch(db: &mut Tx, nodes: &[&Node]) -> Result<(), StoreError> {
    let mut rows = Vec::with_capacity(nodes.len());
    for node in nodes {
        rows.push((node, number("revision", node.meta.revision.0)?));
    }
    execute_many!(db, NODES_SWITCH, 4, rows, |query, (node, revision)| query
        .bind(node.name.as_str())
        .bind(node.state.as_str())
        .bind(node.state_since_ms)
        .bind(*revision));
    Ok(())
}

/// Writes a node without its attributes, new or changed.
pub(crate) async fn node_put(db: &mut Tx, node: &Node) -> Result<(), StoreError> {
    let facts = &node.facts;
    let (cpu_milli, memory_bytes, disk_bytes) = amounts("allocatable", &facts.allocatable)?;
    let scalars = to_json("allocatable", &facts.allocatable.scalars)?;
    let address = text("address", &facts.address)?;
    let agent_version = text("agent_version", &facts.agent_version)?;
    let boot_id = text("boot_id", &facts.boot_id)?;
    let taints = to_json("taints", &facts.taints)?;
    let volumes = to_json("volumes", &facts.volumes)?;
    let revision = number("revision", node.meta.revision.0)?;
    on_db!(db, |connection| {
        let query = sqlx::query(NODE_PUT)
            .bind(node.name.as_str())
            .bind(node.state.as_str())
            .bind(node.state_since_ms)
            .bind(cpu_milli)
            .bind(memory_bytes)
            .bind(disk_bytes)
            .bind(&scalars)
            .bind(facts.runtimes.contains(&Runtime::Wasm))
            .bind(facts.runtimes.contains(&Runtime::Oci))
            .bind(address)
            .bind(agent_version)
            .bind(boot_id)
            .bind(&taints)
            .bind(&volumes)
            .bind(revision)
            .bind(node.meta.created_ms);
        query.execute(connection).await.map(drop)
    })?;
    Ok(())
}

/// Writes a node's attributes, in place of those it had.
pub(crate) async fn node_attributes_put(db: &mut Tx, node: &Node) -> Result<(), StoreError> {
    on_db!(db, |connection| {
        sqlx::query(ATTRIBUTES_REMOVE).bind(node.name.as_str()).execute(connection).await.map(drop)
    })?;
    for (name, value) in &node.facts.attributes {
        let (name, value) = (text("attributes", name)?, text("attributes", value)?);
        on_db!(db, |connection| {
            let query =
                sqlx::query(ATTRIBUTE_INSERT).bind(node.name.as_str()).bind(name).bind(value);
            query.execute(connection).await.map(drop)
        })?;
    }
    Ok(())
}

/// Removes a node's row, and its attributes.
pub(crate) async fn node_remove(db: &mut Tx, name: &str) -> Result<(), StoreError> {
    on_db!(db, |connection| sqlx::query(NODE_REMOVE)
        .bind(name)
        .execute(connection)
        .await
        .map(drop))?;
    Ok(())
}
