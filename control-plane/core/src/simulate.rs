//! What-if: the scheduler works on a copy of the cluster to which something happens, until nothing changes any more.
//!
//! ```text
//!   model ─▶ come to rest ─▶ nodes are lost, nodes join, manifests arrive ─▶ plan ▶ commit ▶ nodes obey ─▶ Simulation
//!                 │ before                                                    └── until at rest ──┘
//! ```
//!
//! Nodes do as they are told, at once: what is assigned runs, what is to stop is gone. Nothing ends by itself. A pass that
//! has nothing to do moves the clock to the next reminder, no further than [`HORIZON_MS`].
//!
//! **Invariant:** the same model, scenario and moment give the same answer.

mod figures;
mod ledger;
mod scenario;

use brig_api::lifecycle::UnitState;
use brig_api::object::{Desired, Unit};
use brig_api::problem::FieldError;
use brig_api::simulate::Simulation;
use brig_api::{NodeName, UnitId};

use crate::commit::commit;
use crate::index::is_waiting;
use crate::reconcile::LOSE_AFTER_MS;
use crate::{Decision, Model, Moment, plan};
use figures::Tally;
use ledger::Ledger;

pub use scenario::{Arrival, Scenario};

/// For how long after the scenario the simulated clock goes on: lost nodes are given up, what that starts settles.
const HORIZON_MS: i64 = 2 * LOSE_AFTER_MS;
/// Where a simulation is cut off; its answer says so.
pub(crate) struct Limits {
    /// Most passes.
    pub(crate) passes: u32,
    /// Most units that it makes: each takes memory.
    pub(crate) creations: usize,
}

/// Replacing a service unit by unit takes two passes for each; a zone with 100,000 units may be lost.
const LIMITS: Limits = Limits { passes: 2_000, creations: 200_000 };

/// What happens to the cluster if `scenario` does, from `moment` on. The model is used up: give a copy. Between passes
/// `is_called_off` is asked; once it says so, the simulation is cut off.
///
/// # Errors
/// What in the scenario does not exist or is too much, with its path in the request.
pub fn simulate(
    model: Model,
    scenario: &Scenario,
    moment: &Moment,
    is_called_off: &dyn Fn() -> bool,
) -> Result<Simulation, Vec<FieldError>> {
    simulate_within(&LIMITS, model, scenario, moment, is_called_off)
}

pub(crate) fn simulate_within(
    limits: &Limits,
    model: Model,
    scenario: &Scenario,
    moment: &Moment,
    is_called_off: &dyn Fn() -> bool,
) -> Result<Simulation, Vec<FieldError>> {
    let silent: Vec<NodeName> = scenario.check(&model)?;
    let revision = model.revision;
    let mut world =
        World { limits, is_called_off, model, moment: moment.clone(), passes: 0, creations: 0 };
    world.obey_all();
    // What is under way already is not the scenario's doing.
    world.settle(moment.now_ms, &mut Ledger::default());
    let before = figures::capacity(&world.model);
    let mut ledger = Ledger::before(&world.model, &silent);
    world.moment.silent.extend(silent.iter().cloned());
    world.model.listen(&world.moment.silent);
    let arrived = scenario.happen(&mut world.model, moment.now_ms);
    ledger.measure(&world.model);
    let is_settled = world.settle(moment.now_ms.saturating_add(HORIZON_MS), &mut ledger);
    let tally = Tally {
        has_arrivals: !arrived.is_empty(),
        arrived: arrived.count(&world.model, |unit| unit.status.state.is_on_node()),
        arrived_waiting: arrived.count(&world.model, is_waiting),
        displaced: ledger.displaced(),
        joined: arrived.nodes,
        relieved: ledger.relieved(&world.model),
    };
    let mut simulation = Simulation {
        revision,
        fits: false,
        answer: String::new(),
        is_settled,
        passes: world.passes,
        elapsed_ms: world.moment.now_ms.saturating_sub(moment.now_ms),
        before,
        after: figures::capacity(&world.model),
        placements: ledger.placements(&world.model),
        waits: figures::waits(&mut world.model, &world.moment, ledger.waited_before()),
        still_waiting: ledger.still_waiting(&world.model),
        services: ledger.services(&world.model),
        quotas: Vec::new(),
        lost: ledger.lost(&world.model, &silent),
        evictions: ledger.into_evictions(),
        lost_nodes: silent,
    };
    figures::conclude(&mut simulation, tally);
    Ok(simulation)
}

/// The copy, and how far it has come.
struct World<'a> {
    limits: &'a Limits,
    is_called_off: &'a dyn Fn() -> bool,
    model: Model,
    moment: Moment,
    passes: u32,
    creations: usize,
}

impl World<'_> {
    /// Plans, commits and lets nodes work until nothing changes before `until_ms`; false when it was cut off.
    fn settle(&mut self, until_ms: i64, ledger: &mut Ledger) -> bool {
        loop {
            let plan = plan(&mut self.model, &self.moment);
            self.passes += 1;
            if plan.is_empty() {
                match plan.wake_at_ms.filter(|at_ms| *at_ms <= until_ms) {
                    Some(at_ms) => self.moment.now_ms = self.moment.now_ms.max(at_ms),
                    None => return true,
                }
            } else {
                let is_creation = |one: &&Decision| matches!(one, Decision::UnitCreate(_));
                self.creations += plan.decisions.iter().filter(is_creation).count();
                ledger.note(&self.model, &plan.decisions);
                // It was made after the newest plan: nobody else plans on the copy.
                if commit(&mut self.model, &plan, self.moment.now_ms).is_err() {
                    return false;
                }
                self.obey(&plan.decisions, ledger);
            }
            let is_too_much =
                self.passes >= self.limits.passes || self.creations >= self.limits.creations;
            if is_too_much || (self.is_called_off)() {
                return false;
            }
        }
    }

    /// Nodes do what a plan told them: what stops is gone before anything starts, so that the worst moment is seen.
    fn obey(&mut self, decisions: &[Decision], ledger: &mut Ledger) {
        for decision in decisions {
            if let Decision::UnitStop { unit, .. } = decision {
                self.advance(unit);
            }
        }
        ledger.measure(&self.model);
        for decision in decisions {
            if let Decision::UnitPlace { unit, .. } = decision {
                self.advance(unit);
            }
        }
    }

    /// Nodes do what they were told before.
    fn obey_all(&mut self) {
        let is_under_way = |unit: &&Unit| {
            unit.status.state.is_on_node()
                && (unit.desired != Desired::Run
                    || matches!(unit.status.state, UnitState::Assigned | UnitState::Preparing))
        };
        let units: Vec<UnitId> =
            self.model.units().filter(is_under_way).map(|unit| unit.id.clone()).collect();
        for unit in &units {
            self.advance(unit);
        }
    }

    /// The unit's node, if it can be reached, has done what it is to do.
    fn advance(&mut self, id: &UnitId) {
        let Some(unit) = self.model.unit(id).filter(|unit| unit.status.state.is_on_node()) else {
            return;
        };
        if unit.node.as_ref().is_some_and(|node| self.moment.silent.contains(node)) {
            return;
        }
        let mut unit = unit.clone();
        if unit.desired == Desired::Run {
            unit.status.state = UnitState::Running;
        } else {
            unit.status.state = UnitState::Stopped;
            unit.status.finished_ms = Some(self.moment.now_ms);
        }
        self.model.unit_put(unit.into());
    }
}
