//! The schema: its migrations, and the role that operators' questions run as on PostgreSQL.

use sqlx::migrate::Migrator;
use sqlx::postgres::PgPool;

use crate::database::Pools;
use crate::error::StoreError;
use crate::write::wait_before;

static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");

/// Where the migrator keeps which migrations were applied; no such table before the first.
const SQLITE_MIGRATIONS_EXIST: &str =
    "SELECT COUNT(*) FROM sqlite_schema WHERE type = 'table' AND name = '_sqlx_migrations'";
const POSTGRES_MIGRATIONS_EXIST: &str =
    "SELECT COUNT(*) FROM pg_catalog.pg_class WHERE oid = to_regclass('_sqlx_migrations')";
const MIGRATION_NEWEST: &str = "SELECT COALESCE(MAX(version), 0) FROM _sqlx_migrations";

/// The role of operators' questions. It belongs to the server, not to one database: several share it.
const ROLE_EXISTS: &str = "SELECT COUNT(*) FROM pg_catalog.pg_roles WHERE rolname = 'brig_reader'";
const ROLE_CREATE: &str = "CREATE ROLE brig_reader NOLOGIN";
const ROLE_IS_OURS: &str = "SELECT pg_has_role(current_user, 'brig_reader', 'MEMBER')";
const ROLE_JOIN: &str = "GRANT brig_reader TO CURRENT_USER";
/// Two servers that start at once would get into each other's way: the number has no meaning but to be ours.
const ROLE_LOCK: &str = "SELECT pg_advisory_xact_lock(7291660437)";
const ROLE_GRANT: &str = "GRANT SELECT ON cluster, namespaces, nodes, node_attributes, services, jobs, units, \
    secrets, configs, artifacts, plans, explanations, changes, events, leases, unit_usage, namespace_usage, unit_checkpoints TO brig_reader";
const ROLE_CHECK: &str = "SELECT bool_or(has_table_privilege('brig_reader', hidden, 'SELECT') \
    OR has_any_column_privilege('brig_reader', hidden, 'SELECT')) \
    FROM (VALUES ('secret_texts'), ('checkpoint_states')) AS names (hidden)";

/// How often the role is tried to be made.
const ROLE_ATTEMPTS: u32 = 5;

/// Applies what is missing; refuses a schema that is newer than what this program knows.
pub(crate) async fn migrate(pools: &Pools) -> Result<(), StoreError> {
    match pools {
        Pools::Sqlite { writer, .. } => {
            let (exists,): (i64,) =
                sqlx::query_as(SQLITE_MIGRATIONS_EXIST).fetch_one(writer).await?;
            if exists > 0 {
                let (newest,) = sqlx::query_as(MIGRATION_NEWEST).fetch_one(writer).await?;
                refuse_newer(&SQLITE, newest)?;
            }
            SQLITE.run(writer).await?;
        }
        Pools::Postgres { pool, .. } => {
            let (exists,): (i64,) =
                sqlx::query_as(POSTGRES_MIGRATIONS_EXIST).fetch_one(pool).await?;
            if exists > 0 {
                let (newest,) = sqlx::query_as(MIGRATION_NEWEST).fetch_one(pool).await?;
                refuse_newer(&POSTGRES, newest)?;
            }
            POSTGRES.run(pool).await?;
        }
    }
    Ok(())
}

fn refuse_newer(migrator: &Migrator, database: i64) -> Result<(), StoreError> {
    let known = migrator.iter().map(|migration| migration.version).max().unwrap_or(0);
    if database > known {
        return Err(StoreError::TooNew { database, known });
    }
    Ok(())
}

/// Makes the role that operators' questions run as. False where there is none: on SQLite, and where our user may not
/// make roles; then the questions are held back by their wording alone (see `sql/screen.rs`).
pub(crate) async fn reader_role_ensure(pools: &Pools) -> Result<bool, StoreError> {
    let Pools::Postgres { pool, .. } = pools else {
        return Ok(false);
    };
    for attempt in 1.. {
        match reader_role_try(pool).await {
            Ok(is_safe) => return Ok(is_safe),
            // A server that starts on another database of the same PostgreSQL may just be making the role.
            Err(sqlx::Error::Database(_)) if attempt < ROLE_ATTEMPTS => wait_before(attempt).await,
            Err(error @ sqlx::Error::Database(_)) => {
                tracing::info!(
                    error = &error as &dyn std::error::Error,
                    "no role for questions in SQL could be made: give the database's user CREATEROLE to have one"
                );
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

async fn reader_role_try(pool: &PgPool) -> Result<bool, sqlx::Error> {
    let mut tx = pool.begin().await?;
    sqlx::query(ROLE_LOCK).execute(&mut *tx).await?;
    let (exists,): (i64,) = sqlx::query_as(ROLE_EXISTS).fetch_one(&mut *tx).await?;
    if exists == 0 {
        sqlx::query(ROLE_CREATE).execute(&mut *tx).await?;
    }
    let (is_ours,): (bool,) = sqlx::query_as(ROLE_IS_OURS).fetch_one(&mut *tx).await?;
    if !is_ours {
        sqlx::query(ROLE_JOIN).execute(&mut *tx).await?;
    }
    sqlx::query(ROLE_GRANT).execute(&mut *tx).await?;
    // Somebody may have granted more (to PUBLIC, say): then the role protects nothing.
    let (reads_secrets,): (bool,) = sqlx::query_as(ROLE_CHECK).fetch_one(&mut *tx).await?;
    tx.commit().await?;
    Ok(!reads_secrets)
}
