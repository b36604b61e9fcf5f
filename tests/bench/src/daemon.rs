//! The programs that are measured, and what the kernel says of one that runs.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::process;

/// What cargo adds to a benchmark's environment (the Cargo book, "Environment variables").
const CARGO_PREFIXES: [&str; 3] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_EXE_"];
const CARGO_NAMES: [&str; 5] =
    ["CARGO", "CARGO_BIN_NAME", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "OUT_DIR"];

/// The folder of the release build's programs: that of `BRIG_BIN_DIR`, else they are built.
///
/// # Errors
/// When the build fails.
pub fn build(root: &Path) -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("BRIG_BIN_DIR") {
        return Ok(dir.into());
    }
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

/// A `brig dev`, `server` or `node` that is ready. Dropped, it is killed.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    /// Where its API is.
    pub url: String,
}

impl Daemon {
    /// Starts `brig` with these arguments and waits for its `ready URL`.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start(bin: &Path, arguments: &[&str], data: &Path) -> Result<Self> {
        let mut child = Command::new(bin.join("brig"))
            .args(arguments)
            .args(["--listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .env("BRIG_LOG", std::env::var_os("BRIG_LOG").unwrap_or_else(|| "warn".into()))
            .env_remove("CARGO_PKG_NAME")
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} can't be started", bin.join("brig").display()))?;
        let lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        let url = lines
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("ready ").map(str::to_owned));
        Ok(Self { child, url: url.context("brig did not get ready")? })
    }

    /// Ends it as an operator would.
    ///
    /// # Errors
    /// When it ends badly.
    pub fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        ensure!(self.child.wait()?.success(), "brig ended badly");
        Ok(())
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// See [`process::cpu`].
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu(&self) -> Result<Duration> {
        process::cpu(self.id())
    }

    /// See [`process::memory`].
    ///
    /// # Errors
    /// When it has ended, or there is no such line.
    pub fn memory(&self, line: &str) -> Result<u64> {
        process::memory(self.id(), line)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // After an error; else it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
