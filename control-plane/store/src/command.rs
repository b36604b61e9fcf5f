//! Single commands of users: scale, stop.

use brig_api::object::{Job, Service, Unit};
use brig_api::{NamespacePath, ResourceName};

use crate::error::StoreError;
use crate::store::Store;

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
        Err(StoreError::being_written())
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
        Err(StoreError::being_written())
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
        Err(StoreError::being_written())
    }
}
