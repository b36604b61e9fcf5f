//! Opening the store, and what concerns all of it.

use brig_api::Revision;
use tokio::sync::watch;

use crate::error::StoreError;

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
    committed: watch::Sender<Revision>,
}

impl Store {
    /// Opens `sqlite:PATH` (created if missing) or `postgres://…`, and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for another kind of URL, [`StoreError::TooNew`] for a database of a newer version,
    /// [`StoreError::Unavailable`] when it cannot be reached.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        Err(StoreError::being_written())
    }

    /// Closes every connection, after the transactions under way.
    pub async fn close(&self) {}

    /// Which database it is in.
    #[must_use]
    pub fn backend(&self) -> Backend {
        Backend::Sqlite
    }

    /// The newest revision.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn revision(&self) -> Result<Revision, StoreError> {
        Err(StoreError::being_written())
    }

    /// Wakes after each commit of this process; other processes commit too, so ask [`Self::revision`] now and then.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.committed.subscribe()
    }
}
