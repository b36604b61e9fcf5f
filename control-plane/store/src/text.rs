//! The texts of secrets and configs that units use.

use std::collections::{BTreeMap, BTreeSet};

use brig_api::object::{ObjectKey, Unit};
use brig_api::session::Texts;
use brig_api::unit_spec::{EnvValue, UnitTemplate};
use brig_api::{Kind, NamespacePath, Object, ResourceName};

use crate::database::Tx;
use crate::error::StoreError;
use crate::store::Store;
use crate::table::config::config_get;
use crate::table::job::job_list;
use crate::table::secret::{secret_get, secret_texts};
use crate::table::service::service_list;
use crate::table::unit::unit_list;

impl Store {
    /// The texts that the unit's template names, in the variants that it runs: of a mounted secret or config all, else the named keys alone. A key
    /// that is missing is left out.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] names the secret or config that does not exist.
    pub async fn texts_for(&self, unit: &Unit) -> Result<Texts, StoreError> {
        let needs = Needs::of(&unit.template.chosen(unit.grants.runtimes));
        let mut texts = Texts::default();
        if needs.secrets.is_empty() && needs.configs.is_empty() {
            return Ok(texts);
        }
        let missing = |kind, name: &ResourceName| {
            let namespace = Some(unit.namespace.clone());
            StoreError::NotFound(ObjectKey { kind, namespace, name: name.as_str().to_owned() })
        };
        let mut db = self.pools().read().await?;
        for (name, need) in &needs.secrets {
            if secret_get(&mut db, &unit.namespace, name.as_str()).await?.is_none() {
                return Err(missing(Kind::Secret, name));
            }
            let all = secret_texts(&mut db, &unit.namespace, name.as_str()).await?;
            texts.secrets.insert(name.clone(), need.of_texts(all));
        }
        for (name, need) in &needs.configs {
            let config = config_get(&mut db, &unit.namespace, name.as_str()).await?;
            let all = config.ok_or_else(|| missing(Kind::Config, name))?.spec.data;
            texts.configs.insert(name.clone(), need.of_texts(all));
        }
        db.commit().await?;
        Ok(texts)
    }
}

/// How much of a secret or config is needed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Need {
    is_mounted: bool,
    keys: BTreeSet<String>,
}

impl Need {
    fn of_texts(&self, mut texts: BTreeMap<String, String>) -> BTreeMap<String, String> {
        texts.retain(|key, _| self.is_mounted || self.keys.contains(key));
        texts
    }
}

/// The secrets and configs that a template names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Needs {
    secrets: BTreeMap<ResourceName, Need>,
    configs: BTreeMap<ResourceName, Need>,
}

impl Needs {
    fn of(template: &UnitTemplate) -> Self {
        let mut needs = Self::default();
        for task in &template.tasks {
            for (_, value) in task.values() {
                let (need, key) = match value {
                    EnvValue::Text(_) => continue,
                    EnvValue::Secret(from) => {
                        (needs.secrets.entry(from.secret.clone()).or_default(), &from.key)
                    }
                    EnvValue::Config(from) => {
                        (needs.configs.entry(from.config.clone()).or_default(), &from.key)
                    }
                };
                need.keys.insert(key.clone());
            }
            for mount in &task.mounts {
                if let Some(secret) = &mount.secret {
                    needs.secrets.entry(secret.clone()).or_default().is_mounted = true;
                }
                if let Some(config) = &mount.config {
                    needs.configs.entry(config.clone()).or_default().is_mounted = true;
                }
            }
        }
        needs
    }

    fn names(&self, kind: Kind, name: &str) -> bool {
        let needs = if kind == Kind::Secret { &self.secrets } else { &self.configs };
        needs.keys().any(|needed| needed.as_str() == name)
    }
}

/// The live services, jobs and units of the namespace that name a secret or config.
pub(crate) async fn text_users(
    db: &mut Tx,
    key: &ObjectKey,
    namespace: &NamespacePath,
) -> Result<Vec<ObjectKey>, StoreError> {
    let uses = |template: &UnitTemplate| Needs::of(template).names(key.kind, &key.name);
    let mut users = Vec::new();
    for service in service_list(db, Some(namespace)).await? {
        if service.spec.namespace == *namespace && !service.is_deleting && uses(&service.spec.unit)
        {
            users.push(Object::Service(service).key());
        }
    }
    for job in job_list(db, Some(namespace)).await? {
        let is_live = !job.is_deleting && !job.state.is_final();
        if job.spec.namespace == *namespace && is_live && uses(&job.spec.unit) {
            users.push(Object::Job(job).key());
        }
    }
    for unit in unit_list(db, Some(namespace)).await? {
        if unit.namespace == *namespace && !unit.status.state.is_final() && uses(&unit.template) {
            users.push(Object::Unit(Box::new(unit)).key());
        }
    }
    Ok(users)
}
