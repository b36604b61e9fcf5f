//! Jobs of one day of Google's 2011 cluster trace: when they came, how long they ran, how important they were, whose they
//! were. The trace's event list names no requests, so these are drawn from a seed.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::ensure;
use brig_api::unit_spec::UnitSpec;
use brig_api::{Bytes, MilliCpu, NamespacePath, Resources};
use serde::Deserialize;

use super::trace::{Trace, Work, job, milliseconds, node, rows};
use crate::random::Random;

/// Where the file is in the folder of traces.
pub(crate) const FILE: &str = "google-2011-job-events/jobs_day8.csv";
/// Requests follow from it.
const SEED: u64 = 2_011;
/// Machines: as many as the day's mean demand fills to about nine tenths, so that its bursts have to queue.
const NODES: usize = 24;
const NODE_CORES: u64 = 16;
const NODE_GI: u64 = 64;
/// Scheduling classes go from 0 to this; the higher, the more a job minds to wait.
const CLASS_MAX: u8 = 3;
/// Priorities of neighbouring classes differ by so much.
const PRIORITY_STEP: i32 = 100;
const GI: u64 = 1 << 30;

#[derive(Debug, Deserialize)]
struct Row {
    submit_s: f64,
    /// Empty for what still ran when the trace ended.
    run_s: Option<f64>,
    scheduling_class: u8,
    user: u32,
    job_id: u64,
}

/// Reads the trace.
///
/// # Errors
/// What is wrong with the file, with its line.
pub(crate) fn read(path: &Path) -> anyhow::Result<Trace> {
    let mut random = Random::new(SEED);
    let work = rows(path, |row: Row| work(&row, &mut random))?;
    let room = Resources {
        cpu: MilliCpu(NODE_CORES * 1_000),
        memory: Bytes(NODE_GI * GI),
        ..Resources::default()
    };
    let nodes =
        (0..NODES).map(|number| node(&format!("node-{number:03}"), room.clone(), BTreeMap::new()));
    Ok(Trace {
        title: "Google 2011, the jobs of day 8".to_owned(),
        assumed: vec![
            format!("Requests are drawn from seed {SEED}: 0.5, 1, 2 or 4 cores for 40, 30, 20 and 10 % of the jobs, with 1, 2 or 4 GiB a core alike; one unit a job."),
            format!("The machines are {NODES} nodes of {NODE_CORES} cores and {NODE_GI} GiB, empty at first. The scheduling class, times {PRIORITY_STEP}, is the priority; a user is a namespace."),
        ],
        nodes: nodes.collect::<anyhow::Result<_>>()?,
        work,
        is_measured_to_last_arrival: true,
    }
    .in_order())
}

fn work(row: &Row, random: &mut Random) -> anyhow::Result<Work> {
    let class = row.scheduling_class;
    ensure!(class <= CLASS_MAX, "`{class}` is no scheduling class: expected 0 to {CLASS_MAX}");
    let cpu = match random.below(10) {
        0..4 => 500,
        4..7 => 1_000,
        7..9 => 2_000,
        _ => 4_000,
    };
    let gi_per_core = 1 << random.below(3);
    let resources = Resources {
        cpu: MilliCpu(cpu),
        memory: Bytes(cpu * gi_per_core * GI / 1_000),
        ..Resources::default()
    };
    let priority = i32::from(class) * PRIORITY_STEP;
    let unit = UnitSpec { resources: Some(resources), priority, ..UnitSpec::default() };
    let namespace = NamespacePath::new(format!("user-{}", row.user))?;
    Ok(Work {
        arrives_ms: milliseconds(row.submit_s)?,
        runs_ms: row.run_s.map(milliseconds).transpose()?,
        job: job(&namespace, &format!("job-{}", row.job_id), unit)?,
        is_auxiliary: false,
    })
}
