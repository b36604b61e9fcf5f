//! Statements over many rows: how rows are cut into statements, and what these say.
//!
//! One text for both databases: `{rows}` in it stands for the rows of arguments, which [`Arguments`] writes as each
//! database wants them. Rows that are asked for by more
//! than one column are named by `IN (SELECT column1, column2 FROM (VALUES {rows}) AS asked)`: without the SELECT, SQLite
//! reads the whole table.

use std::fmt::Write as _;

use sqlx::AssertSqlSafe;

/// Most rows of one statement: so many that its own cost no longer counts, and few enough for the arguments that a
/// statement may have ([`ARGUMENTS_MAX`]).
pub(crate) const ROWS_MAX: usize = 256;
/// Most arguments of a statement: SQLite takes 32,766, PostgreSQL 65,535.
pub(crate) const ARGUMENTS_MAX: usize = 32_766;
/// Statements over so few rows are prepared once and kept, as full ones are: most writes are small. Of all other sizes
/// there are too many to keep.
const ROWS_SMALL: usize = 16;

/// How a database wants arguments to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arguments {
    /// `?`, each the next one. SQLite takes `$1` for a name, and looks through all names for each argument that it is
    /// given: of thousands that takes seconds.
    InOrder,
    /// `$1`, `$2` and so on: PostgreSQL.
    Numbered,
}

/// The statement over so many rows of so many arguments each.
pub(crate) fn sql(
    text: &str,
    arguments: Arguments,
    columns: usize,
    rows: usize,
) -> AssertSqlSafe<String> {
    debug_assert!(columns * ROWS_MAX <= ARGUMENTS_MAX, "too many arguments: {text}");
    let (head, tail) = text.split_once("{rows}").unwrap_or((text, ""));
    let mut sql = String::with_capacity(text.len() + columns * rows * 7);
    sql.push_str(head);
    for row in 0..rows {
        sql.push_str(if row == 0 { "(" } else { ", (" });
        for column in 0..columns {
            sql.push_str(if column == 0 { "" } else { ", " });
            match arguments {
                Arguments::InOrder => sql.push('?'),
                // Writing to a String does not fail.
                Arguments::Numbered => drop(write!(sql, "${}", row * columns + column + 1)),
            }
        }
        sql.push(')');
    }
    sql.push_str(tail);
    AssertSqlSafe(sql)
}

/// Is a statement over so many rows worth keeping prepared?
pub(crate) fn is_kept(rows: usize) -> bool {
    rows <= ROWS_SMALL || rows == ROWS_MAX
}

/// Runs a statement for all rows, in as few statements as can be: none for no rows. `?` of the function around it
/// takes the error.
macro_rules! execute_many {
    ($db:expr, $text:expr, $columns:expr, $rows:expr, |$query:ident, $row:pat_param| $bound:expr) => {
        for chunk in $rows.chunks($crate::many::ROWS_MAX) {
            let sql = $crate::many::sql($text, $db.arguments(), $columns, chunk.len());
            let is_kept = $crate::many::is_kept(chunk.len());
            $crate::database::on_db!($db, |connection| {
                let mut $query = sqlx::query(sql).persistent(is_kept);
                for $row in chunk {
                    $query = $bound;
                }
                $query.execute(connection).await.map(drop)
            })?;
        }
    };
}
pub(crate) use execute_many;

/// What a query finds for all rows, in no order: a `Vec` of `$found`. Otherwise as [`execute_many`].
macro_rules! fetch_many {
    ($db:expr, $found:ty, $text:expr, $columns:expr, $rows:expr, |$query:ident, $row:pat_param| $bound:expr) => {{
        let mut found: Vec<$found> = Vec::new();
        for chunk in $rows.chunks($crate::many::ROWS_MAX) {
            let sql = $crate::many::sql($text, $db.arguments(), $columns, chunk.len());
            let is_kept = $crate::many::is_kept(chunk.len());
            let more: Vec<$found> = $crate::database::on_db!($db, |connection| {
                let mut $query = sqlx::query_as(sql).persistent(is_kept);
                for $row in chunk {
                    $query = $bound;
                }
                $query.fetch_all(connection).await
            })?;
            found.extend(more);
        }
        found
    }};
}
pub(crate) use fetch_many;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_written_as_the_database_wants_them() {
        let text = "INSERT INTO pairs (a, b) VALUES {rows} RETURNING a";
        let (numbered, in_order) = (Arguments::Numbered, Arguments::InOrder);
        assert_eq!(
            sql(text, numbered, 2, 1).0,
            "INSERT INTO pairs (a, b) VALUES ($1, $2) RETURNING a"
        );
        assert_eq!(
            sql(text, numbered, 2, 3).0,
            "INSERT INTO pairs (a, b) VALUES ($1, $2), ($3, $4), ($5, $6) RETURNING a"
        );
        assert_eq!(
            sql(text, in_order, 2, 2).0,
            "INSERT INTO pairs (a, b) VALUES (?, ?), (?, ?) RETURNING a"
        );
    }
}
