//! What-if: racks that are lost, units that arrive, nodes that join.

use brig_api::Manifest;
use brig_api::placement::{Gang, Spread};
use brig_api::simulate::{ARRIVALS_MAX, Growth, Loss, Simulation};
use brig_api::spec::LoneUnitSpec;
use expect_test::{Expect, expect};

use super::*;
use crate::simulate::{Limits, simulate_within};
use crate::{Arrival, Scenario, simulate};

/// Nobody calls it off.
fn on() -> bool {
    false
}

fn rack(value: &str) -> Scenario {
    let constraints = vec![requires("rack", Operator::Equal, &[value])];
    Scenario { lose: vec![Loss { node: None, constraints }], ..Scenario::default() }
}

fn node_lost(text: &str) -> Scenario {
    let node = Some(NodeName::new(text).unwrap());
    Scenario { lose: vec![Loss { node, constraints: vec![] }], ..Scenario::default() }
}

fn arrive(manifest: Manifest, count: u32) -> Scenario {
    let arrive = vec![Arrival { path: "add[0]".to_owned(), manifest, count }];
    Scenario { arrive, ..Scenario::default() }
}

fn lone(text: &str, unit: UnitTemplate) -> Manifest {
    let (name, namespace, labels) = (name(text), namespace("default"), Labels::new());
    Manifest::Unit(LoneUnitSpec { name, namespace, unit, labels, remove_when_done: false })
}

fn a_service(text: &str, replicas: u32, unit: UnitTemplate) -> Manifest {
    let (name, namespace, labels) = (name(text), namespace("default"), Labels::new());
    Manifest::Service(ServiceSpec { name, namespace, replicas, max_unavailable: 1, unit, labels })
}

fn a_job(text: &str, parallelism: u32, unit: UnitTemplate) -> Manifest {
    let unit = UnitTemplate { restart: RestartPolicy::Never, ..unit };
    let (name, namespace, labels) = (name(text), namespace("default"), Labels::new());
    let (completions, retries, retry_after_ms) = (parallelism, 0, None);
    Manifest::Job(JobSpec {
        name,
        namespace,
        parallelism,
        completions,
        retries,
        retry_after_ms,
        unit,
        labels,
    })
}

fn cores(count: u64) -> UnitTemplate {
    wasm(amount(count * 1_000, MI))
}

/// Nodes `a1`, `a2`, … of two racks, each of so many cores.
fn racks(nodes: usize, cores: u64) -> Cluster {
    let mut cluster = Cluster::new();
    for rack in ["a", "b"] {
        for number in 1..=nodes {
            let attributes = [("rack", rack)];
            let runtimes = [Runtime::Wasm, Runtime::Oci];
            let size = amount(cores * 1_000, 8 * GI);
            cluster.node_like(&format!("{rack}{number}"), size, &runtimes, &attributes);
        }
    }
    cluster
}

/// What comes of it; twice, because it has to be the same, and the cluster itself must not change.
fn outcome(cluster: &Cluster, scenario: &Scenario) -> Simulation {
    let run = || simulate(cluster.model.clone(), scenario, &cluster.moment, &on);
    let simulation = run().unwrap();
    assert_eq!(run().unwrap(), simulation);
    let written = serde_json::to_string(&cluster.model).unwrap();
    let replayed: Model = serde_json::from_str(&written).unwrap();
    assert_eq!(simulate(replayed, scenario, &cluster.moment, &on).unwrap(), simulation, "replayed");
    simulation
}

/// Everything that people read, a line each.
fn told(simulation: &Simulation) -> String {
    let mut lines = vec![simulation.answer.clone()];
    let (before, after) = (&simulation.before, &simulation.after);
    lines.push(format!(
        "cpu {} of {} -> {} of {}; units {} -> {}",
        before.used.cpu,
        before.total.cpu,
        after.used.cpu,
        after.total.cpu,
        before.units,
        after.units
    ));
    for one in &simulation.placements {
        lines.push(format!("{} x{} on {}", one.key.name, one.units, one.node));
    }
    for one in &simulation.waits {
        let reason = one.reason.map(Reason::as_str);
        lines.push(format!("{} x{} waits {reason:?}", one.key.name, one.units));
    }
    for one in &simulation.evictions {
        let message = one.message.clone().unwrap_or_default();
        lines.push(format!("{} leaves ({}): {message}", one.key.name, one.reason.as_str()));
    }
    for one in &simulation.lost {
        lines.push(format!("{} lost ({})", one.key.name, one.reason.as_str()));
    }
    for one in &simulation.services {
        let (key, replicas) = (&one.key.name, one.replicas);
        let (before, lowest, after) = (one.before, one.lowest, one.after);
        lines.push(format!("{key}: of {replicas}: {before}, {lowest}, {after}"));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn check(cluster: &Cluster, scenario: &Scenario, expected: &Expect) -> Simulation {
    let simulation = outcome(cluster, scenario);
    assert!(simulation.is_settled);
    assert_eq!(simulation.answer.starts_with("Yes: "), simulation.fits);
    expected.assert_eq(&told(&simulation));
    simulation
}

#[test]
fn a_rack_is_lost_with_room_for_its_units() {
    let mut cluster = racks(2, 4);
    cluster.service("web", 6, cores(1));
    cluster.settle();
    let before = cluster.model.clone();
    check(
        &cluster,
        &rack("a"),
        &expect![[r#"
            Yes: the 6 units of 2 nodes find room elsewhere; meanwhile service `web` in namespace `default` has 0 of 6 units at the lowest
            cpu 6 of 16 -> 6 of 8; units 6 -> 6
            web x4 on b1
            web x2 on b2
            web: of 6: 6, 0, 6
        "#]],
    );
    assert_eq!(cluster.model, before);
}

#[test]
fn a_rack_is_lost_without_room_for_its_units() {
    let mut cluster = racks(2, 4);
    cluster.service("web", 12, cores(1));
    cluster.unit("alone", cores(1));
    cluster.settle();
    check(
        &cluster,
        &rack("a"),
        &expect![[r#"
            No: 5 units of service `web` in namespace `default` would wait: every node is out of reach, or short of cpu: it starts as soon as there is room; enough would be 1 more cpu free on `b1`, or that `a1` comes back
            cpu 13 of 16 -> 8 of 8; units 13 -> 8
            web x3 on b2
            web x5 waits Some("Unschedulable")
            web: of 12: 12, 4, 7
        "#]],
    );
    check(
        &cluster,
        &rack("b"),
        &expect![[r#"
            No: 4 units of service `web` in namespace `default` would wait: every node is out of reach, or short of cpu: it starts as soon as there is room; enough would be 1 more cpu free on `a1`, or that `b1` comes back; unit `alone` in namespace `default` would be lost: node `b1` has been out of reach for 60 s
            cpu 13 of 16 -> 8 of 8; units 13 -> 8
            web x4 waits Some("Unschedulable")
            alone lost (NodeLost)
            web: of 12: 12, 8, 8
        "#]],
    );
}

#[test]
fn nothing_runs_where_it_is_lost() {
    let mut cluster = racks(1, 4);
    cluster.service("web", 1, cores(1));
    cluster.settle();
    let place = cluster.model.units().next().unwrap().node.clone().unwrap();
    let empty = if place.as_str() == "a1" { "b1" } else { "a1" };
    let simulation = outcome(&cluster, &node_lost(empty));
    assert_eq!(simulation.answer, format!("Yes: nothing runs on node `{empty}`"));
}

#[test]
fn everything_is_lost() {
    let mut cluster = racks(1, 4);
    cluster.service("web", 2, cores(1));
    cluster.settle();
    let constraints = vec![requires("rack", Operator::Exists, &[])];
    let lose = vec![Loss { node: None, constraints }];
    check(
        &cluster,
        &Scenario { lose, ..Scenario::default() },
        &expect![[r#"
            No: 2 units of service `web` in namespace `default` would wait: every node is out of reach: it starts as soon as one that fits is back; enough would be that `a1` comes back
            cpu 2 of 8 -> 0 of 0; units 2 -> 0
            web x2 waits Some("Unschedulable")
            web: of 2: 2, 0, 0
        "#]],
    );
}

#[test]
fn forty_arrive_with_room_and_without() {
    let mut cluster = racks(2, 8);
    cluster.unit("job-3", cores(1));
    cluster.settle();
    let fits = check(
        &cluster,
        &arrive(lone("job", cores(1)), 31),
        &expect![[r#"
            Yes: all 31 units fit
            cpu 1 of 32 -> 32 of 32; units 1 -> 32
            job-1 x7 on a1
            job-12 x8 on a2
            job-17 x8 on b1
            job-25 x8 on b2
        "#]],
    );
    assert_eq!(fits.placements.iter().map(|one| one.units).sum::<u32>(), 31);
    check(
        &cluster,
        &arrive(lone("job", cores(1)), 40),
        &expect![[r#"
            No: unit `job-33` in namespace `default` and 8 like it would wait: every node is short of cpu: it starts as soon as there is room; enough would be 1 more cpu free on `a1`; 31 of the 40 units that arrive fit
            cpu 1 of 32 -> 32 of 32; units 1 -> 32
            job-1 x7 on a1
            job-12 x8 on a2
            job-17 x8 on b1
            job-25 x8 on b2
            job-33 x9 waits Some("Unschedulable")
        "#]],
    );
    check(
        &cluster,
        &arrive(a_service("web", 4, cores(1)), 8),
        &expect![[r#"
            No: 1 unit of service `web-8` in namespace `default` would wait: every node is short of cpu: it starts as soon as there is room; enough would be 1 more cpu free on `a1`; 31 of the 32 units that arrive fit
            cpu 1 of 32 -> 32 of 32; units 1 -> 32
            web-1 x4 on a1
            web-2 x3 on a1
            web-2 x1 on a2
            web-3 x4 on a2
            web-4 x3 on a2
            web-4 x1 on b1
            web-5 x4 on b1
            web-6 x3 on b1
            web-6 x1 on b2
            web-7 x4 on b2
            web-8 x3 on b2
            web-8 x1 waits Some("Unschedulable")
            web-1: of 4: 0, 0, 4
            web-2: of 4: 0, 0, 4
            web-3: of 4: 0, 0, 4
            web-4: of 4: 0, 0, 4
            web-5: of 4: 0, 0, 4
            web-6: of 4: 0, 0, 4
            web-7: of 4: 0, 0, 4
            web-8: of 4: 0, 0, 3
        "#]],
    );
    check(
        &cluster,
        &arrive(a_job("sum", 4, cores(2)), 4),
        &expect![[r#"
            No: 1 unit of job `sum-4` in namespace `default` would wait: every node is short of cpu: it starts as soon as there is room; enough would be 1 more cpu free on `a1`, or a request of 1 cpu; 15 of the 16 units that arrive fit
            cpu 1 of 32 -> 31 of 32; units 1 -> 16
            sum-1 x3 on a1
            sum-1 x1 on a2
            sum-2 x3 on a2
            sum-2 x1 on b1
            sum-3 x3 on b1
            sum-3 x1 on b2
            sum-4 x3 on b2
            sum-4 x1 waits Some("Unschedulable")
        "#]],
    );
}

#[test]
fn what_arrives_with_a_higher_priority_sends_others_away() {
    let mut cluster = racks(1, 2);
    cluster.service("web", 3, cores(1));
    cluster.unit("alone", UnitTemplate { priority: -1, ..cores(1) });
    cluster.settle();
    let high = UnitTemplate { priority: 10, ..cores(1) };
    check(
        &cluster,
        &arrive(lone("high", high.clone()), 1),
        &expect![[r#"
            No: unit `alone` in namespace `default` would be lost: makes room for unit `high-1` of namespace `default` (priority 10)
            cpu 4 of 4 -> 4 of 4; units 4 -> 4
            high-1 x1 on b1
            alone leaves (Preempted): makes room for unit `high-1` of namespace `default` (priority 10)
            alone lost (Preempted)
        "#]],
    );
    check(
        &cluster,
        &arrive(lone("high", high), 2),
        &expect![[r#"
            No: 1 unit of service `web` in namespace `default` would wait: every node is short of cpu: it starts as soon as there is room; enough would be 1 more cpu free on `a1`; unit `alone` in namespace `default` would be lost: makes room for unit `high-1` of namespace `default` (priority 10)
            cpu 4 of 4 -> 4 of 4; units 4 -> 4
            high-1 x1 on b1
            high-2 x1 on a1
            web x1 waits Some("Unschedulable")
            web-3scyx leaves (Preempted): makes room for unit `high-2` of namespace `default` (priority 10)
            alone leaves (Preempted): makes room for unit `high-1` of namespace `default` (priority 10)
            alone lost (Preempted)
            web: of 3: 3, 2, 2
        "#]],
    );
}

#[test]
fn what_is_sure_of_its_share_takes_it_back() {
    let mut cluster = racks(1, 2);
    cluster.namespace("default", None);
    let guaranteed = NamespaceSpec {
        name: namespace("team"),
        quota: None,
        guarantee: Some(amount(2_000, GI)),
        weight: None,
        max_units: None,
        max_services: None,
        max_jobs: None,
        description: String::new(),
    };
    let meta = cluster.meta();
    cluster.put(Object::Namespace(Namespace { spec: guaranteed, meta }));
    cluster.service("web", 2, cores(1));
    cluster.service("api", 2, cores(1));
    cluster.settle();
    let mut manifest = lone("mine", cores(1));
    if let Manifest::Unit(spec) = &mut manifest {
        spec.namespace = namespace("team");
    }
    check(
        &cluster,
        &arrive(manifest, 2),
        &expect![[r#"
            No: 1 unit of service `web` in namespace `default` would wait: every node is short of cpu: it starts as soon as there is room; enough would be 1 more cpu free on `a1`; 1 other unit would wait as well
            cpu 4 of 4 -> 4 of 4; units 4 -> 4
            mine-1 x1 on a1
            mine-2 x1 on b1
            api x1 waits Some("Unschedulable")
            web x1 waits Some("Unschedulable")
            api-3scyx leaves (Preempted): makes room for unit `mine-1` of namespace `team` (priority 0)
            web-qgs86 leaves (Preempted): makes room for unit `mine-2` of namespace `team` (priority 0)
            api: of 2: 2, 1, 1
            web: of 2: 2, 1, 1
        "#]],
    );
}

#[test]
fn a_quota_that_is_hit_is_named() {
    let mut cluster = racks(1, 8);
    cluster.namespace("default", Some(amount(3_000, 0)));
    let simulation = check(
        &cluster,
        &arrive(lone("x", cores(1)), 4),
        &expect![[r#"
            No: unit `x-4` in namespace `default` would wait: it asks for 1 of cpu, and the quota of namespace `default` (3) is used up: it starts once others there have ended, or the quota is raised; 3 of 3 are in use; enough would be a quota of 4; 3 of the 4 units that arrive fit
            cpu 0 of 16 -> 3 of 16; units 0 -> 3
            x-1 x3 on a1
            x-4 x1 waits Some("QuotaExceeded")
        "#]],
    );
    assert_eq!(simulation.quotas, [namespace("default")]);
}

#[test]
fn a_spread_that_can_not_be_kept_makes_units_wait() {
    let mut cluster = racks(2, 2);
    let mut unit = cores(1);
    let (over, max_skew) = ("rack".to_owned(), Some(1));
    unit.placement.spread = vec![Spread { over, max_skew, weight: None, targets: BTreeMap::new() }];
    cluster.service("web", 6, unit);
    cluster.settle();
    check(
        &cluster,
        &node_lost("a1"),
        &expect![[r#"
            No: 1 unit of service `web` in namespace `default` would wait: every node is out of reach, short of cpu, or where its spread allows no more of its kind: it starts as soon as there is room; enough would be 1 more cpu free on `a2`, or a `max_skew` of more than 1 over rack (for rack b), or that `a1` comes back
            cpu 6 of 8 -> 5 of 6; units 6 -> 5
            web x1 on a2
            web x1 waits Some("Unschedulable")
            web: of 6: 6, 4, 5
        "#]],
    );
}

#[test]
fn a_gang_arrives_whole_or_waits_whole() {
    let cluster = racks(2, 2);
    let gang = |size| UnitTemplate { gang: Some(Gang { name: name("train"), size }), ..cores(1) };
    check(
        &cluster,
        &arrive(lone("m", gang(8)), 8),
        &expect![[r#"
            Yes: all 8 units fit
            cpu 0 of 8 -> 8 of 8; units 0 -> 8
            m-1 x2 on a1
            m-3 x2 on a2
            m-5 x2 on b1
            m-7 x2 on b2
        "#]],
    );
    check(
        &cluster,
        &arrive(lone("m", gang(9)), 9),
        &expect![[r#"
            No: unit `m-1` in namespace `default` and 8 like it would wait: not all of gang `train` fits yet: 8 of 9 units do, `m-9` does not; every node is short of cpu: it starts as soon as there is room; enough would be 1 more cpu free on `a1`; 0 of the 9 units that arrive fit
            cpu 0 of 8 -> 0 of 8; units 0 -> 0
            m-1 x9 waits Some("GangWaits")
        "#]],
    );
}

#[test]
fn what_waited_before_is_not_the_scenarios_doing_and_gets_room_from_new_nodes() {
    let mut cluster = racks(1, 2);
    cluster.service("web", 6, cores(1));
    cluster.settle();
    let more = |count| {
        let grow = vec![Growth { like: NodeName::new("a1").unwrap(), count }];
        Scenario { grow, ..Scenario::default() }
    };
    check(
        &cluster,
        &more(1),
        &expect![[r#"
            Yes: 1 node joins, and 2 units that waited get room
            cpu 4 of 4 -> 6 of 6; units 4 -> 6
            web x2 on a1-more-1
            web: of 6: 4, 4, 6
        "#]],
    );
    check(
        &cluster,
        &more(2),
        &expect![[r#"
            Yes: 2 nodes join, and 2 units that waited get room
            cpu 4 of 4 -> 6 of 8; units 4 -> 6
            web x2 on a1-more-1
            web: of 6: 4, 4, 6
        "#]],
    );
    let both = Scenario { lose: rack("b").lose, ..more(1) };
    check(
        &cluster,
        &both,
        &expect![[r#"
            No: 2 units of service `web` in namespace `default` would wait: every node is out of reach, or short of cpu: it starts as soon as there is room; enough would be 1 more cpu free on `a1`, or that `b1` comes back
            cpu 4 of 4 -> 4 of 4; units 4 -> 4
            web x2 on a1-more-1
            web x2 waits Some("Unschedulable")
            web: of 6: 4, 2, 4
        "#]],
    );
}

#[test]
fn units_that_wait_for_their_node_are_lost_with_it() {
    let mut cluster = racks(1, 4);
    let unit = UnitTemplate { disconnect: Disconnect::Wait, ..cores(3) };
    cluster.service("data", 2, unit);
    cluster.settle();
    check(
        &cluster,
        &rack("a"),
        &expect![[r#"
            No: unit `data-3scyx` in namespace `default` would be lost: it waits for its node (`disconnect: wait`)
            cpu 6 of 8 -> 3 of 4; units 2 -> 1
            data-3scyx lost (NodeLost)
            data: of 2: 2, 1, 1
        "#]],
    );
}

#[test]
fn an_update_of_a_service_is_rolled_out_to_the_end() {
    let mut cluster = racks(1, 4);
    cluster.service("web", 4, cores(1));
    cluster.settle();
    let mut service = cluster.model.services().next().unwrap().clone();
    service.spec.unit = cores(2);
    service.generation += 1;
    let scenario = Scenario { put: vec![Object::Service(service)], ..Scenario::default() };
    check(
        &cluster,
        &scenario,
        &expect![[r#"
            Yes: all 4 units fit; meanwhile service `web` in namespace `default` has 3 of 4 units at the lowest
            cpu 4 of 8 -> 8 of 8; units 4 -> 4
            web x2 on a1
            web x2 on b1
            web: of 4: 4, 3, 4
        "#]],
    );
}

#[test]
fn units_under_way_are_not_counted_as_lost_or_moved() {
    let mut cluster = racks(1, 4);
    cluster.service("web", 2, cores(1));
    cluster.pass();
    assert_eq!(cluster.count(|unit| unit.status.state == UnitState::Assigned), 2);
    cluster.unit("late", cores(1));
    let simulation = outcome(&cluster, &arrive(lone("x", cores(1)), 1));
    assert_eq!((simulation.before.units, simulation.after.units), (3, 4));
    assert_eq!(simulation.placements.len(), 1);
    assert!(simulation.services.is_empty(), "{simulation:?}");
}

fn faults(cluster: &Cluster, scenario: &Scenario) -> Vec<String> {
    let faults = simulate(cluster.model.clone(), scenario, &cluster.moment, &on).unwrap_err();
    faults.iter().map(ToString::to_string).collect()
}

#[test]
fn senseless_scenarios_are_refused_with_the_way_out() {
    let cluster = racks(1, 4);
    let both = Loss {
        node: Some(NodeName::new("a1").unwrap()),
        constraints: vec![requires("rack", Operator::Exists, &[])],
    };
    let bad_regex =
        Loss { node: None, constraints: vec![requires("rack", Operator::Regex, &["("])] };
    let unknown = NodeName::new("nowhere").unwrap();
    let lose = vec![Loss::default(), both, bad_regex];
    let mut found = faults(&cluster, &Scenario::default());
    found.extend(faults(&cluster, &node_lost("nowhere")));
    found.extend(faults(&cluster, &rack("r9")));
    found.extend(faults(&cluster, &Scenario { lose, ..Scenario::default() }));
    let grow = vec![Growth { like: unknown, count: u32::MAX }];
    found.extend(faults(&cluster, &Scenario { grow, ..Scenario::default() }));
    found.extend(faults(&cluster, &arrive(lone("x", cores(1)), 1_000_000_000)));
    found.extend(faults(&cluster, &arrive(lone("x", cores(1)), 0)));
    let config = Manifest::Config(brig_api::spec::ConfigSpec {
        name: name("c"),
        namespace: namespace("default"),
        data: BTreeMap::new(),
    });
    found.extend(faults(&cluster, &arrive(config, 2)));
    expect![[r#"
        nothing happens: give nodes to `lose`, manifests to `add` or nodes to `grow`
        lose[0].node: there is no node `nowhere`: `brig node ls` lists them
        lose[0].constraints: no node has rack = r9: `rack` is `a`, `b`
        lose[0]: expected either `node` or `constraints`
        lose[1]: expected either `node` or `constraints`
        lose[2].constraints: rack matching (: `(` is no regular expression: regex parse error:
            (
            ^
        error: unclosed group
        grow[0].like: there is no node `nowhere`: `brig node ls` lists them
        grow: more than 10000 nodes join: ask for fewer
        add[0].count: more than 10000 documents arrive: ask for fewer, or for one service with so many `replicas`
        add[0].count: expected at least 1
        add[0].count: a config arrives once: leave `count` out
    "#]].assert_eq(&(found.join("\n") + "\n"));
}

#[test]
fn as_many_as_may_arrive_are_answered_for_and_names_go_round_what_is_taken() {
    let mut cluster = racks(1, 4);
    cluster.unit("x-1", cores(1));
    cluster.settle();
    let scenario = arrive(lone(&"x".repeat(63), cores(1)), ARRIVALS_MAX);
    let simulation = simulate(cluster.model.clone(), &scenario, &cluster.moment, &on).unwrap();
    assert_eq!(simulation.waits.iter().map(|one| one.units).sum::<u32>(), ARRIVALS_MAX - 7);
    let simulation = outcome(&cluster, &arrive(lone("x", cores(1)), 1));
    assert_eq!(simulation.placements[0].key.name, "x-2");
    // A service may ask for more than is ever created.
    let scenario = arrive(a_service("huge", u32::MAX, cores(1)), 1);
    let limits = Limits { passes: 100, creations: 1_000 };
    let model = cluster.model.clone();
    let simulation = simulate_within(&limits, model, &scenario, &cluster.moment, &on).unwrap();
    assert!(!simulation.fits && !simulation.is_settled, "{}", simulation.answer);
    assert!(simulation.answer.contains("not at rest"), "{}", simulation.answer);
}

#[test]
fn a_simulation_that_is_called_off_says_so() {
    let mut cluster = racks(1, 4);
    cluster.service("web", 4, cores(1));
    cluster.settle();
    let simulation =
        simulate(cluster.model.clone(), &rack("a"), &cluster.moment, &|| true).unwrap();
    assert!(!simulation.fits && !simulation.is_settled, "{}", simulation.answer);
}
