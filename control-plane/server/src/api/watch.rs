//! Watches: the change feed as server-sent events. One event per revision, its id the revision.
//!
//! A client that reads slowly is not waited for and costs no memory: its position is only a number, and what it
//! misses of the live feed it is given from SQL, for as long as the feed is kept.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::State;
use axum::response::sse::{Event, Sse};
use brig_api::change::Change;
use brig_api::request::WatchQuery;
use brig_api::{Code, Revision};
use futures::Stream;
use http::HeaderMap;

use super::logs::failure;
use crate::app::App;
use crate::extract::QueryOf;
use crate::feed::Follower;
use crate::limits::WATCH_KEEPALIVE;
use crate::problem::{Answer, Failure};
use crate::route::{Operation, Routes};

pub(super) fn routes() -> Routes {
    Routes::default().add(
        Operation::get("/v1/watch", "watch", "Every change from a revision on")
            .query::<WatchQuery>()
            .streams(
                "text/event-stream",
                "Server-sent events: id is the revision, data an array of changes.",
            ),
        watch,
    )
}

async fn watch(
    State(app): State<Arc<App>>,
    QueryOf(query): QueryOf<WatchQuery>,
    headers: HeaderMap,
) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let since = match last_event_id(&headers)?.or(query.since) {
        Some(since) => since,
        None => app.store.revision().await?,
    };
    check_is_kept(&app, since).await?;
    let follower = app.feed.follow(since);
    Ok(Sse::new(events(app, follower, query)))
}

fn last_event_id(headers: &HeaderMap) -> Answer<Option<Revision>> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    let number = number.ok_or_else(|| Failure::field("Last-Event-ID", "expected a revision"))?;
    Ok(Some(Revision(number)))
}

/// Before anything is sent, so that the client gets a proper status: is the feed kept from there?
async fn check_is_kept(app: &App, since: Revision) -> Answer<()> {
    let position = app.feed.position();
    if since == position {
        return Ok(());
    }
    if since > position && since > app.store.revision().await? {
        let detail = format!(
            "revision {since} is not of this cluster, whose newest is {position}: list again"
        );
        return Err(Failure::new(Code::RevisionTooOld, detail));
    }
    app.store.changes_since(since, 1).await?;
    Ok(())
}

fn events(
    app: Arc<App>,
    mut follower: Follower,
    query: WatchQuery,
) -> impl Stream<Item = Result<Event, Infallible>> {
    async_stream::stream! {
        loop {
            let batch = tokio::select! {
                batch = tokio::time::timeout(WATCH_KEEPALIVE, follower.next()) => batch,
                () = app.stop.cancelled() => return,
            };
            match batch {
                // Moves the client's position on, also past revisions that its filter left out.
                Err(_) => yield Ok(Event::default().id(follower.position().to_string()).comment("")),
                Ok(Ok(batch)) => {
                    let wanted: Vec<&Change> =
                        batch.changes.iter().filter(|change| is_wanted(change, &query)).collect();
                    if wanted.is_empty() {
                        continue;
                    }
                    let event = Event::default().id(batch.revision.to_string());
                    match event.json_data(&wanted) {
                        Ok(event) => yield Ok(event),
                        Err(error) => {
                            tracing::error!(error = %error, "a change could not be written");
                            return;
                        }
                    }
                }
                Ok(Err(error)) => {
                    let problem = failure(error).0;
                    if let Ok(event) = Event::default().event("problem").json_data(&problem) {
                        yield Ok(event);
                    }
                    return;
                }
            }
        }
    }
}

fn is_wanted(change: &Change, query: &WatchQuery) -> bool {
    let is_kind = query.kind.is_none_or(|kind| change.key.kind == kind);
    let is_namespace = query.namespace.as_ref().is_none_or(|wanted| {
        change.key.namespace.as_ref().is_some_and(|namespace| namespace.is_within(wanted))
    });
    is_kind && is_namespace
}
