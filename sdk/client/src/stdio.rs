//! Carries the standard streams of a command inside a running task, or a task's own input.

use brig_api::request::{AttachRequest, ExecRequest};
use brig_api::stdio::StdioFrame;
use brig_api::{NamespacePath, Problem};
use futures::stream::{SplitSink, SplitStream};
use futures::{Sink, SinkExt, Stream, StreamExt};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::api::unit_key;
use crate::error::ClientError;
use crate::http::{Client, object_path};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// The standard streams of a program.
#[derive(Debug)]
pub struct StdioStream {
    socket: Socket,
}

/// What comes from the program.
#[derive(Debug)]
pub struct StdioReader {
    read: SplitStream<Socket>,
}

/// What goes to the program.
#[derive(Debug)]
pub struct StdioWriter {
    write: SplitSink<Socket, Message>,
}

impl Client {
    /// Starts a command in a running unit.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn exec(
        &self,
        namespace: &NamespacePath,
        unit: &str,
        request: &ExecRequest,
    ) -> Result<StdioStream, ClientError> {
        self.stdio(namespace, unit, "exec", request).await
    }

    /// Opens the standard input of a task that has one. Its output is in the unit's log; the last frame says how it ended.
    /// Dropped, the stream leaves the program waiting for more input.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn attach(
        &self,
        namespace: &NamespacePath,
        unit: &str,
        request: &AttachRequest,
    ) -> Result<StdioStream, ClientError> {
        self.stdio(namespace, unit, "attach", request).await
    }

    async fn stdio(
        &self,
        namespace: &NamespacePath,
        unit: &str,
        what: &str,
        request: &impl Serialize,
    ) -> Result<StdioStream, ClientError> {
        let path = format!("{}/{what}", object_path(&unit_key(namespace, unit)));
        // `http` becomes `ws`, `https` becomes `wss`.
        let url = format!("ws{}{path}", self.server().strip_prefix("http").unwrap_or_default());
        let mut handshake =
            url.into_client_request().map_err(|error| self.unexpected(error.to_string()))?;
        if let Some(token) = self.token() {
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            let value = value.map_err(|_| self.unexpected("the token is no header".to_owned()))?;
            handshake.headers_mut().insert("authorization", value);
        }
        let (mut socket, _) = match tokio_tungstenite::connect_async(handshake).await {
            Ok(connected) => connected,
            Err(SocketError::Http(response)) => {
                let body = response.body().as_deref().unwrap_or_default();
                return Err(match serde_json::from_slice::<Problem>(body) {
                    Ok(problem) => ClientError::Problem(Box::new(problem)),
                    Err(_) => self.unexpected(format!("status {}", response.status())),
                });
            }
            Err(error) => return Err(self.unreachable(error)),
        };
        let text =
            serde_json::to_string(request).map_err(|error| self.unexpected(error.to_string()))?;
        socket
            .send(Message::text(text))
            .await
            .map_err(|error| ClientError::Broken(Box::new(error)))?;
        Ok(StdioStream { socket })
    }
}

impl StdioStream {
    /// Takes the stream apart. A program whose output nobody reads takes no more input: who has much of it reads
    /// while sending.
    #[must_use]
    pub fn split(self) -> (StdioReader, StdioWriter) {
        let (write, read) = self.socket.split();
        (StdioReader { read }, StdioWriter { write })
    }

    /// Sends input, or a new size of the terminal.
    ///
    /// # Errors
    /// [`ClientError::Broken`]
    pub async fn send(&mut self, frame: &StdioFrame) -> Result<(), ClientError> {
        send(&mut self.socket, frame).await
    }

    /// The next frame; None at the end. The last one is an exit or a failure. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Broken`]; a problem that the server sent as text.
    pub async fn next(&mut self) -> Result<Option<StdioFrame>, ClientError> {
        next(&mut self.socket).await
    }
}

impl StdioWriter {
    /// As [`StdioStream::send`].
    ///
    /// # Errors
    /// [`ClientError::Broken`]
    pub async fn send(&mut self, frame: &StdioFrame) -> Result<(), ClientError> {
        send(&mut self.write, frame).await
    }
}

impl StdioReader {
    /// As [`StdioStream::next`].
    ///
    /// # Errors
    /// [`ClientError::Broken`]; a problem that the server sent as text.
    pub async fn next(&mut self) -> Result<Option<StdioFrame>, ClientError> {
        next(&mut self.read).await
    }
}

async fn send(
    to: &mut (impl Sink<Message, Error = SocketError> + Unpin),
    frame: &StdioFrame,
) -> Result<(), ClientError> {
    let message = Message::binary(frame.encode());
    to.send(message).await.map_err(|error| ClientError::Broken(Box::new(error)))
}

async fn next(
    from: &mut (impl Stream<Item = Result<Message, SocketError>> + Unpin),
) -> Result<Option<StdioFrame>, ClientError> {
    while let Some(message) = from.next().await {
        match message.map_err(|error| ClientError::Broken(Box::new(error)))? {
            Message::Binary(bytes) => {
                return StdioFrame::decode(&bytes)
                    .map(Some)
                    .map_err(|error| ClientError::Broken(Box::new(error)));
            }
            Message::Text(text) => {
                return Err(match serde_json::from_str::<Problem>(&text) {
                    Ok(problem) => ClientError::Problem(Box::new(problem)),
                    Err(_) => ClientError::Broken("an unexpected message".into()),
                });
            }
            Message::Close(_) => return Ok(None),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use brig_api::stdio::FRAME_PAYLOAD_BYTES_MAX;

    #[tokio::test]
    async fn much_input_and_as_much_output_pass_one_another() {
        /// More than all buffers on the way hold together.
        const FRAMES: usize = 512;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::new(&format!("http://{}", listener.local_addr().unwrap()), None);
        // `cat`: takes the next piece when it is rid of the last.
        let cat = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
            while let Some(Ok(message)) = socket.next().await {
                let Message::Binary(bytes) = message else { continue };
                let StdioFrame::Stdin(bytes) = StdioFrame::decode(&bytes).unwrap() else {
                    continue;
                };
                let is_end = bytes.is_empty();
                let frame = if is_end { StdioFrame::Exit(0) } else { StdioFrame::Stdout(bytes) };
                socket.send(Message::binary(frame.encode())).await.unwrap();
            }
        });
        let namespace = NamespacePath::default_namespace();
        let request = ExecRequest { task: None, command: vec!["cat".into()], terminal: None };
        let stream = client.unwrap().exec(&namespace, "x", &request).await.unwrap();
        let (mut reader, mut writer) = stream.split();
        let input = async {
            for _ in 0..FRAMES {
                writer.send(&StdioFrame::Stdin(vec![7; FRAME_PAYLOAD_BYTES_MAX])).await.unwrap();
            }
            writer.send(&StdioFrame::Stdin(vec![])).await.unwrap();
        };
        let output = async {
            let mut count = 0;
            while let Some(StdioFrame::Stdout(bytes)) = reader.next().await.unwrap() {
                count += bytes.len();
            }
            count
        };
        let both = async { tokio::join!(input, output).1 };
        let count = tokio::time::timeout(std::time::Duration::from_secs(30), both).await;
        assert_eq!(count.unwrap(), FRAMES * FRAME_PAYLOAD_BYTES_MAX);
        cat.abort();
    }
}
