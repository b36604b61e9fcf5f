//! Events: what happened, in words.

use brig_api::change::Event;
use brig_api::{Kind, NamespacePath, Revision};

use crate::error::StoreError;
use crate::store::Store;
use crate::table::event::event_list;

/// Which events to list. All of them by default, up to the limit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EventFilter {
    /// About resources in this namespace and below it.
    pub namespace: Option<NamespacePath>,
    /// About resources of this kind.
    pub kind: Option<Kind>,
    /// About resources of this name.
    pub name: Option<String>,
    /// Of later revisions than this.
    pub since_revision: Option<Revision>,
    /// At most so many, the newest; at most [`EventFilter::LIMIT_MAX`], which is also the default.
    pub limit: Option<usize>,
}

impl EventFilter {
    /// Most events in one answer.
    pub const LIMIT_MAX: usize = 1_000;
}

impl Store {
    /// The newest events that the filter lets through, newest last.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn event_list(&self, filter: &EventFilter) -> Result<Vec<Event>, StoreError> {
        let limit = filter.limit.unwrap_or(EventFilter::LIMIT_MAX).min(EventFilter::LIMIT_MAX);
        let mut db = self.pools().read().await?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut events = event_list(&mut db, filter, limit).await?;
        db.commit().await?;
        events.reverse();
        Ok(events)
    }
}
