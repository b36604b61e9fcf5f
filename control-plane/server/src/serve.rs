//! The HTTP listener: connections with caps and time-outs, requests with a span, failures as problems.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use brig_api::{Code, Problem};
use http::StatusCode;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument;

use crate::access::{Access, guard};
use crate::limits::{ACCEPT_PAUSE, CONNECTIONS_MAX, DRAIN_TIME_MAX, HEAD_TIME_MAX};
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
pub(crate) async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let open = TaskTracker::new();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIME_MAX);
    builder.http2().timer(TokioTimer::new());
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
        let service = hyper::service::service_fn(move |request: hyper::Request<_>| {
            router.clone().call(request.map(Body::new))
        });
        let connection =
            builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
        let stop = stop.clone();
        open.spawn(async move {
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(error = %error, "a connection broke");
            }
            drop(permit);
        });
    }
    drop(listener);
    open.close();
    if tokio::time::timeout(DRAIN_TIME_MAX, open.wait()).await.is_err() {
        tracing::info!("open connections were cut off");
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(connections).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    // Small messages go out at once: answers and frames are written whole.
    stream.set_nodelay(true)?;
    Ok((stream, permit))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use axum::routing::get;

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
}
