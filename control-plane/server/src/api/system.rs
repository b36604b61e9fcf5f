//! The server itself: version, health, documents, SQL, events.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use brig_api::change::Event;
use brig_api::request::{EventQuery, SqlRequest, SqlResponse, VersionResponse};
use brig_api::{Code, manifest};
use brig_store::EventFilter;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::app::App;
use crate::extract::{Body, QueryOf};
use crate::limits::{EVENTS_DEFAULT, SQL_ROWS_MAX};
use crate::problem::{Answer, Failure};
use crate::route::{Operation, Routes};

pub(super) fn routes() -> Routes {
    Routes::default()
        .add(
            Operation::get(
                "/v1/version",
                "version",
                "The server's version and the newest revision",
            )
            .answers::<VersionResponse>(),
            version,
        )
        .add(
            Operation::get("/v1/healthz", "health", "Does the process answer?").answers::<Status>(),
            health,
        )
        .add(
            Operation::get(
                "/v1/readyz",
                "ready",
                "Does the database answer, and is somebody planning?",
            )
            .answers::<Status>(),
            ready,
        )
        .add(
            Operation::get("/v1/openapi.json", "openapi", "This document")
                .streams("application/json", "An OpenAPI 3.1 document."),
            openapi,
        )
        .add(
            Operation::get("/v1/schema", "schema", "The JSON Schema of manifests")
                .streams("application/json", "A JSON Schema (2020-12)."),
            schema,
        )
        .add(
            Operation::post("/v1/sql", "sql", "One SELECT on the cluster's database, read-only")
                .body::<SqlRequest>()
                .answers::<SqlResponse>(),
            sql,
        )
        .add(
            Operation::get("/v1/events", "events", "What happened, newest last")
                .query::<EventQuery>()
                .answers::<Vec<Event>>(),
            events,
        )
}

async fn version(State(app): State<Arc<App>>) -> Answer<Json<VersionResponse>> {
    Ok(Json(VersionResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        revision: app.store.revision().await?,
        database: app.store.backend().as_str().to_owned(),
    }))
}

/// Answer of the health checks.
#[derive(Serialize, JsonSchema)]
struct Status {
    /// `ok`, `ready`.
    status: &'static str,
}

async fn health() -> Json<Status> {
    Json(Status { status: "ok" })
}

async fn ready(State(app): State<Arc<App>>) -> Answer<Json<Status>> {
    app.store.revision().await?;
    if !*app.is_leader.borrow() {
        let detail = "this server does not plan (yet): another one does, or its start is not done";
        return Err(Failure::new(Code::Unavailable, detail));
    }
    Ok(Json(Status { status: "ready" }))
}

async fn openapi(State(app): State<Arc<App>>) -> Json<Arc<Value>> {
    Json(Arc::clone(&app.openapi))
}

async fn schema() -> Json<Value> {
    Json(manifest::json_schema())
}

async fn sql(
    State(app): State<Arc<App>>,
    Body(request): Body<SqlRequest>,
) -> Answer<Json<SqlResponse>> {
    Ok(Json(app.store.sql(&request.query, SQL_ROWS_MAX).await?))
}

async fn events(
    State(app): State<Arc<App>>,
    QueryOf(query): QueryOf<EventQuery>,
) -> Answer<Json<Vec<Event>>> {
    let EventQuery { namespace, kind, name, since, limit } = query;
    let limit = limit.unwrap_or(EVENTS_DEFAULT);
    let limit = usize::try_from(limit).ok();
    let filter = EventFilter { namespace, kind, name, since_revision: since, limit };
    Ok(Json(app.store.event_list(&filter).await?))
}
