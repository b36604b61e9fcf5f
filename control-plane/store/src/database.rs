//! Connections to either database, and the two kinds of transaction: reads, which see one moment, and writes.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use brig_api::problem::FieldError;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Postgres, Sqlite, Transaction};

use crate::error::StoreError;
use crate::many::Arguments;

/// Connections for reading a SQLite file; its writers take turns anyway.
const SQLITE_READERS: u32 = 4;
/// Connections to a PostgreSQL server from one process.
const POSTGRES_CONNECTIONS_MAX: u32 = 10;
/// Connections for the questions of operators, apart from the others so that these never wait for them.
const QUERY_CONNECTIONS: u32 = 2;
/// Prepared statements that a connection keeps. About sixty texts are of one size; ten more come in each of the sizes
/// that `many.rs` keeps, of which few are in use on one connection.
const STATEMENTS_KEPT: usize = 200;
/// How long another process may hold the lock of a SQLite file before a write gives up (and is tried again).
const SQLITE_BUSY: Duration = Duration::from_secs(1);
/// How long to wait for a free connection.
const ACQUIRE: Duration = Duration::from_secs(15);

/// What a PostgreSQL server does when one of our processes stops in the middle of a transaction, or waits too long:
/// the others must be able to go on.
const POSTGRES_OPTIONS: [(&str, &str); 4] = [
    ("idle_in_transaction_session_timeout", "15s"),
    ("lock_timeout", "20s"),
    ("statement_timeout", "60s"),
    ("standard_conforming_strings", "on"),
];

/// The pools of one store.
#[derive(Debug, Clone)]
pub(crate) enum Pools {
    Sqlite { writer: SqlitePool, readers: SqlitePool, queries: SqlitePool },
    Postgres { pool: PgPool, queries: PgPool },
}

/// A transaction on either database. Dropped, it is rolled back.
#[derive(Debug)]
pub(crate) enum Tx {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

/// A statement that has to be said differently.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sql {
    pub(crate) sqlite: &'static str,
    pub(crate) postgres: &'static str,
}

/// Runs one expression on the transaction's connection, whichever database it is. The text of the query is the same
/// for both; `$n` are its arguments.
macro_rules! on_db {
    ($tx:expr, |$connection:ident| $body:expr) => {
        match $tx {
            $crate::database::Tx::Sqlite(tx) => {
                let $connection = &mut **tx;
                $body
            }
            $crate::database::Tx::Postgres(tx) => {
                let $connection = &mut **tx;
                $body
            }
        }
    };
}
pub(crate) use on_db;

impl Pools {
    /// Connects as the URL says; a SQLite file is created if missing.
    pub(crate) async fn connect(url: &str) -> Result<Self, StoreError> {
        if url.starts_with("sqlite:") {
            Self::connect_sqlite(url).await
        } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            Self::connect_postgres(url).await
        } else {
            // The URL itself may hold a password, and is not repeated.
            Err(invalid_url(
                "expected `sqlite:PATH`, such as `sqlite:/var/lib/brig/brig.db`, or `postgres://USER:PASSWORD@HOST/DATABASE`",
            ))
        }
    }

    async fn connect_sqlite(url: &str) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::from_str(url)
            .map_err(|_| invalid_url("not a SQLite URL: expected `sqlite:PATH`"))?
            .statement_cache_capacity(STATEMENTS_KEPT);
        if url.contains(":memory:") || url.contains("mode=memory") {
            let message =
                "a database in memory would be lost with the process: expected `sqlite:PATH`";
            return Err(invalid_url(message));
        }
        make_private(options.get_filename());
        // FULL, not NORMAL: in WAL mode NORMAL survives the crash of a process, but a power cut may take the newest
        // commits with it, and a node acts on a commit as soon as it is told. It costs one fsync a commit.
        let writing = options
            .clone()
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(SQLITE_BUSY);
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(ACQUIRE)
                .idle_timeout(None)
                .max_lifetime(None)
        };
        let writer = pool(1).min_connections(1).connect_with(writing).await?;
        let reading = options.read_only(true).busy_timeout(SQLITE_BUSY);
        let readers = pool(SQLITE_READERS).connect_lazy_with(reading.clone());
        // The questions of operators run on connections that could not write if they tried.
        let queries = pool(QUERY_CONNECTIONS).connect_lazy_with(reading.pragma("query_only", "on"));
        Ok(Self::Sqlite { writer, readers, queries })
    }

    async fn connect_postgres(url: &str) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(url)
            .map_err(|_| {
                invalid_url(
                    "not a PostgreSQL URL: expected `postgres://USER:PASSWORD@HOST/DATABASE`",
                )
            })?
            .application_name("brig")
            .statement_cache_capacity(STATEMENTS_KEPT)
            .options(POSTGRES_OPTIONS);
        let pool = |connections| {
            PgPoolOptions::new().max_connections(connections).acquire_timeout(ACQUIRE)
        };
        let queries = pool(QUERY_CONNECTIONS).connect_lazy_with(options.clone());
        Ok(Self::Postgres {
            pool: pool(POSTGRES_CONNECTIONS_MAX).connect_with(options).await?,
            queries,
        })
    }

    /// Begins to read: everything that is read until the end is of one moment.
    pub(crate) async fn read(&self) -> Result<Tx, StoreError> {
        Ok(match self {
            Self::Sqlite { readers, .. } => Tx::Sqlite(readers.begin().await?),
            Self::Postgres { pool, .. } => Tx::Postgres(
                pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?,
            ),
        })
    }

    /// Begins to write. SQLite locks the file at once: a lock that is asked for later, after reading, can be refused.
    pub(crate) async fn write(&self) -> Result<Tx, StoreError> {
        Ok(match self {
            Self::Sqlite { writer, .. } => Tx::Sqlite(writer.begin_with("BEGIN IMMEDIATE").await?),
            Self::Postgres { pool, .. } => {
                Tx::Postgres(pool.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await?)
            }
        })
    }

    /// Closes every connection.
    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite { writer, readers, queries } => {
                queries.close().await;
                readers.close().await;
                // Last, so that SQLite folds the write-ahead log into the file.
                writer.close().await;
            }
            Self::Postgres { pool, queries } => {
                queries.close().await;
                pool.close().await;
            }
        }
    }
}

impl Tx {
    /// Makes everything that was written durable.
    pub(crate) async fn commit(self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(tx) => tx.commit().await?,
            Self::Postgres(tx) => tx.commit().await?,
        }
        Ok(())
    }

    /// Ends the transaction without a trace.
    pub(crate) async fn rollback(self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(tx) => tx.rollback().await?,
            Self::Postgres(tx) => tx.rollback().await?,
        }
        Ok(())
    }

    /// How this database wants the arguments of many rows.
    pub(crate) fn arguments(&self) -> Arguments {
        match self {
            Self::Sqlite(_) => Arguments::InOrder,
            Self::Postgres(_) => Arguments::Numbered,
        }
    }

    /// The text for this database.
    pub(crate) fn pick(&self, sql: Sql) -> &'static str {
        match self {
            Self::Sqlite(_) => sql.sqlite,
            Self::Postgres(_) => sql.postgres,
        }
    }
}

/// Makes the file where it is missing, for its owner alone: it holds the texts of secrets. SQLite gives the files
/// beside it the same permissions. What does not work here does not work there either, and is told with its reason.
fn make_private(file: &Path) {
    let _ = std::fs::File::options().write(true).create_new(true).mode(0o600).open(file);
}

fn invalid_url(message: &str) -> StoreError {
    StoreError::Invalid(vec![FieldError { path: "db".to_owned(), message: message.to_owned() }])
}
