//! A connection after an attach: it brings a task's standard input, until either has ended.

use brig_api::stdio::StdioFrame;
use brig_shim::frame::{self, Decoder};
use brig_shim::message::{FromShim, TaskKey};
use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::input::Attachment;
use crate::serve::{Broken, READ_BYTES, write};
use crate::tasks::Tasks;

/// The connection.
pub(crate) struct Attached {
    pub(crate) stream: UnixStream,
    pub(crate) decoder: Decoder,
    /// Since before the attach: the task's end is among them.
    pub(crate) events: broadcast::Receiver<FromShim>,
    pub(crate) key: TaskKey,
    pub(crate) attachment: Attachment,
}

impl Attached {
    /// Passes input on until the other side has left and all that it sent was taken, or the task has ended. Reads no more
    /// than the program takes.
    pub(crate) async fn serve(mut self, tasks: &Tasks) -> Result<(), Broken> {
        let mut buffer = vec![0; READ_BYTES];
        let mut input = Bytes::new();
        let mut has_left = false;
        loop {
            while input.is_empty()
                && let Some(bytes) = self.decoder.next_frame()?
            {
                match StdioFrame::decode(&bytes).map_err(|_| Broken::Stdio)? {
                    StdioFrame::Stdin(bytes) if bytes.is_empty() => self.attachment.end(),
                    StdioFrame::Stdin(bytes) => input = bytes.into(),
                    // It has no terminal.
                    _ => {}
                }
            }
            if has_left && input.is_empty() {
                return Ok(());
            }
            tokio::select! {
                event = self.events.recv() => {
                    if let Err(RecvError::Closed) = event {
                        return Ok(());
                    }
                    // Asked rather than found among them: some may be lost to one who is slow.
                    if let Some(end) = tasks.end_of(&self.key) {
                        let mut bytes = Vec::new();
                        frame::encode(&end.encode(), &mut bytes)?;
                        return write(&mut self.stream, &bytes).await;
                    }
                }
                () = self.attachment.put(&mut input), if !input.is_empty() => {}
                // Who breaks off has left, too.
                count = self.stream.read(&mut buffer), if input.is_empty() && !has_left => {
                    match count.unwrap_or(0) {
                        0 => has_left = true,
                        count => self.decoder.push(&buffer[..count]),
                    }
                }
            }
        }
    }
}
