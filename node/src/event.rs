//! What the agent's loop hears: from the control plane, from shims, from its own work in the background.

use brig_api::UnitId;
use brig_api::session::{FromNode, ToNode};
use brig_shim::message::{StartTask, TaskKey, TaskUsage};
use tokio::sync::mpsc;

use crate::plan::Fault;
use crate::shims::{ShimEvent, ShimId};

/// Events that wait for the agent's loop; beyond that, those who send them wait.
pub(crate) const EVENTS_WAITING_MAX: usize = 1024;

/// One thing that happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// A control plane answered and takes messages.
    SessionUp(mpsc::Sender<FromNode>),
    /// It said something. The text is the server's address for streams.
    Session(Box<ToNode>, String),
    /// The session ended.
    SessionDown,
    /// See [`ShimEvent`].
    Shim(ShimId, ShimEvent),
    /// A unit's attempt was prepared, or can't be.
    Prepared { unit: UnitId, run: u32, outcome: Result<Vec<StartTask>, Fault> },
    /// A shim was asked to start a task.
    StartAnswered { key: TaskKey, shim: ShimId, outcome: StartOutcome },
    /// What tasks of a shim use.
    Used(ShimId, Vec<(TaskKey, TaskUsage)>),
    /// The next checkpoint may be sent.
    CheckpointTurn,
    /// A run's directories were removed.
    Collected(TaskKey),
    /// Every shim found at the start was looked after.
    Recovered,
}

/// What a shim answered.
#[derive(Debug)]
pub(crate) enum StartOutcome {
    /// It has the task.
    Accepted,
    /// It will not, or there is no shim to ask.
    Refused(Fault),
    /// The connection broke: it may have it, or may have died with it.
    Unknown,
}
