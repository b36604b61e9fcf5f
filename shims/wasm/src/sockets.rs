//! Sockets of guests: to hosts and on ports that the task was granted, every address checked whenever it is used.
//!
//! wasmtime asks for each address; what it was found under is remembered from the look-up, which is ours. So a name is
//! looked up once, and connecting goes to what was found then. A refusal tells in the log what would permit it.

mod concurrent;
mod look_up;

use std::collections::{HashSet, VecDeque};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use brig_api::allow_host::{Scheme, plain_host};
use rustix::process::{Resource as Limit, getrlimit};
use tokio::sync::Semaphore;
use wasmtime::component::{HasData, Linker, Resource};
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily};
use wasmtime_wasi::p2::bindings::sockets::{network, tcp_create_socket, udp_create_socket};
use wasmtime_wasi::p2::{IoError, Network, SocketError, SocketResult, TcpSocket, UdpSocket};
use wasmtime_wasi::sockets::{SocketAddrUse, WasiSocketsCtxView, WasiSocketsView as _};
use wasmtime_wasi::{WasiCtxBuilder, WasiView};

use crate::hosts::{AllowedHosts, allows_address};
use crate::output::TaskLog;

pub(crate) use concurrent::add_to_linker as add_async_to_linker;
use look_up::LookUpError;

/// Addresses that are remembered with a name they were found under; the oldest go first.
const NAMES_KEPT: usize = 1_024;
/// Clients of a UDP service that may be answered; those that asked first go first.
const PEERS_KEPT: usize = 4_096;
/// Look-ups of one task at a time: each takes a thread, of those that all guests of the shim share.
const LOOK_UPS_MAX: usize = 8;
/// What is left of the shim's open files for logs, files and its agent, when guests have as many sockets as they can.
const FILES_KEPT: u64 = 1_024;

/// What a task's guests may do with sockets, and what they found.
#[derive(Debug)]
pub(crate) struct Sockets {
    allowed: Arc<AllowedHosts>,
    ports: Vec<u16>,
    log: Arc<TaskLog>,
    look_ups: Arc<Semaphore>,
    /// Addresses, and the names that they were found under.
    found: Mutex<Recent<(IpAddr, String)>>,
    /// Who sent datagrams to a port of the task.
    peers: Mutex<Recent<SocketAddr>>,
}

impl Sockets {
    /// For the hosts and ports of a task.
    pub(crate) fn new(allowed: &Arc<AllowedHosts>, ports: &[u16], log: &Arc<TaskLog>) -> Arc<Self> {
        Arc::new(Self {
            allowed: Arc::clone(allowed),
            ports: ports.to_vec(),
            log: Arc::clone(log),
            look_ups: Arc::new(Semaphore::new(LOOK_UPS_MAX)),
            found: Mutex::new(Recent::new(NAMES_KEPT)),
            peers: Mutex::new(Recent::new(PEERS_KEPT)),
        })
    }

    /// Tells wasmtime what is allowed. Name look-ups of its own stay denied.
    pub(crate) fn grant(self: &Arc<Self>, wasi: &mut WasiCtxBuilder) {
        let (tcp, udp) = (self.may_use(Scheme::Tcp), self.may_use(Scheme::Udp));
        wasi.allow_tcp(tcp).allow_udp(udp).allow_ip_name_lookup(false);
        if tcp || udp {
            let sockets = Arc::clone(self);
            wasi.socket_addr_check(move |address, purpose| {
                Box::pin(std::future::ready(sockets.allows(address, purpose)))
            });
        }
    }

    fn may_use(&self, scheme: Scheme) -> bool {
        !self.ports.is_empty() || self.allowed.any_for(scheme)
    }

    /// May a new socket be opened?
    fn check_new(&self, scheme: Scheme) -> Result<(), ErrorCode> {
        if !self.may_use(scheme) {
            let name = scheme.as_str();
            self.log.note(&format!(
                "refused a {name} socket: to permit it, add `{name}://HOST:PORT` to the unit's `allow_hosts`, or \
                 the ports to listen on to its `ports`"
            ));
            return Err(ErrorCode::AccessDenied);
        }
        if !has_room_for_sockets() {
            self.log.note("refused a socket: the namespace's programs have too many on this node");
            return Err(ErrorCode::NewSocketLimit);
        }
        Ok(())
    }

    fn allows(&self, address: SocketAddr, purpose: SocketAddrUse) -> bool {
        match purpose {
            SocketAddrUse::TcpBind | SocketAddrUse::UdpBind | SocketAddrUse::TcpListen => {
                self.allows_listening(address, purpose)
            }
            SocketAddrUse::TcpAccept => has_room_for_sockets(),
            SocketAddrUse::TcpConnect => self.allows_sending(Scheme::Tcp, address),
            SocketAddrUse::UdpSend => {
                self.lock_peers().has(&address) || self.allows_sending(Scheme::Udp, address)
            }
            SocketAddrUse::UdpReceive => {
                if self.ports.is_empty() {
                    return self.is_allowed(Scheme::Udp, address);
                }
                self.lock_peers().insert(address);
                true
            }
        }
    }

    /// A port that was granted; or the kernel's choice, which everything that connects has.
    fn allows_listening(&self, address: SocketAddr, purpose: SocketAddrUse) -> bool {
        let is_for_connecting = address.port() == 0
            && address.ip().is_unspecified()
            && !matches!(purpose, SocketAddrUse::TcpListen);
        let is_allowed = is_for_connecting || self.ports.contains(&address.port());
        if !is_allowed {
            let which = match address.port() {
                0 => "a port of its own choice: add 0".to_owned(),
                port => format!("port {port}: add it"),
            };
            self.log.note(&format!(
                "refused to listen on {which} to the unit's `ports` to permit it (a 0 there is a port that the \
                 scheduler chooses, told in BRIG_PORT_0)"
            ));
        }
        is_allowed
    }

    fn allows_sending(&self, scheme: Scheme, address: SocketAddr) -> bool {
        let is_allowed = self.is_allowed(scheme, address);
        if !is_allowed {
            let name = scheme.as_str();
            self.log.note(&format!(
                "refused {name} to {address}: add `{name}://{address}`, or the name that the program looks up, to \
                 the unit's `allow_hosts` to permit it"
            ));
        }
        is_allowed
    }

    fn is_allowed(&self, scheme: Scheme, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        let found = self.lock_found();
        let names: Vec<&str> =
            found.iter().filter(|(at, _)| *at == ip).map(|(_, name)| name.as_str()).collect();
        self.allowed.allows_socket(scheme, address, &names)
    }

    /// May this name be looked up?
    fn check_look_up(&self, name: &str) -> Result<(), LookUpError> {
        if self.allowed.allows_look_up(name) {
            return Ok(());
        }
        self.log.note(&format!(
            "refused to look up {name:?}: add `tcp://{name}:PORT` (or udp) to the unit's `allow_hosts` to permit it"
        ));
        Err(LookUpError::Denied)
    }

    /// Takes down what a name led to; what may be connected to of it.
    fn found(&self, name: &str, addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, LookUpError> {
        let (allowed, refused): (Vec<_>, Vec<_>) =
            addresses.into_iter().partition(|address| allows_address(name, *address));
        if let (true, Some(address)) = (allowed.is_empty(), refused.first()) {
            self.log.note(&format!(
                "refused {name}: its address {address} is reserved for the node; name the address itself in \
                 `allow_hosts` to permit it"
            ));
            return Err(LookUpError::Denied);
        }
        let mut found = self.lock_found();
        for address in &allowed {
            found.insert((*address, plain_host(name)));
        }
        Ok(allowed)
    }

    fn lock_found(&self) -> std::sync::MutexGuard<'_, Recent<(IpAddr, String)>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_peers(&self) -> std::sync::MutexGuard<'_, Recent<SocketAddr>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sockets take files of the whole shim. The kernel gives out the lowest number that is free, so that a new
/// descriptor's number tells how many there are at least.
fn has_room_for_sockets() -> bool {
    static NUMBER_MAX: LazyLock<u64> = LazyLock::new(|| {
        let limit = getrlimit(Limit::Nofile).current.unwrap_or(u64::MAX);
        limit.saturating_sub(FILES_KEPT).max(limit / 2)
    });
    rustix::io::dup(std::io::stderr().as_fd())
        .is_ok_and(|next| u64::try_from(next.as_raw_fd()).is_ok_and(|next| next < *NUMBER_MAX))
}

/// A set that forgets what it was told first when it is full.
#[derive(Debug)]
struct Recent<T> {
    order: VecDeque<T>,
    known: HashSet<T>,
    most: usize,
}

impl<T: Clone + Eq + Hash> Recent<T> {
    fn new(most: usize) -> Self {
        Self { order: VecDeque::new(), known: HashSet::new(), most }
    }

    fn insert(&mut self, item: T) {
        if !self.known.insert(item.clone()) {
            return;
        }
        self.order.push_back(item);
        if self.order.len() > self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    fn has(&self, item: &T) -> bool {
        self.known.contains(item)
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.order.iter()
    }
}

/// A host whose guests have sockets.
pub(crate) trait HasSockets: WasiView + 'static {
    /// What its task may do with them.
    fn granted_sockets(&self) -> &Arc<Sockets>;
}

/// Puts our look-up, and our checks of new sockets, in the place of the library's.
pub(crate) fn add_to_linker<T: HasSockets>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    tcp_create_socket::add_to_linker::<T, Granted>(linker, view)?;
    udp_create_socket::add_to_linker::<T, Granted>(linker, view)?;
    look_up::add_to_linker(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

struct Granted;

impl HasData for Granted {
    type Data<'a> = View<'a>;
}

struct View<'a> {
    sockets: Arc<Sockets>,
    wasi: WasiSocketsCtxView<'a>,
}

fn view<T: HasSockets>(host: &mut T) -> View<'_> {
    View { sockets: Arc::clone(host.granted_sockets()), wasi: host.sockets() }
}

impl network::Host for View<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        self.wasi.convert_error_code(error)
    }

    fn network_error_code(
        &mut self,
        error: Resource<IoError>,
    ) -> wasmtime::Result<Option<ErrorCode>> {
        self.wasi.network_error_code(error)
    }
}

impl network::HostNetwork for View<'_> {
    fn drop(&mut self, network: Resource<Network>) -> wasmtime::Result<()> {
        network::HostNetwork::drop(&mut self.wasi, network)
    }
}

impl tcp_create_socket::Host for View<'_> {
    fn create_tcp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Resource<TcpSocket>> {
        self.sockets.check_new(Scheme::Tcp)?;
        self.wasi.create_tcp_socket(family)
    }
}

impl udp_create_socket::Host for View<'_> {
    async fn create_udp_socket(
        &mut self,
        family: IpAddressFamily,
    ) -> SocketResult<Resource<UdpSocket>> {
        self.sockets.check_new(Scheme::Udp)?;
        self.wasi.create_udp_socket(family).await
    }
}

#[cfg(test)]
mod tests {
    use brig_shim::message::LogTarget;

    use super::*;

    struct Bench {
        dir: tempfile::TempDir,
        sockets: Arc<Sockets>,
    }

    impl Bench {
        fn new(allow: &[&str], ports: &[u16]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            let log = TaskLog::new(LogTarget { path, bytes_max: 1 << 20, files_kept: 1 });
            let allow: Vec<_> = allow.iter().map(|text| (*text).to_owned()).collect();
            let sockets = Sockets::new(&Arc::new(AllowedHosts::new(&allow)), ports, &log);
            Self { dir, sockets }
        }

        fn may(&self, purpose: SocketAddrUse, address: &str) -> bool {
            self.sockets.allows(address.parse().unwrap(), purpose)
        }

        fn said(&self) -> String {
            std::fs::read_to_string(self.dir.path().join("log")).unwrap()
        }
    }

    #[test]
    fn only_granted_ports_can_be_listened_on() {
        use SocketAddrUse::{TcpBind, TcpListen, UdpBind};
        let bench = Bench::new(&["tcp://10.0.0.1:1"], &[7000]);
        for (purpose, address, expected) in [
            (TcpBind, "0.0.0.0:0", true),
            (UdpBind, "[::]:0", true),
            (TcpListen, "0.0.0.0:0", false),
            (TcpBind, "127.0.0.1:0", false),
            (TcpBind, "0.0.0.0:7000", true),
            (TcpListen, "0.0.0.0:7000", true),
            (UdpBind, "0.0.0.0:7001", false),
            (TcpListen, "0.0.0.0:43210", false),
        ] {
            assert_eq!(bench.may(purpose, address), expected, "{purpose:?} {address}");
        }
        assert!(
            bench.said().contains("port 7001: add it to the unit's `ports`"),
            "{}",
            bench.said()
        );
    }

    #[test]
    fn addresses_are_allowed_by_the_names_that_they_were_found_under() {
        use SocketAddrUse::{TcpConnect, UdpSend};
        let bench = Bench::new(&["tcp://db.internal:5432"], &[]);
        assert!(!bench.may(TcpConnect, "10.1.1.1:5432"), "nothing was looked up");
        assert!(bench.said().contains("add `tcp://10.1.1.1:5432`"), "{}", bench.said());
        let found = vec!["10.1.1.1".parse().unwrap(), "127.0.0.1".parse().unwrap()];
        let allowed = bench.sockets.found("DB.internal.", found).unwrap();
        assert_eq!(allowed, ["10.1.1.1".parse::<IpAddr>().unwrap()]);
        assert!(bench.may(TcpConnect, "10.1.1.1:5432"));
        assert!(!bench.may(TcpConnect, "10.1.1.1:22") && !bench.may(UdpSend, "10.1.1.1:5432"));
        assert!(!bench.may(TcpConnect, "127.0.0.1:5432"), "a name does not lead to the node");
        let reserved = vec!["169.254.169.254".parse().unwrap()];
        assert_eq!(bench.sockets.found("db.internal", reserved), Err(LookUpError::Denied));
        assert_eq!(bench.sockets.check_look_up("evil.internal"), Err(LookUpError::Denied));
        assert!(bench.said().contains("tcp://evil.internal:PORT"), "{}", bench.said());
    }

    #[test]
    fn a_udp_service_answers_who_asked_and_nobody_else() {
        use SocketAddrUse::{UdpReceive, UdpSend};
        let bench = Bench::new(&[], &[5353]);
        assert!(!bench.may(UdpSend, "10.9.9.9:1000"));
        assert!(bench.may(UdpReceive, "10.9.9.9:1000") && bench.may(UdpSend, "10.9.9.9:1000"));
        assert!(!bench.may(UdpSend, "10.9.9.9:1001"));
        let client = Bench::new(&["udp://10.0.0.2:53"], &[]);
        assert!(client.may(UdpReceive, "10.0.0.2:53") && !client.may(UdpReceive, "10.0.0.3:53"));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_goes() {
        let mut recent = Recent::new(2);
        for item in [1, 2, 1, 3] {
            recent.insert(item);
        }
        assert!(!recent.has(&1) && recent.has(&2) && recent.has(&3));
        assert_eq!(recent.iter().count(), 2);
    }
}
