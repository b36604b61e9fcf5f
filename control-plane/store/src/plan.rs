//! The model for the scheduler, and the commit of its plans.

mod carry_out;

use std::collections::BTreeSet;

use brig_api::explain::Explanation;
use brig_api::{Object, PlanSequence, Revision, UnitId};
use brig_core::{Model, Plan};

use crate::columns::unsigned;
use crate::database::{Tx, on_db};
use crate::error::StoreError;
use crate::plan::carry_out::carry_out;
use crate::store::Store;
use crate::table::job::job_list;
use crate::table::namespace::namespace_list;
use crate::table::node::node_list;
use crate::table::plan::{PlanRow, explanation_get, explanation_put, plan_insert};
use crate::table::service::service_list;
use crate::table::unit::unit_list;
use crate::write::{Write, in_write};

const CLUSTER: &str = "SELECT revision, plan FROM cluster WHERE id = 1";

/// What became of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The revision in which it took effect; the newest when nothing in it did.
    pub revision: Revision,
    /// The newest plan's number: this one's, unless there was nothing at all in it.
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
        let mut db = self.pools().read().await?;
        let (revision, plan) = cluster(&mut db).await?;
        let mut objects: Vec<Object> = Vec::new();
        objects.extend(namespace_list(&mut db, None).await?.into_iter().map(Object::Namespace));
        objects.extend(node_list(&mut db).await?.into_iter().map(Object::Node));
        objects.extend(service_list(&mut db, None).await?.into_iter().map(Object::Service));
        objects.extend(job_list(&mut db, None).await?.into_iter().map(Object::Job));
        let units = unit_list(&mut db, None).await?;
        objects.extend(units.into_iter().map(|unit| Object::Unit(Box::new(unit))));
        db.commit().await?;
        Ok(Model::new(revision, plan, objects))
    }

    /// Carries out all decisions of a plan in one transaction, leaving out those whose premise no longer holds.
    ///
    /// # Errors
    /// [`StoreError::PlanLost`] when another plan was committed since [`Plan::after`]; nothing took effect.
    pub async fn plan_commit(&self, plan: &Plan, now_ms: i64) -> Result<Committed, StoreError> {
        let ((sequence, skipped), revision) =
            in_write!(self, now_ms, |tx| commit(&mut tx, plan).await)?;
        Ok(Committed { revision, sequence, skipped })
    }

    /// Why the unit is where it is, as the newest plan that looked at it said.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn explanation_get(&self, unit: &UnitId) -> Result<Option<Explanation>, StoreError> {
        let mut db = self.pools().read().await?;
        let explanation = explanation_get(&mut db, unit).await?;
        db.commit().await?;
        Ok(explanation)
    }
}

async fn cluster(db: &mut Tx) -> Result<(Revision, PlanSequence), StoreError> {
    let (revision, plan): (i64, i64) =
        on_db!(db, |connection| sqlx::query_as(CLUSTER).fetch_one(connection).await)?;
    Ok((
        Revision(unsigned("cluster.revision", revision)?),
        PlanSequence(unsigned("cluster.plan", plan)?),
    ))
}

async fn commit(tx: &mut Write, plan: &Plan) -> Result<(PlanSequence, Vec<UnitId>), StoreError> {
    // The fence: whoever planned on an older plan planned on a world that is gone.
    if tx.plan() != plan.after {
        return Err(StoreError::PlanLost { newest: tx.plan() });
    }
    if plan.decisions.is_empty() && plan.explanations.is_empty() {
        return Ok((tx.plan(), Vec::new()));
    }
    let sequence = plan.after.next();
    tx.set_plan(sequence);
    let mut skipped = BTreeSet::new();
    for decision in &plan.decisions {
        skipped.extend(carry_out(tx, sequence, decision).await?);
    }
    for explanation in &plan.explanations {
        explanation_put(&mut tx.db, explanation).await?;
    }
    let row = PlanRow {
        sequence,
        revision: if tx.has_changes() { tx.revision() } else { tx.newest() },
        based_on: plan.based_on,
        decisions: plan.decisions.len(),
        skipped: skipped.len(),
        committed_ms: tx.now_ms,
    };
    plan_insert(&mut tx.db, &row).await?;
    Ok((sequence, skipped.into_iter().collect()))
}
