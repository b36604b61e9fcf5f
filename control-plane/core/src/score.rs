//! Scores: which of the nodes that can take a unit takes it best. Integers from 0 to 1000, so that every machine
//! computes the same.

use brig_api::Resources;
use brig_api::explain::Score;

use crate::room::{Amount, NodeRoom, amounts};

/// Most points that one score gives.
pub(crate) const POINTS_MAX: i64 = 1_000;

/// One part of the policy.
struct Term {
    name: &'static str,
    weight: i64,
    points: fn(&Resources, &NodeRoom<'_>) -> i64,
}

/// The policy: the sum of weight times points decides, ties go to the first name.
///
/// Packing counts most: a node that is full leaves another one free for a large unit, or for nobody. Balance breaks
/// ties such that cpu and memory of a node run out together.
const POLICY: [Term; 2] = [
    Term { name: "bin-packing", weight: 4, points: bin_packing },
    Term { name: "balance", weight: 1, points: balance },
];

/// The sum of weighted scores of a node for `request`.
pub(crate) fn total(request: &Resources, room: &NodeRoom<'_>) -> i64 {
    POLICY.iter().map(|term| term.weight * (term.points)(request, room)).sum()
}

/// The scores one by one, for the explanation.
pub(crate) fn scores(request: &Resources, room: &NodeRoom<'_>) -> Vec<Score> {
    let score = |term: &Term| Score {
        name: term.name.to_owned(),
        points: (term.points)(request, room),
        weight: term.weight,
    };
    POLICY.iter().map(score).collect()
}

/// How full the node would be: the mean of cpu and memory and of every other resource that is asked for.
fn bin_packing(request: &Resources, room: &NodeRoom<'_>) -> i64 {
    let counted = amounts(request).filter(|(resource, wanted)| {
        *wanted > 0 || matches!(resource, Amount::Cpu | Amount::Memory)
    });
    let (sum, count) = counted.fold((0, 0), |(sum, count), (resource, wanted)| {
        (sum + share_after(resource, wanted, room), count + 1)
    });
    if count == 0 { 0 } else { sum / count }
}

/// How equally cpu and memory would be used.
fn balance(request: &Resources, room: &NodeRoom<'_>) -> i64 {
    let cpu = share_after(Amount::Cpu, request.cpu.0, room);
    let memory = share_after(Amount::Memory, request.memory.0, room);
    POINTS_MAX - (cpu - memory).abs()
}

/// The part of a node's resource that would be used, from 0 to 1000.
fn share_after(resource: Amount<'_>, wanted: u64, room: &NodeRoom<'_>) -> i64 {
    let capacity = u128::from(resource.of(&room.node.facts.allocatable));
    let used = u128::from(resource.of(&room.used)) + u128::from(wanted);
    if capacity == 0 {
        return POINTS_MAX;
    }
    let share = used * 1_000 / capacity;
    i64::try_from(share).unwrap_or(POINTS_MAX).min(POINTS_MAX)
}
