//! Artifacts that nodes say they hold: a reason to go there, a condition where a unit makes it one.

use brig_api::session::HeldArtifact;
use expect_test::{Expect, expect};

use super::*;

fn app(request: Resources) -> UnitTemplate {
    let mut unit = wasm(request);
    fix(&mut unit, &format!("team/app:1@{}", digest(1)));
    unit
}

fn small() -> UnitTemplate {
    app(amount(1_000, GI))
}

fn only_where_present() -> UnitTemplate {
    let mut unit = small();
    unit.placement.artifacts = ArtifactRule::Present;
    unit
}

fn held(number: u8, is_ready: bool) -> HeldArtifact {
    HeldArtifact { digest: digest(number), runtime: Runtime::Wasm, is_ready }
}

/// The node holds these and no others. True when units that wait may be helped by it.
fn tell(cluster: &mut Cluster, node: &str, held: &[HeldArtifact]) -> bool {
    let node = NodeName::new(node).unwrap();
    cluster.model.hold(&node, Some(Holdings::default().after(held, &[])))
}

fn three_nodes() -> Cluster {
    let mut cluster = Cluster::new();
    for text in ["a", "b", "c"] {
        cluster.node(text, amount(8_000, 8 * GI));
    }
    cluster
}

fn is_hopeless(cluster: &Cluster, id: &UnitId) -> bool {
    let slot = cluster.model.index.slot(id).unwrap();
    cluster.model.index.is_still_hopeless(slot, 0)
}

/// What `brig why u` prints.
fn check(cluster: &mut Cluster, id: &UnitId, expected: &Expect) {
    let explanation = crate::why(&mut cluster.model, &cluster.moment, id).unwrap();
    expected.assert_eq(&explanation.render(&name("u")));
}

#[test]
fn a_node_that_could_run_it_at_once_is_better_than_one_that_has_to_compile_or_to_fetch() {
    let mut cluster = three_nodes();
    tell(&mut cluster, "b", &[held(1, false)]);
    tell(&mut cluster, "c", &[held(1, true)]);
    let id = cluster.unit("u", small());
    check(
        &mut cluster,
        &id,
        &expect![[r#"
        u was placed on c by plan 0.
          score  1700 = bin-packing 125 x 4 + balance 1000 x 1 + locality 200 x 1
          next   b with 1600 = bin-packing 125 x 4 + balance 1000 x 1 + locality 100 x 1
          next   a with 1500 = bin-packing 125 x 4 + balance 1000 x 1
    "#]],
    );
    cluster.pass();
    assert_eq!(node_of(&cluster, &id).as_deref(), Some("c"));
    tell(&mut cluster, "c", &[]);
    cluster.report(&id, UnitState::Succeeded);
    let id = cluster.unit("v", small());
    cluster.pass();
    assert_eq!(node_of(&cluster, &id).as_deref(), Some("b"));
}

#[test]
fn a_node_where_another_unit_of_it_runs_need_not_have_told() {
    let mut cluster = three_nodes();
    tell(&mut cluster, "c", &[held(1, false)]);
    let first = cluster.unit("first", small());
    cluster.change_unit(&first, |unit| {
        unit.status.state = UnitState::Running;
        unit.node = Some(NodeName::new("b").unwrap());
    });
    // As full as the other, so that only what they hold is left to tell them apart.
    let filler = cluster.unit("filler", wasm(amount(1_000, GI)));
    cluster.change_unit(&filler, |unit| {
        unit.status.state = UnitState::Running;
        unit.node = Some(NodeName::new("c").unwrap());
    });
    let id = cluster.unit("u", small());
    cluster.pass();
    assert_eq!(node_of(&cluster, &id).as_deref(), Some("b"));
}

#[test]
fn what_is_held_for_the_other_runtime_is_no_help() {
    let mut cluster = Cluster::new();
    cluster.node_like("a", amount(8_000, 8 * GI), &[Runtime::Oci], &[]);
    cluster.node_like("b", amount(8_000, 8 * GI), &[Runtime::Wasm, Runtime::Oci], &[]);
    cluster.node_like("c", amount(8_000, 8 * GI), &[Runtime::Oci], &[]);
    let choice = || {
        let mut unit = variants(&[wasm(amount(1_000, GI)), oci(amount(1_000, GI), &[])]);
        fix(&mut unit, &format!("team/both:1@{}", digest(2)));
        unit.placement.artifacts = ArtifactRule::Present;
        unit
    };
    let image = HeldArtifact { runtime: Runtime::Oci, ..held(2, true) };
    tell(&mut cluster, "a", &[held(2, true)]);
    tell(&mut cluster, "b", std::slice::from_ref(&image));
    let id = cluster.unit("u", choice());
    cluster.pass();
    assert_eq!(node_of(&cluster, &id), None, "`b` would run the variant that it does not hold");
    assert!(tell(&mut cluster, "c", &[image]));
    cluster.pass();
    assert_eq!(node_of(&cluster, &id).as_deref(), Some("c"));
}

#[test]
fn a_unit_that_needs_its_artifact_present_waits_and_says_for_what() {
    let mut cluster = three_nodes();
    tell(&mut cluster, "a", &[]);
    tell(&mut cluster, "b", &[held(2, true)]);
    let id = cluster.unit("u", only_where_present());
    cluster.pass();
    let status = cluster.model.unit(&id).unwrap().status.clone();
    assert_eq!(status.reason, Some(Reason::Unschedulable));
    expect!["every node is without the artifact `team/app:1`: it starts as soon as one that fits holds it"].assert_eq(&status.message.unwrap());
    check(
        &mut cluster,
        &id,
        &expect![[r#"
        u waits: every node is without the artifact `team/app:1`: it starts as soon as one that fits holds it; enough would be to drop `artifacts: present` (for `a`, which would fetch `team/app:1`).
        Turned down, of 3 nodes:
          artifacts      3  does not hold `team/app:1` (a)
    "#]],
    );
    let node = NodeName::new("c").unwrap();
    let verdict = crate::why_on(&mut cluster.model, &cluster.moment, &id, &node).unwrap();
    expect![[r#"
        u can't go to c:
          artifacts   has not told which artifacts it holds
    "#]]
    .assert_eq(&verdict.render(&name("u")));
    // Another unit of it that runs there is no promise that it is there already.
    let other = cluster.unit("other", small());
    cluster.pass();
    assert_eq!((node_of(&cluster, &other).as_deref(), node_of(&cluster, &id)), (Some("a"), None));
}

#[test]
fn a_node_that_gains_the_artifact_wakes_the_units_that_wait_for_it_and_no_others() {
    let mut cluster = three_nodes();
    let waits = cluster.unit("waits", only_where_present());
    let large = cluster.unit("large", app(amount(64_000, GI)));
    cluster.pass();
    assert!(is_hopeless(&cluster, &waits) && is_hopeless(&cluster, &large));
    assert!(!tell(&mut cluster, "b", &[held(2, true)]), "it holds something else");
    assert!(is_hopeless(&cluster, &waits));
    assert!(tell(&mut cluster, "b", &[held(1, false), held(2, true)]));
    assert!(!is_hopeless(&cluster, &waits));
    assert!(is_hopeless(&cluster, &large), "it is as large as before");
    assert!(!tell(&mut cluster, "b", &[held(1, true)]), "it could be used before");
    cluster.pass();
    assert_eq!(node_of(&cluster, &waits).as_deref(), Some("b"));
    cluster.report(&waits, UnitState::Succeeded);
    assert!(!tell(&mut cluster, "b", &[]), "a loss helps nobody");
    let again = cluster.unit("again", only_where_present());
    cluster.pass();
    assert_eq!(node_of(&cluster, &again), None);
}

#[test]
fn a_node_that_is_new_in_its_place_holds_what_it_has_told_itself() {
    let mut cluster = three_nodes();
    tell(&mut cluster, "b", &[held(1, true)]);
    cluster.remove(Kind::Node, None, "b");
    cluster.node("d", amount(8_000, 8 * GI));
    let id = cluster.unit("u", only_where_present());
    cluster.pass();
    assert_eq!(node_of(&cluster, &id), None);
    cluster.node("b", amount(8_000, 8 * GI));
    cluster.pass();
    assert_eq!(node_of(&cluster, &id).as_deref(), Some("b"), "its session has told it all along");
    let name = NodeName::new("b").unwrap();
    assert!(!cluster.model.hold(&name, None), "nobody knows any more");
    let again = cluster.unit("again", only_where_present());
    cluster.pass();
    assert_eq!(node_of(&cluster, &again), None);
}

#[test]
fn nobody_is_stopped_for_a_unit_whose_artifact_is_elsewhere() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(1_000, 8 * GI));
    cluster.unit("old", UnitTemplate { priority: -1, ..small() });
    cluster.pass();
    let id = cluster.unit("u", UnitTemplate { priority: 1, ..only_where_present() });
    let plan = cluster.pass();
    assert_eq!(stops(&cluster, &plan), []);
    assert!(tell(&mut cluster, "a", &[held(1, true)]));
    let plan = cluster.pass();
    assert_eq!(stops(&cluster, &plan).len(), 1);
    cluster.settle();
    assert_eq!(node_of(&cluster, &id).as_deref(), Some("a"));
}
