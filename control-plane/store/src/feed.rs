//! The change feed: every change of every resource, in order, for as long as it is kept.

use brig_api::Revision;
use brig_api::change::Change;

use crate::error::StoreError;
use crate::store::{Store, cluster_revision};
use crate::table::change::{change_list, changes_remove, feed_start};
use crate::table::event::events_remove;
use crate::table::plan::plans_remove;
use crate::write::{Write, in_write};

/// Most changes that are read at once, give or take a revision.
const CHANGES_MAX: usize = 10_000;

impl Store {
    /// What changed after `revision`, in order: whole revisions, until there are at least `limit` changes (of which
    /// at most 10,000 are asked for at a time).
    ///
    /// # Errors
    /// [`StoreError::RevisionTooOld`] when the feed does not go back that far (or does not go that far).
    pub async fn changes_since(
        &self,
        revision: Revision,
        limit: usize,
    ) -> Result<Vec<Change>, StoreError> {
        let limit = i64::try_from(limit.clamp(1, CHANGES_MAX)).unwrap_or(i64::MAX);
        let mut db = self.pools().read().await?;
        let newest = cluster_revision(&mut db).await?;
        let oldest = feed_start(&mut db).await?;
        // A revision from the future is one of before a backup was restored: what it stood for is gone.
        if revision < oldest || revision > newest {
            return Err(StoreError::RevisionTooOld { oldest });
        }
        let changes = change_list(&mut db, revision, limit).await?;
        db.commit().await?;
        Ok(changes)
    }

    /// Forgets all but the newest `keep` revisions of the feed, and the events and plans of before.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn changes_trim(&self, keep: u64) -> Result<(), StoreError> {
        in_write!(self, 0, |tx| trim(&mut tx, keep).await)?;
        Ok(())
    }
}

async fn trim(tx: &mut Write, keep: u64) -> Result<(), StoreError> {
    let until = Revision(tx.newest().0.saturating_sub(keep));
    if until <= feed_start(&mut tx.db).await? {
        return Ok(());
    }
    changes_remove(&mut tx.db, until).await?;
    events_remove(&mut tx.db, until).await?;
    plans_remove(&mut tx.db, until).await?;
    tx.keep_rows();
    Ok(())
}
