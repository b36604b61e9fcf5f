//! The simulated cluster: one database, planners that follow its feed, some nodes, a bad network, and users.

mod rest;
mod users;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use brig_api::lifecycle::UnitState;
use brig_api::object::{Desired, Object, ObjectKey, Owner, Unit};
use brig_api::{Kind, NamespacePath, NodeName, Revision, UnitId};
use brig_core::{Model, Moment};

use crate::agent::{Agent, Assignment, Mood};
use crate::database::Database;
use crate::invariants::Witness;
use crate::planner::{Held, Planner};
use crate::random::Random;
use crate::workload;

/// Faulty events of one run.
const EVENTS: u32 = 300;
/// Servers that plan.
const PLANNERS: usize = 2;
/// Most messages under way; the oldest are lost beyond that.
const MESSAGES_MAX: usize = 200;
/// Most nodes.
const NODES_MAX: usize = 6;

/// Something under way between control plane and nodes.
#[derive(Debug, Clone)]
enum Message {
    Assignments(NodeName, Revision, Vec<Assignment>),
    Report(NodeName, UnitId, UnitState, u64),
}

struct World {
    random: Random,
    database: Database,
    planners: Vec<Planner>,
    now_ms: i64,
    silent: BTreeSet<NodeName>,
    /// What nodes say they hold.
    held: Held,
    agents: BTreeMap<NodeName, Agent>,
    messages: Vec<Message>,
    witness: Witness,
    /// Counts what users made.
    made: u32,
}

/// One run: faults first, then rest.
///
/// # Errors
/// The broken invariant, the event and the seed.
pub(crate) fn run(seed: u64) -> anyhow::Result<()> {
    let mut world = World::new(seed).context("the simulation's own set-up")?;
    for event in 0..EVENTS {
        world
            .event()
            .and_then(|()| world.check())
            .with_context(|| format!("seed {seed}, event {event}"))?;
    }
    world.heal().with_context(|| format!("seed {seed}, after the last event"))
}

impl World {
    fn new(seed: u64) -> anyhow::Result<Self> {
        let mut world = Self {
            random: Random::new(seed),
            database: Database::new(),
            planners: Vec::new(),
            now_ms: 1_000_000,
            silent: BTreeSet::new(),
            held: Held::new(),
            agents: BTreeMap::new(),
            messages: Vec::new(),
            witness: Witness::default(),
            made: 0,
        };
        for _ in 0..=world.random.below(5) {
            world.node_joins()?;
        }
        for path in workload::NAMESPACES {
            if world.random.chance(40) {
                world.namespace_changes(&NamespacePath::new(path)?);
            }
        }
        let planner = |_| Planner::new(&world.database);
        world.planners = (0..PLANNERS).map(planner).collect();
        Ok(world)
    }

    fn check(&mut self) -> anyhow::Result<()> {
        let oldest = self.planners.iter().map(Planner::revision).min();
        self.witness.check(self.database.rows(), oldest.unwrap_or(Revision(0)))
    }

    fn event(&mut self) -> anyhow::Result<()> {
        match self.random.below(100) {
            0..34 => self.planner_steps()?,
            34..46 => self.tell_nodes(),
            46..48 => self.holdings_change(),
            48..66 => self.deliver(),
            66..80 => self.work(false),
            80..83 => self.now_ms += i64::from(self.random.below(40_000)),
            83..85 => self.change_reach(),
            85..86 => self.reboot(),
            86..88 => self.change_mood(),
            88..90 => self.node_changes()?,
            _ => self.user_acts()?,
        }
        Ok(())
    }

    fn moment(&self) -> Moment {
        Moment { now_ms: self.now_ms, silent: self.silent.clone() }
    }

    fn planner_steps(&mut self) -> anyhow::Result<()> {
        let moment = self.moment();
        let position = self.random.position(self.planners.len());
        if let Some(planner) = self.planners.get_mut(position) {
            if self.random.chance(1) {
                planner.crash(&self.database, &mut self.random);
            }
            planner.listen(&self.held, 50, &mut self.random);
            planner.step(&mut self.database, &moment, &mut self.random)?;
        }
        Ok(())
    }

    /// Sends each node its list, and each node's reports.
    fn tell_nodes(&mut self) {
        let truth = self.database.truth();
        let everybody: Vec<_> = truth.units().collect();
        let mut sent = Vec::new();
        for (node, agent) in &mut self.agents {
            let list = assignments(truth, node);
            sent.push(Message::Assignments(node.clone(), truth.revision, list));
            for (unit, held) in &agent.held {
                let (unit, node) = (unit.clone(), node.clone());
                sent.push(Message::Report(node, unit, held.state, held.sequence));
            }
            if agent.mood == Mood::Lies
                && let Some(unit) = self.random.pick(&everybody)
            {
                let is_of_other = unit.node.as_ref().is_some_and(|other| other != node);
                let (state, sequence) = agent.lie(&unit.id, is_of_other, &mut self.random);
                sent.push(Message::Report(node.clone(), unit.id.clone(), state, sequence));
            }
        }
        for message in sent {
            for _ in 0..self.random.below(3) {
                self.messages.push(message.clone());
            }
        }
        let surplus = self.messages.len().saturating_sub(MESSAGES_MAX);
        self.messages.drain(..surplus);
    }

    /// Any of the messages arrives, unless its node is out of reach.
    fn deliver(&mut self) {
        for _ in 0..self.random.below(16) {
            if self.messages.is_empty() {
                return;
            }
            let position = self.random.position(self.messages.len());
            let message = self.messages.swap_remove(position);
            self.receive(message);
        }
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Assignments(node, revision, list) => {
                let agent = self.agents.get_mut(&node).filter(|_| !self.silent.contains(&node));
                if let Some(agent) = agent {
                    agent.assign(revision, &list, self.now_ms);
                }
            }
            Message::Report(node, unit, state, sequence) if !self.silent.contains(&node) => {
                let Some(unit) = self.database.truth().unit(&unit) else { return };
                let is_news = unit.node.as_ref() == Some(&node)
                    && sequence > unit.status.sequence
                    && unit.status.state.allows_report(state);
                if is_news {
                    let mut unit = unit.clone();
                    (unit.status.state, unit.status.sequence) = (state, sequence);
                    unit.status.finished_ms = state.is_final().then_some(self.now_ms);
                    self.database.put(Object::Unit(Box::new(unit)));
                }
            }
            Message::Report(..) => {}
        }
    }

    fn work(&mut self, is_calm: bool) {
        for agent in self.agents.values_mut() {
            agent.work(&mut self.random, is_calm);
        }
    }

    fn any_node(&mut self) -> Option<NodeName> {
        let names: Vec<_> = self.agents.keys().cloned().collect();
        self.random.pick(&names).cloned()
    }

    fn change_reach(&mut self) {
        if let Some(node) = self.any_node()
            && !self.silent.remove(&node)
        {
            self.silent.insert(node);
        }
    }

    /// A node fetches or removes artifacts, or nobody knows any more what it holds.
    fn holdings_change(&mut self) {
        let Some(node) = self.any_node() else { return };
        if self.random.chance(20) {
            self.held.remove(&node);
        } else {
            self.held.insert(node, workload::held(&mut self.random));
        }
    }

    fn reboot(&mut self) {
        if let Some(node) = self.any_node()
            && let Some(agent) = self.agents.get_mut(&node)
        {
            agent.reboot();
        }
    }

    fn change_mood(&mut self) {
        if let Some(node) = self.any_node()
            && let Some(agent) = self.agents.get_mut(&node)
        {
            match agent.mood {
                Mood::Good if self.random.chance(50) => agent.mood = Mood::Hangs,
                Mood::Good => agent.mood = Mood::Lies,
                Mood::Hangs | Mood::Lies => agent.cure(),
            }
        }
    }

    /// A node comes, goes for good, or is no longer what it was.
    fn node_changes(&mut self) -> anyhow::Result<()> {
        match (self.random.below(3), self.any_node()) {
            (0, _) | (_, None) if self.agents.len() < NODES_MAX => self.node_joins()?,
            (1, Some(name)) if self.random.chance(60) => {
                self.agents.remove(&name);
                self.silent.remove(&name);
                self.held.remove(&name);
                // What it still has to say comes from nobody, should its name come back.
                self.messages.retain(|message| match message {
                    Message::Assignments(node, ..) | Message::Report(node, ..) => *node != name,
                });
                let name = name.as_str().to_owned();
                self.database.remove(ObjectKey { kind: Kind::Node, namespace: None, name });
            }
            (_, Some(name)) => {
                if let Some(mut node) = self.database.truth().node(&name).cloned() {
                    node.facts = workload::facts(&mut self.random)?;
                    self.database.put(Object::Node(node));
                    self.witness.node_changed(&name, self.database.truth().revision);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn node_joins(&mut self) -> anyhow::Result<()> {
        let name = format!("node-{}", self.random.below(9));
        let node = workload::node(&name, &mut self.random)?;
        let name = node.name.clone();
        if !self.agents.contains_key(&name) {
            self.agents.insert(name.clone(), Agent::default());
            self.database.put(Object::Node(node));
            let revision = self.database.truth().revision;
            self.witness.node_changed(&name, revision);
            // Units of a node that had the name before count again.
            for path in workload::NAMESPACES {
                self.witness.namespace_changed(&NamespacePath::new(path)?, revision);
            }
        }
        Ok(())
    }
}

fn is_of_job(unit: &Unit) -> bool {
    matches!(unit.owner, Some(Owner::Job { .. }))
}

/// What a node is to run, as the control plane sees it.
fn assignments(model: &Model, node: &NodeName) -> Vec<Assignment> {
    let mine = model
        .units()
        .filter(|unit| unit.node.as_ref() == Some(node) && unit.status.state.is_on_node());
    mine.map(|unit| Assignment {
        unit: unit.id.clone(),
        is_wanted: unit.desired == Desired::Run,
        is_job: is_of_job(unit),
    })
    .collect()
}
