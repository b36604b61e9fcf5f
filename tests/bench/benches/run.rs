//! How long a user waits: from the start of `brig run --rm hello.wasm` to the first byte of its output, on a running
//! `brig dev` that has the module in its cache. Beside it, in turn, the same program started as a process.
//!
//! `cargo bench --package bench --bench run`; RUNS=N for other than 200 runs.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::{Daemon, build};

const RUNS_DEFAULT: usize = 200;
/// Not counted: they fill caches.
const WARM_UP: usize = 20;

fn main() -> Result<()> {
    let runs =
        std::env::var("RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(RUNS_DEFAULT);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let bin = build(&root)?;
    let guest = root.join("tests/.cache/guests/hello.wasm");
    ensure!(guest.exists(), "{} is missing: run tests/setup/guests", guest.display());
    let data = tempfile::tempdir()?;
    let dev = Daemon::start(&bin, &["dev"], data.path())?;
    let brig = || {
        let mut command = Command::new(bin.join("brig"));
        command.args(["run", "--rm"]).arg(&guest).env("BRIG_SERVER", &dev.url);
        command
    };
    let echo = || {
        let mut command = Command::new("/bin/echo");
        command.arg("hello");
        command
    };
    let version = || {
        let mut command = Command::new(bin.join("brig"));
        command.arg("version").env("BRIG_SERVER", &dev.url);
        command
    };
    let (mut first_byte, mut whole, mut process, mut bare) = (vec![], vec![], vec![], vec![]);
    for run in 0..WARM_UP + runs {
        let (first, end) = measure(brig())?;
        let (echo_first, _) = measure(echo())?;
        let (version_first, _) = measure(version())?;
        if run >= WARM_UP {
            first_byte.push(first);
            whole.push(end);
            process.push(echo_first);
            bare.push(version_first);
        }
    }
    println!("{runs} runs each, in turn; milliseconds");
    report("brig run: first byte of output", &mut first_byte);
    report("brig run: whole command", &mut whole);
    report("brig version (one request): first byte", &mut bare);
    report("/bin/echo: first byte", &mut process);
    dev.stop()
}

/// Time to the first byte of standard output, and to the end.
fn measure(mut command: Command) -> Result<(Duration, Duration)> {
    let began = Instant::now();
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
    let mut out = child.stdout.take().context("a pipe")?;
    let mut byte = [0];
    out.read_exact(&mut byte).context("no output")?;
    let first = began.elapsed();
    std::io::copy(&mut out, &mut std::io::sink())?;
    ensure!(child.wait()?.success(), "the program failed");
    Ok((first, began.elapsed()))
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
    println!(
        "{what:<40} median {:7.2}  min {:7.2}  p90 {:7.2}  p99 {:7.2}",
        at(50),
        at(0),
        at(90),
        at(99)
    );
}
