//! Takes in what the control plane wants.

use std::collections::BTreeSet;

use brig_api::UnitId;
use brig_api::session::{Assignment, ToNode};

use super::{Agent, Unit};
use crate::clock::now_ms;
use crate::record::UnitRecord;

impl Agent {
    pub(super) fn hear_server(&mut self, message: ToNode, server: &str) {
        match message {
            ToNode::Welcome { .. } => {}
            ToNode::Refused { problem } => {
                tracing::warn!(problem = %problem, "the server refuses this node");
            }
            ToNode::Assignments { units, others } => self.assign_all(units, others),
            ToNode::Assign { units } => {
                for assignment in units {
                    self.assign(assignment);
                }
            }
            ToNode::Withdraw { units } => {
                for unit in units {
                    self.withdraw(&unit);
                }
            }
            ToNode::Acknowledge { reports } => self.acknowledge(&reports),
            ToNode::Checkpoint { unit, task, checkpoint } => {
                self.take_checkpoint(unit, task, checkpoint);
            }
            ToNode::CheckpointsKept { reports } => self.checkpoints_kept(&reports),
            ToNode::OpenStream { stream, unit, request } => {
                self.open_stream(server, stream, &unit, request);
            }
        }
    }

    /// The complete list: what is not in it is not this node's.
    fn assign_all(&mut self, assignments: Vec<Assignment>, others: Vec<UnitId>) {
        let mut listed: BTreeSet<_> = others.into_iter().collect();
        listed.extend(assignments.iter().map(|one| one.unit.clone()));
        let withdrawn: Vec<_> =
            self.units.keys().filter(|unit| !listed.contains(*unit)).cloned().collect();
        for unit in withdrawn {
            self.withdraw(&unit);
        }
        for assignment in assignments {
            self.assign(assignment);
        }
    }

    fn assign(&mut self, assignment: Assignment) {
        let id = assignment.unit.clone();
        match self.units.get_mut(&id) {
            Some(unit) if assignment.placed_by < unit.assignment.placed_by => {
                tracing::warn!(
                    unit.id = %id, plan.sequence = %assignment.placed_by,
                    newest = %unit.assignment.placed_by, "refused the assignment of an old plan"
                );
                return;
            }
            Some(unit) => {
                unit.is_withdrawn = false;
                unit.has_secrets = true;
                if unit.assignment != assignment {
                    unit.assignment = assignment;
                    unit.is_assignment_written = false;
                }
            }
            None => {
                let mut unit = Unit::new(assignment, UnitRecord::assigned());
                unit.has_secrets = true;
                if self.damaged.remove(&id) {
                    unit.sequence_floor = u64::try_from(now_ms()).unwrap_or(0);
                }
                self.units.insert(id.clone(), unit);
            }
        }
        if self.write_assignment(&id) {
            self.decide(&id);
        }
    }

    fn withdraw(&mut self, id: &UnitId) {
        if let Some(unit) = self.units.get_mut(id) {
            unit.is_withdrawn = true;
            self.decide(id);
        }
    }

    fn acknowledge(&mut self, reports: &[(UnitId, u64)]) {
        for (id, sequence) in reports {
            if let Some(unit) = self.units.get_mut(id) {
                unit.acknowledged = unit.acknowledged.max(*sequence);
            }
        }
    }
}
