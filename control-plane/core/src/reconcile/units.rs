//! Units, whoever made them: those that are wanted no more end and go, and none runs longer than it may.

use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::{Desired, Owner, Unit};
use brig_api::{Kind, UnitId};

use super::REMOVE_DONE_AFTER_MS;
use crate::Decision;
use crate::draft::Draft;

/// What is to happen to the units of an owner.
#[derive(PartialEq, Eq)]
enum OwnerSays {
    /// Nothing special; also for units without an owner.
    Nothing,
    /// Keep what has ended: the job counts it.
    Keep,
    /// The owner is gone.
    Leave,
}

/// Ends a pending unit that nobody wants, and removes one that has ended and is to go.
pub(super) fn reconcile(draft: &mut Draft<'_>, id: &UnitId) {
    let index = draft.index;
    let Some(unit) = index.slot(id).and_then(|slot| index.unit(slot)) else { return };
    let state = unit.status.state;
    match owner_says(draft, unit) {
        OwnerSays::Leave => draft.stop(unit, Desired::Remove, Reason::Superseded),
        OwnerSays::Keep if state.is_final() => return,
        _ => {}
    }
    if state == UnitState::Pending && unit.desired != Desired::Run {
        draft.end_if_pending(unit, Reason::Requested);
    }
    if state.is_final() && is_to_go(draft, unit) {
        draft.decide(Decision::UnitRemove { unit: unit.id.clone() });
    }
    if state.is_on_node() {
        end_in_time(draft, unit);
        lose_stray(draft, unit);
    }
}

/// A unit whose time is up is stopped.
fn end_in_time(draft: &mut Draft<'_>, unit: &Unit) {
    let run_ms = unit.template.max_run_ms.filter(|_| unit.desired == Desired::Run);
    let Some(run_ms) = run_ms else { return };
    let began_ms = unit.placed_ms.unwrap_or(unit.meta.created_ms);
    let run_ms = i64::try_from(run_ms).unwrap_or(i64::MAX);
    if draft.is_past(began_ms, run_ms) {
        let message = format!("ran for the {run_ms} ms that it may (`max_run_ms`)");
        draft.stop_saying(unit, Desired::Stop, Reason::DeadlineExceeded, Some(message));
    }
}

/// A unit on a node that does not exist is lost, whichever of the two was known first.
fn lose_stray(draft: &mut Draft<'_>, unit: &Unit) {
    if unit.node.as_ref().is_some_and(|node| draft.node(node).is_none()) {
        let message = "its node was removed from the cluster".to_owned();
        draft.decide(Decision::UnitLose { unit: unit.id.clone(), message });
    }
}

fn is_to_go(draft: &mut Draft<'_>, unit: &Unit) -> bool {
    let ended_ms = unit.status.finished_ms.unwrap_or(unit.meta.created_ms);
    unit.desired == Desired::Remove
        || (unit.remove_when_done && draft.is_past(ended_ms, REMOVE_DONE_AFTER_MS))
}

fn owner_says(draft: &Draft<'_>, unit: &Unit) -> OwnerSays {
    let Some(owner) = &unit.owner else { return OwnerSays::Nothing };
    let objects = draft.objects;
    match (owner.kind(), owner) {
        (Kind::Job, Owner::Job { name, .. }) => {
            match objects.jobs.get(&unit.namespace).and_then(|jobs| jobs.get(name)) {
                Some(job) if job.is_deleting => OwnerSays::Nothing,
                Some(_) => OwnerSays::Keep,
                None => OwnerSays::Leave,
            }
        }
        (_, owner) => {
            let services = objects.services.get(&unit.namespace);
            match services.and_then(|services| services.get(owner.name())) {
                Some(_) => OwnerSays::Nothing,
                None => OwnerSays::Leave,
            }
        }
    }
}
