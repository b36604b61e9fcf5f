//! Frames that carry a running program's standard streams: between client and server, server and node, node
//! and shim, unchanged. A frame is one byte for the channel and then the payload; how frames are told apart is
//! the carrier's (a WebSocket message, or a length in front on a unix socket).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Largest payload of a frame, in bytes.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = 64 << 10;

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Height.
    pub rows: u16,
    /// Width.
    pub columns: u16,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StdioFrame {
    /// To the program. Empty: the input has ended.
    Stdin(Vec<u8>),
    /// From the program.
    Stdout(Vec<u8>),
    /// From the program.
    Stderr(Vec<u8>),
    /// The terminal has another size.
    Resize(TerminalSize),
    /// The program ended with this code; the last frame.
    Exit(i32),
    /// It could not be run, and why; the last frame.
    Failed(String),
}

/// Bytes that are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a stdio frame: {0}")]
pub struct InvalidFrame(&'static str);

impl StdioFrame {
    /// The bytes of the frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (channel, payload) = match self {
            Self::Stdin(bytes) => (0, bytes.clone()),
            Self::Stdout(bytes) => (1, bytes.clone()),
            Self::Stderr(bytes) => (2, bytes.clone()),
            Self::Resize(size) => {
                (3, [size.rows.to_be_bytes(), size.columns.to_be_bytes()].concat())
            }
            Self::Exit(code) => (4, code.to_be_bytes().to_vec()),
            Self::Failed(message) => (5, message.clone().into_bytes()),
        };
        let mut bytes = Vec::with_capacity(payload.len() + 1);
        bytes.push(channel);
        bytes.extend_from_slice(&payload);
        bytes
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// [`InvalidFrame`] on an unknown channel or a payload of the wrong length.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidFrame> {
        let (channel, payload) = bytes.split_first().ok_or(InvalidFrame("empty"))?;
        if payload.len() > FRAME_PAYLOAD_BYTES_MAX {
            return Err(InvalidFrame("payload too large"));
        }
        match (channel, payload) {
            (0, bytes) => Ok(Self::Stdin(bytes.to_vec())),
            (1, bytes) => Ok(Self::Stdout(bytes.to_vec())),
            (2, bytes) => Ok(Self::Stderr(bytes.to_vec())),
            (3, [a, b, c, d]) => Ok(Self::Resize(TerminalSize {
                rows: u16::from_be_bytes([*a, *b]),
                columns: u16::from_be_bytes([*c, *d]),
            })),
            (4, [a, b, c, d]) => Ok(Self::Exit(i32::from_be_bytes([*a, *b, *c, *d]))),
            (5, bytes) => Ok(Self::Failed(String::from_utf8_lossy(bytes).into_owned())),
            _ => Err(InvalidFrame("unknown channel or wrong length")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip() {
        for frame in [
            StdioFrame::Stdin(vec![]),
            StdioFrame::Stdout(vec![0, 255]),
            StdioFrame::Stderr(b"x".to_vec()),
            StdioFrame::Resize(TerminalSize { rows: 24, columns: 80 }),
            StdioFrame::Exit(-1),
            StdioFrame::Failed("no such file".into()),
        ] {
            assert_eq!(StdioFrame::decode(&frame.encode()), Ok(frame));
        }
    }

    #[test]
    fn hostile_frames_are_refused() {
        for bytes in [&[][..], &[9], &[3, 1], &[4, 1, 2, 3, 4, 5]] {
            assert!(StdioFrame::decode(bytes).is_err(), "{bytes:?}");
        }
        assert!(StdioFrame::decode(&vec![1; FRAME_PAYLOAD_BYTES_MAX + 2]).is_err());
    }
}
