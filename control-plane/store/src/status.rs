//! What nodes report about their units, taken over exactly once.

use brig_api::session::StatusReport;
use brig_api::{NodeName, UnitId};

use crate::error::StoreError;
use crate::store::Store;

impl Store {
    /// Takes over the reports of a node in one transaction; gives those that it need not repeat (all of them): a
    /// report that is older than what is known, not possible in the unit's state, about a unit that is gone or on
    /// another node changes nothing and is acknowledged too.
    ///
    /// # Errors
    /// When the database fails; then none is acknowledged.
    pub async fn statuses_report(
        &self,
        node: &NodeName,
        reports: &[StatusReport],
        now_ms: i64,
    ) -> Result<Vec<(UnitId, u64)>, StoreError> {
        Err(StoreError::being_written())
    }
}
