//! A unit's logs: the node's lines, passed on as they come.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket};
use axum::response::Response;
use brig_api::lifecycle::UnitState;
use brig_api::object::{Object, Unit};
use brig_api::request::LogQuery;
use brig_api::session::StreamRequest;
use brig_api::{Code, Kind, NamespacePath, ResourceName};
use bytes::Bytes;
use http::header;

use super::object;
use crate::app::App;
use crate::extract::{PathOf, QueryOf};
use crate::feed::FeedError;
use crate::node::stream;
use crate::problem::{Answer, Failure};
use crate::route::{Operation, Routes};

pub(super) fn routes() -> Routes {
    Routes::default().add(
        Operation::get(
            "/v1/namespaces/{namespace}/units/{name}/logs",
            "logs",
            "What a unit's tasks wrote to standard output and error",
        )
        .query::<LogQuery>()
        .streams("text/plain", "Lines of `TASK TIME STREAM FLAG BYTES`."),
        logs,
    )
}

async fn logs(
    State(app): State<Arc<App>>,
    PathOf((namespace, name)): PathOf<(NamespacePath, ResourceName)>,
    QueryOf(query): QueryOf<LogQuery>,
) -> Answer<Response> {
    // The position first: what happens to the unit after it was read comes with the feed.
    let position = app.feed.position();
    let mut unit = object::unit(&app, namespace, &name).await?;
    check_task(&unit, query.task.as_ref())?;
    if query.follow && is_waiting(&unit) {
        unit = with_node(&app, unit, position).await?;
    }
    let socket = stream::open(&app, &unit, StreamRequest::Logs(query)).await?;
    let body = Body::from_stream(lines(app, socket));
    let mut response = Response::new(body);
    let media_type = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    Ok(response)
}

/// A task that is named must be one of the unit's.
pub(super) fn check_task(unit: &Unit, task: Option<&ResourceName>) -> Answer<()> {
    let Some(task) = task else { return Ok(()) };
    if unit.template.tasks.iter().any(|known| known.name == *task) {
        return Ok(());
    }
    let known: Vec<_> = unit.template.tasks.iter().map(|task| task.name.as_str()).collect();
    let message = format!("unit `{}` has no task `{task}`: it has {}", unit.name, known.join(", "));
    Err(Failure::field("task", message))
}

fn is_waiting(unit: &Unit) -> bool {
    unit.node.is_none() && unit.status.state == UnitState::Pending
}

/// The unit once it has a node.
async fn with_node(app: &App, unit: Unit, since: brig_api::Revision) -> Answer<Unit> {
    let mut follower = app.feed.follow(since);
    loop {
        let batch = tokio::select! {
            batch = follower.next() => batch.map_err(failure)?,
            () = app.stop.cancelled() => return Err(failure(FeedError::Stopped)),
        };
        for change in batch.changes.iter().filter(|change| change.key.kind == Kind::Unit) {
            match &change.object {
                Some(Object::Unit(found)) if found.id == unit.id && !is_waiting(found) => {
                    return Ok((**found).clone());
                }
                None if change.key.name == unit.name.as_str()
                    && change.key.namespace.as_ref() == Some(&unit.namespace) =>
                {
                    let detail = format!("unit `{}` was deleted before it ran", unit.name);
                    return Err(Failure::new(Code::NotFound, detail));
                }
                _ => {}
            }
        }
    }
}

/// A feed that failed, as the client sees it.
pub(super) fn failure(error: FeedError) -> Failure {
    match error {
        FeedError::Stopped => {
            Failure::new(Code::Unavailable, "the server is stopping: connect again")
        }
        FeedError::Store(error) => error.into(),
    }
}

/// The node's messages as a body. A client that reads slowly slows down the node's stream and nothing else.
fn lines(
    app: Arc<App>,
    mut socket: WebSocket,
) -> impl futures::Stream<Item = Result<Bytes, std::io::Error>> {
    async_stream::stream! {
        loop {
            let message = tokio::select! {
                message = socket.recv() => message,
                () = app.stop.cancelled() => {
                    yield Err(std::io::Error::other("the server is stopping"));
                    return;
                }
            };
            match message {
                Some(Ok(Message::Binary(bytes))) => yield Ok(bytes),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_))) | None => return,
                Some(Ok(Message::Text(_))) => {
                    yield Err(std::io::Error::other("the node sent a text message"));
                    return;
                }
                // The client sees a broken body, not a complete one.
                Some(Err(error)) => {
                    yield Err(std::io::Error::other(error));
                    return;
                }
            }
        }
    }
}
