//! Jobs: each index runs until it succeeds, as many at a time as the job allows.
//!
//! ```text
//!   index:  (no unit) ──▶ attempt 0 ──▶ Succeeded                         job: Succeeded when every index has
//!                             │ Failed ──▶ attempt 1 … while retries last ──▶ Failed when they are used up
//!                             └ Lost, Stopped ──▶ attempt n + 1, without using up a retry (to a limit)
//! ```
//!
//! The units of a job are its memory: they stay listed until the job is deleted.

use std::collections::BTreeMap;
use std::sync::Arc;

use brig_api::lifecycle::{Reason, UnitState};
use brig_api::object::{Desired, Job, JobState, Owner, Unit};
use brig_api::{Kind, NamespacePath, ResourceName};

use super::{LOSSES_FORGIVEN, RETRY_AFTER_MS, RETRY_DOUBLINGS_MAX};
use crate::Decision;
use crate::draft::{Draft, NewUnit};

/// Starts, stops and counts the units of a job.
pub(super) fn reconcile(draft: &mut Draft<'_>, namespace: &NamespacePath, name: &ResourceName) {
    let objects = draft.objects;
    let Some(job) = objects.jobs.get(namespace).and_then(|names| names.get(name)) else { return };
    let units = draft.units_of(namespace, Kind::Job, name);
    if job.is_deleting {
        delete(draft, job, &units);
    } else {
        advance(draft, job, &units);
    }
}

fn delete(draft: &mut Draft<'_>, job: &Job, units: &[&Arc<Unit>]) {
    for unit in units {
        draft.stop(unit, Desired::Remove, Reason::Requested);
    }
    if units.is_empty() {
        let (namespace, name) = (job.spec.namespace.clone(), job.spec.name.clone());
        draft.decide(Decision::JobRemove { namespace, name });
    }
}

/// What is known about one index.
#[derive(Default)]
struct Attempts {
    is_done: bool,
    is_live: bool,
    failed: u32,
    interrupted: u32,
    /// The newest attempt, and when it was created.
    last: Option<(u32, i64)>,
}

impl Attempts {
    fn count(&mut self, unit: &Unit, attempt: u32) {
        match unit.status.state {
            UnitState::Succeeded => self.is_done = true,
            UnitState::Failed => self.failed += 1,
            UnitState::Lost | UnitState::Stopped => self.interrupted += 1,
            _ => self.is_live = true,
        }
        self.last = self.last.max(Some((attempt, unit.meta.created_ms)));
    }

    /// Attempts that used up a retry.
    fn used(&self) -> u32 {
        self.failed.saturating_add(self.interrupted.saturating_sub(LOSSES_FORGIVEN))
    }
}

fn advance(draft: &mut Draft<'_>, job: &Job, units: &[&Arc<Unit>]) {
    let mut indices: BTreeMap<u32, Attempts> = BTreeMap::new();
    for unit in units {
        if let Some(Owner::Job { index, attempt, .. }) = &unit.owner
            && *index < job.spec.completions
        {
            indices.entry(*index).or_default().count(unit, *attempt);
        }
    }
    let count = |matches: fn(&Attempts) -> bool| {
        u32::try_from(indices.values().filter(|attempts| matches(attempts)).count())
            .unwrap_or(u32::MAX)
    };
    let succeeded = count(|attempts| attempts.is_done);
    let failed = indices.values().fold(0u32, |sum, index| sum.saturating_add(index.failed));
    let has_given_up = indices
        .values()
        .any(|index| !index.is_done && !index.is_live && index.used() > job.spec.retries);
    let state = match job.state {
        JobState::Active if succeeded >= job.spec.completions => JobState::Succeeded,
        JobState::Active if has_given_up => JobState::Failed,
        state => state,
    };
    if (state, succeeded, failed) != (job.state, job.succeeded, job.failed) {
        let (namespace, name) = (job.spec.namespace.clone(), job.spec.name.clone());
        draft.decide(Decision::JobProgress { namespace, name, state, succeeded, failed });
    }
    if state.is_final() {
        let reason =
            if state == JobState::Stopped { Reason::Requested } else { Reason::Superseded };
        for unit in units.iter().filter(|unit| !unit.status.state.is_final()) {
            draft.stop(unit, Desired::Stop, reason);
        }
    } else {
        let live = count(|attempts| attempts.is_live && !attempts.is_done);
        start(draft, job, &indices, job.spec.parallelism.saturating_sub(live));
    }
}

/// Starts up to `count` attempts, lowest index first.
fn start(draft: &mut Draft<'_>, job: &Job, indices: &BTreeMap<u32, Attempts>, mut count: u32) {
    let (labels, template) = (Arc::new(job.spec.labels.clone()), Arc::new(job.spec.unit.clone()));
    let retry_after_ms = job.spec.retry_after_ms.and_then(|after_ms| i64::try_from(after_ms).ok());
    let retry_after_ms = retry_after_ms.unwrap_or(RETRY_AFTER_MS);
    for index in 0..job.spec.completions {
        if count == 0 {
            break;
        }
        let attempts = indices.get(&index);
        if attempts.is_some_and(|attempts| attempts.is_done || attempts.is_live) {
            continue;
        }
        let attempt = match attempts.and_then(|attempts| attempts.last) {
            None => 0,
            Some((last, created_ms)) => {
                let doublings = last.min(RETRY_DOUBLINGS_MAX);
                if !draft.is_past(created_ms, retry_after_ms.saturating_mul(1 << doublings)) {
                    continue;
                }
                last.saturating_add(1)
            }
        };
        let owner = Owner::Job { name: job.spec.name.clone(), index, attempt };
        let is_made = draft.create(NewUnit {
            namespace: &job.spec.namespace,
            owner,
            labels: &labels,
            template: &template,
        });
        if !is_made {
            break;
        }
        count -= 1;
    }
}
