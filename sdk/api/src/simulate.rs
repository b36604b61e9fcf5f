//! "Can I lose a rack?", "what if 40 of these arrive?": body and answer of `POST /v1/simulate`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::constraint::Constraint;
use crate::lifecycle::Reason;
use crate::manifest::Manifest;
use crate::object::{Kind, ObjectKey};
use crate::request::PlannedEviction;
use crate::unit_spec::UnitSpec;
use crate::{NamespacePath, NodeName, Resources, Revision};

/// Most documents that arrive in one simulation, copies counted: each costs memory on the server while it is simulated.
pub const ARRIVALS_MAX: u32 = 10_000;
/// Most nodes that a simulation adds, for the same reason.
pub const GROWTH_MAX: u32 = 10_000;
/// Most entries of `lose` and of `grow`: each of them is compared with every node.
pub const NODE_RULES_MAX: usize = 100;
/// Most constraints of one entry of `lose`.
pub const CONSTRAINTS_MAX: usize = 10;

/// `POST /v1/simulate`: what happens, all at once, to a copy of the cluster. At least one of the lists is not empty.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SimulateRequest {
    /// Nodes that fall silent for good.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lose: Vec<Loss>,
    /// Manifests that arrive.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<Addition>,
    /// Nodes that join.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub grow: Vec<Growth>,
}

/// Nodes that are lost: one by its name, or all that meet constraints. Exactly one of the two is given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Loss {
    /// This node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// Every node whose attributes meet all of these; there must be one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<Constraint>,
}

/// A manifest that arrives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Addition {
    /// As in an apply.
    pub manifest: Manifest<UnitSpec>,
    /// So many new ones like it arrive, named `NAME-1` and so on; for units, services and jobs. Without it the manifest is
    /// applied as it stands: it may change what is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
}

/// Nodes that join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Growth {
    /// They are like this node: resources, attributes, taints.
    pub like: NodeName,
    /// How many.
    pub count: u32,
}

/// Answer of `POST /v1/simulate`: what the scheduler did on the copy until nothing changed any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Simulation {
    /// The revision that it was tried on.
    pub revision: Revision,
    /// Nothing waits that did not wait before, nothing is lost for good, and no service is left with fewer units.
    pub fits: bool,
    /// One sentence that begins with `Yes` or `No`.
    pub answer: String,
    /// It came to rest. If not, it was cut off, and everything here is as it was then.
    pub is_settled: bool,
    /// Passes of the scheduler.
    pub passes: u32,
    /// Simulated milliseconds, most of them spent on giving up lost nodes.
    pub elapsed_ms: i64,
    /// The nodes that were lost.
    pub lost_nodes: Vec<NodeName>,
    /// At rest, before anything happened.
    pub before: Capacity,
    /// At the end.
    pub after: Capacity,
    /// What was placed and still is at the end: by owner, then node.
    pub placements: Vec<PlacedUnits>,
    /// Units that had to make room for others, or to leave a node that no longer takes them.
    pub evictions: Vec<PlannedEviction>,
    /// What ran and does not come back: units of no service or job, units that wait for their lost node, jobs that fail.
    pub lost: Vec<PlannedEviction>,
    /// What waits at the end and did not wait before.
    pub waits: Vec<WaitingUnits>,
    /// Units that waited before and still do.
    pub still_waiting: u32,
    /// Services that had fewer units running at some time, or have fewer than they ask for at the end.
    pub services: Vec<ServiceOutcome>,
    /// Namespaces of units that wait because a quota is used up.
    pub quotas: Vec<NamespacePath>,
}

/// What there is on nodes that can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Capacity {
    /// Nodes.
    pub nodes: u32,
    /// Units on them.
    pub units: u32,
    /// What these units have set aside.
    pub used: Resources,
    /// What the nodes have.
    pub total: Resources,
}

/// Units that were placed on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlacedUnits {
    /// Their service or job; for units of their own the first of those that ask for the same.
    pub key: ObjectKey,
    /// The node.
    pub node: NodeName,
    /// How many.
    pub units: u32,
}

/// Units that wait for the same reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WaitingUnits {
    /// Their service or job; for units of their own the first of those that ask for the same.
    pub key: ObjectKey,
    /// How many.
    pub units: u32,
    /// Why, for programs; none when the scheduler did not come to them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Why, for people: what is in the way of the first, and what would be enough.
    pub message: String,
}

impl WaitingUnits {
    /// They wait for something other than room: their turn, or what they come after.
    #[must_use]
    pub fn is_in_order(&self) -> bool {
        matches!(self.reason, Some(Reason::DependencyWaits | Reason::ConcurrencyLimit))
    }
}

/// A service's units that run where they can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceOutcome {
    /// The service.
    pub key: ObjectKey,
    /// How many it asks for at the end.
    pub replicas: u32,
    /// How many ran before.
    pub before: u32,
    /// How many ran at the worst moment.
    pub lowest: u32,
    /// How many run at the end.
    pub after: u32,
}

/// `unit `a``, `unit `a` and 2 like it`, or `3 units of service `web``.
#[must_use]
pub fn subject(key: &ObjectKey, units: u32) -> String {
    match (key.kind, units) {
        (Kind::Unit, 1) => key.to_string(),
        (Kind::Unit, many) => format!("{key} and {} like it", many - 1),
        (_, 1) => format!("1 unit of {key}"),
        (_, many) => format!("{many} units of {key}"),
    }
}
