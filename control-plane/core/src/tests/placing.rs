//! Where pending units go.

use super::*;

fn node_of<'c>(cluster: &'c Cluster, id: &UnitId) -> Option<&'c str> {
    cluster.model.unit(id).unwrap().node.as_ref().map(NodeName::as_str)
}

#[test]
fn units_are_packed_and_ties_go_to_the_first_name() {
    let mut cluster = Cluster::new();
    for text in ["c", "a", "b"] {
        cluster.node(text, amount(4_000, 4 * GI));
    }
    let ids: Vec<_> =
        (0..6).map(|i| cluster.unit(&format!("u{i}"), wasm(amount(1_000, GI)))).collect();
    cluster.pass();
    let nodes: Vec<_> = ids.iter().map(|id| node_of(&cluster, id).unwrap()).collect();
    assert_eq!(nodes, ["a", "a", "a", "a", "b", "b"]);
}

#[test]
fn the_smaller_node_is_filled_first() {
    let mut cluster = Cluster::new();
    cluster.node("large", amount(64_000, 64 * GI));
    cluster.node("small", amount(2_000, 2 * GI));
    let id = cluster.unit("u", wasm(amount(1_000, GI)));
    cluster.pass();
    assert_eq!(node_of(&cluster, &id), Some("small"));
}

#[test]
fn higher_priority_goes_first_and_then_age() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(2_000, 2 * GI));
    let old = cluster.unit("old", wasm(amount(1_000, GI)));
    cluster.moment.now_ms += 1;
    let young = cluster.unit("young", wasm(amount(1_000, GI)));
    let high = cluster.unit("high", UnitTemplate { priority: 1, ..wasm(amount(1_000, GI)) });
    cluster.pass();
    assert_eq!([&old, &young, &high].map(|id| node_of(&cluster, id)), [Some("a"), None, Some("a")]);
}

#[test]
fn a_unit_that_fits_nowhere_holds_up_nobody() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(2_000, 2 * GI));
    cluster.unit("giant", wasm(amount(64_000, GI)));
    let id = cluster.unit("u", wasm(amount(1_000, GI)));
    cluster.pass();
    assert_eq!(node_of(&cluster, &id), Some("a"));
}

#[test]
fn a_refusal_is_told_once() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(2_000, 2 * GI));
    let id = cluster.unit("giant", wasm(amount(64_000, GI)));
    let plan = cluster.pass();
    assert_eq!(refusals(&plan).len(), 1);
    assert_eq!(refusals(&plan)[0].0, &id);
    assert_eq!(plan.explanations.len(), 1);
    let plan = cluster.pass();
    assert!(plan.is_empty() && plan.explanations.is_empty());
}

#[test]
fn a_runtime_that_a_node_lacks_keeps_units_off_it() {
    let mut cluster = Cluster::new();
    cluster.node_like("a", amount(8_000, 8 * GI), &[Runtime::Wasm], &[]);
    cluster.node_like("b", amount(8_000, 8 * GI), &[Runtime::Oci, Runtime::Wasm], &[]);
    let id = cluster.unit("u", oci(amount(1_000, GI), &[]));
    cluster.pass();
    assert_eq!(node_of(&cluster, &id), Some("b"));
}

#[test]
fn constraints_on_attributes_hold() {
    let mut cluster = Cluster::new();
    for (text, zone) in [("a", "x"), ("b", "y"), ("c", "z")] {
        cluster.node_like(text, amount(8_000, 8 * GI), &[Runtime::Wasm], &[("zone", zone)]);
    }
    let mut place = |text: &str, constraint| {
        let unit = UnitTemplate { constraints: vec![constraint], ..wasm(amount(100, MI)) };
        let id = cluster.unit(text, unit);
        cluster.pass();
        node_of(&cluster, &id).map(str::to_owned)
    };
    let equal = requires("zone", Operator::Equal, &["y"]);
    assert_eq!(place("u1", equal).as_deref(), Some("b"));
    let not_in = requires("zone", Operator::NotIn, &["x", "y"]);
    assert_eq!(place("u2", not_in).as_deref(), Some("c"));
    assert_eq!(place("u3", requires("gpu", Operator::Exists, &[])), None);
}

#[test]
fn a_port_is_shared_within_a_service_and_with_nobody_else() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(8_000, 8 * GI));
    cluster.service("web", 3, http(amount(100, MI), 8080));
    cluster.settle();
    assert_eq!(cluster.running_of_generation(1), 3);
    let lone = cluster.unit("lone", http(amount(100, MI), 8080));
    cluster.service("other", 1, http(amount(100, MI), 8080));
    cluster.settle();
    assert_eq!(node_of(&cluster, &lone), None);
    assert_eq!(cluster.running_of_generation(1), 3);
    let container = cluster.unit("container", oci(amount(100, MI), &[8081]));
    cluster.settle();
    assert_eq!(node_of(&cluster, &container), Some("a"));
}

#[test]
fn two_units_with_the_same_port_go_to_two_nodes() {
    let mut cluster = Cluster::new();
    for text in ["a", "b"] {
        cluster.node(text, amount(8_000, 8 * GI));
    }
    cluster.service("db", 3, oci(amount(100, MI), &[5432]));
    cluster.settle();
    let nodes: Vec<_> = cluster.model.units().filter_map(|unit| unit.node.as_ref()).collect();
    assert_eq!(nodes.len(), 2);
    assert_ne!(nodes[0], nodes[1]);
}

#[test]
fn scalars_are_counted() {
    let mut cluster = Cluster::new();
    let gpus = |count: u64| Resources {
        scalars: BTreeMap::from([("gpu".to_owned(), brig_api::Milli(count * 1_000))]),
        ..amount(100, MI)
    };
    cluster.node("a", amount(8_000, 8 * GI));
    cluster.node("b", Resources { scalars: gpus(3).scalars, ..amount(8_000, 8 * GI) });
    let ids: Vec<_> = (0..3).map(|i| cluster.unit(&format!("u{i}"), wasm(gpus(2)))).collect();
    cluster.pass();
    let nodes: Vec<_> = ids.iter().map(|id| node_of(&cluster, id)).collect();
    assert_eq!(nodes, [Some("b"), None, None]);
}

#[test]
fn quotas_hold_up_the_tree_of_namespaces() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(64_000, 64 * GI));
    cluster.namespace("team", Some(amount(3_000, 0)));
    cluster.namespace("team/dev", Some(amount(2_000, 0)));
    let mut place = |path: &str, text: &str| {
        let id = cluster.unit_in(path, text, wasm(amount(1_000, GI)));
        let plan = cluster.pass();
        match refusals(&plan).as_slice() {
            [] => Ok(node_of(&cluster, &id).unwrap().to_owned()),
            [(_, reason, message), ..] => Err((*reason, (*message).to_owned())),
        }
    };
    assert!(place("team/dev", "u1").is_ok() && place("team/dev", "u2").is_ok());
    let (reason, message) = place("team/dev", "u3").unwrap_err();
    assert_eq!(reason, Reason::QuotaExceeded);
    assert!(message.contains("`team/dev`"), "{message}");
    assert!(place("team/ops", "u1").is_ok());
    let (_, message) = place("team/ops", "u2").unwrap_err();
    assert!(message.contains("namespace `team` "), "{message}");
    assert!(place("other", "u1").is_ok());
}

#[test]
fn a_preview_says_what_would_happen_and_changes_nothing() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(8_000, 8 * GI));
    cluster.service("web", 2, wasm(amount(100, MI)));
    let mut other = Cluster::new();
    other.service("web", 5, wasm(amount(100, MI)));
    let changed = other.model.service(&namespace("default"), &name("web")).unwrap().clone();
    let before = cluster.model.clone();
    let plan = crate::preview(&cluster.model, &cluster.moment, [Object::Service(changed)]);
    let placed = plan.decisions.iter().filter(|d| matches!(d, Decision::UnitPlace { .. })).count();
    assert_eq!(placed, 5);
    assert_eq!(cluster.model, before);
}

#[test]
fn why_speaks_of_waiting_units_only() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(2_000, 2 * GI));
    let waits = cluster.unit("giant", wasm(amount(64_000, GI)));
    let runs = cluster.unit("u", wasm(amount(1_000, GI)));
    cluster.pass();
    let mut why = |id| crate::why(&mut cluster.model, &cluster.moment, id);
    assert!(why(&waits).is_some() && why(&runs).is_none());
}

#[test]
fn a_neighbour_that_is_placed_helps_those_who_waited_for_it() {
    let mut cluster = Cluster::new();
    cluster.is_stuck = true;
    cluster.node("a", amount(8_000, 8 * GI));
    let labels = Labels::from([("app".to_owned(), "db".to_owned())]);
    let mut near = wasm(amount(100, MI));
    near.placement.near = vec![brig_api::placement::Neighbours {
        units: labels.clone(),
        over: "node".to_owned(),
        within: None,
        weight: None,
    }];
    let waits = cluster.unit("u", near);
    cluster.pass();
    assert_eq!(node_of(&cluster, &waits), None);
    let neighbour = cluster.unit("db", wasm(amount(100, MI)));
    cluster.change_unit(&neighbour, |unit| unit.labels = Arc::new(labels));
    cluster.pass();
    cluster.pass();
    assert_eq!(node_of(&cluster, &waits), Some("a"));
}
