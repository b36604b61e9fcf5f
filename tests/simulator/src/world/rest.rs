//! The end of a run: everything is whole again, the cluster comes to rest, and is as it should be.

use anyhow::{Context as _, ensure};
use brig_api::change::Change;
use brig_api::lifecycle::UnitState;
use brig_api::object::{Desired, Object, Unit};

use super::{Message, World, assignments, is_of_job};
use crate::agent::Mood;

/// Rounds within which a healed cluster comes to rest.
const ROUNDS_MAX: u32 = 3_000;

impl World {
    /// Every node returns and nothing is lost any more: the cluster comes to rest, and is as it should be.
    pub(super) fn heal(mut self) -> anyhow::Result<()> {
        self.silent.clear();
        self.messages.clear();
        self.agents.values_mut().for_each(crate::agent::Agent::cure);
        for planner in &mut self.planners {
            planner.give_up(&self.database);
        }
        for _ in 0..ROUNDS_MAX {
            let before = self.database.feed().len();
            let wake_at_ms = self.pass()?;
            self.exchange();
            self.work(true);
            self.exchange();
            self.check()?;
            let is_quiet = self.database.feed().len() == before;
            if is_quiet && self.is_at_work() {
                match wake_at_ms {
                    Some(at_ms) => self.now_ms = at_ms,
                    None => return self.check_rest(),
                }
            }
        }
        let waiting = self.database.truth().units().filter(|unit| unit.promised.is_some());
        let waiting: Vec<_> = waiting.map(|unit| format!("{unit:?}")).collect();
        let busy = self.database.truth().units().filter(|unit| !is_at_rest(unit));
        let busy: Vec<_> = busy
            .map(|unit| format!("{} {:?} {:?}", unit.name, unit.desired, unit.status))
            .collect();
        let last = self.database.feed().iter().rev().take(20);
        let last: Vec<_> = last.map(in_short).collect();
        anyhow::bail!(
            "no rest after {ROUNDS_MAX} rounds; changed last, newest first:\n{}busy: {busy:#?}, waiting for others to leave: {waiting:#?}",
            last.concat()
        )
    }

    /// The first planner plans on all there is. When to plan again.
    fn pass(&mut self) -> anyhow::Result<Option<i64>> {
        let moment = self.moment();
        match self.planners.first_mut() {
            Some(planner) => {
                planner.listen(&self.held, 100, &mut self.random);
                planner.pass(&mut self.database, &moment, &mut self.random)
            }
            None => Ok(None),
        }
    }

    /// All lists and all reports arrive, once.
    fn exchange(&mut self) {
        let nodes: Vec<_> = self.agents.keys().cloned().collect();
        for node in nodes {
            let truth = self.database.truth();
            let list = assignments(truth, &node);
            self.receive(Message::Assignments(node.clone(), truth.revision, list));
            let held = self.agents.get(&node).map(|agent| agent.held.clone()).unwrap_or_default();
            for (unit, held) in held {
                self.receive(Message::Report(node.clone(), unit, held.state, held.sequence));
            }
        }
    }

    /// Does everything that is on a node run?
    fn is_at_work(&self) -> bool {
        self.database.truth().units().all(is_at_rest)
    }

    fn check_rest(&mut self) -> anyhow::Result<()> {
        let moment = self.moment();
        for planner in &mut self.planners {
            planner.catch_up(&self.database);
            planner.listen(&self.held, 100, &mut self.random);
            let more = planner.plan(&moment, &mut self.random, true)?;
            // One that has looked at everything later than the others may know more obstacles.
            let more = planner.without_rewordings(&more);
            ensure!(more.is_empty(), "another planner would go on with {:?}", more.decisions);
            ensure!(planner.rows() == self.database.rows(), "a planner has other objects");
        }
        let truth = self.database.truth();
        for unit in truth.units().filter(|unit| unit.status.state == UnitState::Pending) {
            ensure!(unit.status.reason.is_some(), "{} waits and nobody says why", unit.name);
            ensure!(unit.status.message.is_some(), "{} waits and says no more", unit.name);
            if let Some(node) = &unit.promised {
                let all = truth.units().map(|unit| {
                    let (request, state) = (unit.template.request(), unit.status.state);
                    let (name, space, gang) = (&unit.name, &unit.namespace, &unit.template.gang);
                    format!(
                        "{name} of {space}, {state:?} on {:?}, {gang:?}, {request:?}\n",
                        unit.node
                    )
                });
                let (name, all) = (&unit.name, all.collect::<String>());
                anyhow::bail!("{name} waits for others to leave {node}, and none does:\n{all}");
            }
        }
        for service in truth.services() {
            let name = &service.spec.name;
            ensure!(!service.is_deleting, "{name} was deleted and is still there");
            let wanted = truth.units().filter(|unit| {
                unit.desired == Desired::Run
                    && unit.namespace == service.spec.namespace
                    && unit.owner.as_ref().is_some_and(|owner| owner.name() == name)
            });
            let count = u32::try_from(wanted.count())?;
            let replicas = service.spec.replicas;
            ensure!(
                count == replicas || count == replicas + 1,
                "{name} has {count} units, not {replicas}"
            );
        }
        for (node, agent) in &self.agents {
            ensure!(agent.mood == Mood::Good, "{node} is not well");
            for (id, held) in &agent.held {
                let unit = truth.unit(id).with_context(|| format!("{id} runs on {node} only"))?;
                ensure!(
                    held.state == unit.status.state || held.state.is_final(),
                    "{id} is {:?} on {node} and {:?} here",
                    held.state,
                    unit.status.state
                );
            }
        }
        for job in truth.jobs() {
            let name = &job.spec.name;
            ensure!(!job.is_deleting, "{name} was deleted and is still there");
            let waits = truth.units().any(|unit| {
                unit.status.state == UnitState::Pending && unit.namespace == job.spec.namespace
            });
            ensure!(job.state.is_final() || waits, "{name} has not ended");
        }
        Ok(())
    }
}

/// Is nothing to be expected of its node?
fn is_at_rest(unit: &Unit) -> bool {
    let state = unit.status.state;
    !state.is_on_node() || (state == UnitState::Running && !is_of_job(unit))
}

/// One line about a change.
fn in_short(change: &Change) -> String {
    let Change { revision, key, object, .. } = change;
    let said = match object {
        None => "goes".to_owned(),
        Some(Object::Unit(unit)) => {
            let (desired, state, template) = (unit.desired, unit.status.state, &unit.template);
            let (reason, priority) = (unit.status.reason, template.priority);
            let (revocable, node) = (template.revocable, &unit.node);
            format!(
                "{desired:?} {state:?} {reason:?} on {node:?}, priority {priority}, revocable {revocable}, asks {:?}",
                template.request()
            )
        }
        Some(_) => "changed".to_owned(),
    };
    format!("{revision}: {key} {said}\n")
}
