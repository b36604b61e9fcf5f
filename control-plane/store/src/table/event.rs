//! The table `events`.

use brig_api::change::{Event, EventLevel};
use brig_api::{NamespacePath, Revision};

use super::{kind, within};
use crate::columns::{cleaned, id, named, number, unsigned};
use crate::database::{Tx, on_db};
use crate::error::StoreError;
use crate::event::EventFilter;
use crate::many::execute_many;
use crate::write::PendingEvent;

const EVENTS_INSERT: &str = "INSERT INTO events (revision, position, time_ms, level, kind, namespace, name, reason, \
    message) VALUES {rows}";
const EVENTS_NEWEST: &str = "SELECT revision, position, time_ms, level, kind, namespace, name, reason, message \
    FROM events WHERE revision > $1 AND (CAST($2 AS TEXT) IS NULL OR kind = $2) \
    AND (CAST($3 AS TEXT) IS NULL OR name = $3) AND (CAST($4 AS TEXT) IS NULL OR namespace = $4 \
    OR substr(namespace, 1, length($4) + 1) = $4 || '/') ORDER BY revision DESC, position DESC LIMIT $5";
const EVENTS_REMOVE: &str = "DELETE FROM events WHERE revision <= $1";

#[derive(sqlx::FromRow)]
struct EventRow {
    revision: i64,
    position: i64,
    time_ms: i64,
    level: String,
    kind: String,
    namespace: Option<String>,
    name: String,
    reason: String,
    message: String,
}

fn level(text: &str) -> Option<EventLevel> {
    [EventLevel::Normal, EventLevel::Warning].into_iter().find(|level| level.as_str() == text)
}

impl TryFrom<EventRow> for Event {
    type Error = StoreError;

    fn try_from(row: EventRow) -> Result<Self, StoreError> {
        let namespace =
            row.namespace.map(|namespace| id("events.namespace", &namespace)).transpose()?;
        Ok(Self {
            revision: Revision(unsigned("events.revision", row.revision)?),
            position: unsigned("events.position", row.position)?,
            time_ms: row.time_ms,
            level: named("events.level", level, &row.level)?,
            kind: kind(&row.kind)?,
            namespace,
            name: row.name,
            reason: row.reason,
            message: row.message,
        })
    }
}

/// Records what happened.
pub(crate) async fn events_insert(
    db: &mut Tx,
    revision: Revision,
    time_ms: i64,
    events: &[PendingEvent],
) -> Result<(), StoreError> {
    let revision = number("revision", revision.0)?;
    let rows: Vec<(i64, &PendingEvent)> = (0..).zip(events).collect();
    execute_many!(db, EVENTS_INSERT, 9, rows, |query, (position, event)| query
        .bind(revision)
        .bind(*position)
        .bind(time_ms)
        .bind(event.level.as_str())
        .bind(event.about.kind.as_str())
        .bind(event.about.namespace.as_ref().map(NamespacePath::as_str))
        .bind(&event.about.name)
        .bind(event.reason)
        .bind(cleaned(&event.message).into_owned()));
    Ok(())
}

/// The newest events that the filter lets through, newest first.
pub(crate) async fn event_list(
    db: &mut Tx,
    filter: &EventFilter,
    limit: i64,
) -> Result<Vec<Event>, StoreError> {
    // PostgreSQL takes no NUL, not even in a question.
    let name = filter.name.as_deref().map(cleaned);
    let since = number("since_revision", filter.since_revision.unwrap_or_default().0)?;
    let rows: Vec<EventRow> = on_db!(db, |connection| {
        let query = sqlx::query_as(EVENTS_NEWEST)
            .bind(since)
            .bind(filter.kind.map(brig_api::Kind::as_str))
            .bind(name.as_deref())
            .bind(within(filter.namespace.as_ref()))
            .bind(limit);
        query.fetch_all(connection).await
    })?;
    rows.into_iter().map(Event::try_from).collect()
}

/// Forgets events up to and with a revision.
pub(crate) async fn events_remove(db: &mut Tx, until: Revision) -> Result<(), StoreError> {
    let until = number("revision", until.0)?;
    on_db!(db, |connection| {
        sqlx::query(EVENTS_REMOVE).bind(until).execute(connection).await.map(drop)
    })?;
    Ok(())
}
