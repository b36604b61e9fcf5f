//! The table `changes`: the feed.

use brig_api::change::Change;
use brig_api::object::ObjectKey;
use brig_api::{NamespacePath, Object, Revision};

use super::kind;
use crate::columns::{from_json, id, number, to_json, unsigned};
use crate::database::{Tx, on_db};
use crate::error::StoreError;
use crate::many::{ROWS_MAX, execute_many};

const CHANGES_INSERT: &str =
    "INSERT INTO changes (revision, position, kind, namespace, name, object) VALUES {rows}";
/// Whole revisions: up to and with that of the last of the first `$2` changes.
const CHANGES_SINCE: &str = "SELECT revision, position, kind, namespace, name, object FROM changes \
    WHERE revision > $1 AND revision <= (SELECT MAX(revision) FROM (SELECT revision FROM changes \
    WHERE revision > $1 ORDER BY revision, position LIMIT $2) AS first) ORDER BY revision, position";
const CHANGES_REMOVE: &str = "DELETE FROM changes WHERE revision <= $1";
const FEED_START: &str = "SELECT feed_start FROM cluster WHERE id = 1";
const FEED_START_SET: &str = "UPDATE cluster SET feed_start = $1 WHERE id = 1";

/// A row, as it was written or read.
#[derive(Debug, sqlx::FromRow)]
struct ChangeRow {
    revision: i64,
    position: i64,
    kind: String,
    namespace: Option<String>,
    name: String,
    object: Option<String>,
}

impl TryFrom<ChangeRow> for Change {
    type Error = StoreError;

    fn try_from(row: ChangeRow) -> Result<Self, StoreError> {
        let namespace =
            row.namespace.map(|namespace| id("changes.namespace", &namespace)).transpose()?;
        Ok(Self {
            revision: Revision(unsigned("changes.revision", row.revision)?),
            position: unsigned("changes.position", row.position)?,
            key: ObjectKey { kind: kind(&row.kind)?, namespace, name: row.name },
            object: row.object.map(|object| from_json("changes.object", &object)).transpose()?,
        })
    }
}

/// Appends to the feed.
pub(crate) async fn changes_insert(
    db: &mut Tx,
    revision: Revision,
    changes: &[(ObjectKey, Option<Object>)],
) -> Result<(), StoreError> {
    let revision = number("revision", revision.0)?;
    let mut position = 0i64;
    // Chunk by chunk, so that not all texts are in memory at once.
    for chunk in changes.chunks(ROWS_MAX) {
        let mut rows = Vec::with_capacity(chunk.len());
        for (key, object) in chunk {
            let text = object.as_ref().map(|object| to_json("changes.object", object));
            rows.push((position, key, text.transpose()?));
            position += 1;
        }
        execute_many!(db, CHANGES_INSERT, 6, rows, |query, (position, key, object)| query
            .bind(revision)
            .bind(*position)
            .bind(key.kind.as_str())
            .bind(key.namespace.as_ref().map(NamespacePath::as_str))
            .bind(&key.name)
            .bind(object.as_deref()));
    }
    Ok(())
}

/// What follows a revision, in order.
pub(crate) async fn change_list(
    db: &mut Tx,
    revision: Revision,
    limit: i64,
) -> Result<Vec<Change>, StoreError> {
    let revision = number("revision", revision.0)?;
    let rows: Vec<ChangeRow> = on_db!(db, |connection| {
        sqlx::query_as(CHANGES_SINCE).bind(revision).bind(limit).fetch_all(connection).await
    })?;
    rows.into_iter().map(Change::try_from).collect()
}

/// The oldest revision from which the feed can be resumed.
pub(crate) async fn feed_start(db: &mut Tx) -> Result<Revision, StoreError> {
    let (start,): (i64,) =
        on_db!(db, |connection| sqlx::query_as(FEED_START).fetch_one(connection).await)?;
    Ok(Revision(unsigned("cluster.feed_start", start)?))
}

/// Forgets the feed up to and with a revision.
pub(crate) async fn changes_remove(db: &mut Tx, until: Revision) -> Result<(), StoreError> {
    let until = number("revision", until.0)?;
    on_db!(db, |connection| {
        sqlx::query(CHANGES_REMOVE).bind(until).execute(connection).await.map(drop)
    })?;
    on_db!(db, |connection| {
        sqlx::query(FEED_START_SET).bind(until).execute(connection).await.map(drop)
    })?;
    Ok(())
}
