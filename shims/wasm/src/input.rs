//! A task's standard input: what an attachment sends is held until the program reads it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use wasmtime_wasi::cli::{IsTerminal, StdinStream};
use wasmtime_wasi::p2::{InputStream, Pollable, StreamError, StreamResult};

/// Bytes that are held for a program that does not read, as a pipe of Linux does.
const HELD_BYTES_MAX: usize = 64 << 10;
/// Readers that wait at a time. A program may open and drop as many streams as it likes.
const READERS_MAX: usize = 64;

/// The input of one task.
#[derive(Debug, Default)]
pub(crate) struct Input(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    held: BytesMut,
    has_ended: bool,
    is_attached: bool,
    readers: Vec<Waker>,
    writer: Option<Waker>,
}

/// Why nobody can be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Occupied {
    #[error("its input comes from elsewhere: another is attached, or left more than was read yet")]
    Attached,
    #[error("its input has ended")]
    Ended,
}

impl Input {
    /// The one who sends the input, until that is dropped.
    pub(crate) fn attach(self: &Arc<Self>) -> Result<Attachment, Occupied> {
        let mut inner = self.lock();
        if inner.is_attached {
            return Err(Occupied::Attached);
        }
        if inner.has_ended {
            return Err(Occupied::Ended);
        }
        inner.is_attached = true;
        Ok(Attachment(Arc::clone(self)))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ready when there is something to read, or never will be.
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<MutexGuard<'_, Inner>> {
        let mut inner = self.lock();
        if inner.is_readable() {
            return Poll::Ready(inner);
        }
        inner.wait(context.waker());
        Poll::Pending
    }
}

impl Inner {
    fn is_readable(&self) -> bool {
        self.has_ended || !self.held.is_empty()
    }

    fn wait(&mut self, waker: &Waker) {
        if self.readers.iter().any(|waits| waits.will_wake(waker)) {
            return;
        }
        if self.readers.len() == READERS_MAX {
            // It asks again if it is there still.
            self.readers.remove(0).wake();
        }
        self.readers.push(waker.clone());
    }

    fn take(&mut self, bytes_max: usize) -> Bytes {
        let count = self.held.len().min(bytes_max);
        if let Some(writer) = self.writer.take_if(|_| count > 0) {
            writer.wake();
        }
        self.held.split_to(count).freeze()
    }

    fn wake_readers(&mut self) {
        self.readers.drain(..).for_each(Waker::wake);
    }
}

/// What sends a task its input. Dropped, it leaves the program waiting for the next one.
#[derive(Debug)]
pub(crate) struct Attachment(Arc<Input>);

impl Attachment {
    /// Hands `bytes` over, as fast as the program reads. Safe to cancel: what was handed over is gone from them.
    pub(crate) async fn put(&self, bytes: &mut Bytes) {
        poll_fn(|context| {
            let mut inner = self.0.lock();
            let count = HELD_BYTES_MAX.saturating_sub(inner.held.len()).min(bytes.len());
            inner.held.extend_from_slice(&bytes[..count]);
            bytes.advance(count);
            inner.wake_readers();
            if bytes.is_empty() {
                return Poll::Ready(());
            }
            inner.writer = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Nothing comes any more.
    pub(crate) fn end(&self) {
        let mut inner = self.0.lock();
        inner.has_ended = true;
        inner.wake_readers();
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.0.lock().is_attached = false;
    }
}

/// The program's end of it, as wasmtime's WASI wants it. All streams that it opens share what comes.
#[derive(Debug, Clone)]
pub(crate) struct Reader(pub(crate) Arc<Input>);

impl IsTerminal for Reader {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for Reader {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Reader {
    async fn ready(&mut self) {
        poll_fn(|context| self.0.poll_readable(context).map(drop)).await;
    }
}

impl InputStream for Reader {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        let mut inner = self.0.lock();
        if inner.held.is_empty() && inner.has_ended {
            return Err(StreamError::Closed);
        }
        Ok(inner.take(size))
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut inner = std::task::ready!(self.0.poll_readable(context));
        buffer.put_slice(&inner.take(buffer.remaining()));
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    fn put(attachment: &Attachment, bytes: &mut Bytes) -> bool {
        now(attachment.put(bytes)).is_some()
    }

    #[test]
    fn what_comes_before_it_is_read_is_held_up_to_a_bound() {
        let input = Arc::new(Input::default());
        let attachment = input.attach().unwrap();
        let mut bytes = Bytes::from(vec![7; HELD_BYTES_MAX + 10]);
        assert!(!put(&attachment, &mut bytes));
        assert_eq!(bytes.len(), 10);
        let (mut first, mut second) = (Reader(Arc::clone(&input)), Reader(input));
        assert_eq!(first.read(4).unwrap().len(), 4);
        assert!(!put(&attachment, &mut bytes) && bytes.len() == 6);
        assert_eq!(second.read(usize::MAX).unwrap().len(), HELD_BYTES_MAX);
        assert!(put(&attachment, &mut bytes));
        attachment.end();
        assert_eq!(first.read(usize::MAX).unwrap().len(), 6);
        assert!(matches!(first.read(1), Err(StreamError::Closed)));
        assert!(now(second.ready()).is_some());
    }

    #[test]
    fn one_is_attached_at_a_time_and_who_leaves_ends_nothing() {
        let input = Arc::new(Input::default());
        let mut reader = Reader(Arc::clone(&input));
        let attachment = input.attach().unwrap();
        assert_eq!(input.attach().unwrap_err(), Occupied::Attached);
        assert!(put(&attachment, &mut Bytes::from("a")));
        drop(attachment);
        assert_eq!(reader.read(9).unwrap(), "a");
        assert!(reader.read(9).unwrap().is_empty() && now(reader.ready()).is_none());
        input.attach().unwrap().end();
        assert_eq!(input.attach().unwrap_err(), Occupied::Ended);
    }

    #[test]
    fn readers_that_were_given_up_are_forgotten() {
        let mut inner = Inner::default();
        for _ in 0..3 * READERS_MAX {
            let waker = Waker::from(Arc::new(Nobody));
            inner.wait(&waker);
            inner.wait(&waker);
        }
        assert_eq!(inner.readers.len(), READERS_MAX);
    }

    /// Another one each time.
    struct Nobody;

    impl std::task::Wake for Nobody {
        fn wake(self: Arc<Self>) {}
    }
}
