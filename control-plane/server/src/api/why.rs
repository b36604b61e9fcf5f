//! Why a unit is where it is: the fresh answer for one that waits, the kept decisions, and one node's own answer.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use brig_api::explain::{Explanation, NodeVerdict};
use brig_api::object::Unit;
use brig_api::request::{WhyQuery, WhyResponse};
use brig_api::{Code, Kind, NodeName, Object};

use super::object::{Named, cluster_key, unit};
use crate::app::App;
use crate::extract::{PathOf, QueryOf};
use crate::problem::{Answer, Failure};
use crate::questions::ask;
use crate::route::{Operation, Routes};

pub(super) fn routes() -> Routes {
    const OF: &str = "/v1/namespaces/{namespace}/units/{name}/why";
    Routes::default()
        .add(
            Operation::get(
                OF,
                "whyUnit",
                "Where a waiting unit would go now, the decision that placed it, or what one node says to it",
            )
            .query::<WhyQuery>()
            .answers::<WhyResponse>(),
            why_unit,
        )
        .add(
            Operation::get(
                format!("{OF}/history"),
                "whyUnitHistory",
                "The scheduler's decisions about a unit that are still kept, newest first",
            )
            .answers::<Vec<Explanation>>(),
            why_unit_history,
        )
}

async fn why_unit(
    State(app): State<Arc<App>>,
    PathOf((namespace, name)): Named,
    QueryOf(WhyQuery { node }): QueryOf<WhyQuery>,
) -> Answer<Json<WhyResponse>> {
    let unit = unit(&app, namespace, &name).await?;
    if let Some(node) = node {
        let verdict = why_on(&app, &unit, node).await?;
        return Ok(Json(WhyResponse::Node(verdict)));
    }
    let id = unit.id.clone();
    // Fresher than what is kept: that is of the pass that first refused it.
    let now =
        ask(&app, unit.meta.revision, move |model, moment| brig_core::why(model, moment, &id));
    let found = match now.await? {
        Some(now) => Some(now),
        None => app.store.explanation_get(&unit.id).await?,
    };
    found.map(WhyResponse::Decision).map(Json).ok_or_else(|| {
        let detail = format!("the scheduler has not looked at unit `{name}` yet: try again");
        Failure::new(Code::Unavailable, detail)
    })
}

/// What one node says to a unit.
async fn why_on(app: &App, unit: &Unit, node: NodeName) -> Answer<NodeVerdict> {
    // A node that is not there is told from one that refuses.
    let known = app.store.object_get(&cluster_key(Kind::Node, node.to_string())?).await?;
    let not_before = match &known {
        Object::Node(node) => unit.meta.revision.max(node.meta.revision),
        _ => unit.meta.revision,
    };
    let (id, of) = (unit.id.clone(), node.clone());
    let verdict = ask(app, not_before, move |model, moment| {
        model.unit(&id).filter(|unit| !unit.status.state.is_final())?;
        brig_core::why_on(model, moment, &id, &of)
    });
    verdict.await?.ok_or_else(|| {
        let detail = format!(
            "unit `{}` has ended, or `{node}` has gone meanwhile: there is nothing to ask",
            unit.name
        );
        Failure::new(Code::WrongState, detail)
    })
}

async fn why_unit_history(
    State(app): State<Arc<App>>,
    PathOf((namespace, name)): Named,
) -> Answer<Json<Vec<Explanation>>> {
    let unit = unit(&app, namespace, &name).await?;
    Ok(Json(app.store.explanation_list(&unit.id).await?))
}
