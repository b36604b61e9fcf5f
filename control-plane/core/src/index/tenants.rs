//! The tree of namespaces: what each may have, is sure of, and uses.

use std::collections::BTreeMap;

use brig_api::NamespacePath;
use brig_api::spec::{NamespaceSpec, WEIGHT_DEFAULT};

use crate::vector::{Entry, Limit, ScalarNames, Vector};

/// The number of a namespace.
pub(crate) type TenantId = usize;

/// One namespace. What is used counts the units of the namespaces below it too.
#[derive(Debug, Clone)]
pub(crate) struct Tenant {
    pub(crate) path: NamespacePath,
    pub(crate) parent: Option<TenantId>,
    pub(crate) quota: Option<Limit>,
    pub(crate) guarantee: Option<Limit>,
    pub(crate) weight: u32,
    pub(crate) max_units: Option<u32>,
    /// By all units on nodes.
    pub(crate) used: Vector,
    /// By those of them that are neither revocable nor leaving: what a share and a guarantee are counted by.
    pub(crate) firm: Vector,
    /// The part of `firm` that the namespace's own units use, without those below it.
    pub(crate) own: Vector,
    /// Units on nodes.
    pub(crate) units: u32,
}

/// What units that are to go use of each namespace's `firm`.
pub(crate) type Gone = BTreeMap<TenantId, Vector>;

/// All namespaces; also those of which only units are known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tenants {
    ids: BTreeMap<NamespacePath, TenantId>,
    rows: Vec<Tenant>,
    /// How many rows have a guarantee.
    guarantees: usize,
}

impl Tenants {
    /// The namespace of that number.
    pub(crate) fn get(&self, id: TenantId) -> &Tenant {
        &self.rows[id]
    }

    /// The number of a namespace.
    pub(crate) fn of(&mut self, path: &NamespacePath) -> TenantId {
        if let Some(id) = self.ids.get(path) {
            return *id;
        }
        let parent = path.parent().map(|parent| self.of(&parent));
        let id = self.rows.len();
        self.rows.push(Tenant {
            path: path.clone(),
            parent,
            quota: None,
            guarantee: None,
            weight: WEIGHT_DEFAULT,
            max_units: None,
            used: Vector::default(),
            firm: Vector::default(),
            own: Vector::default(),
            units: 0,
        });
        self.ids.insert(path.clone(), id);
        id
    }

    /// Takes over what a namespace may have.
    pub(crate) fn put(&mut self, spec: &NamespaceSpec, names: &mut ScalarNames) {
        let id = self.of(&spec.name);
        let row = &mut self.rows[id];
        row.quota = spec.quota.as_ref().map(|quota| Limit::new(quota, names));
        let had_guarantee = row.guarantee.is_some();
        row.guarantee = spec.guarantee.as_ref().map(|guarantee| Limit::new(guarantee, names));
        self.guarantees += usize::from(row.guarantee.is_some());
        self.guarantees -= usize::from(had_guarantee);
        row.weight = spec.weight.unwrap_or(WEIGHT_DEFAULT).max(1);
        row.max_units = spec.max_units;
    }

    /// A namespace that is gone allows and limits nothing; units of it may still be there.
    pub(crate) fn remove(&mut self, path: &str) {
        let id = NamespacePath::new(path).ok().and_then(|path| self.ids.get(&path).copied());
        if let Some(row) = id.and_then(|id| self.rows.get_mut(id)) {
            self.guarantees -= usize::from(row.guarantee.is_some());
            (row.quota, row.guarantee, row.max_units) = (None, None, None);
            row.weight = WEIGHT_DEFAULT;
        }
    }

    /// The namespace and those above it, from below.
    pub(crate) fn chain(&self, id: TenantId) -> impl Iterator<Item = TenantId> {
        std::iter::successors(Some(id), |id| self.rows[*id].parent)
    }

    /// A unit came onto a node.
    pub(crate) fn charge(&mut self, id: TenantId, request: &Vector) {
        self.each_above(id, |row| {
            row.used.add(request);
            row.units = row.units.wrapping_add(1);
        });
    }

    /// A unit left its node.
    pub(crate) fn uncharge(&mut self, id: TenantId, request: &Vector) {
        self.each_above(id, |row| {
            row.used.sub(request);
            row.units = row.units.wrapping_sub(1);
        });
    }

    /// A unit came that is to stay.
    pub(crate) fn charge_firm(&mut self, id: TenantId, request: &Vector) {
        self.rows[id].own.add(request);
        self.each_above(id, |row| row.firm.add(request));
    }

    /// It is no longer to stay.
    pub(crate) fn uncharge_firm(&mut self, id: TenantId, request: &Vector) {
        self.rows[id].own.sub(request);
        self.each_above(id, |row| row.firm.sub(request));
    }

    fn each_above(&mut self, id: TenantId, change: impl Fn(&mut Tenant)) {
        let mut next = Some(id);
        while let Some(id) = next {
            let row = &mut self.rows[id];
            change(row);
            next = row.parent;
        }
    }

    /// The first quota, from the namespace upwards, that `request` would exceed once `leaving` has gone, and in what.
    pub(crate) fn exceeded(
        &self,
        id: TenantId,
        request: &Vector,
        leaving: Option<&Vector>,
    ) -> Option<(TenantId, Entry)> {
        self.chain(id).find_map(|id| {
            let row = &self.rows[id];
            let quota = row.quota.as_ref()?;
            let entry = match leaving {
                None => quota.short_of(&row.used, request),
                Some(leaving) => quota.short_of(&row.used.saturating_sub(leaving), request),
            };
            Some((id, entry?))
        })
    }

    /// The first namespace, from this one upwards, that has as many units as it may.
    pub(crate) fn full(&self, id: TenantId) -> Option<TenantId> {
        self.chain(id).find(|id| {
            let row = &self.rows[*id];
            row.max_units.is_some_and(|most| row.units >= most)
        })
    }

    /// The namespace, this one or one above it, whose guarantee covers `request`.
    pub(crate) fn guarantor(&self, id: TenantId, request: &Vector) -> Option<TenantId> {
        self.chain(id).find(|id| {
            let row = &self.rows[*id];
            let guarantee = row.guarantee.as_ref();
            guarantee.is_some_and(|limit| !limit.is_guarantee_exceeded(&row.firm, request))
        })
    }

    /// The namespace, this one or one above it, that is sure of something, where nobody's guarantee covers `request`.
    pub(crate) fn beyond(&self, id: TenantId, request: &Vector) -> Option<TenantId> {
        let is_sure = self.guarantor(id, request).is_some();
        self.chain(id).find(|id| !is_sure && self.rows[*id].guarantee.is_some())
    }

    /// Is anybody sure of anything?
    pub(crate) fn has_guarantees(&self) -> bool {
        self.guarantees > 0
    }

    /// Notes that a unit is to go: namespaces whose `firm` it is in have that much less.
    pub(crate) fn note_gone(&self, id: TenantId, request: &Vector, gone: &mut Gone) {
        for id in self.chain(id) {
            gone.entry(id).or_default().add(request);
        }
    }

    /// Is a unit that is there covered by a guarantee, once others have gone?
    pub(crate) fn is_at_home(&self, id: TenantId, request: &Vector, gone: &Gone) -> bool {
        self.chain(id).any(|id| self.covers(id, request, gone))
    }

    /// Is a namespace above both (or one of them) sure of anything?
    pub(crate) fn shares_guarantee(&self, one: TenantId, other: TenantId) -> bool {
        let is_above_other = |above: TenantId| self.chain(other).any(|id| id == above);
        self.chain(one).any(|id| self.rows[id].guarantee.is_some() && is_above_other(id))
    }

    /// Does a guarantee cover a unit that comes, once others have gone?
    pub(crate) fn covers_then(&self, id: TenantId, request: &Vector, gone: &Gone) -> bool {
        self.chain(id).any(|id| {
            let row = &self.rows[id];
            row.guarantee.as_ref().is_some_and(|limit| {
                let others = match gone.get(&id) {
                    Some(gone) => row.firm.saturating_sub(gone),
                    None => row.firm.clone(),
                };
                !limit.is_guarantee_exceeded(&others, request)
            })
        })
    }

    /// Does the guarantee of this very namespace cover a unit that is there?
    fn covers(&self, id: TenantId, request: &Vector, gone: &Gone) -> bool {
        let row = &self.rows[id];
        row.guarantee.as_ref().is_some_and(|limit| {
            let mut others = row.firm.saturating_sub(request);
            if let Some(gone) = gone.get(&id) {
                others = others.saturating_sub(gone);
            }
            !limit.is_guarantee_exceeded(&others, request)
        })
    }

    /// Does a unit run on what its namespaces have borrowed, even once others have gone? `beneficiary` must not be above
    /// both.
    pub(crate) fn is_borrowing(
        &self,
        id: TenantId,
        request: &Vector,
        beneficiary: TenantId,
        gone: &Gone,
    ) -> bool {
        let is_above_both = self.chain(id).any(|above| above == beneficiary);
        if is_above_both {
            return false;
        }
        // Covered by any guarantee on its way up, the unit is where it has a right to be.
        !self.chain(id).any(|id| self.covers(id, request, gone))
    }
}
