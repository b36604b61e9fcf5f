//! A write: one transaction that takes the next revision if it changes anything, and tells the feed what.

use std::collections::HashMap;

use brig_api::change::{Change, EventLevel};
use brig_api::object::{Meta, ObjectKey};
use brig_api::{Object, PlanSequence, Revision};

use crate::columns::{number, unsigned};
use crate::database::{Sql, Tx, on_db};
use crate::error::StoreError;
use crate::store::Store;
use crate::table::change::changes_insert;
use crate::table::event::events_insert;

/// The lock that makes writers take turns. On SQLite the transaction holds the file's lock already.
const CLUSTER_LOCK: Sql = Sql {
    sqlite: "SELECT revision, plan FROM cluster WHERE id = 1",
    postgres: "SELECT revision, plan FROM cluster WHERE id = 1 FOR UPDATE",
};
const CLUSTER_SET: &str = "UPDATE cluster SET revision = $1, plan = $2 WHERE id = 1";

/// How often a transaction is tried again that another one got in the way of.
pub(crate) const RETRIES_MAX: u32 = 3;
/// How long to wait before that, times the number of the attempt.
pub(crate) const RETRY_MS: u64 = 20;

/// A transaction that writes.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) db: Tx,
    pub(crate) now_ms: i64,
    newest: Revision,
    plan: PlanSequence,
    next_plan: Option<PlanSequence>,
    keeps_rows: bool,
    changes: Vec<(ObjectKey, Option<Object>)>,
    /// The place of each resource's last change in `changes`.
    last_changes: HashMap<ObjectKey, usize>,
    events: Vec<PendingEvent>,
}

/// An event that is recorded when the transaction commits.
#[derive(Debug)]
pub(crate) struct PendingEvent {
    pub(crate) level: EventLevel,
    pub(crate) about: ObjectKey,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Runs a write from begin to commit, again when the database asks for that. The body is an expression of type
/// `Result`; it must not return from the function around it, and has no effect but through `tx`.
macro_rules! in_write {
    ($store:expr, $now_ms:expr, |$tx:ident| $body:expr) => {{
        let mut attempt = 0;
        loop {
            let outcome = match $crate::write::Write::begin($store, $now_ms).await {
                Ok(mut $tx) => match $body {
                    Ok(value) => $tx.commit($store).await.map(|revision| (value, revision)),
                    Err(error) => Err($tx.give_up(error).await),
                },
                Err(error) => Err(error),
            };
            match outcome {
                Err(error) if error.is_transient() && attempt < $crate::write::RETRIES_MAX => {
                    attempt += 1;
                    $crate::write::wait_before(attempt).await;
                }
                outcome => break outcome,
            }
        }
    }};
}
pub(crate) use in_write;

/// Waits a little longer each time.
pub(crate) async fn wait_before(attempt: u32) {
    let pause = std::time::Duration::from_millis(RETRY_MS * u64::from(attempt));
    tokio::time::sleep(pause).await;
}

impl Write {
    /// Takes the turn: nothing that is read from here on can change until the end.
    pub(crate) async fn begin(store: &Store, now_ms: i64) -> Result<Self, StoreError> {
        let mut db = store.pools().write().await?;
        let sql = db.pick(CLUSTER_LOCK);
        let (revision, plan): (i64, i64) =
            on_db!(&mut db, |connection| sqlx::query_as(sql).fetch_one(connection).await)?;
        Ok(Self {
            db,
            now_ms,
            newest: Revision(unsigned("cluster.revision", revision)?),
            plan: PlanSequence(unsigned("cluster.plan", plan)?),
            next_plan: None,
            keeps_rows: false,
            changes: Vec::new(),
            last_changes: HashMap::new(),
            events: Vec::new(),
        })
    }

    /// The revision that this transaction has if it changes anything.
    pub(crate) fn revision(&self) -> Revision {
        Revision(self.newest.0 + 1)
    }

    /// The newest revision before this transaction.
    pub(crate) fn newest(&self) -> Revision {
        self.newest
    }

    /// The newest committed plan.
    pub(crate) fn plan(&self) -> PlanSequence {
        self.plan
    }

    /// This transaction is that plan.
    pub(crate) fn set_plan(&mut self, plan: PlanSequence) {
        self.next_plan = Some(plan);
    }

    /// Rows that are no resources were written, and stay even if nothing else changes.
    pub(crate) fn keep_rows(&mut self) {
        self.keeps_rows = true;
    }

    /// What a resource has that is created now.
    pub(crate) fn meta(&self) -> Meta {
        Meta { revision: self.revision(), created_ms: self.now_ms }
    }

    /// The resource is now so. Several changes of one resource in one transaction are one change, the last: nobody
    /// can have seen the others.
    pub(crate) fn changed(&mut self, object: Object) {
        let key = object.key();
        // A change is not drawn before a deletion: the resource after it is another one of the same name.
        let last = self.last_changes.get(&key).and_then(|place| self.changes.get_mut(*place));
        match last {
            Some((_, slot @ Some(_))) => *slot = Some(object),
            _ => self.append(key, Some(object)),
        }
    }

    /// The resource is gone.
    pub(crate) fn deleted(&mut self, key: ObjectKey) {
        self.append(key, None);
    }

    fn append(&mut self, key: ObjectKey, object: Option<Object>) {
        self.last_changes.insert(key.clone(), self.changes.len());
        self.changes.push((key, object));
    }

    /// All of this happened.
    pub(crate) fn happened(&mut self, events: impl IntoIterator<Item = PendingEvent>) {
        self.events.extend(events);
    }

    /// Something happened, as it should. Events go with changes: without any they are not recorded.
    pub(crate) fn normal(
        &mut self,
        about: ObjectKey,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.events.push(PendingEvent {
            level: EventLevel::Normal,
            about,
            reason,
            message: message.into(),
        });
    }

    /// The resources that were written so far.
    pub(crate) fn objects(&self) -> impl Iterator<Item = &Object> {
        self.changes.iter().filter_map(|(_, object)| object.as_ref())
    }

    /// Commits, and wakes those who wait for changes. Gives the revision at which everything is as it was left.
    pub(crate) async fn commit(mut self, store: &Store) -> Result<Revision, StoreError> {
        let has_changes = !self.changes.is_empty();
        if !has_changes && !self.keeps_rows && self.next_plan.is_none() {
            self.db.rollback().await?;
            return Ok(self.newest);
        }
        let revision = if has_changes { self.revision() } else { self.newest };
        let written = if has_changes { self.append_to_feed(revision).await? } else { Vec::new() };
        let plan = self.next_plan.unwrap_or(self.plan);
        let numbers = (number("revision", revision.0)?, number("plan", plan.0)?);
        on_db!(&mut self.db, |connection| {
            let query = sqlx::query(CLUSTER_SET).bind(numbers.0).bind(numbers.1);
            query.execute(connection).await.map(drop)
        })?;
        // In a task of its own: who asked may go away at any moment (a client that hangs up, a time-out), and then a
        // commit that is under way still takes effect. Nobody would look for it if it were not announced.
        let (db, store) = (self.db, store.clone());
        let committed = tokio::spawn(async move {
            db.commit().await?;
            if has_changes {
                store.announce(revision);
                store.hand_out(written);
            }
            Ok(revision)
        });
        committed.await.unwrap_or_else(|gone| Err(StoreError::Database(gone.into())))
    }

    async fn append_to_feed(&mut self, revision: Revision) -> Result<Vec<Change>, StoreError> {
        changes_insert(&mut self.db, revision, &self.changes).await?;
        events_insert(&mut self.db, revision, self.now_ms, &self.events).await?;
        let written = (0..).zip(std::mem::take(&mut self.changes));
        let change = |(position, (key, object))| Change { revision, position, key, object };
        Ok(written.map(change).collect())
    }

    /// Rolls back because of `error`, which matters more than whether that succeeds.
    pub(crate) async fn give_up(self, error: StoreError) -> StoreError {
        if let Err(rollback) = self.db.rollback().await {
            tracing::debug!(error = &rollback as &dyn std::error::Error, "a rollback failed");
        }
        error
    }
}
