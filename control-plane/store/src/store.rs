//! Opening the store, and what concerns all of it.

use std::sync::Arc;

use brig_api::Revision;
use brig_api::change::Change;
use tokio::sync::{broadcast, watch};

use crate::columns::unsigned;
use crate::database::{Pools, Tx, on_db};
use crate::error::StoreError;
use crate::schema;

/// Commits that wait for who takes them over; who is further behind reads the feed.
const COMMITS_WAITING_MAX: usize = 64;

const CLUSTER_REVISION: &str = "SELECT revision FROM cluster WHERE id = 1";

/// Which database the store is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// A file, in this process.
    Sqlite,
    /// A server.
    Postgres,
}

impl Backend {
    /// `sqlite` or `postgres`, as in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

/// The cluster's database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pools: Pools,
    /// Operators' questions run as a role without a right on the secrets' texts (PostgreSQL, where one could be made).
    has_reader_role: bool,
    committed: watch::Sender<Revision>,
    commits: broadcast::Sender<Arc<Vec<Change>>>,
}

impl Store {
    /// Opens `sqlite:PATH` (created if missing) or `postgres://…`, and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for another kind of URL, [`StoreError::TooNew`] for a database of a newer version,
    /// [`StoreError::Unavailable`] when it cannot be reached.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let pools = Pools::connect(url).await?;
        schema::migrate(&pools).await?;
        let has_reader_role = schema::reader_role_ensure(&pools).await?;
        let (committed, _) = watch::channel(Revision(0));
        let (commits, _) = broadcast::channel(COMMITS_WAITING_MAX);
        let store = Self { pools, has_reader_role, committed, commits };
        store.announce(store.revision().await?);
        Ok(store)
    }

    /// Closes every connection, after the transactions under way.
    pub async fn close(&self) {
        self.pools.close().await;
    }

    /// Which database it is in.
    #[must_use]
    pub fn backend(&self) -> Backend {
        match self.pools {
            Pools::Sqlite { .. } => Backend::Sqlite,
            Pools::Postgres { .. } => Backend::Postgres,
        }
    }

    /// The newest revision.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn revision(&self) -> Result<Revision, StoreError> {
        let mut db = self.pools.read().await?;
        let revision = cluster_revision(&mut db).await?;
        db.commit().await?;
        Ok(revision)
    }

    /// Wakes after each commit of this process; other processes commit too, so ask [`Self::revision`] now and then.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.committed.subscribe()
    }

    /// The changes of each commit of this process, as [`Self::changes_since`] gives them, without a read. Commits of
    /// two tasks may come in the other order, those of other processes do not come at all, and who is slow misses
    /// some: whoever gets a revision that is not the next reads what is in between. No changes: read, too.
    #[must_use]
    pub fn commits(&self) -> broadcast::Receiver<Arc<Vec<Change>>> {
        self.commits.subscribe()
    }

    pub(crate) fn pools(&self) -> &Pools {
        &self.pools
    }

    pub(crate) fn has_reader_role(&self) -> bool {
        self.has_reader_role
    }

    /// Gives what a commit wrote to those who wait for commits.
    pub(crate) fn hand_out(&self, written: Vec<Change>) {
        // They may have gone meanwhile, or never come.
        let _ = self.commits.send(Arc::new(written));
    }

    /// Wakes those who wait. Commits of two tasks may get here in the other order: the newest counts.
    pub(crate) fn announce(&self, revision: Revision) {
        self.committed.send_if_modified(|newest| {
            let is_newer = revision > *newest;
            *newest = revision.max(*newest);
            is_newer
        });
    }
}

/// The newest revision that the transaction sees.
pub(crate) async fn cluster_revision(db: &mut Tx) -> Result<Revision, StoreError> {
    let (revision,): (i64,) =
        on_db!(db, |connection| sqlx::query_as(CLUSTER_REVISION).fetch_one(connection).await)?;
    Ok(Revision(unsigned("cluster.revision", revision)?))
}
