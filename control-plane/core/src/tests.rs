//! Tests of whole passes: a small cluster is built, planned on, committed, and its nodes do as they are told.

mod answers;
mod devices;
mod draws;
mod fairness;
mod gangs;
mod held;
mod jobs;
mod neighbours;
mod nodes_and_units;
mod placing;
mod preemption;
mod properties;
mod queueing;
mod services;
mod simulate;
mod soundness;
mod texts;
mod variants;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use brig_api::change::Change;
use brig_api::constraint::{Constraint, Operator};
use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::{
    Desired, Job, JobState, Meta, Namespace, Node, NodeFacts, NodeState, Object, ObjectKey, Owner,
    Service, Unit, UnitStatus,
};
use brig_api::placement::{ArtifactRule, Grants, PlacementRules};
use brig_api::spec::{JobSpec, Labels, NamespaceSpec, ServiceSpec};
use brig_api::unit_spec::{
    Disconnect, HttpServing, OciProgram, Program, RestartPolicy, Runtime, Task, UnitTemplate,
    WasmProgram,
};
use brig_api::variants::Variants;
use brig_api::{
    Bytes, Digest, Kind, MilliCpu, NamespacePath, NodeName, PlanSequence, ResourceName, Resources,
    Revision, UnitId,
};

use crate::commit::commit;
use crate::{Decision, Holdings, Model, Moment, Plan, plan};

pub(super) const MI: u64 = 1 << 20;
pub(super) const GI: u64 = 1 << 30;
/// Passes within which every test's cluster comes to rest.
const PASSES_MAX: usize = 300;

pub(super) fn name(text: &str) -> ResourceName {
    ResourceName::new(text).unwrap()
}

pub(super) fn namespace(text: &str) -> NamespacePath {
    NamespacePath::new(text).unwrap()
}

pub(super) fn amount(cpu: u64, memory: u64) -> Resources {
    Resources { cpu: MilliCpu(cpu), memory: Bytes(memory), ..Resources::default() }
}

pub(super) fn wasm(request: Resources) -> UnitTemplate {
    let program = WasmProgram { artifact: "a:1".to_owned(), ..WasmProgram::default() };
    template(request, Program::Wasm(program))
}

pub(super) fn http(request: Resources, port: u16) -> UnitTemplate {
    let http = Some(HttpServing { port: Some(port), ..HttpServing::default() });
    let program = WasmProgram { artifact: "a:1".to_owned(), http, ..WasmProgram::default() };
    template(request, Program::Wasm(program))
}

pub(super) fn oci(request: Resources, ports: &[u16]) -> UnitTemplate {
    let image = "docker.io/library/redis:7".to_owned();
    let program = OciProgram { image, ports: ports.to_vec(), ..OciProgram::default() };
    template(request, Program::Oci(program))
}

/// A unit that offers the programs of these as variants, the first preferred.
pub(super) fn variants(of: &[UnitTemplate]) -> UnitTemplate {
    let programs = of.iter().map(|unit| unit.tasks[0].program().clone()).collect();
    let mut unit = of[0].clone();
    unit.tasks[0].variants = Variants::new(programs).unwrap();
    unit
}

pub(super) fn digest(number: u8) -> Digest {
    Digest::of_sha256(&[number.wrapping_mul(85); 32])
}

/// Every program of the unit is that of the reference.
pub(super) fn fix(unit: &mut UnitTemplate, reference: &str) {
    for (_, program) in unit.tasks.iter_mut().flat_map(|task| task.variants.iter_mut()) {
        match program {
            Program::Wasm(wasm) => wasm.artifact = reference.to_owned(),
            Program::Oci(oci) => oci.image = reference.to_owned(),
        }
    }
}

fn template(request: Resources, program: Program) -> UnitTemplate {
    let task = Task {
        name: name("main"),
        variants: program.into(),
        limits: request.clone(),
        resources: request,
        env: BTreeMap::new(),
        mounts: Vec::new(),
        stdin: false,
        sidecar: false,
    };
    UnitTemplate {
        tasks: vec![task],
        restart: RestartPolicy::Always,
        priority: 0,
        constraints: Vec::new(),
        placement: PlacementRules::default(),
        revocable: false,
        gang: None,
        after: Vec::new(),
        concurrency: None,
        max_run_ms: None,
        grace_ms: 1_000,
        disconnect: Disconnect::Replace,
    }
}

pub(super) fn requires(attribute: &str, operator: Operator, values: &[&str]) -> Constraint {
    let values = values.iter().map(|value| (*value).to_owned()).collect();
    Constraint { attribute: attribute.to_owned(), operator, values }
}

/// A cluster whose nodes do as they are told, at once.
#[derive(Debug, Clone)]
pub(super) struct Cluster {
    pub(super) model: Model,
    pub(super) moment: Moment,
    /// Units whose program ends with this state as soon as it runs, by prefix of the unit's name.
    pub(super) endings: BTreeMap<String, UnitState>,
    /// Nodes that take assignments and begin nothing.
    pub(super) is_stuck: bool,
    created: u64,
}

impl Cluster {
    pub(super) fn new() -> Self {
        let moment = Moment { now_ms: 1_000_000, silent: BTreeSet::new() };
        let model = Model::new(Revision(1), PlanSequence(0), []);
        Self { model, moment, endings: BTreeMap::new(), is_stuck: false, created: 0 }
    }

    fn put(&mut self, object: Object) {
        self.model.revision.0 += 1;
        self.model.put(object);
    }

    /// A deletion, as the feed tells it.
    pub(super) fn remove(&mut self, kind: Kind, path: Option<&str>, name: &str) {
        let key = ObjectKey { kind, namespace: path.map(namespace), name: name.to_owned() };
        let revision = Revision(self.model.revision.0 + 1);
        self.model.apply(&Change { revision, position: 0, key, object: None });
    }

    fn meta(&self) -> Meta {
        Meta { revision: self.model.revision, created_ms: self.moment.now_ms }
    }

    pub(super) fn node(&mut self, text: &str, allocatable: Resources) -> NodeName {
        self.node_like(text, allocatable, &[Runtime::Wasm, Runtime::Oci], &[])
    }

    pub(super) fn node_like(
        &mut self,
        text: &str,
        allocatable: Resources,
        runtimes: &[Runtime],
        attributes: &[(&str, &str)],
    ) -> NodeName {
        let name = NodeName::new(text).unwrap();
        let attributes =
            attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let facts = NodeFacts {
            allocatable,
            attributes: attributes.collect(),
            taints: Vec::new(),
            volumes: Vec::new(),
            runtimes: runtimes.to_vec(),
            address: "10.0.0.1".to_owned(),
            agent_version: "0.1.0".to_owned(),
            boot_id: "b".to_owned(),
        };
        let meta = self.meta();
        self.put(Object::Node(Node {
            name: name.clone(),
            facts,
            state: NodeState::Ready,
            state_since_ms: 0,
            held_artifacts: None,
            meta,
        }));
        name
    }

    pub(super) fn namespace(&mut self, path: &str, quota: Option<Resources>) {
        self.namespace_like(path, |spec| spec.quota = quota);
    }

    pub(super) fn namespace_like(&mut self, path: &str, change: impl FnOnce(&mut NamespaceSpec)) {
        let mut spec = NamespaceSpec {
            name: namespace(path),
            quota: None,
            guarantee: None,
            weight: None,
            max_units: None,
            max_services: None,
            max_jobs: None,
            description: String::new(),
        };
        change(&mut spec);
        let meta = self.meta();
        self.put(Object::Namespace(Namespace { spec, meta }));
    }

    pub(super) fn service(&mut self, text: &str, replicas: u32, unit: UnitTemplate) {
        let spec = ServiceSpec {
            name: name(text),
            namespace: namespace("default"),
            replicas,
            max_unavailable: 1,
            unit,
            labels: Labels::from([("app".to_owned(), text.to_owned())]),
        };
        let meta = self.meta();
        self.put(Object::Service(Service { spec, generation: 1, is_deleting: false, meta }));
    }

    pub(super) fn change_service(&mut self, text: &str, change: impl FnOnce(&mut Service)) {
        let mut service = self.model.service(&namespace("default"), &name(text)).unwrap().clone();
        change(&mut service);
        self.put(Object::Service(service));
    }

    pub(super) fn job(&mut self, text: &str, size: (u32, u32, u32), unit: UnitTemplate) {
        let (parallelism, completions, retries) = size;
        let spec = JobSpec {
            name: name(text),
            namespace: namespace("default"),
            parallelism,
            completions,
            retries,
            retry_after_ms: None,
            unit: UnitTemplate { restart: RestartPolicy::Never, ..unit },
            labels: Labels::from([("app".to_owned(), text.to_owned())]),
        };
        let meta = self.meta();
        let (state, succeeded, failed, is_deleting) = (JobState::Active, 0, 0, false);
        self.put(Object::Job(Job { spec, state, succeeded, failed, is_deleting, meta }));
    }

    pub(super) fn change_job(&mut self, text: &str, change: impl FnOnce(&mut Job)) {
        let mut job = self.model.job(&namespace("default"), &name(text)).unwrap().clone();
        change(&mut job);
        self.put(Object::Job(job));
    }

    pub(super) fn job_named(&self, text: &str) -> &Job {
        self.model.job(&namespace("default"), &name(text)).unwrap()
    }

    /// A lone unit of the namespace.
    pub(super) fn unit_in(&mut self, path: &str, text: &str, template: UnitTemplate) -> UnitId {
        self.created += 1;
        let id = UnitId::of_revision(Revision(self.created), 0);
        let meta = self.meta();
        self.put(Object::Unit(Box::new(Unit {
            id: id.clone(),
            name: name(text),
            namespace: namespace(path),
            owner: None,
            labels: Arc::default(),
            template: Arc::new(template),
            desired: Desired::Run,
            remove_when_done: false,
            node: None,
            promised: None,
            grants: Grants::default(),
            placed_ms: None,
            placed_by: None,
            status: UnitStatus::default(),
            meta,
        })));
        id
    }

    pub(super) fn unit(&mut self, text: &str, template: UnitTemplate) -> UnitId {
        self.unit_in("default", text, template)
    }

    pub(super) fn change_unit(&mut self, id: &UnitId, change: impl FnOnce(&mut Unit)) {
        let mut unit = self.model.unit(id).unwrap().clone();
        change(&mut unit);
        self.put(Object::Unit(Box::new(unit)));
    }

    pub(super) fn report(&mut self, id: &UnitId, state: UnitState) {
        let now_ms = self.moment.now_ms;
        self.change_unit(id, |unit| {
            unit.status.state = state;
            unit.status.finished_ms = state.is_final().then_some(now_ms);
        });
    }

    /// Plans and commits; the invariants hold before and after.
    pub(super) fn pass(&mut self) -> Plan {
        let before = self.model.clone();
        let plan = plan(&mut self.model, &self.moment);
        soundness::assert_sound(&before, &self.moment, &plan);
        if !plan.is_empty() {
            commit(&mut self.model, &plan, self.moment.now_ms).unwrap();
        }
        plan
    }

    /// What is assigned runs, what is to stop has stopped, and programs end as `endings` says.
    pub(super) fn nodes_work(&mut self) -> bool {
        let mut has_changed = false;
        let ids: Vec<_> = self.model.units().map(|unit| unit.id.clone()).collect();
        for id in ids {
            let unit = self.model.unit(&id).unwrap();
            let silent = &self.moment.silent;
            let is_silent = unit.node.as_ref().is_some_and(|node| silent.contains(node));
            if !unit.status.state.is_on_node() || is_silent {
                continue;
            }
            let ending =
                self.endings.iter().find(|(prefix, _)| unit.name.as_str().starts_with(*prefix));
            let next = match (unit.desired, unit.status.state) {
                (Desired::Stop | Desired::Remove, _) => UnitState::Stopped,
                (Desired::Run, _) if self.is_stuck => continue,
                (Desired::Run, UnitState::Running) => match ending {
                    Some((_, state)) => *state,
                    None => continue,
                },
                (Desired::Run, _) => UnitState::Running,
            };
            self.report(&id, next);
            has_changed = true;
        }
        has_changed
    }

    /// Passes, node steps and time until nothing is left to do.
    pub(super) fn settle(&mut self) {
        for _ in 0..PASSES_MAX {
            let plan = self.pass();
            let has_changed = self.nodes_work();
            if plan.is_empty() && !has_changed {
                match plan.wake_at_ms {
                    Some(at_ms) => self.moment.now_ms = at_ms,
                    None => return,
                }
            }
        }
        panic!(
            "the cluster did not come to rest: {:?}",
            plan(&mut self.model.clone(), &self.moment)
        );
    }

    /// Node and state of every unit, by name.
    pub(super) fn listing(&self) -> Vec<String> {
        let line = |unit: &Unit| {
            let node = unit.node.as_ref().map_or("-", |node| node.as_str());
            format!("{} {} {node}", unit.name, unit.status.state.as_str())
        };
        let mut lines: Vec<_> = self.model.units().map(line).collect();
        lines.sort();
        lines
    }

    pub(super) fn count(&self, matches: impl Fn(&Unit) -> bool) -> usize {
        self.model.units().filter(|unit| matches(unit)).count()
    }

    pub(super) fn running_of_generation(&self, wanted: u64) -> usize {
        self.count(|unit| {
            unit.status.state == UnitState::Running
                && matches!(&unit.owner, Some(Owner::Service { generation, .. }) if *generation == wanted)
        })
    }
}

/// A lone unit's node, if it has one.
pub(super) fn node_of(cluster: &Cluster, id: &UnitId) -> Option<String> {
    cluster.model.unit(id).unwrap().node.as_ref().map(ToString::to_string)
}

/// The units that a plan stops, by name, with the reason.
pub(super) fn stops(cluster: &Cluster, plan: &Plan) -> Vec<(String, Reason)> {
    let mut stops: Vec<_> = plan
        .decisions
        .iter()
        .filter_map(|decision| match decision {
            Decision::UnitStop { unit, reason, .. } => {
                Some((cluster.model.unit(unit).unwrap().name.to_string(), *reason))
            }
            _ => None,
        })
        .collect();
    stops.sort();
    stops
}

/// The refusals of a plan.
pub(super) fn refusals(plan: &Plan) -> Vec<(&UnitId, Reason, &str)> {
    let refusal = |decision| match decision {
        &Decision::UnitRefuse { ref unit, reason, ref message, .. } => {
            Some((unit, reason, message.as_str()))
        }
        _ => None,
    };
    plan.decisions.iter().filter_map(refusal).collect()
}
