//! The thread that moves the engine's epoch on, so that running guests can be interrupted.
//!
//! It rests while no guest runs: a node has many shims, and most of their guests wait for something.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::Thread;
use std::time::Duration;

/// How often guests can be interrupted.
const TICK: Duration = Duration::from_millis(1);
/// Ticks without a running guest before the thread rests; a busy server does not wake it for each request.
const IDLE_TICKS_MAX: u32 = 100;

/// The handle of the ticking thread.
#[derive(Debug)]
pub(crate) struct Ticker {
    running: Arc<Shared>,
    thread: Thread,
}

#[derive(Debug, Default)]
struct Shared {
    guests: AtomicUsize,
    rests: AtomicBool,
}

/// A guest runs as long as this lives.
pub(crate) struct Running<'a>(&'a Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.guests.fetch_sub(1, SeqCst);
    }
}

impl Ticker {
    /// Starts the thread.
    pub(crate) fn start(engine: wasmtime::Engine) -> std::io::Result<Arc<Self>> {
        let running = Arc::new(Shared::default());
        let shared = Arc::clone(&running);
        let thread = std::thread::Builder::new()
            .name("epoch".to_owned())
            .spawn(move || tick_for_ever(&engine, &shared))?;
        Ok(Arc::new(Self { running, thread: thread.thread().clone() }))
    }

    /// Ticks are needed while the guard lives.
    pub(crate) fn enter(&self) -> Running<'_> {
        self.running.guests.fetch_add(1, SeqCst);
        // Sequentially consistent on both sides: either the thread sees the guest, or the guest sees it rest.
        if self.running.rests.load(SeqCst) {
            self.thread.unpark();
        }
        Running(&self.running)
    }
}

fn tick_for_ever(engine: &wasmtime::Engine, shared: &Shared) {
    let mut idle_ticks = 0;
    loop {
        std::thread::sleep(TICK);
        engine.increment_epoch();
        idle_ticks = if shared.guests.load(SeqCst) == 0 { idle_ticks + 1 } else { 0 };
        if idle_ticks >= IDLE_TICKS_MAX {
            shared.rests.store(true, SeqCst);
            if shared.guests.load(SeqCst) == 0 {
                std::thread::park();
            }
            shared.rests.store(false, SeqCst);
            idle_ticks = 0;
        }
    }
}
