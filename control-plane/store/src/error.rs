//! What can go wrong in the store, by what a caller does about it.

use brig_api::object::ObjectKey;
use brig_api::problem::FieldError;
use brig_api::{PlanSequence, Revision};

/// Any error, as the source of ours.
type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a method of the store failed. Nothing of it was committed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No such resource.
    #[error("{0} does not exist")]
    NotFound(ObjectKey),
    /// The name is taken, or the change is not possible for what exists; the message says the way out.
    #[error("{key}: {message}")]
    Conflict {
        /// What exists.
        key: ObjectKey,
        /// What is in the way, and the way out.
        message: String,
    },
    /// The namespace has as much as it may; the message says the limit and the way out.
    #[error("{key}: {message}")]
    QuotaExceeded {
        /// What was to be created.
        key: ObjectKey,
        /// The namespace, the limit, and the way out.
        message: String,
    },
    /// Something still uses it.
    #[error("{key} is in use: {message}")]
    InUse {
        /// What was to be deleted.
        key: ObjectKey,
        /// By what it is used.
        message: String,
    },
    /// The request is not valid; at least one fault.
    #[error("not valid: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<FieldError>),
    /// Another plan was committed first: load the model again.
    #[error("another plan was committed first: the newest is {newest}")]
    PlanLost {
        /// The newest plan.
        newest: PlanSequence,
    },
    /// The feed no longer (or, after a restored backup, not yet) holds what follows that revision: list again.
    #[error(
        "the change feed cannot be resumed from there: it goes on from revision {oldest}; list again"
    )]
    RevisionTooOld {
        /// The oldest revision from which the feed can be resumed.
        oldest: Revision,
    },
    /// A query was refused: it could change something, or read what nobody may; the message says which.
    #[error("the query was refused: {0}")]
    ReadOnly(String),
    /// The database cannot do it just now (locked, full, out of reach); the message says which and what to do.
    #[error("{message}")]
    Unavailable {
        /// What is the matter, and what to do.
        message: String,
        /// What the database said.
        source: Source,
    },
    /// The database was written by a newer version of this program.
    #[error(
        "the database has schema version {database}, this program knows versions up to {known}: use a newer version of the program, or restore a backup"
    )]
    TooNew {
        /// The newest migration in the database.
        database: i64,
        /// The newest migration that this program has.
        known: i64,
    },
    /// What is stored makes no sense; the database was changed by other means, or is damaged.
    #[error("the database holds something unreadable: {what}: {message}")]
    Corrupt {
        /// Which row or column.
        what: String,
        /// Why it makes no sense.
        message: String,
    },
    /// Any other failure of the database.
    #[error("the database failed")]
    Database(#[source] Source),
}
