//! What users ask for, taken over into the store: manifests and lone units.

use brig_api::Object;
use brig_api::manifest::Manifest;
use brig_api::object::Unit;
use brig_api::request::{Applied, ApplyResponse};
use brig_api::spec::LoneUnitSpec;

use crate::error::StoreError;
use crate::store::Store;

impl Store {
    /// Takes over all manifests in one transaction, in their order, or none of them.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for a namespace (or a namespace's parent) that does not exist,
    /// [`StoreError::Conflict`] for a change that is not possible, naming the resource and the way out.
    pub async fn apply(
        &self,
        manifests: &[Manifest],
        now_ms: i64,
    ) -> Result<ApplyResponse, StoreError> {
        Err(StoreError::being_written())
    }

    /// What [`Self::apply`] would do, and the resources that it would write, as they would be stored (units with
    /// provisional ids). Nothing is kept.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub async fn apply_preview(
        &self,
        manifests: &[Manifest],
    ) -> Result<(Vec<Applied>, Vec<Object>), StoreError> {
        Err(StoreError::being_written())
    }

    /// Creates one unit.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when its name is taken, [`StoreError::NotFound`] when its namespace does not exist.
    pub async fn unit_create(&self, spec: LoneUnitSpec, now_ms: i64) -> Result<Unit, StoreError> {
        Err(StoreError::being_written())
    }

    /// Makes sure that the namespace `default` exists. It is there from the first start on, and cannot be deleted.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn namespace_default_ensure(&self, now_ms: i64) -> Result<(), StoreError> {
        Err(StoreError::being_written())
    }
}
