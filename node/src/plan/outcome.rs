//! What becomes of a unit when an attempt is over: final, or again after a while.

use brig_api::ResourceName;
use brig_api::lifecycle::{Reason, UnitState};
use brig_api::unit_spec::{RestartPolicy, Task, UnitTemplate};
use brig_shim::exit::ExitRecord;

use super::{Fault, View, Wanted, has_failed};
use crate::record::{Ending, Phase, UnitRecord};

/// Wait before the second attempt, in milliseconds: a hiccup is over by then, a person hardly notices.
pub const BACKOFF_MS_FIRST: u64 = 250;
/// Longest wait between attempts, in milliseconds.
pub const BACKOFF_MS_MAX: u64 = 60_000;
/// A unit that ran for so long has recovered: its failures are counted from nothing again.
pub const STEADY_MS: i64 = 10 * 60 * 1_000;
/// From so many attempts in a row that ended soon on, it is called a crash loop.
pub const CRASH_LOOP_FAILURES: u32 = 3;

/// How long to wait after so many failures in a row (from 1).
#[must_use]
pub fn backoff_ms(failures: u32) -> u64 {
    let doublings = failures.saturating_sub(1).min(16);
    (BACKOFF_MS_FIRST << doublings).min(BACKOFF_MS_MAX)
}

/// How an attempt ended.
struct Outcome {
    reason: Option<Reason>,
    code: Option<i32>,
    message: Option<String>,
    has_failed: bool,
    finished_ms: i64,
}

/// Stopped on request.
pub(super) fn stopped(next: &mut UnitRecord, now_ms: i64, code: Option<i32>) {
    next.phase = Phase::Ended;
    next.report_with(|status| {
        status.state = UnitState::Stopped;
        status.reason = Some(Reason::Requested);
        status.message = None;
        status.exit_code = code;
        status.finished_ms = Some(now_ms);
        status.endpoints.clear();
    });
}

/// The preparation failed, no task was started.
pub(super) fn prepare_failed(
    next: &mut UnitRecord,
    policy: RestartPolicy,
    fault: &Fault,
    now_ms: i64,
) {
    // A registry or a disk that is back cures these; nothing has run yet, so that no policy speaks against it.
    let passes = matches!(fault.reason, Reason::PullFailed | Reason::DiskFull);
    let outcome = Outcome {
        reason: Some(fault.reason),
        code: None,
        message: Some(fault.message.clone()),
        has_failed: true,
        finished_ms: now_ms,
    };
    if passes || policy != RestartPolicy::Never {
        back_off(next, outcome, now_ms);
    } else {
        end(next, outcome);
    }
}

/// Every task is over: what becomes of the unit.
pub(super) fn conclude(next: &mut UnitRecord, view: &View<'_>, now_ms: i64) {
    match next.ending.clone() {
        None | Some(Ending::Requested) => {
            let task = decider(view.template, next);
            let code = task.and_then(|task| next.exits.get(&task)).map(|exit| exit.code);
            stopped(next, now_ms, code);
        }
        Some(Ending::Paused) => {
            next.phase = Phase::Backoff { until_ms: now_ms };
            next.report_with(|status| {
                status.state = UnitState::Backoff;
                status.reason = None;
                status.message =
                    Some("its node's agent was shut down; it runs again with it".to_owned());
                status.endpoints.clear();
            });
        }
        Some(Ending::ByItself { task }) => {
            let Some(outcome) = outcome(next, view, &task) else {
                return stopped(next, now_ms, None);
            };
            let policy_restarts = match view.template.restart {
                RestartPolicy::Always => true,
                RestartPolicy::OnFailure => outcome.has_failed,
                RestartPolicy::Never => false,
            };
            if policy_restarts && matches!(view.wanted, Wanted::Run | Wanted::Pause) {
                back_off(next, outcome, now_ms);
            } else {
                end(next, outcome);
            }
        }
    }
}

/// The task whose end decides about the attempt, if it is decided: the first that failed, else the last of those
/// that are no sidecars. A sidecar's failure after the end of those is of no matter.
pub(super) fn decider(template: &UnitTemplate, record: &UnitRecord) -> Option<ResourceName> {
    let exits = || {
        let exit_of = |task: &Task| record.exits.get(&task.name).cloned();
        template.tasks.iter().filter_map(move |task| Some((task, exit_of(task)?)))
    };
    let mains = template.tasks.iter().filter(|task| !task.sidecar);
    let have_mains_ended = mains.clone().all(|task| record.exits.contains_key(&task.name));
    let last = exits().filter(|(task, _)| !task.sidecar).max_by_key(|(_, exit)| exit.finished_ms);
    let end_ms = match &last {
        Some((_, exit)) if have_mains_ended => exit.finished_ms,
        _ => i64::MAX,
    };
    let failed = exits()
        .filter(|(_, exit)| has_failed(exit))
        .filter(|(task, exit)| !task.sidecar || exit.finished_ms < end_ms)
        .min_by_key(|(task, exit)| (exit.finished_ms, task.sidecar));
    let decider = failed.or_else(|| last.filter(|_| have_mains_ended));
    decider.map(|(task, _)| task.name.clone())
}

fn outcome(record: &UnitRecord, view: &View<'_>, task: &ResourceName) -> Option<Outcome> {
    let exit = record.exits.get(task)?;
    let is_only = view.template.tasks.len() == 1;
    let message =
        sentence(exit).map(|text| if is_only { text } else { format!("task `{task}`: {text}") });
    Some(Outcome {
        reason: exit.reason.or_else(|| (exit.code != 0).then_some(Reason::ExitedNonZero)),
        code: Some(exit.code),
        message,
        has_failed: has_failed(exit),
        finished_ms: exit.finished_ms,
    })
}

fn sentence(exit: &ExitRecord) -> Option<String> {
    match &exit.message {
        Some(message) => Some(message.clone()),
        None if exit.code != 0 => Some(format!("ended with exit code {}", exit.code)),
        None => None,
    }
}

fn end(next: &mut UnitRecord, outcome: Outcome) {
    next.phase = Phase::Ended;
    next.report_with(|status| {
        status.state = if outcome.has_failed { UnitState::Failed } else { UnitState::Succeeded };
        status.reason = outcome.reason;
        status.message = outcome.message;
        status.exit_code = outcome.code;
        status.finished_ms = Some(outcome.finished_ms);
        status.endpoints.clear();
    });
}

fn back_off(next: &mut UnitRecord, outcome: Outcome, now_ms: i64) {
    let ran_ms = next.running_since_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms));
    if ran_ms >= STEADY_MS {
        next.failures = 0;
    }
    next.failures = next.failures.saturating_add(1);
    let wait_ms = backoff_ms(next.failures);
    let until_ms = now_ms.saturating_add(i64::try_from(wait_ms).unwrap_or(i64::MAX));
    next.phase = Phase::Backoff { until_ms };
    let cause = outcome.message.unwrap_or_else(|| "ended by itself".to_owned());
    // A fault of the set-up says more by its own name.
    let is_crash = outcome.has_failed && !outcome.reason.is_some_and(is_setup);
    let (reason, message) = if is_crash && next.failures >= CRASH_LOOP_FAILURES {
        let message =
            format!("{cause}; {} times in a row, tried again after {wait_ms} ms", next.failures);
        (Some(Reason::CrashLoop), message)
    } else {
        (outcome.reason, format!("{cause}; tried again after {wait_ms} ms"))
    };
    next.report_with(|status| {
        status.state = UnitState::Backoff;
        status.reason = reason;
        status.message = Some(message);
        status.exit_code = outcome.code;
        status.endpoints.clear();
    });
}

fn is_setup(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::PullFailed
            | Reason::InvalidArtifact
            | Reason::ImportNotGranted
            | Reason::MountRefused
            | Reason::LimitTooSmall
            | Reason::CreateFailed
            | Reason::DiskFull
    )
}
