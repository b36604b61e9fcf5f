//! The cluster as the scheduler sees it: every namespace, node, service, job and unit at one revision.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use brig_api::change::Change;
use brig_api::lifecycle::UnitState;
use brig_api::object::{Desired, Job, Namespace, Node, Object, ObjectKey, Owner, Service, Unit};
use brig_api::{Kind, NamespacePath, NodeName, PlanSequence, ResourceName, Revision, UnitId};
use serde::{Deserialize, Serialize};

use crate::agenda::{Agenda, Concern};
use crate::holdings::Holdings;
use crate::index::{Index, NodeSlot};
use crate::reconcile::evicting;

/// The cluster at one revision. Kept up to date from the change feed; can be dumped and replayed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(from = "Snapshot", into = "Snapshot")]
pub struct Model {
    /// The newest revision in it.
    pub revision: Revision,
    /// The newest committed plan.
    pub plan: PlanSequence,
    pub(crate) objects: Objects,
    pub(crate) index: Index,
    pub(crate) agenda: Agenda,
}

/// What is kept as it was stored, but for units and nodes, which the index keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Objects {
    /// By path.
    pub(crate) namespaces: BTreeMap<NamespacePath, Namespace>,
    /// By name.
    pub(crate) nodes: BTreeMap<NodeName, Arc<Node>>,
    /// What nodes say they hold, by name: also of one that the feed has not told of yet.
    pub(crate) holdings: BTreeMap<NodeName, Holdings>,
    /// By namespace, then name.
    pub(crate) services: BTreeMap<NamespacePath, BTreeMap<ResourceName, Arc<Service>>>,
    /// By namespace, then name.
    pub(crate) jobs: BTreeMap<NamespacePath, BTreeMap<ResourceName, Arc<Job>>>,
}

/// A model written down: everything else in it follows from this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Snapshot {
    revision: Revision,
    plan: PlanSequence,
    namespaces: Vec<Namespace>,
    nodes: Vec<Arc<Node>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    holdings: BTreeMap<NodeName, Holdings>,
    services: Vec<Arc<Service>>,
    jobs: Vec<Arc<Job>>,
    units: Vec<Arc<Unit>>,
}

impl From<Model> for Snapshot {
    fn from(model: Model) -> Self {
        Self {
            revision: model.revision,
            plan: model.plan,
            namespaces: model.objects.namespaces.values().cloned().collect(),
            nodes: model.objects.nodes.values().cloned().collect(),
            holdings: model.objects.holdings,
            services: model.objects.services.values().flat_map(BTreeMap::values).cloned().collect(),
            jobs: model.objects.jobs.values().flat_map(BTreeMap::values).cloned().collect(),
            units: model.index.units().cloned().collect(),
        }
    }
}

impl From<Snapshot> for Model {
    fn from(snapshot: Snapshot) -> Self {
        let mut model = Self::new(snapshot.revision, snapshot.plan, []);
        for namespace in snapshot.namespaces {
            model.put(Object::Namespace(namespace));
        }
        for node in snapshot.nodes {
            model.node_put(node);
        }
        for (node, holdings) in snapshot.holdings {
            model.hold(&node, Some(holdings));
        }
        for service in snapshot.services {
            model.service_put(service);
        }
        for job in snapshot.jobs {
            model.job_put(job);
        }
        for unit in snapshot.units {
            model.unit_put(unit);
        }
        model
    }
}

/// Equal when they were made of equal objects; what reconcilers have looked at already is left out.
impl PartialEq for Model {
    fn eq(&self, other: &Self) -> bool {
        (self.revision, self.plan, &self.objects) == (other.revision, other.plan, &other.objects)
            && self.index.unit_count() == other.index.unit_count()
            && self.index.units().eq(other.index.units())
    }
}

impl Eq for Model {}

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
        self.objects.namespaces.values()
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.objects.nodes.values().map(|node| &**node)
    }

    /// The node of that name.
    #[must_use]
    pub fn node(&self, name: &NodeName) -> Option<&Node> {
        self.objects.nodes.get(name).map(|node| &**node)
    }

    /// All services, by namespace and name.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.objects.services.values().flat_map(BTreeMap::values).map(|service| &**service)
    }

    /// The service of that name.
    #[must_use]
    pub fn service(&self, namespace: &NamespacePath, name: &ResourceName) -> Option<&Service> {
        self.objects.services.get(namespace)?.get(name).map(|service| &**service)
    }

    /// All jobs, by namespace and name.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.objects.jobs.values().flat_map(BTreeMap::values).map(|job| &**job)
    }

    /// The job of that name.
    #[must_use]
    pub fn job(&self, namespace: &NamespacePath, name: &ResourceName) -> Option<&Job> {
        self.objects.jobs.get(namespace)?.get(name).map(|job| &**job)
    }

    /// All units, by id.
    pub fn units(&self) -> impl Iterator<Item = &Unit> {
        self.index.units().map(|unit| &**unit)
    }

    /// The unit of that id.
    #[must_use]
    pub fn unit(&self, id: &UnitId) -> Option<&Unit> {
        self.index.unit(self.index.slot(id)?).map(|unit| &**unit)
    }

    /// How many units there are.
    #[must_use]
    pub fn unit_count(&self) -> usize {
        self.index.unit_count()
    }

    /// Looks at everything again in the next pass: for somebody who was told that a decision was left out.
    pub fn doubt_everything(&mut self) {
        let nodes = self.objects.nodes.keys().cloned().map(Concern::Node);
        let services = self.services().map(|service| {
            Concern::Service(service.spec.namespace.clone(), service.spec.name.clone())
        });
        let jobs =
            self.jobs().map(|job| Concern::Job(job.spec.namespace.clone(), job.spec.name.clone()));
        let units = self.units().map(|unit| Concern::Unit(unit.id.clone()));
        let all: Vec<_> = nodes.chain(services).chain(jobs).chain(units).collect();
        for concern in all {
            self.agenda.add(concern);
        }
        self.index.hope_again();
    }

    /// Takes over what a node says it holds; None when nobody knows any more. True when units that wait may be helped by it:
    /// only then is another pass worth while.
    pub fn hold(&mut self, node: &NodeName, holdings: Option<Holdings>) -> bool {
        match &holdings {
            Some(holdings) => self.objects.holdings.insert(node.clone(), holdings.clone()),
            None => self.objects.holdings.remove(node),
        };
        let slot = self.index.nodes.slot(node);
        slot.is_some_and(|slot| self.index.node_holds(slot, holdings))
    }

    /// What nodes say they hold, by name.
    pub fn holdings(&self) -> impl Iterator<Item = (&NodeName, &Holdings)> {
        self.objects.holdings.iter()
    }

    /// Takes over an object as it is now.
    pub fn put(&mut self, object: Object) {
        match object {
            Object::Namespace(namespace) => {
                self.index.namespace_put(&namespace);
                self.objects.namespaces.insert(namespace.spec.name.clone(), namespace);
                self.index.hope_again();
            }
            Object::Node(node) => self.node_put(Arc::new(node)),
            Object::Service(service) => self.service_put(Arc::new(service)),
            Object::Job(job) => self.job_put(Arc::new(job)),
            Object::Unit(unit) => self.unit_put(Arc::new(*unit)),
            Object::Secret(_) | Object::Config(_) | Object::Artifact(_) => {}
        }
    }

    fn node_put(&mut self, node: Arc<Node>) {
        self.agenda.add(Concern::Node(node.name.clone()));
        let name = node.name.clone();
        self.objects.nodes.insert(name.clone(), Arc::clone(&node));
        self.index.node_put(node);
        if let Some(holdings) = self.objects.holdings.get(&name)
            && let Some(slot) = self.index.nodes.slot(&name)
        {
            self.index.node_holds(slot, Some(holdings.clone()));
        }
        self.index.hope_again();
    }

    fn service_put(&mut self, service: Arc<Service>) {
        let (namespace, name) = (service.spec.namespace.clone(), service.spec.name.clone());
        self.agenda.add(Concern::Service(namespace.clone(), name.clone()));
        self.objects.services.entry(namespace).or_default().insert(name, service);
        self.index.hope_again();
    }

    fn job_put(&mut self, job: Arc<Job>) {
        let (namespace, name) = (job.spec.namespace.clone(), job.spec.name.clone());
        self.agenda.add(Concern::Job(namespace.clone(), name.clone()));
        if job.is_deleting {
            // What the job counted, and kept for that, may go.
            self.concern_units_of(&namespace, Kind::Job, &name);
        }
        self.objects.jobs.entry(namespace).or_default().insert(name, job);
    }

    pub(crate) fn unit_put(&mut self, unit: Arc<Unit>) {
        self.concern_unit(&unit);
        let id = unit.id.clone();
        let old = self.index.slot(&id).and_then(|slot| self.index.unit(slot));
        let has_guarantees = self.index.tenants.has_guarantees();
        if may_help_others(old.map(|old| &**old), &unit, has_guarantees) {
            self.index.hope_again();
        }
        self.index.unit_put(unit);
    }

    fn concern_unit(&mut self, unit: &Unit) {
        self.agenda.add(Concern::Unit(unit.id.clone()));
        // Whether there is anything left to give up with a node that is out of reach, or to send away from one that was
        // tainted before it was known that the unit is there.
        if let Some(node) = &unit.node
            && let Some(slot) = self.index.nodes.slot(node)
            && (!self.index.nodes.is_ready[slot] || self.is_repelled(unit, slot))
        {
            self.agenda.add(Concern::Node(node.clone()));
        }
        match &unit.owner {
            Some(Owner::Service { name, .. }) => {
                self.agenda.add(Concern::Service(unit.namespace.clone(), name.clone()));
            }
            Some(Owner::Job { name, .. }) => {
                self.agenda.add(Concern::Job(unit.namespace.clone(), name.clone()));
            }
            None => {}
        }
    }

    /// Is the unit to leave the node for a taint?
    fn is_repelled(&self, unit: &Unit, slot: NodeSlot) -> bool {
        let tolerations = &unit.template.placement.tolerations;
        let node = self.index.nodes.get(slot);
        unit.desired != Desired::Remove
            && node.is_some_and(|node| evicting(&node.facts.taints, tolerations).is_some())
    }

    pub(crate) fn unit_remove(&mut self, id: &UnitId) {
        let Some(slot) = self.index.slot(id) else { return };
        if let Some(unit) = self.index.unit(slot).cloned() {
            self.concern_unit(&unit);
        }
        self.index.unit_remove(slot);
        self.index.hope_again();
    }

    pub(crate) fn service_remove(&mut self, namespace: &NamespacePath, name: &ResourceName) {
        self.concern_units_of(namespace, Kind::Service, name);
        self.agenda.add(Concern::Service(namespace.clone(), name.clone()));
        if let Some(names) = self.objects.services.get_mut(namespace) {
            names.remove(name);
            if names.is_empty() {
                self.objects.services.remove(namespace);
            }
        }
    }

    pub(crate) fn job_remove(&mut self, namespace: &NamespacePath, name: &ResourceName) {
        self.concern_units_of(namespace, Kind::Job, name);
        self.agenda.add(Concern::Job(namespace.clone(), name.clone()));
        if let Some(names) = self.objects.jobs.get_mut(namespace) {
            names.remove(name);
            if names.is_empty() {
                self.objects.jobs.remove(namespace);
            }
        }
    }

    /// Units whose service or job is gone are wanted no more.
    fn concern_units_of(&mut self, namespace: &NamespacePath, kind: Kind, name: &ResourceName) {
        let key = (namespace.clone(), kind, name.clone());
        let ids: Vec<_> = self.index.units_of(&key).map(|(_, unit)| unit.id.clone()).collect();
        for id in ids {
            self.agenda.add(Concern::Unit(id));
        }
    }

    fn remove(&mut self, key: &ObjectKey) {
        match (key.kind, &key.namespace) {
            (Kind::Namespace, _) => {
                self.objects.namespaces.retain(|path, _| path.as_str() != key.name);
                self.index.namespace_remove(&key.name);
                self.index.hope_again();
            }
            (Kind::Node, _) => {
                if let Ok(name) = NodeName::new(key.name.as_str()) {
                    self.agenda.add(Concern::Node(name.clone()));
                    self.objects.nodes.remove(&name);
                    for unit in self.index.node_remove(&name) {
                        self.concern_unit(&unit);
                    }
                    self.index.hope_again();
                }
            }
            (Kind::Service, Some(namespace)) => {
                if let Ok(name) = ResourceName::new(key.name.as_str()) {
                    self.service_remove(namespace, &name);
                }
            }
            (Kind::Job, Some(namespace)) => {
                if let Ok(name) = ResourceName::new(key.name.as_str()) {
                    self.job_remove(namespace, &name);
                }
            }
            (Kind::Unit, Some(namespace)) => {
                let id = self.index.unit_named(namespace, &key.name).map(|unit| unit.id.clone());
                if let Some(id) = id {
                    self.unit_remove(&id);
                }
            }
            _ => {}
        }
    }

    /// Notes which nodes are in touch. Those that came or went, and the services with units there, are looked at again.
    pub(crate) fn listen(&mut self, silent: &BTreeSet<NodeName>) {
        self.index.nodes.refresh_ranks();
        let slots: Vec<_> = self.index.nodes.in_order().collect();
        for slot in slots {
            let Some(node) = self.index.nodes.get(slot) else { continue };
            let is_ready = silent.is_empty() || !silent.contains(&node.name);
            if self.index.nodes.is_ready[slot] == is_ready {
                continue;
            }
            let name = node.name.clone();
            self.index.nodes.is_ready[slot] = is_ready;
            self.agenda.add(Concern::Node(name));
            self.index.hope_again();
            let units: Vec<_> = self.index.nodes.units[slot]
                .iter()
                .filter_map(|unit| self.index.unit(*unit).cloned())
                .collect();
            for unit in units {
                self.concern_unit(&unit);
            }
        }
    }
}

/// May units that were refused find room now that this one is no longer what it was?
fn may_help_others(old: Option<&Unit>, new: &Unit, has_guarantees: bool) -> bool {
    let state = new.status.state;
    let is_on_node = state.is_on_node();
    let was_on_node = old.is_some_and(|old| old.status.state.is_on_node());
    let is_of_service = matches!(new.owner, Some(Owner::Service { .. }));
    // One that comes takes room, and what stopping it would free was free before. But another one of its service may be
    // stopped while it runs, and what its namespace has borrowed by it may be taken back. (Who waits for neighbours is
    // looked at in each pass.)
    let has_come = !was_on_node && is_on_node;
    has_come && (is_of_service || has_guarantees)
        || state == UnitState::Running && is_of_service
        || state.is_final()
        || old.is_some_and(|old| {
            let has_left = was_on_node && (!is_on_node || old.node != new.node);
            // Room that was promised is as good as taken.
            let has_given_up = old.promised.is_some() && old.promised != new.promised;
            let is_about_to_leave = old.desired != new.desired;
            // One that serves nobody any more may be stopped without harm to its service.
            let has_faltered = old.status.state == UnitState::Running && is_of_service;
            has_left || has_given_up || is_about_to_leave || has_faltered
        })
}
