//! The requests of the API, one method each.

use brig_api::change::Event;
use brig_api::checkpoint::CheckpointView;
use brig_api::explain::{Explanation, NodeVerdict};
use brig_api::manifest::Manifest;
use brig_api::object::{Job, Object, ObjectKey, Service, Unit};
use brig_api::request::{
    ApplyRequest, ApplyResponse, ListResponse, PlanResponse, ScaleRequest, SqlRequest, SqlResponse,
    VersionResponse,
};
use brig_api::simulate::{SimulateRequest, Simulation};
use brig_api::spec::WrittenUnit;
use brig_api::unit_spec::UnitSpec;
use brig_api::usage::Usage;
use brig_api::{Kind, NamespacePath, NodeName, ResourceName};
use reqwest::Method;

use crate::error::ClientError;
use crate::http::{Client, escaped, list_path, object_path};

/// Which events to list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EventQuery {
    /// Of this namespace and those below it.
    pub namespace: Option<NamespacePath>,
    /// About this kind of resource.
    pub kind: Option<Kind>,
    /// About the resource of this name.
    pub name: Option<String>,
    /// Only the newest so many.
    pub limit: Option<u32>,
}

impl EventQuery {
    fn path(&self) -> String {
        let pairs = [
            ("namespace", self.namespace.as_ref().map(ToString::to_string)),
            ("kind", self.kind.map(|kind| kind.to_string())),
            ("name", self.name.clone()),
            ("limit", self.limit.map(|limit| limit.to_string())),
        ];
        let pairs = pairs
            .into_iter()
            .filter_map(|(key, value)| value.map(|value| format!("{key}={}", escaped(&value))));
        format!("/v1/events?{}", pairs.collect::<Vec<_>>().join("&"))
    }
}

impl Client {
    /// Versions of the server and its data.
    ///
    /// # Errors
    /// [`ClientError`], as for every method here.
    pub async fn version(&self) -> Result<VersionResponse, ClientError> {
        self.get_json("/v1/version").await
    }

    /// Creates or changes resources, all or none.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn apply(
        &self,
        manifests: Vec<Manifest<UnitSpec>>,
    ) -> Result<ApplyResponse, ClientError> {
        self.post_json("/v1/apply", &ApplyRequest { manifests }).await
    }

    /// What an apply would do, and where units would go.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn plan(
        &self,
        manifests: Vec<Manifest<UnitSpec>>,
    ) -> Result<PlanResponse, ClientError> {
        self.post_json("/v1/plan", &ApplyRequest { manifests }).await
    }

    /// What the scheduler would do if this happened.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn simulate(&self, request: &SimulateRequest) -> Result<Simulation, ClientError> {
        self.post_json("/v1/simulate", request).await
    }

    /// Every resource of a kind; those of `namespace` and below it where one is named.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn list(
        &self,
        kind: Kind,
        namespace: Option<&NamespacePath>,
    ) -> Result<ListResponse, ClientError> {
        self.get_json(&list_path(kind, namespace)).await
    }

    /// One resource.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn get(&self, key: &ObjectKey) -> Result<Object, ClientError> {
        self.get_json(&object_path(key)).await
    }

    /// One unit.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn unit(&self, namespace: &NamespacePath, name: &str) -> Result<Unit, ClientError> {
        match self.get(&unit_key(namespace, name)).await? {
            Object::Unit(unit) => Ok(*unit),
            other => Err(self.unexpected(format!("a {} for a unit", other.key().kind))),
        }
    }

    /// Deletes a resource. What runs is stopped first: it may be there for a while yet.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn delete(&self, key: &ObjectKey) -> Result<(), ClientError> {
        self.send(self.request(Method::DELETE, &object_path(key))).await.map(drop)
    }

    /// Creates a unit; its name must be free.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn unit_create(&self, spec: &WrittenUnit) -> Result<Unit, ClientError> {
        self.post_json(&format!("/v1/namespaces/{}/units", escaped(spec.namespace.as_str())), spec)
            .await
    }

    /// Stops a unit.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn unit_stop(
        &self,
        namespace: &NamespacePath,
        name: &str,
    ) -> Result<Unit, ClientError> {
        self.post_json(&format!("{}/stop", object_path(&unit_key(namespace, name))), &()).await
    }

    /// Stops a job.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn job_stop(
        &self,
        namespace: &NamespacePath,
        name: &str,
    ) -> Result<Job, ClientError> {
        let key = ObjectKey {
            kind: Kind::Job,
            namespace: Some(namespace.clone()),
            name: name.to_owned(),
        };
        self.post_json(&format!("{}/stop", object_path(&key)), &()).await
    }

    /// Changes the number of a service's units.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn service_scale(
        &self,
        namespace: &NamespacePath,
        name: &ResourceName,
        replicas: u32,
    ) -> Result<Service, ClientError> {
        let key = ObjectKey {
            kind: Kind::Service,
            namespace: Some(namespace.clone()),
            name: name.to_string(),
        };
        self.post_json(&format!("{}/scale", object_path(&key)), &ScaleRequest { replicas }).await
    }

    /// Where a waiting unit would go now, or why it can't; for others the decision that placed them.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn why(
        &self,
        namespace: &NamespacePath,
        unit: &str,
    ) -> Result<Explanation, ClientError> {
        self.get_json(&format!("{}/why", object_path(&unit_key(namespace, unit)))).await
    }

    /// What one node says to a unit: could it go there?
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn why_on(
        &self,
        namespace: &NamespacePath,
        unit: &str,
        node: &NodeName,
    ) -> Result<NodeVerdict, ClientError> {
        let path = object_path(&unit_key(namespace, unit));
        self.get_json(&format!("{path}/why?node={}", escaped(node.as_str()))).await
    }

    /// The decisions about a unit that are kept, newest first.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn why_history(
        &self,
        namespace: &NamespacePath,
        unit: &str,
    ) -> Result<Vec<Explanation>, ClientError> {
        let path = object_path(&unit_key(namespace, unit));
        self.get_json(&format!("{path}/why/history")).await
    }

    /// What a unit used so far, as its node last told.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn usage(&self, namespace: &NamespacePath, unit: &str) -> Result<Usage, ClientError> {
        let path = object_path(&unit_key(namespace, unit));
        self.get_json(&format!("{path}/usage")).await
    }

    /// When the tasks of a unit last saved where they are, and how much.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn checkpoints(
        &self,
        namespace: &NamespacePath,
        unit: &str,
    ) -> Result<Vec<CheckpointView>, ClientError> {
        let path = object_path(&unit_key(namespace, unit));
        self.get_json(&format!("{path}/checkpoints")).await
    }

    /// What happened, newest last.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn events(&self, query: &EventQuery) -> Result<Vec<Event>, ClientError> {
        self.get_json(&query.path()).await
    }

    /// Runs a SELECT.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn sql(&self, query: &str) -> Result<SqlResponse, ClientError> {
        self.post_json("/v1/sql", &SqlRequest { query: query.to_owned() }).await
    }
}

pub(crate) fn unit_key(namespace: &NamespacePath, name: &str) -> ObjectKey {
    ObjectKey { kind: Kind::Unit, namespace: Some(namespace.clone()), name: name.to_owned() }
}
