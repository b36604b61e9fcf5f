//! What the scheduler looks things up in: derived from the model's objects, kept up to date with each change.
//!
//! Units, nodes, shapes and the like have numbers here. Numbers depend on the order in which things came and are used again,
//! so nothing is ever decided or ordered by them: **two indexes of the same objects lead to the same plan.**

pub(crate) mod identities;
pub(crate) mod nodes;
pub(crate) mod shapes;
pub(crate) mod tenants;
pub(crate) mod topologies;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use brig_api::lifecycle::UnitState;
use brig_api::object::{Desired, Namespace, Node, Owner, Unit};
use brig_api::placement::Grants;
use brig_api::unit_spec::UnitTemplate;
use brig_api::{Kind, NamespacePath, NodeName, ResourceName, UnitId};

use identities::Neighbourhoods;
use nodes::Nodes;
use shapes::Shapes;
use tenants::Tenants;

use crate::holdings::Holdings;
use crate::preempt::standing;
use crate::vector::{ScalarNames, Vector};

/// The number of a unit.
pub(crate) type UnitSlot = usize;
/// The number of a node.
pub(crate) type NodeSlot = usize;
/// The number of a service or job that has units.
pub(crate) type OwnerId = usize;
/// The number of a shape.
pub(crate) type ShapeId = usize;

/// A service or job: its namespace, kind and name.
pub(crate) type OwnerKey = (NamespacePath, Kind, ResourceName);

/// How soon a unit is considered: those that others may stop at any time after all others, then by priority.
pub(crate) type Rank = (bool, std::cmp::Reverse<i32>);

/// The order in which pending units are considered within a namespace: rank, then age, then id. Of two ids of the same form
/// the shorter has the smaller number.
pub(crate) type QueueKey = (Rank, i64, usize, UnitId);

/// One unit, and what is derived from it.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) unit: Arc<Unit>,
    pub(crate) shape: ShapeId,
    pub(crate) identity: usize,
    pub(crate) tenant: usize,
    /// The node that it is charged to.
    pub(crate) at: Option<NodeSlot>,
    /// Charged, and on its way out.
    pub(crate) is_leaving: bool,
    /// What it was granted there.
    pub(crate) grants: Grants,
}

/// The units of one service or job.
#[derive(Debug, Clone, Default)]
pub(crate) struct OwnerEntry {
    pub(crate) units: BTreeSet<UnitSlot>,
    /// Templates of its units, so that equal ones are kept once.
    templates: Vec<std::sync::Weak<UnitTemplate>>,
    labels: Option<Arc<brig_api::spec::Labels>>,
}

/// Units that are placed together.
#[derive(Debug, Clone, Default)]
pub(crate) struct GangEntry {
    pub(crate) pending: BTreeSet<UnitSlot>,
    pub(crate) live: usize,
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    pub(crate) scalars: ScalarNames,
    pub(crate) nodes: Nodes,
    pub(crate) tenants: Tenants,
    pub(crate) shapes: Shapes,
    pub(crate) neighbours: Neighbourhoods,
    slots: Vec<Option<Entry>>,
    unused: Vec<UnitSlot>,
    ids: BTreeMap<UnitId, UnitSlot>,
    names: BTreeMap<NamespacePath, BTreeMap<ResourceName, UnitSlot>>,
    owner_ids: BTreeMap<OwnerKey, OwnerId>,
    owners: Vec<OwnerEntry>,
    /// Units that wait for a node, in the queue's order.
    pub(crate) pending: BTreeMap<QueueKey, UnitSlot>,
    pub(crate) gangs: BTreeMap<(NamespacePath, ResourceName), GangEntry>,
    /// Units on nodes by family.
    pub(crate) families: BTreeMap<(NamespacePath, ResourceName), u32>,
    /// Counts what happened that may help a unit that was refused.
    hopes: u64,
    /// Units whose node does not exist, by its name.
    pub(crate) strays: BTreeMap<NodeName, BTreeSet<UnitSlot>>,
    /// Units on nodes that are on their way out.
    pub(crate) leavers: BTreeSet<UnitSlot>,
    /// How many units on nodes stand at each level; see [`standing`].
    standings: BTreeMap<i32, usize>,
}

/// Where in the queue a unit is.
pub(crate) fn queue_key(unit: &Unit) -> QueueKey {
    let id = unit.id.clone();
    let rank = (unit.template.revocable, std::cmp::Reverse(unit.template.priority));
    (rank, unit.meta.created_ms, id.as_str().len(), id)
}

/// Does it wait for a node?
pub(crate) fn is_waiting(unit: &Unit) -> bool {
    unit.status.state == UnitState::Pending && unit.desired == Desired::Run
}

pub(crate) fn owner_key(unit: &Unit) -> Option<OwnerKey> {
    let owner = unit.owner.as_ref()?;
    Some((unit.namespace.clone(), owner.kind(), owner.name().clone()))
}

fn gang_key(unit: &Unit) -> Option<(NamespacePath, ResourceName)> {
    unit.template.gang.as_ref().map(|gang| (unit.namespace.clone(), gang.name.clone()))
}

fn family_key(unit: &Unit) -> Option<(NamespacePath, ResourceName)> {
    let family = unit.template.concurrency.as_ref()?;
    Some((unit.namespace.clone(), family.key.clone()))
}

impl Index {
    /// The unit in a slot that is in use.
    pub(crate) fn entry(&self, slot: UnitSlot) -> Option<&Entry> {
        self.slots.get(slot)?.as_ref()
    }

    /// The unit in a slot that is in use.
    pub(crate) fn unit(&self, slot: UnitSlot) -> Option<&Arc<Unit>> {
        self.entry(slot).map(|entry| &entry.unit)
    }

    /// The slot of a unit.
    pub(crate) fn slot(&self, id: &UnitId) -> Option<UnitSlot> {
        self.ids.get(id).copied()
    }

    /// Every unit, by id.
    pub(crate) fn units(&self) -> impl Iterator<Item = &Arc<Unit>> {
        self.ids.values().filter_map(|slot| self.unit(*slot))
    }

    /// How many units there are.
    pub(crate) fn unit_count(&self) -> usize {
        self.ids.len()
    }

    /// Is the name taken by a unit?
    pub(crate) fn unit_named(&self, namespace: &NamespacePath, name: &str) -> Option<&Arc<Unit>> {
        let name = ResourceName::new(name).ok()?;
        self.unit(*self.names.get(namespace)?.get(&name)?)
    }

    /// Is the name taken by a unit?
    pub(crate) fn is_name_taken(&self, namespace: &NamespacePath, name: &ResourceName) -> bool {
        self.names.get(namespace).is_some_and(|names| names.contains_key(name))
    }

    /// The units of a service or job, in no order that means anything.
    pub(crate) fn units_of(&self, key: &OwnerKey) -> impl Iterator<Item = (UnitSlot, &Arc<Unit>)> {
        let owner = self.owner_ids.get(key).and_then(|id| self.owners.get(*id));
        let slots = owner.into_iter().flat_map(|owner| owner.units.iter().copied());
        slots.filter_map(|slot| Some((slot, self.unit(slot)?)))
    }

    /// Takes over a namespace.
    pub(crate) fn namespace_put(&mut self, namespace: &Namespace) {
        self.tenants.put(&namespace.spec, &mut self.scalars);
    }

    /// Forgets what a namespace was allowed.
    pub(crate) fn namespace_remove(&mut self, path: &str) {
        self.tenants.remove(path);
    }

    /// Takes over a node. What its units take is taken anew, because what there is of devices may have changed.
    pub(crate) fn node_put(&mut self, node: Arc<Node>) {
        let name = node.name.clone();
        let known = self.nodes.slot(&name);
        let charged: Vec<_> =
            known.map(|slot| self.nodes.units[slot].iter().copied().collect()).unwrap_or_default();
        for unit in &charged {
            self.uncharge(*unit);
        }
        let (slot, is_new) = self.nodes.put(node, &mut self.scalars);
        self.shapes.node_changed(slot, &self.nodes);
        self.neighbours.node_changed(slot, &self.nodes);
        for unit in charged {
            let grants = self.entry(unit).map(|entry| entry.unit.grants.clone());
            self.charge(unit, slot, grants.unwrap_or_default());
        }
        if is_new && let Some(strays) = self.strays.remove(&name) {
            for unit in strays {
                self.charge_as_it_is(unit);
            }
        }
    }

    /// A node holds this, or has nothing to say about it any more. True when that may help units that were refused.
    pub(crate) fn node_holds(&mut self, slot: NodeSlot, holdings: Option<Holdings>) -> bool {
        let new = holdings.clone().unwrap_or_default();
        let old = self.nodes.set_holdings(slot, holdings).unwrap_or_default();
        self.shapes.holdings_changed(slot, &old, &new)
    }

    /// Forgets a node; its units, which are given, become strays.
    pub(crate) fn node_remove(&mut self, name: &NodeName) -> Vec<Arc<Unit>> {
        let Some(slot) = self.nodes.slot(name) else { return Vec::new() };
        let charged: Vec<_> = self.nodes.units[slot].iter().copied().collect();
        for unit in &charged {
            self.uncharge(*unit);
        }
        self.node_holds(slot, None);
        self.nodes.remove(name);
        self.shapes.node_changed(slot, &self.nodes);
        self.neighbours.node_changed(slot, &self.nodes);
        let units = charged.iter().filter_map(|unit| self.unit(*unit).cloned()).collect();
        if !charged.is_empty() {
            self.strays.entry(name.clone()).or_default().extend(charged);
        }
        units
    }

    /// Takes over a unit as it is now.
    pub(crate) fn unit_put(&mut self, unit: Arc<Unit>) -> UnitSlot {
        if let Some(slot) = self.slot(&unit.id) {
            self.unit_changed(slot, unit);
            return slot;
        }
        let unit = self.with_shared_parts(unit);
        let tenant = self.tenants.of(&unit.namespace);
        let owner = owner_key(&unit).map(|key| self.owner_number(key));
        let identity = self.neighbours.identity(&unit);
        // Tasks of a job are not one program that anybody could ask: each has its ports alone.
        let is_of_service = unit.owner.as_ref().is_some_and(|owner| owner.kind() == Kind::Service);
        let shape = self.shapes.intern(
            &unit,
            owner.filter(|_| is_of_service),
            identity,
            &mut self.neighbours,
            &mut self.scalars,
            &self.nodes,
        );
        let entry = Entry {
            unit: Arc::clone(&unit),
            shape,
            identity,
            tenant,
            at: None,
            is_leaving: false,
            grants: Grants::default(),
        };
        let slot = match self.unused.pop() {
            Some(slot) => {
                self.slots[slot] = Some(entry);
                slot
            }
            None => {
                self.slots.push(Some(entry));
                self.slots.len() - 1
            }
        };
        self.ids.insert(unit.id.clone(), slot);
        self.names.entry(unit.namespace.clone()).or_default().insert(unit.name.clone(), slot);
        if let Some(owner) = owner {
            self.owners[owner].units.insert(slot);
        }
        self.enter(slot, &unit);
        slot
    }

    /// A unit's template, owner and labels never change; where it is and how it does may.
    fn unit_changed(&mut self, slot: UnitSlot, unit: Arc<Unit>) {
        let Some(old) = self.unit(slot).cloned() else { return };
        let is_same_kind = old.owner == unit.owner
            && old.namespace == unit.namespace
            && old.name == unit.name
            && (Arc::ptr_eq(&old.template, &unit.template) || old.template == unit.template)
            && (Arc::ptr_eq(&old.labels, &unit.labels) || old.labels == unit.labels);
        if !is_same_kind {
            self.unit_remove(slot);
            self.unit_put(unit);
            return;
        }
        let mut unit = unit;
        let own = Arc::make_mut(&mut unit);
        own.template = Arc::clone(&old.template);
        own.labels = Arc::clone(&old.labels);
        self.leave(slot, &old);
        if let Some(Some(entry)) = self.slots.get_mut(slot) {
            entry.unit = Arc::clone(&unit);
        }
        self.enter(slot, &unit);
    }

    /// Forgets a unit.
    pub(crate) fn unit_remove(&mut self, slot: UnitSlot) {
        let Some(entry) = self.entry(slot) else { return };
        let (unit, shape, identity) = (Arc::clone(&entry.unit), entry.shape, entry.identity);
        self.leave(slot, &unit);
        self.ids.remove(&unit.id);
        if let Some(names) = self.names.get_mut(&unit.namespace) {
            if names.get(&unit.name) == Some(&slot) {
                names.remove(&unit.name);
            }
            if names.is_empty() {
                self.names.remove(&unit.namespace);
            }
        }
        if let Some(owner) = owner_key(&unit).and_then(|key| self.owner_ids.get(&key).copied()) {
            self.owners[owner].units.remove(&slot);
        }
        self.shapes.release(shape, &mut self.neighbours);
        self.neighbours.release_identity(identity);
        self.slots[slot] = None;
        self.unused.push(slot);
    }

    /// Queues and charges a unit as its state says.
    fn enter(&mut self, slot: UnitSlot, unit: &Arc<Unit>) {
        if is_waiting(unit) {
            self.pending.insert(queue_key(unit), slot);
            if let Some(key) = gang_key(unit) {
                self.gangs.entry(key).or_default().pending.insert(slot);
            }
        }
        self.charge_as_it_is(slot);
    }

    fn charge_as_it_is(&mut self, slot: UnitSlot) {
        let Some(unit) = self.unit(slot).cloned() else { return };
        let Some(node) = unit.node.as_ref().filter(|_| unit.status.state.is_on_node()) else {
            return;
        };
        match self.nodes.slot(node) {
            Some(node) => self.charge(slot, node, unit.grants.clone()),
            None => {
                self.strays.entry(node.clone()).or_default().insert(slot);
            }
        }
    }

    /// Takes back [`Self::enter`].
    fn leave(&mut self, slot: UnitSlot, unit: &Arc<Unit>) {
        if is_waiting(unit) {
            self.pending.remove(&queue_key(unit));
            if let Some(key) = gang_key(unit)
                && let Some(gang) = self.gangs.get_mut(&key)
            {
                gang.pending.remove(&slot);
                if gang.pending.is_empty() && gang.live == 0 {
                    self.gangs.remove(&key);
                }
            }
        }
        self.uncharge(slot);
        if let Some(node) = &unit.node
            && let Some(strays) = self.strays.get_mut(node)
        {
            strays.remove(&slot);
            if strays.is_empty() {
                self.strays.remove(node);
            }
        }
    }

    /// Puts a unit on a node.
    pub(crate) fn charge(&mut self, slot: UnitSlot, node: NodeSlot, grants: Grants) {
        let Some(Some(entry)) = self.slots.get_mut(slot) else { return };
        let unit = Arc::clone(&entry.unit);
        entry.at = Some(node);
        entry.is_leaving = unit.desired != Desired::Run;
        entry.grants = grants;
        let (shape_id, identity, tenant, is_leaving) =
            (entry.shape, entry.identity, entry.tenant, entry.is_leaving);
        let grants = &entry.grants;
        let Some(shape) = self.shapes.get(shape_id) else { return };
        self.nodes.used.add(node, &shape.request);
        if is_leaving {
            self.nodes.leaving.add(node, &shape.request);
            self.leavers.insert(slot);
        }
        if !shape.request.scalars.is_empty() {
            self.nodes.take_devices(node, &shape.request, grants, &self.scalars);
        }
        let way = shape.way_chosen(grants.runtimes);
        if !way.ports.is_empty() || !grants.ports.is_empty() {
            self.nodes.take_ports(node, slot, &way.ports, shape.port_owner, &grants.ports);
        }
        self.nodes.units[node].insert(slot);
        *self.standings.entry(standing(&unit)).or_default() += 1;
        self.tenants.charge(tenant, &shape.request);
        if !is_leaving && !unit.template.revocable {
            self.tenants.charge_firm(tenant, &shape.request);
        }
        self.neighbours.charge(identity, node, &shape.away_terms);
        self.shapes.charge_artifacts(shape_id, node, grants.runtimes);
        if let Some(key) = family_key(&unit) {
            *self.families.entry(key).or_default() += 1;
        }
        if let Some(key) = gang_key(&unit) {
            self.gangs.entry(key).or_default().live += 1;
        }
    }

    /// Takes a unit off its node, if it is charged to one.
    pub(crate) fn uncharge(&mut self, slot: UnitSlot) {
        let Some(Some(entry)) = self.slots.get_mut(slot) else { return };
        let Some(node) = entry.at.take() else { return };
        let grants = std::mem::take(&mut entry.grants);
        let is_leaving = std::mem::take(&mut entry.is_leaving);
        let unit = Arc::clone(&entry.unit);
        let (shape_id, identity, tenant) = (entry.shape, entry.identity, entry.tenant);
        let Some(shape) = self.shapes.get(shape_id) else { return };
        self.nodes.used.sub(node, &shape.request);
        if is_leaving {
            self.nodes.leaving.sub(node, &shape.request);
            self.leavers.remove(&slot);
        }
        if !shape.request.scalars.is_empty() {
            self.nodes.return_devices(node, &shape.request, &grants, &self.scalars);
        }
        let way = shape.way_chosen(grants.runtimes);
        if !way.ports.is_empty() || !grants.ports.is_empty() {
            let fixed = way.ports.iter().map(|port| port.port);
            self.nodes.return_ports(node, slot, fixed.chain(grants.ports.iter().copied()));
        }
        self.nodes.units[node].remove(&slot);
        if let Some(count) = self.standings.get_mut(&standing(&unit)) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.standings.remove(&standing(&unit));
            }
        }
        self.tenants.uncharge(tenant, &shape.request);
        if !is_leaving && !unit.template.revocable {
            self.tenants.uncharge_firm(tenant, &shape.request);
        }
        self.neighbours.uncharge(identity, node, &shape.away_terms);
        self.shapes.uncharge_artifacts(shape_id, node, grants.runtimes);
        if let Some(key) = family_key(&unit)
            && let Some(count) = self.families.get_mut(&key)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.families.remove(&key);
            }
        }
        if let Some(key) = gang_key(&unit)
            && let Some(gang) = self.gangs.get_mut(&key)
        {
            gang.live = gang.live.saturating_sub(1);
            if gang.pending.is_empty() && gang.live == 0 {
                self.gangs.remove(&key);
            }
        }
    }

    /// Marks a unit on a node as leaving, or no longer.
    pub(crate) fn set_leaving(&mut self, slot: UnitSlot, is_leaving: bool) {
        let Some(Some(entry)) = self.slots.get_mut(slot) else { return };
        let (Some(node), shape) = (entry.at, entry.shape) else { return };
        if entry.is_leaving == is_leaving {
            return;
        }
        entry.is_leaving = is_leaving;
        let (tenant, is_revocable) = (entry.tenant, entry.unit.template.revocable);
        let Some(shape) = self.shapes.get(shape) else { return };
        if is_leaving {
            self.nodes.leaving.add(node, &shape.request);
            self.leavers.insert(slot);
        } else {
            self.nodes.leaving.sub(node, &shape.request);
            self.leavers.remove(&slot);
        }
        match (is_revocable, is_leaving) {
            (true, _) => {}
            (false, true) => self.tenants.uncharge_firm(tenant, &shape.request),
            (false, false) => self.tenants.charge_firm(tenant, &shape.request),
        }
    }

    /// Is there a unit on a node that has to go for one of this priority?
    pub(crate) fn has_less_important_than(&self, priority: i32) -> bool {
        self.standings.first_key_value().is_some_and(|(lowest, _)| *lowest < priority)
    }

    /// Something happened that may help units that were refused.
    pub(crate) fn hope_again(&mut self) {
        self.hopes = self.hopes.wrapping_add(1);
    }

    /// Was the unit's shape refused at this priority or a higher one, and has nothing happened since that could help?
    pub(crate) fn is_still_hopeless(&self, slot: UnitSlot, priority: i32) -> bool {
        let shape = self.entry(slot).and_then(|entry| self.shapes.get(entry.shape));
        let hopeless = shape.and_then(|shape| shape.hopeless);
        hopeless.is_some_and(|(hopes, highest)| hopes == self.hopes && priority <= highest)
    }

    /// A shape was refused at this priority. Forgotten when something happens that may help.
    pub(crate) fn set_hopeless(&mut self, shape: ShapeId, priority: i32) {
        let hopes = self.hopes;
        self.shapes.set_hopeless(shape, hopes, priority);
    }

    /// What a unit asks for.
    pub(crate) fn request(&self, slot: UnitSlot) -> Option<&Vector> {
        Some(&self.shapes.get(self.entry(slot)?.shape)?.request)
    }

    /// What it asks for.
    pub(crate) fn request_of(&self, entry: &Entry) -> Option<&Vector> {
        Some(&self.shapes.get(entry.shape)?.request)
    }

    fn owner_number(&mut self, key: OwnerKey) -> OwnerId {
        if let Some(id) = self.owner_ids.get(&key) {
            return *id;
        }
        let id = self.owners.len();
        self.owner_ids.insert(key, id);
        self.owners.push(OwnerEntry::default());
        id
    }

    /// Units of one service or job share their template and labels, wherever they were read from.
    fn with_shared_parts(&mut self, mut unit: Arc<Unit>) -> Arc<Unit> {
        let Some(key) = owner_key(&unit) else { return unit };
        let owner = self.owner_number(key);
        let Some(owner) = self.owners.get_mut(owner) else { return unit };
        owner.templates.retain(|template| template.strong_count() > 0);
        let known = owner.templates.iter().filter_map(std::sync::Weak::upgrade);
        let shared = known
            .into_iter()
            .find(|known| Arc::ptr_eq(known, &unit.template) || *known == unit.template);
        match shared {
            Some(shared) if !Arc::ptr_eq(&shared, &unit.template) => {
                Arc::make_mut(&mut unit).template = shared;
            }
            Some(_) => {}
            None => owner.templates.push(Arc::downgrade(&unit.template)),
        }
        match &owner.labels {
            Some(shared) if Arc::ptr_eq(shared, &unit.labels) => {}
            Some(shared) if *shared == unit.labels => {
                let shared = Arc::clone(shared);
                Arc::make_mut(&mut unit).labels = shared;
            }
            _ => owner.labels = Some(Arc::clone(&unit.labels)),
        }
        unit
    }
}

/// The generation of a service's unit.
pub(crate) fn generation(unit: &Unit) -> Option<u64> {
    match &unit.owner {
        Some(Owner::Service { generation, .. }) => Some(*generation),
        _ => None,
    }
}
