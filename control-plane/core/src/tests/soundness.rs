//! Whether a plan is sound, judged by plain objects: the scheduler's rules written down a second time without its index.

use std::borrow::Cow;

use brig_api::placement::{Neighbours, OVER_NODE, TaintEffect};
use brig_api::reference::Reference;
use brig_api::unit_spec::HostPort;

use super::*;
use crate::holdings::{ArtifactKey, Held};

/// Checks a plan against the model it was made on: nothing is decided twice, and each step is allowed once all steps before
/// it were taken. What was wrong before, such as a node that has shrunk, is not the plan's fault, but it may not add to it.
pub(in crate::tests) fn assert_sound(model: &Model, moment: &Moment, plan: &Plan) {
    assert_eq!((plan.after, plan.based_on), (model.plan, model.revision));
    assert!(plan.wake_at_ms.is_none_or(|at_ms| at_ms > moment.now_ms));
    let units = model.units().map(|unit| (unit.id.clone(), unit.clone())).collect();
    let mut walk = Walk { model, moment, units };
    let mut gangs = BTreeSet::new();
    for decision in &plan.decisions {
        walk.step(decision);
        if let Decision::UnitPlace { unit, .. } = decision {
            let unit = &walk.units[unit];
            gangs.extend(
                unit.template
                    .gang
                    .as_ref()
                    .map(|gang| (&unit.namespace, gang))
                    .map(|(namespace, gang)| (namespace.clone(), gang.name.clone(), gang.size)),
            );
        }
    }
    for (namespace, name, size) in gangs {
        let members = walk.charged().filter(|unit| {
            unit.namespace == namespace
                && unit.template.gang.as_ref().is_some_and(|gang| gang.name == name)
        });
        assert!(members.count() >= size as usize, "gang {name} is placed in part");
    }
}

/// The objects, with the units as the steps so far leave them.
struct Walk<'w> {
    model: &'w Model,
    moment: &'w Moment,
    units: BTreeMap<UnitId, Unit>,
}

/// The value of a topology key on a node.
fn domain<'n>(node: &'n Node, over: &str) -> Option<&'n str> {
    if over == OVER_NODE {
        return Some(node.name.as_str());
    }
    node.facts.attributes.get(over).map(String::as_str)
}

/// Is `other` one of those that `unit` means?
fn is_meant(unit: &Unit, wanted: &Neighbours, other: &Unit) -> bool {
    let is_in = match &wanted.within {
        Some(within) => other.namespace.is_within(within),
        None => other.namespace == unit.namespace,
    };
    is_in && wanted.units.iter().all(|(key, value)| other.labels.get(key) == Some(value))
}

/// Are both of one service or job, or, on their own, of the same labels?
fn are_siblings(unit: &Unit, other: &Unit) -> bool {
    let owner = |unit: &Unit| unit.owner.as_ref().map(|owner| (owner.kind(), owner.name().clone()));
    unit.namespace == other.namespace
        && match owner(unit) {
            Some(mine) => owner(other) == Some(mine),
            None => {
                let labels = &unit.labels;
                !labels.is_empty() && labels.iter().all(|(k, v)| other.labels.get(k) == Some(v))
            }
        }
}

fn standing(unit: &Unit) -> i32 {
    if unit.template.revocable { i32::MIN } else { unit.template.priority }
}

/// What it runs, with the variants that its placement chose.
fn chosen(unit: &Unit) -> Cow<'_, UnitTemplate> {
    unit.template.chosen(unit.grants.runtimes)
}

/// What a unit has of a device, in thousandths.
fn part_of_device(unit: &Unit, scalar: &str, device: u32) -> u64 {
    let devices = unit.grants.devices.get(scalar).map_or(&[][..], Vec::as_slice);
    let asked = unit.template.request().scalars.get(scalar).map_or(0, |amount| amount.0);
    let part = if devices.len() == 1 { asked.min(1_000) } else { 1_000 };
    if asked > 0 && devices.contains(&device) { part } else { 0 }
}

impl Walk<'_> {
    /// Units that take up room: on a node that exists.
    fn charged(&self) -> impl Iterator<Item = &Unit> {
        self.units.values().filter(|unit| {
            unit.status.state.is_on_node()
                && unit.node.as_ref().is_some_and(|node| self.model.node(node).is_some())
        })
    }

    fn on_node(&self, node: &NodeName) -> impl Iterator<Item = &Unit> {
        self.charged().filter(move |unit| unit.node.as_ref() == Some(node))
    }

    fn step(&mut self, decision: &Decision) {
        match decision {
            Decision::UnitCreate(unit) => {
                assert!(!self.units.contains_key(&unit.id), "{} exists", unit.id);
                let has_name =
                    |other: &Unit| other.name == unit.name && other.namespace == unit.namespace;
                assert!(!self.units.values().any(has_name), "{} is taken", unit.name);
                self.units.insert(unit.id.clone(), (**unit).clone());
            }
            Decision::UnitPlace { unit, node, grants } => {
                let unit = self.units.get_mut(unit).expect("a known unit");
                assert_eq!(unit.status.state, UnitState::Pending, "placed once");
                assert_eq!(unit.desired, Desired::Run);
                unit.grants = grants.clone();
                let unit = unit.clone();
                self.assert_fits(&unit, node);
                self.assert_in_time(&unit);
                self.assert_rules(&unit, node);
                let placed = self.units.get_mut(&unit.id).unwrap();
                placed.status.state = UnitState::Assigned;
                placed.node = Some(node.clone());
                self.assert_quotas(&unit);
            }
            Decision::UnitStop { unit, desired, reason, message } => {
                let stopped = self.units.get(unit).unwrap().clone();
                let is_news = stopped.desired != Desired::Remove && stopped.desired != *desired;
                assert!(is_news, "no news");
                if *reason == Reason::Preempted {
                    self.assert_may_stop(&stopped, message.as_deref().unwrap());
                }
                self.units.get_mut(unit).unwrap().desired = *desired;
            }
            Decision::UnitEnd { unit, .. } => {
                let unit = self.units.get_mut(unit).unwrap();
                assert_eq!(unit.status.state, UnitState::Pending);
                unit.status.state = UnitState::Stopped;
            }
            Decision::UnitLose { unit, .. } => {
                assert!(self.units[unit].status.state.is_on_node());
            }
            Decision::UnitRemove { unit } => assert!(self.units[unit].status.state.is_final()),
            Decision::UnitRefuse { unit, promised, .. } => {
                assert_eq!(self.units[unit].status.state, UnitState::Pending);
                assert!(promised.as_ref().is_none_or(|node| self.model.node(node).is_some()));
            }
            _ => {}
        }
    }

    /// The node has what the unit needs, and it is free.
    fn assert_fits(&self, unit: &Unit, node: &NodeName) {
        assert!(!self.moment.silent.contains(node));
        let facts = &self.model.node(node).expect("a known node").facts;
        let template = &unit.template;
        let runtimes = facts.runtimes.iter().copied().collect();
        let choice = template.choice(runtimes).expect("the node can run all its tasks");
        assert_eq!(unit.grants.runtimes, choice, "what it prefers of what the node can run");
        assert!(template.constraints.iter().all(|c| c.is_met_by(&facts.attributes)));
        for taint in &facts.taints {
            let is_mild = taint.effect == TaintEffect::PreferNot;
            let tolerations = &template.placement.tolerations;
            assert!(is_mild || tolerations.iter().any(|t| t.tolerates(taint)), "{taint}");
        }
        for path in template.tasks.iter().flat_map(|t| &t.mounts).filter_map(|m| m.host.as_ref()) {
            assert!(facts.volumes.iter().any(|volume| path.starts_with(volume)), "{path:?}");
        }
        let request = template.request();
        let used = |of: fn(&Resources) -> u64| -> u128 {
            self.on_node(node).map(|other| u128::from(of(&other.template.request()))).sum()
        };
        let there = &facts.allocatable;
        let fits = |of: fn(&Resources) -> u64| {
            let wanted = of(&request);
            wanted == 0 || used(of) + u128::from(wanted) <= u128::from(of(there))
        };
        assert!(fits(|r| r.cpu.0), "{node} cpu");
        assert!(fits(|r| r.memory.0), "{node} memory");
        assert!(fits(|r| r.disk.0), "{node} disk");
        for (scalar, wanted) in request.scalars.iter().filter(|(_, wanted)| wanted.0 > 0) {
            self.assert_devices(unit, node, scalar, wanted.0, there.scalars[scalar].0);
        }
        self.assert_ports(unit, node);
    }

    fn assert_devices(&self, unit: &Unit, node: &NodeName, scalar: &str, wanted: u64, there: u64) {
        // What was there before and names no devices is not counted against devices.
        let counted = self.on_node(node).filter(|other| other.grants.devices.contains_key(scalar));
        let amount = |other: &Unit| {
            u128::from(other.template.request().scalars.get(scalar).map_or(0, |amount| amount.0))
        };
        let is_pool = there > 64_000;
        if is_pool {
            let used: u128 = self.on_node(node).map(amount).sum();
            assert!(used + u128::from(wanted) <= u128::from(there), "{node} {scalar}");
            return;
        }
        let others: Vec<_> = counted.collect();
        let given = unit.grants.devices.get(scalar).expect("devices");
        assert_eq!(given.len() as u64, (wanted / 1_000).max(1));
        assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), given.len());
        for device in given {
            let there = there.saturating_sub(u64::from(*device) * 1_000).min(1_000);
            let used: u64 = others.iter().map(|o| part_of_device(o, scalar, *device)).sum();
            let mine = part_of_device(unit, scalar, *device);
            assert!(
                used + mine <= there,
                "{scalar} {device} of {node}: {used} + {mine} of {there}"
            );
        }
    }

    /// No port of the node is given twice, but for those that units of one service share.
    fn assert_ports(&self, unit: &Unit, node: &NodeName) {
        assert_eq!(unit.grants.ports.len(), chosen(unit).open_ports());
        let service = |unit: &Unit| match &unit.owner {
            Some(Owner::Service { name, .. }) => Some((unit.namespace.clone(), name.clone())),
            _ => None,
        };
        let ports = |unit: &Unit| {
            let open = unit.grants.ports.iter();
            let open = open.map(|port| HostPort { port: *port, is_shared_by_service: false });
            open.chain(chosen(unit).host_ports()).collect::<Vec<_>>()
        };
        let mine = ports(unit);
        let own: BTreeSet<_> = unit.grants.ports.iter().collect();
        assert_eq!(own.len(), unit.grants.ports.len(), "an open port is given twice");
        for other in self.on_node(node) {
            for theirs in ports(other) {
                for port in mine.iter().filter(|port| port.port == theirs.port) {
                    let is_shared = theirs.is_shared_by_service
                        && port.is_shared_by_service
                        && service(unit).is_some()
                        && service(unit) == service(other);
                    assert!(is_shared, "port {} twice on {node}", port.port);
                }
            }
        }
    }

    /// What it comes after is there, its family has room, and so has its namespace.
    fn assert_in_time(&self, unit: &Unit) {
        for dependency in &unit.template.after {
            if let Some(name) = &dependency.service {
                let service = self.model.service(&unit.namespace, name).expect("a known service");
                let running = self.model.units().filter(|other| {
                    let is_of_it = matches!(&other.owner,
                        Some(Owner::Service { name: theirs, generation })
                            if theirs == name && *generation == service.generation);
                    let is_in_reach = other.node.as_ref().is_some_and(|node| {
                        self.model.node(node).is_some() && !self.moment.silent.contains(node)
                    });
                    is_of_it
                        && is_in_reach
                        && other.namespace == unit.namespace
                        && other.status.state == UnitState::Running
                        && other.desired == Desired::Run
                });
                assert!(!service.is_deleting && running.count() >= service.spec.replicas as usize);
            } else if let Some(name) = &dependency.job {
                let job = self.model.job(&unit.namespace, name).expect("a known job");
                assert_eq!(job.state, JobState::Succeeded);
            }
        }
        if let Some(family) = &unit.template.concurrency {
            let is_member = |other: &&Unit| {
                other.namespace == unit.namespace
                    && other.template.concurrency.as_ref().is_some_and(|c| c.key == family.key)
            };
            assert!(self.charged().filter(is_member).count() < family.limit as usize);
        }
        for namespace in self.model.namespaces() {
            let path = &namespace.spec.name;
            let Some(most) = namespace.spec.max_units else { continue };
            if unit.namespace.is_within(path) {
                let there = self.charged().filter(|other| other.namespace.is_within(path));
                assert!(there.count() < most as usize, "{path} has {most} units");
            }
        }
    }

    /// The required rules about other units hold at the moment of placing, in both directions.
    fn assert_rules(&self, unit: &Unit, node: &NodeName) {
        let rules = &unit.template.placement;
        let here = self.model.node(node).unwrap();
        if rules.artifacts == ArtifactRule::Present {
            for task in &chosen(unit).tasks {
                assert!(self.is_held(node, task.program()), "{} is not there", task.name);
            }
        }
        let node_of = |other: &Unit| self.model.node(other.node.as_ref().unwrap()).unwrap();
        let is_here = |over: &str, other: &Unit| {
            domain(here, over).is_some() && domain(here, over) == domain(node_of(other), over)
        };
        for wanted in rules.near.iter().filter(|wanted| wanted.weight.is_none()) {
            let there: Vec<_> = self.charged().filter(|o| is_meant(unit, wanted, o)).collect();
            let is_first = there.is_empty()
                && is_meant(unit, wanted, unit)
                && domain(here, &wanted.over).is_some();
            assert!(is_first || there.iter().any(|o| is_here(&wanted.over, o)), "{wanted:?}");
        }
        for wanted in rules.away.iter().filter(|wanted| wanted.weight.is_none()) {
            let mut there = self.charged().filter(|other| is_meant(unit, wanted, other));
            assert!(!there.any(|other| is_here(&wanted.over, other)), "{wanted:?}");
        }
        for other in self.charged() {
            let theirs = &other.template.placement;
            for wanted in theirs.away.iter().filter(|wanted| wanted.weight.is_none()) {
                let is_held = is_meant(other, wanted, unit) && is_here(&wanted.over, other);
                assert!(!is_held, "{} is {wanted:?}", other.name);
            }
            let is_apart = !is_here(OVER_NODE, other) || !are_siblings(unit, other);
            assert!(is_apart || !rules.distinct_hosts, "{} is there too", other.name);
        }
        for spread in rules.spread.iter().filter(|spread| spread.targets.is_empty()) {
            let has_siblings = unit.owner.is_some() || !unit.labels.is_empty();
            let Some(skew) = spread.max_skew.filter(|_| has_siblings) else { continue };
            let place = domain(here, &spread.over).expect("it has the topology's key");
            let siblings: Vec<_> = self.charged().filter(|o| are_siblings(unit, o)).collect();
            let count = |value: &str| {
                let there =
                    siblings.iter().filter(|o| domain(node_of(o), &spread.over) == Some(value));
                there.count()
            };
            let eligible = self.model.nodes().filter(|node| self.is_eligible(unit, node));
            let fewest = eligible.filter_map(|node| domain(node, &spread.over)).map(count).min();
            assert!(count(place) < fewest.unwrap() + skew as usize, "{spread:?}");
        }
    }

    fn is_held(&self, node: &NodeName, program: &Program) -> bool {
        let digest = program.reference().parse::<Reference>().unwrap().digest;
        let holdings = self.model.holdings().find(|(name, _)| *name == node);
        digest.zip(holdings).is_some_and(|(digest, (_, holdings))| {
            holdings.find(ArtifactKey::new(&digest, program.runtime())) != Held::Not
        })
    }

    /// Could it be there as far as the node's own properties go?
    fn is_eligible(&self, unit: &Unit, node: &Node) -> bool {
        let (template, facts) = (&unit.template, &node.facts);
        let choice = template.choice(facts.runtimes.iter().copied().collect());
        let is_anywhere = template.placement.artifacts == ArtifactRule::Anywhere;
        let is_held = choice.is_some_and(|choice| {
            let there = template.chosen(choice);
            is_anywhere || there.tasks.iter().all(|task| self.is_held(&node.name, task.program()))
        });
        let mut mounts = template.tasks.iter().flat_map(|task| &task.mounts);
        !self.moment.silent.contains(&node.name)
            && is_held
            && template.constraints.iter().all(|c| c.is_met_by(&facts.attributes))
            && facts.taints.iter().all(|taint| {
                taint.effect == TaintEffect::PreferNot
                    || template.placement.tolerations.iter().any(|t| t.tolerates(taint))
            })
            && mounts.all(|mount| {
                let path = mount.host.as_ref();
                path.is_none_or(|path| facts.volumes.iter().any(|volume| path.starts_with(volume)))
            })
    }

    /// Less important units go for more important ones, and others only where a guarantee is taken back.
    fn assert_may_stop(&self, victim: &Unit, message: &str) {
        let mut parts = message.split('`').skip(1).step_by(2);
        let (unit, path) = (name(parts.next().unwrap()), namespace(parts.next().unwrap()));
        let is_it = |other: &&Unit| other.name == unit && other.namespace == path;
        let claimant = self.units.values().find(is_it).expect("the unit that it is for");
        assert!(!claimant.template.revocable, "{message}");
        assert!(victim.status.state.is_on_node(), "{message}");
        if standing(victim) < claimant.template.priority {
            return;
        }
        let is_sure = self.model.namespaces().any(|n| {
            let path = &n.spec.name;
            n.spec.guarantee.is_some()
                && claimant.namespace.is_within(path)
                && !victim.namespace.is_within(path)
        });
        assert!(is_sure, "{} (priority {}) {message}", victim.name, victim.template.priority);
    }

    /// No quota above the unit, which is charged already, is exceeded in what it asks for.
    fn assert_quotas(&self, placed: &Unit) {
        let request = placed.template.request();
        for namespace in self.model.namespaces() {
            let path = &namespace.spec.name;
            let Some(quota) = &namespace.spec.quota else { continue };
            if !placed.namespace.is_within(path) {
                continue;
            }
            let used = |of: &dyn Fn(&Resources) -> u64| -> u128 {
                let there = self.charged().filter(|unit| unit.namespace.is_within(path));
                there.map(|unit| u128::from(of(&unit.template.request()))).sum()
            };
            let fits = |of: fn(&Resources) -> u64| {
                of(&request) == 0 || of(quota) == 0 || used(&of) <= u128::from(of(quota))
            };
            assert!(fits(|r| r.cpu.0) && fits(|r| r.memory.0) && fits(|r| r.disk.0), "{path}");
            for (scalar, limit) in &quota.scalars {
                let of = |r: &Resources| r.scalars.get(scalar).map_or(0, |amount| amount.0);
                assert!(of(&request) == 0 || used(&of) <= u128::from(limit.0), "{path} {scalar}");
            }
        }
    }
}

/// Everything in the model.
pub(in crate::tests) fn objects(model: &Model) -> Vec<Object> {
    let namespaces = model.namespaces().cloned().map(Object::Namespace);
    let nodes = model.nodes().cloned().map(Object::Node);
    let services = model.services().cloned().map(Object::Service);
    let jobs = model.jobs().cloned().map(Object::Job);
    let units = model.units().cloned().map(|unit| Object::Unit(Box::new(unit)));
    namespaces.chain(nodes).chain(services).chain(jobs).chain(units).collect()
}

/// A model made of the same objects in another order, before or after nodes told what they hold.
pub(in crate::tests) fn shuffled(model: &Model, seed: u64) -> Model {
    let mut objects = objects(model);
    let mut state = seed;
    objects.sort_by_cached_key(|_| {
        // Knuth's constants for a 64-bit linear congruential generator.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 32
    });
    let mut anew = Model::new(model.revision, model.plan, []);
    let is_told_first = seed.is_multiple_of(2);
    let tell = |anew: &mut Model| {
        for (node, holdings) in model.holdings() {
            anew.hold(node, Some(holdings.clone()));
        }
    };
    if is_told_first {
        tell(&mut anew);
    }
    objects.into_iter().for_each(|object| anew.put(object));
    if !is_told_first {
        tell(&mut anew);
    }
    anew
}
