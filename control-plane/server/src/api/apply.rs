//! Apply, plan and the creation of lone units: from the body of a request to checked, admitted manifests.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use brig_api::manifest::Manifest;
use brig_api::problem::FieldError;
use brig_api::request::{ApplyRequest, ApplyResponse, MANIFESTS_MAX, PlanResponse};
use brig_api::spec::LoneUnitSpec;
use brig_api::unit_spec::UnitSpec;
use brig_api::{Code, NamespacePath, Problem};
use serde_json::Value;

use super::admission::{Draft, admit};
use crate::app::App;
use crate::clock;
use crate::extract::Body;
use crate::problem::{Answer, Failure};
use crate::route::{Operation, Routes};

pub(super) fn routes() -> Routes {
    Routes::default()
        .add(
            Operation::post("/v1/apply", "apply", "Take over manifests: all of them, or none")
                .body::<ApplyRequest>()
                .answers::<ApplyResponse>(),
            apply,
        )
        .add(
            Operation::post(
                "/v1/plan",
                "plan",
                "What an apply would do, and where the scheduler would put the units now; changes nothing",
            )
            .body::<ApplyRequest>()
            .answers::<PlanResponse>(),
            plan,
        )
}

async fn apply(
    State(app): State<Arc<App>>,
    Body(body): Body<Value>,
) -> Answer<Json<ApplyResponse>> {
    let manifests = admit(&app, drafts(body)?).await?;
    Ok(Json(app.store.apply(&manifests, clock::now_ms()).await?))
}

async fn plan(State(app): State<Arc<App>>, Body(body): Body<Value>) -> Answer<Json<PlanResponse>> {
    let manifests = admit(&app, drafts(body)?).await?;
    super::preview::preview(&app, &manifests).await.map(Json)
}

/// The checked manifests of an [`ApplyRequest`]. It is not read by serde as a whole, so that every fault of every
/// manifest is told at once, with its path.
fn drafts(body: Value) -> Answer<Vec<Draft>> {
    let Value::Object(mut body) = body else {
        return Err(Failure::field("", "expected an object with `manifests`"));
    };
    let manifests = body.remove("manifests");
    if let Some(unknown) = body.keys().next() {
        let message = format!("unknown field `{unknown}`. Known here: manifests");
        return Err(Failure::field("", message));
    }
    let Some(Value::Array(manifests)) = manifests else {
        return Err(Failure::field("manifests", "expected a list of manifests"));
    };
    if manifests.is_empty() || manifests.len() > MANIFESTS_MAX {
        let message = format!("expected 1 to {MANIFESTS_MAX} manifests, found {}", manifests.len());
        return Err(Failure::field("manifests", message));
    }
    let mut drafts = Vec::with_capacity(manifests.len());
    let mut faults = Vec::new();
    for (index, value) in manifests.into_iter().enumerate() {
        match draft(value, format!("manifests[{index}]")) {
            Ok(draft) => drafts.push(draft),
            Err(found) => faults.extend(found),
        }
    }
    if faults.is_empty() { Ok(drafts) } else { Err(refused(faults)) }
}

/// Reads and checks one manifest that stands at `path`.
pub(super) fn draft(value: Value, path: String) -> Result<Draft, Vec<FieldError>> {
    let under = |fault: FieldError| FieldError { path: join(&path, &fault.path), ..fault };
    let written = Manifest::from_value(value).map_err(|fault| vec![under(fault)])?;
    let is_short_form = unit_of(&written).is_some_and(|unit| unit.tasks.is_empty());
    let manifest =
        written.check().map_err(|faults| faults.into_iter().map(under).collect::<Vec<_>>())?;
    Ok(Draft { manifest, path, is_short_form })
}

fn unit_of(manifest: &Manifest<UnitSpec>) -> Option<&UnitSpec> {
    match manifest {
        Manifest::Service(spec) => Some(&spec.unit),
        Manifest::Job(spec) => Some(&spec.unit),
        Manifest::Unit(spec) => Some(&spec.unit),
        Manifest::Namespace(_) | Manifest::Secret(_) | Manifest::Config(_) => None,
    }
}

/// `a` and `b` as one path.
pub(super) fn join(a: &str, b: &str) -> String {
    match (a.is_empty(), b.is_empty()) {
        (true, _) => b.to_owned(),
        (_, true) => a.to_owned(),
        _ => format!("{a}.{b}"),
    }
}

/// The problem of a request with these faults.
pub(super) fn refused(faults: Vec<FieldError>) -> Failure {
    let detail = match faults.len() {
        1 => "one field is not valid".to_owned(),
        many => format!("{many} fields are not valid"),
    };
    Problem::invalid(detail, faults).into()
}

/// Reads, checks and admits the body of a unit's creation.
pub(super) async fn admit_unit(
    app: &App,
    namespace: &NamespacePath,
    mut body: Value,
) -> Answer<LoneUnitSpec> {
    let Some(object) = body.as_object_mut() else {
        return Err(Failure::field("", "expected an object with `name` and `unit`"));
    };
    let written = object.entry("namespace").or_insert_with(|| namespace.as_str().into());
    if written.as_str() != Some(namespace.as_str()) {
        let message = format!("is {written}, but the path says `{namespace}`: leave it out");
        return Err(Failure::field("namespace", message));
    }
    if object.insert("kind".to_owned(), "unit".into()).is_some_and(|kind| kind != "unit") {
        return Err(Failure::field("kind", "only a unit can be created here: use /v1/apply"));
    }
    let draft = draft(body, String::new()).map_err(refused)?;
    match admit(app, vec![draft]).await?.pop() {
        Some(Manifest::Unit(spec)) => Ok(spec),
        _ => Err(Failure::new(Code::Internal, "a unit's manifest was not read as one")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(body: Value) -> Vec<String> {
        let failure = drafts(body).err().unwrap();
        assert_eq!(failure.0.code, Code::Invalid);
        failure.0.fields.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_fault_of_every_manifest_is_told_with_its_path() {
        let found = faults(json!({"manifests": [
            {"kind": "service", "name": "a", "unit": {"wasm": {"artefact": "x"}}},
            {"kind": "job", "name": "b", "completions": 0, "unit": {"wasm": {"artifact": "B!"}}},
        ]}));
        assert!(found[0].starts_with("manifests[0].unit.wasm"), "{found:?}");
        assert!(found[0].contains("Did you mean `artifact`?"), "{found:?}");
        assert!(found[1].starts_with("manifests[1].completions"), "{found:?}");
        assert!(found[2].starts_with("manifests[1].unit.wasm.artifact"), "{found:?}");
    }

    #[test]
    fn bodies_that_are_no_apply_are_refused() {
        for body in [
            json!([]),
            json!({}),
            json!({"manifests": 3}),
            json!({"manifests": []}),
            json!({"manifests": [], "force": true}),
            json!({"manifests": [null]}),
            json!({"manifests": vec![json!({}); MANIFESTS_MAX + 1]}),
        ] {
            assert!(!faults(body).is_empty());
        }
    }
}
