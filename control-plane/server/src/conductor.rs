//! The loop that makes things happen: keeps the model up to date, asks the core for a plan, commits it.
//!
//! It is woken by commits, by nodes that come back, by nodes that fall silent and by the core's own timer; what woke
//! it is not trusted, it looks at everything each time. Only the holder of the lease plans, but correctness rests
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
    while !app.stop.is_cancelled() {
        let began = Instant::now();
        let ended = AssertUnwindSafe(lead(&app, &holder)).catch_unwind().await;
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %chain(&error), "planning failed; the model is loaded again");
            }
            Err(_) => tracing::error!("planning panicked; the model is loaded again"),
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
    if let Err(error) = app.store.leader_try(&holder, clock::now_ms(), 0).await {
        tracing::debug!(error = %error, "the lease was not given back");
    }
}

/// Tries for the lease; with it, plans until it is lost, something fails or the server stops.
async fn lead(app: &App, holder: &str) -> Result<(), FeedError> {
    if !try_lease(&app.store, holder).await? {
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
    let model = app.store.model_load().await?;
    let follower = app.feed.follow(model.revision);
    let model = Box::new(model);
    let pass = Pass {
        app,
        model,
        follower,
        questions,
        asked: Vec::new(),
        in_a_row: 0,
        rests_until: Instant::now(),
    };
    tokio::select! {
        result = pass.repeat() => result,
        result = keep_lease(&app.store, holder) => {
            app.is_leader.send_replace(false);
            tracing::info!("another server plans now");
            result.map_err(FeedError::from)
        }
        () = app.stop.cancelled() => Ok(()),
    }
}

async fn try_lease(store: &Store, holder: &str) -> Result<bool, StoreError> {
    let lease_ms = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
    store.leader_try(holder, clock::now_ms(), lease_ms).await
}

/// Returns when the lease is lost, or could not be renewed for as long as it lasts.
async fn keep_lease(store: &Store, holder: &str) -> Result<(), StoreError> {
    let mut renewed = Instant::now();
    loop {
        tokio::time::sleep(LEASE_RENEWAL).await;
        match try_lease(store, holder).await {
            Ok(true) => renewed = Instant::now(),
            Ok(false) => return Ok(()),
            Err(error) if renewed.elapsed() >= LEASE => return Err(error),
            Err(error) => tracing::warn!(error = %error, "the lease could not be renewed"),
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
                () = &mut timer => return Ok(()),
            }
            self.answer().await?;
        }
    }

    async fn plan_once(&mut self) -> Result<Outcome, FeedError> {
        let (moment, silence_due) = moment(self.app, &self.model);
        let began = Instant::now();
        let plan = self.with_model(move |model| brig_core::plan(model, &moment)).await?;
        self.rests_until = Instant::now() + began.elapsed().min(PASS_REST_MAX);
        if plan.decisions.is_empty() && plan.explanations.is_empty() {
            return Ok(Outcome::Idle { wake_at_ms: plan.wake_at_ms, silence_due });
        }
        let committed = self.app.store.plan_commit(&plan, clock::now_ms()).await?;
        self.model.plan = committed.sequence;
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
