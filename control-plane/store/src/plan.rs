//! The model for the scheduler, and the commit of its plans.

mod carry_out;
mod scene;

use std::collections::{BTreeMap, BTreeSet};

use brig_api::explain::Explanation;
use brig_api::{Object, PlanSequence, Revision, UnitId};
use brig_core::{Model, Plan};

use crate::columns::unsigned;
use crate::database::{Tx, on_db};
use crate::error::StoreError;
use crate::plan::carry_out::carry_out;
use crate::plan::scene::Scene;
use crate::store::Store;
use crate::table::job::job_list;
use crate::table::namespace::namespace_list;
use crate::table::node::node_list;
use crate::table::plan::{
    EXPLANATIONS_KEPT, PlanRow, explanation_list, explanations_forget, explanations_put,
    plan_insert,
};
use crate::table::service::service_list;
use crate::table::unit::{unit_list, units_existing};
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
        let explanation = explanation_list(&mut db, unit, 1).await?.pop();
        db.commit().await?;
        Ok(explanation)
    }

    /// Why the unit is where it is, and why it was not before: as the newest plans that looked at it said, newest
    /// first. Eight are kept of each unit.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn explanation_list(&self, unit: &UnitId) -> Result<Vec<Explanation>, StoreError> {
        let mut db = self.pools().read().await?;
        let explanations = explanation_list(&mut db, unit, EXPLANATIONS_KEPT).await?;
        db.commit().await?;
        Ok(explanations)
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
    let mut scene = Scene::load(tx, sequence, &plan.decisions).await?;
    let mut skipped = BTreeSet::new();
    for decision in &plan.decisions {
        skipped.extend(carry_out(&mut scene, decision));
    }
    scene.write_rows(tx).await?;
    explain(tx, &scene, &plan.explanations).await?;
    let row = PlanRow {
        sequence,
        revision: if scene.has_changes() { tx.revision() } else { tx.newest() },
        based_on: plan.based_on,
        decisions: plan.decisions.len(),
        skipped: skipped.len(),
        committed_ms: tx.now_ms,
    };
    plan_insert(&mut tx.db, &row).await?;
    scene.tell(tx);
    Ok((sequence, skipped.into_iter().collect()))
}

/// Adds the explanations of units that exist, and forgets the oldest of these units.
async fn explain(
    tx: &mut Write,
    scene: &Scene,
    explanations: &[Explanation],
) -> Result<(), StoreError> {
    // Of several about one unit the last counts.
    let by_unit: BTreeMap<&UnitId, &Explanation> =
        explanations.iter().map(|explanation| (&explanation.unit, explanation)).collect();
    let others: Vec<&UnitId> =
        by_unit.keys().copied().filter(|unit| !scene.knows_unit(unit)).collect();
    let existing = units_existing(&mut tx.db, &others).await?;
    let is_there = |unit: &UnitId| scene.knows_unit(unit) || existing.contains(unit);
    let kept: Vec<&Explanation> =
        by_unit.into_values().filter(|explanation| is_there(&explanation.unit)).collect();
    explanations_put(&mut tx.db, &kept).await?;
    // A new unit has this one alone.
    let units = kept.iter().map(|explanation| &explanation.unit);
    let old: Vec<&UnitId> = units.filter(|unit| !scene.is_new_unit(unit)).collect();
    explanations_forget(&mut tx.db, &old).await
}
