//! Tells the control plane how units are, until it has acknowledged it.

use std::io;

use brig_api::UnitId;
use brig_api::lifecycle::{Reason, UnitState};
use brig_api::session::{FromNode, StatusReport};

use super::{Agent, Unit};
use crate::clock::now_ms;

/// Reports in one message.
const REPORTS_MAX: usize = 256;
/// Wait before something is tried again that could not be written.
const DISK_RETRY_MS: i64 = 1_000;

impl Agent {
    /// Sends every status that no server has acknowledged.
    pub(super) fn send_unacknowledged(&self) {
        let reports: Vec<_> = self
            .units
            .values()
            .filter(|unit| unit.record.status.sequence > unit.acknowledged)
            .map(Unit::status_report)
            .collect();
        for some in reports.chunks(REPORTS_MAX) {
            self.tell(FromNode::Statuses { reports: some.to_vec() });
        }
    }

    /// Sends a unit's status, if there is a session: else it is sent when there is one.
    pub(super) fn send_status(&self, id: &UnitId) {
        if let Some(unit) = self.units.get(id)
            && unit.record.status.sequence > unit.acknowledged
        {
            self.tell(FromNode::Statuses { reports: vec![unit.status_report()] });
        }
    }

    pub(super) fn tell(&self, message: FromNode) {
        if let Some(session) = &self.session {
            // Full or closed: what matters is sent again.
            let _ = session.try_send(message);
        }
    }

    /// Something about a unit can't be written: says so, and tries again until it can.
    pub(super) fn disk_failed(&mut self, id: &UnitId, error: &io::Error) {
        tracing::warn!(unit.id = %id, error = %error, "can't write a unit's state");
        let message = format!(
            "the node can't write to `{}`: {error}; it goes on by itself once it can (free space there)",
            self.disk.root().display()
        );
        if let Some(unit) = self.units.get_mut(id) {
            // A unit that could not even be noted down: a node reports no earlier state than this one.
            let state = match unit.record.status.state {
                UnitState::Pending | UnitState::Assigned => UnitState::Preparing,
                state => state,
            };
            unit.record.report(state, Some(Reason::DiskFull), Some(message));
            unit.number_report();
            self.send_status(id);
        }
        self.wakes.insert((now_ms().saturating_add(DISK_RETRY_MS), id.clone()));
    }
}

impl Unit {
    fn status_report(&self) -> StatusReport {
        StatusReport { unit: self.assignment.unit.clone(), status: self.record.status.clone() }
    }

    /// Lifts the newest report's number above what an agent before this one may have used.
    pub(super) fn number_report(&mut self) {
        let status = &mut self.record.status;
        if status.sequence <= self.sequence_floor {
            status.sequence = self.sequence_floor.saturating_add(1);
        }
    }
}
