//! A simulated node agent: starts what it is assigned, stops what it is not, reports with numbers. Or does not.

use std::collections::BTreeMap;

use brig_api::lifecycle::UnitState;
use brig_api::{Revision, UnitId};

use crate::random::Random;

/// What a node is told to run.
#[derive(Debug, Clone)]
pub(crate) struct Assignment {
    pub(crate) unit: UnitId,
    pub(crate) is_wanted: bool,
    pub(crate) is_job: bool,
}

/// How a unit is, as its node knows it.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) state: UnitState,
    pub(crate) sequence: u64,
    is_wanted: bool,
    is_job: bool,
}

/// How an agent behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Mood {
    /// As it should.
    #[default]
    Good,
    /// It takes assignments and does nothing.
    Hangs,
    /// It reports what is not so: states that are not allowed, units that are not its own, numbers that are old.
    Lies,
}

/// One node's agent; what it knows is on its disk and outlives it.
#[derive(Debug, Default)]
pub(crate) struct Agent {
    pub(crate) held: BTreeMap<UnitId, Held>,
    pub(crate) mood: Mood,
    newest: Revision,
}

impl Held {
    fn become_(&mut self, state: UnitState) {
        if self.state != state {
            self.state = state;
            self.sequence += 1;
        }
    }
}

impl Agent {
    /// Takes the complete list of assignments as of `revision`; older lists than the newest seen change nothing.
    /// Numbers of reports go on from `now_ms`, beyond those of a node that had the name before.
    pub(crate) fn assign(&mut self, revision: Revision, assignments: &[Assignment], now_ms: i64) {
        if revision < self.newest {
            return;
        }
        self.newest = revision;
        let is_listed = |id: &UnitId| assignments.iter().any(|assignment| assignment.unit == *id);
        self.held.retain(|id, _| is_listed(id));
        for Assignment { unit, is_wanted, is_job } in assignments {
            let held = self.held.entry(unit.clone()).or_insert_with(|| Held {
                state: if *is_wanted { UnitState::Preparing } else { UnitState::Stopped },
                sequence: u64::try_from(now_ms).unwrap_or(1),
                is_wanted: *is_wanted,
                is_job: *is_job,
            });
            held.is_wanted = *is_wanted;
            if !is_wanted && !held.state.is_final() {
                held.become_(UnitState::Stopping);
            }
        }
    }

    /// A lie about a unit, which may be any: what is said of it, and with which number. Lies about own units use up
    /// numbers like true reports.
    pub(crate) fn lie(
        &mut self,
        unit: &UnitId,
        is_of_other: bool,
        random: &mut Random,
    ) -> (UnitState, u64) {
        let state = random.pick(&UnitState::ALL).copied().unwrap_or_default();
        let sequence = match self.held.get_mut(unit) {
            Some(held) if random.chance(50) => {
                held.sequence += 1;
                held.sequence
            }
            Some(held) => u64::from(random.below(u32::try_from(held.sequence).unwrap_or(1))),
            None if is_of_other => 1_000,
            None => 0,
        };
        (state, sequence)
    }

    /// Somebody looks after it. Whatever a liar ran is gone: nobody knows what it was.
    pub(crate) fn cure(&mut self) {
        if self.mood == Mood::Lies {
            for held in self.held.values_mut() {
                let state = if held.state.is_final() { held.state } else { UnitState::Failed };
                held.state = state;
                held.sequence += 1;
            }
        }
        self.mood = Mood::Good;
    }

    /// One unit makes a step; `is_calm` leaves out failures.
    pub(crate) fn work(&mut self, random: &mut Random, is_calm: bool) {
        if self.mood == Mood::Hangs {
            return;
        }
        let live: Vec<_> = self.held.iter().filter(|(_, held)| !held.state.is_final()).collect();
        let Some(id) = random.pick(&live).map(|(id, _)| (*id).clone()) else { return };
        let fails = !is_calm && random.chance(10);
        if let Some(held) = self.held.get_mut(&id) {
            let next = match held.state {
                _ if !held.is_wanted => UnitState::Stopped,
                UnitState::Running if held.is_job && fails => UnitState::Failed,
                UnitState::Running if held.is_job => UnitState::Succeeded,
                UnitState::Running if fails => UnitState::Backoff,
                _ if fails => UnitState::Failed,
                _ => UnitState::Running,
            };
            held.become_(next);
        }
    }

    /// The machine starts again: every program is gone, what the disk knows is not.
    pub(crate) fn reboot(&mut self) {
        for held in self.held.values_mut().filter(|held| !held.state.is_final()) {
            let is_lost_work = held.is_job && held.state == UnitState::Running;
            held.become_(if is_lost_work { UnitState::Failed } else { UnitState::Preparing });
        }
    }
}
