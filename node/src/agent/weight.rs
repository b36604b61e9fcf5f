//! Keeps the weight of each namespace's wasm shim at what the tasks in it request of the processor together: the kernel
//! shares the processor between namespaces as the shim does between their tasks.

use std::collections::BTreeMap;
use std::time::Duration;

use brig_api::NamespacePath;

use super::{Agent, Unit};
use crate::plan::TaskSeen;
use crate::shims::ShimId;

/// How often it is looked whether a weight has to change; many tasks come and go together.
pub(super) const WEIGH_EVERY: Duration = Duration::from_millis(250);
/// Least weight, in thousandths of a core: a shim has to answer its agent, whatever its tasks request.
const CPU_MILLI_MIN: u64 = 50;

/// The weights of shims.
#[derive(Debug, Default)]
pub(super) struct Weights {
    /// Tasks have come or gone since they were looked at.
    pub(super) is_due: bool,
    told: BTreeMap<NamespacePath, u64>,
}

impl Weights {
    /// A shim is gone; another one in its place has no weight yet.
    pub(super) fn forget(&mut self, shim: &ShimId) {
        if let ShimId::Wasm(namespace) = shim {
            self.told.remove(namespace);
        }
    }

    /// Those that have changed.
    fn change(&mut self, now: BTreeMap<NamespacePath, u64>) -> Vec<(ShimId, u64)> {
        let told = std::mem::replace(&mut self.told, now);
        let changed =
            self.told.iter().filter(|(namespace, milli)| told.get(namespace) != Some(milli));
        changed.map(|(namespace, milli)| (ShimId::Wasm(namespace.clone()), *milli)).collect()
    }
}

impl Agent {
    /// Tells the kernel what has changed, if anything has.
    pub(super) fn weigh(&mut self) {
        if !std::mem::take(&mut self.weights.is_due) {
            return;
        }
        let mut now = BTreeMap::new();
        for (namespace, milli) in self.units.values().flat_map(Unit::cpu_requests) {
            let sum: &mut u64 = now.entry(namespace).or_default();
            *sum = sum.saturating_add(milli);
        }
        now.values_mut().for_each(|milli| *milli = (*milli).max(CPU_MILLI_MIN));
        let changed = self.weights.change(now);
        if !changed.is_empty() {
            let shims = self.shims.clone();
            tokio::spawn(async move { shims.weigh(changed).await });
        }
    }
}

impl Unit {
    /// The requests of those of its tasks that run in its namespace's shim.
    fn cpu_requests(&self) -> impl Iterator<Item = (NamespacePath, u64)> {
        let runs = |seen: &TaskSeen| matches!(seen, TaskSeen::Running { .. });
        self.assignment.template.tasks.iter().filter_map(move |task| {
            self.tasks.get(&task.name).filter(|seen| runs(seen))?;
            match self.shim_of(&self.key(&task.name)) {
                ShimId::Wasm(namespace) => Some((namespace, task.resources.cpu.0)),
                ShimId::WasmUnit(..) | ShimId::Oci(_) => None,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_changed_is_told_and_all_of_a_new_shim() {
        let [a, b] = ["a", "b"].map(|name| NamespacePath::new(name).unwrap());
        let shim = ShimId::Wasm(a.clone());
        let mut weights = Weights::default();
        let both = BTreeMap::from([(a.clone(), 100), (b.clone(), 200)]);
        assert_eq!(weights.change(both.clone()).len(), 2);
        assert_eq!(weights.change(both.clone()), []);
        let more = BTreeMap::from([(a.clone(), 150), (b, 200)]);
        assert_eq!(weights.change(more.clone()), [(shim.clone(), 150)]);
        weights.forget(&shim);
        assert_eq!(weights.change(more), [(shim, 150)]);
    }
}
