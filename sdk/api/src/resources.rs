//! The one resource model: a vector of cpu, memory, disk and named scalars, the same for wasm and OCI.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Bytes, MilliCpu};

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
    /// Named scalars that nodes declare, such as `gpu: 1`, in whole units.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub scalars: BTreeMap<String, u64>,
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
            let entry = sum.scalars.entry(name.clone()).or_insert(0);
            *entry = entry.checked_add(*amount)?;
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
                *entry = entry.saturating_sub(*amount);
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
            let available = free.scalars.get(name).copied().unwrap_or(0);
            check(name, (*wanted, wanted.to_string()), (available, available.to_string()));
        }
        shortages
    }

    /// Does `self` fit into `free`? The same rule as [`Self::shortages_in`], without the report.
    #[must_use]
    pub fn fits_in(&self, free: &Self) -> bool {
        self.cpu <= free.cpu
            && self.memory <= free.memory
            && self.disk <= free.disk
            && self
                .scalars
                .iter()
                .all(|(name, wanted)| *wanted <= free.scalars.get(name).copied().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(cpu: u64, memory: u64, gpu: u64) -> Resources {
        let scalars = BTreeMap::from([("gpu".to_owned(), gpu)]);
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
