//! What one pass decides.

use std::collections::BTreeSet;

use brig_api::explain::Explanation;
use brig_api::lifecycle::Reason;
use brig_api::object::{Desired, JobState, NodeState, Unit};
use brig_api::{NamespacePath, NodeName, PlanSequence, ResourceName, Revision, UnitId};
use serde::{Deserialize, Serialize};

/// What a pass must know besides the model.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Moment {
    /// Unix milliseconds.
    pub now_ms: i64,
    /// Nodes that have been silent for longer than they may.
    pub silent: BTreeSet<NodeName>,
}

/// The decisions of one pass. They are committed in one transaction or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The plan that must be the newest for this one to commit.
    pub after: PlanSequence,
    /// The revision of the model it was made on.
    pub based_on: Revision,
    /// What to do, in this order.
    pub decisions: Vec<Decision>,
    /// Why: one for each unit that was placed, or refused for another reason than before.
    pub explanations: Vec<Explanation>,
    /// When to plan again although nothing changed, Unix milliseconds.
    pub wake_at_ms: Option<i64>,
}

/// One step. A step whose premise no longer holds when the plan commits (somebody deleted the unit meanwhile) is
/// left out; the next pass sees why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum Decision {
    /// The node is in touch again, or no longer.
    NodeState {
        /// The node.
        node: NodeName,
        /// Its new state.
        state: NodeState,
    },
    /// A service or job gets a unit; pending, and perhaps placed by a later step of the same plan.
    UnitCreate(Box<Unit>),
    /// A pending unit gets a node. Premise: it is pending and wanted.
    UnitPlace {
        /// The unit.
        unit: UnitId,
        /// The node.
        node: NodeName,
    },
    /// A pending unit can't be placed, for another reason than its status says. Premise: it is pending.
    UnitRefuse {
        /// The unit.
        unit: UnitId,
        /// Why, for programs.
        reason: Reason,
        /// Why, for people.
        message: String,
    },
    /// The unit is to stop (and go).
    UnitStop {
        /// The unit.
        unit: UnitId,
        /// `Stop` or `Remove`.
        desired: Desired,
        /// Why, for programs.
        reason: Reason,
    },
    /// A unit that never had a node ends as stopped. Premise: it is pending.
    UnitEnd {
        /// The unit.
        unit: UnitId,
        /// Why, for programs.
        reason: Reason,
    },
    /// The unit's node was given up. Premise: it is on a node.
    UnitLose {
        /// The unit.
        unit: UnitId,
        /// For people.
        message: String,
    },
    /// The unit ended and is wanted no more: its row goes. Premise: its state is final.
    UnitRemove {
        /// The unit.
        unit: UnitId,
    },
    /// The job's counts or state changed.
    JobProgress {
        /// The job's namespace.
        namespace: NamespacePath,
        /// The job.
        name: ResourceName,
        /// Its state.
        state: JobState,
        /// Indices that succeeded.
        succeeded: u32,
        /// Attempts that failed.
        failed: u32,
    },
    /// A deleted service has no units any more.
    ServiceRemove {
        /// The service's namespace.
        namespace: NamespacePath,
        /// The service.
        name: ResourceName,
    },
    /// A deleted job has no units any more.
    JobRemove {
        /// The job's namespace.
        namespace: NamespacePath,
        /// The job.
        name: ResourceName,
    },
}
