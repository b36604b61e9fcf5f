//! Errors on the wire: `application/problem+json` (RFC 9457) with a stable code.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The media type of an error's body.
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

/// What went wrong, for programs. Codes are stable; new ones may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The request or manifest is not valid; `fields` says where.
    Invalid,
    /// No such resource.
    NotFound,
    /// The name is taken, or somebody else changed it meanwhile.
    Conflict,
    /// Something still uses it.
    InUse,
    /// Who asks is not known.
    Unauthenticated,
    /// Who asks may not.
    Forbidden,
    /// The namespace's quota is used up.
    QuotaExceeded,
    /// The watch's revision is older than the kept feed: list again.
    RevisionTooOld,
    /// Larger than the server takes.
    TooLarge,
    /// It is in the wrong state for that, such as exec in a unit that does not run.
    WrongState,
    /// The node is out of reach.
    NodeUnreachable,
    /// The server cannot do it just now: try again.
    Unavailable,
    /// The server is at fault.
    Internal,
}

impl Code {
    /// The HTTP status that goes with the code.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Self::Invalid => 422,
            Self::NotFound => 404,
            Self::Conflict | Self::InUse | Self::WrongState => 409,
            Self::Unauthenticated => 401,
            Self::Forbidden | Self::QuotaExceeded => 403,
            Self::RevisionTooOld => 410,
            Self::TooLarge => 413,
            Self::NodeUnreachable | Self::Unavailable => 503,
            Self::Internal => 500,
        }
    }

    /// `not-found` and so on, as on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not-found",
            Self::Conflict => "conflict",
            Self::InUse => "in-use",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::QuotaExceeded => "quota-exceeded",
            Self::RevisionTooOld => "revision-too-old",
            Self::TooLarge => "too-large",
            Self::WrongState => "wrong-state",
            Self::NodeUnreachable => "node-unreachable",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}

/// What is wrong with one field of a manifest or request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FieldError {
    /// Its path, such as `unit.tasks[0].resources.cpu`; empty for the whole document.
    pub path: String,
    /// What is wrong, what was expected, and the way out.
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// An error as the API sends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// Always `about:blank`: the code says what it is.
    #[serde(rename = "type", default = "about_blank")]
    pub problem_type: String,
    /// The HTTP status.
    pub status: u16,
    /// What went wrong, for programs.
    pub code: Code,
    /// The code in words.
    pub title: String,
    /// This case: names the thing, what was expected, and the way out.
    pub detail: String,
    /// The fields at fault, for `invalid`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldError>,
}

fn about_blank() -> String {
    "about:blank".to_owned()
}

impl Problem {
    /// A problem with its code and what to tell the user.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            problem_type: about_blank(),
            status: code.http_status(),
            code,
            title: code.as_str().replace('-', " "),
            detail: detail.into(),
            fields: Vec::new(),
        }
    }

    /// A manifest or request with these faults.
    #[must_use]
    pub fn invalid(detail: impl Into<String>, fields: Vec<FieldError>) -> Self {
        Self { fields, ..Self::new(Code::Invalid, detail) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        for field in &self.fields {
            write!(f, "\n  {field}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_on_the_wire_is_its_name() {
        for code in [Code::Invalid, Code::NotFound, Code::RevisionTooOld, Code::NodeUnreachable] {
            assert_eq!(serde_json::to_string(&code).unwrap(), format!("\"{}\"", code.as_str()));
        }
    }
}
