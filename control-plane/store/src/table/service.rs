//! The table `services`.

use brig_api::object::{Meta, Service};
use brig_api::spec::ServiceSpec;
use brig_api::{NamespacePath, ResourceName, Revision};

use super::{TemplateColumns, within};
use crate::columns::{from_json, id, number, to_json, unsigned};
use crate::database::{Tx, on_db};
use crate::error::StoreError;
use crate::many::{execute_many, fetch_many};

macro_rules! select {
    ($tail:literal) => {
        concat!(
            "SELECT namespace, name, replicas, max_unavailable, generation, is_deleting, labels, template, \
             revision, created_ms \
             FROM services ",
            $tail
        )
    };
}
const SERVICE_GET: &str = select!("WHERE namespace = $1 AND name = $2");
const SERVICES_WITHIN: &str = select!(
    "WHERE CAST($1 AS TEXT) IS NULL OR namespace = $1 OR substr(namespace, 1, length($1) + 1) = $1 || '/' \
     ORDER BY namespace, name"
);
const SERVICE_PUT: &str = "INSERT INTO services (namespace, name, replicas, max_unavailable, generation, is_deleting, runtime, \
    priority, cpu_milli, memory_bytes, disk_bytes, labels, template, revision, created_ms) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) \
    ON CONFLICT (namespace, name) DO UPDATE SET replicas = excluded.replicas, \
    max_unavailable = excluded.max_unavailable, generation = excluded.generation, \
    is_deleting = excluded.is_deleting, runtime = excluded.runtime, priority = excluded.priority, \
    cpu_milli = excluded.cpu_milli, memory_bytes = excluded.memory_bytes, disk_bytes = excluded.disk_bytes, \
    labels = excluded.labels, template = excluded.template, revision = excluded.revision";
const SERVICES_NAMED: &str =
    select!("WHERE (namespace, name) IN (SELECT column1, column2 FROM (VALUES {rows}) AS asked)");
const SERVICES_IN: &str = "SELECT COUNT(*) FROM services WHERE namespace = $1";
const SERVICES_REMOVE: &str = "DELETE FROM services WHERE (namespace, name) IN \
    (SELECT column1, column2 FROM (VALUES {rows}) AS asked)";

#[derive(sqlx::FromRow)]
struct ServiceRow {
    namespace: String,
    name: String,
    replicas: i64,
    max_unavailable: i64,
    generation: i64,
    is_deleting: bool,
    labels: String,
    template: String,
    revision: i64,
    created_ms: i64,
}

impl TryFrom<ServiceRow> for Service {
    type Error = StoreError;

    fn try_from(row: ServiceRow) -> Result<Self, StoreError> {
        Ok(Self {
            spec: ServiceSpec {
                name: id("services.name", &row.name)?,
                namespace: id("services.namespace", &row.namespace)?,
                replicas: unsigned("services.replicas", row.replicas)?,
                max_unavailable: unsigned("services.max_unavailable", row.max_unavailable)?,
                unit: from_json("services.template", &row.template)?,
                labels: from_json("services.labels", &row.labels)?,
            },
            generation: unsigned("services.generation", row.generation)?,
            is_deleting: row.is_deleting,
            meta: Meta {
                revision: Revision(unsigned("services.revision", row.revision)?),
                created_ms: row.created_ms,
            },
        })
    }
}

/// The service of that name.
pub(crate) async fn service_get(
    db: &mut Tx,
    namespace: &NamespacePath,
    name: &str,
) -> Result<Option<Service>, StoreError> {
    let row: Option<ServiceRow> = on_db!(db, |connection| {
        let query = sqlx::query_as(SERVICE_GET).bind(namespace.as_str()).bind(name);
        query.fetch_optional(connection).await
    })?;
    row.map(Service::try_from).transpose()
}

/// All services, or those in a namespace and below it.
pub(crate) async fn service_list(
    db: &mut Tx,
    namespace: Option<&NamespacePath>,
) -> Result<Vec<Service>, StoreError> {
    let rows: Vec<ServiceRow> = on_db!(db, |connection| {
        sqlx::query_as(SERVICES_WITHIN).bind(within(namespace)).fetch_all(connection).await
    })?;
    rows.into_iter().map(Service::try_from).collect()
}

/// Writes a service, new or changed.
pub(crate) async fn service_put(db: &mut Tx, service: &Service) -> Result<(), StoreError> {
    let spec = &service.spec;
    let template = TemplateColumns::new(&spec.unit)?;
    let labels = to_json("labels", &spec.labels)?;
    let generation = number("generation", service.generation)?;
    let revision = number("revision", service.meta.revision.0)?;
    on_db!(db, |connection| {
        let query = sqlx::query(SERVICE_PUT)
            .bind(spec.namespace.as_str())
            .bind(spec.name.as_str())
            .bind(i64::from(spec.replicas))
            .bind(i64::from(spec.max_unavailable))
            .bind(generation)
            .bind(service.is_deleting)
            .bind(template.runtime)
            .bind(template.priority)
            .bind(template.cpu_milli)
            .bind(template.memory_bytes)
            .bind(template.disk_bytes)
            .bind(&labels)
            .bind(&template.template)
            .bind(revision)
            .bind(service.meta.created_ms);
        query.execute(connection).await.map(drop)
    })?;
    Ok(())
}

/// The services of those names that exist, in no order.
pub(crate) async fn services_named(
    db: &mut Tx,
    names: &[(&NamespacePath, &ResourceName)],
) -> Result<Vec<Service>, StoreError> {
    let rows = fetch_many!(db, ServiceRow, SERVICES_NAMED, 2, names, |query, (namespace, name)| {
        query.bind(namespace.as_str()).bind(name.as_str())
    });
    rows.into_iter().map(Service::try_from).collect()
}

/// How many services are in the namespace itself.
pub(crate) async fn service_count(
    db: &mut Tx,
    namespace: &NamespacePath,
) -> Result<i64, StoreError> {
    let (count,): (i64,) = on_db!(db, |connection| {
        sqlx::query_as(SERVICES_IN).bind(namespace.as_str()).fetch_one(connection).await
    })?;
    Ok(count)
}

/// Removes the services' rows.
pub(crate) async fn services_remove(
    db: &mut Tx,
    names: &[(&NamespacePath, &ResourceName)],
) -> Result<(), StoreError> {
    execute_many!(db, SERVICES_REMOVE, 2, names, |query, (namespace, name)| query
        .bind(namespace.as_str())
        .bind(name.as_str()));
    Ok(())
}
