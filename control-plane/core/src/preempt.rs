//! Preemption: which units have to go so that a more important one fits, with the least harm.
//!
//! Harm is, in this order: the highest priority among those that go, how many go, and how long the one that has run longest has
//! run. Revocable units come before all others. A service never loses more running units than its `max_unavailable` allows.
//! A unit that its namespace's guarantee covers may also stop units of other namespaces, whatever their priority, that run
//! on what they have borrowed, and is not stopped for units of others that would run on what they borrow.
//!
//! What may be stopped only becomes less while a pass goes on, so harm only grows, and a harm that was worked out earlier is a
//! lower bound: the best node is looked at again before it is taken, and that is enough.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use brig_api::Kind;
use brig_api::lifecycle::UnitState;
use brig_api::object::{Desired, Unit};

use crate::index::tenants::{Gone, TenantId};
use crate::index::{Entry, Index, NodeSlot, OwnerKey, UnitSlot, owner_key};
use crate::judge::{Question, Without};
use crate::model::Objects;
use crate::obstacle::Obstacle;
use crate::tournament::Tournament;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Claimant {
    pub(crate) priority: i32,
    /// Its own namespace, where any namespace is sure of anything.
    pub(crate) tenant: Option<TenantId>,
    /// The namespace whose guarantee covers it, if one does.
    pub(crate) guarantor: Option<TenantId>,
    /// Services that it comes after: without their units it could not start.
    pub(crate) spared: Vec<OwnerKey>,
}

/// What a node would cost: less is better. The last is the node's position by name.
type Harm = (i32, usize, i64, usize);

/// Reversed, so that the least harm wins; None where no victims help.
type Key = Option<Reverse<Harm>>;

/// How many running units each service may still lose in this pass.
#[derive(Debug, Default)]
pub(crate) struct Disruptions(BTreeMap<OwnerKey, u32>);

impl Disruptions {
    fn left(&mut self, index: &Index, objects: &Objects, key: &OwnerKey) -> u32 {
        if let Some(left) = self.0.get(key) {
            return *left;
        }
        let (namespace, _, name) = key;
        let service = objects.services.get(namespace).and_then(|names| names.get(name));
        let left = service.map_or(u32::MAX, |service| {
            let running = index.units_of(key).filter(|(slot, unit)| {
                // One that is imagined gone is nowhere.
                let is_staying =
                    index.entry(*slot).is_some_and(|entry| entry.at.is_some() && !entry.is_leaving);
                is_staying && is_serving(index, unit)
            });
            let running = u32::try_from(running.count()).unwrap_or(u32::MAX);
            let spec = &service.spec;
            running.saturating_sub(spec.replicas.saturating_sub(spec.max_unavailable))
        });
        self.0.insert(key.clone(), left);
        left
    }

    /// A unit is told to stop.
    pub(crate) fn stopped(&mut self, index: &Index, unit: &Unit) {
        if is_serving(index, unit)
            && let Some(key) = owner_key(unit)
            && let Some(left) = self.0.get_mut(&key)
        {
            *left = left.saturating_sub(1);
        }
    }
}

/// Does it run where it can be reached?
fn is_serving(index: &Index, unit: &Unit) -> bool {
    let node = unit.node.as_ref().and_then(|node| index.nodes.slot(node));
    unit.status.state == UnitState::Running
        && unit.desired == Desired::Run
        && node.is_some_and(|node| index.nodes.is_ready[node])
}

/// How important a unit is to those who need its room.
pub(crate) fn standing(unit: &Unit) -> i32 {
    if unit.template.revocable { i32::MIN } else { unit.template.priority }
}

/// The search for victims for one shape and claimant.
#[derive(Debug)]
pub(crate) struct Hunt {
    question: Question,
    claimant: Claimant,
    tree: Option<Tournament<Key>>,
    seen: usize,
}

impl Hunt {
    pub(crate) fn new(question: Question, claimant: Claimant) -> Self {
        Self { question, claimant, tree: None, seen: 0 }
    }

    /// The node where the least harm is done, and the units that have to go.
    pub(crate) fn best(
        &mut self,
        index: &Index,
        objects: &Objects,
        disruptions: &mut Disruptions,
        changes: &[NodeSlot],
    ) -> Option<(NodeSlot, Vec<UnitSlot>)> {
        self.question.refresh(index);
        let unseen = changes.get(self.seen..).unwrap_or_default();
        self.seen = changes.len();
        let mut tree = match self.tree.take() {
            Some(mut tree) if unseen.len() <= index.nodes.count() => {
                for node in unseen {
                    let harm = self.harm(index, objects, disruptions, *node);
                    tree.set(index.nodes.rank[*node], harm.map(|(harm, _)| Reverse(harm)));
                }
                tree
            }
            _ => {
                let nodes = index.nodes.by_rank.iter();
                let keys: Vec<Key> = nodes
                    .map(|node| {
                        let harm = self.harm(index, objects, disruptions, *node);
                        harm.map(|(harm, _)| Reverse(harm))
                    })
                    .collect();
                Tournament::new(keys.into_iter(), None)
            }
        };
        let found = loop {
            let Some(Some(Reverse(best))) = tree.best() else { break None };
            let (.., rank) = best;
            let Some(node) = index.nodes.by_rank.get(rank).copied() else { break None };
            match self.harm(index, objects, disruptions, node) {
                Some((harm, victims)) if harm <= best => break Some((node, victims)),
                grown => tree.set(rank, grown.map(|(harm, _)| Reverse(harm))),
            }
        };
        self.tree = Some(tree);
        found
    }

    /// What it costs to make room on a node, and who has to go; nobody where others are leaving already. None where nobody's
    /// going helps.
    fn harm(
        &self,
        index: &Index,
        objects: &Objects,
        disruptions: &mut Disruptions,
        node: NodeSlot,
    ) -> Option<(Harm, Vec<UnitSlot>)> {
        let helps = |obstacle: &Obstacle| {
            matches!(
                obstacle,
                Obstacle::Ports | Obstacle::Resources | Obstacle::Away | Obstacle::Spread
            )
        };
        if !index.nodes.is_ready[node] {
            return None;
        }
        let shape = index.shapes.get(self.question.shape)?;
        if index.shapes.fixed(shape)?.obstacles[node].is_some() {
            return None;
        }
        let found = self.question.obstacles(index, node, Without { units: &[], leavers: true });
        if found.is_empty() {
            // Those who are leaving anyway make room enough.
            return Some(((i32::MIN, 0, i64::MIN, index.nodes.rank[node]), Vec::new()));
        }
        if !found.iter().all(helps) {
            return None;
        }
        let on_node = index.nodes.units[node].iter().copied();
        let mut victims: Vec<_> = on_node
            .filter_map(|slot| {
                let entry = index.entry(slot)?;
                let unit = &entry.unit;
                let since_ms = unit.placed_ms.unwrap_or(unit.meta.created_ms);
                self.may_stop(index, entry, &Gone::new()).then_some((
                    standing(unit),
                    Reverse(since_ms),
                    &unit.id,
                    slot,
                ))
            })
            .collect();
        if victims.is_empty() {
            return None;
        }
        victims.sort_unstable();
        let mut spent: BTreeMap<OwnerKey, u32> = BTreeMap::new();
        let mut gone: Vec<UnitSlot> = Vec::new();
        let mut of_tenants = Gone::new();
        let mut is_enough = false;
        for (.., slot) in &victims {
            let Some(entry) = index.entry(*slot) else { continue };
            // Those before it may have been all that was borrowed.
            if !of_tenants.is_empty() && !self.may_stop(index, entry, &of_tenants) {
                continue;
            }
            if !may_lose(index, objects, disruptions, &mut spent, &entry.unit) {
                continue;
            }
            gone.push(*slot);
            self.note_gone(index, entry, &mut of_tenants);
            let found =
                self.question.obstacles(index, node, Without { units: &gone, leavers: true });
            if found.is_empty() {
                is_enough = true;
                break;
            }
        }
        if !is_enough {
            return None;
        }
        if !self.stays_sure(index, &gone) {
            return None;
        }
        // The last one is needed; of the others perhaps not all are, the most important first.
        for position in (0..gone.len().saturating_sub(1)).rev() {
            let spared = gone.remove(position);
            let found =
                self.question.obstacles(index, node, Without { units: &gone, leavers: true });
            if !found.is_empty() || !self.stays_sure(index, &gone) {
                gone.insert(position, spared);
            }
        }
        let (mut highest, mut longest_ms) = (i32::MIN, i64::MAX);
        for slot in &gone {
            let unit = index.unit(*slot)?;
            highest = highest.max(standing(unit));
            longest_ms = longest_ms.min(unit.placed_ms.unwrap_or(unit.meta.created_ms));
        }
        // The later the longest-running one began the less is lost.
        let harm = (highest, gone.len(), longest_ms.saturating_neg(), index.nodes.rank[node]);
        Some((harm, gone))
    }

    /// `gone` are to go before it.
    fn may_stop(&self, index: &Index, entry: &Entry, gone: &Gone) -> bool {
        if entry.is_leaving {
            return false;
        }
        if owner_key(&entry.unit).is_some_and(|owner| self.claimant.spared.contains(&owner)) {
            return false;
        }
        let Claimant { priority, tenant, guarantor, .. } = &self.claimant;
        if standing(&entry.unit) < *priority {
            // What a namespace is sure of is lost only to what it is sure of; see `stays_sure`.
            return guarantor.is_some()
                || tenant.is_none_or(|tenant| {
                    !self.is_at_home(index, entry, gone)
                        || index.tenants.shares_guarantee(tenant, entry.tenant)
                });
        }
        let Some(request) = index.request_of(entry) else { return false };
        guarantor.is_some_and(|guarantor| {
            index.tenants.is_borrowing(entry.tenant, request, guarantor, gone)
        })
    }

    fn is_at_home(&self, index: &Index, entry: &Entry, gone: &Gone) -> bool {
        let request = index.request_of(entry).filter(|_| !entry.unit.template.revocable);
        request.is_some_and(|request| index.tenants.is_at_home(entry.tenant, request, gone))
    }

    fn note_gone(&self, index: &Index, entry: &Entry, gone: &mut Gone) {
        let request = index.request_of(entry).filter(|_| !entry.unit.template.revocable);
        if self.claimant.tenant.is_some()
            && let Some(request) = request
        {
            index.tenants.note_gone(entry.tenant, request, gone);
        }
    }

    /// A guarantee may change hands, from a unit of lower priority to the claimant. But it covers the claimant then: if it did
    /// not, those whose guarantee it is would take the room back, and so on for ever.
    fn stays_sure(&self, index: &Index, gone: &[UnitSlot]) -> bool {
        let Claimant { tenant: Some(tenant), guarantor: None, .. } = self.claimant else {
            return true;
        };
        let mut of_tenants = Gone::new();
        let mut takes_what_is_sure = false;
        for entry in gone.iter().filter_map(|slot| index.entry(*slot)) {
            takes_what_is_sure |= self.is_at_home(index, entry, &of_tenants);
            self.note_gone(index, entry, &mut of_tenants);
        }
        let request = index.shapes.get(self.question.shape).map(|shape| &shape.request);
        !takes_what_is_sure
            || request
                .is_some_and(|request| index.tenants.covers_then(tenant, request, &of_tenants))
    }
}

fn may_lose(
    index: &Index,
    objects: &Objects,
    disruptions: &mut Disruptions,
    spent: &mut BTreeMap<OwnerKey, u32>,
    unit: &Unit,
) -> bool {
    if !is_serving(index, unit) {
        return true;
    }
    let Some(key) = owner_key(unit).filter(|(_, kind, _)| *kind == Kind::Service) else {
        return true;
    };
    let left = disruptions.left(index, objects, &key);
    let spent = spent.entry(key).or_default();
    if *spent >= left {
        return false;
    }
    *spent += 1;
    true
}
