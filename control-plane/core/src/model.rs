//! The cluster as the scheduler sees it: every namespace, node, service, job and unit at one revision.

use std::collections::BTreeMap;
use std::sync::Arc;

use brig_api::change::Change;
use brig_api::object::{Job, Namespace, Node, Object, Service, Unit};
use brig_api::{NamespacePath, NodeName, PlanSequence, ResourceName, Revision, UnitId};
use serde::{Deserialize, Serialize};

/// The cluster at one revision. Kept up to date from the change feed; can be dumped and replayed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Model {
    /// The newest revision in it.
    pub revision: Revision,
    /// The newest committed plan.
    pub plan: PlanSequence,
    /// By path.
    pub(crate) namespaces: BTreeMap<NamespacePath, Namespace>,
    /// By name.
    pub(crate) nodes: BTreeMap<NodeName, Node>,
    /// By namespace, then name.
    pub(crate) services: BTreeMap<NamespacePath, BTreeMap<ResourceName, Service>>,
    /// By namespace, then name.
    pub(crate) jobs: BTreeMap<NamespacePath, BTreeMap<ResourceName, Job>>,
    /// By id.
    pub(crate) units: BTreeMap<UnitId, Arc<Unit>>,
}

impl Model {
    /// A model of these objects; kinds that the scheduler does not look at are left out.
    #[must_use]
    pub fn new(
        revision: Revision,
        plan: PlanSequence,
        objects: impl IntoIterator<Item = Object>,
    ) -> Self {
        let mut model = Self { revision, plan, ..Self::default() };
        for object in objects {
            model.put(object);
        }
        model
    }

    /// Takes over one change of the feed. Changes must come in the feed's order; one that is already in the model
    /// changes nothing.
    pub fn apply(&mut self, change: &Change) {
        match &change.object {
            Some(object) => self.put(object.clone()),
            None => self.remove(&change.key),
        }
        self.revision = self.revision.max(change.revision);
    }

    /// All namespaces, by path.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values()
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The node of that name.
    #[must_use]
    pub fn node(&self, name: &NodeName) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// All services, by namespace and name.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values().flat_map(BTreeMap::values)
    }

    /// The service of that name.
    #[must_use]
    pub fn service(&self, namespace: &NamespacePath, name: &ResourceName) -> Option<&Service> {
        self.services.get(namespace)?.get(name)
    }

    /// All jobs, by namespace and name.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values().flat_map(BTreeMap::values)
    }

    /// The job of that name.
    #[must_use]
    pub fn job(&self, namespace: &NamespacePath, name: &ResourceName) -> Option<&Job> {
        self.jobs.get(namespace)?.get(name)
    }

    /// All units, by id.
    pub fn units(&self) -> impl Iterator<Item = &Unit> {
        self.units.values().map(|unit| &**unit)
    }

    /// The unit of that id.
    #[must_use]
    pub fn unit(&self, id: &UnitId) -> Option<&Unit> {
        self.units.get(id).map(|unit| &**unit)
    }

    /// How many units there are.
    #[must_use]
    pub fn unit_count(&self) -> usize {
        self.units.len()
    }

    /// Takes over an object as it is now.
    pub fn put(&mut self, object: Object) {
        match object {
            Object::Namespace(namespace) => {
                self.namespaces.insert(namespace.spec.name.clone(), namespace);
            }
            Object::Node(node) => {
                self.nodes.insert(node.name.clone(), node);
            }
            Object::Service(service) => {
                let names = self.services.entry(service.spec.namespace.clone()).or_default();
                names.insert(service.spec.name.clone(), service);
            }
            Object::Job(job) => {
                let names = self.jobs.entry(job.spec.namespace.clone()).or_default();
                names.insert(job.spec.name.clone(), job);
            }
            Object::Unit(unit) => {
                self.units.insert(unit.id.clone(), Arc::new(*unit));
            }
            Object::Secret(_) | Object::Config(_) | Object::Artifact(_) => {}
        }
    }

    fn remove(&mut self, key: &brig_api::object::ObjectKey) {
        use brig_api::Kind;
        let namespace = key.namespace.as_ref();
        match key.kind {
            Kind::Namespace => self.namespaces.retain(|path, _| path.as_str() != key.name),
            Kind::Node => self.nodes.retain(|name, _| name.as_str() != key.name),
            Kind::Service => {
                if let Some(names) =
                    namespace.and_then(|namespace| self.services.get_mut(namespace))
                {
                    names.retain(|name, _| name.as_str() != key.name);
                }
            }
            Kind::Job => {
                if let Some(names) = namespace.and_then(|namespace| self.jobs.get_mut(namespace)) {
                    names.retain(|name, _| name.as_str() != key.name);
                }
            }
            Kind::Unit => {
                let is_it = |unit: &Unit| {
                    unit.name.as_str() == key.name && Some(&unit.namespace) == namespace
                };
                self.units.retain(|_, unit| !is_it(unit));
            }
            Kind::Secret | Kind::Config | Kind::Artifact => {}
        }
    }
}
