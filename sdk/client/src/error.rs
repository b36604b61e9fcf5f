//! What can go wrong between a client and the control plane.

use brig_api::Problem;

/// A request that did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server answered with a problem.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The server did not answer.
    #[error(
        "could not reach the control plane at {server}: is it running? Start one with `brig dev`, or name another with --server"
    )]
    Unreachable {
        /// Its URL.
        server: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The URL of the server is none.
    #[error("`{0}` is not a server's URL: expected something like http://127.0.0.1:7117")]
    InvalidServer(String),
    /// The server answered with something that is not of this API.
    #[error(
        "the server at {server} answered with something that is not of this API ({what}): is it a Brigantine control plane of this version?"
    )]
    UnexpectedAnswer {
        /// Its URL.
        server: String,
        /// What was wrong with it.
        what: String,
    },
    /// The connection broke in the middle of an answer.
    #[error("the connection to the control plane broke")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ClientError {
    /// The problem's code, if the server gave one.
    #[must_use]
    pub fn code(&self) -> Option<brig_api::Code> {
        match self {
            Self::Problem(problem) => Some(problem.code),
            _ => None,
        }
    }
}
