//! What holds in the database after every event, whatever happened: judged by plain objects, without the scheduler's index.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;
use brig_api::lifecycle::UnitState;
use brig_api::object::{JobState, Owner, Unit};
use brig_api::{NamespacePath, NodeName, ResourceName, Revision, UnitId};

use crate::amounts::{excess, sum_of};
use crate::database::{Objects, Rows};
use crate::soundness::part_of;

/// What was seen of each unit, to notice what must never change.
#[derive(Default)]
pub(crate) struct Witness {
    /// Ids are never used again, so those that are gone stay remembered.
    seen: BTreeMap<UnitId, Seen>,
    jobs: BTreeMap<(NamespacePath, ResourceName), JobState>,
    /// Nodes whose amounts were changed, and when: what was planned before is held to the old ones.
    excused_nodes: BTreeMap<NodeName, Revision>,
    /// The same for what namespaces may have.
    excused_namespaces: BTreeMap<NamespacePath, Revision>,
}

struct Seen {
    state: UnitState,
    node: Option<NodeName>,
    sequence: u64,
}

impl Witness {
    /// What there is of the node has changed.
    pub(crate) fn node_changed(&mut self, name: &NodeName, revision: Revision) {
        self.excused_nodes.insert(name.clone(), revision);
    }

    /// What the namespace may have has changed.
    pub(crate) fn namespace_changed(&mut self, path: &NamespacePath, revision: Revision) {
        self.excused_namespaces.insert(path.clone(), revision);
    }

    /// Checks the objects against the invariants and against what was seen before. Nobody plans on what was before
    /// `oldest` any more.
    ///
    /// # Errors
    /// The first invariant that is broken.
    pub(crate) fn check(&mut self, rows: &Rows, oldest: Revision) -> anyhow::Result<()> {
        let objects = Objects::new(rows);
        self.no_node_is_overcommitted(&objects, oldest)?;
        self.no_quota_is_exceeded(&objects, oldest)?;
        for node in objects.nodes.keys() {
            no_device_is_given_twice(&objects, node)?;
            no_port_is_taken_twice(&objects, node)?;
        }
        for unit in objects.units.values() {
            self.remember(unit)?;
        }
        self.jobs_count_right(&objects)
    }

    fn no_node_is_overcommitted(
        &mut self,
        objects: &Objects,
        oldest: Revision,
    ) -> anyhow::Result<()> {
        for (name, node) in &objects.nodes {
            let mut used = sum_of(objects.on_node(name).map(|unit| &**unit));
            for (resource, amount) in &mut used.scalars {
                // A device that the node no longer has takes nothing from those that it has.
                let there = node.facts.allocatable.scalars.get(resource).map_or(0, |there| there.0);
                let gone = objects.on_node(name).filter(|unit| {
                    let devices = unit.grants.devices.get(resource);
                    devices.into_iter().flatten().any(|device| u64::from(*device) * 1_000 >= there)
                });
                let gone =
                    sum_of(gone.map(|unit| &**unit)).scalars.get(resource).map_or(0, |gone| gone.0);
                amount.0 = amount.0.saturating_sub(gone);
            }
            let fits = used.fits_in(&node.facts.allocatable);
            let is_excused = self.excused_nodes.contains_key(name);
            ensure!(fits || is_excused, "{name} is overcommitted: {used:?}");
            if fits && self.excused_nodes.get(name).is_some_and(|changed| *changed <= oldest) {
                self.excused_nodes.remove(name);
            }
        }
        Ok(())
    }

    fn no_quota_is_exceeded(&mut self, objects: &Objects, oldest: Revision) -> anyhow::Result<()> {
        for namespace in &objects.namespaces {
            let path = &namespace.spec.name;
            let units = objects.charged().filter(|unit| unit.namespace.is_within(path));
            let count = u32::try_from(units.clone().count())?;
            let used = sum_of(units.map(|unit| &**unit));
            let beyond = namespace.spec.quota.as_ref().and_then(|quota| excess(&used, quota));
            let is_full = namespace.spec.max_units.is_some_and(|most| count > most);
            let fits = beyond.is_none() && !is_full;
            let is_excused = self.excused_namespaces.contains_key(path);
            ensure!(
                fits || is_excused,
                "{path} is over its quota of {beyond:?}: {count} units, {used:?}"
            );
            if fits && self.excused_namespaces.get(path).is_some_and(|then| *then <= oldest) {
                self.excused_namespaces.remove(path);
            }
        }
        Ok(())
    }

    /// A unit keeps its node, a final state stays, and only news change a status.
    fn remember(&mut self, unit: &Unit) -> anyhow::Result<()> {
        let id = &unit.id;
        let (state, node) = (unit.status.state, unit.node.clone());
        ensure!(!state.is_on_node() || node.is_some(), "{id} is live on no node");
        let now = Seen { state, node, sequence: unit.status.sequence };
        if let Some(old) = self.seen.insert(id.clone(), now) {
            ensure!(
                !old.state.is_final() || old.state == state,
                "{id} went from {:?} to {state:?}",
                old.state
            );
            ensure!(old.node.is_none() || old.node == unit.node, "{id} changed its node");
            ensure!(old.sequence <= unit.status.sequence, "{id} believed old news");
        }
        Ok(())
    }

    /// Each exit counts once, no index is worked on twice at a time, and a job that has ended stays so.
    fn jobs_count_right(&mut self, objects: &Objects) -> anyhow::Result<()> {
        let mut now = BTreeMap::new();
        // One that is deleted loses what it counted.
        for job in objects.jobs.iter().filter(|job| !job.is_deleting) {
            let (namespace, name) = (&job.spec.namespace, &job.spec.name);
            let (mut live, mut done) = (BTreeSet::new(), BTreeSet::new());
            let (mut failed, mut attempts) = (0u32, BTreeSet::new());
            for unit in objects.units.values().filter(|unit| unit.namespace == *namespace) {
                let Some(Owner::Job { name: owner, index, attempt }) = &unit.owner else {
                    continue;
                };
                if owner != name {
                    continue;
                }
                let is_new = attempts.insert((*index, *attempt));
                ensure!(is_new, "attempt {attempt} at {index} of {name} was made twice");
                match unit.status.state {
                    UnitState::Succeeded => {
                        ensure!(done.insert(*index), "{index} of {name} succeeded twice");
                    }
                    UnitState::Failed => failed += 1,
                    UnitState::Stopped | UnitState::Lost => {}
                    _ => ensure!(live.insert(*index), "{index} of {name} runs twice"),
                }
            }
            ensure!(
                job.succeeded <= u32::try_from(done.len())? && job.failed <= failed,
                "{name} counts {} and {}, but {} succeeded and {failed} failed",
                job.succeeded,
                job.failed,
                done.len()
            );
            ensure!(
                job.state != JobState::Succeeded || job.succeeded >= job.spec.completions,
                "{name} succeeded with {} of {}",
                job.succeeded,
                job.spec.completions
            );
            let key = (namespace.clone(), name.clone());
            let old = self.jobs.get(&key).copied();
            let is_kept = old.is_none_or(|old| old == job.state || !old.is_final());
            ensure!(is_kept, "job {name} was {old:?} and is {:?}", job.state);
            now.insert(key, job.state);
        }
        self.jobs = now;
        Ok(())
    }
}

fn no_device_is_given_twice(objects: &Objects, node: &NodeName) -> anyhow::Result<()> {
    let mut given: BTreeSet<(&str, u32)> = BTreeSet::new();
    for unit in objects.on_node(node) {
        for (resource, devices) in &unit.grants.devices {
            given.extend(devices.iter().map(|device| (resource.as_str(), *device)));
        }
    }
    for (resource, device) in given {
        let used: u64 = objects.on_node(node).map(|unit| part_of(unit, resource, device)).sum();
        ensure!(used <= 1_000, "{resource} {device} of {node} was given {used} thousandths of");
    }
    Ok(())
}

/// Units of one service may share the port of a wasm http server; nothing else is shared.
///
/// # Errors
/// Two units that have the same port of the node.
pub(crate) fn no_port_is_taken_twice(objects: &Objects, node: &NodeName) -> anyhow::Result<()> {
    let mut holders: BTreeMap<u16, Vec<(&Unit, bool)>> = BTreeMap::new();
    for unit in objects.on_node(node) {
        for port in unit.template.chosen(unit.grants.runtimes).host_ports() {
            holders.entry(port.port).or_default().push((&**unit, port.is_shared_by_service));
        }
        for port in &unit.grants.ports {
            holders.entry(*port).or_default().push((&**unit, false));
        }
    }
    for (port, holders) in holders {
        let Some(((first, is_shared), others)) = holders.split_first() else { continue };
        for (other, is_shared_too) in others {
            let is_same_service = matches!((&first.owner, &other.owner),
                (Some(one), Some(two)) if one.kind() == two.kind() && one.name() == two.name()
                    && first.namespace == other.namespace);
            ensure!(
                *is_shared && *is_shared_too && is_same_service,
                "{} and {} both have port {port} of {node}",
                first.name,
                other.name
            );
        }
    }
    Ok(())
}
