//! What users ask for: templates with everything that the scheduler has rules about, and nodes to run them on.

use std::collections::BTreeMap;

use brig_api::constraint::{Constraint, Operator};
use brig_api::object::{Meta, Node, NodeFacts, NodeState};
use brig_api::placement::{
    ArtifactRule, Concurrency, Dependency, Gang, Neighbours, OVER_NODE, PlacementRules, Preference,
    Spread, Taint, TaintEffect, Toleration,
};
use brig_api::session::HeldArtifact;
use brig_api::spec::{Labels, NamespaceSpec};
use brig_api::unit_spec::{
    Disconnect, HttpServing, Mount, OciProgram, Program, RestartPolicy, Runtime, Task,
    UnitTemplate, WasmProgram,
};
use brig_api::variants::Variants;
use brig_api::{Bytes, Digest, Milli, MilliCpu, NamespacePath, NodeName, ResourceName, Resources};

use crate::random::Random;

/// The namespaces that users work in.
pub(crate) const NAMESPACES: [&str; 5] = ["default", "team", "team/dev", "team/ops", "other"];
/// Priorities go from 0 to one less.
pub(crate) const PRIORITIES: i32 = 3;
/// The service that others come after.
pub(crate) const NEEDED_SERVICE: &str = "s0";
/// Artifacts that units run.
const ARTIFACTS: u32 = 3;
/// What a node has at least, of cpu, memory and disk alike.
const NODE_SIZE: u32 = 5;

/// So much of cpu, memory and disk alike.
pub(crate) fn amount(size: u32) -> Resources {
    Resources {
        cpu: MilliCpu(size.into()),
        memory: Bytes(size.into()),
        disk: Bytes(size.into()),
        ..Resources::default()
    }
}

fn with_gpu(mut amount: Resources, thousandths: u32) -> Resources {
    if thousandths > 0 {
        amount.scalars.insert("gpu".to_owned(), Milli(thousandths.into()));
    }
    amount
}

/// A node that has just joined.
pub(crate) fn node(name: &str, random: &mut Random) -> anyhow::Result<Node> {
    Ok(Node {
        name: NodeName::new(name)?,
        facts: facts(random)?,
        state: NodeState::Ready,
        state_since_ms: 0,
        held_artifacts: None,
        meta: Meta::default(),
    })
}

/// What a node says of itself.
pub(crate) fn facts(random: &mut Random) -> anyhow::Result<NodeFacts> {
    let mut attributes = BTreeMap::new();
    if random.chance(85) {
        let zone = random.pick(&["a", "b", "c"]).copied().unwrap_or("a");
        attributes.insert("zone".to_owned(), zone.to_owned());
    }
    let devices = if random.chance(40) { random.between(1, 2) * 1_000 } else { 0 };
    if devices > 0 {
        let model = random.pick(&["v100", "t4"]).copied().unwrap_or("t4");
        attributes.insert("gpu-model".to_owned(), model.to_owned());
    }
    let mut taints = Vec::new();
    if random.chance(20) {
        let all = ["gpu=yes:no-schedule", "spot:prefer-not", "broken:evict"];
        let text = random.pick(&all).copied().unwrap_or("spot:prefer-not");
        taints.push(text.parse::<Taint>()?);
    }
    let runtimes = match random.chance(80) {
        true => vec![Runtime::Wasm, Runtime::Oci],
        false => vec![Runtime::Wasm],
    };
    let size = NODE_SIZE + random.below(8);
    Ok(NodeFacts {
        allocatable: with_gpu(amount(size), devices),
        attributes,
        taints,
        volumes: if random.chance(70) { vec!["/data".to_owned()] } else { Vec::new() },
        runtimes,
        address: "10.0.0.1".to_owned(),
        agent_version: "0".to_owned(),
        boot_id: "0".to_owned(),
    })
}

fn digest(artifact: u32) -> Digest {
    let [first, ..] = artifact.to_le_bytes();
    Digest::of_sha256(&[first.wrapping_mul(85); 32])
}

/// What a node says it holds.
pub(crate) fn held(random: &mut Random) -> Vec<HeldArtifact> {
    let mut held = Vec::new();
    for artifact in 0..ARTIFACTS {
        for runtime in [Runtime::Wasm, Runtime::Oci] {
            if random.chance(40) {
                let (digest, is_ready) = (digest(artifact), random.chance(60));
                held.push(HeldArtifact { digest, runtime, is_ready });
            }
        }
    }
    held
}

/// What a namespace may have.
pub(crate) fn namespace(path: NamespacePath, random: &mut Random) -> NamespaceSpec {
    let size = random.between(4, 24);
    let quota = random.chance(40).then(|| {
        let mut quota = amount(size);
        if random.chance(30) {
            quota.disk = Bytes(0);
        }
        if random.chance(30) { with_gpu(quota, 500) } else { quota }
    });
    let sure = random.chance(40).then(|| amount(random.below(size.min(10))));
    NamespaceSpec {
        name: path,
        quota,
        guarantee: sure,
        weight: random.chance(40).then(|| random.between(1, 300)),
        max_units: random.chance(20).then(|| random.between(1, 8)),
        max_services: None,
        max_jobs: None,
        description: String::new(),
    }
}

/// What kind of thing a template is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    /// A service of so many units.
    Service(u32),
    /// A job with so many units at a time.
    Job(u32),
    /// A unit on its own.
    Lone,
}

/// What people write on units to find them again.
pub(crate) fn labels(random: &mut Random) -> Labels {
    if random.chance(40) {
        return Labels::new();
    }
    let app = random.pick(&["web", "cache", "batch"]).copied().unwrap_or("web");
    Labels::from([("app".to_owned(), app.to_owned())])
}

/// What is run. `number` is used once.
pub(crate) fn template(
    random: &mut Random,
    kind: For,
    number: u32,
    namespace: &NamespacePath,
) -> anyhow::Result<UnitTemplate> {
    let limit = if random.chance(10) { 8 } else { 4 };
    let mut request = amount(random.between(1, limit));
    if random.chance(20) {
        let part = random.pick(&[250, 500, 750, 1_000, 2_000]).copied().unwrap_or(500);
        request = with_gpu(request, part);
    }
    let is_job = matches!(kind, For::Job(_));
    let is_limited =
        if is_job { random.chance(40) } else { random.chance(10) && kind == For::Lone };
    Ok(UnitTemplate {
        tasks: vec![task(random, request)?],
        restart: if is_job { RestartPolicy::Never } else { RestartPolicy::Always },
        priority: i32::try_from(random.below(PRIORITIES.unsigned_abs()))?,
        constraints: constraints(random),
        placement: rules(random, namespace),
        revocable: random.chance(15),
        gang: gang(random, kind, number)?,
        after: after(random, kind)?,
        concurrency: match random.chance(12) {
            true => Some(Concurrency {
                key: ResourceName::new(format!("family-{}", random.below(2)))?,
                limit: random.between(1, 3),
            }),
            false => None,
        },
        max_run_ms: is_limited.then(|| u64::from(random.between(1, 90)) * 1_000),
        grace_ms: 1_000,
        disconnect: if random.chance(20) { Disconnect::Wait } else { Disconnect::Replace },
    })
}

fn task(random: &mut Random, request: Resources) -> anyhow::Result<Task> {
    let number = random.below(ARTIFACTS);
    let artifact = match random.chance(70) {
        true => format!("a:{number}@{}", digest(number)),
        false => format!("a:{number}"),
    };
    let wasm = |random: &mut Random| {
        let port = || HttpServing { port: Some(8_080), ..HttpServing::default() };
        let http = random.chance(15).then(port);
        let artifact = artifact.clone();
        Program::Wasm(WasmProgram { artifact, http, ..WasmProgram::default() })
    };
    let oci = |random: &mut Random| {
        let mut ports = Vec::new();
        for _ in 0..random.below(3) {
            ports.extend(random.pick(&[0, 0, 8_080, 20_000, 20_001]).copied());
        }
        Program::Oci(OciProgram { image: artifact.clone(), ports, ..OciProgram::default() })
    };
    let programs = match random.below(20) {
        0..14 => vec![wasm(random)],
        14..18 => vec![oci(random)],
        18 => vec![wasm(random), oci(random)],
        _ => vec![oci(random), wasm(random)],
    };
    let mut mounts = Vec::new();
    if random.chance(10) {
        mounts.push(Mount {
            host: Some("/data/x".into()),
            config: None,
            secret: None,
            at: "/d".to_owned(),
            read_only: false,
        });
    }
    Ok(Task {
        name: ResourceName::new("main")?,
        variants: Variants::new(programs)?,
        limits: request.clone(),
        resources: request,
        env: BTreeMap::new(),
        mounts,
        stdin: false,
        sidecar: false,
    })
}

fn constraints(random: &mut Random) -> Vec<Constraint> {
    let constraint = |attribute: &str, operator, values: &[&str]| Constraint {
        attribute: attribute.to_owned(),
        operator,
        values: values.iter().map(|value| (*value).to_owned()).collect(),
    };
    match random.below(20) {
        0 => vec![constraint("zone", Operator::In, &["a", "b"])],
        1 => vec![constraint("zone", Operator::NotEqual, &["c"])],
        2 => vec![constraint("gpu-model", Operator::Equal, &["t4"])],
        _ => Vec::new(),
    }
}

fn rules(random: &mut Random, namespace: &NamespacePath) -> PlacementRules {
    let over = |random: &mut Random| {
        let key = if random.chance(50) { OVER_NODE } else { "zone" };
        key.to_owned()
    };
    let neighbours = |random: &mut Random| {
        let weight = if random.chance(30) { Some(50) } else { None };
        let top = namespace.as_str().split('/').next().unwrap_or_default();
        let within = if random.chance(30) { NamespacePath::new(top).ok() } else { None };
        let app = random.pick(&["web", "cache", "batch"]).copied().unwrap_or("web");
        let units = Labels::from([("app".to_owned(), app.to_owned())]);
        Neighbours { units, over: over(random), within, weight }
    };
    let mut rules = PlacementRules::default();
    if random.chance(12) {
        rules.away.push(neighbours(random));
    }
    if random.chance(10) {
        rules.near.push(neighbours(random));
    }
    if random.chance(15) {
        let targets = [("a".to_owned(), 60), ("b".to_owned(), 40)];
        let targets = if random.chance(20) { BTreeMap::from(targets) } else { BTreeMap::new() };
        let max_skew = if random.chance(60) { Some(random.between(1, 2)) } else { None };
        let weight = if random.chance(30) { Some(20) } else { None };
        rules.spread.push(Spread { over: over(random), max_skew, weight, targets });
    }
    rules.distinct_hosts = random.chance(8);
    if random.chance(10) {
        rules.artifacts = ArtifactRule::Present;
    }
    if random.chance(15) {
        let key = random.pick(&["gpu", "broken", "*"]).copied().unwrap_or("*");
        let effect = if random.chance(30) { Some(TaintEffect::NoSchedule) } else { None };
        rules.tolerations.push(Toleration { key: key.to_owned(), value: None, effect });
    }
    if random.chance(10) {
        let values = vec!["b".to_owned()];
        let when = Constraint { attribute: "zone".to_owned(), operator: Operator::Equal, values };
        rules.prefer.push(Preference { when, weight: if random.chance(50) { 80 } else { -40 } });
    }
    rules
}

fn gang(random: &mut Random, kind: For, number: u32) -> anyhow::Result<Option<Gang>> {
    let (For::Service(count) | For::Job(count)) = kind else { return Ok(None) };
    if count < 2 || !random.chance(25) {
        return Ok(None);
    }
    let name = ResourceName::new(format!("gang-{number}"))?;
    Ok(Some(Gang { name, size: random.between(2, count) }))
}

fn after(random: &mut Random, kind: For) -> anyhow::Result<Vec<Dependency>> {
    if !random.chance(10) {
        return Ok(Vec::new());
    }
    // Of things of one kind the first comes after none, so that no circle can come about.
    let service = Some(ResourceName::new(NEEDED_SERVICE)?);
    let job = Some(ResourceName::new("j0")?);
    Ok(vec![match kind {
        For::Service(_) => Dependency { service: None, job },
        For::Job(_) | For::Lone => Dependency { service, job: None },
    }])
}
