//! `brig-shim-wasm`: runs the wasm tasks of one namespace on one node, and outlives the agent that started it.
//!
//! ```text
//!  agent ──unix socket──▶ serve ─▶ tasks ─▶ task ─▶ program ─▶ code_store ◀─ compiler (one process a module)
//!                        control runtime │  guests' runtime: host, meter, memory, http_server, outgoing
//! ```

mod attached;
mod checkpoint;
mod clock;
mod code_store;
mod compiler;
mod engine;
mod host;
mod hosts;
mod http_guest;
mod http_handler;
mod http_server;
mod input;
mod instances;
mod interfaces;
mod keyvalue;
mod lockdown;
mod logging;
mod memory;
mod meter;
mod options;
mod outcome;
mod outgoing;
mod output;
mod program;
mod rig;
mod serve;
mod sockets;
mod stop;
mod task;
mod tasks;
mod ticker;
mod turns;

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, ensure};
use brig_shim::worker::Libraries;
use options::{Options, ShimOptions};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Threads that answer agents and watch over tasks; apart from the guests', so that no guest delays them.
const CONTROL_THREADS: usize = 1;
/// Threads for what guests do with files; they wait for disks most of the time.
const BLOCKING_THREADS_MAX: usize = 64;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// Most open files: each task has its log, each mount of it and each connection of a service a descriptor.
const FILES_MAX: u64 = 65_536;

fn main() -> ExitCode {
    let result = match Options::parse(std::env::args_os().skip(1)) {
        Ok(Options::Compile(job)) => compiler::run(&job).context("compiling"),
        Ok(Options::Shim(options)) => run_shim(&options),
        Ok(Options::Transform(settings)) => compiler::transform(settings),
        Ok(Options::Compatibility) => compiler::print_compatibilities(),
        Ok(Options::Libraries) => print_libraries().context("looking for its libraries"),
        Ok(Options::Export(job)) => compiler::export(&job).context("giving compiled code away"),
        Ok(Options::Import(job)) => compiler::import(&job).context("taking compiled code"),
        Ok(Options::Help) => options::print_help().context("writing help"),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("brig-shim-wasm: {error:#}\n").as_bytes(),
            );
            ExitCode::from(if error.is::<options::WrongUse>() { 2 } else { 1 })
        }
    }
}

fn print_libraries() -> anyhow::Result<()> {
    let program = std::env::current_exe()?;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let libraries = Libraries::mapped_in(&maps, &program);
    let mut stdout = std::io::stdout().lock();
    serde_json::to_writer(&mut stdout, &libraries)?;
    Ok(std::io::Write::flush(&mut stdout)?)
}

fn run_shim(options: &ShimOptions) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let listener = listener_from_stdin()?;
    // A session of its own: signals to the agent's group are not for running tasks. Fails when it leads one.
    let _ = rustix::process::setsid();
    allow_many_files();
    lockdown::for_serving().context("giving up what a shim does not need")?;
    let programs = program::Programs::new(&options.cache, options.isolation)
        .context("getting ready for programs")?;
    let guests = tokio::runtime::Builder::new_multi_thread()
        .thread_name("guest")
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()?;
    let control = tokio::runtime::Builder::new_multi_thread()
        .thread_name("control")
        .worker_threads(CONTROL_THREADS)
        .enable_all()
        .build()?;
    let turns = turns::Turns::new(guests.metrics().num_workers());
    let stores = keyvalue::Stores::default();
    let machine = Arc::new(task::Machine { programs, stores, turns, isolation: options.isolation });
    let tasks = tasks::Tasks::new(machine, guests.handle().clone());
    tracing::info!(dir = %options.dir.display(), "serving");
    control.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        serve::serve(listener, tasks, options.idle).await;
        anyhow::Ok(())
    })?;
    guests.shutdown_background();
    Ok(())
}

/// Lets this process have more files open than the usual 1,024, which are meant for programs that use `select`.
fn allow_many_files() {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.map_or(FILES_MAX, |maximum| maximum.min(FILES_MAX));
    // None is no limit.
    let Some(current) = limit.current.filter(|current| *current < most) else { return };
    let raised = Rlimit { current: Some(most), maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(current, error = %error, "the limit of open files could not be raised");
    }
}

/// The socket that the agent has bound: so it can be connected to before this process has come up.
fn listener_from_stdin() -> anyhow::Result<std::os::unix::net::UnixListener> {
    let stdin = std::io::stdin();
    let listens = rustix::net::sockopt::socket_acceptconn(stdin.as_fd()).unwrap_or(false);
    ensure!(
        listens,
        "standard input is not a listening unix socket. The node agent starts this program; to do it by hand: \
         systemd-socket-activate --inetd --accept=no --listen=DIR/shim.sock brig-shim-wasm --dir DIR --cache CACHE"
    );
    let listener = stdin.as_fd().try_clone_to_owned().context("taking over the socket")?;
    // Once more, so that whoever connects is told of this process, and not of the one that has bound the socket.
    rustix::net::listen(&listener, BACKLOG).context("listening")?;
    Ok(listener.into())
}
