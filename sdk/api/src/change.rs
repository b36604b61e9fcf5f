//! The change feed and the events that people read.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::object::{Object, ObjectKey};
use crate::{Kind, NamespacePath, Revision};

/// One change of one resource. All changes of a revision were committed together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    /// The transaction that made it.
    pub revision: Revision,
    /// Its place among the changes of that revision, from 0.
    pub position: u32,
    /// What changed.
    pub key: ObjectKey,
    /// The resource as it is now; None when it was deleted.
    pub object: Option<Object>,
}

/// Something that happened, in words: `brig events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// The transaction in which it was recorded.
    pub revision: Revision,
    /// Its place among the events of that revision, from 0.
    pub position: u32,
    /// When, Unix milliseconds.
    pub time_ms: i64,
    /// How serious.
    pub level: EventLevel,
    /// The kind of what it is about.
    pub kind: Kind,
    /// Its namespace, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<NamespacePath>,
    /// Its name.
    pub name: String,
    /// A fixed word, such as `Placed`, `Started`, `Failed`.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// How serious an event is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum EventLevel {
    /// As it should be.
    Normal,
    /// Somebody may want to look.
    Warning,
}

impl EventLevel {
    /// `normal` or `warning`, as in JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Warning => "warning",
        }
    }
}
