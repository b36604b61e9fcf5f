//! What holds for every plan, step by step, judged by plain objects: the same rules as the scheduler's, written down a
//! second time without its index.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::{Desired, JobState, Namespace, Node, Owner, Service, Unit};
use brig_api::placement::{ArtifactRule, Grants, Neighbours, OVER_NODE, TaintEffect};
use brig_api::unit_spec::UnitTemplate;
use brig_api::{NamespacePath, NodeName, ResourceName, Resources, UnitId};
use brig_core::{Decision, Moment, Plan};

use crate::amounts::{bounded_excess, guarantee_excess, sum_of};
use crate::database::{Objects, Rows};
use crate::planner::Held;

/// Checks a plan that was made on these objects.
///
/// # Errors
/// The first rule that a step of it breaks.
pub(crate) fn check(rows: &Rows, held: &Held, moment: &Moment, plan: &Plan) -> anyhow::Result<()> {
    if plan.is_empty() {
        return Ok(());
    }
    ensure!(plan.wake_at_ms.is_none_or(|at_ms| at_ms > moment.now_ms), "wakes in the past");
    let before = Objects::new(rows);
    let mut walk = Walk { now: before.clone(), before: &before, held, moment };
    let mut placed = BTreeSet::new();
    for decision in &plan.decisions {
        walk.step(decision).with_context(|| format!("{decision:?}"))?;
        if let Decision::UnitPlace { unit, .. } = decision {
            placed.insert(unit.clone());
        }
    }
    walk.gangs(&placed)
}

/// The objects as they were, and as the steps so far would leave them.
struct Walk<'w> {
    before: &'w Objects,
    now: Objects,
    held: &'w Held,
    moment: &'w Moment,
}

/// Which units a rule means.
enum Selector<'s> {
    Labels { within: &'s NamespacePath, is_exact: bool, labels: &'s BTreeMap<String, String> },
    Owner(&'s NamespacePath, &'s Owner),
}

impl Selector<'_> {
    fn of<'s>(unit: &'s Unit, wanted: &'s Neighbours) -> Selector<'s> {
        Selector::Labels {
            within: wanted.within.as_ref().unwrap_or(&unit.namespace),
            is_exact: wanted.within.is_none(),
            labels: &wanted.units,
        }
    }

    /// The units of the same service or job; for a unit on its own those with its labels, if it has any.
    fn own(unit: &Unit) -> Selector<'_> {
        match &unit.owner {
            Some(owner) => Selector::Owner(&unit.namespace, owner),
            None => {
                Selector::Labels { within: &unit.namespace, is_exact: true, labels: &unit.labels }
            }
        }
    }

    fn means(&self, unit: &Unit) -> bool {
        match self {
            Self::Labels { within, is_exact, labels } => {
                let is_in = match is_exact {
                    true => unit.namespace == **within,
                    false => unit.namespace.is_within(within),
                };
                !labels.is_empty()
                    && is_in
                    && labels.iter().all(|(key, value)| unit.labels.get(key) == Some(value))
            }
            Self::Owner(namespace, owner) => {
                let is_same =
                    |other: &Owner| other.kind() == owner.kind() && other.name() == owner.name();
                unit.namespace == **namespace && unit.owner.as_ref().is_some_and(is_same)
            }
        }
    }
}

/// The value of a topology key on a node.
fn domain<'n>(node: &'n Node, over: &str) -> Option<&'n str> {
    if over == OVER_NODE {
        return Some(node.name.as_str());
    }
    node.facts.attributes.get(over).map(String::as_str)
}

/// Required rules that keep a unit away from others. Whether siblings share a host is each unit's own matter: a new
/// generation of a service may have given up the rule.
fn away_rules(unit: &Unit) -> impl Iterator<Item = (Selector<'_>, &str)> {
    let required = unit.template.placement.away.iter().filter(|wanted| wanted.weight.is_none());
    required.map(|wanted| (Selector::of(unit, wanted), wanted.over.as_str()))
}

fn is_waiting(unit: &Unit) -> bool {
    unit.status.state == UnitState::Pending && unit.desired == Desired::Run
}

/// How important a unit is to those who need its room.
fn standing(unit: &Unit) -> i32 {
    if unit.template.revocable { i32::MIN } else { unit.template.priority }
}

impl Walk<'_> {
    fn unit(&self, id: &UnitId) -> anyhow::Result<Arc<Unit>> {
        self.now.units.get(id).cloned().with_context(|| format!("{id} is not known"))
    }

    fn set(&mut self, mut unit: Arc<Unit>, change: impl FnOnce(&mut Unit)) {
        change(Arc::make_mut(&mut unit));
        self.now.units.insert(unit.id.clone(), unit);
    }

    fn step(&mut self, decision: &Decision) -> anyhow::Result<()> {
        match decision {
            Decision::UnitCreate(unit) => self.create(unit)?,
            Decision::UnitPlace { unit, node, grants } => {
                let unit = self.unit(unit)?;
                ensure!(is_waiting(&unit), "does not wait for a node");
                let node = self.now.nodes.get(node).cloned().context("the node is not known")?;
                self.place(&unit, &node, grants)?;
                self.set(unit, |unit| {
                    unit.node = Some(node.name.clone());
                    unit.grants = grants.clone();
                    unit.status.state = UnitState::Assigned;
                });
            }
            Decision::UnitRefuse { unit, promised, message, .. } => {
                ensure!(is_waiting(&*self.unit(unit)?), "does not wait for a node");
                ensure!(!message.is_empty(), "no reason for people");
                let is_there = |node: &NodeName| self.now.nodes.contains_key(node);
                ensure!(promised.as_ref().is_none_or(is_there), "promised no node");
            }
            Decision::UnitStop { unit, desired, reason, message } => {
                let unit = self.unit(unit)?;
                ensure!(unit.desired != *desired, "no news");
                ensure!(unit.desired != Desired::Remove, "is to be removed already");
                match reason {
                    Reason::Preempted => {
                        self.preempt(&unit, message.as_deref().unwrap_or_default())?;
                    }
                    Reason::Evicted => self.evict(&unit)?,
                    _ => {}
                }
                self.set(unit, |unit| unit.desired = *desired);
            }
            Decision::UnitEnd { unit, .. } => {
                let unit = self.unit(unit)?;
                ensure!(unit.status.state == UnitState::Pending, "is not pending");
                self.set(unit, |unit| unit.status.state = UnitState::Stopped);
            }
            Decision::UnitLose { unit, .. } => {
                let unit = self.unit(unit)?;
                ensure!(unit.status.state.is_on_node(), "is on no node");
                let node = unit.node.as_ref().filter(|node| self.now.nodes.contains_key(node));
                ensure!(
                    node.is_none_or(|node| self.moment.silent.contains(node)),
                    "its node is in touch"
                );
                // What it had is free from the next plan on.
            }
            Decision::UnitRemove { unit } => {
                ensure!(self.unit(unit)?.status.state.is_final(), "has not ended");
            }
            Decision::NodeState { .. }
            | Decision::JobProgress { .. }
            | Decision::ServiceRemove { .. }
            | Decision::JobRemove { .. } => {}
        }
        Ok(())
    }

    fn create(&mut self, unit: &Arc<Unit>) -> anyhow::Result<()> {
        ensure!(!self.now.units.contains_key(&unit.id), "the id is taken");
        for other in self.now.units.values() {
            ensure!(
                other.namespace != unit.namespace || other.name != unit.name,
                "the name is taken"
            );
            let (
                Some(Owner::Job { index, attempt, .. }),
                Some(Owner::Job { index: theirs, attempt: last, .. }),
            ) = (&unit.owner, &other.owner)
            else {
                continue;
            };
            if index == theirs && Selector::own(unit).means(other) {
                let state = other.status.state;
                ensure!(state.is_final(), "attempt {last} is {state:?} still");
                ensure!(state != UnitState::Succeeded, "attempt {last} succeeded");
                ensure!(attempt > last, "attempt {last} was before it");
            }
        }
        self.now.units.insert(unit.id.clone(), Arc::clone(unit));
        Ok(())
    }

    fn is_in_reach(&self, node: &NodeName) -> bool {
        self.now.nodes.contains_key(node) && !self.moment.silent.contains(node)
    }

    /// Everything that a node must be by itself.
    fn is_fit(&self, template: &UnitTemplate, node: &Node) -> bool {
        let facts = &node.facts;
        let tolerations = &template.placement.tolerations;
        let mounts = template.tasks.iter().flat_map(|task| &task.mounts);
        let mut volumes = mounts.filter_map(|mount| mount.host.as_ref());
        let mut repelling =
            facts.taints.iter().filter(|taint| taint.effect != TaintEffect::PreferNot);
        let choice = template.choice(facts.runtimes.iter().copied().collect());
        self.is_in_reach(&node.name)
            && choice.is_some_and(|choice| self.is_stocked(&template.chosen(choice), &node.name))
            && template.constraints.iter().all(|wanted| wanted.is_met_by(&facts.attributes))
            && repelling.all(|taint| tolerations.iter().any(|known| known.tolerates(taint)))
            && volumes.all(|path| facts.volumes.iter().any(|volume| path.starts_with(volume)))
    }

    /// Does the node hold what the template runs, where that is asked for?
    fn is_stocked(&self, template: &UnitTemplate, node: &NodeName) -> bool {
        template.placement.artifacts == ArtifactRule::Anywhere
            || template.tasks.iter().all(|task| {
                let program = task.program();
                let reference = program.reference().split_once('@');
                let held = self.held.get(node).into_iter().flatten();
                reference.is_some_and(|(_, digest)| {
                    held.filter(|held| held.runtime == program.runtime())
                        .any(|held| held.digest.as_str() == digest)
                })
            })
    }

    fn place(&self, unit: &Unit, node: &Node, grants: &Grants) -> anyhow::Result<()> {
        ensure!(self.is_fit(&unit.template, node), "the node is not fit for it");
        self.in_time(unit)?;
        let request = unit.template.request();
        let used = sum_of(self.now.on_node(&node.name).map(|unit| &**unit));
        let sum = used.checked_add(&request).context("overflow")?;
        let is_beyond = |wanted: u64, used: u64, there: u64| wanted > 0 && used > there;
        let there = &node.facts.allocatable;
        ensure!(!is_beyond(request.cpu.0, sum.cpu.0, there.cpu.0), "too little cpu");
        ensure!(!is_beyond(request.memory.0, sum.memory.0, there.memory.0), "too little memory");
        ensure!(!is_beyond(request.disk.0, sum.disk.0, there.disk.0), "too little disk");
        self.devices(&request, node, grants)?;
        let choice = unit.template.choice(node.facts.runtimes.iter().copied().collect());
        ensure!(
            Some(grants.runtimes) == choice,
            "does not run what it prefers of what the node can"
        );
        let chosen = unit.template.chosen(grants.runtimes);
        ensure!(grants.ports.len() == chosen.open_ports(), "ports are missing");
        let mut with = self.now.clone();
        let mut placed = unit.clone();
        placed.status.state = UnitState::Assigned;
        (placed.node, placed.grants) = (Some(node.name.clone()), grants.clone());
        with.units.insert(unit.id.clone(), Arc::new(placed));
        crate::invariants::no_port_is_taken_twice(&with, &node.name)?;
        self.quotas(unit, &request)?;
        self.neighbours(unit, node)
    }

    /// What it comes after is there, and its family has room.
    fn in_time(&self, unit: &Unit) -> anyhow::Result<()> {
        for dependency in &unit.template.after {
            if let Some(name) = &dependency.service {
                let mut services = self.before.services.iter();
                let service = services.find(|service| {
                    service.spec.namespace == unit.namespace && service.spec.name == *name
                });
                let service = service.context("the service that it comes after is not there")?;
                let running = self.before.units.values().filter(|unit| {
                    matches!(&unit.owner, Some(Owner::Service { generation, .. })
                        if *generation == service.generation)
                        && self.is_serving(unit, service)
                });
                let running = u32::try_from(running.count())?;
                ensure!(running >= service.spec.replicas, "comes after service {name}");
            } else if let Some(name) = &dependency.job {
                let is_done = self.before.jobs.iter().any(|job| {
                    job.spec.namespace == unit.namespace
                        && job.spec.name == *name
                        && job.state == JobState::Succeeded
                });
                ensure!(is_done, "comes after job {name}");
            }
        }
        if let Some(family) = &unit.template.concurrency {
            let members = self.now.charged().filter(|other| {
                other.namespace == unit.namespace
                    && other.template.concurrency.as_ref().is_some_and(|of| of.key == family.key)
            });
            ensure!(u32::try_from(members.count())? < family.limit, "its family is complete");
        }
        Ok(())
    }

    fn devices(&self, request: &Resources, node: &Node, grants: &Grants) -> anyhow::Result<()> {
        for (name, wanted) in request.scalars.iter().filter(|(_, wanted)| wanted.0 > 0) {
            let there = node.facts.allocatable.scalars.get(name).map_or(0, |amount| amount.0);
            let given = grants.devices.get(name).map_or(&[][..], Vec::as_slice);
            let expected = (wanted.0 / 1_000).max(1);
            ensure!(u64::try_from(given.len())? == expected, "{given:?} for {wanted} of {name}");
            for device in given {
                let is_there = u64::from(*device) * 1_000 < there;
                ensure!(is_there, "there is no {name} {device} of {there}");
                let used = self.now.on_node(&node.name).map(|other| part_of(other, name, *device));
                let used: u64 = used.sum();
                ensure!(used + wanted.0.min(1_000) <= 1_000, "{name} {device} has {used} in use");
            }
        }
        Ok(())
    }

    fn quotas(&self, unit: &Unit, request: &Resources) -> anyhow::Result<()> {
        for namespace in self.above(&unit.namespace) {
            let path = &namespace.spec.name;
            let inside = self.now.charged().filter(|other| other.namespace.is_within(path));
            if let Some(most) = namespace.spec.max_units {
                let count = u32::try_from(inside.clone().count())?;
                ensure!(count < most, "{path} has {count} units of {most}");
            }
            if let Some(quota) = &namespace.spec.quota {
                let used = sum_of(inside.map(|unit| &**unit));
                let excess = bounded_excess(&used, request, quota);
                ensure!(excess.is_none(), "{path} would be beyond its quota of {excess:?}");
            }
        }
        Ok(())
    }

    fn above<'w>(&'w self, path: &'w NamespacePath) -> impl Iterator<Item = &'w Namespace> {
        self.now.namespaces.iter().filter(|namespace| path.is_within(&namespace.spec.name))
    }

    fn neighbours(&self, unit: &Unit, node: &Node) -> anyhow::Result<()> {
        let where_is = |other: &Unit| other.node.as_ref().and_then(|name| self.now.nodes.get(name));
        let is_distinct = unit.template.placement.distinct_hosts;
        let distinct = is_distinct.then(|| (Selector::own(unit), OVER_NODE));
        for (selector, over) in away_rules(unit).chain(distinct) {
            let Some(here) = domain(node, over) else { continue };
            let too_near = self.now.charged().find(|other| {
                selector.means(other)
                    && where_is(other).and_then(|node| domain(node, over)) == Some(here)
            });
            ensure!(too_near.is_none(), "too near to {:?}", too_near.map(|unit| &unit.name));
        }
        for other in self.now.charged() {
            for (selector, over) in away_rules(other) {
                let there = where_is(other).and_then(|node| domain(node, over));
                let is_near = there.is_some() && there == domain(node, over);
                ensure!(!(is_near && selector.means(unit)), "{} wants to be away", other.name);
            }
        }
        let rules = &unit.template.placement;
        for wanted in rules.near.iter().filter(|wanted| wanted.weight.is_none()) {
            let selector = Selector::of(unit, wanted);
            let here = domain(node, &wanted.over).context("near in no domain")?;
            let mut meant = self.now.charged().filter(|other| selector.means(other)).peekable();
            let is_first = meant.peek().is_none() && selector.means(unit);
            let is_near = meant.any(|other| {
                where_is(other).and_then(|node| domain(node, &wanted.over)) == Some(here)
            });
            ensure!(is_first || is_near, "is not near");
        }
        let has_siblings = unit.owner.is_some() || !unit.labels.is_empty();
        for wanted in rules.spread.iter().filter(|wanted| wanted.targets.is_empty()) {
            let Some(max_skew) = wanted.max_skew.filter(|_| has_siblings) else { continue };
            let here = domain(node, &wanted.over).context("spread in no domain")?;
            let fit = self.now.nodes.values().filter(|node| self.is_fit(&unit.template, node));
            let mut counts: BTreeMap<&str, u32> =
                fit.filter_map(|node| Some((domain(node, &wanted.over)?, 0))).collect();
            for other in self.now.charged().filter(|other| Selector::own(unit).means(other)) {
                let there = where_is(other).and_then(|node| domain(node, &wanted.over));
                if let Some(count) = there.and_then(|there| counts.get_mut(there)) {
                    *count += 1;
                }
            }
            let fewest = counts.values().min().copied().unwrap_or(0);
            let here = counts.get(here).copied().unwrap_or(0) + 1;
            ensure!(here <= fewest + max_skew, "{here} here and {fewest} elsewhere");
        }
        Ok(())
    }

    /// Does a unit of the service run where it can be reached, and is to go on?
    fn is_serving(&self, unit: &Unit, service: &Service) -> bool {
        let is_of = matches!(&unit.owner, Some(Owner::Service { name, .. })
            if *name == service.spec.name && unit.namespace == service.spec.namespace);
        is_of
            && unit.status.state == UnitState::Running
            && unit.desired == Desired::Run
            && unit.node.as_ref().is_some_and(|node| self.is_in_reach(node))
    }

    fn evict(&self, unit: &Unit) -> anyhow::Result<()> {
        let node = unit.node.as_ref().and_then(|node| self.now.nodes.get(node));
        let node = node.context("evicted from nowhere")?;
        let tolerations = &unit.template.placement.tolerations;
        let is_repelled = node.facts.taints.iter().any(|taint| {
            taint.effect == TaintEffect::Evict
                && !tolerations.iter().any(|known| known.tolerates(taint))
        });
        ensure!(is_repelled, "no taint evicts it");
        Ok(())
    }

    /// A unit may be stopped for another only if that is more important, and its service can do without it.
    fn preempt(&self, victim: &Unit, message: &str) -> anyhow::Result<()> {
        ensure!(victim.status.state.is_on_node(), "is on no node");
        ensure!(victim.desired == Desired::Run, "leaves anyway");
        let mut quoted = message.split('`').skip(1).step_by(2);
        let (name, namespace) = (quoted.next(), quoted.next());
        let is_named = |unit: &&Arc<Unit>| {
            Some(unit.name.as_str()) == name && Some(unit.namespace.as_str()) == namespace
        };
        let claimant = self.now.units.values().find(is_named).context("for nobody")?;
        ensure!(is_waiting(claimant), "{} does not wait", claimant.name);
        ensure!(!claimant.template.revocable, "for a revocable unit");
        let is_less = standing(victim) < claimant.template.priority;
        ensure!(
            is_less || self.is_reclaimed(victim, claimant),
            "is not less than {}",
            claimant.name
        );
        let mut services = self.now.services.iter();
        if let Some(service) = services.find(|service| self.is_serving(victim, service)) {
            let serving = self.now.units.values().filter(|unit| self.is_serving(unit, service));
            let spec = &service.spec;
            let floor = spec.replicas.saturating_sub(spec.max_unavailable);
            let count = u32::try_from(serving.count())?;
            ensure!(count > floor, "only {count} of {} serve", spec.replicas);
        }
        Ok(())
    }

    /// Does the victim run on what its namespace has borrowed, and is the claimant's share guaranteed?
    fn is_reclaimed(&self, victim: &Unit, claimant: &Unit) -> bool {
        let firm = |path: &NamespacePath| {
            let units = self.now.charged().filter(|unit| {
                unit.namespace.is_within(path)
                    && unit.desired == Desired::Run
                    && !unit.template.revocable
            });
            sum_of(units.map(|unit| &**unit))
        };
        let is_covered = |namespace: &Namespace, used: &Resources, request: &Resources| {
            let guarantee = namespace.spec.guarantee.as_ref();
            guarantee.is_some_and(|sure| !guarantee_excess(used, request, sure))
        };
        let request = claimant.template.request();
        let has_right = self.above(&claimant.namespace).any(|namespace| {
            let path = &namespace.spec.name;
            !victim.namespace.is_within(path) && is_covered(namespace, &firm(path), &request)
        });
        let request = victim.template.request();
        let is_at_home = self.above(&victim.namespace).any(|namespace| {
            let used = firm(&namespace.spec.name).saturating_sub(&request);
            is_covered(namespace, &used, &request)
        });
        // What the rest of a gang will use of a guarantee above both is not known here.
        has_right && (!is_at_home || claimant.template.gang.is_some())
    }

    /// Of no gang some were placed while too few are on nodes.
    fn gangs(&self, placed: &BTreeSet<UnitId>) -> anyhow::Result<()> {
        let mut gangs: BTreeMap<(&NamespacePath, &ResourceName), (u32, u32, u32)> = BTreeMap::new();
        for unit in self.now.units.values() {
            let Some(gang) = &unit.template.gang else { continue };
            let counts = gangs.entry((&unit.namespace, &gang.name)).or_insert((gang.size, 0, 0));
            let old = self.before.units.get(&unit.id);
            if placed.contains(&unit.id) {
                counts.2 += 1;
            } else if old.is_some_and(|old| {
                old.status.state.is_on_node() || old.status.state == UnitState::Succeeded
            }) {
                counts.1 += 1;
            }
        }
        for ((_, name), (size, live, new)) in gangs {
            ensure!(
                new == 0 || live >= size || live + new >= size,
                "{new} of gang {name} ({size}) were placed, {live} were there"
            );
        }
        Ok(())
    }
}

/// How much of a device a unit has, in thousandths.
pub(crate) fn part_of(unit: &Unit, resource: &str, device: u32) -> u64 {
    let devices = unit.grants.devices.get(resource).map_or(&[][..], Vec::as_slice);
    let wanted = unit.template.request().scalars.get(resource).map_or(0, |wanted| wanted.0);
    if devices.contains(&device) { wanted.min(1_000) } else { 0 }
}
