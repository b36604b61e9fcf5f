//! Logs and exec: asks a node to dial back, and hands its WebSocket to who waits for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::State;
use axum::extract::ws::WebSocket;
use axum::response::Response;
use brig_api::object::Unit;
use brig_api::session::StreamRequest;
use brig_api::stdio::FRAME_PAYLOAD_BYTES_MAX;
use brig_api::{Code, NodeName, Problem};
use tokio::sync::oneshot;

use crate::app::App;
use crate::extract::{PathOf, Upgrade};
use crate::limits::{DIAL_TIME_MAX, LOG_MESSAGE_BYTES_MAX, STREAMS_WAITING_MAX};
use crate::node::contact::Command;
use crate::problem::{Answer, Failure};

/// Largest message that a node may send on a stream.
pub(crate) const STREAM_MESSAGE_BYTES_MAX: usize =
    if LOG_MESSAGE_BYTES_MAX > FRAME_PAYLOAD_BYTES_MAX {
        LOG_MESSAGE_BYTES_MAX
    } else {
        FRAME_PAYLOAD_BYTES_MAX + 1
    };

type Dialled = Result<WebSocket, Problem>;

/// Streams that a node was asked for and has not opened yet.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    waiting: Mutex<BTreeMap<String, Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    node: NodeName,
    dialled: oneshot::Sender<Dialled>,
}

/// Takes the stream off the list when who waited went away.
struct Ticket<'a> {
    streams: &'a Streams,
    stream: String,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.streams.waiting().remove(&self.stream);
    }
}

impl Streams {
    fn waiting(&self) -> MutexGuard<'_, BTreeMap<String, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, node: &NodeName) -> Answer<(Ticket<'_>, oneshot::Receiver<Dialled>)> {
        let (dialled, answer) = oneshot::channel();
        let stream = new_name();
        let mut waiting = self.waiting();
        if waiting.len() >= STREAMS_WAITING_MAX {
            let detail = format!("{STREAMS_WAITING_MAX} streams wait for nodes already: try again");
            return Err(Failure::new(Code::Unavailable, detail));
        }
        waiting.insert(stream.clone(), Waiting { node: node.clone(), dialled });
        drop(waiting);
        Ok((Ticket { streams: self, stream }, answer))
    }

    /// The node says that it can't open the stream.
    pub(crate) fn fail(&self, node: &NodeName, stream: &str, problem: Problem) {
        let found = {
            let mut waiting = self.waiting();
            let is_its = waiting.get(stream).is_some_and(|waiting| waiting.node == *node);
            if is_its { waiting.remove(stream) } else { None }
        };
        if let Some(found) = found {
            // Who waited may have gone meanwhile.
            let _ = found.dialled.send(Err(problem));
        }
    }
}

/// 128 random bits: who does not know the name can't take the stream.
fn new_name() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Opens a stream to the node of `unit` and waits until the node has dialled.
pub(crate) async fn open(app: &App, unit: &Unit, request: StreamRequest) -> Answer<WebSocket> {
    let Some(node) = &unit.node else {
        let detail = format!("unit `{}` has no node yet: see `brig why {}`", unit.name, unit.name);
        return Err(Failure::new(Code::WrongState, detail));
    };
    let (ticket, answer) = app.streams.register(node)?;
    let command = Command::OpenStream {
        stream: ticket.stream.clone(),
        unit: unit.id.clone(),
        request,
        not_before: unit.meta.revision,
    };
    app.nodes.command(node, command)?;
    match tokio::time::timeout(DIAL_TIME_MAX, answer).await {
        Ok(Ok(Ok(socket))) => Ok(socket),
        Ok(Ok(Err(problem))) => Err(problem.into()),
        Ok(Err(_)) | Err(_) => {
            let detail = format!("node `{node}` did not open the stream in time: try again");
            Err(Failure::new(Code::NodeUnreachable, detail))
        }
    }
}

/// `GET /v1/node-streams/{stream}`: a node dials back.
pub(crate) async fn dial(
    State(app): State<Arc<App>>,
    PathOf(stream): PathOf<String>,
    Upgrade(upgrade): Upgrade,
) -> Answer<Response> {
    let waiting = app.streams.waiting().remove(&stream);
    let Some(waiting) = waiting else {
        return Err(Failure::new(Code::NotFound, "nobody waits for this stream (any more)"));
    };
    let upgrade =
        upgrade.max_message_size(STREAM_MESSAGE_BYTES_MAX).max_frame_size(STREAM_MESSAGE_BYTES_MAX);
    Ok(upgrade.on_upgrade(async move |socket| {
        // Who waited may have gone meanwhile; then the socket is dropped and the node sees it close.
        let _ = waiting.dialled.send(Ok(socket));
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_node_that_was_asked_can_fail_a_stream_and_tickets_clean_up() {
        let streams = Streams::default();
        let (a, b) = (NodeName::new("a").unwrap(), NodeName::new("b").unwrap());
        let (ticket, answer) = streams.register(&a).unwrap();
        streams.fail(&b, &ticket.stream, Problem::new(Code::Internal, "no"));
        assert_eq!(streams.waiting().len(), 1);
        streams.fail(&a, &ticket.stream, Problem::new(Code::WrongState, "ended"));
        assert_eq!(answer.await.unwrap().unwrap_err().detail, "ended");
        let (ticket, _answer) = streams.register(&a).unwrap();
        assert_eq!((ticket.stream.len(), streams.waiting().len()), (32, 1));
        drop(ticket);
        assert!(streams.waiting().is_empty());
    }
}
