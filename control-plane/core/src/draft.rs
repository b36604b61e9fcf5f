//! What a pass has decided so far, and the small steps that reconcilers decide with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::{Desired, Meta, Owner, Unit, UnitStatus};
use brig_api::placement::Grants;
use brig_api::spec::Labels;
use brig_api::unit_spec::UnitTemplate;
use brig_api::{Kind, NamespacePath, PlanSequence, ResourceName, UnitId};

use crate::names::Names;
use crate::{Decision, Model, Moment};

/// Most units that one pass creates: a plan is one transaction, and it must not hold the database for long. What is
/// missing after that is created by the next pass.
pub(crate) const CREATIONS_MAX: usize = 20_000;

/// A plan in the making.
pub(crate) struct Draft<'a> {
    /// What is planned on.
    pub(crate) model: &'a Model,
    /// Unix milliseconds.
    pub(crate) now_ms: i64,
    /// The number that this plan will have.
    pub(crate) sequence: PlanSequence,
    /// So far.
    pub(crate) decisions: Vec<Decision>,
    /// When to plan again although nothing changed.
    pub(crate) wake_at_ms: Option<i64>,
    ended: BTreeSet<&'a UnitId>,
    owned: BTreeMap<(&'a NamespacePath, Kind, &'a ResourceName), Vec<&'a Unit>>,
    names: Names<'a>,
    creations: usize,
    next_index: usize,
}

/// A unit to be made for a service or job.
pub(crate) struct NewUnit<'a> {
    /// Where.
    pub(crate) namespace: &'a NamespacePath,
    /// For whom.
    pub(crate) owner: Owner,
    /// With its owner's labels.
    pub(crate) labels: &'a Labels,
    /// What it runs.
    pub(crate) template: &'a UnitTemplate,
}

impl<'a> Draft<'a> {
    /// Nothing decided.
    pub(crate) fn new(model: &'a Model, moment: &Moment) -> Self {
        let mut owned: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for unit in model.units() {
            if let Some(owner) = &unit.owner {
                let key = (&unit.namespace, owner.kind(), owner.name());
                owned.entry(key).or_default().push(unit);
            }
        }
        Self {
            model,
            now_ms: moment.now_ms,
            sequence: PlanSequence(model.plan.0.saturating_add(1)),
            decisions: Vec::new(),
            wake_at_ms: None,
            ended: BTreeSet::new(),
            owned,
            names: Names::new(model),
            creations: 0,
            next_index: 0,
        }
    }

    /// Adds a decision.
    pub(crate) fn decide(&mut self, decision: Decision) {
        self.decisions.push(decision);
    }

    /// Asks for a pass at `at_ms`, if that is still to come.
    pub(crate) fn wake_at(&mut self, at_ms: i64) {
        if at_ms > self.now_ms {
            self.wake_at_ms = Some(self.wake_at_ms.map_or(at_ms, |earlier| earlier.min(at_ms)));
        }
    }

    /// Is it `after_ms` later than `since_ms`? If not, asks for a pass when it will be.
    pub(crate) fn is_past(&mut self, since_ms: i64, after_ms: i64) -> bool {
        let due_ms = since_ms.saturating_add(after_ms);
        self.wake_at(due_ms);
        self.now_ms >= due_ms
    }

    /// The units that a service or job made.
    pub(crate) fn units_of(
        &self,
        namespace: &'a NamespacePath,
        kind: Kind,
        name: &'a ResourceName,
    ) -> Vec<&'a Unit> {
        self.owned.get(&(namespace, kind, name)).cloned().unwrap_or_default()
    }

    /// Wants a unit no more. One that waits for a node ends at once.
    pub(crate) fn stop(&mut self, unit: &'a Unit, desired: Desired, reason: Reason) {
        if unit.desired == desired || unit.desired == Desired::Remove {
            return;
        }
        self.decide(Decision::UnitStop { unit: unit.id.clone(), desired, reason, message: None });
        self.end_if_pending(unit, reason);
    }

    /// Ends a unit that waits for a node.
    pub(crate) fn end_if_pending(&mut self, unit: &'a Unit, reason: Reason) {
        if unit.status.state == UnitState::Pending && self.ended.insert(&unit.id) {
            self.decide(Decision::UnitEnd { unit: unit.id.clone(), reason });
        }
    }

    /// Does the unit still wait for a node, after what was decided so far?
    pub(crate) fn is_waiting(&self, unit: &Unit) -> bool {
        unit.status.state == UnitState::Pending
            && unit.desired == Desired::Run
            && !self.ended.contains(&unit.id)
    }

    /// Makes a unit; false when this pass has made enough.
    pub(crate) fn create(&mut self, new: NewUnit<'_>) -> bool {
        if self.creations >= CREATIONS_MAX {
            return false;
        }
        let id = self.next_id();
        let Some(name) = self.names.of_new_unit(new.namespace, &new.owner, &id) else {
            return false;
        };
        self.creations += 1;
        self.decide(Decision::UnitCreate(Box::new(Unit {
            id,
            name,
            namespace: new.namespace.clone(),
            owner: Some(new.owner),
            labels: Arc::new(new.labels.clone()),
            template: Arc::new(new.template.clone()),
            desired: Desired::Run,
            remove_when_done: false,
            node: None,
            placed_by: None,
            promised: None,
            grants: Grants::default(),
            placed_ms: None,
            status: UnitStatus::default(),
            meta: Meta { revision: self.model.revision, created_ms: self.now_ms },
        })));
        true
    }

    /// The next id of this plan that no unit has.
    fn next_id(&mut self) -> UnitId {
        loop {
            let id = UnitId::of_plan(self.sequence, self.next_index);
            self.next_index += 1;
            if !self.model.units.contains_key(&id) {
                return id;
            }
        }
    }
}
