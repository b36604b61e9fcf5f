//! What a unit used: processor time, and memory over time. The same for both runtimes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::UnitId;

/// What was used so far. Only ever grows, so that it may be told twice, and late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Processor time in nanoseconds.
    pub cpu_ns: u64,
    /// Memory times the time that it was held, in byte-seconds: 1 MiB for a minute is 62,914,560.
    #[serde(default)]
    pub memory_byte_s: u64,
    /// Most memory at one time, in bytes.
    pub memory_peak_bytes: u64,
    /// How long it was held back by its cpu limit, in nanoseconds.
    pub throttled_ns: u64,
}

impl Usage {
    /// The usage of two at the same time.
    #[must_use]
    pub fn beside(self, other: Self) -> Self {
        let peak = self.memory_peak_bytes.saturating_add(other.memory_peak_bytes);
        Self { memory_peak_bytes: peak, ..self.followed_by(other) }
    }

    /// The usage of two, one after the other.
    #[must_use]
    pub fn followed_by(self, other: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns.saturating_add(other.cpu_ns),
            memory_byte_s: self.memory_byte_s.saturating_add(other.memory_byte_s),
            memory_peak_bytes: self.memory_peak_bytes.max(other.memory_peak_bytes),
            throttled_ns: self.throttled_ns.saturating_add(other.throttled_ns),
        }
    }

    /// Of two that were told about the same, the larger of each: what is used is never less later.
    #[must_use]
    pub fn or_newer(self, other: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns.max(other.cpu_ns),
            memory_byte_s: self.memory_byte_s.max(other.memory_byte_s),
            memory_peak_bytes: self.memory_peak_bytes.max(other.memory_peak_bytes),
            throttled_ns: self.throttled_ns.max(other.throttled_ns),
        }
    }

    /// What was used since then.
    #[must_use]
    pub fn since(self, then: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns.saturating_sub(then.cpu_ns),
            memory_byte_s: self.memory_byte_s.saturating_sub(then.memory_byte_s),
            memory_peak_bytes: self.memory_peak_bytes,
            throttled_ns: self.throttled_ns.saturating_sub(then.throttled_ns),
        }
    }
}

/// What one unit used, all its attempts together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageReport {
    /// The unit.
    pub unit: UnitId,
    /// Since it was placed.
    pub usage: Usage,
}

/// Adds memory up over time.
///
/// What is held between two looks counts as what it was at the first of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryOverTime {
    byte_ns: u128,
    held: u64,
    since_ns: u64,
}

impl MemoryOverTime {
    /// From now on so much is held. Times are of any clock that does not go back, in nanoseconds.
    pub fn is_now(&mut self, bytes: u64, now_ns: u64) {
        let elapsed = now_ns.saturating_sub(self.since_ns);
        let more = u128::from(self.held).saturating_mul(u128::from(elapsed));
        self.byte_ns = self.byte_ns.saturating_add(more);
        self.since_ns = self.since_ns.max(now_ns);
        self.held = bytes;
    }

    /// Byte-seconds up to now.
    #[must_use]
    pub fn byte_s(mut self, now_ns: u64) -> u64 {
        self.is_now(self.held, now_ns);
        u64::try_from(self.byte_ns / 1_000_000_000).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_of_one_time_add_up_and_those_of_different_times_do_not() {
        let one = Usage { cpu_ns: 1, memory_byte_s: 10, memory_peak_bytes: 5, throttled_ns: 3 };
        let two = Usage { cpu_ns: 2, memory_byte_s: 20, memory_peak_bytes: 7, throttled_ns: 4 };
        let both = Usage { cpu_ns: 3, memory_byte_s: 30, memory_peak_bytes: 12, throttled_ns: 7 };
        assert_eq!(one.beside(two), both);
        assert_eq!(one.followed_by(two), Usage { memory_peak_bytes: 7, ..both });
        assert_eq!(both.since(one), Usage { memory_peak_bytes: 12, ..two });
        assert_eq!(two.or_newer(one), two);
    }

    #[test]
    fn memory_counts_for_as_long_as_it_is_held() {
        const S: u64 = 1_000_000_000;
        let mut memory = MemoryOverTime::default();
        memory.is_now(100, 10 * S);
        memory.is_now(50, 12 * S);
        assert_eq!(memory.byte_s(14 * S), 300);
        memory.is_now(0, 14 * S);
        assert_eq!(memory.byte_s(1_000 * S), 300);
        memory.is_now(1, 13 * S);
        assert_eq!(memory.byte_s(14 * S), 300, "a clock that went back takes nothing away");
        memory.is_now(u64::MAX, 14 * S);
        assert_eq!(memory.byte_s(u64::MAX), u64::MAX, "more than can be said is the most");
    }
}
