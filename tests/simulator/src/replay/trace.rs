//! What a trace brings: machines, and work that arrives at its time. And how its files are read.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use brig_api::manifest::Manifest;
use brig_api::object::{Meta, Node, NodeFacts, NodeState};
use brig_api::spec::{JobSpec, Labels};
use brig_api::unit_spec::{Runtime, UnitSpec, WasmProgram};
use brig_api::{NamespacePath, NodeName, ResourceName, Resources};
use serde::de::DeserializeOwned;

/// Largest file of a trace; they are read into memory.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Most rows of a file: beyond that nobody would wait for the replay.
const ROWS_MAX: usize = 1_000_000;
/// Latest time in a trace: thirty years, in seconds.
const SECONDS_MAX: f64 = 1e9;
/// How often a unit may fail or be stopped for others: as often as it takes.
const RETRIES: u32 = 1_000;

/// See the module.
pub(crate) struct Trace {
    /// What it is, as the head of its table.
    pub(crate) title: String,
    /// What the trace does not say and the replay assumes, in sentences.
    pub(crate) assumed: Vec<String>,
    /// The cluster.
    pub(crate) nodes: Vec<Node>,
    /// In the order of arrival.
    pub(crate) work: Vec<Work>,
    /// Means over time are taken until the last arrival. Without it: until the last unit ends.
    pub(crate) is_measured_to_last_arrival: bool,
}

/// A job of one unit.
pub(crate) struct Work {
    /// When a user stores it, on the trace's clock.
    pub(crate) arrives_ms: i64,
    /// How long its program runs; None for one that does not end.
    pub(crate) runs_ms: Option<i64>,
    /// What the user stores.
    pub(crate) job: JobSpec,
    /// Not in the trace, but needed to say what is; it takes no room worth naming and counts in no figure.
    pub(crate) is_auxiliary: bool,
}

impl Trace {
    /// The work in the order in which it arrives; what arrives at the same time keeps its order.
    pub(crate) fn in_order(mut self) -> Self {
        self.work.sort_by_key(|work| work.arrives_ms);
        self
    }
}

/// A job of one unit, as the API would accept it.
pub(crate) fn job(
    namespace: &NamespacePath,
    name: &str,
    unit: UnitSpec,
) -> anyhow::Result<JobSpec> {
    let program = WasmProgram { artifact: "trace:1".to_owned(), ..WasmProgram::default() };
    let spec = JobSpec {
        name: ResourceName::new(name)?,
        namespace: namespace.clone(),
        parallelism: 1,
        completions: 1,
        retries: RETRIES,
        retry_after_ms: None,
        unit: UnitSpec { wasm: Some(program), ..unit },
        labels: Labels::new(),
    };
    match Manifest::Job(spec).check() {
        Ok(Manifest::Job(job)) => Ok(job),
        Ok(_) => bail!("a job was checked and is none any more"),
        Err(faults) => {
            let faults = faults.iter().map(|fault| format!("{}: {}", fault.path, fault.message));
            bail!("no valid job: {}", faults.collect::<Vec<_>>().join("; "))
        }
    }
}

/// A node that is in touch from the start, as a server would accept it.
pub(crate) fn node(
    name: &str,
    allocatable: Resources,
    attributes: BTreeMap<String, String>,
) -> anyhow::Result<Node> {
    let facts = NodeFacts {
        allocatable,
        attributes,
        taints: Vec::new(),
        volumes: Vec::new(),
        runtimes: vec![Runtime::Wasm, Runtime::Oci],
        address: "10.0.0.1".to_owned(),
        agent_version: "0".to_owned(),
        boot_id: "0".to_owned(),
    };
    if let Some(fault) = facts.faults().first() {
        bail!("no valid node: {}: {}", fault.path, fault.message);
    }
    Ok(Node {
        name: NodeName::new(name)?,
        facts,
        state: NodeState::Ready,
        state_since_ms: 0,
        held_artifacts: None,
        meta: Meta::default(),
    })
}

/// Seconds of a trace in milliseconds.
pub(crate) fn milliseconds(seconds: f64) -> anyhow::Result<i64> {
    ensure!(
        (0.0..=SECONDS_MAX).contains(&seconds),
        "`{seconds}` s is no time in a trace: expected 0 to {SECONDS_MAX}"
    );
    // Rounded: 2.211 is a little less than 2211 ms in binary.
    let rounded = Duration::try_from_secs_f64(seconds + 0.000_5)?;
    Ok(i64::try_from(rounded.as_millis())?)
}

/// The text of a file.
pub(crate) fn text(path: &Path) -> anyhow::Result<String> {
    let file =
        std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut text = String::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
    let read = read.with_context(|| format!("cannot read {} as text", path.display()))?;
    ensure!(
        u64::try_from(read)? <= FILE_BYTES_MAX,
        "{} is too large for a trace: at most {FILE_BYTES_MAX} bytes",
        path.display()
    );
    Ok(text)
}

/// What `make` makes of each row of a CSV file with a head line. Errors name the file and the line.
pub(crate) fn rows<R: DeserializeOwned, T>(
    path: &Path,
    mut make: impl FnMut(R) -> anyhow::Result<T>,
) -> anyhow::Result<Vec<T>> {
    let text = text(path)?;
    let at = |line: u64| format!("{}:{line}", path.display());
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let columns = reader.headers().map_err(|error| anyhow!("{}: {error}", at(1)))?.clone();
    let mut made = Vec::new();
    let mut record = csv::StringRecord::new();
    loop {
        let line = reader.position().line();
        let is_row = reader.read_record(&mut record).map_err(|error| {
            let line = error.position().map_or(line, csv::Position::line);
            anyhow!("{}: {}", at(line), fault(&error, &columns))
        })?;
        if !is_row {
            break;
        }
        let line = record.position().map_or(line, csv::Position::line);
        let row = record
            .deserialize(Some(&columns))
            .map_err(|error| anyhow!("{}: {}", at(line), fault(&error, &columns)))?;
        made.push(make(row).with_context(|| at(line))?);
        ensure!(made.len() <= ROWS_MAX, "{}: at most {ROWS_MAX} rows can be replayed", at(line));
    }
    ensure!(!made.is_empty(), "{}: expected rows after the head line", at(1));
    Ok(made)
}

/// What is wrong with a row, by the column's name.
fn fault(error: &csv::Error, columns: &csv::StringRecord) -> String {
    match error.kind() {
        csv::ErrorKind::Deserialize { err, .. } => {
            let column = err.field().and_then(|field| columns.get(usize::try_from(field).ok()?));
            column.map_or_else(
                || err.kind().to_string(),
                |name| format!("column `{name}`: {}", err.kind()),
            )
        }
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("expected {expected_len} columns, found {len}")
        }
        _ => error.to_string(),
    }
}
