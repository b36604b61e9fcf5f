//! One decision of a plan, carried out if its premise still holds. Pure: what it is about has been read into the
//! [`Scene`], and is written when all have been carried out.

use brig_api::change::EventLevel;
use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::{Desired, JobState, Meta, NodeState, Owner, Unit, UnitStatus};
use brig_api::placement::Grants;
use brig_api::{Kind, NamespacePath, NodeName, ResourceName, UnitId};
use brig_core::Decision;

use crate::node::{node_key, switch};
use crate::object::key_in;
use crate::plan::scene::Scene;

/// Carries a decision out. Gives the unit that it was about when its premise no longer holds.
pub(super) fn carry_out(scene: &mut Scene, decision: &Decision) -> Option<UnitId> {
    let (unit, done) = match decision {
        Decision::NodeState { node, state } => (None, node_state(scene, node, *state)),
        Decision::UnitCreate(unit) => (Some(&unit.id), unit_create(scene, unit)),
        Decision::UnitPlace { unit, node, grants } => {
            (Some(unit), unit_place(scene, unit, node, grants))
        }
        Decision::UnitRefuse { unit, reason, message, promised } => {
            (Some(unit), unit_refuse(scene, unit, (*reason, message), promised.as_ref()))
        }
        Decision::UnitStop { unit, desired, reason, message } => {
            (Some(unit), unit_stop(scene, unit, *desired, (*reason, message.as_deref())))
        }
        Decision::UnitEnd { unit, reason } => (Some(unit), unit_end(scene, unit, *reason)),
        Decision::UnitLose { unit, message } => (Some(unit), unit_lose(scene, unit, message)),
        Decision::UnitRemove { unit } => (Some(unit), unit_drop(scene, unit)),
        Decision::JobProgress { namespace, name, state, succeeded, failed } => {
            (None, job_progress(scene, namespace, name, (*state, *succeeded, *failed)))
        }
        Decision::ServiceRemove { namespace, name } => (None, service_drop(scene, namespace, name)),
        Decision::JobRemove { namespace, name } => (None, job_drop(scene, namespace, name)),
    };
    if done { None } else { unit.cloned() }
}

fn node_state(scene: &mut Scene, name: &NodeName, state: NodeState) -> bool {
    let Some(node) = scene.node(name) else { return false };
    if node.state == state {
        return true;
    }
    let mut node = node.clone();
    switch(&mut node, state, scene.now_ms, scene.revision);
    scene.node_changed(node);
    let (level, reason, message) = match state {
        NodeState::Ready => (EventLevel::Normal, "Ready", "is in touch again"),
        NodeState::Unreachable => (EventLevel::Warning, "Unreachable", "was silent for too long"),
    };
    scene.event(node_key(name), level, reason, message);
    true
}

/// May the owner still get units?
fn owner_is_live(scene: &Scene, unit: &Unit) -> bool {
    match &unit.owner {
        None => true,
        Some(Owner::Service { name, .. }) => {
            scene.service(&unit.namespace, name).is_some_and(|service| !service.is_deleting)
        }
        Some(Owner::Job { name, .. }) => scene
            .job(&unit.namespace, name)
            .is_some_and(|job| !job.is_deleting && !job.state.is_final()),
    }
}

fn unit_create(scene: &mut Scene, unit: &Unit) -> bool {
    let has_namespace = scene.has_namespace(&unit.namespace);
    let is_taken = scene.has_unit_named(&unit.namespace, &unit.name);
    if !has_namespace || is_taken || !owner_is_live(scene, unit) {
        return false;
    }
    // Whatever the plan says of its life: a unit begins here.
    let created = Unit {
        desired: Desired::Run,
        node: None,
        promised: None,
        grants: Grants::default(),
        placed_ms: None,
        placed_by: None,
        status: UnitStatus { state: UnitState::Pending, ..UnitStatus::default() },
        meta: Meta { revision: scene.revision, created_ms: scene.now_ms },
        ..unit.clone()
    };
    scene.unit_created(created);
    let owner =
        unit.owner.as_ref().map(|owner| format!(" for {} `{}`", owner.kind(), owner.name()));
    let message = format!("was created{}", owner.unwrap_or_default());
    scene.unit_event(&unit.id, EventLevel::Normal, "Created", message);
    true
}

fn is_pending(unit: &Unit) -> bool {
    unit.status.state == UnitState::Pending
}

fn unit_place(scene: &mut Scene, id: &UnitId, name: &NodeName, grants: &Grants) -> bool {
    let (sequence, now_ms) = (scene.sequence, scene.now_ms);
    if !scene.node_is_ready(name) {
        return false;
    }
    let is_wanted = |unit: &Unit| is_pending(unit) && unit.desired == Desired::Run;
    let Some(unit) = scene.unit_if(id, is_wanted) else { return false };
    unit.status.state = UnitState::Assigned;
    unit.status.reason = None;
    unit.status.message = None;
    unit.node = Some(name.clone());
    unit.promised = None;
    unit.grants = grants.clone();
    unit.placed_ms = Some(now_ms);
    unit.placed_by = Some(sequence);
    scene.unit_changed(id);
    scene.unit_event(id, EventLevel::Normal, "Placed", format!("goes to node `{name}`"));
    true
}

fn unit_refuse(
    scene: &mut Scene,
    id: &UnitId,
    (reason, message): (Reason, &str),
    promised: Option<&NodeName>,
) -> bool {
    let Some(unit) = scene.unit_if(id, is_pending) else { return false };
    let status = &mut unit.status;
    let says_the_same = status.reason == Some(reason) && status.message.as_deref() == Some(message);
    if says_the_same && unit.promised.as_ref() == promised {
        return true;
    }
    status.reason = Some(reason);
    status.message = Some(message.to_owned());
    unit.promised = promised.cloned();
    scene.unit_changed(id);
    if !says_the_same {
        scene.unit_event(id, EventLevel::Warning, reason.as_str(), message);
    }
    true
}

/// How much is wanted of a unit: nothing takes back a wish to stop or remove it.
fn finality(desired: Desired) -> u8 {
    match desired {
        Desired::Run => 0,
        Desired::Stop => 1,
        Desired::Remove => 2,
    }
}

fn unit_stop(
    scene: &mut Scene,
    id: &UnitId,
    desired: Desired,
    (reason, message): (Reason, Option<&str>),
) -> bool {
    let Some(unit) = scene.unit_if(id, |_| true) else { return false };
    if finality(unit.desired) >= finality(desired) {
        return true;
    }
    unit.desired = desired;
    let has_ended = unit.status.state.is_final();
    if !has_ended {
        unit.status.reason = Some(reason);
        if let Some(message) = message {
            unit.status.message = Some(message.to_owned());
        }
    }
    scene.unit_changed(id);
    if !has_ended {
        let why = message.map(|message| format!(": {message}")).unwrap_or_default();
        let message = format!("is to stop: {}{why}", reason.as_str());
        scene.unit_event(id, EventLevel::Normal, "Stopping", message);
    }
    true
}

fn unit_end(scene: &mut Scene, id: &UnitId, reason: Reason) -> bool {
    let now_ms = scene.now_ms;
    let Some(unit) = scene.unit_if(id, is_pending) else { return false };
    unit.status.state = UnitState::Stopped;
    unit.status.reason = Some(reason);
    unit.status.message = None;
    unit.status.finished_ms = Some(now_ms);
    unit.promised = None;
    scene.unit_changed(id);
    scene.unit_event(id, EventLevel::Normal, "Stopped", "was stopped before it had a node");
    true
}

fn unit_lose(scene: &mut Scene, id: &UnitId, message: &str) -> bool {
    let now_ms = scene.now_ms;
    let is_on_node = |unit: &Unit| unit.status.state.is_on_node();
    let Some(unit) = scene.unit_if(id, is_on_node) else { return false };
    unit.status.state = UnitState::Lost;
    unit.status.reason = Some(Reason::NodeLost);
    unit.status.message = Some(message.to_owned());
    unit.status.finished_ms = Some(now_ms);
    scene.unit_changed(id);
    scene.unit_event(id, EventLevel::Warning, "Lost", message);
    true
}

fn unit_drop(scene: &mut Scene, id: &UnitId) -> bool {
    if scene.unit_if(id, |unit| unit.status.state.is_final()).is_none() {
        return false;
    }
    scene.unit_event(id, EventLevel::Normal, "Deleted", "was removed");
    scene.unit_gone(id);
    true
}

fn job_progress(
    scene: &mut Scene,
    namespace: &NamespacePath,
    name: &ResourceName,
    (state, succeeded, failed): (JobState, u32, u32),
) -> bool {
    let Some(job) = scene.job(namespace, name) else { return false };
    // A job that a user stopped meanwhile stays stopped.
    let state = if job.state.is_final() { job.state } else { state };
    let has_ended = state != job.state;
    if (job.state, job.succeeded, job.failed) == (state, succeeded, failed) {
        return true;
    }
    let mut job = job.clone();
    (job.state, job.succeeded, job.failed) = (state, succeeded, failed);
    job.meta.revision = scene.revision;
    let counts = format!("{succeeded} of {} succeeded", job.spec.completions);
    scene.job_changed(job);
    let key = key_in(Kind::Job, namespace, name);
    match state {
        JobState::Succeeded if has_ended => {
            scene.event(key, EventLevel::Normal, "Succeeded", counts);
        }
        JobState::Failed if has_ended => {
            let message = format!("{counts}, {failed} attempts failed");
            scene.event(key, EventLevel::Warning, "Failed", message);
        }
        _ => {}
    }
    true
}

fn service_drop(scene: &mut Scene, namespace: &NamespacePath, name: &ResourceName) -> bool {
    let is_deleting = scene.service(namespace, name).is_some_and(|service| service.is_deleting);
    if !is_deleting || scene.has_units(namespace, Kind::Service, name) {
        return false;
    }
    let key = key_in(Kind::Service, namespace, name);
    scene.event(key.clone(), EventLevel::Normal, "Deleted", "was removed");
    scene.service_gone(key, (namespace.clone(), name.clone()));
    true
}

fn job_drop(scene: &mut Scene, namespace: &NamespacePath, name: &ResourceName) -> bool {
    let is_deleting = scene.job(namespace, name).is_some_and(|job| job.is_deleting);
    if !is_deleting || scene.has_units(namespace, Kind::Job, name) {
        return false;
    }
    let key = key_in(Kind::Job, namespace, name);
    scene.event(key.clone(), EventLevel::Normal, "Deleted", "was removed");
    scene.job_gone(key, (namespace.clone(), name.clone()));
    true
}
