//! Whose turn it is on a full machine: guests that compute for long share the threads in proportion to their tasks'
//! processor requests.
//!
//! A guest that waits for something now and then never sees this: its short polls go ahead. One that has used up its
//! quantum needs a turn to go on, and there are as many turns as threads. Turns go to the task that has had least
//! processor time for its request: each task has a clock that runs by its processor time divided by its weight, and the
//! one that is furthest behind is next (stride scheduling; C. A. Waldspurger and W. E. Weihl, 1995). So requests that
//! fit the machine together are kept, and what is left is shared in the same proportion.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// The weight of a task that requests less than this, in thousandths of a core: nobody starves.
const WEIGHT_MIN: u64 = 10;

/// Parts that a nanosecond is divided into, so that a large weight is told from a larger one. More would not last: at the
/// least weight the clock of a whole core runs for centuries.
const PARTS: u64 = 16;

/// The clock of a task: processor time by weight.
#[derive(Debug)]
pub(crate) struct TaskClock {
    weight: u64,
    now: AtomicU64,
}

impl TaskClock {
    /// The clock of a task with this request in thousandths of a core.
    pub(crate) fn new(request_milli: u64) -> Self {
        Self { weight: request_milli.max(WEIGHT_MIN), now: AtomicU64::new(0) }
    }

    /// Moves on by processor time that was used.
    pub(crate) fn charge(&self, used_ns: u64) {
        self.now.fetch_add(used_ns.saturating_mul(PARTS) / self.weight, Relaxed);
    }
}

/// The turns of all threads.
#[derive(Debug)]
pub(crate) struct Turns(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    /// Turns that nobody has.
    free: usize,
    last_id: u64,
    /// Those with a turn (no waker) and those that wait for one, by their clocks.
    guests: BTreeMap<Place, Option<Waker>>,
    /// The latest clock that was given a turn. Who comes anew begins there: nobody saves up turns by not asking.
    floor: u64,
}

/// A clock's time and a number that tells guests apart.
type Place = (u64, u64);

/// A guest among those that share.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Arc<Turns>,
    place: Place,
}

impl Turns {
    /// For so many threads.
    pub(crate) fn new(threads: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Inner {
            free: threads.max(1),
            last_id: 0,
            guests: BTreeMap::new(),
            floor: 0,
        })))
    }

    /// Asks for a turn; [`Turn::poll`] says when it has come.
    pub(crate) fn ask(self: &Arc<Self>, clock: &TaskClock) -> Turn {
        let mut inner = self.lock();
        clock.now.fetch_max(inner.floor, Relaxed);
        let place = inner.enter(clock);
        let woken = inner.grant();
        drop(inner);
        wake(woken);
        Turn { turns: Arc::clone(self), place }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Gives a free turn to whoever is furthest behind; to be woken without the lock.
    fn grant(&mut self) -> Option<Waker> {
        if self.free == 0 {
            return None;
        }
        let (place, next) = self.guests.iter_mut().find(|(_, waker)| waker.is_some())?;
        self.floor = self.floor.max(place.0);
        self.free -= 1;
        next.take()
    }

    fn enter(&mut self, clock: &TaskClock) -> Place {
        self.last_id = self.last_id.wrapping_add(1);
        let place = (clock.now.load(Relaxed), self.last_id);
        self.guests.insert(place, Some(Waker::noop().clone()));
        place
    }

    fn leave(&mut self, place: Place) {
        if let Some(None) = self.guests.remove(&place) {
            self.free += 1;
        }
    }
}

impl Turn {
    /// Ready once the turn has come, and then until it is dropped.
    pub(crate) fn poll(&self, waker: &Waker) -> Poll<()> {
        match self.turns.lock().guests.get_mut(&self.place) {
            Some(Some(waits)) => {
                waits.clone_from(waker);
                Poll::Pending
            }
            Some(None) | None => Poll::Ready(()),
        }
    }

    /// Asks for the next turn at the end of one. It may come at once: the guest is among those that it goes to.
    pub(crate) fn renew(&mut self, clock: &TaskClock) {
        let mut inner = self.turns.lock();
        inner.leave(self.place);
        self.place = inner.enter(clock);
        let woken = inner.grant();
        drop(inner);
        wake(woken);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut inner = self.turns.lock();
        inner.leave(self.place);
        let woken = inner.grant();
        drop(inner);
        wake(woken);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has_come(turn: &Turn) -> bool {
        turn.poll(Waker::noop()).is_ready()
    }

    /// What guests of these requests get of so many threads, in quanta, when all compute without pause.
    fn shares(threads: usize, requests: &[u64], rounds: usize) -> Vec<u64> {
        let turns = Turns::new(threads);
        let clocks: Vec<_> = requests.iter().map(|request| TaskClock::new(*request)).collect();
        let mut asked: Vec<_> = clocks.iter().map(|clock| turns.ask(clock)).collect();
        let mut quanta = vec![0; requests.len()];
        for _ in 0..rounds {
            let run: Vec<_> = (0..asked.len()).filter(|guest| has_come(&asked[*guest])).collect();
            assert_eq!(run.len(), threads.min(requests.len()), "no thread is idle");
            for guest in run {
                clocks[guest].charge(1_000_000);
                quanta[guest] += 1;
                asked[guest].renew(&clocks[guest]);
            }
        }
        quanta
    }

    #[test]
    fn threads_are_shared_in_proportion_to_requests() {
        let shares = shares(2, &[100, 100, 200, 200, 400, 400], 1_400);
        for (share, due) in shares.iter().zip([200_u64, 200, 400, 400, 800, 800]) {
            assert!(share.abs_diff(due) <= due / 50, "{shares:?}");
        }
    }

    #[test]
    fn requests_that_fit_are_kept_whatever_others_want() {
        let mut requests = vec![0; 20];
        requests.push(1_000);
        requests.push(500);
        let shares = shares(2, &requests, 2_000);
        assert!(shares[20] >= 1_900, "a core of two: {shares:?}");
        assert!(shares[21] >= 1_000, "half a core: {shares:?}");
        assert!(shares.iter().all(|share| *share > 10), "nobody starves: {shares:?}");
    }

    #[test]
    fn the_clock_of_a_core_at_the_least_weight_goes_on_for_a_century() {
        const HOUR_NS: u64 = 3_600_000_000_000;
        let clock = TaskClock::new(0);
        let mut last = 0;
        for _ in 0..100 * 366 * 24 {
            clock.charge(HOUR_NS);
            let now = clock.now.load(Relaxed);
            assert!(now > last);
            last = now;
        }
    }

    #[test]
    fn turns_that_were_not_asked_for_are_not_saved_up() {
        let turns = Turns::new(1);
        let (busy, late) = (TaskClock::new(100), TaskClock::new(100));
        for _ in 0..1_000 {
            let turn = turns.ask(&busy);
            assert!(has_come(&turn));
            busy.charge(1_000_000);
        }
        let mut late_quanta = 0;
        let mut asked = [turns.ask(&busy), turns.ask(&late)];
        for _ in 0..100 {
            let next = usize::from(!has_come(&asked[0]));
            late_quanta += next;
            let clock = [&busy, &late][next];
            clock.charge(1_000_000);
            asked[next].renew(clock);
        }
        assert!((45..=55).contains(&late_quanta), "{late_quanta}");
    }

    #[test]
    fn a_turn_that_is_given_up_goes_to_the_next() {
        let turns = Turns::new(1);
        let clock = TaskClock::new(100);
        let (first, second, third) = (turns.ask(&clock), turns.ask(&clock), turns.ask(&clock));
        assert!(has_come(&first) && !has_come(&second) && !has_come(&third));
        drop(second);
        drop(first);
        assert!(has_come(&third));
        drop(third);
        assert!(has_come(&turns.ask(&clock)));
    }
}
