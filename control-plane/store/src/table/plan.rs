//! The tables `plans` and `explanations`.

use brig_api::explain::{Explanation, Verdict};
use brig_api::{PlanSequence, Revision, UnitId};

use crate::columns::{cleaned, from_json, number, to_json};
use crate::database::{Tx, on_db};
use crate::error::StoreError;

const PLAN_INSERT: &str = "INSERT INTO plans (sequence, revision, based_on, decisions, skipped, committed_ms) \
    VALUES ($1, $2, $3, $4, $5, $6)";
const PLANS_REMOVE: &str = "DELETE FROM plans WHERE revision <= $1";
const EXPLANATION_GET: &str = "SELECT explanation FROM explanations WHERE unit_id = $1";
/// A unit that is gone needs no explanation.
const EXPLANATION_PUT: &str = "INSERT INTO explanations (unit_id, plan, decided_ms, verdict, node, message, \
    explanation) SELECT $1, $2, $3, $4, $5, $6, $7 WHERE EXISTS (SELECT 1 FROM units WHERE id = $1) \
    ON CONFLICT (unit_id) DO UPDATE SET plan = excluded.plan, decided_ms = excluded.decided_ms, \
    verdict = excluded.verdict, node = excluded.node, message = excluded.message, \
    explanation = excluded.explanation";

/// One row of `plans`.
#[derive(Debug)]
pub(crate) struct PlanRow {
    pub(crate) sequence: PlanSequence,
    pub(crate) revision: Revision,
    pub(crate) based_on: Revision,
    pub(crate) decisions: usize,
    pub(crate) skipped: usize,
    pub(crate) committed_ms: i64,
}

/// Records a committed plan.
pub(crate) async fn plan_insert(db: &mut Tx, plan: &PlanRow) -> Result<(), StoreError> {
    let count = |what, count: usize| number(what, u64::try_from(count).unwrap_or(u64::MAX));
    let sequence = number("sequence", plan.sequence.0)?;
    let revision = number("revision", plan.revision.0)?;
    let based_on = number("based_on", plan.based_on.0)?;
    let (decisions, skipped) =
        (count("decisions", plan.decisions)?, count("skipped", plan.skipped)?);
    on_db!(db, |connection| {
        let query = sqlx::query(PLAN_INSERT)
            .bind(sequence)
            .bind(revision)
            .bind(based_on)
            .bind(decisions)
            .bind(skipped)
            .bind(plan.committed_ms);
        query.execute(connection).await.map(drop)
    })?;
    Ok(())
}

/// Forgets the plans up to and with a revision.
pub(crate) async fn plans_remove(db: &mut Tx, until: Revision) -> Result<(), StoreError> {
    let until = number("revision", until.0)?;
    on_db!(db, |connection| {
        sqlx::query(PLANS_REMOVE).bind(until).execute(connection).await.map(drop)
    })?;
    Ok(())
}

/// The newest explanation of a unit.
pub(crate) async fn explanation_get(
    db: &mut Tx,
    unit: &UnitId,
) -> Result<Option<Explanation>, StoreError> {
    let row: Option<(String,)> = on_db!(db, |connection| {
        sqlx::query_as(EXPLANATION_GET).bind(unit.as_str()).fetch_optional(connection).await
    })?;
    row.map(|(explanation,)| from_json("explanations.explanation", &explanation)).transpose()
}

/// Writes an explanation in place of the unit's former one.
pub(crate) async fn explanation_put(
    db: &mut Tx,
    explanation: &Explanation,
) -> Result<(), StoreError> {
    let (verdict, node, message) = match &explanation.verdict {
        Verdict::Placed { node, .. } => ("placed", Some(node.as_str()), None),
        Verdict::Refused { message } => ("refused", None, Some(cleaned(message))),
    };
    let plan = number("plan", explanation.plan.0)?;
    let text = to_json("explanation", explanation)?;
    on_db!(db, |connection| {
        let query = sqlx::query(EXPLANATION_PUT)
            .bind(explanation.unit.as_str())
            .bind(plan)
            .bind(explanation.decided_ms)
            .bind(verdict)
            .bind(node)
            .bind(message.as_deref())
            .bind(&text);
        query.execute(connection).await.map(drop)
    })?;
    Ok(())
}
