//! Which hosts a task may connect to, by HTTP and by sockets, and which addresses behind them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use brig_api::allow_host::{AllowedHost, Scheme, plain_host};

/// Where clouds serve a machine's metadata, credentials among them, that is not link-local: Amazon's over IPv6
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html>), and Alibaba's
/// (<https://www.alibabacloud.com/help/en/ecs/user-guide/view-instance-metadata>).
const METADATA: [IpAddr; 2] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
];

/// The hosts of a task.
#[derive(Debug, Clone, Default)]
pub(crate) struct AllowedHosts {
    entries: Vec<AllowedHost>,
}

impl AllowedHosts {
    /// Reads `allow_hosts`; what is no host allows nothing.
    pub(crate) fn new(texts: &[String]) -> Self {
        Self { entries: texts.iter().filter_map(|text| text.parse().ok()).collect() }
    }

    /// Is any host allowed by that scheme?
    pub(crate) fn any_for(&self, scheme: Scheme) -> bool {
        self.entries.iter().any(|entry| entry.is_for(scheme))
    }

    /// May this host (as it stands in an URL) be spoken to at this port?
    pub(crate) fn allows(&self, scheme: Scheme, host: &str, port: u16) -> bool {
        let host = plain_host(host);
        self.entries
            .iter()
            .any(|entry| entry.is_for(scheme) && entry.has_port(port) && entry.names(&host))
    }

    /// May a program look this name up, to open a socket to it?
    pub(crate) fn allows_look_up(&self, host: &str) -> bool {
        let host = plain_host(host);
        let is_for_sockets =
            |entry: &AllowedHost| entry.is_for(Scheme::Tcp) || entry.is_for(Scheme::Udp);
        self.entries.iter().any(|entry| is_for_sockets(entry) && entry.names(&host))
    }

    /// May a socket be opened to this address? It is allowed by its number, or by one of the `names` that it was
    /// found under.
    pub(crate) fn allows_socket(
        &self,
        scheme: Scheme,
        address: SocketAddr,
        names: &[impl AsRef<str>],
    ) -> bool {
        let ip = address.ip().to_canonical();
        let mut entries = self.entries.iter();
        entries.any(|entry| {
            let by_name = |name: &str| entry.names(name) && allows_address(name, ip);
            entry.is_for(scheme)
                && entry.has_port(address.port())
                && (entry.address() == Some(ip)
                    || by_name(LOCALHOST) && ip.is_loopback()
                    || names.iter().any(|name| by_name(name.as_ref())))
        })
    }
}

const LOCALHOST: &str = "localhost";

/// May what is meant for this (allowed) host be sent to this address? A name must not lead to the node itself or to
/// its cloud's metadata, unless that is what the user wrote.
pub(crate) fn allows_address(host: &str, address: IpAddr) -> bool {
    let host = plain_host(host);
    if host.parse::<IpAddr>().is_ok() {
        return true; // allowed by its number
    }
    let address = address.to_canonical();
    if address.is_loopback() {
        return host == LOCALHOST || host.ends_with(".localhost");
    }
    !is_for_the_machine_only(address) && !METADATA.contains(&address)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(texts: &[&str]) -> AllowedHosts {
        AllowedHosts::new(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn nothing_is_allowed_unless_named() {
        assert!(!allowed(&[]).allows(Scheme::Http, "example.com", 80));
        let wrong = allowed(&["", "*", "ftp://a.com"]);
        assert!(!wrong.allows(Scheme::Http, "a.com", 80) && !wrong.any_for(Scheme::Http));
        let http = allowed(&["db.internal:5432", "10.0.0.1"]);
        let address = "10.0.0.1:5432".parse().unwrap();
        assert!(!http.allows_look_up("db.internal"), "that is for wasi:http");
        assert!(!http.allows_socket(Scheme::Tcp, address, &["db.internal"]));
    }

    #[test]
    fn sockets_go_to_addresses_that_are_named_or_were_found_under_a_name() {
        let allowed = allowed(&[
            "tcp://db.internal:5432",
            "tcp://*.shop.internal",
            "udp://10.0.0.2:53",
            "tcp://[::1]:7000",
            "tcp://localhost:6379",
        ]);
        assert!(allowed.allows_look_up("DB.internal") && allowed.allows_look_up("a.shop.internal"));
        assert!(!allowed.allows_look_up("other.internal"));
        for (scheme, address, names, expected) in [
            (Scheme::Tcp, "10.1.1.1:5432", &["db.internal"][..], true),
            (Scheme::Tcp, "10.1.1.1:5433", &["db.internal"], false),
            (Scheme::Udp, "10.1.1.1:5432", &["db.internal"], false),
            (Scheme::Tcp, "10.1.1.1:5432", &["other.internal"], false),
            (Scheme::Tcp, "10.1.1.1:5432", &[], false),
            (Scheme::Tcp, "10.1.1.1:9", &["x", "b.shop.internal"], true),
            (Scheme::Tcp, "127.0.0.1:5432", &["db.internal"], false),
            (Scheme::Tcp, "169.254.169.254:80", &["b.shop.internal"], false),
            (Scheme::Udp, "10.0.0.2:53", &[], true),
            (Scheme::Udp, "[::ffff:10.0.0.2]:53", &[], true),
            (Scheme::Udp, "10.0.0.3:53", &[], false),
            (Scheme::Tcp, "[::1]:7000", &[], true),
            (Scheme::Tcp, "127.0.0.1:6379", &[], true),
            (Scheme::Tcp, "127.0.0.1:7000", &[], false),
        ] {
            let found = allowed.allows_socket(scheme, address.parse().unwrap(), names);
            assert_eq!(found, expected, "{scheme:?} {address} {names:?}");
        }
    }

    #[test]
    fn names_do_not_lead_to_the_node_itself() {
        let may = |host: &str, address: &str| allows_address(host, address.parse().unwrap());
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
