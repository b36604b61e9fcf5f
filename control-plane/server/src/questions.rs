//! Questions about the model: who plans keeps it up to date, and answers between passes, so that nobody loads the
//! cluster to ask about one unit. A server that does not plan loads it for each question.
//!
//! **Invariant:** an answer knows at least the revision that the asker names.

use std::sync::{Arc, Mutex, PoisonError};

use brig_api::{Code, Revision};
use brig_core::{Model, Moment};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::app::App;
use crate::clock;
use crate::limits::QUESTIONS_MAX;
use crate::problem::{Answer, Failure};

/// Finds the answer in the model and gives it to whoever asked.
type Answering = Box<dyn FnOnce(&mut Model, &Moment) + Send>;

/// A question that waits for its answer.
pub(crate) struct Question {
    not_before: Revision,
    answer: Answering,
}

impl Question {
    /// The model has to know of this revision.
    pub(crate) fn not_before(&self) -> Revision {
        self.not_before
    }

    /// Answers it. The core works in the model to find an answer and puts back what it moved; if it panics meanwhile,
    /// the model is as lost as in a pass that panics.
    pub(crate) fn answer(self, model: &mut Model, moment: &Moment) {
        (self.answer)(model, moment);
    }
}

/// The way to whoever plans in this process.
#[derive(Default)]
pub(crate) struct Questions {
    planner: Mutex<Option<mpsc::Sender<Question>>>,
}

impl Questions {
    /// Questions come here from now on, until this is dropped.
    pub(crate) fn receive(&self) -> mpsc::Receiver<Question> {
        let (sender, receiver) = mpsc::channel(QUESTIONS_MAX);
        *self.planner.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    /// None when nobody plans here, or no longer.
    async fn put<T: Send + 'static>(
        &self,
        not_before: Revision,
        question: Arc<impl Fn(&mut Model, &Moment) -> T + Send + Sync + 'static>,
    ) -> Option<T> {
        let planner = self.planner.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let (sender, answered) = oneshot::channel();
        let answer = Box::new(move |model: &mut Model, moment: &Moment| {
            // Who asked may have gone.
            let _ = sender.send(question(model, moment));
        });
        planner.send(Question { not_before, answer }).await.ok()?;
        answered.await.ok()
    }
}

/// What `question` finds in the model, which knows of everything up to `not_before`.
pub(crate) async fn ask<T: Send + 'static>(
    app: &App,
    not_before: Revision,
    question: impl Fn(&mut Model, &Moment) -> T + Send + Sync + 'static,
) -> Answer<T> {
    let question = Arc::new(question);
    if let Some(answer) = app.questions.put(not_before, Arc::clone(&question)).await {
        return Ok(answer);
    }
    let mut model = app.store.model_load().await?;
    // Nodes talk to the server that plans: this one can't tell who is silent, but for what that one has written down.
    let moment = Moment { now_ms: clock::now_ms(), ..Moment::default() };
    let answered = tokio::task::spawn_blocking(move || question(&mut model, &moment));
    answered.await.map_err(|error| {
        tracing::error!(error = %error, "a question about the model failed");
        Failure::new(Code::Internal, "the scheduler failed at this; the server's log says how")
    })
}

/// What a pass, or an answer, must know besides the model, on the server that plans.
pub(crate) fn moment(app: &App, model: &Model) -> (Moment, Option<Instant>) {
    let names = model.nodes().map(|node| &node.name);
    let (silent, silence_due) = app.nodes.silent(names, Instant::now());
    (Moment { now_ms: clock::now_ms(), silent }, silence_due)
}
