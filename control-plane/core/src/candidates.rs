//! The best nodes for a shape, kept up to date while a pass fills them.
//!
//! The first time a shape is asked for, every node is looked at once and nothing is kept: many passes see each shape once. The
//! second time a tournament tree is built, and from then on only nodes that the pass has changed are looked at again.
//! Nodes in the same domains of every topology that the shape's rules name form a *cell*; what such a rule says is the same
//! for all nodes of a cell, and is asked for with every pick.

use std::collections::BTreeMap;

use crate::holdings::Held;
use crate::index::shapes::{Fixed, Shape};
use crate::index::topologies::{Domain, TopologyId};
use crate::index::{Index, NodeSlot, ShapeId};
use crate::judge::{Question, locality_score};
use crate::obstacle::Obstacle;
use crate::tournament::Tournament;

/// Bits of a key below the score, for the node's position by name: the first name wins among equals.
const RANK_BITS: u32 = 24;
const RANKS: i64 = 1 << RANK_BITS;
/// The key of a node that can't take the shape.
const NONE: i64 = i64::MIN;
/// The winner and so many that came next are told.
const TOLD: usize = 3;

/// How many nodes each filter turned down, in the order of [`Obstacle::ALL`].
pub(crate) type Counts = [u32; Obstacle::ALL.len()];

/// A node and its score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) node: NodeSlot,
    pub(crate) score: i64,
}

/// One shape's search.
#[derive(Debug, Clone)]
pub(crate) struct Search {
    pub(crate) question: Question,
    topologies: Vec<TopologyId>,
    /// How far each node is with what the shape runs there.
    held: Vec<Held>,
    was_asked: bool,
    kept: Option<Kept>,
    /// How many of the pass's changes are in `kept`.
    seen: usize,
}

/// What is known of every node.
#[derive(Debug, Clone)]
struct Kept {
    cells: Vec<Cell>,
    /// Cell and place in it, by node.
    places: Vec<(usize, usize)>,
    obstacles: Vec<Option<Obstacle>>,
    counts: Counts,
}

#[derive(Debug, Clone)]
struct Cell {
    domains: Vec<Domain>,
    tree: Tournament<i64>,
}

fn key_of(index: &Index, node: NodeSlot, score: i64) -> i64 {
    let rank = i64::try_from(index.nodes.rank[node]).unwrap_or(RANKS - 1).min(RANKS - 1);
    score * RANKS + (RANKS - 1 - rank)
}

fn candidate_of(index: &Index, key: i64) -> Option<Candidate> {
    let rank = RANKS - 1 - key.rem_euclid(RANKS);
    let node = *index.nodes.by_rank.get(usize::try_from(rank).ok()?)?;
    Some(Candidate { node, score: key.div_euclid(RANKS) })
}

impl Search {
    pub(crate) fn new(index: &Index, shape: ShapeId, is_short: bool) -> Self {
        let question = Question::new(index, shape, is_short);
        let shape = index.shapes.get(shape);
        let held = shape.map(|shape| index.shapes.held_by_node(shape, &index.nodes));
        let topologies = question.topologies(index);
        let held = held.unwrap_or_default();
        Self { question, topologies, held, was_asked: false, kept: None, seen: 0 }
    }

    /// The best nodes, best first, and how many nodes each filter turned down. `changes` are the nodes that the pass has
    /// changed so far, in order.
    pub(crate) fn best(&mut self, index: &Index, changes: &[NodeSlot]) -> (Vec<Candidate>, Counts) {
        let Some(shape) = index.shapes.get(self.question.shape) else {
            return (Vec::new(), Counts::default());
        };
        let Some(fixed) = index.shapes.fixed(shape) else {
            return (Vec::new(), Counts::default());
        };
        let is_first = !std::mem::replace(&mut self.was_asked, true);
        if is_first && self.topologies.is_empty() {
            self.seen = changes.len();
            return self.look_once(index, shape, fixed);
        }
        self.catch_up(index, shape, fixed, changes);
        self.pick(index, shape)
    }

    /// Forgets what costs memory.
    pub(crate) fn shrink(&mut self) {
        self.kept = None;
    }

    fn judge(
        &self,
        index: &Index,
        shape: &Shape,
        fixed: &Fixed,
        node: NodeSlot,
    ) -> Result<i64, Obstacle> {
        let score = self.question.on_node(index, shape, fixed, node)?;
        Ok(score + locality_score(self.held[node]))
    }

    /// Judges every slot, those without a node too: they are never ready.
    fn judge_all(
        &self,
        index: &Index,
        shape: &Shape,
        fixed: &Fixed,
        mut tell: impl FnMut(NodeSlot, Result<i64, Obstacle>),
    ) {
        if self.question.is_plain(shape, fixed) {
            let held = &self.held;
            self.question.on_all_nodes(index, shape, fixed, |slot, judged| {
                tell(slot, judged.map(|score| score + locality_score(held[slot])));
            });
        } else {
            for slot in 0..index.nodes.slots() {
                tell(slot, self.judge(index, shape, fixed, slot));
            }
        }
    }

    fn look_once(
        &mut self,
        index: &Index,
        shape: &Shape,
        fixed: &Fixed,
    ) -> (Vec<Candidate>, Counts) {
        self.question.refresh(index);
        let mut counts = Counts::default();
        let mut best = [NONE; TOLD];
        // A score below this is not among the best.
        let mut least = NONE;
        self.judge_all(index, shape, fixed, |node, judged| match judged {
            Err(obstacle) => counts[obstacle.position()] += 1,
            Ok(score) if score >= least => {
                let key = key_of(index, node, score);
                if key > best[TOLD - 1] {
                    best[TOLD - 1] = key;
                    best.sort_unstable_by(|left, right| right.cmp(left));
                    least = best[TOLD - 1].div_euclid(RANKS);
                }
            }
            Ok(_) => {}
        });
        counts[Obstacle::Ready.position()] -= index.nodes.empty_slots();
        let found = best.iter().filter(|key| **key > NONE);
        (found.filter_map(|key| candidate_of(index, *key)).collect(), counts)
    }

    fn catch_up(&mut self, index: &Index, shape: &Shape, fixed: &Fixed, changes: &[NodeSlot]) {
        let unseen = changes.get(self.seen..).unwrap_or_default();
        self.seen = changes.len();
        for node in unseen {
            self.held[*node] = index.shapes.held_on(shape, *node, &index.nodes);
        }
        let is_stale = if unseen.is_empty() { false } else { self.question.refresh(index) };
        let Some(mut kept) =
            self.kept.take().filter(|_| !is_stale && unseen.len() <= index.nodes.count())
        else {
            self.question.refresh(index);
            self.kept = Some(self.build(index, shape, fixed));
            return;
        };
        for node in unseen {
            let judged = self.judge(index, shape, fixed, *node);
            kept.set(index, *node, judged);
        }
        self.kept = Some(kept);
    }

    fn build(&self, index: &Index, shape: &Shape, fixed: &Fixed) -> Kept {
        let slots = index.nodes.slots();
        let mut kept = Kept {
            cells: Vec::new(),
            places: vec![(0, 0); slots],
            obstacles: vec![None; slots],
            counts: Counts::default(),
        };
        let mut cells: Vec<(Vec<Domain>, Vec<i64>)> = Vec::new();
        if self.topologies.is_empty() {
            for (place, node) in index.nodes.by_rank.iter().enumerate() {
                kept.places[*node] = (0, place);
            }
            cells.push((Vec::new(), vec![NONE; index.nodes.by_rank.len()]));
        } else {
            let topologies = &index.neighbours.topologies;
            let mut numbers: BTreeMap<Vec<Domain>, usize> = BTreeMap::new();
            for node in &index.nodes.by_rank {
                let domains: Vec<_> =
                    self.topologies.iter().map(|id| topologies.of(*id, *node)).collect();
                let cell = match numbers.get(&domains) {
                    Some(cell) => *cell,
                    None => {
                        numbers.insert(domains.clone(), cells.len());
                        cells.push((domains, Vec::new()));
                        cells.len() - 1
                    }
                };
                kept.places[*node] = (cell, cells[cell].1.len());
                cells[cell].1.push(NONE);
            }
        }
        self.judge_all(index, shape, fixed, |node, judged| {
            if index.nodes.get(node).is_none() {
                return;
            }
            match judged {
                Ok(score) => {
                    let (cell, place) = kept.places[node];
                    cells[cell].1[place] = key_of(index, node, score);
                }
                Err(obstacle) => {
                    kept.obstacles[node] = Some(obstacle);
                    kept.counts[obstacle.position()] += 1;
                }
            }
        });
        kept.cells = cells
            .into_iter()
            .map(|(domains, keys)| Cell { domains, tree: Tournament::new(keys.into_iter(), NONE) })
            .collect();
        kept
    }

    fn pick(&self, index: &Index, shape: &Shape) -> (Vec<Candidate>, Counts) {
        let Some(kept) = &self.kept else { return (Vec::new(), Counts::default()) };
        let mut found = Vec::with_capacity(TOLD);
        if self.topologies.is_empty() {
            if let Some(cell) = kept.cells.first() {
                cell.tree.best_few(TOLD, NONE, &mut found);
            }
        } else {
            let mut allowed: Vec<(i64, usize, i64)> = Vec::new();
            for (position, cell) in kept.cells.iter().enumerate() {
                let Some(best) = cell.tree.best().filter(|key| *key > NONE) else { continue };
                let points = self.question.in_cell(index, shape, &self.topologies, &cell.domains);
                if let Ok(points) = points {
                    allowed.push((best + points * RANKS, position, points));
                }
            }
            allowed.sort_unstable_by(|left, right| right.cmp(left));
            // The few best are in the cells with the best winners.
            for (_, position, points) in allowed.into_iter().take(TOLD) {
                let mut keys = Vec::with_capacity(TOLD);
                kept.cells[position].tree.best_few(TOLD, NONE, &mut keys);
                found.extend(keys.into_iter().map(|key| key + points * RANKS));
            }
            found.sort_unstable_by(|left, right| right.cmp(left));
            found.truncate(TOLD);
        }
        (found.into_iter().filter_map(|key| candidate_of(index, key)).collect(), kept.counts)
    }
}

impl Kept {
    fn set(&mut self, index: &Index, node: NodeSlot, judged: Result<i64, Obstacle>) {
        let (cell, place) = self.places[node];
        let obstacle = judged.err();
        let key = judged.map_or(NONE, |score| key_of(index, node, score));
        let old = std::mem::replace(&mut self.obstacles[node], obstacle);
        if let Some(old) = old {
            self.counts[old.position()] -= 1;
        }
        if let Some(new) = obstacle {
            self.counts[new.position()] += 1;
        }
        if let Some(cell) = self.cells.get_mut(cell) {
            cell.tree.set(place, key);
        }
    }
}
