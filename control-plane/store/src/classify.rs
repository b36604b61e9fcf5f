//! What a database's error means to us: try again, wait for an operator, damaged, or a fault of ours.

use sqlx::error::DatabaseError;
use sqlx::migrate::MigrateError;

use crate::error::StoreError;

/// Codes of SQLite (the low byte of its extended codes) and what an operator can do.
const SQLITE_UNAVAILABLE: [(i32, &str); 7] = [
    (3, "the SQLite file may not be opened: check its owner and permissions"),
    (
        5,
        "the SQLite file is locked by another process: only one server may use it; stop the other one, or use PostgreSQL",
    ),
    (6, "a SQLite table is locked: try again"),
    (
        8,
        "the SQLite file is read-only: check its owner and permissions, and that its file system is mounted for writing",
    ),
    (10, "the disk failed under the SQLite file: check the disk and the system's log"),
    (13, "the disk is full: make room on the file system of the SQLite file, then try again"),
    (14, "the SQLite file cannot be opened: check that its folder exists and may be written to"),
];
/// `SQLITE_CORRUPT` and `SQLITE_NOTADB`.
const SQLITE_CORRUPT: [i32; 2] = [11, 26];
/// SQLite: the lock could not be had, or another connection's recovery or newer snapshot is in the way.
const SQLITE_TRANSIENT: [i32; 3] = [5, 261, 517];

/// Codes of PostgreSQL, by prefix, and what an operator can do.
const POSTGRES_UNAVAILABLE: [(&str, &str); 9] = [
    ("08", "the connection to PostgreSQL was lost: check the server and the network"),
    ("25006", "PostgreSQL takes no writes here: point the URL at the primary server"),
    ("28", "PostgreSQL refused the login: check user and password of the URL"),
    ("3D000", "the database of the URL does not exist: create it, or correct the URL"),
    ("53100", "the disk of PostgreSQL is full: make room there, then try again"),
    ("53", "PostgreSQL is out of memory or connections: try again, or raise its limits"),
    (
        "55P03",
        "PostgreSQL's tables are locked by something else: look at pg_stat_activity, and try again",
    ),
    ("57P", "PostgreSQL is starting or stopping: try again"),
    ("58", "the disk failed under PostgreSQL: check the disk and its log"),
];
/// PostgreSQL: index or data corrupted.
const POSTGRES_CORRUPT: &str = "XX00";
/// PostgreSQL: could not serialize, deadlock.
const POSTGRES_TRANSIENT: [&str; 2] = ["40001", "40P01"];

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error;
        let message = match &error {
            Error::Database(database) => match (sqlite_code(&**database), database.code()) {
                (Some(code), _) if SQLITE_CORRUPT.contains(&(code & 0xff)) => {
                    return corrupt(&**database);
                }
                (None, Some(code)) if is_postgres_corruption(&code) => {
                    return corrupt(&**database);
                }
                (Some(code), _) => advice(&SQLITE_UNAVAILABLE, |known| *known == code & 0xff),
                (None, Some(code)) => {
                    advice(&POSTGRES_UNAVAILABLE, |known| code.starts_with(known))
                }
                (None, None) => None,
            },
            Error::Io(_) | Error::Tls(_) => {
                Some("the database is out of reach: check that it runs, the URL and the network")
            }
            Error::PoolTimedOut => Some(
                "no connection to the database came free in time: it is overloaded or out of reach",
            ),
            Error::PoolClosed | Error::WorkerCrashed => Some("the store was closed"),
            Error::ColumnDecode { index, source } => {
                return Self::Corrupt {
                    what: format!("column {index}"),
                    message: source.to_string(),
                };
            }
            _ => None,
        };
        match message {
            Some(message) => {
                Self::Unavailable { message: message.to_owned(), source: error.into() }
            }
            None => Self::Database(error.into()),
        }
    }
}

impl From<MigrateError> for StoreError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error.into(),
            MigrateError::VersionMismatch(version) => Self::Corrupt {
                what: format!("migration {version}"),
                message:
                    "the database was made by another build of this program, with other tables"
                        .to_owned(),
            },
            other => Self::Database(other.into()),
        }
    }
}

impl StoreError {
    /// The same transaction may well succeed when it is tried again at once.
    pub(crate) fn is_transient(&self) -> bool {
        let (Self::Unavailable { source, .. } | Self::Database(source)) = self else {
            return false;
        };
        let Some(sqlx::Error::Database(error)) = source.downcast_ref::<sqlx::Error>() else {
            return false;
        };
        match (sqlite_code(&**error), error.code()) {
            (Some(code), _) => SQLITE_TRANSIENT.contains(&code),
            (None, Some(code)) => POSTGRES_TRANSIENT.contains(&&*code),
            (None, None) => false,
        }
    }
}

fn sqlite_code(error: &dyn DatabaseError) -> Option<i32> {
    let sqlite = error.try_downcast_ref::<sqlx::sqlite::SqliteError>()?;
    sqlite.code()?.parse().ok()
}

/// XX001 and XX002; XX000 is any internal error.
fn is_postgres_corruption(code: &str) -> bool {
    code.starts_with(POSTGRES_CORRUPT) && code != "XX000"
}

fn corrupt(error: &dyn DatabaseError) -> StoreError {
    StoreError::Corrupt {
        what: "the database".to_owned(),
        message: format!("{}: restore a backup", error.message()),
    }
}

fn advice<Code>(
    known: &[(Code, &'static str)],
    is_it: impl Fn(&Code) -> bool,
) -> Option<&'static str> {
    known.iter().find(|(code, _)| is_it(code)).map(|(_, advice)| *advice)
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection as _, Executor as _, SqliteConnection};

    use super::*;

    async fn error_of(setting: &'static str, statement: &'static str) -> StoreError {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        connection.execute("CREATE TABLE t (a UNIQUE)").await.unwrap();
        connection.execute(setting).await.unwrap();
        connection.execute(statement).await.unwrap_err().into()
    }

    #[tokio::test]
    async fn a_full_disk_is_named_with_the_way_out() {
        let error =
            error_of("PRAGMA max_page_count = 3", "INSERT INTO t VALUES (randomblob(100000))")
                .await;
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains("make room"), "{error}");
        assert!(!error.is_transient());
    }

    #[tokio::test]
    async fn a_read_only_file_is_named() {
        let error = error_of("PRAGMA query_only = on", "INSERT INTO t VALUES (1)").await;
        assert!(error.to_string().contains("read-only"), "{error}");
    }

    #[tokio::test]
    async fn a_fault_of_ours_stays_one() {
        let error = error_of("SELECT 1", "INSERT INTO nowhere VALUES (1)").await;
        assert!(matches!(error, StoreError::Database(_)), "{error}");
    }

    #[test]
    fn the_first_advice_that_fits_is_given() {
        for (code, expected) in [
            ("53100", Some("disk of PostgreSQL is full")),
            ("53300", Some("memory or connections")),
            ("57P03", Some("starting or stopping")),
            ("08006", Some("connection to PostgreSQL was lost")),
            ("42601", None),
        ] {
            let found = advice(&POSTGRES_UNAVAILABLE, |known| code.starts_with(known));
            assert_eq!(found.is_some(), expected.is_some(), "{code}");
            assert!(found.unwrap_or("").contains(expected.unwrap_or("")), "{code}: {found:?}");
        }
        assert!(is_postgres_corruption("XX001") && !is_postgres_corruption("XX000"));
    }
}
