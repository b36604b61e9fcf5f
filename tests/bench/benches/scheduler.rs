//! How many units a second the scheduler's core places, without a database or a network: the cases of kube-scheduler's own
//! performance suite and some that it has no numbers for, each at several sizes so that the growth of the cost shows.
//!
//! `cargo bench --package bench --bench scheduler [-- CASE]`; RUNS=N for other than 5 runs of each.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use brig_api::constraint::{Constraint, Operator};
use brig_api::lifecycle::UnitState;
use brig_api::object::{Desired, Meta, Node, NodeFacts, NodeState, Object, Unit, UnitStatus};
use brig_api::placement::{Gang, Grants, Neighbours, PlacementRules, Spread};
use brig_api::session::HeldArtifact;
use brig_api::spec::Labels;
use brig_api::unit_spec::{
    Disconnect, Program, RestartPolicy, Runtime, Task, UnitTemplate, WasmProgram,
};
use brig_api::{
    Bytes, Digest, MilliCpu, NamespacePath, NodeName, PlanSequence, ResourceName, Resources,
    Revision, UnitId,
};
use brig_core::{Decision, Holdings, Model, Moment, plan};

const RUNS_DEFAULT: usize = 5;
const GI: u64 = 1 << 30;
const MI: u64 = 1 << 20;
const ZONES: usize = 10;

/// One measured case.
struct Case {
    name: &'static str,
    /// Units per second that are asked for at 5,000 nodes (gangs: at 20,000).
    bar: u64,
    nodes: &'static [usize],
    units: usize,
    make: fn(usize, usize) -> Result<(Model, usize)>,
}

const SIZES: &[usize] = &[500, 5_000, 20_000];

const CASES: &[Case] = &[
    Case {
        name: "plain, 10 shapes, 10,000 units",
        bar: 200_000,
        nodes: SIZES,
        units: 10_000,
        make: plain,
    },
    Case {
        name: "plain, 10 shapes, 50,000 units",
        bar: 200_000,
        nodes: &[5_000, 20_000],
        units: 50_000,
        make: plain,
    },
    Case {
        name: "every unit of another shape",
        bar: 20_000,
        nodes: SIZES,
        units: 5_000,
        make: all_different,
    },
    Case {
        name: "... that half of the nodes hold",
        bar: 20_000,
        nodes: SIZES,
        units: 5_000,
        make: all_different_held,
    },
    Case { name: "spread over zones", bar: 50_000, nodes: SIZES, units: 5_000, make: spread },
    Case { name: "node affinity", bar: 50_000, nodes: SIZES, units: 10_000, make: node_affinity },
    Case {
        name: "required anti-affinity",
        bar: 20_000,
        nodes: SIZES,
        units: 2_000,
        make: anti_affinity,
    },
    Case { name: "required affinity", bar: 20_000, nodes: SIZES, units: 5_000, make: affinity },
    Case {
        name: "preemption, full cluster",
        bar: 10_000,
        nodes: SIZES,
        units: 5_000,
        make: preemption,
    },
    Case { name: "gangs of 100", bar: 20_000, nodes: SIZES, units: 10_000, make: gangs },
];

fn main() -> Result<()> {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|text| !text.starts_with('-')).collect();
    let runs =
        std::env::var("RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(RUNS_DEFAULT);
    println!(
        "{:<34} {:>7} {:>7} {:>12} {:>12} {:>10}",
        "case", "nodes", "units", "units/s", "us/unit", "bar"
    );
    for case in CASES {
        if !wanted.is_empty() && !wanted.iter().any(|text| case.name.contains(text.as_str())) {
            continue;
        }
        for nodes in case.nodes {
            let mut times = Vec::new();
            let mut decided = 0;
            for _ in 0..runs {
                let (model, expected) = (case.make)(*nodes, case.units)?;
                let (took, count) = measure(model)?;
                ensure!(count >= expected, "{}: {count} of {expected} decided", case.name);
                decided = expected;
                times.push(took);
            }
            times.sort_unstable();
            let median = times.get(times.len() / 2).copied().unwrap_or_default();
            let seconds = median.as_secs_f64();
            println!(
                "{:<34} {nodes:>7} {decided:>7} {:>12.0} {:>12.2} {:>10}",
                case.name,
                decided as f64 / seconds,
                seconds * 1e6 / decided as f64,
                case.bar
            );
        }
    }
    if wanted.is_empty() || wanted.iter().any(|text| "memory".contains(text.as_str())) {
        memory()?;
    }
    Ok(())
}

/// The time of one pass, and how many units it placed or made room for.
fn measure(mut model: Model) -> Result<(Duration, usize)> {
    let moment = Moment { now_ms: 1_000_000, silent: BTreeSet::new() };
    let began = Instant::now();
    let plan = plan(&mut model, &moment);
    let took = began.elapsed();
    let decided = plan.decisions.iter().filter(|decision| {
        matches!(
            decision,
            Decision::UnitPlace { .. } | Decision::UnitRefuse { promised: Some(_), .. }
        )
    });
    Ok((took, decided.count()))
}

/// 10,000 nodes and 300,000 units: what the model weighs, and what one changed unit costs. Then the same with nodes that
/// have told what they hold.
fn memory() -> Result<()> {
    let before = resident()?;
    let mut model = cluster(10_000)?;
    let template = template(100, 64 * MI)?;
    let labels = Arc::new(Labels::from([("app".to_owned(), "web".to_owned())]));
    for index in 0..300_000 {
        let mut unit = unit(index, Arc::new((*template).clone()), Arc::clone(&labels))?;
        unit.owner = Some(brig_api::object::Owner::Service {
            name: ResourceName::new(format!("web-{}", index % 100))?,
            generation: 1,
        });
        unit.status.state = UnitState::Running;
        unit.node = Some(NodeName::new(format!("node-{:05}", index % 10_000))?);
        model.put(Object::Unit(Box::new(unit)));
    }
    let after = resident()?;
    println!("model with 10,000 nodes and 300,000 units: {} MiB (bar 300)", (after - before) / MI);
    let moment = Moment { now_ms: 1_000_000, silent: BTreeSet::new() };
    let first = Instant::now();
    drop(plan(&mut model, &moment));
    println!("first pass over it: {} ms", first.elapsed().as_millis());
    let mut times = Vec::new();
    for index in 0..2_000 {
        let id = UnitId::new(format!("u{index}"))?;
        let mut unit = model.unit(&id).context("a unit")?.clone();
        unit.status.restarts += 1;
        let began = Instant::now();
        model.put(Object::Unit(Box::new(unit)));
        times.push(began.elapsed());
    }
    times.sort_unstable();
    println!("one changed unit: median {:?} (bar 20 us)", times[times.len() / 2]);
    let before = resident()?;
    let holdings = held(500);
    let began = Instant::now();
    for index in 0..10_000 {
        let name = NodeName::new(format!("node-{index:05}"))?;
        model.hold(&name, Some(Holdings::default().after(&holdings, &[])));
    }
    let took = began.elapsed() / 10_000;
    let more = resident()?.saturating_sub(before);
    println!("500 held artifacts on each node: {} KiB more, {took:?} a node", more >> 10);
    Ok(())
}

/// Bytes of memory that this process occupies.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let number: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(number * 1_024)
}

fn cluster(nodes: usize) -> Result<Model> {
    let mut model = Model::new(Revision(1), PlanSequence(0), []);
    for index in 0..nodes {
        let zone = format!("zone-{}", index % ZONES);
        let allocatable =
            Resources { cpu: MilliCpu(32_000), memory: Bytes(128 * GI), ..Resources::default() };
        model.put(Object::Node(Node {
            name: NodeName::new(format!("node-{index:05}"))?,
            facts: NodeFacts {
                allocatable,
                attributes: BTreeMap::from([("zone".to_owned(), zone)]),
                taints: Vec::new(),
                volumes: Vec::new(),
                runtimes: vec![Runtime::Wasm, Runtime::Oci],
                address: "10.0.0.1".to_owned(),
                agent_version: "0".to_owned(),
                boot_id: "0".to_owned(),
            },
            state: NodeState::Ready,
            state_since_ms: 0,
            held_artifacts: None,
            meta: Meta::default(),
        }));
    }
    Ok(model)
}

fn template(cpu: u64, memory: u64) -> Result<Arc<UnitTemplate>> {
    let request = Resources { cpu: MilliCpu(cpu), memory: Bytes(memory), ..Resources::default() };
    let program = WasmProgram { artifact: "a:1".to_owned(), ..WasmProgram::default() };
    let task = Task {
        name: ResourceName::new("main")?,
        variants: Program::Wasm(program).into(),
        limits: request.clone(),
        resources: request,
        env: BTreeMap::new(),
        mounts: Vec::new(),
        stdin: false,
        sidecar: false,
    };
    Ok(Arc::new(UnitTemplate {
        tasks: vec![task],
        restart: RestartPolicy::OnFailure,
        priority: 0,
        constraints: Vec::new(),
        placement: PlacementRules::default(),
        revocable: false,
        gang: None,
        after: Vec::new(),
        concurrency: None,
        max_run_ms: None,
        grace_ms: 1_000,
        disconnect: Disconnect::Replace,
    }))
}

fn unit(index: usize, template: Arc<UnitTemplate>, labels: Arc<Labels>) -> Result<Unit> {
    Ok(Unit {
        id: UnitId::new(format!("u{index}"))?,
        name: ResourceName::new(format!("u{index}"))?,
        namespace: NamespacePath::default_namespace(),
        owner: None,
        labels,
        template,
        desired: Desired::Run,
        remove_when_done: false,
        node: None,
        promised: None,
        grants: Grants::default(),
        placed_ms: None,
        placed_by: None,
        status: UnitStatus::default(),
        meta: Meta { revision: Revision(1), created_ms: i64::try_from(index)? },
    })
}

fn add(
    model: &mut Model,
    count: usize,
    labels: &Labels,
    of: impl Fn(usize) -> Result<Arc<UnitTemplate>>,
) -> Result<()> {
    let labels = Arc::new(labels.clone());
    for index in 0..count {
        model.put(Object::Unit(Box::new(unit(index, of(index)?, Arc::clone(&labels))?)));
    }
    Ok(())
}

fn labelled() -> Labels {
    Labels::from([("app".to_owned(), "web".to_owned())])
}

fn plain(nodes: usize, units: usize) -> Result<(Model, usize)> {
    let mut model = cluster(nodes)?;
    let shapes: Vec<_> = (0..10)
        .map(|shape| template(100 + 10 * shape, (100 + shape) * MI))
        .collect::<Result<_>>()?;
    add(&mut model, units, &Labels::new(), |index| Ok(Arc::clone(&shapes[index % shapes.len()])))?;
    Ok((model, units))
}

fn all_different(nodes: usize, units: usize) -> Result<(Model, usize)> {
    let mut model = cluster(nodes)?;
    add(&mut model, units, &Labels::new(), |index| {
        template(100, 100 * MI + u64::try_from(index)?)
    })?;
    Ok((model, units))
}

fn all_different_held(nodes: usize, units: usize) -> Result<(Model, usize)> {
    let mut model = cluster(nodes)?;
    for node in (0..nodes).step_by(2) {
        let held = held(64);
        model.hold(
            &NodeName::new(format!("node-{node:05}"))?,
            Some(Holdings::default().after(&held, &[])),
        );
    }
    add(&mut model, units, &Labels::new(), |index| {
        let mut shape = (*template(100, 100 * MI + u64::try_from(index)?)?).clone();
        fix(&mut shape, 0)?;
        Ok(Arc::new(shape))
    })?;
    Ok((model, units))
}

/// So many artifacts.
fn held(count: u32) -> Vec<HeldArtifact> {
    let digests = (0..count).map(digest);
    digests.map(|digest| HeldArtifact { digest, runtime: Runtime::Wasm, is_ready: true }).collect()
}

fn digest(number: u32) -> Digest {
    let mut sum = [7; 32];
    // Far apart, as digests are.
    sum[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b9).to_be_bytes());
    Digest::of_sha256(&sum)
}

/// The program is one that nodes may hold.
fn fix(template: &mut UnitTemplate, number: u32) -> Result<()> {
    let task = template.tasks.first_mut().context("a task")?;
    let artifact = format!("a:1@{}", digest(number));
    task.variants = Program::Wasm(WasmProgram { artifact, ..WasmProgram::default() }).into();
    Ok(())
}

fn spread(nodes: usize, units: usize) -> Result<(Model, usize)> {
    let mut model = cluster(nodes)?;
    let mut shape = (*template(100, 100 * MI)?).clone();
    shape.placement.spread = vec![Spread {
        over: "zone".to_owned(),
        max_skew: Some(1),
        weight: None,
        targets: BTreeMap::new(),
    }];
    let shape = Arc::new(shape);
    add(&mut model, units, &labelled(), |_| Ok(Arc::clone(&shape)))?;
    Ok((model, units))
}

fn node_affinity(nodes: usize, units: usize) -> Result<(Model, usize)> {
    let mut model = cluster(nodes)?;
    let mut shape = (*template(100, 100 * MI)?).clone();
    shape.constraints = vec![Constraint {
        attribute: "zone".to_owned(),
        operator: Operator::In,
        values: vec!["zone-1".to_owned(), "zone-2".to_owned()],
    }];
    let shape = Arc::new(shape);
    add(&mut model, units, &Labels::new(), |_| Ok(Arc::clone(&shape)))?;
    Ok((model, units))
}

/// No two on one node: as many as there are nodes at most.
fn anti_affinity(nodes: usize, units: usize) -> Result<(Model, usize)> {
    let units = units.min(nodes);
    let mut model = cluster(nodes)?;
    let mut shape = (*template(100, 100 * MI)?).clone();
    shape.placement.away = vec![neighbours("node")];
    let shape = Arc::new(shape);
    add(&mut model, units, &labelled(), |_| Ok(Arc::clone(&shape)))?;
    Ok((model, units))
}

fn affinity(nodes: usize, units: usize) -> Result<(Model, usize)> {
    let mut model = cluster(nodes)?;
    let mut shape = (*template(100, 100 * MI)?).clone();
    shape.placement.near = vec![neighbours("zone")];
    let shape = Arc::new(shape);
    add(&mut model, units, &labelled(), |_| Ok(Arc::clone(&shape)))?;
    Ok((model, units))
}

fn neighbours(over: &str) -> Neighbours {
    Neighbours { units: labelled(), over: over.to_owned(), within: None, weight: None }
}

/// Every node is full of four units of low priority; units that are as large arrive with a higher one.
fn preemption(nodes: usize, units: usize) -> Result<(Model, usize)> {
    let units = units.min(nodes * 4);
    let mut model = cluster(nodes)?;
    let low = template(8_000, 32 * GI)?;
    for index in 0..nodes * 4 {
        let mut victim = unit(1_000_000 + index, Arc::clone(&low), Arc::default())?;
        victim.status.state = UnitState::Running;
        victim.node = Some(NodeName::new(format!("node-{:05}", index / 4))?);
        model.put(Object::Unit(Box::new(victim)));
    }
    let mut high = (*low).clone();
    high.priority = 10;
    let high = Arc::new(high);
    add(&mut model, units, &Labels::new(), |_| Ok(Arc::clone(&high)))?;
    Ok((model, units))
}

fn gangs(nodes: usize, units: usize) -> Result<(Model, usize)> {
    let mut model = cluster(nodes)?;
    let shapes: Vec<_> = (0..units.div_ceil(100))
        .map(|gang| {
            let mut shape = (*template(1_000, GI)?).clone();
            shape.gang = Some(Gang { name: ResourceName::new(format!("gang-{gang}"))?, size: 100 });
            Ok(Arc::new(shape))
        })
        .collect::<Result<_>>()?;
    add(&mut model, units, &Labels::new(), |index| Ok(Arc::clone(&shapes[index / 100])))?;
    Ok((model, units))
}
