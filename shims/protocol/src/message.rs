//! The messages between agent and shim: JSON in frames, over a unix socket.
//!
//! The agent sends [`ToShim`], the shim answers each with [`FromShim::Reply`] of the same `id`, and sends
//! [`FromShim::Exited`], [`FromShim::Running`] and [`FromShim::Checkpoint`] to every connection by itself. Requests are
//! idempotent: starting a task that is there, signalling or removing one that has ended, all succeed. After
//! [`Request::Exec`] or [`Request::Attach`] was answered with [`Reply::Done`] the connection carries [`brig_api::stdio`]
//! frames and nothing else; so each has a connection of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use brig_api::lifecycle::Reason;
use brig_api::request::ExecRequest;
use brig_api::unit_spec::{
    Clocks, HTTP_CONCURRENT_DEFAULT, HTTP_TIMEOUT_MS_DEFAULT, HttpServing, InstanceReuse, Isolation,
};
use brig_api::usage::Usage;
use brig_api::{Digest, NamespacePath};
use serde::{Deserialize, Serialize};

use crate::exit::ExitRecord;

/// The version of this protocol. An agent that finds a shim of another version lets it run its tasks to their
/// end and starts new tasks in a new shim.
pub const PROTOCOL_VERSION: u32 = 2;
/// The shim's socket in its state directory.
pub const SOCKET_NAME: &str = "shim.sock";

/// From the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToShim {
    /// Comes back in the reply.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// What an agent asks of a shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// The first request of a connection. Answer: [`Reply::Hello`].
    Hello {
        /// [`PROTOCOL_VERSION`]
        version: u32,
    },
    /// Set up and start a task. Answered at once with [`Reply::Done`] when it was accepted; [`FromShim::Running`]
    /// or [`FromShim::Exited`] follows.
    Start(Box<StartTask>),
    /// Ask a task to end, or end it. Answer: [`Reply::Done`].
    Stop {
        /// Which.
        task: TaskKey,
        /// How.
        how: StopSignal,
    },
    /// What tasks use. Answer: [`Reply::Usage`].
    Usage {
        /// Those whose keys come after this one; all without it.
        after: Option<TaskKey>,
    },
    /// Run another program inside a running container. wasm shims refuse it.
    Exec {
        /// Where.
        task: TaskKey,
        /// What.
        exec: ExecRequest,
    },
    /// Send a task its standard input: one connection at a time, and only to a task with [`StartTask::stdin`]. An empty
    /// frame is the end of the input; a connection that is closed leaves the program waiting for the next one. No more is
    /// read than the program takes, but for a buffer. The last frame says how the task ended. Container shims refuse it.
    Attach {
        /// Which.
        task: TaskKey,
    },
    /// Forget an ended task; its directory is the agent's again. A shim without tasks that has forgotten its last
    /// one ends by itself after a while.
    Remove {
        /// Which.
        task: TaskKey,
    },
    /// End now if there are no tasks. Answer: [`Reply::Done`], or an error when there are some.
    Shutdown,
}

/// One run of one task: a restart is another run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskKey(pub String);

impl TaskKey {
    /// The key of the `run`th run (from 0) of a task; a safe file name.
    #[must_use]
    pub fn new(unit: &brig_api::UnitId, task: &brig_api::ResourceName, run: u32) -> Self {
        Self(format!("{unit}.{task}.{run}"))
    }
}

/// How a task is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopSignal {
    /// The image's stop signal, SIGTERM by default. For wasm: ends the task at the next chance; a server stops
    /// accepting and finishes the requests that it has.
    Terminate,
    /// SIGINT, where a program wants that.
    Interrupt,
    /// SIGKILL. For wasm: ends the task at once.
    Kill,
}

/// Everything a shim needs to know to run a task. All names are resolved, all files are on this machine.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartTask {
    /// The run.
    pub key: TaskKey,
    /// The namespace, for the shim's own log.
    pub namespace: NamespacePath,
    /// `unit/task` as people know it, for the shim's own log and the container's host name.
    pub title: String,
    /// The run's directory: exists, holds the task's newest checkpoint if there is one ([`crate::checkpoint`]) and nothing
    /// else, is the shim's until [`Request::Remove`].
    pub dir: PathBuf,
    /// Where output goes.
    pub log: LogTarget,
    /// Environment, complete.
    pub env: BTreeMap<String, String>,
    /// What it may use.
    pub limits: Limits,
    /// Files from outside.
    pub mounts: Vec<BindMount>,
    /// Its standard input is open, and what [`Request::Attach`] sends; else it is empty.
    #[serde(default)]
    pub stdin: bool,
    /// What runs.
    pub program: StartProgram,
}

/// Environment may hold secrets: `Debug` leaves it out.
impl std::fmt::Debug for StartTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StartTask")
            .field("key", &self.key)
            .field("namespace", &self.namespace)
            .field("title", &self.title)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// A rotated log file in the format of [`brig_api::logline`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogTarget {
    /// The newest file; older ones are `PATH.1`, `PATH.2`, …
    pub path: PathBuf,
    /// A file larger than this is rotated.
    pub bytes_max: u64,
    /// How many older files are kept.
    pub files_kept: u32,
}

/// What a task may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Its share when others want the processor too, in thousandths of a core.
    pub cpu_request_milli: u64,
    /// Most processor time, in thousandths of a core.
    pub cpu_limit_milli: u64,
    /// Most memory in bytes.
    pub memory_bytes: u64,
    /// Most processes and threads (containers).
    pub pids: u32,
}

/// A file or directory of this machine in a task's file tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindMount {
    /// On this machine.
    pub source: PathBuf,
    /// Absolute path in the task's tree.
    pub at: String,
    /// Refuse writes.
    pub read_only: bool,
}

/// What runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "runtime", rename_all = "snake_case")]
pub enum StartProgram {
    /// A wasm module or component.
    Wasm(StartWasm),
    /// A container.
    Oci(StartOci),
}

/// A wasm module or component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartWasm {
    /// The digest of the `.wasm` file.
    pub digest: Digest,
    /// What its code in the cache was compiled for: see [`crate::code`].
    pub compatibility: String,
    /// What kind of shim the code is for. One for a single unit can't interrupt it.
    pub isolation: Isolation,
    /// `argv[0]`, then the arguments.
    pub args: Vec<String>,
    /// Serve `wasi:http` on this address; several tasks of a service share one port (SO_REUSEPORT).
    pub http: Option<SocketAddr>,
    /// How it serves.
    #[serde(default)]
    pub http_limits: HttpLimits,
    /// See [`brig_api::unit_spec::WasmProgram::allow_hosts`].
    pub allow_hosts: Vec<String>,
    /// See [`brig_api::unit_spec::WasmProgram::deadline_ms`].
    pub deadline_ms: Option<u64>,
    /// What else it finds of its host.
    #[serde(default)]
    pub world: WasmWorld,
}

/// What a wasm program finds of its host besides files, variables and hosts to connect to. Nothing by default.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WasmWorld {
    /// Ports that it may listen on.
    pub ports: Vec<u16>,
    /// What `wasi:config/store` tells it.
    pub config: BTreeMap<String, String>,
    /// Where `wasi:keyvalue` leads.
    pub keyvalue: Option<KeyValueStore>,
    /// See [`brig_api::unit_spec::WasmProgram::clocks`].
    pub clocks: Clocks,
}

/// The config may hold secrets: `Debug` leaves it out.
impl std::fmt::Debug for WasmWorld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WasmWorld")
            .field("ports", &self.ports)
            .field("keyvalue", &self.keyvalue)
            .field("clocks", &self.clocks)
            .finish_non_exhaustive()
    }
}

/// The store of a namespace on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValueStore {
    /// The namespace's file; its folder is made with it. Several shims of the namespace may have it open.
    pub file: PathBuf,
    /// The buckets that the task may open.
    pub buckets: Vec<String>,
}

/// See [`brig_api::unit_spec::HttpServing`]; its defaults are filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpLimits {
    /// Requests that run at a time.
    pub max_concurrent: u32,
    /// Longest time until a response begins, in milliseconds.
    pub timeout_ms: u64,
    /// None: a fresh instance for each request.
    pub reuse: Option<InstanceReuse>,
}

impl From<&HttpServing> for HttpLimits {
    fn from(http: &HttpServing) -> Self {
        Self {
            max_concurrent: http.max_concurrent.unwrap_or(HTTP_CONCURRENT_DEFAULT),
            timeout_ms: http.timeout_ms.unwrap_or(HTTP_TIMEOUT_MS_DEFAULT),
            reuse: http.reuse,
        }
    }
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self::from(&HttpServing::default())
    }
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartOci {
    /// Unpacked layers, lowest first; read-only, shared with other containers. In overlay format: whiteouts are
    /// character devices 0/0, opaque directories have the xattr `trusted.overlay.opaque=y`.
    pub layers: Vec<PathBuf>,
    /// A directory for upper and work directories of the overlay, on the same disk; the shim removes its contents.
    pub scratch: PathBuf,
    /// Program and arguments, after image and spec were merged; not empty.
    pub args: Vec<String>,
    /// `user[:group]` as the spec or else the image has it; empty for root. Names are looked up in the image.
    pub user: String,
    /// Absolute working directory; created when missing.
    pub working_dir: String,
    /// Mount the root read-only.
    pub read_only_root: bool,
    /// The image's stop signal, such as `SIGQUIT`; SIGTERM when there is none.
    pub stop_signal: Option<String>,
}

/// From the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromShim {
    /// Answer to the request of that id.
    Reply {
        /// The request's.
        id: u64,
        /// The answer.
        reply: Reply,
    },
    /// The task's program runs (an http server accepts).
    Running {
        /// Which.
        task: TaskKey,
        /// Where its http server listens, if it has one.
        http: Option<SocketAddr>,
    },
    /// The task ended; the record is on disk.
    Exited {
        /// Which.
        task: TaskKey,
        /// How.
        record: ExitRecord,
    },
    /// The task saved where it is ([`crate::checkpoint`]). Whoever was not connected looks into its directory.
    Checkpoint {
        /// Which.
        task: TaskKey,
        /// See [`brig_api::checkpoint::Checkpoint::number`].
        number: u64,
    },
}

/// Answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Done,
    /// Answer to [`Request::Hello`].
    Hello {
        /// [`PROTOCOL_VERSION`]
        version: u32,
        /// Every task that was not removed yet.
        tasks: Vec<TaskView>,
    },
    /// Answer to [`Request::Usage`].
    Usage {
        /// Tasks that run and those that were not removed yet, in the order of their keys, at most [`USAGES_MAX`]. There may
        /// be more after the last one of so many.
        tasks: Vec<(TaskKey, TaskUsage)>,
    },
    /// It can't be done.
    Refused {
        /// Why, for programs.
        reason: Option<Reason>,
        /// Why, for people.
        message: String,
    },
}

/// A task as a shim knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskView {
    /// Which.
    pub key: TaskKey,
    /// How it is.
    pub state: TaskState,
}

/// How a task in a shim is. Starting → Running → Exited, or Starting → Exited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum TaskState {
    /// Being set up (a large module may be compiled for seconds).
    Starting,
    /// Runs.
    Running {
        /// Where its http server listens, if it has one.
        http: Option<SocketAddr>,
    },
    /// Ended.
    Exited(ExitRecord),
}

/// Most tasks in one [`Reply::Usage`].
pub const USAGES_MAX: usize = 1_000;

/// What a task uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TaskUsage {
    /// So far.
    #[serde(flatten)]
    pub used: Usage,
    /// Memory in bytes now.
    pub memory_bytes: u64,
}
