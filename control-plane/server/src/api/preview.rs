//! What an apply would lead to: the store tries it and rolls back, the core plans on the result.

use std::collections::BTreeMap;

use brig_api::change::Change;
use brig_api::manifest::Manifest;
use brig_api::object::{Object, ObjectKey, Unit};
use brig_api::request::{PlanResponse, PlannedUnit};
use brig_api::{Code, Revision, UnitId};
use brig_core::{Decision, Model, Moment, Plan};
use tokio::time::Instant;

use crate::app::App;
use crate::clock;
use crate::problem::{Answer, Failure};

/// Plans as if `manifests` had been applied.
pub(super) async fn preview(app: &App, manifests: &[Manifest]) -> Answer<PlanResponse> {
    let (applied, objects) = app.store.apply_preview(manifests).await?;
    let mut model = app.store.model_load().await?;
    let revision = model.revision;
    let next = Revision(revision.0 + 1);
    for (position, object) in (0..).zip(objects) {
        let key = object.key();
        model.apply(&Change { revision: next, position, key, object: Some(object) });
    }
    let (silent, _) = app.nodes.silent(model.nodes().map(|node| &node.name), Instant::now());
    let moment = Moment { now_ms: clock::now_ms(), silent };
    let planned = tokio::task::spawn_blocking(move || {
        let plan = brig_core::plan(&model, &moment);
        read_plan(&model, plan)
    });
    let (placements, stops) = planned.await.map_err(|error| {
        tracing::error!(error = %error, "planning failed");
        Failure::new(Code::Internal, "the scheduler failed at this plan; the server's log says how")
    })?;
    Ok(PlanResponse { revision, applied, placements, stops })
}

fn read_plan(model: &Model, plan: Plan) -> (Vec<PlannedUnit>, Vec<ObjectKey>) {
    let mut keys: BTreeMap<UnitId, ObjectKey> =
        model.units().map(|unit| (unit.id.clone(), key_of(unit))).collect();
    let mut stops = Vec::new();
    for decision in plan.decisions {
        match decision {
            Decision::UnitCreate(unit) => {
                keys.insert(unit.id.clone(), key_of(&unit));
            }
            Decision::UnitStop { unit, .. }
            | Decision::UnitEnd { unit, .. }
            | Decision::UnitLose { unit, .. } => stops.extend(keys.get(&unit).cloned()),
            _ => {}
        }
    }
    let placements = plan.explanations.into_iter().filter_map(|explanation| {
        let key = keys.get(&explanation.unit)?.clone();
        Some(PlannedUnit { key, verdict: explanation.verdict })
    });
    (placements.collect(), stops)
}

fn key_of(unit: &Unit) -> ObjectKey {
    Object::Unit(Box::new(unit.clone())).key()
}
