//! A server in this process with a folder of its own, and a node that is a script.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use brig_api::lifecycle::UnitState;
use brig_api::manifest::{Format, Manifest, parse};
use brig_api::object::{NodeFacts, ObjectKey, Unit, UnitStatus};
use brig_api::session::{FromNode, SESSION_PROTOCOL, StatusReport, ToNode};
use brig_api::unit_spec::{Runtime, UnitSpec};
use brig_api::usage::Usage;
use brig_api::{Kind, NamespacePath, NodeName, Resources, UnitId};
use brig_client::Client;
use futures::{SinkExt, StreamExt};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tokio_util::sync::CancellationToken;

use crate::{Handle, ServerConfig, run};

/// What takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A WebSocket of a client or node.
pub(super) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Waits for what must come.
pub(super) async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}

/// A server, its folder and its database.
pub(super) struct Cluster {
    dir: tempfile::TempDir,
    database: String,
    token: Option<String>,
    running: Option<(Handle, CancellationToken)>,
    pub(super) client: Client,
}

impl Cluster {
    pub(super) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = format!("sqlite:{}", dir.path().join("brig.db").display());
        Self::on(dir, database, None).await
    }

    pub(super) async fn with_token(token: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = format!("sqlite:{}", dir.path().join("brig.db").display());
        Self::on(dir, database, Some(token.to_owned())).await
    }

    /// On a new database of the PostgreSQL server that the tests were given, if any.
    pub(super) async fn on_postgres() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let server = std::env::var("BRIG_TEST_POSTGRES").ok()?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("brig_server_{}_{number}", std::process::id());
        let options = PgConnectOptions::from_str(&server).unwrap();
        let mut admin = PgConnection::connect_with(&options).await.unwrap();
        admin.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
        let url = options.database(&name).to_url_lossy().to_string();
        Some(Self::on(tempfile::tempdir().unwrap(), url, None).await)
    }

    async fn on(dir: tempfile::TempDir, database: String, token: Option<String>) -> Self {
        let client = Client::new("http://127.0.0.1:1", None).unwrap();
        let mut cluster = Self { dir, database, token, running: None, client };
        cluster.begin("127.0.0.1:0").await;
        cluster
    }

    /// Another server on the same database, with a folder of its own.
    pub(super) async fn another(&self) -> Self {
        Self::on(tempfile::tempdir().unwrap(), self.database.clone(), None).await
    }

    /// The database as another process would open it.
    pub(super) async fn store(&self) -> brig_store::Store {
        brig_store::Store::open(&self.database).await.unwrap()
    }

    async fn begin(&mut self, listen: &str) {
        let config = ServerConfig {
            listen: listen.parse().unwrap(),
            database: self.database.clone(),
            data_dir: self.dir.path().join("server"),
            token: self.token.clone(),
        };
        let stop = CancellationToken::new();
        let handle = run(config, stop.clone()).await.unwrap();
        let url = format!("http://{}", handle.address);
        self.client = Client::new(&url, self.token.as_deref()).unwrap();
        self.running = Some((handle, stop));
    }

    pub(super) async fn stop(&mut self) {
        if let Some((handle, stop)) = self.running.take() {
            stop.cancel();
            soon("the server stops", handle.stopped()).await;
        }
    }

    /// Stops the server and starts it again on the same port and data.
    pub(super) async fn restart(&mut self) {
        let address = self.address();
        self.stop().await;
        self.begin(&address).await;
    }

    pub(super) fn address(&self) -> String {
        let server = self.client.server();
        server.strip_prefix("http://").unwrap().to_owned()
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.client.server())
    }

    pub(super) fn data_dir(&self) -> &Path {
        self.dir.path()
    }

    pub(super) async fn socket(&self, path: &str) -> Socket {
        let url = format!("ws://{}{path}", self.address());
        tokio_tungstenite::connect_async(url).await.unwrap().0
    }

    pub(super) async fn apply(&self, yaml: &str) -> brig_api::request::ApplyResponse {
        self.client.apply(manifests(yaml)).await.unwrap()
    }

    /// The unit once it is in one of these states.
    pub(super) async fn unit_in(&self, name: &str, states: &[UnitState]) -> Unit {
        let namespace = NamespacePath::default_namespace();
        let list = self.client.list(Kind::Unit, None).await.unwrap();
        let mut watch = self.client.watch(Default::default(), list.revision);
        soon(&format!("unit {name} in {states:?}"), async {
            loop {
                if let Ok(unit) = self.client.unit(&namespace, name).await
                    && states.contains(&unit.status.state)
                {
                    return unit;
                }
                watch.next().await.unwrap();
            }
        })
        .await
    }
}

pub(super) fn manifests(yaml: &str) -> Vec<Manifest<UnitSpec>> {
    parse(yaml, Format::Yaml, None).unwrap()
}

/// A manifest of a unit that runs something of another registry, which admission does not look up.
pub(super) fn unit_yaml(name: &str) -> String {
    format!("kind: unit\nname: {name}\nunit: {{wasm: {{artifact: registry.example/app:1}}}}\n")
}

pub(super) fn key(kind: Kind, name: &str) -> ObjectKey {
    let is_in_namespace = !matches!(kind, Kind::Namespace | Kind::Node | Kind::Artifact);
    let namespace = is_in_namespace.then(NamespacePath::default_namespace);
    ObjectKey { kind, namespace, name: name.to_owned() }
}

/// A node that does what the test says.
pub(super) struct FakeNode {
    pub(super) name: NodeName,
    pub(super) socket: Socket,
}

pub(super) fn facts() -> NodeFacts {
    NodeFacts {
        allocatable: Resources {
            cpu: brig_api::MilliCpu(4_000),
            memory: brig_api::Bytes(8 << 30),
            disk: brig_api::Bytes(8 << 30),
            scalars: BTreeMap::new(),
        },
        attributes: BTreeMap::from([("arch".to_owned(), "x86_64".to_owned())]),
        taints: vec![],
        volumes: vec![],
        runtimes: vec![Runtime::Wasm, Runtime::Oci],
        address: "127.0.0.1".to_owned(),
        agent_version: "0".to_owned(),
        boot_id: "b".to_owned(),
    }
}

impl FakeNode {
    /// Connects and says hello; the answer is yet to be read.
    pub(super) async fn connect(cluster: &Cluster, name: &str) -> Self {
        let name = NodeName::new(name).unwrap();
        let mut node =
            Self { name: name.clone(), socket: cluster.socket("/v1/node-session").await };
        let hello = FromNode::Hello { protocol: SESSION_PROTOCOL, name, facts: Box::new(facts()) };
        node.say(&hello).await;
        node
    }

    /// Connects and waits for the complete assignments.
    pub(super) async fn register(
        cluster: &Cluster,
        name: &str,
    ) -> (Self, Vec<brig_api::session::Assignment>) {
        // Until the server has taken the lease it refuses nodes, which try again.
        soon("the node is accepted", async {
            loop {
                let mut node = Self::connect(cluster, name).await;
                match node.hear().await {
                    Some(ToNode::Welcome { .. }) => {}
                    Some(ToNode::Refused { .. }) => {
                        tokio::task::yield_now().await;
                        continue;
                    }
                    other => panic!("expected a welcome, heard {other:?}"),
                }
                let Some(ToNode::Assignments { units, .. }) = node.hear().await else {
                    panic!("expected the assignments")
                };
                return (node, units);
            }
        })
        .await
    }

    pub(super) async fn say(&mut self, message: &FromNode) {
        let text = serde_json::to_string(message).unwrap();
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// The next message; None when the session was closed.
    pub(super) async fn hear(&mut self) -> Option<ToNode> {
        soon("a message for the node", async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Text(text))) => {
                        return Some(serde_json::from_str(&text).unwrap());
                    }
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    _ => return None,
                }
            }
        })
        .await
    }

    /// The reason that the server gives for closing.
    pub(super) async fn closed_because(&mut self) -> String {
        soon("the server closes", async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Close(Some(frame)))) => return frame.reason.to_string(),
                    Some(Ok(_)) => {}
                    other => panic!("closed without a reason: {other:?}"),
                }
            }
        })
        .await
    }

    pub(super) async fn report(&mut self, unit: &UnitId, state: UnitState, sequence: u64) {
        let status = UnitStatus {
            state,
            sequence,
            exit_code: state.is_final().then_some(0),
            ..UnitStatus::default()
        };
        let reports = vec![StatusReport { unit: unit.clone(), status, usage: Usage::default() }];
        self.say(&FromNode::Statuses { reports }).await;
    }

    /// Waits until the server acknowledged this report; other messages are passed over.
    pub(super) async fn acknowledged(&mut self, unit: &UnitId, sequence: u64) {
        loop {
            if let ToNode::Acknowledge { reports } = self.hear().await.expect("an open session")
                && reports.contains(&(unit.clone(), sequence))
            {
                return;
            }
        }
    }
}
