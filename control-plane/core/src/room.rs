//! What there is room for: the free resources and ports of each node, and what is left of each quota.
//!
//! Made once per pass from the model, then charged with each placement of the pass.

use std::collections::BTreeMap;

use brig_api::object::{Node, Owner, Unit};
use brig_api::unit_spec::HostPort;
use brig_api::{Bytes, Milli, MilliCpu, NamespacePath, NodeName, ResourceName, Resources, UnitId};

use crate::{Model, Moment};

/// The service whose units share a port: its namespace and name.
pub(crate) type ServiceKey<'a> = (&'a NamespacePath, &'a ResourceName);

/// The service that a unit belongs to, if it belongs to one.
pub(crate) fn service_of(unit: &Unit) -> Option<ServiceKey<'_>> {
    match &unit.owner {
        Some(Owner::Service { name, .. }) => Some((&unit.namespace, name)),
        _ => None,
    }
}

/// Room on all nodes and in all namespaces.
pub(crate) struct Room<'a> {
    /// In the order of their names.
    pub(crate) nodes: Vec<NodeRoom<'a>>,
    positions: BTreeMap<&'a NodeName, usize>,
    quotas: BTreeMap<&'a str, Quota<'a>>,
}

/// One node, and what is taken of it.
pub(crate) struct NodeRoom<'a> {
    /// The node.
    pub(crate) node: &'a Node,
    /// Is it in touch?
    pub(crate) is_ready: bool,
    /// The sum of the requests of the units on it.
    pub(crate) used: Resources,
    ports: BTreeMap<u16, Vec<PortHolder<'a>>>,
}

/// A unit that occupies a port.
struct PortHolder<'a> {
    unit: &'a UnitId,
    shared_by: Option<ServiceKey<'a>>,
}

/// A namespace's quota, and what its live units use of it.
pub(crate) struct Quota<'a> {
    /// The namespace.
    pub(crate) namespace: &'a NamespacePath,
    /// The most.
    pub(crate) limit: &'a Resources,
    /// What is used.
    pub(crate) used: Resources,
}

impl<'a> Room<'a> {
    /// The room that the model's live units leave.
    pub(crate) fn new(model: &'a Model, moment: &Moment) -> Self {
        let nodes: Vec<_> = model
            .nodes
            .values()
            .map(|node| NodeRoom {
                node,
                is_ready: !moment.silent.contains(&node.name),
                used: Resources::default(),
                ports: BTreeMap::new(),
            })
            .collect();
        let positions =
            nodes.iter().enumerate().map(|(position, room)| (&room.node.name, position)).collect();
        let quotas = model.namespaces.values().filter_map(|namespace| {
            let limit = namespace.spec.quota.as_ref()?;
            let namespace = &namespace.spec.name;
            Some((namespace.as_str(), Quota { namespace, limit, used: Resources::default() }))
        });
        let mut room = Self { quotas: quotas.collect(), nodes, positions };
        for unit in model.units().filter(|unit| unit.status.state.is_on_node()) {
            let position = unit.node.as_ref().and_then(|node| room.position(node));
            room.charge(position, unit, &unit.template.request());
        }
        room
    }

    /// Where a node is in `nodes`.
    pub(crate) fn position(&self, node: &NodeName) -> Option<usize> {
        self.positions.get(node).copied()
    }

    /// Puts a unit on the node at `position`.
    pub(crate) fn place(&mut self, position: usize, unit: &'a Unit, request: &Resources) {
        self.charge(Some(position), unit, request);
    }

    fn charge(&mut self, position: Option<usize>, unit: &'a Unit, request: &Resources) {
        if let Some(node) = position.and_then(|position| self.nodes.get_mut(position)) {
            node.charge(unit, request);
        }
        if !self.quotas.is_empty() {
            for path in path_and_ancestors(unit.namespace.as_str()) {
                if let Some(quota) = self.quotas.get_mut(path) {
                    add(&mut quota.used, request);
                }
            }
        }
    }

    /// The first quota, from the namespace upwards, that `request` would exceed once `leaving` has gone.
    pub(crate) fn exceeded_quota(
        &self,
        namespace: &NamespacePath,
        request: &Resources,
        leaving: Option<&Resources>,
    ) -> Option<&Quota<'a>> {
        if self.quotas.is_empty() {
            return None;
        }
        path_and_ancestors(namespace.as_str())
            .filter_map(|path| self.quotas.get(path))
            .find(|quota| !quota.allows(request, leaving))
    }
}

impl<'a> NodeRoom<'a> {
    /// Is there enough of every resource for `request`, once `leaving` has gone?
    pub(crate) fn has_room_for(&self, request: &Resources, leaving: Option<&Resources>) -> bool {
        let capacity = &self.node.facts.allocatable;
        match leaving {
            None => amounts(request)
                .all(|(resource, wanted)| resource.fits(wanted, &self.used, capacity)),
            Some(leaving) => {
                let used = self.used.saturating_sub(leaving);
                amounts(request).all(|(resource, wanted)| resource.fits(wanted, &used, capacity))
            }
        }
    }

    /// What is free.
    pub(crate) fn free(&self) -> Resources {
        self.node.facts.allocatable.saturating_sub(&self.used)
    }

    /// The first of `ports` that another unit than `leaving` holds and does not share with `service`.
    pub(crate) fn taken_port(
        &self,
        ports: &[HostPort],
        service: Option<ServiceKey<'_>>,
        leaving: Option<&UnitId>,
    ) -> Option<u16> {
        let is_taken = |wanted: &HostPort| {
            let holders = self.ports.get(&wanted.port).map_or(&[][..], Vec::as_slice);
            holders.iter().filter(|holder| Some(holder.unit) != leaving).any(|holder| {
                let is_shared = wanted.is_shared_by_service && holder.shared_by.is_some();
                !(is_shared && holder.shared_by == service)
            })
        };
        ports.iter().find(|port| is_taken(port)).map(|port| port.port)
    }

    fn charge(&mut self, unit: &'a Unit, request: &Resources) {
        add(&mut self.used, request);
        for port in unit.template.host_ports() {
            let shared_by = if port.is_shared_by_service { service_of(unit) } else { None };
            self.ports.entry(port.port).or_default().push(PortHolder { unit: &unit.id, shared_by });
        }
    }
}

impl Quota<'_> {
    /// May `request` be added once `leaving` has gone?
    fn allows(&self, request: &Resources, leaving: Option<&Resources>) -> bool {
        self.short_resource(request, leaving).is_none()
    }

    /// The first resource of which the quota leaves too little.
    pub(crate) fn short_resource<'r>(
        &self,
        request: &'r Resources,
        leaving: Option<&Resources>,
    ) -> Option<Amount<'r>> {
        let used = leaving.map_or_else(|| self.used.clone(), |gone| self.used.saturating_sub(gone));
        amounts(request)
            .find(|(resource, wanted)| {
                resource.limit_in(self.limit).is_some_and(|limit| {
                    *wanted > 0
                        && resource.of(&used).checked_add(*wanted).is_none_or(|sum| sum > limit)
                })
            })
            .map(|(resource, _)| resource)
    }
}

/// One entry of the resource vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Amount<'a> {
    /// Thousandths of a core.
    Cpu,
    /// Bytes.
    Memory,
    /// Bytes.
    Disk,
    /// Whole units of the scalar of this name.
    Scalar(&'a str),
}

impl Amount<'_> {
    /// How much `resources` has of it.
    pub(crate) fn of(self, resources: &Resources) -> u64 {
        match self {
            Self::Cpu => resources.cpu.0,
            Self::Memory => resources.memory.0,
            Self::Disk => resources.disk.0,
            Self::Scalar(name) => resources.scalars.get(name).map_or(0, |amount| amount.0),
        }
    }

    /// What a quota says of it: None where it sets no limit. A quota that does not name cpu, memory or disk reads
    /// as 0 there, so 0 is no limit for these; scalars are limited when they are named.
    pub(crate) fn limit_in(self, quota: &Resources) -> Option<u64> {
        match self {
            Self::Scalar(name) => quota.scalars.get(name).map(|amount| amount.0),
            _ => Some(self.of(quota)).filter(|limit| *limit > 0),
        }
    }

    fn fits(self, wanted: u64, used: &Resources, capacity: &Resources) -> bool {
        wanted == 0 || self.of(used).checked_add(wanted).is_some_and(|sum| sum <= self.of(capacity))
    }

    /// `64Gi of memory` and so on, for messages.
    pub(crate) fn with_name(self, amount: u64) -> String {
        let text = self.readable(amount);
        match self {
            Self::Cpu => format!("{text} of cpu"),
            Self::Memory => format!("{text} of memory"),
            Self::Disk => format!("{text} of disk"),
            Self::Scalar(name) => format!("{text} of {name}"),
        }
    }

    /// `cpu`, `memory`, `disk` or the scalar's name.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Scalar(name) => name,
        }
    }

    /// The amount as people read it; bytes that are no round number are cut to a tenth of the largest unit.
    pub(crate) fn readable(self, amount: u64) -> String {
        match self {
            Self::Cpu => MilliCpu(amount).to_string(),
            Self::Memory | Self::Disk => readable_bytes(amount, false),
            Self::Scalar(_) => Milli(amount).to_string(),
        }
    }

    /// The same, but never less than `amount`.
    pub(crate) fn readable_up(self, amount: u64) -> String {
        match self {
            Self::Memory | Self::Disk => readable_bytes(amount, true),
            _ => self.readable(amount),
        }
    }
}

/// Longest exact text of an amount of bytes; longer ones are cut to a tenth of the largest unit.
const EXACT_BYTES_TEXT_MAX: usize = 6;

fn readable_bytes(amount: u64, is_rounded_up: bool) -> String {
    let exact = Bytes(amount).to_string();
    if exact.len() <= EXACT_BYTES_TEXT_MAX {
        return exact;
    }
    let (suffix, shift) = [("Ti", 40), ("Gi", 30), ("Mi", 20)]
        .into_iter()
        .find(|(_, shift)| amount >> shift > 0)
        .unwrap_or(("Ki", 10));
    let tenths = ((u128::from(amount) * 10) >> shift) + u128::from(is_rounded_up);
    format!("{}.{}{suffix}", tenths / 10, tenths % 10)
}

/// Each entry of a request, in a fixed order.
pub(crate) fn amounts(request: &Resources) -> impl Iterator<Item = (Amount<'_>, u64)> {
    let fixed = [
        (Amount::Cpu, request.cpu.0),
        (Amount::Memory, request.memory.0),
        (Amount::Disk, request.disk.0),
    ];
    let scalars = request.scalars.iter().map(|(name, amount)| (Amount::Scalar(name), amount.0));
    fixed.into_iter().chain(scalars)
}

/// `sum += more`; a sum that can't be counted stays at the largest number, which fits nowhere.
fn add(sum: &mut Resources, more: &Resources) {
    sum.cpu.0 = sum.cpu.0.saturating_add(more.cpu.0);
    sum.memory.0 = sum.memory.0.saturating_add(more.memory.0);
    sum.disk.0 = sum.disk.0.saturating_add(more.disk.0);
    for (name, amount) in &more.scalars {
        match sum.scalars.get_mut(name) {
            Some(entry) => entry.0 = entry.0.saturating_add(amount.0),
            None => {
                sum.scalars.insert(name.clone(), *amount);
            }
        }
    }
}

/// `a/b/c`, `a/b`, `a`.
fn path_and_ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| path.rsplit_once('/').map(|(parent, _)| parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_followed_by_those_above_it() {
        assert_eq!(path_and_ancestors("a/b/c").collect::<Vec<_>>(), ["a/b/c", "a/b", "a"]);
    }

    #[test]
    fn bytes_that_are_no_round_number_are_cut() {
        for (amount, text) in [
            (64 << 20, "64Mi"),
            (0, "0"),
            ((23 << 30) + (512 << 20) + 4096, "23.5Gi"),
            (u64::MAX, "16777215.9Ti"),
            (1_234_567, "1.1Mi"),
        ] {
            assert_eq!(readable_bytes(amount, false), text);
        }
    }

    #[test]
    fn a_quota_limits_only_what_it_names() {
        let quota = Resources { memory: Bytes(100), ..Resources::default() };
        assert_eq!(Amount::Cpu.limit_in(&quota), None);
        assert_eq!(Amount::Memory.limit_in(&quota), Some(100));
        assert_eq!(Amount::Scalar("gpu").limit_in(&quota), None);
    }
}
