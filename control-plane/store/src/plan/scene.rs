//! What a plan is about: read in sets, changed in memory by one decision after the other, written in sets.
//!
//! **Invariant:** whatever a decision asks about was read before the first: [`Subjects`] names it. So a decision costs
//! no statement, and a plan costs a few for every [`crate::many::ROWS_MAX`] of its units.

use std::collections::{BTreeSet, HashMap, HashSet};

use brig_api::change::EventLevel;
use brig_api::object::{Job, Node, NodeState, ObjectKey, Owner, Service, Unit};
use brig_api::{
    Kind, NamespacePath, NodeName, Object, PlanSequence, ResourceName, Revision, UnitId,
};
use brig_core::Decision;

use crate::error::StoreError;
use crate::object::unit_key;
use crate::table::job::{jobs_advance, jobs_named, jobs_remove};
use crate::table::namespace::namespaces_existing;
use crate::table::node::{node_states, nodes_named, nodes_switch};
use crate::table::service::{services_named, services_remove};
use crate::table::unit::{
    unit_counts_of_owners, unit_names_taken, units_by_ids, units_insert, units_remove, units_update,
};
use crate::write::{PendingEvent, Write};

/// A name in a namespace.
type Name = (NamespacePath, ResourceName);
/// A service or job.
type OwnerName = (NamespacePath, Kind, ResourceName);

/// What a plan's decisions are about.
#[derive(Debug, Default)]
struct Subjects<'plan> {
    /// Units that exist, not those that the plan creates.
    units: BTreeSet<&'plan UnitId>,
    new_names: BTreeSet<(&'plan NamespacePath, &'plan ResourceName)>,
    namespaces: BTreeSet<&'plan NamespacePath>,
    services: BTreeSet<(&'plan NamespacePath, &'plan ResourceName)>,
    jobs: BTreeSet<(&'plan NamespacePath, &'plan ResourceName)>,
    /// Services and jobs that are to go.
    leaving: BTreeSet<(&'plan NamespacePath, Kind, &'plan ResourceName)>,
    /// Nodes that get units.
    hosts: BTreeSet<&'plan NodeName>,
    /// Nodes that change.
    nodes: BTreeSet<&'plan NodeName>,
}

/// A unit, and what became of it so far.
#[derive(Debug)]
struct Held {
    unit: Unit,
    /// The plan creates it: there is no row yet.
    is_new: bool,
    /// Its place in the steps, once it changed.
    step: Option<usize>,
}

/// A change, in the order of the feed.
#[derive(Debug)]
enum Step {
    /// The unit as it is in the end.
    Unit(UnitId),
    Object(Box<Object>),
    Deleted(ObjectKey),
}

/// What a plan is about, as it is after the decisions that were carried out.
#[derive(Debug)]
pub(super) struct Scene {
    /// The plan's number.
    pub(super) sequence: PlanSequence,
    /// The revision in which its changes take effect.
    pub(super) revision: Revision,
    pub(super) now_ms: i64,
    units: HashMap<UnitId, Held>,
    taken_names: HashSet<Name>,
    namespaces: HashSet<NamespacePath>,
    services: HashMap<Name, Service>,
    jobs: HashMap<Name, Job>,
    /// How many units, ended ones too, there are of each service and job that is to go.
    counts: HashMap<OwnerName, i64>,
    node_states: HashMap<NodeName, NodeState>,
    nodes: HashMap<NodeName, Node>,
    steps: Vec<Step>,
    events: Vec<PendingEvent>,
    gone_units: Vec<UnitId>,
    changed_jobs: BTreeSet<Name>,
    changed_nodes: BTreeSet<NodeName>,
    gone_services: BTreeSet<Name>,
    gone_jobs: BTreeSet<Name>,
}

impl<'plan> Subjects<'plan> {
    fn of(decisions: &'plan [Decision]) -> Self {
        let mut subjects = Self::default();
        let mut created = HashSet::new();
        for decision in decisions {
            match decision {
                Decision::NodeState { node, .. } => {
                    subjects.nodes.insert(node);
                }
                Decision::UnitCreate(unit) => {
                    created.insert(&unit.id);
                    subjects.unit_created(unit);
                }
                Decision::UnitPlace { unit, node, .. } => {
                    subjects.units.insert(unit);
                    subjects.hosts.insert(node);
                }
                Decision::UnitRefuse { unit, .. }
                | Decision::UnitStop { unit, .. }
                | Decision::UnitEnd { unit, .. }
                | Decision::UnitLose { unit, .. }
                | Decision::UnitRemove { unit } => {
                    subjects.units.insert(unit);
                }
                Decision::JobProgress { namespace, name, .. } => {
                    subjects.jobs.insert((namespace, name));
                }
                Decision::ServiceRemove { namespace, name } => {
                    subjects.services.insert((namespace, name));
                    subjects.leaving.insert((namespace, Kind::Service, name));
                }
                Decision::JobRemove { namespace, name } => {
                    subjects.jobs.insert((namespace, name));
                    subjects.leaving.insert((namespace, Kind::Job, name));
                }
            }
        }
        subjects.units.retain(|id| !created.contains(id));
        subjects
    }

    fn unit_created(&mut self, unit: &'plan Unit) {
        self.namespaces.insert(&unit.namespace);
        self.new_names.insert((&unit.namespace, &unit.name));
        match &unit.owner {
            Some(Owner::Service { name, .. }) => {
                self.services.insert((&unit.namespace, name));
            }
            Some(Owner::Job { name, .. }) => {
                self.jobs.insert((&unit.namespace, name));
            }
            None => {}
        }
    }
}

fn listed<T: Copy>(set: &BTreeSet<T>) -> Vec<T> {
    set.iter().copied().collect()
}

fn units_of<'held>(held: &[&'held Held]) -> Vec<&'held Unit> {
    held.iter().map(|held| &held.unit).collect()
}

fn borrowed(names: &BTreeSet<Name>) -> Vec<(&NamespacePath, &ResourceName)> {
    names.iter().map(|(namespace, name)| (namespace, name)).collect()
}

fn name_of(namespace: &NamespacePath, name: &ResourceName) -> Name {
    (namespace.clone(), name.clone())
}

// === From the database and back

impl Scene {
    /// Reads what the decisions are about.
    pub(super) async fn load(
        tx: &mut Write,
        sequence: PlanSequence,
        decisions: &[Decision],
    ) -> Result<Self, StoreError> {
        let subjects = Subjects::of(decisions);
        let (revision, now_ms, db) = (tx.revision(), tx.now_ms, &mut tx.db);
        let units = units_by_ids(db, &listed(&subjects.units)).await?;
        let services = services_named(db, &listed(&subjects.services)).await?;
        let jobs = jobs_named(db, &listed(&subjects.jobs)).await?;
        let nodes = nodes_named(db, &listed(&subjects.nodes)).await?;
        let held = |unit| Held { unit, is_new: false, step: None };
        Ok(Self {
            sequence,
            revision,
            now_ms,
            units: units.into_iter().map(|unit| (unit.id.clone(), held(unit))).collect(),
            taken_names: unit_names_taken(db, &listed(&subjects.new_names)).await?,
            namespaces: namespaces_existing(db, &listed(&subjects.namespaces)).await?,
            services: services
                .into_iter()
                .map(|service| (name_of(&service.spec.namespace, &service.spec.name), service))
                .collect(),
            jobs: jobs
                .into_iter()
                .map(|job| (name_of(&job.spec.namespace, &job.spec.name), job))
                .collect(),
            counts: unit_counts_of_owners(db, &listed(&subjects.leaving)).await?,
            node_states: node_states(db, &listed(&subjects.hosts)).await?,
            nodes: nodes.into_iter().map(|node| (node.name.clone(), node)).collect(),
            steps: Vec::new(),
            events: Vec::new(),
            gone_units: Vec::new(),
            changed_jobs: BTreeSet::new(),
            changed_nodes: BTreeSet::new(),
            gone_services: BTreeSet::new(),
            gone_jobs: BTreeSet::new(),
        })
    }

    /// Has anything changed?
    pub(super) fn has_changes(&self) -> bool {
        !self.steps.is_empty()
    }

    /// Is the unit known here, as one that exists after the decisions?
    pub(super) fn knows_unit(&self, id: &UnitId) -> bool {
        self.units.contains_key(id)
    }

    /// Is it a unit that the decisions created?
    pub(super) fn is_new_unit(&self, id: &UnitId) -> bool {
        self.units.get(id).is_some_and(|held| held.is_new)
    }

    /// Writes the rows that changed. Names are freed before they are taken.
    pub(super) async fn write_rows(&self, tx: &mut Write) -> Result<(), StoreError> {
        let changed = self.steps.iter().filter_map(|step| match step {
            Step::Unit(id) => self.units.get(id),
            Step::Object(_) | Step::Deleted(_) => None,
        });
        let (new, old): (Vec<&Held>, Vec<&Held>) = changed.partition(|held| held.is_new);
        let jobs: Vec<&Job> = self.changed_jobs.iter().filter_map(|n| self.jobs.get(n)).collect();
        let nodes: Vec<&Node> =
            self.changed_nodes.iter().filter_map(|name| self.nodes.get(name)).collect();
        let db = &mut tx.db;
        units_remove(db, &self.gone_units.iter().collect::<Vec<_>>()).await?;
        units_insert(db, &units_of(&new)).await?;
        units_update(db, &units_of(&old)).await?;
        jobs_advance(db, &jobs).await?;
        nodes_switch(db, &nodes).await?;
        services_remove(db, &borrowed(&self.gone_services)).await?;
        jobs_remove(db, &borrowed(&self.gone_jobs)).await
    }

    /// Tells the feed what changed and what happened.
    pub(super) fn tell(mut self, tx: &mut Write) {
        for step in self.steps {
            match step {
                Step::Unit(id) => {
                    if let Some(held) = self.units.remove(&id) {
                        tx.changed(Object::Unit(Box::new(held.unit)));
                    }
                }
                Step::Object(object) => tx.changed(*object),
                Step::Deleted(key) => tx.deleted(key),
            }
        }
        tx.happened(self.events);
    }
}

// === What decisions ask and do

impl Scene {
    pub(super) fn has_namespace(&self, namespace: &NamespacePath) -> bool {
        self.namespaces.contains(namespace)
    }

    pub(super) fn has_unit_named(&self, namespace: &NamespacePath, name: &ResourceName) -> bool {
        self.taken_names.contains(&name_of(namespace, name))
    }

    pub(super) fn service(
        &self,
        namespace: &NamespacePath,
        name: &ResourceName,
    ) -> Option<&Service> {
        self.services.get(&name_of(namespace, name))
    }

    pub(super) fn job(&self, namespace: &NamespacePath, name: &ResourceName) -> Option<&Job> {
        self.jobs.get(&name_of(namespace, name))
    }

    /// Has a service or job that is to go any units, ended ones too?
    pub(super) fn has_units(
        &self,
        namespace: &NamespacePath,
        kind: Kind,
        name: &ResourceName,
    ) -> bool {
        let owner = (namespace.clone(), kind, name.clone());
        self.counts.get(&owner).is_some_and(|count| *count > 0)
    }

    pub(super) fn node_is_ready(&self, name: &NodeName) -> bool {
        let state = self.nodes.get(name).map(|node| node.state);
        state.or_else(|| self.node_states.get(name).copied()) == Some(NodeState::Ready)
    }

    pub(super) fn node(&self, name: &NodeName) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// The unit, if the premise holds for it. Whoever changes it says so: [`Self::unit_changed`].
    pub(super) fn unit_if(
        &mut self,
        id: &UnitId,
        premise: impl Fn(&Unit) -> bool,
    ) -> Option<&mut Unit> {
        self.units.get_mut(id).map(|held| &mut held.unit).filter(|unit| premise(unit))
    }

    /// There is a new unit.
    pub(super) fn unit_created(&mut self, unit: Unit) {
        self.taken_names.insert(name_of(&unit.namespace, &unit.name));
        self.count(&unit, 1);
        let step = Some(self.steps.len());
        self.steps.push(Step::Unit(unit.id.clone()));
        self.units.insert(unit.id.clone(), Held { unit, is_new: true, step });
    }

    /// The unit is no longer as it was.
    pub(super) fn unit_changed(&mut self, id: &UnitId) {
        let Some(held) = self.units.get_mut(id) else { return };
        held.unit.meta.revision = self.revision;
        if held.step.is_none() {
            held.step = Some(self.steps.len());
            self.steps.push(Step::Unit(id.clone()));
        }
    }

    /// The unit is gone.
    pub(super) fn unit_gone(&mut self, id: &UnitId) {
        let Some(held) = self.units.remove(id) else { return };
        let key = unit_key(&held.unit);
        self.taken_names.remove(&name_of(&held.unit.namespace, &held.unit.name));
        self.count(&held.unit, -1);
        // What it was before stays in the feed as it was then.
        if let Some(step) = held.step.and_then(|place| self.steps.get_mut(place)) {
            *step = Step::Object(Box::new(Object::Unit(Box::new(held.unit))));
        }
        if !held.is_new {
            self.gone_units.push(id.clone());
        }
        self.steps.push(Step::Deleted(key));
    }

    fn count(&mut self, unit: &Unit, difference: i64) {
        let Some(owner) = unit.owner.as_ref().filter(|_| !self.counts.is_empty()) else { return };
        let owner = (unit.namespace.clone(), owner.kind(), owner.name().clone());
        if let Some(count) = self.counts.get_mut(&owner) {
            *count += difference;
        }
    }

    /// The node is in another state from now on.
    pub(super) fn node_changed(&mut self, node: Node) {
        self.changed_nodes.insert(node.name.clone());
        self.steps.push(Step::Object(Box::new(Object::Node(node.clone()))));
        self.nodes.insert(node.name.clone(), node);
    }

    /// The job has got further.
    pub(super) fn job_changed(&mut self, job: Job) {
        let name = name_of(&job.spec.namespace, &job.spec.name);
        self.changed_jobs.insert(name.clone());
        self.steps.push(Step::Object(Box::new(Object::Job(job.clone()))));
        self.jobs.insert(name, job);
    }

    /// The service is gone.
    pub(super) fn service_gone(&mut self, key: ObjectKey, service: Name) {
        self.services.remove(&service);
        self.gone_services.insert(service);
        self.steps.push(Step::Deleted(key));
    }

    /// The job is gone.
    pub(super) fn job_gone(&mut self, key: ObjectKey, job: Name) {
        self.jobs.remove(&job);
        self.gone_jobs.insert(job);
        self.steps.push(Step::Deleted(key));
    }

    /// Something happened to a unit that is still here.
    pub(super) fn unit_event(
        &mut self,
        id: &UnitId,
        level: EventLevel,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        if let Some(about) = self.units.get(id).map(|held| unit_key(&held.unit)) {
            self.event(about, level, reason, message);
        }
    }

    /// Something happened.
    pub(super) fn event(
        &mut self,
        about: ObjectKey,
        level: EventLevel,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.events.push(PendingEvent { level, about, reason, message: message.into() });
    }
}
