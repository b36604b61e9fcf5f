//! The texts of secrets and configs that units use.

use brig_api::object::Unit;
use brig_api::session::Texts;

use crate::error::StoreError;
use crate::store::Store;

impl Store {
    /// The texts that the unit's template names: of a mounted secret or config all, else the named keys alone. A key
    /// that is missing is left out.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] names the secret or config that does not exist.
    pub async fn texts_for(&self, unit: &Unit) -> Result<Texts, StoreError> {
        Err(StoreError::being_written())
    }
}
