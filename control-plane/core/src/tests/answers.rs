//! What `brig why` prints of units that wait for more than room, and of one node, word for word.

use brig_api::Milli;
use brig_api::placement::{Concurrency, Dependency, Gang, Neighbours, Spread, Taint, Toleration};
use expect_test::{Expect, expect};

use super::*;

fn id_of(cluster: &Cluster, text: &str) -> UnitId {
    cluster.model.units().find(|unit| unit.name == name(text)).unwrap().id.clone()
}

/// Plans, then asks: the status of the unit `u`, and what `brig why u` prints.
fn check(cluster: &mut Cluster, expected: &Expect) {
    cluster.pass();
    let unit = cluster.model.unit(&id_of(cluster, "u")).unwrap().clone();
    let (reason, message) = (unit.status.reason.unwrap(), unit.status.message.unwrap());
    let explanation = crate::why(&mut cluster.model, &cluster.moment, &unit.id).unwrap();
    let answer = explanation.render(&name("u"));
    expected.assert_eq(&format!("{}: {message}\n\n{answer}", reason.as_str()));
}

/// What `brig why u --node NODE` prints.
fn check_on(cluster: &mut Cluster, node: &str, expected: &Expect) {
    let (id, node) = (id_of(cluster, "u"), NodeName::new(node).unwrap());
    let verdict = crate::why_on(&mut cluster.model, &cluster.moment, &id, &node).unwrap();
    expected.assert_eq(&verdict.render(&name("u")));
}

fn node_in(cluster: &mut Cluster, text: &str, zone: &str, capacity: Resources) {
    cluster.node_like(text, capacity, &[Runtime::Wasm, Runtime::Oci], &[("zone", zone)]);
}

fn labelled(cluster: &mut Cluster, text: &str, app: &str, template: UnitTemplate) {
    let id = cluster.unit(text, template);
    let labels = Labels::from([("app".to_owned(), app.to_owned())]);
    cluster.change_unit(&id, |unit| unit.labels = Arc::new(labels));
}

fn neighbours(app: &str, over: &str) -> Vec<Neighbours> {
    let units = Labels::from([("app".to_owned(), app.to_owned())]);
    vec![Neighbours { units, over: over.to_owned(), within: None, weight: None }]
}

fn tainted(cluster: &mut Cluster, node: &str, taint: &str) {
    let mut node = cluster.model.node(&NodeName::new(node).unwrap()).unwrap().clone();
    node.facts.taints.push(taint.parse::<Taint>().unwrap());
    cluster.put(Object::Node(node));
}

fn with_gpus(milli: u64, cpu: u64, memory: u64) -> Resources {
    let scalars = BTreeMap::from([("gpu".to_owned(), Milli(milli))]);
    Resources { scalars, ..amount(cpu, memory) }
}

fn small() -> UnitTemplate {
    wasm(amount(1_000, GI))
}

fn member(size: u32) -> UnitTemplate {
    UnitTemplate { gang: Some(Gang { name: name("train"), size }), ..small() }
}

/// A node of four cores; half of them are taken by a job, of which nobody knows when it ends.
fn half_full() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(4_000, 8 * GI));
    cluster.job("old", (1, 1, 0), wasm(amount(2_000, GI)));
    cluster.pass();
    cluster
}

/// A node that is full of units of low priority: these, each of one core.
fn full_of(names: &[&str]) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(names.len() as u64 * 1_000, 8 * GI));
    for text in names {
        cluster.unit(text, UnitTemplate { priority: -1, ..small() });
    }
    cluster.pass();
    cluster.nodes_work();
    cluster
}

#[test]
fn the_rest_of_its_gang_is_missing() {
    let mut cluster = half_full();
    cluster.unit("u", member(3));
    cluster.unit("v", member(3));
    check(
        &mut cluster,
        &expect![[r#"
            GangWaits: gang `train` is not complete: it starts once 3 units of it exist, and 2 do

            u waits: gang `train` is not complete: it starts once 3 units of it exist, and 2 do.
        "#]],
    );
}

#[test]
fn there_is_no_room_for_the_whole_gang() {
    let mut cluster = half_full();
    for text in ["u", "v", "w"] {
        cluster.unit(text, member(3));
    }
    check(
        &mut cluster,
        &expect![[r#"
            GangWaits: not all of gang `train` fits yet; the only node is short of cpu: it starts as soon as there is room

            u waits: not all of gang `train` fits yet: 2 of 3 units do, `w` does not; the only node is short of cpu: it starts as soon as there is room; enough would be 1 more cpu free on `a`.
            Turned down, of 1 node:
              resources      1  cpu: wanted 1, 0 free (a)
        "#]],
    );
}

#[test]
fn a_member_of_its_gang_is_larger_than_any_node() {
    let mut cluster = half_full();
    cluster.unit("u", member(2));
    let gang = member(2).gang;
    cluster.unit("v", UnitTemplate { gang, ..wasm(amount(1_000, 64 * GI)) });
    check(
        &mut cluster,
        &expect![[r#"
            GangWaits: not all of gang `train` fits yet; it asks for 64Gi of memory, but the largest node (`a`) has 8Gi: ask for less, or add a larger node

            u waits: not all of gang `train` fits yet: 1 of 2 units do, `v` does not; it asks for 64Gi of memory, but the largest node (`a`) has 8Gi: ask for less, or add a larger node.
            Turned down, of 1 node:
              resources      1  memory: wanted 64Gi, 6Gi free (a)
        "#]],
    );
}

#[test]
fn what_is_free_is_kept_for_a_gang() {
    let mut cluster = half_full();
    for text in ["g0", "g1", "g2"] {
        cluster.unit(text, member(3));
    }
    cluster.moment.now_ms += 1;
    cluster.unit("u", wasm(amount(1_500, GI)));
    check(
        &mut cluster,
        &expect![[r#"
            Unschedulable: the only node is full but for what is kept for a gang that waits: it starts as soon as there is room

            u waits: the only node is full but for what is kept for a gang that waits: it starts as soon as there is room; enough would be that the gang has started, or a higher priority than the gang's.
            Turned down, of 1 node:
              kept           1  its free room is kept for a gang that waits (a)
        "#]],
    );
}

#[test]
fn others_leave_for_it() {
    let mut cluster = full_of(&["x", "y", "z"]);
    cluster.unit("u", wasm(amount(2_000, GI)));
    check(
        &mut cluster,
        &expect![[r#"
            RoomPromised: it starts on `a` as soon as others have left

            u waits: it starts on `a` as soon as `x` and `y` have left.
        "#]],
    );
    let gone = id_of(&cluster, "x");
    cluster.report(&gone, UnitState::Stopped);
    check(
        &mut cluster,
        &expect![[r#"
            RoomPromised: it starts on `a` as soon as others have left

            u waits: it starts on `a` as soon as `y` has left.
        "#]],
    );
}

#[test]
fn the_plan_itself_says_who_has_to_go() {
    let mut cluster = full_of(&["x", "y"]);
    let id = cluster.unit("u", small());
    let plan = cluster.pass();
    let explanation = plan.explanations.iter().find(|e| e.unit == id).unwrap();
    let stop = plan.decisions.iter().find_map(|decision| match decision {
        Decision::UnitStop { unit, message, .. } => {
            Some(format!("{}: {}", cluster.model.unit(unit).unwrap().name, message.as_ref()?))
        }
        _ => None,
    });
    expect![[r#"
        u waits: it starts on `a` as soon as `x` has left.
        x: makes room for unit `u` of namespace `default` (priority 0)
    "#]]
    .assert_eq(&format!("{}{}\n", explanation.render(&name("u")), stop.unwrap()));
}

#[test]
fn others_leave_for_its_gang() {
    let mut cluster = full_of(&["x", "y"]);
    cluster.unit("u", member(2));
    cluster.unit("v", member(2));
    check(
        &mut cluster,
        &expect![[r#"
            RoomPromised: it starts on `a`, with the rest of gang `train`, as soon as others have left

            u waits: it starts on `a`, with the rest of gang `train`, as soon as others have left.
        "#]],
    );
}

#[test]
fn what_is_promised_to_another_is_not_free() {
    let mut cluster = full_of(&["x", "y"]);
    let gone = id_of(&cluster, "x");
    cluster.report(&gone, UnitState::Succeeded);
    cluster.unit("first", wasm(amount(2_000, GI)));
    cluster.pass();
    cluster.unit("u", small());
    check(
        &mut cluster,
        &expect![[r#"
            Unschedulable: the only node is short of cpu: it starts as soon as there is room

            u waits: the only node is short of cpu: it starts as soon as there is room; enough would be 1 more cpu free on `a`.
            Turned down, of 1 node:
              resources      1  cpu: wanted 1, 0 free, 2 promised to others (a)
        "#]],
    );
}

#[test]
fn a_service_that_it_comes_after_is_not_ready() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(8_000, 8 * GI));
    cluster.service("db", 2, small());
    let after = vec![Dependency { service: Some(name("db")), job: None }];
    cluster.unit("u", UnitTemplate { after, ..small() });
    check(
        &mut cluster,
        &expect![[r#"
            DependencyWaits: it comes after service `db`, and starts once all units of it run

            u waits: it comes after service `db`, and starts once all units of it run; 0 of 2 do.
        "#]],
    );
}

#[test]
fn a_job_that_it_comes_after_runs_or_has_failed_or_is_not_there() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(8_000, 8 * GI));
    cluster.job("load", (1, 2, 0), small());
    let after = vec![Dependency { service: None, job: Some(name("load")) }];
    cluster.unit("u", UnitTemplate { after, ..small() });
    check(
        &mut cluster,
        &expect![[r#"
            DependencyWaits: it comes after job `load`, and starts once that has succeeded

            u waits: it comes after job `load`, and starts once that has succeeded.
        "#]],
    );
    cluster.change_job("load", |job| job.state = JobState::Failed);
    check(
        &mut cluster,
        &expect![[r#"
            DependencyWaits: it comes after job `load`, which has failed: delete that and apply one that succeeds, or leave it out of `after`

            u waits: it comes after job `load`, which has failed: delete that and apply one that succeeds, or leave it out of `after`.
        "#]],
    );
    cluster.remove(Kind::Job, Some("default"), "load");
    check(
        &mut cluster,
        &expect![[r#"
            DependencyWaits: it comes after job `load`, which does not exist: make it, or leave it out of `after`

            u waits: it comes after job `load`, which does not exist: make it, or leave it out of `after`.
        "#]],
    );
}

#[test]
fn its_family_is_at_its_limit() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(8_000, 8 * GI));
    let concurrency = Some(Concurrency { key: name("etl"), limit: 2 });
    for text in ["s", "t", "u"] {
        cluster.unit(text, UnitTemplate { concurrency: concurrency.clone(), ..small() });
    }
    check(
        &mut cluster,
        &expect![[r#"
            ConcurrencyLimit: family `etl` has as many units on nodes as this one puts up with (`limit: 2`): it starts once one of them has ended

            u waits: family `etl` has as many units on nodes as this one puts up with (`limit: 2`): it starts once one of them has ended.
        "#]],
    );
}

#[test]
fn its_spread_can_not_be_kept() {
    let mut cluster = Cluster::new();
    node_in(&mut cluster, "a", "x", amount(8_000, 8 * GI));
    node_in(&mut cluster, "b", "y", amount(1_000, 8 * GI));
    let mut unit = small();
    let (over, max_skew) = ("zone".to_owned(), Some(1));
    unit.placement.spread = vec![Spread { over, max_skew, weight: None, targets: BTreeMap::new() }];
    cluster.service("web", 4, unit);
    cluster.pass();
    let waiting = cluster.model.units().find(|unit| unit.node.is_none()).unwrap().id.clone();
    cluster.change_unit(&waiting, |unit| unit.name = name("u"));
    check(
        &mut cluster,
        &expect![[r#"
            Unschedulable: every node is short of cpu, or where its spread allows no more of its kind: it starts as soon as there is room

            u waits: every node is short of cpu, or where its spread allows no more of its kind: it starts as soon as there is room; enough would be 1 more cpu free on `b`, or a `max_skew` of more than 1 over zone (for zone x).
            Turned down, of 2 nodes:
              resources      1  cpu: wanted 1, 0 free (b)
              spread         1  units of service `web` over zone, with a skew of 1: 2 in zone x, 1 where there are fewest (a)
        "#]],
    );
}

#[test]
fn it_does_not_tolerate_a_taint() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(8_000, 8 * GI));
    cluster.node("b", amount(500, 8 * GI));
    tainted(&mut cluster, "a", "gpu=a100:no-schedule");
    tainted(&mut cluster, "a", "spot:prefer-not");
    cluster.unit("u", small());
    check(
        &mut cluster,
        &expect![[r#"
            Unschedulable: every node is tainted with `gpu=a100:no-schedule`, or short of cpu: it starts as soon as there is room

            u waits: every node is tainted with `gpu=a100:no-schedule`, or short of cpu: it starts as soon as there is room; enough would be 500m more cpu free on `b`, or a request of 500m cpu, or a toleration of `gpu=a100:no-schedule` (for `a`).
            Turned down, of 2 nodes:
              taints         1  `gpu=a100:no-schedule` is not tolerated (a)
              resources      1  cpu: wanted 1, 500m free (b)
        "#]],
    );
}

#[test]
fn every_node_is_tainted() {
    let mut cluster = Cluster::new();
    for (text, taint) in [("a", "gpu=a100:no-schedule"), ("b", "broken:evict")] {
        cluster.node(text, amount(8_000, 8 * GI));
        tainted(&mut cluster, text, taint);
    }
    let mut unit = small();
    unit.placement.tolerations =
        vec![Toleration { key: "gpu".to_owned(), value: Some("v100".to_owned()), effect: None }];
    cluster.unit("u", unit);
    check(
        &mut cluster,
        &expect![[r#"
            Unschedulable: every node is tainted with `broken:evict` or `gpu=a100:no-schedule`: change the unit, or add a node that fits

            u waits: every node is tainted with `broken:evict` or `gpu=a100:no-schedule`: change the unit, or add a node that fits; enough would be a toleration of `gpu=a100:no-schedule` (for `a`).
            Turned down, of 2 nodes:
              taints         2  `gpu=a100:no-schedule` is not tolerated (a)
        "#]],
    );
}

fn away_from(app: &str) -> UnitTemplate {
    let mut unit = small();
    unit.placement.away = neighbours(app, "zone");
    unit
}

#[test]
fn it_must_be_away_from_another() {
    let mut cluster = Cluster::new();
    node_in(&mut cluster, "a", "x", amount(8_000, 8 * GI));
    node_in(&mut cluster, "b", "x", amount(8_000, 8 * GI));
    labelled(&mut cluster, "w", "web", small());
    cluster.pass();
    labelled(&mut cluster, "u", "db", away_from("web"));
    check(
        &mut cluster,
        &expect![[r#"
            Unschedulable: every node is too near to units that it must be away from, or they from it: it starts as soon as others have moved, or a node that fits is added

            u waits: every node is too near to units that it must be away from, or they from it: it starts as soon as others have moved, or a node that fits is added; enough would be no units with app=web in zone x, or to drop that rule of `away`.
            Turned down, of 2 nodes:
              away           2  there are units with app=web in zone x (a)
        "#]],
    );
}

#[test]
fn another_must_be_away_from_it() {
    let mut cluster = Cluster::new();
    node_in(&mut cluster, "a", "x", amount(8_000, 8 * GI));
    labelled(&mut cluster, "w", "web", away_from("db"));
    cluster.pass();
    labelled(&mut cluster, "u", "db", small());
    check(
        &mut cluster,
        &expect![[r#"
            Unschedulable: the only node is too near to units that it must be away from, or they from it: it starts as soon as others have moved, or a node that fits is added

            u waits: the only node is too near to units that it must be away from, or they from it: it starts as soon as others have moved, or a node that fits is added; enough would be that units in zone x need not be away from units with app=db.
            Turned down, of 1 node:
              away           1  others in zone x must be away from units with app=db (a)
        "#]],
    );
}

#[test]
fn there_is_nobody_to_be_near() {
    let mut cluster = Cluster::new();
    node_in(&mut cluster, "a", "x", amount(8_000, 8 * GI));
    let mut unit = small();
    unit.placement.near = neighbours("cache", "zone");
    cluster.unit("u", unit);
    check(
        &mut cluster,
        &expect![[r#"
            Unschedulable: the only node is far from the units that it must be near: it starts as soon as they are there

            u waits: the only node is far from the units that it must be near: it starts as soon as they are there; enough would be units with app=cache in zone x.
            Turned down, of 1 node:
              near           1  there are no units with app=cache on any node (a)
        "#]],
    );
}

/// Two nodes in zone b, of which the one with the wanted model of gpu has a quarter of the memory.
fn gpu_cluster() -> Cluster {
    let mut cluster = Cluster::new();
    for (text, zone, model, memory) in
        [("b1", "b", "a100", 16), ("b2", "b", "v100", 64), ("c1", "c", "a100", 64)]
    {
        let attributes = [("zone", zone), ("gpu-model", model)];
        let capacity = with_gpus(4_000, 16_000, memory * GI);
        cluster.node_like(text, capacity, &[Runtime::Wasm], &attributes);
    }
    cluster
}

fn a100_in_b(gpus: u64, memory: u64) -> UnitTemplate {
    UnitTemplate {
        constraints: vec![
            requires("zone", Operator::Equal, &["b"]),
            requires("gpu-model", Operator::Equal, &["a100"]),
        ],
        ..wasm(with_gpus(gpus * 1_000, 1_000, memory * GI))
    }
}

#[test]
fn nodes_with_the_model_of_gpu_have_too_little_memory() {
    let mut cluster = gpu_cluster();
    cluster.unit("x", a100_in_b(1, 10));
    cluster.pass();
    cluster.unit("u", a100_in_b(2, 8));
    check(
        &mut cluster,
        &expect![[r#"
        Unschedulable: every node is no match for `zone = b` and `gpu-model = a100`, or short of memory: it starts as soon as there is room

        u waits: every node is no match for `zone = b` and `gpu-model = a100`, or short of memory: it starts as soon as there is room; enough would be 2Gi more memory free on `b1`, or a request of 6Gi memory, or to drop `gpu-model = a100` (on `b2`, gpu-model is v100).
        Turned down, of 3 nodes:
          attributes     2  wanted gpu-model = a100, but gpu-model is v100 (b2)
          resources      1  memory: wanted 8Gi, 6Gi free (b1)
    "#]],
    );
    check_on(
        &mut cluster,
        "b1",
        &expect![[r#"
        u can't go to b1:
          resources   memory: wanted 8Gi, 6Gi free
    "#]],
    );
    check_on(
        &mut cluster,
        "c1",
        &expect![[r#"
        u can't go to c1:
          attributes  wanted zone = b, but zone is c
    "#]],
    );
}

#[test]
fn it_is_larger_than_any_node_with_the_model_of_gpu() {
    let mut cluster = gpu_cluster();
    cluster.unit("u", a100_in_b(1, 32));
    check(
        &mut cluster,
        &expect![[r#"
            Unschedulable: it asks for 32Gi of memory, but the largest suitable node (`b1`) has 16Gi: ask for less, or add a larger node

            u waits: it asks for 32Gi of memory, but the largest suitable node (`b1`) has 16Gi: ask for less, or add a larger node, or drop `gpu-model = a100` (on `b2`, gpu-model is v100).
            Turned down, of 3 nodes:
              attributes     2  wanted gpu-model = a100, but gpu-model is v100 (b2)
              resources      1  memory: wanted 32Gi, 16Gi free (b1)
        "#]],
    );
}

#[test]
fn gpus_are_free_in_parts_only() {
    let mut cluster = Cluster::new();
    cluster.node("a", with_gpus(2_000, 16_000, 16 * GI));
    for text in ["x", "y"] {
        cluster.unit(text, wasm(with_gpus(600, 1_000, GI)));
    }
    cluster.pass();
    cluster.unit("u", wasm(with_gpus(500, 1_000, GI)));
    check(
        &mut cluster,
        &expect![[r#"
            Unschedulable: the only node is short of gpu in one piece: it starts as soon as there is room

            u waits: the only node is short of gpu in one piece: it starts as soon as there is room; enough would be 500m gpu in one piece free on `a`.
            Turned down, of 1 node:
              resources      1  gpu: wanted 500m in one piece, 400m free so (a)
        "#]],
    );
}

#[test]
fn its_namespace_has_what_it_is_sure_of_and_nothing_is_left_to_borrow() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(4_000, 8 * GI));
    for (path, cores) in [("lender", 3_000), ("team", 1_000)] {
        cluster.namespace_like(path, |spec| spec.guarantee = Some(amount(cores, 4 * GI)));
    }
    for text in ["x", "y", "z"] {
        cluster.unit_in("lender", text, small());
    }
    cluster.unit_in("team", "t", small());
    cluster.pass();
    cluster.nodes_work();
    cluster.unit_in("team", "u", UnitTemplate { priority: 10, ..wasm(amount(2_000, GI)) });
    check(
        &mut cluster,
        &expect![[r#"
            Unschedulable: the only node is short of cpu: it starts as soon as there is room

            u waits: the only node is short of cpu: it starts as soon as there is room; enough would be 2 more cpu free on `a`; it would be more than the guarantee of namespace `team`, so nobody has to leave for it.
            Turned down, of 1 node:
              resources      1  cpu: wanted 2, 0 free (a)
        "#]],
    );
}

#[test]
fn its_namespace_has_as_many_units_as_it_may() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(4_000, 8 * GI));
    cluster.namespace_like("team", |spec| spec.max_units = Some(1));
    cluster.unit_in("team/dev", "x", small());
    cluster.pass();
    cluster.unit_in("team/dev", "u", small());
    check(
        &mut cluster,
        &expect![[r#"
            QuotaExceeded: namespace `team` has 1 unit on nodes, the most that it may: it starts once others there have ended, or `max_units` is raised

            u waits: namespace `team` has 1 unit on nodes, the most that it may: it starts once others there have ended, or `max_units` is raised.
        "#]],
    );
}

#[test]
fn which_of_two_quotas_is_named_does_not_depend_on_what_came_first() {
    let amounts = |names: &[&str], milli| {
        let scalars = names.iter().map(|name| ((*name).to_owned(), Milli(milli))).collect();
        Resources { scalars, ..amount(1_000, GI) }
    };
    for first in ["gpu", "fpga"] {
        let mut cluster = Cluster::new();
        cluster.node("a", amounts(&[first], 1_000));
        let quota =
            Resources { cpu: MilliCpu(0), memory: Bytes(0), ..amounts(&["gpu", "fpga"], 1_000) };
        cluster.namespace("team", Some(quota));
        cluster.unit_in("team", "u", wasm(amounts(&["gpu", "fpga"], 2_000)));
        let plan = cluster.pass();
        assert!(refusals(&plan)[0].2.contains("2 of fpga"), "{:?}", refusals(&plan));
    }
}

#[test]
fn no_node_offers_its_directory() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(4_000, 8 * GI));
    let mut unit = small();
    unit.tasks[0].mounts.push(brig_api::unit_spec::Mount {
        host: Some("/srv/data".into()),
        config: None,
        secret: None,
        at: "/data".to_owned(),
        read_only: false,
    });
    cluster.unit("u", unit);
    check(
        &mut cluster,
        &expect![[r#"
            Unschedulable: the only node is without the directory `/srv/data`: change the unit, or add a node that fits

            u waits: the only node is without the directory `/srv/data`: change the unit, or add a node that fits; enough would be that `a` offers `/srv/data`.
            Turned down, of 1 node:
              volumes        1  does not offer `/srv/data` (a)
        "#]],
    );
}

#[test]
fn one_node_says_yes_or_all_that_is_in_the_way() {
    let mut cluster = Cluster::new();
    node_in(&mut cluster, "a", "x", amount(8_000, 8 * GI));
    node_in(&mut cluster, "b", "y", amount(500, 8 * GI));
    node_in(&mut cluster, "c", "x", amount(8_000, 8 * GI));
    tainted(&mut cluster, "b", "gpu=a100:no-schedule");
    let away = cluster.node("d", amount(8_000, 8 * GI));
    cluster.moment.silent.insert(away);
    labelled(&mut cluster, "w", "web", small());
    cluster.pass();
    let mut unit = small();
    unit.constraints = vec![requires("zone", Operator::NotEqual, &["y"])];
    unit.placement.away = neighbours("web", "node");
    cluster.unit("u", unit);
    check_on(
        &mut cluster,
        "a",
        &expect![[r#"
            u can't go to a:
              away        there are units with app=web on `a`
        "#]],
    );
    check_on(
        &mut cluster,
        "b",
        &expect![[r#"
            u can't go to b:
              attributes  wanted zone != y, but zone is y
              resources   cpu: wanted 1, 500m free
        "#]],
    );
    check_on(
        &mut cluster,
        "c",
        &expect![[r#"
        u fits on c.
          score  1500 = bin-packing 125 x 4 + balance 1000 x 1
    "#]],
    );
    check_on(
        &mut cluster,
        "d",
        &expect![[r#"
            u can't go to d:
              ready       out of reach
        "#]],
    );
}
