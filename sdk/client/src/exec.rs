//! Runs a command inside a running task and carries its standard streams.

use brig_api::request::ExecRequest;
use brig_api::stdio::StdioFrame;
use brig_api::{NamespacePath, Problem};
use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::api::unit_key;
use crate::error::ClientError;
use crate::http::{Client, object_path};

/// A command that runs in a task.
#[derive(Debug)]
pub struct ExecStream {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
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
    ) -> Result<ExecStream, ClientError> {
        let path = format!("{}/exec", object_path(&unit_key(namespace, unit)));
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
        Ok(ExecStream { socket })
    }
}

impl ExecStream {
    /// Sends input, or a new size of the terminal.
    ///
    /// # Errors
    /// [`ClientError::Broken`]
    pub async fn send(&mut self, frame: &StdioFrame) -> Result<(), ClientError> {
        let message = Message::binary(frame.encode());
        self.socket.send(message).await.map_err(|error| ClientError::Broken(Box::new(error)))
    }

    /// The next frame; None at the end. The last one is an exit or a failure. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Broken`]; a problem that the server sent as text.
    pub async fn next(&mut self) -> Result<Option<StdioFrame>, ClientError> {
        while let Some(message) = self.socket.next().await {
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
}
