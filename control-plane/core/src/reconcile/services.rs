//! Services: `replicas` units of the current generation, and a rolling change from one generation to the next.
//!
//! A change starts one unit of the new generation beyond `replicas`; once that one runs, one of the old goes, and so
//! on. Where there is no room for one more, one of the old goes first: then one less than `replicas` run meanwhile,
//! never fewer. Units of the old generation that do not run serve nobody and go at once.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use brig_api::Kind;
use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::{Desired, Owner, Service, Unit};

use super::{REPLACE_ENDED_AFTER_MS, age_order};
use crate::Decision;
use crate::draft::{Draft, NewUnit};
use crate::filter::Shape;
use crate::room::Room;

/// Units of a rolling change beyond `replicas`.
const SURGE: usize = 1;

/// Starts and stops the units of every service.
pub(super) fn reconcile<'a>(draft: &mut Draft<'a>, room: &Room<'a>) {
    let model = draft.model;
    for service in model.services.values().flat_map(BTreeMap::values) {
        let units = draft.units_of(&service.spec.namespace, Kind::Service, &service.spec.name);
        if service.is_deleting {
            delete(draft, service, &units);
        } else {
            advance(draft, room, service, &units);
        }
    }
}

fn delete<'a>(draft: &mut Draft<'a>, service: &Service, units: &[&'a Unit]) {
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
    current: Vec<&'a Unit>,
    /// Of other generations, those that are to be kept longest first.
    old: Vec<&'a Unit>,
    /// Others are still stopping.
    has_leavers: bool,
}

fn advance<'a>(draft: &mut Draft<'a>, room: &Room<'a>, service: &'a Service, units: &[&'a Unit]) {
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
    let by_worth = |unit: &&Unit| {
        let (created_ms, id) = age_order(unit);
        (Reverse(worth(room, unit)), created_ms, id.to_owned())
    };
    crew.current.sort_by_cached_key(by_worth);
    crew.old.sort_by_cached_key(by_worth);
    let replicas = usize::try_from(service.spec.replicas).unwrap_or(usize::MAX);
    stop_surplus(draft, room, &mut crew, replicas);
    make_way(draft, room, &mut crew, replicas);
    start_missing(draft, &crew, replicas);
}

/// Did it end by itself so soon after it was made that its replacement has to wait? Until then it keeps its place.
fn is_resting(draft: &mut Draft<'_>, unit: &Unit) -> bool {
    unit.desired == Desired::Run
        && matches!(unit.status.state, UnitState::Failed | UnitState::Succeeded)
        && !draft.is_past(unit.meta.created_ms, REPLACE_ENDED_AFTER_MS)
}

/// How much would be lost with a unit.
fn worth(room: &Room<'_>, unit: &Unit) -> u8 {
    match unit.status.state {
        UnitState::Running if runs_in_reach(room, unit) => 4,
        UnitState::Running | UnitState::Preparing | UnitState::Assigned => 3,
        UnitState::Backoff | UnitState::Stopping => 2,
        UnitState::Pending => 1,
        UnitState::Succeeded | UnitState::Failed | UnitState::Stopped | UnitState::Lost => 0,
    }
}

fn runs_in_reach(room: &Room<'_>, unit: &Unit) -> bool {
    let position = unit.node.as_ref().and_then(|node| room.position(node));
    let node = position.and_then(|position| room.nodes.get(position));
    unit.status.state == UnitState::Running && node.is_some_and(|node| node.is_ready)
}

fn running(room: &Room<'_>, units: &[&Unit]) -> usize {
    units.iter().filter(|unit| runs_in_reach(room, unit)).count()
}

/// Stops what is too much: current units beyond `replicas`, old ones that do not run, and old ones that the new ones
/// that run have replaced.
fn stop_surplus<'a>(draft: &mut Draft<'a>, room: &Room<'a>, crew: &mut Crew<'a>, replicas: usize) {
    let kept = replicas.min(crew.current.len());
    for unit in crew.current.split_off(kept) {
        draft.stop(unit, Desired::Remove, Reason::Superseded);
    }
    // Sorted by worth: those that run come first.
    let running_old = running(room, &crew.old);
    let running_all = running_old + running(room, &crew.current);
    let kept = running_old.saturating_sub(running_all.saturating_sub(replicas));
    for unit in crew.old.split_off(kept) {
        draft.stop(unit, Desired::Remove, Reason::Superseded);
    }
}

/// Stops one old unit whose going would make room for a new one that found none, if `replicas` run and nothing is on
/// its way out already.
fn make_way<'a>(draft: &mut Draft<'a>, room: &Room<'a>, crew: &mut Crew<'a>, replicas: usize) {
    let is_refused = |unit: &&&Unit| {
        let no_room = [Reason::Unschedulable, Reason::QuotaExceeded];
        unit.status.state == UnitState::Pending
            && unit.status.reason.is_some_and(|reason| no_room.contains(&reason))
    };
    let running = running(room, &crew.old) + running(room, &crew.current);
    if crew.has_leavers || running < replicas {
        return;
    }
    let Some(refused) = crew.current.iter().find(is_refused) else { return };
    let shape = Shape::of(refused);
    let makes_room = |unit: &&Unit| {
        let request = unit.template.request();
        let position = unit.node.as_ref().and_then(|node| room.position(node));
        let Some(node) = position.and_then(|position| room.nodes.get(position)) else {
            return false;
        };
        shape.obstacle_without(node, Some((&unit.id, &request))).is_none()
            && room.exceeded_quota(&refused.namespace, &shape.request, Some(&request)).is_none()
    };
    if let Some(position) = crew.old.iter().rposition(makes_room) {
        let unit = crew.old.remove(position);
        draft.stop(unit, Desired::Remove, Reason::Superseded);
    }
}

/// Starts what is missing; during a change at most [`SURGE`] beyond `replicas`.
fn start_missing<'a>(draft: &mut Draft<'a>, crew: &Crew<'a>, replicas: usize) {
    let spec = &crew.service.spec;
    let limit = replicas.saturating_add(if crew.old.is_empty() { 0 } else { SURGE });
    let room = limit.saturating_sub(crew.current.len() + crew.old.len());
    for _ in 0..room.min(replicas.saturating_sub(crew.current.len())) {
        let owner = Owner::Service { name: spec.name.clone(), generation: crew.service.generation };
        let new = NewUnit {
            namespace: &spec.namespace,
            owner,
            labels: &spec.labels,
            template: &spec.unit,
        };
        if !draft.create(new) {
            break;
        }
    }
}
