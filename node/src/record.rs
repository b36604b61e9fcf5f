//! What the agent knows of a unit and keeps on disk, so that another agent can go on where this one was killed.

use std::collections::BTreeMap;

use brig_api::ResourceName;
use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::UnitStatus;
use brig_api::usage::Usage;
use brig_shim::exit::ExitRecord;
use serde::{Deserialize, Serialize};

/// A unit on this node. Written before anything that follows from it is done or told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitRecord {
    /// The number of the current attempt, from 0; part of its tasks' keys.
    pub run: u32,
    /// Where the current attempt is.
    pub phase: Phase,
    /// The boot of the machine in which the current attempt was started: no task survives another one.
    pub boot_id: String,
    /// Why the current attempt is over, or is being ended.
    pub ending: Option<Ending>,
    /// How the tasks of the current attempt ended.
    pub exits: BTreeMap<ResourceName, ExitRecord>,
    /// What earlier attempts used.
    #[serde(default)]
    pub used: Usage,
    /// Attempts in a row that ended soon; decides how long the next one waits.
    pub failures: u32,
    /// When all tasks of the current attempt ran, Unix milliseconds.
    pub running_since_ms: Option<i64>,
    /// Ports that were picked for tasks, to be picked again.
    pub ports: BTreeMap<ResourceName, u16>,
    /// As it is to be reported.
    pub status: UnitStatus,
}

/// Where an attempt to run a unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// Nothing was given to a shim yet.
    Preparing,
    /// Tasks may be in shims.
    Started,
    /// No task is in a shim; the next attempt waits.
    Backoff {
        /// Until then, Unix milliseconds.
        until_ms: i64,
    },
    /// The status is final and no task is in a shim.
    Ended,
}

/// Why what is left of an attempt is being ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ending", rename_all = "snake_case")]
pub enum Ending {
    /// A task ended, and that decides how the attempt ended; how the others end is of no matter any more.
    ByItself {
        /// That task.
        task: ResourceName,
    },
    /// The control plane asked for it.
    Requested,
    /// The node's agent is shut down together with its units; they run again when it is back.
    Paused,
}

impl UnitRecord {
    /// A unit that was just assigned.
    #[must_use]
    pub fn assigned() -> Self {
        Self {
            run: 0,
            phase: Phase::Preparing,
            boot_id: String::new(),
            ending: None,
            exits: BTreeMap::new(),
            used: Usage::default(),
            failures: 0,
            running_since_ms: None,
            ports: BTreeMap::new(),
            status: UnitStatus { state: UnitState::Assigned, ..UnitStatus::default() },
        }
    }

    /// What the tasks of the current attempt that have ended used.
    #[must_use]
    pub fn used_by_exits(&self) -> Usage {
        self.exits.values().map(|exit| exit.usage).fold(Usage::default(), Usage::beside)
    }

    /// Sets what is reported; numbers the report when it differs from the last one.
    pub fn report(&mut self, state: UnitState, reason: Option<Reason>, message: Option<String>) {
        self.report_with(|status| {
            status.state = state;
            status.reason = reason;
            status.message = message;
        });
    }

    /// Changes what is reported; numbers the report when it differs from the last one.
    pub fn report_with(&mut self, change: impl FnOnce(&mut UnitStatus)) {
        let before = self.status.clone();
        change(&mut self.status);
        if self.status != before {
            self.status.sequence = before.sequence.saturating_add(1);
        }
    }
}
