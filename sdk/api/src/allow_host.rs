//! An entry of `allow_hosts`: where a wasm program may connect to, and how.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// Longest name of a host, as DNS has it.
const NAME_BYTES_MAX: usize = 253;

/// What may be spoken with a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// Requests by `wasi:http` without TLS.
    Http,
    /// Requests by `wasi:http` with TLS.
    Https,
    /// TCP connections by `wasi:sockets`.
    Tcp,
    /// UDP datagrams by `wasi:sockets`.
    Udp,
}

impl Scheme {
    const ALL: [Self; 4] = [Self::Http, Self::Https, Self::Tcp, Self::Udp];

    /// As it is written before `://`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// The port that is meant where none is written.
    fn port(self) -> Option<u16> {
        match self {
            Self::Http => Some(80),
            Self::Https => Some(443),
            Self::Tcp | Self::Udp => None,
        }
    }
}

/// A host that a program may connect to: `[SCHEME://][*.]HOST[:PORT]`.
///
/// Without a scheme it is for HTTP requests, with and without TLS, on any port. With `http://` or `https://` and
/// without a port, the scheme's own port is meant; `tcp://` and `udp://` without a port mean all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedHost {
    /// None: both of HTTP.
    scheme: Option<Scheme>,
    /// In lower case, without brackets and without a closing dot.
    host: String,
    /// `*.host`: any name below it, not the host itself.
    is_wildcard: bool,
    /// None: any port.
    port: Option<u16>,
}

/// A text is no [`AllowedHost`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no host: expected `api.example.com`, `https://api.example.com:8443`, `*.example.com`, \
     `tcp://db.internal:5432` or `udp://10.0.0.2:53`"
)]
pub struct HostError(String);

impl FromStr for AllowedHost {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        Self::parse(text).ok_or_else(|| HostError(text.chars().take(NAME_BYTES_MAX).collect()))
    }
}

impl AllowedHost {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => {
                let known = Scheme::ALL.into_iter().find(|known| known.as_str() == scheme);
                (Some(known?), rest)
            }
            None => (None, text),
        };
        let (rest, is_wildcard) =
            rest.strip_prefix("*.").map_or((rest, false), |rest| (rest, true));
        let (host, port) = split_port(rest)?;
        let port = port.or_else(|| scheme.and_then(Scheme::port));
        let host = plain_host(host);
        let is_named = !host.is_empty()
            && host.len() <= NAME_BYTES_MAX
            && (host.parse::<Ipv6Addr>().is_ok()
                || host
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')));
        is_named.then_some(Self { scheme, host, is_wildcard, port })
    }

    /// Is this for that scheme?
    #[must_use]
    pub fn is_for(&self, scheme: Scheme) -> bool {
        match self.scheme {
            Some(own) => own == scheme,
            None => matches!(scheme, Scheme::Http | Scheme::Https),
        }
    }

    /// Is this for that port?
    #[must_use]
    pub fn has_port(&self, port: u16) -> bool {
        self.port.is_none_or(|own| own == port)
    }

    /// Does it name that host? To be given as [`plain_host`] makes it.
    #[must_use]
    pub fn names(&self, host: &str) -> bool {
        if self.is_wildcard {
            host.strip_suffix(&self.host).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
        } else {
            host == self.host
        }
    }

    /// The address, if it is written as one.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        if self.is_wildcard { None } else { self.host.parse().ok() }
    }
}

impl fmt::Display for AllowedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(scheme) = self.scheme {
            write!(f, "{}://", scheme.as_str())?;
        }
        if self.is_wildcard {
            f.write_str("*.")?;
        }
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?;
        } else {
            f.write_str(&self.host)?;
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// A host as it is compared: a name in lower case without a closing dot, an address in its one shortest form, without
/// brackets.
#[must_use]
pub fn plain_host(host: &str) -> String {
    let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().to_string(),
        Err(_) => host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase(),
    }
}

fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    match text.rsplit_once(':') {
        // An IPv6 address without brackets has colons, too.
        Some((host, _)) if host.contains(':') && !host.ends_with(']') => Some((text, None)),
        Some(_) if text.ends_with(']') => Some((text, None)),
        Some((host, port)) => match port.parse() {
            Ok(0) | Err(_) => None,
            Ok(port) => Some((host, Some(port))),
        },
        None => Some((text, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_host_is_refused_with_examples() {
        for text in [
            "",
            "*",
            "*.",
            "*.*",
            "a.com:",
            "a.com:http",
            "a.com:0",
            "a.com:99999",
            "a.com:80:90x",
            "ftp://a.com",
            "tcp://",
            "tcp://:80",
            "a b",
            "http://a.com/path",
            "://a.com",
            "[::1",
        ] {
            let error = text.parse::<AllowedHost>().unwrap_err().to_string();
            assert!(error.contains("tcp://db.internal:5432"), "{text}: {error}");
        }
    }

    #[test]
    fn schemes_names_ports_and_wildcards_match_what_they_say() {
        use Scheme::{Http, Https, Tcp, Udp};
        for (pattern, scheme, host, port, expected) in [
            ("example.com", Http, "example.com", 80, true),
            ("example.com", Https, "EXAMPLE.com.", 8443, true),
            ("example.com", Tcp, "example.com", 80, false),
            ("example.com", Http, "www.example.com", 80, false),
            ("example.com", Http, "example.com.evil.org", 80, false),
            ("example.com", Http, "notexample.com", 80, false),
            ("example.com:8443", Http, "example.com", 8443, true),
            ("example.com:8443", Http, "example.com", 443, false),
            ("*.example.com", Http, "a.b.example.com", 443, true),
            ("*.example.com", Http, "example.com", 443, false),
            ("*.example.com", Http, ".example.com", 443, false),
            ("[::1]:8080", Http, "[::1]", 8080, true),
            ("::1", Http, "::1", 8080, true),
            ("[::1]", Http, "::1", 8080, true),
            ("https://example.com", Https, "example.com", 443, true),
            ("https://example.com", Https, "example.com", 8443, false),
            ("https://example.com", Http, "example.com", 443, false),
            ("http://example.com:8080", Http, "example.com", 8080, true),
            ("tcp://db.internal:5432", Tcp, "db.internal", 5432, true),
            ("tcp://db.internal:5432", Tcp, "db.internal", 5433, false),
            ("tcp://db.internal:5432", Udp, "db.internal", 5432, false),
            ("tcp://db.internal:5432", Http, "db.internal", 5432, false),
            ("udp://*.internal", Udp, "ns.internal", 53, true),
            ("tcp://[FD00:0::2]:5432", Tcp, "fd00::2", 5432, true),
        ] {
            let allowed: AllowedHost = pattern.parse().unwrap();
            let host = plain_host(host);
            let found = allowed.is_for(scheme) && allowed.names(&host) && allowed.has_port(port);
            assert_eq!(found, expected, "{pattern} {scheme:?} {host}:{port}");
        }
    }

    #[test]
    fn a_host_written_out_reads_back_as_itself() {
        for text in
            ["a.com", "*.a.com:8", "tcp://[::1]:5", "udp://10.0.0.2:53", "https://a.com:443"]
        {
            assert_eq!(text.parse::<AllowedHost>().unwrap().to_string(), text);
        }
    }
}
