//! Single commands of users: scale, stop.

use brig_api::object::{Desired, Job, JobState, ObjectKey, Service, Unit};
use brig_api::problem::FieldError;
use brig_api::validate::REPLICAS_MAX;
use brig_api::{Kind, NamespacePath, Object, ResourceName};

use crate::error::StoreError;
use crate::store::Store;
use crate::table::job::{job_get, job_put};
use crate::table::service::{service_get, service_put};
use crate::table::unit::{unit_by_name, unit_update};
use crate::write::{Write, in_write};

impl Store {
    /// Sets how many units the service keeps running.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Invalid`] for more than a service may have; [`StoreError::Conflict`]
    /// when it is being deleted.
    pub async fn service_scale(
        &self,
        namespace: &NamespacePath,
        name: &ResourceName,
        replicas: u32,
        now_ms: i64,
    ) -> Result<Service, StoreError> {
        if replicas > REPLICAS_MAX {
            let message = format!("{replicas} is too many: at most {REPLICAS_MAX}");
            return Err(StoreError::Invalid(vec![FieldError {
                path: "replicas".to_owned(),
                message,
            }]));
        }
        let (service, _) =
            in_write!(self, now_ms, |tx| scale(&mut tx, namespace, name, replicas).await)?;
        Ok(service)
    }

    /// Has the unit stop and stay listed. Changes nothing when that was wanted before, or the unit has ended.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]
    pub async fn unit_stop(
        &self,
        namespace: &NamespacePath,
        name: &ResourceName,
        now_ms: i64,
    ) -> Result<Unit, StoreError> {
        let (unit, _) = in_write!(self, now_ms, |tx| stop_unit(&mut tx, namespace, name).await)?;
        Ok(unit)
    }

    /// Ends the job. Changes nothing when it had ended.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]
    pub async fn job_stop(
        &self,
        namespace: &NamespacePath,
        name: &ResourceName,
        now_ms: i64,
    ) -> Result<Job, StoreError> {
        let (job, _) = in_write!(self, now_ms, |tx| stop_job(&mut tx, namespace, name).await)?;
        Ok(job)
    }
}

fn not_found(kind: Kind, namespace: &NamespacePath, name: &ResourceName) -> StoreError {
    let (namespace, name) = (Some(namespace.clone()), name.as_str().to_owned());
    StoreError::NotFound(ObjectKey { kind, namespace, name })
}

async fn scale(
    tx: &mut Write,
    namespace: &NamespacePath,
    name: &ResourceName,
    replicas: u32,
) -> Result<Service, StoreError> {
    let Some(mut service) = service_get(&mut tx.db, namespace, name.as_str()).await? else {
        return Err(not_found(Kind::Service, namespace, name));
    };
    if service.is_deleting {
        let message = "it is being deleted".to_owned();
        return Err(StoreError::Conflict { key: Object::Service(service).key(), message });
    }
    if service.spec.replicas == replicas {
        return Ok(service);
    }
    let message = format!("from {} to {replicas} units", service.spec.replicas);
    service.spec.replicas = replicas;
    service.meta.revision = tx.revision();
    service_put(&mut tx.db, &service).await?;
    let object = Object::Service(service.clone());
    tx.normal(object.key(), "Scaled", message);
    tx.changed(object);
    Ok(service)
}

async fn stop_unit(
    tx: &mut Write,
    namespace: &NamespacePath,
    name: &ResourceName,
) -> Result<Unit, StoreError> {
    let Some(mut unit) = unit_by_name(&mut tx.db, namespace, name.as_str()).await? else {
        return Err(not_found(Kind::Unit, namespace, name));
    };
    if unit.desired != Desired::Run || unit.status.state.is_final() {
        return Ok(unit);
    }
    unit.desired = Desired::Stop;
    unit.meta.revision = tx.revision();
    unit_update(&mut tx.db, &unit).await?;
    let object = Object::Unit(Box::new(unit.clone()));
    tx.normal(object.key(), "Stopping", "is to stop, as a user asked");
    tx.changed(object);
    Ok(unit)
}

async fn stop_job(
    tx: &mut Write,
    namespace: &NamespacePath,
    name: &ResourceName,
) -> Result<Job, StoreError> {
    let Some(mut job) = job_get(&mut tx.db, namespace, name.as_str()).await? else {
        return Err(not_found(Kind::Job, namespace, name));
    };
    if job.state.is_final() {
        return Ok(job);
    }
    job.state = JobState::Stopped;
    job.meta.revision = tx.revision();
    job_put(&mut tx.db, &job).await?;
    let object = Object::Job(job.clone());
    tx.normal(object.key(), "Stopped", "was stopped, as a user asked");
    tx.changed(object);
    Ok(job)
}
