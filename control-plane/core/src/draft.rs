//! What a pass has decided so far, and the small steps that reconcilers decide with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::{Desired, Meta, Owner, Unit, UnitStatus};
use brig_api::placement::Grants;
use brig_api::spec::Labels;
use brig_api::unit_spec::UnitTemplate;
use brig_api::{Kind, NamespacePath, NodeName, PlanSequence, ResourceName, UnitId};

use crate::agenda::Concern;
use crate::index::{Index, NodeSlot};
use crate::model::Objects;
use crate::names::Names;
use crate::{Decision, Model, Moment};

/// Most units that one pass creates: a plan is one transaction, and it must not hold the database for long. What is
/// missing after that is created by the next pass.
pub(crate) const CREATIONS_MAX: usize = 20_000;

/// A plan in the making.
pub(crate) struct Draft<'a> {
    /// What is planned on.
    pub(crate) objects: &'a Objects,
    /// The same.
    pub(crate) index: &'a Index,
    /// Unix milliseconds.
    pub(crate) now_ms: i64,
    /// The number that this plan will have.
    pub(crate) sequence: PlanSequence,
    /// So far.
    pub(crate) decisions: Vec<Decision>,
    /// What is looked at now.
    concern: Option<Concern>,
    /// When to look again although nothing changed.
    pub(crate) reminders: BTreeMap<Concern, i64>,
    /// What to look at again in the next pass, whatever has changed until then.
    pub(crate) again: BTreeSet<Concern>,
    /// Pending units that end with this plan.
    pub(crate) ended: BTreeSet<UnitId>,
    /// Units that are told to stop.
    pub(crate) stopped: BTreeMap<UnitId, Desired>,
    /// Units that are made.
    pub(crate) created: Vec<Arc<Unit>>,
    revision: brig_api::Revision,
    names: Names<'a>,
    next_index: usize,
}

/// A unit to be made for a service or job.
pub(crate) struct NewUnit<'a> {
    /// Where.
    pub(crate) namespace: &'a NamespacePath,
    /// For whom.
    pub(crate) owner: Owner,
    /// With its owner's labels.
    pub(crate) labels: &'a Arc<Labels>,
    /// What it runs.
    pub(crate) template: &'a Arc<UnitTemplate>,
}

impl<'a> Draft<'a> {
    /// Nothing decided.
    pub(crate) fn new(model: &'a Model, moment: &Moment) -> Self {
        Self {
            objects: &model.objects,
            index: &model.index,
            now_ms: moment.now_ms,
            sequence: PlanSequence(model.plan.0.saturating_add(1)),
            decisions: Vec::new(),
            concern: None,
            reminders: BTreeMap::new(),
            again: BTreeSet::new(),
            ended: BTreeSet::new(),
            stopped: BTreeMap::new(),
            created: Vec::new(),
            revision: model.revision,
            names: Names::new(&model.index),
            next_index: 0,
        }
    }

    /// From here on this is looked at.
    pub(crate) fn turn_to(&mut self, concern: Concern) {
        self.concern = Some(concern);
    }

    /// Adds a decision.
    pub(crate) fn decide(&mut self, decision: Decision) {
        self.decisions.push(decision);
    }

    /// Asks to look at the same again at `at_ms`, if that is still to come.
    pub(crate) fn wake_at(&mut self, at_ms: i64) {
        if at_ms > self.now_ms
            && let Some(concern) = &self.concern
        {
            let due = self.reminders.entry(concern.clone()).or_insert(at_ms);
            *due = at_ms.min(*due);
        }
    }

    /// Looks at the same again in the next pass: what it waits for may change with anything.
    pub(crate) fn look_again(&mut self) {
        self.again.extend(self.concern.clone());
    }

    /// Is it `after_ms` later than `since_ms`? If not, asks for a pass when it will be.
    pub(crate) fn is_past(&mut self, since_ms: i64, after_ms: i64) -> bool {
        let due_ms = since_ms.saturating_add(after_ms);
        self.wake_at(due_ms);
        self.now_ms >= due_ms
    }

    /// The units that a service or job made, by id.
    pub(crate) fn units_of(
        &self,
        namespace: &NamespacePath,
        kind: Kind,
        name: &ResourceName,
    ) -> Vec<&'a Arc<Unit>> {
        let key = (namespace.clone(), kind, name.clone());
        let mut units: Vec<_> = self.index.units_of(&key).map(|(_, unit)| unit).collect();
        units.sort_unstable_by(|left, right| left.id.cmp(&right.id));
        units
    }

    /// Where a node is.
    pub(crate) fn node(&self, name: &NodeName) -> Option<NodeSlot> {
        self.index.nodes.slot(name)
    }

    /// Does it run where it can be reached?
    pub(crate) fn runs_in_reach(&self, unit: &Unit) -> bool {
        let node = unit.node.as_ref().and_then(|node| self.node(node));
        unit.status.state == UnitState::Running
            && node.is_some_and(|node| self.index.nodes.is_ready[node])
    }

    /// Wants a unit no more. One that waits for a node ends at once.
    pub(crate) fn stop(&mut self, unit: &Unit, desired: Desired, reason: Reason) {
        self.stop_saying(unit, desired, reason, None);
    }

    /// The same, with something to say to people.
    pub(crate) fn stop_saying(
        &mut self,
        unit: &Unit,
        desired: Desired,
        reason: Reason,
        message: Option<String>,
    ) {
        let decided = self.stopped.get(&unit.id).copied().unwrap_or(unit.desired);
        if decided == desired || decided == Desired::Remove {
            return;
        }
        self.stopped.insert(unit.id.clone(), desired);
        self.decide(Decision::UnitStop { unit: unit.id.clone(), desired, reason, message });
        self.end_if_pending(unit, reason);
    }

    /// Ends a unit that waits for a node.
    pub(crate) fn end_if_pending(&mut self, unit: &Unit, reason: Reason) {
        if unit.status.state == UnitState::Pending && self.ended.insert(unit.id.clone()) {
            self.decide(Decision::UnitEnd { unit: unit.id.clone(), reason });
        }
    }

    /// Makes a unit; false when this pass has made enough.
    pub(crate) fn create(&mut self, new: NewUnit<'_>) -> bool {
        if self.created.len() >= CREATIONS_MAX {
            // The next pass goes on with it.
            self.wake_at(self.now_ms.saturating_add(1));
            return false;
        }
        let id = self.next_id();
        let Some(name) = self.names.of_new_unit(new.namespace, &new.owner, &id) else {
            self.wake_at(self.now_ms.saturating_add(1));
            return false;
        };
        let unit = Arc::new(Unit {
            id,
            name,
            namespace: new.namespace.clone(),
            owner: Some(new.owner),
            labels: Arc::clone(new.labels),
            template: Arc::clone(new.template),
            desired: Desired::Run,
            remove_when_done: false,
            node: None,
            promised: None,
            grants: Grants::default(),
            placed_ms: None,
            placed_by: None,
            status: UnitStatus::default(),
            meta: Meta { revision: self.revision, created_ms: self.now_ms },
        });
        self.created.push(Arc::clone(&unit));
        self.decide(Decision::UnitCreate(unit));
        true
    }

    /// The next id of this plan that no unit has.
    fn next_id(&mut self) -> UnitId {
        loop {
            let id = UnitId::of_plan(self.sequence, self.next_index);
            self.next_index += 1;
            if self.index.slot(&id).is_none() {
                return id;
            }
        }
    }
}
