//! A server that plans: a model kept up to date from the change feed, late, and loaded anew whenever something went wrong.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;
use brig_api::NodeName;
use brig_api::change::Change;
use brig_api::lifecycle::Reason;
use brig_api::object::Object;
use brig_api::session::HeldArtifact;
use brig_core::{Decision, Holdings, Model, Moment, Plan, plan};

use crate::database::{Database, Rows};
use crate::random::Random;
use crate::soundness;

/// What nodes say they hold.
pub(crate) type Held = BTreeMap<NodeName, Vec<HeldArtifact>>;

/// See the module.
pub(crate) struct Planner {
    model: Model,
    /// The same objects, kept without the core.
    rows: Rows,
    /// What it was told that nodes hold; not with the feed, and forgotten with the model.
    held: Held,
    /// How much of the feed it has read.
    position: usize,
    /// How much of it must be read before the next plan: at least its own commits and what it loaded.
    must_read: usize,
    made: Option<Plan>,
}

impl Planner {
    /// One that has just started.
    pub(crate) fn new(database: &Database) -> Self {
        let read = database.feed().len();
        Self {
            model: database.load(),
            rows: database.rows().clone(),
            held: Held::new(),
            position: read,
            must_read: read,
            made: None,
        }
    }

    /// Starts again from the database. Some of what it loaded may come with the feed once more.
    pub(crate) fn crash(&mut self, database: &Database, random: &mut Random) {
        let again = if random.chance(30) { random.position(12) } else { 0 };
        *self = Self::new(database);
        self.position = batch_start(database.feed(), self.position.saturating_sub(again));
    }

    /// Reads some batches of the feed.
    pub(crate) fn read(&mut self, database: &Database, batches: u32) {
        for _ in 0..batches {
            let unread = database.feed().get(self.position..).unwrap_or_default();
            let Some(first) = unread.first() else { return };
            let batch = unread.iter().take_while(|change| change.revision == first.revision);
            for change in batch {
                self.take(change);
            }
        }
    }

    fn take(&mut self, change: &Change) {
        self.model.apply(change);
        match &change.object {
            Some(object) => self.rows.insert(change.key.clone(), object.clone()),
            None => self.rows.remove(&change.key),
        };
        self.position += 1;
    }

    /// Nodes tell it what they hold now: each with so much chance, in percent.
    pub(crate) fn listen(&mut self, held: &Held, percent: u32, random: &mut Random) {
        let names: BTreeSet<_> = held.keys().chain(self.held.keys()).cloned().collect();
        for name in names {
            let (before, now) = (self.held.get(&name).cloned(), held.get(&name).cloned());
            if before == now || !random.chance(percent) {
                continue;
            }
            self.model.hold(&name, now.as_deref().map(holdings));
            match now {
                Some(now) => self.held.insert(name, now),
                None => self.held.remove(&name),
            };
        }
    }

    /// Reads the whole feed.
    pub(crate) fn catch_up(&mut self, database: &Database) {
        self.read(database, u32::MAX);
    }

    /// The next step of its loop: reads, plans, or commits what it has planned.
    ///
    /// # Errors
    /// A plan that breaks a rule, or that a model made anew would not give.
    pub(crate) fn step(
        &mut self,
        database: &mut Database,
        moment: &Moment,
        random: &mut Random,
    ) -> anyhow::Result<()> {
        if let Some(made) = self.made.take() {
            if random.chance(5) {
                // Before the commit.
                self.crash(database, random);
                return Ok(());
            }
            return self.commit(database, &made, moment.now_ms, random);
        }
        let batches = random.below(6);
        self.read(database, batches);
        if self.position >= self.must_read {
            let is_compared = random.chance(25);
            let made = self.plan(moment, random, is_compared)?;
            self.made = (!made.is_empty()).then_some(made);
        }
        Ok(())
    }

    fn commit(
        &mut self,
        database: &mut Database,
        made: &Plan,
        now_ms: i64,
        random: &mut Random,
    ) -> anyhow::Result<()> {
        let newest = database.truth().plan;
        match database.commit(made, now_ms) {
            Ok(has_left_out) => {
                if has_left_out {
                    self.model.doubt_everything();
                }
                ensure!(made.after == newest, "plan after {} was committed", made.after);
                self.model.plan = database.truth().plan;
                self.must_read = database.feed().len();
                if random.chance(5) {
                    // Between the commit and its publication.
                    self.crash(database, random);
                }
            }
            Err(_) => {
                ensure!(made.after != newest, "plan after {} was refused", made.after);
                self.crash(database, random);
            }
        }
        Ok(())
    }

    /// Plans, and checks the plan.
    ///
    /// # Errors
    /// See [`Self::step`].
    pub(crate) fn plan(
        &mut self,
        moment: &Moment,
        random: &mut Random,
        is_compared: bool,
    ) -> anyhow::Result<Plan> {
        let fresh = is_compared.then(|| self.fresh(random)).transpose()?;
        let made = plan(&mut self.model, moment);
        if let Some(mut fresh) = fresh {
            let of_fresh = plan(&mut fresh, moment);
            let [kept, fresh] = [&made, &of_fresh].map(|plan| self.without_rewordings(plan));
            ensure!(
                serde_json::to_vec(&kept)? == serde_json::to_vec(&fresh)?,
                "a model kept from the feed (-) and one made anew of the same objects (+) differ:\n{}",
                difference(&kept, &fresh)
            );
        }
        soundness::check(&self.rows, &self.held, moment, &made)?;
        Ok(made)
    }

    /// The plan without refusals that tell what the unit's status says already in other words. A kept model does not look
    /// again at a shape that fits nowhere until something happens that could help it, so it may name a resource less
    /// that has run short meanwhile.
    pub(crate) fn without_rewordings(&self, plan: &Plan) -> Plan {
        let mut plan = plan.clone();
        let mut reworded = BTreeSet::new();
        plan.decisions.retain(|decision| {
            let Decision::UnitRefuse {
                unit, reason: Reason::Unschedulable, promised: None, ..
            } = decision
            else {
                return true;
            };
            let is_known = self.rows.values().any(|object| match object {
                Object::Unit(known) => {
                    known.id == *unit
                        && known.status.reason == Some(Reason::Unschedulable)
                        && known.promised.is_none()
                }
                _ => false,
            });
            if is_known {
                reworded.insert(unit.clone());
            }
            !is_known
        });
        plan.explanations.retain(|explanation| !reworded.contains(&explanation.unit));
        plan
    }

    /// A model made anew of the same objects, in another order.
    fn fresh(&self, random: &mut Random) -> anyhow::Result<Model> {
        let mut objects: Vec<_> = self.rows.values().cloned().collect();
        random.shuffle(&mut objects);
        let mut fresh = Model::new(self.model.revision, self.model.plan, objects);
        for (node, held) in &self.held {
            fresh.hold(node, Some(holdings(held)));
        }
        ensure!(fresh == self.model, "the kept model has other objects than the feed told");
        Ok(fresh)
    }

    /// What was planned and not committed is given up.
    pub(crate) fn give_up(&mut self, database: &Database) {
        if self.made.take().is_some() {
            *self = Self::new(database);
        }
    }

    /// Reads everything, plans, commits at once and reads that. When to plan again.
    ///
    /// # Errors
    /// See [`Self::step`].
    pub(crate) fn pass(
        &mut self,
        database: &mut Database,
        moment: &Moment,
        random: &mut Random,
    ) -> anyhow::Result<Option<i64>> {
        self.catch_up(database);
        if self.model.plan != database.truth().plan {
            *self = Self::new(database);
        }
        let is_compared = random.chance(25);
        let made = self.plan(moment, random, is_compared)?;
        if !made.is_empty() {
            if database.commit(&made, moment.now_ms)? {
                self.model.doubt_everything();
            }
            self.model.plan = database.truth().plan;
            self.catch_up(database);
        }
        Ok(made.wake_at_ms)
    }

    /// The newest revision in its model.
    pub(crate) fn revision(&self) -> brig_api::Revision {
        match &self.made {
            Some(made) => made.based_on.min(self.model.revision),
            None => self.model.revision,
        }
    }

    /// Every object that it knows.
    pub(crate) fn rows(&self) -> &Rows {
        &self.rows
    }
}

fn holdings(held: &[HeldArtifact]) -> Holdings {
    Holdings::default().after(held, &[])
}

/// Where the batch begins that the change at `position` is in.
fn batch_start(feed: &[Change], position: usize) -> usize {
    let Some(change) = feed.get(position) else { return position };
    feed.partition_point(|other| other.revision < change.revision)
}

/// The lines that only one of the plans has.
fn difference(kept: &Plan, fresh: &Plan) -> String {
    let [kept, fresh] = [kept, fresh].map(|plan| {
        let lines = plan.decisions.iter().map(|decision| format!("{decision:?}\n"));
        let told = plan.explanations.iter().map(|explanation| format!("{explanation:?}\n"));
        let head = format!("wake at {:?}, based on {}\n", plan.wake_at_ms, plan.based_on);
        std::iter::once(head).chain(lines).chain(told).collect::<Vec<_>>()
    });
    let only = |one: &[String], other: &[String], sign: &str| -> String {
        let lines = one.iter().filter(|line| !other.contains(line));
        lines.map(|line| format!("{sign} {line}")).collect()
    };
    let lines = only(&kept, &fresh, "-") + &only(&fresh, &kept, "+");
    if lines.is_empty() {
        let in_another_place = kept.iter().zip(&fresh).filter(|(kept, fresh)| kept != fresh);
        return in_another_place.map(|(kept, fresh)| format!("- {kept}+ {fresh}")).collect();
    }
    lines
}
