//! Runs a piece of work in a short-lived forked process and brings its result back.
//!
//! libcontainer leaves marks on the process that calls it (dumpable flag, leaked descriptors, unreaped
//! children), so it is only ever called here, never in the shim itself.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open,
    set_parent_process_death_signal, waitpid,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::Failure;
use crate::sys;

/// Longest result, in bytes: an error message and a number.
const RESULT_BYTES_MAX: usize = 32 << 10;

/// Runs `work` in a forked process that has, besides the standard streams, only the descriptors in `keep`.
///
/// # Errors
/// That of `work`, or that the process died or took longer than `seconds`.
pub(crate) fn run<T: Serialize + DeserializeOwned>(
    what: &str,
    seconds: i64,
    keep: &[BorrowedFd<'_>],
    work: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let failed = |error: Errno| Failure::system(what, error);
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(failed)?;
    let child = sys::fork().map_err(|error| Failure::system(what, error))?;
    let Some(child) = child else { in_child(&theirs, keep, work) };
    drop(theirs);
    let answer = receive(&ours, child, seconds);
    if answer.is_none() {
        let _ = kill_process(child, Signal::KILL);
    }
    let status = waitpid(Some(child), WaitOptions::empty()).map_err(failed)?;
    match answer {
        Some(bytes) => serde_json::from_slice::<Result<T, Failure>>(&bytes)
            .unwrap_or_else(|error| Err(Failure::create(format!("{what}: {error}")))),
        None => Err(Failure::create(format!(
            "{what}: the helper process ended without a result ({status:?}); see the shim's log"
        ))),
    }
}

fn in_child<T: Serialize>(
    answer: &OwnedFd,
    keep: &[BorrowedFd<'_>],
    work: impl FnOnce() -> Result<T, Failure>,
) -> ! {
    sys::restore_signals();
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let mut kept = keep.to_vec();
    kept.push(answer.as_fd());
    let result = match sys::close_all_but(&kept) {
        Ok(()) => work(),
        Err(error) => Err(Failure::system("closing inherited descriptors", error)),
    };
    let result = result.map_err(|mut failure| {
        failure.message.truncate(failure.message.floor_char_boundary(RESULT_BYTES_MAX / 4));
        failure
    });
    let bytes = serde_json::to_vec(&result).unwrap_or_default();
    let _ = rustix::net::send(answer, &bytes, SendFlags::NOSIGNAL);
    sys::exit_now(0)
}

/// The child's answer; None when it died or took too long. The container's init holds a copy of the socket for a
/// while, so that its end says nothing: the process is watched instead.
fn receive(ours: &OwnedFd, child: Pid, seconds: i64) -> Option<Vec<u8>> {
    let pidfd = pidfd_open(child, PidfdFlags::empty()).ok()?;
    let timeout = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let mut ready =
        [PollFd::new(ours, PollFlags::IN), PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
    loop {
        match poll(&mut ready, Some(&timeout)) {
            Err(Errno::INTR) => {}
            Err(_) | Ok(0) => return None,
            Ok(_) => break,
        }
    }
    let mut bytes = vec![0; RESULT_BYTES_MAX];
    let (length, _) = rustix::net::recv(ours, &mut bytes[..], RecvFlags::DONTWAIT).ok()?;
    bytes.truncate(length);
    (length > 0).then_some(bytes)
}
