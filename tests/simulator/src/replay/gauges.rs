//! What is measured while a trace is replayed: use, fragmentation and fairness, over time.
//!
//! Fragmentation is the one of Weng et al. (Beware of Fragmentation, USENIX ATC 2023): the free amount that a typical request
//! cannot use, weighted by how often the request occurs. On a node that cannot take the request all that is free counts; on
//! one that can, the devices of which less is free than the request wants of one. Here over the requests that ask for the
//! resource at all, and also for cpu where no node has a gpu (then a node is the only device).

use std::collections::BTreeMap;

use brig_api::constraint::Constraint;
use brig_api::placement::Grants;
use brig_api::{NamespacePath, NodeName, Resources};

use super::trace::{Trace, Work};

/// What is measured. Other resources occur in no trace.
pub(crate) const RESOURCES: [&str; 3] = ["cpu", "memory", "gpu"];
const CPU: usize = 0;
const GPU: usize = 2;
/// One device.
const DEVICE: u64 = 1_000;
/// Fragmentation is measured with so many of the most frequent requests.
const TYPICAL_MAX: usize = 200;

/// An amount of each of [`RESOURCES`].
pub(crate) type Amounts = [u64; 3];

/// `resources` as far as they are measured.
pub(crate) fn amounts(resources: &Resources) -> Amounts {
    let gpu = resources.scalars.get("gpu").map_or(0, |amount| amount.0);
    [resources.cpu.0, resources.memory.0, gpu]
}

/// A request that occurs often.
#[derive(Debug)]
struct Typical {
    request: Amounts,
    constraints: Vec<Constraint>,
    /// How many units have it.
    weight: u128,
}

#[derive(Debug, Default)]
struct NodeGauge {
    free: Amounts,
    /// What is free of each gpu.
    devices: Vec<u64>,
    /// By typical request: do its constraints hold?
    suits: Vec<bool>,
    /// What typical requests cannot use, times their weights.
    stuck: u128,
}

/// A namespace.
#[derive(Debug, Default)]
struct Tenant {
    used: Amounts,
    /// Units that could be placed and are not.
    waiting: usize,
}

/// An amount that changes: its sum over time, and where its most was.
#[derive(Debug, Default, Clone, Copy)]
struct OverTime {
    sum: f64,
    weight: f64,
}

impl OverTime {
    fn add(&mut self, value: f64, weight: f64) {
        self.sum += value * weight;
        self.weight += weight;
    }

    fn mean(self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    nodes: BTreeMap<NodeName, NodeGauge>,
    tenants: BTreeMap<NamespacePath, Tenant>,
    capacity: Amounts,
    used: Amounts,
    typical: Vec<Typical>,
    stuck: u128,
    /// Which resource may be fragmented.
    scarce: usize,
    at_ms: i64,
    /// Nothing is measured later than that.
    until_ms: Option<i64>,
    use_of: [OverTime; 3],
    peak: Amounts,
    fragmented: OverTime,
    fragmented_at_peak: f64,
    fairness_of_waiting: OverTime,
    fairness: OverTime,
}

/// What the gauges say in the end. Shares are parts of 1.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Readings {
    /// Mean and greatest use by resource; None for one that no node has.
    pub(crate) utilisation: [Option<(f64, f64)>; 3],
    /// The resource, and the fragmented part of what is free of it: mean, and when it was used most.
    pub(crate) fragmentation: Option<(&'static str, f64, f64)>,
    /// Jain's index of dominant shares: of the namespaces that wait, while two or more do.
    pub(crate) fairness_of_waiting: Option<f64>,
    /// The same of all namespaces that have or want anything.
    pub(crate) fairness: Option<f64>,
    /// How many namespaces had units.
    pub(crate) namespaces: usize,
}

impl Gauges {
    /// Of an idle cluster, before anything arrives.
    pub(crate) fn new(trace: &Trace) -> Self {
        let mut gauges = Self::default();
        for node in &trace.nodes {
            let there = amounts(&node.facts.allocatable);
            for (sum, amount) in gauges.capacity.iter_mut().zip(there) {
                *sum = sum.saturating_add(amount);
            }
        }
        gauges.scarce = if gauges.capacity[GPU] > 0 { GPU } else { CPU };
        gauges.typical = typical(&trace.work, gauges.scarce);
        for node in &trace.nodes {
            let free = amounts(&node.facts.allocatable);
            let devices = usize::try_from(free[GPU] / DEVICE).unwrap_or(0);
            let attributes = &node.facts.attributes;
            let suits = gauges.typical.iter().map(|typical| {
                typical.constraints.iter().all(|constraint| constraint.is_met_by(attributes))
            });
            let suits = suits.collect();
            let gauge = NodeGauge { free, devices: vec![DEVICE; devices], suits, stuck: 0 };
            gauges.nodes.insert(node.name.clone(), gauge);
            gauges.refresh(&node.name);
        }
        if trace.is_measured_to_last_arrival {
            gauges.until_ms = trace.work.iter().map(|work| work.arrives_ms).max();
        }
        gauges
    }

    /// Time passes, and everything is as it is until then.
    pub(crate) fn advance(&mut self, to_ms: i64) {
        let to_ms = self.until_ms.map_or(to_ms, |until_ms| until_ms.min(to_ms));
        let passed = to_ms.saturating_sub(self.at_ms);
        if passed <= 0 {
            return;
        }
        self.at_ms = to_ms;
        let seconds = float(passed.unsigned_abs().into()) / 1_000.0;
        for (entry, used) in self.use_of.iter_mut().zip(self.used) {
            entry.add(float(used.into()), seconds);
        }
        let fragmented = self.fragmented();
        if self.used[self.scarce] > self.peak[self.scarce] {
            self.fragmented_at_peak = fragmented;
        }
        for (peak, used) in self.peak.iter_mut().zip(self.used) {
            *peak = (*peak).max(used);
        }
        let free: u64 = self.capacity[self.scarce].saturating_sub(self.used[self.scarce]);
        // Weighted by what is free: a hundredth of a gpu that is left and cannot be used is no great loss.
        self.fragmented.add(fragmented, seconds * float(free.into()));
        let is_waiting = |tenant: &&Tenant| tenant.waiting > 0;
        let is_there = |tenant: &&Tenant| tenant.waiting > 0 || tenant.used != Amounts::default();
        if let Some(index) = self.jain(self.tenants.values().filter(is_waiting)) {
            self.fairness_of_waiting.add(index, seconds);
        }
        if let Some(index) = self.jain(self.tenants.values().filter(is_there)) {
            self.fairness.add(index, seconds);
        }
    }

    /// A unit could be placed from now on.
    pub(crate) fn waits(&mut self, namespace: &NamespacePath) {
        self.tenants.entry(namespace.clone()).or_default().waiting += 1;
    }

    /// A unit that waited has a node.
    pub(crate) fn placed(
        &mut self,
        namespace: &NamespacePath,
        node: &NodeName,
        request: Amounts,
        grants: &Grants,
    ) {
        let tenant = self.tenants.entry(namespace.clone()).or_default();
        tenant.waiting = tenant.waiting.saturating_sub(1);
        change(&mut tenant.used, request, u64::saturating_add);
        change(&mut self.used, request, u64::saturating_add);
        self.charge(node, request, grants, u64::saturating_sub);
    }

    /// A unit has left its node.
    pub(crate) fn left(
        &mut self,
        namespace: &NamespacePath,
        node: &NodeName,
        request: Amounts,
        grants: &Grants,
    ) {
        let tenant = self.tenants.entry(namespace.clone()).or_default();
        change(&mut tenant.used, request, u64::saturating_sub);
        change(&mut self.used, request, u64::saturating_sub);
        self.charge(node, request, grants, u64::saturating_add);
    }

    fn charge(
        &mut self,
        node: &NodeName,
        request: Amounts,
        grants: &Grants,
        how: fn(u64, u64) -> u64,
    ) {
        let Some(gauge) = self.nodes.get_mut(node) else { return };
        change(&mut gauge.free, request, how);
        for device in grants.devices.get(RESOURCES[GPU]).into_iter().flatten() {
            let free =
                usize::try_from(*device).ok().and_then(|device| gauge.devices.get_mut(device));
            if let Some(free) = free {
                *free = how(*free, request[GPU].min(DEVICE));
            }
        }
        self.refresh(node);
    }

    fn refresh(&mut self, node: &NodeName) {
        let (typical, scarce) = (&self.typical, self.scarce);
        let Some(gauge) = self.nodes.get_mut(node) else { return };
        self.stuck -= gauge.stuck;
        let wasted = typical.iter().zip(&gauge.suits).map(|(typical, suits)| {
            typical.weight * u128::from(gauge.wasted_for(&typical.request, *suits, scarce))
        });
        gauge.stuck = wasted.sum();
        self.stuck += gauge.stuck;
    }

    /// The part of what is free that typical requests cannot use.
    fn fragmented(&self) -> f64 {
        let weight: u128 = self.typical.iter().map(|typical| typical.weight).sum();
        let free = self.capacity[self.scarce].saturating_sub(self.used[self.scarce]);
        let usable = weight * u128::from(free);
        if usable == 0 { 0.0 } else { float(self.stuck) / float(usable) }
    }

    /// Jain's index (Jain, Chiu and Hawe, 1984) of dominant shares; None for less than two.
    fn jain<'t>(&self, tenants: impl Iterator<Item = &'t Tenant>) -> Option<f64> {
        let shares = tenants.map(|tenant| {
            let shares = tenant.used.iter().zip(self.capacity).filter(|(_, there)| *there > 0);
            let shares = shares.map(|(used, there)| float((*used).into()) / float(there.into()));
            shares.fold(0.0, f64::max)
        });
        let (count, sum, squares) = shares.fold((0.0, 0.0, 0.0), |(count, sum, squares), share| {
            (count + 1.0, sum + share, squares + share * share)
        });
        if count < 2.0 {
            return None;
        }
        // Where nobody has anything all have the same.
        Some(if squares > 0.0 { sum * sum / (count * squares) } else { 1.0 })
    }

    /// What was measured.
    pub(crate) fn readings(&self) -> Readings {
        let mut utilisation = [None; 3];
        for (position, reading) in utilisation.iter_mut().enumerate() {
            let there = float(self.capacity[position].into());
            let mean = self.use_of[position].mean();
            *reading = mean
                .filter(|_| there > 0.0)
                .map(|mean| (mean / there, float(self.peak[position].into()) / there));
        }
        let fragmentation = self
            .fragmented
            .mean()
            .map(|mean| (RESOURCES[self.scarce], mean, self.fragmented_at_peak));
        Readings {
            utilisation,
            fragmentation,
            fairness_of_waiting: self.fairness_of_waiting.mean(),
            fairness: self.fairness.mean(),
            namespaces: self.tenants.len(),
        }
    }
}

impl NodeGauge {
    fn wasted_for(&self, request: &Amounts, suits: bool, scarce: usize) -> u64 {
        let wanted = request[GPU];
        let devices = self.devices.iter().copied();
        let has_devices = match wanted {
            0 => true,
            1..DEVICE => devices.clone().any(|free| free >= wanted),
            _ => {
                let whole = devices.clone().filter(|free| *free == DEVICE).count();
                u64::try_from(whole).unwrap_or(u64::MAX) >= wanted / DEVICE
            }
        };
        let fits = request.iter().zip(self.free).all(|(wanted, free)| *wanted <= free);
        if !suits || !has_devices || !fits {
            return self.free[scarce];
        }
        let too_little = devices.filter(|free| *free < wanted.min(DEVICE));
        if scarce == GPU { too_little.sum() } else { 0 }
    }
}

/// The most frequent requests that ask for the resource; the greater first where they are equally frequent.
fn typical(work: &[Work], scarce: usize) -> Vec<Typical> {
    let mut counts: BTreeMap<(Amounts, &[Constraint]), u128> = BTreeMap::new();
    for work in work.iter().filter(|work| !work.is_auxiliary) {
        let request = amounts(&work.job.unit.request());
        if request[scarce] > 0 {
            *counts.entry((request, &work.job.unit.constraints)).or_default() += 1;
        }
    }
    let mut counts: Vec<_> = counts.into_iter().map(|(key, count)| (count, key)).collect();
    counts.sort_unstable_by(|left, right| right.cmp(left));
    counts.truncate(TYPICAL_MAX);
    let typical = counts.into_iter().map(|(weight, (request, constraints))| Typical {
        request,
        constraints: constraints.to_vec(),
        weight,
    });
    typical.collect()
}

fn change(amounts: &mut Amounts, by: Amounts, how: fn(u64, u64) -> u64) {
    for (amount, by) in amounts.iter_mut().zip(by) {
        *amount = how(*amount, by);
    }
}

/// For figures that people read; what is beyond 2^53 is rounded.
fn float(amount: u128) -> f64 {
    amount as f64
}
