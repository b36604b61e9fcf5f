//! Alibaba's GPU cluster of 2023: its machines, and its pods with parts of GPUs.
//!
//! Twice: as it was, with the pods' own times, which leave the cluster nearly empty (the trace is a sample of its pods); and
//! piled up as in the study that published it, where pods drawn from the list come and none goes until they ask for more than
//! there is (Weng et al.: Beware of Fragmentation, USENIX ATC 2023), which shows how well GPUs are packed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{bail, ensure};
use brig_api::constraint::{Constraint, Operator};
use brig_api::object::Node;
use brig_api::unit_spec::UnitSpec;
use brig_api::{Bytes, Milli, MilliCpu, NamespacePath, Resources};
use serde::Deserialize;

use super::trace::{Trace, Work, job, milliseconds, node, rows};
use crate::random::Random;

/// Where the machines are in the folder of traces.
pub(crate) const NODES_FILE: &str = "alibaba-gpu-v2023/openb_node_list_all_node.csv";
/// Where the pods are.
pub(crate) const PODS_FILE: &str = "alibaba-gpu-v2023/openb_pod_list_default.csv";
/// The attribute with the model of a node's GPUs.
const MODEL: &str = "gpu-model";
/// The resource.
const GPU: &str = "gpu";
/// One of it.
const WHOLE: u64 = 1_000;
/// Most GPUs of a machine: the scheduler tells so many apart.
const GPUS_MAX: u64 = 64;
/// Which pods are piled up follows from it.
const SEED: u64 = 2_023;
/// Pods are piled up until they ask for so many percent of all GPUs.
const PILE_PERCENT: u64 = 130;
/// Most of them.
const PILE_MAX: usize = 50_000;
/// Time between two arrivals at the pile.
const PILE_EVERY_MS: i64 = 1_000;
const MI: u64 = 1 << 20;

#[derive(Debug, Deserialize)]
struct NodeRow {
    sn: String,
    cpu_milli: u64,
    memory_mib: u64,
    gpu: u64,
    model: String,
}

#[derive(Debug, Deserialize)]
struct PodRow {
    name: String,
    cpu_milli: u64,
    memory_mib: u64,
    num_gpu: u64,
    gpu_milli: u64,
    gpu_spec: String,
    qos: String,
    creation_time: f64,
    deletion_time: f64,
    scheduled_time: Option<f64>,
}

/// A pod that has been checked.
struct Pod {
    name: String,
    request: Resources,
    constraints: Vec<Constraint>,
    priority: i32,
    is_revocable: bool,
    arrives_ms: i64,
    runs_ms: i64,
}

/// The pods at their own times.
///
/// # Errors
/// What is wrong with a file, with its line.
pub(crate) fn read_as_it_was(nodes: &Path, pods: &Path) -> anyhow::Result<Trace> {
    let namespace = NamespacePath::default_namespace();
    let work = rows(pods, |row: PodRow| {
        let pod = pod(&row)?;
        Ok(Work {
            arrives_ms: pod.arrives_ms,
            runs_ms: Some(pod.runs_ms),
            job: job(&namespace, &pod.name, pod.unit(true))?,
            is_auxiliary: false,
        })
    })?;
    Ok(Trace {
        title: "Alibaba GPU 2023, as it was".to_owned(),
        assumed: vec![
            "A pod runs from when it was scheduled until it was deleted; one that never was ran, from its creation. LS and Guaranteed have priority 200, Burstable 100, BE 0 and is revocable. The trace names no users.".to_owned(),
        ],
        nodes: read_nodes(nodes)?,
        work,
        is_measured_to_last_arrival: true,
    }
    .in_order())
}

/// Pods drawn from the list arrive and none goes.
///
/// # Errors
/// What is wrong with a file, with its line.
pub(crate) fn read_piled_up(nodes: &Path, pods: &Path) -> anyhow::Result<Trace> {
    let nodes = read_nodes(nodes)?;
    let path = pods;
    let pods = rows(path, |row: PodRow| pod(&row))?;
    let gpus = |resources: &Resources| resources.scalars.get(GPU).map_or(0, |amount| amount.0);
    ensure!(
        pods.iter().any(|pod| gpus(&pod.request) > 0),
        "{}:1: no pod asks for a gpu, so there is nothing to pile up",
        path.display()
    );
    let there: u64 = nodes.iter().map(|node| gpus(&node.facts.allocatable)).sum();
    let namespace = NamespacePath::default_namespace();
    let mut random = Random::new(SEED);
    let (mut work, mut asked) = (Vec::new(), 0u64);
    while asked.saturating_mul(100) < there.saturating_mul(PILE_PERCENT) && work.len() < PILE_MAX {
        let Some(pod) = random.pick(&pods) else { break };
        asked += gpus(&pod.request);
        work.push(Work {
            arrives_ms: i64::try_from(work.len())? * PILE_EVERY_MS,
            runs_ms: None,
            job: job(&namespace, &format!("pod-{}", work.len()), pod.unit(false))?,
            is_auxiliary: false,
        });
    }
    Ok(Trace {
        title: "Alibaba GPU 2023, piled up".to_owned(),
        assumed: vec![format!(
            "Pods drawn from the list (seed {SEED}, with replacement) arrive one a second and none ends, until they ask for {PILE_PERCENT} % of all GPUs; all have the same priority."
        )],
        nodes,
        work,
        is_measured_to_last_arrival: true,
    })
}

fn read_nodes(path: &Path) -> anyhow::Result<Vec<Node>> {
    let mut names = BTreeSet::new();
    rows(path, |row: NodeRow| {
        ensure!(row.gpu <= GPUS_MAX, "{} GPUs are too many: at most {GPUS_MAX}", row.gpu);
        ensure!(names.insert(row.sn.clone()), "`{}` is there twice", row.sn);
        let mut room = amounts(row.cpu_milli, row.memory_mib)?;
        let mut attributes = BTreeMap::new();
        if row.gpu > 0 {
            room.scalars.insert(GPU.to_owned(), Milli(row.gpu * WHOLE));
            attributes.insert(MODEL.to_owned(), row.model);
        }
        node(&row.sn, room, attributes)
    })
}

fn amounts(cpu_milli: u64, memory_mib: u64) -> anyhow::Result<Resources> {
    let Some(memory) = memory_mib.checked_mul(MI) else { bail!("{memory_mib} MiB are too many") };
    Ok(Resources { cpu: MilliCpu(cpu_milli), memory: Bytes(memory), ..Resources::default() })
}

fn pod(row: &PodRow) -> anyhow::Result<Pod> {
    let mut request = amounts(row.cpu_milli, row.memory_mib)?;
    let gpu = match (row.num_gpu, row.gpu_milli) {
        (0, _) => 0,
        (1, part) if (1..=WHOLE).contains(&part) => part,
        (count, WHOLE) if count <= GPUS_MAX => count * WHOLE,
        (count, part) => bail!(
            "{count} GPUs of {part} thousandths each cannot be asked for: expected a part of one, or up to {GPUS_MAX} whole ones"
        ),
    };
    if gpu > 0 {
        request.scalars.insert(GPU.to_owned(), Milli(gpu));
    }
    let mut constraints = Vec::new();
    if !row.gpu_spec.is_empty() {
        constraints.push(Constraint {
            attribute: MODEL.to_owned(),
            operator: Operator::In,
            values: row.gpu_spec.split('|').map(str::to_owned).collect(),
        });
    }
    let (priority, is_revocable) = match row.qos.as_str() {
        "LS" | "Guaranteed" => (200, false),
        "Burstable" => (100, false),
        "BE" => (0, true),
        other => bail!("`{other}` is no quality class: expected LS, BE, Burstable or Guaranteed"),
    };
    let arrives_ms = milliseconds(row.creation_time)?;
    let begins_ms = row.scheduled_time.map(milliseconds).transpose()?.unwrap_or(arrives_ms);
    let runs_ms = (milliseconds(row.deletion_time)? - begins_ms).max(0);
    let name = row.name.clone();
    Ok(Pod { name, request, constraints, priority, is_revocable, arrives_ms, runs_ms })
}

impl Pod {
    fn unit(&self, has_class: bool) -> UnitSpec {
        UnitSpec {
            resources: Some(self.request.clone()),
            constraints: self.constraints.clone(),
            priority: if has_class { self.priority } else { 0 },
            revocable: has_class && self.is_revocable,
            ..UnitSpec::default()
        }
    }
}
