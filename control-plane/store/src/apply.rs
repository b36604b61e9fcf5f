//! What users ask for, taken over into the store: manifests and lone units.

mod differences;

use brig_api::Object;
use brig_api::manifest::Manifest;
use brig_api::object::{
    Config, Desired, Job, JobState, Namespace, ObjectKey, Secret, Service, Unit,
};
use brig_api::problem::FieldError;
use brig_api::request::{Applied, ApplyOutcome, ApplyResponse, MANIFESTS_MAX};
use brig_api::spec::{ConfigSpec, JobSpec, LoneUnitSpec, NamespaceSpec, SecretSpec, ServiceSpec};
use brig_api::{Kind, NamespacePath, UnitId};

use crate::apply::differences::{differences, texts_differences};
use crate::error::StoreError;
use crate::object::key_in;
use crate::store::Store;
use crate::table::config::{config_get, config_put};
use crate::table::job::{job_count, job_get, job_put};
use crate::table::namespace::{namespace_get, namespace_put};
use crate::table::secret::{secret_get, secret_put, secret_texts};
use crate::table::service::{service_count, service_get, service_put};
use crate::table::unit::{unit_by_name, unit_insert};
use crate::write::{Write, in_write};

/// The fields of a job that may change while it exists.
const JOB_FREE_FIELDS: [&str; 4] = ["parallelism", "retries", "retry_after_ms", "labels"];

/// What happened to a resource, and the fields that changed.
type Outcome = (ApplyOutcome, Vec<String>);

impl Store {
    /// Takes over all manifests in one transaction, in their order, or none of them.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for a namespace (or a namespace's parent) that does not exist,
    /// [`StoreError::Conflict`] for a change that is not possible, naming the resource and the way out,
    /// [`StoreError::QuotaExceeded`] for a service or job more than its namespace may have.
    pub async fn apply(
        &self,
        manifests: &[Manifest],
        now_ms: i64,
    ) -> Result<ApplyResponse, StoreError> {
        let (applied, revision) =
            in_write!(self, now_ms, |tx| apply_all(&mut tx, manifests).await)?;
        Ok(ApplyResponse { revision, applied })
    }

    /// What [`Self::apply`] would do, and the resources that it would write, as they would be stored (units with
    /// provisional ids, times of 0). Nothing is kept.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub async fn apply_preview(
        &self,
        manifests: &[Manifest],
    ) -> Result<(Vec<Applied>, Vec<Object>), StoreError> {
        let mut tx = Write::begin(self, 0).await?;
        let applied = apply_all(&mut tx, manifests).await;
        let objects = tx.objects().cloned().collect();
        tx.db.rollback().await?;
        Ok((applied?, objects))
    }

    /// Creates one unit.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when its name is taken, [`StoreError::NotFound`] when its namespace does not exist.
    pub async fn unit_create(&self, spec: LoneUnitSpec, now_ms: i64) -> Result<Unit, StoreError> {
        let (unit, _) = in_write!(self, now_ms, |tx| create_alone(&mut tx, &spec).await)?;
        Ok(unit)
    }

    /// Makes sure that the namespace `default` exists. It is there from the first start on, and cannot be deleted.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn namespace_default_ensure(&self, now_ms: i64) -> Result<(), StoreError> {
        let spec = NamespaceSpec {
            name: NamespacePath::default_namespace(),
            quota: None,
            guarantee: None,
            weight: None,
            max_units: None,
            max_services: None,
            max_jobs: None,
            description: String::new(),
        };
        in_write!(self, now_ms, |tx| namespace_ensure(&mut tx, &spec).await)?;
        Ok(())
    }
}

async fn namespace_ensure(tx: &mut Write, spec: &NamespaceSpec) -> Result<(), StoreError> {
    if namespace_get(&mut tx.db, spec.name.as_str()).await?.is_none() {
        apply_namespace(tx, spec).await?;
    }
    Ok(())
}

async fn apply_all(tx: &mut Write, manifests: &[Manifest]) -> Result<Vec<Applied>, StoreError> {
    if manifests.len() > MANIFESTS_MAX {
        let message = format!(
            "{} are too many for one transaction: at most {MANIFESTS_MAX}",
            manifests.len()
        );
        return Err(StoreError::Invalid(vec![FieldError {
            path: "manifests".to_owned(),
            message,
        }]));
    }
    let mut applied = Vec::with_capacity(manifests.len());
    for (index, manifest) in manifests.iter().enumerate() {
        if let Some(namespace) = manifest.key().namespace {
            namespace_require(tx, &namespace).await?;
        }
        let (outcome, differences) = match manifest {
            Manifest::Namespace(spec) => apply_namespace(tx, spec).await?,
            Manifest::Service(spec) => apply_service(tx, spec).await?,
            Manifest::Job(spec) => apply_job(tx, spec).await?,
            Manifest::Unit(spec) => apply_unit(tx, spec, index).await?,
            Manifest::Secret(spec) => apply_secret(tx, spec).await?,
            Manifest::Config(spec) => apply_config(tx, spec).await?,
        };
        applied.push(Applied { key: manifest.key(), outcome, differences });
    }
    Ok(applied)
}

/// Refuses what belongs to a namespace that does not exist.
async fn namespace_require(tx: &mut Write, namespace: &NamespacePath) -> Result<(), StoreError> {
    namespace_limits(tx, namespace).await.map(drop)
}

/// What the namespace itself may hold.
async fn namespace_limits(
    tx: &mut Write,
    namespace: &NamespacePath,
) -> Result<NamespaceSpec, StoreError> {
    match namespace_get(&mut tx.db, namespace.as_str()).await? {
        Some(namespace) => Ok(namespace.spec),
        None => Err(StoreError::NotFound(namespace_key(namespace))),
    }
}

/// Refuses one more than a namespace may have of a kind.
fn refuse_beyond(
    key: ObjectKey,
    field: &'static str,
    limit: u32,
    count: i64,
) -> Result<(), StoreError> {
    if count < i64::from(limit) {
        return Ok(());
    }
    let kind = key.kind.plural();
    let message = format!(
        "the namespace may have at most {limit} {kind} (`{field}`) and has {count}: delete one that is not needed, or \
         have the limit raised"
    );
    Err(StoreError::QuotaExceeded { key, message })
}

pub(crate) fn namespace_key(namespace: &NamespacePath) -> ObjectKey {
    ObjectKey { kind: Kind::Namespace, namespace: None, name: namespace.as_str().to_owned() }
}

fn created(tx: &mut Write, object: Object) -> Outcome {
    tx.normal(object.key(), "Created", "was created");
    tx.changed(object);
    (ApplyOutcome::Created, Vec::new())
}

fn updated(tx: &mut Write, object: Object, differences: Vec<String>) -> Outcome {
    tx.normal(object.key(), "Updated", differences.join("; "));
    tx.changed(object);
    (ApplyOutcome::Updated, differences)
}

const UNCHANGED: Outcome = (ApplyOutcome::Unchanged, Vec::new());

async fn apply_namespace(tx: &mut Write, spec: &NamespaceSpec) -> Result<Outcome, StoreError> {
    let Some(mut namespace) = namespace_get(&mut tx.db, spec.name.as_str()).await? else {
        if let Some(parent) = spec.name.parent() {
            namespace_require(tx, &parent).await?;
        }
        let namespace = Namespace { spec: spec.clone(), meta: tx.meta() };
        namespace_put(&mut tx.db, &namespace).await?;
        return Ok(created(tx, Object::Namespace(namespace)));
    };
    if namespace.spec == *spec {
        return Ok(UNCHANGED);
    }
    let differences = differences(&namespace.spec, spec)?;
    namespace.spec = spec.clone();
    namespace.meta.revision = tx.revision();
    namespace_put(&mut tx.db, &namespace).await?;
    Ok(updated(tx, Object::Namespace(namespace), differences))
}

fn being_deleted(key: ObjectKey) -> StoreError {
    let message = "it is being deleted: wait until its units have stopped, then apply again";
    StoreError::Conflict { key, message: message.to_owned() }
}

async fn apply_service(tx: &mut Write, spec: &ServiceSpec) -> Result<Outcome, StoreError> {
    let existing = service_get(&mut tx.db, &spec.namespace, spec.name.as_str()).await?;
    let Some(mut service) = existing else {
        if let Some(limit) = namespace_limits(tx, &spec.namespace).await?.max_services {
            let count = service_count(&mut tx.db, &spec.namespace).await?;
            let key = key_in(Kind::Service, &spec.namespace, &spec.name);
            refuse_beyond(key, "max_services", limit, count)?;
        }
        let service =
            Service { spec: spec.clone(), generation: 1, is_deleting: false, meta: tx.meta() };
        service_put(&mut tx.db, &service).await?;
        return Ok(created(tx, Object::Service(service)));
    };
    if service.is_deleting {
        return Err(being_deleted(Object::Service(service).key()));
    }
    if service.spec == *spec {
        return Ok(UNCHANGED);
    }
    let differences = differences(&service.spec, spec)?;
    if service.spec.unit != spec.unit {
        service.generation += 1;
    }
    service.spec = spec.clone();
    service.meta.revision = tx.revision();
    service_put(&mut tx.db, &service).await?;
    Ok(updated(tx, Object::Service(service), differences))
}

async fn apply_job(tx: &mut Write, spec: &JobSpec) -> Result<Outcome, StoreError> {
    let Some(mut job) = job_get(&mut tx.db, &spec.namespace, spec.name.as_str()).await? else {
        if let Some(limit) = namespace_limits(tx, &spec.namespace).await?.max_jobs {
            let count = job_count(&mut tx.db, &spec.namespace).await?;
            let key = key_in(Kind::Job, &spec.namespace, &spec.name);
            refuse_beyond(key, "max_jobs", limit, count)?;
        }
        let job = Job {
            spec: spec.clone(),
            state: JobState::Active,
            succeeded: 0,
            failed: 0,
            is_deleting: false,
            meta: tx.meta(),
        };
        job_put(&mut tx.db, &job).await?;
        return Ok(created(tx, Object::Job(job)));
    };
    if job.is_deleting {
        return Err(being_deleted(Object::Job(job).key()));
    }
    if job.spec == *spec {
        return Ok(UNCHANGED);
    }
    if (job.spec.completions, &job.spec.unit) != (spec.completions, &spec.unit) {
        let changed = differences(&job.spec, spec)?.join("; ");
        let message = format!(
            "only {} of a job can change while it exists: delete it first, or choose another name (changed: {changed})",
            JOB_FREE_FIELDS.join(", ")
        );
        return Err(StoreError::Conflict { key: Object::Job(job).key(), message });
    }
    let differences = differences(&job.spec, spec)?;
    job.spec = spec.clone();
    job.meta.revision = tx.revision();
    job_put(&mut tx.db, &job).await?;
    Ok(updated(tx, Object::Job(job), differences))
}

async fn apply_unit(
    tx: &mut Write,
    spec: &LoneUnitSpec,
    index: usize,
) -> Result<Outcome, StoreError> {
    match unit_by_name(&mut tx.db, &spec.namespace, spec.name.as_str()).await? {
        None => {
            unit_new(tx, spec, index).await?;
            Ok((ApplyOutcome::Created, Vec::new()))
        }
        Some(unit) if is_as_asked(&unit, spec) => Ok(UNCHANGED),
        Some(unit) => Err(name_taken(unit)),
    }
}

fn is_as_asked(unit: &Unit, spec: &LoneUnitSpec) -> bool {
    unit.owner.is_none()
        && unit.desired == Desired::Run
        && !unit.status.state.is_final()
        && *unit.template == spec.unit
        && *unit.labels == spec.labels
        && unit.remove_when_done == spec.remove_when_done
}

fn name_taken(unit: Unit) -> StoreError {
    let state = unit.status.state;
    let message = match &unit.owner {
        Some(owner) => {
            format!("it belongs to {} `{}`: choose another name", owner.kind(), owner.name())
        }
        None if unit.desired == Desired::Remove => {
            "it is being deleted: wait until it has stopped".to_owned()
        }
        None if state.is_final() => format!(
            "it exists and has ended ({}): delete it first, or choose another name",
            state.as_str()
        ),
        None => {
            "it exists, and a unit is not changed in place: delete it first, or choose another name"
                .to_owned()
        }
    };
    StoreError::Conflict { key: Object::Unit(Box::new(unit)).key(), message }
}

async fn create_alone(tx: &mut Write, spec: &LoneUnitSpec) -> Result<Unit, StoreError> {
    namespace_require(tx, &spec.namespace).await?;
    match unit_by_name(&mut tx.db, &spec.namespace, spec.name.as_str()).await? {
        Some(unit) => Err(name_taken(unit)),
        None => unit_new(tx, spec, 0).await,
    }
}

async fn unit_new(tx: &mut Write, spec: &LoneUnitSpec, index: usize) -> Result<Unit, StoreError> {
    let unit = Unit::alone(spec, UnitId::of_revision(tx.revision(), index), tx.meta());
    unit_insert(&mut tx.db, &unit).await?;
    created(tx, Object::Unit(Box::new(unit.clone())));
    Ok(unit)
}

async fn apply_secret(tx: &mut Write, spec: &SecretSpec) -> Result<Outcome, StoreError> {
    let keys = spec.data.keys().cloned().collect();
    let existing = secret_get(&mut tx.db, &spec.namespace, spec.name.as_str()).await?;
    let Some(mut secret) = existing else {
        let (name, namespace) = (spec.name.clone(), spec.namespace.clone());
        let secret = Secret { name, namespace, keys, meta: tx.meta() };
        secret_put(&mut tx.db, &secret, &spec.data).await?;
        return Ok(created(tx, Object::Secret(secret)));
    };
    let texts = secret_texts(&mut tx.db, &spec.namespace, spec.name.as_str()).await?;
    if texts == spec.data {
        return Ok(UNCHANGED);
    }
    secret.keys = keys;
    secret.meta.revision = tx.revision();
    secret_put(&mut tx.db, &secret, &spec.data).await?;
    let differences = texts_differences(&texts, &spec.data);
    Ok(updated(tx, Object::Secret(secret), differences))
}

async fn apply_config(tx: &mut Write, spec: &ConfigSpec) -> Result<Outcome, StoreError> {
    let existing = config_get(&mut tx.db, &spec.namespace, spec.name.as_str()).await?;
    let Some(mut config) = existing else {
        let config = Config { spec: spec.clone(), meta: tx.meta() };
        config_put(&mut tx.db, &config).await?;
        return Ok(created(tx, Object::Config(config)));
    };
    if config.spec == *spec {
        return Ok(UNCHANGED);
    }
    let differences = differences(&config.spec, spec)?;
    config.spec = spec.clone();
    config.meta.revision = tx.revision();
    config_put(&mut tx.db, &config).await?;
    Ok(updated(tx, Object::Config(config), differences))
}
