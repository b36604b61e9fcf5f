//! What holds after every event, whatever happened.

use std::collections::BTreeMap;

use anyhow::ensure;
use brig_api::lifecycle::UnitState;
use brig_api::object::JobState;
use brig_api::{NodeName, ResourceName, Resources, UnitId};
use brig_core::Model;

/// What was seen of each unit, to notice what must never change.
#[derive(Default)]
pub(crate) struct Witness {
    /// Ids are never used again, so those that are gone stay remembered.
    seen: BTreeMap<UnitId, (UnitState, Option<NodeName>)>,
    jobs: BTreeMap<ResourceName, JobState>,
}

impl Witness {
    /// Checks the model against the invariants and against what was seen before.
    pub(crate) fn check(&mut self, model: &Model) -> anyhow::Result<()> {
        no_node_is_overcommitted(model)?;
        no_quota_is_exceeded(model)?;
        for unit in model.units() {
            let id = &unit.id;
            let (state, node) = (unit.status.state, unit.node.clone());
            ensure!(!state.is_on_node() || node.is_some(), "{id} is live on no node");
            if let Some((old_state, old_node)) = self.seen.insert(id.clone(), (state, node)) {
                ensure!(
                    !old_state.is_final() || old_state == state,
                    "{id} went from {old_state:?} to {state:?}"
                );
                ensure!(old_node.is_none() || old_node == unit.node, "{id} changed its node");
            }
        }
        let jobs = model.jobs().map(|job| (job.spec.name.clone(), job.state));
        let jobs: BTreeMap<_, _> = jobs.collect();
        for (name, old) in &self.jobs {
            let is_kept = jobs.get(name).is_none_or(|new| new == old || !old.is_final());
            ensure!(is_kept, "job {name} was {old:?} and no longer is");
        }
        self.jobs = jobs;
        Ok(())
    }
}

fn no_node_is_overcommitted(model: &Model) -> anyhow::Result<()> {
    for node in model.nodes() {
        let used = sum(model, |unit| unit.node.as_ref() == Some(&node.name));
        ensure!(used.fits_in(&node.facts.allocatable), "{} is overcommitted: {used:?}", node.name);
    }
    Ok(())
}

fn no_quota_is_exceeded(model: &Model) -> anyhow::Result<()> {
    for namespace in model.namespaces() {
        let Some(quota) = &namespace.spec.quota else { continue };
        let name = &namespace.spec.name;
        let used = sum(model, |unit| unit.namespace.is_within(name));
        ensure!(used.fits_in(quota), "{name} is over its quota: {used:?}");
    }
    Ok(())
}

fn sum(model: &Model, matches: impl Fn(&brig_api::object::Unit) -> bool) -> Resources {
    let live = model.units().filter(|unit| unit.status.state.is_on_node() && matches(unit));
    live.fold(Resources::default(), |sum, unit| {
        sum.checked_add(&unit.template.request()).unwrap_or(sum)
    })
}
