//! Who has to go for whom.

use super::*;

fn sized(cores: u64, priority: i32) -> UnitTemplate {
    UnitTemplate { priority, ..wasm(amount(cores * 1_000, MI)) }
}

/// A node of four cores with these units on it, one after the other, each of one core.
fn full_node(priorities: &[i32]) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(4_000, 8 * GI));
    for (index, priority) in priorities.iter().enumerate() {
        cluster.unit(&format!("u{index}"), sized(1, *priority));
        cluster.moment.now_ms += 10;
        cluster.pass();
        cluster.nodes_work();
    }
    cluster
}

fn preempted(names: &[&str]) -> Vec<(String, Reason)> {
    names.iter().map(|name| ((*name).to_owned(), Reason::Preempted)).collect()
}

#[test]
fn the_lowest_priority_goes_and_of_equals_the_youngest() {
    let mut cluster = full_node(&[0, -1, -1, 5]);
    let high = cluster.unit("high", sized(1, 10));
    let plan = cluster.pass();
    assert_eq!(stops(&cluster, &plan), preempted(&["u2"]));
    let unit = cluster.model.unit(&high).unwrap();
    assert_eq!(unit.promised.as_ref().map(NodeName::as_str), Some("a"));
    assert_eq!(unit.status.reason, Some(Reason::RoomPromised));
    cluster.settle();
    assert_eq!(node_of(&cluster, &high).as_deref(), Some("a"));
    assert_eq!(cluster.count(|unit| unit.status.state == UnitState::Running), 4);
}

#[test]
fn nobody_goes_for_a_unit_of_equal_priority() {
    let mut cluster = full_node(&[0, 0, 0, 0]);
    cluster.unit("equal", sized(1, 0));
    let plan = cluster.pass();
    assert_eq!(stops(&cluster, &plan), []);
    assert_eq!(refusals(&plan)[0].1, Reason::Unschedulable);
}

#[test]
fn the_node_where_fewest_go_is_taken() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(2_000, 8 * GI));
    cluster.node("b", amount(2_000, 8 * GI));
    for (text, cores) in [("small-1", 1), ("small-2", 1), ("large", 2)] {
        cluster.unit(text, sized(cores, 0));
        cluster.pass();
        cluster.nodes_work();
    }
    cluster.unit("high", sized(2, 1));
    let plan = cluster.pass();
    assert_eq!(stops(&cluster, &plan), preempted(&["large"]));
}

#[test]
fn only_as_many_go_as_have_to() {
    let mut cluster = full_node(&[1, 2, 3, 4]);
    cluster.unit("high", sized(2, 10));
    let plan = cluster.pass();
    assert_eq!(stops(&cluster, &plan), preempted(&["u0", "u1"]));
}

#[test]
fn a_service_keeps_what_max_unavailable_leaves_it() {
    for (max_unavailable, expected) in [(0, 0), (1, 1), (2, 2)] {
        let mut cluster = Cluster::new();
        cluster.node("a", amount(4_000, 8 * GI));
        cluster.service("web", 4, sized(1, 0));
        cluster.change_service("web", |service| service.spec.max_unavailable = max_unavailable);
        cluster.settle();
        for index in 0..3 {
            cluster.unit(&format!("high-{index}"), sized(1, 10));
        }
        let plan = cluster.pass();
        assert_eq!(stops(&cluster, &plan).len(), expected, "{max_unavailable}");
        cluster.settle();
        let serving =
            cluster.count(|unit| unit.owner.is_some() && unit.status.state == UnitState::Running);
        assert_eq!(serving, 4 - expected, "and no more later");
    }
}

#[test]
fn revocable_units_make_way_for_everybody_else_and_for_none_of_their_own() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(2_000, 8 * GI));
    let revocable = |priority| UnitTemplate { revocable: true, ..sized(1, priority) };
    cluster.unit("slack-1", revocable(900));
    cluster.unit("slack-2", revocable(0));
    cluster.pass();
    cluster.nodes_work();
    cluster.unit("slack-3", revocable(1_000));
    assert_eq!(stops(&cluster.clone(), &cluster.pass()), []);
    cluster.unit("plain", sized(1, -500));
    let plan = cluster.pass();
    assert_eq!(stops(&cluster, &plan).len(), 1);
}

#[test]
fn promised_room_is_kept_while_the_others_leave() {
    let mut cluster = full_node(&[0, 0, 0, 0]);
    let high = cluster.unit("high", sized(1, 10));
    cluster.pass();
    // They take their time; meanwhile others want the room, some with as high a priority.
    let late = cluster.unit("late", sized(1, 10));
    let low = cluster.unit("low", sized(1, 0));
    let plan = cluster.pass();
    assert_eq!(stops(&cluster, &plan).len(), 1, "another one for the second, none for the last");
    let plan = cluster.pass();
    assert_eq!(stops(&cluster, &plan), [], "nothing more while they leave");
    cluster.settle();
    assert!(node_of(&cluster, &high).is_some() && node_of(&cluster, &late).is_some());
    assert_eq!(node_of(&cluster, &low), None);
}

#[test]
fn a_preempted_attempt_at_a_job_uses_up_no_retry() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(1_000, 8 * GI));
    cluster.job("report", (1, 1, 0), sized(1, 0));
    cluster.pass();
    cluster.nodes_work();
    let high = cluster.unit("high", sized(1, 10));
    cluster.pass();
    cluster.nodes_work();
    cluster.pass();
    cluster.report(&high, UnitState::Succeeded);
    cluster.endings.insert("report-0-r1".to_owned(), UnitState::Succeeded);
    cluster.settle();
    assert_eq!(cluster.job_named("report").state, JobState::Succeeded);
}

#[test]
fn a_unit_that_has_a_port_in_the_way_makes_room_too() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(4_000, 8 * GI));
    cluster.unit("low", oci(amount(100, MI), &[80]));
    cluster.pass();
    cluster.nodes_work();
    let high = UnitTemplate { priority: 1, ..oci(amount(100, MI), &[80]) };
    cluster.unit("high", high);
    let plan = cluster.pass();
    assert_eq!(stops(&cluster, &plan), preempted(&["low"]));
}
