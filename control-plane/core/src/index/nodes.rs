//! The nodes as columns: what each has, and what is taken of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use brig_api::NodeName;
use brig_api::object::Node;
use brig_api::placement::{DYNAMIC_PORTS, Grants};
use brig_api::unit_spec::HostPort;
use brig_api::variants::RuntimeSet;

use super::{NodeSlot, OwnerId, UnitSlot};
use crate::holdings::{ArtifactKey, Held, Holdings};
use crate::vector::{ScalarId, ScalarNames, Vector};

/// A named scalar of more than so many devices is a pool: nobody counts 10,000 licences one by one.
const DEVICES_MAX: u64 = 64;
/// One device, in thousandths.
const DEVICE: u64 = 1_000;
/// Points of a score go from 0 to this.
pub(crate) const POINTS_MAX: i64 = 1_000;
/// Amounts are shortened to so many bits before they are multiplied in a score.
const SCORE_BITS: u32 = 20;

/// Amounts of cpu, memory and disk by node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Columns {
    pub(crate) cpu: Vec<u64>,
    pub(crate) memory: Vec<u64>,
    pub(crate) disk: Vec<u64>,
}

impl Columns {
    fn grow(&mut self) {
        self.cpu.push(0);
        self.memory.push(0);
        self.disk.push(0);
    }

    fn set(&mut self, slot: NodeSlot, amount: &Vector) {
        self.cpu[slot] = amount.cpu;
        self.memory[slot] = amount.memory;
        self.disk[slot] = amount.disk;
    }

    pub(crate) fn add(&mut self, slot: NodeSlot, amount: &Vector) {
        self.cpu[slot] = self.cpu[slot].wrapping_add(amount.cpu);
        self.memory[slot] = self.memory[slot].wrapping_add(amount.memory);
        self.disk[slot] = self.disk[slot].wrapping_add(amount.disk);
    }

    pub(crate) fn sub(&mut self, slot: NodeSlot, amount: &Vector) {
        self.cpu[slot] = self.cpu[slot].wrapping_sub(amount.cpu);
        self.memory[slot] = self.memory[slot].wrapping_sub(amount.memory);
        self.disk[slot] = self.disk[slot].wrapping_sub(amount.disk);
    }

    pub(crate) fn at(&self, slot: NodeSlot) -> Vector {
        Vector {
            cpu: self.cpu[slot],
            memory: self.memory[slot],
            disk: self.disk[slot],
            scalars: Vec::new(),
        }
    }
}

/// Turns an amount into a share of the capacity without a division: `(amount >> shift) * factor >> 40`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Scale {
    shift: u32,
    factor: u64,
}

impl Scale {
    fn of(capacity: u64) -> Self {
        let bits = u64::BITS - capacity.leading_zeros();
        let shift = bits.saturating_sub(SCORE_BITS);
        let short = (capacity >> shift).max(1);
        Self { shift, factor: (POINTS_MAX.unsigned_abs() << 40) / short }
    }

    /// The share of the capacity that `amount`, which fits in it, is, in points.
    #[inline]
    pub(crate) fn share_of_fitting(self, amount: u64) -> u64 {
        // The product of what fits is at most POINTS_MAX << 40, and a little more for what the shift cut off.
        (amount >> self.shift).wrapping_mul(self.factor) >> 40
    }

    /// The share of the capacity that `amount` is, in points.
    pub(crate) fn share(self, amount: u64) -> i64 {
        let share = (amount >> self.shift).saturating_mul(self.factor) >> 40;
        i64::try_from(share).unwrap_or(POINTS_MAX).min(POINTS_MAX)
    }
}

/// What a node has of a named scalar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stock {
    /// Devices: what is free of each, in thousandths; and how much is promised of all together.
    Devices {
        /// By device.
        free: Vec<u64>,
        /// Promised to units that wait.
        held: u64,
    },
    /// Too many to tell apart.
    Pool {
        /// All.
        total: u64,
        /// Taken or promised.
        used: u64,
    },
}

impl Stock {
    fn new(amount: u64) -> Self {
        if amount > DEVICES_MAX * DEVICE {
            return Self::Pool { total: amount, used: 0 };
        }
        let mut free = Vec::new();
        let mut left = amount;
        while left > 0 {
            free.push(left.min(DEVICE));
            left -= left.min(DEVICE);
        }
        Self::Devices { free, held: 0 }
    }

    /// How much is there in all, free or not.
    pub(crate) fn free(&self) -> u64 {
        match self {
            Self::Devices { free, held } => {
                free.iter().copied().map(left).sum::<u64>().saturating_sub(*held)
            }
            Self::Pool { total, used } => total.saturating_sub(*used),
        }
    }

    /// The most that is free in one piece: for a part of a device on one of them, for more than that in whole ones.
    pub(crate) fn free_in_pieces(&self, amount: u64) -> u64 {
        let Self::Devices { free, .. } = self else { return self.free() };
        let whole = free.iter().filter(|left| **left == DEVICE).sum();
        let largest = free.iter().copied().map(left).max().unwrap_or(0);
        if amount < DEVICE { largest } else { whole }
    }

    /// The devices that `amount` would get: for a part of one the fullest that has it, whole ones from the first on.
    /// None where it does not fit, an empty list from a pool.
    pub(crate) fn choose(&self, amount: u64) -> Option<Vec<u32>> {
        if amount > self.free() {
            return None;
        }
        let Self::Devices { free, .. } = self else { return Some(Vec::new()) };
        let numbered = || (0..).zip(free);
        if amount < DEVICE {
            let fitting = numbered().filter(|(_, free)| left(**free) >= amount);
            return Some(vec![fitting.min_by_key(|(_, free)| **free)?.0]);
        }
        let wanted = usize::try_from(amount / DEVICE).ok()?;
        let whole: Vec<u32> = numbered()
            .filter(|(_, left)| **left == DEVICE)
            .map(|(number, _)| number)
            .take(wanted)
            .collect();
        (whole.len() == wanted).then_some(whole)
    }

    fn take(&mut self, amount: u64, devices: &[u32]) {
        match self {
            Self::Pool { used, .. } => *used = used.wrapping_add(amount),
            Self::Devices { free, .. } => each_device(free, amount, devices, u64::wrapping_sub),
        }
    }

    pub(crate) fn give_back(&mut self, amount: u64, devices: &[u32]) {
        match self {
            Self::Pool { used, .. } => *used = used.wrapping_sub(amount),
            Self::Devices { free, .. } => each_device(free, amount, devices, u64::wrapping_add),
        }
    }

    fn hold(&mut self, amount: u64, sign: fn(u64, u64) -> u64) {
        match self {
            Self::Pool { used: held, .. } | Self::Devices { held, .. } => {
                *held = sign(*held, amount);
            }
        }
    }
}

/// What is left of a device. One that was given out twice, by whatever mistake, is less than empty, not the fullest of all.
fn left(free: u64) -> u64 {
    if free > DEVICE { 0 } else { free }
}

/// A node that was promised devices it no longer has, or a unit that names none, changes nothing here: what there is
/// too little of is seen by the sum of requests.
fn each_device(free: &mut [u64], amount: u64, devices: &[u32], change: fn(u64, u64) -> u64) {
    let part = if devices.len() == 1 { amount.min(DEVICE) } else { DEVICE };
    for device in devices {
        if let Some(left) = usize::try_from(*device).ok().and_then(|device| free.get_mut(device)) {
            *left = change(*left, part);
        }
    }
}

/// A unit that occupies a port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PortHolder {
    unit: UnitSlot,
    shared_by: Option<OwnerId>,
}

/// All nodes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Nodes {
    by_name: BTreeMap<NodeName, NodeSlot>,
    slots: Vec<Option<Arc<Node>>>,
    unused: Vec<NodeSlot>,
    /// The position of each among their names: what ties are broken by.
    pub(crate) rank: Vec<usize>,
    /// The node at each position.
    pub(crate) by_rank: Vec<NodeSlot>,
    is_rank_stale: bool,
    /// Exists and is in touch.
    pub(crate) is_ready: Vec<bool>,
    /// What it can run.
    pub(crate) runtimes: Vec<RuntimeSet>,
    /// What it says it holds; None when it has said nothing.
    holdings: Vec<Option<Holdings>>,
    /// What there is.
    pub(crate) capacity: Columns,
    /// What is taken by the units on it, and promised to units that wait for others to leave.
    pub(crate) used: Columns,
    /// The part of `used` that is about to leave.
    pub(crate) leaving: Columns,
    /// What is kept for a waiting gang.
    pub(crate) kept: Columns,
    /// Anything is kept anywhere.
    pub(crate) has_kept: bool,
    /// It is known until when at the latest.
    pub(crate) is_kept_end_known: bool,
    /// For scores.
    pub(crate) cpu_scale: Vec<Scale>,
    /// For scores.
    pub(crate) memory_scale: Vec<Scale>,
    /// Named scalars.
    pub(crate) stock: Vec<Vec<(ScalarId, Stock)>>,
    /// It has any of them.
    pub(crate) has_scalars: Vec<bool>,
    /// How many nodes have.
    pub(crate) with_scalars: usize,
    declared: Vec<Vector>,
    /// The units on it.
    pub(crate) units: Vec<BTreeSet<UnitSlot>>,
    ports: Vec<BTreeMap<u16, Vec<PortHolder>>>,
    /// All capacity of nodes that exist.
    pub(crate) total: Vector,
}

impl Nodes {
    /// How many slots there are; some may be empty.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// How many nodes there are.
    pub(crate) fn count(&self) -> usize {
        self.by_name.len()
    }

    /// How many slots have no node in them.
    pub(crate) fn empty_slots(&self) -> u32 {
        u32::try_from(self.unused.len()).unwrap_or(u32::MAX)
    }

    /// The node in a slot.
    pub(crate) fn get(&self, slot: NodeSlot) -> Option<&Arc<Node>> {
        self.slots.get(slot)?.as_ref()
    }

    /// The slot of a node.
    pub(crate) fn slot(&self, name: &NodeName) -> Option<NodeSlot> {
        self.by_name.get(name).copied()
    }

    /// Every slot with a node in it, by name.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = NodeSlot> {
        self.by_name.values().copied()
    }

    /// Takes over a node; gives its slot and whether it is a new one.
    pub(crate) fn put(&mut self, node: Arc<Node>, names: &mut ScalarNames) -> (NodeSlot, bool) {
        let known = self.by_name.get(&node.name).copied();
        let slot = known.unwrap_or_else(|| self.add(&node.name));
        let amount = Vector::of_capacity(&node.facts.allocatable, names);
        self.total.sub(&self.declared[slot]);
        self.capacity.set(slot, &amount);
        self.set_has_scalars(slot, !amount.scalars.is_empty());
        self.runtimes[slot] = node.facts.runtimes.iter().copied().collect();
        self.stock[slot] =
            amount.scalars.iter().map(|(id, amount)| (*id, Stock::new(*amount))).collect();
        self.cpu_scale[slot] = Scale::of(amount.cpu);
        self.memory_scale[slot] = Scale::of(amount.memory);
        self.total.add(&amount);
        self.declared[slot] = amount;
        self.slots[slot] = Some(node);
        (slot, known.is_none())
    }

    fn set_has_scalars(&mut self, slot: NodeSlot, has_any: bool) {
        let had_any = std::mem::replace(&mut self.has_scalars[slot], has_any);
        self.with_scalars += usize::from(has_any);
        self.with_scalars -= usize::from(had_any);
    }

    fn add(&mut self, name: &NodeName) -> NodeSlot {
        self.is_rank_stale = true;
        let slot = self.unused.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.rank.push(0);
            self.is_ready.push(false);
            self.runtimes.push(RuntimeSet::default());
            self.holdings.push(None);
            for columns in [&mut self.capacity, &mut self.used, &mut self.leaving, &mut self.kept] {
                columns.grow();
            }
            self.cpu_scale.push(Scale::default());
            self.memory_scale.push(Scale::default());
            self.stock.push(Vec::new());
            self.has_scalars.push(false);
            self.declared.push(Vector::default());
            self.units.push(BTreeSet::new());
            self.ports.push(BTreeMap::new());
            self.slots.len() - 1
        });
        self.by_name.insert(name.clone(), slot);
        slot
    }

    /// Forgets a node; nothing may be charged to it any more.
    pub(crate) fn remove(&mut self, name: &NodeName) {
        let Some(slot) = self.by_name.remove(name) else { return };
        let amount = std::mem::take(&mut self.declared[slot]);
        self.total.sub(&amount);
        self.slots[slot] = None;
        self.is_ready[slot] = false;
        self.runtimes[slot] = RuntimeSet::default();
        self.capacity.set(slot, &Vector::default());
        self.set_has_scalars(slot, false);
        self.stock[slot].clear();
        self.unused.push(slot);
        self.is_rank_stale = true;
    }

    /// The node holds something else than before, which is given back.
    pub(crate) fn set_holdings(
        &mut self,
        slot: NodeSlot,
        holdings: Option<Holdings>,
    ) -> Option<Holdings> {
        std::mem::replace(&mut self.holdings[slot], holdings)
    }

    /// Has the node said what it holds?
    pub(crate) fn has_told_holdings(&self, slot: NodeSlot) -> bool {
        self.holdings[slot].is_some()
    }

    /// The nodes that hold an artifact.
    pub(crate) fn holding(&self, key: ArtifactKey) -> impl Iterator<Item = (NodeSlot, Held)> {
        let told = self.holdings.iter().enumerate();
        let found =
            told.filter_map(move |(slot, holdings)| Some((slot, holdings.as_ref()?.find(key))));
        found.filter(|(_, held)| *held != Held::Not)
    }

    /// Positions by name, after nodes came or went.
    pub(crate) fn refresh_ranks(&mut self) {
        if std::mem::take(&mut self.is_rank_stale) {
            self.by_rank = self.by_name.values().copied().collect();
            for (rank, slot) in self.by_rank.iter().enumerate() {
                self.rank[*slot] = rank;
            }
        }
    }

    /// What the node has when it is empty.
    pub(crate) fn declared(&self, slot: NodeSlot) -> &Vector {
        &self.declared[slot]
    }

    /// The devices that the request would get, by scalar; None where one has too little.
    pub(crate) fn choose_devices(
        &self,
        slot: NodeSlot,
        request: &Vector,
    ) -> Option<Vec<(ScalarId, Vec<u32>)>> {
        let stock = &self.stock[slot];
        let wanted = request.scalars.iter().filter(|(_, amount)| *amount > 0);
        wanted
            .map(|(id, amount)| {
                let (_, stock) = stock.iter().find(|(other, _)| other == id)?;
                Some((*id, stock.choose(*amount)?))
            })
            .collect()
    }

    /// Charges the devices that `grants` names.
    pub(crate) fn take_devices(
        &mut self,
        slot: NodeSlot,
        request: &Vector,
        grants: &Grants,
        names: &ScalarNames,
    ) {
        self.change_devices(slot, request, grants, names, Stock::take);
    }

    /// Takes back [`Self::take_devices`].
    pub(crate) fn return_devices(
        &mut self,
        slot: NodeSlot,
        request: &Vector,
        grants: &Grants,
        names: &ScalarNames,
    ) {
        self.change_devices(slot, request, grants, names, Stock::give_back);
    }

    fn change_devices(
        &mut self,
        slot: NodeSlot,
        request: &Vector,
        grants: &Grants,
        names: &ScalarNames,
        change: fn(&mut Stock, u64, &[u32]),
    ) {
        for (id, amount) in &request.scalars {
            let stock = self.stock[slot].iter_mut().find(|(other, _)| other == id);
            if let Some((_, stock)) = stock {
                let devices = grants.devices.get(names.name(*id)).map_or(&[][..], Vec::as_slice);
                change(stock, *amount, devices);
            }
        }
    }

    /// Promises an amount to a unit that waits, or takes the promise back.
    pub(crate) fn promise(&mut self, slot: NodeSlot, amount: &Vector, is_taken_back: bool) {
        let sign = if is_taken_back { u64::wrapping_sub } else { u64::wrapping_add };
        if is_taken_back {
            self.used.sub(slot, amount);
        } else {
            self.used.add(slot, amount);
        }
        for (id, amount) in &amount.scalars {
            if let Some((_, stock)) = self.stock[slot].iter_mut().find(|(other, _)| other == id) {
                stock.hold(*amount, sign);
            }
        }
    }

    /// The first of `ports` that a unit holds, other than those of `without`, and does not share with `service`.
    pub(crate) fn taken_port(
        &self,
        slot: NodeSlot,
        ports: &[HostPort],
        service: Option<OwnerId>,
        without: &[UnitSlot],
    ) -> Option<u16> {
        let is_taken = |wanted: &HostPort| {
            let holders = self.ports[slot].get(&wanted.port).map_or(&[][..], Vec::as_slice);
            holders.iter().filter(|holder| !without.contains(&holder.unit)).any(|holder| {
                let is_shared = wanted.is_shared_by_service && holder.shared_by.is_some();
                !(is_shared && holder.shared_by == service)
            })
        };
        ports.iter().find(|port| is_taken(port)).map(|port| port.port)
    }

    /// `count` free ports from the range of those that the scheduler gives; None where there are too few.
    pub(crate) fn open_ports(
        &self,
        slot: NodeSlot,
        count: usize,
        fixed: &[HostPort],
    ) -> Option<Vec<u16>> {
        let (first, last) = DYNAMIC_PORTS;
        let mut taken = self.ports[slot].range(first..=last).map(|(port, _)| *port).peekable();
        let mut found = Vec::with_capacity(count);
        for port in first..=last {
            if found.len() == count {
                break;
            }
            if taken.peek() == Some(&port) {
                taken.next();
            } else if !fixed.iter().any(|wanted| wanted.port == port) {
                found.push(port);
            }
        }
        (found.len() == count).then_some(found)
    }

    /// Occupies ports.
    pub(crate) fn take_ports(
        &mut self,
        slot: NodeSlot,
        unit: UnitSlot,
        fixed: &[HostPort],
        service: Option<OwnerId>,
        open: &[u16],
    ) {
        for port in fixed {
            let shared_by = if port.is_shared_by_service { service } else { None };
            self.ports[slot].entry(port.port).or_default().push(PortHolder { unit, shared_by });
        }
        for port in open {
            let holder = PortHolder { unit, shared_by: None };
            self.ports[slot].entry(*port).or_default().push(holder);
        }
    }

    /// Takes back [`Self::take_ports`].
    pub(crate) fn return_ports(
        &mut self,
        slot: NodeSlot,
        unit: UnitSlot,
        ports: impl Iterator<Item = u16>,
    ) {
        for port in ports {
            if let Some(holders) = self.ports[slot].get_mut(&port) {
                holders.retain(|holder| holder.unit != unit);
                if holders.is_empty() {
                    self.ports[slot].remove(&port);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_share_a_device_and_whole_ones_do_not() {
        let mut stock = Stock::new(3_000);
        let part = stock.choose(500).unwrap();
        assert_eq!(part, [0]);
        stock.take(500, &part);
        assert_eq!(stock.choose(300), Some(vec![0]), "the fullest that has room");
        assert_eq!(stock.choose(600), Some(vec![1]));
        let whole = stock.choose(2_000).unwrap();
        assert_eq!(whole, [1, 2]);
        stock.take(2_000, &whole);
        assert_eq!(stock.free(), 500);
        assert_eq!(stock.choose(600), None);
        stock.give_back(2_000, &whole);
        stock.give_back(500, &part);
        assert_eq!(stock, Stock::new(3_000));
    }

    #[test]
    fn a_device_that_was_given_out_twice_is_not_given_again() {
        let mut stock = Stock::new(2_000);
        stock.take(1_000, &[0]);
        stock.take(1_000, &[0]);
        assert_eq!(stock.free(), 1_000);
        assert_eq!(stock.choose(500), Some(vec![1]));
        assert_eq!(stock.choose(2_000), None);
        stock.give_back(1_000, &[0]);
        assert_eq!(stock.choose(2_000), None);
        stock.give_back(1_000, &[0]);
        assert_eq!(stock, Stock::new(2_000));
    }

    #[test]
    fn what_is_too_many_to_number_is_a_pool() {
        let mut stock = Stock::new(10_000_000);
        assert_eq!(stock.choose(9_000_500), Some(vec![]));
        stock.take(9_000_000, &[]);
        assert_eq!(stock.choose(1_000_001), None);
    }

    #[test]
    fn shares_are_exact_to_a_thousandth() {
        for capacity in [1, 3, 7_000, 8_000, 1 << 20, (23 << 30) + 4_096, 1 << 52] {
            let scale = Scale::of(capacity);
            assert_eq!(scale.share(0), 0);
            for part in [1, 2, 3] {
                let expected = i64::try_from(capacity / 4 * part * 1_000 / capacity).unwrap();
                assert!((scale.share(capacity / 4 * part) - expected).abs() <= 1, "{capacity}");
            }
            assert!(scale.share(capacity) >= 999);
        }
    }
}
