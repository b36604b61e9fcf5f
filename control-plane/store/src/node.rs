//! Nodes: what they say of themselves, and what is assigned to them.

use brig_api::object::{Node, NodeFacts, NodeState, ObjectKey, Unit};
use brig_api::{Kind, NodeName, Object, Revision};

use crate::error::StoreError;
use crate::store::Store;
use crate::table::node::{node_attributes_put, node_get, node_put};
use crate::table::unit::unit_list_on_node;
use crate::write::{Write, in_write};

impl Store {
    /// Takes over what a node says of itself; it is ready from now on. Takes no revision when that was known.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for facts that cannot be stored.
    pub async fn node_register(
        &self,
        name: &NodeName,
        mut facts: NodeFacts,
        now_ms: i64,
    ) -> Result<Node, StoreError> {
        facts.runtimes.sort_unstable();
        facts.runtimes.dedup();
        let (node, _) = in_write!(self, now_ms, |tx| register(&mut tx, name, &facts).await)?;
        Ok(node)
    }

    /// The units on the node that have not ended, by id.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn node_assignments(&self, name: &NodeName) -> Result<Vec<Unit>, StoreError> {
        let mut db = self.pools().read().await?;
        let units = unit_list_on_node(&mut db, name.as_str()).await?;
        db.commit().await?;
        Ok(units)
    }
}

async fn register(tx: &mut Write, name: &NodeName, facts: &NodeFacts) -> Result<Node, StoreError> {
    let existing = node_get(&mut tx.db, name.as_str()).await?;
    let (node, event) = match existing {
        Some(node) if node.state == NodeState::Ready && node.facts == *facts => return Ok(node),
        Some(mut node) => {
            let event = match node.state {
                NodeState::Ready => ("Updated", "has changed what it says of itself"),
                NodeState::Unreachable => ("Ready", "is in touch again"),
            };
            switch(&mut node, NodeState::Ready, tx.now_ms, tx.revision());
            node.facts = facts.clone();
            (node, event)
        }
        None => {
            let node = Node {
                name: name.clone(),
                facts: facts.clone(),
                state: NodeState::Ready,
                state_since_ms: tx.now_ms,
                held_artifacts: None,
                meta: tx.meta(),
            };
            (node, ("Registered", "is part of the cluster"))
        }
    };
    node_put(&mut tx.db, &node).await?;
    node_attributes_put(&mut tx.db, &node).await?;
    tx.normal(node_key(name), event.0, event.1);
    tx.changed(Object::Node(node.clone()));
    Ok(node)
}

pub(crate) fn node_key(name: &NodeName) -> ObjectKey {
    ObjectKey { kind: Kind::Node, namespace: None, name: name.as_str().to_owned() }
}

/// The node changes in that revision; its state too, unless it was that before.
pub(crate) fn switch(node: &mut Node, state: NodeState, now_ms: i64, revision: Revision) {
    if node.state != state {
        node.state = state;
        node.state_since_ms = now_ms;
    }
    node.meta.revision = revision;
}
