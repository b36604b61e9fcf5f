//! The tables `plans` and `explanations`.

use std::borrow::Cow;

use brig_api::explain::{Explanation, Verdict};
use brig_api::{PlanSequence, Revision, UnitId};

use crate::columns::{cleaned, from_json, number, to_json};
use crate::database::{Tx, on_db};
use crate::error::StoreError;
use crate::many::{ROWS_MAX, execute_many};

const PLAN_INSERT: &str = "INSERT INTO plans (sequence, revision, based_on, decisions, skipped, committed_ms) \
    VALUES ($1, $2, $3, $4, $5, $6)";
const PLANS_REMOVE: &str = "DELETE FROM plans WHERE revision <= $1";
const EXPLANATIONS_OF: &str =
    "SELECT explanation FROM explanations WHERE unit_id = $1 ORDER BY plan DESC LIMIT $2";
const EXPLANATIONS_PUT: &str = "INSERT INTO explanations (unit_id, plan, decided_ms, policy, verdict, node, message, \
    explanation) VALUES {rows} ON CONFLICT (unit_id, plan) DO UPDATE SET decided_ms = excluded.decided_ms, \
    policy = excluded.policy, verdict = excluded.verdict, node = excluded.node, message = excluded.message, \
    explanation = excluded.explanation";
/// What is older than the newest [`EXPLANATIONS_KEPT`] of each unit.
const EXPLANATIONS_FORGET: &str = "DELETE FROM explanations WHERE (unit_id, plan) IN (SELECT unit_id, plan FROM \
    (SELECT unit_id, plan, ROW_NUMBER() OVER (PARTITION BY unit_id ORDER BY plan DESC) AS age FROM explanations \
    WHERE unit_id IN (VALUES {rows})) AS aged WHERE age > {kept})";

/// How many explanations of a unit are kept, the newest: enough to see what stood in its way before it was placed, few
/// enough that a unit that waits for days takes no more room than one that does not.
pub(crate) const EXPLANATIONS_KEPT: u32 = 8;

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

/// The newest explanations of a unit, newest first.
pub(crate) async fn explanation_list(
    db: &mut Tx,
    unit: &UnitId,
    limit: u32,
) -> Result<Vec<Explanation>, StoreError> {
    let rows: Vec<(String,)> = on_db!(db, |connection| {
        let query = sqlx::query_as(EXPLANATIONS_OF).bind(unit.as_str()).bind(i64::from(limit));
        query.fetch_all(connection).await
    })?;
    let explanations =
        rows.iter().map(|(explanation,)| from_json("explanations.explanation", explanation));
    explanations.collect()
}

/// Adds explanations of units that exist, each unit named once.
pub(crate) async fn explanations_put(
    db: &mut Tx,
    explanations: &[&Explanation],
) -> Result<(), StoreError> {
    for chunk in explanations.chunks(ROWS_MAX) {
        let mut rows = Vec::with_capacity(chunk.len());
        for explanation in chunk {
            let plan = number("plan", explanation.plan.0)?;
            rows.push((*explanation, plan, to_json("explanation", explanation)?));
        }
        execute_many!(db, EXPLANATIONS_PUT, 8, rows, |query, (explanation, plan, text)| {
            let (verdict, node, message) = match &explanation.verdict {
                Verdict::Placed { node, .. } => ("placed", Some(node.as_str()), None),
                Verdict::Refused { message } => ("refused", None, Some(cleaned(message))),
            };
            query
                .bind(explanation.unit.as_str())
                .bind(*plan)
                .bind(explanation.decided_ms)
                .bind(cleaned(&explanation.policy).into_owned())
                .bind(verdict)
                .bind(node)
                .bind(message.map(Cow::into_owned))
                .bind(text)
        });
    }
    Ok(())
}

/// Forgets all but the newest explanations of the units.
pub(crate) async fn explanations_forget(db: &mut Tx, units: &[&UnitId]) -> Result<(), StoreError> {
    let sql = EXPLANATIONS_FORGET.replace("{kept}", &EXPLANATIONS_KEPT.to_string());
    execute_many!(db, &sql, 1, units, |query, unit| query.bind(unit.as_str()));
    Ok(())
}
