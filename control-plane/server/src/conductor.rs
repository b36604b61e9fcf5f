//! The loop that makes things happen: keeps the model up to date, asks the core for a plan, commits it.
//!
//! It is woken by commits, by nodes that come back, by nodes that fall silent, by nodes that got what a unit waits for there
//! and by the core's own timer; what woke it is not trusted, it looks at everything each time. Only the holder of the lease plans, but correctness rests
//! on [`Store::plan_commit`] alone: a plan that was not made after the newest one is refused.
//!
//! After a pass it rests for as long as that took, a tenth of a second at most: what comes in a burst, as when a thousand
//! nodes report, is planned on together, and a small cluster notices nothing.
//!
//! **Invariant:** between two passes without news there is a pause; a failing database or two rules that undo one
//! another never make it spin.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use brig_api::Revision;
use brig_core::Model;
use brig_store::{Store, StoreError};
use futures::FutureExt;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::app::App;
use crate::clock;
use crate::feed::{Batch, FeedError, Follower};
use crate::limits::{
    CONDUCTOR_PAUSE_MAX, CONDUCTOR_PAUSE_MIN, INLINE_UNITS_MAX, LEASE, LEASE_RENEWAL,
    PASS_REST_MAX, PASSES_IN_A_ROW_MAX,
};
use crate::problem::chain;
use crate::questions::{Question, moment};

/// Plans until the server stops.
pub(crate) async fn run(app: Arc<App>, holder: String) {
    let mut pause = CONDUCTOR_PAUSE_MIN;
    let mut lease = Lease { holder, renewed: None };
    while !app.stop.is_cancelled() {
        let began = Instant::now();
        let ended = AssertUnwindSafe(lead(&app, &mut lease)).catch_unwind().await;
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %chain(&error), "planning failed; the model is loaded again");
            }
            Err(_) => tracing::error!("planning panicked; the model is loaded again"),
        }
        // Nodes stay with a server that leads. One that lost sight of the database lets them go to the next leader.
        if !lease.may_be_ours(Instant::now()) {
            app.is_leader.send_replace(false);
        }
        if began.elapsed() > CONDUCTOR_PAUSE_MAX {
            pause = CONDUCTOR_PAUSE_MIN;
        }
        tokio::select! {
            () = app.stop.cancelled() => {}
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(CONDUCTOR_PAUSE_MAX),
        }
    }
    app.is_leader.send_replace(false);
    // A lease of no length: another server, or this one's successor, need not wait for it to run out.
    if let Err(error) = app.store.leader_try(&lease.holder, clock::now_ms(), 0).await {
        tracing::debug!(error = %error, "the lease was not given back");
    }
}

/// Tries for the lease; with it, plans until it is lost, something fails or the server stops.
async fn lead(app: &App, lease: &mut Lease) -> Result<(), FeedError> {
    if !lease.take(&app.store).await? {
        app.is_leader.send_replace(false);
        tokio::select! {
            () = app.stop.cancelled() => {}
            () = tokio::time::sleep(LEASE_RENEWAL) => {}
        }
        return Ok(());
    }
    // Before nodes come: what they and others ask waits for the model instead of loading one each.
    let questions = app.questions.receive();
    if !app.is_leader.send_replace(true) {
        app.nodes.restart_grace(Instant::now());
        tracing::info!("this server plans now");
    }
    let planning = async {
        let mut model = app.store.model_load().await?;
        for (node, holdings) in app.nodes.news_of_holdings(true) {
            model.hold(&node, holdings);
        }
        let follower = app.feed.follow(model.revision);
        let pass = Pass {
            app,
            model: Box::new(model),
            follower,
            questions,
            asked: Vec::new(),
            in_a_row: 0,
            rests_until: Instant::now(),
        };
        pass.repeat().await
    };
    tokio::select! {
        result = planning => result,
        result = lease.keep(&app.store) => {
            app.is_leader.send_replace(false);
            result?;
            tracing::info!("another server plans now");
            Ok(())
        }
        () = app.stop.cancelled() => Ok(()),
    }
}

/// The lease, as this server knows it.
struct Lease {
    /// Who this server is to the lease.
    holder: String,
    /// When the newest of our requests for it that was granted was made.
    renewed: Option<Instant>,
}

impl Lease {
    /// Nobody else can have it yet.
    fn may_be_ours(&self, now: Instant) -> bool {
        self.renewed.is_some_and(|renewed| now < renewed + LEASE)
    }

    /// Takes or renews it. Waits for the database only for as long as it matters: a connection to a machine that is
    /// gone may never answer.
    async fn take(&mut self, store: &Store) -> Result<bool, StoreError> {
        let asked = Instant::now();
        let lease_ms = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
        let until = self.renewed.map_or(asked, |renewed| renewed + LEASE);
        let until = until.max(asked + LEASE_RENEWAL);
        let tried = store.leader_try(&self.holder, clock::now_ms(), lease_ms);
        let is_ours = tokio::time::timeout_at(until, tried).await.unwrap_or_else(|late| {
            let message = "the database did not answer in time: check that it runs and the network";
            Err(StoreError::Unavailable { message: message.to_owned(), source: late.into() })
        })?;
        self.renewed = is_ours.then_some(asked);
        Ok(is_ours)
    }

    /// Returns when it is lost, or could not be renewed for as long as it lasts.
    async fn keep(&mut self, store: &Store) -> Result<(), StoreError> {
        loop {
            tokio::time::sleep(LEASE_RENEWAL).await;
            match self.take(store).await {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) if !self.may_be_ours(Instant::now()) => return Err(error),
                Err(error) => tracing::warn!(error = %error, "the lease could not be renewed"),
            }
        }
    }
}

/// The model and what keeps it up to date.
struct Pass<'a> {
    app: &'a App,
    /// In a box, so that moving it to another thread and back is cheap.
    model: Box<Model>,
    follower: Follower,
    questions: mpsc::Receiver<Question>,
    /// Questions about what is yet to come with the feed.
    asked: Vec<Question>,
    /// Passes that committed something while nobody else did.
    in_a_row: u32,
    /// Until when it rests.
    rests_until: Instant,
}

/// What a pass came to.
enum Outcome {
    /// Something was committed; look again at once.
    Committed(Revision),
    /// There is nothing to do before one of these moments.
    Idle { wake_at_ms: Option<i64>, silence_due: Option<Instant> },
}

impl Pass<'_> {
    async fn repeat(mut self) -> Result<(), FeedError> {
        loop {
            match self.plan_once().await? {
                Outcome::Committed(revision) => {
                    self.in_a_row = self.in_a_row.saturating_add(1);
                    self.see(revision).await?;
                    if self.in_a_row > PASSES_IN_A_ROW_MAX {
                        tracing::warn!(passes = self.in_a_row, "planning does not come to rest");
                        tokio::time::sleep(CONDUCTOR_PAUSE_MAX).await;
                    }
                }
                Outcome::Idle { wake_at_ms, silence_due } => {
                    self.in_a_row = 0;
                    self.wait(wake_at_ms, silence_due).await?;
                }
            }
            while let Some(batch) = self.follower.next().now_or_never() {
                let batch = batch?;
                self.take(&batch, None);
            }
            self.answer().await?;
        }
    }

    /// Answers what was asked, as far as the model knows what those who asked know.
    async fn answer(&mut self) -> Result<(), FeedError> {
        while let Ok(question) = self.questions.try_recv() {
            self.asked.push(question);
        }
        let known = self.model.revision;
        let ready: Vec<_> =
            self.asked.extract_if(.., |asked| asked.not_before() <= known).collect();
        if ready.is_empty() {
            return Ok(());
        }
        let (moment, _) = moment(self.app, &self.model);
        self.with_model(move |model| {
            ready.into_iter().for_each(|question| question.answer(model, &moment));
        })
        .await
    }

    fn take(&mut self, batch: &Batch, own: Option<Revision>) {
        batch.changes.iter().for_each(|change| self.model.apply(change));
        if own != Some(batch.revision) {
            self.in_a_row = 0;
        }
    }

    /// Takes over what nodes say they hold now; true when that may help a unit that waits.
    fn take_holdings(&mut self) -> bool {
        let news = self.app.nodes.news_of_holdings(false);
        news.into_iter()
            .fold(false, |helps, (node, holdings)| self.model.hold(&node, holdings) || helps)
    }

    /// Waits until the model holds what was just committed: a plan made without it would do the same again.
    async fn see(&mut self, own: Revision) -> Result<(), FeedError> {
        while self.follower.position() < own {
            let next = tokio::time::timeout(CONDUCTOR_PAUSE_MAX, self.follower.next()).await;
            let Ok(batch) = next else {
                tracing::warn!(
                    plan.revision = own.0,
                    "a committed plan did not come with the feed"
                );
                return Err(FeedError::Stopped);
            };
            let batch = batch?;
            self.take(&batch, Some(own));
        }
        Ok(())
    }

    /// Waits for news: a change in the feed (taken into the model), a node's return, or time. Questions are answered
    /// meanwhile.
    async fn wait(
        &mut self,
        wake_at_ms: Option<i64>,
        silence_due: Option<Instant>,
    ) -> Result<(), FeedError> {
        let timer = wake_at_ms.map(|at_ms| {
            let delay_ms = u64::try_from(at_ms - clock::now_ms()).unwrap_or(0);
            Instant::now() + Duration::from_millis(delay_ms).max(CONDUCTOR_PAUSE_MIN)
        });
        let silence = silence_due.map(|due| due + CONDUCTOR_PAUSE_MIN);
        let due = [timer, silence].into_iter().flatten().min();
        let timer = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(timer);
        loop {
            tokio::select! {
                batch = self.follower.next() => {
                    let batch = batch?;
                    self.take(&batch, None);
                    tokio::time::sleep_until(self.rests_until).await;
                    return Ok(());
                }
                Some(question) = self.questions.recv() => self.asked.push(question),
                () = self.app.nodes.changed() => return Ok(()),
                () = self.app.nodes.told() => {
                    if self.take_holdings() {
                        tokio::time::sleep_until(self.rests_until).await;
                        return Ok(());
                    }
                }
                () = &mut timer => return Ok(()),
            }
            self.answer().await?;
        }
    }

    async fn plan_once(&mut self) -> Result<Outcome, FeedError> {
        self.take_holdings();
        let (moment, silence_due) = moment(self.app, &self.model);
        let began = Instant::now();
        let plan = self.with_model(move |model| brig_core::plan(model, &moment)).await?;
        self.rests_until = Instant::now() + began.elapsed().min(PASS_REST_MAX);
        if plan.decisions.is_empty() && plan.explanations.is_empty() {
            return Ok(Outcome::Idle { wake_at_ms: plan.wake_at_ms, silence_due });
        }
        let committed = self.app.store.plan_commit(&plan, clock::now_ms()).await?;
        self.model.plan = committed.sequence;
        if !committed.skipped.is_empty() {
            // The world is not quite as the plan took it to be.
            self.model.doubt_everything();
        }
        tracing::debug!(
            plan.sequence = committed.sequence.0,
            plan.revision = committed.revision.0,
            decisions = plan.decisions.len(),
            skipped = committed.skipped.len(),
            "a plan was committed"
        );
        Ok(Outcome::Committed(committed.revision))
    }

    /// Works on the model: on the spot while it is small, else on a thread that may block.
    async fn with_model<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Model) -> T + Send + 'static,
    ) -> Result<T, FeedError> {
        if self.model.unit_count() <= INLINE_UNITS_MAX {
            return Ok(work(&mut self.model));
        }
        let mut model = std::mem::take(&mut self.model);
        let working = tokio::task::spawn_blocking(move || {
            let result = work(&mut model);
            (model, result)
        });
        // A panic in there loses the model; it is loaded again.
        let (model, result) = working.await.map_err(|_| FeedError::Stopped)?;
        self.model = model;
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::feed::Feed;
    use crate::node::contact::Nodes;
    use crate::node::stream::Streams;
    use crate::registry::{MemoryIndex, Registry, RegistryConfig};

    async fn app(dir: &std::path::Path) -> App {
        let url = format!("sqlite:{}", dir.join("brig.db").display());
        let store = Store::open(&url).await.unwrap();
        let config = RegistryConfig { data: dir.to_owned(), blob_bytes_max: 1, now: clock::now };
        App {
            feed: Feed::new(store.clone()).await.unwrap(),
            store,
            nodes: Nodes::new(Instant::now()),
            streams: Streams::default(),
            registry: Registry::open(config, Arc::new(MemoryIndex::default())).unwrap(),
            compiled: crate::compiled::CompiledStore::open(dir).unwrap(),
            questions: Default::default(),
            simulations: Arc::new(tokio::sync::Semaphore::new(1)),
            mail: crate::node::mail::Mail::new(Revision(0)),
            is_leader: watch::Sender::new(false),
            openapi: Arc::default(),
            stop: CancellationToken::new(),
        }
    }

    #[tokio::test]
    async fn a_lease_counts_from_when_it_was_asked_for_and_a_failure_takes_nothing_away() {
        let dir = tempfile::tempdir().unwrap();
        let app = app(dir.path()).await;
        let mut lease = Lease { holder: "me".to_owned(), renewed: None };
        assert!(!lease.may_be_ours(Instant::now()));
        let before = Instant::now();
        assert!(lease.take(&app.store).await.unwrap());
        assert!(lease.may_be_ours(before + LEASE - Duration::from_millis(1)));
        assert!(!lease.may_be_ours(Instant::now() + LEASE));
        app.store.close().await;
        lease.take(&app.store).await.unwrap_err();
        assert!(lease.may_be_ours(before), "it has not run out yet");
    }

    #[tokio::test]
    async fn a_server_that_lost_its_database_and_its_lease_leads_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let app = Arc::new(app(dir.path()).await);
        app.store.close().await;
        app.is_leader.send_replace(true);
        let conductor = tokio::spawn(run(Arc::clone(&app), "me".to_owned()));
        let mut is_leader = app.is_leader.subscribe();
        let gone = is_leader.wait_for(|is_leader| !is_leader);
        tokio::time::timeout(Duration::from_secs(60), gone).await.unwrap().unwrap();
        app.stop.cancel();
        conductor.await.unwrap();
    }
}
