//! Which nodes are in touch: their sessions, when each was heard last, and what they say they hold.
//!
//! What nodes hold is kept here and nowhere else: it is a hint, it changes often, and nodes are in session with the server
//! that plans. Another one that takes over hears it from them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use brig_api::session::{SILENCE_MS_MAX, StreamRequest};
use brig_api::{Code, NodeName, Problem, Revision, UnitId};
use brig_core::Holdings;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::limits::COMMAND_QUEUE_MAX;

/// How long a node may be silent.
const SILENCE_MAX: Duration = Duration::from_millis(SILENCE_MS_MAX);

/// Something that a session is to tell its node.
#[derive(Debug)]
pub(crate) enum Command {
    /// See [`brig_api::session::ToNode::OpenStream`].
    OpenStream {
        /// The stream's name.
        stream: String,
        /// The unit.
        unit: UnitId,
        /// What to serve.
        request: StreamRequest,
        /// Not before the node has heard of everything up to here: it must know the unit.
        not_before: Revision,
    },
}

/// The place of one session among the nodes.
pub(crate) struct Seat {
    /// Tells this session from others of the same node.
    pub(crate) number: u64,
    /// What to tell the node.
    pub(crate) commands: mpsc::Receiver<Command>,
    /// Another session of the same node took over.
    pub(crate) replaced: CancellationToken,
}

/// All nodes that were heard of since [`Nodes::restart_grace`].
#[derive(Debug)]
pub(crate) struct Nodes {
    table: Mutex<Table>,
    changed: Notify,
    told: Notify,
}

#[derive(Debug)]
struct Table {
    /// Silence counts from here: a server that just started, or just took over, has heard of nobody.
    counts_from: Instant,
    sessions: u64,
    nodes: BTreeMap<NodeName, Contact>,
    /// Nodes of which the planner does not know yet what they hold now.
    news: BTreeSet<NodeName>,
}

#[derive(Debug)]
struct Contact {
    heard: Instant,
    session: Option<Session>,
}

#[derive(Debug)]
struct Session {
    number: u64,
    commands: mpsc::Sender<Command>,
    replaced: CancellationToken,
    /// What the node holds; None until it has told.
    holdings: Option<Holdings>,
}

impl Table {
    fn held_by(&self, name: &NodeName) -> Option<&Holdings> {
        self.nodes.get(name)?.session.as_ref()?.holdings.as_ref()
    }
}

impl Nodes {
    pub(crate) fn new(now: Instant) -> Self {
        let table =
            Table { counts_from: now, sessions: 0, nodes: BTreeMap::new(), news: BTreeSet::new() };
        Self { table: Mutex::new(table), changed: Notify::new(), told: Notify::new() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives every node time to come (back) before its silence counts.
    pub(crate) fn restart_grace(&self, now: Instant) {
        self.table().counts_from = now;
    }

    /// A session of this node begins; one that it had before ends.
    pub(crate) fn enter(&self, name: &NodeName, now: Instant) -> Seat {
        let (sender, commands) = mpsc::channel(COMMAND_QUEUE_MAX);
        let replaced = CancellationToken::new();
        let number = {
            let mut table = self.table();
            table.sessions += 1;
            let number = table.sessions;
            let session =
                Session { number, commands: sender, replaced: replaced.clone(), holdings: None };
            let contact = Contact { heard: now, session: Some(session) };
            let before = table.nodes.insert(name.clone(), contact);
            // The one before may have told something, which this one has to tell again.
            table.news.insert(name.clone());
            if let Some(session) = before.and_then(|contact| contact.session) {
                session.replaced.cancel();
            }
            number
        };
        self.changed.notify_one();
        Seat { number, commands, replaced }
    }

    /// The node said something.
    pub(crate) fn heard(&self, name: &NodeName, now: Instant) {
        let was_silent = self.table().nodes.get_mut(name).is_some_and(|contact| {
            let silence = now.duration_since(contact.heard);
            contact.heard = now;
            silence > SILENCE_MAX
        });
        if was_silent {
            self.changed.notify_one();
        }
    }

    /// A session ended. The node counts as in touch until its time is up.
    pub(crate) fn leave(&self, name: &NodeName, number: u64) {
        let mut table = self.table();
        let contact = table.nodes.get_mut(name);
        let session =
            contact.and_then(|contact| contact.session.take_if(|own| own.number == number));
        if session.is_some_and(|session| session.holdings.is_some()) {
            table.news.insert(name.clone());
        }
    }

    /// The node of a session tells what it holds: `change` makes that of what it told before.
    pub(crate) fn tell_holdings(
        &self,
        name: &NodeName,
        number: u64,
        change: impl FnOnce(Option<&Holdings>) -> Holdings,
    ) {
        {
            let mut table = self.table();
            let session = table.nodes.get_mut(name).and_then(|contact| contact.session.as_mut());
            let Some(session) = session.filter(|session| session.number == number) else { return };
            session.holdings = Some(change(session.holdings.as_ref()));
            table.news.insert(name.clone());
        }
        self.told.notify_one();
    }

    /// What is new about what nodes hold since this was asked last; None where nobody knows any more. With `is_all`
    /// everything that is known.
    pub(crate) fn news_of_holdings(&self, is_all: bool) -> Vec<(NodeName, Option<Holdings>)> {
        let mut table = self.table();
        let mut names = std::mem::take(&mut table.news);
        if is_all {
            names.extend(table.nodes.keys().cloned());
        }
        let told = |name| {
            let holdings = table.held_by(&name).cloned();
            (name, holdings)
        };
        names.into_iter().map(told).collect()
    }

    /// How many artifacts the node holds, if it is in session here and has told.
    pub(crate) fn held_artifacts(&self, name: &NodeName) -> Option<u32> {
        let table = self.table();
        table.held_by(name).map(|holdings| u32::try_from(holdings.len()).unwrap_or(u32::MAX))
    }

    /// Passes a command to the node's session.
    pub(crate) fn command(&self, name: &NodeName, command: Command) -> Result<(), Problem> {
        let sender =
            self.table().nodes.get(name).and_then(|contact| {
                contact.session.as_ref().map(|session| session.commands.clone())
            });
        let unreachable = |why| {
            Problem::new(
                Code::NodeUnreachable,
                format!("node `{name}` {why}: try again, or see `brig node ls`"),
            )
        };
        let sender = sender.ok_or_else(|| unreachable("is not connected"))?;
        sender.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => unreachable("is too busy to open another stream"),
            mpsc::error::TrySendError::Closed(_) => unreachable("is not connected"),
        })
    }

    /// Which of `names` have been silent for too long, and when the next of the others will have been.
    pub(crate) fn silent<'a>(
        &self,
        names: impl Iterator<Item = &'a NodeName>,
        now: Instant,
    ) -> (BTreeSet<NodeName>, Option<Instant>) {
        let table = self.table();
        let mut silent = BTreeSet::new();
        let mut next: Option<Instant> = None;
        for name in names {
            let heard = table.nodes.get(name).map(|contact| contact.heard);
            let heard = heard.map_or(table.counts_from, |heard| heard.max(table.counts_from));
            let due = heard + SILENCE_MAX;
            if due < now {
                silent.insert(name.clone());
            } else {
                next = Some(next.map_or(due, |next| next.min(due)));
            }
        }
        (silent, next)
    }

    /// Waits until a node told what it holds.
    pub(crate) async fn told(&self) {
        self.told.notified().await;
    }

    /// Waits until a node came (back).
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use brig_api::Digest;
    use brig_api::session::HeldArtifact;
    use brig_api::unit_spec::Runtime;

    use super::*;

    fn name() -> NodeName {
        NodeName::new("n1").unwrap()
    }

    #[test]
    fn a_node_is_silent_only_after_its_time_even_when_it_was_never_heard() {
        let begin = Instant::now();
        let nodes = Nodes::new(begin);
        let is_silent = |at| !nodes.silent([name()].iter(), at).0.is_empty();
        assert_eq!(nodes.silent([name()].iter(), begin), ([].into(), Some(begin + SILENCE_MAX)));
        let late = begin + SILENCE_MAX + Duration::from_millis(1);
        assert_eq!(nodes.silent([name()].iter(), late), ([name()].into(), None));
        let seat = nodes.enter(&name(), late);
        assert!(!is_silent(late));
        nodes.leave(&name(), seat.number);
        assert!(!is_silent(late + SILENCE_MAX), "a short absence is none");
        let later = late + SILENCE_MAX * 2;
        assert!(is_silent(later));
        nodes.heard(&name(), later);
        assert!(!is_silent(later));
        let last = later + SILENCE_MAX * 2;
        assert!(is_silent(last));
        nodes.restart_grace(last);
        assert!(!is_silent(last));
    }

    #[tokio::test]
    async fn a_second_session_replaces_the_first_and_the_first_can_not_end_the_second() {
        let nodes = Nodes::new(Instant::now());
        let first = nodes.enter(&name(), Instant::now());
        let mut second = nodes.enter(&name(), Instant::now());
        assert!(first.replaced.is_cancelled() && !second.replaced.is_cancelled());
        nodes.leave(&name(), first.number);
        let command = || Command::OpenStream {
            stream: "s".into(),
            unit: UnitId::new("u1").unwrap(),
            request: StreamRequest::Logs(Default::default()),
            not_before: Revision(0),
        };
        assert!(nodes.command(&name(), command()).is_ok());
        assert!(second.commands.recv().await.is_some());
        nodes.leave(&name(), second.number);
        assert_eq!(nodes.command(&name(), command()).unwrap_err().code, Code::NodeUnreachable);
    }

    #[test]
    fn what_a_node_holds_is_known_for_as_long_as_its_session() {
        let nodes = Nodes::new(Instant::now());
        let news = |is_all| {
            let count = |holdings: Option<Holdings>| holdings.map(|holdings| holdings.len());
            let news = nodes.news_of_holdings(is_all).into_iter();
            news.map(|(_, holdings)| count(holdings)).collect::<Vec<_>>()
        };
        let held = |number: u8| HeldArtifact {
            digest: Digest::of_sha256(&[number; 32]),
            runtime: Runtime::Wasm,
            is_ready: true,
        };
        let tell = |seat: &Seat, number| {
            nodes.tell_holdings(&name(), seat.number, |before| {
                before.cloned().unwrap_or_default().after(&[held(number)], &[])
            });
        };
        let first = nodes.enter(&name(), Instant::now());
        tell(&first, 1);
        tell(&first, 2);
        assert_eq!(news(false), [Some(2)]);
        assert_eq!((news(false), news(true)), (vec![], vec![Some(2)]));
        assert_eq!(nodes.held_artifacts(&name()), Some(2));
        let second = nodes.enter(&name(), Instant::now());
        assert_eq!(news(false), [None], "another session has to tell it again");
        tell(&first, 3);
        nodes.leave(&name(), first.number);
        assert_eq!(news(false), []);
        tell(&second, 1);
        assert_eq!(news(false), [Some(1)]);
        nodes.leave(&name(), second.number);
        assert_eq!((news(false), nodes.held_artifacts(&name())), (vec![None], None));
    }
}
