//! Workflows of the WfInstances collection (WfFormat 1.5): tasks that begin when their parents have succeeded.
//!
//! Each task is a job that comes `after` its parents' jobs. A unit names at most sixteen of them: a task with more parents
//! comes after jobs that do nothing and come after sixteen parents each.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use brig_api::placement::{Dependency, RULES_MAX};
use brig_api::unit_spec::UnitSpec;
use brig_api::{Bytes, MilliCpu, NamespacePath, ResourceName, Resources};
use serde::Deserialize;

use super::trace::{Trace, Work, job, milliseconds, node, text};

/// Where the files are in the folder of traces.
pub(crate) const FOLDER: &str = "wfinstances";
/// Most files of the folder that are read.
const FILES_MAX: usize = 1_000;
/// Most tasks of one workflow.
const TASKS_MAX: usize = 20_000;
/// Machines: too few for all workflows at once.
const NODES: usize = 2;
const NODE_CORES: u32 = 16;
const NODE_GI: u64 = 64;
/// Most cores of a task.
const CORES_MAX: u32 = NODE_CORES;
/// For a task that names no memory.
const MEMORY_DEFAULT: u64 = GI;
const MI: u64 = 1 << 20;
const GI: u64 = 1 << 30;

#[derive(Debug, Deserialize)]
struct Instance {
    workflow: Workflow,
}

#[derive(Debug, Deserialize)]
struct Workflow {
    specification: Specification,
    execution: Execution,
}

#[derive(Debug, Deserialize)]
struct Specification {
    tasks: Vec<Task>,
}

#[derive(Debug, Deserialize)]
struct Task {
    id: String,
    #[serde(default)]
    parents: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Execution {
    tasks: Vec<Run>,
}

#[derive(Debug, Deserialize)]
struct Run {
    id: String,
    #[serde(rename = "runtimeInSeconds")]
    runtime_s: f64,
    #[serde(rename = "coreCount")]
    cores: Option<f64>,
    #[serde(rename = "avgCPU")]
    cpu_percent: Option<f64>,
    #[serde(rename = "memoryInBytes")]
    memory_bytes: Option<u64>,
}

/// Reads every workflow of the folder.
///
/// # Errors
/// What is wrong with a file, with its line.
pub(crate) fn read(folder: &Path) -> anyhow::Result<Trace> {
    let mut work = Vec::new();
    let files = files(folder)?;
    for path in &files {
        let text = text(path)?;
        work.extend(workflow(path, &text)?);
    }
    let room = Resources {
        cpu: MilliCpu(u64::from(NODE_CORES) * 1_000),
        memory: Bytes(NODE_GI * GI),
        ..Resources::default()
    };
    let nodes =
        (0..NODES).map(|number| node(&format!("node-{number}"), room.clone(), BTreeMap::new()));
    Ok(Trace {
        title: format!("WfInstances, {} workflows at once", files.len()),
        assumed: vec![format!(
            "All workflows arrive at second 0, each in a namespace of its own, on {NODES} nodes of {NODE_CORES} cores and {NODE_GI} GiB. A task asks for its cores (else its mean cpu, rounded up to whole cores) and its memory (else 1 GiB)."
        )],
        nodes: nodes.collect::<anyhow::Result<_>>()?,
        work,
        is_measured_to_last_arrival: false,
    })
}

fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in folder.read_dir().with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
        if files.len() > FILES_MAX {
            bail!("{} has more than {FILES_MAX} files of workflows", folder.display());
        }
    }
    files.sort();
    if files.is_empty() {
        bail!("{} has no `.json` file: expected workflows in WfFormat", folder.display());
    }
    Ok(files)
}

fn workflow(path: &Path, text: &str) -> anyhow::Result<Vec<Work>> {
    let instance: Instance = serde_json::from_str(text)
        .map_err(|error| anyhow!("{}:{}: {error}", path.display(), error.line()))?;
    // An id that is wrong stands somewhere in the file.
    let at = |id: &str| {
        let quoted = serde_json::to_string(id).unwrap_or_default();
        let before = text.find(&quoted).and_then(|position| text.get(..position));
        let line = before.map_or(1, |before| before.lines().count().max(1));
        format!("{}:{line}: task `{id}`", path.display())
    };
    let Workflow { specification: Specification { tasks }, execution } = instance.workflow;
    if tasks.len() > TASKS_MAX {
        bail!("{}: {} tasks are too many: at most {TASKS_MAX}", path.display(), tasks.len());
    }
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().to_lowercase());
    let stem = stem.unwrap_or_default().replace(['.', '_'], "-");
    let namespace = NamespacePath::new(stem)
        .with_context(|| format!("{}: the name is to be a namespace", path.display()))?;
    let mut numbers = BTreeMap::new();
    for (number, task) in tasks.iter().enumerate() {
        if numbers.insert(task.id.as_str(), number).is_some() {
            bail!("{} is there twice", at(&task.id));
        }
    }
    let runs: BTreeMap<_, _> = execution.tasks.iter().map(|run| (run.id.as_str(), run)).collect();
    let mut parents = Vec::new();
    for task in &tasks {
        let numbers = task.parents.iter().map(|parent| {
            let number = numbers.get(parent.as_str()).copied();
            number.with_context(|| {
                format!("{} has the parent `{parent}`, which is no task", at(&task.id))
            })
        });
        parents.push(numbers.collect::<anyhow::Result<Vec<_>>>()?);
    }
    if let Some(task) = in_a_circle(&parents).and_then(|number| tasks.get(number)) {
        bail!("{} comes after itself by way of its parents", at(&task.id));
    }
    let mut work = Vec::new();
    for (number, (task, parents)) in tasks.iter().zip(&parents).enumerate() {
        let run = runs.get(task.id.as_str());
        let run =
            run.with_context(|| format!("{} is not among the tasks of `execution`", at(&task.id)))?;
        let name = job_name(number);
        let parents = parents.iter().map(|parent| job_name(*parent)).collect();
        work.extend(task_work(&namespace, &name, parents, run).with_context(|| at(&task.id))?);
    }
    Ok(work)
}

fn job_name(number: usize) -> String {
    format!("task-{number}")
}

/// A task whose parents come after it.
fn in_a_circle(parents: &[Vec<usize>]) -> Option<usize> {
    let mut left: Vec<_> = parents.iter().map(Vec::len).collect();
    let mut children = vec![Vec::new(); parents.len()];
    for (child, parents) in parents.iter().enumerate() {
        for parent in parents {
            children[*parent].push(child);
        }
    }
    let mut free: VecDeque<_> = (0..left.len()).filter(|number| left[*number] == 0).collect();
    while let Some(number) = free.pop_front() {
        for child in &children[number] {
            left[*child] -= 1;
            if left[*child] == 0 {
                free.push_back(*child);
            }
        }
    }
    left.iter().position(|left| *left > 0)
}

/// The task's job, and before it the jobs that join its parents where there are too many to name.
fn task_work(
    namespace: &NamespacePath,
    name: &str,
    mut after: Vec<String>,
    run: &Run,
) -> anyhow::Result<Vec<Work>> {
    let mut work = Vec::new();
    let mut add = |name: &str, after: &[String], resources, runs_ms, is_auxiliary| {
        let after = after.iter().map(|job| {
            Ok(Dependency { service: None, job: Some(ResourceName::new(job.as_str())?) })
        });
        let after = after.collect::<anyhow::Result<Vec<_>>>()?;
        let unit = UnitSpec { resources: Some(resources), after, ..UnitSpec::default() };
        let job = job(namespace, name, unit)?;
        work.push(Work { arrives_ms: 0, runs_ms: Some(runs_ms), job, is_auxiliary });
        anyhow::Ok(())
    };
    let mut joins = 0;
    while after.len() > RULES_MAX {
        let mut joined = Vec::new();
        for some in after.chunks(RULES_MAX) {
            let join = format!("{name}-join-{joins}");
            joins += 1;
            let least = Resources { cpu: MilliCpu(1), memory: Bytes(MI), ..Resources::default() };
            add(&join, some, least, 0, true)?;
            joined.push(join);
        }
        after = joined;
    }
    add(name, &after, request(run), milliseconds(run.runtime_s)?, false)?;
    Ok(work)
}

fn request(run: &Run) -> Resources {
    let cores = run.cores.or_else(|| run.cpu_percent.map(|percent| percent / 100.0)).unwrap_or(1.0);
    let cores = (1..CORES_MAX).find(|count| f64::from(*count) >= cores).unwrap_or(CORES_MAX);
    let memory = run.memory_bytes.unwrap_or(MEMORY_DEFAULT).clamp(MI, NODE_GI * GI);
    let cpu = MilliCpu(u64::from(cores) * 1_000);
    Resources { cpu, memory: Bytes(memory), ..Resources::default() }
}
