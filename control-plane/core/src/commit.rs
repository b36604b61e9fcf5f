//! What committing a plan does to the cluster: the reference for the store, used by tests and the simulator.

use std::sync::Arc;

use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::{Desired, Meta, Node, Object, Unit};
use brig_api::{PlanSequence, Revision, UnitId};

use crate::index::is_waiting;
use crate::{Decision, Model, Plan};

/// Another plan was committed since the one that this plan was made after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the plan was made after plan {after}, but plan {newest} is the newest: plan again")]
pub struct StalePlan {
    /// What the plan names as its predecessor.
    pub after: PlanSequence,
    /// What is the newest.
    pub newest: PlanSequence,
}

/// Commits `plan` to the model as the next revision. Steps whose premise does not hold are left out.
///
/// # Errors
/// [`StalePlan`] when another plan came first; then nothing has changed.
pub fn commit(model: &mut Model, plan: &Plan, now_ms: i64) -> Result<(), StalePlan> {
    if plan.after != model.plan {
        return Err(StalePlan { after: plan.after, newest: model.plan });
    }
    model.plan = model.plan.next();
    model.revision = Revision(model.revision.0 + 1);
    for decision in &plan.decisions {
        step(model, decision, now_ms);
    }
    Ok(())
}

fn step(model: &mut Model, decision: &Decision, now_ms: i64) {
    let (revision, sequence) = (model.revision, model.plan);
    match decision {
        Decision::NodeState { node, state } => {
            if let Some(node) = model.node(node).cloned() {
                let meta = Meta { revision, ..node.meta };
                let node = Node { state: *state, state_since_ms: now_ms, meta, ..node };
                model.put(Object::Node(node));
            }
        }
        Decision::UnitCreate(unit) => {
            let is_name_taken = model.index.is_name_taken(&unit.namespace, &unit.name);
            if !is_name_taken && model.unit(&unit.id).is_none() {
                let meta = Meta { revision, ..unit.meta.clone() };
                model.unit_put(Arc::new(Unit { meta, ..(**unit).clone() }));
            }
        }
        Decision::UnitPlace { unit, node, grants } => with_unit(model, unit, is_waiting, |unit| {
            unit.node = Some(node.clone());
            unit.placed_by = Some(sequence);
            unit.placed_ms = Some(now_ms);
            unit.grants = grants.clone();
            unit.promised = None;
            unit.status.state = UnitState::Assigned;
            (unit.status.reason, unit.status.message) = (None, None);
        }),
        Decision::UnitRefuse { unit, reason, message, promised } => {
            with_unit(model, unit, is_waiting, |unit| {
                unit.status.reason = Some(*reason);
                unit.status.message = Some(message.clone());
                unit.promised = promised.clone();
            });
        }
        Decision::UnitStop { unit, desired, .. } => {
            // A user may have deleted it meanwhile; that stays.
            let is_kept = |unit: &Unit| unit.desired != Desired::Remove;
            with_unit(model, unit, is_kept, |unit| unit.desired = *desired);
        }
        Decision::UnitEnd { unit, reason } => with_unit(model, unit, is_pending, |unit| {
            end(unit, UnitState::Stopped, *reason, None, now_ms);
        }),
        Decision::UnitLose { unit, message } => {
            let is_on_node = |unit: &Unit| unit.status.state.is_on_node();
            with_unit(model, unit, is_on_node, |unit| {
                end(unit, UnitState::Lost, Reason::NodeLost, Some(message.clone()), now_ms);
            });
        }
        Decision::UnitRemove { unit } => {
            if model.unit(unit).is_some_and(|unit| unit.status.state.is_final()) {
                model.unit_remove(unit);
            }
        }
        Decision::JobProgress { namespace, name, state, succeeded, failed } => {
            if let Some(mut job) = model.job(namespace, name).cloned() {
                // A user may have stopped it meanwhile; that stays.
                job.state = if job.state.is_final() { job.state } else { *state };
                (job.succeeded, job.failed) = (*succeeded, *failed);
                job.meta.revision = revision;
                model.put(Object::Job(job));
            }
        }
        Decision::ServiceRemove { namespace, name } => {
            if model.service(namespace, name).is_some_and(|service| service.is_deleting) {
                model.service_remove(namespace, name);
            }
        }
        Decision::JobRemove { namespace, name } => {
            if model.job(namespace, name).is_some_and(|job| job.is_deleting) {
                model.job_remove(namespace, name);
            }
        }
    }
}

fn is_pending(unit: &Unit) -> bool {
    unit.status.state == UnitState::Pending
}

fn end(unit: &mut Unit, state: UnitState, reason: Reason, message: Option<String>, now_ms: i64) {
    unit.status.state = state;
    unit.status.reason = Some(reason);
    unit.status.message = message;
    unit.status.finished_ms = Some(now_ms);
    unit.promised = None;
}

/// Changes a unit if it exists and the premise holds.
fn with_unit(
    model: &mut Model,
    id: &UnitId,
    premise: impl Fn(&Unit) -> bool,
    change: impl FnOnce(&mut Unit),
) {
    let revision = model.revision;
    if let Some(mut unit) = model.unit(id).filter(|unit| premise(unit)).cloned() {
        change(&mut unit);
        unit.meta.revision = revision;
        model.unit_put(Arc::new(unit));
    }
}
