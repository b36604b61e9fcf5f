//! Watches resources: every change, in order, once, also across lost connections and server restarts.

use std::time::Duration;

use brig_api::change::Change;
use brig_api::{Kind, NamespacePath, Revision};
use reqwest::{Method, Response};

use crate::error::ClientError;
use crate::http::{Client, escaped};

/// First pause before a lost watch is opened again; it doubles up to [`RETRY_MS_MAX`].
const RETRY_MS_MIN: u64 = 50;
/// Longest pause before a lost watch is opened again.
const RETRY_MS_MAX: u64 = 5_000;
/// Largest event: all changes of one revision, of at most a thousand manifests.
const EVENT_BYTES_MAX: usize = 64 << 20;

/// A watch that says nothing for so long is lost: servers send a sign of life every 10 s.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// What to watch; everything by default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WatchFilter {
    /// Only this kind.
    pub kind: Option<Kind>,
    /// Only this namespace and those below it.
    pub namespace: Option<NamespacePath>,
}

/// The changes after a revision.
#[derive(Debug)]
pub struct WatchStream {
    client: Client,
    filter: WatchFilter,
    since: Revision,
    connection: Option<Response>,
    buffer: Vec<u8>,
    /// So much of `buffer` holds no end of an event.
    searched: usize,
    silence_max: Duration,
}

impl Client {
    /// Watches what `filter` names, from the first change after `since`: the revision of the list that came before.
    #[must_use]
    pub fn watch(&self, filter: WatchFilter, since: Revision) -> WatchStream {
        WatchStream {
            client: self.clone(),
            filter,
            since,
            connection: None,
            buffer: Vec::new(),
            searched: 0,
            silence_max: SILENCE_MAX,
        }
    }
}

impl WatchStream {
    /// The newest revision that was seen: watch from there to miss nothing.
    #[must_use]
    pub fn since(&self) -> Revision {
        self.since
    }

    /// The changes of the next revision that has any; waits for it. A lost connection is made again.
    ///
    /// # Errors
    /// A problem that the server gave, `revision-too-old` among them: list again. Never for a lost connection.
    pub async fn next(&mut self) -> Result<Vec<Change>, ClientError> {
        let mut pause_ms = RETRY_MS_MIN;
        loop {
            match self.next_of_connection().await {
                Ok(changes) => return Ok(changes),
                Err(error @ ClientError::Problem(_))
                    if error.code() != Some(brig_api::Code::Unavailable) =>
                {
                    return Err(error);
                }
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "watch lost");
                    self.connection = None;
                    self.buffer.clear();
                    self.searched = 0;
                    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                    pause_ms = (pause_ms * 2).min(RETRY_MS_MAX);
                }
            }
        }
    }

    async fn next_of_connection(&mut self) -> Result<Vec<Change>, ClientError> {
        let broken = |what: &'static str| ClientError::Broken(what.into());
        loop {
            let connection = match &mut self.connection {
                Some(connection) => connection,
                None => {
                    let response = self.open().await?;
                    self.connection.insert(response)
                }
            };
            while let Some(end) = end_of_event(&self.buffer, self.searched) {
                let event: Vec<u8> = self.buffer.drain(..end).collect();
                self.searched = 0;
                let Some((revision, changes)) =
                    parse(&event).map_err(|_| broken("not an event of a watch"))?
                else {
                    continue;
                };
                // The server may send again what came before a lost connection.
                if revision > self.since {
                    self.since = revision;
                    // Without changes it only says how far the server is: past what the filter left out.
                    if !changes.is_empty() {
                        return Ok(changes);
                    }
                }
            }
            if self.buffer.len() > EVENT_BYTES_MAX {
                return Err(broken("an event of the watch is too long"));
            }
            // The end may lie across the next piece.
            self.searched = self.buffer.len().saturating_sub(1);
            let next = tokio::time::timeout(self.silence_max, connection.chunk()).await;
            let next = next.map_err(|_| broken("the watch fell silent"))?;
            match next.map_err(|error| ClientError::Broken(Box::new(error)))? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => return Err(broken("the watch ended")),
            }
        }
    }

    async fn open(&self) -> Result<Response, ClientError> {
        let mut path = format!("/v1/watch?since={}", self.since);
        if let Some(kind) = self.filter.kind {
            path.push_str(&format!("&kind={kind}"));
        }
        if let Some(namespace) = &self.filter.namespace {
            path.push_str(&format!("&namespace={}", escaped(namespace.as_str())));
        }
        self.client.send(self.client.request(Method::GET, &path)).await
    }
}

/// Just behind the first whole event: events end with an empty line. There is none in the first `searched` bytes.
fn end_of_event(buffer: &[u8], searched: usize) -> Option<usize> {
    let rest = buffer.get(searched..)?;
    rest.windows(2).position(|pair| pair == b"\n\n").map(|position| searched + position + 2)
}

/// A revision and its changes.
type Parsed = (Revision, Vec<Change>);

/// Reads an event of a stream of server-sent events (WHATWG HTML, section 9.2): the revision is its id. No changes
/// where there is only that; None for a comment alone.
fn parse(event: &[u8]) -> Result<Option<Parsed>, Box<dyn std::error::Error + Send + Sync>> {
    let mut id = None;
    let mut data = String::new();
    for line in std::str::from_utf8(event)?.lines() {
        if let Some(value) = line.strip_prefix("id:") {
            id = Some(Revision(value.trim().parse()?));
        } else if let Some(value) = line.strip_prefix("data:") {
            data.push_str(value.strip_prefix(' ').unwrap_or(value));
        }
    }
    match id {
        Some(revision) if !data.is_empty() => Ok(Some((revision, serde_json::from_str(&data)?))),
        Some(revision) => Ok(Some((revision, Vec::new()))),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_carry_a_revision_and_its_changes() {
        let (revision, changes) = parse(b"id: 7\ndata: []\n\n").unwrap().unwrap();
        assert_eq!((revision, changes), (Revision(7), vec![]));
        assert_eq!(parse(b"id: 8\n:\n\n").unwrap(), Some((Revision(8), vec![])));
        assert!(parse(b": alive\n\n").unwrap().is_none());
        assert!(parse(b"id: x\ndata: []\n\n").is_err());
        assert_eq!(end_of_event(b"id: 7\n\nid: 8", 0), Some(7));
        assert_eq!(end_of_event(b"id: 7\n\nid: 8", 5), Some(7));
        assert_eq!(end_of_event(b"id: 7\n", 0), None);
    }

    #[tokio::test]
    async fn a_watch_whose_server_fell_silent_is_opened_again() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::new(&format!("http://{}", listener.local_addr().unwrap()), None);
        let server = tokio::spawn(async move {
            // The first says that it is there, and then nothing more, without hanging up.
            let _silent = answer(&listener, "id: 1\n:\n\n").await;
            let change = r#"{"revision":2,"position":0,"key":{"kind":"unit","namespace":"default","name":"x"},"object":null}"#;
            let _second = answer(&listener, &format!("id: 2\ndata: [{change}]\n\n")).await;
            std::future::pending::<()>().await;
        });
        let mut watch = client.unwrap().watch(WatchFilter::default(), Revision(0));
        watch.silence_max = Duration::from_millis(50);
        let changes = tokio::time::timeout(Duration::from_secs(30), watch.next()).await;
        assert_eq!(changes.unwrap().unwrap()[0].key.name, "x");
        server.abort();
    }

    async fn answer(listener: &tokio::net::TcpListener, events: &str) -> tokio::net::TcpStream {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
        stream.write_all(format!("{head}{events}").as_bytes()).await.unwrap();
        stream
    }
}
