//! Progress bars on a terminal; silence elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use brig_api::Digest;
use brig_client::registry::Progress;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Time between frames of a spinner.
const FRAME_EVERY: Duration = Duration::from_millis(100);

/// A spinner with a sentence, for waits without a known end. Gone when dropped.
pub(crate) struct Waiting(ProgressBar);

impl Waiting {
    /// Shows `text` until this is dropped.
    pub(crate) fn new(text: String) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new_spinner()
        } else {
            ProgressBar::hidden()
        };
        bar.enable_steady_tick(FRAME_EVERY);
        bar.set_message(text);
        Self(bar)
    }

    /// Shows another text.
    pub(crate) fn say(&self, text: String) {
        self.0.set_message(text);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A bar for each blob that is sent or fetched. Gone when dropped.
pub(crate) struct Bars {
    all: MultiProgress,
    by_blob: Mutex<BTreeMap<Digest, ProgressBar>>,
}

impl Bars {
    pub(crate) fn new() -> Self {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self { all: MultiProgress::with_draw_target(target), by_blob: Mutex::default() }
    }

    fn with(&self, blob: &Digest, tell: impl FnOnce(&ProgressBar)) {
        // A panic elsewhere leaves bars that are as good as before.
        let bars = self.by_blob.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = bars.get(blob) {
            tell(bar);
        }
    }
}

impl Progress for Bars {
    fn begin(&self, blob: &Digest, done: u64, total: u64) {
        let style = ProgressStyle::with_template(
            "{msg} {bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}",
        );
        let bar =
            ProgressBar::new(total).with_message(blob.hex().chars().take(12).collect::<String>());
        let bar =
            self.all.add(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())));
        bar.set_position(done);
        self.by_blob.lock().unwrap_or_else(PoisonError::into_inner).insert(blob.clone(), bar);
    }

    fn advance(&self, blob: &Digest, done: u64) {
        self.with(blob, |bar| bar.set_position(done));
    }

    fn end(&self, blob: &Digest, _was_known: bool) {
        self.with(blob, ProgressBar::finish_and_clear);
    }
}
