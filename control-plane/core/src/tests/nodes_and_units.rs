//! Nodes that come and go, and units that end.

use super::*;
use crate::reconcile::{LOSE_AFTER_MS, REMOVE_DONE_AFTER_MS};

#[test]
fn a_silent_node_is_unreachable_and_its_units_are_given_up_after_a_time() {
    let mut cluster = Cluster::new();
    let node = cluster.node("node-1", amount(8_000, 8 * GI));
    cluster.service("web", 1, wasm(amount(1_000, GI)));
    cluster.settle();
    cluster.node("node-2", amount(8_000, 8 * GI));
    cluster.moment.silent.insert(node.clone());
    let start_ms = cluster.moment.now_ms;
    let plan = cluster.pass();
    let state = NodeState::Unreachable;
    assert_eq!(plan.decisions, [Decision::NodeState { node: node.clone(), state }]);
    assert_eq!(plan.wake_at_ms, Some(start_ms + LOSE_AFTER_MS));
    cluster.moment.now_ms += LOSE_AFTER_MS - 1;
    assert!(cluster.pass().is_empty());
    cluster.moment.now_ms += 1;
    let plan = cluster.pass();
    assert!(
        matches!(&plan.decisions[..], [Decision::UnitLose { message, .. }] if message == "node `node-1` has been out of reach for 60 s")
    );
    cluster.settle();
    assert_eq!(cluster.count(|unit| unit.node.as_ref().unwrap().as_str() == "node-2"), 1);
    assert_eq!(cluster.model.unit_count(), 1);
    cluster.moment.silent.clear();
    let plan = cluster.pass();
    assert_eq!(plan.decisions, [Decision::NodeState { node, state: NodeState::Ready }]);
}

#[test]
fn a_unit_that_waits_for_its_node_is_never_given_up() {
    let mut cluster = Cluster::new();
    let node = cluster.node("node-1", amount(8_000, 8 * GI));
    let unit = UnitTemplate { disconnect: Disconnect::Wait, ..wasm(amount(1_000, GI)) };
    cluster.service("db", 1, unit);
    cluster.settle();
    cluster.node("node-2", amount(8_000, 8 * GI));
    cluster.moment.silent.insert(node.clone());
    cluster.settle();
    cluster.moment.now_ms += 100 * LOSE_AFTER_MS;
    assert!(cluster.pass().is_empty());
    cluster.remove(Kind::Node, None, node.as_str());
    cluster.settle();
    assert_eq!(cluster.running_of_generation(1), 1, "but it is when its node is removed");
}

#[test]
fn a_pending_unit_that_is_stopped_ends_at_once() {
    let mut cluster = Cluster::new();
    let stopped = cluster.unit("a", wasm(amount(1, MI)));
    let deleted = cluster.unit("b", wasm(amount(1, MI)));
    cluster.pass();
    cluster.change_unit(&stopped, |unit| unit.desired = Desired::Stop);
    cluster.change_unit(&deleted, |unit| unit.desired = Desired::Remove);
    cluster.settle();
    assert_eq!(cluster.listing(), ["a stopped -"]);
}

#[test]
fn a_unit_that_removes_itself_stays_listed_for_a_time() {
    let mut cluster = Cluster::new();
    cluster.node("node-1", amount(8_000, 8 * GI));
    let id = cluster.unit("a", wasm(amount(1, MI)));
    cluster.change_unit(&id, |unit| unit.remove_when_done = true);
    cluster.pass();
    cluster.report(&id, UnitState::Succeeded);
    let plan = cluster.pass();
    assert!(plan.is_empty());
    assert_eq!(plan.wake_at_ms, Some(cluster.moment.now_ms + REMOVE_DONE_AFTER_MS));
    cluster.settle();
    assert_eq!(cluster.model.unit_count(), 0);
}

#[test]
fn a_unit_that_ended_stays_listed_until_it_is_deleted() {
    let mut cluster = Cluster::new();
    cluster.node("node-1", amount(8_000, 8 * GI));
    let id = cluster.unit("a", wasm(amount(1, MI)));
    cluster.pass();
    cluster.report(&id, UnitState::Failed);
    cluster.settle();
    assert_eq!(cluster.listing(), ["a failed node-1"]);
    cluster.change_unit(&id, |unit| unit.desired = Desired::Remove);
    cluster.settle();
    assert_eq!(cluster.model.unit_count(), 0);
}
