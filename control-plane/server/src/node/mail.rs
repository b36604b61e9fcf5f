//! The mail of nodes: one task follows the change feed, and puts what concerns a node into that node's box. So a
//! change wakes the session of the node that it is about, and none of the others.
//!
//! **Invariant:** a session gets every change, after the moment at which its box was opened, of the units that are (or
//! were) on its node, in order; a box that is full is closed, and its node comes back for the whole.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use brig_api::change::Change;
use brig_api::object::{Object, ObjectKey, Unit};
use brig_api::{Kind, NamespacePath, NodeName, Revision};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::feed::{Batch, Feed, FeedError};
use crate::limits::{FEED_PAUSE, MAILBOX_MAX};
use crate::problem::chain;

/// What concerns one node in one revision.
#[derive(Debug, Clone)]
pub(crate) struct Letter {
    batch: Arc<Batch>,
    places: Vec<usize>,
}

impl Letter {
    /// Which transaction.
    pub(crate) fn revision(&self) -> Revision {
        self.batch.revision
    }

    /// Its changes, in order.
    pub(crate) fn changes(&self) -> impl Iterator<Item = &Change> {
        self.places.iter().filter_map(|place| self.batch.changes.get(*place))
    }
}

/// All boxes.
#[derive(Debug)]
pub(crate) struct Mail {
    office: Mutex<Office>,
    position: watch::Sender<Revision>,
}

#[derive(Debug, Default)]
struct Office {
    boxes: HashMap<NodeName, Mailbox>,
    /// Where the units are that some node was told of: a unit that is removed does not say it any more.
    places: HashMap<NamespacePath, HashMap<String, NodeName>>,
}

#[derive(Debug)]
struct Mailbox {
    letters: mpsc::Sender<Letter>,
    /// The node's units are among `places`. Until then it gets every removal of a unit that nobody knows.
    is_known: bool,
}

impl Mail {
    pub(crate) fn new(position: Revision) -> Self {
        Self { office: Mutex::default(), position: watch::Sender::new(position) }
    }

    fn office(&self) -> MutexGuard<'_, Office> {
        self.office.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node's letters from now on, in place of a box that it had before.
    pub(crate) fn open(&self, node: &NodeName) -> mpsc::Receiver<Letter> {
        let (letters, receiver) = mpsc::channel(MAILBOX_MAX);
        self.office().boxes.insert(node.clone(), Mailbox { letters, is_known: false });
        receiver
    }

    /// The node was told of these units: what becomes of them concerns it.
    pub(crate) fn told<'a>(&self, node: &NodeName, units: impl Iterator<Item = &'a Unit>) {
        let mut office = self.office();
        for unit in units {
            office.place(&unit.namespace, unit.name.as_str(), node);
        }
        if let Some(mailbox) = office.boxes.get_mut(node) {
            mailbox.is_known = true;
        }
    }

    /// Waits until everything up to that revision is in the boxes; gives the revision up to which everything is.
    pub(crate) async fn delivered(&self, revision: Revision) -> Revision {
        let mut position = self.position.subscribe();
        let reached = position.wait_for(|position| *position >= revision).await;
        // The sender is ours, so there is always one.
        reached.map_or(revision, |position| *position)
    }

    /// Delivers until the server stops.
    pub(crate) async fn deliver(&self, feed: &Feed, stop: CancellationToken) {
        let work = async {
            loop {
                let from = *self.position.borrow();
                let error = match self.follow(feed, from).await {
                    FeedError::Stopped => return,
                    FeedError::Store(error) => error,
                };
                tracing::warn!(error = %chain(&error), "mail for nodes is interrupted: they come back for it");
                tokio::time::sleep(FEED_PAUSE).await;
                // First the position, then the boxes: one that is opened in between is closed for nothing, no more.
                self.position.send_replace(feed.position());
                *self.office() = Office::default();
            }
        };
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    }

    async fn follow(&self, feed: &Feed, from: Revision) -> FeedError {
        let mut follower = feed.follow(from);
        loop {
            match follower.next().await {
                Ok(batch) => self.sort(&batch),
                Err(error) => return error,
            }
        }
    }

    fn sort(&self, batch: &Arc<Batch>) {
        let mut office = self.office();
        let mut bags: HashMap<NodeName, Vec<usize>> = HashMap::new();
        for (place, change) in batch.changes.iter().enumerate() {
            if change.key.kind == Kind::Unit {
                for node in office.concerned(change) {
                    bags.entry(node).or_default().push(place);
                }
            }
        }
        for (node, places) in bags {
            let letter = Letter { batch: Arc::clone(batch), places };
            let is_taken = office.boxes.get(&node).map(|mailbox| mailbox.letters.try_send(letter));
            if is_taken.is_some_and(|taken| taken.is_err()) {
                office.boxes.remove(&node);
            }
        }
        drop(office);
        self.position.send_replace(batch.revision);
    }
}

impl Office {
    fn place(
        &mut self,
        namespace: &NamespacePath,
        name: &str,
        node: &NodeName,
    ) -> Option<NodeName> {
        match self.places.get_mut(namespace) {
            Some(places) => match places.get_mut(name) {
                Some(place) if place == node => None,
                Some(place) => Some(std::mem::replace(place, node.clone())),
                None => places.insert(name.to_owned(), node.clone()),
            },
            None => {
                let places = HashMap::from([(name.to_owned(), node.clone())]);
                self.places.insert(namespace.clone(), places);
                None
            }
        }
    }

    fn forget(&mut self, key: &ObjectKey) -> Option<NodeName> {
        let namespace = key.namespace.as_ref()?;
        let places = self.places.get_mut(namespace)?;
        let node = places.remove(&key.name);
        if places.is_empty() {
            self.places.remove(namespace);
        }
        node
    }

    /// The nodes that must hear of a change of a unit.
    fn concerned(&mut self, change: &Change) -> Vec<NodeName> {
        match &change.object {
            Some(Object::Unit(unit)) => match &unit.node {
                Some(node) => {
                    let before = self.place(&unit.namespace, unit.name.as_str(), node);
                    before.into_iter().chain([node.clone()]).collect()
                }
                None => self.forget(&change.key).into_iter().collect(),
            },
            _ => match self.forget(&change.key) {
                Some(node) => vec![node],
                None => {
                    let unknown = self.boxes.iter().filter(|(_, mailbox)| !mailbox.is_known);
                    unknown.map(|(node, _)| node.clone()).collect()
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use brig_api::manifest::{Format, Manifest, parse};
    use brig_api::object::{Desired, Meta, UnitStatus};
    use brig_api::{ResourceName, UnitId};

    use super::*;

    fn node(name: &str) -> NodeName {
        NodeName::new(name).unwrap()
    }

    fn unit(name: &str, on: Option<&str>) -> Unit {
        let text = "kind: unit\nname: x\nunit: {wasm: {artifact: a/b}}";
        let manifest = parse(text, Format::Yaml, None).unwrap().remove(0).check().unwrap();
        let Manifest::Unit(spec) = manifest else { panic!("a unit") };
        Unit {
            id: UnitId::new(name).unwrap(),
            name: ResourceName::new(name).unwrap(),
            namespace: NamespacePath::default_namespace(),
            owner: None,
            labels: Default::default(),
            template: Arc::new(spec.unit),
            desired: Desired::Run,
            remove_when_done: false,
            node: on.map(node),
            promised: None,
            grants: Default::default(),
            placed_ms: None,
            placed_by: None,
            status: UnitStatus::default(),
            meta: Meta::default(),
        }
    }

    fn batch(revision: u64, changes: &[(&Unit, bool)]) -> Arc<Batch> {
        let revision = Revision(revision);
        let changes = changes.iter().zip(0..).map(|((unit, is_there), position)| {
            let object = Object::Unit(Box::new((*unit).clone()));
            let key = object.key();
            Change { revision, position, key, object: is_there.then_some(object) }
        });
        Arc::new(Batch::new(Revision(revision.0 - 1), revision, changes.collect()))
    }

    fn names(letters: &mut mpsc::Receiver<Letter>) -> Vec<String> {
        let mut names = Vec::new();
        while let Ok(letter) = letters.try_recv() {
            names.extend(letter.changes().map(|change| change.key.name.clone()));
        }
        names
    }

    #[tokio::test]
    async fn each_node_gets_its_own_and_removals_find_their_way() {
        let mail = Mail::new(Revision(1));
        let (mut one, mut two) = (mail.open(&node("n1")), mail.open(&node("n2")));
        mail.told(&node("n1"), [].into_iter());
        mail.told(&node("n2"), [&unit("old", Some("n2"))].into_iter());
        let placed = [unit("a", Some("n1")), unit("b", Some("n2")), unit("c", None)];
        mail.sort(&batch(2, &[(&placed[0], true), (&placed[1], true), (&placed[2], true)]));
        assert_eq!((names(&mut one), names(&mut two)), (vec!["a".into()], vec!["b".into()]));
        mail.sort(&batch(3, &[(&placed[0], false), (&unit("old", None), false)]));
        assert_eq!((names(&mut one), names(&mut two)), (vec!["a".into()], vec!["old".into()]));
        mail.sort(&batch(4, &[(&unit("b", Some("n1")), true)]));
        assert_eq!((names(&mut one), names(&mut two)), (vec!["b".into()], vec!["b".into()]));
        assert_eq!(mail.delivered(Revision(3)).await, Revision(4));
    }

    #[test]
    fn a_node_that_was_not_told_yet_hears_of_every_removal_of_an_unknown_unit() {
        let mail = Mail::new(Revision(1));
        let mut letters = mail.open(&node("n1"));
        mail.sort(&batch(2, &[(&unit("gone", None), false)]));
        assert_eq!(names(&mut letters), ["gone"]);
        mail.told(&node("n1"), [].into_iter());
        mail.sort(&batch(3, &[(&unit("other", None), false)]));
        assert!(names(&mut letters).is_empty());
    }

    #[test]
    fn a_full_box_is_closed_and_a_second_one_takes_its_place() {
        let mail = Mail::new(Revision(1));
        let mut letters = mail.open(&node("n1"));
        let placed = unit("a", Some("n1"));
        for revision in 0..=MAILBOX_MAX {
            mail.sort(&batch(2 + u64::try_from(revision).unwrap(), &[(&placed, true)]));
        }
        assert_eq!(names(&mut letters).len(), MAILBOX_MAX);
        assert!(letters.is_closed());
        let mut again = mail.open(&node("n1"));
        mail.sort(&batch(1_000, &[(&placed, true)]));
        assert_eq!(names(&mut again), ["a"]);
    }
}
