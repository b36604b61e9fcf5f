//! The change feed inside the server: one task takes what was committed, once (from the commit itself when it is the
//! next, else from SQL), and hands it to watches, node sessions and the conductor. Who falls behind reads from SQL;
//! nobody holds anybody up, nothing is lost.
//!
//! **Invariant:** a [`Follower`] gets every batch after its position, in order, once.

use std::collections::VecDeque;
use std::sync::Arc;

use brig_api::change::Change;
use brig_api::unit_spec::UnitTemplate;
use brig_api::{Object, Revision};
use brig_store::{Backend, Store, StoreError};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::limits::{FEED_BATCHES_MAX, FEED_PAUSE, FEED_POLL, FEED_READ_MAX};

/// The changes of one revision.
#[derive(Debug)]
pub(crate) struct Batch {
    /// The revision before it that has changes (as far as the reader knew).
    after: Revision,
    /// Which transaction.
    pub(crate) revision: Revision,
    /// All its changes, in order.
    pub(crate) changes: Arc<Vec<Change>>,
}

#[cfg(test)]
impl Batch {
    pub(crate) fn new(after: Revision, revision: Revision, changes: Vec<Change>) -> Self {
        Self { after, revision, changes: Arc::new(changes) }
    }
}

/// See [`Store::commits`].
type Commits = broadcast::Receiver<Arc<Vec<Change>>>;

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Feed {
    store: Store,
    batches: broadcast::Sender<Arc<Batch>>,
    position: Arc<watch::Sender<Revision>>,
}

/// Reads the feed from a position on.
#[derive(Debug)]
pub(crate) struct Follower {
    store: Store,
    live: broadcast::Receiver<Arc<Batch>>,
    backlog: VecDeque<Arc<Batch>>,
    position: Revision,
    is_behind: bool,
}

/// Why a follower can't go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FeedError {
    /// The server stops.
    #[error("the server is stopping")]
    Stopped,
    /// The feed could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Feed {
    pub(crate) async fn new(store: Store) -> Result<Self, StoreError> {
        let newest = store.revision().await?;
        let (batches, _) = broadcast::channel(FEED_BATCHES_MAX);
        Ok(Self { store, batches, position: Arc::new(watch::Sender::new(newest)) })
    }

    /// The newest revision that was handed out.
    pub(crate) fn position(&self) -> Revision {
        *self.position.borrow()
    }

    /// Everything after `since`.
    pub(crate) fn follow(&self, since: Revision) -> Follower {
        // First subscribe, then compare: `pump` moves the position before it sends, so what is not behind the
        // position now will come live.
        let live = self.batches.subscribe();
        Follower {
            store: self.store.clone(),
            live,
            backlog: VecDeque::new(),
            position: since,
            is_behind: since < self.position(),
        }
    }

    /// Hands out what is committed until the server stops.
    pub(crate) async fn pump(self, stop: CancellationToken) {
        let mut commits = self.store.commits();
        loop {
            if let Err(error) = self.hand_out().await {
                tracing::warn!(error = %error, "the change feed could not be read");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(FEED_PAUSE) => continue,
                }
            }
            let others = async {
                match self.store.backend() {
                    Backend::Postgres => tokio::time::sleep(FEED_POLL).await,
                    Backend::Sqlite => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                result = self.hand_over(&mut commits) => if result.is_err() { return },
                () = others => {}
            }
        }
    }

    /// Hands out what this process commits, without a read, as long as nothing is missing in between. Returns when
    /// the feed has to be read; an error when there is no store any more.
    async fn hand_over(&self, commits: &mut Commits) -> Result<(), broadcast::error::RecvError> {
        loop {
            match commits.recv().await {
                Ok(changes) if self.is_taken(&changes) => {}
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return Ok(()),
                Err(closed) => return Err(closed),
            }
        }
    }

    /// Hands out the changes of one commit if they are the next (revisions have no gaps); false when they are not.
    fn is_taken(&self, changes: &Arc<Vec<Change>>) -> bool {
        let after = self.position();
        match changes.first().map(|first| first.revision) {
            // It was read before it came here.
            Some(revision) if revision <= after => true,
            Some(revision) if revision.0 == after.0 + 1 => {
                self.send(Batch { after, revision, changes: Arc::clone(changes) });
                true
            }
            _ => false,
        }
    }

    fn send(&self, batch: Batch) {
        self.position.send_replace(batch.revision);
        // No receiver is no error: nobody watches.
        let _ = self.batches.send(Arc::new(batch));
    }

    async fn hand_out(&self) -> Result<(), StoreError> {
        loop {
            let after = self.position();
            let changes = match self.store.changes_since(after, FEED_READ_MAX).await {
                // This process stood still for longer than the feed is kept. It goes on from where the feed does;
                // its followers find that something is missing, ask SQL and are told to list again.
                Err(StoreError::RevisionTooOld { oldest }) if oldest != after => {
                    tracing::warn!(
                        feed.position = after.0,
                        feed.start = oldest.0,
                        "the change feed was lost sight of"
                    );
                    self.position.send_replace(oldest);
                    continue;
                }
                changes => changes?,
            };
            let is_all = changes.len() < FEED_READ_MAX;
            for batch in batches(after, changes) {
                self.send(batch);
            }
            if is_all {
                return Ok(());
            }
        }
    }
}

impl Follower {
    /// The next batch, as soon as there is one. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Result<Arc<Batch>, FeedError> {
        loop {
            if let Some(batch) = self.backlog.pop_front() {
                self.position = batch.revision;
                return Ok(batch);
            }
            if self.is_behind {
                let changes = self.store.changes_since(self.position, FEED_READ_MAX).await?;
                self.is_behind = changes.len() >= FEED_READ_MAX;
                self.backlog = batches(self.position, changes).into_iter().map(Arc::new).collect();
                continue;
            }
            match self.live.recv().await {
                Ok(batch) if batch.revision <= self.position => {}
                Ok(batch) if batch.after <= self.position => {
                    self.position = batch.revision;
                    return Ok(batch);
                }
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => self.is_behind = true,
                Err(broadcast::error::RecvError::Closed) => return Err(FeedError::Stopped),
            }
        }
    }

    /// The revision up to which everything was handed out.
    pub(crate) fn position(&self) -> Revision {
        self.position
    }
}

/// Changes in the feed's order, grouped by revision. Units that run the same share it: thousands of one service are
/// read one by one.
fn batches(mut after: Revision, changes: Vec<Change>) -> Vec<Batch> {
    let mut last: Option<Arc<UnitTemplate>> = None;
    let mut grouped: Vec<Vec<Change>> = Vec::new();
    for mut change in changes {
        if let Some(Object::Unit(unit)) = &mut change.object {
            match &last {
                Some(last) if **last == *unit.template => unit.template = Arc::clone(last),
                _ => last = Some(Arc::clone(&unit.template)),
            }
        }
        match grouped.last_mut() {
            Some(group) if group[0].revision == change.revision => group.push(change),
            _ => grouped.push(vec![change]),
        }
    }
    let batch = |changes: Vec<Change>| {
        let revision = changes[0].revision;
        let batch = Batch { after, revision, changes: Arc::new(changes) };
        after = revision;
        batch
    };
    grouped.into_iter().map(batch).collect()
}

#[cfg(test)]
mod tests {
    use brig_api::Kind;
    use brig_api::object::ObjectKey;
    use futures::FutureExt as _;

    use super::*;

    fn change(revision: u64, position: u32) -> Change {
        let key = ObjectKey { kind: Kind::Node, namespace: None, name: "n".into() };
        Change { revision: Revision(revision), position, key, object: None }
    }

    #[test]
    fn changes_are_grouped_by_revision_and_know_their_predecessor() {
        let found = batches(Revision(3), vec![change(4, 0), change(4, 1), change(6, 0)]);
        let shape: Vec<_> =
            found.iter().map(|b| (b.after.0, b.revision.0, b.changes.len())).collect();
        assert_eq!(shape, [(3, 4, 2), (4, 6, 1)]);
        assert!(batches(Revision(3), Vec::new()).is_empty());
    }

    #[tokio::test]
    async fn a_feed_that_was_trimmed_meanwhile_goes_on_and_its_followers_are_told_to_list_again() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("brig.db").display());
        let store = Store::open(&url).await.unwrap();
        let feed = Feed::new(store.clone()).await.unwrap();
        let mut follower = feed.follow(feed.position());
        let tag = |tag: &str| brig_store::NewArtifact {
            repository: "a".into(),
            tag: tag.into(),
            digest: brig_api::Digest::of_sha256(&[7; 32]),
            media_type: String::new(),
            kind: brig_api::object::ArtifactKind::Other,
            size_bytes: 0,
            wasm: None,
        };
        for name in ["1", "2", "3", "4"] {
            store.artifact_put(tag(name), 1).await.unwrap();
        }
        store.changes_trim(2).await.unwrap();
        feed.hand_out().await.unwrap();
        assert_eq!(feed.position(), store.revision().await.unwrap());
        let told = follower.next().await;
        assert!(
            matches!(told, Err(FeedError::Store(StoreError::RevisionTooOld { .. }))),
            "{told:?}"
        );
        store.close().await;
    }

    #[tokio::test]
    async fn a_commit_is_handed_out_without_a_read_only_when_it_is_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("brig.db").display());
        let feed = Feed::new(Store::open(&url).await.unwrap()).await.unwrap();
        let position = feed.position();
        let mut follower = feed.follow(position);
        let commit = |ahead: u64| Arc::new(vec![change(position.0 + ahead, 0)]);
        assert!(!feed.is_taken(&commit(2)), "one is missing");
        assert!(!feed.is_taken(&Arc::default()), "it can't be told which");
        assert_eq!(feed.position(), position);
        for ahead in [1, 2] {
            assert!(feed.is_taken(&commit(ahead)));
        }
        assert!(feed.is_taken(&commit(1)), "it was handed out before");
        for ahead in [1, 2] {
            assert_eq!(follower.next().await.unwrap().revision.0, position.0 + ahead);
        }
        assert!(follower.next().now_or_never().is_none());
    }
}
