//! What holds for every model: plans are sound, repeatable, and lead to rest.

use proptest::prelude::*;

use super::*;

/// Checks a plan against the model it was made on, without the scheduler's own index: what it places is pending and
/// wanted, no node and no quota that it charges is overcommitted, every filter holds, and nothing is decided twice.
pub(super) fn assert_sound(model: &Model, moment: &Moment, plan: &Plan) {
    assert_eq!((plan.after, plan.based_on), (model.plan, model.revision));
    assert!(plan.wake_at_ms.is_none_or(|at_ms| at_ms > moment.now_ms));
    let mut after: BTreeMap<UnitId, Unit> =
        model.units().map(|unit| (unit.id.clone(), unit.clone())).collect();
    let mut placed = BTreeMap::new();
    for decision in &plan.decisions {
        match decision {
            Decision::UnitCreate(unit) => {
                assert!(!after.contains_key(&unit.id), "{} exists", unit.id);
                let has_name =
                    |other: &Unit| other.name == unit.name && other.namespace == unit.namespace;
                assert!(!model.units().any(has_name), "{} is taken", unit.name);
                after.insert(unit.id.clone(), (**unit).clone());
            }
            Decision::UnitPlace { unit, node, grants } => {
                let placed_unit = after.get_mut(unit).expect("a known unit");
                assert_eq!(placed_unit.status.state, UnitState::Pending, "placed once");
                assert_eq!(placed_unit.desired, Desired::Run);
                placed_unit.status.state = UnitState::Assigned;
                placed_unit.node = Some(node.clone());
                placed_unit.grants = grants.clone();
                placed.insert(unit.clone(), node.clone());
            }
            Decision::UnitStop { unit, desired, .. } => {
                let stopped = after.get_mut(unit).unwrap();
                assert!(
                    stopped.desired != Desired::Remove && stopped.desired != *desired,
                    "no news"
                );
                stopped.desired = *desired;
            }
            Decision::UnitEnd { unit, .. } => {
                assert_eq!(after[unit].status.state, UnitState::Pending);
                after.get_mut(unit).unwrap().status.state = UnitState::Stopped;
            }
            Decision::UnitLose { unit, .. } => assert!(after[unit].status.state.is_on_node()),
            Decision::UnitRemove { unit } => assert!(after[unit].status.state.is_final()),
            _ => {}
        }
    }
    for (id, node) in &placed {
        assert_placement(model, moment, &after, &after[id], node);
    }
}

fn assert_placement(
    model: &Model,
    moment: &Moment,
    after: &BTreeMap<UnitId, Unit>,
    unit: &Unit,
    node: &NodeName,
) {
    assert!(!moment.silent.contains(node));
    let facts = &model.node(node).expect("a known node").facts;
    let on_node = || {
        after
            .values()
            .filter(|other| other.status.state.is_on_node() && other.node.as_ref() == Some(node))
    };
    let request = unit.template.request();
    let sum = |of: fn(&Resources) -> u64| -> u128 {
        on_node().map(|other| u128::from(of(&other.template.request()))).sum()
    };
    let free = &facts.allocatable;
    assert!(request.cpu.0 == 0 || sum(|r| r.cpu.0) <= u128::from(free.cpu.0), "{node} cpu");
    assert!(request.memory.0 == 0 || sum(|r| r.memory.0) <= u128::from(free.memory.0));
    assert!(request.disk.0 == 0 || sum(|r| r.disk.0) <= u128::from(free.disk.0));
    for (name, wanted) in request.scalars.iter().filter(|(_, wanted)| wanted.0 > 0) {
        let used = on_node().filter_map(|other| {
            // What was there before and names no devices is not counted against devices.
            let is_counted = other.id == unit.id || other.grants.devices.contains_key(name);
            other.template.request().scalars.get(name).filter(|_| is_counted).copied()
        });
        let used: u128 = used.map(|amount| u128::from(amount.0)).sum();
        assert!(used <= u128::from(free.scalars[name].0), "{node} {name} {wanted}");
    }
    assert!(unit.template.runtimes().iter().all(|runtime| facts.runtimes.contains(runtime)));
    assert!(unit.template.constraints.iter().all(|c| c.is_met_by(&facts.attributes)));
    let service = |unit: &Unit| match &unit.owner {
        Some(Owner::Service { name, .. }) => Some((unit.namespace.clone(), name.clone())),
        _ => None,
    };
    for port in unit.template.host_ports() {
        for other in on_node().filter(|other| other.id != unit.id) {
            let same = |theirs: &brig_api::unit_spec::HostPort| theirs.port == port.port;
            let clash = other.template.host_ports().into_iter().find(same);
            let is_shared = clash.is_none_or(|theirs| {
                theirs.is_shared_by_service
                    && port.is_shared_by_service
                    && service(unit).is_some()
                    && service(unit) == service(other)
            });
            assert!(is_shared, "port {} twice on {node}", port.port);
        }
    }
    assert_quotas_hold(model, after, unit);
}

fn assert_quotas_hold(model: &Model, after: &BTreeMap<UnitId, Unit>, placed: &Unit) {
    let above = |path: &NamespacePath| placed.namespace.is_within(path);
    for namespace in model.namespaces().filter(|n| above(&n.spec.name)) {
        let Some(quota) = &namespace.spec.quota else { continue };
        let live = after.values().filter(|unit| {
            unit.status.state.is_on_node() && unit.namespace.is_within(&namespace.spec.name)
        });
        // A unit whose node is gone takes up nothing.
        let live =
            live.filter(|unit| unit.node.as_ref().is_some_and(|node| model.node(node).is_some()));
        let used = live.fold((0u128, 0u128), |(cpu, memory), unit| {
            let request = unit.template.request();
            (cpu + u128::from(request.cpu.0), memory + u128::from(request.memory.0))
        });
        let request = placed.template.request();
        let fits = |wanted: u64, used: u128, limit: u64| {
            wanted == 0 || limit == 0 || used <= u128::from(limit)
        };
        assert!(fits(request.cpu.0, used.0, quota.cpu.0));
        assert!(fits(request.memory.0, used.1, quota.memory.0));
    }
}

fn any_amount() -> impl Strategy<Value = Resources> {
    let number = || prop_oneof![8 => 0..10u64, 1 => Just(u64::MAX), 1 => Just(u64::MAX / 2 + 1)];
    let scalars = proptest::collection::btree_map("gpu|fpga", number(), 0..2);
    (number(), number(), number(), scalars).prop_map(|(cpu, memory, disk, scalars)| Resources {
        cpu: MilliCpu(cpu),
        memory: Bytes(memory),
        disk: Bytes(disk),
        scalars: scalars
            .into_iter()
            .map(|(name, amount)| (name, brig_api::Milli(amount)))
            .collect(),
    })
}

fn any_time() -> impl Strategy<Value = i64> {
    prop_oneof![6 => 0..200_000i64, 1 => Just(i64::MIN), 1 => Just(i64::MAX)]
}

fn any_template() -> impl Strategy<Value = UnitTemplate> {
    let kinds = (any_amount(), 0..4u8, 0..3u16, any::<bool>(), any::<bool>(), -2..3i32);
    kinds.prop_map(|(request, kind, port, is_picky, waits, priority)| {
        let mut template = match kind {
            0 => oci(request, &[port]),
            1 => http(request, port),
            _ => wasm(request),
        };
        if is_picky {
            template.constraints.push(requires("zone", Operator::Equal, &["x"]));
        }
        template.disconnect = if waits { Disconnect::Wait } else { Disconnect::Replace };
        template.priority = priority;
        template
    })
}

fn any_node() -> impl Strategy<Value = (Resources, bool, bool, bool, bool, i64)> {
    let flag = any::<bool>;
    (any_amount(), flag(), flag(), flag(), flag(), any_time())
}

type UnitDraw = (UnitTemplate, u8, u8, u8, u8, i64, u8);

fn any_unit() -> impl Strategy<Value = UnitDraw> {
    (any_template(), 0..8u8, 0..10u8, 0..3u8, 0..5u8, any_time(), 0..4u8)
}

/// A draw of everything, put together: names collide, owners and nodes may be missing, times are anything.
fn any_cluster() -> impl Strategy<Value = (Model, Moment)> {
    let services =
        proptest::collection::vec((any_template(), 0..4u32, 1..3u64, any::<bool>()), 0..3);
    let jobs = proptest::collection::vec((any_template(), 0..4u32, 0..5u32, 0..3u32, 0..6u8), 0..3);
    let nodes = proptest::collection::vec(any_node(), 0..4);
    let units = proptest::collection::vec(any_unit(), 0..12);
    let quotas = proptest::collection::vec(proptest::option::of(any_amount()), 0..3);
    (nodes, services, jobs, units, quotas, any_time()).prop_map(build)
}

type Draws = (
    Vec<(Resources, bool, bool, bool, bool, i64)>,
    Vec<(UnitTemplate, u32, u64, bool)>,
    Vec<(UnitTemplate, u32, u32, u32, u8)>,
    Vec<UnitDraw>,
    Vec<Option<Resources>>,
    i64,
);

fn build((nodes, services, jobs, units, quotas, now_ms): Draws) -> (Model, Moment) {
    let mut cluster = Cluster::new();
    cluster.moment.now_ms = now_ms;
    for (path, quota) in ["default", "default/a", "default/a/b"].into_iter().zip(quotas) {
        cluster.namespace(path, quota);
    }
    for (index, (allocatable, has_oci, is_in_x, is_silent, is_away, since)) in
        nodes.into_iter().enumerate()
    {
        let runtimes = if has_oci { &[Runtime::Wasm, Runtime::Oci][..] } else { &[Runtime::Wasm] };
        let zone = if is_in_x { "x" } else { "y" };
        let name =
            cluster.node_like(&format!("n{index}"), allocatable, runtimes, &[("zone", zone)]);
        let mut node = cluster.model.node(&name).unwrap().clone();
        node.state = if is_away { NodeState::Unreachable } else { NodeState::Ready };
        node.state_since_ms = since;
        cluster.put(Object::Node(node));
        if is_silent {
            cluster.moment.silent.insert(name);
        }
    }
    for (index, (unit, replicas, generation, is_deleting)) in services.into_iter().enumerate() {
        let text = format!("s{index}");
        cluster.service(&text, replicas, unit);
        cluster.change_service(&text, |service| {
            service.generation = generation;
            service.is_deleting = is_deleting;
        });
    }
    for (index, (unit, parallelism, completions, retries, kind)) in jobs.into_iter().enumerate() {
        let text = format!("j{index}");
        cluster.job(&text, (parallelism, completions, retries), unit);
        cluster.change_job(&text, |job| {
            job.is_deleting = kind == 0;
            job.state = if kind == 1 { JobState::Stopped } else { JobState::Active };
        });
    }
    for (index, draw) in units.into_iter().enumerate() {
        add_unit(&mut cluster, index, draw);
    }
    (cluster.model, cluster.moment)
}

fn add_unit(cluster: &mut Cluster, index: usize, draw: UnitDraw) {
    let (template, owner, state, desired, node, time, number) = draw;
    let path = if number == 0 { "default/a/b" } else { "default" };
    let id = cluster.unit_in(path, &format!("j1-{index}"), template);
    let at = u32::from(number);
    cluster.change_unit(&id, |unit| {
        unit.owner = match owner {
            0..2 => None,
            2..5 => Some(Owner::Service {
                name: name(&format!("s{}", owner - 2)),
                generation: u64::from(number),
            }),
            _ => Some(Owner::Job {
                name: name(&format!("j{}", owner - 5)),
                index: at,
                attempt: if number == 3 { u32::MAX } else { at },
            }),
        };
        unit.status.state = UnitState::ALL[usize::from(state)];
        unit.desired = [Desired::Run, Desired::Stop, Desired::Remove][usize::from(desired)];
        unit.node = (node < 4).then(|| NodeName::new(format!("n{node}")).unwrap());
        unit.meta.created_ms = time;
        unit.remove_when_done = number == 1;
    });
}

/// A cluster that people could have, for which rest is to be reached.
fn plain_cluster() -> impl Strategy<Value = Cluster> {
    let services = proptest::collection::vec((1..4u64, 0..5u32), 0..3);
    let jobs = proptest::collection::vec((1..4u64, 1..4u32, 1..5u32, any::<bool>()), 0..3);
    (1..4usize, services, jobs).prop_map(|(nodes, services, jobs)| {
        let mut cluster = Cluster::new();
        for index in 0..nodes {
            cluster.node(&format!("n{index}"), amount(8, 8));
        }
        for (index, (size, replicas)) in services.into_iter().enumerate() {
            cluster.service(&format!("s{index}"), replicas, wasm(amount(size, size)));
        }
        for (index, (size, parallelism, completions, fails)) in jobs.into_iter().enumerate() {
            let text = format!("j{index}");
            cluster.job(&text, (parallelism, completions, 1), wasm(amount(size, size)));
            let ending = if fails { UnitState::Failed } else { UnitState::Succeeded };
            cluster.endings.insert(text, ending);
        }
        cluster
    })
}

/// What users and machines do to a cluster that has settled.
#[derive(Debug, Clone)]
enum Act {
    Scale(usize, u32),
    Change(usize),
    Silence(usize),
    Return,
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (0..3usize, 0..5u32).prop_map(|(service, replicas)| Act::Scale(service, replicas)),
        (0..3usize).prop_map(Act::Change),
        (0..3usize).prop_map(Act::Silence),
        Just(Act::Return),
    ]
}

impl Act {
    fn happen(&self, cluster: &mut Cluster) {
        let service = |index: &usize| format!("s{index}");
        let exists = |cluster: &Cluster, text: &str| {
            cluster.model.service(&namespace("default"), &name(text)).is_some()
        };
        match self {
            Self::Scale(index, replicas) if exists(cluster, &service(index)) => {
                cluster.change_service(&service(index), |s| s.spec.replicas = *replicas);
            }
            Self::Change(index) if exists(cluster, &service(index)) => {
                cluster.change_service(&service(index), |s| s.generation += 1);
            }
            Self::Scale(..) | Self::Change(_) => {}
            Self::Silence(index) => {
                let name = cluster.model.nodes().nth(*index).map(|node| node.name.clone());
                cluster.moment.silent.extend(name);
            }
            Self::Return => cluster.moment.silent.clear(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_model_gives_a_sound_plan_and_twice_the_same((model, moment) in any_cluster()) {
        let mut worked = model.clone();
        let first = plan(&mut worked, &moment);
        assert_sound(&model, &moment, &first);
        prop_assert!(worked == model, "what was charged while planning is taken back");
        let dump = serde_json::to_vec(&model).unwrap();
        let mut copy: Model = serde_json::from_slice(&dump).unwrap();
        let second = plan(&mut copy, &moment);
        prop_assert_eq!(serde_json::to_vec(&first).unwrap(), serde_json::to_vec(&second).unwrap());
        for unit in model.units() {
            let _ = crate::why(&mut worked, &moment, &unit.id);
            for node in model.nodes() {
                let _ = crate::why_on(&mut worked, &moment, &unit.id, &node.name);
            }
        }
        for explanation in &first.explanations {
            prop_assert!(!explanation.render(&name("u")).is_empty());
        }
    }

    #[test]
    fn any_model_can_be_committed_again_and_again((mut model, mut moment) in any_cluster()) {
        moment.now_ms = 300_000;
        for _ in 0..5 {
            let before = model.clone();
            let plan = plan(&mut model, &moment);
            assert_sound(&before, &moment, &plan);
            commit(&mut model, &plan, moment.now_ms).unwrap();
        }
    }

    #[test]
    fn what_is_wanted_comes_to_run_and_what_is_deleted_goes(
        mut cluster in plain_cluster(),
        acts in proptest::collection::vec(any_act(), 0..6),
    ) {
        cluster.settle();
        for act in &acts {
            act.happen(&mut cluster);
            cluster.settle();
        }
        Act::Return.happen(&mut cluster);
        cluster.settle();
        for service in cluster.model.services() {
            let mine: Vec<_> = cluster.model.units().filter(|unit| {
                unit.owner.as_ref().is_some_and(|owner| *owner.name() == service.spec.name)
            }).collect();
            let live = mine.iter().filter(|unit| unit.desired == Desired::Run).count();
            prop_assert!(live >= usize::try_from(service.spec.replicas).unwrap());
            prop_assert_eq!(live, mine.len(), "nothing superfluous is left");
        }
        for job in cluster.model.jobs() {
            let waits = cluster.count(|unit| unit.status.state == UnitState::Pending);
            prop_assert!(job.state.is_final() || waits > 0);
        }
        for text in ["s0", "s1", "s2"] {
            if cluster.model.service(&namespace("default"), &name(text)).is_some() {
                cluster.change_service(text, |service| service.is_deleting = true);
            }
        }
        for text in ["j0", "j1", "j2"] {
            if cluster.model.job(&namespace("default"), &name(text)).is_some() {
                cluster.change_job(text, |job| job.is_deleting = true);
            }
        }
        cluster.settle();
        prop_assert_eq!(cluster.model.unit_count(), 0);
        prop_assert_eq!(cluster.model.services().count(), 0);
        prop_assert_eq!(cluster.model.jobs().count(), 0);
    }
}
