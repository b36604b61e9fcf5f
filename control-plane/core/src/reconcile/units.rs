//! Units, whoever made them: those that are wanted no more end and go.

use brig_api::Kind;
use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::{Desired, Owner, Unit};

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

/// Ends pending units that nobody wants, and removes ended ones that are to go.
pub(super) fn reconcile(draft: &mut Draft<'_>) {
    let model = draft.model;
    for unit in model.units() {
        let state = unit.status.state;
        match owner_says(draft, unit) {
            OwnerSays::Leave => draft.stop(unit, Desired::Remove, Reason::Superseded),
            OwnerSays::Keep if state.is_final() => continue,
            _ => {}
        }
        if state == UnitState::Pending && unit.desired != Desired::Run {
            draft.end_if_pending(unit, Reason::Requested);
        }
        if state.is_final() && is_to_go(draft, unit) {
            draft.decide(Decision::UnitRemove { unit: unit.id.clone() });
        }
    }
}

fn is_to_go(draft: &mut Draft<'_>, unit: &Unit) -> bool {
    let ended_ms = unit.status.finished_ms.unwrap_or(unit.meta.created_ms);
    unit.desired == Desired::Remove
        || (unit.remove_when_done && draft.is_past(ended_ms, REMOVE_DONE_AFTER_MS))
}

fn owner_says(draft: &Draft<'_>, unit: &Unit) -> OwnerSays {
    let Some(owner) = &unit.owner else { return OwnerSays::Nothing };
    let model = draft.model;
    match (owner.kind(), owner) {
        (Kind::Job, Owner::Job { name, .. }) => {
            match model.jobs.get(&unit.namespace).and_then(|jobs| jobs.get(name)) {
                Some(job) if job.is_deleting => OwnerSays::Nothing,
                Some(_) => OwnerSays::Keep,
                None => OwnerSays::Leave,
            }
        }
        (_, owner) => {
            let services = model.services.get(&unit.namespace);
            match services.and_then(|services| services.get(owner.name())) {
                Some(_) => OwnerSays::Nothing,
                None => OwnerSays::Leave,
            }
        }
    }
}
