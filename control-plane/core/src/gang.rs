//! Gangs: units that are placed together or not at all, and the room that is kept for one that waits.
//!
//! The first waiting gang gets a reservation, as in EASY backfilling (Lifka, JSSPP 1995): the earliest moment is sought at
//! which all of it fits, given when units with a `max_run_ms` end at the latest, and what it needs then is kept. Others may
//! use that room meanwhile if they end before. Where no such moment is known it is assumed that jobs end and services do
//! not: then what the gang needs is kept from everybody who comes after it.

use std::collections::BTreeMap;
use std::sync::Arc;

use brig_api::Kind;
use brig_api::object::Unit;
use brig_api::placement::Gang;

use crate::candidates::{Candidate, Counts};
use crate::explain::{self, Refused};
use crate::index::{NodeSlot, UnitSlot, queue_key};
use crate::judge::Question;
use crate::place::{Fate, Placing};
use crate::preempt::Disruptions;
use crate::vector::Vector;

/// One unit of a gang and the node that was found for it.
struct Found {
    slot: UnitSlot,
    unit: Arc<Unit>,
    node: NodeSlot,
    told: Vec<Candidate>,
    counts: Counts,
}

/// Nodes for all of a gang, and who has to go for which of its units.
type Hunted = (Vec<NodeSlot>, Vec<(UnitSlot, Vec<UnitSlot>)>);

impl Placing<'_, '_> {
    /// Considers the whole gang of a unit. None for one whose gang is complete without it: it is considered alone.
    pub(crate) fn consider_gang(&mut self, slot: UnitSlot, unit: &Arc<Unit>) -> Option<Fate> {
        let gang = unit.template.gang.as_ref()?;
        let key = (unit.namespace.clone(), gang.name.clone());
        let entry = self.ground.index.gangs.get(&key)?;
        let size = usize::try_from(gang.size).unwrap_or(usize::MAX);
        if !self.gangs_seen.insert(key.clone()) {
            // Placed with the gang, or refused with it.
            let is_placed = self.ground.index.entry(slot).is_some_and(|entry| entry.at.is_some());
            if is_placed {
                return Some(Fate::Placed);
            }
            return if entry.live >= size { None } else { Some(Fate::Waits) };
        }
        if entry.live >= size {
            self.gangs_seen.remove(&key);
            return None;
        }
        let mut members: Vec<_> = entry
            .pending
            .iter()
            .filter_map(|slot| Some((*slot, Arc::clone(self.ground.index.unit(*slot)?))))
            .filter(|(_, unit)| !self.is_ended(unit))
            .collect();
        members.sort_by_key(|(_, unit)| queue_key(unit));
        if entry.live + members.len() < size {
            let refused = explain::gang_incomplete(gang, entry.live + members.len());
            for (slot, _) in &members {
                let promised = self.ground.lift_promise(*slot);
                self.note_freed(*slot, promised);
            }
            self.refuse_all(&members, &refused);
            return Some(Fate::Waits);
        }
        let was_promised: Vec<_> =
            members.iter().map(|(slot, _)| self.ground.lift_promise(*slot)).collect();
        let fate = self.decide_gang(gang, &members, &was_promised);
        for ((slot, _), promised) in members.iter().zip(was_promised) {
            self.note_freed(*slot, promised);
        }
        Some(fate)
    }

    fn decide_gang(
        &mut self,
        gang: &Gang,
        members: &[(UnitSlot, Arc<Unit>)],
        was_promised: &[Option<NodeSlot>],
    ) -> Fate {
        let mark = self.ground.mark();
        let (fitting, refused) = match self.try_all(members) {
            Ok(found) => {
                self.ground.back_to(mark);
                for Found { slot, unit, node, told, counts } in found {
                    self.accept(slot, &unit, node, &told, counts);
                }
                return Fate::Placed;
            }
            Err(refused) => refused,
        };
        self.ground.back_to(mark);
        self.forget_refusals();
        if let Some(nodes) = was_promised.iter().copied().collect::<Option<Vec<_>>>() {
            if self.place_as_promised(members, &nodes) {
                return Fate::Placed;
            }
            if self.promise_as_before(members, &nodes) {
                return Fate::Waits;
            }
        }
        if !self.make_room(members) {
            self.keep_room(members);
            let refused = explain::gang_waits(gang, fitting, members, &refused);
            self.refuse_all(members, &refused);
        }
        Fate::Waits
    }

    fn refuse_all(&mut self, members: &[(UnitSlot, Arc<Unit>)], refused: &Refused) {
        for (_, unit) in members {
            self.refuse(unit, refused, None);
        }
    }

    /// Places all, or says how many fit and why the next one does not. What it charged stays charged.
    fn try_all(
        &mut self,
        members: &[(UnitSlot, Arc<Unit>)],
    ) -> Result<Vec<Found>, (usize, Arc<Refused>)> {
        let mut all = Vec::with_capacity(members.len());
        for (slot, unit) in members {
            if let Some(refused) = self.in_the_way(*slot, unit) {
                return Err((all.len(), refused));
            }
            let Some((node, told, counts)) = self.find(*slot, unit) else {
                return Err((all.len(), self.refusal(*slot, unit)));
            };
            let grants = self.grants(*slot, node);
            self.ground.place(*slot, node, grants);
            all.push(Found { slot: *slot, unit: Arc::clone(unit), node, told, counts });
        }
        Ok(all)
    }

    /// Places all on the nodes that they were promised, if those that left for them have gone. What was found one by one may
    /// be another arrangement, and not fit.
    fn place_as_promised(&mut self, members: &[(UnitSlot, Arc<Unit>)], nodes: &[NodeSlot]) -> bool {
        let mark = self.ground.mark();
        let fits = self.imagine_on(members, nodes);
        self.ground.back_to(mark);
        if fits {
            for ((slot, unit), node) in members.iter().zip(nodes) {
                let told = self.candidate(*slot, unit, *node);
                self.accept(*slot, unit, *node, &told, Counts::default());
            }
        }
        fits
    }

    /// The node as if it had been found.
    fn candidate(&self, slot: UnitSlot, unit: &Unit, node: NodeSlot) -> Vec<Candidate> {
        let index = &*self.ground.index;
        let key = self.search_key(slot, unit);
        let question = key.map(|(shape, is_short)| Question::new(index, shape, is_short));
        let scores = question.map(|question| question.scores(index, node)).unwrap_or_default();
        let score = scores.iter().map(|score| score.points * score.weight).sum();
        vec![Candidate { node, score }]
    }

    /// Places all on these nodes as far as they fit; false if not all do.
    fn imagine_on(&mut self, members: &[(UnitSlot, Arc<Unit>)], nodes: &[NodeSlot]) -> bool {
        members.iter().zip(nodes).all(|((slot, unit), node)| {
            self.in_the_way(*slot, unit).is_none()
                && self.fits_now(*slot, unit, *node)
                && self.imagine(*slot, *node)
        })
    }

    fn imagine(&mut self, slot: UnitSlot, node: NodeSlot) -> bool {
        let grants = self.grants(slot, node);
        self.ground.place(slot, node, grants);
        true
    }

    /// Imagines everybody gone who is on the way out.
    fn lift_leavers(&mut self) {
        let leavers: Vec<_> = self.ground.index.leavers.iter().copied().collect();
        for slot in leavers {
            self.ground.lift(slot);
        }
    }

    /// Others are leaving for the gang already: nothing changes until they have.
    fn promise_as_before(&mut self, members: &[(UnitSlot, Arc<Unit>)], nodes: &[NodeSlot]) -> bool {
        let mark = self.ground.mark();
        self.lift_leavers();
        let fits = self.imagine_on(members, nodes);
        self.ground.back_to(mark);
        if fits {
            self.promise_all(members, nodes);
        }
        fits
    }

    fn promise_all(&mut self, members: &[(UnitSlot, Arc<Unit>)], nodes: &[NodeSlot]) {
        for ((slot, unit), node) in members.iter().zip(nodes) {
            self.ground.promise(*slot, *node);
            let refused = explain::gang_promised(self.ground.index, unit, *node);
            self.refuse(unit, &refused, Some(*node));
        }
    }

    /// Stops less important units, if that makes room for all.
    fn make_room(&mut self, members: &[(UnitSlot, Arc<Unit>)]) -> bool {
        let mark = self.ground.mark();
        self.lift_leavers();
        self.forget_refusals();
        let found = self.hunt_for_all(members);
        self.ground.back_to(mark);
        self.forget_refusals();
        // What was spent in imagination is spent when it is decided.
        self.disruptions = Disruptions::default();
        let Some((nodes, victims)) = found else { return false };
        for (slot, victims) in &victims {
            if let Some(unit) = self.ground.index.unit(*slot).cloned() {
                self.stop(victims, &unit);
            }
        }
        self.promise_all(members, &nodes);
        true
    }

    /// A node for each, and for whom who would have to go. What it charged and lifted stays so.
    fn hunt_for_all(&mut self, members: &[(UnitSlot, Arc<Unit>)]) -> Option<Hunted> {
        let (mut nodes, mut victims) = (Vec::with_capacity(members.len()), Vec::new());
        for (slot, unit) in members {
            if self.in_the_way(*slot, unit).is_some() {
                return None;
            }
            let node = match self.find(*slot, unit) {
                Some((node, ..)) => node,
                None => {
                    let (node, gone) = self.hunt(*slot, unit)?;
                    for slot in &gone {
                        if let Some(victim) = self.ground.index.unit(*slot).cloned() {
                            self.disruptions.stopped(self.ground.index, &victim);
                        }
                        self.ground.lift(*slot);
                    }
                    victims.push((*slot, gone));
                    // There is more room than when others were refused.
                    self.forget_refusals();
                    node
                }
            };
            self.imagine(*slot, node);
            nodes.push(node);
        }
        Some((nodes, victims))
    }

    /// Keeps what the gang will need, if it is the first that waits and could ever fit.
    fn keep_room(&mut self, members: &[(UnitSlot, Arc<Unit>)]) {
        if self.kept_until_ms.is_some() {
            return;
        }
        let ends = self.known_ends();
        let mut moments: Vec<_> = ends.iter().map(|(end_ms, _)| *end_ms).collect();
        moments.dedup();
        // The room only grows with time, so the earliest moment is found by halving.
        let (mut low, mut high) = (0, moments.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.fits_at(members, &ends, Some(moments[middle])).is_some() {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        let until_ms = moments.get(low).copied();
        let Some(kept) = self.fits_at(members, &ends, until_ms) else { return };
        self.kept_until_ms = Some(until_ms);
        self.kept_for = members.first().and_then(|(_, unit)| unit.template.gang.clone());
        for (node, amount) in kept {
            self.ground.keep(node, amount, until_ms.is_some());
        }
        // What is kept now was not when these were asked for.
        self.forget_refusals();
    }

    /// Units on nodes that end by themselves, and when at the latest, soonest first.
    fn known_ends(&self) -> Vec<(i64, UnitSlot)> {
        let index = &*self.ground.index;
        let mut ends: Vec<_> = index
            .nodes
            .in_order()
            .flat_map(|node| index.nodes.units[node].iter().copied())
            .filter_map(|slot| {
                let entry = index.entry(slot)?;
                if entry.is_leaving {
                    return Some((self.stamp.now_ms, slot));
                }
                let run_ms = i64::try_from(entry.unit.template.max_run_ms?).ok()?;
                let began_ms = entry.unit.placed_ms.unwrap_or(self.stamp.now_ms);
                Some((began_ms.saturating_add(run_ms), slot))
            })
            .collect();
        ends.sort_unstable();
        ends
    }

    /// What of each node would have to be kept from now on so that the gang fits at a moment; without a moment, once all
    /// jobs have ended. None where it does not fit then either.
    fn fits_at(
        &mut self,
        members: &[(UnitSlot, Arc<Unit>)],
        ends: &[(i64, UnitSlot)],
        until_ms: Option<i64>,
    ) -> Option<BTreeMap<NodeSlot, Vector>> {
        let gone: Vec<UnitSlot> = match until_ms {
            Some(until_ms) => ends
                .iter()
                .take_while(|(end_ms, _)| *end_ms <= until_ms)
                .map(|(_, slot)| *slot)
                .collect(),
            None => self.units_of_jobs(),
        };
        let mark = self.ground.mark();
        let mut freed: BTreeMap<NodeSlot, Vector> = BTreeMap::new();
        for slot in gone {
            let index = &*self.ground.index;
            let Some(entry) = index.entry(slot) else { continue };
            if let (Some(node), Some(request)) = (entry.at, index.request_of(entry)) {
                freed.entry(node).or_default().add(request);
            }
            self.ground.lift(slot);
        }
        self.forget_refusals();
        let fitting = self.try_all(members);
        self.ground.back_to(mark);
        self.forget_refusals();
        let mut kept: BTreeMap<NodeSlot, Vector> = BTreeMap::new();
        for Found { slot, node, .. } in fitting.ok()? {
            if let Some(request) = self.ground.index.request(slot) {
                kept.entry(node).or_default().add(request);
            }
        }
        for (node, amount) in &mut kept {
            if let Some(freed) = freed.get(node) {
                *amount = amount.saturating_sub(freed);
            }
        }
        Some(kept)
    }

    fn units_of_jobs(&self) -> Vec<UnitSlot> {
        let index = &*self.ground.index;
        let slots = index.nodes.in_order().flat_map(|node| index.nodes.units[node].iter().copied());
        let ends = |slot: &UnitSlot| {
            index.entry(*slot).is_some_and(|entry| {
                let owner = entry.unit.owner.as_ref();
                entry.is_leaving
                    || entry.unit.template.max_run_ms.is_some()
                    || owner.is_some_and(|owner| owner.kind() == Kind::Job)
            })
        };
        slots.filter(ends).collect()
    }
}
