//! Requests and answers over HTTP.

use std::sync::Arc;
use std::time::Duration;

use brig_api::object::ObjectKey;
use brig_api::problem::PROBLEM_MEDIA_TYPE;
use brig_api::{Kind, NamespacePath, Problem};
use reqwest::{Method, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::ClientError;

/// How long connecting may take.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// How long the server may take to begin an answer, streams apart: an apply of a thousand manifests takes seconds.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);
/// Largest answer that is read whole, in bytes: a list of 10,000 units is about 20 MB.
const ANSWER_BYTES_MAX: usize = 512 << 20;

/// A connection pool to one control plane. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    server: Arc<str>,
    token: Option<Arc<str>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the control plane at `server` (`http://…` or `https://…`).
    ///
    /// # Errors
    /// [`ClientError::InvalidServer`].
    pub fn new(server: &str, token: Option<&str>) -> Result<Self, ClientError> {
        let invalid = || ClientError::InvalidServer(server.to_owned());
        let url = reqwest::Url::parse(server).map_err(|_| invalid())?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(invalid());
        }
        let builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIME_MAX)
            .tcp_nodelay(true)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("brig/", env!("CARGO_PKG_VERSION")));
        let builder = if url.scheme() == "http" {
            without_certificates(builder).map_err(|_| invalid())?
        } else {
            // Already there when another client was made before: the same one.
            let _ = rustls::crypto::CryptoProvider::install_default(
                rustls::crypto::ring::default_provider(),
            );
            builder
        };
        let http = builder.build().map_err(|_| invalid())?;
        let server = server.trim_end_matches('/').into();
        Ok(Self { http, server, token: token.map(Into::into) })
    }

    /// The control plane's URL, without a slash at its end.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The token that requests carry.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.server));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends a request and returns the answer when its status is a success.
    pub(crate) async fn send(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|source| self.unreachable(source))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let is_problem = response
            .headers()
            .get(reqwest::header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.starts_with(PROBLEM_MEDIA_TYPE));
        let bytes = self.bytes(response).await?;
        match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) if is_problem => Err(ClientError::Problem(Box::new(problem))),
            _ => Err(self.unexpected(format!("status {status}"))),
        }
    }

    pub(crate) async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let response = self.send(self.request(Method::GET, path).timeout(ANSWER_TIME_MAX)).await?;
        self.json(response).await
    }

    pub(crate) async fn post_json<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let response =
            self.send(self.request(Method::POST, path).timeout(ANSWER_TIME_MAX).json(body)).await?;
        self.json(response).await
    }

    /// Sends bytes as they are; true when the server took them, false when it had something against it.
    pub(crate) async fn put_bytes(
        &self,
        path: &str,
        media_type: &str,
        body: bytes::Bytes,
    ) -> Result<bool, ClientError> {
        let request = self
            .request(Method::PUT, path)
            .timeout(ANSWER_TIME_MAX)
            .header(reqwest::header::CONTENT_TYPE, media_type)
            .body(body);
        match self.send(request).await {
            // Read to its end, so that the connection can be used again.
            Ok(response) => self.bytes(response).await.map(|_| true),
            Err(ClientError::Problem(_) | ClientError::UnexpectedAnswer { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn json<T: DeserializeOwned>(&self, response: Response) -> Result<T, ClientError> {
        let bytes = self.bytes(response).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.unexpected(error.to_string()))
    }

    async fn bytes(&self, mut response: Response) -> Result<Vec<u8>, ClientError> {
        let mut bytes = Vec::new();
        while let Some(chunk) =
            response.chunk().await.map_err(|error| ClientError::Broken(Box::new(error)))?
        {
            if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(self.unexpected(format!("more than {ANSWER_BYTES_MAX} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    pub(crate) fn unreachable(
        &self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ClientError {
        ClientError::Unreachable { server: self.server.to_string(), source: source.into() }
    }

    pub(crate) fn unexpected(&self, what: String) -> ClientError {
        ClientError::UnexpectedAnswer { server: self.server.to_string(), what }
    }
}

/// For plain http alone: reading the system's certificates takes longer than `brig ps` does otherwise.
pub(crate) fn without_certificates(
    builder: reqwest::ClientBuilder,
) -> Result<reqwest::ClientBuilder, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(rustls::RootCertStore::empty());
    Ok(builder.tls_backend_preconfigured(tls.with_no_client_auth()))
}

/// The path of a list.
pub(crate) fn list_path(kind: Kind, namespace: Option<&NamespacePath>) -> String {
    match namespace {
        Some(namespace) => {
            format!("/v1/{}?namespace={}", kind.plural(), escaped(namespace.as_str()))
        }
        None => format!("/v1/{}", kind.plural()),
    }
}

/// The path of one resource.
pub(crate) fn object_path(key: &ObjectKey) -> String {
    let (kind, name) = (key.kind.plural(), escaped(&key.name));
    match &key.namespace {
        Some(namespace) => format!("/v1/namespaces/{}/{kind}/{name}", escaped(namespace.as_str())),
        None => format!("/v1/{kind}/{name}"),
    }
}

/// Text as one segment of a path or value of a query: all but unreserved characters (RFC 3986) escaped.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_one_segment_of_a_path() {
        let namespace = NamespacePath::new("team/dev").unwrap();
        let key =
            ObjectKey { kind: Kind::Unit, namespace: Some(namespace.clone()), name: "a".into() };
        assert_eq!(object_path(&key), "/v1/namespaces/team%2Fdev/units/a");
        assert_eq!(list_path(Kind::Unit, Some(&namespace)), "/v1/units?namespace=team%2Fdev");
        let artifact = ObjectKey { kind: Kind::Artifact, namespace: None, name: "a/b:1".into() };
        assert_eq!(object_path(&artifact), "/v1/artifacts/a%2Fb%3A1");
    }

    #[test]
    fn a_server_is_a_url() {
        for bad in ["", "127.0.0.1:7117", "ftp://x", "http://"] {
            assert!(matches!(Client::new(bad, None), Err(ClientError::InvalidServer(_))), "{bad}");
        }
        assert_eq!(
            Client::new("http://127.0.0.1:1/", None).unwrap().server(),
            "http://127.0.0.1:1"
        );
        assert!(Client::new("https://brig.example.com", Some("t")).is_ok());
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named() {
        let error = Client::new("http://127.0.0.1:1", None).unwrap().version().await.unwrap_err();
        assert!(error.to_string().contains("http://127.0.0.1:1"), "{error}");
        assert!(matches!(error, ClientError::Unreachable { .. }));
    }
}
