//! What people read about waiting and placed units, word for word.

use expect_test::{Expect, expect};

use super::*;

/// The status of the unit `u`, and what `brig why` prints.
fn check(cluster: &mut Cluster, expected: &Expect) {
    let plan = cluster.pass();
    let id = cluster.model.units().find(|unit| unit.name == name("u")).unwrap().id.clone();
    let explanation = plan.explanations.iter().find(|e| e.unit == id).unwrap();
    let status = refusals(&plan).iter().find(|(unit, ..)| **unit == id).map_or_else(
        || "placed".to_owned(),
        |(_, reason, message)| format!("{}: {message}", reason.as_str()),
    );
    expected.assert_eq(&format!("{status}\n\n{}", explanation.render(&name("u"))));
}

#[test]
fn there_are_no_nodes() {
    let mut cluster = Cluster::new();
    cluster.unit("u", wasm(amount(1_000, GI)));
    check(
        &mut cluster,
        &expect![[r#"
        Unschedulable: the cluster has no nodes: start one with `brig node`

        u waits: the cluster has no nodes: start one with `brig node`.
    "#]],
    );
}

#[test]
fn it_is_larger_than_any_node() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(8_000, 8 * GI));
    cluster.node("b", amount(4_000, 32 * GI + 12_345));
    cluster.unit("u", wasm(amount(1_000, 64 * GI)));
    check(
        &mut cluster,
        &expect![[r#"
            Unschedulable: it asks for 64Gi of memory, but the largest node (`b`) has 32.0Gi: ask for less, or add a larger node

            u waits: it asks for 64Gi of memory, but the largest node (`b`) has 32.0Gi: ask for less, or add a larger node.
            Turned down, of 2 nodes:
              resources      2  memory: wanted 64Gi, 32.0Gi free (b)
        "#]],
    );
}

#[test]
fn it_is_larger_than_any_node_in_two_ways() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(2_000, 64 * GI));
    cluster.node("b", amount(64_000, 2 * GI));
    cluster.unit("u", wasm(amount(8_000, 8 * GI)));
    check(
        &mut cluster,
        &expect![[r#"
            Unschedulable: it asks for 8 of cpu and 8Gi of memory, which no single node has together: ask for less, or add a larger node

            u waits: it asks for 8 of cpu and 8Gi of memory, which no single node has together: ask for less, or add a larger node.
            Turned down, of 2 nodes:
              resources      2  cpu: wanted 8, 2 free (a)
        "#]],
    );
}

#[test]
fn it_asks_for_something_that_no_node_has() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(8_000, 8 * GI));
    let scalars = BTreeMap::from([("gpu".to_owned(), brig_api::Milli(1_000))]);
    cluster.unit("u", wasm(Resources { scalars, ..amount(1_000, GI) }));
    check(
        &mut cluster,
        &expect![[r#"
            Unschedulable: it asks for 1 of gpu, but no node has any gpu: leave it out, or add a node with it

            u waits: it asks for 1 of gpu, but no node has any gpu: leave it out, or add a node with it.
            Turned down, of 1 node:
              resources      1  gpu: wanted 1, 0 free (a)
        "#]],
    );
}

#[test]
fn every_node_is_full() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(8_000, 8 * GI));
    cluster.node("b", amount(8_000, 8 * GI));
    cluster.unit("x", wasm(amount(1_000, 6 * GI + 100 * MI)));
    cluster.unit("y", wasm(amount(7_500, 7 * GI)));
    cluster.pass();
    cluster.unit("u", wasm(amount(1_000, 2 * GI)));
    check(
        &mut cluster,
        &expect![[r#"
        Unschedulable: every node is short of cpu and memory: it starts as soon as there is room

        u waits: every node is short of cpu and memory: it starts as soon as there is room; enough would be 100Mi more memory free on `a`, or a request of 1948Mi memory.
        Turned down, of 2 nodes:
          resources      2  memory: wanted 2Gi, 1948Mi free (a)
    "#]],
    );
}

#[test]
fn the_only_node_runs_no_containers() {
    let mut cluster = Cluster::new();
    cluster.node_like("a", amount(8_000, 8 * GI), &[Runtime::Wasm], &[]);
    cluster.unit("u", oci(amount(1_000, GI), &[]));
    check(
        &mut cluster,
        &expect![[r#"
            Unschedulable: the only node is unable to run oci: change the unit, or add a node that fits

            u waits: the only node is unable to run oci: change the unit, or add a node that fits; enough would be a node that can run oci.
            Turned down, of 1 node:
              runtime        1  can't run oci (a)
        "#]],
    );
}

#[test]
fn no_node_has_the_attributes() {
    let mut cluster = Cluster::new();
    cluster.node_like("a", amount(8_000, 8 * GI), &[Runtime::Wasm], &[("zone", "x")]);
    cluster.node_like("b", amount(8_000, 8 * GI), &[Runtime::Wasm], &[("zone", "y"), ("ssd", "1")]);
    let constraints = vec![
        requires("zone", Operator::In, &["y", "z"]),
        requires("ssd", Operator::NotExists, &[]),
    ];
    cluster.unit("u", UnitTemplate { constraints, ..wasm(amount(1_000, GI)) });
    check(
        &mut cluster,
        &expect![[r#"
            Unschedulable: every node is no match for `zone in (y, z)` and `ssd not exists`: change the unit, or add a node that fits

            u waits: every node is no match for `zone in (y, z)` and `ssd not exists`: change the unit, or add a node that fits; enough would be to drop `zone in (y, z)` (on `a`, zone is x).
            Turned down, of 2 nodes:
              attributes     2  wanted zone in (y, z), but zone is x (a)
        "#]],
    );
}

#[test]
fn the_port_is_taken() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(8_000, 8 * GI));
    cluster.unit("x", oci(amount(1_000, GI), &[5432]));
    cluster.pass();
    cluster.unit("u", oci(amount(1_000, GI), &[5432, 5433]));
    check(
        &mut cluster,
        &expect![[r#"
        Unschedulable: the only node is using port 5432 or 5433 already: it starts as soon as there is room

        u waits: the only node is using port 5432 or 5433 already: it starts as soon as there is room; enough would be that the unit with port 5432 on `a` ends, or another port.
        Turned down, of 1 node:
          ports          1  port 5432 is taken (a)
    "#]],
    );
}

#[test]
fn each_node_has_another_fault() {
    let mut cluster = Cluster::new();
    let away = cluster.node("a", amount(8_000, 8 * GI));
    cluster.moment.silent.insert(away);
    cluster.node_like("b", amount(8_000, 8 * GI), &[Runtime::Wasm], &[]);
    cluster.node("c", amount(500, 8 * GI));
    cluster.node("d", amount(250, 8 * GI));
    cluster.unit("u", oci(amount(1_000, GI), &[]));
    check(
        &mut cluster,
        &expect![[r#"
            Unschedulable: every node is out of reach, unable to run oci, or short of cpu: it starts as soon as there is room

            u waits: every node is out of reach, unable to run oci, or short of cpu: it starts as soon as there is room; enough would be 500m more cpu free on `c`, or a request of 500m cpu, or a node that can run oci, or that `a` comes back.
            Turned down, of 4 nodes:
              resources      2  cpu: wanted 1, 500m free (c)
              ready          1  out of reach (a)
              runtime        1  can't run oci (b)
        "#]],
    );
}

#[test]
fn the_quota_is_used_up() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(8_000, 8 * GI));
    cluster.namespace("team", Some(amount(0, 4 * GI)));
    cluster.unit_in("team/dev", "x", wasm(amount(1_000, 3 * GI)));
    cluster.pass();
    cluster.unit_in("team/dev", "u", wasm(amount(1_000, 2 * GI)));
    check(
        &mut cluster,
        &expect![[r#"
            QuotaExceeded: it asks for 2Gi of memory, and the quota of namespace `team` (4Gi) is used up: it starts once others there have ended, or the quota is raised

            u waits: it asks for 2Gi of memory, and the quota of namespace `team` (4Gi) is used up: it starts once others there have ended, or the quota is raised; 3Gi of 4Gi are in use; enough would be a quota of 5Gi or a request of 1Gi.
            Turned down, of 1 node:
              quota          1  memory: wanted 2Gi, 1Gi left of 4Gi (namespace team)
        "#]],
    );
}

#[test]
fn it_is_larger_than_the_whole_quota() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(8_000, 8 * GI));
    cluster.namespace("team", Some(amount(0, GI)));
    cluster.unit_in("team", "u", wasm(amount(1_000, 2 * GI)));
    check(
        &mut cluster,
        &expect![[r#"
            QuotaExceeded: it asks for 2Gi of memory, but the whole quota of namespace `team` is 1Gi: ask for less, or raise the quota

            u waits: it asks for 2Gi of memory, but the whole quota of namespace `team` is 1Gi: ask for less, or raise the quota; 0 of 1Gi are in use; enough would be a quota of 2Gi or a request of 1Gi.
            Turned down, of 1 node:
              quota          1  memory: wanted 2Gi, 1Gi left of 1Gi (namespace team)
        "#]],
    );
}

#[test]
fn it_is_placed() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(8_000, 8 * GI));
    cluster.node("b", amount(4_000, 8 * GI));
    cluster.node("c", amount(500, 8 * GI));
    cluster.unit("u", wasm(amount(1_000, GI)));
    check(
        &mut cluster,
        &expect![[r#"
            placed

            u was placed on b by plan 1.
              score  1623 = bin-packing 187 x 4 + balance 875 x 1
              next   a with 1500 = bin-packing 125 x 4 + balance 1000 x 1
            Turned down, of 3 nodes:
              resources      1
        "#]],
    );
}
