//! The whole way of a large service: from the request to the API until every placement is committed in SQL, with the
//! server as a process of its own and a thousand nodes that are tasks of this one.
//!
//! `cargo bench --package bench --bench placements`. NODES=N and REPLICAS=N for other sizes; RUNS=N for more than
//! one; DATABASES=sqlite or postgres for one alone. PostgreSQL is measured where `BRIG_TEST_POSTGRES` names a server.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bench::{Daemon, build};
use brig_api::lifecycle::UnitState;
use brig_api::manifest::{Format, parse};
use brig_api::object::{NodeFacts, UnitStatus};
use brig_api::session::{FromNode, HEARTBEAT_MS, SESSION_PROTOCOL, StatusReport, ToNode};
use brig_api::unit_spec::Runtime;
use brig_api::usage::Usage;
use brig_api::{Bytes, MilliCpu, NodeName, Resources};
use brig_client::Client;
use futures::{SinkExt, StreamExt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

const NODES_DEFAULT: usize = 1_000;
const REPLICAS_DEFAULT: usize = 10_000;
/// Nodes that connect at a time: a thousand at once would wait for one another anyway.
const CONNECTING_MAX: usize = 64;
/// Time between two looks at the database. They cost the server something, too: one is well under a millisecond.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(120);
/// Peak memory that the server may have.
const MEMORY_BAR: u64 = 200 << 20;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// One database and its bar.
struct Case {
    name: &'static str,
    url: String,
    bar: Duration,
}

/// What one run came to.
struct Figures {
    placed: Duration,
    running: Duration,
    cpu_placed: Duration,
    cpu: Duration,
    idle: u64,
    peak: u64,
}

fn main() -> Result<()> {
    raise_limits()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let bin = build(&root)?;
    let nodes = number("NODES", NODES_DEFAULT)?;
    let replicas = number("REPLICAS", REPLICAS_DEFAULT)?;
    let runs = number("RUNS", 1)?;
    let wanted = std::env::var("DATABASES").unwrap_or_else(|_| "sqlite,postgres".to_owned());
    println!("{nodes} simulated nodes, one service of {replicas} replicas");
    println!(
        "{:<10} {:>10} {:>8} {:>10} {:>9} {:>9} {:>9} {:>9}  bars",
        "database", "placed s", "cpu s", "running s", "cpu s", "ms/unit", "idle MiB", "peak MiB"
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for name in wanted.split(',') {
        for run in 0..runs {
            let data = tempfile::tempdir()?;
            let case = match name {
                "sqlite" => {
                    let url = format!("sqlite:{}", data.path().join("brig.db").display());
                    Case { name: "SQLite", url, bar: Duration::from_secs(2) }
                }
                "postgres" => match runtime.block_on(Database::create(run))? {
                    Some(database) => {
                        let url = database.url.clone();
                        let case = Case { name: "PostgreSQL", url, bar: Duration::from_secs(4) };
                        let outcome = measure(&runtime, &bin, data.path(), &case, nodes, replicas);
                        runtime.block_on(database.drop())?;
                        report(&case, &outcome?, replicas);
                        continue;
                    }
                    None => {
                        println!("PostgreSQL  not measured: BRIG_TEST_POSTGRES names no server");
                        continue;
                    }
                },
                other => bail!("DATABASES: `{other}` is neither sqlite nor postgres"),
            };
            let figures = measure(&runtime, &bin, data.path(), &case, nodes, replicas)?;
            report(&case, &figures, replicas);
        }
    }
    Ok(())
}

fn number(variable: &str, default: usize) -> Result<usize> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text} is no number")),
        Err(_) => Ok(default),
    }
}

/// Each node is a connection, here and in the server, which inherits this.
fn raise_limits() -> Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

fn report(case: &Case, figures: &Figures, replicas: usize) {
    let seconds = |duration: Duration| duration.as_secs_f64();
    let mib = |bytes: u64| bytes >> 20;
    let verdict = |is_met: bool| if is_met { "met" } else { "MISSED" };
    let Figures { placed, running, cpu_placed, cpu, idle, peak } = *figures;
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let each = seconds(cpu) * 1_000.0 / replicas as f64;
    println!(
        "{:<10} {:>10.2} {:>8.2} {:>10.2} {:>9.2} {:>9.3} {:>9} {:>9}  {} s {}, {} MiB {}",
        case.name,
        seconds(placed),
        seconds(cpu_placed),
        seconds(running),
        seconds(cpu),
        each,
        mib(idle),
        mib(peak),
        case.bar.as_secs(),
        verdict(placed <= case.bar),
        mib(MEMORY_BAR),
        verdict(peak <= MEMORY_BAR),
    );
}

fn measure(
    runtime: &tokio::runtime::Runtime,
    bin: &Path,
    data: &Path,
    case: &Case,
    nodes: usize,
    replicas: usize,
) -> Result<Figures> {
    let server = Daemon::start(bin, &["server", "--db", &case.url], &data.join("server"))?;
    let figures = runtime.block_on(async {
        let mut crew = JoinSet::new();
        let flood = tokio::time::timeout(PATIENCE, flood(&server, &mut crew, nodes, replicas));
        let figures = flood.await.context("not done in time")?;
        crew.shutdown().await;
        figures
    })?;
    server.stop()?;
    Ok(figures)
}

async fn flood(
    server: &Daemon,
    crew: &mut JoinSet<Result<()>>,
    nodes: usize,
    replicas: usize,
) -> Result<Figures> {
    join_all(server, crew, nodes).await?;
    let client = Client::new(&server.url, None)?;
    let text = format!(
        "kind: service\nname: flood\nreplicas: {replicas}\nunit:\n  resources: {{cpu: 100m, memory: 64Mi}}\n  wasm: {{artifact: 'registry.example/flood:1', http: {{}}}}\n"
    );
    let manifests = parse(&text, Format::Yaml, None)
        .map_err(|faults| anyhow::anyhow!("the manifest: {faults:?}"))?;
    let (idle, cpu_before) = (server.memory("VmRSS")?, server.cpu()?);
    let began = Instant::now();
    client.apply(manifests).await?;
    until(&client, "node IS NOT NULL", replicas).await?;
    let (placed, cpu_placed) = (began.elapsed(), server.cpu()? - cpu_before);
    until(&client, "state = 'running'", replicas).await?;
    let (running, cpu) = (began.elapsed(), server.cpu()? - cpu_before);
    if let Some(ended) = crew.try_join_next() {
        ended??;
        bail!("a node ended");
    }
    Ok(Figures { placed, running, cpu_placed, cpu, idle, peak: server.memory("VmHWM")? })
}

/// Waits until so many units are in this state, as SQL sees it.
async fn until(client: &Client, condition: &str, count: usize) -> Result<()> {
    let query = format!("SELECT COUNT(*) FROM units WHERE {condition}");
    loop {
        let answer = client.sql(&query).await?;
        let found =
            answer.rows.first().and_then(|row| row.first()).and_then(|count| count.as_u64());
        if found.is_some_and(|found| usize::try_from(found).is_ok_and(|found| found >= count)) {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Connects every node, and returns when each has its (empty) assignments.
async fn join_all(server: &Daemon, crew: &mut JoinSet<Result<()>>, nodes: usize) -> Result<()> {
    let authority = server.url.strip_prefix("http://").context("an http URL")?;
    let url = format!("ws://{authority}/v1/node-session");
    let (joined, mut heard) = mpsc::channel::<()>(CONNECTING_MAX);
    let permits = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTING_MAX));
    for number in 0..nodes {
        let (url, joined, permits) = (url.clone(), joined.clone(), permits.clone());
        crew.spawn(async move {
            let permit = permits.acquire_owned().await?;
            let name = NodeName::new(format!("node-{number:05}"))?;
            let socket = join(&url, &name).await?;
            drop(permit);
            joined.send(()).await?;
            drop(joined);
            serve(socket).await
        });
    }
    drop(joined);
    for _ in 0..nodes {
        tokio::select! {
            one = heard.recv() => ensure!(one.is_some(), "a node did not join"),
            Some(ended) = crew.join_next() => {
                ended??;
                bail!("a node ended before it had joined");
            }
        }
    }
    Ok(())
}

/// A session of a node that runs nothing yet. A server that does not lead yet refuses nodes, which try again.
async fn join(url: &str, name: &NodeName) -> Result<Socket> {
    loop {
        let (mut socket, _) = tokio_tungstenite::connect_async(url).await?;
        let hello =
            FromNode::Hello { protocol: SESSION_PROTOCOL, name: name.clone(), facts: facts() };
        say(&mut socket, &hello).await?;
        match hear(&mut socket).await? {
            ToNode::Welcome { .. } => {}
            ToNode::Refused { .. } => continue,
            other => bail!("expected a welcome, heard {other:?}"),
        }
        match hear(&mut socket).await? {
            ToNode::Assignments { units, .. } => ensure!(units.is_empty(), "an old database"),
            other => bail!("expected the assignments, heard {other:?}"),
        }
        return Ok(socket);
    }
}

/// Says that whatever it is assigned runs.
async fn serve(mut socket: Socket) -> Result<()> {
    let period = Duration::from_millis(HEARTBEAT_MS);
    let mut heartbeat = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
    loop {
        tokio::select! {
            message = hear(&mut socket) => if let ToNode::Assign { units } = message? {
                let running = UnitStatus { state: UnitState::Running, sequence: 1, ..UnitStatus::default() };
                let report = |unit| StatusReport { unit, status: running.clone(), usage: Usage::default() };
                let reports = units.into_iter().filter(|unit| unit.is_wanted);
                let reports = reports.map(|unit| report(unit.unit)).collect();
                say(&mut socket, &FromNode::Statuses { reports }).await?;
            },
            _ = heartbeat.tick() => say(&mut socket, &FromNode::Heartbeat).await?,
        }
    }
}

async fn say(socket: &mut Socket, message: &FromNode) -> Result<()> {
    Ok(socket.send(Message::text(serde_json::to_string(message)?)).await?)
}

async fn hear(socket: &mut Socket) -> Result<ToNode> {
    loop {
        match socket.next().await.context("the server closed the session")?? {
            Message::Text(text) => return Ok(serde_json::from_str(&text)?),
            Message::Close(frame) => bail!("the server closed the session: {frame:?}"),
            _ => {}
        }
    }
}

fn facts() -> Box<NodeFacts> {
    Box::new(NodeFacts {
        allocatable: Resources {
            cpu: MilliCpu(16_000),
            memory: Bytes(64 << 30),
            disk: Bytes(100 << 30),
            scalars: BTreeMap::new(),
        },
        attributes: BTreeMap::from([("arch".to_owned(), "amd64".to_owned())]),
        taints: vec![],
        volumes: vec![],
        runtimes: vec![Runtime::Wasm, Runtime::Oci],
        address: "127.0.0.1".to_owned(),
        agent_version: "0".to_owned(),
        boot_id: "b".to_owned(),
    })
}

/// A new database on the PostgreSQL server that `BRIG_TEST_POSTGRES` names.
struct Database {
    server: PgConnectOptions,
    name: String,
    url: String,
}

impl Database {
    async fn create(run: usize) -> Result<Option<Self>> {
        let Ok(server) = std::env::var("BRIG_TEST_POSTGRES") else { return Ok(None) };
        let server = PgConnectOptions::from_str(&server)?;
        let name = format!("brig_placements_{}_{run}", std::process::id());
        let mut admin = PgConnection::connect_with(&server).await?;
        admin.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await?;
        let url = server.clone().database(&name).to_url_lossy().to_string();
        Ok(Some(Self { server, name, url }))
    }

    async fn drop(self) -> Result<()> {
        let mut admin = PgConnection::connect_with(&self.server).await?;
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        admin.execute(AssertSqlSafe(drop)).await?;
        Ok(())
    }
}
