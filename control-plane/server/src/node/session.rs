//! A node's session: greeting, complete assignments, then differences down and statuses up.
//!
//! Three loops share one WebSocket, and the session ends when any of them does: what comes in, what is new in the
//! change feed, and what goes out. Committing a status therefore delays no assignment.
//!
//! **Invariant:** a status is acknowledged only after it was committed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use axum::response::Response;
use brig_api::checkpoint::CheckpointReport;
use brig_api::lifecycle::UnitState;
use brig_api::object::{Desired, NodeFacts, Unit};
use brig_api::session::{
    Assignment, CHECKPOINTS_MAX, FromNode, MESSAGE_BYTES_MAX, SESSION_PROTOCOL, SILENCE_MS_MAX,
    Texts, ToNode,
};
use brig_api::{Code, NodeName, Problem, Revision, UnitId};
use brig_store::StoreError;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::app::App;
use crate::clock;
use crate::extract::Upgrade;
use crate::limits::{
    ASSIGNMENTS_BYTES_MAX, HELLO_TIME_MAX, LEAD_TIME_MAX, SEND_TIME_MAX, SESSION_QUEUE_MAX,
    SESSION_READ_BYTES,
};
use crate::node::assignment::{Told, assignment, ended_on, names_texts, parts};
use crate::node::contact::{Command, Seat};
use crate::node::mail::Letter;
use crate::problem::{Failure, chain};
use crate::questions::ask;

/// Most bytes of one assignment: the rest of a message is for the names of many others.
const ALONE_BYTES_MAX: usize = MESSAGE_BYTES_MAX - (2 << 20);

/// Why a session ended; the text goes into the close frame, where it may be 123 bytes long.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the connection was closed")]
    Closed,
    #[error("the connection broke: {0}")]
    Broken(#[source] axum::Error),
    #[error("not a message of this protocol: {0}")]
    Unreadable(String),
    #[error("nothing was heard for {SILENCE_MS_MAX} ms")]
    Silent,
    #[error("messages were not read in time")]
    Slow,
    #[error("there is more news than was kept for the node: connect again for the whole")]
    Behind,
    #[error("another session of this node took over")]
    Replaced,
    #[error("the server is stopping or no longer leads: connect again")]
    Leaving,
    #[error("the assignments are larger than {MESSAGE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("not accepted: {0}")]
    Refused(Box<Problem>),
    #[error("the database failed: {0}")]
    Store(#[from] StoreError),
}

impl End {
    fn close_code(&self) -> u16 {
        match self {
            Self::Closed => close_code::NORMAL,
            Self::Leaving => close_code::AWAY,
            Self::Unreadable(_) | Self::Refused(_) => close_code::POLICY,
            Self::TooLarge => close_code::SIZE,
            _ => close_code::AGAIN,
        }
    }
}

/// `GET /v1/node-session`
pub(crate) async fn connect(State(app): State<Arc<App>>, Upgrade(upgrade): Upgrade) -> Response {
    upgrade
        .read_buffer_size(SESSION_READ_BYTES)
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX)
        .on_upgrade(async move |socket| serve(&app, socket).await)
}

async fn serve(app: &App, mut socket: WebSocket) {
    let (name, facts) = match greet(app, &mut socket).await {
        Ok(hello) => hello,
        Err(end) => {
            tracing::info!(reason = %end, "a node was not accepted");
            if let End::Refused(problem) = &end {
                let refused = ToNode::Refused { problem: problem.clone() };
                if let Ok(message) = encode(&refused) {
                    let _ = tokio::time::timeout(SEND_TIME_MAX, socket.send(message)).await;
                }
            }
            close(&mut socket, &end).await;
            return;
        }
    };
    let mut seat = app.nodes.enter(&name, Instant::now());
    tracing::info!(node.name = %name, "a node's session began");
    let (mut sink, stream) = socket.split();
    let end = converse(app, &name, facts, &mut seat, &mut sink, stream).await;
    app.nodes.leave(&name, seat.number);
    match &end {
        End::Store(error) => {
            tracing::warn!(node.name = %name, error = %chain(error), "a node's session failed");
        }
        end => tracing::info!(node.name = %name, reason = %end, "a node's session ended"),
    }
    let frame = Message::Close(Some(close_frame(&end)));
    let _ = tokio::time::timeout(SEND_TIME_MAX, sink.send(frame)).await;
}

/// The first message, and whether the node is accepted.
async fn greet(app: &App, socket: &mut WebSocket) -> Result<(NodeName, NodeFacts), End> {
    let message = tokio::time::timeout(HELLO_TIME_MAX, socket.recv()).await;
    let message = message.map_err(|_| End::Silent)?.ok_or(End::Closed)?.map_err(End::Broken)?;
    let FromNode::Hello { protocol, name, facts } = decode(&message)? else {
        return Err(End::Unreadable("expected `hello` first".to_owned()));
    };
    if protocol != SESSION_PROTOCOL {
        let detail = format!(
            "node `{name}` speaks version {protocol} of the session protocol, this server version {SESSION_PROTOCOL}: use the same version of brig on both"
        );
        return Err(End::Refused(Box::new(Problem::new(Code::Invalid, detail))));
    }
    let faults = facts.faults();
    if !faults.is_empty() {
        let detail = format!("what node `{name}` says of itself is not valid");
        return Err(End::Refused(Box::new(Problem::invalid(detail, faults))));
    }
    let mut is_leader = app.is_leader.subscribe();
    let leads = is_leader.wait_for(|is_leader| *is_leader);
    if tokio::time::timeout(LEAD_TIME_MAX, leads).await.is_err() {
        let detail =
            "another server leads this cluster just now: connect to that one, or try again";
        return Err(End::Refused(Box::new(Problem::new(Code::Unavailable, detail))));
    }
    Ok((name, *facts))
}

async fn converse(
    app: &App,
    name: &NodeName,
    facts: NodeFacts,
    seat: &mut Seat,
    sink: &mut SplitSink<WebSocket, Message>,
    stream: SplitStream<WebSocket>,
) -> End {
    let (outgoing, queue) = mpsc::channel(SESSION_QUEUE_MAX);
    let mut is_leader = app.is_leader.subscribe();
    let (replaced, number) = (seat.replaced.clone(), seat.number);
    let downwards = async {
        let (line, letters) = begin(app, name, facts, &outgoing).await?;
        tell(line, letters, seat).await
    };
    let result = tokio::select! {
        result = downwards => result,
        result = listen(app, (name, number), stream, &outgoing) => result,
        result = send(sink, queue) => result,
        () = replaced.cancelled() => Err(End::Replaced),
        () = app.stop.cancelled() => Err(End::Leaving),
        _ = is_leader.wait_for(|is_leader| !is_leader) => Err(End::Leaving),
    };
    result.err().unwrap_or(End::Closed)
}

/// What a node is told, and how.
struct Line<'a> {
    app: &'a App,
    told: Told,
    /// What the node was told at first holds everything up to here.
    since: Revision,
    outgoing: &'a mpsc::Sender<ToNode>,
}

/// Registers the node and sends it everything that it should run.
async fn begin<'a>(
    app: &'a App,
    name: &NodeName,
    facts: NodeFacts,
    outgoing: &'a mpsc::Sender<ToNode>,
) -> Result<(Line<'a>, mpsc::Receiver<Letter>), End> {
    if let Err(error) = app.store.node_register(name, facts, clock::now_ms()).await {
        return refuse(Failure::from(error).0, outgoing).await;
    }
    let server_version = env!("CARGO_PKG_VERSION").to_owned();
    let code_key = Some(app.compiled.key().clone());
    push(outgoing, ToNode::Welcome { server_version, code_key }).await?;
    // The box first, then the revision: what is committed after it comes (again) as a letter.
    let letters = app.mail.open(name);
    let since = app.store.revision().await?;
    let units = app.store.node_assignments(name).await?;
    let of = name.clone();
    let ended = ask(app, since, move |model, _| ended_on(&of, model.units())).await;
    let mut ended = match ended {
        Ok(ended) => ended,
        Err(failure) => return refuse(failure.0, outgoing).await,
    };
    // A unit may have ended between the two reads.
    ended.retain(|ended| units.iter().all(|unit| unit.id != ended.id));
    let mut told = Told::new(name.clone());
    told.all(units.iter().chain(&ended));
    app.mail.told(name, units.iter().chain(&ended));
    let (resumed, units) = resume(app, units, outgoing).await?;
    let mut units = with_texts(app, &units).await?;
    units.extend(ended.iter().map(|unit| assignment(unit, Texts::default())));
    let mut parts = parts(units, ASSIGNMENTS_BYTES_MAX, ALONE_BYTES_MAX);
    let last = parts.pop().unwrap_or_default();
    let others = parts.iter().flatten().map(|one| one.unit.clone()).chain(resumed).collect();
    for units in parts {
        push(outgoing, ToNode::Assign { units }).await?;
    }
    push(outgoing, ToNode::Assignments { units: last, others }).await?;
    Ok((Line { app, told, since, outgoing }, letters))
}

/// Tells the node; `send` ends the session once it was told.
async fn refuse<T>(problem: Box<Problem>, outgoing: &mpsc::Sender<ToNode>) -> Result<T, End> {
    push(outgoing, ToNode::Refused { problem }).await?;
    std::future::pending().await
}

/// Sends what is new, and what others want of the node, for ever.
async fn tell(
    mut line: Line<'_>,
    mut letters: mpsc::Receiver<Letter>,
    seat: &mut Seat,
) -> Result<(), End> {
    let mut early: Vec<Command> = Vec::new();
    loop {
        let due = early.iter().map(|Command::OpenStream { not_before, .. }| *not_before).min();
        tokio::select! {
            letter = letters.recv() => line.pass_on(&letter.ok_or(End::Behind)?).await?,
            command = seat.commands.recv() => early.push(command.ok_or(End::Replaced)?),
            delivered = line.app.mail.delivered(due.unwrap_or_default()), if due.is_some() => {
                // What was delivered is in the box, and goes first.
                while let Ok(letter) = letters.try_recv() {
                    line.pass_on(&letter).await?;
                }
                for command in std::mem::take(&mut early) {
                    let Command::OpenStream { stream, unit, request, not_before } = command;
                    if not_before <= delivered {
                        push(line.outgoing, ToNode::OpenStream { stream, unit, request }).await?;
                    } else {
                        early.push(Command::OpenStream { stream, unit, request, not_before });
                    }
                }
            }
        }
    }
}

impl Line<'_> {
    async fn pass_on(&mut self, letter: &Letter) -> Result<(), End> {
        if letter.revision() <= self.since {
            return Ok(());
        }
        let difference = self.told.take_over(letter.changes());
        if !difference.withdraw.is_empty() {
            push(self.outgoing, ToNode::Withdraw { units: difference.withdraw }).await?;
        }
        let (_, units) = resume(self.app, difference.assign, self.outgoing).await?;
        assign(self.app, &units, self.outgoing).await
    }
}

async fn assign(app: &App, units: &[Unit], outgoing: &mpsc::Sender<ToNode>) -> Result<(), End> {
    if units.is_empty() {
        return Ok(());
    }
    let units = with_texts(app, units).await?;
    for units in parts(units, ASSIGNMENTS_BYTES_MAX, ALONE_BYTES_MAX) {
        push(outgoing, ToNode::Assign { units }).await?;
    }
    Ok(())
}

/// Assigns those of the units that have not begun and go on from something, each with it and after it, so that none begins
/// anew, and those that were told have begun whatever becomes of the session. Gives their names, and the other units.
async fn resume(
    app: &App,
    mut units: Vec<Unit>,
    outgoing: &mpsc::Sender<ToNode>,
) -> Result<(BTreeSet<UnitId>, Vec<Unit>), End> {
    use UnitState::{Assigned, Backoff, Preparing};
    let has_not_begun = |unit: &&Unit| {
        unit.desired == Desired::Run && matches!(unit.status.state, Assigned | Preparing | Backoff)
    };
    let beginning: Vec<_> = units.iter().filter(has_not_begun).collect();
    let found = app.store.resumptions(&beginning).await?;
    let resumed = found.iter().map(|one| one.unit.clone()).collect::<BTreeSet<_>>();
    for unit in units.iter().filter(|unit| resumed.contains(&unit.id)) {
        for one in found.iter().filter(|one| one.unit == unit.id) {
            // Once the one before has left: a node that reads slowly costs the memory of two.
            let room = outgoing.reserve_many(outgoing.max_capacity()).await;
            drop(room.map_err(|_| End::Closed)?);
            if let Some(checkpoint) = app.store.checkpoint_get(&one.saved_by, &one.task).await? {
                let (unit, task) = (unit.id.clone(), one.task.clone());
                push(outgoing, ToNode::Checkpoint { unit, task, checkpoint }).await?;
            }
        }
        assign(app, std::slice::from_ref(unit), outgoing).await?;
    }
    units.retain(|unit| !resumed.contains(&unit.id));
    Ok((resumed, units))
}

async fn with_texts(app: &App, units: &[Unit]) -> Result<Vec<Assignment>, End> {
    let mut assignments = Vec::with_capacity(units.len());
    for unit in units {
        let texts = if names_texts(&unit.template) {
            match app.store.texts_for(unit).await {
                Ok(texts) => texts,
                // The node finds that it is missing and says so in the unit's status.
                Err(StoreError::NotFound(key)) => {
                    tracing::warn!(unit.id = %unit.id, missing = %key, "a unit's texts are missing");
                    Texts::default()
                }
                Err(error) => return Err(error.into()),
            }
        } else {
            Texts::default()
        };
        assignments.push(assignment(unit, texts));
    }
    Ok(assignments)
}

/// Takes in what the node says, for ever.
async fn listen(
    app: &App,
    (name, number): (&NodeName, u64),
    mut stream: SplitStream<WebSocket>,
    outgoing: &mpsc::Sender<ToNode>,
) -> Result<(), End> {
    loop {
        let message = tokio::time::timeout(Duration::from_millis(SILENCE_MS_MAX), stream.next());
        let message = message.await.map_err(|_| End::Silent)?;
        let message = message.ok_or(End::Closed)?.map_err(End::Broken)?;
        app.nodes.heard(name, Instant::now());
        match message {
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => return Err(End::Closed),
            Message::Text(_) | Message::Binary(_) => {}
        }
        match decode(&message)? {
            FromNode::Heartbeat => {}
            FromNode::Statuses { reports } => {
                let now_ms = clock::now_ms();
                let reports = app.store.statuses_report(name, &reports, now_ms).await?;
                push(outgoing, ToNode::Acknowledge { reports }).await?;
            }
            FromNode::Usage { units } => {
                app.store.usage_report(name, &units, clock::now_ms()).await?;
            }
            FromNode::Checkpoints { reports } if reports.len() > CHECKPOINTS_MAX => {
                let why = format!("at most {CHECKPOINTS_MAX} checkpoints are told at once");
                return Err(End::Unreadable(why));
            }
            FromNode::Checkpoints { reports } => {
                app.store.checkpoints_report(name, &reports, clock::now_ms()).await?;
                let kept =
                    |report: CheckpointReport| (report.unit, report.task, report.checkpoint.number);
                let reports = reports.into_iter().map(kept).collect();
                push(outgoing, ToNode::CheckpointsKept { reports }).await?;
            }
            FromNode::Artifacts { is_complete, held, gone } => {
                app.nodes.tell_holdings(name, number, |before| {
                    let before = before.filter(|_| !is_complete).cloned();
                    before.unwrap_or_default().after(&held, &gone)
                });
            }
            FromNode::StreamFailed { stream, problem } => app.streams.fail(name, &stream, *problem),
            FromNode::Hello { .. } => {
                return Err(End::Unreadable("`hello` was said already".to_owned()));
            }
        }
    }
}

/// Sends what is queued, for ever.
async fn send(
    sink: &mut SplitSink<WebSocket, Message>,
    mut queue: mpsc::Receiver<ToNode>,
) -> Result<(), End> {
    while let Some(message) = queue.recv().await {
        let sent = tokio::time::timeout(SEND_TIME_MAX, sink.send(encode(&message)?)).await;
        sent.map_err(|_| End::Slow)?.map_err(End::Broken)?;
        if let ToNode::Refused { problem } = message {
            return Err(End::Refused(problem));
        }
    }
    Err(End::Closed)
}

async fn push(outgoing: &mpsc::Sender<ToNode>, message: ToNode) -> Result<(), End> {
    outgoing.send(message).await.map_err(|_| End::Closed)
}

fn encode(message: &ToNode) -> Result<Message, End> {
    let text =
        serde_json::to_string(message).map_err(|error| End::Unreadable(error.to_string()))?;
    if text.len() > MESSAGE_BYTES_MAX {
        return Err(End::TooLarge);
    }
    Ok(Message::Text(text.into()))
}

fn decode(message: &Message) -> Result<FromNode, End> {
    match message {
        Message::Text(text) => {
            serde_json::from_str(text.as_str()).map_err(|error| End::Unreadable(error.to_string()))
        }
        Message::Close(_) => Err(End::Closed),
        _ => Err(End::Unreadable("expected JSON in a text message".to_owned())),
    }
}

async fn close(socket: &mut WebSocket, end: &End) {
    let frame = Message::Close(Some(close_frame(end)));
    let _ = tokio::time::timeout(SEND_TIME_MAX, socket.send(frame)).await;
}

fn close_frame(end: &End) -> CloseFrame {
    /// The protocol's limit for a control frame, less the code.
    const REASON_BYTES_MAX: usize = 123;
    let mut reason = end.to_string();
    while reason.len() > REASON_BYTES_MAX {
        reason.pop();
    }
    CloseFrame { code: end.close_code(), reason: reason.into() }
}
