//! `brig-shim-oci`: runs one container, owns it, and outlives the agent that asked for it.
//!
//! One thread and one poll loop ([`shim`]); libcontainer is called in forked helpers only ([`container`]); the rest
//! is what a container gets ([`spec`], [`rootfs`], [`user`], [`capabilities`], [`seccomp`]) and what is done with it
//! ([`requests`], [`exec`], [`task`]). docs/containers.md says it for users.
#![warn(missing_docs)]

mod capabilities;
mod cgroup;
mod check;
mod cleanup;
mod clock;
mod connection;
mod container;
mod exec;
mod failure;
mod helper;
mod join;
mod program;
mod record;
mod requests;
mod rootfs;
mod seccomp;
mod shim;
mod signal;
mod sockets;
mod spec;
mod sys;
mod task;
mod user;
mod worker;

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;

/// The library logs to the standard error of whoever calls it, which inside the container is the task's own.
const LOG_FILTER: &str = "warn,brig_shim_oci=info,libcgroups=error,libcontainer=error";

const USAGE: &str = "usage: brig-shim-oci --dir DIR          serve one container; the listening socket is standard input
       brig-shim-oci --dir DIR worker   run a wasm shim in a container; the listening socket is standard input
       brig-shim-oci cleanup --dir DIR  remove what a killed shim left
       brig-shim-oci weigh --dir DIR N  give the container of a shim the weight of N thousandths of a core
       brig-shim-oci check [--dir DIR]  say as JSON whether containers can run here
       brig-shim-oci --version
";

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(LOG_FILTER)
        .init();
    sys::clear_environment();
    sys::set_default_umask();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> anyhow::Result<ExitCode> {
    match args {
        ["--dir", dir] => serve(Path::new(dir)).map(|()| ExitCode::SUCCESS),
        ["--dir", dir, "worker"] => {
            let context = || format!("running the wasm shim of {dir} in a container");
            worker::run(Path::new(dir)).with_context(context).map(|()| ExitCode::SUCCESS)
        }
        ["cleanup", "--dir", dir] => {
            let context = || format!("cleaning up after the shim in {dir}");
            cleanup::clean_up(Path::new(dir)).with_context(context).map(|()| ExitCode::SUCCESS)
        }
        ["weigh", "--dir", dir, cpu_milli] => {
            let cpu_milli =
                cpu_milli.parse().with_context(|| format!("`{cpu_milli}` is no weight"))?;
            let context = || format!("giving the container of the shim in {dir} its weight");
            worker::weigh(Path::new(dir), cpu_milli)
                .with_context(context)
                .map(|()| ExitCode::SUCCESS)
        }
        ["check"] => print_check(&std::env::temp_dir()),
        ["check", "--dir", dir] => print_check(Path::new(dir)),
        ["--version"] => print(&format!("brig-shim-oci {}\n", env!("CARGO_PKG_VERSION"))),
        _ => {
            std::io::stderr().write_all(USAGE.as_bytes())?;
            Ok(ExitCode::from(2))
        }
    }
}

fn serve(dir: &Path) -> anyhow::Result<()> {
    let dir: PathBuf =
        dir.canonicalize().with_context(|| format!("state directory {}", dir.display()))?;
    let socket = sys::take_inherited(0).context("standard input is not the listening socket")?;
    let null = std::fs::File::open("/dev/null").context("opening /dev/null")?;
    sys::become_standard_stream(null.as_fd(), sys::StandardStream::Input)
        .context("closing standard input")?;
    // Fails for a process group's leader, which then is in a session of its own already or soon loses its terminal.
    let _ = rustix::process::setsid();
    rustix::process::chdir("/").context("leaving the working directory")?;
    let shim = shim::Shim::new(&dir, UnixListener::from(socket)).context("setting up the shim")?;
    shim.run().context("serving")
}

fn print_check(dir: &Path) -> anyhow::Result<ExitCode> {
    let report = check::check(dir);
    print(&format!("{}\n", serde_json::to_string(&report)?))
}

fn print(text: &str) -> anyhow::Result<ExitCode> {
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
