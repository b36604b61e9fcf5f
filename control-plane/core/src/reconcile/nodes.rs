//! Nodes: who is in touch, and which units are given up with a node that is not.

use brig_api::object::{Node, NodeState, Unit};
use brig_api::unit_spec::Disconnect;

use super::LOSE_AFTER_MS;
use crate::Decision;
use crate::draft::Draft;
use crate::room::Room;

/// Notes which nodes came and went, and gives up units on nodes that have been away for too long.
pub(super) fn reconcile<'a>(draft: &mut Draft<'a>, room: &Room<'a>) {
    for node in &room.nodes {
        let state = if node.is_ready { NodeState::Ready } else { NodeState::Unreachable };
        if node.node.state != state {
            draft.decide(Decision::NodeState { node: node.node.name.clone(), state });
        }
    }
    let model = draft.model;
    for unit in model.units().filter(|unit| unit.status.state.is_on_node()) {
        let position = unit.node.as_ref().and_then(|node| room.position(node));
        match position.and_then(|position| room.nodes.get(position)) {
            Some(node) if node.is_ready => {}
            Some(node) => lose_with_node(draft, unit, node.node),
            None => lose(draft, unit, "its node was removed from the cluster".to_owned()),
        }
    }
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
