//! How long a user waits: from the start of `brig run --rm hello.wasm` to the first byte of its output, on a running
//! `brig dev` that has the module in its cache. Beside it, in turn, the same program started as a process.
//!
//! `cargo bench --package bench`; RUNS=N for other than 200 runs.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

const RUNS_DEFAULT: usize = 200;
/// Not counted: they fill caches.
const WARM_UP: usize = 20;
/// What cargo adds to a benchmark's environment (the Cargo book, "Environment variables").
const CARGO_PREFIXES: [&str; 3] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_EXE_"];
const CARGO_NAMES: [&str; 5] =
    ["CARGO", "CARGO_BIN_NAME", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "OUT_DIR"];

fn main() -> Result<()> {
    let runs =
        std::env::var("RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(RUNS_DEFAULT);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let bin = build(&root)?;
    let guest = root.join("tests/.cache/guests/hello.wasm");
    ensure!(guest.exists(), "{} is missing: run tests/setup/guests", guest.display());
    let data = tempfile::tempdir()?;
    let mut dev = Dev::start(&bin, data.path())?;
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

fn build(root: &Path) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--release", "--locked"]).current_dir(root);
    // Build scripts that watch a variable which cargo sets for the benchmark would run again, and nearly everything
    // would be built again: here and at the next build by hand.
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_of_cargo(name)) {
        command.env_remove(name);
    }
    ensure!(command.status()?.success(), "the build failed");
    // The benchmark's own binary is in `release/deps`.
    let own = std::env::current_exe()?;
    Ok(own.parent().and_then(Path::parent).context("a target folder")?.to_path_buf())
}

fn is_of_cargo(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| {
        CARGO_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || CARGO_NAMES.contains(&name)
    })
}

struct Dev {
    child: Child,
    url: String,
}

impl Dev {
    fn start(bin: &Path, data: &Path) -> Result<Self> {
        let mut child = Command::new(bin.join("brig"))
            .args(["dev", "--listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .env("BRIG_LOG", "warn")
            .env_remove("CARGO_PKG_NAME")
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        let url = lines
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("ready ").map(str::to_owned));
        Ok(Self { child, url: url.context("brig dev did not get ready")? })
    }

    fn stop(&mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        ensure!(self.child.wait()?.success(), "brig dev ended badly");
        Ok(())
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // After an error; else it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
