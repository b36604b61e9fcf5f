//! A latency-sensitive http unit beside 200 hostile ones of another namespace, on a real `brig dev`: two namespaces, so two
//! shims, each in a container of its own where there can be one. Rounds without and with the hostile ones take turns.
//!
//! `cargo bench --workspace --bench hostile`; ROUNDS=N rounds of each kind, HOSTILE=N units, RATE=N requests a second.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bench::{Daemon, build};
use brig_api::manifest::{Format, Manifest, parse};
use brig_api::unit_spec::UnitSpec;
use brig_client::Client;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// How long a round is measured.
const ROUND: Duration = Duration::from_secs(8);
/// Until what has just been started or stopped is over.
const SETTLE: Duration = Duration::from_secs(4);
/// Connections that requests are spread over.
const CONNECTIONS: usize = 16;
/// What takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at the database.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Thousandths of a core that hostile units request together, however many they are.
const HOSTILE_MILLI: usize = 1_000;

const PRELUDE: &str = r#"
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 0) "\10\00\00\00\00\04\00\00")"#;

/// Those that run on until they are stopped; the others end, and are started again later and later.
const RUNNING_ENDLESS: &str = "SELECT COUNT(*) FROM units WHERE namespace = 'hostile' AND state = 'running' \
    AND (name LIKE 'spin-%' OR name LIKE 'call-%' OR name LIKE 'log-%')";

/// What the hostile units do, in equal parts, and whether they go on for ever.
const HOSTILE: [(&str, &str, bool); 6] = [
    ("spin", "(loop $again (br $again))", true),
    ("grow", "(loop $again (drop (memory.grow (i32.const 16))) (br $again))", false),
    (
        "call",
        "(loop $again (drop (call $clock (i32.const 0) (i64.const 1) (i32.const 2048))) (br $again))",
        true,
    ),
    (
        "log",
        "(loop $again (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))) (br $again))",
        true,
    ),
    ("recurse", "(call $deep (i64.const 1))", false),
    ("trap", "unreachable", false),
];

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let bin = build(&root)?;
    let data = tempfile::tempdir()?;
    let dev = Daemon::start(&bin, &["dev"], &data.path().join("dev"))?;
    let push = |file: &Path, name: &str| {
        let mut push = Command::new(bin.join("brig"));
        push.arg("push").arg(file).arg(name).env("BRIG_SERVER", &dev.url);
        ensure!(
            push.stdout(std::process::Stdio::null()).status()?.success(),
            "{name} is not pushed"
        );
        Ok(())
    };
    let guests = std::env::var_os("BRIG_TEST_GUESTS")
        .map_or_else(|| root.join("tests/.cache/guests"), PathBuf::from);
    push(&guests.join("web.wasm"), "shop/web:1")?;
    for (name, body, _) in HOSTILE {
        let text = format!(
            "(module {PRELUDE} (func $deep (param i64) (call $deep (i64.add (local.get 0) (i64.const 1)))) \
             (func (export \"_start\") {body}))"
        );
        let file = data.path().join(format!("{name}.wasm"));
        std::fs::write(&file, wat::parse_str(text)?)?;
        push(&file, &format!("hostile/{name}:1"))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(&Client::new(&dev.url, None)?))?;
    dev.stop()
}

fn number(variable: &str, default: usize) -> Result<usize> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text} is no number")),
        Err(_) => Ok(default),
    }
}

fn manifests(text: &str) -> Result<Vec<Manifest<UnitSpec>>> {
    parse(text, Format::Yaml, None).map_err(|faults| anyhow::anyhow!("the manifest: {faults:?}"))
}

async fn measure(client: &Client) -> Result<()> {
    let (rounds, hostile, rate) =
        (number("ROUNDS", 5)?, number("HOSTILE", 200)?, number("RATE", 300)?);
    client
        .apply(manifests(
            "kind: namespace\nname: shop\n---\nkind: namespace\nname: hostile\n---\n\
             kind: service\nname: web\nnamespace: shop\nunit:\n  resources: {cpu: 500m, memory: 64Mi}\n  \
             wasm: {artifact: 'shop/web:1', http: {}}\n",
        )?)
        .await?;
    let address = address(client).await?;
    load(&address, rate, SETTLE).await?;
    let (mut calm, mut beside) = (Figures::default(), Figures::default());
    for round in 1..=rounds {
        calm.add(load(&address, rate, ROUND).await?);
        client.apply(manifests(&services(hostile))?).await?;
        let endless: usize = (0..HOSTILE.len())
            .filter(|kind| HOSTILE[*kind].2)
            .map(|kind| replicas(hostile, kind))
            .sum();
        wait(client, RUNNING_ENDLESS, u64::try_from(endless)?).await?;
        tokio::time::sleep(SETTLE).await;
        println!("round {round}: {}", states(client).await?);
        beside.add(load(&address, rate, ROUND).await?);
        client.apply(manifests(&services(0))?).await?;
        wait(client, "SELECT COUNT(*) FROM units WHERE namespace = 'hostile' AND state NOT IN ('succeeded', 'failed', 'stopped')", 0).await?;
        tokio::time::sleep(SETTLE).await;
    }
    println!(
        "{rate} requests a second, {rounds} rounds of {} s each, {hostile} hostile units; medians of rounds, in ms",
        ROUND.as_secs()
    );
    let [calm, beside] = [("alone", calm), ("beside them", beside)].map(|(what, figures)| {
        let [p50, p99, worst] = figures.medians();
        println!("{what:<12} p50 {p50:7.2}  p99 {p99:7.2}  longest {worst:7.2}");
        [p50, p99]
    });
    println!(
        "factor       p50 {:7.2}  p99 {:7.2} (bar 2)",
        beside[0] / calm[0],
        beside[1] / calm[1]
    );
    Ok(())
}

fn replicas(units: usize, kind: usize) -> usize {
    (units + kind) / HOSTILE.len()
}

/// A service of each kind; so many units in all.
fn services(units: usize) -> String {
    let mut text = String::new();
    for (index, (name, ..)) in HOSTILE.iter().enumerate() {
        let replicas = replicas(units, index);
        let milli = HOSTILE_MILLI / units.max(1);
        let _ = write!(
            text,
            "kind: service\nname: {name}\nnamespace: hostile\nreplicas: {replicas}\nunit:\n  \
             resources: {{cpu: {milli}m, memory: 2Mi}}\n  limits: {{cpu: 1000m, memory: 4Mi}}\n  \
             wasm: {{artifact: 'hostile/{name}:1'}}\n---\n"
        );
    }
    text
}

async fn address(client: &Client) -> Result<String> {
    let until = Instant::now() + PATIENCE;
    loop {
        let answer = client
            .sql("SELECT endpoints FROM units WHERE namespace = 'shop' AND state = 'running'")
            .await?;
        let text = serde_json::to_string(&answer.rows)?;
        if let Some(at) = text.find("127.0.0.1:") {
            let end = text[at..].find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':');
            return Ok(text[at..at + end.unwrap_or(text.len() - at)].to_owned());
        }
        ensure!(Instant::now() < until, "the http unit does not run: {text}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn states(client: &Client) -> Result<String> {
    let query = "SELECT state, COUNT(*) FROM units WHERE namespace = 'hostile' GROUP BY state ORDER BY state";
    Ok(serde_json::to_string(&client.sql(query).await?.rows)?)
}

async fn wait(client: &Client, query: &str, wanted: u64) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let answer = client.sql(query).await?;
        let count =
            answer.rows.first().and_then(|row| row.first()).and_then(|count| count.as_u64());
        if count == Some(wanted) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{query}: {count:?}, not {wanted}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Latencies of one round after the other.
#[derive(Default)]
struct Figures(Vec<[f64; 3]>);

impl Figures {
    fn add(&mut self, mut times: Vec<Duration>) {
        times.sort_unstable();
        let at =
            |permille: usize| times[(times.len() - 1) * permille / 1_000].as_secs_f64() * 1_000.0;
        let figures = [at(500), at(990), at(1_000)];
        println!("  p50 {:7.2}  p99 {:7.2}  longest {:7.2}", figures[0], figures[1], figures[2]);
        self.0.push(figures);
    }

    fn medians(&self) -> [f64; 3] {
        [0, 1, 2].map(|which| {
            let mut all: Vec<_> = self.0.iter().map(|figures| figures[which]).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        })
    }
}

/// An open load: each request has its moment, from which its time counts whether or not a connection was free then.
async fn load(address: &str, rate: usize, how_long: Duration) -> Result<Vec<Duration>> {
    let times = Arc::new(Mutex::new(Vec::new()));
    let (began, every) = (Instant::now(), Duration::from_secs(1) / u32::try_from(rate)?);
    let mut clients = Vec::new();
    for connection in 0..CONNECTIONS {
        let (times, mut stream) = (Arc::clone(&times), TcpStream::connect(address).await?);
        stream.set_nodelay(true)?;
        clients.push(tokio::spawn(async move {
            let mut index = u32::try_from(connection)?;
            loop {
                let moment = began + every * index;
                if moment >= began + how_long {
                    return anyhow::Ok(());
                }
                tokio::time::sleep_until(moment).await;
                // The timer goes by whole milliseconds; what it is late is not the server's.
                let moment = moment.max(Instant::now().min(moment + Duration::from_millis(1)));
                request(&mut stream).await?;
                times.lock().unwrap_or_else(PoisonError::into_inner).push(moment.elapsed());
                index += u32::try_from(CONNECTIONS)?;
            }
        }));
    }
    for client in clients {
        tokio::time::timeout(how_long + PATIENCE, client).await???;
    }
    let times = std::mem::take(&mut *times.lock().unwrap_or_else(PoisonError::into_inner));
    ensure!(!times.is_empty(), "no request was made");
    Ok(times)
}

async fn request(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n").await?;
    let mut answer = Vec::new();
    loop {
        ensure!(stream.read_buf(&mut answer).await? > 0, "the server closed the connection");
        // The greeting's end, in one piece or as a chunk.
        if answer.ends_with(b"!\n") || answer.ends_with(b"\r\n0\r\n\r\n") {
            break;
        }
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    Ok(())
}
