//! The HTTP listener: connections with caps and time-outs, requests with a span, failures as problems.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use brig_api::{Code, Problem};
use http::StatusCode;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument;

use crate::access::{Access, guard};
use crate::limits::{
    ACCEPT_PAUSE, CONNECTIONS_MAX, DRAIN_TIME_MAX, KEEPALIVE_PERIOD, KEEPALIVES_MAX,
};
use crate::problem::Failure;

/// Puts around the routes what holds for every request, outermost last.
pub(crate) fn wrap(routes: Router, access: Access) -> Router {
    routes
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(access, guard))
        .layer(CatchPanicLayer::custom(|panic: Box<dyn std::any::Any + Send>| panicked(&panic)))
        .layer(middleware::from_fn(observe))
}

async fn no_such_path(request: Request) -> Failure {
    let detail = format!("there is nothing at `{}`: see /v1/openapi.json", request.uri().path());
    Failure::new(Code::NotFound, detail)
}

async fn wrong_method(request: Request) -> Failure {
    let (method, path) = (request.method(), request.uri().path());
    let detail = format!("`{path}` does not take {method}: see /v1/openapi.json");
    let status = StatusCode::METHOD_NOT_ALLOWED.as_u16();
    Problem { status, ..Problem::new(Code::Invalid, detail) }.into()
}

fn panicked(panic: &Box<dyn std::any::Any + Send>) -> Response {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(panic = text.unwrap_or("?"), "a request panicked");
    Failure::new(Code::Internal, "the server failed at this request; its log says how")
        .into_response()
}

/// A span for each request. The query is left out: what people write into queries is not for logs.
async fn observe(request: Request, next: Next) -> Response {
    let span = tracing::info_span!(
        "request",
        request.id = format!("{:016x}", rand::random::<u64>()),
        request.method = %request.method(),
        request.path = request.uri().path(),
    );
    async move {
        let response = next.run(request).await;
        tracing::debug!(response.status = response.status().as_u16(), "a request was answered");
        response
    }
    .instrument(span)
    .await
}

/// Serves until `stop`, then lets open requests finish for a moment.
/// A connection on which no request has come after `head_time_max` is closed.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    head_time_max: Duration,
    stop: CancellationToken,
) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let open = TaskTracker::new();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(head_time_max);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(KEEPALIVE_PERIOD);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &connections) => accepted,
        };
        let (stream, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = %error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let router = router.clone();
        let asked = Arc::new(Notify::new());
        let first = Arc::clone(&asked);
        let service = hyper::service::service_fn(move |request: hyper::Request<_>| {
            asked.notify_one();
            router.clone().call(request.map(Body::new))
        });
        // The time for heads begins when HTTP's version is known; who says nothing, or half a preface, has none.
        let said_nothing = async move {
            if tokio::time::timeout(head_time_max, first.notified()).await.is_ok() {
                std::future::pending::<()>().await;
            }
        };
        let connection = builder
            .serve_connection_with_upgrades(
                TokioIo::new(Counted { stream, _permit: permit }),
                service,
            )
            .into_owned();
        let stop = stop.clone();
        open.spawn(async move {
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = said_nothing => {
                    tracing::debug!("a connection without a request was closed");
                    return;
                }
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(error = %error, "a connection broke");
            }
        });
    }
    drop(listener);
    open.close();
    if tokio::time::timeout(DRAIN_TIME_MAX, open.wait()).await.is_err() {
        tracing::info!("open connections were cut off");
    }
}

/// A connection that counts until it is closed, also after it has become a WebSocket.
struct Counted {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(connections).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    // Small messages go out at once: answers and frames are written whole.
    stream.set_nodelay(true)?;
    notice_dead_peers(&stream)?;
    Ok((stream, permit))
}

/// A peer that lost its power or its network closes nothing: a log that is followed, an exec or a push would be
/// waited for (and hold its connection, its node's stream or its upload) for ever.
fn notice_dead_peers(stream: &TcpStream) -> std::io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_PERIOD)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_PERIOD)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVES_MAX)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn fail() -> &'static str {
        panic!("the secret of row 5")
    }

    #[tokio::test]
    async fn a_request_that_panics_is_answered_with_a_problem_that_tells_nothing() {
        let access = Access::new(None, IpAddr::from([127, 0, 0, 1]));
        let mut router = wrap(Router::new().route("/", get(fail)), access);
        let response = router.call(Request::new(Body::empty())).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let bytes = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        let problem: Problem = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(problem.code, Code::Internal);
        assert!(!problem.detail.contains("row 5"));
    }

    #[tokio::test]
    async fn a_connection_without_a_request_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let access = Access::new(None, address.ip());
        let router = wrap(Router::new().route("/", get(async || "here")), access);
        let stop = CancellationToken::new();
        let head_time_max = Duration::from_millis(100);
        let server = tokio::spawn(serve(listener, router, head_time_max, stop.clone()));
        for (sent, expected) in [
            ("", ""),
            ("PRI * HTTP/2.0\r\n", ""),
            ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "here"),
        ] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(sent.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let closed = stream.read_to_string(&mut answer);
            let closed = tokio::time::timeout(Duration::from_secs(60), closed).await;
            closed.expect("the server closes").unwrap();
            assert!(answer.ends_with(expected), "{answer}");
        }
        stop.cancel();
        server.await.unwrap();
    }

    #[tokio::test]
    async fn peers_that_are_gone_are_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connections = Arc::new(Semaphore::new(1));
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _permit) = accept(&listener, &connections).await.unwrap();
        assert!(sockopt::socket_keepalive(&stream).unwrap());
    }
}
