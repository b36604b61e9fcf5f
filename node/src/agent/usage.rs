//! Asks shims what tasks use, and tells the control plane what units have used.
//!
//! What is told only grows, so a message that is lost or told twice does no harm; the last word goes with the status in
//! which a unit ends.

use std::time::Duration;

use brig_api::session::FromNode;
use brig_api::usage::{Usage, UsageReport};
use brig_shim::message::{Reply, Request, TaskKey, TaskUsage, USAGES_MAX};

use super::{Agent, Unit};
use crate::clock::now_ms;
use crate::event::Event;
use crate::plan::TaskSeen;
use crate::shims::{ShimId, Shims};

/// How often shims are asked.
pub(super) const METER_EVERY: Duration = Duration::from_secs(60);
/// A unit that has used less processor time than this since it was told of is told of seldom.
const CPU_NS_TOLD: u64 = 1_000_000;
/// How often it is told of a unit that does nothing but hold its memory, in milliseconds.
const IDLE_TOLD_MS: i64 = 300_000;
/// Tasks of one shim that are listened to.
const TASKS_MAX: usize = 20_000;
/// Units in one message.
const UNITS_MAX: usize = 1_000;

/// What the agent knows of a unit's usage besides its record.
#[derive(Debug, Default)]
pub(super) struct Metered {
    /// Of tasks that run, as last heard.
    pub(super) tasks: std::collections::BTreeMap<brig_api::ResourceName, Usage>,
    told: Usage,
    told_ms: i64,
}

impl Agent {
    /// Tells what is known, and asks every shim for more.
    pub(super) fn meter(&mut self) {
        self.tell_usage(now_ms());
        let mut shims: Vec<_> = self.units.values().flat_map(Unit::live_shims).collect();
        shims.sort();
        shims.dedup();
        for shim in shims {
            let (all, events) = (self.shims.clone(), self.events.clone());
            tokio::spawn(async move {
                let usages = ask(&all, &shim).await;
                if !usages.is_empty() {
                    // Nobody listens any more: the agent ends.
                    let _ = events.send(Event::Used(shim, usages)).await;
                }
            });
        }
    }

    pub(super) fn hear_used(&mut self, shim: &ShimId, usages: Vec<(TaskKey, TaskUsage)>) {
        for (key, usage) in usages {
            if self.is_of(shim, &key)
                && let Some((unit, task)) = self.current(&key)
                && let Some(unit) = self.units.get_mut(&unit)
            {
                unit.metered.tasks.insert(task, usage.used);
            }
        }
    }

    fn tell_usage(&mut self, now_ms: i64) {
        if self.session.is_none() {
            return;
        }
        let mut reports = Vec::new();
        for (id, unit) in &mut self.units {
            let usage = unit.usage();
            let Metered { told, told_ms, .. } = &mut unit.metered;
            let since = usage.since(*told);
            let is_time = now_ms.saturating_sub(*told_ms) >= IDLE_TOLD_MS;
            if usage != *told && (since.cpu_ns >= CPU_NS_TOLD || is_time) {
                (*told, *told_ms) = (usage, now_ms);
                reports.push(UsageReport { unit: id.clone(), usage });
            }
        }
        for units in reports.chunks(UNITS_MAX) {
            self.tell(FromNode::Usage { units: units.to_vec() });
        }
    }
}

impl Unit {
    /// All attempts, as far as is known.
    pub(super) fn usage(&self) -> Usage {
        let of_task = |task: &brig_api::unit_spec::Task| {
            let exit = self.record.exits.get(&task.name).map(|exit| exit.usage);
            exit.or_else(|| self.metered.tasks.get(&task.name).copied()).unwrap_or_default()
        };
        let tasks = self.assignment.template.tasks.iter().map(of_task);
        self.record.used.followed_by(tasks.fold(Usage::default(), Usage::beside))
    }

    /// The shims that its tasks are in.
    fn live_shims(&self) -> Vec<ShimId> {
        let live = self.tasks.iter().filter(|(_, seen)| matches!(seen, TaskSeen::Running { .. }));
        live.map(|(task, _)| self.shim_of(&self.key(task))).collect()
    }
}

/// What all tasks of a shim use; nothing when it is not there, or as far as it answered.
async fn ask(shims: &Shims, shim: &ShimId) -> Vec<(TaskKey, TaskUsage)> {
    let mut all = Vec::new();
    while let Ok(client) = shims.client_if_there(shim).await {
        let after = all.last().map(|(key, _): &(TaskKey, TaskUsage)| key.clone());
        match client.request(Request::Usage { after }).await {
            Ok(Reply::Usage { tasks: some }) => {
                let is_last = some.len() < USAGES_MAX;
                all.extend(some);
                if is_last || all.len() >= TASKS_MAX {
                    break;
                }
            }
            Ok(other) => {
                tracing::warn!(shim = ?shim, answer = ?other, "a shim did not say what its tasks use");
                break;
            }
            // It is looked after elsewhere.
            Err(_) => break,
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use brig_api::UnitId;
    use brig_shim::exit::ExitRecord;
    use tokio::sync::mpsc;

    use super::*;
    use crate::record::{Phase, UnitRecord};
    use crate::tests::fake_server::assignment;

    fn used(cpu_ns: u64) -> Usage {
        Usage { cpu_ns, ..Usage::default() }
    }

    #[tokio::test]
    async fn a_unit_is_told_of_when_it_has_used_something_and_all_its_attempts_count() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, _lock) = crate::disk::Disk::open(dir.path()).unwrap();
        let mut agent = super::super::report::tests::agent(disk);
        let (session, mut messages) = mpsc::channel(8);
        agent.session = Some(session);
        let mut told = || match messages.try_recv() {
            Ok(FromNode::Usage { units }) => Some(units[0].usage.cpu_ns),
            _ => None,
        };
        let id = UnitId::new("u1").unwrap();
        let record = UnitRecord { phase: Phase::Started, ..UnitRecord::assigned() };
        agent.units.insert(id.clone(), Unit::new(assignment("u1", "never"), record));
        let task = agent.units[&id].assignment.template.tasks[0].name.clone();
        let key = agent.units[&id].key(&task);
        let shim = agent.units[&id].shim_of(&key);
        let heard = |cpu_ns| vec![(key.clone(), TaskUsage { used: used(cpu_ns), memory_bytes: 1 })];

        agent.tell_usage(IDLE_TOLD_MS);
        assert_eq!(told(), None, "nothing was used");
        agent.hear_used(&shim, heard(CPU_NS_TOLD));
        agent.tell_usage(1);
        assert_eq!(told(), Some(CPU_NS_TOLD));
        agent.hear_used(&shim, heard(CPU_NS_TOLD + 1));
        agent.tell_usage(2);
        assert_eq!(told(), None, "too little to be told at once");
        agent.tell_usage(1 + IDLE_TOLD_MS);
        assert_eq!(told(), Some(CPU_NS_TOLD + 1));

        // The task's shim dies: what was heard last is what it used. The next attempt comes on top of it.
        let mut next = agent.units[&id].record.clone();
        let lost = ExitRecord {
            code: 137,
            reason: None,
            message: None,
            finished_ms: 0,
            usage: Usage::default(),
        };
        next.exits.insert(task.clone(), lost);
        assert!(agent.record(&id, next.clone()));
        let recorded = agent.units[&id].record.clone();
        assert_eq!(recorded.exits[&task].usage, used(CPU_NS_TOLD + 1));
        let again = UnitRecord {
            run: 1,
            used: recorded.used_by_exits(),
            exits: Default::default(),
            ..recorded
        };
        assert!(agent.record(&id, again));
        let key = agent.units[&id].key(&task);
        agent.hear_used(
            &shim,
            vec![(key, TaskUsage { used: used(5 * CPU_NS_TOLD), memory_bytes: 1 })],
        );
        agent.tell_usage(3 + IDLE_TOLD_MS);
        assert_eq!(told(), Some(6 * CPU_NS_TOLD + 1));
    }
}
