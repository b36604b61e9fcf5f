//! What a unit used.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use brig_api::usage::Usage;

use super::object::{Named, unit};
use crate::app::App;
use crate::extract::PathOf;
use crate::problem::Answer;
use crate::route::{Operation, Routes};

pub(super) fn routes() -> Routes {
    Routes::default().add(
        Operation::get(
            "/v1/namespaces/{namespace}/units/{name}/usage",
            "usageOfUnit",
            "What a unit used so far, as its node last told; zeros when nothing was told yet",
        )
        .answers::<Usage>(),
        usage_of_unit,
    )
}

async fn usage_of_unit(
    State(app): State<Arc<App>>,
    PathOf((namespace, name)): Named,
) -> Answer<Json<Usage>> {
    let unit = unit(&app, namespace, &name).await?;
    Ok(Json(app.store.usage_get(&unit.id).await?))
}
