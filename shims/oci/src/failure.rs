//! Why a task could not be set up, in the form in which it is recorded and passed between processes.

use brig_api::lifecycle::Reason;
use serde::{Deserialize, Serialize};

/// The exit code of a program that was found but could not be run, as shells have it.
pub(crate) const CODE_NOT_EXECUTABLE: i32 = 126;
/// The exit code of a program that was not found, as shells have it.
pub(crate) const CODE_NOT_FOUND: i32 = 127;
/// The exit code of a container that could not be set up, as container engines have it.
pub(crate) const CODE_NOT_CREATED: i32 = 125;

/// Why a task could not be set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// For programs.
    pub(crate) reason: Reason,
    /// For people: names the thing, what was expected, and the way out.
    pub(crate) message: String,
    /// Recorded as the exit code.
    pub(crate) code: i32,
}

impl Failure {
    /// The container could not be created.
    pub(crate) fn create(message: impl Into<String>) -> Self {
        Self::new(Reason::CreateFailed, message)
    }

    /// A failure of that reason.
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), code: CODE_NOT_CREATED }
    }

    /// An operation of this machine failed while `doing` something.
    pub(crate) fn system(doing: &str, error: impl Into<std::io::Error>) -> Self {
        let error = error.into();
        let is_full =
            matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EROFS));
        if is_full {
            let message = format!("{doing}: {error}; free disk space on the node");
            return Self::new(Reason::DiskFull, message);
        }
        Self::create(format!("{doing}: {error}"))
    }
}
