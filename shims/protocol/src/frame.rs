//! Frames on a unix socket: a length of four bytes, big-endian, and so many bytes. Without I/O, so that a
//! single-threaded poll loop and an async task use the same code.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest frame, in bytes: the answer to a hello of a shim with 9,000 tasks, far below what could hurt.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// Why bytes are no frame, or a frame no message. The connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`FRAME_BYTES_MAX`].
    #[error("a frame of {0} bytes is too long: at most {FRAME_BYTES_MAX}")]
    TooLong(usize),
    /// Not the JSON of the message that was expected.
    #[error("a frame is not a message of this protocol")]
    Message(#[from] serde_json::Error),
}

/// Appends `payload` as a frame.
///
/// # Errors
/// [`FrameError::TooLong`].
pub fn encode(payload: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
    let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= FRAME_BYTES_MAX);
    let length = length.ok_or(FrameError::TooLong(payload.len()))?;
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(payload);
    Ok(())
}

/// Appends `message` as a frame of JSON.
///
/// # Errors
/// [`FrameError::TooLong`], or a message that JSON can't express.
pub fn encode_message(message: &impl Serialize, out: &mut Vec<u8>) -> Result<(), FrameError> {
    encode(&serde_json::to_vec(message)?, out)
}

/// Puts frames together from bytes as they arrive.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    /// Takes what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, if it is there.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] as soon as the length is known.
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let Some((head, rest)) = self.bytes.split_first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
        if length > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let frame = rest[..length].to_vec();
        self.bytes.drain(..4 + length);
        Ok(Some(frame))
    }

    /// The next whole message, if it is there.
    ///
    /// # Errors
    /// [`FrameError`]
    pub fn next_message<M: DeserializeOwned>(&mut self) -> Result<Option<M>, FrameError> {
        self.next_frame()?
            .map(|frame| serde_json::from_slice(&frame).map_err(FrameError::from))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_put_together_from_any_pieces() {
        let mut bytes = Vec::new();
        encode(b"one", &mut bytes).unwrap();
        encode(b"", &mut bytes).unwrap();
        encode_message(&"two", &mut bytes).unwrap();
        for size in [1, 2, 5, 100] {
            let mut decoder = Decoder::default();
            let mut frames = Vec::new();
            for piece in bytes.chunks(size) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    frames.push(frame);
                }
            }
            assert_eq!(frames, [b"one".to_vec(), vec![], b"\"two\"".to_vec()]);
        }
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused_before_it_is_read() {
        let mut decoder = Decoder::default();
        decoder.push(&u32::MAX.to_be_bytes());
        assert!(matches!(decoder.next_frame(), Err(FrameError::TooLong(_))));
        assert!(encode(&vec![0; FRAME_BYTES_MAX + 1], &mut Vec::new()).is_err());
    }
}
