//! What an apply would lead to: the store tries it and rolls back, the core plans on the result.

use std::collections::{BTreeMap, BTreeSet};

use brig_api::asks::{ProgramFacts, new_asks, program_references};
use brig_api::explain::Verdict;
use brig_api::lifecycle::Reason;
use brig_api::manifest::Manifest;
use brig_api::object::{Object, ObjectKey, Unit};
use brig_api::reference::Reference;
use brig_api::request::{PlanResponse, PlannedEviction, PlannedUnit};
use brig_api::unit_spec::Runtime;
use brig_api::{Code, Kind, NodeName, ResourceName, Revision, UnitId};
use brig_core::{Decision, Model, Moment, Plan};

use crate::app::App;
use crate::problem::{Answer, Failure};
use crate::questions::ask;

/// Plans as if `manifests` had been applied.
pub(super) async fn preview(app: &App, manifests: &[Manifest]) -> Answer<PlanResponse> {
    let (applied, objects) = app.store.apply_preview(manifests).await?;
    // A copy, so that planning holds up nobody; units in it are shared with the original.
    let (model, moment) =
        ask(app, Revision(0), |model, moment| (model.clone(), moment.clone())).await?;
    let revision = model.revision;
    let programs = program_facts(app, &model, &objects).await;
    let planned = tokio::task::spawn_blocking(move || try_out(model, &moment, objects, &programs));
    let (asks, Outcome { placements, stops, evictions }) = planned.await.map_err(|error| {
        tracing::error!(error = %error, "planning failed");
        Failure::new(Code::Internal, "the scheduler failed at this plan; the server's log says how")
    })?;
    Ok(PlanResponse { revision, applied, placements, stops, evictions, asks })
}

/// What the registry knows of the programs of these objects, as they are and as they were.
async fn program_facts(app: &App, model: &Model, objects: &[Object]) -> ProgramFacts {
    let old: Vec<Object> = objects.iter().filter_map(|after| before(model, after)).collect();
    let references: BTreeSet<&str> =
        objects.iter().chain(&old).flat_map(program_references).collect();
    let mut facts = ProgramFacts::new();
    for reference in references {
        let Ok(parsed) = reference.parse::<Reference>() else { continue };
        // What was removed meanwhile, or lies elsewhere, is not known.
        if let Ok(Some(found)) = app.registry.describe(&parsed).await
            && let Some(wasm) = found.wasm
        {
            facts.insert(reference.to_owned(), wasm);
        }
    }
    facts
}

fn try_out(
    mut model: Model,
    moment: &Moment,
    objects: Vec<Object>,
    programs: &ProgramFacts,
) -> (Vec<brig_api::asks::Ask>, Outcome) {
    let asks = objects
        .iter()
        .flat_map(|after| new_asks(before(&model, after).as_ref(), after, programs))
        .collect();
    for object in objects {
        model.put(object);
    }
    let model = &mut model;
    let plan = brig_core::plan(model, moment);
    (asks, Outcome::of(model, plan))
}

/// What is there now in the place of `after`.
fn before(model: &Model, after: &Object) -> Option<Object> {
    match after {
        Object::Service(after) => {
            let (namespace, name) = (&after.spec.namespace, &after.spec.name);
            model.service(namespace, name).cloned().map(Object::Service)
        }
        Object::Job(after) => {
            let (namespace, name) = (&after.spec.namespace, &after.spec.name);
            model.job(namespace, name).cloned().map(Object::Job)
        }
        _ => None,
    }
}

/// What a plan says of units, by name.
struct Outcome {
    placements: Vec<PlannedUnit>,
    stops: Vec<ObjectKey>,
    evictions: Vec<PlannedEviction>,
}

impl Outcome {
    fn of(model: &Model, plan: Plan) -> Self {
        let mut outcome = Self { placements: vec![], stops: vec![], evictions: vec![] };
        let created = plan.decisions.iter().filter_map(|decision| match decision {
            Decision::UnitCreate(unit) => Some((unit.id.clone(), (**unit).clone())),
            _ => None,
        });
        let created: BTreeMap<UnitId, Unit> = created.collect();
        let named = |id: &UnitId| created.get(id).or_else(|| model.unit(id));
        let mut verdicts: BTreeMap<UnitId, Verdict> = plan
            .explanations
            .into_iter()
            .map(|explanation| (explanation.unit, explanation.verdict))
            .collect();
        for decision in plan.decisions {
            match decision {
                Decision::UnitPlace { unit: id, node, grants } => {
                    let chosen = named(&id).map(|unit| unit.variants(grants.runtimes));
                    let placed = || placed_without_scores(node, chosen.unwrap_or_default());
                    let verdict = verdicts.remove(&id).unwrap_or_else(placed);
                    outcome.add(named(&id), verdict, None, None);
                }
                Decision::UnitRefuse { unit: id, reason, message, promised } => {
                    let refused = Verdict::Refused { message };
                    let verdict = verdicts.remove(&id).unwrap_or(refused);
                    outcome.add(named(&id), verdict, Some(reason), promised);
                }
                Decision::UnitStop { unit: id, reason, message, .. } => {
                    let Some(unit) = named(&id) else { continue };
                    outcome.stops.push(key_of(unit));
                    if matches!(reason, Reason::Preempted | Reason::Evicted) {
                        outcome.evictions.push(PlannedEviction {
                            key: key_of(unit),
                            owner: owner_of(unit),
                            node: unit.node.clone(),
                            reason,
                            message,
                        });
                    }
                }
                Decision::UnitEnd { unit: id, .. } | Decision::UnitLose { unit: id, .. } => {
                    outcome.stops.extend(named(&id).map(key_of));
                }
                _ => {}
            }
        }
        // What waits on, for the same reason as before but with other numbers.
        for (id, verdict) in verdicts {
            let unit = named(&id);
            let reason = unit.and_then(|unit| unit.status.reason);
            outcome.add(unit, verdict, reason, None);
        }
        outcome
    }

    fn add(
        &mut self,
        unit: Option<&Unit>,
        verdict: Verdict,
        reason: Option<Reason>,
        promised: Option<NodeName>,
    ) {
        let Some(unit) = unit else { return };
        let (key, owner) = (key_of(unit), owner_of(unit));
        self.placements.push(PlannedUnit { key, owner, verdict, reason, promised });
    }
}

fn placed_without_scores(node: NodeName, variants: BTreeMap<ResourceName, Runtime>) -> Verdict {
    Verdict::Placed { node, scores: vec![], total: 0, next: vec![], variants }
}

fn key_of(unit: &Unit) -> ObjectKey {
    key(Kind::Unit, unit, unit.name.as_str())
}

fn owner_of(unit: &Unit) -> Option<ObjectKey> {
    unit.owner.as_ref().map(|owner| key(owner.kind(), unit, owner.name().as_str()))
}

fn key(kind: Kind, unit: &Unit, name: &str) -> ObjectKey {
    ObjectKey { kind, namespace: Some(unit.namespace.clone()), name: name.to_owned() }
}
