//! Nodes: who is in touch, and which units are given up with a node that is not, or sent away from one that does not want
//! them.

use std::sync::Arc;

use brig_api::NodeName;
use brig_api::lifecycle::Reason;
use brig_api::object::{Desired, Node, NodeState, Unit};
use brig_api::placement::{Taint, TaintEffect, Toleration};
use brig_api::unit_spec::Disconnect;

use super::LOSE_AFTER_MS;
use crate::Decision;
use crate::draft::Draft;

/// Notes whether a node came or went, and what becomes of its units.
pub(super) fn reconcile(draft: &mut Draft<'_>, name: &NodeName) {
    let index = draft.index;
    // Units of a node that is gone are looked at one by one.
    let Some(slot) = draft.node(name) else { return };
    let Some(node) = index.nodes.get(slot) else { return };
    let is_ready = index.nodes.is_ready[slot];
    let state = if is_ready { NodeState::Ready } else { NodeState::Unreachable };
    if node.state != state {
        draft.decide(Decision::NodeState { node: name.clone(), state });
    }
    let on_node = index.nodes.units[slot].iter();
    let mut units: Vec<_> = on_node.filter_map(|unit| index.unit(*unit)).collect();
    units.sort_unstable_by(|left, right| left.id.cmp(&right.id));
    for unit in units {
        if is_ready {
            evict(draft, unit, node);
        } else {
            lose_with_node(draft, unit, node);
        }
    }
}

/// Stops a unit that does not tolerate a taint of its node.
fn evict(draft: &mut Draft<'_>, unit: &Arc<Unit>, node: &Node) {
    let tolerations = &unit.template.placement.tolerations;
    let Some(taint) = evicting(&node.facts.taints, tolerations) else { return };
    let message =
        format!("node `{}` has the taint `{taint}`, which it does not tolerate", node.name);
    // Its service replaces it; a job counts it; a unit on its own stays to be seen.
    let is_of_service = crate::index::generation(unit).is_some();
    let desired = if is_of_service { Desired::Remove } else { Desired::Stop };
    draft.stop_saying(unit, desired, Reason::Evicted, Some(message));
}

/// The taint that makes units with these tolerations leave.
pub(crate) fn evicting<'t>(taints: &'t [Taint], tolerations: &[Toleration]) -> Option<&'t Taint> {
    taints.iter().find(|taint| {
        taint.effect == TaintEffect::Evict
            && !tolerations.iter().any(|toleration| toleration.tolerates(taint))
    })
}

fn lose_with_node(draft: &mut Draft<'_>, unit: &Unit, node: &Node) {
    if unit.template.disconnect == Disconnect::Wait {
        return;
    }
    let is_newly_away = node.state == NodeState::Ready;
    let since_ms = if is_newly_away { draft.now_ms } else { node.state_since_ms };
    if draft.is_past(since_ms, LOSE_AFTER_MS) {
        let seconds = LOSE_AFTER_MS / 1_000;
        lose(draft, unit, format!("node `{}` has been out of reach for {seconds} s", node.name));
    }
}

fn lose(draft: &mut Draft<'_>, unit: &Unit, message: String) {
    draft.decide(Decision::UnitLose { unit: unit.id.clone(), message });
}
