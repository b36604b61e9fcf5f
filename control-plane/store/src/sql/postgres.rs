//! Questions on PostgreSQL: a read-only transaction, as a role that has no right on the secrets' texts.

use brig_api::request::SqlResponse;
use futures::TryStreamExt as _;
use serde_json::Value;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgPool, PgRow, PgValueRef};
use sqlx::{
    AssertSqlSafe, Column as _, Connection as _, Executor as _, Postgres, Row as _,
    SqlSafeStr as _, Statement as _, TypeInfo as _, ValueRef as _,
};

use super::screen::Screened;
use super::{Answer, QUERY_TIME, misunderstood, too_slow};
use crate::columns::corrupt;
use crate::error::StoreError;

const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
/// [`QUERY_TIME`], for the server: it ends the query even when we are gone.
const TIME_LIMIT: &str = "SET LOCAL statement_timeout = '5s'";
const AS_READER: &str = "SET LOCAL ROLE brig_reader";

pub(super) async fn run(
    pool: &PgPool,
    has_reader_role: bool,
    query: Screened<'_>,
    answer: Answer,
) -> Result<SqlResponse, StoreError> {
    let mut connection = pool.acquire().await?;
    let asked = ask(&mut connection, has_reader_role, query, answer);
    match tokio::time::timeout(QUERY_TIME, asked).await {
        // The rest of the rows would still have to be read: the connection is of no more use.
        Ok(Ok(response)) if response.is_truncated => {
            close(connection).await;
            Ok(response)
        }
        Ok(outcome) => outcome,
        Err(_) => {
            close(connection).await;
            Err(too_slow())
        }
    }
}

async fn close(connection: PoolConnection<Postgres>) {
    if let Err(error) = connection.detach().close_hard().await {
        tracing::debug!(error = &error as &dyn std::error::Error, "a connection did not close");
    }
}

async fn ask(
    connection: &mut PgConnection,
    has_reader_role: bool,
    query: Screened<'_>,
    mut answer: Answer,
) -> Result<SqlResponse, StoreError> {
    let mut tx = connection.begin_with(BEGIN).await?;
    sqlx::query(TIME_LIMIT).execute(&mut *tx).await?;
    if has_reader_role {
        sqlx::query(AS_READER).execute(&mut *tx).await?;
    }
    let text = || AssertSqlSafe(query.text.to_owned());
    // Prepared: the server itself refuses more than one statement, and names the columns even of no rows.
    let statement = (&mut *tx).prepare(text().into_sql_str()).await.map_err(misunderstood)?;
    answer.response.columns =
        statement.columns().iter().map(|column| column.name().to_owned()).collect();
    // Not prepared: every value comes as the text that people know.
    let mut rows = sqlx::raw_sql(text()).fetch(&mut *tx);
    while let Some(row) = rows.try_next().await.map_err(slow_or_misunderstood)? {
        if !answer.take(values(&row)?) {
            break;
        }
    }
    drop(rows);
    if !answer.response.is_truncated {
        tx.rollback().await?;
    }
    Ok(answer.response)
}

/// The server ends a query that takes too long by the code of a cancelled one.
fn slow_or_misunderstood(error: sqlx::Error) -> StoreError {
    match &error {
        sqlx::Error::Database(database) if database.code().as_deref() == Some("57014") => {
            too_slow()
        }
        _ => misunderstood(error),
    }
}

fn values(row: &PgRow) -> Result<Vec<Value>, StoreError> {
    (0..row.len()).map(|index| value(&row.try_get_raw(index)?)).collect()
}

fn value(raw: &PgValueRef<'_>) -> Result<Value, StoreError> {
    if raw.is_null() {
        return Ok(Value::Null);
    }
    let kind = raw.type_info().name().to_owned();
    let text = raw.as_str().map_err(|error| corrupt("a value", error))?;
    let as_text = || Value::from(text);
    Ok(match kind.as_str() {
        "BOOL" => Value::from(text == "t"),
        "INT2" | "INT4" | "INT8" | "OID" => {
            text.parse::<i64>().map_or_else(|_| as_text(), Value::from)
        }
        // A sum of numbers is NUMERIC here, and may be larger than JSON's readers take: then it stays a text.
        "NUMERIC" => match (text.parse::<i64>(), text.parse::<f64>()) {
            (Ok(whole), _) => Value::from(whole),
            (_, Ok(fraction)) if text.contains('.') && fraction.is_finite() => {
                Value::from(fraction)
            }
            _ => as_text(),
        },
        "FLOAT4" | "FLOAT8" => match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Value::from(number),
            _ => as_text(),
        },
        _ => as_text(),
    })
}
