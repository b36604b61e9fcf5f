//! Which columns a list of each kind has, and what stands in them.

use brig_api::change::{Event, EventLevel};
use brig_api::lifecycle::UnitState;
use brig_api::object::{
    Artifact, Config, Job, JobState, Namespace, Node, NodeState, Object, Owner, Secret, Service,
    Unit,
};
use brig_api::spec::{RETRY_AFTER_MS_DEFAULT, WEIGHT_DEFAULT};
use brig_api::unit_spec::{Program, Runtime};
use brig_api::wasm::capabilities_told;
use brig_api::{Kind, NamespacePath, Resources};
use serde::Serialize;

use crate::output::{Column, Field, Look, Row, age, column, size, wide};

/// A unit as `ps` shows it. Scripts rely on these names.
#[derive(Debug, Serialize)]
pub(crate) struct UnitRow {
    name: String,
    namespace: NamespacePath,
    /// `service`, `job` or `unit`: what it belongs to.
    kind: Kind,
    owner: Option<String>,
    runtime: &'static str,
    node: Option<String>,
    state: UnitState,
    reason: Option<&'static str>,
    message: Option<String>,
    restarts: u32,
    exit_code: Option<i32>,
    endpoints: Vec<String>,
    id: String,
    created_ms: i64,
}

impl From<&Unit> for UnitRow {
    fn from(unit: &Unit) -> Self {
        Self {
            name: unit.name.to_string(),
            namespace: unit.namespace.clone(),
            kind: unit.owner.as_ref().map_or(Kind::Unit, Owner::kind),
            owner: unit.owner.as_ref().map(|owner| owner.name().to_string()),
            runtime: unit.runtime_label(),
            node: unit.node.as_ref().map(ToString::to_string),
            state: unit.status.state,
            reason: unit.status.reason.map(brig_api::lifecycle::Reason::as_str),
            message: unit.status.message.clone(),
            restarts: unit.status.restarts,
            exit_code: unit.status.exit_code,
            endpoints: endpoints(unit),
            id: unit.id.to_string(),
            created_ms: unit.meta.created_ms,
        }
    }
}

fn endpoints(unit: &Unit) -> Vec<String> {
    let shown = unit
        .status
        .endpoints
        .iter()
        .map(|endpoint| format!("{}://{}", endpoint.scheme, endpoint.address));
    if unit.status.state == UnitState::Running { shown.collect() } else { Vec::new() }
}

const UNIT_COLUMNS: &[Column] = &[
    column("NAMESPACE"),
    column("NAME"),
    column("KIND"),
    column("RUNTIME"),
    column("NODE"),
    column("STATE"),
    column("REASON"),
    column("RESTARTS"),
    column("AGE"),
    column("ENDPOINT"),
    wide("EXIT"),
    wide("ID"),
    wide("REQUEST"),
    wide("PRIORITY"),
    wide("PROMISED"),
    wide("MESSAGE"),
];
const SERVICE_COLUMNS: &[Column] = &[
    column("NAMESPACE"),
    column("NAME"),
    column("REPLICAS"),
    column("RUNTIME"),
    column("AGE"),
    wide("GENERATION"),
    wide("MAX UNAVAILABLE"),
    wide("REQUEST"),
    wide("PROGRAMS"),
];
const JOB_COLUMNS: &[Column] = &[
    column("NAMESPACE"),
    column("NAME"),
    column("STATE"),
    column("SUCCEEDED"),
    column("FAILED"),
    column("RUNTIME"),
    column("AGE"),
    wide("PARALLELISM"),
    wide("RETRIES"),
    wide("RETRY AFTER"),
    wide("REQUEST"),
    wide("PROGRAMS"),
];
const NODE_COLUMNS: &[Column] = &[
    column("NAME"),
    column("STATE"),
    column("RUNTIMES"),
    column("CPU"),
    column("MEMORY"),
    column("AGE"),
    wide("ADDRESS"),
    wide("VERSION"),
    wide("TAINTS"),
    wide("DEVICES"),
    wide("VOLUMES"),
    wide("ARTIFACTS"),
    wide("ATTRIBUTES"),
];
const NAMESPACE_COLUMNS: &[Column] = &[
    column("NAME"),
    column("QUOTA"),
    column("AGE"),
    wide("GUARANTEE"),
    wide("WEIGHT"),
    wide("MAX UNITS"),
    wide("MAX SERVICES"),
    wide("MAX JOBS"),
    wide("DESCRIPTION"),
];
const TEXTS_COLUMNS: &[Column] =
    &[column("NAMESPACE"), column("NAME"), column("KEYS"), column("AGE")];
const ARTIFACT_COLUMNS: &[Column] = &[
    column("REPOSITORY"),
    column("TAG"),
    column("KIND"),
    column("PROGRAM"),
    column("SIZE"),
    column("AGE"),
    wide("STARTS WITH"),
    wide("IMPORTS"),
    wide("DIGEST"),
    wide("MEDIA TYPE"),
];

/// The columns of a list of this kind.
pub(crate) fn columns(kind: Kind) -> &'static [Column] {
    match kind {
        Kind::Unit => UNIT_COLUMNS,
        Kind::Service => SERVICE_COLUMNS,
        Kind::Job => JOB_COLUMNS,
        Kind::Node => NODE_COLUMNS,
        Kind::Namespace => NAMESPACE_COLUMNS,
        Kind::Secret | Kind::Config => TEXTS_COLUMNS,
        Kind::Artifact => ARTIFACT_COLUMNS,
    }
}

/// The row of a resource.
pub(crate) fn row(object: &Object, now_ms: i64) -> Row {
    let key = object.key();
    let fields = match object {
        Object::Unit(unit) => unit_fields(unit, now_ms),
        Object::Service(service) => service_fields(service, now_ms),
        Object::Job(job) => job_fields(job, now_ms),
        Object::Node(node) => node_fields(node, now_ms),
        Object::Namespace(namespace) => namespace_fields(namespace, now_ms),
        Object::Secret(secret) => secret_fields(secret, now_ms),
        Object::Config(config) => config_fields(config, now_ms),
        Object::Artifact(artifact) => artifact_fields(artifact, now_ms),
    };
    Row { name: format!("{}/{}", key.kind, key.name), fields }
}

fn look(state: UnitState) -> Look {
    match state {
        UnitState::Running | UnitState::Succeeded => Look::Good,
        UnitState::Pending | UnitState::Assigned | UnitState::Preparing | UnitState::Stopping => {
            Look::Waiting
        }
        UnitState::Backoff | UnitState::Failed | UnitState::Lost => Look::Bad,
        UnitState::Stopped => Look::Plain,
    }
}

fn colored(text: &str, look: Look) -> Field {
    Field { text: text.to_owned(), look }
}

fn request(resources: &Resources) -> String {
    let mut text = format!("{} {}", resources.cpu, resources.memory);
    for (name, amount) in &resources.scalars {
        text.push_str(&format!(" {name}={amount}"));
    }
    text
}

fn unit_fields(unit: &Unit, now_ms: i64) -> Vec<Field> {
    let status = &unit.status;
    vec![
        (&unit.namespace).into(),
        (&unit.name).into(),
        unit.owner.as_ref().map_or(Kind::Unit, Owner::kind).into(),
        unit.runtime_label().into(),
        unit.node.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string).into(),
        colored(status.state.as_str(), look(status.state)),
        status.reason.map_or("", brig_api::lifecycle::Reason::as_str).into(),
        status.restarts.into(),
        age(unit.meta.created_ms, now_ms).into(),
        endpoints(unit).join(" ").into(),
        status.exit_code.map(|code| code.to_string()).unwrap_or_default().into(),
        (&unit.id).into(),
        request(&unit.template.request()).into(),
        unit.template.priority.into(),
        unit.promised.as_ref().map(ToString::to_string).unwrap_or_default().into(),
        status.message.clone().unwrap_or_default().into(),
    ]
}

fn programs(template: &brig_api::unit_spec::UnitTemplate) -> String {
    let programs = template.tasks.iter().flat_map(|task| task.variants.iter());
    programs.map(Program::reference).collect::<Vec<_>>().join(" ")
}

fn service_fields(service: &Service, now_ms: i64) -> Vec<Field> {
    let spec = &service.spec;
    vec![
        (&spec.namespace).into(),
        (&spec.name).into(),
        spec.replicas.into(),
        spec.unit.runtime_label().into(),
        age(service.meta.created_ms, now_ms).into(),
        service.generation.into(),
        spec.max_unavailable.into(),
        request(&spec.unit.request()).into(),
        programs(&spec.unit).into(),
    ]
}

fn job_fields(job: &Job, now_ms: i64) -> Vec<Field> {
    let spec = &job.spec;
    let look = match job.state {
        JobState::Active => Look::Waiting,
        JobState::Succeeded => Look::Good,
        JobState::Failed => Look::Bad,
        JobState::Stopped => Look::Plain,
    };
    vec![
        (&spec.namespace).into(),
        (&spec.name).into(),
        colored(job.state.as_str(), look),
        format!("{}/{}", job.succeeded, spec.completions).into(),
        job.failed.into(),
        spec.unit.runtime_label().into(),
        age(job.meta.created_ms, now_ms).into(),
        spec.parallelism.into(),
        spec.retries.into(),
        format!("{}ms", spec.retry_after_ms.unwrap_or(RETRY_AFTER_MS_DEFAULT)).into(),
        request(&spec.unit.request()).into(),
        programs(&spec.unit).into(),
    ]
}

fn node_fields(node: &Node, now_ms: i64) -> Vec<Field> {
    let facts = &node.facts;
    let look = if node.state == NodeState::Ready { Look::Good } else { Look::Bad };
    vec![
        (&node.name).into(),
        colored(node.state.as_str(), look),
        facts
            .runtimes
            .iter()
            .map(|runtime| Runtime::as_str(*runtime))
            .collect::<Vec<_>>()
            .join(",")
            .into(),
        facts.allocatable.cpu.into(),
        size(facts.allocatable.memory.0).into(),
        age(node.meta.created_ms, now_ms).into(),
        (&facts.address).into(),
        (&facts.agent_version).into(),
        joined(facts.taints.iter()).into(),
        joined(facts.allocatable.scalars.iter().map(|(name, amount)| format!("{name}={amount}")))
            .into(),
        facts.volumes.join(" ").into(),
        node.held_artifacts.map(|count| count.to_string()).unwrap_or_default().into(),
        joined(facts.attributes.iter().map(|(key, value)| format!("{key}={value}"))).into(),
    ]
}

fn namespace_fields(namespace: &Namespace, now_ms: i64) -> Vec<Field> {
    let spec = &namespace.spec;
    vec![
        (&spec.name).into(),
        spec.quota.as_ref().map(request).unwrap_or_default().into(),
        age(namespace.meta.created_ms, now_ms).into(),
        spec.guarantee.as_ref().map(request).unwrap_or_default().into(),
        spec.weight.unwrap_or(WEIGHT_DEFAULT).into(),
        limit(spec.max_units),
        limit(spec.max_services),
        limit(spec.max_jobs),
        (&spec.description).into(),
    ]
}

/// Empty where there is no limit.
fn limit(most: Option<u32>) -> Field {
    most.map(|most| most.to_string()).unwrap_or_default().into()
}

fn joined(parts: impl Iterator<Item = impl ToString>) -> String {
    parts.map(|part| part.to_string()).collect::<Vec<_>>().join(" ")
}

fn secret_fields(secret: &Secret, now_ms: i64) -> Vec<Field> {
    vec![
        (&secret.namespace).into(),
        (&secret.name).into(),
        secret.keys.join(",").into(),
        age(secret.meta.created_ms, now_ms).into(),
    ]
}

fn config_fields(config: &Config, now_ms: i64) -> Vec<Field> {
    vec![
        (&config.spec.namespace).into(),
        (&config.spec.name).into(),
        config.spec.data.keys().cloned().collect::<Vec<_>>().join(",").into(),
        age(config.meta.created_ms, now_ms).into(),
    ]
}

/// What a program can ask of its host, the strange last.
fn wasm_imports(artifact: &Artifact) -> String {
    let Some(wasm) = &artifact.wasm else { return String::new() };
    let mut told = capabilities_told(&wasm.capabilities);
    if !wasm.foreign.is_empty() {
        let separator = if told.is_empty() { "" } else { ", " };
        told.push_str(&format!("{separator}{} foreign", wasm.foreign.len()));
    }
    told
}

fn artifact_fields(artifact: &Artifact, now_ms: i64) -> Vec<Field> {
    vec![
        (&artifact.repository).into(),
        (&artifact.tag).into(),
        artifact.kind.as_str().into(),
        artifact.wasm.as_ref().map_or("", |wasm| wasm.kind.words()).into(),
        size(artifact.size_bytes).into(),
        age(artifact.meta.created_ms, now_ms).into(),
        artifact
            .wasm
            .as_ref()
            .map(|wasm| size(wasm.memory.initial_bytes))
            .unwrap_or_default()
            .into(),
        wasm_imports(artifact).into(),
        (&artifact.digest).into(),
        (&artifact.media_type).into(),
    ]
}

/// The columns of a list of events.
pub(crate) const EVENT_COLUMNS: &[Column] = &[
    column("AGE"),
    column("LEVEL"),
    column("REASON"),
    column("ABOUT"),
    column("MESSAGE"),
    wide("REVISION"),
];

/// The row of an event.
pub(crate) fn event_row(event: &Event, now_ms: i64) -> Row {
    let look = if event.level == EventLevel::Warning { Look::Bad } else { Look::Plain };
    let about = match &event.namespace {
        Some(namespace) => format!("{}/{} ({namespace})", event.kind, event.name),
        None => format!("{}/{}", event.kind, event.name),
    };
    let fields = vec![
        age(event.time_ms, now_ms).into(),
        colored(event.level.as_str(), look),
        (&event.reason).into(),
        about.into(),
        (&event.message).into(),
        event.revision.into(),
    ];
    Row { name: format!("event/{}.{}", event.revision, event.position), fields }
}
