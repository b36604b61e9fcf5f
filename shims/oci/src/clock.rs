//! The only place that reads the clock.

use rustix::time::{ClockId, clock_gettime};

/// Unix milliseconds, for logs and records.
pub(crate) fn unix_ms() -> i64 {
    milliseconds(ClockId::Realtime)
}

/// Milliseconds of a clock that never jumps, for time-outs.
pub(crate) fn steady_ms() -> i64 {
    milliseconds(ClockId::Monotonic)
}

/// Nanoseconds of the same clock.
pub(crate) fn steady_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let ns = now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec);
    u64::try_from(ns).unwrap_or(0)
}

fn milliseconds(clock: ClockId) -> i64 {
    let now = clock_gettime(clock);
    now.tv_sec.saturating_mul(1_000).saturating_add(now.tv_nsec / 1_000_000)
}
