//! The change feed: every change of every resource, in order, for as long as it is kept.

use brig_api::Revision;
use brig_api::change::Change;

use crate::error::StoreError;
use crate::store::Store;

impl Store {
    /// What changed after `revision`, in order: whole revisions, until there are at least `limit` changes.
    ///
    /// # Errors
    /// [`StoreError::RevisionTooOld`] when the feed does not go back that far (or does not go that far).
    pub async fn changes_since(
        &self,
        revision: Revision,
        limit: usize,
    ) -> Result<Vec<Change>, StoreError> {
        Err(StoreError::being_written())
    }

    /// Forgets all but the newest `keep` revisions of the feed and of the events.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn changes_trim(&self, keep: u64) -> Result<(), StoreError> {
        Err(StoreError::being_written())
    }
}
