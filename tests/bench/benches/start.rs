//! The whole way of a wasm unit through `brig dev` on SQLite: from the call of the API until the unit's first
//! instruction reads the clock, one at a time; and from one call until a thousand units run.
//!
//! `cargo bench --package bench --bench start`; RUNS=N for other than 300 units one by one, UNITS=N for other than 1,000.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use bench::{Daemon, SLEEP, build};
use brig_api::NamespacePath;
use brig_api::manifest::{Format, Manifest, parse};
use brig_api::request::LogQuery;
use brig_api::unit_spec::UnitSpec;
use brig_client::Client;

/// Not counted: they fill caches.
const WARM_UP: usize = 20;
/// Time between two looks at the database.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// What takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Reads the wall clock first of all, and writes it: 16 letters, `a` for 0 to `p` for 15, the lowest four bits first.
const CLOCK: &str = r#"(module
  (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (local $at i32) (local $time i64)
    (drop (call $clock (i32.const 0) (i64.const 1) (i32.const 0)))
    (local.set $time (i64.load (i32.const 0)))
    (loop $next
      (i32.store8 (i32.add (i32.const 64) (local.get $at))
        (i32.add (i32.const 97) (i32.wrap_i64 (i64.and (local.get $time) (i64.const 15)))))
      (local.set $time (i64.shr_u (local.get $time) (i64.const 4)))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $at) (i32.const 16))))
    (i32.store8 (i32.const 80) (i32.const 10))
    (i32.store (i32.const 0) (i32.const 64))
    (i32.store (i32.const 4) (i32.const 17))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let bin = build(&root)?;
    let data = tempfile::tempdir()?;
    let dev = Daemon::start(&bin, &["dev"], &data.path().join("dev"))?;
    for (name, text) in [("clock", CLOCK), ("sleep", SLEEP)] {
        let file = data.path().join(format!("{name}.wasm"));
        std::fs::write(&file, wat::parse_str(text)?)?;
        let mut push = Command::new(bin.join("brig"));
        push.arg("push").arg(&file).arg(format!("default/{name}:1")).env("BRIG_SERVER", &dev.url);
        ensure!(push.stdout(std::process::Stdio::null()).status()?.success(), "not pushed");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let client = Client::new(&dev.url, None)?;
    runtime.block_on(one_by_one(&client))?;
    runtime.block_on(all_at_once(&client))?;
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

async fn one_by_one(client: &Client) -> Result<()> {
    let runs = number("RUNS", 300)?;
    let mut times = Vec::new();
    for run in 0..WARM_UP + runs {
        let name = format!("clock-{run}");
        let unit = manifests(&format!(
            "kind: unit\nname: {name}\nunit:\n  restart: never\n  resources: {{cpu: 10m, memory: 1Mi}}\n  wasm: {{artifact: 'default/clock:1'}}\n"
        ))?;
        let began = SystemTime::now().duration_since(UNIX_EPOCH)?;
        client.apply(unit).await?;
        let first = tokio::time::timeout(PATIENCE, first_instruction(client, &name)).await??;
        if run >= WARM_UP {
            times.push(first.checked_sub(began).context("a clock that goes back")?);
        }
    }
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1_000.0;
    println!(
        "API call to first instruction, {runs} units one by one: p50 {:.2} ms (bar 5), min {:.2}, p90 {:.2}, p99 {:.2} (bar 20)",
        at(50),
        at(0),
        at(90),
        at(99)
    );
    Ok(())
}

/// When the unit began, as it says itself.
async fn first_instruction(client: &Client, name: &str) -> Result<Duration> {
    let query = LogQuery { task: None, follow: true, tail: None };
    let mut log = client.logs(&NamespacePath::default_namespace(), name, &query).await?;
    let line = log.next().await?.context("the unit has said nothing")?;
    let digits = line.bytes.iter().rev().map(|letter| u64::from(letter.wrapping_sub(b'a')));
    Ok(Duration::from_nanos(digits.fold(0, |time, digit| time << 4 | digit)))
}

async fn all_at_once(client: &Client) -> Result<()> {
    let units = number("UNITS", 1_000)?;
    let service = manifests(&format!(
        "kind: service\nname: sleep\nreplicas: {units}\nunit:\n  resources: {{cpu: 1m, memory: 1Mi}}\n  wasm: {{artifact: 'default/sleep:1'}}\n"
    ))?;
    let began = Instant::now();
    client.apply(service).await?;
    let query = "SELECT COUNT(*) FROM units WHERE state = 'running'";
    loop {
        let answer = client.sql(query).await?;
        let count =
            answer.rows.first().and_then(|row| row.first()).and_then(|count| count.as_u64());
        if count.is_some_and(|count| usize::try_from(count).is_ok_and(|count| count >= units)) {
            break;
        }
        ensure!(began.elapsed() < PATIENCE, "{count:?} of {units} units run");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    println!(
        "API call until {units} units run, as SQL sees it: {:.2} s (bar 0.5)",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}
