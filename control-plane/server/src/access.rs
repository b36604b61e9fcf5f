//! Who may call: everybody on loopback while no token is set, else who presents the token. Either way a web page
//! that a user happens to have open may not.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use brig_api::Code;
use http::{HeaderMap, HeaderValue, header};
use sha2::{Digest as _, Sha256};

use crate::problem::Failure;

/// The rule of this server.
#[derive(Clone)]
pub(crate) struct Access {
    /// The digest of the token, so that comparing takes the same time whatever is presented.
    token_sha256: Option<Arc<[u8; 32]>>,
    /// The port that a `Host` header may name besides loopback names; for diagnostics only.
    listens_on: IpAddr,
}

impl Access {
    pub(crate) fn new(token: Option<&str>, listens_on: IpAddr) -> Self {
        Self { token_sha256: token.map(|token| Arc::new(sha256(token))), listens_on }
    }

    fn check(&self, headers: &HeaderMap) -> Result<(), Failure> {
        refuse_other_origins(headers)?;
        match &self.token_sha256 {
            None => self.check_host(headers),
            Some(wanted) => match presented(headers) {
                Some(token) if is_same(&sha256(&token), wanted) => Ok(()),
                Some(_) => Err(Failure::new(
                    Code::Unauthenticated,
                    "the token is not the right one: check BRIG_TOKEN",
                )),
                None => Err(Failure::new(
                    Code::Unauthenticated,
                    "this server wants a token: set BRIG_TOKEN, or send `Authorization: Bearer TOKEN`",
                )),
            },
        }
    }

    /// Without a token only names of this machine are answered: a page whose own host name was pointed at
    /// 127.0.0.1 (DNS rebinding) sends that name.
    fn check_host(&self, headers: &HeaderMap) -> Result<(), Failure> {
        let Some(host) = headers.get(header::HOST) else {
            return Ok(()); // HTTP/2 has it in the URI, and a browser speaks HTTP/2 over TLS only.
        };
        let host = host.to_str().unwrap_or("?");
        let name = without_port(host);
        let is_ours = name == "localhost"
            || name.ends_with(".localhost")
            || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip == self.listens_on);
        if is_ours {
            return Ok(());
        }
        Err(Failure::new(
            Code::Forbidden,
            format!(
                "a server without a token answers to names of its own machine, not to `{host}`: use 127.0.0.1, or set a token"
            ),
        ))
    }
}

/// Refuses who may not, before anything else looks at the request.
pub(crate) async fn guard(State(access): State<Access>, request: Request, next: Next) -> Response {
    match access.check(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(failure) => {
            let is_unknown = failure.0.code == Code::Unauthenticated;
            let mut response = failure.into_response();
            if is_unknown {
                // Registry clients take the user's password from their configuration when asked for `Basic`.
                let scheme =
                    if request.uri().path().starts_with("/v2") { "Basic" } else { "Bearer" };
                if let Ok(value) = HeaderValue::from_str(&format!("{scheme} realm=\"brigantine\""))
                {
                    response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
                }
            }
            response
        }
    }
}

/// Browsers name the page's origin on whatever could do harm, WebSockets included; programs don't.
fn refuse_other_origins(headers: &HeaderMap) -> Result<(), Failure> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or("?");
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let origin_host = origin.split_once("://").map(|(_, host)| host);
    if origin_host.is_some() && origin_host == host {
        return Ok(());
    }
    Err(Failure::new(Code::Forbidden, format!("pages of `{origin}` may not call this server")))
}

fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    host.split(':').next().unwrap_or(host)
}

/// The token of `Bearer TOKEN`, or the password of `Basic`.
fn presented(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let bytes = base64::engine::general_purpose::STANDARD.decode(rest.trim()).ok()?;
        let (_, password) = std::str::from_utf8(&bytes).ok()?.split_once(':')?;
        return Some(password.to_owned());
    }
    None
}

fn sha256(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// Looks at every byte, whatever the first ones are.
fn is_same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(token: Option<&str>, headers: &[(&'static str, &str)]) -> Result<(), Code> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let access = Access::new(token, IpAddr::from([127, 0, 0, 1]));
        access.check(&map).map_err(|failure| failure.0.code)
    }

    #[test]
    fn the_token_is_taken_as_bearer_or_as_a_password() {
        let basic = base64::engine::general_purpose::STANDARD.encode("anybody:s3cret");
        assert_eq!(check(Some("s3cret"), &[("authorization", "Bearer s3cret")]), Ok(()));
        assert_eq!(check(Some("s3cret"), &[("authorization", &format!("Basic {basic}"))]), Ok(()));
        for wrong in
            ["Bearer s3cres", "Bearer ", "Bearer", "Basic !", "Basic Og==", "Digest s3cret"]
        {
            let found = check(Some("s3cret"), &[("authorization", wrong)]);
            assert_eq!(found, Err(Code::Unauthenticated), "{wrong}");
        }
        assert_eq!(check(Some("s3cret"), &[]), Err(Code::Unauthenticated));
    }

    #[test]
    fn an_open_server_answers_to_names_of_its_machine_only() {
        for host in ["127.0.0.1:7070", "localhost", "[::1]:80", "app.localhost:1"] {
            assert_eq!(check(None, &[("host", host)]), Ok(()), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example:80", "10.0.0.1", ""] {
            assert_eq!(check(None, &[("host", host)]), Err(Code::Forbidden), "{host}");
        }
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let own = [("host", "localhost:80"), ("origin", "http://localhost:80")];
        assert_eq!(check(None, &own), Ok(()));
        for origin in ["http://evil.example", "null", "http://localhost:81"] {
            let found = check(None, &[("host", "localhost:80"), ("origin", origin)]);
            assert_eq!(found, Err(Code::Forbidden), "{origin}");
        }
    }
}
