//! What wasm units cost in their shim: http services beside `wasmtime serve`, computing beside `wasmtime run`, processor
//! requests, idle units, and the start of an interpreter that was compiled before.
//!
//! `cargo bench --package bench --bench wasm`; CASES=http,compute,cpu,idle,interpreter for some of them. ROUNDS=N visits to
//! each server, UNITS=N idle units. For http and compute, `WASMTIME` names the peer's program (tests/setup/peers fetches it); for http, wrk is in PATH.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bench::{SLEEP, Shim, build, process};
use brig_api::unit_spec::{InstanceReuse, Isolation};

/// Requests that an instance answers, here and in the peer, where instances are reused.
const REQUESTS_MAX: u32 = 1_000;
const CONNECTIONS: [u32; 3] = [1, 64, 512];
/// How long processor time is looked at.
const WINDOW: Duration = Duration::from_secs(5);
/// Idle units in one shim: all that it takes.
const UNITS_PER_SHIM: usize = 9_000;
/// A server that listens only after so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Computes without pause.
const SPIN: &str = r#"(module (func (export "_start") (loop $again (br $again))))"#;

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let bin = build(&root)?;
    let work = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cases =
        std::env::var("CASES").unwrap_or_else(|_| "http,compute,cpu,idle,interpreter".to_owned());
    for case in cases.split(',') {
        match case {
            "http" => runtime.block_on(http(&root, &bin, work.path()))?,
            "compute" => runtime.block_on(compute(&root, &bin, work.path()))?,
            "interpreter" => runtime.block_on(interpreter(&root, &bin, work.path()))?,
            "cpu" => runtime.block_on(cpu(&bin, work.path()))?,
            "idle" => runtime.block_on(idle(&bin, work.path()))?,
            other => bail!("CASES: `{other}` is none of http, compute, cpu, idle, interpreter"),
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

fn guests(root: &Path) -> PathBuf {
    std::env::var_os("BRIG_TEST_GUESTS")
        .map_or_else(|| root.join("tests/.cache/guests"), Into::into)
}

/// Writes a program in text form as a file.
fn module(work: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = work.join(name);
    std::fs::write(&path, wat::parse_str(text)?)?;
    Ok(path)
}

/// A server that is measured, and its figures by number of connections: requests a second, and the 99th percentile in
/// milliseconds.
struct Server {
    name: &'static str,
    address: SocketAddr,
    figures: [Vec<(f64, f64)>; CONNECTIONS.len()],
}

/// `wasmtime serve`. Dropped, it is killed.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn http(root: &Path, bin: &Path, work: &Path) -> Result<()> {
    let rounds = number("ROUNDS", 5)?;
    let web = guests(root).join("web.wasm");
    let mut shim = Shim::start(bin, &work.join("cache"), Isolation::Namespace).await?;
    let mut serve = async |name, reuse| {
        let mut program = Shim::program(bin, &work.join("cache"), &web, Isolation::Namespace)?;
        program.http = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        program.http_limits.max_concurrent = REQUESTS_MAX;
        program.http_limits.reuse = reuse;
        shim.run(name, program, 1_000, 0).await?.context("an address")
    };
    let reuse = InstanceReuse { max_requests: REQUESTS_MAX, idle_ms: 1_000 };
    let fresh = serve("fresh", None).await?;
    let reused = serve("reused", Some(reuse)).await?;
    let count = REQUESTS_MAX.to_string();
    let (_peer, peer_fresh) = peer(root, &web, &[])?;
    let (_other, peer_reused) = peer(root, &web, &["--max-instance-reuse-count", &count])?;
    let server = |name, address| Server { name, address, figures: Default::default() };
    let mut servers = [
        server("brig, an instance a request", fresh),
        server("wasmtime serve", peer_fresh),
        server("brig, instances reused", reused),
        server("wasmtime serve, reused", peer_reused),
    ];
    for _ in 0..rounds {
        for (index, connections) in CONNECTIONS.into_iter().enumerate() {
            for server in &mut servers {
                server.figures[index].push(wrk(server.address, connections)?);
            }
        }
    }
    println!("http hello, {rounds} rounds of 3 s; medians of requests a second and of p99 in ms");
    for (index, connections) in CONNECTIONS.into_iter().enumerate() {
        for server in &servers {
            let (rate, p99) = (
                median(server.figures[index].iter().map(|figure| figure.0)),
                median(server.figures[index].iter().map(|figure| figure.1)),
            );
            println!("{connections:>4} connections  {:<30} {rate:>9.0} {p99:>8.2}", server.name);
        }
        for (ours, theirs, bar) in [(0, 1, 1.8), (2, 3, 1.0)] {
            let pairs = || servers[ours].figures[index].iter().zip(&servers[theirs].figures[index]);
            let rate = median(pairs().map(|(ours, theirs)| ours.0 / theirs.0));
            let p99 = median(pairs().map(|(ours, theirs)| ours.1 / theirs.1));
            println!(
                "{connections:>4} connections  {}: {rate:.2} x its rate (bar {bar}), {p99:.2} x its p99",
                servers[theirs].name
            );
        }
    }
    Ok(())
}

fn wasmtime(root: &Path) -> PathBuf {
    std::env::var_os("WASMTIME")
        .map_or_else(|| root.join("tests/.cache/peers/wasmtime"), PathBuf::from)
}

fn peer(root: &Path, web: &Path, further: &[&str]) -> Result<(Peer, SocketAddr)> {
    let program = wasmtime(root);
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let child = Command::new(&program)
        .args(["serve", "-Scli", "--addr", &address.to_string()])
        .args(further)
        .arg(web)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("{}: run tests/setup/peers", program.display()))?;
    let peer = Peer(child);
    let began = Instant::now();
    while TcpStream::connect(address).is_err() {
        ensure!(began.elapsed() < PATIENCE, "wasmtime serve does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok((peer, address))
}

/// Requests a second, and the 99th percentile in milliseconds.
fn wrk(address: SocketAddr, connections: u32) -> Result<(f64, f64)> {
    let output = Command::new("wrk")
        .args([
            "-t1",
            "-d3s",
            "--latency",
            &format!("-c{connections}"),
            &format!("http://{address}/"),
        ])
        .output()
        .context("wrk: install it, on Debian with apt-get install wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let after = |label: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(label));
        line.map(str::trim).with_context(|| format!("no {label} in the output of wrk: {text}"))
    };
    let p99 = after("99%")?;
    let unit_at = p99.find(|character: char| character.is_ascii_alphabetic()).unwrap_or(p99.len());
    let (value, unit) = p99.split_at(unit_at);
    let scale = match unit {
        "us" => 0.001,
        "ms" => 1.0,
        "s" => 1_000.0,
        other => bail!("wrk counts in {other}"),
    };
    Ok((after("Requests/sec:")?.parse()?, value.parse::<f64>()? * scale))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Requests and limits in thousandths of a core; a limit of 0 is none.
type Shares = Vec<(u64, u64)>;

async fn cpu(bin: &Path, work: &Path) -> Result<()> {
    let spin = module(work, "spin.wasm", SPIN)?;
    let mut shim = Shim::start(bin, &work.join("cache"), Isolation::Namespace).await?;
    let_it_tick(shim.id())?;
    let unlimited = |count| std::iter::repeat_n((0, 0), count);
    let eight = || std::iter::repeat_n((100, 100), 8);
    let cases: [(&str, Shares); 6] = [
        ("250m alone", vec![(250, 250)]),
        ("250m beside one unlimited", vec![(250, 250), (0, 0)]),
        ("8 x 100m beside two unlimited", eight().chain(unlimited(2)).collect()),
        ("8 x 100m beside six unlimited", eight().chain(unlimited(6)).collect()),
        (
            "requests 100, 100, 200, 200, 400, 400, no limits",
            [100, 100, 200, 200, 400, 400].map(|request| (request, 0)).to_vec(),
        ),
        (
            "request 500 beside eight of none, no limits",
            std::iter::once((500, 0)).chain(unlimited(8)).collect(),
        ),
    ];
    let program = Shim::program(bin, &work.join("cache"), &spin, Isolation::Namespace)?;
    println!("processor time in thousandths of a core, over {} s", WINDOW.as_secs());
    for (name, shares) in cases {
        let names: Vec<_> = (0..shares.len()).map(|index| format!("unit{index}")).collect();
        for (name, (request, limit)) in names.iter().zip(&shares) {
            shim.run(name, program.clone(), *request, *limit).await?;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut used = Vec::new();
        for name in &names {
            used.push((Instant::now(), shim.usage(name).await?.cpu_ns));
        }
        tokio::time::sleep(WINDOW).await;
        let mut got = Vec::new();
        for (name, (since, before)) in names.iter().zip(used) {
            let elapsed_ns = u64::try_from(since.elapsed().as_nanos())?;
            got.push((shim.usage(name).await?.cpu_ns - before) * 1_000 / elapsed_ns.max(1));
        }
        println!("{name:<50} {got:?}");
        for name in &names {
            shim.end(name).await?;
        }
    }
    Ok(())
}

/// Threads of one real-time priority do not preempt each other, and a shim's clock would wait for its guests. So where
/// all this runs at real-time priority, on a busy machine, the clock is put above; otherwise the kernel does as much by
/// itself for a thread that sleeps most of the time.
fn let_it_tick(shim: u32) -> Result<()> {
    // The policy is the 39th field after the name: proc(5).
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, rest) = stat.rsplit_once(')').context("a line of /proc/self/stat")?;
    if rest.split_whitespace().nth(38) == Some("0") {
        return Ok(());
    }
    for thread in std::fs::read_dir(format!("/proc/{shim}/task"))? {
        let thread = thread?;
        let name = std::fs::read_to_string(thread.path().join("comm"))?;
        if matches!(name.trim(), "epoch" | "control") {
            let mut raise = Command::new("chrt");
            raise.args(["--rr", "--pid", "50"]).arg(thread.file_name());
            ensure!(raise.status()?.success(), "chrt failed");
        }
    }
    Ok(())
}

/// Three instructions, over and over: where looking whether one is interrupted costs most.
const COUNT: &str = r#"(module (func (export "_start") (local $i i64)
  (loop $again
    (local.set $i (i64.add (local.get $i) (i64.const 1)))
    (br_if $again (i64.lt_u (local.get $i) (i64.const 3000000000))))))"#;
/// Multiplies matrices of 64 x 64 numbers, 3,000 times.
const MULTIPLY: &str = r#"(module (memory 2)
  (func (export "_start") (local $n i32) (local $i i32) (local $j i32) (local $k i32) (local $sum f64)
    (loop $n (local.set $i (i32.const 0))
      (loop $i (local.set $j (i32.const 0))
        (loop $j (local.set $k (i32.const 0)) (local.set $sum (f64.const 0))
          (loop $k
            (local.set $sum (f64.add (local.get $sum) (f64.mul
              (f64.load (i32.shl (i32.add (i32.shl (local.get $i) (i32.const 6)) (local.get $k)) (i32.const 3)))
              (f64.load offset=32768 (i32.shl (i32.add (i32.shl (local.get $k) (i32.const 6)) (local.get $j)) (i32.const 3))))))
            (br_if $k (i32.lt_u (local.tee $k (i32.add (local.get $k) (i32.const 1))) (i32.const 64))))
          (f64.store offset=65536 (i32.shl (i32.add (i32.shl (local.get $i) (i32.const 6)) (local.get $j)) (i32.const 3)) (local.get $sum))
          (br_if $j (i32.lt_u (local.tee $j (i32.add (local.get $j) (i32.const 1))) (i32.const 64))))
        (br_if $i (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 64))))
      (br_if $n (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 3000))))))"#;

/// Processor time of programs that compute, by `wasmtime run`, in a process of their own, and in their namespace's.
async fn compute(root: &Path, bin: &Path, work: &Path) -> Result<()> {
    let rounds = number("ROUNDS", 5)?;
    for (name, text) in [("count.wasm", COUNT), ("multiply.wasm", MULTIPLY)] {
        let module = module(work, name, text)?;
        let mut seconds = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..rounds {
            seconds[0].push(peer_seconds(root, &module)?);
            for (index, isolation) in [(1, Isolation::Unit), (2, Isolation::Namespace)] {
                let cache = work.join("cache");
                let program = Shim::program(bin, &cache, &module, isolation)?;
                let mut shim = Shim::start(bin, &cache, isolation).await?;
                let before = process::cpu(shim.id())?;
                shim.run("unit", program, 1_000, 0).await?;
                let record = shim.finished("unit").await?;
                ensure!(record.code == 0, "{name}: {record:?}");
                seconds[index].push((process::cpu(shim.id())? - before).as_secs_f64());
            }
        }
        let [peer, unit, namespace] = seconds.map(|values| median(values.into_iter()));
        println!(
            "{name}: wasmtime run {peer:.2} s, isolation: unit {unit:.2} s ({:.3}), namespace {namespace:.2} s ({:.3})",
            unit / peer,
            namespace / peer
        );
    }
    Ok(())
}

/// The processor time of a program that wasmtime compiled before.
fn peer_seconds(root: &Path, module: &Path) -> Result<f64> {
    let compiled = module.with_extension("cwasm");
    if !compiled.exists() {
        let mut compile = Command::new(wasmtime(root));
        compile.arg("compile").arg(module).arg("-o").arg(&compiled);
        ensure!(compile.status()?.success(), "wasmtime compile");
    }
    let before = process::children_cpu()?;
    let mut run = Command::new(wasmtime(root));
    ensure!(
        run.args(["run", "--allow-precompiled"]).arg(&compiled).status()?.success(),
        "wasmtime run"
    );
    Ok((process::children_cpu()? - before).as_secs_f64())
}

/// From the request to start to the beginning of an interpreter whose code is there, in a shim that has just been started:
/// as after a restart of the shim, or on another node once the code has come.
async fn interpreter(root: &Path, bin: &Path, work: &Path) -> Result<()> {
    let cache = work.join("cache");
    let python = guests(root).join("python.wasm");
    let mut program = Shim::program(bin, &cache, &python, Isolation::Namespace)?;
    program.args = ["python", "-c", "print(6 * 7)"].map(str::to_owned).into();
    let (mut fresh, mut again) = (Vec::new(), Vec::new());
    for _ in 0..number("ROUNDS", 5)? {
        let mut shim = Shim::start(bin, &cache, Isolation::Namespace).await?;
        for (name, times) in [("first", &mut fresh), ("second", &mut again)] {
            let since = Instant::now();
            shim.run(name, program.clone(), 1_000, 0).await?;
            times.push(since.elapsed().as_secs_f64() * 1e3);
            let record = shim.finished(name).await?;
            ensure!(record.code == 0, "{record:?}");
        }
    }
    let [fresh, again] = [fresh, again].map(|values| median(values.into_iter()));
    println!(
        "CPython, compiled before: {fresh:.1} ms in a shim that has just begun, {again:.2} ms in one that knows it"
    );
    Ok(())
}

async fn idle(bin: &Path, work: &Path) -> Result<()> {
    let units = number("UNITS", 50_000)?;
    let sleep = module(work, "sleep.wasm", SLEEP)?;
    let program = Shim::program(bin, &work.join("cache"), &sleep, Isolation::Namespace)?;
    let mut shims = Vec::new();
    let mut started = 0;
    let mut memory_before = 0;
    let began = Instant::now();
    let mut starts = Vec::new();
    while started < units {
        let mut shim = Shim::start(bin, &work.join("cache"), Isolation::Namespace).await?;
        memory_before += all_memory(shim.id())?;
        for index in 0..UNITS_PER_SHIM.min(units - started) {
            let since = Instant::now();
            shim.run(&format!("unit{index}"), program.clone(), 10, 10).await?;
            starts.push(since.elapsed());
            started += 1;
        }
        shims.push(shim);
    }
    let elapsed = began.elapsed();
    starts.sort_unstable();
    let mut memory = 0;
    let mut cpu_before = Duration::ZERO;
    for shim in &shims {
        memory += all_memory(shim.id())?;
        cpu_before += process::cpu(shim.id())?;
    }
    let since = Instant::now();
    tokio::time::sleep(WINDOW).await;
    let mut cpu = Duration::ZERO;
    for shim in &shims {
        cpu += process::cpu(shim.id())?;
    }
    let share = (cpu - cpu_before).as_secs_f64() / since.elapsed().as_secs_f64() * 100.0;
    println!(
        "{started} idle units in {} shims, started in {:.1} s",
        shims.len(),
        elapsed.as_secs_f64()
    );
    println!(
        "request to the shim until the unit runs: median {:?}, p99 {:?}",
        starts[starts.len() / 2],
        starts[starts.len() * 99 / 100]
    );
    println!(
        "{:.1} KiB a unit with page tables (bar 48), of {} MiB in all; empty shims {:.1} MiB each",
        kib(memory.saturating_sub(memory_before)) / f64::from(u32::try_from(started)?),
        memory >> 20,
        kib(memory_before) / 1_024.0 / f64::from(u32::try_from(shims.len())?),
    );
    println!("all idle: {share:.2} % of a core (bar 1)");
    Ok(())
}

/// What is in memory of a process, with its page tables.
fn all_memory(process: u32) -> Result<u64> {
    Ok(process::memory(process, "VmRSS")? + process::memory(process, "VmPTE")?)
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn kib(bytes: u64) -> f64 {
    bytes as f64 / 1_024.0
}
