//! Watches: the change feed as server-sent events. One event per revision, its id the revision.
//!
//! A client that reads slowly is not waited for and costs no memory: its position is only a number, and what it
//! misses of the live feed it is given from SQL, for as long as the feed is kept.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, Sse};
use brig_api::change::Change;
use brig_api::request::WatchQuery;
use brig_api::{Code, Revision};
use futures::Stream;
use http::HeaderMap;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

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
    Ok(Sse::new(events(app.stop.clone(), follower, query, WATCH_KEEPALIVE)))
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
    stop: CancellationToken,
    mut follower: Follower,
    query: WatchQuery,
    keepalive: Duration,
) -> impl Stream<Item = Result<Event, Infallible>> {
    async_stream::stream! {
        // From the last event on, not from the last change: where others change all the time, a watch for something
        // that is quiet must not fall silent.
        let mut due = Instant::now() + keepalive;
        loop {
            let batch = tokio::select! {
                batch = tokio::time::timeout_at(due, follower.next()) => batch,
                () = stop.cancelled() => return,
            };
            let event = match batch {
                Err(_) => still_there(&follower),
                Ok(Ok(batch)) => {
                    let wanted: Vec<&Change> =
                        batch.changes.iter().filter(|change| is_wanted(change, &query)).collect();
                    if wanted.is_empty() && Instant::now() < due {
                        continue;
                    }
                    if wanted.is_empty() {
                        still_there(&follower)
                    } else {
                        match Event::default().id(batch.revision.to_string()).json_data(&wanted) {
                            Ok(event) => event,
                            Err(error) => {
                                tracing::error!(error = %error, "a change could not be written");
                                return;
                            }
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
            };
            yield Ok(event);
            due = Instant::now() + keepalive;
        }
    }
}

/// Moves the client's position on, also past revisions that its filter left out.
fn still_there(follower: &Follower) -> Event {
    Event::default().id(follower.position().to_string()).comment("")
}

fn is_wanted(change: &Change, query: &WatchQuery) -> bool {
    let is_kind = query.kind.is_none_or(|kind| change.key.kind == kind);
    let is_namespace = query.namespace.as_ref().is_none_or(|wanted| {
        change.key.namespace.as_ref().is_some_and(|namespace| namespace.is_within(wanted))
    });
    is_kind && is_namespace
}

#[cfg(test)]
mod tests {
    use brig_api::Kind;
    use brig_api::object::ArtifactKind;
    use brig_store::{NewArtifact, Store};
    use futures::StreamExt;

    use super::*;
    use crate::feed::Feed;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_watch_for_what_is_quiet_shows_that_it_lives_while_others_change_all_the_time() {
        const KEEPALIVE: Duration = Duration::from_millis(200);
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("brig.db").display());
        let store = Store::open(&url).await.unwrap();
        let feed = Feed::new(store.clone()).await.unwrap();
        let stop = CancellationToken::new();
        let pump = tokio::spawn(feed.clone().pump(stop.clone()));
        let query = WatchQuery { kind: Some(Kind::Node), ..WatchQuery::default() };
        let watch = events(stop.clone(), feed.follow(feed.position()), query, KEEPALIVE);
        let others = async {
            for tag in 0_u64.. {
                let new = NewArtifact {
                    repository: "a".into(),
                    tag: tag.to_string(),
                    digest: brig_api::Digest::of_sha256(&[7; 32]),
                    media_type: String::new(),
                    kind: ArtifactKind::Other,
                    size_bytes: 0,
                    wasm: None,
                };
                store.artifact_put(new, 1).await.unwrap();
            }
        };
        let mut watch = std::pin::pin!(watch);
        tokio::select! {
            sign = watch.next() => assert!(sign.is_some()),
            () = others => {}
            () = tokio::time::sleep(KEEPALIVE * 50) => panic!("the watch is silent"),
        }
        stop.cancel();
        pump.await.unwrap();
        store.close().await;
    }
}
