//! How a task is told to end.

use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

use brig_shim::message::StopSignal;
use tokio_util::sync::CancellationToken;

/// What was asked of a task. Only ever becomes stronger.
#[derive(Debug)]
pub(crate) struct Stop {
    /// 128 + the signal's number; 0 when nothing was asked.
    code: AtomicI32,
    is_server: bool,
    asked: CancellationToken,
    cut: CancellationToken,
}

impl Stop {
    /// Nothing was asked. A server finishes its requests unless it is killed; another program is cut off.
    pub(crate) fn new(is_server: bool) -> Self {
        Self {
            code: AtomicI32::new(0),
            is_server,
            asked: CancellationToken::new(),
            cut: CancellationToken::new(),
        }
    }

    /// Asks.
    pub(crate) fn ask(&self, how: StopSignal) {
        let (code, is_kill) = match how {
            StopSignal::Terminate => (143, false),
            StopSignal::Interrupt => (130, false),
            StopSignal::Kill => (137, true),
        };
        if is_kill && self.is_server {
            self.code.store(code, SeqCst);
        } else {
            let _ = self.code.compare_exchange(0, code, SeqCst, SeqCst);
        }
        self.asked.cancel();
        if is_kill || !self.is_server {
            self.cut.cancel();
        }
    }

    /// The exit code of a task that was cut off.
    pub(crate) fn code(&self) -> i32 {
        self.code.load(SeqCst)
    }

    /// Waits until the task was asked to end, in whatever way.
    pub(crate) async fn asked(&self) {
        self.asked.cancelled().await;
    }

    /// Waits until guests must end now.
    pub(crate) async fn cut(&self) {
        self.cut.cancelled().await;
    }

    /// Must guests end now?
    pub(crate) fn is_cut(&self) -> bool {
        self.cut.is_cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_cut_by_a_kill_only() {
        let stop = Stop::new(true);
        stop.ask(StopSignal::Terminate);
        assert!(!stop.is_cut());
        stop.ask(StopSignal::Kill);
        assert!(stop.is_cut());
        assert_eq!(stop.code(), 137);
    }

    #[test]
    fn another_program_is_cut_by_the_first_signal_and_keeps_its_code() {
        let stop = Stop::new(false);
        stop.ask(StopSignal::Terminate);
        stop.ask(StopSignal::Kill);
        assert!(stop.is_cut());
        assert_eq!(stop.code(), 143);
    }
}
