//! The simulated cluster: one database, two planners, some nodes, a bad network, and users.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, ensure};
use brig_api::change::Change;
use brig_api::lifecycle::UnitState;
use brig_api::object::{
    Desired, Job, JobState, Meta, Namespace, Node, NodeFacts, NodeState, Object, Owner, Service,
};
use brig_api::placement::PlacementRules;
use brig_api::spec::{JobSpec, Labels, NamespaceSpec, ServiceSpec};
use brig_api::unit_spec::{
    Disconnect, Program, RestartPolicy, Runtime, Task, UnitTemplate, WasmProgram,
};
use brig_api::{
    Bytes, MilliCpu, NamespacePath, NodeName, PlanSequence, ResourceName, Resources, Revision,
    UnitId,
};
use brig_core::commit::commit;
use brig_core::{Model, Moment, Plan, plan};

use crate::agent::{Agent, Assignment};
use crate::invariants::Witness;
use crate::random::Random;

/// Faulty events of one run.
const EVENTS: u32 = 300;
/// Rounds within which a healed cluster comes to rest.
const ROUNDS_MAX: u32 = 3_000;
/// What a node has.
const NODE_SIZE: u64 = 8;
/// Most messages under way; the oldest are lost beyond that.
const MESSAGES_MAX: usize = 200;

/// Something under way between control plane and nodes.
#[derive(Debug, Clone)]
enum Message {
    Assignments(NodeName, Revision, Vec<Assignment>),
    Report(NodeName, UnitId, UnitState, u64),
}

struct World {
    random: Random,
    model: Model,
    now_ms: i64,
    silent: BTreeSet<NodeName>,
    agents: BTreeMap<NodeName, Agent>,
    messages: Vec<Message>,
    /// A plan that the other planner has made and not committed yet.
    late_plan: Option<Plan>,
    witness: Witness,
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
            model: Model::new(Revision(0), PlanSequence(0), []),
            now_ms: 1_000_000,
            silent: BTreeSet::new(),
            agents: BTreeMap::new(),
            messages: Vec::new(),
            late_plan: None,
            witness: Witness::default(),
        };
        for index in 0..=world.random.below(4) {
            let node = node(&format!("node-{index}"))?;
            world.agents.insert(node.name.clone(), Agent::default());
            world.put(Object::Node(node));
        }
        if world.random.chance(50) {
            let quota = Some(amount(3 + u64::from(world.random.below(20))));
            let name = NamespacePath::default_namespace();
            let spec = NamespaceSpec {
                name,
                quota,
                guarantee: None,
                weight: None,
                max_units: None,
                max_services: None,
                max_jobs: None,
                description: String::new(),
            };
            world.put(Object::Namespace(Namespace { spec, meta: Meta::default() }));
        }
        Ok(world)
    }

    fn put(&mut self, object: Object) {
        let revision = Revision(self.model.revision.0 + 1);
        let change = Change { revision, position: 0, key: object.key(), object: Some(object) };
        self.model.apply(&change);
    }

    fn check(&mut self) -> anyhow::Result<()> {
        self.witness.check(&self.model)
    }

    fn event(&mut self) -> anyhow::Result<()> {
        match self.random.below(100) {
            0..25 => self.pass()?,
            25..30 => self.late_plan = Some(self.plan()),
            30..35 => self.commit_late(),
            35..50 => self.tell_nodes(),
            50..70 => self.deliver(),
            70..85 => self.work(false),
            85..88 => self.now_ms += i64::from(self.random.below(40_000)),
            88..91 => self.change_reach(),
            91..93 => self.reboot(),
            _ => self.user_acts()?,
        }
        Ok(())
    }

    fn plan(&self) -> Plan {
        plan(&mut self.model.clone(), &Moment { now_ms: self.now_ms, silent: self.silent.clone() })
    }

    fn pass(&mut self) -> anyhow::Result<()> {
        let made = self.plan();
        if !made.is_empty() {
            commit(&mut self.model, &made, self.now_ms)?;
        }
        Ok(())
    }

    /// The other planner commits what it planned a while ago: refused when somebody planned since, and otherwise
    /// right although reports and users have changed the model meanwhile.
    fn commit_late(&mut self) {
        if let Some(late) = self.late_plan.take() {
            let newest = self.model.plan;
            let is_refused = commit(&mut self.model, &late, self.now_ms).is_err();
            debug_assert_eq!(is_refused, late.after != newest);
        }
    }

    /// Sends each node its list, and each node's reports.
    fn tell_nodes(&mut self) {
        let mut sent = Vec::new();
        for (node, agent) in &self.agents {
            sent.push(Message::Assignments(
                node.clone(),
                self.model.revision,
                assignments(&self.model, node),
            ));
            for (unit, held) in &agent.held {
                let (unit, node) = (unit.clone(), node.clone());
                sent.push(Message::Report(node, unit, held.state, held.sequence));
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
        let count = u32::try_from(self.messages.len()).unwrap_or(u32::MAX);
        for _ in 0..self.random.below(12).min(count) {
            let left = u32::try_from(self.messages.len()).unwrap_or(u32::MAX);
            let position = usize::try_from(self.random.below(left)).unwrap_or(0);
            let message = self.messages.swap_remove(position);
            self.receive(message);
        }
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Assignments(node, revision, list) => {
                let agent = self.agents.get_mut(&node).filter(|_| !self.silent.contains(&node));
                if let Some(agent) = agent {
                    agent.assign(revision, &list);
                }
            }
            Message::Report(node, unit, state, sequence) if !self.silent.contains(&node) => {
                let Some(unit) = self.model.unit(&unit) else { return };
                let is_news = unit.node.as_ref() == Some(&node)
                    && sequence > unit.status.sequence
                    && unit.status.state.allows_report(state);
                if is_news {
                    let mut unit = unit.clone();
                    (unit.status.state, unit.status.sequence) = (state, sequence);
                    unit.status.finished_ms = state.is_final().then_some(self.now_ms);
                    self.put(Object::Unit(Box::new(unit)));
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

    fn reboot(&mut self) {
        if let Some(node) = self.any_node()
            && let Some(agent) = self.agents.get_mut(&node)
        {
            agent.reboot();
        }
    }

    fn user_acts(&mut self) -> anyhow::Result<()> {
        let text = format!("s{}", self.random.below(3));
        let service = ResourceName::new(text)?;
        let job = ResourceName::new(format!("j{}", self.random.below(2)))?;
        let namespace = NamespacePath::default_namespace();
        let old = self.model.service(&namespace, &service);
        let old_job = self.model.job(&namespace, &job);
        match (self.random.below(6), old.cloned(), old_job.cloned()) {
            (0..2, None, _) => self.new_service(service)?,
            (0, Some(mut old), _) => {
                old.spec.replicas = self.random.below(6);
                self.put(Object::Service(old));
            }
            (1, Some(mut old), _) => {
                old.generation += 1;
                old.spec.unit = template(&mut self.random)?;
                self.put(Object::Service(old));
            }
            (2, Some(old), _) if self.random.chance(40) => {
                self.put(Object::Service(Service { is_deleting: true, ..old }));
            }
            (3, _, None) => self.new_job(job)?,
            (3, _, Some(old)) if old.state.is_final() || self.random.chance(20) => {
                self.put(Object::Job(Job { is_deleting: true, ..old }));
            }
            (4, _, Some(old)) if old.state == JobState::Active && self.random.chance(30) => {
                self.put(Object::Job(Job { state: JobState::Stopped, ..old }));
            }
            (5, ..) => self.stop_some_unit(),
            _ => {}
        }
        Ok(())
    }

    fn new_service(&mut self, name: ResourceName) -> anyhow::Result<()> {
        let spec = ServiceSpec {
            name,
            namespace: NamespacePath::default_namespace(),
            replicas: self.random.below(6),
            max_unavailable: 1,
            unit: template(&mut self.random)?,
            labels: Labels::new(),
        };
        let meta = Meta { revision: self.model.revision, created_ms: self.now_ms };
        self.put(Object::Service(Service { spec, generation: 1, is_deleting: false, meta }));
        Ok(())
    }

    fn new_job(&mut self, name: ResourceName) -> anyhow::Result<()> {
        let unit = template(&mut self.random)?;
        let spec = JobSpec {
            name,
            namespace: NamespacePath::default_namespace(),
            parallelism: 1 + self.random.below(3),
            completions: 1 + self.random.below(5),
            retries: self.random.below(3),
            retry_after_ms: None,
            unit: UnitTemplate { restart: RestartPolicy::Never, ..unit },
            labels: Labels::new(),
        };
        let meta = Meta { revision: self.model.revision, created_ms: self.now_ms };
        let (state, succeeded, failed) = (JobState::Active, 0, 0);
        self.put(Object::Job(Job { spec, state, succeeded, failed, is_deleting: false, meta }));
        Ok(())
    }

    fn stop_some_unit(&mut self) {
        let ids: Vec<_> = self.model.units().map(|unit| unit.id.clone()).collect();
        let desired = if self.random.chance(50) { Desired::Stop } else { Desired::Remove };
        let unit = self.random.pick(&ids).and_then(|id| self.model.unit(id)).cloned();
        if let Some(mut unit) = unit.filter(|unit| unit.desired == Desired::Run) {
            unit.desired = desired;
            self.put(Object::Unit(Box::new(unit)));
        }
    }

    /// Every node returns and nothing is lost any more: the cluster comes to rest, and is as it should be.
    fn heal(mut self) -> anyhow::Result<()> {
        self.silent.clear();
        self.messages.clear();
        for _ in 0..ROUNDS_MAX {
            let made = self.plan();
            if !made.is_empty() {
                commit(&mut self.model, &made, self.now_ms)?;
            }
            let before = self.model.clone();
            self.exchange();
            self.work(true);
            self.exchange();
            self.check()?;
            if made.is_empty() && self.model == before && self.is_at_work() {
                match made.wake_at_ms {
                    Some(at_ms) => self.now_ms = at_ms,
                    None => return self.check_rest(),
                }
            }
        }
        anyhow::bail!("no rest after {ROUNDS_MAX} rounds; next would be {:?}", self.plan())
    }

    /// All lists and all reports arrive, once.
    fn exchange(&mut self) {
        let nodes: Vec<_> = self.agents.keys().cloned().collect();
        for node in nodes {
            let list = assignments(&self.model, &node);
            self.receive(Message::Assignments(node.clone(), self.model.revision, list));
            let held = self.agents.get(&node).map(|agent| agent.held.clone()).unwrap_or_default();
            for (unit, held) in held {
                self.receive(Message::Report(node.clone(), unit, held.state, held.sequence));
            }
        }
    }

    /// Does everything that is on a node run?
    fn is_at_work(&self) -> bool {
        let mut live = self.model.units().filter(|unit| unit.status.state.is_on_node());
        live.all(|unit| unit.status.state == UnitState::Running && !is_of_job(unit))
    }

    fn check_rest(&self) -> anyhow::Result<()> {
        for unit in self.model.units().filter(|unit| unit.status.state == UnitState::Pending) {
            ensure!(unit.status.reason.is_some(), "{} waits and nobody says why", unit.name);
        }
        for service in self.model.services() {
            let name = &service.spec.name;
            ensure!(!service.is_deleting, "{name} was deleted and is still there");
            let wanted = self.model.units().filter(|unit| {
                unit.desired == Desired::Run
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
            for (id, held) in &agent.held {
                let unit =
                    self.model.unit(id).with_context(|| format!("{id} runs on {node} only"))?;
                ensure!(
                    held.state == unit.status.state || held.state.is_final(),
                    "{id} is {:?} on {node} and {:?} here",
                    held.state,
                    unit.status.state
                );
            }
        }
        for job in self.model.jobs() {
            let name = &job.spec.name;
            ensure!(!job.is_deleting, "{name} was deleted and is still there");
            let waits = self.model.units().any(|unit| unit.status.state == UnitState::Pending);
            ensure!(job.state.is_final() || waits, "{name} has not ended");
        }
        Ok(())
    }
}

fn is_of_job(unit: &brig_api::object::Unit) -> bool {
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

fn amount(size: u64) -> Resources {
    Resources {
        cpu: MilliCpu(size),
        memory: Bytes(size),
        disk: Bytes(size),
        ..Resources::default()
    }
}

fn node(name: &str) -> anyhow::Result<Node> {
    Ok(Node {
        name: NodeName::new(name)?,
        facts: NodeFacts {
            allocatable: amount(NODE_SIZE),
            attributes: BTreeMap::new(),
            taints: Vec::new(),
            volumes: Vec::new(),
            runtimes: vec![Runtime::Wasm],
            address: "10.0.0.1".to_owned(),
            agent_version: "0".to_owned(),
            boot_id: "0".to_owned(),
        },
        state: NodeState::Ready,
        state_since_ms: 0,
        meta: Meta::default(),
    })
}

fn template(random: &mut Random) -> anyhow::Result<UnitTemplate> {
    let request = amount(1 + u64::from(random.below(4)));
    let program = WasmProgram { artifact: "a:1".to_owned(), ..WasmProgram::default() };
    let task = Task {
        name: ResourceName::new("main")?,
        program: Program::Wasm(program),
        limits: request.clone(),
        resources: request,
        env: BTreeMap::new(),
        mounts: Vec::new(),
        sidecar: false,
    };
    Ok(UnitTemplate {
        tasks: vec![task],
        restart: RestartPolicy::Always,
        priority: i32::try_from(random.below(3))?,
        constraints: Vec::new(),
        placement: PlacementRules::default(),
        revocable: false,
        gang: None,
        after: Vec::new(),
        concurrency: None,
        max_run_ms: None,
        grace_ms: 1_000,
        disconnect: if random.chance(20) { Disconnect::Wait } else { Disconnect::Replace },
    })
}
