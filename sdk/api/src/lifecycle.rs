//! The life of a unit, as a state machine.
//!
//! ```text
//!            place            prepare           start
//!  Pending ────────▶ Assigned ───────▶ Preparing ─────▶ Running ◀──┐
//!     │                 │                  │ fail │        │       │ restart
//!     │                 │                  │      ▼        │ task ended, to be restarted
//!     │                 │                  │    Backoff ◀──┤
//!     │                 │                  │      │        │
//!     │                 ▼ stop             ▼ stop ▼ stop   ▼ stop
//!     │               ┌──────────── Stopping ──────────────┘
//!     ▼ stop          ▼
//!  Stopped ◀──────────┘      Running ──▶ Succeeded | Failed      any live state ──▶ Lost (node given up)
//! ```
//!
//! **Invariant:** `Succeeded`, `Failed`, `Stopped` and `Lost` are final. The control plane moves a unit out of
//! `Pending` and into `Lost`; every other step is reported by the node that the unit is on.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a unit is in its life.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum UnitState {
    /// Waits for a node.
    #[default]
    Pending,
    /// Has a node, which has not begun yet.
    Assigned,
    /// The node fetches artifacts and sets up.
    Preparing,
    /// Its tasks run.
    Running,
    /// A task ended or could not start; the node waits before it tries again.
    Backoff,
    /// Was told to stop and is stopping.
    Stopping,
    /// Every task that is no sidecar ended with code 0. Final.
    Succeeded,
    /// Ended otherwise, and won't be restarted. Final.
    Failed,
    /// Stopped on request. Final.
    Stopped,
    /// Its node was given up. Final.
    Lost,
}

impl UnitState {
    /// All states, in the order of the diagram.
    pub const ALL: [Self; 10] = [
        Self::Pending,
        Self::Assigned,
        Self::Preparing,
        Self::Running,
        Self::Backoff,
        Self::Stopping,
        Self::Succeeded,
        Self::Failed,
        Self::Stopped,
        Self::Lost,
    ];

    /// No further change will come.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Stopped | Self::Lost)
    }

    /// The unit takes up room on a node.
    #[must_use]
    pub fn is_on_node(self) -> bool {
        matches!(
            self,
            Self::Assigned | Self::Preparing | Self::Running | Self::Backoff | Self::Stopping
        )
    }

    /// May a node report `next` for a unit in this state? Reports repeat (same state again) and may skip steps,
    /// but a final state stays and nothing goes back to waiting for a node.
    #[must_use]
    pub fn allows_report(self, next: Self) -> bool {
        let is_reportable = !matches!(next, Self::Pending | Self::Assigned | Self::Lost);
        let stopping_stays = self != Self::Stopping || next == Self::Stopping || next.is_final();
        self.is_on_node() && is_reportable && stopping_stays
    }

    /// `running` and so on, as in JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Preparing => "preparing",
            Self::Running => "running",
            Self::Backoff => "backoff",
            Self::Stopping => "stopping",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::Lost => "lost",
        }
    }

    /// The state of that name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// Why a unit is in its state, for programs; the message beside it is for people.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum Reason {
    /// No node fits.
    Unschedulable,
    /// The namespace's quota is used up.
    QuotaExceeded,
    /// It waits for a service or job that it comes after.
    DependencyWaits,
    /// As many units of its family are on nodes as may be.
    ConcurrencyLimit,
    /// It waits for the rest of its gang, or for room for all of it.
    GangWaits,
    /// It has a node in view, and waits until others have left it.
    RoomPromised,
    /// An artifact or image could not be fetched.
    PullFailed,
    /// What was fetched is no program that can run here (no wasm, another architecture, corrupt).
    InvalidArtifact,
    /// A component imports something that nothing provides or nobody granted.
    ImportNotGranted,
    /// A mount, secret or config is missing or not allowed.
    MountRefused,
    /// The task could not be set up.
    CreateFailed,
    /// The task's minimum needs exceed its limits.
    LimitTooSmall,
    /// The program ended with a code other than 0.
    ExitedNonZero,
    /// The program was ended by a signal that nobody asked for.
    Signalled,
    /// The program trapped (wasm).
    Trapped,
    /// The memory limit was exceeded.
    OutOfMemory,
    /// The deadline passed.
    DeadlineExceeded,
    /// The disk is full.
    DiskFull,
    /// It ended again and again and is restarted with back-off.
    CrashLoop,
    /// The shim died under it.
    ShimLost,
    /// The node was given up.
    NodeLost,
    /// It was stopped to make room for another unit.
    Preempted,
    /// Its node has a taint that it does not tolerate.
    Evicted,
    /// A user stopped or deleted it.
    Requested,
    /// Its service or job no longer wants it.
    Superseded,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 25] = [
        Self::Unschedulable,
        Self::QuotaExceeded,
        Self::DependencyWaits,
        Self::ConcurrencyLimit,
        Self::GangWaits,
        Self::RoomPromised,
        Self::PullFailed,
        Self::InvalidArtifact,
        Self::ImportNotGranted,
        Self::MountRefused,
        Self::CreateFailed,
        Self::LimitTooSmall,
        Self::ExitedNonZero,
        Self::Signalled,
        Self::Trapped,
        Self::OutOfMemory,
        Self::DeadlineExceeded,
        Self::DiskFull,
        Self::CrashLoop,
        Self::ShimLost,
        Self::NodeLost,
        Self::Preempted,
        Self::Evicted,
        Self::Requested,
        Self::Superseded,
    ];

    /// `OutOfMemory` and so on, as in JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unschedulable => "Unschedulable",
            Self::QuotaExceeded => "QuotaExceeded",
            Self::DependencyWaits => "DependencyWaits",
            Self::ConcurrencyLimit => "ConcurrencyLimit",
            Self::GangWaits => "GangWaits",
            Self::RoomPromised => "RoomPromised",
            Self::PullFailed => "PullFailed",
            Self::InvalidArtifact => "InvalidArtifact",
            Self::ImportNotGranted => "ImportNotGranted",
            Self::MountRefused => "MountRefused",
            Self::CreateFailed => "CreateFailed",
            Self::LimitTooSmall => "LimitTooSmall",
            Self::ExitedNonZero => "ExitedNonZero",
            Self::Signalled => "Signalled",
            Self::Trapped => "Trapped",
            Self::OutOfMemory => "OutOfMemory",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::DiskFull => "DiskFull",
            Self::CrashLoop => "CrashLoop",
            Self::ShimLost => "ShimLost",
            Self::NodeLost => "NodeLost",
            Self::Preempted => "Preempted",
            Self::Evicted => "Evicted",
            Self::Requested => "Requested",
            Self::Superseded => "Superseded",
        }
    }

    /// The reason of that name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn final_states_allow_no_report() {
        for state in UnitState::ALL {
            for next in UnitState::ALL {
                let allowed = state.allows_report(next);
                assert!(!(allowed && state.is_final()), "{state:?} -> {next:?}");
                assert!(
                    !(allowed
                        && matches!(
                            next,
                            UnitState::Pending | UnitState::Assigned | UnitState::Lost
                        ))
                );
            }
        }
        assert!(UnitState::Running.allows_report(UnitState::Backoff));
        assert!(UnitState::Assigned.allows_report(UnitState::Running));
        assert!(!UnitState::Stopping.allows_report(UnitState::Running));
        assert!(!UnitState::Pending.allows_report(UnitState::Running));
    }

    #[test]
    fn names_in_json_and_sql_are_the_same() {
        for state in UnitState::ALL {
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{}\"", state.as_str()));
            assert_eq!(UnitState::parse(state.as_str()), Some(state));
        }
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_string(&reason).unwrap(), format!("\"{}\"", reason.as_str()));
            assert_eq!(Reason::parse(reason.as_str()), Some(reason));
        }
    }
}
