//! Questions of operators: one SELECT, which can neither change anything nor read a secret.
//!
//! Two walls, each enough by itself. The first is the same on both databases: the wording ([`screen`]) may name no
//! forbidden table, and no function but known harmless ones. The second is the database's own: on SQLite a connection
//! that cannot write, and a look at what the compiled query opens; on PostgreSQL a read-only transaction, as a role
//! without a right on the secrets' texts.

mod postgres;
mod screen;
mod screen_words;
mod sqlite;

use std::time::Duration;

use brig_api::problem::FieldError;
use brig_api::request::SqlResponse;
use serde_json::Value;

use crate::database::Pools;
use crate::error::StoreError;
use crate::store::Store;

/// How long a question may take.
const QUERY_TIME: Duration = Duration::from_secs(5);
/// Most bytes of values in an answer.
const ANSWER_BYTES_MAX: usize = 4 << 20;

impl Store {
    /// Runs one SELECT (or WITH, VALUES, EXPLAIN) in a read-only transaction, for a few seconds at most, and gives out at
    /// most `rows_max` rows.
    ///
    /// # Errors
    /// [`StoreError::ReadOnly`] when it is anything else or names the secrets' texts; [`StoreError::Invalid`] when
    /// the database does not understand it or it takes too long.
    pub async fn sql(&self, query: &str, rows_max: usize) -> Result<SqlResponse, StoreError> {
        let query = screen::screen(query).map_err(StoreError::ReadOnly)?;
        let answer = Answer::new(rows_max);
        match self.pools() {
            Pools::Sqlite { queries, .. } => sqlite::run(queries, query, answer).await,
            Pools::Postgres { queries, .. } => {
                postgres::run(queries, self.has_reader_role(), query, answer).await
            }
        }
    }
}

/// An answer that grows row by row up to its limits.
#[derive(Debug)]
struct Answer {
    rows_max: usize,
    bytes: usize,
    response: SqlResponse,
}

impl Answer {
    fn new(rows_max: usize) -> Self {
        let response = SqlResponse { columns: Vec::new(), rows: Vec::new(), is_truncated: false };
        Self { rows_max, bytes: 0, response }
    }

    /// Takes a row, or says that there is no room for it.
    fn take(&mut self, row: Vec<Value>) -> bool {
        let size = |value: &Value| value.as_str().map_or(8, str::len);
        self.bytes += row.iter().map(size).sum::<usize>();
        if self.response.rows.len() >= self.rows_max || self.bytes > ANSWER_BYTES_MAX {
            self.response.is_truncated = true;
            return false;
        }
        self.response.rows.push(row);
        true
    }
}

/// What the database says against a query is the asker's to correct, unless the database itself is in trouble.
fn misunderstood(error: sqlx::Error) -> StoreError {
    let message = match &error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        _ => return error.into(),
    };
    match StoreError::from(error) {
        StoreError::Database(_) => {
            StoreError::Invalid(vec![FieldError { path: "query".to_owned(), message }])
        }
        other => other,
    }
}

fn too_slow() -> StoreError {
    let message = format!(
        "took longer than {} s and was ended: ask for less, or run it on a copy of the database",
        QUERY_TIME.as_secs()
    );
    StoreError::Invalid(vec![FieldError { path: "query".to_owned(), message }])
}
