//! Services: replicas, scaling, rolling changes, replacement, deletion.

use super::*;

fn web(replicas: u32) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.node("node-1", amount(8_000, 8 * GI));
    cluster.service("web", replicas, wasm(amount(1_000, GI)));
    cluster.settle();
    cluster
}

fn running(cluster: &Cluster) -> usize {
    cluster.count(|unit| unit.status.state == UnitState::Running)
}

#[test]
fn a_service_gets_its_replicas_with_its_labels_and_unique_names() {
    let cluster = web(3);
    assert_eq!(running(&cluster), 3);
    let names: BTreeSet<_> = cluster.model.units().map(|unit| &unit.name).collect();
    assert_eq!(names.len(), 3);
    for unit in cluster.model.units() {
        assert!(unit.name.as_str().starts_with("web-"));
        assert_eq!(unit.labels["app"], "web");
    }
}

#[test]
fn a_settled_service_needs_no_plan() {
    let mut cluster = web(3);
    let plan = cluster.pass();
    assert!(plan.is_empty() && plan.wake_at_ms.is_none() && plan.explanations.is_empty());
}

#[test]
fn scaling_down_takes_the_newest_and_those_without_a_node_first() {
    let mut cluster = web(3);
    let first: BTreeSet<_> = cluster.model.units().map(|unit| unit.id.clone()).collect();
    cluster.moment.now_ms += 1;
    cluster.change_service("web", |service| service.spec.replicas = 10);
    cluster.settle();
    assert_eq!(running(&cluster), 8, "the node has room for eight");
    assert_eq!(cluster.count(|unit| unit.status.state == UnitState::Pending), 2);
    cluster.change_service("web", |service| service.spec.replicas = 8);
    cluster.pass();
    assert_eq!(cluster.count(|unit| unit.desired == Desired::Run), 8);
    assert!(
        cluster
            .model
            .units()
            .all(|unit| unit.desired == Desired::Run || unit.status.state == UnitState::Stopped)
    );
    cluster.change_service("web", |service| service.spec.replicas = 3);
    cluster.settle();
    assert_eq!(cluster.model.units().map(|unit| unit.id.clone()).collect::<BTreeSet<_>>(), first);
}

#[test]
fn a_change_of_generation_never_runs_fewer_than_wanted_where_there_is_room() {
    let mut cluster = web(3);
    cluster.change_service("web", |service| service.generation = 2);
    for _ in 0..50 {
        cluster.pass();
        assert!(running(&cluster) >= 3);
        assert!(cluster.count(|unit| unit.desired == Desired::Run) <= 4, "one more at most");
        cluster.nodes_work();
        assert!(cluster.running_of_generation(1) + cluster.running_of_generation(2) >= 3);
    }
    assert_eq!(cluster.running_of_generation(2), 3);
    assert_eq!(cluster.model.unit_count(), 3);
}

#[test]
fn a_change_of_generation_makes_way_where_there_is_no_room() {
    let mut cluster = web(8);
    cluster.change_service("web", |service| service.generation = 2);
    let mut least = 8;
    for _ in 0..100 {
        cluster.pass();
        cluster.nodes_work();
        least = least.min(running(&cluster));
    }
    assert_eq!(least, 7, "one less than wanted, never fewer");
    assert_eq!(cluster.running_of_generation(2), 8);
    assert_eq!(cluster.model.unit_count(), 8);
}

#[test]
fn a_service_with_a_port_of_its_own_is_changed_on_a_single_node() {
    let mut cluster = Cluster::new();
    cluster.node("node-1", amount(8_000, 8 * GI));
    cluster.service("db", 1, oci(amount(1_000, GI), &[5432]));
    cluster.settle();
    cluster.change_service("db", |service| service.generation = 2);
    cluster.settle();
    assert_eq!(cluster.running_of_generation(2), 1);
}

#[test]
fn a_change_that_can_never_be_placed_stops_nothing() {
    let mut cluster = web(3);
    cluster.change_service("web", |service| {
        service.generation = 2;
        service.spec.unit = wasm(amount(1_000, 64 * GI));
    });
    cluster.settle();
    assert_eq!(cluster.running_of_generation(1), 3);
    assert_eq!(cluster.count(|unit| unit.status.state == UnitState::Pending), 1);
}

#[test]
fn a_change_of_a_generation_that_never_ran_replaces_it_at_once() {
    let mut cluster = Cluster::new();
    cluster.service("web", 3, wasm(amount(1_000, GI)));
    cluster.pass();
    cluster.change_service("web", |service| service.generation = 2);
    cluster.node("node-1", amount(8_000, 8 * GI));
    cluster.settle();
    assert_eq!(cluster.running_of_generation(2), 3);
    assert_eq!(cluster.model.unit_count(), 3);
}

#[test]
fn scaling_and_changing_at_once_comes_to_rest() {
    for (before, after) in [(3, 1), (1, 5), (3, 0), (0, 2)] {
        let mut cluster = web(before);
        cluster.change_service("web", |service| {
            service.generation = 2;
            service.spec.replicas = after;
        });
        cluster.settle();
        let after = usize::try_from(after).unwrap();
        assert_eq!((cluster.running_of_generation(2), cluster.model.unit_count()), (after, after));
    }
}

#[test]
fn a_unit_that_a_user_stops_is_replaced() {
    let mut cluster = web(2);
    let id = cluster.model.units().next().unwrap().id.clone();
    cluster.change_unit(&id, |unit| unit.desired = Desired::Stop);
    cluster.settle();
    assert_eq!((running(&cluster), cluster.model.unit_count()), (2, 2));
    assert!(cluster.model.unit(&id).is_none());
}

#[test]
fn a_unit_that_fails_at_once_is_replaced_with_pauses() {
    let mut cluster = web(1);
    cluster.endings.insert("web-".to_owned(), UnitState::Failed);
    let start_ms = cluster.moment.now_ms;
    let mut seen = BTreeSet::new();
    for _ in 0..200 {
        let plan = cluster.pass();
        seen.extend(cluster.model.units().map(|unit| unit.id.clone()));
        if !cluster.nodes_work() && plan.is_empty() {
            cluster.moment.now_ms = plan.wake_at_ms.expect("it is to be replaced later");
        }
    }
    let seconds = usize::try_from((cluster.moment.now_ms - start_ms) / 1_000).unwrap();
    assert!(seen.len() > 3 && seen.len() <= 2 + seconds / 10, "{} in {seconds} s", seen.len());
}

#[test]
fn a_deleted_service_goes_with_its_last_unit() {
    let mut cluster = web(2);
    cluster.change_service("web", |service| service.is_deleting = true);
    cluster.pass();
    assert_eq!(cluster.count(|unit| unit.desired == Desired::Remove), 2);
    assert!(cluster.model.services().count() > 0);
    cluster.settle();
    assert_eq!(cluster.model.unit_count(), 0);
    assert_eq!(cluster.model.services().count(), 0);
}

#[test]
fn units_of_a_service_that_is_gone_are_removed() {
    let mut cluster = web(2);
    cluster.remove(Kind::Service, Some("default"), "web");
    cluster.settle();
    assert_eq!(cluster.model.unit_count(), 0);
}
