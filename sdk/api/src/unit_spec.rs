//! The spec of a unit: as written ([`UnitSpec`], with short forms) and as checked ([`UnitTemplate`]).

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::constraint::Constraint;
use crate::placement::{Concurrency, Dependency, Gang, PlacementRules};
use crate::variants::Variants;
use crate::{ResourceName, Resources};

/// Time between the stop signal and the kill, in milliseconds, where a unit names none.
pub const GRACE_MS_DEFAULT: u64 = 10_000;
/// The task name of a unit in short form.
pub const MAIN_TASK: &str = "main";

/// What a user writes about a unit. Either `tasks`, or the short form for one task: `wasm`, `oci` or `variants` with
/// `resources`, `limits`, `env` and `mounts` beside it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UnitSpec {
    /// Short form: the task's request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Short form: the task's limits, where they exceed the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Resources>,
    /// Short form: a wasm program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wasm: Option<WasmProgram>,
    /// Short form: a container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oci: Option<OciProgram>,
    /// Short form: the same program for several runtimes, the preferred first. Each node runs the first that it can.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub variants: Vec<Program>,
    /// Short form: environment variables.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, EnvValue>,
    /// Short form: directories and files from outside.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Short form: the task's standard input stays open.
    #[serde(skip_serializing_if = "is_default")]
    pub stdin: bool,
    /// Long form: several tasks, freely mixed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskSpec>,
    /// The rest, the same in both forms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartPolicy>,
    /// Higher goes first; 0 where none is named. From -1000 to 1000.
    #[serde(skip_serializing_if = "is_default")]
    pub priority: i32,
    /// Requirements on the node's attributes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<Constraint>,
    /// Rules about the unit's place besides `constraints`: preferences, neighbours, spread, tolerations.
    #[serde(skip_serializing_if = "is_default")]
    pub placement: PlacementRules,
    /// Runs on what others leave idle, with no promise: stopped as soon as any other unit needs the room.
    #[serde(skip_serializing_if = "is_default")]
    pub revocable: bool,
    /// Units that are placed together or not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gang: Option<Gang>,
    /// Services and jobs of the namespace that the unit waits for before it gets a node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Dependency>,
    /// A limit on how many units of a family are on nodes at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// How long the unit runs at most, in milliseconds from its placement; it is stopped then. The scheduler may place
    /// such a unit on room that it keeps for a waiting gang, if the gang does not start later for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_run_ms: Option<u64>,
    /// Milliseconds from the stop signal to the kill.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
    /// What happens when the unit's node is out of reach.
    #[serde(skip_serializing_if = "is_default")]
    pub disconnect: Disconnect,
}

/// One task of the long form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskSpec {
    /// Unique within the unit.
    pub name: ResourceName,
    /// A wasm program, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wasm: Option<WasmProgram>,
    /// … a container …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oci: Option<OciProgram>,
    /// … or the same program for several runtimes, the preferred first, of which each node runs the first that it can:
    /// exactly one of the three.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variants: Vec<Program>,
    /// The task's request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// The task's limits, where they exceed the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Resources>,
    /// Environment variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, EnvValue>,
    /// Directories and files from outside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Its standard input stays open for whoever attaches; without this it is empty. For wasm commands.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stdin: bool,
    /// A sidecar is stopped when the unit's other tasks have ended.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sidecar: bool,
}

/// A unit that has been checked: every short form resolved, every default filled in. Written out, it is the
/// long form of [`UnitSpec`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UnitTemplate {
    /// At least one; names are unique; at least one is no sidecar.
    pub tasks: Vec<Task>,
    /// What happens when a task ends.
    pub restart: RestartPolicy,
    /// Higher goes first.
    #[serde(default, skip_serializing_if = "is_default")]
    pub priority: i32,
    /// Requirements on the node's attributes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<Constraint>,
    /// Rules about the unit's place besides `constraints`: preferences, neighbours, spread, tolerations.
    #[serde(default, skip_serializing_if = "is_default")]
    pub placement: PlacementRules,
    /// Runs on what others leave idle, with no promise: stopped as soon as any other unit needs the room.
    #[serde(default, skip_serializing_if = "is_default")]
    pub revocable: bool,
    /// Units that are placed together or not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gang: Option<Gang>,
    /// Services and jobs of the namespace that the unit waits for before it gets a node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Dependency>,
    /// A limit on how many units of a family are on nodes at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// How long the unit runs at most, in milliseconds from its placement; it is stopped then. The scheduler may place
    /// such a unit on room that it keeps for a waiting gang, if the gang does not start later for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_run_ms: Option<u64>,
    /// Milliseconds from the stop signal to the kill.
    pub grace_ms: u64,
    /// What happens when the unit's node is out of reach.
    #[serde(default, skip_serializing_if = "is_default")]
    pub disconnect: Disconnect,
}

/// One checked task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Task {
    /// Unique within the unit.
    pub name: ResourceName,
    /// What runs: `wasm: {…}`, `oci: {…}` or `variants: […]`.
    #[serde(flatten)]
    pub variants: Variants,
    /// What is set aside for it.
    pub resources: Resources,
    /// What it may use at most; each at least the request.
    pub limits: Resources,
    /// Environment variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, EnvValue>,
    /// Directories and files from outside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Its standard input stays open for whoever attaches; without this it is empty. For wasm commands.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stdin: bool,
    /// A sidecar is stopped when the unit's other tasks have ended.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sidecar: bool,
}

/// The program of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// Runs in wasmtime.
    Wasm(WasmProgram),
    /// Runs as a container.
    Oci(OciProgram),
}

/// The two kinds of program.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    /// wasmtime.
    Wasm,
    /// libcontainer.
    Oci,
}

/// A WASI program: a core module (preview 1), or a component that is a command or an http service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WasmProgram {
    /// Reference of the module or component, such as `team-a/shop:1.4`.
    pub artifact: String,
    /// Arguments after the program's own name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Serve `wasi:http` requests. Needed for, and only allowed with, a `wasi:http` component.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpServing>,
    /// Hosts that it may connect to, none by default: `[SCHEME://][*.]HOST[:PORT]`. Without a scheme, and with `http` or
    /// `https`, for requests by `wasi:http`; with `tcp` or `udp`, for `wasi:sockets`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_hosts: Vec<String>,
    /// Ports of the node that it may listen on by `wasi:sockets`, TCP and UDP. A 0 is a port that the scheduler chooses: the
    /// program finds every port, in the order of this list, in its environment as `BRIG_PORT_0`, `BRIG_PORT_1` and so on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// What it finds in `wasi:config/store`; values as in `env`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, EnvValue>,
    /// Buckets that it may open by `wasi:keyvalue`. They belong to the namespace on the node: units of both that name the
    /// same bucket share it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keyvalue: Vec<ResourceName>,
    /// How exactly it can tell the time.
    #[serde(default, skip_serializing_if = "is_default")]
    pub clocks: Clocks,
    /// With whom it shares its process.
    #[serde(default, skip_serializing_if = "is_default")]
    pub isolation: Isolation,
    /// End the program this many milliseconds after its start (for http: each request). No limit by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

/// With whom a wasm program shares its process on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// With the other wasm programs of its namespace: starts in microseconds, costs next to nothing while it waits.
    #[default]
    Namespace,
    /// With nobody: a start takes some milliseconds, and the program computes at full speed, for it need not look
    /// whether it is to be interrupted.
    Unit,
}

impl Isolation {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Unit => "unit",
        }
    }
}

/// How exactly a wasm program can tell the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Clocks {
    /// As exactly as the node can.
    #[default]
    Fine,
    /// To the millisecond: too coarse to measure what a neighbour's work does to a cache.
    Coarse,
}

/// How a wasm unit serves HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpServing {
    /// Port on the node; units of the same service on one node share it. Without one the node picks a free port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Requests that run at a time, from 1 to [`HTTP_CONCURRENT_MAX`]; more wait. [`HTTP_CONCURRENT_DEFAULT`] where none
    /// is named, and always fewer when the memories of so many would not fit the task's limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrent: Option<u32>,
    /// Longest time from a request until its response begins, in milliseconds; then its client is told 504.
    /// [`HTTP_TIMEOUT_MS_DEFAULT`] where none is named. How long a response may take is the program's `deadline_ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Let an instance answer several requests, one after the other. Off by default: each request has a fresh
    /// instance, and nothing that one leaves behind is seen by another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reuse: Option<InstanceReuse>,
}

/// How instances of a `wasi:http` program are used again. One that trapped, or was cut off, never is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InstanceReuse {
    /// Requests that an instance answers before it is thrown away; at least 1.
    pub max_requests: u32,
    /// How long an instance waits for its next request, in milliseconds, from 1 to [`REUSE_IDLE_MS_MAX`]. Its memory
    /// counts for the unit while it waits.
    pub idle_ms: u64,
}

impl Default for InstanceReuse {
    fn default() -> Self {
        Self { max_requests: 1_000, idle_ms: 1_000 }
    }
}

/// Requests of a wasm task that run at a time, where its spec names no number.
pub const HTTP_CONCURRENT_DEFAULT: u32 = 100;
/// Most requests of a wasm task that may run at a time.
pub const HTTP_CONCURRENT_MAX: u32 = 1_000;
/// Longest time until a response begins, in milliseconds, where the spec names none.
pub const HTTP_TIMEOUT_MS_DEFAULT: u64 = 60_000;
/// Longest time that an instance may wait for its next request, in milliseconds.
pub const REUSE_IDLE_MS_MAX: u64 = 3_600_000;

/// A container from an OCI image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OciProgram {
    /// Reference of the image, such as `docker.io/library/redis:7` or `team-a/web:1`.
    pub image: String,
    /// Replaces the image's entrypoint (and drops its default arguments).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Replaces the image's default arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; names are looked up in the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Working directory, absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Mount the root filesystem read-only.
    #[serde(default, skip_serializing_if = "is_default")]
    pub read_only_root: bool,
    /// Most processes and threads; [`PIDS_DEFAULT`] where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Ports that the program listens on, on the node's network. A 0 is a port that the scheduler chooses: the program
    /// finds every port, in the order of this list, in its environment as `BRIG_PORT_0`, `BRIG_PORT_1` and so on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
}

/// Most processes and threads of a container that names no limit.
pub const PIDS_DEFAULT: u32 = 1024;

/// The value of an environment variable: a text (a number or boolean is taken as one), or a key of a secret or
/// config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a text, `{secret: NAME, key: KEY}` or `{config: NAME, key: KEY}`"
)]
pub enum EnvValue {
    /// The text itself.
    Text(#[serde(deserialize_with = "scalar_as_text")] String),
    /// `{secret: NAME, key: KEY}`
    Secret(SecretKey),
    /// `{config: NAME, key: KEY}`
    Config(ConfigKey),
}

/// A key of a secret in the unit's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretKey {
    /// The secret.
    pub secret: ResourceName,
    /// The key in it.
    pub key: String,
}

/// A key of a config in the unit's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfigKey {
    /// The config.
    pub config: ResourceName,
    /// The key in it.
    pub key: String,
}

/// Something from outside that a task finds in its file tree: exactly one of `host`, `config`, `secret`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// A directory of the node; the node's operator must have allowed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<PathBuf>,
    /// A config of the namespace: a directory with a file per key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ResourceName>,
    /// A secret of the namespace: a directory with a file per key, in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<ResourceName>,
    /// Absolute path in the task's file tree.
    pub at: String,
    /// Refuse writes. Configs and secrets are always read-only.
    #[serde(default, skip_serializing_if = "is_default")]
    pub read_only: bool,
}

/// What happens when a task of a unit ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Start it again, with back-off. What services do.
    Always,
    /// Start it again when it failed. What plain units do.
    OnFailure,
    /// Leave it. What jobs do: their retries are new units.
    Never,
}

/// What happens to a unit whose node is out of reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Disconnect {
    /// Give it up as lost after a time; its service or job replaces it.
    #[default]
    Replace,
    /// Wait for the node for ever.
    Wait,
}

/// `PORT: 8080` in YAML is a number, but was meant as a text.
fn scalar_as_text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::String(text) => Ok(text),
        serde_json::Value::Number(number) => Ok(number.to_string()),
        serde_json::Value::Bool(boolean) => Ok(boolean.to_string()),
        _ => Err(serde::de::Error::custom("not a scalar")),
    }
}

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Program {
    /// Which runtime it needs.
    #[must_use]
    pub fn runtime(&self) -> Runtime {
        match self {
            Self::Wasm(_) => Runtime::Wasm,
            Self::Oci(_) => Runtime::Oci,
        }
    }

    /// The reference of the artifact or image.
    #[must_use]
    pub fn reference(&self) -> &str {
        match self {
            Self::Wasm(wasm) => &wasm.artifact,
            Self::Oci(oci) => &oci.image,
        }
    }

    /// Ports that it listens on by itself; 0 for those that the scheduler chooses.
    #[must_use]
    pub fn ports(&self) -> &[u16] {
        match self {
            Self::Wasm(wasm) => &wasm.ports,
            Self::Oci(oci) => &oci.ports,
        }
    }

    /// The port that `wasi:http` requests come in by, where it is fixed.
    #[must_use]
    pub fn http_port(&self) -> Option<u16> {
        match self {
            Self::Wasm(wasm) => wasm.http.as_ref()?.port,
            Self::Oci(_) => None,
        }
    }
}

impl Task {
    /// Every value that may be a key of a secret or config, with its field: variables, and a wasm program's `config`.
    pub fn values(&self) -> impl Iterator<Item = (String, &EnvValue)> {
        let env = self.env.iter().map(|(name, value)| (format!("env.{name}"), value));
        let configs = self.variants.iter().enumerate().filter_map(|(position, program)| {
            let Program::Wasm(wasm) = program else { return None };
            Some((self.variants.field(position, Runtime::Wasm), &wasm.config))
        });
        env.chain(configs.flat_map(|(field, config)| {
            config.iter().map(move |(key, value)| (format!("{field}.config.{key}"), value))
        }))
    }
}

impl Runtime {
    /// `wasm` or `oci`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wasm => "wasm",
            Self::Oci => "oci",
        }
    }
}

/// A port on the node that a unit needs for itself (or, shared, for its service).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// The number.
    pub port: u16,
    /// May other units of the same service listen on it too?
    pub is_shared_by_service: bool,
}

impl UnitTemplate {
    /// The unit's request: the sum over its tasks.
    #[must_use]
    pub fn request(&self) -> Resources {
        // Validation refused sums that overflow.
        self.tasks
            .iter()
            .fold(Resources::default(), |sum, task| sum.checked_add(&task.resources).unwrap_or(sum))
    }

    /// How many ports it leaves to the scheduler; of several variants the preferred ones count (see [`Self::chosen`]).
    #[must_use]
    pub fn open_ports(&self) -> usize {
        let open = |task: &Task| task.program().ports().iter().filter(|port| **port == 0).count();
        self.tasks.iter().map(open).sum()
    }

    /// The fixed ports of the node that the unit occupies; of several variants the preferred ones count.
    #[must_use]
    pub fn host_ports(&self) -> Vec<HostPort> {
        let mut ports: Vec<_> = self
            .tasks
            .iter()
            .flat_map(|task| {
                let http = task.program().http_port();
                let http = http.map(|port| HostPort { port, is_shared_by_service: true });
                let own = task.program().ports().iter().copied().filter(|port| *port != 0);
                let own = own.map(|port| HostPort { port, is_shared_by_service: false });
                http.into_iter().chain(own)
            })
            .collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}
