//! A task that serves `wasi:http`: one listener, a fresh guest for each request.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use brig_api::lifecycle::Reason;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;
use wasmtime_wasi_http::{Error, WasiHttpView};

use crate::host::ComponentHost;
use crate::outcome::{Outcome, Refusal};
use crate::task::Task;

/// Requests of one task that run at a time; more wait.
const REQUESTS_MAX: usize = 100;
/// Connections of one task; more wait in the kernel.
const CONNECTIONS_MAX: usize = 1_000;
/// Connections that the kernel holds until they are accepted.
const BACKLOG: u32 = 1_024;
/// Longest wait for a response to begin, where the task has no deadline: after that the client is told.
const RESPONSE_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long a guest may go on after its response has ended, or its client has gone, where the task has no deadline.
const AFTER_RESPONSE_MAX: Duration = Duration::from_secs(60);
/// Longest time a client takes to send the head of a request, and to answer whether it is still there.
const HEAD_WAIT_MAX: Duration = Duration::from_secs(30);
/// Longest time a client takes nothing of what it is sent, in milliseconds.
const TAKE_WAIT_MAX_MS: u32 = 60_000;
/// Pause after a connection could not be accepted (no descriptors left, for instance).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

type ServedBody = UnsyncBoxBody<Bytes, Error>;
type GuestResponse = Result<Response<HyperOutgoingBody>, ErrorCode>;

struct Server {
    task: Arc<Task>,
    pre: ProxyPre<ComponentHost>,
    guests: Arc<Semaphore>,
    /// Everything that must end before the task has ended: connections and guests.
    running: TaskTracker,
}

/// Serves until it is asked to end, and finishes what it has.
pub(crate) async fn run(
    task: Arc<Task>,
    pre: &ProxyPre<ComponentHost>,
    address: SocketAddr,
    on_running: impl FnOnce(Option<SocketAddr>) + Send,
) -> Outcome {
    let stop = Arc::clone(&task.control.stop);
    let room = tokio::select! {
        biased;
        () = stop.asked() => return Outcome::stopped(stop.code()),
        room = try_out(&task, pre) => match room {
            Ok(room) => room,
            Err(outcome) => return outcome,
        },
    };
    let (listener, local) = match listen(address) {
        Ok(listening) => listening,
        Err(error) => {
            let message = format!("it can't listen on {address}: {error}");
            return Refusal::new(Reason::CreateFailed, message).into();
        }
    };
    let server = Arc::new(Server {
        task,
        pre: pre.clone(),
        guests: Arc::new(Semaphore::new(room)),
        running: TaskTracker::new(),
    });
    on_running(Some(local));
    tokio::select! {
        () = stop.asked() => {}
        () = Arc::clone(&server).accept(&listener) => {}
    }
    drop(listener);
    server.running.close();
    tokio::select! {
        biased;
        () = server.running.wait() => {}
        () = stop.cut() => return Outcome::stopped(stop.code()),
    }
    Outcome::exited(0)
}

/// Instantiates the program once, so that one that can't start fails now and not at every request; how many
/// requests fit the memory limit at a time.
async fn try_out(task: &Arc<Task>, pre: &ProxyPre<ComponentHost>) -> Result<usize, Outcome> {
    let slice = task.slice();
    let mut store = task.component_store(&slice)?;
    let memory = task.memory();
    let instance = async {
        match pre.instantiate_async(&mut store).await {
            Ok(_) => Outcome::exited(0),
            Err(error) => task.outcome_of_instantiation(&error),
        }
    };
    let outcome = task.run_guest(&slice, instance).await;
    if outcome != Outcome::exited(0) {
        return Err(outcome);
    }
    let fit = memory.limit() / memory.now().max(1);
    Ok(usize::try_from(fit).unwrap_or(REQUESTS_MAX).clamp(1, REQUESTS_MAX))
}

fn listen(address: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    let local = listener.local_addr()?;
    Ok((listener, local))
}

impl Server {
    async fn accept(self: Arc<Self>, listener: &TcpListener) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true); // only a matter of latency
                    self.running.spawn(Arc::clone(&self).serve(stream, permit));
                }
                Err(error) => {
                    tracing::warn!(error = %error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, _permit: OwnedSemaphorePermit) {
        let stop = Arc::clone(&self.task.control.stop);
        // Else a client that does not read holds a guest for ever. A streaming answer has no other limit of time.
        if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(&stream, TAKE_WAIT_MAX_MS) {
            tracing::debug!(error = %error, "a time-out could not be set");
        }
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_WAIT_MAX);
        builder.http2().timer(TokioTimer::new()).keep_alive_interval(HEAD_WAIT_MAX);
        let asked = CancellationToken::new();
        let service = hyper::service::service_fn({
            let asked = asked.clone();
            move |request| {
                asked.cancel();
                Arc::clone(&self).answer(request)
            }
        });
        let mut connection =
            Box::pin(builder.serve_connection(TokioIo::new(stream), service).into_owned());
        let result = tokio::select! {
            result = &mut connection => result,
            () = never_asks(&asked) => return,
            () = stop.cut() => return,
            () = stop.asked() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! { result = connection => result, () = stop.cut() => return }
            }
        };
        if let Err(error) = result {
            tracing::debug!(error, "a connection ended early");
        }
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<ServedBody>, Infallible> {
        if !names_its_host(&request) {
            return Ok(plain(StatusCode::BAD_REQUEST, "the request names no host"));
        }
        let wait = self.task.deadline_ms.map_or(RESPONSE_WAIT_MAX, Duration::from_millis);
        let guests = Arc::clone(&self.guests);
        let Ok(Ok(permit)) = tokio::time::timeout(wait, guests.acquire_owned()).await else {
            return Ok(plain(StatusCode::SERVICE_UNAVAILABLE, "the service is at its limit"));
        };
        let title = format!("{} {}", request.method(), request.uri().path());
        let (sender, receiver) = oneshot::channel();
        let guest = self.running.spawn(Arc::clone(&self).run_guest(request, sender, permit));
        let mut guest = EndedOnDrop { guest: Some(guest), patience: Duration::ZERO };
        match tokio::time::timeout(wait, receiver).await {
            Ok(Ok(Ok(response))) => {
                guest.patience = AFTER_RESPONSE_MAX;
                Ok(response.map(|body| WatchedBody { body, _guest: guest }.boxed_unsync()))
            }
            Ok(Ok(Err(code))) => {
                self.task.log.note(&format!("{title}: the program answered with an error: {code}"));
                Ok(plain(StatusCode::BAD_GATEWAY, "the program answered with an error"))
            }
            // There will be no response; how the guest ends says why. It may go on without giving one.
            Ok(Err(_)) => Ok(match tokio::time::timeout(wait, guest.ended()).await {
                Ok(outcome) => self.failed(&title, &outcome),
                Err(_) => self.too_late(&title, wait),
            }),
            Err(_) => Ok(self.too_late(&title, wait)),
        }
    }

    fn too_late(&self, title: &str, wait: Duration) -> Response<ServedBody> {
        self.task.log.note(&format!("{title}: no response within {wait:?}"));
        plain(StatusCode::GATEWAY_TIMEOUT, "the program took too long")
    }

    /// The answer for a guest that ended without a response of its own.
    fn failed(&self, title: &str, outcome: &Outcome) -> Response<ServedBody> {
        let says = outcome.message.as_deref().unwrap_or("it ended without a response");
        self.task.log.note(&format!("{title}: {says}"));
        match outcome.reason {
            Some(Reason::DeadlineExceeded) => {
                plain(StatusCode::GATEWAY_TIMEOUT, "the program took too long")
            }
            Some(Reason::OutOfMemory | Reason::LimitTooSmall | Reason::CreateFailed) => {
                plain(StatusCode::SERVICE_UNAVAILABLE, "the service is at its limit")
            }
            _ => plain(StatusCode::INTERNAL_SERVER_ERROR, "the program failed"),
        }
    }

    /// Runs a fresh guest for one request; it may go on after its response has begun.
    async fn run_guest(
        self: Arc<Self>,
        request: Request<Incoming>,
        sender: oneshot::Sender<GuestResponse>,
        _permit: OwnedSemaphorePermit,
    ) -> Outcome {
        let slice = self.task.slice();
        let guest = self.call(&slice, request, sender);
        self.task.run_guest(&slice, guest).await
    }

    async fn call(
        &self,
        slice: &Arc<crate::meter::Slice>,
        request: Request<Incoming>,
        sender: oneshot::Sender<GuestResponse>,
    ) -> Outcome {
        let mut store = match self.task.component_store(slice) {
            Ok(store) => store,
            Err(refusal) => return refusal.into(),
        };
        let proxy = match self.pre.instantiate_async(&mut store).await {
            Ok(proxy) => proxy,
            Err(error) => return self.task.outcome_of_instantiation(&error),
        };
        let called = async {
            let request = store.data_mut().http().new_incoming_request(Scheme::Http, request)?;
            let response = store.data_mut().http().new_response_outparam(sender)?;
            proxy.wasi_http_incoming_handler().call_handle(&mut store, request, response).await
        };
        called.await.map_or_else(|error| self.task.outcome_of(&error), |()| Outcome::exited(0))
    }
}

/// Ends when nothing was asked on a connection in time. The time-out for heads does not run before the version of
/// HTTP is known, and not in version 2.
async fn never_asks(asked: &CancellationToken) {
    if tokio::time::timeout(HEAD_WAIT_MAX, asked.cancelled()).await.is_ok() {
        std::future::pending().await
    }
}

/// A guest whose client waits for it: when that is over, the guest's time is, too.
struct EndedOnDrop {
    /// None once its time is over.
    guest: Option<JoinHandle<Outcome>>,
    /// How much longer it may run.
    patience: Duration,
}

impl EndedOnDrop {
    /// How the guest ended.
    async fn ended(&mut self) -> Outcome {
        match &mut self.guest {
            Some(guest) => match guest.await {
                Ok(outcome) => outcome,
                Err(error) => Outcome::host_failed(&error.to_string()),
            },
            None => std::future::pending().await,
        }
    }
}

impl Drop for EndedOnDrop {
    fn drop(&mut self) {
        let Some(guest) = self.guest.take().filter(|guest| !guest.is_finished()) else { return };
        let patience = self.patience;
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if !patience.is_zero() => {
                // Most guests end at once: whoever waited for each to the end of its time would be many.
                runtime.spawn(async move {
                    let abort = guest.abort_handle();
                    if tokio::time::timeout(patience, guest).await.is_err() {
                        abort.abort();
                    }
                });
            }
            _ => guest.abort(),
        }
    }
}

/// A response's body, which keeps its guest until it has been sent or given up.
struct WatchedBody {
    body: HyperOutgoingBody,
    _guest: EndedOnDrop,
}

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A request of wasi:http has an authority: without one it can't be given to a guest.
fn names_its_host(request: &Request<Incoming>) -> bool {
    let host = request.headers().get(hyper::header::HOST);
    request.uri().authority().is_some() || host.is_some_and(|host| host.to_str().is_ok())
}

fn plain(status: StatusCode, text: &'static str) -> Response<ServedBody> {
    let body = Full::new(Bytes::from_static(text.as_bytes()));
    let body = body.map_err(|never: Infallible| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_left_of_a_guest_that_ends_after_its_response() {
        let (end, ended) = oneshot::channel::<()>();
        let guest = tokio::spawn(async move {
            let _ = ended.await;
            Outcome::exited(0)
        });
        drop(EndedOnDrop { guest: Some(guest), patience: AFTER_RESPONSE_MAX });
        end.send(()).unwrap();
        let metrics = tokio::runtime::Handle::current().metrics();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(metrics.num_alive_tasks(), 0);
    }

    #[tokio::test]
    async fn a_guest_that_goes_on_after_its_response_is_ended_in_time() {
        let (alive, is_gone) = oneshot::channel::<()>();
        let guest = tokio::spawn(async move {
            let _alive = alive;
            std::future::pending::<Outcome>().await
        });
        drop(EndedOnDrop { guest: Some(guest), patience: Duration::from_millis(20) });
        assert!(is_gone.await.is_err());
    }
}
