//! Outgoing HTTP of guests: only to hosts that the task was granted, each name looked up once.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use brig_api::allow_host::Scheme as HostScheme;
use bytes::Bytes;
use http::uri::Scheme;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use crate::hosts::{AllowedHosts, allows_address};
use crate::output::TaskLog;

/// Outgoing connections of one task at a time.
const CONNECTIONS_MAX: usize = 64;
/// Longest wait for a connection, and for each next part of an answer, where the guest names none.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Largest part of a body that a guest of WASI 0.3 hands over at a time. It is in the shim's memory until it is sent, and
/// not more than the guest is charged for that.
const BODY_PART_BYTES_MAX: usize = 32 << 10;
/// Addresses that are tried for a name.
const ADDRESSES_MAX: usize = 4;

/// What a task's guests may reach by HTTP.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    allowed: Arc<AllowedHosts>,
    log: Arc<TaskLog>,
    connections: Arc<Semaphore>,
}

type Sent = (http::Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>);

impl Outgoing {
    /// For the hosts of a task.
    pub(crate) fn new(allowed: &Arc<AllowedHosts>, log: &Arc<TaskLog>) -> Self {
        Self {
            allowed: Arc::clone(allowed),
            log: Arc::clone(log),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        }
    }

    /// Is the request's host allowed? Its host, port, and whether TLS is spoken.
    fn check(&self, uri: &http::Uri) -> Result<(String, u16, bool), Error> {
        let is_tls = uri.scheme() == Some(&Scheme::HTTPS);
        let host =
            uri.host().filter(|host| !host.is_empty()).ok_or(Error::HttpRequestUriInvalid)?;
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let scheme = if is_tls { HostScheme::Https } else { HostScheme::Http };
        if !self.allowed.allows(scheme, host, port) {
            self.log.note(&format!(
                "refused a request to {host}:{port}: add it to the unit's `allow_hosts` to permit it"
            ));
            return Err(Error::HttpRequestDenied);
        }
        Ok((host.to_owned(), port, is_tls))
    }

    /// The addresses of a host that may be connected to.
    async fn look_up(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Error> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let found = tokio::net::lookup_host((bare, port)).await.map_err(|_| Error::DnsError {
            rcode: Some("address not available".to_owned()),
            info_code: None,
        })?;
        let (allowed, refused): (Vec<_>, Vec<_>) =
            found.partition(|address| allows_address(host, address.ip()));
        if let (true, Some(address)) = (allowed.is_empty(), refused.first()) {
            self.log.note(&format!(
                "refused a request to {host}:{port}: its address {} is reserved for the node; name the \
                 address itself in `allow_hosts` to permit it",
                address.ip()
            ));
            return Err(Error::DestinationIpProhibited);
        }
        Ok(allowed)
    }

    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, Error> {
        let mut last = Error::DestinationNotFound;
        for address in self.look_up(host, port).await?.into_iter().take(ADDRESSES_MAX) {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    let _ = stream.set_nodelay(true); // only a matter of latency
                    return Ok(stream);
                }
                Err(error) => last = Error::Connect(error),
            }
        }
        Err(last)
    }

    async fn send(
        self,
        mut request: http::Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<Sent, Error> {
        let (host, port, is_tls) = self.check(request.uri())?;
        let permit = Arc::clone(&self.connections)
            .try_acquire_owned()
            .map_err(|_| Error::ConnectionLimitReached)?;
        let connecting = async {
            let stream = self.connect(&host, port).await?;
            if is_tls { tls(&host, stream).await } else { Ok(Box::new(stream) as BoxedStream) }
        };
        let stream = tokio::time::timeout(options.connect_timeout.unwrap_or(WAIT_MAX), connecting)
            .await
            .map_err(|_| Error::ConnectionTimeout)??;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Origin form: the scheme and host of the request line are for proxies.
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        *request.uri_mut() = path.parse().map_err(|_| Error::HttpRequestUriInvalid)?;
        let mut connection = Box::pin(connection);
        let first_byte = options.first_byte_timeout.unwrap_or(WAIT_MAX);
        let response = async {
            tokio::select! {
                biased;
                response = sender.send_request(request) => response.map_err(Error::from),
                Err(error) = &mut connection => Err(Error::from(error)),
            }
        };
        let response = tokio::time::timeout(first_byte, response)
            .await
            .map_err(|_| Error::ConnectionReadTimeout)??;
        let between = options.between_bytes_timeout.unwrap_or(WAIT_MAX);
        let response =
            response.map(|incoming| PatientBody::new(incoming, between, permit).boxed_unsync());
        Ok((response, Box::new(async move { connection.await.map_err(Error::from) })))
    }
}

impl WasiHttpHooks for Outgoing {
    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_PART_BYTES_MAX
    }

    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _done: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Result<Sent, Error>> + Send> {
        Box::new(self.clone().send(request, options.unwrap_or_default()))
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}
type BoxedStream = Box<dyn Stream>;

async fn tls(host: &str, stream: TcpStream) -> Result<BoxedStream, Error> {
    static CONFIG: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.into() };
        Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
    });
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(bare)?;
    let stream = TlsConnector::from(Arc::clone(&CONFIG)).connect(name, stream).await;
    Ok(Box::new(stream.map_err(Error::Tls)?))
}

/// A response's body that waits only so long for each part, and counts as a connection while it is read.
struct PatientBody {
    incoming: Incoming,
    between: Duration,
    timer: std::pin::Pin<Box<tokio::time::Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl PatientBody {
    fn new(incoming: Incoming, between: Duration, permit: OwnedSemaphorePermit) -> Self {
        let timer = Box::pin(tokio::time::sleep(between));
        Self { incoming, between, timer, _permit: permit }
    }
}

impl Body for PatientBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Error>>> {
        use std::task::Poll;
        match std::pin::Pin::new(&mut self.incoming).poll_frame(context) {
            Poll::Ready(frame) => {
                let next = tokio::time::Instant::now() + self.between;
                self.timer.as_mut().reset(next);
                Poll::Ready(frame.map(|frame| frame.map_err(Error::from)))
            }
            Poll::Pending => {
                self.timer.as_mut().poll(context).map(|()| Some(Err(Error::ConnectionReadTimeout)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
