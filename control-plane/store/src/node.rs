//! Nodes: what they say of themselves, and what is assigned to them.

use brig_api::NodeName;
use brig_api::object::{Node, NodeFacts, Unit};

use crate::error::StoreError;
use crate::store::Store;

impl Store {
    /// Takes over what a node says of itself; it is ready from now on. Takes no revision when that was known.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn node_register(
        &self,
        name: &NodeName,
        facts: NodeFacts,
        now_ms: i64,
    ) -> Result<Node, StoreError> {
        Err(StoreError::being_written())
    }

    /// The units on the node that have not ended, by id.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn node_assignments(&self, name: &NodeName) -> Result<Vec<Unit>, StoreError> {
        Err(StoreError::being_written())
    }
}
