//! A task that serves `wasi:http`: one listener, its connections, and each request's turn.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use brig_api::lifecycle::Reason;
use brig_shim::message::HttpLimits;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wasmtime_wasi_http::Error;

use crate::http_guest::{Given, GuestBody, Title, respond};
use crate::http_handler::HandlerPre;
use crate::instances::Instances;
use crate::outcome::{Outcome, refusal};
use crate::stop::Stop;
use crate::task::Task;

/// Connections of one task; more wait in the kernel.
const CONNECTIONS_MAX: usize = 1_000;
/// Connections that the kernel holds until they are accepted.
const BACKLOG: u32 = 1_024;
/// Longest time a client takes to send the head of a request, and to answer whether it is still there.
const HEAD_WAIT_MAX: Duration = Duration::from_secs(30);
/// Longest time a client takes nothing of what it is sent, in milliseconds.
const TAKE_WAIT_MAX_MS: u32 = 60_000;
/// Pause after a connection could not be accepted (no descriptors left, for instance).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

struct Server {
    instances: Arc<Instances>,
    /// A permit for each request that may run at a time.
    guests: Arc<Semaphore>,
    /// Longest wait for a turn, and then for a response to begin.
    wait: Duration,
    stop: Arc<Stop>,
    /// Everything that must end before the task has ended: connections and guests.
    running: TaskTracker,
}

/// Serves until it is asked to end, and finishes what it has.
pub(crate) async fn run(
    task: Arc<Task>,
    pre: &Arc<HandlerPre>,
    socket: OwnedFd,
    limits: HttpLimits,
    on_running: impl FnOnce(Option<SocketAddr>) + Send,
) -> Outcome {
    let stop = Arc::clone(&task.control.stop);
    // The deadline of a request includes the wait for its response.
    let wait_ms = task.deadline_ms.unwrap_or(u64::MAX).min(limits.timeout_ms);
    let instances = Instances::new(task, Arc::clone(pre), limits.reuse);
    let room = tokio::select! {
        biased;
        () = stop.asked() => return Outcome::stopped(stop.code()),
        room = try_out(&instances) => match room {
            Ok(room) => room,
            Err(outcome) => return outcome,
        },
    };
    let (listener, local) = match listen(socket) {
        Ok(listening) => listening,
        Err(error) => {
            let message = format!("it can't listen on its port: {error}");
            return refusal(Reason::CreateFailed, message).into();
        }
    };
    let guests = usize::try_from(limits.max_concurrent).unwrap_or(room).clamp(1, room);
    let server = Arc::new(Server {
        instances: Arc::clone(&instances),
        guests: Arc::new(Semaphore::new(guests)),
        wait: Duration::from_millis(wait_ms),
        stop: Arc::clone(&stop),
        running: TaskTracker::new(),
    });
    on_running(Some(local));
    tokio::select! {
        () = stop.asked() => {}
        () = Arc::clone(&server).accept(&listener) => {}
        () = instances.look_after() => {}
    }
    drop(listener);
    server.running.close();
    tokio::select! {
        biased;
        // First: it ends what runs, too.
        () = stop.cut() => Outcome::stopped(stop.code()),
        () = server.running.wait() => Outcome::exited(0),
    }
}

/// Instantiates the program once, so that one that can't start fails now and not at every request; how many
/// requests fit the memory limit at a time.
async fn try_out(instances: &Instances) -> Result<usize, Outcome> {
    let task = instances.task();
    let slice = task.slice();
    let mut created = None;
    let guest = async {
        match instances.create(&slice).await {
            Ok(instance) => {
                created = Some(instance);
                Outcome::exited(0)
            }
            Err(outcome) => outcome,
        }
    };
    let outcome = task.run_guest(&slice, guest).await;
    if created.is_none() {
        return Err(outcome);
    }
    let memory = task.memory();
    let fit = memory.limit() / memory.now().max(1);
    Ok(usize::try_from(fit).unwrap_or(usize::MAX).max(1))
}

/// Not before the program is ready: until then the others on the port have the connections.
fn listen(socket: OwnedFd) -> std::io::Result<(TcpListener, SocketAddr)> {
    let socket = TcpSocket::from_std_stream(socket.into());
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
        let stop = Arc::clone(&self.stop);
        // Else a client that does not read holds a guest for ever. A streaming answer has no other limit of time.
        if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(&stream, TAKE_WAIT_MAX_MS) {
            tracing::debug!(error = %error, "a time-out could not be set");
        }
        let mut builder =
            auto::Builder::new(Streams { running: self.running.clone(), stop: Arc::clone(&stop) });
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
        let title = Title::of(&request);
        let Some(permit) = self.turn().await else {
            return Ok(plain(StatusCode::SERVICE_UNAVAILABLE, "the service is at its limit"));
        };
        let (instances, running) = (Arc::clone(&self.instances), self.running.clone());
        let guest = respond(instances, running, request, permit);
        Ok(match tokio::time::timeout(self.wait, guest).await {
            Ok(Given::Response(response)) => response.map(ServedBody::Guest),
            Ok(Given::Error(error)) => {
                self.note(&format!("{title}: the program answered with an error: {error}"));
                plain(StatusCode::BAD_GATEWAY, "the program answered with an error")
            }
            Ok(Given::Nothing(outcome)) => self.failed(&title, &outcome),
            Err(_) => self.too_late(&title, self.wait),
        })
    }

    /// A request's turn; None when that takes too long.
    async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.guests).try_acquire_owned() {
            return Some(permit);
        }
        let turn = Arc::clone(&self.guests).acquire_owned();
        tokio::time::timeout(self.wait, turn).await.ok()?.ok()
    }

    fn note(&self, message: &str) {
        self.instances.task().log.note(message);
    }

    fn too_late(&self, title: &Title, wait: Duration) -> Response<ServedBody> {
        self.note(&format!("{title}: no response within {wait:?}"));
        plain(StatusCode::GATEWAY_TIMEOUT, "the program took too long")
    }

    /// The answer for a guest that ended without a response of its own.
    fn failed(&self, title: &Title, outcome: &Outcome) -> Response<ServedBody> {
        let says = outcome.message.as_deref().unwrap_or("it ended without a response");
        self.note(&format!("{title}: {says}"));
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
}

/// Ends when nothing was asked on a connection in time. The time-out for heads does not run before the version of
/// HTTP is known, and not in version 2.
async fn never_asks(asked: &CancellationToken) {
    if tokio::time::timeout(HEAD_WAIT_MAX, asked.cancelled()).await.is_ok() {
        std::future::pending::<()>().await;
    }
}

/// What a client is sent: a guest's response, or one of ours.
enum ServedBody {
    Guest(GuestBody),
    Plain(Full<Bytes>),
}

impl Body for ServedBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.get_mut() {
            Self::Guest(body) => Pin::new(body).poll_frame(context),
            Self::Plain(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Guest(body) => body.is_end_stream(),
            Self::Plain(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Guest(body) => body.size_hint(),
            Self::Plain(body) => body.size_hint(),
        }
    }
}

/// Runs the streams of an HTTP/2 connection, each a task that must end with the others.
#[derive(Clone)]
struct Streams {
    running: TaskTracker,
    stop: Arc<Stop>,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let stop = Arc::clone(&self.stop);
        self.running.spawn(async move {
            tokio::select! { biased; () = stream => {}, () = stop.cut() => {} }
        });
    }
}

/// A request of wasi:http has an authority: without one it can't be given to a guest.
fn names_its_host(request: &Request<Incoming>) -> bool {
    let host = request.headers().get(hyper::header::HOST);
    request.uri().authority().is_some() || host.is_some_and(|host| host.to_str().is_ok())
}

fn plain(status: StatusCode, text: &'static str) -> Response<ServedBody> {
    let body = Full::new(Bytes::from_static(text.as_bytes()));
    let mut response = Response::new(ServedBody::Plain(body));
    *response.status_mut() = status;
    response
}
