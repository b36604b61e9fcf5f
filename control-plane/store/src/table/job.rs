//! The table `jobs`.

use brig_api::object::{Job, JobState, Meta};
use brig_api::spec::JobSpec;
use brig_api::{NamespacePath, ResourceName, Revision};

use super::{TemplateColumns, within};
use crate::columns::{from_json, id, named, number, to_json, unsigned};
use crate::database::{Tx, on_db};
use crate::error::StoreError;
use crate::many::{execute_many, fetch_many};

macro_rules! select {
    ($tail:literal) => {
        concat!(
            "SELECT namespace, name, state, parallelism, completions, retries, retry_after_ms, succeeded, failed, is_deleting, \
             labels, template, revision, created_ms FROM jobs ",
            $tail
        )
    };
}
const JOB_GET: &str = select!("WHERE namespace = $1 AND name = $2");
const JOBS_WITHIN: &str = select!(
    "WHERE CAST($1 AS TEXT) IS NULL OR namespace = $1 OR substr(namespace, 1, length($1) + 1) = $1 || '/' \
     ORDER BY namespace, name"
);
const JOB_PUT: &str = "INSERT INTO jobs (namespace, name, state, parallelism, completions, retries, \
    retry_after_ms, succeeded, failed, is_deleting, runtime, priority, cpu_milli, memory_bytes, disk_bytes, labels, template, revision, \
    created_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19) \
    ON CONFLICT (namespace, name) DO UPDATE SET state = excluded.state, parallelism = excluded.parallelism, \
    completions = excluded.completions, retries = excluded.retries, \
    retry_after_ms = excluded.retry_after_ms, succeeded = excluded.succeeded, \
    failed = excluded.failed, is_deleting = excluded.is_deleting, runtime = excluded.runtime, \
    priority = excluded.priority, cpu_milli = excluded.cpu_milli, memory_bytes = excluded.memory_bytes, \
    disk_bytes = excluded.disk_bytes, labels = excluded.labels, template = excluded.template, \
    revision = excluded.revision";
const JOBS_NAMED: &str =
    select!("WHERE (namespace, name) IN (SELECT column1, column2 FROM (VALUES {rows}) AS asked)");
const JOBS_IN: &str = "SELECT COUNT(*) FROM jobs WHERE namespace = $1";
const JOBS_ADVANCE: &str = "WITH progress (namespace, name, state, succeeded, failed, revision) AS (VALUES {rows}) \
    UPDATE jobs SET state = progress.state, succeeded = progress.succeeded, failed = progress.failed, \
    revision = progress.revision FROM progress \
    WHERE jobs.namespace = progress.namespace AND jobs.name = progress.name";
const JOBS_REMOVE: &str = "DELETE FROM jobs WHERE (namespace, name) IN \
    (SELECT column1, column2 FROM (VALUES {rows}) AS asked)";

#[derive(sqlx::FromRow)]
struct JobRow {
    namespace: String,
    name: String,
    state: String,
    parallelism: i64,
    completions: i64,
    retries: i64,
    retry_after_ms: Option<i64>,
    succeeded: i64,
    failed: i64,
    is_deleting: bool,
    labels: String,
    template: String,
    revision: i64,
    created_ms: i64,
}

impl TryFrom<JobRow> for Job {
    type Error = StoreError;

    fn try_from(row: JobRow) -> Result<Self, StoreError> {
        Ok(Self {
            spec: JobSpec {
                name: id("jobs.name", &row.name)?,
                namespace: id("jobs.namespace", &row.namespace)?,
                parallelism: unsigned("jobs.parallelism", row.parallelism)?,
                completions: unsigned("jobs.completions", row.completions)?,
                retries: unsigned("jobs.retries", row.retries)?,
                retry_after_ms: row
                    .retry_after_ms
                    .map(|wait| unsigned("jobs.retry_after_ms", wait))
                    .transpose()?,
                unit: from_json("jobs.template", &row.template)?,
                labels: from_json("jobs.labels", &row.labels)?,
            },
            state: named("jobs.state", JobState::parse, &row.state)?,
            succeeded: unsigned("jobs.succeeded", row.succeeded)?,
            failed: unsigned("jobs.failed", row.failed)?,
            is_deleting: row.is_deleting,
            meta: Meta {
                revision: Revision(unsigned("jobs.revision", row.revision)?),
                created_ms: row.created_ms,
            },
        })
    }
}

/// The job of that name.
pub(crate) async fn job_get(
    db: &mut Tx,
    namespace: &NamespacePath,
    name: &str,
) -> Result<Option<Job>, StoreError> {
    let row: Option<JobRow> = on_db!(db, |connection| {
        let query = sqlx::query_as(JOB_GET).bind(namespace.as_str()).bind(name);
        query.fetch_optional(connection).await
    })?;
    row.map(Job::try_from).transpose()
}

/// All jobs, or those in a namespace and below it.
pub(crate) async fn job_list(
    db: &mut Tx,
    namespace: Option<&NamespacePath>,
) -> Result<Vec<Job>, StoreError> {
    let rows: Vec<JobRow> = on_db!(db, |connection| {
        sqlx::query_as(JOBS_WITHIN).bind(within(namespace)).fetch_all(connection).await
    })?;
    rows.into_iter().map(Job::try_from).collect()
}

/// Writes a job, new or changed.
pub(crate) async fn job_put(db: &mut Tx, job: &Job) -> Result<(), StoreError> {
    let spec = &job.spec;
    let template = TemplateColumns::new(&spec.unit)?;
    let labels = to_json("labels", &spec.labels)?;
    let retry_after_ms =
        spec.retry_after_ms.map(|wait| number("retry_after_ms", wait)).transpose()?;
    let revision = number("revision", job.meta.revision.0)?;
    on_db!(db, |connection| {
        let query = sqlx::query(JOB_PUT)
            .bind(spec.namespace.as_str())
            .bind(spec.name.as_str())
            .bind(job.state.as_str())
            .bind(i64::from(spec.parallelism))
            .bind(i64::from(spec.completions))
            .bind(i64::from(spec.retries))
            .bind(retry_after_ms)
            .bind(i64::from(job.succeeded))
            .bind(i64::from(job.failed))
            .bind(job.is_deleting)
            .bind(template.runtime)
            .bind(template.priority)
            .bind(template.cpu_milli)
            .bind(template.memory_bytes)
            .bind(template.disk_bytes)
            .bind(&labels)
            .bind(&template.template)
            .bind(revision)
            .bind(job.meta.created_ms);
        query.execute(connection).await.map(drop)
    })?;
    Ok(())
}

/// The jobs of those names that exist, in no order.
pub(crate) async fn jobs_named(
    db: &mut Tx,
    names: &[(&NamespacePath, &ResourceName)],
) -> Result<Vec<Job>, StoreError> {
    let rows = fetch_many!(db, JobRow, JOBS_NAMED, 2, names, |query, (namespace, name)| {
        query.bind(namespace.as_str()).bind(name.as_str())
    });
    rows.into_iter().map(Job::try_from).collect()
}

/// How many jobs are in the namespace itself.
pub(crate) async fn job_count(db: &mut Tx, namespace: &NamespacePath) -> Result<i64, StoreError> {
    let (count,): (i64,) = on_db!(db, |connection| {
        sqlx::query_as(JOBS_IN).bind(namespace.as_str()).fetch_one(connection).await
    })?;
    Ok(count)
}

/// Writes how far jobs are, each named once; the rest of them stays.
pub(crate) async fn jobs_advance(db: &mut Tx, jobs: &[&Job]) -> Result<(), StoreError> {
    let mut rows = Vec::with_capacity(jobs.len());
    for job in jobs {
        rows.push((job, number("revision", job.meta.revision.0)?));
    }
    execute_many!(db, JOBS_ADVANCE, 6, rows, |query, (job, revision)| query
        .bind(job.spec.namespace.as_str())
        .bind(job.spec.name.as_str())
        .bind(job.state.as_str())
        .bind(i64::from(job.succeeded))
        .bind(i64::from(job.failed))
        .bind(*revision));
    Ok(())
}

/// Removes the jobs' rows.
pub(crate) async fn jobs_remove(
    db: &mut Tx,
    names: &[(&NamespacePath, &ResourceName)],
) -> Result<(), StoreError> {
    execute_many!(db, JOBS_REMOVE, 2, names, |query, (namespace, name)| query
        .bind(namespace.as_str())
        .bind(name.as_str()));
    Ok(())
}
