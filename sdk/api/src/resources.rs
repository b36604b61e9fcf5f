//! The one resource model: a vector of cpu, memory, disk and named scalars, the same for wasm and OCI.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Bytes, Milli, MilliCpu};

/// An amount of everything that is scheduled. As a request: what is set aside. As a capacity: what there is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// Processor share, in thousandths of a core.
    pub cpu: MilliCpu,
    /// Memory in bytes.
    pub memory: Bytes,
    /// Local disk in bytes.
    #[serde(skip_serializing_if = "is_zero")]
    pub disk: Bytes,
    /// Named scalars that nodes declare, such as `gpu: 1`. A node's amount is so many devices; a request of whole
    /// devices takes them whole, one of less than a device (`gpu: 0.5`) takes its part of one device.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub scalars: BTreeMap<String, Milli>,
}

fn is_zero(bytes: &Bytes) -> bool {
    bytes.0 == 0
}

/// One resource of which there was too little: what was asked, what is free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Shortage {
    /// `cpu`, `memory`, `disk` or the scalar's name.
    pub resource: String,
    /// How much was asked for, as people read it.
    pub wanted: String,
    /// How much there is, as people read it.
    pub available: String,
}

impl Resources {
    /// Everything in the request of a unit without one: a tenth of a core and 64 MiB.
    #[must_use]
    pub fn default_request() -> Self {
        Self { cpu: MilliCpu(100), memory: Bytes(64 << 20), ..Self::default() }
    }

    /// `self + other`, or None on overflow.
    #[must_use]
    pub fn checked_add(&self, other: &Self) -> Option<Self> {
        let mut sum = Self {
            cpu: MilliCpu(self.cpu.0.checked_add(other.cpu.0)?),
            memory: Bytes(self.memory.0.checked_add(other.memory.0)?),
            disk: Bytes(self.disk.0.checked_add(other.disk.0)?),
            scalars: self.scalars.clone(),
        };
        for (name, amount) in &other.scalars {
            let entry = sum.scalars.entry(name.clone()).or_default();
            entry.0 = entry.0.checked_add(amount.0)?;
        }
        Some(sum)
    }

    /// `self - other`, each resource at least zero.
    #[must_use]
    pub fn saturating_sub(&self, other: &Self) -> Self {
        let mut rest = Self {
            cpu: MilliCpu(self.cpu.0.saturating_sub(other.cpu.0)),
            memory: Bytes(self.memory.0.saturating_sub(other.memory.0)),
            disk: Bytes(self.disk.0.saturating_sub(other.disk.0)),
            scalars: self.scalars.clone(),
        };
        for (name, amount) in &other.scalars {
            if let Some(entry) = rest.scalars.get_mut(name) {
                entry.0 = entry.0.saturating_sub(amount.0);
            }
        }
        rest
    }

    /// What is missing for `self` to fit into `free`; empty when it fits.
    #[must_use]
    pub fn shortages_in(&self, free: &Self) -> Vec<Shortage> {
        let mut shortages = Vec::new();
        let mut check = |resource: &str, wanted: (u64, String), available: (u64, String)| {
            if wanted.0 > available.0 {
                shortages.push(Shortage {
                    resource: resource.to_owned(),
                    wanted: wanted.1,
                    available: available.1,
                });
            }
        };
        check("cpu", (self.cpu.0, self.cpu.to_string()), (free.cpu.0, free.cpu.to_string()));
        check(
            "memory",
            (self.memory.0, self.memory.to_string()),
            (free.memory.0, free.memory.to_string()),
        );
        check("disk", (self.disk.0, self.disk.to_string()), (free.disk.0, free.disk.to_string()));
        for (name, wanted) in &self.scalars {
            let available = free.scalars.get(name).copied().unwrap_or_default();
            check(name, (wanted.0, wanted.to_string()), (available.0, available.to_string()));
        }
        shortages
    }

    /// Where `self`, a guarantee, names more than `quota` allows: the resource and both amounts. A quota that names no
    /// cpu, memory or disk does not limit it; neither does one without the scalar.
    #[must_use]
    pub fn beyond(&self, quota: &Self) -> Vec<(String, String, String)> {
        let mut found = Vec::new();
        let mut check = |name: &str, wanted: (u64, String), limit: (u64, String)| {
            if limit.0 > 0 && wanted.0 > limit.0 {
                found.push((name.to_owned(), wanted.1, limit.1));
            }
        };
        check("cpu", (self.cpu.0, self.cpu.to_string()), (quota.cpu.0, quota.cpu.to_string()));
        let (memory, most) = (self.memory, quota.memory);
        check("memory", (memory.0, memory.to_string()), (most.0, most.to_string()));
        check("disk", (self.disk.0, self.disk.to_string()), (quota.disk.0, quota.disk.to_string()));
        for (name, amount) in &self.scalars {
            let limit = quota.scalars.get(name).copied().unwrap_or(*amount);
            check(name, (amount.0, amount.to_string()), (limit.0, limit.to_string()));
        }
        found
    }

    /// Does `self` fit into `free`? The same rule as [`Self::shortages_in`], without the report.
    #[must_use]
    pub fn fits_in(&self, free: &Self) -> bool {
        self.cpu <= free.cpu
            && self.memory <= free.memory
            && self.disk <= free.disk
            && self.scalars.iter().all(|(name, wanted)| {
                *wanted <= free.scalars.get(name).copied().unwrap_or_default()
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(cpu: u64, memory: u64, gpu: u64) -> Resources {
        let scalars = BTreeMap::from([("gpu".to_owned(), Milli(gpu))]);
        Resources { cpu: MilliCpu(cpu), memory: Bytes(memory), disk: Bytes(0), scalars }
    }

    #[test]
    fn fitting_and_missing_agree() {
        for (request, free) in [
            (amount(1, 1, 1), amount(1, 1, 1)),
            (amount(2, 1, 1), amount(1, 1, 1)),
            (amount(0, 0, 2), amount(9, 9, 1)),
        ] {
            assert_eq!(request.fits_in(&free), request.shortages_in(&free).is_empty());
        }
        assert_eq!(amount(0, 0, 2).shortages_in(&Resources::default())[0].resource, "gpu");
    }

    #[test]
    fn sums_never_wrap() {
        assert_eq!(amount(u64::MAX, 0, 0).checked_add(&amount(1, 0, 0)), None);
        assert_eq!(amount(1, 2, 3).checked_add(&amount(1, 1, 1)), Some(amount(2, 3, 4)));
        assert_eq!(amount(1, 2, 3).saturating_sub(&amount(2, 1, 1)), amount(0, 1, 2));
    }
}
