//! The database: what is true, and the feed of everything that changed.
//!
//! Transactions are carried out by the core's own reference ([`brig_core::commit`]). What they changed is found by comparing
//! all objects before and after, so the feed does not depend on anybody's word for it, and the objects of the feed are what
//! the invariants are checked on.

use std::collections::BTreeMap;
use std::sync::Arc;

use brig_api::change::Change;
use brig_api::object::{Job, Namespace, Node, Object, ObjectKey, Service, Unit};
use brig_api::{PlanSequence, Revision, UnitId};
use brig_core::commit::{StalePlan, commit};
use brig_core::{Decision, Model, Plan};

/// Plain objects by key.
pub(crate) type Rows = BTreeMap<ObjectKey, Object>;

/// See the module.
pub(crate) struct Database {
    truth: Model,
    rows: Rows,
    feed: Vec<Change>,
}

impl Database {
    pub(crate) fn new() -> Self {
        let truth = Model::new(Revision(0), PlanSequence(0), []);
        Self { truth, rows: Rows::new(), feed: Vec::new() }
    }

    /// What is true now.
    pub(crate) fn truth(&self) -> &Model {
        &self.truth
    }

    /// Everything that changed, in order.
    pub(crate) fn feed(&self) -> &[Change] {
        &self.feed
    }

    /// All objects, as the feed left them.
    pub(crate) fn rows(&self) -> &Rows {
        &self.rows
    }

    /// A model of everything, as a server makes it when it starts.
    pub(crate) fn load(&self) -> Model {
        Model::new(self.truth.revision, self.truth.plan, self.rows.values().cloned())
    }

    /// Stores an object in a transaction of its own.
    pub(crate) fn put(&mut self, object: Object) {
        self.change(object.key(), Some(object));
    }

    /// Deletes an object in a transaction of its own.
    pub(crate) fn remove(&mut self, key: ObjectKey) {
        self.change(key, None);
    }

    fn change(&mut self, key: ObjectKey, object: Option<Object>) {
        let revision = Revision(self.truth.revision.0 + 1);
        self.truth.apply(&Change { revision, position: 0, key, object });
        self.publish();
    }

    /// Commits a plan; true when a decision of it was left out.
    ///
    /// # Errors
    /// [`StalePlan`] when another one was committed first.
    pub(crate) fn commit(&mut self, plan: &Plan, now_ms: i64) -> Result<bool, StalePlan> {
        commit(&mut self.truth, plan, now_ms)?;
        let is_left_out = |decision: &Decision| match decision {
            Decision::UnitCreate(unit) => self.truth.unit(&unit.id).is_none(),
            _ => false,
        };
        let has_left_out = plan.decisions.iter().any(is_left_out);
        self.publish();
        Ok(has_left_out)
    }

    /// Notes in the feed what the newest revision changed.
    fn publish(&mut self) {
        let after = rows_of(&self.truth);
        let revision = self.truth.revision;
        let mut changes: Vec<(ObjectKey, Option<Object>)> = Vec::new();
        for (key, old) in &self.rows {
            if after.get(key).is_none_or(|new| unit_id(old) != unit_id(new)) {
                changes.push((key.clone(), None));
            }
        }
        for (key, new) in &after {
            if self.rows.get(key) != Some(new) {
                changes.push((key.clone(), Some(new.clone())));
            }
        }
        for (position, (key, object)) in (0..).zip(changes) {
            self.feed.push(Change { revision, position, key, object });
        }
        self.rows = after;
    }
}

fn unit_id(object: &Object) -> Option<&UnitId> {
    match object {
        Object::Unit(unit) => Some(&unit.id),
        _ => None,
    }
}

/// The objects of a model.
pub(crate) fn rows_of(model: &Model) -> Rows {
    let namespaces = model.namespaces().cloned().map(Object::Namespace);
    let nodes = model.nodes().cloned().map(Object::Node);
    let services = model.services().cloned().map(Object::Service);
    let jobs = model.jobs().cloned().map(Object::Job);
    let units = model.units().map(|unit| Object::Unit(Box::new(unit.clone())));
    let all = namespaces.chain(nodes).chain(services).chain(jobs).chain(units);
    all.map(|object| (object.key(), object)).collect()
}

/// Plain objects by kind, for checks that are not to rest on the scheduler's index.
#[derive(Clone, Default)]
pub(crate) struct Objects {
    pub(crate) namespaces: Vec<Namespace>,
    pub(crate) nodes: BTreeMap<brig_api::NodeName, Node>,
    pub(crate) services: Vec<Service>,
    pub(crate) jobs: Vec<Job>,
    pub(crate) units: BTreeMap<UnitId, Arc<Unit>>,
}

impl Objects {
    pub(crate) fn new(rows: &Rows) -> Self {
        let mut objects = Self::default();
        for object in rows.values() {
            match object {
                Object::Namespace(namespace) => objects.namespaces.push(namespace.clone()),
                Object::Node(node) => {
                    objects.nodes.insert(node.name.clone(), node.clone());
                }
                Object::Service(service) => objects.services.push(service.clone()),
                Object::Job(job) => objects.jobs.push(job.clone()),
                Object::Unit(unit) => {
                    objects.units.insert(unit.id.clone(), Arc::new((**unit).clone()));
                }
                Object::Secret(_) | Object::Config(_) | Object::Artifact(_) => {}
            }
        }
        objects
    }

    /// Units that take up room on a node that exists.
    pub(crate) fn charged(&self) -> impl Iterator<Item = &Arc<Unit>> + Clone {
        self.units.values().filter(|unit| {
            unit.status.state.is_on_node()
                && unit.node.as_ref().is_some_and(|node| self.nodes.contains_key(node))
        })
    }

    /// Those of them on one node.
    pub(crate) fn on_node(&self, node: &brig_api::NodeName) -> impl Iterator<Item = &Arc<Unit>> {
        self.charged().filter(move |unit| unit.node.as_ref() == Some(node))
    }
}
