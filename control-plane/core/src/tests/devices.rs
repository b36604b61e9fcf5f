//! Devices and ports that a placement hands out.

use brig_api::Milli;
use brig_api::placement::DYNAMIC_PORTS;

use super::*;

fn gpus(milli: u64) -> Resources {
    let scalars = BTreeMap::from([("gpu".to_owned(), Milli(milli))]);
    Resources { scalars, ..amount(100, MI) }
}

fn cluster_with(count: u64) -> Cluster {
    let mut cluster = Cluster::new();
    let scalars = gpus(count * 1_000).scalars;
    cluster.node("a", Resources { scalars, ..amount(8_000, 8 * GI) });
    cluster
}

fn devices(cluster: &Cluster, id: &UnitId) -> Option<Vec<u32>> {
    cluster.model.unit(id).unwrap().grants.devices.get("gpu").cloned()
}

#[test]
fn halves_share_a_device_and_larger_parts_do_not() {
    let mut cluster = cluster_with(2);
    let mut place = |text: &str, milli| {
        let id = cluster.unit(text, wasm(gpus(milli)));
        cluster.pass();
        devices(&cluster, &id)
    };
    assert_eq!(place("half-1", 500), Some(vec![0]));
    assert_eq!(place("half-2", 500), Some(vec![0]));
    assert_eq!(place("large-1", 600), Some(vec![1]));
    assert_eq!(place("large-2", 600), None, "there is 0.4 of one left");
    assert_eq!(place("rest", 400), Some(vec![1]));
}

#[test]
fn whole_devices_are_taken_whole_and_come_back() {
    let mut cluster = cluster_with(3);
    let part = cluster.unit("part", wasm(gpus(100)));
    cluster.pass();
    let two = cluster.unit("two", wasm(gpus(2_000)));
    let one = cluster.unit("one", wasm(gpus(1_000)));
    let plan = cluster.pass();
    assert_eq!(devices(&cluster, &two), Some(vec![1, 2]));
    assert_eq!(devices(&cluster, &one), None, "0.9 of one is no whole one");
    let refused = plan.explanations.iter().find(|e| e.unit == one).unwrap();
    assert!(refused.render(&name("one")).contains("gpu"), "{refused:?}");
    cluster.report(&part, UnitState::Succeeded);
    cluster.pass();
    assert_eq!(devices(&cluster, &one), Some(vec![0]));
}

#[test]
fn a_model_is_an_attribute() {
    let mut cluster = Cluster::new();
    for (text, model) in [("old", "v100"), ("new", "a100")] {
        let scalars = gpus(1_000).scalars;
        let capacity = Resources { scalars, ..amount(8_000, 8 * GI) };
        cluster.node_like(text, capacity, &[Runtime::Wasm], &[("gpu-model", model)]);
    }
    let constraints = vec![requires("gpu-model", Operator::Equal, &["a100"])];
    let unit = UnitTemplate { constraints, ..wasm(gpus(1_000)) };
    let first = cluster.unit("u1", unit.clone());
    let second = cluster.unit("u2", unit);
    let plan = cluster.pass();
    assert_eq!(node_of(&cluster, &first).as_deref(), Some("new"));
    let refused = plan.explanations.iter().find(|e| e.unit == second).unwrap();
    let text = refused.render(&name("u2"));
    assert!(text.contains("or to drop `gpu-model = a100`"), "{text}");
}

#[test]
fn open_ports_are_given_out_each_once() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(8_000, 8 * GI));
    let ids: Vec<_> = (0..3)
        .map(|index| cluster.unit(&format!("u{index}"), oci(amount(100, MI), &[0, 80 + index, 0])))
        .collect();
    cluster.pass();
    let ports: Vec<_> =
        ids.iter().flat_map(|id| cluster.model.unit(id).unwrap().grants.ports.clone()).collect();
    assert_eq!(ports.len(), 6);
    assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 6);
    assert!(ports.iter().all(|port| (DYNAMIC_PORTS.0..=DYNAMIC_PORTS.1).contains(port)));
    cluster.report(&ids[0], UnitState::Succeeded);
    let next = cluster.unit("next", oci(amount(100, MI), &[0]));
    cluster.pass();
    assert_eq!(cluster.model.unit(&next).unwrap().grants.ports, [DYNAMIC_PORTS.0]);
}

#[test]
fn what_needs_no_device_stays_off_nodes_that_have_some_while_there_are_others() {
    let mut cluster = cluster_with(1);
    // Much fuller, so that fullness alone would choose it.
    cluster.unit("filler", wasm(Resources { scalars: gpus(100).scalars, ..amount(6_000, 6 * GI) }));
    cluster.node("b", amount(2_000, 2 * GI));
    cluster.pass();
    let plain: Vec<_> =
        ["u1", "u2", "u3"].map(|text| cluster.unit(text, wasm(amount(1_000, MI)))).into();
    let plan = cluster.pass();
    let nodes: Vec<_> = plain.iter().map(|id| node_of(&cluster, id).unwrap()).collect();
    assert_eq!(nodes, ["b", "b", "a"], "the last has no other place");
    let first = plan.explanations.iter().find(|e| e.unit == plain[0]).unwrap();
    assert!(first.render(&name("u1")).contains("spare-devices 1000 x 4"), "{first:?}");
}
