//! Clusters drawn at random: anything that could be stored, also what nobody would write.

use brig_api::Milli;
use brig_api::placement::{
    Concurrency, Dependency, Gang, Neighbours, Preference, Spread, Taint, TaintEffect, Toleration,
};
use brig_api::session::HeldArtifact;
use brig_api::unit_spec::Mount;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option::{of, weighted};
use proptest::prelude::*;

use super::*;

fn any_number() -> impl Strategy<Value = u64> {
    prop_oneof![30 => 0..10u64, 1 => Just(u64::MAX), 1 => Just(u64::MAX / 2 + 1)]
}

/// Thousandths of devices: parts, whole ones, more than can be told apart, and what is neither.
fn any_devices() -> impl Strategy<Value = Milli> {
    let amounts = prop_oneof![
        4 => (1..4u64).prop_map(|whole| whole * 1_000),
        4 => prop_oneof![Just(250), Just(500), Just(600)],
        1 => Just(100_000),
        1 => any_number(),
    ];
    amounts.prop_map(Milli)
}

fn any_amount() -> impl Strategy<Value = Resources> {
    let scalars = prop_oneof![
        2 => Just(BTreeMap::new()),
        1 => btree_map("gpu|fpga", any_devices(), 1..3)
    ];
    (any_number(), any_number(), any_number(), scalars).prop_map(|(cpu, memory, disk, scalars)| {
        Resources { cpu: MilliCpu(cpu), memory: Bytes(memory), disk: Bytes(disk), scalars }
    })
}

/// What nodes have: often room for a few units, sometimes for none.
fn any_capacity() -> impl Strategy<Value = Resources> {
    let number = || prop_oneof![15 => 10..40u64, 1 => any_number()];
    let devices =
        prop_oneof![4 => (1..5u64).prop_map(|whole| Milli(whole * 1_000)), 1 => any_devices()];
    let scalars = btree_map("gpu|fpga", devices, 0..4);
    (number(), number(), number(), scalars).prop_map(|(cpu, memory, disk, scalars)| Resources {
        cpu: MilliCpu(cpu),
        memory: Bytes(memory),
        disk: Bytes(disk),
        scalars,
    })
}

fn any_time() -> impl Strategy<Value = i64> {
    prop_oneof![6 => 0..200_000i64, 1 => Just(i64::MIN), 1 => Just(i64::MAX)]
}

fn any_constraint() -> impl Strategy<Value = Constraint> {
    prop_oneof![
        ("[xyz]", prop_oneof![Just(Operator::Equal), Just(Operator::NotEqual)])
            .prop_map(|(zone, operator)| requires("zone", operator, &[&zone])),
        ("[xyz]", prop_oneof![Just(Operator::In), Just(Operator::NotIn)])
            .prop_map(|(zone, operator)| requires("zone", operator, &[&zone, "y"])),
        prop_oneof![Just(Operator::Exists), Just(Operator::NotExists)]
            .prop_map(|operator| requires("gpu-model", operator, &[])),
        Just(requires("gpu-model", Operator::Equal, &["a100"])),
        prop_oneof![Just(">=6"), Just("<6"), Just("no version")].prop_map(|wanted| requires(
            "kernel",
            Operator::Version,
            &[wanted]
        )),
        prop_oneof![Just("^6"), Just("("), Just("")].prop_map(|wanted| requires(
            "kernel",
            Operator::Regex,
            &[wanted]
        )),
    ]
}

fn any_over() -> impl Strategy<Value = String> {
    prop_oneof![Just("node"), Just("zone"), Just("rack")].prop_map(str::to_owned)
}

fn labels(app: u8) -> Labels {
    Labels::from([("app".to_owned(), format!("a{app}"))])
}

fn any_neighbours() -> impl Strategy<Value = Vec<Neighbours>> {
    let within = prop_oneof![3 => Just(None), 1 => Just(Some(namespace("default")))];
    let rule = (0..3u8, any_over(), within, of(1..100i32));
    let rule = rule.prop_map(|(app, over, within, weight)| Neighbours {
        units: labels(app),
        over,
        within,
        weight,
    });
    prop_oneof![5 => Just(Vec::new()), 1 => vec(rule, 1..3)]
}

fn any_spread() -> impl Strategy<Value = Vec<Spread>> {
    let targets = prop_oneof![2 => Just(BTreeMap::new()), 1 => btree_map("[xy]", 0..60u32, 1..3)];
    let spread = (any_over(), of(1..3u32), of(1..100i32), targets)
        .prop_map(|(over, max_skew, weight, targets)| Spread { over, max_skew, weight, targets });
    prop_oneof![3 => Just(Vec::new()), 1 => vec(spread, 1..3)]
}

fn any_rules() -> impl Strategy<Value = PlacementRules> {
    let preference =
        (any_constraint(), -100..100i32).prop_map(|(when, weight)| Preference { when, weight });
    let effect = of(prop_oneof![Just(TaintEffect::NoSchedule), Just(TaintEffect::Evict)]);
    let toleration = (prop_oneof![Just("*"), Just("spot")], of("[ab]"), effect)
        .prop_map(|(key, value, effect)| Toleration { key: key.to_owned(), value, effect });
    let all = (
        vec(preference, 0..2),
        vec(toleration, 0..2),
        any_neighbours(),
        any_neighbours(),
        any_spread(),
        (weighted(0.1, Just(())), weighted(0.15, Just(ArtifactRule::Present))),
    );
    all.prop_map(|(prefer, tolerations, near, away, spread, (distinct, artifacts))| {
        PlacementRules {
            prefer,
            tolerations,
            near,
            away,
            spread,
            distinct_hosts: distinct.is_some(),
            artifacts: artifacts.unwrap_or_default(),
        }
    })
}

fn any_dependency() -> impl Strategy<Value = Dependency> {
    prop_oneof![
        "s[0-3]".prop_map(|text| Dependency { service: Some(name(&text)), job: None }),
        "j[0-3]".prop_map(|text| Dependency { service: None, job: Some(name(&text)) }),
    ]
}

/// A program with its ports, which may be left open or be in the range that is given to open ones.
fn any_program(request: Resources) -> impl Strategy<Value = UnitTemplate> {
    let port = || prop_oneof![Just(0u16), Just(0), 1..4u16, Just(20_000), Just(20_001)];
    let fixed = of((0..ARTIFACTS, 0..2u8));
    (0..6u8, vec(port(), 0..3), 0..3u16, fixed).prop_map(move |(kind, ports, port, fixed)| {
        let container = || oci(request.clone(), &ports);
        let mut template = match kind {
            0 => container(),
            1 => http(request.clone(), port),
            2 => variants(&[http(request.clone(), port), container()]),
            3 => variants(&[container(), wasm(request.clone())]),
            _ => wasm(request.clone()),
        };
        if let Some((number, tag)) = fixed {
            fix(&mut template, &format!("a:{tag}@{}", digest(number)));
        }
        template
    })
}

/// Artifacts that nodes may hold.
const ARTIFACTS: u8 = 3;

pub(in crate::tests) fn any_holdings() -> impl Strategy<Value = Option<Vec<HeldArtifact>>> {
    let runtime = prop_oneof![2 => Just(Runtime::Wasm), 1 => Just(Runtime::Oci)];
    let held = (0..ARTIFACTS, runtime, any::<bool>()).prop_map(|(number, runtime, is_ready)| {
        HeldArtifact { digest: digest(number), runtime, is_ready }
    });
    weighted(0.8, vec(held, 0..6))
}

/// The node tells that it holds these and nothing else, or nobody knows any more.
pub(in crate::tests) fn tell(cluster: &mut Cluster, index: usize, held: Option<&[HeldArtifact]>) {
    let name = NodeName::new(format!("n{index}")).unwrap();
    let holdings = held.map(|held| Holdings::default().after(held, &[]));
    cluster.model.hold(&name, holdings);
}

fn any_template() -> impl Strategy<Value = UnitTemplate> {
    let when = (
        weighted(0.2, ("g[01]", 1..3u32)),
        prop_oneof![8 => Just(Vec::new()), 1 => vec(any_dependency(), 1..3)],
        weighted(0.1, ("f[01]", 1..3u32)),
        weighted(0.2, prop_oneof![0..100_000u64, Just(u64::MAX)]),
        any::<bool>(),
    );
    let place = (
        any_rules(),
        prop_oneof![5 => Just(Vec::new()), 1 => vec(any_constraint(), 1..3)],
        weighted(0.08, prop_oneof![Just("/srv/data"), Just("/srv/database"), Just("relative")]),
    );
    let rest = (-2..3i32, weighted(0.15, Just(())));
    let program = any_amount().prop_flat_map(any_program);
    (program, when, place, rest).prop_map(
        |(mut template, (gang, after, family, max_run_ms, waits), place, (priority, revocable))| {
            let (placement, constraints, mount) = place;
            template.gang = gang.map(|(text, size)| Gang { name: name(&text), size });
            template.concurrency =
                family.map(|(text, limit)| Concurrency { key: name(&text), limit });
            template.tasks[0].mounts.extend(mount.map(|path| Mount {
                host: Some(path.into()),
                config: None,
                secret: None,
                at: "/data".to_owned(),
                read_only: false,
            }));
            UnitTemplate {
                after,
                max_run_ms,
                placement,
                constraints,
                priority,
                revocable: revocable.is_some(),
                disconnect: if waits { Disconnect::Wait } else { Disconnect::Replace },
                ..template
            }
        },
    )
}

#[derive(Debug, Clone)]
pub(in crate::tests) struct NodeDraw {
    facts: NodeFacts,
    is_silent: bool,
    is_away: bool,
    since_ms: i64,
    held: Option<Vec<HeldArtifact>>,
}

fn any_facts() -> impl Strategy<Value = NodeFacts> {
    let taint = (
        prop_oneof![Just("spot"), Just("other")],
        prop_oneof![Just(""), Just("a")],
        prop_oneof![
            Just(TaintEffect::NoSchedule),
            Just(TaintEffect::PreferNot),
            Just(TaintEffect::Evict)
        ],
    );
    let taint = taint.prop_map(|(key, value, effect)| Taint {
        key: key.to_owned(),
        value: value.to_owned(),
        effect,
    });
    let taints = prop_oneof![5 => Just(Vec::new()), 1 => vec(taint, 1..3)];
    let attributes = (
        of(prop_oneof![Just("x"), Just("y")]),
        of("r[01]"),
        of(prop_oneof![Just("a100"), Just("v100")]),
        of(prop_oneof![Just("6.1.0-18"), Just("5.10"), Just("rolling")]),
    );
    let runtimes = prop_oneof![
        4 => Just(vec![Runtime::Wasm, Runtime::Oci]),
        3 => Just(vec![Runtime::Wasm]),
        1 => Just(vec![Runtime::Oci]),
    ];
    (any_capacity(), runtimes, attributes, taints, any::<bool>()).prop_map(
        |(allocatable, runtimes, (zone, rack, model, kernel), taints, has_volume)| {
            let zone = zone.map(str::to_owned);
            let pairs = [
                ("zone", zone),
                ("rack", rack),
                ("gpu-model", model.map(str::to_owned)),
                ("kernel", kernel.map(str::to_owned)),
            ];
            let pairs = pairs.into_iter();
            NodeFacts {
                allocatable,
                attributes: pairs.filter_map(|(key, v)| Some((key.to_owned(), v?))).collect(),
                taints,
                volumes: if has_volume { vec!["/srv/data".to_owned()] } else { Vec::new() },
                runtimes,
                address: "10.0.0.1".to_owned(),
                agent_version: "0.1.0".to_owned(),
                boot_id: "b".to_owned(),
            }
        },
    )
}

pub(in crate::tests) fn any_node() -> impl Strategy<Value = NodeDraw> {
    let away = (weighted(0.1, Just(())), weighted(0.2, Just(())), any_time());
    (any_facts(), away, any_holdings()).prop_map(|(facts, (silent, away, since_ms), held)| {
        NodeDraw { held, facts, is_silent: silent.is_some(), is_away: away.is_some(), since_ms }
    })
}

pub(in crate::tests) fn any_namespace() -> impl Strategy<Value = NamespaceSpec> {
    let most = || weighted(0.1, 0..6u32);
    (weighted(0.2, any_capacity()), weighted(0.4, any_capacity()), of(1..1_000u32), most())
        .prop_map(|(quota, guarantee, weight, max_units)| NamespaceSpec {
            name: namespace("default"),
            quota,
            guarantee,
            weight,
            max_units,
            max_services: None,
            max_jobs: None,
            description: String::new(),
        })
}

#[derive(Debug, Clone)]
pub(in crate::tests) struct UnitDraw {
    template: UnitTemplate,
    owner: u8,
    state: UnitState,
    desired: Desired,
    node: Option<u8>,
    promised: Option<u8>,
    grants: Grants,
    time_ms: i64,
    number: u8,
    app: Option<u8>,
}

fn any_grants() -> impl Strategy<Value = Grants> {
    let devices = btree_map("gpu|fpga", btree_set(0..4u32, 1..3), 0..2);
    let runtimes = vec(prop_oneof![Just(Runtime::Wasm), Just(Runtime::Oci)], 0..2);
    let ports = vec(prop_oneof![Just(20_000u16), Just(20_001)], 0..2);
    (ports, devices, runtimes).prop_map(|(ports, devices, runtimes)| {
        let devices = devices.into_iter().map(|(name, all)| (name, all.into_iter().collect()));
        Grants { ports, devices: devices.collect(), runtimes: runtimes.into_iter().collect() }
    })
}

pub(in crate::tests) fn any_unit() -> impl Strategy<Value = UnitDraw> {
    let state = prop_oneof![
        4 => Just(UnitState::Pending),
        3 => Just(UnitState::Running),
        2 => (0..UnitState::ALL.len()).prop_map(|at| UnitState::ALL[at])
    ];
    let desired =
        prop_oneof![8 => Just(Desired::Run), 1 => Just(Desired::Stop), 1 => Just(Desired::Remove)];
    let place = (weighted(0.9, 0..5u8), weighted(0.15, 0..5u8), any_grants());
    let who = (0..9u8, 0..4u8, of(0..3u8));
    (any_template(), state, desired, place, any_time(), who).prop_map(
        |(template, state, desired, (node, promised, grants), time_ms, (owner, number, app))| {
            UnitDraw {
                template,
                owner,
                state,
                desired,
                node,
                promised,
                grants,
                time_ms,
                number,
                app,
            }
        },
    )
}

type Draws = (
    Vec<NodeDraw>,
    Vec<(UnitTemplate, u32, u64, bool, u32)>,
    Vec<(UnitTemplate, u32, u32, u32, u8)>,
    Vec<UnitDraw>,
    Vec<Option<NamespaceSpec>>,
    i64,
);

/// A draw of everything, put together: owners and nodes may be missing, nodes be overcommitted, times be anything.
pub(in crate::tests) fn any_cluster() -> impl Strategy<Value = Cluster> {
    let services = vec((any_template(), 0..4u32, 1..3u64, any::<bool>(), 0..3u32), 0..3);
    let jobs = vec((any_template(), 0..4u32, 0..5u32, 0..3u32, 0..6u8), 0..3);
    let nodes = prop_oneof![1 => vec(any_node(), 0..2), 4 => vec(any_node(), 2..5)];
    let units = vec(any_unit(), 0..16);
    let namespaces = vec(of(any_namespace()), 0..4);
    (nodes, services, jobs, units, namespaces, any_time()).prop_map(build)
}

fn build((nodes, services, jobs, units, namespaces, now_ms): Draws) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.moment.now_ms = now_ms;
    for (path, drawn) in
        ["default", "default/a", "default/a/b", "other"].into_iter().zip(namespaces)
    {
        if let Some(drawn) = drawn {
            cluster.namespace_like(path, |spec| {
                *spec = NamespaceSpec { name: namespace(path), ..drawn }
            });
        }
    }
    for (index, draw) in nodes.into_iter().enumerate() {
        add_node(&mut cluster, index, draw);
    }
    for (index, (unit, replicas, generation, is_deleting, max_unavailable)) in
        services.into_iter().enumerate()
    {
        let text = format!("s{index}");
        cluster.service(&text, replicas, unit);
        cluster.change_service(&text, |service| {
            service.generation = generation;
            service.is_deleting = is_deleting;
            service.spec.max_unavailable = max_unavailable;
            service.spec.labels = labels(u8::try_from(index).unwrap());
        });
    }
    for (index, (unit, parallelism, completions, retries, kind)) in jobs.into_iter().enumerate() {
        let text = format!("j{index}");
        cluster.job(&text, (parallelism, completions, retries), unit);
        cluster.change_job(&text, |job| {
            job.is_deleting = kind == 0;
            job.state = match kind {
                1 => JobState::Stopped,
                2 => JobState::Succeeded,
                _ => JobState::Active,
            };
        });
    }
    for (index, draw) in units.into_iter().enumerate() {
        add_unit(&mut cluster, index, draw);
    }
    cluster
}

pub(in crate::tests) fn add_node(cluster: &mut Cluster, index: usize, draw: NodeDraw) {
    let name = cluster.node(&format!("n{index}"), Resources::default());
    let mut node = cluster.model.node(&name).unwrap().clone();
    node.facts = draw.facts;
    node.state = if draw.is_away { NodeState::Unreachable } else { NodeState::Ready };
    node.state_since_ms = draw.since_ms;
    cluster.put(Object::Node(node));
    tell(cluster, index, draw.held.as_deref());
    if draw.is_silent {
        cluster.moment.silent.insert(name);
    } else {
        cluster.moment.silent.remove(&name);
    }
}

pub(in crate::tests) fn add_unit(cluster: &mut Cluster, index: usize, draw: UnitDraw) {
    let path = ["default/a/b", "default", "default", "other"][usize::from(draw.number)];
    let id = cluster.unit_in(path, &format!("j1-{index}"), draw.template);
    let number = draw.number;
    let node = |node: u8| NodeName::new(format!("n{node}")).unwrap();
    cluster.change_unit(&id, |unit| {
        unit.owner = match draw.owner {
            0..5 => None,
            5..7 => Some(Owner::Service {
                name: name(&format!("s{}", draw.owner - 5)),
                generation: u64::from(number),
            }),
            _ => Some(Owner::Job {
                name: name(&format!("j{}", draw.owner - 7)),
                index: u32::from(number),
                attempt: if number == 3 { u32::MAX } else { u32::from(number) },
            }),
        };
        unit.status.state = draw.state;
        unit.desired = draw.desired;
        unit.node = draw.node.map(node).filter(|_| draw.state != UnitState::Pending);
        unit.promised = draw.promised.map(node).filter(|_| draw.state == UnitState::Pending);
        if draw.state.is_on_node() {
            unit.grants = draw.grants;
        }
        unit.labels = Arc::new(draw.app.map(labels).unwrap_or_default());
        unit.meta.created_ms = draw.time_ms;
        unit.remove_when_done = number == 1;
    });
}
