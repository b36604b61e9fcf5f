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

use crate::object::{NodeFacts, UnitStatus};
use crate::placement::Grants;
use crate::request::{ExecRequest, LogQuery};
use crate::unit_spec::{UnitTemplate, is_default};
use crate::usage::{Usage, UsageReport};
use crate::{NamespacePath, NodeName, PlanSequence, ResourceName, UnitId};

/// The version of this protocol; a server refuses others with a message that names both.
pub const SESSION_PROTOCOL: u32 = 1;
/// Largest message of a session, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Time between heartbeats, in milliseconds.
pub const HEARTBEAT_MS: u64 = 5_000;
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
    /// A stream that was asked for can't be opened.
    StreamFailed {
        /// Which.
        stream: String,
        /// Why, for the user who asked.
        problem: Box<crate::Problem>,
    },
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
}
