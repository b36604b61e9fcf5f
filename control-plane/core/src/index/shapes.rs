//! Shapes: everything about a unit that decides which nodes can take it. Units of one shape are filtered and scored once.

use std::collections::{BTreeMap, BTreeSet};

use brig_api::constraint::Constraint;
use brig_api::object::{Node, Unit};
use brig_api::placement::{
    ArtifactRule, Neighbours, OVER_NODE, PlacementRules, Preference, Spread, Taint, TaintEffect,
    Toleration,
};
use brig_api::reference::Reference;
use brig_api::unit_spec::{HostPort, Program, Runtime, UnitTemplate};
use brig_api::variants::{Choice, RuntimeSet};

use super::identities::{IdentityId, Neighbourhoods, SelectorId, SelectorKey, TermId};
use super::nodes::Nodes;
use super::topologies::TopologyId;
use super::{NodeSlot, OwnerId, ShapeId, owner_key};
use crate::holdings::{ArtifactKey, Held, Holdings};
use crate::obstacle::Obstacle;
use crate::vector::{ScalarNames, Vector};

/// The weight of a spread that names none, and of a taint that makes a node less welcome.
const WEIGHT_IMPLIED: i32 = 50;

/// What a shape requires of the nodes' own properties: the same for many shapes, and decided once for each node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct FixedKey {
    runtimes: Vec<RuntimeSet>,
    constraints: Vec<Constraint>,
    tolerations: Vec<Toleration>,
    volumes: Vec<String>,
    preferences: Vec<Preference>,
}

/// The same, decided.
#[derive(Debug, Clone)]
pub(crate) struct Fixed {
    key: FixedKey,
    uses: usize,
    /// What is in the way, by node.
    pub(crate) obstacles: Vec<Option<Obstacle>>,
    /// Points of preferences by node; empty when there are none.
    pub(crate) points: Vec<i64>,
}

/// A rule about other units, with numbers for what it names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rule {
    pub(crate) kind: RuleKind,
    pub(crate) selector: SelectorId,
    pub(crate) topology: TopologyId,
    /// Of a preference; None: a requirement.
    pub(crate) weight: Option<i32>,
}

/// What a rule says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RuleKind {
    /// Be where the selected units are.
    Near {
        /// The unit is one of them: the first of them need not find another.
        selects_itself: bool,
    },
    /// Be where they are not.
    Away,
    /// Be where there are few of them.
    Spread {
        /// How many more than elsewhere; of a requirement.
        max_skew: u32,
        /// Parts in percent by value.
        targets: BTreeMap<String, u32>,
    },
}

/// One way to run a shape's tasks: which of their variants, and what those need of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Way {
    /// The runtime of each task; empty where none leaves a choice.
    pub(crate) runtimes: Choice,
    /// Ports of the node that it occupies.
    pub(crate) ports: Vec<HostPort>,
    /// Ports that it leaves open.
    pub(crate) open_ports: usize,
    artifacts: Vec<usize>,
}

/// All ways: which of them it is depends on what a node can run, and on nothing else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Ways {
    /// Where all variants can be run, and everywhere where none of the others is named.
    preferred: Way,
    /// On nodes that have exactly these runtimes.
    others: Vec<(RuntimeSet, Way)>,
}

impl Ways {
    fn all(&self) -> impl Iterator<Item = &Way> {
        std::iter::once(&self.preferred).chain(self.others.iter().map(|(_, way)| way))
    }
}

/// What makes shapes different.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct ShapeKey {
    request: Vector,
    fixed: usize,
    ways: Ways,
    needs_artifacts: bool,
    port_owner: Option<OwnerId>,
    /// Only where other units matter to it, or it may matter to others.
    neighbours: Option<(IdentityId, NeighbourRules)>,
}

/// The part of a unit's placement rules that is about other units.
type NeighbourRules = (Vec<Neighbours>, Vec<Neighbours>, Vec<Spread>, bool);

/// One shape.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    key: ShapeKey,
    uses: usize,
    /// What it asks for.
    pub(crate) request: Vector,
    /// The number of its fixed requirements.
    fixed: usize,
    /// It occupies ports of the node, or leaves ports open, in one of its ways at least.
    pub(crate) has_ports: bool,
    /// Its service, where it shares a port.
    pub(crate) port_owner: Option<OwnerId>,
    /// It goes only where everything that it would run is held.
    pub(crate) needs_artifacts: bool,
    /// Rules about other units.
    pub(crate) rules: Vec<Rule>,
    /// What its units hold against others.
    pub(crate) away_terms: Vec<TermId>,
    /// Who it is to others, where that matters.
    pub(crate) identity: Option<IdentityId>,
    /// It was refused when so much had happened, at most at this priority.
    pub(crate) hopeless: Option<(u64, i32)>,
}

impl Shape {
    /// How its tasks are run on a node that has these runtimes.
    pub(crate) fn way_on(&self, node: RuntimeSet) -> &Way {
        let ways = &self.key.ways;
        let other = ways.others.iter().find(|(runtimes, _)| *runtimes == node);
        other.map_or(&ways.preferred, |(_, way)| way)
    }

    /// How the tasks of a unit are run to which these runtimes were granted.
    pub(crate) fn way_chosen(&self, runtimes: Choice) -> &Way {
        let ways = &self.key.ways;
        ways.all().find(|way| way.runtimes == runtimes).unwrap_or(&ways.preferred)
    }
}

/// A set of nodes, as bits.
#[derive(Debug, Clone, Default)]
struct NodeSet(Vec<u64>);

impl NodeSet {
    fn set(&mut self, node: NodeSlot, is_in: bool) {
        let (word, bit) = (node / WORD_BITS, 1 << (node % WORD_BITS));
        if self.0.len() <= word {
            if !is_in {
                return;
            }
            self.0.resize(word + 1, 0);
        }
        if is_in {
            self.0[word] |= bit;
        } else {
            self.0[word] &= !bit;
        }
    }

    fn has(&self, node: NodeSlot) -> bool {
        self.word(node / WORD_BITS) >> (node % WORD_BITS) & 1 == 1
    }

    fn word(&self, position: usize) -> u64 {
        self.0.get(position).copied().unwrap_or(0)
    }
}

const WORD_BITS: usize = u64::BITS as usize;

/// An artifact that shapes run, and where it is.
#[derive(Debug, Clone, Default)]
struct Artifact {
    reference: String,
    runtime: Option<Runtime>,
    /// None: the reference has no digest, so that no node can say that it holds what it names.
    key: Option<ArtifactKey>,
    uses: usize,
    /// Shapes that go nowhere else than where it is held.
    needed_by: BTreeSet<ShapeId>,
    /// Units on nodes that run it.
    counts: BTreeMap<NodeSlot, u32>,
    /// Nodes that have any.
    running: NodeSet,
    /// Nodes that say that it is there.
    held: NodeSet,
    /// Those of them that could run it at once.
    ready: NodeSet,
}

impl Artifact {
    fn set_held(&mut self, node: NodeSlot, held: Held) {
        self.held.set(node, held != Held::Not);
        self.ready.set(node, held == Held::Ready);
    }

    /// Of 64 nodes those that have it, and those that could run it at once. Where another unit runs it, it is on the way
    /// at least, whatever the node has told so far.
    fn word(&self, position: usize) -> (u64, u64) {
        let running = self.running.word(position);
        (self.held.word(position) | running, self.ready.word(position) | running)
    }

    fn words(&self) -> usize {
        self.running.0.len().max(self.held.0.len())
    }
}

/// All shapes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shapes {
    ids: BTreeMap<ShapeKey, ShapeId>,
    rows: Vec<Option<Shape>>,
    unused: Vec<ShapeId>,
    fixed_ids: BTreeMap<FixedKey, usize>,
    fixed: Vec<Option<Fixed>>,
    unused_fixed: Vec<usize>,
    artifact_ids: [BTreeMap<String, usize>; 2],
    artifacts: Vec<Artifact>,
    unused_artifacts: Vec<usize>,
    artifact_keys: BTreeSet<(ArtifactKey, usize)>,
}

impl Shapes {
    /// The shape of that number.
    pub(crate) fn get(&self, id: ShapeId) -> Option<&Shape> {
        self.rows.get(id)?.as_ref()
    }

    /// What it requires of nodes themselves.
    pub(crate) fn fixed(&self, shape: &Shape) -> Option<&Fixed> {
        self.fixed.get(shape.fixed)?.as_ref()
    }

    /// The constraints on attributes.
    pub(crate) fn constraints(&self, shape: &Shape) -> &[Constraint] {
        self.fixed(shape).map_or(&[][..], |fixed| &fixed.key.constraints)
    }

    /// The runtimes it needs: one of each set.
    pub(crate) fn runtimes(&self, shape: &Shape) -> &[RuntimeSet] {
        self.fixed(shape).map_or(&[][..], |fixed| &fixed.key.runtimes)
    }

    /// The taints of a node that it does not put up with.
    pub(crate) fn taints<'n>(&self, shape: &Shape, node: &'n Node) -> Vec<&'n Taint> {
        let tolerations = self.fixed(shape).map_or(&[][..], |fixed| &fixed.key.tolerations);
        repelling(tolerations, node).collect()
    }

    /// The directories that it mounts and the node does not offer.
    pub(crate) fn missing_volumes(&self, shape: &Shape, node: &Node) -> Vec<String> {
        let wanted = self.fixed(shape).map_or(&[][..], |fixed| &fixed.key.volumes);
        wanted.iter().filter(|path| !offers(node, path)).cloned().collect()
    }

    /// How far the node is with all that the shape runs there.
    pub(crate) fn held_on(&self, shape: &Shape, node: NodeSlot, nodes: &Nodes) -> Held {
        let artifacts = shape.way_on(nodes.runtimes[node]).artifacts.iter();
        let states = artifacts.map(|artifact| {
            let (held, ready) = self.artifacts[*artifact].word(node / WORD_BITS);
            match (held >> (node % WORD_BITS) & 1, ready >> (node % WORD_BITS) & 1) {
                (_, 1) => Held::Ready,
                (1, _) => Held::Fetched,
                _ => Held::Not,
            }
        });
        states.min().unwrap_or_default()
    }

    /// The same for every node.
    pub(crate) fn held_by_node(&self, shape: &Shape, nodes: &Nodes) -> Vec<Held> {
        let mut all = vec![Held::Not; nodes.slots()];
        let has_choice = !shape.key.ways.others.is_empty();
        for way in shape.key.ways.all() {
            let artifacts = || way.artifacts.iter().map(|artifact| &self.artifacts[*artifact]);
            for position in 0..artifacts().map(Artifact::words).min().unwrap_or(0) {
                let together =
                    |(held, ready), (more_held, more_ready)| (held & more_held, ready & more_ready);
                let words = artifacts().map(|artifact| artifact.word(position));
                let (mut held, ready) = words.fold((u64::MAX, u64::MAX), together);
                while held != 0 {
                    let bit = held.trailing_zeros() as usize;
                    held &= held - 1;
                    let node = position * WORD_BITS + bit;
                    let is_its_way = || {
                        std::ptr::eq(shape.way_on(nodes.runtimes[node]), std::ptr::from_ref(way))
                    };
                    if node < all.len() && (!has_choice || is_its_way()) {
                        all[node] = if ready >> bit & 1 == 1 { Held::Ready } else { Held::Fetched };
                    }
                }
            }
        }
        all
    }

    /// What the shape runs on the node and the node does not say it holds, by reference.
    pub(crate) fn missing_artifacts<'s>(
        &'s self,
        shape: &'s Shape,
        node: NodeSlot,
        nodes: &Nodes,
    ) -> impl Iterator<Item = &'s str> {
        let way = shape.way_on(nodes.runtimes[node]);
        let artifacts = way.artifacts.iter().map(|artifact| &self.artifacts[*artifact]);
        artifacts
            .filter(move |artifact| !artifact.held.has(node))
            .map(|artifact| artifact.reference.as_str())
    }

    /// Does the shape ask for more than the node says it holds?
    pub(crate) fn lacks_artifacts(&self, shape: &Shape, node: NodeSlot, nodes: &Nodes) -> bool {
        shape.needs_artifacts && self.missing_artifacts(shape, node, nodes).next().is_some()
    }

    /// A node holds something else than before. True when shapes that wait for that may use the node now; those that were
    /// refused are asked for again, and no others.
    pub(crate) fn holdings_changed(
        &mut self,
        node: NodeSlot,
        old: &Holdings,
        new: &Holdings,
    ) -> bool {
        let mut is_wanted = false;
        for (key, held) in new.changes_since(old) {
            let same = self.artifact_keys.range((key, 0)..=(key, usize::MAX));
            for (_, id) in same {
                let artifact = &mut self.artifacts[*id];
                let is_gain = held != Held::Not && !artifact.held.has(node);
                artifact.set_held(node, held);
                for shape in artifact.needed_by.iter().filter(|_| is_gain) {
                    if let Some(Some(shape)) = self.rows.get_mut(*shape) {
                        shape.hopeless = None;
                        is_wanted = true;
                    }
                }
            }
        }
        is_wanted
    }

    /// See [`super::Index::set_hopeless`].
    pub(crate) fn set_hopeless(&mut self, id: ShapeId, hopes: u64, priority: i32) {
        if let Some(Some(shape)) = self.rows.get_mut(id) {
            let highest = match shape.hopeless {
                Some((then, highest)) if then == hopes => highest.max(priority),
                _ => priority,
            };
            shape.hopeless = Some((hopes, highest));
        }
    }

    /// The shape of a unit, used once more. `owner` may share its http ports among its units.
    pub(crate) fn intern(
        &mut self,
        unit: &Unit,
        owner: Option<OwnerId>,
        identity: IdentityId,
        neighbours: &mut Neighbourhoods,
        names: &mut ScalarNames,
        nodes: &Nodes,
    ) -> ShapeId {
        let template = &unit.template;
        let rules = &template.placement;
        let ways = self.ways_of(template, nodes);
        let shares_port =
            ways.all().any(|way| way.ports.iter().any(|port| port.is_shared_by_service));
        let has_rules = !rules.near.is_empty()
            || !rules.away.is_empty()
            || !rules.spread.is_empty()
            || rules.distinct_hosts;
        let matters = has_rules || !unit.labels.is_empty();
        let key = ShapeKey {
            request: Vector::new(&template.request(), names),
            fixed: self.intern_fixed(template, nodes),
            port_owner: owner.filter(|_| shares_port),
            ways,
            needs_artifacts: rules.artifacts == ArtifactRule::Present,
            neighbours: matters.then(|| {
                let rules = (
                    rules.near.clone(),
                    rules.away.clone(),
                    rules.spread.clone(),
                    rules.distinct_hosts,
                );
                (identity, rules)
            }),
        };
        if let Some(id) = self.ids.get(&key) {
            let id = *id;
            if let Some(Some(shape)) = self.rows.get_mut(id) {
                shape.uses += 1;
            }
            self.release_fixed(key.fixed);
            return id;
        }
        for artifact in key.ways.all().flat_map(|way| &way.artifacts) {
            self.artifacts[*artifact].uses += 1;
        }
        let resolved = if has_rules {
            resolve(unit, identity, neighbours, nodes)
        } else {
            (Vec::new(), Vec::new())
        };
        let shape = Shape {
            uses: 1,
            request: key.request.clone(),
            fixed: key.fixed,
            has_ports: key.ways.all().any(|way| !way.ports.is_empty() || way.open_ports > 0),
            port_owner: key.port_owner,
            needs_artifacts: key.needs_artifacts,
            rules: resolved.0,
            away_terms: resolved.1,
            identity: matters.then_some(identity),
            hopeless: None,
            key: key.clone(),
        };
        let id = match self.unused.pop() {
            Some(id) => {
                self.rows[id] = Some(shape);
                id
            }
            None => {
                self.rows.push(Some(shape));
                self.rows.len() - 1
            }
        };
        for artifact in key.ways.all().flat_map(|way| &way.artifacts) {
            if key.needs_artifacts {
                self.artifacts[*artifact].needed_by.insert(id);
            }
        }
        self.ids.insert(key, id);
        id
    }

    /// A unit of the shape is gone.
    pub(crate) fn release(&mut self, shape_id: ShapeId, neighbours: &mut Neighbourhoods) {
        let Some(Some(shape)) = self.rows.get_mut(shape_id) else { return };
        shape.uses -= 1;
        if shape.uses > 0 {
            return;
        }
        let Some(shape) = self.rows[shape_id].take() else { return };
        self.unused.push(shape_id);
        self.ids.remove(&shape.key);
        self.release_fixed(shape.fixed);
        for rule in &shape.rules {
            neighbours.release_selector(rule.selector);
        }
        for term in &shape.away_terms {
            neighbours.release_term(*term);
        }
        for id in shape.key.ways.all().flat_map(|way| &way.artifacts) {
            self.release_artifact(*id, shape_id);
        }
    }

    fn release_artifact(&mut self, id: usize, shape: ShapeId) {
        let artifact = &mut self.artifacts[id];
        artifact.needed_by.remove(&shape);
        artifact.uses -= 1;
        if artifact.uses > 0 {
            return;
        }
        let Artifact { reference, runtime, key, .. } = std::mem::take(artifact);
        if let Some(runtime) = runtime {
            self.artifact_ids[place_of(runtime)].remove(&reference);
        }
        if let Some(key) = key {
            self.artifact_keys.remove(&(key, id));
        }
        self.unused_artifacts.push(id);
    }

    fn intern_fixed(&mut self, template: &UnitTemplate, nodes: &Nodes) -> usize {
        let mut volumes: Vec<_> = template
            .tasks
            .iter()
            .flat_map(|task| &task.mounts)
            .filter_map(|mount| mount.host.as_ref()?.to_str().map(str::to_owned))
            .collect();
        volumes.sort_unstable();
        volumes.dedup();
        let key = FixedKey {
            runtimes: template.runtimes(),
            constraints: template.constraints.clone(),
            tolerations: template.placement.tolerations.clone(),
            volumes,
            preferences: template.placement.prefer.clone(),
        };
        if let Some(id) = self.fixed_ids.get(&key) {
            if let Some(Some(fixed)) = self.fixed.get_mut(*id) {
                fixed.uses += 1;
            }
            return *id;
        }
        let mut fixed =
            Fixed { key: key.clone(), uses: 1, obstacles: Vec::new(), points: Vec::new() };
        for slot in 0..nodes.slots() {
            fixed.decide(slot, nodes);
        }
        let id = match self.unused_fixed.pop() {
            Some(id) => {
                self.fixed[id] = Some(fixed);
                id
            }
            None => {
                self.fixed.push(Some(fixed));
                self.fixed.len() - 1
            }
        };
        self.fixed_ids.insert(key, id);
        id
    }

    fn release_fixed(&mut self, id: usize) {
        let Some(Some(fixed)) = self.fixed.get_mut(id) else { return };
        fixed.uses -= 1;
        if fixed.uses == 0 {
            let key = fixed.key.clone();
            self.fixed_ids.remove(&key);
            self.fixed[id] = None;
            self.unused_fixed.push(id);
        }
    }

    fn ways_of(&mut self, template: &UnitTemplate, nodes: &Nodes) -> Ways {
        if !template.has_variants() {
            let preferred = self.way(template, Choice::default(), nodes);
            return Ways { preferred, others: Vec::new() };
        }
        let preferred = template.tasks.iter().map(|task| task.program().runtime()).collect();
        let preferred = self.way(template, preferred, nodes);
        let mut others = Vec::new();
        for node in RuntimeSet::ALL {
            let choice = template.choice(node);
            if let Some(runtimes) = choice.filter(|choice| *choice != preferred.runtimes) {
                others.push((node, self.way(template, runtimes, nodes)));
            }
        }
        Ways { preferred, others }
    }

    fn way(&mut self, template: &UnitTemplate, runtimes: Choice, nodes: &Nodes) -> Way {
        let chosen = template.chosen(runtimes);
        Way {
            ports: chosen.host_ports(),
            open_ports: chosen.open_ports(),
            artifacts: self.artifacts_of(&chosen, nodes),
            runtimes,
        }
    }

    /// Numbers for what a template runs. What has no use yet gets its first with the shape, at once.
    fn artifacts_of(&mut self, template: &UnitTemplate, nodes: &Nodes) -> Vec<usize> {
        let tasks = template.tasks.iter();
        let mut ids: Vec<_> = tasks.map(|task| self.artifact(task.program(), nodes)).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    fn artifact(&mut self, program: &Program, nodes: &Nodes) -> usize {
        let (reference, runtime) = (program.reference(), program.runtime());
        if let Some(id) = self.artifact_ids[place_of(runtime)].get(reference) {
            return *id;
        }
        let digest = reference.parse::<Reference>().ok().and_then(|reference| reference.digest);
        let key = digest.map(|digest| ArtifactKey::new(&digest, runtime));
        let mut artifact = Artifact {
            reference: reference.to_owned(),
            runtime: Some(runtime),
            key,
            ..Artifact::default()
        };
        if let Some(key) = key {
            for (node, held) in nodes.holding(key) {
                artifact.set_held(node, held);
            }
        }
        let id = match self.unused_artifacts.pop() {
            Some(id) => {
                self.artifacts[id] = artifact;
                id
            }
            None => {
                self.artifacts.push(artifact);
                self.artifacts.len() - 1
            }
        };
        self.artifact_ids[place_of(runtime)].insert(reference.to_owned(), id);
        self.artifact_keys.extend(key.map(|key| (key, id)));
        id
    }

    /// A unit of the shape came onto a node, and was granted these runtimes.
    pub(crate) fn charge_artifacts(&mut self, id: ShapeId, node: NodeSlot, runtimes: Choice) {
        let Some(Some(shape)) = self.rows.get(id) else { return };
        for artifact in &shape.way_chosen(runtimes).artifacts {
            let artifact = &mut self.artifacts[*artifact];
            let count = artifact.counts.entry(node).or_default();
            *count += 1;
            if *count == 1 {
                artifact.running.set(node, true);
            }
        }
    }

    /// A unit of the shape left a node, where it was granted these runtimes.
    pub(crate) fn uncharge_artifacts(&mut self, id: ShapeId, node: NodeSlot, runtimes: Choice) {
        let Some(Some(shape)) = self.rows.get(id) else { return };
        for artifact in &shape.way_chosen(runtimes).artifacts {
            let artifact = &mut self.artifacts[*artifact];
            if let Some(count) = artifact.counts.get_mut(&node) {
                *count -= 1;
                if *count == 0 {
                    artifact.counts.remove(&node);
                    artifact.running.set(node, false);
                }
            }
        }
    }

    /// A node came, went or changed.
    pub(crate) fn node_changed(&mut self, slot: NodeSlot, nodes: &Nodes) {
        for fixed in self.fixed.iter_mut().flatten() {
            fixed.decide(slot, nodes);
        }
    }
}

/// The place of a runtime's artifacts in [`Shapes::artifact_ids`].
fn place_of(runtime: Runtime) -> usize {
    usize::from(runtime == Runtime::Oci)
}

impl Fixed {
    fn decide(&mut self, slot: NodeSlot, nodes: &Nodes) {
        if self.obstacles.len() < nodes.slots() {
            self.obstacles.resize(nodes.slots(), Some(Obstacle::Ready));
        }
        let node = nodes.get(slot);
        self.obstacles[slot] = match node {
            None => Some(Obstacle::Ready),
            Some(node) => self.obstacle_on(node, nodes.runtimes[slot]),
        };
        let points = node.map_or(0, |node| self.points_of(node));
        if points != 0 && self.points.is_empty() {
            self.points.resize(nodes.slots(), 0);
        }
        if !self.points.is_empty() {
            self.points.resize(nodes.slots(), 0);
            self.points[slot] = points;
        }
    }

    fn obstacle_on(&self, node: &Node, runtimes: RuntimeSet) -> Option<Obstacle> {
        let facts = &node.facts;
        let key = &self.key;
        if !key.runtimes.iter().all(|any_of| any_of.meets(runtimes)) {
            Some(Obstacle::Runtime)
        } else if !key.constraints.iter().all(|wanted| wanted.is_met_by(&facts.attributes)) {
            Some(Obstacle::Attributes)
        } else if repelling(&key.tolerations, node).next().is_some() {
            Some(Obstacle::Taints)
        } else if !key.volumes.iter().all(|path| offers(node, path)) {
            Some(Obstacle::Volumes)
        } else {
            None
        }
    }

    /// Ten points for each of weight.
    fn points_of(&self, node: &Node) -> i64 {
        let attributes = &node.facts.attributes;
        let liked = self.key.preferences.iter().filter(|liked| liked.when.is_met_by(attributes));
        let liked: i64 = liked.map(|liked| i64::from(liked.weight)).sum();
        let unwelcome = node.facts.taints.iter().filter(|taint| {
            taint.effect == TaintEffect::PreferNot
                && !self.key.tolerations.iter().any(|toleration| toleration.tolerates(taint))
        });
        let unwelcome = i64::try_from(unwelcome.count()).unwrap_or(0);
        (liked - unwelcome * i64::from(WEIGHT_IMPLIED)) * 10
    }
}

fn repelling<'n>(tolerations: &[Toleration], node: &'n Node) -> impl Iterator<Item = &'n Taint> {
    node.facts.taints.iter().filter(move |taint| {
        taint.effect != TaintEffect::PreferNot
            && !tolerations.iter().any(|toleration| toleration.tolerates(taint))
    })
}

/// Is the path one of the node's volumes, or below one?
fn offers(node: &Node, path: &str) -> bool {
    node.facts.volumes.iter().any(|volume| {
        let volume = volume.trim_end_matches('/');
        path.strip_prefix(volume).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// Rules with numbers, and the terms that units of the shape hold against others.
fn resolve(
    unit: &Unit,
    identity: IdentityId,
    neighbours: &mut Neighbourhoods,
    nodes: &Nodes,
) -> (Vec<Rule>, Vec<TermId>) {
    let PlacementRules { near, away, spread, distinct_hosts, .. } = &unit.template.placement;
    let (mut rules, mut terms) = (Vec::new(), Vec::new());
    // Its siblings: for a unit on its own those with the same labels, and none where it has no labels.
    let own = match owner_key(unit) {
        Some(owner) => Some(SelectorKey::Owner(owner)),
        None if unit.labels.is_empty() => None,
        None => Some(SelectorKey::Labels {
            within: unit.namespace.clone(),
            is_exact: true,
            labels: (*unit.labels).clone(),
        }),
    };
    let labelled = |wanted: &Neighbours| SelectorKey::Labels {
        within: wanted.within.clone().unwrap_or_else(|| unit.namespace.clone()),
        is_exact: wanted.within.is_none(),
        labels: wanted.units.clone(),
    };
    for wanted in near {
        let topology = neighbours.topologies.intern(&wanted.over, nodes);
        let selector = neighbours.select(labelled(wanted), topology);
        let selects_itself = neighbours.is_selected(selector, identity);
        let kind = RuleKind::Near { selects_itself };
        rules.push(Rule { kind, selector, topology, weight: wanted.weight });
    }
    for wanted in away {
        let topology = neighbours.topologies.intern(&wanted.over, nodes);
        let selector = neighbours.select(labelled(wanted), topology);
        rules.push(Rule { kind: RuleKind::Away, selector, topology, weight: wanted.weight });
        if wanted.weight.is_none() {
            terms.push(neighbours.hold(selector, topology));
        }
    }
    // Not held against others: siblings have the same rule, but for those of a generation that has given it up.
    if let Some(own) = own.clone().filter(|_| *distinct_hosts) {
        let topology = neighbours.topologies.intern(OVER_NODE, nodes);
        let selector = neighbours.select(own, topology);
        rules.push(Rule { kind: RuleKind::Away, selector, topology, weight: None });
    }
    for (wanted, own) in spread.iter().filter_map(|wanted| Some((wanted, own.as_ref()?))) {
        let topology = neighbours.topologies.intern(&wanted.over, nodes);
        let selector = neighbours.select(own.clone(), topology);
        let weight = match wanted.max_skew {
            Some(_) => wanted.weight,
            None => Some(wanted.weight.unwrap_or(WEIGHT_IMPLIED)),
        };
        let spread = |max_skew| RuleKind::Spread { max_skew, targets: wanted.targets.clone() };
        if let Some(max_skew) = wanted.max_skew {
            rules.push(Rule { kind: spread(max_skew), selector, topology, weight: None });
        }
        if weight.is_some() {
            let selector = match wanted.max_skew {
                Some(_) => neighbours.select(own.clone(), topology),
                None => selector,
            };
            rules.push(Rule { kind: spread(0), selector, topology, weight });
        }
    }
    (rules, terms)
}
