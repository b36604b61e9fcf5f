//! What exists in a cluster: the stored form of every resource, the same in the API, the feed and the model.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::lifecycle::{Reason, UnitState};
use crate::placement::{Grants, Taint};
use crate::spec::{ConfigSpec, JobSpec, Labels, LoneUnitSpec, NamespaceSpec, ServiceSpec};
use crate::unit_spec::{Runtime, UnitTemplate, is_default};
use crate::variants::{Choice, RuntimeSet};
use crate::wasm::WasmFacts;
use crate::{
    Digest, NamespacePath, NodeName, PlanSequence, ResourceName, Resources, Revision, UnitId,
};

/// The kinds of resource.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A tenant.
    Namespace,
    /// A machine.
    Node,
    /// Keeps units running.
    Service,
    /// Runs units to completion.
    Job,
    /// What is scheduled.
    Unit,
    /// Texts nobody else may read.
    Secret,
    /// Texts for units.
    Config,
    /// A wasm program or image in the built-in registry.
    Artifact,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::Namespace,
        Self::Node,
        Self::Service,
        Self::Job,
        Self::Unit,
        Self::Secret,
        Self::Config,
        Self::Artifact,
    ];

    /// `service` and so on, as in JSON, SQL and manifests.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Node => "node",
            Self::Service => "service",
            Self::Job => "job",
            Self::Unit => "unit",
            Self::Secret => "secret",
            Self::Config => "config",
            Self::Artifact => "artifact",
        }
    }

    /// `services` and so on, as in paths of the API.
    #[must_use]
    pub fn plural(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Node => "nodes",
            Self::Service => "services",
            Self::Job => "jobs",
            Self::Unit => "units",
            Self::Secret => "secrets",
            Self::Config => "configs",
            Self::Artifact => "artifacts",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text names no kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no kind of resource: expected namespace, node, service (svc), job, unit, secret, config or artifact"
)]
pub struct UnknownKind(pub String);

impl FromStr for Kind {
    type Err = UnknownKind;
    /// Takes singular, plural and the usual short forms.
    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let short = match text {
            "ns" => Some(Self::Namespace),
            "svc" => Some(Self::Service),
            _ => None,
        };
        short
            .or_else(|| {
                Self::ALL.into_iter().find(|kind| kind.as_str() == text || kind.plural() == text)
            })
            .ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

/// What every stored resource has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Meta {
    /// The revision that last changed it.
    pub revision: Revision,
    /// When it was created, Unix milliseconds.
    pub created_ms: i64,
}

/// A stored namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Namespace {
    /// As its users asked.
    pub spec: NamespaceSpec,
    /// Revision and times.
    #[serde(flatten)]
    pub meta: Meta,
}

/// A stored service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Service {
    /// As its users asked, checked.
    pub spec: ServiceSpec,
    /// Counts changes of what its units run (`spec.unit`), from 1; units of older generations are replaced.
    pub generation: u64,
    /// It was deleted and goes when its last unit has.
    #[serde(default)]
    pub is_deleting: bool,
    /// Revision and times.
    #[serde(flatten)]
    pub meta: Meta,
}

/// Where a job is.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Has work left.
    #[default]
    Active,
    /// Every completion succeeded. Final.
    Succeeded,
    /// An index used up its retries. Final.
    Failed,
    /// A user stopped it. Final.
    Stopped,
}

impl JobState {
    /// `active` and so on, as in JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }

    /// The state of that name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Active, Self::Succeeded, Self::Failed, Self::Stopped]
            .into_iter()
            .find(|s| s.as_str() == text)
    }

    /// No further change will come.
    #[must_use]
    pub fn is_final(self) -> bool {
        self != Self::Active
    }
}

/// A stored job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Job {
    /// As its users asked, checked.
    pub spec: JobSpec,
    /// Where it is.
    pub state: JobState,
    /// Indices that succeeded.
    pub succeeded: u32,
    /// Attempts that failed, over all indices.
    pub failed: u32,
    /// It was deleted and goes when its last unit has.
    #[serde(default)]
    pub is_deleting: bool,
    /// Revision and times.
    #[serde(flatten)]
    pub meta: Meta,
}

/// Which service or job a unit belongs to.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Owner {
    /// A service, and the generation of its unit spec that this unit runs.
    Service {
        /// The service's name.
        name: ResourceName,
        /// See [`Service::generation`].
        generation: u64,
    },
    /// A job, and which piece of its work this unit does.
    Job {
        /// The job's name.
        name: ResourceName,
        /// From 0 to completions - 1.
        index: u32,
        /// From 0; one more after each failure.
        attempt: u32,
    },
}

impl Owner {
    /// The owner's kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Service { .. } => Kind::Service,
            Self::Job { .. } => Kind::Job,
        }
    }

    /// The owner's name.
    #[must_use]
    pub fn name(&self) -> &ResourceName {
        match self {
            Self::Service { name, .. } | Self::Job { name, .. } => name,
        }
    }
}

/// What the control plane wants of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// Run.
    #[default]
    Run,
    /// Stop, and stay listed.
    Stop,
    /// Stop, then be removed.
    Remove,
}

/// A stored unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unit {
    /// Its identity for ever.
    pub id: UnitId,
    /// Unique among the namespace's units while it exists.
    pub name: ResourceName,
    /// Where it belongs.
    pub namespace: NamespacePath,
    /// The service or job that made it, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// For people.
    #[serde(default, skip_serializing_if = "has_no_labels")]
    pub labels: Arc<Labels>,
    /// What it runs; shared with the other units of its service or job.
    pub template: Arc<UnitTemplate>,
    /// What the control plane wants of it.
    pub desired: Desired,
    /// Remove it once it has ended and a client has seen that.
    #[serde(default)]
    pub remove_when_done: bool,
    /// Where it was placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// While it waits: the node that others leave to make room for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promised: Option<NodeName>,
    /// What else the placement gave it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub grants: Grants,
    /// When it was placed, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placed_ms: Option<i64>,
    /// The plan that placed it; nodes refuse assignments of older plans than the newest they saw for the unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placed_by: Option<PlanSequence>,
    /// How it is.
    pub status: UnitStatus,
    /// Revision and times.
    #[serde(flatten)]
    pub meta: Meta,
}

impl Unit {
    /// A unit that nobody made but its user, as it begins.
    #[must_use]
    pub fn alone(spec: &LoneUnitSpec, id: UnitId, meta: Meta) -> Self {
        Self {
            id,
            name: spec.name.clone(),
            namespace: spec.namespace.clone(),
            owner: None,
            labels: Arc::new(spec.labels.clone()),
            template: Arc::new(spec.unit.clone()),
            desired: Desired::Run,
            remove_when_done: spec.remove_when_done,
            node: None,
            promised: None,
            grants: Grants::default(),
            placed_ms: None,
            placed_by: None,
            status: UnitStatus::default(),
            meta,
        }
    }

    /// `wasm`, `oci` or `mixed`: what it runs, or what it may run as long as that is open.
    #[must_use]
    pub fn runtime_label(&self) -> &'static str {
        match self.grants.runtimes {
            none if none.is_empty() => self.template.runtime_label(),
            chosen => chosen.iter().collect::<RuntimeSet>().label(),
        }
    }

    /// The runtime of each task that leaves a choice, by its name, as it was chosen.
    #[must_use]
    pub fn variants(&self, chosen: Choice) -> BTreeMap<ResourceName, Runtime> {
        let tasks = self.template.tasks.iter().zip(chosen.iter());
        tasks
            .filter(|(task, _)| task.variants.are_several())
            .map(|(task, runtime)| (task.name.clone(), runtime))
            .collect()
    }
}

fn has_no_labels(labels: &Labels) -> bool {
    labels.is_empty()
}

/// How a unit is, as its node reports it (as the control plane says, before it has a node).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct UnitStatus {
    /// Where it is in its life.
    pub state: UnitState,
    /// Why, for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// How often its tasks were started again.
    #[serde(default)]
    pub restarts: u32,
    /// The exit code of the task that decided the outcome: 137 when killed for memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// When it first ran, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<i64>,
    /// When it ended, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_ms: Option<i64>,
    /// Where its servers listen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// Counts the node's reports about this unit, from 1; a report that is not newer is ignored.
    #[serde(default)]
    pub sequence: u64,
}

/// Where a task listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Endpoint {
    /// The task.
    pub task: ResourceName,
    /// `host:port` as others reach it.
    pub address: String,
    /// `http` or `tcp`.
    pub scheme: String,
}

/// What a node says of itself when it registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeFacts {
    /// What there is to schedule on, after what the system itself needs.
    pub allocatable: Resources,
    /// `arch`, `os`, `kernel`, `hostname` and what its operator added.
    pub attributes: BTreeMap<String, String>,
    /// What keeps units away that do not tolerate it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<Taint>,
    /// Directories that units may mount, with what is below them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// What it can run; a node without root has no `oci`.
    pub runtimes: Vec<Runtime>,
    /// Address under which its units are reached.
    pub address: String,
    /// The agent's version.
    pub agent_version: String,
    /// Changes with each start of the machine.
    pub boot_id: String,
}

/// Whether a node can be used.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// In touch.
    #[default]
    Ready,
    /// Out of touch; its units may still run.
    Unreachable,
}

impl NodeState {
    /// `ready` or `unreachable`, as in JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Unreachable => "unreachable",
        }
    }

    /// The state of that name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Ready, Self::Unreachable].into_iter().find(|state| state.as_str() == text)
    }
}

/// A stored node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Node {
    /// Unique in the cluster.
    pub name: NodeName,
    /// What it said of itself.
    pub facts: NodeFacts,
    /// Whether it can be used.
    pub state: NodeState,
    /// When `state` last changed, Unix milliseconds.
    pub state_since_ms: i64,
    /// How many artifacts it holds, where it is in session with the server that answers. Never stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_artifacts: Option<u32>,
    /// Revision and times.
    #[serde(flatten)]
    pub meta: Meta,
}

/// A stored config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Config {
    /// As its users asked.
    pub spec: ConfigSpec,
    /// Revision and times.
    #[serde(flatten)]
    pub meta: Meta,
}

/// What anybody may know of a stored secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Secret {
    /// Unique among the namespace's secrets.
    pub name: ResourceName,
    /// Where it belongs.
    pub namespace: NamespacePath,
    /// The keys; never the texts.
    pub keys: Vec<String>,
    /// Revision and times.
    #[serde(flatten)]
    pub meta: Meta,
}

/// What an artifact is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ArtifactKind {
    /// A wasm module or component.
    Wasm,
    /// A container image for one platform.
    Image,
    /// A list of images for several platforms.
    Index,
    /// Another OCI artifact.
    Other,
}

impl ArtifactKind {
    /// `wasm` and so on, as in JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wasm => "wasm",
            Self::Image => "image",
            Self::Index => "index",
            Self::Other => "other",
        }
    }

    /// The kind of that name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Wasm, Self::Image, Self::Index, Self::Other]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }
}

/// A tag of the built-in registry and what it names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Artifact {
    /// `team-a/shop`.
    pub repository: String,
    /// `1.4`.
    pub tag: String,
    /// Digest of the manifest.
    pub digest: Digest,
    /// Media type of the manifest.
    pub media_type: String,
    /// What it is. Not `kind` on the wire: there that is the kind of resource, as everywhere.
    #[serde(rename = "content")]
    pub kind: ArtifactKind,
    /// Bytes of manifest, config and layers together.
    pub size_bytes: u64,
    /// What the program is and needs, of a wasm artifact that could be looked into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wasm: Option<WasmFacts>,
    /// Revision and times.
    #[serde(flatten)]
    pub meta: Meta,
}

/// Any stored resource, as the change feed carries it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Object {
    /// See [`Namespace`].
    Namespace(Namespace),
    /// See [`Node`].
    Node(Node),
    /// See [`Service`].
    Service(Service),
    /// See [`Job`].
    Job(Job),
    /// See [`Unit`].
    Unit(Box<Unit>),
    /// See [`Secret`].
    Secret(Secret),
    /// See [`Config`].
    Config(Config),
    /// See [`Artifact`].
    Artifact(Artifact),
}

/// What identifies a stored resource.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; None for kinds that are the cluster's: namespace, node, artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<NamespacePath>,
    /// Its name; for artifacts `repository:tag`.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`", self.kind, self.name)?;
        match &self.namespace {
            Some(namespace) => write!(f, " in namespace `{namespace}`"),
            None => Ok(()),
        }
    }
}

impl Object {
    /// What identifies it.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        let key = |kind, namespace: Option<&NamespacePath>, name: &str| ObjectKey {
            kind,
            namespace: namespace.cloned(),
            name: name.to_owned(),
        };
        match self {
            Self::Namespace(o) => key(Kind::Namespace, None, o.spec.name.as_str()),
            Self::Node(o) => key(Kind::Node, None, o.name.as_str()),
            Self::Service(o) => key(Kind::Service, Some(&o.spec.namespace), o.spec.name.as_str()),
            Self::Job(o) => key(Kind::Job, Some(&o.spec.namespace), o.spec.name.as_str()),
            Self::Unit(o) => key(Kind::Unit, Some(&o.namespace), o.name.as_str()),
            Self::Secret(o) => key(Kind::Secret, Some(&o.namespace), o.name.as_str()),
            Self::Config(o) => key(Kind::Config, Some(&o.spec.namespace), o.spec.name.as_str()),
            Self::Artifact(o) => key(Kind::Artifact, None, &format!("{}:{}", o.repository, o.tag)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_in_the_feed_reads_back() {
        let artifact = Artifact {
            repository: "team/app".into(),
            tag: "1".into(),
            digest: Digest::of_sha256(&[0; 32]),
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            kind: ArtifactKind::Wasm,
            size_bytes: 1,
            wasm: None,
            meta: Meta::default(),
        };
        let object = Object::Artifact(artifact);
        let text = serde_json::to_string(&object).unwrap();
        assert_eq!(serde_json::from_str::<Object>(&text).unwrap(), object);
    }

    #[test]
    fn kinds_are_found_by_every_usual_name() {
        for kind in Kind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
            assert_eq!(kind.plural().parse(), Ok(kind));
        }
        assert_eq!("svc".parse(), Ok(Kind::Service));
        assert!("pod".parse::<Kind>().unwrap_err().to_string().contains("`pod`"));
    }
}
