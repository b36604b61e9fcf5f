//! Which URL a reference's registry has, and whether it may be spoken to without TLS.

use std::net::IpAddr;

use brig_api::reference::Reference;

use super::error::RegistryError;
use super::transport::Transport;

/// The host that Docker's references name and the one that serves them.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// Where requests for one repository go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `https://host:port`, without a slash at the end.
    pub(crate) base: String,
    /// The host as the user knows it; for messages and credentials.
    pub(crate) registry: String,
    /// The repository.
    pub(crate) repository: String,
    /// Is it the cluster's own?
    pub(crate) is_builtin: bool,
}

impl Endpoint {
    /// The URL of something below the repository.
    pub(crate) fn url(&self, rest: &str) -> String {
        format!("{}/v2/{}/{rest}", self.base, self.repository)
    }

    /// An absolute URL from a `Location` header, which may be relative. None when it leads elsewhere than the
    /// registry by plain http, or is no URL.
    pub(crate) fn locate(&self, location: &str) -> Option<reqwest::Url> {
        let base = reqwest::Url::parse(&self.base).ok()?;
        let url = base.join(location).ok()?;
        (url.scheme() == "https" || url.origin() == base.origin()).then_some(url)
    }
}

/// Is it this machine?
pub(crate) fn is_loopback(host: &str) -> bool {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The host without its port.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

impl Transport {
    pub(crate) fn endpoint(&self, reference: &Reference) -> Result<Endpoint, RegistryError> {
        let repository = reference.repository.clone();
        let Some(host) = &reference.registry else {
            let base = self
                .options
                .builtin
                .as_deref()
                .ok_or_else(|| RegistryError::NoServer { reference: reference.to_string() })?;
            let base = base.trim_end_matches('/').to_owned();
            let registry =
                base.split_once("://").map_or_else(|| base.clone(), |(_, host)| host.to_owned());
            return Ok(Endpoint { base, registry, repository, is_builtin: true });
        };
        let is_plain = is_loopback(without_port(host))
            || self.options.insecure.contains(host)
            || self.options.insecure.contains(without_port(host));
        let (served_by, repository) = if host == DOCKER_HUB.0 {
            let official = !repository.contains('/');
            let repository = if official { format!("library/{repository}") } else { repository };
            (DOCKER_HUB.1, repository)
        } else {
            (host.as_str(), repository)
        };
        let scheme = if is_plain { "http" } else { "https" };
        Ok(Endpoint {
            base: format!("{scheme}://{served_by}"),
            registry: host.clone(),
            repository,
            is_builtin: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::RegistryOptions;

    fn endpoint(reference: &str) -> Endpoint {
        let options = RegistryOptions {
            builtin: Some("http://127.0.0.1:7070/".to_owned()),
            insecure: ["plain.example".to_owned()].into(),
            ..RegistryOptions::default()
        };
        Transport::new(options).unwrap().endpoint(&reference.parse().unwrap()).unwrap()
    }

    #[test]
    fn only_loopback_and_named_hosts_go_without_tls() {
        for (reference, base) in [
            ("team/app:1", "http://127.0.0.1:7070"),
            ("localhost/app:1", "http://localhost"),
            ("127.0.0.1:5000/app:1", "http://127.0.0.1:5000"),
            ("plain.example:5000/app:1", "http://plain.example:5000"),
            ("registry.example/app:1", "https://registry.example"),
            ("127.0.0.1.example.com/app:1", "https://127.0.0.1.example.com"),
            ("docker.io/redis:7", "https://registry-1.docker.io"),
        ] {
            assert_eq!(endpoint(reference).base, base, "{reference}");
        }
        assert_eq!(endpoint("docker.io/redis:7").repository, "library/redis");
    }

    #[test]
    fn an_upload_is_not_led_away_without_tls() {
        let here = endpoint("127.0.0.1:5000/app:1");
        assert!(here.locate("/v2/app/blobs/uploads/1?x=y").is_some());
        assert!(here.locate("https://elsewhere.example/x").is_some());
        assert!(here.locate("http://elsewhere.example/x").is_none());
        assert!(here.locate("file:///etc/passwd").is_none());
    }
}
