//! Services: `replicas` units of the current generation, and a rolling change from one generation to the next.
//!
//! A change starts one unit of the new generation beyond `replicas`; once that one runs, one of the old goes, and so
//! on. Where there is no room for one more, one of the old goes first: then one less than `replicas` run meanwhile,
//! never fewer. Units of the old generation that do not run serve nobody and go at once.

use std::cmp::Reverse;
use std::sync::Arc;

use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::{Desired, Owner, Service, Unit};
use brig_api::{Kind, NamespacePath, ResourceName};

use super::{REPLACE_ENDED_AFTER_MS, age_order};
use crate::Decision;
use crate::draft::{Draft, NewUnit};
use crate::judge::{Question, Without};

/// Units of a rolling change beyond `replicas`.
const SURGE: usize = 1;

/// Starts and stops the units of a service.
pub(super) fn reconcile(draft: &mut Draft<'_>, namespace: &NamespacePath, name: &ResourceName) {
    let services = draft.objects.services.get(namespace);
    let Some(service) = services.and_then(|names| names.get(name)) else { return };
    let units = draft.units_of(namespace, Kind::Service, name);
    if service.is_deleting {
        delete(draft, service, &units);
    } else {
        advance(draft, service, &units);
    }
}

fn delete(draft: &mut Draft<'_>, service: &Service, units: &[&Arc<Unit>]) {
    for unit in units {
        draft.stop(unit, Desired::Remove, Reason::Requested);
    }
    if units.is_empty() {
        let (namespace, name) = (service.spec.namespace.clone(), service.spec.name.clone());
        draft.decide(Decision::ServiceRemove { namespace, name });
    }
}

/// The wanted units of one service, and how many of them run where they can be reached.
struct Crew<'a> {
    service: &'a Service,
    /// Of the current generation, those that are to be kept longest first.
    current: Vec<&'a Arc<Unit>>,
    /// Of other generations, those that are to be kept longest first.
    old: Vec<&'a Arc<Unit>>,
    /// Others are still stopping.
    has_leavers: bool,
}

fn advance<'a>(draft: &mut Draft<'a>, service: &'a Service, units: &[&'a Arc<Unit>]) {
    let mut crew = Crew { service, current: Vec::new(), old: Vec::new(), has_leavers: false };
    for unit in units {
        let is_current = matches!(&unit.owner,
            Some(Owner::Service { generation, .. }) if *generation == service.generation);
        if unit.status.state.is_final() && !(is_current && is_resting(draft, unit)) {
            draft.stop(unit, Desired::Remove, Reason::Superseded);
        } else if unit.desired != Desired::Run {
            crew.has_leavers |= unit.status.state.is_on_node();
        } else if is_current {
            crew.current.push(unit);
        } else {
            crew.old.push(unit);
        }
    }
    let by_worth = |unit: &&Arc<Unit>| {
        let (created_ms, id) = age_order(unit);
        (Reverse(worth(draft, unit)), created_ms, id.to_owned())
    };
    crew.current.sort_by_cached_key(by_worth);
    crew.old.sort_by_cached_key(by_worth);
    let replicas = usize::try_from(service.spec.replicas).unwrap_or(usize::MAX);
    stop_surplus(draft, &mut crew, replicas);
    make_way(draft, &mut crew, replicas);
    start_missing(draft, &crew, replicas);
}

/// Did it end by itself so soon after it was made that its replacement has to wait? Until then it keeps its place.
fn is_resting(draft: &mut Draft<'_>, unit: &Unit) -> bool {
    unit.desired == Desired::Run
        && matches!(unit.status.state, UnitState::Failed | UnitState::Succeeded)
        && !draft.is_past(unit.meta.created_ms, REPLACE_ENDED_AFTER_MS)
}

/// How much would be lost with a unit.
fn worth(draft: &Draft<'_>, unit: &Unit) -> u8 {
    match unit.status.state {
        UnitState::Running if draft.runs_in_reach(unit) => 4,
        UnitState::Running | UnitState::Preparing | UnitState::Assigned => 3,
        UnitState::Backoff | UnitState::Stopping => 2,
        UnitState::Pending => 1,
        UnitState::Succeeded | UnitState::Failed | UnitState::Stopped | UnitState::Lost => 0,
    }
}

fn running(draft: &Draft<'_>, units: &[&Arc<Unit>]) -> usize {
    units.iter().filter(|unit| draft.runs_in_reach(unit)).count()
}

/// Stops what is too much: current units beyond `replicas`, old ones that do not run, and old ones that the new ones
/// that run have replaced.
fn stop_surplus(draft: &mut Draft<'_>, crew: &mut Crew<'_>, replicas: usize) {
    let kept = replicas.min(crew.current.len());
    for unit in crew.current.split_off(kept) {
        draft.stop(unit, Desired::Remove, Reason::Superseded);
    }
    // Sorted by worth: those that run come first.
    let running_old = running(draft, &crew.old);
    let running_all = running_old + running(draft, &crew.current);
    let kept = running_old.saturating_sub(running_all.saturating_sub(replicas));
    for unit in crew.old.split_off(kept) {
        draft.stop(unit, Desired::Remove, Reason::Superseded);
    }
}

/// Stops one old unit whose going would make room for a new one that found none, if `replicas` run and nothing is on
/// its way out already.
fn make_way(draft: &mut Draft<'_>, crew: &mut Crew<'_>, replicas: usize) {
    let is_refused = |unit: &&&Arc<Unit>| {
        let no_room = [Reason::Unschedulable, Reason::QuotaExceeded];
        unit.status.state == UnitState::Pending
            && unit.status.reason.is_some_and(|reason| no_room.contains(&reason))
    };
    let running = running(draft, &crew.old) + running(draft, &crew.current);
    if crew.has_leavers || running < replicas {
        return;
    }
    let index = draft.index;
    let Some(refused) = crew.current.iter().find(is_refused) else { return };
    let Some(entry) = index.slot(&refused.id).and_then(|slot| index.entry(slot)) else { return };
    let question = Question::new(index, entry.shape, false);
    let makes_room = |unit: &&Arc<Unit>| {
        let leaver = index.slot(&unit.id).and_then(|slot| Some((slot, index.entry(slot)?.at?)));
        let Some((slot, node)) = leaver else { return false };
        let without = Without { units: &[slot], leavers: false };
        let (Some(request), Some(freed)) = (index.request_of(entry), index.request(slot)) else {
            return false;
        };
        question.obstacles(index, node, without).is_empty()
            && index.tenants.exceeded(entry.tenant, request, Some(freed)).is_none()
    };
    match crew.old.iter().rposition(makes_room) {
        Some(position) => {
            let unit = crew.old.remove(position);
            draft.stop(unit, Desired::Remove, Reason::Superseded);
        }
        // Others may leave, quotas may grow.
        None if !crew.old.is_empty() => draft.look_again(),
        None => {}
    }
}

/// Starts what is missing; during a change at most [`SURGE`] beyond `replicas`.
fn start_missing(draft: &mut Draft<'_>, crew: &Crew<'_>, replicas: usize) {
    let spec = &crew.service.spec;
    let (labels, template) = (Arc::new(spec.labels.clone()), Arc::new(spec.unit.clone()));
    let limit = replicas.saturating_add(if crew.old.is_empty() { 0 } else { SURGE });
    let room = limit.saturating_sub(crew.current.len() + crew.old.len());
    for _ in 0..room.min(replicas.saturating_sub(crew.current.len())) {
        let owner = Owner::Service { name: spec.name.clone(), generation: crew.service.generation };
        let new =
            NewUnit { namespace: &spec.namespace, owner, labels: &labels, template: &template };
        if !draft.create(new) {
            break;
        }
    }
}
