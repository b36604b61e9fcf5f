//! Filters and scores: can a node take a shape, and how well?

use std::collections::BTreeMap;

use brig_api::explain::Score;

use crate::holdings::Held;
use crate::index::identities::TermId;
use crate::index::nodes::POINTS_MAX;
use crate::index::shapes::{Fixed, Rule, RuleKind, Shape, Way};
use crate::index::topologies::{Domain, NO_DOMAIN, NODE, TopologyId};
use crate::index::{Index, NodeSlot, ShapeId, UnitSlot};
use crate::obstacle::Obstacle;
use crate::vector::{Entry, Vector};

/// The name and version of the policy below, for the records of its decisions.
pub(crate) const POLICY: &str = "bin-packing/4";

/// How much each term counts. Packing counts most of what is always there: a node that is full leaves another one free
/// for a large unit, or for nobody. Balance breaks ties such that cpu and memory run out together. What users ask for
/// counts more than both together once its weight is 100.
const PACKING: i64 = 4;
const BALANCE: i64 = 1;
const LOCALITY: i64 = 1;
/// As much as fullness at most: what needs no device stays off nodes with devices while there are others.
const SPARING: i64 = PACKING;
const ASKED_FOR: i64 = 5;

const POINTS: u64 = POINTS_MAX.unsigned_abs();

/// Beyond so many units more than elsewhere a preference for spreading gives nothing at all.
const SPREAD_STEPS: i64 = 10;

/// A shape, and what a pass knows about the rules it goes by.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub(crate) shape: ShapeId,
    /// It ends before what is kept for a gang is needed.
    pub(crate) is_short: bool,
    /// It needs no named resource, and some nodes have any: those are spared.
    is_sparing: bool,
    /// Positions of rules over nodes in the shape's list.
    node_rules: Vec<usize>,
    /// Positions of the other rules.
    domain_rules: Vec<usize>,
    node_terms: Vec<TermId>,
    domain_terms: Vec<(TermId, TopologyId)>,
    /// Domains with a node that the shape could use, by topology of its spread rules.
    eligible: BTreeMap<TopologyId, Vec<bool>>,
    /// By rule: for spread, the fewest units in an eligible domain; for near, whether there are any.
    fewest: Vec<u32>,
}

/// A node as it would be.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Without<'u> {
    /// Without these units.
    pub(crate) units: &'u [UnitSlot],
    /// And without those that are leaving already.
    pub(crate) leavers: bool,
}

impl Question {
    /// Asks for a shape.
    pub(crate) fn new(index: &Index, shape_id: ShapeId, is_short: bool) -> Self {
        let mut question = Self {
            shape: shape_id,
            is_short,
            is_sparing: false,
            node_rules: Vec::new(),
            domain_rules: Vec::new(),
            node_terms: Vec::new(),
            domain_terms: Vec::new(),
            eligible: BTreeMap::new(),
            fewest: Vec::new(),
        };
        let Some(shape) = index.shapes.get(shape_id) else { return question };
        question.is_sparing = shape.request.scalars.is_empty() && index.nodes.with_scalars > 0;
        for (position, rule) in shape.rules.iter().enumerate() {
            let is_over_nodes = rule.topology == NODE;
            let list =
                if is_over_nodes { &mut question.node_rules } else { &mut question.domain_rules };
            list.push(position);
            if matches!(rule.kind, RuleKind::Spread { .. }) {
                question
                    .eligible
                    .entry(rule.topology)
                    .or_insert_with(|| eligible_domains(index, shape, rule.topology));
            }
        }
        for (term, topology) in
            shape.identity.map(|id| index.neighbours.terms_against(id)).unwrap_or_default()
        {
            if topology == NODE {
                question.node_terms.push(term);
            } else {
                question.domain_terms.push((term, topology));
            }
        }
        question.fewest = vec![0; shape.rules.len()];
        question.refresh(index);
        question
    }

    /// The topologies, but for that of nodes, whose domains decide about the shape.
    pub(crate) fn topologies(&self, index: &Index) -> Vec<TopologyId> {
        let Some(shape) = index.shapes.get(self.shape) else { return Vec::new() };
        let of_rules = self.domain_rules.iter().map(|position| shape.rules[*position].topology);
        let of_terms = self.domain_terms.iter().map(|(_, topology)| *topology);
        let mut topologies: Vec<_> = of_rules.chain(of_terms).collect();
        topologies.sort_unstable();
        topologies.dedup();
        topologies
    }

    /// Counts anew what rules compare with. True when what they say of nodes is no longer what it was.
    pub(crate) fn refresh(&mut self, index: &Index) -> bool {
        let Some(shape) = index.shapes.get(self.shape) else { return false };
        let mut has_changed = false;
        for (position, rule) in shape.rules.iter().enumerate() {
            let fewest = match &rule.kind {
                RuleKind::Spread { targets, .. } if targets.is_empty() => {
                    let eligible = self.eligible.get(&rule.topology).map_or(&[][..], Vec::as_slice);
                    let counted = eligible.iter().enumerate().filter(|(_, eligible)| **eligible);
                    let count =
                        |(domain, _)| index.neighbours.count(rule.selector, rule.topology, domain);
                    counted.map(count).min().unwrap_or(0)
                }
                // The first may go anywhere, and nobody after it.
                RuleKind::Near { selects_itself: true } => {
                    index.neighbours.total(rule.selector).min(1)
                }
                _ => continue,
            };
            if self.fewest[position] != fewest {
                self.fewest[position] = fewest;
                has_changed |= rule.topology == NODE;
            }
        }
        has_changed
    }

    /// What keeps the shape off the node, or its score there, as far as the node alone decides.
    pub(crate) fn on_node(
        &self,
        index: &Index,
        shape: &Shape,
        fixed: &Fixed,
        slot: NodeSlot,
    ) -> Result<i64, Obstacle> {
        let nodes = &index.nodes;
        if !nodes.is_ready[slot] {
            return Err(Obstacle::Ready);
        }
        if let Some(obstacle) = fixed.obstacles[slot] {
            return Err(obstacle);
        }
        if index.shapes.lacks_artifacts(shape, slot, nodes) {
            return Err(Obstacle::Artifacts);
        }
        if shape.has_ports {
            ports(index, shape, slot, &[]).map_or(Ok(()), Err)?;
        }
        let request = &shape.request;
        let (cpu, memory, disk) = (
            nodes.used.cpu[slot].wrapping_add(request.cpu),
            nodes.used.memory[slot].wrapping_add(request.memory),
            nodes.used.disk[slot].wrapping_add(request.disk),
        );
        let fits = (cpu <= nodes.capacity.cpu[slot] || request.cpu == 0)
            && (memory <= nodes.capacity.memory[slot] || request.memory == 0)
            && (disk <= nodes.capacity.disk[slot] || request.disk == 0);
        if !fits || (!request.scalars.is_empty() && nodes.choose_devices(slot, request).is_none()) {
            return Err(Obstacle::Resources);
        }
        if !self.is_short {
            let is_left = (cpu + nodes.kept.cpu[slot] <= nodes.capacity.cpu[slot]
                || request.cpu == 0)
                && (memory + nodes.kept.memory[slot] <= nodes.capacity.memory[slot]
                    || request.memory == 0)
                && (disk + nodes.kept.disk[slot] <= nodes.capacity.disk[slot] || request.disk == 0);
            if !is_left {
                return Err(Obstacle::Kept);
            }
        }
        let cpu = nodes.cpu_scale[slot].share(cpu);
        let memory = nodes.memory_scale[slot].share(memory);
        let packing = if disk == 0 && request.scalars.is_empty()
            || (request.disk == 0 && request.scalars.is_empty())
        {
            (cpu + memory) / 2
        } else {
            packing(index, request, slot, cpu, memory)
        };
        let balance = POINTS_MAX - (cpu - memory).abs();
        let mut score = PACKING * packing + BALANCE * balance;
        if self.is_sparing && !nodes.has_scalars[slot] {
            score += SPARING * POINTS_MAX;
        }
        if !fixed.points.is_empty() {
            score += ASKED_FOR * fixed.points[slot];
        }
        if !self.node_rules.is_empty() || !self.node_terms.is_empty() {
            score += ASKED_FOR * self.by_node_rules(index, shape, slot)?;
        }
        Ok(score)
    }

    /// Is there nothing to ask of a node but whether it is suitable at all and has cpu, memory and disk? Most shapes are so,
    /// and every node is looked at for each of them.
    pub(crate) fn is_plain(&self, shape: &Shape, fixed: &Fixed) -> bool {
        !shape.has_ports
            && !shape.needs_artifacts
            && shape.request.disk == 0
            && shape.request.scalars.is_empty()
            && fixed.points.is_empty()
            && self.node_rules.is_empty()
            && self.node_terms.is_empty()
    }

    /// [`Self::on_node`] for a plain shape on every slot, in order: the same answers, without a look at what does not matter.
    pub(crate) fn on_all_nodes(
        &self,
        index: &Index,
        shape: &Shape,
        fixed: &Fixed,
        mut tell: impl FnMut(NodeSlot, Result<i64, Obstacle>),
    ) {
        let nodes = &index.nodes;
        let count = nodes.slots();
        let (wanted_cpu, wanted_memory) = (shape.request.cpu, shape.request.memory);
        let has_kept = !self.is_short && nodes.has_kept;
        // Slices of one length: the compiler then leaves out the checks of bounds.
        let is_ready = &nodes.is_ready[..count];
        let obstacles = &fixed.obstacles[..count];
        let (used_cpu, used_memory) = (&nodes.used.cpu[..count], &nodes.used.memory[..count]);
        let (cpu, memory) = (&nodes.capacity.cpu[..count], &nodes.capacity.memory[..count]);
        let (kept_cpu, kept_memory) = (&nodes.kept.cpu[..count], &nodes.kept.memory[..count]);
        let has_scalars = &nodes.has_scalars[..count];
        let spared = if self.is_sparing { SPARING * POINTS_MAX } else { 0 };
        let (cpu_scale, memory_scale) = (&nodes.cpu_scale[..count], &nodes.memory_scale[..count]);
        for slot in 0..count {
            if !is_ready[slot] {
                tell(slot, Err(Obstacle::Ready));
                continue;
            }
            if let Some(obstacle) = obstacles[slot] {
                tell(slot, Err(obstacle));
                continue;
            }
            let new_cpu = used_cpu[slot].wrapping_add(wanted_cpu);
            let new_memory = used_memory[slot].wrapping_add(wanted_memory);
            let fits = (new_cpu <= cpu[slot] || wanted_cpu == 0)
                & (new_memory <= memory[slot] || wanted_memory == 0);
            if !fits {
                tell(slot, Err(Obstacle::Resources));
                continue;
            }
            if has_kept {
                let is_left = (new_cpu + kept_cpu[slot] <= cpu[slot] || wanted_cpu == 0)
                    & (new_memory + kept_memory[slot] <= memory[slot] || wanted_memory == 0);
                if !is_left {
                    tell(slot, Err(Obstacle::Kept));
                    continue;
                }
            }
            let cpu_share = cpu_scale[slot].share_of_fitting(new_cpu).min(POINTS);
            let memory_share = memory_scale[slot].share_of_fitting(new_memory).min(POINTS);
            let packing = (cpu_share + memory_share) / 2;
            let balance = POINTS - cpu_share.abs_diff(memory_share);
            let score = (PACKING * packing.cast_signed()) + (BALANCE * balance.cast_signed());
            tell(slot, Ok(if has_scalars[slot] { score } else { score + spared }));
        }
    }

    fn by_node_rules(&self, index: &Index, shape: &Shape, slot: NodeSlot) -> Result<i64, Obstacle> {
        if self.node_terms.iter().any(|term| index.neighbours.holders(*term, slot) > 0) {
            return Err(Obstacle::Away);
        }
        self.by_rules(index, shape, &self.node_rules, |_| slot)
    }

    /// What keeps the shape out of a cell, or the points it gets there. `domains` goes with `topologies`.
    pub(crate) fn in_cell(
        &self,
        index: &Index,
        shape: &Shape,
        topologies: &[TopologyId],
        domains: &[Domain],
    ) -> Result<i64, Obstacle> {
        let domain_of = |topology: TopologyId| {
            let position = topologies.binary_search(&topology);
            position.map_or(NO_DOMAIN, |position| domains[position])
        };
        let is_held = |(term, topology): &(TermId, TopologyId)| {
            let domain = domain_of(*topology);
            domain != NO_DOMAIN && index.neighbours.holders(*term, domain) > 0
        };
        if self.domain_terms.iter().any(is_held) {
            return Err(Obstacle::Away);
        }
        let points = self.by_rules(index, shape, &self.domain_rules, domain_of)?;
        Ok(ASKED_FOR * points)
    }

    fn by_rules(
        &self,
        index: &Index,
        shape: &Shape,
        positions: &[usize],
        domain_of: impl Fn(TopologyId) -> Domain,
    ) -> Result<i64, Obstacle> {
        let mut points = 0;
        for position in positions {
            let rule = &shape.rules[*position];
            let domain = domain_of(rule.topology);
            points += self.by_rule(index, rule, *position, domain, 0)?;
        }
        Ok(points)
    }

    /// `fewer` units of those that the rule selects are to be gone from the domain.
    fn by_rule(
        &self,
        index: &Index,
        rule: &Rule,
        position: usize,
        domain: Domain,
        fewer: u32,
    ) -> Result<i64, Obstacle> {
        let neighbours = &index.neighbours;
        let is_nowhere = domain == NO_DOMAIN;
        let count = if is_nowhere {
            0
        } else {
            neighbours.count(rule.selector, rule.topology, domain).saturating_sub(fewer)
        };
        let weight = rule.weight.map(|weight| i64::from(weight) * 10);
        match (&rule.kind, weight) {
            (RuleKind::Near { .. }, Some(points)) => Ok(if count > 0 { points } else { 0 }),
            (RuleKind::Near { selects_itself }, None) => {
                let is_first = *selects_itself && neighbours.total(rule.selector) == fewer;
                if count > 0 || (is_first && !is_nowhere) { Ok(0) } else { Err(Obstacle::Near) }
            }
            (RuleKind::Away, Some(points)) => Ok(if count > 0 { -points } else { 0 }),
            (RuleKind::Away, None) => {
                if count == 0 {
                    Ok(0)
                } else {
                    Err(Obstacle::Away)
                }
            }
            (RuleKind::Spread { max_skew, targets }, weight) => {
                if is_nowhere {
                    return if weight.is_none() { Err(Obstacle::Spread) } else { Ok(0) };
                }
                let beyond = if targets.is_empty() {
                    i64::from(count) - i64::from(self.fewest[position])
                } else {
                    let total = neighbours.total(rule.selector).saturating_sub(fewer);
                    i64::from(count) - self.part(index, rule, targets, domain, total)
                };
                match weight {
                    None if beyond < i64::from(*max_skew) => Ok(0),
                    None => Err(Obstacle::Spread),
                    Some(points) => {
                        let steps = beyond.clamp(0, SPREAD_STEPS);
                        Ok(points * (SPREAD_STEPS - steps) / SPREAD_STEPS)
                    }
                }
            }
        }
    }

    /// How many units a domain should have once there is one more, minus one: its part in percent, rounded up. What is not
    /// named shares what is left.
    fn part(
        &self,
        index: &Index,
        rule: &Rule,
        targets: &BTreeMap<String, u32>,
        domain: Domain,
        total: u32,
    ) -> i64 {
        let topologies = &index.neighbours.topologies;
        let percent = match targets.get(topologies.name(rule.topology, domain)) {
            Some(percent) => i64::from(*percent) * 100,
            None => {
                let named: u32 = targets.values().sum();
                let eligible = self.eligible.get(&rule.topology).map_or(&[][..], Vec::as_slice);
                let others = eligible.iter().enumerate().filter(|(domain, is_eligible)| {
                    **is_eligible && !targets.contains_key(topologies.name(rule.topology, *domain))
                });
                let others = i64::try_from(others.count()).unwrap_or(i64::MAX).max(1);
                i64::from(100u32.saturating_sub(named)) * 100 / others
            }
        };
        let wanted = (i64::from(total) + 1) * percent;
        (wanted + 9_999) / 10_000 - 1
    }

    /// Everything that is in the way on a node as it would be, in the order of the filters.
    pub(crate) fn obstacles(
        &self,
        index: &Index,
        slot: NodeSlot,
        without: Without<'_>,
    ) -> Vec<Obstacle> {
        let mut found = Vec::new();
        let Some(shape) = index.shapes.get(self.shape) else { return found };
        let fixed = index.shapes.fixed(shape);
        if !index.nodes.is_ready[slot] {
            found.push(Obstacle::Ready);
        }
        found.extend(fixed.and_then(|fixed| fixed.obstacles[slot]));
        if index.shapes.lacks_artifacts(shape, slot, &index.nodes) {
            found.push(Obstacle::Artifacts);
        }
        let leavers: Vec<UnitSlot>;
        let gone = if without.leavers {
            let on_node = index.nodes.units[slot].iter().copied();
            let is_gone = |unit: &UnitSlot| {
                without.units.contains(unit)
                    || index.entry(*unit).is_some_and(|entry| entry.is_leaving)
            };
            leavers = on_node.filter(is_gone).collect();
            &leavers[..]
        } else {
            without.units
        };
        found.extend(ports(index, shape, slot, gone));
        match room(index, shape, slot, gone, self.is_short) {
            Room::Enough => {}
            Room::Kept => found.push(Obstacle::Kept),
            Room::Short => found.push(Obstacle::Resources),
        }
        found.extend(self.neighbour_obstacles(index, shape, slot, gone));
        found.dedup();
        found
    }

    fn neighbour_obstacles(
        &self,
        index: &Index,
        shape: &Shape,
        slot: NodeSlot,
        gone: &[UnitSlot],
    ) -> Vec<Obstacle> {
        let held = self.held_against(index, slot, gone).map(|_| Obstacle::Away);
        let broken = self.broken_rules(index, shape, slot, gone);
        let mut found: Vec<_> = held.chain(broken.map(|(_, obstacle)| obstacle)).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// What units that stay on or near the node hold against the shape's.
    pub(crate) fn held_against(
        &self,
        index: &Index,
        slot: NodeSlot,
        gone: &[UnitSlot],
    ) -> impl Iterator<Item = (TermId, TopologyId)> {
        let neighbours = &index.neighbours;
        let held_by_gone = move |term: &TermId| {
            let holds = gone.iter().filter(|unit| {
                let shape = index.entry(**unit).and_then(|entry| index.shapes.get(entry.shape));
                shape.is_some_and(|shape| shape.away_terms.contains(term))
            });
            u32::try_from(holds.count()).unwrap_or(u32::MAX)
        };
        let node_terms = self.node_terms.iter().map(|term| (*term, NODE));
        node_terms.chain(self.domain_terms.iter().copied()).filter(move |(term, topology)| {
            let domain = neighbours.topologies.of(*topology, slot);
            domain != NO_DOMAIN && neighbours.holders(*term, domain) > held_by_gone(term)
        })
    }

    /// Rules of the shape, by position, that would not hold on the node.
    pub(crate) fn broken_rules(
        &self,
        index: &Index,
        shape: &Shape,
        slot: NodeSlot,
        gone: &[UnitSlot],
    ) -> impl Iterator<Item = (usize, Obstacle)> {
        let neighbours = &index.neighbours;
        shape.rules.iter().enumerate().filter_map(move |(position, rule)| {
            let domain = neighbours.topologies.of(rule.topology, slot);
            let selected = gone.iter().filter(|unit| {
                let entry = index.entry(**unit);
                entry.is_some_and(|entry| neighbours.is_selected(rule.selector, entry.identity))
            });
            let fewer = u32::try_from(selected.count()).unwrap_or(u32::MAX);
            let obstacle = self.by_rule(index, rule, position, domain, fewer).err()?;
            Some((position, obstacle))
        })
    }

    /// For a spread over equal parts: how many units are where there are fewest.
    pub(crate) fn fewest(&self, position: usize) -> u32 {
        self.fewest.get(position).copied().unwrap_or(0)
    }

    /// The terms of the score, for explanations.
    pub(crate) fn scores(&self, index: &Index, slot: NodeSlot) -> Vec<Score> {
        let Some(shape) = index.shapes.get(self.shape) else { return Vec::new() };
        let nodes = &index.nodes;
        let request = &shape.request;
        let cpu = nodes.cpu_scale[slot].share(nodes.used.cpu[slot].wrapping_add(request.cpu));
        let memory =
            nodes.memory_scale[slot].share(nodes.used.memory[slot].wrapping_add(request.memory));
        let packing = packing(index, request, slot, cpu, memory);
        let balance = POINTS_MAX - (cpu - memory).abs();
        let locality = locality_points(index.shapes.held_on(shape, slot, nodes));
        let spared = if self.is_sparing && !nodes.has_scalars[slot] { POINTS_MAX } else { 0 };
        let prefer = index.shapes.fixed(shape).and_then(|fixed| fixed.points.get(slot).copied());
        let mut of_rules = [("near", 0), ("away", 0), ("spread", 0)];
        for (position, rule) in shape.rules.iter().enumerate() {
            let domain = index.neighbours.topologies.of(rule.topology, slot);
            let points = self.by_rule(index, rule, position, domain, 0).unwrap_or(0);
            let kind = match rule.kind {
                RuleKind::Near { .. } => 0,
                RuleKind::Away => 1,
                RuleKind::Spread { .. } => 2,
            };
            of_rules[kind].1 += points;
        }
        let always = [("bin-packing", packing, PACKING), ("balance", balance, BALANCE)];
        let sometimes = [
            ("spare-devices", spared, SPARING),
            ("locality", locality, LOCALITY),
            ("prefer", prefer.unwrap_or(0), ASKED_FOR),
        ];
        let of_rules = of_rules.into_iter().map(|(name, points)| (name, points, ASKED_FOR));
        let all = always.into_iter().chain(sometimes).chain(of_rules);
        all.filter(|(name, points, _)| *points != 0 || matches!(*name, "bin-packing" | "balance"))
            .map(|(name, points, weight)| Score { name: name.into(), points, weight })
            .collect()
    }
}

/// Points for a node that could run everything at once: as much as it counts that a node is a twentieth fuller, and less than
/// one step of a spread that names no weight. Half of that where there is nothing to fetch, but something to compile.
fn locality_points(held: Held) -> i64 {
    match held {
        Held::Not => 0,
        Held::Fetched => POINTS_MAX / 10,
        Held::Ready => POINTS_MAX / 5,
    }
}

/// The same, weighted.
pub(crate) fn locality_score(held: Held) -> i64 {
    LOCALITY * locality_points(held)
}

/// How full the node would be: the mean of cpu and memory and of every other resource that is asked for.
fn packing(index: &Index, request: &Vector, slot: NodeSlot, cpu: i64, memory: i64) -> i64 {
    let nodes = &index.nodes;
    let (mut sum, mut count) = (cpu + memory, 2);
    let others = request
        .entries()
        .filter(|(entry, wanted)| *wanted > 0 && !matches!(entry, Entry::Cpu | Entry::Memory));
    for (entry, wanted) in others {
        let capacity = u128::from(nodes.declared(slot).of(entry)).max(1);
        let free = match entry {
            Entry::Scalar(id) => {
                let stock = nodes.stock[slot].iter().find(|(other, _)| *other == id);
                u128::from(stock.map_or(0, |(_, stock)| stock.free()))
            }
            _ => capacity.saturating_sub(u128::from(nodes.used.disk[slot])),
        };
        let used = capacity.saturating_sub(free) + u128::from(wanted);
        sum += i64::try_from(used * 1_000 / capacity).unwrap_or(POINTS_MAX).min(POINTS_MAX);
        count += 1;
    }
    sum / count
}

/// Are the shape's ports to be had on the node, without the units in `gone`?
fn ports(index: &Index, shape: &Shape, slot: NodeSlot, gone: &[UnitSlot]) -> Option<Obstacle> {
    let nodes = &index.nodes;
    let Way { ports: fixed, open_ports, .. } = shape.way_on(nodes.runtimes[slot]);
    let is_taken =
        !fixed.is_empty() && nodes.taken_port(slot, fixed, shape.port_owner, gone).is_some();
    let is_short = *open_ports > 0 && nodes.open_ports(slot, *open_ports, fixed).is_none();
    (is_taken || is_short).then_some(Obstacle::Ports)
}

enum Room {
    Enough,
    Kept,
    Short,
}

/// Is there room on the node, without the units in `gone`?
fn room(index: &Index, shape: &Shape, slot: NodeSlot, gone: &[UnitSlot], is_short: bool) -> Room {
    let nodes = &index.nodes;
    let request = &shape.request;
    let mut freed = Vector::default();
    for unit in gone {
        if let Some(request) = index.request(*unit) {
            freed.add(request);
        }
    }
    let used = nodes.used.at(slot).saturating_sub(&freed);
    let (capacity, kept) = (nodes.capacity.at(slot), nodes.kept.at(slot));
    let fits = |used: &Vector, more: &Vector| {
        [Entry::Cpu, Entry::Memory, Entry::Disk].into_iter().all(|entry| {
            let wanted = request.of(entry);
            wanted == 0
                || used.of(entry).saturating_add(more.of(entry)).saturating_add(wanted)
                    <= capacity.of(entry)
        })
    };
    if !fits(&used, &Vector::default()) || !devices_fit(index, request, slot, gone) {
        Room::Short
    } else if !is_short && !fits(&used, &kept) {
        Room::Kept
    } else {
        Room::Enough
    }
}

fn devices_fit(index: &Index, request: &Vector, slot: NodeSlot, gone: &[UnitSlot]) -> bool {
    let nodes = &index.nodes;
    request.scalars.iter().filter(|(_, wanted)| *wanted > 0).all(|(id, wanted)| {
        let stock = nodes.stock[slot].iter().find(|(other, _)| other == id);
        let Some((_, stock)) = stock else { return false };
        if gone.is_empty() {
            return stock.choose(*wanted).is_some();
        }
        let mut stock = stock.clone();
        for unit in gone {
            let (Some(entry), Some(request)) = (index.entry(*unit), index.request(*unit)) else {
                continue;
            };
            let amount = request.of(Entry::Scalar(*id));
            let devices = entry.grants.devices.get(index.scalars.name(*id));
            if amount > 0 {
                stock.give_back(amount, devices.map_or(&[][..], Vec::as_slice));
            }
        }
        stock.choose(*wanted).is_some()
    })
}

fn eligible_domains(index: &Index, shape: &Shape, topology: TopologyId) -> Vec<bool> {
    let topologies = &index.neighbours.topologies;
    let mut eligible = vec![false; topologies.domains(topology, &index.nodes)];
    let Some(fixed) = index.shapes.fixed(shape) else { return eligible };
    for slot in index.nodes.in_order() {
        let domain = topologies.of(topology, slot);
        let can_use = index.nodes.is_ready[slot]
            && fixed.obstacles[slot].is_none()
            && !index.shapes.lacks_artifacts(shape, slot, &index.nodes);
        if domain != NO_DOMAIN && can_use {
            eligible[domain] = true;
        }
    }
    eligible
}
