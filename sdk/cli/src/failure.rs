//! Why a command failed, and the exit code that says so to scripts.

use brig_api::{Code, Problem};
use brig_client::ClientError;

/// A command that did not do what it should.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: u8,
    /// What to tell the user; may be several lines. Empty when everything was said already.
    pub(crate) message: String,
}

/// It failed.
pub(crate) const FAILED: u8 = 1;
/// The command line or a manifest is wrong.
pub(crate) const USAGE: u8 = 2;
/// There is no such thing.
pub(crate) const NOT_FOUND: u8 = 3;
/// Access or quota forbids it.
pub(crate) const REFUSED: u8 = 4;
/// The server does not answer.
pub(crate) const UNREACHABLE: u8 = 5;
/// A simulation's answer is no: something would wait, or be lost.
pub(crate) const DOES_NOT_FIT: u8 = 6;

impl Failure {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, message)
    }

    /// The command's own exit code, with nothing more to say.
    pub(crate) fn exit(code: u8) -> Self {
        Self::new(code, "")
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        let code = match problem.code {
            Code::Invalid | Code::TooLarge => USAGE,
            Code::NotFound => NOT_FOUND,
            Code::Unauthenticated | Code::Forbidden | Code::QuotaExceeded => REFUSED,
            Code::Unavailable | Code::NodeUnreachable => UNREACHABLE,
            Code::Conflict
            | Code::InUse
            | Code::RevisionTooOld
            | Code::WrongState
            | Code::Internal => FAILED,
        };
        Self::new(code, problem.to_string())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Problem(problem) => Self::from(*problem),
            unreachable @ ClientError::Unreachable { .. } => {
                Self::new(UNREACHABLE, chain(&unreachable))
            }
            other => Self::new(FAILED, chain(&other)),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(FAILED, format!("{error:#}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(FAILED, error.to_string())
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
