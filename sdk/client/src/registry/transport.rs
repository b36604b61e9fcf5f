//! Requests to registries: TLS, redirects, logging in, and errors in words.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use http::{StatusCode, header};
use reqwest::{RequestBuilder, Response, Url};

use super::RegistryOptions;
use super::auth::{Challenge, TOKEN_ANSWER_BYTES_MAX, TokenAnswer};
use super::credentials::Credential;
use super::endpoint::{Endpoint, is_loopback};
use super::error::{RegistryError, causes};
use crate::http::without_certificates;

/// A registry that accepts no connection for so long is not reachable.
const CONNECT_MAX: Duration = Duration::from_secs(15);
/// A transfer without a byte for so long is broken.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Blobs are often served from elsewhere; longer chains are loops.
const REDIRECTS_MAX: usize = 5;
/// Of an error's body, so much is read.
const ERROR_BODY_BYTES_MAX: usize = 64 * 1024;
/// Of an error's body, so much is shown.
const ERROR_CHARS_MAX: usize = 600;

/// What a request wants to do: tokens are for one or the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    Pull,
    Push,
}

impl Access {
    fn actions(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "pull,push",
        }
    }
}

type Scope = (String, String, Access);

/// The connections and tokens of a client.
#[derive(Debug)]
pub(crate) struct Transport {
    pub(crate) options: RegistryOptions,
    /// To the cluster's own registry: as directly as the API is spoken to, past any proxy.
    builtin: Option<reqwest::Client>,
    /// To all others. Made when it is first needed: reading the system's certificates takes longer than a small push.
    others: OnceLock<reqwest::Client>,
    /// The `Authorization` that worked last.
    logins: Mutex<HashMap<Scope, String>>,
}

impl Transport {
    pub(crate) fn new(options: RegistryOptions) -> Result<Self, RegistryError> {
        let setup = |error: &dyn std::error::Error| RegistryError::Setup(causes(error));
        let builtin = match options.builtin.as_deref() {
            Some(url) if url.starts_with("https://") => Some(builder().no_proxy()),
            Some(_) => {
                Some(without_certificates(builder().no_proxy()).map_err(|error| setup(&error))?)
            }
            None => None,
        };
        let builtin = builtin
            .map(reqwest::ClientBuilder::build)
            .transpose()
            .map_err(|error| setup(&error))?;
        Ok(Self { options, builtin, others: OnceLock::new(), logins: Mutex::default() })
    }

    /// The connections on which requests to `endpoint` go.
    pub(crate) fn http(&self, endpoint: &Endpoint) -> Result<&reqwest::Client, RegistryError> {
        match &self.builtin {
            Some(builtin) if endpoint.is_builtin => Ok(builtin),
            _ => self.others(),
        }
    }

    /// No other registry was asked for yet.
    #[cfg(test)]
    pub(crate) fn is_for_the_cluster_alone(&self) -> bool {
        self.others.get().is_none()
    }

    fn others(&self) -> Result<&reqwest::Client, RegistryError> {
        if let Some(others) = self.others.get() {
            return Ok(others);
        }
        let others = builder().build().map_err(|error| RegistryError::Setup(causes(&error)))?;
        Ok(self.others.get_or_init(|| others))
    }

    /// Sends a request without a body (or with one that can be made again), logging in when asked to. Answers
    /// other than 401 come back whatever their status is.
    pub(crate) async fn send(
        &self,
        endpoint: &Endpoint,
        access: Access,
        request: impl Fn(&reqwest::Client) -> RequestBuilder,
    ) -> Result<Response, RegistryError> {
        let http = self.http(endpoint)?;
        let response = self.send_once(endpoint, access, request(http)).await?;
        if response.status() != StatusCode::UNAUTHORIZED || endpoint.is_builtin {
            return Ok(response);
        }
        let challenges: Vec<String> = response
            .headers()
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok().map(str::to_owned))
            .collect();
        let Some(challenge) = challenges.iter().find_map(|text| Challenge::parse(text)) else {
            return Ok(response);
        };
        let Some(login) = self.log_in(endpoint, access, challenge).await? else {
            return Ok(response);
        };
        self.logins().insert(scope(endpoint, access), login);
        self.send_once(endpoint, access, request(http)).await
    }

    /// Sends a request as it is, with the login that worked before.
    pub(crate) async fn send_once(
        &self,
        endpoint: &Endpoint,
        access: Access,
        request: RequestBuilder,
    ) -> Result<Response, RegistryError> {
        let login = if endpoint.is_builtin {
            self.options.builtin_token.as_ref().map(|token| format!("Bearer {token}"))
        } else {
            self.logins().get(&scope(endpoint, access)).cloned()
        };
        let request = match login {
            Some(login) => request.header(header::AUTHORIZATION, login),
            None => request,
        };
        request.send().await.map_err(|error| unreachable_because(endpoint, error))
    }

    async fn log_in(
        &self,
        endpoint: &Endpoint,
        access: Access,
        challenge: Challenge,
    ) -> Result<Option<String>, RegistryError> {
        let credential = self.options.credentials.of(&endpoint.registry);
        match challenge {
            Challenge::Basic => Ok(credential.map(Credential::basic)),
            Challenge::Bearer { realm, service, .. } => {
                let token = self.token(endpoint, access, &realm, service, credential).await?;
                Ok(token.map(|token| format!("Bearer {token}")))
            }
        }
    }

    async fn token(
        &self,
        endpoint: &Endpoint,
        access: Access,
        realm: &str,
        service: Option<String>,
        credential: Option<&Credential>,
    ) -> Result<Option<String>, RegistryError> {
        let refused = |why: String| RegistryError::Unauthorised {
            registry: endpoint.registry.clone(),
            repository: endpoint.repository.clone(),
            why,
        };
        let mut url =
            Url::parse(realm).ok().filter(|url| may_see_password(url, endpoint)).ok_or_else(
                || refused("it asks for a log-in at an address that is not https".to_owned()),
            )?;
        let wanted = format!("repository:{}:{}", endpoint.repository, access.actions());
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", &service);
        }
        url.query_pairs_mut().append_pair("scope", &wanted);
        let mut request = self.others()?.get(url);
        if let Some(credential) = credential {
            request = request.header(header::AUTHORIZATION, credential.basic());
        }
        let response =
            request.send().await.map_err(|error| unreachable_because(endpoint, error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(refused(format!("its token service answered {status}")));
        }
        let body = read_capped(response, TOKEN_ANSWER_BYTES_MAX).await;
        // The body is not shown: it may hold a token.
        let answer: TokenAnswer = serde_json::from_slice(&body)
            .map_err(|_| refused("its token service's answer is no token".to_owned()))?;
        Ok(answer.into_token())
    }

    fn logins(&self) -> std::sync::MutexGuard<'_, HashMap<Scope, String>> {
        self.logins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn builder() -> reqwest::ClientBuilder {
    // Somebody else in the process may have installed one before; any will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let redirect = reqwest::redirect::Policy::custom(|attempt| {
        let left_tls = attempt.url().scheme() != "https"
            && attempt.previous().iter().any(|url| url.scheme() == "https");
        if attempt.previous().len() > REDIRECTS_MAX {
            attempt.error("too many redirects")
        } else if left_tls {
            attempt.error("a redirect from https to plain http is not followed")
        } else {
            attempt.follow()
        }
    });
    reqwest::Client::builder()
        .connect_timeout(CONNECT_MAX)
        .read_timeout(IDLE_MAX)
        .redirect(redirect)
        .user_agent(concat!("brig/", env!("CARGO_PKG_VERSION")))
}

impl Credential {
    fn basic(&self) -> String {
        use base64::Engine as _;
        let pair = format!("{}:{}", self.user, self.password);
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
    }
}

fn scope(endpoint: &Endpoint, access: Access) -> Scope {
    (endpoint.registry.clone(), endpoint.repository.clone(), access)
}

/// Passwords go over TLS, to this machine, or to where the user allowed plain http.
fn may_see_password(url: &Url, endpoint: &Endpoint) -> bool {
    let is_same_host = Url::parse(&endpoint.base)
        .is_ok_and(|base| base.scheme() == "http" && base.host_str() == url.host_str());
    url.scheme() == "https"
        || (url.scheme() == "http" && (is_same_host || url.host_str().is_some_and(is_loopback)))
}

/// The error for a request that got no answer.
pub(crate) fn unreachable_because(endpoint: &Endpoint, error: reqwest::Error) -> RegistryError {
    RegistryError::Unreachable { registry: endpoint.registry.clone(), why: broke_because(error) }
}

/// Why a transfer broke. Without the query of its URL: what a registry redirects to is often signed there, and
/// this text ends up in logs and events.
pub(crate) fn broke_because(error: reqwest::Error) -> String {
    let Some(mut url) = error.url().cloned() else { return causes(&error) };
    url.set_query(None);
    causes(&error.with_url(url))
}

/// A whole body; None when it is longer than `bytes_max`.
pub(crate) async fn read_whole(
    mut response: Response,
    bytes_max: usize,
) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await? {
        if body.len() + piece.len() > bytes_max {
            return Ok(None);
        }
        body.extend_from_slice(&piece);
    }
    Ok(Some(body))
}

/// At most `bytes_max` bytes of a body; what could be read, when it breaks.
pub(crate) async fn read_capped(mut response: Response, bytes_max: usize) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(piece)) = response.chunk().await {
        if body.len() + piece.len() > bytes_max {
            break;
        }
        body.extend_from_slice(&piece);
    }
    body
}

/// The error for an answer that is no success.
pub(crate) async fn refusal(endpoint: &Endpoint, response: Response) -> RegistryError {
    let status = response.status();
    let why = said(&read_capped(response, ERROR_BODY_BYTES_MAX).await)
        .unwrap_or_else(|| status.to_string());
    let registry = endpoint.registry.clone();
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            RegistryError::Unauthorised { registry, repository: endpoint.repository.clone(), why }
        }
        _ => RegistryError::Refused { registry, status: status.as_u16(), why },
    }
}

/// The messages of a distribution error or a problem document, without what could upset a terminal.
fn said(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let messages: Vec<&str> = match value.get("errors").and_then(serde_json::Value::as_array) {
        Some(errors) => errors
            .iter()
            .filter_map(|error| error.get("message").or_else(|| error.get("code"))?.as_str())
            .collect(),
        None => value.get("detail").and_then(serde_json::Value::as_str).into_iter().collect(),
    };
    let text: String =
        messages.join("; ").chars().filter(|c| !c.is_control()).take(ERROR_CHARS_MAX).collect();
    (!text.is_empty()).then_some(text)
}
