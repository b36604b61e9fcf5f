//! Puts an agent together and runs it.

use std::sync::Arc;

use brig_client::registry::{RegistryClient, RegistryError, RegistryOptions};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, Parts};
use crate::artifacts::{ArtifactError, Artifacts, UnpackLimits};
use crate::compiled::CompiledCode;
use crate::config::{InvalidServer, NodeConfig, http_base, websocket_base};
use crate::disk::{Disk, Lock, OpenError};
use crate::event::EVENTS_WAITING_MAX;
use crate::facts;
use crate::held::HeldArtifacts;
use crate::prepare::Preparer;
use crate::program;
use crate::session::{self, SessionConfig};
use crate::shims::{Programs, Shims};

/// Why an agent can't run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The data directory can't be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What an agent before this one left there can't be read.
    #[error("can't read the data directory")]
    Read(#[source] std::io::Error),
    /// The store of fetched programs can't be used.
    #[error("can't use the node's artifacts")]
    Artifacts(#[from] ArtifactError),
    /// Registries can't be reached at all (TLS, addresses).
    #[error("can't set up the client of registries")]
    Registry(#[from] RegistryError),
    /// A server's address is none.
    #[error(transparent)]
    Server(#[from] InvalidServer),
    /// There is no server to work for.
    #[error("a node needs the address of a control plane: --server http://HOST:PORT")]
    NoServer,
}

/// Runs an agent until `shutdown`. Programs come from the registry of the first server, and from others by name.
///
/// # Errors
/// [`RunError`], before anything was started.
pub async fn run(config: NodeConfig, shutdown: CancellationToken) -> Result<(), RunError> {
    let first = config.servers.first().ok_or(RunError::NoServer)?;
    let options = RegistryOptions {
        builtin: Some(http_base(first)?),
        builtin_token: config.token.clone(),
        ..RegistryOptions::default()
    };
    let client = RegistryClient::new(options)?;
    // Locked first: opening the artifacts clears away what is half done, which may be another agent's.
    let (disk, lock) = Disk::open(&config.data)?;
    let artifacts = Artifacts::open(disk.root(), client, UnpackLimits::default())?;
    work(config, disk, lock, Arc::new(artifacts), shutdown).await
}

/// Runs an agent that gets its programs from `programs`, until `shutdown`.
///
/// # Errors
/// [`RunError`], before anything was started.
pub async fn run_with(
    config: NodeConfig,
    programs: Arc<dyn program::Programs>,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let (disk, lock) = Disk::open(&config.data)?;
    work(config, disk, lock, programs, shutdown).await
}

/// The lock is held to the end, whatever still runs in the background then.
async fn work(
    config: NodeConfig,
    disk: Disk,
    _lock: Lock,
    programs: Arc<dyn program::Programs>,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let servers = config
        .servers
        .iter()
        .map(|server| websocket_base(server))
        .collect::<Result<Vec<_>, _>>()?;
    if servers.is_empty() {
        return Err(RunError::NoServer);
    }
    let disk = Arc::new(disk);
    let check = facts::Check::of(&config).await;
    let facts = facts::gather(&config, &check);
    let (events, heard) = mpsc::channel(EVENTS_WAITING_MAX);
    let shim_programs = Programs {
        wasm: config.shim_wasm.clone(),
        oci: config.shim_oci.clone(),
        holds_workers: check.holds_workers(),
    };
    let compiled = CompiledCode::new(config.shim_wasm.clone(), disk.wasm_cache());
    let held = HeldArtifacts::open(disk.root(), compiled.clone());
    let preparer = Preparer {
        compiled: compiled.clone(),
        held: held.clone(),
        disk: disk.clone(),
        programs,
        host_paths: config.host_paths.clone(),
        address: config.address,
        architecture: facts::architecture(),
    };
    let mut agent = Agent::new(Parts {
        shims: Shims::new(disk.clone(), shim_programs, events.clone()),
        disk,
        preparer,
        events: events.clone(),
        token: config.token.clone(),
        address: config.address,
        boot_id: facts.boot_id.clone(),
    });
    agent.recover().map_err(RunError::Read)?;
    let session =
        SessionConfig { name: config.name, facts, servers, token: config.token, compiled, held };
    let session = tokio::spawn(session::run(session, events));
    agent.run(heard, shutdown, config.stops_units_at_shutdown).await;
    session.abort();
    Ok(())
}
