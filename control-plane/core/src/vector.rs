//! Resource vectors with numbers for names: what the scheduler adds up and compares.

use std::collections::BTreeMap;

use brig_api::Resources;

/// What there is of more than this is taken for this much: 4 PiB, or four billion cores. Sums of thousands can be counted.
pub(crate) const AMOUNT_MAX: u64 = 1 << 52;
/// What is asked for of more than [`AMOUNT_MAX`] is taken for this much: it fits nowhere.
const TOO_MUCH: u64 = AMOUNT_MAX + 1;

/// The number of a named scalar.
pub(crate) type ScalarId = usize;

/// Numbers for the names of scalars, given in the order in which they were first seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct ScalarNames {
    ids: BTreeMap<String, ScalarId>,
    names: Vec<String>,
}

impl ScalarNames {
    /// The number of a name.
    pub(crate) fn id(&mut self, name: &str) -> ScalarId {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = self.names.len();
        self.ids.insert(name.to_owned(), id);
        self.names.push(name.to_owned());
        id
    }

    /// The name of a number.
    pub(crate) fn name(&self, id: ScalarId) -> &str {
        self.names.get(id).map_or("", String::as_str)
    }
}

/// One entry of a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Entry {
    /// Thousandths of a core.
    Cpu,
    /// Bytes.
    Memory,
    /// Bytes.
    Disk,
    /// Thousandths of a named scalar.
    Scalar(ScalarId),
}

/// An amount of everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Vector {
    /// Thousandths of a core.
    pub(crate) cpu: u64,
    /// Bytes.
    pub(crate) memory: u64,
    /// Bytes.
    pub(crate) disk: u64,
    /// By number; none is 0 in a request.
    pub(crate) scalars: Vec<(ScalarId, u64)>,
}

impl Vector {
    /// What a node or a quota has: no entry is more than [`AMOUNT_MAX`].
    pub(crate) fn of_capacity(resources: &Resources, names: &mut ScalarNames) -> Self {
        let mut vector = Self::new(resources, names);
        for amount in [&mut vector.cpu, &mut vector.memory, &mut vector.disk] {
            *amount = AMOUNT_MAX.min(*amount);
        }
        for (_, amount) in &mut vector.scalars {
            *amount = AMOUNT_MAX.min(*amount);
        }
        vector
    }

    /// What is asked for in `resources`.
    pub(crate) fn new(resources: &Resources, names: &mut ScalarNames) -> Self {
        let mut scalars: Vec<_> = resources
            .scalars
            .iter()
            .map(|(name, amount)| (names.id(name), amount.0.min(TOO_MUCH)))
            .collect();
        scalars.sort_unstable();
        Self {
            cpu: resources.cpu.0.min(TOO_MUCH),
            memory: resources.memory.0.min(TOO_MUCH),
            disk: resources.disk.0.min(TOO_MUCH),
            scalars,
        }
    }

    /// How much there is of one entry.
    pub(crate) fn of(&self, entry: Entry) -> u64 {
        match entry {
            Entry::Cpu => self.cpu,
            Entry::Memory => self.memory,
            Entry::Disk => self.disk,
            Entry::Scalar(id) => {
                self.scalars.iter().find(|(other, _)| *other == id).map_or(0, |(_, amount)| *amount)
            }
        }
    }

    /// Every entry with its amount; cpu, memory and disk first.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (Entry, u64)> {
        let fixed =
            [(Entry::Cpu, self.cpu), (Entry::Memory, self.memory), (Entry::Disk, self.disk)];
        let scalars = self.scalars.iter().map(|(id, amount)| (Entry::Scalar(*id), *amount));
        fixed.into_iter().chain(scalars)
    }

    /// `self += more`. Amounts are limited, so only senseless data could wrap, and then [`Self::sub`] undoes it.
    pub(crate) fn add(&mut self, more: &Self) {
        self.cpu = self.cpu.wrapping_add(more.cpu);
        self.memory = self.memory.wrapping_add(more.memory);
        self.disk = self.disk.wrapping_add(more.disk);
        for (id, amount) in &more.scalars {
            let slot = self.scalar_mut(*id);
            *slot = slot.wrapping_add(*amount);
        }
    }

    /// Takes back an [`Self::add`].
    pub(crate) fn sub(&mut self, less: &Self) {
        self.cpu = self.cpu.wrapping_sub(less.cpu);
        self.memory = self.memory.wrapping_sub(less.memory);
        self.disk = self.disk.wrapping_sub(less.disk);
        for (id, amount) in &less.scalars {
            let slot = self.scalar_mut(*id);
            *slot = slot.wrapping_sub(*amount);
        }
    }

    /// `self - less`, each entry at least 0.
    pub(crate) fn saturating_sub(&self, less: &Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(less.cpu),
            memory: self.memory.saturating_sub(less.memory),
            disk: self.disk.saturating_sub(less.disk),
            scalars: self
                .scalars
                .iter()
                .map(|(id, amount)| (*id, amount.saturating_sub(less.of(Entry::Scalar(*id)))))
                .collect(),
        }
    }

    fn scalar_mut(&mut self, id: ScalarId) -> &mut u64 {
        let position = match self.scalars.binary_search_by_key(&id, |(other, _)| *other) {
            Ok(position) => position,
            Err(position) => {
                self.scalars.insert(position, (id, 0));
                position
            }
        };
        &mut self.scalars[position].1
    }
}

/// A bound on a vector. An entry of cpu, memory or disk that is 0 is no bound; scalars are bounded where they are named.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Limit(Vector);

impl Limit {
    /// The bound that `resources` names.
    pub(crate) fn new(resources: &Resources, names: &mut ScalarNames) -> Self {
        Self(Vector::of_capacity(resources, names))
    }

    /// The bound on one entry, if there is one.
    pub(crate) fn of(&self, entry: Entry) -> Option<u64> {
        match entry {
            Entry::Scalar(id) => {
                self.0.scalars.iter().find(|(other, _)| *other == id).map(|(_, amount)| *amount)
            }
            _ => Some(self.0.of(entry)).filter(|limit| *limit > 0),
        }
    }

    /// The first entry of `request` that would be beyond the bound once it is added to `used`.
    pub(crate) fn short_of(&self, used: &Vector, request: &Vector) -> Option<Entry> {
        request
            .entries()
            .find(|(entry, wanted)| self.is_exceeded_in(*entry, used, *wanted))
            .map(|(entry, _)| entry)
    }

    /// Would one entry be beyond the bound once `wanted` is added to `used`?
    pub(crate) fn is_exceeded_in(&self, entry: Entry, used: &Vector, wanted: u64) -> bool {
        wanted > 0
            && self.of(entry).is_some_and(|limit| {
                used.of(entry).checked_add(wanted).is_none_or(|sum| sum > limit)
            })
    }

    /// Is there more of anything that the bound names than `used`?
    pub(crate) fn has_more(&self, used: &Vector) -> bool {
        self.0.entries().any(|(entry, amount)| amount > used.of(entry))
    }

    /// Is `used` beyond what the guarantee names in any entry? What it does not name is not guaranteed at all.
    pub(crate) fn is_guarantee_exceeded(&self, used: &Vector, request: &Vector) -> bool {
        request.entries().any(|(entry, wanted)| {
            wanted > 0
                && used.of(entry).checked_add(wanted).is_none_or(|sum| sum > self.0.of(entry))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use brig_api::{Bytes, Milli, MilliCpu};

    fn amount(cpu: u64, memory: u64, gpu: u64) -> Resources {
        let scalars = BTreeMap::from([("gpu".to_owned(), Milli(gpu))]);
        Resources { cpu: MilliCpu(cpu), memory: Bytes(memory), disk: Bytes(0), scalars }
    }

    #[test]
    fn what_is_added_can_be_taken_back_whatever_it_is() {
        let mut names = ScalarNames::default();
        let huge = Vector::new(&amount(u64::MAX, u64::MAX, u64::MAX), &mut names);
        let mut sum = Vector::default();
        for _ in 0..10_000 {
            sum.add(&huge);
        }
        for _ in 0..10_000 {
            sum.sub(&huge);
        }
        assert!(sum.entries().all(|(_, amount)| amount == 0));
    }

    #[test]
    fn what_is_too_much_to_count_fits_nowhere() {
        let mut names = ScalarNames::default();
        let most = amount(u64::MAX, u64::MAX, u64::MAX);
        let (there, asked) =
            (Vector::of_capacity(&most, &mut names), Vector::new(&most, &mut names));
        assert!(
            there
                .entries()
                .zip(asked.entries())
                .all(|((entry, there), (_, asked))| { entry == Entry::Disk || asked > there })
        );
    }

    #[test]
    fn a_limit_bounds_only_what_it_names() {
        let mut names = ScalarNames::default();
        let limit =
            Limit::new(&Resources { memory: Bytes(100), ..Resources::default() }, &mut names);
        let used = Vector::new(&amount(5, 60, 0), &mut names);
        let request =
            |cpu, memory, gpu, names: &mut _| Vector::new(&amount(cpu, memory, gpu), names);
        assert_eq!(limit.short_of(&used, &request(1_000, 40, 1_000, &mut names)), None);
        assert_eq!(limit.short_of(&used, &request(0, 41, 0, &mut names)), Some(Entry::Memory));
    }
}
