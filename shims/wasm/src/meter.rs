//! The processor limit of a task: a token bucket, charged with the thread time of every poll of its guests.
//!
//! A guest's future is wrapped in [`Metered`]. Each poll reads the thread's processor clock before and after;
//! wasm runs inside that poll, so all of it is counted, and what the host does for the guest on that thread
//! too. Inside a long poll, epoch ticks call [`Slice::on_tick`], which makes the guest yield when its quantum or
//! its bucket is used up. With an empty bucket the wrapper waits on a timer and does not poll the guest at all; after
//! a quantum it waits for its next [turn](crate::turns).

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};
use wasmtime::UpdateDeadline;

use crate::clock::thread_cpu_ns;
use crate::ticker::Ticker;
use crate::turns::{TaskClock, Turn, Turns};

/// How much unused processor time a task may save up: long enough for a start, short enough that others don't
/// notice the burst.
const BURST_NS: i64 = 20_000_000;
/// How long a guest runs before others get their turn.
const QUANTUM_NS: u64 = 2_000_000;
/// A guest that waits for its bucket goes on when this much is in it, so that it isn't woken for crumbs.
const REFILL_NS: i64 = 2_000_000;

/// Processor time that may be used now. Pure: the time is an argument.
#[derive(Debug)]
struct Bucket {
    /// Thousandths of a core; 0 for no limit.
    limit_milli: u64,
    balance_ns: i64,
    refilled_at_ns: u64,
}

impl Bucket {
    fn new(limit_milli: u64) -> Self {
        Self { limit_milli, balance_ns: BURST_NS, refilled_at_ns: 0 }
    }

    /// What may be used at `now_ns`; negative when too much was used.
    fn refill(&mut self, now_ns: u64) -> i64 {
        if self.limit_milli == 0 {
            return i64::MAX;
        }
        let elapsed = now_ns.saturating_sub(self.refilled_at_ns);
        self.refilled_at_ns = self.refilled_at_ns.max(now_ns);
        let gained = elapsed.saturating_mul(self.limit_milli) / 1000;
        let gained = i64::try_from(gained).unwrap_or(i64::MAX);
        self.balance_ns = self.balance_ns.saturating_add(gained).min(BURST_NS);
        self.balance_ns
    }

    fn charge(&mut self, used_ns: u64) {
        if self.limit_milli != 0 {
            let used = i64::try_from(used_ns).unwrap_or(i64::MAX);
            self.balance_ns = self.balance_ns.saturating_sub(used);
        }
    }

    /// How long to wait until the bucket is worth running for; None when it is now.
    fn wait_ns(&mut self, now_ns: u64) -> Option<u64> {
        let balance = self.refill(now_ns);
        if balance > 0 {
            return None;
        }
        let missing = u64::try_from(REFILL_NS.saturating_sub(balance)).unwrap_or(u64::MAX);
        Some(missing.saturating_mul(1000) / self.limit_milli.max(1))
    }
}

/// The processor time of a task: its limit and what was used. Shared by all its guests.
#[derive(Debug)]
pub(crate) struct Meter {
    bucket: Mutex<Bucket>,
    clock: TaskClock,
    started: Instant,
    used_ns: AtomicU64,
    throttled_ns: AtomicU64,
}

impl Meter {
    /// A meter for a limit in thousandths of a core (0 is no limit), and a request that is the task's weight.
    pub(crate) fn new(limit_milli: u64, request_milli: u64) -> Arc<Self> {
        Arc::new(Self {
            bucket: Mutex::new(Bucket::new(limit_milli)),
            clock: TaskClock::new(request_milli),
            started: Instant::now(),
            used_ns: AtomicU64::new(0),
            throttled_ns: AtomicU64::new(0),
        })
    }

    /// Processor time used by polls that have ended.
    pub(crate) fn used_ns(&self) -> u64 {
        self.used_ns.load(Relaxed)
    }

    /// How long guests were held back by the limit, summed over guests.
    pub(crate) fn throttled_ns(&self) -> u64 {
        self.throttled_ns.load(Relaxed)
    }

    fn with_bucket<R>(&self, act: impl FnOnce(&mut Bucket, u64) -> R) -> R {
        let now = nanoseconds(self.started.elapsed());
        act(&mut self.bucket.lock().unwrap_or_else(PoisonError::into_inner), now)
    }

    fn charge(&self, used_ns: u64) {
        self.used_ns.fetch_add(used_ns, Relaxed);
        self.clock.charge(used_ns);
        self.with_bucket(|bucket, _| bucket.charge(used_ns));
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The poll that a guest is in.
#[derive(Debug)]
pub(crate) struct Slice {
    meter: Arc<Meter>,
    /// The thread's processor clock when the poll began.
    began_ns: AtomicU64,
    /// Did the poll end because the quantum was used up?
    is_used_up: AtomicBool,
}

impl Slice {
    /// For one guest.
    pub(crate) fn new(meter: &Arc<Meter>) -> Arc<Self> {
        Arc::new(Self {
            meter: Arc::clone(meter),
            began_ns: AtomicU64::new(0),
            is_used_up: AtomicBool::new(false),
        })
    }

    /// What a running guest does at an epoch tick.
    pub(crate) fn on_tick(&self) -> UpdateDeadline {
        let used = thread_cpu_ns().saturating_sub(self.began_ns.load(Relaxed));
        let balance = self.meter.with_bucket(Bucket::refill);
        let is_used_up = used >= QUANTUM_NS;
        if is_used_up || balance <= i64::try_from(used).unwrap_or(i64::MAX) {
            self.is_used_up.store(is_used_up, Relaxed);
            return UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now()));
        }
        UpdateDeadline::Continue(1)
    }

    /// Wraps the guest's future.
    pub(crate) fn metered<F: Future>(
        self: &Arc<Self>,
        ticker: &Arc<Ticker>,
        turns: &Arc<Turns>,
        guest: F,
    ) -> Metered<F> {
        Metered {
            guest: Box::pin(guest),
            slice: Arc::clone(self),
            ticker: Arc::clone(ticker),
            turns: Arc::clone(turns),
            turn: None,
            parked: None,
        }
    }
}

/// A guest whose processor time is counted and limited.
pub(crate) struct Metered<F> {
    guest: Pin<Box<F>>,
    slice: Arc<Slice>,
    ticker: Arc<Ticker>,
    turns: Arc<Turns>,
    /// Of a guest that computes for long; None before its first quantum is used up, and after it has waited.
    turn: Option<Turn>,
    parked: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let meter = &this.slice.meter;
        loop {
            if let Some((since, timer)) = &mut this.parked {
                std::task::ready!(timer.as_mut().poll(context));
                meter.throttled_ns.fetch_add(nanoseconds(since.elapsed()), Relaxed);
                this.parked = None;
            }
            let Some(wait) = meter.with_bucket(Bucket::wait_ns) else { break };
            this.turn = None; // others have it meanwhile
            let timer = tokio::time::sleep(Duration::from_nanos(wait));
            this.parked = Some((Instant::now(), Box::pin(timer)));
        }
        if let Some(turn) = &this.turn {
            std::task::ready!(turn.poll(context.waker()));
        }
        let began = thread_cpu_ns();
        this.slice.is_used_up.store(false, Relaxed);
        this.slice.began_ns.store(began, Relaxed);
        let result = {
            let _running = this.ticker.enter();
            this.guest.as_mut().poll(context)
        };
        meter.charge(thread_cpu_ns().saturating_sub(began));
        if !this.slice.is_used_up.load(Relaxed) {
            this.turn = None;
        } else if let Some(turn) = &mut this.turn {
            turn.renew(&meter.clock);
        } else {
            this.turn = Some(this.turns.ask(&meter.clock));
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_bucket_gives_its_share_of_the_time_that_passes() {
        let mut bucket = Bucket::new(250);
        let mut now = 0;
        let mut used = 0;
        while now < 10_000 * MS {
            if let Some(wait) = bucket.wait_ns(now) {
                now += wait;
            } else {
                bucket.charge(MS);
                used += MS;
                now += MS;
            }
        }
        assert!((2_490 * MS..=2_530 * MS).contains(&used), "a quarter and the burst, not {used}");
    }

    #[test]
    fn time_that_is_not_used_is_not_saved_beyond_the_burst() {
        let mut bucket = Bucket::new(1000);
        assert_eq!(bucket.refill(3_600_000 * MS), BURST_NS);
        bucket.charge(30 * MS);
        assert_eq!(bucket.wait_ns(3_600_000 * MS), Some(12 * MS));
        assert_eq!(bucket.wait_ns(3_600_012 * MS), None);
    }

    #[test]
    fn without_a_limit_nobody_waits_and_no_number_overflows() {
        let mut bucket = Bucket::new(0);
        bucket.charge(u64::MAX);
        assert_eq!(bucket.wait_ns(u64::MAX), None);
        let mut huge = Bucket::new(u64::MAX);
        huge.charge(u64::MAX);
        assert!(huge.wait_ns(0).is_some() && huge.wait_ns(u64::MAX).is_some());
        huge.charge(u64::MAX);
        assert!(huge.wait_ns(u64::MAX).is_some());
    }
}
