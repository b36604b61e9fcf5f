//! The clocks that this program reads: nothing else asks for the time of day or for processor time.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;
use wasmtime_wasi::{HostMonotonicClock, HostWallClock};

/// Clocks that tell guests the time to the millisecond and no better.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CoarseClock;

impl CoarseClock {
    const RESOLUTION: Duration = Duration::from_millis(1);
}

impl HostWallClock for CoarseClock {
    fn resolution(&self) -> Duration {
        Self::RESOLUTION
    }

    fn now(&self) -> Duration {
        Duration::from_millis(now_ms().unsigned_abs())
    }
}

impl HostMonotonicClock for CoarseClock {
    fn resolution(&self) -> u64 {
        u64::try_from(Self::RESOLUTION.as_nanos()).unwrap_or(u64::MAX)
    }

    fn now(&self) -> u64 {
        let ms = u64::try_from(shim_began().elapsed().as_millis()).unwrap_or(u64::MAX);
        ms.saturating_mul(HostMonotonicClock::resolution(self))
    }
}

/// What coarse monotonic time counts from.
fn shim_began() -> Instant {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    *BEGAN
}

/// Unix milliseconds.
#[expect(clippy::disallowed_methods, reason = "this is the file that reads the clock")]
pub(crate) fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Nanoseconds of a clock that never goes back.
pub(crate) fn steady_ns() -> u64 {
    nanoseconds(rustix::time::ClockId::Monotonic)
}

/// Processor time of the calling thread, in nanoseconds.
pub(crate) fn thread_cpu_ns() -> u64 {
    nanoseconds(rustix::time::ClockId::ThreadCPUTime)
}

fn nanoseconds(clock: rustix::time::ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}
