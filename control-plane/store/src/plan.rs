//! The model for the scheduler, and the commit of its plans.

use brig_api::explain::Explanation;
use brig_api::{PlanSequence, Revision, UnitId};
use brig_core::{Model, Plan};

use crate::error::StoreError;
use crate::store::Store;

/// What became of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The revision in which it took effect; the newest when it had nothing in it that did.
    pub revision: Revision,
    /// Its number.
    pub sequence: PlanSequence,
    /// Units about which a decision was left out, because its premise no longer held.
    pub skipped: Vec<UnitId>,
}

impl Store {
    /// The cluster as one moment sees it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn model_load(&self) -> Result<Model, StoreError> {
        Err(StoreError::being_written())
    }

    /// Carries out all decisions of a plan in one transaction, leaving out those whose premise no longer holds.
    ///
    /// # Errors
    /// [`StoreError::PlanLost`] when another plan was committed since [`Plan::after`]; nothing took effect.
    pub async fn plan_commit(&self, plan: &Plan, now_ms: i64) -> Result<Committed, StoreError> {
        Err(StoreError::being_written())
    }

    /// Why the unit is where it is, as the newest plan that looked at it said.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn explanation_get(&self, unit: &UnitId) -> Result<Option<Explanation>, StoreError> {
        Err(StoreError::being_written())
    }
}
