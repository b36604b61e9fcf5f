//! The lease that says who should be trying to plan. It fences nothing: the sequence of plans does.

use crate::error::StoreError;
use crate::store::Store;

impl Store {
    /// Takes or renews the lease for `lease_ms` from now. False while somebody else has it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn leader_try(
        &self,
        holder: &str,
        now_ms: i64,
        lease_ms: u64,
    ) -> Result<bool, StoreError> {
        Err(StoreError::being_written())
    }
}
