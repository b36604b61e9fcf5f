//! Plays a trace: its work arrives at its times on a virtual clock, the real scheduler plans, the plans are committed as the
//! reference says, and nodes run what they are given for as long as the trace says.
//!
//! A unit runs from the moment it is placed; one that is told to stop has stopped a second later, and its job's next attempt
//! runs from the beginning.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use brig_api::change::Change;
use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::{Job, JobState, Meta, Namespace, Object, Owner, Unit};
use brig_api::placement::Grants;
use brig_api::spec::NamespaceSpec;
use brig_api::{NamespacePath, NodeName, PlanSequence, ResourceName, Revision, UnitId};
use brig_core::commit::commit;
use brig_core::{Decision, Model, Moment, Plan, plan, why};

use super::gauges::{Gauges, Readings, amounts};
use super::trace::{Trace, Work};

/// From being told to stop to having stopped.
const STOP_MS: i64 = 1_000;
/// Passes at one moment; more would mean that plans never come to an end.
const PASSES_MAX: u32 = 1_000;
/// Wake-ups in a row at which nothing is decided, and after which nothing is to come.
const IDLE_WAKES_MAX: u32 = 1_000;

/// What a replay showed.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    /// Units of the trace.
    pub(crate) units: usize,
    /// Machines.
    pub(crate) nodes: usize,
    /// Passes of the scheduler.
    pub(crate) passes: usize,
    /// What the gauges say.
    pub(crate) readings: Readings,
    /// How long each unit that was placed had waited, from when it could be placed to when it first was; shortest first.
    pub(crate) waits_ms: Vec<i64>,
    /// Units that were stopped for others.
    pub(crate) preemptions: usize,
    /// Units that were never placed, by what turned down most nodes.
    pub(crate) never: BTreeMap<String, usize>,
    /// When the last unit ended, on the trace's clock.
    pub(crate) ended_ms: i64,
    /// Time spent in passes.
    pub(crate) planning: Clocks,
    /// Time of the processor for the longest pass.
    pub(crate) longest_pass: Duration,
}

/// How long something took.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Clocks {
    /// On the wall.
    pub(crate) wall: Duration,
    /// Of the processor, for this thread: on a busy machine it is less.
    pub(crate) cpu: Duration,
}

/// Where a piece of work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It has not arrived, or waits for its parents.
    ToCome,
    /// It could be placed, since then.
    Waits { since_ms: i64, was_placed: bool },
    /// It has a node.
    Runs,
    /// It has succeeded.
    Done,
}

/// A unit that runs, or has been told to stop.
struct Placed {
    work: usize,
    node: NodeName,
    grants: Grants,
    due: Option<(i64, u64)>,
}

struct Playback<'t> {
    trace: &'t Trace,
    model: Model,
    moment: Moment,
    gauges: Gauges,
    stages: Vec<Stage>,
    by_job: BTreeMap<(&'t NamespacePath, &'t ResourceName), usize>,
    children: Vec<Vec<usize>>,
    parents_left: Vec<usize>,
    by_unit: BTreeMap<UnitId, usize>,
    placed: BTreeMap<UnitId, Placed>,
    /// What happens on nodes, by time and then in the order in which it was foreseen.
    due: BTreeMap<(i64, u64), (UnitId, UnitState)>,
    foreseen: u64,
    outcome: Outcome,
}

/// Plays the trace. `stopwatch` tells the time since some moment; `arrived` is told how much of the work has arrived.
///
/// # Errors
/// A plan that does not commit, or a cluster that does not come to rest.
pub(crate) fn play(
    trace: &Trace,
    stopwatch: &dyn Fn() -> Clocks,
    arrived: &dyn Fn(usize),
) -> anyhow::Result<Outcome> {
    let mut playback = Playback::new(trace);
    playback.set_up()?;
    let (mut next, mut idle) = (0, 0);
    loop {
        while let Some(work) = trace.work.get(next)
            && work.arrives_ms <= playback.moment.now_ms
        {
            playback.arrives(next, work);
            next += 1;
        }
        arrived(next);
        let has_ended = playback.end_what_is_due()?;
        let (wake_at_ms, has_decided) = playback.passes(stopwatch)?;
        let arrives_ms = trace.work.get(next).map(|work| work.arrives_ms);
        let due_ms = playback.due.first_key_value().map(|((at_ms, _), _)| *at_ms);
        idle = if has_decided || has_ended { 0 } else { idle + 1 };
        if arrives_ms.is_none() && due_ms.is_none() && idle > IDLE_WAKES_MAX {
            break;
        }
        let Some(at_ms) = [arrives_ms, due_ms, wake_at_ms].into_iter().flatten().min() else {
            break;
        };
        playback.gauges.advance(at_ms);
        playback.moment.now_ms = playback.moment.now_ms.max(at_ms);
    }
    Ok(playback.finish())
}

impl<'t> Playback<'t> {
    fn new(trace: &'t Trace) -> Self {
        let by_job: BTreeMap<_, _> = (0..)
            .zip(&trace.work)
            .map(|(number, work)| ((&work.job.namespace, &work.job.name), number))
            .collect();
        let mut children = vec![Vec::new(); trace.work.len()];
        let mut parents_left = vec![0; trace.work.len()];
        for (number, work) in trace.work.iter().enumerate() {
            let parents = work.job.unit.after.iter().filter_map(|after| after.job.as_ref());
            for parent in parents {
                parents_left[number] += 1;
                if let Some(parent) = by_job.get(&(&work.job.namespace, parent)) {
                    children[*parent].push(number);
                }
            }
        }
        Self {
            trace,
            model: Model::new(Revision(0), PlanSequence(0), []),
            moment: Moment { now_ms: 0, silent: BTreeSet::new() },
            gauges: Gauges::new(trace),
            stages: vec![Stage::ToCome; trace.work.len()],
            by_job,
            children,
            parents_left,
            by_unit: BTreeMap::new(),
            placed: BTreeMap::new(),
            due: BTreeMap::new(),
            foreseen: 0,
            outcome: Outcome::default(),
        }
    }

    fn set_up(&mut self) -> anyhow::Result<()> {
        let work = &self.trace.work;
        ensure!(
            self.by_job.len() == work.len(),
            "{} of {} jobs have the name of another: names of jobs are unique in a namespace",
            work.len() - self.by_job.len(),
            work.len()
        );
        let namespaces: BTreeSet<_> = work.iter().map(|work| &work.job.namespace).collect();
        for name in namespaces {
            let spec = NamespaceSpec {
                name: name.clone(),
                quota: None,
                guarantee: None,
                weight: None,
                max_units: None,
                max_services: None,
                max_jobs: None,
                description: String::new(),
            };
            self.store(Object::Namespace(Namespace { spec, meta: Meta::default() }));
        }
        for node in &self.trace.nodes {
            self.store(Object::Node(node.clone()));
        }
        Ok(())
    }

    /// Stores an object in a transaction of its own.
    fn store(&mut self, object: Object) {
        let revision = Revision(self.model.revision.0 + 1);
        let change = Change { revision, position: 0, key: object.key(), object: Some(object) };
        self.model.apply(&change);
    }

    fn arrives(&mut self, number: usize, work: &Work) {
        let meta = Meta { revision: self.model.revision, created_ms: self.moment.now_ms };
        let (spec, state, is_deleting) = (work.job.clone(), JobState::Active, false);
        self.store(Object::Job(Job { spec, state, succeeded: 0, failed: 0, is_deleting, meta }));
        if self.parents_left[number] == 0 {
            self.waits(number, false);
        }
    }

    /// From now on it could be placed.
    fn waits(&mut self, number: usize, was_placed: bool) {
        self.stages[number] = Stage::Waits { since_ms: self.moment.now_ms, was_placed };
        self.gauges.waits(&self.trace.work[number].job.namespace);
    }

    /// Reports of the nodes; were there any?
    fn end_what_is_due(&mut self) -> anyhow::Result<bool> {
        let mut has_ended = false;
        while let Some(first) = self.due.first_entry()
            && first.key().0 <= self.moment.now_ms
        {
            let (id, state) = first.remove();
            self.ends(&id, state)?;
            has_ended = true;
        }
        Ok(has_ended)
    }

    fn ends(&mut self, id: &UnitId, state: UnitState) -> anyhow::Result<()> {
        let placed = self.placed.remove(id).context("a unit ends that does not run")?;
        self.report(id, state)?;
        let job = &self.trace.work[placed.work].job;
        let request = amounts(&job.unit.request());
        self.gauges.left(&job.namespace, &placed.node, request, &placed.grants);
        self.outcome.ended_ms = self.moment.now_ms;
        if state == UnitState::Stopped {
            self.waits(placed.work, true);
        }
        Ok(())
    }

    /// A node says how a unit is.
    fn report(&mut self, id: &UnitId, state: UnitState) -> anyhow::Result<()> {
        let mut unit: Unit =
            self.model.unit(id).context("a report on a unit that is gone")?.clone();
        ensure!(
            unit.status.state.allows_report(state),
            "{} is {} and cannot be {} then",
            unit.name,
            unit.status.state.as_str(),
            state.as_str()
        );
        unit.status.state = state;
        unit.status.sequence += 1;
        if state.is_final() {
            unit.status.finished_ms = Some(self.moment.now_ms);
        } else {
            unit.status.started_ms = Some(self.moment.now_ms);
        }
        self.store(Object::Unit(Box::new(unit)));
        Ok(())
    }

    /// Passes until nothing is left to decide at this moment: when to plan again, and whether anything was decided.
    fn passes(&mut self, stopwatch: &dyn Fn() -> Clocks) -> anyhow::Result<(Option<i64>, bool)> {
        for pass in 0..PASSES_MAX {
            let began = stopwatch();
            let made = plan(&mut self.model, &self.moment);
            let ended = stopwatch();
            let took = ended.cpu.saturating_sub(began.cpu);
            self.outcome.passes += 1;
            self.outcome.planning.wall += ended.wall.saturating_sub(began.wall);
            self.outcome.planning.cpu += took;
            self.outcome.longest_pass = self.outcome.longest_pass.max(took);
            if made.is_empty() {
                return Ok((made.wake_at_ms, pass > 0));
            }
            commit(&mut self.model, &made, self.moment.now_ms)?;
            self.follow(&made)?;
            self.end_what_is_due()?;
        }
        anyhow::bail!("at {} ms plans do not come to an end", self.moment.now_ms)
    }

    /// The nodes do as the plan says.
    fn follow(&mut self, made: &Plan) -> anyhow::Result<()> {
        for decision in &made.decisions {
            match decision {
                Decision::UnitCreate(unit) => {
                    if let Some(Owner::Job { name, .. }) = &unit.owner
                        && let Some(number) = self.by_job.get(&(&unit.namespace, name))
                    {
                        self.by_unit.insert(unit.id.clone(), *number);
                    }
                }
                Decision::UnitPlace { unit, node, grants } => self.starts(unit, node, grants)?,
                Decision::UnitStop { unit, reason, .. } => self.stops(unit, *reason),
                Decision::JobProgress { namespace, name, state: JobState::Succeeded, .. } => {
                    if let Some(number) = self.by_job.get(&(namespace, name)) {
                        self.succeeds(*number);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn starts(&mut self, id: &UnitId, node: &NodeName, grants: &Grants) -> anyhow::Result<()> {
        let number =
            *self.by_unit.get(id).context("a unit is placed that no job of the trace has")?;
        let work = &self.trace.work[number];
        self.report(id, UnitState::Running)?;
        let job = &work.job;
        self.gauges.placed(&job.namespace, node, amounts(&job.unit.request()), grants);
        if let Stage::Waits { since_ms, was_placed: false } = self.stages[number]
            && !work.is_auxiliary
        {
            self.outcome.waits_ms.push(self.moment.now_ms - since_ms);
        }
        self.stages[number] = Stage::Runs;
        let ends_ms = work.runs_ms.map(|runs_ms| self.moment.now_ms.saturating_add(runs_ms));
        let due = ends_ms.map(|at_ms| self.foresee(at_ms, id, UnitState::Succeeded));
        let placed = Placed { work: number, node: node.clone(), grants: grants.clone(), due };
        self.placed.insert(id.clone(), placed);
        Ok(())
    }

    fn stops(&mut self, id: &UnitId, reason: Reason) {
        if reason == Reason::Preempted {
            self.outcome.preemptions += 1;
        }
        let at_ms = self.moment.now_ms.saturating_add(STOP_MS);
        let Some(due) = self.placed.get(id).map(|placed| placed.due) else { return };
        if let Some(due) = due {
            self.due.remove(&due);
        }
        let due = self.foresee(at_ms, id, UnitState::Stopped);
        if let Some(placed) = self.placed.get_mut(id) {
            placed.due = Some(due);
        }
    }

    fn foresee(&mut self, at_ms: i64, id: &UnitId, state: UnitState) -> (i64, u64) {
        self.foreseen += 1;
        self.due.insert((at_ms, self.foreseen), (id.clone(), state));
        (at_ms, self.foreseen)
    }

    fn succeeds(&mut self, number: usize) {
        self.stages[number] = Stage::Done;
        for child in self.children[number].clone() {
            self.parents_left[child] = self.parents_left[child].saturating_sub(1);
            if self.parents_left[child] == 0 && self.stages[child] == Stage::ToCome {
                self.waits(child, false);
            }
        }
    }

    fn finish(mut self) -> Outcome {
        self.outcome.units = self.trace.work.iter().filter(|work| !work.is_auxiliary).count();
        self.outcome.nodes = self.trace.nodes.len();
        self.outcome.readings = self.gauges.readings();
        self.outcome.waits_ms.sort_unstable();
        let pending: Vec<_> = self
            .model
            .units()
            .filter(|unit| unit.status.state == UnitState::Pending)
            .map(|unit| (unit.id.clone(), unit.status.reason))
            .collect();
        for (id, reason) in pending {
            let is_new = self.by_unit.get(&id).is_some_and(|number| {
                !matches!(self.stages[*number], Stage::Waits { was_placed: true, .. })
            });
            if is_new {
                let why = self.why_never(&id, reason);
                *self.outcome.never.entry(why).or_default() += 1;
            }
        }
        self.outcome
    }

    /// What turned down most nodes, and for resources which one was short.
    fn why_never(&mut self, id: &UnitId, reason: Option<Reason>) -> String {
        let explanation = why(&mut self.model, &self.moment, id);
        let refusals = explanation.map(|explanation| explanation.refusals).unwrap_or_default();
        match (refusals.first(), reason) {
            (Some(refusal), _) => match refusal.detail.split_once(':') {
                Some((what, _)) if refusal.filter == "resources" => format!("resources ({what})"),
                None if refusal.filter == "resources" => {
                    "resources (no device is free enough)".into()
                }
                _ => refusal.filter.to_string(),
            },
            (None, Some(reason)) => reason.as_str().to_owned(),
            (None, None) => "nobody says why".to_owned(),
        }
    }
}
