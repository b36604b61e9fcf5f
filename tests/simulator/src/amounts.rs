//! Sums and bounds of resources, as DESIGN.md says them and not as the scheduler computes them.

use brig_api::Resources;
use brig_api::object::Unit;

/// What units ask for together.
pub(crate) fn sum_of<'u>(units: impl Iterator<Item = &'u Unit>) -> Resources {
    units.fold(Resources::default(), |sum, unit| {
        sum.checked_add(&unit.template.request()).unwrap_or(sum)
    })
}

/// Every entry by name.
fn entries(amount: &Resources) -> Vec<(&str, u64)> {
    let fixed = [("cpu", amount.cpu.0), ("memory", amount.memory.0), ("disk", amount.disk.0)];
    let scalars = amount.scalars.iter().map(|(name, amount)| (name.as_str(), amount.0));
    fixed.into_iter().chain(scalars).collect()
}

fn of(amount: &Resources, name: &str) -> Option<u64> {
    entries(amount).into_iter().find(|(other, _)| *other == name).map(|(_, amount)| amount)
}

/// What a quota bounds of an entry: for cpu, memory and disk 0 is no bound, for scalars not being named.
fn bound(quota: &Resources, name: &str) -> Option<u64> {
    let is_scalar = !matches!(name, "cpu" | "memory" | "disk");
    of(quota, name).filter(|amount| is_scalar || *amount > 0)
}

/// The first entry that `request` asks for and that would be beyond the quota with it.
pub(crate) fn bounded_excess(
    used: &Resources,
    request: &Resources,
    quota: &Resources,
) -> Option<String> {
    let wanted = entries(request).into_iter().filter(|(_, wanted)| *wanted > 0);
    let mut beyond = wanted.filter(|(name, wanted)| {
        let sum = of(used, name).unwrap_or(0).saturating_add(*wanted);
        bound(quota, name).is_some_and(|most| sum > most)
    });
    beyond.next().map(|(name, _)| name.to_owned())
}

/// The first entry of `used` that is beyond the quota.
pub(crate) fn excess(used: &Resources, quota: &Resources) -> Option<String> {
    let mut beyond = entries(used)
        .into_iter()
        .filter(|(name, used)| bound(quota, name).is_some_and(|most| *used > most));
    beyond.next().map(|(name, _)| name.to_owned())
}

/// Would `request` on top of `used` be beyond what is guaranteed? What is not named is not guaranteed at all.
pub(crate) fn guarantee_excess(used: &Resources, request: &Resources, sure: &Resources) -> bool {
    let mut wanted = entries(request).into_iter().filter(|(_, wanted)| *wanted > 0);
    wanted.any(|(name, wanted)| {
        let sum = of(used, name).unwrap_or(0).saturating_add(wanted);
        sum > of(sure, name).unwrap_or(0)
    })
}
