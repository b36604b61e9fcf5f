//! One pass: from the model and the moment to the decisions, and what decisions there are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use brig_api::explain::{Explanation, NodeFit, NodeObstacle, NodeVerdict};
use brig_api::lifecycle::Reason;
use brig_api::object::{Desired, JobState, NodeState, Object, Unit};
use brig_api::placement::Grants;
use brig_api::{NamespacePath, NodeName, PlanSequence, ResourceName, Revision, UnitId};
use serde::{Deserialize, Serialize};

use crate::Model;
use crate::draft::Draft;
use crate::explain::obstacle_detail;
use crate::ground::Ground;
use crate::index::is_waiting;
use crate::judge::Without;
use crate::place::{Placing, Stamp};
use crate::reconcile::reconcile;

/// Decides what is to happen now: a function of its arguments and nothing else. On a settled cluster the plan is empty.
///
/// Of the model only the notes change on what was looked at already, so that the next pass need not do it again: until the
/// plan was committed and came back with the change feed, another pass on the same model does not decide the same again.
/// A model whose plan was not committed must be made anew.
#[must_use]
pub fn plan(model: &mut Model, moment: &Moment) -> Plan {
    let span = tracing::debug_span!("plan", model.revision = model.revision.0);
    let _entered = span.entered();
    model.listen(&moment.silent);
    let concerns = model.agenda.take(moment.now_ms);
    let mut draft = Draft::new(model, moment);
    reconcile(&mut draft, concerns);
    let stamp = Stamp { plan: draft.sequence, now_ms: draft.now_ms };
    let Draft { mut decisions, reminders, again, ended, stopped, created, .. } = draft;
    let mut ground = Ground::new(&mut model.index);
    for unit in created {
        ground.enter(unit);
    }
    for id in stopped.keys() {
        if let Some(slot) = ground.index.slot(id) {
            ground.set_leaving(slot);
            ground.index.hope_again();
        }
    }
    let placements = Placing::new(&mut ground, &model.objects, stamp, &ended).run();
    drop(ground);
    for (shape, priority) in placements.hopeless {
        model.index.set_hopeless(shape, priority);
    }
    for (concern, at_ms) in reminders {
        model.agenda.remind(concern, at_ms);
    }
    for concern in again {
        model.agenda.add(concern);
    }
    decisions.extend(placements.decisions);
    Plan {
        after: model.plan,
        based_on: model.revision,
        decisions,
        explanations: placements.explanations,
        wake_at_ms: model.agenda.next_ms(),
    }
}

/// What would be decided if `objects` were stored as well: the same pass on a copy of the model.
#[must_use]
pub fn preview(model: &Model, moment: &Moment, objects: impl IntoIterator<Item = Object>) -> Plan {
    let mut copy = model.clone();
    for object in objects {
        copy.put(object);
    }
    plan(&mut copy, moment)
}

/// Where a pending unit would go if the queue were gone through now, or why it can't go anywhere: fresher and more exact
/// than the explanation kept from the pass that refused it. None for a unit that does not wait for a node.
#[must_use]
pub fn why(model: &mut Model, moment: &Moment, unit: &UnitId) -> Option<Explanation> {
    model.listen(&moment.silent);
    let slot = model.index.slot(unit)?;
    if !model.index.unit(slot).is_some_and(|unit| is_waiting(unit)) {
        return None;
    }
    let stamp = Stamp { plan: model.plan, now_ms: moment.now_ms };
    let mut ground = Ground::new(&mut model.index);
    let ended = BTreeSet::new();
    Placing::new(&mut ground, &model.objects, stamp, &ended).judge(slot)
}

/// What speaks for and against a unit on one node, as if it were to be placed once all others that wait have been
/// considered. None for a unit or node that is not known.
#[must_use]
pub fn why_on(
    model: &mut Model,
    moment: &Moment,
    unit: &UnitId,
    node: &NodeName,
) -> Option<NodeVerdict> {
    model.listen(&moment.silent);
    let slot = model.index.slot(unit)?;
    let at = model.index.nodes.slot(node)?;
    let stamp = Stamp { plan: model.plan, now_ms: moment.now_ms };
    let mut ground = Ground::new(&mut model.index);
    let ended = BTreeSet::new();
    let mut placing = Placing::new(&mut ground, &model.objects, stamp, &ended);
    let question = placing.question_about(slot)?;
    let index = &*placing.ground.index;
    let shape = index.shapes.get(question.shape)?;
    let obstacles = question.obstacles(index, at, Without::default()).into_iter();
    let obstacles: Vec<_> = obstacles
        .map(|obstacle| NodeObstacle {
            filter: obstacle.name().into(),
            detail: obstacle_detail(index, &question, shape, obstacle, at),
        })
        .collect();
    let (verdict, scores) = match obstacles.is_empty() {
        true => (NodeFit::Fits, question.scores(index, at)),
        false => (NodeFit::Refused, Vec::new()),
    };
    let total = scores.iter().map(|score| score.points * score.weight).sum();
    let total = (verdict == NodeFit::Fits).then_some(total);
    let runtimes = shape.way_on(index.nodes.runtimes[at]).runtimes;
    let variants = match (verdict, index.unit(slot)) {
        (NodeFit::Fits, Some(unit)) => unit.variants(runtimes),
        _ => BTreeMap::new(),
    };
    let (unit, node) = (unit.clone(), node.clone());
    Some(NodeVerdict { unit, node, verdict, obstacles, scores, total, variants })
}

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

impl Plan {
    /// Nothing is to be done, so there is nothing to commit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.decisions.is_empty()
    }
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
    UnitCreate(Arc<Unit>),
    /// A pending unit gets a node. Premise: it is pending and wanted.
    UnitPlace {
        /// The unit.
        unit: UnitId,
        /// The node.
        node: NodeName,
        /// What else it gets there.
        grants: Grants,
    },
    /// A pending unit can't be placed yet, for another reason than its status says. Premise: it is pending.
    UnitRefuse {
        /// The unit.
        unit: UnitId,
        /// Why, for programs.
        reason: Reason,
        /// Why, for people.
        message: String,
        /// The node that others leave to make room for it.
        promised: Option<NodeName>,
    },
    /// The unit is to stop (and go). Premise: it is not to be removed already.
    UnitStop {
        /// The unit.
        unit: UnitId,
        /// `Stop` or `Remove`.
        desired: Desired,
        /// Why, for programs.
        reason: Reason,
        /// Why, for people, where there is more to say.
        message: Option<String>,
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
    /// The job's counts or state changed. A state that is final meanwhile (a user stopped the job) stays.
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
    /// A deleted service has no units any more. Premise: it is being deleted.
    ServiceRemove {
        /// The service's namespace.
        namespace: NamespacePath,
        /// The service.
        name: ResourceName,
    },
    /// A deleted job has no units any more. Premise: it is being deleted.
    JobRemove {
        /// The job's namespace.
        namespace: NamespacePath,
        /// The job.
        name: ResourceName,
    },
}
