//! The table of routes. A route enters router and OpenAPI document together, so neither knows one that the other
//! doesn't.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::handler::Handler;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use brig_api::Code;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};

use crate::app::App;
use crate::limits::REQUEST_TIME_MAX;
use crate::problem::Failure;

/// Makes the schema of a type.
type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// The methods that the API uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Post,
    Delete,
}

/// What an operation answers.
#[derive(Clone, Copy)]
enum Answers {
    /// JSON of this schema.
    Json(SchemaOf),
    /// A stream of this media type, or another answer without a schema, in words.
    Other(&'static str, &'static str),
    /// 101: a WebSocket, in words.
    WebSocket(&'static str),
}

/// One operation as the document describes it.
pub(crate) struct Operation {
    pub(crate) method: Method,
    pub(crate) path: String,
    id: String,
    summary: String,
    query: Option<SchemaOf>,
    body: Option<SchemaOf>,
    answers: Answers,
}

impl Operation {
    fn new(
        method: Method,
        path: impl Into<String>,
        id: impl Into<String>,
        summary: impl Into<String>,
    ) -> Self {
        Self {
            method,
            path: path.into(),
            id: id.into(),
            summary: summary.into(),
            query: None,
            body: None,
            answers: Answers::Other("application/json", "JSON"),
        }
    }

    pub(crate) fn get(
        path: impl Into<String>,
        id: impl Into<String>,
        summary: impl Into<String>,
    ) -> Self {
        Self::new(Method::Get, path, id, summary)
    }

    pub(crate) fn post(
        path: impl Into<String>,
        id: impl Into<String>,
        summary: impl Into<String>,
    ) -> Self {
        Self::new(Method::Post, path, id, summary)
    }

    pub(crate) fn delete(
        path: impl Into<String>,
        id: impl Into<String>,
        summary: impl Into<String>,
    ) -> Self {
        Self::new(Method::Delete, path, id, summary)
    }

    pub(crate) fn query<T: JsonSchema>(self) -> Self {
        Self { query: Some(T::json_schema), ..self }
    }

    pub(crate) fn body<T: JsonSchema>(self) -> Self {
        Self { body: Some(SchemaGenerator::subschema_for::<T>), ..self }
    }

    pub(crate) fn answers<T: JsonSchema>(self) -> Self {
        Self { answers: Answers::Json(SchemaGenerator::subschema_for::<T>), ..self }
    }

    pub(crate) fn streams(self, media_type: &'static str, words: &'static str) -> Self {
        Self { answers: Answers::Other(media_type, words), ..self }
    }

    pub(crate) fn upgrades(self, words: &'static str) -> Self {
        Self { answers: Answers::WebSocket(words), ..self }
    }

    fn is_stream(&self) -> bool {
        !matches!(self.answers, Answers::Json(_))
    }
}

/// Routes and their descriptions, as they are collected.
#[derive(Default)]
pub(crate) struct Routes {
    router: Router<Arc<App>>,
    operations: Vec<Operation>,
}

impl Routes {
    /// Adds a route. What answers with JSON must do so within [`REQUEST_TIME_MAX`]; streams take their time.
    pub(crate) fn add<H, T>(mut self, operation: Operation, handler: H) -> Self
    where
        H: Handler<T, Arc<App>>,
        T: 'static,
    {
        let filter = match operation.method {
            Method::Get => MethodFilter::GET,
            Method::Post => MethodFilter::POST,
            Method::Delete => MethodFilter::DELETE,
        };
        let mut route = on(filter, handler);
        if !operation.is_stream() {
            route = route.layer(middleware::from_fn(in_time));
        }
        self.router = self.router.route(&operation.path, route);
        self.operations.push(operation);
        self
    }

    /// Adds what another part of the server collected.
    pub(crate) fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        self.operations.extend(other.operations);
        self
    }

    /// The router and the OpenAPI document of all that was added.
    pub(crate) fn finish(self) -> (Router<Arc<App>>, Value) {
        let document = document(&self.operations);
        (self.router, document)
    }
}

async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIME_MAX, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let detail = format!("not done within {} s: try again", REQUEST_TIME_MAX.as_secs());
            Failure::new(Code::Unavailable, detail).into_response()
        }
    }
}

/// The OpenAPI 3.1 document of these operations.
fn document(operations: &[Operation]) -> Value {
    let mut settings = schemars::generate::SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    let mut generator = settings.into_generator();
    let problem = generator.subschema_for::<brig_api::Problem>().to_value();
    let mut paths = serde_json::Map::new();
    for operation in operations {
        let described = describe(operation, &mut generator);
        let method = match operation.method {
            Method::Get => "get",
            Method::Post => "post",
            Method::Delete => "delete",
        };
        let path = paths.entry(operation.path.clone()).or_insert_with(|| json!({}));
        path[method] = described;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Brigantine",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "One pool of machines for WebAssembly and containers. Errors are problem documents with a stable code.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(false),
            "responses": {"Problem": {
                "description": "Any failure: a problem document (RFC 9457) with a stable code.",
                "content": {(brig_api::problem::PROBLEM_MEDIA_TYPE): {"schema": problem}},
            }},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    })
}

fn describe(operation: &Operation, generator: &mut SchemaGenerator) -> Value {
    let mut parameters: Vec<Value> = path_parameters(&operation.path);
    if let Some(query) = operation.query {
        parameters.extend(query_parameters(&query(generator).to_value()));
    }
    let success = match operation.answers {
        Answers::Json(schema) => {
            let schema = schema(generator);
            (
                "200",
                json!({"description": "Done.", "content": {"application/json": {"schema": schema}}}),
            )
        }
        Answers::Other(media_type, words) => {
            ("200", json!({"description": words, "content": {media_type: {}}}))
        }
        Answers::WebSocket(words) => ("101", json!({"description": words})),
    };
    let mut described = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": {(success.0): success.1, "default": {"$ref": "#/components/responses/Problem"}},
    });
    if let Some(body) = operation.body {
        let schema = body(generator);
        described["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": schema}}});
    }
    described
}

fn path_parameters(path: &str) -> Vec<Value> {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    names
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect()
}

/// One parameter for each property of the query's schema.
fn query_parameters(schema: &Value) -> Vec<Value> {
    let properties = schema.get("properties").and_then(Value::as_object);
    let one = |(name, schema): (&String, &Value)| {
        let mut schema = schema.clone();
        let description = schema.as_object_mut().and_then(|object| object.remove("description"));
        json!({"name": name, "in": "query", "description": description.unwrap_or_default(), "schema": schema})
    };
    properties.into_iter().flatten().map(one).collect()
}
