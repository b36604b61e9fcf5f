//! What a node and a control plane say to one another over the node's session: one WebSocket at
//! `GET /v1/node-session`, JSON text messages.
//!
//! The node says [`FromNode::Hello`], the server answers [`ToNode::Welcome`] and then the complete desired state
//! ([`ToNode::Assignments`]); later only differences. Everything may be repeated: assignments name the plan that
//! made them, statuses are numbered, so that both sides can drop what is old.
//!
//! Logs and exec do not travel here: [`ToNode::OpenStream`] asks the node to connect to
//! `GET /v1/node-streams/{stream}` (a WebSocket of its own), whose messages the server passes on to the client.
//! So a slow reader of a log slows down nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, CheckpointReport};
use crate::object::{NodeFacts, UnitStatus};
use crate::placement::Grants;
use crate::request::{AttachRequest, ExecRequest, LogQuery};
use crate::unit_spec::{Runtime, UnitTemplate, is_default};
use crate::usage::{Usage, UsageReport};
use crate::{Digest, NamespacePath, NodeName, PlanSequence, ResourceName, UnitId};

/// The version of this protocol; a server refuses others with a message that names both.
pub const SESSION_PROTOCOL: u32 = 1;
/// Largest message of a session, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Most checkpoints in one message: they are one transaction.
pub const CHECKPOINTS_MAX: usize = 64;
/// Time between heartbeats, in milliseconds.
pub const HEARTBEAT_MS: u64 = 5_000;
/// Most artifacts that a node tells of, the most recently used ones: some 450 KB of JSON, far below a message's limit.
pub const HELD_ARTIFACTS_MAX: usize = 4_096;
/// A node that was silent for this long is unreachable: three heartbeats.
pub const SILENCE_MS_MAX: u64 = 15_000;

/// From a node to the control plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromNode {
    /// The first message.
    Hello {
        /// [`SESSION_PROTOCOL`]
        protocol: u32,
        /// The node's name.
        name: NodeName,
        /// What it is and has.
        facts: Box<NodeFacts>,
    },
    /// I am here.
    Heartbeat,
    /// How units are; each repeated until it was acknowledged.
    Statuses {
        /// Newest report of each unit that has one unacknowledged.
        reports: Vec<StatusReport>,
    },
    /// What running units used so far. Not acknowledged: the next one says more.
    Usage {
        /// Some units or all.
        units: Vec<UsageReport>,
    },
    /// What tasks saved last. The next such message follows when this one was answered with
    /// [`ToNode::CheckpointsKept`].
    Checkpoints {
        /// At most [`CHECKPOINTS_MAX`].
        reports: Vec<CheckpointReport>,
    },
    /// Which artifacts the node holds whole, as far as that is news; the first message of a session tells all. A hint
    /// for the scheduler, not acknowledged, and at most [`HELD_ARTIFACTS_MAX`] together.
    Artifacts {
        /// These are all: what was told before counts no more.
        is_complete: bool,
        /// Held now, or in another state than was told.
        held: Vec<HeldArtifact>,
        /// Held no longer.
        gone: Vec<(Digest, Runtime)>,
    },
    /// A stream that was asked for can't be opened.
    StreamFailed {
        /// Which.
        stream: String,
        /// Why, for the user who asked.
        problem: Box<crate::Problem>,
    },
}

/// An artifact that is whole on a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HeldArtifact {
    /// As references of units have it: of the manifest, or of an index of several.
    pub digest: Digest,
    /// What it is to be run in; an index may have something for each runtime.
    pub runtime: Runtime,
    /// Nothing is left to be done before it runs: of wasm, its compiled code is there too.
    pub is_ready: bool,
}

/// How one unit is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The unit.
    pub unit: UnitId,
    /// With its number ([`UnitStatus::sequence`]).
    pub status: UnitStatus,
    /// What it used so far, as far as is known.
    #[serde(default, skip_serializing_if = "is_default")]
    pub usage: Usage,
}

/// From the control plane to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToNode {
    /// Answer to [`FromNode::Hello`].
    Welcome {
        /// The server's version.
        server_version: String,
        /// What nodes authenticate the compiled code with that they share; none where none is shared.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code_key: Option<CodeKey>,
    },
    /// The node is not accepted; it should say why and try again later.
    Refused {
        /// Why.
        problem: Box<crate::Problem>,
    },
    /// Everything that the node should run. What it runs besides, it stops and forgets.
    Assignments {
        /// All of them, but for `others`.
        units: Vec<Assignment>,
        /// Those that did not fit into this message and came before it in [`ToNode::Assign`].
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        others: Vec<UnitId>,
    },
    /// New or changed assignments.
    Assign {
        /// Those alone.
        units: Vec<Assignment>,
    },
    /// These units are no longer this node's: stop them if they run, and forget them.
    Withdraw {
        /// Their ids.
        units: Vec<UnitId>,
    },
    /// These reports are committed and need not be repeated.
    Acknowledge {
        /// Unit and number of the report.
        reports: Vec<(UnitId, u64)>,
    },
    /// These checkpoints are committed, or are of no use to anybody: they need not be repeated.
    CheckpointsKept {
        /// Unit, task and number of the checkpoint.
        reports: Vec<(UnitId, ResourceName, u64)>,
    },
    /// A task of a unit goes on from this: it was saved by the unit that this one replaces. Comes before the unit's
    /// assignment, so that it never begins without.
    Checkpoint {
        /// The unit that is about to be assigned.
        unit: UnitId,
        /// The task.
        task: ResourceName,
        /// What was saved.
        checkpoint: Checkpoint,
    },
    /// Connect to `GET /v1/node-streams/{stream}` and serve this there.
    OpenStream {
        /// Unguessable name of the stream.
        stream: String,
        /// The unit.
        unit: UnitId,
        /// What to serve.
        request: StreamRequest,
    },
}

/// The key by which the nodes of a cluster know each other's compiled code. Whoever has it can make them run code
/// natively, so it is told to nodes alone and reaches no log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct CodeKey([u8; 32]);

impl CodeKey {
    /// A key of these bytes, which nobody can guess.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key itself.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// As text of 64 hexadecimal digits.
    #[must_use]
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// From the text of [`Self::to_hex`]; None for any other.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut key = [0; 32];
        if text.len() != 2 * key.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (index, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
        }
        Some(Self(key))
    }
}

impl From<CodeKey> for String {
    fn from(key: CodeKey) -> Self {
        key.to_hex()
    }
}

impl TryFrom<String> for CodeKey {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::from_hex(&text).ok_or("expected 64 hexadecimal digits")
    }
}

impl std::fmt::Debug for CodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CodeKey(…)")
    }
}

/// One unit that a node is to run, with everything it needs for that.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The unit.
    pub unit: UnitId,
    /// Its name.
    pub name: ResourceName,
    /// Its namespace.
    pub namespace: NamespacePath,
    /// What it runs. Environment values and mounts that name secrets or configs are resolved from `texts`.
    pub template: Arc<UnitTemplate>,
    /// False: stop it.
    pub is_wanted: bool,
    /// The plan that placed it here.
    pub placed_by: PlanSequence,
    /// What the placement gave it: ports and devices.
    #[serde(default, skip_serializing_if = "is_default")]
    pub grants: Grants,
    /// Variables that every task gets besides its own: `BRIG_UNIT`, `BRIG_NAMESPACE`, `BRIG_JOB_INDEX` and so on.
    pub identity: BTreeMap<String, String>,
    /// The secrets and configs that the template names, with their texts.
    pub texts: Texts,
}

/// Secrets and configs by name, then key.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Texts {
    /// Configs.
    pub configs: BTreeMap<ResourceName, BTreeMap<String, String>>,
    /// Secrets; kept in memory only.
    pub secrets: BTreeMap<ResourceName, BTreeMap<String, String>>,
}

/// Texts never reach a log.
impl std::fmt::Debug for Texts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Texts({} configs, {} secrets)", self.configs.len(), self.secrets.len())
    }
}

impl std::fmt::Debug for Assignment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Assignment")
            .field("unit", &self.unit)
            .field("name", &self.name)
            .field("namespace", &self.namespace)
            .field("is_wanted", &self.is_wanted)
            .field("placed_by", &self.placed_by)
            .finish_non_exhaustive()
    }
}

/// What is served on a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StreamRequest {
    /// Binary messages of whole [`crate::logline`] lines, each with the task's name and a space in front; the
    /// WebSocket is closed at the end.
    Logs(LogQuery),
    /// Binary messages, each a [`crate::stdio::StdioFrame`].
    Exec(ExecRequest),
    /// The same, of the task's own standard input.
    Attach(AttachRequest),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_and_never_shown() {
        let key = CodeKey::new([0xa5; 32]);
        let text = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<CodeKey>(&text).unwrap(), key);
        assert!(!format!("{key:?}").contains("a5"));
        for bad in ["", "a5", &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(CodeKey::from_hex(bad), None);
        }
    }
}
