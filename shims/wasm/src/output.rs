//! A task's standard output and error: written to its log at once, on the guest's own thread and time.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use brig_api::logline::Stream;
use brig_shim::log::LogWriter;
use brig_shim::message::LogTarget;
use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::clock::now_ms;

/// Most bytes that a guest hands over in one write.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// Longest line from the shim: a trap with its whole stack.
const NOTE_BYTES_MAX: usize = 64 << 10;

/// The log of a task.
#[derive(Debug)]
pub(crate) struct TaskLog(Mutex<LogWriter>);

impl TaskLog {
    /// A log that nothing was written to.
    pub(crate) fn new(target: LogTarget) -> Arc<Self> {
        Arc::new(Self(Mutex::new(LogWriter::when_needed(target))))
    }

    /// Appends what a guest wrote. A file of this machine takes it at once or, on a full disk, drops it.
    pub(crate) fn write(&self, stream: Stream, bytes: &[u8]) {
        let mut writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write(now_ms(), stream, bytes);
    }

    /// A line from the shim about the task, on its standard error.
    pub(crate) fn note(&self, message: &str) {
        // Guests choose names that are told in it.
        let message = &message[..message.floor_char_boundary(NOTE_BYTES_MAX)];
        self.write(Stream::Stderr, format!("brig: {message}\n").as_bytes());
    }

    /// What could not be written, in bytes.
    pub(crate) fn dropped_bytes(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).dropped_bytes()
    }
}

/// One of the streams, as wasmtime's WASI wants it.
#[derive(Debug, Clone)]
pub(crate) struct LogStream {
    log: Arc<TaskLog>,
    stream: Stream,
}

impl LogStream {
    /// Standard output or error into `log`.
    pub(crate) fn new(log: &Arc<TaskLog>, stream: Stream) -> Self {
        Self { log: Arc::clone(log), stream }
    }
}

impl IsTerminal for LogStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogStream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for LogStream {
    async fn ready(&mut self) {}
}

impl OutputStream for LogStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.log.write(self.stream, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES_MAX)
    }
}

impl AsyncWrite for LogStream {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = bytes.len().min(WRITE_BYTES_MAX);
        self.log.write(self.stream, &bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_about_an_endless_name_has_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let target = LogTarget { path: path.clone(), bytes_max: 64 << 20, files_kept: 1 };
        TaskLog::new(target).note(&"ü".repeat(8 << 20));
        let length = usize::try_from(path.metadata().unwrap().len()).unwrap();
        assert!((NOTE_BYTES_MAX..2 * NOTE_BYTES_MAX).contains(&length), "{length}");
    }
}
