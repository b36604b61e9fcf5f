//! One decision of a plan, carried out if its premise still holds.

use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::{Desired, JobState, NodeState, ObjectKey, Owner, Unit, UnitStatus};
use brig_api::placement::Grants;
use brig_api::{Kind, NamespacePath, NodeName, Object, PlanSequence, ResourceName, UnitId};
use brig_core::Decision;

use crate::error::StoreError;
use crate::node::{node_key, set_state};
use crate::table::job::{job_get, job_put, job_remove};
use crate::table::namespace::namespace_get;
use crate::table::node::{node_get, node_put};
use crate::table::service::{service_get, service_remove};
use crate::table::unit::{
    unit_by_id, unit_by_name, unit_count_of_owner, unit_insert, unit_remove, unit_update,
};
use crate::write::Write;

/// Carries a decision out. Gives the unit that it was about when its premise no longer holds.
pub(crate) async fn carry_out(
    tx: &mut Write,
    sequence: PlanSequence,
    decision: &Decision,
) -> Result<Option<UnitId>, StoreError> {
    let (unit, done) = match decision {
        Decision::NodeState { node, state } => (None, node_state(tx, node, *state).await?),
        Decision::UnitCreate(unit) => (Some(&unit.id), unit_create(tx, unit).await?),
        Decision::UnitPlace { unit, node, grants } => {
            (Some(unit), unit_place(tx, sequence, unit, (node, grants)).await?)
        }
        Decision::UnitRefuse { unit, reason, message, promised } => {
            (Some(unit), unit_refuse(tx, unit, (*reason, message), promised.as_ref()).await?)
        }
        Decision::UnitStop { unit, desired, reason, message } => {
            (Some(unit), unit_stop(tx, unit, *desired, (*reason, message.as_deref())).await?)
        }
        Decision::UnitEnd { unit, reason } => (Some(unit), unit_end(tx, unit, *reason).await?),
        Decision::UnitLose { unit, message } => (Some(unit), unit_lose(tx, unit, message).await?),
        Decision::UnitRemove { unit } => (Some(unit), unit_drop(tx, unit).await?),
        Decision::JobProgress { namespace, name, state, succeeded, failed } => {
            (None, job_progress(tx, namespace, name, (*state, *succeeded, *failed)).await?)
        }
        Decision::ServiceRemove { namespace, name } => {
            (None, service_drop(tx, namespace, name).await?)
        }
        Decision::JobRemove { namespace, name } => (None, job_drop(tx, namespace, name).await?),
    };
    Ok(if done { None } else { unit.cloned() })
}

fn key_of(kind: Kind, namespace: &NamespacePath, name: &ResourceName) -> ObjectKey {
    ObjectKey { kind, namespace: Some(namespace.clone()), name: name.as_str().to_owned() }
}

async fn node_state(tx: &mut Write, name: &NodeName, state: NodeState) -> Result<bool, StoreError> {
    let Some(mut node) = node_get(&mut tx.db, name.as_str()).await? else {
        return Ok(false);
    };
    if node.state == state {
        return Ok(true);
    }
    set_state(&mut node, state, tx);
    node_put(&mut tx.db, &node).await?;
    match state {
        NodeState::Ready => tx.normal(node_key(name), "Ready", "is in touch again"),
        NodeState::Unreachable => {
            tx.warning(node_key(name), "Unreachable", "was silent for too long");
        }
    }
    tx.changed(Object::Node(node));
    Ok(true)
}

/// May the owner still get units?
async fn owner_is_live(tx: &mut Write, unit: &Unit) -> Result<bool, StoreError> {
    Ok(match &unit.owner {
        None => true,
        Some(Owner::Service { name, .. }) => {
            let service = service_get(&mut tx.db, &unit.namespace, name.as_str()).await?;
            service.is_some_and(|service| !service.is_deleting)
        }
        Some(Owner::Job { name, .. }) => {
            let job = job_get(&mut tx.db, &unit.namespace, name.as_str()).await?;
            job.is_some_and(|job| !job.is_deleting && !job.state.is_final())
        }
    })
}

async fn unit_create(tx: &mut Write, unit: &Unit) -> Result<bool, StoreError> {
    let has_namespace = namespace_get(&mut tx.db, unit.namespace.as_str()).await?.is_some();
    let is_taken = unit_by_name(&mut tx.db, &unit.namespace, unit.name.as_str()).await?.is_some();
    if !has_namespace || is_taken || !owner_is_live(tx, unit).await? {
        return Ok(false);
    }
    // Whatever the plan says of its life: a unit begins here.
    let unit = Unit {
        desired: Desired::Run,
        node: None,
        promised: None,
        grants: Grants::default(),
        placed_ms: None,
        placed_by: None,
        status: UnitStatus { state: UnitState::Pending, ..UnitStatus::default() },
        meta: tx.meta(),
        ..unit.clone()
    };
    unit_insert(&mut tx.db, &unit).await?;
    let key = key_of(Kind::Unit, &unit.namespace, &unit.name);
    let owner =
        unit.owner.as_ref().map(|owner| format!(" for {} `{}`", owner.kind(), owner.name()));
    tx.normal(key, "Created", format!("was created{}", owner.unwrap_or_default()));
    tx.changed(Object::Unit(Box::new(unit)));
    Ok(true)
}

/// The unit, if the premise holds for it.
async fn unit_if(
    tx: &mut Write,
    id: &UnitId,
    premise: impl Fn(&Unit) -> bool,
) -> Result<Option<Unit>, StoreError> {
    Ok(unit_by_id(&mut tx.db, id).await?.filter(premise))
}

/// Writes the unit as it is now; gives its key for an event.
async fn unit_changed(tx: &mut Write, mut unit: Unit) -> Result<ObjectKey, StoreError> {
    unit.meta.revision = tx.revision();
    unit_update(&mut tx.db, &unit).await?;
    let key = key_of(Kind::Unit, &unit.namespace, &unit.name);
    tx.changed(Object::Unit(Box::new(unit)));
    Ok(key)
}

fn is_pending(unit: &Unit) -> bool {
    unit.status.state == UnitState::Pending
}

async fn unit_place(
    tx: &mut Write,
    sequence: PlanSequence,
    id: &UnitId,
    (name, grants): (&NodeName, &Grants),
) -> Result<bool, StoreError> {
    let is_wanted = |unit: &Unit| is_pending(unit) && unit.desired == Desired::Run;
    let Some(mut unit) = unit_if(tx, id, is_wanted).await? else {
        return Ok(false);
    };
    let node = node_get(&mut tx.db, name.as_str()).await?;
    if node.is_none_or(|node| node.state != NodeState::Ready) {
        return Ok(false);
    }
    unit.status.state = UnitState::Assigned;
    unit.status.reason = None;
    unit.status.message = None;
    unit.node = Some(name.clone());
    unit.placed_by = Some(sequence);
    unit.placed_ms = Some(tx.now_ms);
    unit.grants = grants.clone();
    unit.promised = None;
    let key = unit_changed(tx, unit).await?;
    tx.normal(key, "Placed", format!("goes to node `{name}`"));
    Ok(true)
}

async fn unit_refuse(
    tx: &mut Write,
    id: &UnitId,
    (reason, message): (Reason, &str),
    promised: Option<&NodeName>,
) -> Result<bool, StoreError> {
    let Some(mut unit) = unit_if(tx, id, is_pending).await? else {
        return Ok(false);
    };
    let status = &mut unit.status;
    let says_the_same = status.reason == Some(reason) && status.message.as_deref() == Some(message);
    if says_the_same && unit.promised.as_ref() == promised {
        return Ok(true);
    }
    unit.promised = promised.cloned();
    status.reason = Some(reason);
    status.message = Some(message.to_owned());
    let key = unit_changed(tx, unit).await?;
    tx.warning(key, reason.as_str(), message);
    Ok(true)
}

/// How much is wanted of a unit: nothing takes back a wish to stop or remove it.
fn finality(desired: Desired) -> u8 {
    match desired {
        Desired::Run => 0,
        Desired::Stop => 1,
        Desired::Remove => 2,
    }
}

async fn unit_stop(
    tx: &mut Write,
    id: &UnitId,
    desired: Desired,
    (reason, message): (Reason, Option<&str>),
) -> Result<bool, StoreError> {
    let Some(mut unit) = unit_if(tx, id, |_| true).await? else {
        return Ok(false);
    };
    if finality(unit.desired) >= finality(desired) {
        return Ok(true);
    }
    unit.desired = desired;
    let has_ended = unit.status.state.is_final();
    if !has_ended {
        unit.status.reason = Some(reason);
        unit.status.message = message.map(str::to_owned);
    }
    let key = unit_changed(tx, unit).await?;
    if !has_ended {
        tx.normal(key, "Stopping", format!("is to stop: {}", reason.as_str()));
    }
    Ok(true)
}

async fn unit_end(tx: &mut Write, id: &UnitId, reason: Reason) -> Result<bool, StoreError> {
    let Some(mut unit) = unit_if(tx, id, is_pending).await? else {
        return Ok(false);
    };
    unit.status.state = UnitState::Stopped;
    unit.status.reason = Some(reason);
    unit.status.message = None;
    unit.status.finished_ms = Some(tx.now_ms);
    let key = unit_changed(tx, unit).await?;
    tx.normal(key, "Stopped", "was stopped before it had a node");
    Ok(true)
}

async fn unit_lose(tx: &mut Write, id: &UnitId, message: &str) -> Result<bool, StoreError> {
    let Some(mut unit) = unit_if(tx, id, |unit| unit.status.state.is_on_node()).await? else {
        return Ok(false);
    };
    unit.status.state = UnitState::Lost;
    unit.status.reason = Some(Reason::NodeLost);
    unit.status.message = Some(message.to_owned());
    unit.status.finished_ms = Some(tx.now_ms);
    let key = unit_changed(tx, unit).await?;
    tx.warning(key, "Lost", message);
    Ok(true)
}

async fn unit_drop(tx: &mut Write, id: &UnitId) -> Result<bool, StoreError> {
    let Some(unit) = unit_if(tx, id, |unit| unit.status.state.is_final()).await? else {
        return Ok(false);
    };
    unit_remove(&mut tx.db, id).await?;
    let key = key_of(Kind::Unit, &unit.namespace, &unit.name);
    tx.normal(key.clone(), "Deleted", "was removed");
    tx.deleted(key);
    Ok(true)
}

async fn job_progress(
    tx: &mut Write,
    namespace: &NamespacePath,
    name: &ResourceName,
    (state, succeeded, failed): (JobState, u32, u32),
) -> Result<bool, StoreError> {
    let Some(mut job) = job_get(&mut tx.db, namespace, name.as_str()).await? else {
        return Ok(false);
    };
    // A job that a user stopped meanwhile stays stopped.
    let state = if job.state.is_final() { job.state } else { state };
    let has_ended = state != job.state;
    if (job.state, job.succeeded, job.failed) == (state, succeeded, failed) {
        return Ok(true);
    }
    (job.state, job.succeeded, job.failed) = (state, succeeded, failed);
    job.meta.revision = tx.revision();
    job_put(&mut tx.db, &job).await?;
    let key = key_of(Kind::Job, namespace, name);
    let counts = format!("{succeeded} of {} succeeded", job.spec.completions);
    match state {
        JobState::Succeeded if has_ended => tx.normal(key, "Succeeded", counts),
        JobState::Failed if has_ended => {
            tx.warning(key, "Failed", format!("{counts}, {failed} attempts failed"));
        }
        _ => {}
    }
    tx.changed(Object::Job(job));
    Ok(true)
}

async fn service_drop(
    tx: &mut Write,
    namespace: &NamespacePath,
    name: &ResourceName,
) -> Result<bool, StoreError> {
    let service = service_get(&mut tx.db, namespace, name.as_str()).await?;
    let units = unit_count_of_owner(&mut tx.db, namespace, Kind::Service, name).await?;
    if !service.is_some_and(|service| service.is_deleting) || units > 0 {
        return Ok(false);
    }
    service_remove(&mut tx.db, namespace, name.as_str()).await?;
    let key = key_of(Kind::Service, namespace, name);
    tx.normal(key.clone(), "Deleted", "was removed");
    tx.deleted(key);
    Ok(true)
}

async fn job_drop(
    tx: &mut Write,
    namespace: &NamespacePath,
    name: &ResourceName,
) -> Result<bool, StoreError> {
    let job = job_get(&mut tx.db, namespace, name.as_str()).await?;
    let units = unit_count_of_owner(&mut tx.db, namespace, Kind::Job, name).await?;
    if !job.is_some_and(|job| job.is_deleting) || units > 0 {
        return Ok(false);
    }
    job_remove(&mut tx.db, namespace, name.as_str()).await?;
    let key = key_of(Kind::Job, namespace, name);
    tx.normal(key.clone(), "Deleted", "was removed");
    tx.deleted(key);
    Ok(true)
}
