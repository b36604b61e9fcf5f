//! Places pending units: in the queue's order, each on the best of the nodes that can take it.
//!
//! ```text
//!   priority ▶ fair share ▶ age:   hold? ─▶ quota? ─▶ fits ─▶ placed
//!                                                      │ no
//!                                                      ├─▶ fits once others have left ─▶ room promised
//!                                                      ├─▶ less important ones can go  ─▶ they stop, room promised
//!                                                      └─▶ refused, and why
//! ```
//!
//! Within a pass room only shrinks, so a shape that was refused once stays refused. Nothing here waits for anything: a unit
//! that can't be placed holds up nobody behind it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use brig_api::explain::{Candidate as Told, Explanation, Refusal, Verdict};
use brig_api::lifecycle::Reason;
use brig_api::object::{Desired, Unit};
use brig_api::placement::{Gang, Grants};
use brig_api::{Kind, NodeName, PlanSequence, UnitId};

use crate::Decision;
use crate::candidates::{Candidate, Counts, Search};
use crate::explain::{self, Refused};
use crate::ground::Ground;
use crate::index::shapes::{Rule, RuleKind};
use crate::index::tenants::TenantId;
use crate::index::{Index, NodeSlot, Rank, ShapeId, UnitSlot, queue_key};
use crate::judge::{POLICY, Question, Without};
use crate::model::Objects;
use crate::obstacle::Obstacle;
use crate::preempt::{Claimant, Disruptions, Hunt, standing};
use crate::queue::Level;

/// Searches that may keep trees at the same time: each takes some ten bytes for every node.
const TREES_MAX: usize = 64;

/// What placing decided.
#[derive(Debug, Default)]
pub(crate) struct Placements {
    /// In the queue's order.
    pub(crate) decisions: Vec<Decision>,
    /// One for each unit that was placed, or refused for another reason than before.
    pub(crate) explanations: Vec<Explanation>,
    /// Shapes that could not be placed, with the priority at which that was so.
    pub(crate) hopeless: Vec<(ShapeId, i32)>,
}

/// When and in which plan is decided.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp {
    /// The plan.
    pub(crate) plan: PlanSequence,
    /// Unix milliseconds.
    pub(crate) now_ms: i64,
}

/// Whose shape, and whether it may use what is kept for a gang.
type SearchKey = (ShapeId, bool);

/// One pass over the queue.
pub(crate) struct Placing<'p, 'm> {
    pub(crate) ground: &'p mut Ground<'m>,
    pub(crate) objects: &'p Objects,
    pub(crate) stamp: Stamp,
    ended: &'p BTreeSet<UnitId>,
    searches: BTreeMap<SearchKey, Search>,
    trees: VecDeque<SearchKey>,
    refused: BTreeMap<SearchKey, Arc<Refused>>,
    hunts: BTreeMap<(SearchKey, Claimant), Hunt>,
    hopeless_hunts: BTreeSet<(SearchKey, Claimant)>,
    pub(crate) disruptions: Disruptions,
    readiness: BTreeMap<crate::index::OwnerKey, bool>,
    pub(crate) gangs_seen: BTreeSet<(brig_api::NamespacePath, brig_api::ResourceName)>,
    /// In this pass room that was kept for a unit has been given up, or units were told to leave.
    has_freed: bool,
    /// Room is kept for a gang until then; without a time, nobody knows when it will be.
    pub(crate) kept_until_ms: Option<Option<i64>>,
    /// Whose room that is.
    pub(crate) kept_for: Option<Gang>,
    /// Somebody asks about this unit: what is decided about it is told although its status says so already.
    asked: Option<UnitSlot>,
    pub(crate) found: Placements,
}

/// What became of one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It has a node; usage has changed.
    Placed,
    /// It waits.
    Waits,
}

impl<'p, 'm> Placing<'p, 'm> {
    pub(crate) fn new(
        ground: &'p mut Ground<'m>,
        objects: &'p Objects,
        stamp: Stamp,
        ended: &'p BTreeSet<UnitId>,
    ) -> Self {
        Self {
            ground,
            objects,
            stamp,
            ended,
            searches: BTreeMap::new(),
            trees: VecDeque::new(),
            refused: BTreeMap::new(),
            hunts: BTreeMap::new(),
            hopeless_hunts: BTreeSet::new(),
            disruptions: Disruptions::default(),
            readiness: BTreeMap::new(),
            gangs_seen: BTreeSet::new(),
            has_freed: false,
            kept_until_ms: None,
            kept_for: None,
            asked: None,
            found: Placements::default(),
        }
    }

    /// Considers every unit that waits.
    pub(crate) fn run(mut self) -> Placements {
        self.consider_all();
        self.found
    }

    /// Why `slot` would be placed or refused now. All that wait are considered: what is promised to others, kept for a gang
    /// or taken by those who go first is not free for this one.
    pub(crate) fn judge(mut self, slot: UnitSlot) -> Option<Explanation> {
        let id = self.ground.index.unit(slot)?.id.clone();
        self.asked = Some(slot);
        self.consider_all();
        self.found.explanations.into_iter().rfind(|explanation| explanation.unit == id)
    }

    /// What to ask of a node about `slot`, wherever it is, once all that wait have been considered.
    pub(crate) fn question_about(&mut self, slot: UnitSlot) -> Option<Question> {
        self.consider_all();
        self.ground.lift_promise(slot);
        self.ground.lift(slot);
        let unit = self.ground.index.unit(slot)?.clone();
        let (shape, is_short) = self.search_key(slot, &unit)?;
        let is_kept_for_it = self.kept_for.is_some() && self.kept_for == unit.template.gang;
        Some(Question::new(self.ground.index, shape, is_short || is_kept_for_it))
    }

    fn consider_all(&mut self) {
        let mut levels = self.levels();
        self.take_what_is_sure(&mut levels);
        for (_, units) in levels {
            self.promise_again(units.values().flatten());
            let total = self.ground.index.nodes.total.clone();
            let mut level = Level::new(units, &self.ground.index.tenants, &total);
            while let Some(unit) = level.next(&self.ground.index.tenants) {
                if self.consider(unit) == Fate::Placed
                    && let Some(entry) = self.ground.index.entry(unit)
                {
                    level.changed(entry.tenant, &self.ground.index.tenants);
                }
            }
        }
    }

    /// Units by rank, then by namespace, then by age.
    fn levels(&self) -> Vec<(Rank, BTreeMap<usize, VecDeque<UnitSlot>>)> {
        let mut levels: Vec<(Rank, BTreeMap<usize, VecDeque<UnitSlot>>)> = Vec::new();
        for ((rank, ..), slot) in &self.ground.index.pending {
            let Some(entry) = self.ground.index.entry(*slot) else { continue };
            if self.ended.contains(&entry.unit.id) {
                continue;
            }
            if levels.last().is_none_or(|(last, _)| last != rank) {
                levels.push((*rank, BTreeMap::new()));
            }
            if let Some((_, units)) = levels.last_mut() {
                units.entry(entry.tenant).or_default().push_back(*slot);
            }
        }
        levels
    }

    /// First come units for which others leave because their namespace is sure of the room: whoever has to leave may be
    /// replaced by a unit of a higher priority, which would take it again.
    fn take_what_is_sure(&mut self, levels: &mut [(Rank, BTreeMap<usize, VecDeque<UnitSlot>>)]) {
        let mut first = Vec::new();
        for (_, units) in levels {
            for queue in units.values_mut() {
                queue.retain(|slot| {
                    let is_first = self.is_taking_back(*slot);
                    if is_first {
                        first.push(*slot);
                    }
                    !is_first
                });
            }
            units.retain(|_, queue| !queue.is_empty());
        }
        let index = &*self.ground.index;
        first.sort_by_cached_key(|slot| index.unit(*slot).map(|unit| queue_key(unit)));
        self.promise_again(first.iter());
        for slot in first {
            self.consider(slot);
        }
    }

    /// Room that earlier passes promised stays promised, before units of the same priority are considered.
    fn promise_again<'u>(&mut self, units: impl Iterator<Item = &'u UnitSlot>) {
        for slot in units {
            let node = self.ground.index.unit(*slot).and_then(|unit| unit.promised.as_ref());
            let node = node.and_then(|node| self.ground.index.nodes.slot(node));
            if let Some(node) = node {
                self.ground.promise(*slot, node);
            }
        }
    }

    /// Do others leave for the unit, and does a guarantee cover it?
    fn is_taking_back(&self, slot: UnitSlot) -> bool {
        let index = &*self.ground.index;
        let Some(entry) = index.entry(slot) else { return false };
        let is_sure = |request| index.tenants.guarantor(entry.tenant, request).is_some();
        entry.unit.promised.is_some()
            && !entry.unit.template.revocable
            && index.request_of(entry).is_some_and(is_sure)
    }

    fn consider(&mut self, slot: UnitSlot) -> Fate {
        let promised = self.ground.promised(slot);
        let fate = self.decide(slot);
        self.note_freed(slot, promised);
        fate
    }

    /// Room that was kept for a unit and is not any more may be what others were refused for.
    pub(crate) fn note_freed(&mut self, slot: UnitSlot, promised: Option<NodeSlot>) {
        let at = self.ground.index.entry(slot).and_then(|entry| entry.at);
        if promised.is_some() && promised != at.or_else(|| self.ground.promised(slot)) {
            self.has_freed = true;
            self.forget_refusals();
        }
    }

    fn decide(&mut self, slot: UnitSlot) -> Fate {
        let Some(unit) = self.ground.index.unit(slot).cloned() else { return Fate::Waits };
        if let Some(fate) = self.consider_gang(slot, &unit) {
            return fate;
        }
        if let Some(refused) = self.in_the_way(slot, &unit) {
            self.ground.lift_promise(slot);
            self.refuse(&unit, &refused, None);
            return Fate::Waits;
        }
        let promised = self.ground.lift_promise(slot);
        if promised.is_some()
            && let Some(key) = self.search_key(slot, &unit)
        {
            // Others of its shape may have been refused for want of the room that is kept for this one.
            self.refused.remove(&key);
        }
        if promised.is_none() && self.is_known_hopeless(slot, &unit) {
            return Fate::Waits;
        }
        if let Some((best, told, counts)) = self.find(slot, &unit) {
            self.accept(slot, &unit, best, &told, counts);
            return Fate::Placed;
        }
        if let Some(node) = promised
            && self.fits_once_free(slot, &unit, node)
        {
            self.ground.promise(slot, node);
            let refused = explain::promised(self.ground.index, node, &self.leavers(node));
            self.refuse(&unit, &refused, Some(node));
            return Fate::Waits;
        }
        if let Some((node, victims)) = self.hunt(slot, &unit) {
            self.stop(&victims, &unit);
            self.ground.promise(slot, node);
            let leavers = if victims.is_empty() { self.leavers(node) } else { victims };
            let refused = explain::promised(self.ground.index, node, &leavers);
            self.refuse(&unit, &refused, Some(node));
            return Fate::Waits;
        }
        let refused = self.refusal(slot, &unit);
        let refused = match self.beyond_guarantee(slot, &unit) {
            Some(tenant) => {
                Arc::new(explain::beyond_guarantee(self.ground.index, tenant, &refused))
            }
            None => refused,
        };
        self.refuse(&unit, &refused, None);
        if let Some(entry) = self.ground.index.entry(slot)
            && promised.is_none()
            && self.kept_until_ms.is_none()
            && !self.may_be_helped_by_placements(entry.shape)
        {
            self.found.hopeless.push((entry.shape, standing(&unit)));
        }
        Fate::Waits
    }

    /// The namespace that has all that it is sure of already, so that its unit is not worth stopping others.
    fn beyond_guarantee(&self, slot: UnitSlot, unit: &Unit) -> Option<TenantId> {
        let index = &*self.ground.index;
        let entry = index.entry(slot).filter(|_| !unit.template.revocable)?;
        index.tenants.beyond(entry.tenant, index.request_of(entry)?)
    }

    /// Others that come may help it: those that it must be near, or that a spread counts elsewhere.
    fn may_be_helped_by_placements(&self, shape: ShapeId) -> bool {
        let rules = self.ground.index.shapes.get(shape).map(|shape| &shape.rules);
        let is_helped = |rule: &Rule| rule.weight.is_none() && !matches!(rule.kind, RuleKind::Away);
        rules.is_some_and(|rules| rules.iter().any(is_helped))
    }

    /// Was the shape refused before, and has nothing happened since that could help? Then the unit's status says so already.
    fn is_known_hopeless(&self, slot: UnitSlot, unit: &Unit) -> bool {
        !self.has_freed
            && self.asked != Some(slot)
            && unit.status.reason == Some(Reason::Unschedulable)
            && unit.promised.is_none()
            && self.ground.index.is_still_hopeless(slot, standing(unit))
    }

    /// What keeps the unit from being considered at all: what it comes after, its family, its namespace's quota.
    pub(crate) fn in_the_way(&mut self, slot: UnitSlot, unit: &Unit) -> Option<Arc<Refused>> {
        for dependency in &unit.template.after {
            let (kind, name) = match (&dependency.service, &dependency.job) {
                (Some(service), _) => (Kind::Service, service),
                (None, Some(job)) => (Kind::Job, job),
                (None, None) => continue,
            };
            let key = (unit.namespace.clone(), kind, name.clone());
            let is_there = match self.readiness.get(&key) {
                Some(known) => *known,
                None => {
                    let is_there = is_there(self.ground.index, self.objects, &key);
                    self.readiness.insert(key.clone(), is_there);
                    is_there
                }
            };
            if !is_there {
                let serving = serving(self.ground.index, self.objects, &key);
                return Some(Arc::new(explain::waits_for(self.objects, &key, serving)));
            }
        }
        if let Some(family) = &unit.template.concurrency {
            let key = (unit.namespace.clone(), family.key.clone());
            let running = self.ground.index.families.get(&key).copied().unwrap_or(0);
            if running >= family.limit {
                return Some(Arc::new(explain::family_full(family)));
            }
        }
        let entry = self.ground.index.entry(slot)?;
        if let Some(full) = self.ground.index.tenants.full(entry.tenant) {
            return Some(Arc::new(explain::too_many_units(self.ground.index, full)));
        }
        let request = self.ground.index.request(slot)?;
        let (tenant, short) = self.ground.index.tenants.exceeded(entry.tenant, request, None)?;
        Some(Arc::new(explain::quota(self.ground.index, request, tenant, short)))
    }

    pub(crate) fn search_key(&self, slot: UnitSlot, unit: &Unit) -> Option<SearchKey> {
        let shape = self.ground.index.entry(slot)?.shape;
        let ends_ms = unit
            .template
            .max_run_ms
            .and_then(|run_ms| self.stamp.now_ms.checked_add(i64::try_from(run_ms).ok()?));
        let is_short = match (self.kept_until_ms, ends_ms) {
            (Some(Some(until_ms)), Some(ends_ms)) => ends_ms <= until_ms,
            _ => false,
        };
        Some((shape, is_short))
    }

    /// The best node for the unit now, what to tell about it and the next best, and how many each filter turned down.
    pub(crate) fn find(
        &mut self,
        slot: UnitSlot,
        unit: &Unit,
    ) -> Option<(NodeSlot, Vec<Candidate>, Counts)> {
        let key = self.search_key(slot, unit)?;
        if self.refused.contains_key(&key) {
            return None;
        }
        let index = &*self.ground.index;
        let search = self.searches.entry(key).or_insert_with(|| Search::new(index, key.0, key.1));
        let (found, counts) = search.best(index, &self.ground.changes);
        let best = found.first().map(|best| (best.node, found.clone(), counts));
        self.keep_few_trees(key);
        best
    }

    fn keep_few_trees(&mut self, key: SearchKey) {
        if self.trees.back() == Some(&key) {
            return;
        }
        if self.searches.len() <= TREES_MAX {
            return;
        }
        self.trees.retain(|other| *other != key);
        self.trees.push_back(key);
        if self.trees.len() > TREES_MAX
            && let Some(oldest) = self.trees.pop_front()
            && let Some(search) = self.searches.get_mut(&oldest)
        {
            search.shrink();
        }
    }

    /// Everything that comes with the node: ports, devices, and which variants it runs.
    pub(crate) fn grants(&self, slot: UnitSlot, node: NodeSlot) -> Grants {
        let index = &*self.ground.index;
        let shape = index.entry(slot).and_then(|entry| index.shapes.get(entry.shape));
        let Some(shape) = shape else { return Grants::default() };
        let way = shape.way_on(index.nodes.runtimes[node]);
        let ports = match way.open_ports {
            0 => Vec::new(),
            count => index.nodes.open_ports(node, count, &way.ports).unwrap_or_default(),
        };
        let devices = match shape.request.scalars.is_empty() {
            true => BTreeMap::new(),
            false => index
                .nodes
                .choose_devices(node, &shape.request)
                .unwrap_or_default()
                .into_iter()
                .filter(|(_, devices)| !devices.is_empty())
                .map(|(id, devices)| (index.scalars.name(id).to_owned(), devices))
                .collect(),
        };
        Grants { ports, devices, runtimes: way.runtimes }
    }

    pub(crate) fn accept(
        &mut self,
        slot: UnitSlot,
        unit: &Unit,
        node: NodeSlot,
        found: &[Candidate],
        counts: Counts,
    ) {
        let grants = self.grants(slot, node);
        let Some(name) = self.node_name(node) else { return };
        let verdict = self.verdict(slot, unit, &name, &grants, found);
        self.ground.place(slot, node, grants.clone());
        self.found.decisions.push(Decision::UnitPlace {
            unit: unit.id.clone(),
            node: name,
            grants,
        });
        self.explain(unit, verdict, turned_down(&counts));
    }

    pub(crate) fn node_name(&self, node: NodeSlot) -> Option<NodeName> {
        self.ground.index.nodes.get(node).map(|node| node.name.clone())
    }

    /// To be asked for before the unit is placed: its own room would be counted otherwise.
    pub(crate) fn verdict(
        &self,
        slot: UnitSlot,
        unit: &Unit,
        name: &NodeName,
        grants: &Grants,
        found: &[Candidate],
    ) -> Verdict {
        let index = &*self.ground.index;
        let key = self.search_key(slot, unit);
        let search = key.and_then(|key| self.searches.get(&key));
        let tell = |candidate: &Candidate| {
            let node = index.nodes.get(candidate.node)?.name.clone();
            let scores = search?.question.scores(index, candidate.node);
            Some(Told { node, scores, total: candidate.score })
        };
        let mut told: VecDeque<_> = found.iter().filter_map(tell).collect();
        let winner = told.pop_front();
        let (scores, total) = winner.map_or((Vec::new(), 0), |won| (won.scores, won.total));
        let variants = unit.variants(grants.runtimes);
        Verdict::Placed { node: name.clone(), scores, total, next: told.into(), variants }
    }

    pub(crate) fn is_ended(&self, unit: &Unit) -> bool {
        self.ended.contains(&unit.id)
    }

    /// Does the unit fit on the node?
    pub(crate) fn fits_now(&self, slot: UnitSlot, unit: &Unit, node: NodeSlot) -> bool {
        self.fits(slot, unit, node, Without::default())
    }

    fn fits_once_free(&self, slot: UnitSlot, unit: &Unit, node: NodeSlot) -> bool {
        self.fits(slot, unit, node, Without { units: &[], leavers: true })
    }

    fn fits(&self, slot: UnitSlot, unit: &Unit, node: NodeSlot, without: Without<'_>) -> bool {
        let Some((shape, is_short)) = self.search_key(slot, unit) else { return false };
        let question = Question::new(self.ground.index, shape, is_short);
        question.obstacles(self.ground.index, node, without).is_empty()
    }

    fn leavers(&self, node: NodeSlot) -> Vec<UnitSlot> {
        let index = &*self.ground.index;
        let is_leaving = |slot: &UnitSlot| index.entry(*slot).is_some_and(|entry| entry.is_leaving);
        index.nodes.units[node].iter().copied().filter(is_leaving).collect()
    }

    /// Who would have to go for the unit, and where.
    pub(crate) fn hunt(
        &mut self,
        slot: UnitSlot,
        unit: &Unit,
    ) -> Option<(NodeSlot, Vec<UnitSlot>)> {
        if unit.template.revocable {
            return None;
        }
        let key = self.search_key(slot, unit)?;
        let index = &*self.ground.index;
        let tenant = index.entry(slot)?.tenant;
        let request = index.request(slot)?;
        let guarantor = index.tenants.guarantor(tenant, request);
        let priority = unit.template.priority;
        let may_make_room = guarantor.is_some()
            || !index.leavers.is_empty()
            || index.has_less_important_than(priority);
        if !may_make_room {
            // Nobody on any node could go: that need not be asked of each.
            return None;
        }
        let tenant = Some(tenant).filter(|_| index.tenants.has_guarantees());
        let spared = unit.template.after.iter().filter_map(|dependency| {
            let service = dependency.service.clone()?;
            Some((unit.namespace.clone(), Kind::Service, service))
        });
        let claimant = Claimant { priority, tenant, guarantor, spared: spared.collect() };
        let hunt_key = (key, claimant.clone());
        if self.hopeless_hunts.contains(&hunt_key) {
            return None;
        }
        let hunt = self
            .hunts
            .entry(hunt_key.clone())
            .or_insert_with(|| Hunt::new(Question::new(index, key.0, key.1), claimant));
        let found = hunt.best(index, self.objects, &mut self.disruptions, &self.ground.changes);
        if found.is_none() {
            self.hopeless_hunts.insert(hunt_key);
        }
        found
    }

    /// Tells units to stop for `unit`.
    pub(crate) fn stop(&mut self, victims: &[UnitSlot], unit: &Unit) {
        if !victims.is_empty() {
            // What they leave may be more than is needed here.
            self.has_freed = true;
            self.hopeless_hunts.clear();
        }
        for slot in victims {
            let Some(victim) = self.ground.index.unit(*slot).cloned() else { continue };
            self.disruptions.stopped(self.ground.index, &victim);
            self.ground.set_leaving(*slot);
            // A job counts its units, also those that were stopped; a unit on its own stays to be seen.
            let desired = match &victim.owner {
                Some(owner) if owner.kind() == Kind::Service => Desired::Remove,
                _ => Desired::Stop,
            };
            self.found.decisions.push(Decision::UnitStop {
                unit: victim.id.clone(),
                desired,
                reason: Reason::Preempted,
                message: Some(explain::makes_room(unit)),
            });
        }
    }

    /// Why the shape can't be placed.
    pub(crate) fn refusal(&mut self, slot: UnitSlot, unit: &Unit) -> Arc<Refused> {
        let Some(key) = self.search_key(slot, unit) else { return Arc::new(Refused::unknown()) };
        if let Some(known) = self.refused.get(&key) {
            return Arc::clone(known);
        }
        let question = match self.searches.get(&key) {
            Some(search) => search.question.clone(),
            None => Question::new(self.ground.index, key.0, key.1),
        };
        let refused = Arc::new(explain::refused(self.ground.index, &question));
        self.refused.insert(key, Arc::clone(&refused));
        refused
    }

    /// Forgets refusals that were found while more was charged than now.
    pub(crate) fn forget_refusals(&mut self) {
        self.refused.clear();
        self.hopeless_hunts.clear();
    }

    pub(crate) fn refuse(&mut self, unit: &Unit, refused: &Refused, promised: Option<NodeSlot>) {
        let promised = promised.and_then(|node| self.node_name(node));
        let is_asked = self.asked.is_some() && self.ground.index.slot(&unit.id) == self.asked;
        let is_known = !is_asked
            && unit.status.reason == Some(refused.reason)
            && unit.status.message.as_ref() == Some(&refused.status)
            && unit.promised == promised;
        if is_known {
            return;
        }
        self.found.decisions.push(Decision::UnitRefuse {
            unit: unit.id.clone(),
            reason: refused.reason,
            message: refused.status.clone(),
            promised,
        });
        let verdict = Verdict::Refused { message: refused.message.clone() };
        self.explain(unit, verdict, refused.refusals.clone());
    }

    fn explain(&mut self, unit: &Unit, verdict: Verdict, refusals: Vec<Refusal>) {
        let nodes = self.ground.index.nodes.count();
        self.found.explanations.push(Explanation {
            unit: unit.id.clone(),
            plan: self.stamp.plan,
            decided_ms: self.stamp.now_ms,
            nodes: u32::try_from(nodes).unwrap_or(u32::MAX),
            policy: POLICY.into(),
            verdict,
            refusals,
        });
    }
}

/// How many nodes each filter turned down, without more: nobody asks why a placed unit is not elsewhere, and if somebody
/// does, `brig why --node` looks.
fn turned_down(counts: &Counts) -> Vec<Refusal> {
    let mut refusals: Vec<_> = Obstacle::ALL
        .into_iter()
        .zip(counts)
        .filter(|(_, nodes)| **nodes > 0)
        .map(|(obstacle, nodes)| Refusal {
            filter: obstacle.name().into(),
            nodes: *nodes,
            detail: String::new(),
        })
        .collect();
    refusals.sort_by_key(|refusal| std::cmp::Reverse(refusal.nodes));
    refusals
}

/// Does what a unit comes after exist, and is it ready (a service) or has it succeeded (a job)?
fn is_there(index: &Index, objects: &Objects, key: &crate::index::OwnerKey) -> bool {
    let (namespace, kind, name) = key;
    match kind {
        Kind::Job => {
            let job = objects.jobs.get(namespace).and_then(|names| names.get(name));
            job.is_some_and(|job| job.state == brig_api::object::JobState::Succeeded)
        }
        _ => {
            let service = objects.services.get(namespace).and_then(|names| names.get(name));
            service.is_some_and(|service| {
                !service.is_deleting && serving(index, objects, key) >= service.spec.replicas
            })
        }
    }
}

/// How many units of a service, as it is now, run where they can be reached.
fn serving(index: &Index, objects: &Objects, key: &crate::index::OwnerKey) -> u32 {
    let (namespace, _, name) = key;
    let service = objects.services.get(namespace).and_then(|names| names.get(name));
    let Some(service) = service else { return 0 };
    let running = index.units_of(key).filter(|(_, unit)| {
        let node = unit.node.as_ref().and_then(|node| index.nodes.slot(node));
        unit.status.state == brig_api::lifecycle::UnitState::Running
            && unit.desired == Desired::Run
            && crate::index::generation(unit) == Some(service.generation)
            && node.is_some_and(|node| index.nodes.is_ready[node])
    });
    u32::try_from(running.count()).unwrap_or(u32::MAX)
}
