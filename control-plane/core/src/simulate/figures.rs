//! What a simulation came to: how full the cluster is, what waits and why, and the one sentence that answers.

use std::collections::{BTreeMap, BTreeSet};

use brig_api::explain::Verdict;
use brig_api::lifecycle::Reason;
use brig_api::object::{ObjectKey, Unit};
use brig_api::request::PlannedEviction;
use brig_api::simulate::{Capacity, Simulation, WaitingUnits, subject};
use brig_api::{Bytes, Kind, Milli, MilliCpu, NodeName, Resources, UnitId};

use super::ledger::{count, waiting};
use super::scenario::key;
use crate::index::{OwnerKey, ShapeId, owner_key};
use crate::vector::{Entry, Vector};
use crate::{Model, Moment, why};

/// Most reasons that are asked for anew, with the smallest change that would help; the others are as the last pass left
/// them. Each takes a look at every node.
const WHYS_MAX: usize = 100;

/// Units that are told as one: those of a service or job, or those of their own that ask for the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kin {
    Owned(OwnerKey),
    Alone(Option<ShapeId>),
}

pub(super) fn kin(model: &Model, unit: &Unit) -> Kin {
    let slot = model.index.slot(&unit.id);
    let shape = || slot.and_then(|slot| model.index.entry(slot)).map(|entry| entry.shape);
    owner_key(unit).map_or_else(|| Kin::Alone(shape()), Kin::Owned)
}

/// The unit's owner, or itself.
pub(super) fn owner_object(unit: &Unit) -> ObjectKey {
    match &unit.owner {
        Some(owner) => key(owner.kind(), &unit.namespace, owner.name()),
        None => key(Kind::Unit, &unit.namespace, &unit.name),
    }
}

/// What there is on nodes that can be reached, and what is set aside of it.
pub(super) fn capacity(model: &Model) -> Capacity {
    let index = &model.index;
    let mut capacity = Capacity::default();
    for slot in index.nodes.in_order().filter(|slot| index.nodes.is_ready[*slot]) {
        capacity.nodes += 1;
        capacity.units = capacity.units.saturating_add(count(index.nodes.units[slot].iter()));
        add(model, &mut capacity.total, index.nodes.declared(slot));
        for request in index.nodes.units[slot].iter().filter_map(|unit| index.request(*unit)) {
            add(model, &mut capacity.used, request);
        }
    }
    capacity
}

fn add(model: &Model, sum: &mut Resources, more: &Vector) {
    for (entry, amount) in more.entries() {
        match entry {
            Entry::Cpu => sum.cpu = MilliCpu(sum.cpu.0.saturating_add(amount)),
            Entry::Memory => sum.memory = Bytes(sum.memory.0.saturating_add(amount)),
            Entry::Disk => sum.disk = Bytes(sum.disk.0.saturating_add(amount)),
            Entry::Scalar(id) => {
                let name = model.index.scalars.name(id).to_owned();
                let known = sum.scalars.entry(name).or_default();
                *known = Milli(known.0.saturating_add(amount));
            }
        }
    }
}

/// What waits and is not among `waited`, by owner and reason, and what would be enough for the first of each.
pub(super) fn waits(
    model: &mut Model,
    moment: &Moment,
    waited: &BTreeSet<UnitId>,
) -> Vec<WaitingUnits> {
    let mut groups: BTreeMap<(Kin, Option<Reason>), usize> = BTreeMap::new();
    let mut found: Vec<(UnitId, WaitingUnits)> = Vec::new();
    for unit in waiting(model).filter(|unit| !waited.contains(&unit.id)) {
        let reason = unit.status.reason;
        let place = *groups.entry((kin(model, unit), reason)).or_insert(found.len());
        match found.get_mut(place) {
            Some((_, group)) => group.units += 1,
            None => {
                let message = unit.status.message.clone();
                let message =
                    message.unwrap_or_else(|| "the scheduler did not come to it".to_owned());
                let key = owner_object(unit);
                found.push((unit.id.clone(), WaitingUnits { key, units: 1, reason, message }));
            }
        }
    }
    for (first, group) in found.iter_mut().take(WHYS_MAX) {
        if group.reason.is_some()
            && let Some(explanation) = why(model, moment, first)
            && let Verdict::Refused { message } = explanation.verdict
        {
            group.message = message;
        }
    }
    found.into_iter().map(|(_, group)| group).collect()
}

/// What the answer says besides what is in the simulation.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tally {
    /// Something came that has units.
    pub(super) has_arrivals: bool,
    /// Units of it that are placed at the end.
    pub(super) arrived: u32,
    /// Units of it that wait at the end.
    pub(super) arrived_waiting: u32,
    /// Units that were on the nodes that were lost.
    pub(super) displaced: u32,
    /// Nodes that joined.
    pub(super) joined: u32,
    /// Units that waited before and were placed.
    pub(super) relieved: u32,
}

/// Decides and says whether all is well.
pub(super) fn conclude(simulation: &mut Simulation, tally: Tally) {
    let quotas = simulation.waits.iter().filter(|one| one.reason == Some(Reason::QuotaExceeded));
    let quotas: BTreeSet<_> = quotas.filter_map(|one| one.key.namespace.clone()).collect();
    simulation.quotas = quotas.into_iter().collect();
    let troubles = troubles(simulation, tally);
    simulation.fits = troubles.is_empty();
    let (word, parts) =
        if troubles.is_empty() { ("Yes", comforts(simulation, tally)) } else { ("No", troubles) };
    simulation.answer = format!("{word}: {}", parts.join("; "));
}

fn troubles(simulation: &Simulation, tally: Tally) -> Vec<String> {
    let mut parts = Vec::new();
    if !simulation.is_settled {
        let passes = simulation.passes;
        parts.push(format!(
            "the cluster is not at rest after {passes} passes, and nobody knows yet: simulate less at once"
        ));
    }
    let waits: Vec<_> = simulation.waits.iter().filter(|one| !one.is_in_order()).collect();
    if let Some(first) = waits.iter().max_by_key(|one| one.units) {
        let who = subject(&first.key, first.units);
        parts.push(format!("{who} would wait: {}", first.message));
        let others: u32 = waits.iter().map(|one| one.units).sum::<u32>() - first.units;
        if others > 0 {
            parts.push(format!("{} would wait as well", units(others, " other")));
        }
    }
    if let Some(first) = simulation.lost.first() {
        let PlannedEviction { key, message, .. } = first;
        let why = message.as_deref().map(|message| format!(": {message}")).unwrap_or_default();
        let more = simulation.lost.len() - 1;
        let and_more = if more > 0 { format!(", and {more} more") } else { String::new() };
        parts.push(format!("{key} would be lost{why}{and_more}"));
    }
    if parts.is_empty() {
        let is_short = |service: &&brig_api::simulate::ServiceOutcome| {
            service.after < service.before.min(service.replicas)
        };
        let short = simulation.services.iter().find(is_short);
        parts.extend(short.map(|service| {
            format!(
                "{} would be left with {} of {} units",
                service.key, service.after, service.replicas
            )
        }));
    }
    if !parts.is_empty() && tally.has_arrivals && tally.arrived_waiting > 0 {
        let all = tally.arrived.saturating_add(tally.arrived_waiting);
        parts.push(format!("{} of the {all} units that arrive fit", tally.arrived));
    }
    parts
}

fn comforts(simulation: &Simulation, tally: Tally) -> Vec<String> {
    let mut parts = Vec::new();
    if tally.has_arrivals {
        parts.push(match tally.arrived {
            0 => "nothing that arrives needs room now".to_owned(),
            1 => "the unit that arrives fits".to_owned(),
            many => format!("all {many} units fit"),
        });
    }
    if let Some(from) = named(&simulation.lost_nodes) {
        parts.push(match tally.displaced {
            0 => format!("nothing runs on {from}"),
            1 => format!("the unit of {from} finds room elsewhere"),
            many => format!("the {many} units of {from} find room elsewhere"),
        });
    }
    if tally.joined > 0 {
        let nodes = tally.joined;
        let noun = if nodes == 1 { "1 node joins" } else { &format!("{nodes} nodes join") };
        parts.push(match tally.relieved {
            0 => noun.to_owned(),
            some => format!("{noun}, and {} that waited get room", units(some, "")),
        });
    }
    if parts.is_empty() {
        parts.push("nothing has to wait".to_owned());
    }
    match simulation.evictions.len() {
        0 => {}
        1 => parts.push("1 unit has to move for that".to_owned()),
        many => parts.push(format!("{many} units have to move for that")),
    }
    let hit = simulation.services.iter().filter(|service| service.lowest < service.before);
    if let Some(service) = hit.max_by_key(|service| service.before - service.lowest) {
        let (key, lowest, before) = (&service.key, service.lowest, service.before);
        parts.push(format!("meanwhile {key} has {lowest} of {before} units at the lowest"));
    }
    match simulation.still_waiting {
        0 => {}
        1 => parts.push("1 unit that waited before still waits".to_owned()),
        many => parts.push(format!("{many} units that waited before still wait")),
    }
    let turns: u32 = simulation.waits.iter().map(|one| one.units).sum();
    if turns > 0 {
        parts.push(format!("{} wait for their turn", units(turns, "")));
    }
    parts
}

fn units(many: u32, adjective: &str) -> String {
    format!("{many}{adjective} unit{}", if many == 1 { "" } else { "s" })
}

fn named(nodes: &[NodeName]) -> Option<String> {
    match nodes {
        [] => None,
        [node] => Some(format!("node `{node}`")),
        many => Some(format!("{} nodes", many.len())),
    }
}
