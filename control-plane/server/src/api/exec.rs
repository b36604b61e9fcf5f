//! Exec and attach: a client's WebSocket and a node's, joined.

use std::sync::Arc;

use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use brig_api::lifecycle::UnitState;
use brig_api::object::Unit;
use brig_api::request::{AttachRequest, ExecRequest};
use brig_api::session::StreamRequest;
use brig_api::unit_spec::Task;
use brig_api::{Code, NamespacePath, ResourceName};
use futures::{SinkExt, StreamExt};

use super::{logs, object};
use crate::app::App;
use crate::extract::{PathOf, Upgrade};
use crate::limits::{EXEC_REQUEST_BYTES_MAX, EXEC_REQUEST_TIME_MAX};
use crate::node::stream;
use crate::problem::{Answer, Failure};
use crate::route::{Operation, Routes};

pub(super) fn routes() -> Routes {
    Routes::default()
    .add(
        Operation::get(
            "/v1/namespaces/{namespace}/units/{name}/exec",
            "exec",
            "Run a program in a unit's task",
        )
        .upgrades("First a text message with an ExecRequest, then binary messages, each a byte for the channel and the payload. A text message from the server is a problem."),
        exec,
    )
    .add(
        Operation::get(
            "/v1/namespaces/{namespace}/units/{name}/attach",
            "attach",
            "Send a task its standard input",
        )
        .upgrades("First a text message with an AttachRequest, then binary messages, each a byte for the channel and the payload: input to the task, where an empty one is its end; from it how it ended. A text message from the server is a problem."),
        attach,
    )
}

async fn exec(
    State(app): State<Arc<App>>,
    PathOf((namespace, name)): PathOf<(NamespacePath, ResourceName)>,
    Upgrade(upgrade): Upgrade,
) -> Answer<Response> {
    let unit = running(&app, namespace, &name, "exec").await?;
    Ok(join(app, unit, upgrade, exec_asked))
}

async fn attach(
    State(app): State<Arc<App>>,
    PathOf((namespace, name)): PathOf<(NamespacePath, ResourceName)>,
    Upgrade(upgrade): Upgrade,
) -> Answer<Response> {
    let unit = running(&app, namespace, &name, "attach").await?;
    Ok(join(app, unit, upgrade, attach_asked))
}

async fn running(
    app: &App,
    namespace: NamespacePath,
    name: &ResourceName,
    what: &str,
) -> Answer<Unit> {
    let unit = object::unit(app, namespace, name).await?;
    if unit.status.state != UnitState::Running {
        let detail = format!(
            "unit `{name}` is {}, not running: {what} needs a running unit",
            unit.status.state.as_str()
        );
        return Err(Failure::new(Code::WrongState, detail));
    }
    Ok(unit)
}

/// Joins a client with a node when the client has said in its first message what it wants.
fn join(
    app: Arc<App>,
    unit: Unit,
    upgrade: WebSocketUpgrade,
    asked: fn(&Unit, &str) -> Answer<StreamRequest>,
) -> Response {
    let upgrade =
        upgrade.max_message_size(EXEC_REQUEST_BYTES_MAX).max_frame_size(EXEC_REQUEST_BYTES_MAX);
    upgrade.on_upgrade(async move |mut socket| {
        match begin(&app, &unit, &mut socket, asked).await {
            Ok(node) => {
                tokio::select! {
                    () = splice(socket, node) => {}
                    () = app.stop.cancelled() => {}
                }
            }
            Err(failure) => {
                // A text message is a problem; frames are binary. The client may have gone meanwhile.
                if let Ok(problem) = serde_json::to_string(&*failure.0) {
                    let _ = socket.send(Message::Text(problem.into())).await;
                }
                let _ = socket.send(Message::Close(None)).await;
            }
        }
    })
}

/// Reads what is asked for and opens the stream to the node.
async fn begin(
    app: &App,
    unit: &Unit,
    socket: &mut WebSocket,
    asked: fn(&Unit, &str) -> Answer<StreamRequest>,
) -> Answer<WebSocket> {
    let first = tokio::time::timeout(EXEC_REQUEST_TIME_MAX, socket.recv()).await;
    let Ok(Some(Ok(Message::Text(text)))) = first else {
        return Err(Failure::field("", "expected the request as a text message first"));
    };
    stream::open(app, unit, asked(unit, text.as_str())?).await
}

fn exec_asked(unit: &Unit, text: &str) -> Answer<StreamRequest> {
    let request: ExecRequest = serde_json::from_str(text)
        .map_err(|error| Failure::field("", format!("not a request to run something: {error}")))?;
    if request.command.is_empty() {
        return Err(Failure::field("command", "must name a program"));
    }
    logs::check_task(unit, request.task.as_ref())?;
    Ok(StreamRequest::Exec(request))
}

fn attach_asked(unit: &Unit, text: &str) -> Answer<StreamRequest> {
    let request: AttachRequest = serde_json::from_str(text)
        .map_err(|error| Failure::field("", format!("not a request to attach: {error}")))?;
    logs::check_task(unit, request.task.as_ref())?;
    let tasks = &unit.template.tasks;
    let wanted = |task: &&Task| match &request.task {
        Some(name) => task.name == *name,
        None => !task.sidecar,
    };
    if let Some(task) = tasks.iter().find(wanted).filter(|task| !task.stdin) {
        let detail = format!(
            "the standard input of task `{}` is empty: it needs `stdin: true` in its spec, or `brig run --interactive`",
            task.name
        );
        return Err(Failure::new(Code::WrongState, detail));
    }
    Ok(StreamRequest::Attach(request))
}

/// Passes messages on, both ways, until one side is done. Each direction reads only what the other side takes.
async fn splice(client: WebSocket, node: WebSocket) {
    let (mut to_client, mut from_client) = client.split();
    let (mut to_node, mut from_node) = node.split();
    let upwards = async {
        while let Some(Ok(message)) = from_client.next().await {
            match message {
                Message::Binary(_) => {
                    if to_node.send(message).await.is_err() {
                        return;
                    }
                }
                Message::Ping(_) | Message::Pong(_) => {}
                Message::Text(_) | Message::Close(_) => return,
            }
        }
    };
    let downwards = async {
        while let Some(Ok(message)) = from_node.next().await {
            match message {
                Message::Binary(_) => {
                    if to_client.send(message).await.is_err() {
                        return;
                    }
                }
                Message::Ping(_) | Message::Pong(_) => {}
                Message::Text(_) | Message::Close(_) => return,
            }
        }
    };
    tokio::select! {
        () = upwards => {}
        () = downwards => {}
    }
    // Either may be gone already.
    let _ = to_client.send(Message::Close(None)).await;
    let _ = to_node.send(Message::Close(None)).await;
}
