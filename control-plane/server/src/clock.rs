//! The only reader of the system clock: everything else takes `now` as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

/// Now, in Unix milliseconds.
#[must_use]
pub(crate) fn now_ms() -> i64 {
    let since = now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
