//! What committing a plan does to the cluster: the reference for the store, used by tests and the simulator.

use std::collections::BTreeMap;
use std::sync::Arc;

use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::{Desired, Job, Meta, Service, Unit};
use brig_api::{NamespacePath, PlanSequence, ResourceName, Revision, UnitId};

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
            if let Some(node) = model.nodes.get_mut(node) {
                node.state = *state;
                node.state_since_ms = now_ms;
                node.meta.revision = revision;
            }
        }
        Decision::UnitCreate(unit) => {
            let is_name_taken = model
                .units
                .values()
                .any(|other| other.name == unit.name && other.namespace == unit.namespace);
            if !is_name_taken && !model.units.contains_key(&unit.id) {
                let meta = Meta { revision, ..unit.meta.clone() };
                model.units.insert(unit.id.clone(), Arc::new(Unit { meta, ..(**unit).clone() }));
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
            if model.units.get(unit).is_some_and(|unit| unit.status.state.is_final()) {
                model.units.remove(unit);
            }
        }
        Decision::JobProgress { namespace, name, state, succeeded, failed } => {
            if let Some(job) = job(model, namespace, name) {
                // A user may have stopped it meanwhile; that stays.
                job.state = if job.state.is_final() { job.state } else { *state };
                (job.succeeded, job.failed) = (*succeeded, *failed);
                job.meta.revision = revision;
            }
        }
        Decision::ServiceRemove { namespace, name } => {
            if let Some(names) = model.services.get_mut(namespace) {
                names.retain(|other, service: &mut Service| other != name || !service.is_deleting);
            }
        }
        Decision::JobRemove { namespace, name } => {
            if let Some(names) = model.jobs.get_mut(namespace) {
                names.retain(|other, job: &mut Job| other != name || !job.is_deleting);
            }
        }
    }
}

fn is_pending(unit: &Unit) -> bool {
    unit.status.state == UnitState::Pending
}

fn is_waiting(unit: &Unit) -> bool {
    is_pending(unit) && unit.desired == Desired::Run
}

fn end(unit: &mut Unit, state: UnitState, reason: Reason, message: Option<String>, now_ms: i64) {
    unit.status.state = state;
    unit.status.reason = Some(reason);
    unit.status.message = message;
    unit.status.finished_ms = Some(now_ms);
}

/// Changes a unit if it exists and the premise holds.
fn with_unit(
    model: &mut Model,
    id: &UnitId,
    premise: impl Fn(&Unit) -> bool,
    change: impl FnOnce(&mut Unit),
) {
    let revision = model.revision;
    if let Some(unit) = model.units.get_mut(id).filter(|unit| premise(unit)) {
        let unit = Arc::make_mut(unit);
        change(unit);
        unit.meta.revision = revision;
    }
}

fn job<'m>(
    model: &'m mut Model,
    namespace: &NamespacePath,
    name: &ResourceName,
) -> Option<&'m mut Job> {
    model.jobs.get_mut(namespace).and_then(|names: &mut BTreeMap<_, _>| names.get_mut(name))
}
