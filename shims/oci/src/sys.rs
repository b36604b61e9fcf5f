//! The few system calls that no safe crate offers, each behind a function that can't be used wrongly here.
#![expect(unsafe_code, reason = "fork, execve, _exit and signal masks have no safe wrapper")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;
use rustix::thread::UnshareFlags;

/// Forks. None in the child.
///
/// The shim has one thread, so the child may do everything that the parent may: no lock can be held by a
/// thread that is not there any more. The child must end with [`exit_now`] or become another program.
pub(crate) fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: the process is single-threaded (main starts no thread and no library here does).
    let pid = unsafe { libc::fork() };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(Pid::from_raw(pid)) }
}

/// Ends a forked child without running what the parent registered to run at its end.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Replaces the process by the program at `path`; returns only to say why it could not.
pub(crate) fn execve(path: &CString, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |texts: &[CString]| -> Vec<*const libc::c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end with null and point to strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Marks every descriptor from 3 on as closed by the next execve.
pub(crate) fn close_on_exec_from_3() -> io::Result<()> {
    close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor from 3 on except `keep`. For forked children only: what owned them must not be used
/// or dropped afterwards, which [`exit_now`] sees to.
pub(crate) fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut keep: Vec<libc::c_uint> =
        keep.iter().filter_map(|fd| fd.as_raw_fd().try_into().ok()).filter(|fd| *fd >= 3).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1, 0)?;
        }
        first = fd.saturating_add(1);
    }
    close_range(first, libc::c_uint::MAX, 0)
}

fn close_range(first: libc::c_uint, last: libc::c_uint, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: plain integers; the callers above say why no owner is surprised.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes a descriptor that the parent process passed by number.
///
/// Call it once for a number, at the start of the process.
pub(crate) fn take_inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is only borrowed to be duplicated; a closed one makes fcntl fail.
    let duplicate = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if duplicate < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fcntl has just made it, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(duplicate) })
}

/// Makes `fd` standard input (0), output (1) or error (2) of the process.
pub(crate) fn become_standard_stream(fd: BorrowedFd<'_>, stream: StandardStream) -> io::Result<()> {
    // SAFETY: the standard streams have no owner that could be surprised.
    let result = unsafe { libc::dup2(fd.as_raw_fd(), stream as libc::c_int) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The streams that every program finds open.
#[derive(Debug, Clone, Copy)]
pub(crate) enum StandardStream {
    Input = 0,
    Output = 1,
    Error = 2,
}

/// Gives the process namespaces of its own.
pub(crate) fn unshare(namespaces: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: what could be surprised by a descriptor table of its own is left out.
    unsafe { rustix::thread::unshare_unsafe(namespaces.difference(UnshareFlags::FILES)) }
}

/// Forgets the environment of the process: neither the library nor a container shall see it.
pub(crate) fn clear_environment() {
    // SAFETY: the process is single-threaded.
    unsafe { libc::clearenv() };
}

/// The umask that container engines work with.
pub(crate) fn set_default_umask() {
    // SAFETY: umask has no preconditions.
    unsafe { libc::umask(0o022) };
}

/// Blocks SIGCHLD and SIGTERM, ignores SIGPIPE; the blocked ones arrive through the descriptor.
pub(crate) fn signals_as_descriptor() -> io::Result<OwnedFd> {
    let set = handled_signals();
    // SAFETY: `set` is initialized; SIGPIPE may be ignored at any time.
    let fd = unsafe {
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: signalfd has just made it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives a forked child the signal state of a fresh process, which programs inherit over execve.
pub(crate) fn restore_signals() {
    let set = handled_signals();
    // SAFETY: `set` is initialized.
    unsafe {
        libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

/// Sends signal number `signal`, which may be a real-time one, to a process.
pub(crate) fn kill(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: plain integers.
    let result = unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn handled_signals() -> libc::sigset_t {
    // SAFETY: sigemptyset initializes the set before anything reads it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        set
    }
}
