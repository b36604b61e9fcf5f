//! Units that are placed together or not at all.

use brig_api::placement::Gang;

use super::*;

fn member(cores: u64, size: u32) -> UnitTemplate {
    let gang = Some(Gang { name: name("train"), size });
    UnitTemplate { gang, ..wasm(amount(cores * 1_000, MI)) }
}

fn cluster_of(cores: &[u64]) -> Cluster {
    let mut cluster = Cluster::new();
    for (index, cores) in cores.iter().enumerate() {
        cluster.node(&format!("n{index}"), amount(cores * 1_000, 64 * GI));
    }
    cluster
}

fn placed(cluster: &Cluster) -> usize {
    cluster.count(|unit| unit.status.state.is_on_node())
}

#[test]
fn a_gang_waits_until_all_of_it_exists() {
    let mut cluster = cluster_of(&[8]);
    cluster.unit("m0", member(1, 3));
    cluster.unit("m1", member(1, 3));
    let plan = cluster.pass();
    assert_eq!(placed(&cluster), 0);
    assert!(
        refusals(&plan)[0].2.contains("once 3 units of it exist, and 2 do"),
        "{:?}",
        refusals(&plan)
    );
    cluster.unit("m2", member(1, 3));
    cluster.pass();
    assert_eq!(placed(&cluster), 3);
}

#[test]
fn a_gang_that_fits_in_part_is_placed_not_at_all_and_holds_up_nobody() {
    let mut cluster = cluster_of(&[2]);
    for index in 0..3 {
        cluster.unit(&format!("m{index}"), member(1, 3));
    }
    let single = cluster.unit("single", wasm(amount(1_000, MI)));
    cluster.pass();
    assert_eq!(placed(&cluster), 1);
    assert!(node_of(&cluster, &single).is_some(), "a gang that can never fit keeps nothing");
    cluster.node("more", amount(8_000, 64 * GI));
    cluster.pass();
    assert_eq!(placed(&cluster), 4);
}

#[test]
fn a_gang_has_units_of_several_shapes_and_owners() {
    let mut cluster = cluster_of(&[4, 4]);
    cluster.job("driver", (1, 1, 0), member(3, 4));
    cluster.job("workers", (3, 3, 0), member(2, 4));
    cluster.pass();
    assert_eq!(placed(&cluster), 0, "3 + 2 + 2 + 2 cores do not fit on two nodes of four");
    cluster.node("n2", amount(4_000, 64 * GI));
    cluster.pass();
    assert_eq!(placed(&cluster), 4);
}

#[test]
fn a_lost_member_is_replaced_alone() {
    let mut cluster = cluster_of(&[4]);
    cluster.job("workers", (3, 3, 5), member(1, 3));
    cluster.pass();
    cluster.nodes_work();
    let first = cluster.model.units().next().unwrap().id.clone();
    cluster.report(&first, UnitState::Failed);
    cluster.pass();
    cluster.moment.now_ms += 10_000;
    cluster.pass();
    assert_eq!(placed(&cluster), 3);
}

#[test]
fn less_important_units_make_room_for_a_whole_gang_or_none_does() {
    let mut cluster = cluster_of(&[2, 2]);
    for index in 0..4 {
        cluster.unit(&format!("low-{index}"), wasm(amount(1_000, MI)));
    }
    cluster.pass();
    cluster.nodes_work();
    let high = |size| UnitTemplate { priority: 10, ..member(1, size) };
    for index in 0..3 {
        cluster.unit(&format!("m{index}"), high(3));
    }
    let plan = cluster.pass();
    assert_eq!(stops(&cluster, &plan).len(), 3);
    cluster.settle();
    let members = cluster
        .count(|unit| unit.template.gang.is_some() && unit.status.state == UnitState::Running);
    assert_eq!(members, 3);

    let mut cluster = cluster_of(&[2, 2]);
    for index in 0..4 {
        cluster.unit(&format!("low-{index}"), wasm(amount(1_000, MI)));
    }
    cluster.pass();
    cluster.nodes_work();
    for index in 0..5 {
        cluster.unit(&format!("m{index}"), high(5));
    }
    let plan = cluster.pass();
    assert_eq!(stops(&cluster, &plan), [], "nobody goes for a gang that does not fit even so");
}

#[test]
fn a_waiting_gang_is_not_delayed_and_what_ends_in_time_is_let_in() {
    let mut cluster = cluster_of(&[4]);
    let bounded = |cores: u64, run_ms| UnitTemplate {
        max_run_ms: Some(run_ms),
        ..wasm(amount(cores * 1_000, MI))
    };
    let old = cluster.unit("old", bounded(2, 60_000));
    cluster.pass();
    cluster.nodes_work();
    for index in 0..2 {
        cluster.unit(&format!("m{index}"), member(2, 2));
    }
    cluster.pass();
    cluster.moment.now_ms += 1;
    let endless = cluster.unit("endless", wasm(amount(1_000, MI)));
    let long = cluster.unit("long", bounded(1, 120_000));
    let short = cluster.unit("short", bounded(1, 30_000));
    let plan = cluster.pass();
    assert_eq!(node_of(&cluster, &endless), None);
    assert_eq!(node_of(&cluster, &long), None);
    assert!(node_of(&cluster, &short).is_some(), "it has ended when the gang can start");
    let kept = refusals(&plan).iter().any(|(id, _, text)| **id == endless && text.contains("kept"));
    assert!(kept, "{:?}", refusals(&plan));
    cluster.report(&old, UnitState::Succeeded);
    cluster.report(&short, UnitState::Succeeded);
    cluster.pass();
    let members =
        cluster.count(|unit| unit.template.gang.is_some() && unit.status.state.is_on_node());
    assert_eq!(members, 2);
}
