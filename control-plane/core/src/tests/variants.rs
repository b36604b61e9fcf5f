//! Units that offer their program in several variants.

use expect_test::{Expect, expect};

use super::*;

const BOTH: &[Runtime] = &[Runtime::Wasm, Runtime::Oci];

fn web(first: Runtime) -> UnitTemplate {
    let request = || amount(1_000, GI);
    let (wasm, oci) = (http(request(), 8080), oci(request(), &[8080]));
    match first {
        Runtime::Wasm => variants(&[wasm, oci]),
        Runtime::Oci => variants(&[oci, wasm]),
    }
}

fn node(cluster: &mut Cluster, text: &str, runtimes: &[Runtime]) {
    cluster.node_like(text, amount(8_000, 8 * GI), runtimes, &[("name", text)]);
}

/// Where it is, and what it runs there.
fn placed<'c>(cluster: &'c Cluster, id: &UnitId) -> Option<(&'c str, Vec<Runtime>)> {
    let unit = cluster.model.unit(id).unwrap();
    Some((unit.node.as_ref()?.as_str(), unit.grants.runtimes.into()))
}

fn at(node: &str, unit: UnitTemplate) -> UnitTemplate {
    UnitTemplate { constraints: vec![requires("name", Operator::Equal, &[node])], ..unit }
}

#[test]
fn a_node_gets_the_first_variant_that_it_can_run() {
    for first in [Runtime::Wasm, Runtime::Oci] {
        let mut cluster = Cluster::new();
        node(&mut cluster, "both", BOTH);
        node(&mut cluster, "none", &[]);
        node(&mut cluster, "oci", &[Runtime::Oci]);
        node(&mut cluster, "wasm", &[Runtime::Wasm]);
        let nodes = ["both", "none", "oci", "wasm"];
        let ids = nodes.map(|node| cluster.unit(node, at(node, web(first))));
        cluster.pass();
        let got = ids.each_ref().map(|id| placed(&cluster, id));
        let expected = [
            Some(("both", vec![first])),
            None,
            Some(("oci", vec![Runtime::Oci])),
            Some(("wasm", vec![Runtime::Wasm])),
        ];
        assert_eq!(got, expected, "{first:?} is preferred");
    }
}

#[test]
fn a_unit_without_a_choice_is_granted_none() {
    let mut cluster = Cluster::new();
    node(&mut cluster, "a", BOTH);
    let id = cluster.unit("u", oci(amount(1_000, GI), &[]));
    cluster.pass();
    assert_eq!(placed(&cluster, &id), Some(("a", vec![])));
}

#[test]
fn every_task_must_have_a_variant_for_the_node() {
    let mut cluster = Cluster::new();
    node(&mut cluster, "a", &[Runtime::Oci]);
    node(&mut cluster, "b", &[Runtime::Wasm]);
    node(&mut cluster, "c", BOTH);
    let mut unit = web(Runtime::Oci);
    let mut second = wasm(amount(100, MI)).tasks.remove(0);
    second.name = name("second");
    unit.tasks.push(second);
    let ids = ["a", "b", "c"].map(|node| cluster.unit(node, at(node, unit.clone())));
    cluster.pass();
    let got = ids.each_ref().map(|id| placed(&cluster, id));
    let (wasm, oci) = (Runtime::Wasm, Runtime::Oci);
    assert_eq!(got, [None, Some(("b", vec![wasm, wasm])), Some(("c", vec![oci, wasm]))]);
}

#[test]
fn ports_are_counted_as_the_variant_that_runs_there_has_them() {
    let mut cluster = Cluster::new();
    node(&mut cluster, "a", &[Runtime::Wasm]);
    node(&mut cluster, "b", &[Runtime::Oci]);
    cluster.service("web", 10, web(Runtime::Wasm));
    cluster.settle();
    let on = |cluster: &Cluster, node: &str| {
        let units = cluster.model.units();
        units.filter(|unit| unit.node.as_ref().is_some_and(|n| n.as_str() == node)).count()
    };
    assert_eq!(
        (on(&cluster, "a"), on(&cluster, "b")),
        (8, 1),
        "a port of containers is not shared"
    );
}

#[test]
fn open_ports_are_chosen_for_the_variant_that_has_them() {
    let mut cluster = Cluster::new();
    node(&mut cluster, "a", &[Runtime::Wasm]);
    node(&mut cluster, "b", &[Runtime::Oci]);
    let unit = variants(&[wasm(amount(100, MI)), oci(amount(100, MI), &[0, 0])]);
    let ids = ["a", "b"].map(|node| cluster.unit(node, at(node, unit.clone())));
    cluster.pass();
    let ports = ids.each_ref().map(|id| cluster.model.unit(id).unwrap().grants.ports.len());
    assert_eq!(ports, [0, 2]);
}

#[test]
fn what_was_chosen_stays_when_the_node_learns_another_runtime() {
    let mut cluster = Cluster::new();
    node(&mut cluster, "a", &[Runtime::Wasm]);
    let first = cluster.unit("first", web(Runtime::Oci));
    cluster.pass();
    assert_eq!(placed(&cluster, &first), Some(("a", vec![Runtime::Wasm])));
    node(&mut cluster, "a", BOTH);
    cluster.pass();
    assert_eq!(placed(&cluster, &first), Some(("a", vec![Runtime::Wasm])), "it runs on");
    let second = cluster.unit("second", web(Runtime::Oci));
    cluster.pass();
    assert_eq!(placed(&cluster, &second), None, "the first has the port");
    cluster.report(&first, UnitState::Succeeded);
    cluster.pass();
    assert_eq!(
        placed(&cluster, &second),
        Some(("a", vec![Runtime::Oci])),
        "new ones go by what it has"
    );
}

#[test]
fn a_node_is_a_home_to_the_variant_that_it_would_run() {
    let oci_alone = || oci(amount(1_000, GI), &[]);
    let wasm_alone = || wasm(amount(1_000, GI));
    let choice = || variants(&[wasm_alone(), oci_alone()]);
    let home_of_image = |runtimes: &[Runtime]| {
        let mut cluster = Cluster::new();
        node(&mut cluster, "a", runtimes);
        node(&mut cluster, "b", runtimes);
        // Both are as full, and b has the image.
        let mut other = wasm_alone();
        let program = OciProgram { image: "other:1".to_owned(), ..OciProgram::default() };
        other.tasks[0].variants = Program::Oci(program).into();
        cluster.unit("other", at("a", other));
        cluster.unit("first", at("b", oci_alone()));
        cluster.pass();
        let id = cluster.unit("u", choice());
        cluster.pass();
        placed(&cluster, &id).unwrap().0.to_owned()
    };
    assert_eq!(home_of_image(&[Runtime::Oci]), "b", "it would run the image");
    assert_eq!(home_of_image(BOTH), "a", "the module is on neither, and ties go to the first name");
}

fn check(cluster: &mut Cluster, expected: &Expect) {
    let plan = cluster.pass();
    let told: Vec<_> = plan.explanations.iter().map(|told| told.render(&name("u"))).collect();
    expected.assert_eq(&told.join("\n"));
}

#[test]
fn why_tells_what_was_chosen_and_what_no_node_can_run() {
    let mut cluster = Cluster::new();
    node(&mut cluster, "a", &[]);
    let id = cluster.unit("u", web(Runtime::Wasm));
    check(
        &mut cluster,
        &expect![[r#"
        u waits: the only node is unable to run wasm or oci: change the unit, or add a node that fits; enough would be a node that can run wasm or oci.
        Turned down, of 1 node:
          runtime        1  can't run wasm or oci (a)
    "#]],
    );
    node(&mut cluster, "b", &[Runtime::Oci]);
    let on = |cluster: &mut Cluster, node: &str| {
        let node = NodeName::new(node).unwrap();
        crate::why_on(&mut cluster.model, &cluster.moment, &id, &node).unwrap().render(&name("u"))
    };
    let both = on(&mut cluster, "a") + &on(&mut cluster, "b");
    expect![[r#"
        u can't go to a:
          runtime     can't run wasm or oci
        u fits on b, as oci.
          score  1500 = bin-packing 125 x 4 + balance 1000 x 1
    "#]]
    .assert_eq(&both);
    check(
        &mut cluster,
        &expect![[r#"
        u was placed on b by plan 2, as oci.
          score  1500 = bin-packing 125 x 4 + balance 1000 x 1
          next   no other node could take it
        Turned down, of 2 nodes:
          runtime        1
    "#]],
    );
}
