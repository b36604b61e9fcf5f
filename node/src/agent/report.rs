//! Tells the control plane how units are, until it has acknowledged it.

use std::io;

use brig_api::UnitId;
use brig_api::lifecycle::{Reason, UnitState};
use brig_api::session::{FromNode, StatusReport};
use tokio::time::Instant;

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

    /// Sends a unit's newest status; but not at once that it is being prepared: see [`super::PREPARING_UNTOLD`].
    pub(super) fn report(&mut self, id: &UnitId) {
        if self.units.get(id).is_some_and(Unit::is_preparing) {
            self.untold.insert(id.clone());
            self.untold_since.get_or_insert_with(Instant::now);
        } else {
            self.send_status(id);
        }
    }

    /// Sends the status of units whose preparing takes longer.
    pub(super) fn tell_preparing(&mut self) {
        self.untold_since = None;
        for id in std::mem::take(&mut self.untold) {
            if self.units.get(&id).is_some_and(Unit::is_preparing) {
                self.send_status(&id);
            }
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
    fn is_preparing(&self) -> bool {
        self.record.status.state == UnitState::Preparing
    }

    fn status_report(&self) -> StatusReport {
        let (unit, status) = (self.assignment.unit.clone(), self.record.status.clone());
        StatusReport { unit, status, usage: self.usage() }
    }

    /// Lifts the newest report's number above what an agent before this one may have used.
    pub(super) fn number_report(&mut self) {
        let status = &mut self.record.status;
        if status.sequence <= self.sequence_floor {
            status.sequence = self.sequence_floor.saturating_add(1);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use brig_api::session::FromNode;
    use tokio::sync::mpsc;

    use super::super::{Parts, Unit};
    use super::*;
    use crate::disk::Disk;
    use crate::prepare::Preparer;
    use crate::record::UnitRecord;
    use crate::shims::{Programs, Shims};
    use crate::tests::fake_server::assignment;
    use crate::tests::lifecycle::Known;

    pub(crate) fn agent(disk: Disk) -> Agent {
        let (events, _) = mpsc::channel(8);
        let (disk, nowhere) = (Arc::new(disk), PathBuf::from("/nonexistent"));
        let programs = Programs { wasm: nowhere.clone(), oci: nowhere, holds_workers: false };
        let address = "127.0.0.1".parse().unwrap();
        let compiled = crate::compiled::CompiledCode::new("/none".into(), "/none".into());
        Agent::new(Parts {
            shims: Shims::new(disk.clone(), programs, events.clone()),
            preparer: Preparer {
                disk: disk.clone(),
                programs: Arc::new(Known),
                compiled: compiled.clone(),
                held: crate::held::HeldArtifacts::open(disk.root(), compiled),
                host_paths: Vec::new(),
                address,
                architecture: "amd64",
            },
            disk,
            events,
            token: None,
            address,
            boot_id: String::new(),
        })
    }

    #[tokio::test]
    async fn only_a_preparing_that_takes_long_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, _lock) = Disk::open(dir.path()).unwrap();
        let mut agent = agent(disk);
        let (session, mut told) = mpsc::channel(8);
        agent.session = Some(session);
        let mut told = || match told.try_recv() {
            Ok(FromNode::Statuses { reports }) => Some(reports[0].status.state),
            _ => None,
        };
        let id = UnitId::new("u1").unwrap();
        agent
            .units
            .insert(id.clone(), Unit::new(assignment("u1", "never"), UnitRecord::assigned()));
        let become_ = |agent: &mut Agent, state| {
            agent.units.get_mut(&id).unwrap().record.report(state, None, None);
            agent.report(&id);
        };
        become_(&mut agent, UnitState::Preparing);
        assert_eq!(told(), None);
        become_(&mut agent, UnitState::Running);
        assert_eq!(told(), Some(UnitState::Running));
        agent.tell_preparing();
        assert_eq!(told(), None, "it is over");
        become_(&mut agent, UnitState::Preparing);
        assert_eq!(told(), None);
        agent.tell_preparing();
        assert_eq!((told(), told()), (Some(UnitState::Preparing), None));
        assert!(agent.untold.is_empty() && agent.untold_since.is_none());
    }
}
