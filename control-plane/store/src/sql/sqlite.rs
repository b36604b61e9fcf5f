//! Questions on SQLite: a connection that cannot write, and a look at which tables the compiled query opens.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use brig_api::request::SqlResponse;
use futures::TryStreamExt as _;
use serde_json::Value;
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{
    AssertSqlSafe, Column as _, Connection as _, Executor as _, Row as _, SqlSafeStr as _,
    Statement as _, TypeInfo as _, ValueRef as _,
};

use super::screen::Screened;
use super::{Answer, QUERY_TIME, misunderstood, too_slow};
use crate::error::StoreError;

/// The pages at which the tables that nobody may read and their indexes begin.
const HIDDEN_PAGES: &str = "SELECT rootpage FROM sqlite_schema \
    WHERE tbl_name IN ('secret_texts', 'checkpoint_states') AND rootpage > 0";
/// Steps of SQLite's machine between two looks at whether the time is up: well under a millisecond.
const STEPS_BETWEEN_LOOKS: i32 = 10_000;
/// Instructions that open a table or index: P2 is its first page, in P3 the number of its database.
const OPENS: [&str; 3] = ["OpenRead", "OpenWrite", "ReopenIdx"];
/// Set in P5 when P2 is not the page but says where it is to be found.
const P5_PAGE_IS_COMPUTED: i64 = 0x10;

/// Ends the query when it is dropped: the machine looks now and then.
struct UntilDropped(Arc<AtomicBool>);

impl Drop for UntilDropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(super) async fn run(
    pool: &SqlitePool,
    query: Screened<'_>,
    answer: Answer,
) -> Result<SqlResponse, StoreError> {
    let mut connection = pool.acquire().await?;
    let is_over = Arc::new(AtomicBool::new(false));
    let look = Arc::clone(&is_over);
    // This replaces what a query before has left behind.
    connection
        .lock_handle()
        .await?
        .set_progress_handler(STEPS_BETWEEN_LOOKS, move || !look.load(Ordering::Relaxed));
    let guard = UntilDropped(is_over);
    let outcome = tokio::time::timeout(QUERY_TIME, ask(&mut connection, query, answer)).await;
    drop(guard);
    connection.lock_handle().await?.remove_progress_handler();
    outcome.unwrap_or_else(|_| Err(too_slow()))
}

async fn ask(
    connection: &mut SqliteConnection,
    query: Screened<'_>,
    mut answer: Answer,
) -> Result<SqlResponse, StoreError> {
    let mut tx = connection.begin().await?;
    // EXPLAIN reads nothing, and cannot itself be explained.
    if !query.is_explain {
        refuse_hidden(&mut tx, query).await?;
    }
    let text = || AssertSqlSafe(query.text.to_owned());
    let statement = (&mut *tx).prepare(text().into_sql_str()).await.map_err(misunderstood)?;
    answer.response.columns =
        statement.columns().iter().map(|column| column.name().to_owned()).collect();
    let mut rows = sqlx::query(text()).persistent(false).fetch(&mut *tx);
    while let Some(row) = rows.try_next().await.map_err(misunderstood)? {
        if !answer.take(values(&row)?) {
            break;
        }
    }
    drop(rows);
    tx.rollback().await?;
    Ok(answer.response)
}

/// Refuses a query that opens a hidden table, by whatever name: the compiled query says which pages it opens.
async fn refuse_hidden(tx: &mut SqliteConnection, query: Screened<'_>) -> Result<(), StoreError> {
    let pages: Vec<(i64,)> = sqlx::query_as(HIDDEN_PAGES).fetch_all(&mut *tx).await?;
    let hidden: BTreeSet<i64> = pages.into_iter().map(|(page,)| page).collect();
    let explain = AssertSqlSafe(format!("EXPLAIN {}", query.text));
    let program =
        sqlx::query(explain).persistent(false).fetch_all(&mut *tx).await.map_err(misunderstood)?;
    for instruction in program {
        let opcode: String = instruction.try_get_unchecked("opcode")?;
        if !OPENS.contains(&opcode.as_str()) {
            continue;
        }
        let page: i64 = instruction.try_get_unchecked("p2")?;
        let flags: i64 = instruction.try_get_unchecked("p5")?;
        let is_hidden = hidden.contains(&page) || flags & P5_PAGE_IS_COMPUTED != 0;
        if is_hidden || opcode == "OpenWrite" {
            let message = "the texts of secrets and what programs have saved cannot be read, and nothing can be written";
            return Err(StoreError::ReadOnly(message.to_owned()));
        }
    }
    Ok(())
}

fn values(row: &SqliteRow) -> Result<Vec<Value>, StoreError> {
    (0..row.len())
        .map(|index| {
            let value = row.try_get_raw(index)?;
            let kind = value.type_info().name().to_owned();
            if value.is_null() {
                return Ok(Value::Null);
            }
            Ok(match kind.as_str() {
                "INTEGER" => Value::from(row.try_get_unchecked::<i64, _>(index)?),
                "REAL" => Value::from(row.try_get_unchecked::<f64, _>(index)?),
                "BLOB" => {
                    let bytes = row.try_get_unchecked::<Vec<u8>, _>(index)?;
                    Value::from(format!("({} bytes)", bytes.len()))
                }
                _ => Value::from(row.try_get_unchecked::<String, _>(index)?),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::Pools;
    use crate::store::Store;

    /// What the wording's screen would have refused is refused here too.
    #[tokio::test]
    async fn the_compiled_query_gives_a_hidden_table_away() {
        let dir = std::env::temp_dir().join(format!("brig-store-hidden-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let store =
            Store::open(&format!("sqlite:{}", dir.join("brig.db").display())).await.unwrap();
        let Pools::Sqlite { queries, .. } = store.pools() else { panic!("SQLite") };
        let asked =
            async |text| run(queries, Screened { text, is_explain: false }, Answer::new(10)).await;
        for text in [
            "select * from secret_texts",
            "select count(*) from main.[Secret_Texts]",
            "select key from 'secret_texts' where namespace = 'a' and name = 'b'",
            "with t as (select * from secret_texts) select * from units, t",
            "select name from units where exists (select 1 from secret_texts where key = units.name)",
            "select state from checkpoint_states",
            "select count(*) from checkpoint_states where unit_id = 'u'",
            "delete from units",
            "update leases set holder = 'me'",
        ] {
            let error = asked(text).await.unwrap_err();
            assert!(matches!(error, StoreError::ReadOnly(_)), "{text}: {error}");
        }
        assert!(
            asked("select * from secrets, units, unit_checkpoints, json_each('[1]')").await.is_ok()
        );
        store.close().await;
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
