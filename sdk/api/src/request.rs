//! Bodies of the `/v1` requests and answers that are no resource themselves.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::asks::Ask;
use crate::explain::{Explanation, NodeVerdict, Verdict};
use crate::lifecycle::Reason;
use crate::manifest::Manifest;
use crate::object::{Kind, Object, ObjectKey};
use crate::unit_spec::UnitSpec;
use crate::{NamespacePath, NodeName, ResourceName, Revision};

/// Largest body of a `/v1` request, in bytes: a big directory of manifests, far from hurting the server.
pub const BODY_BYTES_MAX: usize = 8 << 20;
/// Most manifests in one apply: they commit in one transaction.
pub const MANIFESTS_MAX: usize = 1_000;

/// `POST /v1/apply` and `POST /v1/plan`: all manifests take effect in one transaction, or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApplyRequest {
    /// In the order in which they take effect.
    pub manifests: Vec<Manifest<UnitSpec>>,
}

/// What an apply did, or what a plan would do, with one manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Applied {
    /// The resource.
    pub key: ObjectKey,
    /// What happened to it.
    pub outcome: ApplyOutcome,
    /// The fields that change, as `path: before -> after`; for `updated` only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<String>,
}

/// What an apply does with one manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ApplyOutcome {
    /// It did not exist.
    Created,
    /// It existed and differed.
    Updated,
    /// It was already so.
    Unchanged,
}

/// Answer of `POST /v1/apply`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApplyResponse {
    /// The transaction; the newest revision when nothing changed.
    pub revision: Revision,
    /// One for each manifest, in their order.
    pub applied: Vec<Applied>,
}

/// Answer of `POST /v1/plan`: what an apply would do, and where the scheduler would put the new units now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlanResponse {
    /// The revision that it was tried on.
    pub revision: Revision,
    /// One for each manifest, in their order.
    pub applied: Vec<Applied>,
    /// One for each unit that would be decided.
    pub placements: Vec<PlannedUnit>,
    /// Names of units that would be stopped, for whatever reason.
    pub stops: Vec<ObjectKey>,
    /// Those among them that would have to make room, or leave a node that no longer takes them, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evictions: Vec<PlannedEviction>,
    /// What the manifests ask for that what is stored did not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asks: Vec<Ask>,
}

/// Where one unit would go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlannedUnit {
    /// The unit.
    pub key: ObjectKey,
    /// The service or job that it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<ObjectKey>,
    /// The node, or why none.
    pub verdict: Verdict,
    /// Why it would wait, for programs: `QuotaExceeded`, `Unschedulable` and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The node that others would leave to make room for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promised: Option<NodeName>,
}

/// A unit that would have to leave its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlannedEviction {
    /// The unit.
    pub key: ObjectKey,
    /// The service or job that it is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<ObjectKey>,
    /// Where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// `Preempted` or `Evicted`; in a simulation also what else took the unit from its node, such as `NodeLost`.
    pub reason: Reason,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Query of `GET …/units/{name}/why`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WhyQuery {
    /// Ask about this one node: could the unit go there now?
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
}

/// Answer of `GET …/units/{name}/why`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum WhyResponse {
    /// For a query without `node`: where the unit would go now, if it waits; else the decision that placed it.
    Decision(Explanation),
    /// For a query with `node`.
    Node(NodeVerdict),
}

/// Body of `POST …/services/{name}/scale`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScaleRequest {
    /// The new number of units.
    pub replicas: u32,
}

/// A list of resources and the revision at which it was read: watch from there to miss nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListResponse {
    /// When it was read.
    pub revision: Revision,
    /// In the order of namespace and name.
    pub items: Vec<Object>,
}

/// Body of `POST /v1/sql`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SqlRequest {
    /// One SELECT; it runs in a read-only transaction.
    pub query: String,
}

/// Answer of `POST /v1/sql`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SqlResponse {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// The rows; each value null, a number, a text or a boolean.
    pub rows: Vec<Vec<serde_json::Value>>,
    /// More rows than the server gives out were left off.
    pub is_truncated: bool,
}

/// Answer of `GET /v1/version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VersionResponse {
    /// The server's version.
    pub version: String,
    /// The newest revision.
    pub revision: Revision,
    /// `sqlite` or `postgres`.
    pub database: String,
}

/// Query of `GET …/units/{name}/logs`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogQuery {
    /// The task; every task of the unit when none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<ResourceName>,
    /// Go on until the unit ends.
    pub follow: bool,
    /// Only the last so many lines of what is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tail: Option<u32>,
}

/// Body of a first text message on `GET …/units/{name}/exec` (a WebSocket); then frames of [`crate::stdio`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The task; the first that is no sidecar when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<ResourceName>,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Give it a terminal of this size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<crate::stdio::TerminalSize>,
}

/// Body of a first text message on `GET …/units/{name}/attach` (a WebSocket); then frames of [`crate::stdio`]: input to
/// the program, and how it ended. Its output is in its log. Closing the connection leaves the program waiting for more;
/// the end of its input is an empty frame.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AttachRequest {
    /// The task; the first that is no sidecar when none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<ResourceName>,
}

/// Query of `GET /v1/{kinds}`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ListQuery {
    /// Only this namespace and those below it; every namespace when none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<NamespacePath>,
}

/// Query of `GET /v1/watch`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WatchQuery {
    /// Changes after this revision; from now on when none is named. A `Last-Event-ID` header wins over it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Revision>,
    /// Only this kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Only this namespace and those below it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<NamespacePath>,
}

/// Query of `GET /v1/events`. The answer is an array of [`crate::change::Event`], newest last.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EventQuery {
    /// Only this namespace and those below it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<NamespacePath>,
    /// Only events about this kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Only events about things of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Only events after this revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Revision>,
    /// Only the newest so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// Answer of every `DELETE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeleteResponse {
    /// The transaction. What runs is stopped first and goes later: watch from here to see it go.
    pub revision: Revision,
}
