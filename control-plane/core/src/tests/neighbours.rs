//! Rules about other units, and about nodes themselves besides their attributes.

use brig_api::placement::{Neighbours, Preference, Spread, Taint, TaintEffect, Toleration};

use super::*;

fn zones(zones: &[(&str, &str)]) -> Cluster {
    let mut cluster = Cluster::new();
    for (text, zone) in zones {
        let runtimes = &[Runtime::Wasm, Runtime::Oci];
        cluster.node_like(text, amount(8_000, 8 * GI), runtimes, &[("zone", zone)]);
    }
    cluster
}

fn labels(app: &str) -> Labels {
    Labels::from([("app".to_owned(), app.to_owned())])
}

fn of(app: &str, over: &str, weight: Option<i32>) -> Neighbours {
    Neighbours { units: labels(app), over: over.to_owned(), within: None, weight }
}

fn small() -> UnitTemplate {
    wasm(amount(100, MI))
}

fn near(rule: Neighbours) -> UnitTemplate {
    let mut unit = small();
    unit.placement.near.push(rule);
    unit
}

fn away(rule: Neighbours) -> UnitTemplate {
    let mut unit = small();
    unit.placement.away.push(rule);
    unit
}

fn labelled(cluster: &mut Cluster, text: &str, app: &str, template: UnitTemplate) -> UnitId {
    let id = cluster.unit(text, template);
    cluster.change_unit(&id, |unit| unit.labels = Arc::new(labels(app)));
    id
}

fn on(cluster: &Cluster, id: &UnitId) -> String {
    node_of(cluster, id).unwrap_or_else(|| "-".to_owned())
}

/// How many units of each node's zone there are, by zone.
fn by_zone(cluster: &Cluster) -> BTreeMap<String, usize> {
    let mut zones = BTreeMap::new();
    for unit in cluster.model.units() {
        let node = unit.node.as_ref().and_then(|node| cluster.model.node(node));
        if let Some(zone) = node.and_then(|node| node.facts.attributes.get("zone")) {
            *zones.entry(zone.clone()).or_default() += 1;
        }
    }
    zones
}

#[test]
fn near_is_the_same_node_or_the_same_zone() {
    let mut cluster = zones(&[("a", "x"), ("b", "y"), ("c", "y")]);
    let db =
        UnitTemplate { constraints: vec![requires("zone", Operator::Equal, &["y"])], ..small() };
    let db = labelled(&mut cluster, "db", "db", db);
    cluster.pass();
    assert_eq!(on(&cluster, &db), "b");
    let node = cluster.unit("node", near(of("db", "node", None)));
    let zone = cluster.unit("zone", near(of("db", "zone", None)));
    let nowhere = cluster.unit("nowhere", near(of("cache", "zone", None)));
    let plan = cluster.pass();
    assert_eq!((on(&cluster, &node).as_str(), on(&cluster, &nowhere).as_str()), ("b", "-"));
    assert_ne!(on(&cluster, &zone), "a");
    assert!(refusals(&plan)[0].2.contains("far from the units"), "{:?}", refusals(&plan));
}

#[test]
fn the_first_of_a_group_that_wants_to_be_together_may_go_anywhere() {
    let mut cluster = zones(&[("a", "x"), ("b", "y"), ("c", "y")]);
    let ids: Vec<_> = (0..4)
        .map(|index| {
            let unit = near(of("web", "zone", None));
            labelled(&mut cluster, &format!("web-{index}"), "web", unit)
        })
        .collect();
    cluster.pass();
    assert!(ids.iter().all(|id| on(&cluster, id) != "-"));
    assert_eq!(by_zone(&cluster).len(), 1);
}

#[test]
fn away_holds_both_ways() {
    let mut cluster = zones(&[("a", "x"), ("b", "x"), ("c", "y")]);
    let loner = labelled(&mut cluster, "loner", "loner", away(of("web", "zone", None)));
    cluster.pass();
    assert_eq!(on(&cluster, &loner), "a");
    let web = labelled(&mut cluster, "web", "web", small());
    let plan = cluster.pass();
    assert_eq!(on(&cluster, &web), "c", "the loner does not want it in its zone");
    assert!(refusals(&plan).is_empty());
    let second = labelled(&mut cluster, "loner-2", "loner", away(of("web", "zone", None)));
    cluster.pass();
    assert!(["a", "b"].contains(&on(&cluster, &second).as_str()));
}

#[test]
fn a_preference_gives_way_where_a_requirement_does_not() {
    let mut cluster = zones(&[("a", "x"), ("b", "y")]);
    let first = labelled(&mut cluster, "w0", "web", away(of("web", "node", Some(100))));
    let second = labelled(&mut cluster, "w1", "web", away(of("web", "node", Some(100))));
    cluster.pass();
    assert_ne!(on(&cluster, &first), on(&cluster, &second));
    let third = labelled(&mut cluster, "w2", "web", away(of("web", "node", Some(100))));
    let strict = labelled(&mut cluster, "w3", "web", away(of("web", "node", None)));
    cluster.pass();
    assert_ne!(on(&cluster, &third), "-");
    assert_eq!(on(&cluster, &strict), "-");
    let friend = cluster.unit("friend", near(of("web", "node", Some(100))));
    cluster.pass();
    assert_ne!(on(&cluster, &friend), "-");
}

#[test]
fn neighbours_are_looked_for_in_the_own_namespace_alone() {
    let mut cluster = zones(&[("a", "x"), ("b", "y")]);
    let theirs = cluster.unit_in("other", "db", small());
    cluster.change_unit(&theirs, |unit| unit.labels = Arc::new(labels("db")));
    cluster.pass();
    let mine = cluster.unit("mine", near(of("db", "node", None)));
    cluster.pass();
    assert_eq!(on(&cluster, &mine), "-");
    let inner = cluster.unit_in("team/dev", "db", small());
    cluster.change_unit(&inner, |unit| unit.labels = Arc::new(labels("db")));
    let within = Neighbours { within: Some(namespace("team")), ..of("db", "node", None) };
    let outer = cluster.unit_in("team", "outer", near(within));
    cluster.pass();
    cluster.pass();
    assert_eq!(on(&cluster, &outer), on(&cluster, &inner));
}

#[test]
fn distinct_hosts_are_distinct() {
    let mut cluster = zones(&[("a", "x"), ("b", "y")]);
    let mut unit = small();
    unit.placement.distinct_hosts = true;
    cluster.service("web", 3, unit);
    cluster.pass();
    let nodes: BTreeSet<_> = cluster.model.units().filter_map(|unit| unit.node.clone()).collect();
    assert_eq!(nodes.len(), 2);
    assert_eq!(cluster.count(|unit| unit.node.is_some()), 2);
}

fn spread(max_skew: Option<u32>, targets: &[(&str, u32)]) -> UnitTemplate {
    let mut unit = small();
    let targets = targets.iter().map(|(zone, percent)| ((*zone).to_owned(), *percent)).collect();
    let over = "zone".to_owned();
    unit.placement.spread.push(Spread { over, max_skew, weight: None, targets });
    unit
}

#[test]
fn a_spread_keeps_zones_level() {
    for unit in [spread(Some(1), &[]), spread(None, &[])] {
        let mut cluster = zones(&[("a", "x"), ("b", "x"), ("c", "y"), ("d", "z")]);
        cluster.service("web", 7, unit);
        cluster.pass();
        let counts: Vec<_> = by_zone(&cluster).into_values().collect();
        assert_eq!(counts.iter().sum::<usize>(), 7);
        assert!(counts.iter().all(|count| (2..=3).contains(count)), "{counts:?}");
    }
}

#[test]
fn a_required_spread_waits_where_a_preferred_one_goes_on() {
    for (unit, expected) in [(spread(Some(1), &[]), 3), (spread(None, &[]), 6)] {
        let mut cluster = zones(&[("a", "x")]);
        let runtimes = &[Runtime::Wasm];
        cluster.node_like("tiny", amount(100, 8 * GI), runtimes, &[("zone", "y")]);
        cluster.service("web", 6, unit);
        cluster.pass();
        assert_eq!(cluster.count(|unit| unit.node.is_some()), expected);
    }
}

#[test]
fn a_spread_goes_by_targets() {
    let mut cluster = zones(&[("a", "x"), ("b", "y"), ("c", "z")]);
    cluster.service("web", 10, spread(Some(1), &[("x", 70), ("y", 20)]));
    cluster.pass();
    let expected = BTreeMap::from([("x".to_owned(), 7), ("y".to_owned(), 2), ("z".to_owned(), 1)]);
    assert_eq!(by_zone(&cluster), expected);
}

#[test]
fn preferences_draw_and_repel() {
    let mut cluster = zones(&[("a", "x"), ("b", "y"), ("c", "z")]);
    let mut unit = small();
    let prefer =
        |zone, weight| Preference { when: requires("zone", Operator::Equal, &[zone]), weight };
    unit.placement.prefer = vec![prefer("x", -100), prefer("z", 50)];
    let id = cluster.unit("u", unit.clone());
    cluster.pass();
    assert_eq!(on(&cluster, &id), "c");
    unit.placement.prefer.remove(1);
    let id = cluster.unit(
        "v",
        UnitTemplate { constraints: vec![requires("zone", Operator::NotEqual, &["z"])], ..unit },
    );
    cluster.pass();
    assert_eq!(on(&cluster, &id), "b");
}

fn taint(cluster: &mut Cluster, node: &str, effect: TaintEffect) {
    let mut node = cluster.model.node(&NodeName::new(node).unwrap()).unwrap().clone();
    node.facts.taints = vec![Taint { key: "gpu".to_owned(), value: String::new(), effect }];
    cluster.put(Object::Node(node));
}

fn tolerant() -> UnitTemplate {
    let mut unit = small();
    unit.placement.tolerations =
        vec![Toleration { key: "gpu".to_owned(), value: None, effect: None }];
    unit
}

#[test]
fn taints_keep_away_who_does_not_tolerate_them() {
    let mut cluster = zones(&[("a", "x")]);
    taint(&mut cluster, "a", TaintEffect::NoSchedule);
    let tolerant = cluster.unit("tolerant", tolerant());
    let other = cluster.unit("other", small());
    let plan = cluster.pass();
    assert_eq!((on(&cluster, &tolerant).as_str(), on(&cluster, &other).as_str()), ("a", "-"));
    let explained = plan.explanations.iter().find(|e| e.unit == other).unwrap();
    let text = explained.render(&name("other"));
    assert!(text.contains("a toleration of `gpu:no-schedule` (for `a`)"), "{text}");
}

#[test]
fn a_node_with_a_mild_taint_comes_last() {
    let mut cluster = zones(&[("a", "x"), ("b", "x")]);
    taint(&mut cluster, "a", TaintEffect::PreferNot);
    let id = cluster.unit("u", small());
    cluster.pass();
    assert_eq!(on(&cluster, &id), "b");
}

#[test]
fn a_taint_that_evicts_moves_a_service_elsewhere() {
    let mut cluster = zones(&[("a", "x")]);
    cluster.service("web", 2, small());
    cluster.service("tolerant", 1, tolerant());
    cluster.settle();
    taint(&mut cluster, "a", TaintEffect::Evict);
    cluster.node("b", amount(8_000, 8 * GI));
    let plan = cluster.pass();
    let evicted = stops(&cluster, &plan);
    assert_eq!(evicted.len(), 2);
    assert!(
        evicted
            .iter()
            .all(|(name, reason)| { name.starts_with("web") && *reason == Reason::Evicted })
    );
    cluster.settle();
    let of = |prefix: &str| {
        cluster
            .model
            .units()
            .filter(|unit| unit.name.as_str().starts_with(prefix))
            .map(|unit| unit.node.as_ref().unwrap().to_string())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(of("web"), BTreeSet::from(["b".to_owned()]));
    assert_eq!(of("tolerant"), BTreeSet::from(["a".to_owned()]));
}

#[test]
fn a_unit_that_comes_to_a_node_after_the_taint_leaves_it_too() {
    let mut cluster = zones(&[("a", "x")]);
    let id = cluster.unit("u", small());
    let late = plan(&mut cluster.model.clone(), &cluster.moment);
    // The taint was stored while that plan was made: plans fend off one another, and nothing else.
    taint(&mut cluster, "a", TaintEffect::Evict);
    cluster.pass();
    let after = cluster.model.plan;
    commit(&mut cluster.model, &Plan { after, ..late }, cluster.moment.now_ms).unwrap();
    assert_eq!(on(&cluster, &id), "a");
    let plan = cluster.pass();
    assert_eq!(stops(&cluster, &plan), [("u".to_owned(), Reason::Evicted)]);
}

#[test]
fn volumes_are_where_nodes_offer_them() {
    let mut cluster = zones(&[("a", "x"), ("b", "x")]);
    let mut node = cluster.model.node(&NodeName::new("b").unwrap()).unwrap().clone();
    node.facts.volumes = vec!["/srv/data".to_owned()];
    cluster.put(Object::Node(node));
    let mounting = |path: &str| {
        let mut unit = small();
        unit.tasks[0].mounts.push(brig_api::unit_spec::Mount {
            host: Some(path.into()),
            config: None,
            secret: None,
            at: "/data".to_owned(),
            read_only: false,
        });
        unit
    };
    let below = cluster.unit("below", mounting("/srv/data/mine"));
    let beside = cluster.unit("beside", mounting("/srv/database"));
    cluster.pass();
    assert_eq!((on(&cluster, &below).as_str(), on(&cluster, &beside).as_str()), ("b", "-"));
}

#[test]
fn versions_and_patterns_of_attributes_are_compared() {
    let mut cluster = Cluster::new();
    for (text, kernel) in [("old", "5.10.0-8"), ("new", "6.1.0-18-amd64")] {
        let runtimes = &[Runtime::Wasm];
        cluster.node_like(text, amount(8_000, 8 * GI), runtimes, &[("kernel", kernel)]);
    }
    let with = |operator, value| UnitTemplate {
        constraints: vec![requires("kernel", operator, &[value])],
        ..small()
    };
    let version = cluster.unit("version", with(Operator::Version, ">=6.1, <7"));
    let pattern = cluster.unit("pattern", with(Operator::Regex, "^5\\.10\\."));
    cluster.pass();
    assert_eq!((on(&cluster, &version).as_str(), on(&cluster, &pattern).as_str()), ("new", "old"));
}

#[test]
fn a_node_that_has_the_program_already_is_preferred_among_equals() {
    let mut cluster = zones(&[("a", "x"), ("b", "x")]);
    let of = |artifact: &str| {
        let mut unit = wasm(amount(1_000, 512 * MI));
        let program = WasmProgram { artifact: artifact.to_owned(), ..WasmProgram::default() };
        unit.tasks[0].variants = Program::Wasm(program).into();
        unit
    };
    let first = UnitTemplate {
        constraints: vec![requires("hostname", Operator::NotExists, &[])],
        ..of("team/app:1")
    };
    let mut on_b = first;
    on_b.placement.prefer = vec![];
    let mut node = cluster.model.node(&NodeName::new("a").unwrap()).unwrap().clone();
    node.facts.attributes.insert("hostname".to_owned(), "a".to_owned());
    cluster.put(Object::Node(node));
    let first = cluster.unit("first", on_b);
    let other = UnitTemplate {
        constraints: vec![requires("hostname", Operator::Exists, &[])],
        ..of("team/other:1")
    };
    cluster.unit("other", other);
    cluster.pass();
    assert_eq!(on(&cluster, &first), "b");
    let second = cluster.unit("second", of("team/app:1"));
    cluster.pass();
    assert_eq!(on(&cluster, &second), "b", "both are as full, and ties would go to a");
}
