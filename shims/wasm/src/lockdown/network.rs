//! In a container a shim has a network of its own, in which there is nothing. Its sockets are made by whoever looks after
//! the container: the kernel asks there instead of making them (seccomp_unotify(2)).
#![expect(unsafe_code, reason = "a filter with a listener has no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use anyhow::Context;
use brig_shim::handover;
use rustix::net::{AddressFamily, sockopt};
use seccompiler::sock_filter;

/// AUDIT_ARCH_X86_64 and AUDIT_ARCH_AARCH64.
#[cfg(target_arch = "x86_64")]
const AUDIT_ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCHITECTURE: u32 = 0xC000_00B7;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const AUDIT_ARCHITECTURE: u32 = 0;

/// Gives the making of sockets away, if standard output is a way to whoever takes it.
pub(super) fn hand_over() -> anyhow::Result<()> {
    let stdout = io::stdout();
    let is_way = sockopt::socket_domain(stdout.as_fd()).is_ok_and(|is| is == AddressFamily::UNIX);
    if !is_way {
        return Ok(());
    }
    let calls = listen().context("asking to be told of sockets")?;
    send(stdout.as_fd(), calls).context("handing the making of sockets over")
}

fn send(way: BorrowedFd<'_>, calls: OwnedFd) -> io::Result<()> {
    handover::send(way, b"!", &[calls]).map(drop)
}

/// Installs the filter; what tells of the calls that it lets wait.
fn listen() -> io::Result<OwnedFd> {
    let filter = filter();
    let length = libc::c_ushort::try_from(filter.len()).map_err(io::Error::other)?;
    // The two crates describe the same structure of the kernel's.
    let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel copies the program, which lives to the end of the call, and changes nothing.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `socket` waits for an answer, everything else is as it was.
fn filter() -> [sock_filter; 6] {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const OFFSET_NUMBER: u32 = 0;
    const OFFSET_ARCHITECTURE: u32 = 4;
    #[expect(clippy::cast_possible_truncation, reason = "numbers of system calls are small")]
    const SOCKET: u32 = libc::SYS_socket as u32;
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    [
        step(LOAD, 0, 0, OFFSET_ARCHITECTURE),
        step(EQUAL, 0, 2, AUDIT_ARCHITECTURE),
        step(LOAD, 0, 0, OFFSET_NUMBER),
        step(EQUAL, 1, 0, SOCKET),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        step(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
    ]
}
