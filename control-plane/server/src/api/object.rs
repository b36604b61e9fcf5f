//! Resources one by one: list, get, delete, and the commands on services, jobs and units.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use brig_api::object::{ObjectKey, Unit};
use brig_api::request::{DeleteResponse, ListQuery, ListResponse, ScaleRequest};
use brig_api::spec::WrittenUnit;
use brig_api::validate::REPLICAS_MAX;
use brig_api::{Code, Kind, NamespacePath, NodeName, Object, ResourceName};
use http::StatusCode;

use crate::app::App;
use crate::clock;
use crate::extract::{Body, PathOf, QueryOf};
use crate::problem::{Answer, Failure};
use crate::route::{Operation, Routes};

/// A path with a namespace and a name.
pub(super) type Named = PathOf<(NamespacePath, ResourceName)>;

pub(super) fn routes() -> Routes {
    let mut routes = Routes::default();
    for kind in Kind::ALL {
        routes = routes.merge(list_routes(kind)).merge(single_routes(kind));
    }
    routes.merge(commands())
}

fn list_routes(kind: Kind) -> Routes {
    let operation = Operation::get(
        format!("/v1/{}", kind.plural()),
        format!("list.{}", kind.plural()),
        format!("All {}", kind.plural()),
    );
    Routes::default().add(
        operation.query::<ListQuery>().answers::<ListResponse>(),
        move |State(app): State<Arc<App>>, QueryOf(query): QueryOf<ListQuery>| async move {
            let (revision, mut items) =
                app.store.object_list(kind, query.namespace.as_ref()).await?;
            items.iter_mut().for_each(|object| add_holdings(&app, object));
            Answer::Ok(Json(ListResponse { revision, items }))
        },
    )
}

fn single_routes(kind: Kind) -> Routes {
    let plural = kind.plural();
    let words = |verb: &str| (format!("{verb}.{kind}"), format!("{verb} one {kind}"));
    let (get_id, get_words) = words("get");
    let (delete_id, delete_words) = words("delete");
    if is_of_cluster(kind) {
        let path = format!("/v1/{plural}/{{name}}");
        return Routes::default()
            .add(
                Operation::get(path.clone(), get_id, get_words).answers::<Object>(),
                move |app: State<Arc<App>>, PathOf(name): PathOf<String>| async move {
                    get(app, cluster_key(kind, name)?).await
                },
            )
            .add(
                Operation::delete(path, delete_id, delete_words).answers::<DeleteResponse>(),
                move |app: State<Arc<App>>, PathOf(name): PathOf<String>| async move {
                    delete(app, cluster_key(kind, name)?).await
                },
            );
    }
    let path = format!("/v1/namespaces/{{namespace}}/{plural}/{{name}}");
    Routes::default()
        .add(
            Operation::get(path.clone(), get_id, get_words).answers::<Object>(),
            move |app: State<Arc<App>>, PathOf((namespace, name)): Named| async move {
                get(app, key(kind, namespace, &name)).await
            },
        )
        .add(
            Operation::delete(path, delete_id, delete_words).answers::<DeleteResponse>(),
            move |app: State<Arc<App>>, PathOf((namespace, name)): Named| async move {
                delete(app, key(kind, namespace, &name)).await
            },
        )
}

fn commands() -> Routes {
    const OF: &str = "/v1/namespaces/{namespace}";
    Routes::default()
        .add(
            Operation::post(
                format!("{OF}/units"),
                "createUnit",
                "Create a lone unit; its name must be free",
            )
            .body::<WrittenUnit>()
            .answers::<Object>(),
            create_unit,
        )
        .add(
            Operation::post(
                format!("{OF}/units/{{name}}/stop"),
                "stopUnit",
                "Stop a unit; it stays listed",
            )
            .answers::<Object>(),
            stop_unit,
        )
        .add(
            Operation::post(
                format!("{OF}/jobs/{{name}}/stop"),
                "stopJob",
                "Stop a job and its units",
            )
            .answers::<Object>(),
            stop_job,
        )
        .add(
            Operation::post(
                format!("{OF}/services/{{name}}/scale"),
                "scaleService",
                "Change the number of units",
            )
            .body::<ScaleRequest>()
            .answers::<Object>(),
            scale_service,
        )
}

fn is_of_cluster(kind: Kind) -> bool {
    matches!(kind, Kind::Namespace | Kind::Node | Kind::Artifact)
}

pub(super) fn key(kind: Kind, namespace: NamespacePath, name: &ResourceName) -> ObjectKey {
    ObjectKey { kind, namespace: Some(namespace), name: name.as_str().to_owned() }
}

/// Names from the path are checked before they reach the database, so that a wrong one is told from a missing one.
pub(super) fn cluster_key(kind: Kind, name: String) -> Answer<ObjectKey> {
    let fault = match kind {
        Kind::Node => NodeName::new(name.as_str()).err().map(|fault| fault.to_string()),
        Kind::Namespace => NamespacePath::new(name.as_str()).err().map(|fault| fault.to_string()),
        _ => match name.rsplit_once(':') {
            Some((repository, tag))
                if brig_api::reference::is_repository(repository)
                    && brig_api::reference::is_tag(tag) =>
            {
                None
            }
            _ => Some(format!(
                "`{name}` is no artifact: expected `repository:tag`, such as `team/app:1`"
            )),
        },
    };
    match fault {
        Some(fault) => Err(Failure::field("name", fault)),
        None => Ok(ObjectKey { kind, namespace: None, name }),
    }
}

async fn get(State(app): State<Arc<App>>, key: ObjectKey) -> Answer<Json<Object>> {
    let mut object = app.store.object_get(&key).await?;
    add_holdings(&app, &mut object);
    Ok(Json(object))
}

/// What is known of a node only while it is in session with this server.
fn add_holdings(app: &App, object: &mut Object) {
    if let Object::Node(node) = object {
        node.held_artifacts = app.nodes.held_artifacts(&node.name);
    }
}

async fn delete(State(app): State<Arc<App>>, key: ObjectKey) -> Answer<Json<DeleteResponse>> {
    let revision = app.store.object_delete(&key, clock::now_ms()).await?;
    Ok(Json(DeleteResponse { revision }))
}

/// The unit of a path.
pub(super) async fn unit(app: &App, namespace: NamespacePath, name: &ResourceName) -> Answer<Unit> {
    let key = key(Kind::Unit, namespace, name);
    match app.store.object_get(&key).await? {
        Object::Unit(unit) => Ok(*unit),
        other => Err(Failure::new(Code::Internal, format!("{key} was read as {}", other.key()))),
    }
}

async fn create_unit(
    State(app): State<Arc<App>>,
    PathOf(namespace): PathOf<NamespacePath>,
    Body(body): Body<serde_json::Value>,
) -> Answer<(StatusCode, Json<Object>)> {
    let spec = super::apply::admit_unit(&app, &namespace, body).await?;
    let unit = app.store.unit_create(spec, clock::now_ms()).await?;
    Ok((StatusCode::OK, Json(Object::Unit(Box::new(unit)))))
}

async fn stop_unit(
    State(app): State<Arc<App>>,
    PathOf((namespace, name)): Named,
) -> Answer<Json<Object>> {
    let unit = app.store.unit_stop(&namespace, &name, clock::now_ms()).await?;
    Ok(Json(Object::Unit(Box::new(unit))))
}

async fn stop_job(
    State(app): State<Arc<App>>,
    PathOf((namespace, name)): Named,
) -> Answer<Json<Object>> {
    let job = app.store.job_stop(&namespace, &name, clock::now_ms()).await?;
    Ok(Json(Object::Job(job)))
}

async fn scale_service(
    State(app): State<Arc<App>>,
    PathOf((namespace, name)): Named,
    Body(ScaleRequest { replicas }): Body<ScaleRequest>,
) -> Answer<Json<Object>> {
    if replicas > REPLICAS_MAX {
        let message = format!("{replicas} is too many: at most {REPLICAS_MAX}");
        return Err(Failure::field("replicas", message));
    }
    let service = app.store.service_scale(&namespace, &name, replicas, clock::now_ms()).await?;
    Ok(Json(Object::Service(service)))
}
