//! A server from start to stop.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use brig_store::Store;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::access::Access;
use crate::app::App;
use crate::compiled::CompiledStore;
use crate::config::{ServerConfig, StartError};
use crate::feed::Feed;
use crate::index::StoreIndex;
use crate::limits::{HEAD_TIME_MAX, SIMULATIONS_MAX};
use crate::node::contact::Nodes;
use crate::node::mail::Mail;
use crate::node::stream::Streams;
use crate::questions::Questions;
use crate::registry::{self, BLOB_BYTES_MAX_DEFAULT, Registry, RegistryConfig};
use crate::{api, clock, conductor, housekeeping, serve};

/// Held by the server that uses the data folder.
const LOCK_FILE: &str = "server.lock";
/// Holds the server's name for the lease.
const IDENTITY_FILE: &str = "server-id";
/// Longer ones were not written by us.
const IDENTITY_BYTES_MAX: usize = 100;
/// How long a start waits for the server before it to let go of the folder.
const LOCK_TIME_MAX: Duration = Duration::from_secs(5);
/// Pause between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// A running server. Dropping it does not stop the server: cancel the token that [`run`] was given.
#[derive(Debug)]
pub struct Handle {
    /// Where it listens, with the port that was chosen.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Handle {
    /// Waits until the server has stopped.
    pub async fn stopped(self) {
        if let Err(error) = self.task.await {
            tracing::error!(error = %error, "the server's task failed");
        }
    }
}

/// Starts a server; it answers when this returns, and runs until `stop` is cancelled.
///
/// # Errors
/// [`StartError`] says what is in the way and the way out.
pub async fn run(config: ServerConfig, stop: CancellationToken) -> Result<Handle, StartError> {
    config.check()?;
    let lock = lock(&config.data_dir).await?;
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|source| StartError::Listen { address: config.listen, source })?;
    let address = listener
        .local_addr()
        .map_err(|source| StartError::Listen { address: config.listen, source })?;
    let store = Store::open(&config.database).await.map_err(in_store)?;
    store.namespace_default_ensure(clock::now_ms()).await.map_err(in_store)?;
    let registry = open_registry(&config, &store)?;
    let compiled = CompiledStore::open(&config.data_dir)
        .map_err(|source| StartError::DataDir { path: config.data_dir.clone(), source })?;
    let (routes, openapi) = api::routes().finish();
    let feed = Feed::new(store.clone()).await.map_err(in_store)?;
    let app = Arc::new(App {
        mail: Mail::new(feed.position()),
        feed,
        store,
        nodes: Nodes::new(tokio::time::Instant::now()),
        questions: Questions::default(),
        simulations: Arc::new(Semaphore::new(SIMULATIONS_MAX)),
        streams: Streams::default(),
        registry: registry.clone(),
        compiled,
        is_leader: watch::Sender::new(false),
        openapi: Arc::new(openapi),
        stop: stop.clone(),
    });
    let access = Access::new(config.token.as_deref(), address.ip());
    let routes = routes.with_state(Arc::clone(&app)).merge(registry::router(registry));
    let router = serve::wrap(routes, access);
    tracing::info!(%address, database = app.store.backend().as_str(), "the server listens");
    let holder = identity(&config.data_dir)?;
    let task = tokio::spawn(async move {
        tokio::join!(
            serve::serve(listener, router, HEAD_TIME_MAX, stop.clone()),
            app.feed.clone().pump(stop.clone()),
            app.mail.deliver(&app.feed, stop.clone()),
            conductor::run(Arc::clone(&app), holder),
            housekeeping::run(Arc::clone(&app)),
        );
        app.store.close().await;
        drop(lock);
        tracing::info!("the server stopped");
    });
    Ok(Handle { address, task })
}

fn in_store(error: brig_store::StoreError) -> StartError {
    StartError::Store(Box::new(error))
}

fn open_registry(config: &ServerConfig, store: &Store) -> Result<Registry, StartError> {
    let registry_config = RegistryConfig {
        data: config.data_dir.clone(),
        blob_bytes_max: BLOB_BYTES_MAX_DEFAULT,
        now: clock::now,
    };
    Registry::open(registry_config, Arc::new(StoreIndex(store.clone())))
        .map_err(|error| StartError::Registry(crate::problem::chain(&error)))
}

/// Who this server is to the lease: the same after a crash, so that it need not wait for its own lease to run out.
fn identity(data_dir: &Path) -> Result<String, StartError> {
    let path = data_dir.join(IDENTITY_FILE);
    let failed = |source| StartError::DataDir { path: path.clone(), source };
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.is_empty() && text.len() <= IDENTITY_BYTES_MAX => return Ok(text),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(_) | Err(_) => {}
    }
    let new = format!("server-{:032x}", rand::random::<u128>());
    std::fs::write(&path, &new).map_err(failed)?;
    Ok(new)
}

/// The data folder, made where it is missing, for this server alone.
async fn lock(data_dir: &Path) -> Result<File, StartError> {
    let failed = |source| StartError::DataDir { path: data_dir.to_owned(), source };
    std::fs::create_dir_all(data_dir).map_err(failed)?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(data_dir.join(LOCK_FILE))
        .map_err(failed)?;
    let deadline = tokio::time::Instant::now() + LOCK_TIME_MAX;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::Error(source)) => return Err(failed(source)),
            Err(std::fs::TryLockError::WouldBlock) if tokio::time::Instant::now() >= deadline => {
                return Err(StartError::Locked(data_dir.to_owned()));
            }
            // The server before this one may be on its way out.
            Err(std::fs::TryLockError::WouldBlock) => tokio::time::sleep(LOCK_PAUSE).await,
        }
    }
}
