//! What reconcilers have to look at: everything that changed since they last did, and what was due by now.
//!
//! So a pass costs what has changed, not what there is. Whatever a reconciler decides comes back as a change and puts its
//! subject on the agenda again; one that decided nothing and asked for no time is at rest.

use std::collections::{BTreeMap, BTreeSet};

use brig_api::{NamespacePath, NodeName, ResourceName, UnitId};

/// Something to look at. Reconcilers go in this order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Concern {
    /// A node: is it in touch, and what becomes of its units?
    Node(NodeName),
    /// A service: are its units those that it should have?
    Service(NamespacePath, ResourceName),
    /// A job: what is to be started next?
    Job(NamespacePath, ResourceName),
    /// A unit: does anybody still want it?
    Unit(UnitId),
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Agenda {
    changed: BTreeSet<Concern>,
    timers: BTreeSet<(i64, Concern)>,
    due: BTreeMap<Concern, i64>,
}

impl Agenda {
    /// Something about it changed, or may have.
    pub(crate) fn add(&mut self, concern: Concern) {
        self.changed.insert(concern);
    }

    /// Look at it again at that time, unless something happens before.
    pub(crate) fn remind(&mut self, concern: Concern, at_ms: i64) {
        self.forget(&concern);
        self.timers.insert((at_ms, concern.clone()));
        self.due.insert(concern, at_ms);
    }

    fn forget(&mut self, concern: &Concern) {
        if let Some((concern, at_ms)) = self.due.remove_entry(concern) {
            self.timers.remove(&(at_ms, concern));
        }
    }

    /// Everything to look at now; it is then no longer on the agenda.
    pub(crate) fn take(&mut self, now_ms: i64) -> BTreeSet<Concern> {
        let mut taken = std::mem::take(&mut self.changed);
        while let Some((at_ms, _)) = self.timers.first()
            && *at_ms <= now_ms
            && let Some((_, concern)) = self.timers.pop_first()
        {
            taken.insert(concern);
        }
        for concern in &taken {
            self.forget(concern);
        }
        taken
    }

    /// When the next reminder is due.
    pub(crate) fn next_ms(&self) -> Option<i64> {
        self.timers.first().map(|(at_ms, _)| *at_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_takes_the_reminder_with_it() {
        let concern = |text: &str| Concern::Node(NodeName::new(text).unwrap());
        let mut agenda = Agenda::default();
        agenda.remind(concern("a"), 10);
        agenda.remind(concern("b"), 5);
        agenda.remind(concern("a"), 20);
        assert_eq!(agenda.next_ms(), Some(5));
        agenda.add(concern("a"));
        assert_eq!(agenda.take(4).into_iter().collect::<Vec<_>>(), [concern("a")]);
        assert_eq!(agenda.take(5).into_iter().collect::<Vec<_>>(), [concern("b")]);
        assert_eq!(agenda.next_ms(), None);
    }
}
