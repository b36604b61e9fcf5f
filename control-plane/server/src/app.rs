//! What every part of a running server can reach.

use std::sync::Arc;

use brig_store::Store;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::compiled::CompiledStore;
use crate::feed::Feed;
use crate::node::contact::Nodes;
use crate::node::mail::Mail;
use crate::node::stream::Streams;
use crate::questions::Questions;
use crate::registry::Registry;

/// Shared by all requests and tasks of a server.
pub(crate) struct App {
    pub(crate) store: Store,
    pub(crate) feed: Feed,
    pub(crate) nodes: Nodes,
    pub(crate) mail: Mail,
    pub(crate) questions: Questions,
    /// Who may simulate: each simulation works on a copy of the cluster.
    pub(crate) simulations: Arc<Semaphore>,
    pub(crate) streams: Streams,
    pub(crate) registry: Registry,
    pub(crate) compiled: CompiledStore,
    /// Whether this server plans. Nodes keep their sessions with the one that does.
    pub(crate) is_leader: watch::Sender<bool>,
    /// The OpenAPI document.
    pub(crate) openapi: Arc<serde_json::Value>,
    /// The server stops: watches, sessions and streams end.
    pub(crate) stop: CancellationToken,
}
