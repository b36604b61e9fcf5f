//! Which hosts a task's outgoing HTTP requests may go to, and which addresses behind them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where clouds serve a machine's metadata, credentials among them, that is not link-local: Amazon's over IPv6
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html>), and Alibaba's
/// (<https://www.alibabacloud.com/help/en/ecs/user-guide/view-instance-metadata>).
const METADATA: [IpAddr; 2] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
];

/// One entry of `allow_hosts`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    /// In lower case, without brackets.
    host: String,
    /// `*.host`: any name under it, not the host itself.
    is_wildcard: bool,
    /// None: any port.
    port: Option<u16>,
}

/// The patterns of a task.
#[derive(Debug, Clone, Default)]
pub(crate) struct AllowedHosts {
    patterns: Vec<Pattern>,
}

impl AllowedHosts {
    /// Reads `name`, `name:port`, `*.name` and `*.name:port`; what is none of them allows nothing.
    pub(crate) fn new(texts: &[String]) -> Self {
        Self { patterns: texts.iter().filter_map(|text| Pattern::parse(text)).collect() }
    }

    /// May requests go to this host (as it stands in an URL) and port?
    pub(crate) fn allows(&self, host: &str, port: u16) -> bool {
        let host = normal(host);
        self.patterns.iter().any(|pattern| pattern.matches(&host, port))
    }

    /// May a request for this (allowed) host be sent to this address? A name must not lead to the node itself or
    /// to its cloud's metadata, unless that is what the user wrote.
    pub(crate) fn allows_address(&self, host: &str, address: IpAddr) -> bool {
        let host = normal(host);
        if host.parse::<IpAddr>().is_ok() {
            return true; // allowed by its number
        }
        let address = address.to_canonical();
        if address.is_loopback() {
            return host == "localhost" || host.ends_with(".localhost");
        }
        !is_for_the_machine_only(address) && !METADATA.contains(&address)
    }
}

/// Link-local, unspecified, broadcast and multicast addresses.
fn is_for_the_machine_only(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_multicast()
                || v4 == Ipv4Addr::BROADCAST
        }
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast(),
    }
}

/// Lower case, without the brackets of an IPv6 address and without a closing dot.
fn normal(host: &str) -> String {
    let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

impl Pattern {
    fn parse(text: &str) -> Option<Self> {
        let (text, is_wildcard) = match text.strip_prefix("*.") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let (host, port) = match text.rsplit_once(':') {
            // An IPv6 address without brackets has colons, too.
            Some((host, _)) if host.contains(':') && !host.ends_with(']') => (text, None),
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (text, None),
        };
        let host = normal(host);
        (!host.is_empty() && !host.contains('*')).then_some(Self { host, is_wildcard, port })
    }

    fn matches(&self, host: &str, port: u16) -> bool {
        let is_host = if self.is_wildcard {
            host.strip_suffix(&self.host).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
        } else {
            host == self.host
        };
        is_host && self.port.is_none_or(|allowed| allowed == port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(texts: &[&str]) -> AllowedHosts {
        AllowedHosts::new(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn nothing_is_allowed_unless_named() {
        assert!(!allowed(&[]).allows("example.com", 80));
        for junk in ["", "*", "*.", "*.*", "a.com:", "a.com:http", "a.com:99999", "a.com:80:90x"] {
            assert!(!allowed(&[junk]).allows("a.com", 80), "{junk}");
            assert!(!allowed(&[junk]).allows("", 80), "{junk}");
        }
    }

    #[test]
    fn names_ports_and_wildcards_match_what_they_say() {
        for (pattern, host, port, expected) in [
            ("example.com", "example.com", 80, true),
            ("example.com", "EXAMPLE.com.", 8443, true),
            ("example.com", "www.example.com", 80, false),
            ("example.com", "example.com.evil.org", 80, false),
            ("example.com", "notexample.com", 80, false),
            ("example.com:8443", "example.com", 8443, true),
            ("example.com:8443", "example.com", 443, false),
            ("*.example.com", "a.b.example.com", 443, true),
            ("*.example.com", "example.com", 443, false),
            ("*.example.com", ".example.com", 443, false),
            ("*.example.com", "notexample.com", 443, false),
            ("*.example.com:81", "a.example.com", 82, false),
            ("127.0.0.1:9000", "127.0.0.1", 9000, true),
            ("[::1]:9000", "[::1]", 9000, true),
            ("::1", "[::1]", 9000, true),
        ] {
            assert_eq!(allowed(&[pattern]).allows(host, port), expected, "{pattern} {host}:{port}");
        }
    }

    #[test]
    fn names_do_not_lead_to_the_node_itself() {
        let allowed = allowed(&["example.com", "localhost", "169.254.169.254"]);
        let may =
            |host: &str, address: &str| allowed.allows_address(host, address.parse().unwrap());
        assert!(may("example.com", "93.184.216.34") && may("example.com", "10.0.0.8"));
        for address in [
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "169.254.169.254",
            "fe80::1",
            "fd00:ec2::254",
            "100.100.100.200",
            "0.0.0.0",
            "224.0.0.1",
        ] {
            assert!(!may("example.com", address), "{address}");
        }
        assert!(may("localhost", "127.0.0.1") && may("localhost", "::1"));
        assert!(!may("localhost", "169.254.169.254"));
        assert!(may("169.254.169.254", "169.254.169.254"));
    }
}
