//! What is told of the checkpoints of a unit; never what its program saved.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use brig_api::checkpoint::CheckpointView;

use super::object::{Named, unit};
use crate::app::App;
use crate::extract::PathOf;
use crate::problem::Answer;
use crate::route::{Operation, Routes};

pub(super) fn routes() -> Routes {
    Routes::default().add(
        Operation::get(
            "/v1/namespaces/{namespace}/units/{name}/checkpoints",
            "checkpointsOfUnit",
            "When each task of a unit last saved where it is, and how much, as far as its node has told",
        )
        .answers::<Vec<CheckpointView>>(),
        checkpoints_of_unit,
    )
}

async fn checkpoints_of_unit(
    State(app): State<Arc<App>>,
    PathOf((namespace, name)): Named,
) -> Answer<Json<Vec<CheckpointView>>> {
    let unit = unit(&app, namespace, &name).await?;
    Ok(Json(app.store.checkpoint_views(&unit.id).await?))
}
