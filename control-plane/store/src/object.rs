//! Reading and deleting resources of every kind.

use brig_api::object::{Desired, NodeState, ObjectKey, Unit};
use brig_api::{Kind, NamespacePath, Object, ResourceName, Revision, UnitId};

use crate::database::Tx;
use crate::error::StoreError;
use crate::store::{Store, cluster_revision};
use crate::table::artifact::{artifact_get, artifact_list, artifact_remove};
use crate::table::config::{config_get, config_list, config_remove};
use crate::table::job::{job_get, job_list, job_put};
use crate::table::namespace::{namespace_content, namespace_get, namespace_list, namespace_remove};
use crate::table::node::{node_get, node_list, node_remove};
use crate::table::secret::{secret_get, secret_list, secret_remove};
use crate::table::service::{service_get, service_list, service_put};
use crate::table::unit::{unit_by_id, unit_by_name, unit_list, unit_list_on_node, unit_update};
use crate::text::text_users;
use crate::write::{Write, in_write};

impl Store {
    /// The resource.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]
    pub async fn object_get(&self, key: &ObjectKey) -> Result<Object, StoreError> {
        let mut db = self.pools().read().await?;
        let object = get(&mut db, key).await?;
        db.commit().await?;
        object.ok_or_else(|| StoreError::NotFound(key.clone()))
    }

    /// All resources of a kind, in the order of namespace and name, and the revision at which they were read.
    /// With a namespace: those in it and below it (of kinds that have one).
    ///
    /// # Errors
    /// When the database fails.
    pub async fn object_list(
        &self,
        kind: Kind,
        namespace: Option<&NamespacePath>,
    ) -> Result<(Revision, Vec<Object>), StoreError> {
        let mut db = self.pools().read().await?;
        let revision = cluster_revision(&mut db).await?;
        let objects = list(&mut db, kind, namespace).await?;
        db.commit().await?;
        Ok((revision, objects))
    }

    /// Deletes a resource, or has it deleted: services and jobs go when their units have, units when they ended.
    /// Gives the revision at which that was so.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::InUse`] for a namespace with anything in it, a secret or config that
    /// a live service, job or unit names, a node that is ready or has live units; [`StoreError::Conflict`] for the
    /// namespace `default`.
    pub async fn object_delete(
        &self,
        key: &ObjectKey,
        now_ms: i64,
    ) -> Result<Revision, StoreError> {
        let ((), revision) = in_write!(self, now_ms, |tx| delete(&mut tx, key).await)?;
        Ok(revision)
    }

    /// The unit of that id, unless it was removed.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn unit_by_id(&self, id: &UnitId) -> Result<Option<Unit>, StoreError> {
        let mut db = self.pools().read().await?;
        let unit = unit_by_id(&mut db, id).await?;
        db.commit().await?;
        Ok(unit)
    }
}

async fn get(db: &mut Tx, key: &ObjectKey) -> Result<Option<Object>, StoreError> {
    let name = key.name.as_str();
    Ok(match (key.kind, &key.namespace) {
        (Kind::Namespace, _) => namespace_get(db, name).await?.map(Object::Namespace),
        (Kind::Node, _) => node_get(db, name).await?.map(Object::Node),
        (Kind::Artifact, _) => match name.rsplit_once(':') {
            Some((repository, tag)) => {
                artifact_get(db, repository, tag).await?.map(Object::Artifact)
            }
            None => None,
        },
        (Kind::Service, Some(ns)) => service_get(db, ns, name).await?.map(Object::Service),
        (Kind::Job, Some(ns)) => job_get(db, ns, name).await?.map(Object::Job),
        (Kind::Unit, Some(ns)) => {
            unit_by_name(db, ns, name).await?.map(|unit| Object::Unit(Box::new(unit)))
        }
        (Kind::Secret, Some(ns)) => secret_get(db, ns, name).await?.map(Object::Secret),
        (Kind::Config, Some(ns)) => config_get(db, ns, name).await?.map(Object::Config),
        (Kind::Service | Kind::Job | Kind::Unit | Kind::Secret | Kind::Config, None) => None,
    })
}

/// What identifies a resource of a namespace.
pub(crate) fn key_in(kind: Kind, namespace: &NamespacePath, name: &ResourceName) -> ObjectKey {
    ObjectKey { kind, namespace: Some(namespace.clone()), name: name.as_str().to_owned() }
}

/// What identifies a unit by its name.
pub(crate) fn unit_key(unit: &Unit) -> ObjectKey {
    key_in(Kind::Unit, &unit.namespace, &unit.name)
}

async fn list(
    db: &mut Tx,
    kind: Kind,
    namespace: Option<&NamespacePath>,
) -> Result<Vec<Object>, StoreError> {
    fn objects<T>(items: Vec<T>, object: fn(T) -> Object) -> Vec<Object> {
        items.into_iter().map(object).collect()
    }
    Ok(match kind {
        Kind::Namespace => objects(namespace_list(db, namespace).await?, Object::Namespace),
        Kind::Node => objects(node_list(db).await?, Object::Node),
        Kind::Service => objects(service_list(db, namespace).await?, Object::Service),
        Kind::Job => objects(job_list(db, namespace).await?, Object::Job),
        Kind::Unit => objects(unit_list(db, namespace).await?, |unit| Object::Unit(Box::new(unit))),
        Kind::Secret => objects(secret_list(db, namespace).await?, Object::Secret),
        Kind::Config => objects(config_list(db, namespace).await?, Object::Config),
        Kind::Artifact => objects(artifact_list(db).await?, Object::Artifact),
    })
}

async fn delete(tx: &mut Write, key: &ObjectKey) -> Result<(), StoreError> {
    let Some(object) = get(&mut tx.db, key).await? else {
        return Err(StoreError::NotFound(key.clone()));
    };
    match object {
        Object::Namespace(_) => delete_namespace(tx, key).await,
        Object::Node(node) => {
            let live = unit_list_on_node(&mut tx.db, &key.name).await?;
            if node.state == NodeState::Ready || !live.is_empty() {
                return Err(node_in_use(key, node.state, &live));
            }
            node_remove(&mut tx.db, &key.name).await?;
            deleted(tx, key);
            Ok(())
        }
        Object::Service(mut service) if !service.is_deleting => {
            service.is_deleting = true;
            service.meta.revision = tx.revision();
            service_put(&mut tx.db, &service).await?;
            deleting(tx, Object::Service(service));
            Ok(())
        }
        Object::Job(mut job) if !job.is_deleting => {
            job.is_deleting = true;
            job.meta.revision = tx.revision();
            job_put(&mut tx.db, &job).await?;
            deleting(tx, Object::Job(job));
            Ok(())
        }
        Object::Unit(mut unit) if unit.desired != Desired::Remove => {
            unit.desired = Desired::Remove;
            unit.meta.revision = tx.revision();
            unit_update(&mut tx.db, &unit).await?;
            deleting(tx, Object::Unit(unit));
            Ok(())
        }
        // It is being deleted already.
        Object::Service(_) | Object::Job(_) | Object::Unit(_) => Ok(()),
        Object::Secret(secret) => {
            refuse_if_used(tx, key, &secret.namespace).await?;
            secret_remove(&mut tx.db, &secret.namespace, &key.name).await?;
            deleted(tx, key);
            Ok(())
        }
        Object::Config(config) => {
            refuse_if_used(tx, key, &config.spec.namespace).await?;
            config_remove(&mut tx.db, &config.spec.namespace, &key.name).await?;
            deleted(tx, key);
            Ok(())
        }
        Object::Artifact(artifact) => {
            artifact_remove(&mut tx.db, &artifact.repository, &artifact.tag).await?;
            deleted(tx, key);
            Ok(())
        }
    }
}

fn deleted(tx: &mut Write, key: &ObjectKey) {
    tx.normal(key.clone(), "Deleted", "was deleted");
    tx.deleted(key.clone());
}

fn deleting(tx: &mut Write, object: Object) {
    tx.normal(object.key(), "Deleting", "is being deleted");
    tx.changed(object);
}

async fn delete_namespace(tx: &mut Write, key: &ObjectKey) -> Result<(), StoreError> {
    if key.name == NamespacePath::default_namespace().as_str() {
        let message = "the namespace of those who name none stays".to_owned();
        return Err(StoreError::Conflict { key: key.clone(), message });
    }
    let content = namespace_content(&mut tx.db, &key.name).await?;
    if !content.is_empty() {
        let content: Vec<_> =
            content.iter().map(|(kind, name)| format!("{kind} `{name}`")).collect();
        let message = format!("it holds {}: delete what is in it first", content.join(", "));
        return Err(StoreError::InUse { key: key.clone(), message });
    }
    namespace_remove(&mut tx.db, &key.name).await?;
    deleted(tx, key);
    Ok(())
}

fn node_in_use(key: &ObjectKey, state: NodeState, live: &[Unit]) -> StoreError {
    let message = match live.first() {
        _ if state == NodeState::Ready => "it is ready: stop its agent first".to_owned(),
        Some(unit) => format!(
            "{} of its units have not been given up yet, such as `{}` in namespace `{}`",
            live.len(),
            unit.name,
            unit.namespace
        ),
        None => String::new(),
    };
    StoreError::InUse { key: key.clone(), message }
}

async fn refuse_if_used(
    tx: &mut Write,
    key: &ObjectKey,
    namespace: &NamespacePath,
) -> Result<(), StoreError> {
    let users = text_users(&mut tx.db, key, namespace).await?;
    let Some(first) = users.first() else {
        return Ok(());
    };
    let others = match users.len() - 1 {
        0 => String::new(),
        others => format!(" and {others} more"),
    };
    let message = format!("{} `{}`{others} names it: delete that first", first.kind, first.name);
    Err(StoreError::InUse { key: key.clone(), message })
}
