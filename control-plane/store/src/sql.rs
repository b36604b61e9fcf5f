//! Questions of operators: one SELECT, which can neither change anything nor read a secret.

use brig_api::request::SqlResponse;

use crate::error::StoreError;
use crate::store::Store;

impl Store {
    /// Runs one SELECT (or WITH, VALUES, EXPLAIN) in a read-only transaction, for a few seconds at most, and gives out at
    /// most `rows_max` rows.
    ///
    /// # Errors
    /// [`StoreError::ReadOnly`] when it is anything else or names the secrets' texts; [`StoreError::Invalid`] when
    /// the database does not understand it or it takes too long.
    pub async fn sql(&self, query: &str, rows_max: usize) -> Result<SqlResponse, StoreError> {
        Err(StoreError::being_written())
    }
}
