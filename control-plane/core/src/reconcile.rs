//! From what is wanted to which units there should be: one function per kind, each about one subject of the agenda.

mod jobs;
mod nodes;
mod services;
mod units;

use std::collections::BTreeSet;

use brig_api::object::Unit;

use crate::agenda::Concern;
use crate::draft::Draft;

pub(crate) use nodes::evicting;

/// How long after its node became unreachable a unit with `disconnect: replace` is given up: four times the silence
/// that makes a node unreachable, so that a restarted agent or a switch is not mistaken for a dead machine.
pub const LOSE_AFTER_MS: i64 = 60_000;
/// How long an ended unit that removes itself stays listed, so that clients see how it ended.
pub const REMOVE_DONE_AFTER_MS: i64 = 60_000;
/// A service unit that ended by itself is replaced no sooner than this after it was created. Nodes restart tasks
/// with back-off; this keeps a unit that fails at once from being made anew as fast as plans commit.
pub const REPLACE_ENDED_AFTER_MS: i64 = 10_000;
/// The next attempt at a job's index starts no sooner than this after the failed one was created; doubled with
/// each further attempt, at most [`RETRY_DOUBLINGS_MAX`] times.
pub const RETRY_AFTER_MS: i64 = 1_000;
/// See [`RETRY_AFTER_MS`]: 64 seconds in the end.
pub const RETRY_DOUBLINGS_MAX: u32 = 6;
/// So many lost or stopped attempts at a job's index do not count as failed: nodes fail, the work is not at fault.
/// Beyond that it may well be what kills the nodes.
pub const LOSSES_FORGIVEN: u32 = 5;

/// Decides which units there should be, as far as that may have changed.
pub(crate) fn reconcile(draft: &mut Draft<'_>, concerns: BTreeSet<Concern>) {
    for concern in concerns {
        draft.turn_to(concern.clone());
        match concern {
            Concern::Node(name) => nodes::reconcile(draft, &name),
            Concern::Service(namespace, name) => services::reconcile(draft, &namespace, &name),
            Concern::Job(namespace, name) => jobs::reconcile(draft, &namespace, &name),
            Concern::Unit(id) => units::reconcile(draft, &id),
        }
    }
}

/// The order in which units came, for people and for ties: time, then id.
fn age_order(unit: &Unit) -> (i64, &str) {
    (unit.meta.created_ms, unit.id.as_str())
}
