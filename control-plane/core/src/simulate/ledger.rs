//! What has happened in a simulation: what was placed, what had to leave, and how many units of a service ran meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::{JobState, Owner, Unit};
use brig_api::request::PlannedEviction;
use brig_api::simulate::{PlacedUnits, ServiceOutcome};
use brig_api::{Kind, NodeName, UnitId};

use super::figures::{Kin, kin, owner_object};
use super::scenario::key;
use crate::index::{OwnerKey, is_waiting, owner_key};
use crate::{Decision, Model};

/// The running units of one service.
#[derive(Debug, Clone, Copy)]
struct Watched {
    before: u32,
    lowest: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    waited: BTreeSet<UnitId>,
    placed: BTreeSet<UnitId>,
    left: BTreeMap<UnitId, PlannedEviction>,
    failed_jobs: Vec<PlannedEviction>,
    watched: BTreeMap<OwnerKey, Watched>,
    displaced: u32,
}

impl Ledger {
    /// What is so before anything happens; services with units on `silent` are watched from here on.
    pub(super) fn before(model: &Model, silent: &[NodeName]) -> Self {
        let mut ledger = Self {
            waited: waiting(model).map(|unit| unit.id.clone()).collect(),
            ..Self::default()
        };
        for unit in silent.iter().flat_map(|node| units_on(model, node)) {
            ledger.watch(model, unit);
            ledger.displaced += 1;
        }
        ledger
    }

    /// How many units were on the nodes that are lost.
    pub(super) fn displaced(&self) -> u32 {
        self.displaced
    }

    /// How many units waited before and were placed.
    pub(super) fn relieved(&self, model: &Model) -> u32 {
        let waited = self.waited.iter().filter_map(|id| model.unit(id));
        count(waited.filter(|unit| unit.status.state.is_on_node()))
    }

    /// Units that waited before.
    pub(super) fn waited_before(&self) -> &BTreeSet<UnitId> {
        &self.waited
    }

    /// Notes what is about to be committed to the model.
    pub(super) fn note(&mut self, model: &Model, decisions: &[Decision]) {
        for decision in decisions {
            match decision {
                Decision::UnitPlace { unit, .. } => {
                    self.placed.insert(unit.clone());
                    if let Some(unit) = model.unit(unit) {
                        self.watch(model, unit);
                    }
                }
                Decision::UnitCreate(unit) => self.watch(model, unit),
                Decision::UnitStop { unit, reason, message, .. } => {
                    self.leave(model, unit, *reason, message.clone());
                }
                Decision::UnitLose { unit, message } => {
                    self.leave(model, unit, Reason::NodeLost, Some(message.clone()));
                }
                Decision::JobProgress { namespace, name, state: JobState::Failed, .. } => {
                    let was_active =
                        model.job(namespace, name).is_some_and(|job| !job.state.is_final());
                    if was_active {
                        self.failed_jobs.push(PlannedEviction {
                            key: key(Kind::Job, namespace, name),
                            owner: None,
                            node: None,
                            reason: Reason::NodeLost,
                            message: Some("its retries are used up".to_owned()),
                        });
                    }
                }
                _ => {}
            }
        }
    }

    fn leave(&mut self, model: &Model, id: &UnitId, reason: Reason, message: Option<String>) {
        let Some(unit) = model.unit(id).filter(|unit| unit.status.state.is_on_node()) else {
            return;
        };
        self.watch(model, unit);
        let left = departure(unit, reason, message);
        self.left.entry(id.clone()).or_insert(left);
    }

    /// The unit's service is watched from now on, as it is now.
    fn watch(&mut self, model: &Model, unit: &Unit) {
        if let Some(owner) = owner_key(unit).filter(|(_, kind, _)| *kind == Kind::Service)
            && !self.watched.contains_key(&owner)
        {
            let before = available(model, &owner);
            self.watched.insert(owner, Watched { before, lowest: before });
        }
    }

    /// Counts the running units of every service that is watched.
    pub(super) fn measure(&mut self, model: &Model) {
        for (owner, watched) in &mut self.watched {
            watched.lowest = watched.lowest.min(available(model, owner));
        }
    }

    /// What was placed and still is, by owner and node.
    pub(super) fn placements(&self, model: &Model) -> Vec<PlacedUnits> {
        let mut groups: BTreeMap<(Kin, NodeName), usize> = BTreeMap::new();
        let mut found: Vec<PlacedUnits> = Vec::new();
        for unit in self.placed.iter().filter_map(|id| model.unit(id)) {
            let Some(node) = unit.node.clone().filter(|_| unit.status.state.is_on_node()) else {
                continue;
            };
            let place = *groups.entry((kin(model, unit), node.clone())).or_insert(found.len());
            match found.get_mut(place) {
                Some(group) => group.units += 1,
                None => found.push(PlacedUnits { key: owner_object(unit), node, units: 1 }),
            }
        }
        found.sort_by(|left, right| (&left.key, &left.node).cmp(&(&right.key, &right.node)));
        found
    }

    /// How many units waited before and still do.
    pub(super) fn still_waiting(&self, model: &Model) -> u32 {
        count(waiting(model).filter(|unit| self.waited.contains(&unit.id)))
    }

    /// Services that had fewer units running at some time, or have fewer than they ask for.
    pub(super) fn services(&self, model: &Model) -> Vec<ServiceOutcome> {
        let changed = self.watched.iter().filter_map(|(owner, watched)| {
            let (namespace, _, name) = owner;
            let (before, lowest) = (watched.before, watched.lowest);
            let after = available(model, owner);
            let replicas =
                model.service(namespace, name).map_or(0, |service| service.spec.replicas);
            let key = key(Kind::Service, namespace, name);
            (lowest < before || after != before).then_some(ServiceOutcome {
                key,
                replicas,
                before,
                lowest,
                after,
            })
        });
        changed.collect()
    }

    /// What ran and does not come back.
    pub(super) fn lost(&self, model: &Model, silent: &[NodeName]) -> Vec<PlannedEviction> {
        let is_forced =
            |reason| matches!(reason, Reason::Preempted | Reason::Evicted | Reason::NodeLost);
        // Services and jobs replace theirs.
        let alone =
            self.left.values().filter(|left| left.owner.is_none() && is_forced(left.reason));
        let stranded = silent.iter().flat_map(|node| units_on(model, node)).map(|unit| {
            let message = "it waits for its node (`disconnect: wait`)".to_owned();
            departure(unit, Reason::NodeLost, Some(message))
        });
        alone.cloned().chain(stranded).chain(self.failed_jobs.iter().cloned()).collect()
    }

    /// Units that had to leave a node that can be reached.
    pub(super) fn into_evictions(self) -> Vec<PlannedEviction> {
        let left = self.left.into_values();
        left.filter(|left| matches!(left.reason, Reason::Preempted | Reason::Evicted)).collect()
    }
}

fn departure(unit: &Unit, reason: Reason, message: Option<String>) -> PlannedEviction {
    let unit_key = key(Kind::Unit, &unit.namespace, &unit.name);
    let owner = unit.owner.as_ref();
    let owner = owner.map(|owner: &Owner| key(owner.kind(), &unit.namespace, owner.name()));
    PlannedEviction { key: unit_key, owner, node: unit.node.clone(), reason, message }
}

/// Units that wait for a node, in the order in which they are considered.
pub(super) fn waiting(model: &Model) -> impl Iterator<Item = &Unit> {
    let units = model.index.pending.values().filter_map(|slot| model.index.unit(*slot));
    units.map(|unit| &**unit).filter(|unit| is_waiting(unit))
}

/// The units on a node, by id.
fn units_on<'a>(model: &'a Model, node: &NodeName) -> Vec<&'a Unit> {
    let slot = model.index.nodes.slot(node);
    let slots = slot.into_iter().flat_map(|slot| &model.index.nodes.units[slot]);
    let mut units: Vec<_> =
        slots.filter_map(|slot| model.index.unit(*slot)).map(|unit| &**unit).collect();
    units.sort_unstable_by(|left, right| left.id.cmp(&right.id));
    units
}

/// How many units of a service run where they can be reached.
fn available(model: &Model, owner: &OwnerKey) -> u32 {
    count(model.index.units_of(owner).filter(|(_, unit)| {
        let node = unit.node.as_ref().and_then(|node| model.index.nodes.slot(node));
        unit.status.state == UnitState::Running
            && node.is_some_and(|node| model.index.nodes.is_ready[node])
    }))
}

/// How many there are.
pub(super) fn count<T>(things: impl Iterator<Item = T>) -> u32 {
    u32::try_from(things.count()).unwrap_or(u32::MAX)
}
