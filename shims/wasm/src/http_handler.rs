//! A call of an http service's handler, of WASI 0.2 or 0.3.

use std::future::poll_fn;
use std::task::{Context, Waker};

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::header::HOST;
use hyper::{Request, Response};
use tokio::sync::oneshot;
use wasmtime::Store;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme as ProxyScheme;
use wasmtime_wasi_http::p2::bindings::{Proxy, ProxyPre};
use wasmtime_wasi_http::p3::Request as ServiceRequest;
use wasmtime_wasi_http::p3::bindings::{Service, ServicePre};
use wasmtime_wasi_http::{Error, FieldMap, WasiHttpView};

use crate::host::ComponentHost;

/// A component that can be made a handler.
pub(crate) enum HandlerPre {
    /// `wasi:http/incoming-handler` of WASI 0.2.
    Proxy(ProxyPre<ComponentHost>),
    /// `wasi:http/handler` of WASI 0.3.
    Service(ServicePre<ComponentHost>),
}

/// What requests are put to.
pub(crate) enum Handler {
    Proxy(Proxy),
    Service(Service),
}

/// What a handler answers with.
pub(crate) struct Answer {
    pub(crate) response: Response<UnsyncBoxBody<Bytes, Error>>,
    /// Told when all of it was taken. A service of WASI 0.3 may wait for that.
    pub(crate) taken: Option<oneshot::Sender<()>>,
}

pub(crate) type Answered = Result<Answer, Error>;

impl HandlerPre {
    pub(crate) async fn instantiate(
        &self,
        store: &mut Store<ComponentHost>,
    ) -> wasmtime::Result<Handler> {
        match self {
            Self::Proxy(pre) => pre.instantiate_async(store).await.map(Handler::Proxy),
            Self::Service(pre) => pre.instantiate_async(store).await.map(Handler::Service),
        }
    }
}

impl Handler {
    /// Runs a request until nothing of it is left in the guest; what is answered is sent before. True when the instance
    /// takes another one.
    pub(crate) async fn call(
        &self,
        store: &mut Store<ComponentHost>,
        request: Request<Incoming>,
        sender: oneshot::Sender<Answered>,
    ) -> wasmtime::Result<bool> {
        match self {
            Self::Proxy(proxy) => call_proxy(proxy, store, request, sender).await.map(|()| true),
            Self::Service(service) => call_service(service, store, request, sender).await,
        }
    }
}

async fn call_proxy(
    proxy: &Proxy,
    store: &mut Store<ComponentHost>,
    request: Request<Incoming>,
    sender: oneshot::Sender<Answered>,
) -> wasmtime::Result<()> {
    let request = store.data_mut().http().new_incoming_request(ProxyScheme::Http, request)?;
    let send = move |given: Result<_, _>| {
        let answered = given.map(|response| Answer { response, taken: None });
        let _ = sender.send(answered.map_err(Error::from)); // else nobody waits for it any more
    };
    let response = store.data_mut().http().new_response_outparam_from_callback(send)?;
    proxy.wasi_http_incoming_handler().call_handle(store, request, response).await
}

async fn call_service(
    service: &Service,
    store: &mut Store<ComponentHost>,
    request: Request<Incoming>,
    sender: oneshot::Sender<Answered>,
) -> wasmtime::Result<bool> {
    let request = service_request(store, request);
    let called = store.run_concurrent(async |accessor| {
        let answered = match service.handle(accessor, request).await? {
            Ok(response) => {
                let (taken, is_taken) = oneshot::channel();
                let sent = async { is_taken.await.map_err(|_| Error::ConnectionTerminated) };
                let response = accessor.with(|store| response.into_http(store, sent))?;
                Ok(Answer { response, taken: Some(taken) })
            }
            Err(code) => Err(Error::from(code)),
        };
        let _ = sender.send(answered); // else nobody waits for it any more
        // A function of WASI 0.3 goes on after it has returned, with the response's body for one.
        poll_fn(|context| accessor.poll_no_interesting_tasks(context)).await;
        // One that lets nobody in at its end would keep the next request waiting for ever.
        let function = *service.wasi_http_handler().func_handle().func();
        let mut nobody = Context::from_waker(Waker::noop());
        let is_open = accessor.poll_ready_for_concurrent_call(function, &mut nobody).is_ready();
        wasmtime::Result::Ok(is_open)
    });
    called.await.flatten()
}

/// A request as WASI 0.3 has it: with its scheme and authority, which HTTP/1.1 has in a header or not at all.
fn service_request(store: &mut Store<ComponentHost>, request: Request<Incoming>) -> ServiceRequest {
    let (parts, body) = request.into_parts();
    let in_header = || Authority::try_from(parts.headers.get(HOST)?.as_bytes()).ok();
    let authority = parts.uri.authority().cloned().or_else(in_header);
    let path = parts.uri.path_and_query().cloned();
    let headers = FieldMap::new_immutable(store.data_mut().http().hooks, parts.headers);
    // What the guest made of the body is of no use to its client.
    ServiceRequest::new(parts.method, Some(Scheme::HTTP), authority, path, headers, None, body).0
}
