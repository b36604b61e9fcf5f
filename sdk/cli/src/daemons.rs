//! Starts the daemons: `dev`, `server`, `node`. They run until SIGTERM or SIGINT.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use brig_api::facts::Devices;
use brig_api::{Kind, Milli, NodeName, Resources};
use brig_client::Client;
use brig_node::{CancellationToken, NodeConfig};
use brig_server::ServerConfig;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::arguments::{Dev, NodeAgent, Server};
use crate::context::Context;
use crate::failure::{FAILED, Failure, chain};
use crate::shims;

/// How long a node may take to register before `brig dev` says that something is wrong.
const READY_TIME_MAX: Duration = Duration::from_secs(60);
/// Time between looks whether the node has registered.
const READY_LOOK_EVERY: Duration = Duration::from_millis(20);
/// What the daemons say where BRIG_LOG does not choose.
const LOG_DEFAULT: &str = "info";

/// A control plane and a node in one process.
pub(crate) fn dev(arguments: Dev, context: &Context) -> Result<(), Failure> {
    let shims = shims::find()?;
    let data = match arguments.data {
        Some(data) => data,
        None => data_home()?.join("dev"),
    };
    let data = absolute(&data)?;
    let name = host_name();
    start_logging();
    runtime()?.block_on(async {
        let mut signals = StopSignals::listen()?;
        let stop_server = CancellationToken::new();
        let stop_node = CancellationToken::new();
        let config = ServerConfig {
            listen: arguments.listen,
            database: arguments.db.unwrap_or_else(|| sqlite_in(&data)),
            data_dir: data.join("server"),
            token: context.token.clone(),
        };
        let server = brig_server::run(config, stop_server.clone()).await.map_err(failed)?;
        let url = format!("http://{}", server.address);
        let node = NodeConfig {
            name: name.clone(),
            data: data.join("node"),
            servers: vec![url.clone()],
            token: context.token.clone(),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            attributes: BTreeMap::new(),
            scalars: scalars(&arguments.resource)?,
            taints: arguments.taint,
            reserved: Resources::default(),
            // Whoever may reach a `brig dev` is the user that runs it.
            host_paths: vec![PathBuf::from("/")],
            runtimes: Vec::new(),
            shim_wasm: shims.wasm,
            shim_oci: shims.oci,
            stops_units_at_shutdown: true,
        };
        let mut node = tokio::spawn(brig_node::run(node, stop_node.clone()));
        let outcome = tokio::select! {
            ended = &mut node => Err(node_ended(ended)),
            () = signals.received() => Ok(()),
            ready = ready(&url, context.token.as_deref(), &name) => match ready {
                Err(failure) => Err(failure),
                Ok(()) => {
                    announce(&url)?;
                    tokio::select! {
                        ended = &mut node => Err(node_ended(ended)),
                        () = signals.received() => Ok(()),
                    }
                }
            },
        };
        // The node first, so that the server still hears how its units ended.
        stop_node.cancel();
        if !node.is_finished() {
            let _ = node.await;
        }
        stop_server.cancel();
        server.stopped().await;
        outcome
    })
}

/// A control plane.
pub(crate) fn server(arguments: Server, context: &Context) -> Result<(), Failure> {
    let data = absolute(&arguments.data)?;
    start_logging();
    runtime()?.block_on(async {
        let mut signals = StopSignals::listen()?;
        let stop = CancellationToken::new();
        let config = ServerConfig {
            listen: arguments.listen,
            database: arguments.db.unwrap_or_else(|| sqlite_in(&data)),
            data_dir: data,
            token: context.token.clone(),
        };
        let server = brig_server::run(config, stop.clone()).await.map_err(failed)?;
        announce(&format!("http://{}", server.address))?;
        signals.received().await;
        stop.cancel();
        server.stopped().await;
        Ok(())
    })
}

/// A node. Its units run on when it ends.
pub(crate) fn node(arguments: NodeAgent, context: &Context) -> Result<(), Failure> {
    let shims = shims::find()?;
    let scalars = scalars(&arguments.resource)?;
    start_logging();
    let config = NodeConfig {
        name: arguments.name.unwrap_or_else(host_name),
        data: absolute(&arguments.data)?,
        servers: context.server_url().split(',').map(str::to_owned).collect(),
        token: arguments.join.or_else(|| context.token.clone()),
        address: arguments.address,
        attributes: arguments.attribute.into_iter().collect(),
        scalars,
        taints: arguments.taint,
        reserved: Resources::default(),
        host_paths: arguments.host_path,
        runtimes: arguments.runtime.into_iter().map(Into::into).collect(),
        shim_wasm: shims.wasm,
        shim_oci: shims.oci,
        stops_units_at_shutdown: false,
    };
    runtime()?.block_on(async {
        let mut signals = StopSignals::listen()?;
        let stop = CancellationToken::new();
        let mut node = tokio::spawn(brig_node::run(config, stop.clone()));
        tokio::select! {
            ended = &mut node => return Err(node_ended(ended)),
            () = signals.received() => {}
        }
        stop.cancel();
        let _ = node.await;
        Ok(())
    })
}

/// Each named resource once.
fn scalars(devices: &[Devices]) -> Result<BTreeMap<String, Milli>, Failure> {
    let mut scalars = BTreeMap::new();
    for Devices { name, amount } in devices {
        if scalars.insert(name.clone(), *amount).is_some() {
            let message = format!("--resource {name} is given twice: add the counts up");
            return Err(Failure::usage(message));
        }
    }
    Ok(scalars)
}

fn failed(error: impl std::error::Error) -> Failure {
    Failure::new(FAILED, chain(&error))
}

fn node_ended(ended: Result<Result<(), brig_node::RunError>, tokio::task::JoinError>) -> Failure {
    match ended {
        Ok(Ok(())) => Failure::new(FAILED, "the node ended"),
        Ok(Err(error)) => failed(error),
        Err(error) => failed(error),
    }
}

fn runtime() -> Result<Runtime, Failure> {
    raise_open_files();
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// Lets the process open as many files as it may: each container, connection and log that is followed takes one, and
/// the limit that programs begin with (1024) is for those that could not count further.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        crate::say(&format!("brig: the limit of open files can't be raised: {error}"));
    }
}

/// Standard error, as lines for people, or as JSON where BRIG_LOG_FORMAT says so.
fn start_logging() {
    let filter =
        EnvFilter::try_from_env("BRIG_LOG").unwrap_or_else(|_| EnvFilter::new(LOG_DEFAULT));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Another subscriber is there only in tests.
    let _ = if std::env::var_os("BRIG_LOG_FORMAT").is_some_and(|format| format == "json") {
        builder.json().try_init()
    } else {
        builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init()
    };
}

/// SIGTERM and SIGINT. Listened for before `ready` is said: who waits for that may end us at once.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn listen() -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one; one that came before is not missed.
    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// `ready URL`, alone on a line: scripts wait for it.
fn announce(url: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready {url}")?;
    Ok(out.flush()?)
}

/// Waits until the node is there for units to be placed on.
async fn ready(url: &str, token: Option<&str>, name: &NodeName) -> Result<(), Failure> {
    let client = Client::new(url, token)?;
    let registered = async {
        loop {
            let nodes = client.list(Kind::Node, None).await?;
            let is_there = nodes.items.iter().any(|object| match object {
                brig_api::Object::Node(node) => {
                    node.name == *name && node.state == brig_api::object::NodeState::Ready
                }
                _ => false,
            });
            if is_there {
                return Ok(());
            }
            tokio::time::sleep(READY_LOOK_EVERY).await;
        }
    };
    match tokio::time::timeout(READY_TIME_MAX, registered).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Failure::new(
            FAILED,
            "the node did not register within a minute: see the log above",
        )),
    }
}

fn sqlite_in(data: &Path) -> String {
    format!("sqlite:{}", data.join("brig.db").display())
}

/// Creates the directory: data is kept from the first start on.
fn absolute(data: &Path) -> Result<PathBuf, Failure> {
    let describe =
        |error: std::io::Error| Failure::new(FAILED, format!("--data {}: {error}", data.display()));
    std::fs::create_dir_all(data).map_err(describe)?;
    data.canonicalize().map_err(describe)
}

fn data_home() -> Result<PathBuf, Failure> {
    let home = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
    let home = home
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")));
    home.map(|home| home.join("brig"))
        .ok_or_else(|| Failure::usage("HOME is not set: name a directory with --data"))
}

/// The machine's name as far as it is a node name, else `node`.
fn host_name() -> NodeName {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    let fallback = || NodeName::new("node");
    NodeName::new(name)
        .or_else(|_| fallback())
        .unwrap_or_else(|_| unreachable!("`node` is a node name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_resource_is_given_once() {
        let devices = |texts: [&str; 2]| texts.map(|text| text.parse::<Devices>().unwrap());
        assert_eq!(scalars(&devices(["gpu=2", "fpga=1"])).unwrap()["gpu"], Milli(2_000));
        let failure = scalars(&devices(["gpu=2", "gpu=1"])).unwrap_err().to_string();
        assert!(failure.contains("gpu is given twice"), "{failure}");
    }

    #[test]
    fn as_many_files_may_be_open_as_the_machine_allows() {
        raise_open_files();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }

    #[test]
    fn a_machine_has_a_node_name() {
        assert!(!host_name().as_str().is_empty());
    }
}
