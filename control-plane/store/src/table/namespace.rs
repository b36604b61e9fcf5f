//! The table `namespaces`, and the question whether anything is in one.

use std::collections::HashSet;

use brig_api::object::{Meta, Namespace};
use brig_api::spec::NamespaceSpec;
use brig_api::{Bytes, MilliCpu, NamespacePath, Resources, Revision};

use super::{amounts, within};
use crate::columns::{from_json, id, number, text, to_json, unsigned};
use crate::database::{Tx, on_db};
use crate::error::StoreError;
use crate::many::fetch_many;

macro_rules! select {
    ($tail:literal) => {
        concat!(
            "SELECT name, description, quota_cpu_milli, quota_memory_bytes, quota_disk_bytes, quota_scalars, \
             guarantee_cpu_milli, guarantee_memory_bytes, guarantee_disk_bytes, guarantee_scalars, weight, \
             max_units, max_services, max_jobs, revision, created_ms FROM namespaces ",
            $tail
        )
    };
}
const NAMESPACE_GET: &str = select!("WHERE name = $1");
const NAMESPACES_WITHIN: &str = select!(
    "WHERE CAST($1 AS TEXT) IS NULL OR name = $1 OR substr(name, 1, length($1) + 1) = $1 || '/' ORDER BY name"
);
const NAMESPACE_PUT: &str = "INSERT INTO namespaces (name, parent, description, quota_cpu_milli, \
    quota_memory_bytes, quota_disk_bytes, quota_scalars, guarantee_cpu_milli, guarantee_memory_bytes, \
    guarantee_disk_bytes, guarantee_scalars, weight, max_units, max_services, max_jobs, revision, created_ms) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17) \
    ON CONFLICT (name) DO UPDATE SET description = excluded.description, \
    quota_cpu_milli = excluded.quota_cpu_milli, quota_memory_bytes = excluded.quota_memory_bytes, \
    quota_disk_bytes = excluded.quota_disk_bytes, quota_scalars = excluded.quota_scalars, \
    guarantee_cpu_milli = excluded.guarantee_cpu_milli, guarantee_memory_bytes = excluded.guarantee_memory_bytes, \
    guarantee_disk_bytes = excluded.guarantee_disk_bytes, guarantee_scalars = excluded.guarantee_scalars, \
    weight = excluded.weight, max_units = excluded.max_units, max_services = excluded.max_services, \
    max_jobs = excluded.max_jobs, \
    revision = excluded.revision";
const NAMESPACES_EXISTING: &str = "SELECT name FROM namespaces WHERE name IN (VALUES {rows})";
const NAMESPACE_REMOVE: &str = "DELETE FROM namespaces WHERE name = $1";
/// One thing of each kind that is in the namespace.
const NAMESPACE_CONTENT: &str = "SELECT 'namespace', MIN(name) FROM namespaces WHERE parent = $1 HAVING COUNT(*) > 0 \
    UNION ALL SELECT 'service', MIN(name) FROM services WHERE namespace = $1 HAVING COUNT(*) > 0 \
    UNION ALL SELECT 'job', MIN(name) FROM jobs WHERE namespace = $1 HAVING COUNT(*) > 0 \
    UNION ALL SELECT 'unit', MIN(name) FROM units WHERE namespace = $1 HAVING COUNT(*) > 0 \
    UNION ALL SELECT 'secret', MIN(name) FROM secrets WHERE namespace = $1 HAVING COUNT(*) > 0 \
    UNION ALL SELECT 'config', MIN(name) FROM configs WHERE namespace = $1 HAVING COUNT(*) > 0";

#[derive(sqlx::FromRow)]
struct NamespaceRow {
    name: String,
    description: String,
    quota_cpu_milli: Option<i64>,
    quota_memory_bytes: Option<i64>,
    quota_disk_bytes: Option<i64>,
    quota_scalars: Option<String>,
    guarantee_cpu_milli: Option<i64>,
    guarantee_memory_bytes: Option<i64>,
    guarantee_disk_bytes: Option<i64>,
    guarantee_scalars: Option<String>,
    weight: Option<i64>,
    max_units: Option<i64>,
    max_services: Option<i64>,
    max_jobs: Option<i64>,
    revision: i64,
    created_ms: i64,
}

impl TryFrom<NamespaceRow> for Namespace {
    type Error = StoreError;

    fn try_from(row: NamespaceRow) -> Result<Self, StoreError> {
        let quota = resources(
            "namespaces.quota",
            (row.quota_cpu_milli, row.quota_memory_bytes, row.quota_disk_bytes),
            row.quota_scalars.as_deref(),
        )?;
        let guarantee = resources(
            "namespaces.guarantee",
            (row.guarantee_cpu_milli, row.guarantee_memory_bytes, row.guarantee_disk_bytes),
            row.guarantee_scalars.as_deref(),
        )?;
        let count = |what: &str, value: Option<i64>| {
            value.map(|value| unsigned::<u32>(what, value)).transpose()
        };
        Ok(Self {
            spec: NamespaceSpec {
                name: id("namespaces.name", &row.name)?,
                quota,
                guarantee,
                weight: count("namespaces.weight", row.weight)?,
                max_units: count("namespaces.max_units", row.max_units)?,
                max_services: count("namespaces.max_services", row.max_services)?,
                max_jobs: count("namespaces.max_jobs", row.max_jobs)?,
                description: row.description,
            },
            meta: Meta {
                revision: Revision(unsigned("namespaces.revision", row.revision)?),
                created_ms: row.created_ms,
            },
        })
    }
}

/// An amount of everything, or none where the columns are empty.
fn resources(
    what: &str,
    amounts: (Option<i64>, Option<i64>, Option<i64>),
    scalars: Option<&str>,
) -> Result<Option<Resources>, StoreError> {
    let ((Some(cpu), Some(memory), Some(disk)), Some(scalars)) = (amounts, scalars) else {
        return Ok(None);
    };
    Ok(Some(Resources {
        cpu: MilliCpu(unsigned(&format!("{what}_cpu_milli"), cpu)?),
        memory: Bytes(unsigned(&format!("{what}_memory_bytes"), memory)?),
        disk: Bytes(unsigned(&format!("{what}_disk_bytes"), disk)?),
        scalars: from_json(&format!("{what}_scalars"), scalars)?,
    }))
}

/// The namespace of that path.
pub(crate) async fn namespace_get(
    db: &mut Tx,
    name: &str,
) -> Result<Option<Namespace>, StoreError> {
    let row: Option<NamespaceRow> = on_db!(db, |connection| sqlx::query_as(NAMESPACE_GET)
        .bind(name)
        .fetch_optional(connection)
        .await)?;
    row.map(Namespace::try_from).transpose()
}

/// All namespaces, or one and those below it.
pub(crate) async fn namespace_list(
    db: &mut Tx,
    namespace: Option<&NamespacePath>,
) -> Result<Vec<Namespace>, StoreError> {
    let rows: Vec<NamespaceRow> = on_db!(db, |connection| {
        sqlx::query_as(NAMESPACES_WITHIN).bind(within(namespace)).fetch_all(connection).await
    })?;
    rows.into_iter().map(Namespace::try_from).collect()
}

/// Which of those namespaces exist.
pub(crate) async fn namespaces_existing(
    db: &mut Tx,
    names: &[&NamespacePath],
) -> Result<HashSet<NamespacePath>, StoreError> {
    let rows = fetch_many!(db, (String,), NAMESPACES_EXISTING, 1, names, |query, name| query
        .bind(name.as_str()));
    rows.iter().map(|(name,)| id("namespaces.name", name)).collect()
}

/// Writes a namespace, new or changed.
pub(crate) async fn namespace_put(db: &mut Tx, namespace: &Namespace) -> Result<(), StoreError> {
    let spec = &namespace.spec;
    let parent = spec.name.parent();
    let quota = spec.quota.as_ref().map(|quota| amounts("quota", quota)).transpose()?;
    let scalars = spec.quota.as_ref().map(|quota| to_json("quota", &quota.scalars)).transpose()?;
    let guarantee = spec.guarantee.as_ref();
    let assured = guarantee.map(|amount| amounts("guarantee", amount)).transpose()?;
    let assured_scalars =
        guarantee.map(|amount| to_json("guarantee", &amount.scalars)).transpose()?;
    let description = text("description", &spec.description)?;
    let revision = number("revision", namespace.meta.revision.0)?;
    on_db!(db, |connection| {
        let query = sqlx::query(NAMESPACE_PUT)
            .bind(spec.name.as_str())
            .bind(parent.as_ref().map(NamespacePath::as_str))
            .bind(description)
            .bind(quota.map(|(cpu, _, _)| cpu))
            .bind(quota.map(|(_, memory, _)| memory))
            .bind(quota.map(|(_, _, disk)| disk))
            .bind(scalars.as_deref())
            .bind(assured.map(|(cpu, _, _)| cpu))
            .bind(assured.map(|(_, memory, _)| memory))
            .bind(assured.map(|(_, _, disk)| disk))
            .bind(assured_scalars.as_deref())
            .bind(spec.weight.map(i64::from))
            .bind(spec.max_units.map(i64::from))
            .bind(spec.max_services.map(i64::from))
            .bind(spec.max_jobs.map(i64::from))
            .bind(revision)
            .bind(namespace.meta.created_ms);
        query.execute(connection).await.map(drop)
    })?;
    Ok(())
}

/// Removes a namespace's row.
pub(crate) async fn namespace_remove(db: &mut Tx, name: &str) -> Result<(), StoreError> {
    on_db!(db, |connection| {
        sqlx::query(NAMESPACE_REMOVE).bind(name).execute(connection).await.map(drop)
    })?;
    Ok(())
}

/// Something of each kind that is in the namespace: kind and name.
pub(crate) async fn namespace_content(
    db: &mut Tx,
    name: &str,
) -> Result<Vec<(String, String)>, StoreError> {
    Ok(on_db!(db, |connection| {
        sqlx::query_as(NAMESPACE_CONTENT).bind(name).fetch_all(connection).await
    })?)
}
