//! A request in a guest: driven by whoever waits for the response, on the connection's own task.
//!
//! No task, no queue and no wake-up lies between a connection and its guest: until the response begins the guest is
//! polled by [`respond`], then by the response's body, [`GuestBody`]. A client that does not read so holds
//! its own guest back, and nobody else's. What goes on after its response has ended, or its client has gone, is left to
//! a task of its own for a while.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::CONTENT_LENGTH;
use hyper::{Method, Request, Response, Uri};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio_util::task::TaskTracker;
use wasmtime_wasi_http::{Error, WasiBody};

use crate::http_handler::{Answer, Answered};
use crate::instances::{Instance, Instances};
use crate::outcome::Outcome;

/// How long a guest may go on after its response has ended, or its client has gone, where the task has no deadline.
const AFTER_RESPONSE_MAX: Duration = Duration::from_secs(60);
/// Most parts of a response that are taken from a guest which has ended: its channel holds two and the trailers.
const PARTS_TAKEN_MAX: usize = 4;

/// How a call ended, and the instance that it was in, if that may go on.
type Ended = (Outcome, Option<Instance>);

/// What a guest gave.
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is what nearly every request ends with"
)]
pub(crate) enum Given {
    /// A response that has begun.
    Response(Response<GuestBody>),
    /// An error in place of a response.
    Error(Error),
    /// It ended without either.
    Nothing(Outcome),
}

/// A request that a guest works on. Dropped, it is cut off.
struct GuestRun {
    /// None once it has ended.
    call: Option<Pin<Box<dyn Future<Output = Ended> + Send>>>,
    instances: Arc<Instances>,
    /// What must end before the task has ended.
    running: TaskTracker,
    title: Title,
    /// Its turn; what goes on after the response keeps it.
    permit: Option<OwnedSemaphorePermit>,
}

/// The request as notes call it; put into words when there is something to say.
#[derive(Debug, Clone)]
pub(crate) struct Title {
    method: Method,
    uri: Uri,
}

impl Title {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        Self { method: request.method().clone(), uri: request.uri().clone() }
    }
}

impl std::fmt::Display for Title {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.uri.path())
    }
}

/// Runs a request in a guest until its response begins or it has ended; `permit` is its turn. Dropped, the guest is cut
/// off. What is left of it after its response has ended is left to a task among `running`.
pub(crate) async fn respond(
    instances: Arc<Instances>,
    running: TaskTracker,
    request: Request<Incoming>,
    permit: OwnedSemaphorePermit,
) -> Given {
    let title = Title::of(&request);
    let (sender, mut receiver) = oneshot::channel();
    let call = call(Arc::clone(&instances), request, sender);
    let call: Pin<Box<dyn Future<Output = Ended> + Send>> = Box::pin(call);
    let mut run = GuestRun { call: Some(call), instances, running, title, permit: Some(permit) };
    let mut ended = None;
    let response = std::future::poll_fn(|context| {
        ended = run.poll(context);
        // It is there only after a poll of the guest, if at all: nobody needs to be woken by it.
        match (receiver.try_recv(), &ended) {
            (Ok(response), _) => Poll::Ready(Some(response)),
            (Err(_), Some(_)) => Poll::Ready(None),
            (Err(_), None) => Poll::Pending,
        }
    })
    .await;
    if let (Some(Ok(Answer { taken: Some(_), .. })), None) = (&response, &ended) {
        // A function of WASI 0.3 that has no more to do than to write its body ends in the poll after the one that it
        // returns in: then the client is told the body's length.
        ended = std::future::poll_fn(|context| Poll::Ready(run.poll(context))).await;
    }
    match response {
        Some(Ok(Answer { response, taken })) => {
            let names_length = response.headers().contains_key(CONTENT_LENGTH);
            let mut response = response.map(|body| GuestBody {
                parts: VecDeque::new(),
                rest: Some(body),
                taken,
                names_length,
                run,
            });
            if let Some(ended) = ended {
                response.body_mut().guest_ended(ended);
            }
            Given::Response(response)
        }
        Some(Err(error)) => {
            if let Some((_, Some(instance))) = ended {
                run.instances.put_back(instance);
            }
            Given::Error(error)
        }
        None => Given::Nothing(ended.map_or_else(|| Outcome::exited(0), |(outcome, _)| outcome)),
    }
}

impl GuestRun {
    /// How the guest ended, when it does so in this poll.
    fn poll(&mut self, context: &mut Context<'_>) -> Option<Ended> {
        match self.call.as_mut()?.as_mut().poll(context) {
            Poll::Ready(ended) => {
                self.call = None;
                Some(ended)
            }
            Poll::Pending => None,
        }
    }
}

fn note_end(instances: &Instances, title: &Title, outcome: &Outcome) {
    if let Some(message) = &outcome.message {
        instances.task().log.note(&format!("{title}: after its response began: {message}"));
    }
}

/// Runs one request in an idle instance or a fresh one, within the task's limits.
async fn call(
    instances: Arc<Instances>,
    request: Request<Incoming>,
    sender: oneshot::Sender<Answered>,
) -> Ended {
    let idle = instances.idle();
    let slice = instances.slice(idle.as_ref());
    let mut after = None;
    let guest = async {
        let mut instance = match idle {
            Some(instance) => instance,
            None => match instances.create(&slice).await {
                Ok(instance) => instance,
                Err(outcome) => return outcome,
            },
        };
        let Instance { store, handler, .. } = &mut instance;
        match handler.call(store, request, sender).await {
            Ok(takes_another) => {
                after = takes_another.then_some(instance);
                Outcome::exited(0)
            }
            Err(error) => instances.task().outcome_of(&error),
        }
    };
    let outcome = instances.task().run_guest(&slice, guest).await;
    (outcome, after)
}

/// The body of a response, which drives its guest.
pub(crate) struct GuestBody {
    /// Taken from the guest when it ended; sent first.
    parts: VecDeque<Result<Frame<Bytes>, Error>>,
    /// What the guest still writes; None when it has finished.
    rest: Option<WasiBody>,
    /// Told when the client has taken all of it.
    taken: Option<oneshot::Sender<()>>,
    /// Is its length told by the guest's own header? Then that is what the client is held to.
    names_length: bool,
    run: GuestRun,
}

impl GuestBody {
    /// The guest has ended: takes what it has written. A body that it has not finished can't be finished any more, so
    /// the instance goes, which ends the body.
    fn guest_ended(&mut self, (outcome, instance): Ended) {
        note_end(&self.run.instances, &self.run.title, &outcome);
        let mut context = Context::from_waker(Waker::noop());
        while let Some(rest) = self.rest.as_mut().filter(|_| self.parts.len() < PARTS_TAKEN_MAX) {
            match Pin::new(rest).poll_frame(&mut context) {
                Poll::Ready(Some(part)) => self.parts.push_back(part),
                Poll::Ready(None) => self.rest = None,
                Poll::Pending => break,
            }
        }
        if let Some(instance) = instance.filter(|_| self.rest.is_none()) {
            self.run.instances.put_back(instance);
        }
    }
}

impl GuestBody {
    fn poll_rest(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let part = std::task::ready!(Pin::new(rest).poll_frame(context));
        if part.is_none() {
            self.rest = None;
            self.all_taken();
        }
        Poll::Ready(part)
    }

    fn all_taken(&mut self) {
        if let Some(taken) = self.taken.take() {
            let _ = taken.send(()); // else the guest does not ask
        }
    }
}

impl Drop for GuestBody {
    /// The response has been sent or given up: the guest may finish what it does, for a while.
    fn drop(&mut self) {
        let Some(call) = self.run.call.take() else { return };
        if tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        // Nobody asks for the end of a body whose length was told and that is all there.
        let is_whole = self.rest.as_ref().is_none_or(|rest| rest.size_hint().exact() == Some(0));
        if is_whole {
            self.all_taken();
        }
        let permit = self.run.permit.take();
        let (instances, title) = (Arc::clone(&self.run.instances), self.run.title.clone());
        self.run.running.spawn(async move {
            let _permit = permit;
            let Ok((outcome, instance)) = tokio::time::timeout(AFTER_RESPONSE_MAX, call).await
            else {
                return;
            };
            note_end(&instances, &title, &outcome);
            if let Some(instance) = instance.filter(|_| is_whole) {
                instances.put_back(instance);
            }
        });
    }
}

impl Body for GuestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if let Some(part) = this.parts.pop_front() {
            return Poll::Ready(Some(part));
        }
        // What is written goes out before more is made.
        if let Poll::Ready(part) = this.poll_rest(context) {
            return Poll::Ready(part);
        }
        if let Some(ended) = this.run.poll(context) {
            this.guest_ended(ended);
            if let Some(part) = this.parts.pop_front() {
                return Poll::Ready(Some(part));
            }
        }
        this.poll_rest(context)
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty() && self.rest.is_none() && !self.names_length
    }

    /// Known when the guest has ended: then the client is told the length, too.
    fn size_hint(&self) -> SizeHint {
        let data = |part: &Result<Frame<Bytes>, Error>| {
            part.as_ref().ok()?.data_ref().and_then(|data| u64::try_from(data.len()).ok())
        };
        match (&self.rest, self.parts.iter().map(data).sum::<Option<u64>>()) {
            (None, Some(length)) if !self.names_length => SizeHint::with_exact(length),
            _ => SizeHint::default(),
        }
    }
}
