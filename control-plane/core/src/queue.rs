//! Who goes first: within a priority, the namespace that has least of what it may have.
//!
//! Namespaces form a tree; at each of its levels the branch with the smallest weighted dominant share goes first (Ghodsi et
//! al.: Dominant Resource Fairness, NSDI 2011; hierarchical as in Bhattacharya et al., SoCC 2013), those within their
//! guarantee before all others. Within a namespace the oldest unit goes first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::index::UnitSlot;
use crate::index::tenants::{TenantId, Tenants};
use crate::vector::{Entry, Vector};

/// A share of everything, before weights.
const WHOLE: u128 = 1 << 40;

/// Where a branch stands among its siblings: guaranteed first, then the smallest share, then the first path; a namespace's
/// own units before the namespaces below it.
type Standing = (bool, u64, usize, bool);

/// Units of one priority that wait.
#[derive(Debug)]
pub(crate) struct Level {
    units: BTreeMap<TenantId, VecDeque<UnitSlot>>,
    /// Branches with units in them, by the namespace above them.
    branches: BTreeMap<Option<TenantId>, BTreeSet<(Standing, TenantId)>>,
    /// Where each branch stands; true for a namespace's own units.
    standings: BTreeMap<(TenantId, bool), Standing>,
    ranks: BTreeMap<TenantId, usize>,
    total: Vector,
}

/// The largest part of anything that `used` is of `total`, in parts of 2^40 by a hundredth of the weight.
fn share(used: &Vector, total: &Vector, weight: u32) -> u64 {
    let entries = used.entries().filter(|(_, amount)| *amount > 0);
    let part = |(entry, amount): (Entry, u64)| {
        u128::from(amount) * WHOLE / u128::from(total.of(entry)).max(1)
    };
    let largest = entries.map(part).max().unwrap_or(0);
    u64::try_from(largest * 100 / u128::from(weight.max(1))).unwrap_or(u64::MAX)
}

impl Level {
    /// The units of one priority, each namespace's in order.
    pub(crate) fn new(
        units: BTreeMap<TenantId, VecDeque<UnitSlot>>,
        tenants: &Tenants,
        total: &Vector,
    ) -> Self {
        let mut involved: BTreeSet<TenantId> = BTreeSet::new();
        for tenant in units.keys() {
            involved.extend(tenants.chain(*tenant));
        }
        let mut by_path: Vec<_> = involved.iter().copied().collect();
        by_path.sort_unstable_by_key(|id| &tenants.get(*id).path);
        let ranks = by_path.iter().enumerate().map(|(rank, id)| (*id, rank)).collect();
        let mut level = Self {
            units,
            branches: BTreeMap::new(),
            standings: BTreeMap::new(),
            ranks,
            total: total.clone(),
        };
        let own: Vec<_> = level.units.keys().copied().collect();
        for tenant in own {
            level.stand(tenant, true, tenants);
        }
        for tenant in involved {
            level.stand(tenant, false, tenants);
        }
        level
    }

    fn standing(&self, tenant: TenantId, is_own: bool, tenants: &Tenants) -> Standing {
        let row = tenants.get(tenant);
        let rank = self.ranks.get(&tenant).copied().unwrap_or(usize::MAX);
        if is_own {
            let share = share(&row.own, &self.total, brig_api::spec::WEIGHT_DEFAULT);
            return (false, share, rank, false);
        }
        let is_sure = row.guarantee.as_ref().is_some_and(|limit| limit.has_more(&row.firm));
        (!is_sure, share(&row.firm, &self.total, row.weight), rank, true)
    }

    fn stand(&mut self, tenant: TenantId, is_own: bool, tenants: &Tenants) {
        let standing = self.standing(tenant, is_own, tenants);
        let above = if is_own { Some(tenant) } else { tenants.get(tenant).parent };
        self.standings.insert((tenant, is_own), standing);
        self.branches.entry(above).or_default().insert((standing, tenant));
    }

    fn withdraw(&mut self, tenant: TenantId, is_own: bool, tenants: &Tenants) -> bool {
        let above = if is_own { Some(tenant) } else { tenants.get(tenant).parent };
        if let Some(standing) = self.standings.remove(&(tenant, is_own))
            && let Some(branches) = self.branches.get_mut(&above)
        {
            branches.remove(&(standing, tenant));
            if branches.is_empty() {
                self.branches.remove(&above);
                return true;
            }
        }
        false
    }

    /// The unit that goes next.
    pub(crate) fn next(&mut self, tenants: &Tenants) -> Option<UnitSlot> {
        let mut above = None;
        loop {
            let ((.., is_branch), tenant) = *self.branches.get(&above)?.first()?;
            if is_branch {
                above = Some(tenant);
                continue;
            }
            let queue = self.units.get_mut(&tenant)?;
            let unit = queue.pop_front();
            if queue.is_empty() {
                self.units.remove(&tenant);
                let mut is_empty = self.withdraw(tenant, true, tenants);
                let mut branch = Some(tenant);
                while let Some(tenant) = branch.filter(|_| is_empty) {
                    is_empty = self.withdraw(tenant, false, tenants);
                    branch = tenants.get(tenant).parent;
                }
            }
            return unit;
        }
    }

    /// What a namespace has changed.
    pub(crate) fn changed(&mut self, tenant: TenantId, tenants: &Tenants) {
        if self.standings.len() <= 2 {
            // It has nobody to compete with.
            return;
        }
        if self.standings.contains_key(&(tenant, true)) {
            self.withdraw(tenant, true, tenants);
            self.stand(tenant, true, tenants);
        }
        for tenant in tenants.chain(tenant) {
            if self.standings.contains_key(&(tenant, false)) {
                self.withdraw(tenant, false, tenants);
                self.stand(tenant, false, tenants);
            }
        }
    }
}
