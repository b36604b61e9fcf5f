//! A control plane that says what a test tells it to.

use std::time::Duration;

use brig_api::UnitId;
use brig_api::lifecycle::UnitState;
use brig_api::object::{NodeFacts, UnitStatus};
use brig_api::session::{Assignment, FromNode, StatusReport, ToNode};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

/// A test that waits longer has failed.
const WAIT: Duration = Duration::from_secs(30);

pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(WAIT, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

pub(crate) struct FakeServer {
    listener: TcpListener,
}

/// One connection.
pub(crate) struct Connection {
    pub path: String,
    pub token: Option<String>,
    socket: WebSocketStream<TcpStream>,
}

impl FakeServer {
    pub(crate) async fn new() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.listener.local_addr().unwrap())
    }

    /// The next connection; those that their agent has given up already are passed over.
    pub(crate) async fn accept(&self) -> Connection {
        loop {
            if let Some(connection) = self.try_accept().await {
                return connection;
            }
        }
    }

    async fn try_accept(&self) -> Option<Connection> {
        let (stream, _) = in_time("a connection", self.listener.accept()).await.unwrap();
        // As the real server does: else each message waits for an acknowledgement of the last.
        stream.set_nodelay(true).unwrap();
        let (mut path, mut token) = (String::new(), None);
        #[expect(clippy::result_large_err, reason = "the signature is the library's")]
        let look = |request: &Request, response: Response| {
            path = request.uri().path().to_owned();
            let header = request.headers().get("authorization");
            token = header.map(|value| value.to_str().unwrap().to_owned());
            Ok(response)
        };
        let socket = tokio_tungstenite::accept_hdr_async(stream, look).await.ok()?;
        Some(Connection { path, token, socket })
    }

    /// A session up to the complete assignments.
    pub(crate) async fn session(&self, units: Vec<Assignment>) -> Connection {
        let mut session = self.accept().await;
        while !matches!(session.try_next().await, Some(FromNode::Hello { .. })) {
            session = self.accept().await;
        }
        assert_eq!(session.path, "/v1/node-session");
        session.say(&ToNode::Welcome { server_version: "test".into(), code_key: None }).await;
        session.say(&ToNode::Assignments { units, others: vec![] }).await;
        session
    }
}

impl Connection {
    pub(crate) async fn hello(&mut self) -> NodeFacts {
        match self.next().await {
            FromNode::Hello { facts, .. } => *facts,
            other => panic!("not a hello: {other:?}"),
        }
    }

    pub(crate) async fn say(&mut self, message: &ToNode) {
        let text = serde_json::to_string(message).unwrap();
        self.socket.send(Message::text(text)).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> FromNode {
        self.try_next().await.expect("connected")
    }

    async fn try_next(&mut self) -> Option<FromNode> {
        loop {
            let message = in_time("a message", self.socket.next()).await?.ok()?;
            if let Message::Text(text) = message {
                return Some(serde_json::from_str(text.as_str()).unwrap());
            }
        }
    }

    /// The next report; acknowledged if told so.
    pub(crate) async fn report(&mut self, acknowledges: bool) -> Vec<StatusReport> {
        loop {
            if let FromNode::Statuses { reports } = self.next().await {
                if acknowledges {
                    let list = reports.iter().map(|one| (one.unit.clone(), one.status.sequence));
                    self.say(&ToNode::Acknowledge { reports: list.collect() }).await;
                }
                return reports;
            }
        }
    }

    /// Reads and acknowledges reports until the unit is in that state.
    pub(crate) async fn until(&mut self, unit: &UnitId, state: UnitState) -> UnitStatus {
        loop {
            for report in self.report(true).await {
                if report.unit == *unit && report.status.state == state {
                    return report.status;
                }
            }
        }
    }

    /// The next binary message; None at the end.
    pub(crate) async fn binary(&mut self) -> Option<Vec<u8>> {
        loop {
            match in_time("a binary message", self.socket.next()).await? {
                Ok(Message::Binary(bytes)) => return Some(bytes.to_vec()),
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    pub(crate) async fn send_binary(&mut self, bytes: Vec<u8>) {
        self.socket.send(Message::binary(bytes)).await.unwrap();
    }
}

/// A unit of one wasm task called `main`.
pub(crate) fn assignment(unit: &str, restart: &str) -> Assignment {
    let amount = json!({"cpu": "100m", "memory": "1Mi"});
    let value = json!({
        "unit": unit, "name": unit, "namespace": "default", "is_wanted": true, "placed_by": 5,
        "template": {
            "tasks": [{
                "name": "main", "wasm": {"artifact": "team/app:1", "http": {}},
                "resources": amount, "limits": amount,
            }],
            "restart": restart, "grace_ms": 60_000,
        },
        "identity": {}, "texts": {"configs": {}, "secrets": {}},
    });
    serde_json::from_value(value).unwrap()
}
