//! Places pending units: in the queue's order, each on the best of the nodes that can take it.
//!
//! Units of equal shape share their filtering and scoring: a shape is evaluated on every node once, then only on the
//! nodes that placements of this pass have changed. Within a pass room only shrinks, so a shape that was refused once
//! stays refused.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use brig_api::PlanSequence;
use brig_api::explain::{Candidate, Explanation, Refusal, Verdict};
use brig_api::object::{Unit, UnitStatus};
use brig_api::placement::Grants;

use crate::explain::{self, Refused};
use crate::filter::{Obstacle, Shape};
use crate::room::{NodeRoom, Room};
use crate::{Decision, score};

/// What placing decided.
pub(crate) struct Placements {
    /// In the queue's order.
    pub(crate) decisions: Vec<Decision>,
    /// One for each unit that was placed, or refused for another reason than before.
    pub(crate) explanations: Vec<Explanation>,
}

/// When and in which plan is decided.
#[derive(Clone, Copy)]
pub(crate) struct Stamp {
    /// The plan.
    pub(crate) plan: PlanSequence,
    /// Unix milliseconds.
    pub(crate) now_ms: i64,
}

/// Places the units of `queue`, which is in order.
pub(crate) fn place<'a>(room: &mut Room<'a>, queue: &[&'a Unit], stamp: Stamp) -> Placements {
    let mut shapes = BTreeMap::new();
    let mut all: Vec<ShapeState<'a>> = Vec::new();
    let mut changed_nodes = Vec::new();
    let mut placements = Placements { decisions: Vec::new(), explanations: Vec::new() };
    for unit in queue {
        let shape = Shape::of(unit);
        let position = *shapes.entry(shape.key()).or_insert_with(|| {
            all.push(ShapeState::new(shape));
            all.len() - 1
        });
        let Some(state) = all.get_mut(position) else { continue };
        let quota = room.exceeded_quota(&unit.namespace, &state.shape.request, None);
        if let Some(quota) = quota {
            let refused = explain::quota_refusal(&state.shape, quota, room);
            placements.refuse(unit, &refused, room, stamp);
            continue;
        }
        state.catch_up(room, &changed_nodes);
        match state.best() {
            Some(best) => {
                placements.accept(unit, state, best, room, stamp);
                room.place(best, unit, &state.shape.request);
                changed_nodes.push(best);
            }
            None => {
                let refused = state.refusal(room);
                placements.refuse(unit, refused, room, stamp);
            }
        }
    }
    placements
}

impl Placements {
    fn accept(
        &mut self,
        unit: &Unit,
        state: &mut ShapeState<'_>,
        best: usize,
        room: &Room<'_>,
        stamp: Stamp,
    ) {
        let Some(node) = room.nodes.get(best) else { return };
        let runner_up = state.runner_up().and_then(|(total, position)| {
            let node = room.nodes.get(position)?;
            let scores = score::scores(&state.shape.request, node);
            Some(Candidate { node: node.node.name.clone(), scores, total })
        });
        let name = node.node.name.clone();
        self.decisions.push(Decision::UnitPlace {
            unit: unit.id.clone(),
            node: name.clone(),
            grants: Grants::default(),
        });
        let verdict = Verdict::Placed {
            node: name,
            scores: score::scores(&state.shape.request, node),
            total: score::total(&state.shape.request, node),
            next: runner_up.into_iter().collect(),
            preempted: Vec::new(),
        };
        let refusals = state.refusals(room).to_vec();
        self.explain(unit, room, stamp, verdict, refusals);
    }

    fn refuse(&mut self, unit: &Unit, refused: &Refused, room: &Room<'_>, stamp: Stamp) {
        let is_known = unit.status.reason == Some(refused.reason)
            && unit.status.message.as_ref() == Some(&refused.status);
        if is_known {
            return;
        }
        self.decisions.push(Decision::UnitRefuse {
            unit: unit.id.clone(),
            reason: refused.reason,
            message: refused.status.clone(),
            promised: None,
        });
        let verdict = Verdict::Refused { message: refused.message.clone() };
        self.explain(unit, room, stamp, verdict, refused.refusals.clone());
    }

    fn explain(
        &mut self,
        unit: &Unit,
        room: &Room<'_>,
        stamp: Stamp,
        verdict: Verdict,
        refusals: Vec<Refusal>,
    ) {
        self.explanations.push(Explanation {
            unit: unit.id.clone(),
            plan: stamp.plan,
            decided_ms: stamp.now_ms,
            policy: "bin-packing/1".to_owned(),
            nodes: u32::try_from(room.nodes.len()).unwrap_or(u32::MAX),
            verdict,
            refusals,
        });
    }
}

/// Why `unit` would be placed or refused now, as if it were the only one in the queue.
pub(crate) fn judge(room: &Room<'_>, unit: &Unit, stamp: Stamp) -> Option<Explanation> {
    let mut placements = Placements { decisions: Vec::new(), explanations: Vec::new() };
    let mut state = ShapeState::new(Shape::of(unit));
    let fresh = Unit { status: UnitStatus::default(), ..unit.clone() };
    if let Some(quota) = room.exceeded_quota(&unit.namespace, &state.shape.request, None) {
        let refused = explain::quota_refusal(&state.shape, quota, room);
        placements.refuse(&fresh, &refused, room, stamp);
    } else {
        state.catch_up(room, &[]);
        match state.best() {
            Some(best) => placements.accept(&fresh, &mut state, best, room, stamp),
            None => placements.refuse(&fresh, state.refusal(room), room, stamp),
        }
    }
    placements.explanations.pop()
}

/// One shape, and what is known about every node for it.
pub(crate) struct ShapeState<'a> {
    shape: Shape<'a>,
    /// For each node what is in the way, or its total score. Empty before the first use.
    verdicts: Vec<Result<i64, Obstacle>>,
    /// The nodes that can take it: highest total first, then by name.
    ranking: BTreeSet<(Reverse<i64>, usize)>,
    /// How many of the pass's placements `verdicts` has seen.
    seen: usize,
    /// The explanation of what is in the way; None when `verdicts` has changed in that since.
    refusals: Option<Vec<Refusal>>,
    refused: Option<Refused>,
}

impl<'a> ShapeState<'a> {
    fn new(shape: Shape<'a>) -> Self {
        Self {
            shape,
            verdicts: Vec::new(),
            ranking: BTreeSet::new(),
            seen: 0,
            refusals: None,
            refused: None,
        }
    }

    /// Takes in the placements since the last use; everything anew where that is less work.
    fn catch_up(&mut self, room: &Room<'_>, changed_nodes: &[usize]) {
        let unseen = changed_nodes.get(self.seen..).unwrap_or_default();
        if self.verdicts.is_empty() || unseen.len() > room.nodes.len() {
            let shape = &self.shape;
            self.verdicts = room.nodes.iter().map(|node| verdict(shape, node)).collect();
            let verdicts = self.verdicts.iter().enumerate();
            self.ranking = verdicts
                .filter_map(|(position, verdict)| Some((Reverse((*verdict).ok()?), position)))
                .collect();
            self.refusals = None;
        } else {
            for position in unseen {
                self.reconsider(room, *position);
            }
        }
        self.seen = changed_nodes.len();
    }

    fn reconsider(&mut self, room: &Room<'_>, position: usize) {
        let (Some(old), Some(node)) = (self.verdicts.get_mut(position), room.nodes.get(position))
        else {
            return;
        };
        let new = verdict(&self.shape, node);
        let old = std::mem::replace(old, new);
        if let Ok(total) = old {
            self.ranking.remove(&(Reverse(total), position));
        }
        match new {
            Ok(total) => {
                self.ranking.insert((Reverse(total), position));
            }
            Err(_) => self.refusals = None,
        }
    }

    fn best(&self) -> Option<usize> {
        self.ranking.first().map(|(_, position)| *position)
    }

    fn runner_up(&self) -> Option<(i64, usize)> {
        self.ranking.iter().nth(1).map(|(Reverse(total), position)| (*total, *position))
    }

    fn refusals(&mut self, room: &Room<'_>) -> &[Refusal] {
        let (shape, verdicts) = (&self.shape, &self.verdicts);
        self.refusals.get_or_insert_with(|| explain::refusals(shape, room, verdicts))
    }

    /// The refusal of a shape that fits nowhere.
    fn refusal(&mut self, room: &Room<'_>) -> &Refused {
        let refusals = self.refusals(room).to_vec();
        let (shape, verdicts) = (&self.shape, &self.verdicts);
        self.refused.get_or_insert_with(|| explain::refused(shape, room, verdicts, refusals))
    }
}

fn verdict(shape: &Shape<'_>, node: &NodeRoom<'_>) -> Result<i64, Obstacle> {
    match shape.obstacle_on(node) {
        Some(obstacle) => Err(obstacle),
        None => Ok(score::total(&shape.request, node)),
    }
}

/// The order in which pending units are considered: priority, then age, then id.
pub(crate) fn queue_order(unit: &Unit) -> (Reverse<i32>, i64, usize, &str) {
    // Of two ids of the same form the shorter has the smaller number.
    let id = unit.id.as_str();
    (Reverse(unit.template.priority), unit.meta.created_ms, id.len(), id)
}
