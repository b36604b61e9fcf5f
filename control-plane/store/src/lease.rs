//! The lease that says who should be trying to plan. It fences nothing: the sequence of plans does.

use crate::database::on_db;
use crate::error::StoreError;
use crate::store::Store;

const LEASE_TAKE: &str = "INSERT INTO leases (name, holder, until_ms) VALUES ('leader', $1, $2) \
    ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until_ms = excluded.until_ms \
    WHERE leases.holder = excluded.holder OR leases.until_ms <= $3";

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
        let until_ms = now_ms.saturating_add(i64::try_from(lease_ms).unwrap_or(i64::MAX));
        // No revision and no turn among the writers: leases are not part of what is watched.
        let mut db = self.pools().write().await?;
        let taken = on_db!(&mut db, |connection| {
            let query = sqlx::query(LEASE_TAKE).bind(holder).bind(until_ms).bind(now_ms);
            query.execute(connection).await.map(|done| done.rows_affected())
        })?;
        db.commit().await?;
        Ok(taken > 0)
    }
}
