//! The node's session with a control plane: one WebSocket, made again and again with any of the servers.

use std::hash::{BuildHasher as _, Hasher as _};
use std::time::Duration;

use brig_api::NodeName;
use brig_api::object::NodeFacts;
use brig_api::session::{
    CodeKey, FromNode, HEARTBEAT_MS, MESSAGE_BYTES_MAX, SESSION_PROTOCOL, SILENCE_MS_MAX, ToNode,
};
use brig_client::Client;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::compiled::CompiledCode;
use crate::event::Event;
use crate::held::HeldArtifacts;

/// Wait before the second try, and after a session that worked.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// Longest wait between tries: a server that is back is found soon, one that is overrun is not hammered.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Longest wait for a connection.
const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// A server that was silent, or took nothing, for so long is given up.
const SILENCE: Duration = Duration::from_millis(SILENCE_MS_MAX);
/// Messages to the server that wait to be sent; more are dropped, and their statuses sent again later.
const OUTGOING_MAX: usize = 1024;

/// A WebSocket to a server.
pub(crate) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What a session needs.
#[derive(Clone)]
pub(crate) struct SessionConfig {
    pub name: NodeName,
    pub facts: NodeFacts,
    /// `ws://HOST:PORT`, at least one.
    pub servers: Vec<String>,
    pub token: Option<String>,
    pub compiled: CompiledCode,
    pub held: HeldArtifacts,
}

/// Why a session ended or did not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("no connection")]
    Connect(#[from] tungstenite::Error),
    #[error("no answer within {} s", CONNECT_WAIT.as_secs())]
    NoAnswer,
    #[error("silent for {} s", SILENCE_MS_MAX / 1_000)]
    Silent,
    #[error("the server ended the session: {0}")]
    Closed(String),
    #[error("the server refuses this node: {0}")]
    Refused(String),
    #[error("not a message of the protocol")]
    Message(#[from] serde_json::Error),
    #[error("the token has characters that a header can't have")]
    Token,
    #[error("the agent ends")]
    AgentGone,
}

/// Keeps a session with any of the servers, for ever.
pub(crate) async fn run(config: SessionConfig, events: mpsc::Sender<Event>) {
    let mut failures = 0_u32;
    for server in config.servers.iter().cycle() {
        let mut was_up = false;
        match session(&config, server, &events, &mut was_up).await {
            Ok(()) | Err(SessionError::AgentGone) => return,
            Err(error) => tracing::warn!(
                server,
                error = &error as &dyn std::error::Error,
                "no session with the server"
            ),
        }
        if was_up {
            failures = 0;
            if events.send(Event::SessionDown).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(retry_wait(failures, random())).await;
        failures = failures.saturating_add(1);
    }
}

/// From half of the doubled wait to the whole: nodes that lost the same server don't come back in step.
fn retry_wait(failures: u32, random: u64) -> Duration {
    let whole = RETRY_FIRST.saturating_mul(1 << failures.min(10)).min(RETRY_MAX);
    let half = whole / 2;
    let micros = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).max(1);
    half + Duration::from_micros(random % micros)
}

fn random() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

async fn session(
    config: &SessionConfig,
    server: &str,
    events: &mpsc::Sender<Event>,
    was_up: &mut bool,
) -> Result<(), SessionError> {
    let url = format!("{server}/v1/node-session");
    let socket = connect(&url, config.token.as_deref()).await?;
    let (mut write, mut read) = socket.split();
    let hello = FromNode::Hello {
        protocol: SESSION_PROTOCOL,
        name: config.name.clone(),
        facts: Box::new(config.facts.clone()),
    };
    send(&mut write, text(&hello)?).await?;
    match tokio::time::timeout(CONNECT_WAIT, next(&mut read)).await {
        Err(_) => return Err(SessionError::NoAnswer),
        Ok(answer) => match answer? {
            Some(ToNode::Welcome { server_version, code_key }) => {
                tracing::info!(server, server_version, "in session with the server");
                share_code(config, server, code_key);
            }
            Some(ToNode::Refused { problem }) => {
                return Err(SessionError::Refused(problem.to_string()));
            }
            _ => return Err(closed(None)),
        },
    }
    *was_up = true;
    let (outgoing_tx, outgoing) = mpsc::channel(OUTGOING_MAX);
    let gone = |_| SessionError::AgentGone;
    // The agent's is the one that keeps it open.
    let tells = config.held.tell(outgoing_tx.downgrade());
    events.send(Event::SessionUp(outgoing_tx)).await.map_err(gone)?;
    tokio::select! {
        result = converse(server, events, write, read, outgoing) => result,
        () = tells => Err(SessionError::AgentGone),
    }
}

/// Compiled code is kept by the server of the session, whose key is good for what it keeps.
fn share_code(config: &SessionConfig, server: &str, key: Option<CodeKey>) {
    let base = server.replacen("ws", "http", 1);
    if let (Some(key), Ok(client)) = (key, Client::new(&base, config.token.as_deref())) {
        config.compiled.attach(client, key);
    }
}

/// Both directions at once: a server that does not read for a while is still heard, and the other way round.
async fn converse(
    server: &str,
    events: &mpsc::Sender<Event>,
    write: SplitSink<Socket, Message>,
    read: SplitStream<Socket>,
    outgoing: mpsc::Receiver<FromNode>,
) -> Result<(), SessionError> {
    tokio::select! {
        result = listen(server, events, read) => result,
        result = speak(write, outgoing) => result,
    }
}

async fn listen(
    server: &str,
    events: &mpsc::Sender<Event>,
    mut read: SplitStream<Socket>,
) -> Result<(), SessionError> {
    loop {
        let message = tokio::time::timeout(SILENCE, read.next()).await;
        match message.map_err(|_| SessionError::Silent)?.transpose()? {
            None => return Err(closed(None)),
            Some(Message::Close(frame)) => return Err(closed(frame)),
            Some(Message::Text(text)) => {
                let message = serde_json::from_str(text.as_str())?;
                let event = Event::Session(Box::new(message), server.to_owned());
                events.send(event).await.map_err(|_| SessionError::AgentGone)?;
            }
            Some(_) => {}
        }
    }
}

async fn speak(
    mut write: SplitSink<Socket, Message>,
    mut outgoing: mpsc::Receiver<FromNode>,
) -> Result<(), SessionError> {
    let mut beat = tokio::time::interval(Duration::from_millis(HEARTBEAT_MS));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = outgoing.recv() => {
                let Some(message) = message else { return Err(SessionError::AgentGone) };
                send(&mut write, text(&message)?).await?;
            }
            _ = beat.tick() => {
                send(&mut write, text(&FromNode::Heartbeat)?).await?;
                // Every server answers this, also one that has nothing to say.
                send(&mut write, Message::Ping(tungstenite::Bytes::new())).await?;
            }
        }
    }
}

/// Sends; a server that takes nothing for so long is given up, as one that says nothing.
async fn send(
    write: &mut SplitSink<Socket, Message>,
    message: Message,
) -> Result<(), SessionError> {
    let sent = tokio::time::timeout(SILENCE, write.send(message)).await;
    Ok(sent.map_err(|_| SessionError::Silent)??)
}

fn closed(frame: Option<CloseFrame>) -> SessionError {
    let reason = frame.map(|frame| frame.reason.to_string()).filter(|reason| !reason.is_empty());
    SessionError::Closed(reason.unwrap_or_else(|| "without a reason".to_owned()))
}

/// Connects a WebSocket.
pub(crate) async fn connect(url: &str, token: Option<&str>) -> Result<Socket, SessionError> {
    let mut request = url.into_client_request()?;
    if let Some(token) = token {
        let mut value =
            HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| SessionError::Token)?;
        value.set_sensitive(true);
        request.headers_mut().insert("authorization", value);
    }
    let limits = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    // Without Nagle's delay: messages are small and somebody waits for each.
    let connect = tokio_tungstenite::connect_async_with_config(request, Some(limits), true);
    match tokio::time::timeout(CONNECT_WAIT, connect).await {
        Ok(connected) => Ok(connected?.0),
        Err(_) => Err(SessionError::NoAnswer),
    }
}

fn text(message: &FromNode) -> Result<Message, SessionError> {
    Ok(Message::text(serde_json::to_string(message)?))
}

async fn next(read: &mut SplitStream<Socket>) -> Result<Option<ToNode>, SessionError> {
    while let Some(message) = read.next().await {
        if let Message::Text(text) = message? {
            return Ok(Some(serde_json::from_str(text.as_str())?));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_is_capped_and_differs() {
        for failures in 0..40 {
            for random in [0, 1, u64::MAX] {
                let wait = retry_wait(failures, random);
                assert!(wait >= RETRY_FIRST / 2 && wait <= RETRY_MAX, "{failures} {wait:?}");
            }
        }
        assert!(retry_wait(9, 0) > retry_wait(0, u64::MAX));
        assert_ne!(retry_wait(3, 1), retry_wait(3, 2));
    }
}
