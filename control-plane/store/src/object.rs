//! Reading and deleting resources of every kind.

use brig_api::object::{ObjectKey, Unit};
use brig_api::{Kind, NamespacePath, Object, Revision, UnitId};

use crate::error::StoreError;
use crate::store::Store;

impl Store {
    /// The resource.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]
    pub async fn object_get(&self, key: &ObjectKey) -> Result<Object, StoreError> {
        Err(StoreError::being_written())
    }

    /// All resources of a kind, in the order of namespace and name, and the revision at which they were read.
    /// With a namespace: those in it and below it (of kinds that have one).
    ///
    /// # Errors
    /// When the database fails.
    pub async fn object_list(
        &self,
        kind: Kind,
        namespace: Option<&NamespacePath>,
    ) -> Result<(Revision, Vec<Object>), StoreError> {
        Err(StoreError::being_written())
    }

    /// Deletes a resource, or has it deleted: services and jobs go when their units have, units when they ended.
    /// Gives the revision at which that was so.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::InUse`] for a namespace with anything in it, a secret or config that
    /// a live service, job or unit names, a node that is ready or has live units; [`StoreError::Conflict`] for the
    /// namespace `default`.
    pub async fn object_delete(
        &self,
        key: &ObjectKey,
        now_ms: i64,
    ) -> Result<Revision, StoreError> {
        Err(StoreError::being_written())
    }

    /// The unit of that id, unless it was removed.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn unit_by_id(&self, id: &UnitId) -> Result<Option<Unit>, StoreError> {
        Err(StoreError::being_written())
    }
}
