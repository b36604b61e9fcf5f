//! The memory limit of a task: all linear memories and tables of all its guests together, and what each guest takes
//! besides.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use brig_api::Bytes;
use brig_api::usage::MemoryOverTime;
use brig_api::wasm::GUEST_BYTES;
use wasmtime::ResourceLimiter;

use crate::clock::steady_ns;

/// What an element of a table takes in the host.
const TABLE_ELEMENT_BYTES: u64 = 8;
/// Most instances, tables and memories of one guest; real programs have a handful.
const PARTS_PER_GUEST_MAX: usize = 64;

/// The guest wanted more than its task may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it wanted {wanted} of memory, the limit is {limit}")]
pub(crate) struct MemoryExceeded {
    /// What the task would have had in all.
    pub(crate) wanted: Bytes,
    /// The limit.
    pub(crate) limit: Bytes,
}

/// The memory of a task.
pub(crate) struct MemoryAccount {
    limit: u64,
    held: Mutex<Held>,
    on_shortage: OnceLock<OnShortage>,
}

/// What guests hold, and held.
#[derive(Debug, Default)]
struct Held {
    now: u64,
    peak: u64,
    over_time: MemoryOverTime,
}

impl Held {
    fn becomes(&mut self, bytes: u64) {
        self.now = bytes;
        self.peak = self.peak.max(bytes);
        self.over_time.is_now(bytes, steady_ns());
    }
}

/// Gives some of the task's memory back; false when there is none to give.
type OnShortage = Box<dyn Fn() -> bool + Send + Sync>;

impl MemoryAccount {
    /// An empty account.
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, held: Mutex::default(), on_shortage: OnceLock::new() })
    }

    /// What is tried before a guest is refused memory. Only the first is kept.
    pub(crate) fn on_shortage(&self, give_back: OnShortage) {
        let _ = self.on_shortage.set(give_back);
    }

    /// The limit in bytes.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// What is in use now, in bytes.
    pub(crate) fn now(&self) -> u64 {
        self.held().now
    }

    /// Most that was in use, in bytes.
    pub(crate) fn peak(&self) -> u64 {
        self.held().peak
    }

    /// What was in use, times how long, in byte-seconds.
    pub(crate) fn byte_s(&self) -> u64 {
        self.held().over_time.byte_s(steady_ns())
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, bytes: u64) -> Result<(), MemoryExceeded> {
        loop {
            match self.try_take(bytes) {
                Err(_) if self.on_shortage.get().is_some_and(|give_back| give_back()) => {}
                result => return result,
            }
        }
    }

    fn try_take(&self, bytes: u64) -> Result<(), MemoryExceeded> {
        let mut held = self.held();
        match held.now.checked_add(bytes).filter(|wanted| *wanted <= self.limit) {
            Some(wanted) => {
                held.becomes(wanted);
                Ok(())
            }
            None => Err(MemoryExceeded {
                wanted: Bytes(held.now.saturating_add(bytes)),
                limit: Bytes(self.limit),
            }),
        }
    }

    fn give_back(&self, bytes: u64) {
        let mut held = self.held();
        let left = held.now.saturating_sub(bytes);
        held.becomes(left);
    }
}

/// Memory of the host that is held for a task, until this is dropped.
pub(crate) struct Charge {
    account: Arc<MemoryAccount>,
    bytes: u64,
}

impl Charge {
    /// Charges so many bytes to the task.
    pub(crate) fn new(account: &Arc<MemoryAccount>, bytes: u64) -> Result<Self, MemoryExceeded> {
        account.take(bytes)?;
        Ok(Self { account: Arc::clone(account), bytes })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.give_back(self.bytes);
    }
}

/// Charges one guest's memory to its task, and gives it back when the guest is gone.
pub(crate) struct MemoryLimiter {
    account: Arc<MemoryAccount>,
    held: u64,
    /// The last growth, given back when it fails after it was allowed.
    last: u64,
}

impl MemoryLimiter {
    /// A guest that holds [`GUEST_BYTES`].
    pub(crate) fn new(account: &Arc<MemoryAccount>) -> Result<Self, MemoryExceeded> {
        account.take(GUEST_BYTES)?;
        Ok(Self { account: Arc::clone(account), held: GUEST_BYTES, last: 0 })
    }

    /// Of a host that no guest will have.
    pub(crate) fn of_nobody(account: &Arc<MemoryAccount>) -> Self {
        Self { account: Arc::clone(account), held: 0, last: 0 }
    }

    /// The memory of the guest's task.
    pub(crate) fn account(&self) -> &Arc<MemoryAccount> {
        &self.account
    }

    fn grow(&mut self, bytes: u64) -> wasmtime::Result<bool> {
        self.account.take(bytes)?;
        self.held = self.held.saturating_add(bytes);
        self.last = bytes;
        Ok(true)
    }

    fn take_back(&mut self) {
        self.account.give_back(self.last);
        self.held = self.held.saturating_sub(self.last);
        self.last = 0;
    }
}

impl Drop for MemoryLimiter {
    fn drop(&mut self) {
        self.account.give_back(self.held);
    }
}

fn difference(current: usize, desired: usize) -> u64 {
    u64::try_from(desired.saturating_sub(current)).unwrap_or(u64::MAX)
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false); // the module's own maximum: the guest is told, as the standard says
        }
        self.grow(difference(current, desired))
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.take_back();
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.grow(difference(current, desired).saturating_mul(TABLE_ELEMENT_BYTES))
    }

    fn table_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.take_back();
        Ok(())
    }

    fn instances(&self) -> usize {
        PARTS_PER_GUEST_MAX
    }

    fn tables(&self) -> usize {
        PARTS_PER_GUEST_MAX
    }

    fn memories(&self) -> usize {
        PARTS_PER_GUEST_MAX
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn guests_of_a_task_share_its_limit_and_give_back_what_they_had() {
        let account = MemoryAccount::new(100);
        let mut first = MemoryLimiter::of_nobody(&account);
        let mut second = MemoryLimiter::of_nobody(&account);
        assert!(first.memory_growing(0, 60, None).unwrap());
        let error = second.memory_growing(0, 41, None).unwrap_err();
        let exceeded = error.downcast_ref::<MemoryExceeded>().unwrap();
        assert_eq!(*exceeded, MemoryExceeded { wanted: Bytes(101), limit: Bytes(100) });
        assert!(second.table_growing(0, 5, None).unwrap());
        drop(first);
        assert_eq!((account.now(), account.peak()), (40, 100));
        drop(second);
        assert_eq!(account.now(), 0);
    }

    #[test]
    fn a_guest_is_charged_for_what_it_takes_besides_its_memories() {
        let account = MemoryAccount::new(GUEST_BYTES + 10);
        let mut guest = MemoryLimiter::new(&account).unwrap();
        assert!(guest.memory_growing(0, 10, None).unwrap());
        assert!(MemoryLimiter::new(&account).is_err());
        drop(guest);
        assert_eq!(account.now(), 0);
    }

    #[test]
    fn memory_that_somebody_can_spare_is_given_before_a_guest_is_refused() {
        let account = MemoryAccount::new(3 * GUEST_BYTES + 100);
        let spare = Mutex::new(Vec::new());
        for _ in 0..2 {
            let mut limiter = MemoryLimiter::new(&account).unwrap();
            assert!(limiter.memory_growing(0, 30, None).unwrap());
            spare.lock().unwrap().push(limiter);
        }
        account.on_shortage(Box::new(move || spare.lock().unwrap().pop().is_some()));
        let mut guest = MemoryLimiter::new(&account).unwrap();
        assert!(guest.memory_growing(0, 50, None).unwrap());
        assert_eq!(account.now(), 2 * GUEST_BYTES + 80, "one was enough");
        let all = usize::try_from(2 * GUEST_BYTES).unwrap() + 100;
        assert!(guest.memory_growing(50, all, None).unwrap());
        assert!(guest.memory_growing(all, all + 1, None).is_err(), "there is no more");
    }

    #[test]
    fn growth_that_did_not_happen_is_not_charged() {
        let account = MemoryAccount::new(100);
        let mut limiter = MemoryLimiter::of_nobody(&account);
        assert!(!limiter.memory_growing(0, 50, Some(40)).unwrap());
        assert!(limiter.memory_growing(0, 30, Some(40)).unwrap());
        limiter.memory_grow_failed(wasmtime::Error::msg("no memory")).unwrap();
        assert_eq!(account.now(), 0);
    }

    #[test]
    fn sizes_at_the_edge_of_the_numbers_are_refused() {
        let account = MemoryAccount::new(u64::MAX);
        let mut limiter = MemoryLimiter::of_nobody(&account);
        assert!(limiter.memory_growing(0, 10, None).unwrap());
        assert!(limiter.table_growing(0, usize::MAX, None).is_err());
    }
}
