//! One connection of an agent: bytes in, frames out, never blocking.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use brig_api::stdio::StdioFrame;
use brig_shim::frame::{self, Decoder, FrameError};
use brig_shim::message::{FromShim, ToShim};

use crate::exec::Session;

/// Read at once, in bytes.
const READ_BYTES: usize = 64 << 10;
/// Most bytes that wait for a connection that does not read: beyond, a session's output is left in its pipes.
const OUT_BYTES_MAX: usize = 1 << 20;

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    out: Vec<u8>,
    /// The program whose streams it carries, after an exec.
    pub(crate) session: Option<Session>,
    /// Said hello.
    pub(crate) is_greeted: bool,
    /// To be closed once everything is written.
    pub(crate) is_ending: bool,
}

impl Connection {
    /// Takes an accepted stream.
    pub(crate) fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            decoder: Decoder::default(),
            out: Vec::new(),
            session: None,
            is_greeted: false,
            is_ending: false,
        })
    }

    /// For poll.
    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Something waits to be written.
    pub(crate) fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// More output may be added.
    pub(crate) fn has_room(&self) -> bool {
        self.out.len() < OUT_BYTES_MAX
    }

    /// Reads what is there. False: the other side has gone.
    pub(crate) fn read(&mut self) -> bool {
        let mut bytes = vec![0; READ_BYTES];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(length) => {
                self.decoder.push(&bytes[..length]);
                true
            }
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }

    /// The next request, if one has arrived whole.
    pub(crate) fn next_request(&mut self) -> Result<Option<ToShim>, FrameError> {
        self.decoder.next_message()
    }

    /// The next frame for the session's program, if one has arrived whole. None too when it is no such frame: then
    /// the connection is ended.
    pub(crate) fn next_stdio(&mut self) -> Option<StdioFrame> {
        let bytes = match self.decoder.next_frame() {
            Ok(bytes) => bytes?,
            Err(_) => {
                self.is_ending = true;
                return None;
            }
        };
        let frame = StdioFrame::decode(&bytes);
        self.is_ending |= frame.is_err();
        frame.ok()
    }

    /// Queues a message.
    pub(crate) fn send(&mut self, message: &FromShim) {
        if frame::encode_message(message, &mut self.out).is_err() || !self.has_room() {
            // An agent that reads nothing for so long has lost its place; it connects again.
            self.is_ending = true;
        }
    }

    /// Queues a frame of the session.
    pub(crate) fn send_stdio(&mut self, stdio: &StdioFrame) {
        if frame::encode(&stdio.encode(), &mut self.out).is_err() {
            self.is_ending = true;
        }
    }

    /// The connection is over: a program that still runs for it is told so.
    pub(crate) fn hang_up(&mut self) {
        if let Some(session) = &mut self.session {
            session.hang_up();
        }
    }

    /// Writes what the other side takes now. False: it has gone.
    pub(crate) fn flush(&mut self) -> bool {
        while !self.out.is_empty() {
            match self.stream.write(&self.out) {
                Ok(0) => return false,
                Ok(length) => {
                    self.out.drain(..length);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        true
    }
}
