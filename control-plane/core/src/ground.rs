//! The ground of a pass: the index with everything that the pass has decided charged to it, each step of which can be
//! taken back. When the pass is over all are, so that the model is again what the change feed made it.

use std::sync::Arc;

use brig_api::object::Unit;
use brig_api::placement::Grants;

use crate::index::{Index, NodeSlot, UnitSlot};
use crate::vector::Vector;

/// A step that can be taken back.
#[derive(Debug)]
enum Step {
    Entered(UnitSlot),
    Placed(UnitSlot),
    Lifted(UnitSlot, NodeSlot, Grants, bool),
    Leaving(UnitSlot),
    Promised(UnitSlot, NodeSlot, Vector),
    PromiseLifted(UnitSlot, NodeSlot, Vector),
    Kept(NodeSlot, Vector),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Ground<'m> {
    pub(crate) index: &'m mut Index,
    steps: Vec<Step>,
    /// Nodes that steps changed, in order; also those that taking back changed again.
    pub(crate) changes: Vec<NodeSlot>,
    promises: std::collections::BTreeMap<UnitSlot, (NodeSlot, Vector)>,
}

/// A point to go back to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark(usize);

impl<'m> Ground<'m> {
    pub(crate) fn new(index: &'m mut Index) -> Self {
        Self {
            index,
            steps: Vec::new(),
            changes: Vec::new(),
            promises: std::collections::BTreeMap::new(),
        }
    }

    /// Now.
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.steps.len())
    }

    /// Takes back everything since.
    pub(crate) fn back_to(&mut self, mark: Mark) {
        while self.steps.len() > mark.0 {
            let Some(step) = self.steps.pop() else { break };
            match step {
                Step::Entered(unit) => self.index.unit_remove(unit),
                Step::Placed(unit) => {
                    self.changes.extend(self.index.entry(unit).and_then(|entry| entry.at));
                    self.index.uncharge(unit);
                }
                Step::Lifted(unit, node, grants, is_leaving) => {
                    self.index.charge(unit, node, grants);
                    self.index.set_leaving(unit, is_leaving);
                    self.changes.push(node);
                }
                Step::Leaving(unit) => {
                    self.index.set_leaving(unit, false);
                    self.changes.extend(self.index.entry(unit).and_then(|entry| entry.at));
                }
                Step::Promised(unit, node, amount) => {
                    self.index.nodes.promise(node, &amount, true);
                    self.promises.remove(&unit);
                    self.changes.push(node);
                }
                Step::PromiseLifted(unit, node, amount) => {
                    self.index.nodes.promise(node, &amount, false);
                    self.promises.insert(unit, (node, amount));
                    self.changes.push(node);
                }
                Step::Kept(node, amount) => {
                    self.index.nodes.kept.sub(node, &amount);
                    self.changes.push(node);
                }
            }
        }
    }

    /// A unit that the pass makes.
    pub(crate) fn enter(&mut self, unit: Arc<Unit>) -> UnitSlot {
        let slot = self.index.unit_put(unit);
        self.steps.push(Step::Entered(slot));
        slot
    }

    /// Places a unit.
    pub(crate) fn place(&mut self, unit: UnitSlot, node: NodeSlot, grants: Grants) {
        self.index.charge(unit, node, grants);
        self.steps.push(Step::Placed(unit));
        self.changes.push(node);
    }

    /// Imagines a unit gone from its node.
    pub(crate) fn lift(&mut self, unit: UnitSlot) {
        let Some(entry) = self.index.entry(unit) else { return };
        let Some(node) = entry.at else { return };
        let step = Step::Lifted(unit, node, entry.grants.clone(), entry.is_leaving);
        self.index.uncharge(unit);
        self.steps.push(step);
        self.changes.push(node);
    }

    /// A unit is told to stop.
    pub(crate) fn set_leaving(&mut self, unit: UnitSlot) {
        let Some(entry) = self.index.entry(unit) else { return };
        let (Some(node), false) = (entry.at, entry.is_leaving) else { return };
        self.index.set_leaving(unit, true);
        self.steps.push(Step::Leaving(unit));
        self.changes.push(node);
    }

    /// Keeps room on a node for a unit that waits for others to leave it.
    pub(crate) fn promise(&mut self, unit: UnitSlot, node: NodeSlot) {
        self.lift_promise(unit);
        let Some(amount) = self.index.request(unit).cloned() else { return };
        self.index.nodes.promise(node, &amount, false);
        self.promises.insert(unit, (node, amount.clone()));
        self.steps.push(Step::Promised(unit, node, amount));
        self.changes.push(node);
    }

    /// The node on which room is kept for the unit.
    pub(crate) fn promised(&self, unit: UnitSlot) -> Option<NodeSlot> {
        self.promises.get(&unit).map(|(node, _)| *node)
    }

    /// Keeps it no longer; gives the node.
    pub(crate) fn lift_promise(&mut self, unit: UnitSlot) -> Option<NodeSlot> {
        let (node, amount) = self.promises.remove(&unit)?;
        self.index.nodes.promise(node, &amount, true);
        self.steps.push(Step::PromiseLifted(unit, node, amount));
        self.changes.push(node);
        Some(node)
    }

    /// Keeps room for a gang; until a time that is known, or not.
    pub(crate) fn keep(&mut self, node: NodeSlot, amount: Vector, is_end_known: bool) {
        self.index.nodes.is_kept_end_known = is_end_known;
        self.index.nodes.kept.add(node, &amount);
        self.index.nodes.has_kept = true;
        self.steps.push(Step::Kept(node, amount));
        self.changes.push(node);
    }
}

impl Drop for Ground<'_> {
    fn drop(&mut self) {
        self.back_to(Mark(0));
        self.index.nodes.has_kept = false;
    }
}
