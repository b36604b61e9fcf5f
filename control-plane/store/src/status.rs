//! What nodes report about their units, taken over exactly once.

use std::collections::{BTreeSet, HashMap};

use brig_api::change::EventLevel;
use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::{Unit, UnitStatus};
use brig_api::session::StatusReport;
use brig_api::usage::Usage;
use brig_api::{NodeName, Object, UnitId};

use crate::checkpoint::checkpoints_done;
use crate::error::StoreError;
use crate::object::unit_key;
use crate::store::Store;
use crate::table::unit::{units_by_ids, units_update};
use crate::usage::use_up;
use crate::write::{PendingEvent, Write, in_write};

/// Longest message that is kept of a report; a node's logs say the rest.
const MESSAGE_CHARS_MAX: usize = 2_000;
/// Most endpoints that are kept of a report: every port of every task, and far more.
const ENDPOINTS_MAX: usize = 256;

impl Store {
    /// Takes over the reports of a node in one transaction; gives those that it need not repeat (all of them): a
    /// report that is older than what is known, not possible in the unit's state, about a unit that is gone or on
    /// another node changes nothing and is acknowledged too. What the units used is taken over with them.
    ///
    /// # Errors
    /// When the database fails; then none is acknowledged.
    pub async fn statuses_report(
        &self,
        node: &NodeName,
        reports: &[StatusReport],
        now_ms: i64,
    ) -> Result<Vec<(UnitId, u64)>, StoreError> {
        in_write!(self, now_ms, |tx| take_over(&mut tx, node, reports).await)?;
        Ok(reports.iter().map(|report| (report.unit.clone(), report.status.sequence)).collect())
    }
}

async fn take_over(
    tx: &mut Write,
    node: &NodeName,
    reports: &[StatusReport],
) -> Result<(), StoreError> {
    let ids: BTreeSet<&UnitId> = reports.iter().map(|report| &report.unit).collect();
    let units = units_by_ids(&mut tx.db, &ids.into_iter().collect::<Vec<_>>()).await?;
    let mut units: HashMap<UnitId, Unit> =
        units.into_iter().map(|unit| (unit.id.clone(), unit)).collect();
    let ours = reports.iter().filter_map(|report| {
        let unit = units.get(&report.unit).filter(|unit| unit.node.as_ref() == Some(node))?;
        Some((&unit.id, &unit.namespace, report.usage))
    });
    let used = ours.filter(|(.., usage)| *usage != Usage::default()).collect();
    use_up(tx, used).await?;
    let mut changed: Vec<&UnitId> = Vec::new();
    for report in reports {
        let Some(unit) = units.get_mut(&report.unit) else {
            continue;
        };
        let is_ours = unit.node.as_ref() == Some(node);
        let is_newer = report.status.sequence > unit.status.sequence;
        if !is_ours || !is_newer || !unit.status.state.allows_report(report.status.state) {
            continue;
        }
        let before = std::mem::replace(&mut unit.status, bounded(&report.status));
        if unit.meta.revision != tx.revision() {
            unit.meta.revision = tx.revision();
            changed.push(&report.unit);
        }
        if let Some((level, reason, message)) = event_of(&before, &unit.status) {
            tx.happened([PendingEvent { level, about: unit_key(unit), reason, message }]);
        }
    }
    let rows: Vec<&Unit> = changed.iter().filter_map(|id| units.get(*id)).collect();
    units_update(&mut tx.db, &rows).await?;
    let has_succeeded = |unit: &&&Unit| unit.status.state == UnitState::Succeeded;
    let done: Vec<&Unit> = rows.iter().filter(has_succeeded).copied().collect();
    checkpoints_done(tx, &done).await?;
    for id in changed {
        if let Some(unit) = units.remove(id) {
            tx.changed(Object::Unit(Box::new(unit)));
        }
    }
    Ok(())
}

/// The status as it is kept: nodes are not trusted with our disk.
fn bounded(status: &UnitStatus) -> UnitStatus {
    let mut status = status.clone();
    status.endpoints.truncate(ENDPOINTS_MAX);
    if let Some(message) = &mut status.message {
        if message.contains('\0') {
            *message = message.replace('\0', "\u{fffd}");
        }
        if let Some((end, _)) = message.char_indices().nth(MESSAGE_CHARS_MAX) {
            message.truncate(end);
            message.push('…');
        }
    }
    status
}

/// What people are told about the step from one status to the next, if anything.
fn event_of(before: &UnitStatus, after: &UnitStatus) -> Option<(EventLevel, &'static str, String)> {
    use EventLevel::{Normal, Warning};
    let has_restarted = after.restarts > before.restarts;
    if before.state == after.state && !has_restarted {
        return None;
    }
    let fault = after.reason.map_or("Failed", Reason::as_str);
    let said = |otherwise: &str| match (&after.message, after.exit_code) {
        (Some(message), _) => message.clone(),
        (None, Some(code)) => format!("{otherwise} (code {code})"),
        (None, None) => otherwise.to_owned(),
    };
    match after.state {
        UnitState::Running if has_restarted => {
            Some((Normal, "Restarted", format!("runs again (restart {})", after.restarts)))
        }
        UnitState::Running => Some((Normal, "Started", "runs".to_owned())),
        UnitState::Preparing => Some((Normal, "Preparing", "is being set up".to_owned())),
        UnitState::Backoff => Some((Warning, fault, said("a task ended and will be restarted"))),
        UnitState::Stopping => Some((Normal, "Stopping", "is stopping".to_owned())),
        UnitState::Succeeded => Some((Normal, "Succeeded", said("ended"))),
        UnitState::Failed => Some((Warning, fault, said("failed"))),
        UnitState::Stopped => Some((Normal, "Stopped", said("was stopped"))),
        // No node can report these.
        UnitState::Pending | UnitState::Assigned | UnitState::Lost => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: UnitState) -> UnitStatus {
        UnitStatus { state, ..UnitStatus::default() }
    }

    #[test]
    fn a_fault_is_named_by_its_reason() {
        let failed = UnitStatus {
            reason: Some(Reason::OutOfMemory),
            exit_code: Some(137),
            ..status(UnitState::Failed)
        };
        let (level, reason, message) = event_of(&status(UnitState::Running), &failed).unwrap();
        assert_eq!((level, reason), (EventLevel::Warning, "OutOfMemory"));
        assert!(message.contains("137"), "{message}");
    }

    #[test]
    fn only_a_step_is_an_event() {
        let running = status(UnitState::Running);
        assert_eq!(event_of(&running, &running), None);
        let again = UnitStatus { restarts: 1, ..running.clone() };
        assert_eq!(event_of(&running, &again).unwrap().1, "Restarted");
        assert_eq!(event_of(&status(UnitState::Assigned), &running).unwrap().1, "Started");
    }

    #[test]
    fn what_a_node_says_is_cut() {
        let mut hostile = status(UnitState::Failed);
        hostile.message = Some("\0é".repeat(100_000));
        let kept = bounded(&hostile).message.unwrap();
        assert!(kept.chars().count() == MESSAGE_CHARS_MAX + 1 && !kept.contains('\0'));
    }
}
