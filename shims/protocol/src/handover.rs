//! What a wasm task is given besides words: descriptors, which come with [`Request::Start`] over the shim's socket.
//!
//! A shim sees little of the machine's files and has a network of its own. The agent, which decides what a task is granted,
//! opens it and hands it over: the directory of each of [`StartTask::mounts`], in their order, then the socket that is bound
//! to [`StartWasm::http`], where there is one.
//!
//! [`Request::Start`]: crate::message::Request::Start
//! [`StartWasm::http`]: crate::message::StartWasm::http

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use brig_api::lifecycle::Reason;
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sockopt,
};

use crate::code::Refusal;
use crate::mapped::{self, Access};
use crate::message::{BindMount, Request, StartProgram, StartTask};

/// Most descriptors of one message; the kernel takes 253.
pub const DESCRIPTORS_MAX: usize = 128;

/// How many descriptors belong to a request.
#[must_use]
pub fn count(request: &Request) -> usize {
    match request {
        Request::Start(start) => match &start.program {
            StartProgram::Wasm(wasm) => start.mounts.len() + usize::from(wasm.http.is_some()),
            StartProgram::Oci(_) => 0,
        },
        _ => 0,
    }
}

/// Opens what a task is granted. `owners` is the user namespace of the shim, where it has one of its own: what root owns
/// here is root's there, too.
///
/// # Errors
/// What can't be opened, with the way out.
pub fn open(start: &StartTask, owners: Option<BorrowedFd<'_>>) -> Result<Vec<OwnedFd>, Refusal> {
    let StartProgram::Wasm(wasm) = &start.program else { return Ok(Vec::new()) };
    if start.mounts.len() >= DESCRIPTORS_MAX {
        let message = format!(
            "it has {DESCRIPTORS_MAX} mounts or more: mount a directory above some of them"
        );
        return Err(Refusal { reason: Reason::MountRefused, message });
    }
    let mut descriptors = Vec::new();
    for mount in &start.mounts {
        descriptors.push(open_mount(mount, owners)?);
    }
    if let Some(address) = wasm.http {
        let bound = bind(address).map_err(|error| Refusal {
            reason: Reason::CreateFailed,
            message: format!("it can't listen on {address}: {error}"),
        })?;
        descriptors.push(bound);
    }
    Ok(descriptors)
}

fn open_mount(mount: &BindMount, owners: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Refusal> {
    let opened = match owners {
        Some(owners) => {
            let access = if mount.read_only { Access::Read } else { Access::Write };
            mapped::open_dir(&mount.source, access, owners)
        }
        None => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(&mount.source, flags, Mode::empty()).map_err(io::Error::from)
        }
    };
    opened.map_err(|error| Refusal {
        reason: Reason::MountRefused,
        message: format!(
            "{} can't be mounted at {}: {error}. A wasm program is given directories that exist",
            mount.source.display(),
            mount.at
        ),
    })
}

/// A socket that does not listen yet: it takes no connections from others on the port before its program is ready.
fn bind(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    // Several units of a service share a port.
    sockopt::set_socket_reuseport(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

/// Sends as many of the bytes as the socket takes, and the descriptors with the first of them.
///
/// # Errors
/// Those of sending; `WouldBlock` when nothing was sent.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    let pieces = [IoSlice::new(bytes)];
    Ok(rustix::net::sendmsg(socket, &pieces, &mut control, SendFlags::NOSIGNAL)?)
}

/// Receives bytes, and the descriptors that come with them; 0 at the end.
///
/// # Errors
/// Those of receiving; `WouldBlock` when nothing is there.
pub fn receive(
    socket: impl AsFd,
    bytes: &mut [u8],
    descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut pieces = [IoSliceMut::new(bytes)];
    let received =
        rustix::net::recvmsg(socket, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_come_with_the_bytes_that_they_were_sent_with() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), b"text").unwrap();
        let file = OwnedFd::from(std::fs::File::open(dir.path().join("file")).unwrap());
        assert_eq!(send(&ours, b"one", &[]).unwrap(), 3);
        assert_eq!(send(&ours, b"two", &[file]).unwrap(), 3);
        let (mut bytes, mut descriptors) = ([0; 16], VecDeque::new());
        let mut got = Vec::new();
        while got.len() < 6 {
            let count = receive(&theirs, &mut bytes, &mut descriptors).unwrap();
            assert_eq!(descriptors.is_empty(), got.len() + count <= 3);
            got.extend_from_slice(&bytes[..count]);
        }
        let mut text = String::new();
        std::fs::File::from(descriptors.pop_front().unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!((got.as_slice(), text.as_str(), descriptors.len()), (&b"onetwo"[..], "text", 0));
        drop(ours);
        assert_eq!(receive(&theirs, &mut bytes, &mut descriptors).unwrap(), 0);
    }
}
