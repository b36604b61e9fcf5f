//! Makes the sockets of a worker. Its container has a network of its own in which there is nothing; when it asks the kernel
//! for a TCP or UDP socket, the kernel asks here (seccomp's notifications, seccomp_unotify(2)), and one of the node's network
//! is put among its descriptors. Sockets of any other kind it does not get.
#![expect(unsafe_code, reason = "seccomp's notifications have no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// The lower bits of a socket's type; those above are flags.
const TYPE_MASK: u64 = 0xf;

/// What answers a worker's calls.
#[derive(Debug)]
pub(crate) struct Sockets {
    calls: OwnedFd,
}

impl Sockets {
    /// `calls` is what the worker's filter told it.
    pub(crate) fn new(calls: OwnedFd) -> Self {
        Self { calls }
    }

    /// To wait for calls.
    pub(crate) fn calls(&self) -> &OwnedFd {
        &self.calls
    }

    /// Answers one call.
    ///
    /// # Errors
    /// `NotFound` when the caller has given up meanwhile; others when the worker is gone.
    pub(crate) fn answer(&self) -> io::Result<()> {
        let call = self.receive()?;
        match make(&call.data) {
            Ok((socket, closes_on_exec)) => self.hand_over(call.id, &socket, closes_on_exec),
            Err(error) => self.refuse(call.id, error),
        }
    }

    fn receive(&self) -> io::Result<libc::seccomp_notif> {
        // SAFETY: all of it is integers, for which zero is a value; the kernel wants it zeroed, and fills it in.
        unsafe {
            let mut call: libc::seccomp_notif = std::mem::zeroed();
            self.ioctl(libc::SECCOMP_IOCTL_NOTIF_RECV, (&raw mut call).cast())?;
            Ok(call)
        }
    }

    fn hand_over(&self, id: u64, socket: &OwnedFd, closes_on_exec: bool) -> io::Result<()> {
        let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let mut given = libc::seccomp_notif_addfd {
            id,
            // At once with the answer: the call returns the new number.
            flags: u32::try_from(libc::SECCOMP_ADDFD_FLAG_SEND).map_err(invalid)?,
            srcfd: u32::try_from(socket.as_raw_fd()).map_err(invalid)?,
            newfd: 0,
            newfd_flags: if closes_on_exec {
                u32::try_from(libc::O_CLOEXEC).map_err(invalid)?
            } else {
                0
            },
        };
        // SAFETY: the kernel reads the structure, which is whole.
        unsafe { self.ioctl(libc::SECCOMP_IOCTL_NOTIF_ADDFD, (&raw mut given).cast()) }
    }

    fn refuse(&self, id: u64, error: Errno) -> io::Result<()> {
        let mut refusal =
            libc::seccomp_notif_resp { id, val: 0, error: -error.raw_os_error(), flags: 0 };
        // SAFETY: as above.
        unsafe { self.ioctl(libc::SECCOMP_IOCTL_NOTIF_SEND, (&raw mut refusal).cast()) }
    }

    /// # Safety
    /// `argument` points to the structure that belongs to the request.
    unsafe fn ioctl(&self, request: libc::Ioctl, argument: *mut libc::c_void) -> io::Result<()> {
        // SAFETY: the caller's promise; the descriptor is open.
        let result = unsafe { libc::ioctl(self.calls.as_raw_fd(), request, argument) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// The socket that a call asks for, and whether it is to be closed when another program is run.
fn make(call: &libc::seccomp_data) -> Result<(OwnedFd, bool), Errno> {
    let [family, kind, protocol, ..] = call.args.map(|argument| argument & 0xffff_ffff);
    if i64::from(call.nr) != libc::SYS_socket {
        return Err(Errno::NOSYS);
    }
    let family = match i32::try_from(family) {
        Ok(libc::AF_INET) => AddressFamily::INET,
        Ok(libc::AF_INET6) => AddressFamily::INET6,
        _ => return Err(Errno::AFNOSUPPORT),
    };
    let known = [
        (libc::SOCK_STREAM, libc::IPPROTO_TCP, SocketType::STREAM),
        (libc::SOCK_DGRAM, libc::IPPROTO_UDP, SocketType::DGRAM),
    ];
    let is_it = |number: i32, value: u64| u64::try_from(number) == Ok(value);
    let (_, _, socket_type) = known
        .into_iter()
        .find(|(number, own, _)| {
            is_it(*number, kind & TYPE_MASK) && (protocol == 0 || is_it(*own, protocol))
        })
        .ok_or(Errno::PROTONOSUPPORT)?;
    let has = |flag: i32| u64::try_from(flag).is_ok_and(|flag| kind & flag != 0);
    let mut flags = SocketFlags::CLOEXEC;
    flags.set(SocketFlags::NONBLOCK, has(libc::SOCK_NONBLOCK));
    let socket = rustix::net::socket_with(family, socket_type, flags, None)?;
    Ok((socket, has(libc::SOCK_CLOEXEC)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(family: i32, kind: i32, protocol: i32) -> libc::seccomp_data {
        let args = [family, kind, protocol, 0, 0, 0].map(|value| u64::try_from(value).unwrap());
        let nr = libc::c_int::try_from(libc::SYS_socket).unwrap();
        libc::seccomp_data { nr, arch: 0, instruction_pointer: 0, args }
    }

    #[test]
    fn there_are_tcp_and_udp_and_nothing_else() {
        use libc::{AF_INET, AF_INET6, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_STREAM};
        for family in [AF_INET, AF_INET6] {
            let (socket, closes) = make(&call(family, SOCK_STREAM | SOCK_CLOEXEC, 6)).unwrap();
            let of_udp = make(&call(family, SOCK_DGRAM | SOCK_NONBLOCK, 0)).unwrap();
            assert!(closes && !of_udp.1);
            let kind = |socket| rustix::net::sockopt::socket_type(socket).unwrap();
            assert_eq!(kind(&socket), SocketType::STREAM);
            assert_eq!(kind(&of_udp.0), SocketType::DGRAM);
            let flags = rustix::fs::fcntl_getfl(&of_udp.0).unwrap();
            assert!(flags.contains(rustix::fs::OFlags::NONBLOCK));
        }
        for refused in [
            call(libc::AF_UNIX, SOCK_STREAM, 0),
            call(libc::AF_NETLINK, SOCK_DGRAM, 0),
            call(libc::AF_PACKET, libc::SOCK_RAW, 0),
            call(AF_INET, libc::SOCK_RAW, 1),
            call(AF_INET, SOCK_DGRAM, 1),
            call(AF_INET, SOCK_STREAM, 132),
            libc::seccomp_data { nr: 0, ..call(AF_INET, SOCK_STREAM, 0) },
        ] {
            assert!(make(&refused).is_err(), "{:?}", refused.args);
        }
    }
}
