//! Connections of agents: frames in, replies and events out.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use brig_shim::frame::{Decoder, FrameError, encode_message};
use brig_shim::handover;
use brig_shim::message::{FromShim, PROTOCOL_VERSION, Reply, Request, TaskKey, ToShim};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::attached::Attached;
use crate::input::Attachment;
use crate::tasks::Tasks;

/// Connections at a time: an agent has one, an upgrade two. Those that bring input to a task do not count, for a task has
/// one at most.
const CONNECTIONS_MAX: usize = 16;
/// Longest wait until an agent takes what it is sent.
const WRITE_WAIT_MAX: Duration = Duration::from_secs(10);
/// Longest wait for the hello of a connection.
const HELLO_WAIT_MAX: Duration = Duration::from_secs(10);
/// Read at a time.
pub(crate) const READ_BYTES: usize = 16 << 10;

/// Serves until a shutdown is asked for, or until there has been neither a task nor a connection for `idle`.
pub(crate) async fn serve(listener: UnixListener, tasks: Arc<Tasks>, idle: Duration) {
    let shutdown = CancellationToken::new();
    let connections = watch::Sender::new(0_usize);
    let mut connection_count = connections.subscribe();
    let mut task_count = tasks.count();
    loop {
        let is_idle =
            *connection_count.borrow_and_update() == 0 && *task_count.borrow_and_update() == 0;
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => accept(stream, &tasks, &connections, &shutdown),
                Err(error) => {
                    tracing::error!(error = %error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(idle), if is_idle => {
                tracing::info!("no tasks and no agent: ending");
                break;
            }
            _ = connection_count.changed() => {}
            _ = task_count.changed() => {}
        }
    }
}

fn accept(
    stream: UnixStream,
    tasks: &Arc<Tasks>,
    connections: &watch::Sender<usize>,
    shutdown: &CancellationToken,
) {
    if *connections.borrow() >= CONNECTIONS_MAX {
        tracing::warn!("too many connections: one more is refused");
        return;
    }
    connections.send_modify(|count| *count += 1);
    let connection = Connection {
        stream,
        decoder: Decoder::default(),
        descriptors: VecDeque::new(),
        tasks: Arc::clone(tasks),
        shutdown: shutdown.clone(),
        events: None,
    };
    let connections = connections.clone();
    let tasks = Arc::clone(tasks);
    tokio::spawn(async move {
        let served = connection.serve().await;
        connections.send_modify(|count| *count -= 1);
        let served = match served {
            Ok(Some(attached)) => attached.serve(&tasks).await,
            served => served.map(drop),
        };
        match served {
            Ok(()) => {}
            Err(Broken::Io(error)) => tracing::debug!(error = %error, "a connection broke"),
            Err(Broken::Frame(error)) => tracing::warn!(error = %error, "a connection was closed"),
            Err(broken) => tracing::warn!(error = %broken, "a connection was closed"),
        }
    });
}

/// Why a connection is closed from this side.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("what came is no frame of a standard stream")]
    Stdio,
    #[error("the agent does not read what it is sent")]
    Slow,
    #[error("no hello within {HELLO_WAIT_MAX:?}")]
    Silent,
    #[error("a task came without what it is to be given")]
    Descriptors,
}

/// What comes after an answer.
enum Next {
    Request,
    Nothing,
    Input(TaskKey, Attachment),
}

struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    /// Came, and belong to a request that has not come whole.
    descriptors: VecDeque<OwnedFd>,
    tasks: Arc<Tasks>,
    shutdown: CancellationToken,
    /// Since the hello.
    events: Option<broadcast::Receiver<FromShim>>,
}

impl Connection {
    /// Serves until it ends, or carries the input of a task from now on.
    async fn serve(mut self) -> Result<Option<Attached>, Broken> {
        let mut buffer = vec![0; READ_BYTES];
        let hello_until = tokio::time::Instant::now() + HELLO_WAIT_MAX;
        loop {
            while let Some(ToShim { id, request }) = self.decoder.next_message()? {
                let descriptors = self.take_descriptors(&request)?;
                match self.answer(id, request, descriptors).await? {
                    Next::Request => {}
                    Next::Nothing => return Ok(None),
                    Next::Input(key, attachment) => {
                        let Self { stream, decoder, events, .. } = self;
                        return Ok(events.map(|events| Attached {
                            stream,
                            decoder,
                            events,
                            key,
                            attachment,
                        }));
                    }
                }
            }
            let is_silent = self.events.is_none();
            tokio::select! {
                event = next_event(&mut self.events) => match event {
                    Ok(event) => self.send(&event).await?,
                    Err(broadcast::error::RecvError::Lagged(_)) => return Err(Broken::Slow),
                    Err(broadcast::error::RecvError::Closed) => return Ok(None),
                },
                count = receive(&self.stream, &mut buffer, &mut self.descriptors) => match count? {
                    0 => return Ok(None),
                    count => self.decoder.push(&buffer[..count]),
                },
                () = tokio::time::sleep_until(hello_until), if is_silent => return Err(Broken::Silent),
            }
        }
    }

    /// What came with a request.
    fn take_descriptors(&mut self, request: &Request) -> Result<Vec<OwnedFd>, Broken> {
        let count = handover::count(request);
        if self.descriptors.len() < count {
            return Err(Broken::Descriptors);
        }
        Ok(self.descriptors.drain(..count).collect())
    }

    async fn answer(
        &mut self,
        id: u64,
        request: Request,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Next, Broken> {
        let (reply, next) = match request {
            Request::Hello { version: PROTOCOL_VERSION } => {
                let (reply, events) = self.tasks.hello();
                self.events = Some(events);
                (reply, Next::Request)
            }
            Request::Hello { version } => {
                let message = format!(
                    "this shim speaks version {PROTOCOL_VERSION}, not {version}: let it run its tasks to \
                     their end and start new ones in a new shim"
                );
                (refused(message), Next::Nothing)
            }
            _ if self.events.is_none() => (refused("say hello first".to_owned()), Next::Nothing),
            request => self.act(request, descriptors),
        };
        self.send(&FromShim::Reply { id, reply }).await?;
        Ok(next)
    }

    fn act(&self, request: Request, descriptors: Vec<OwnedFd>) -> (Reply, Next) {
        match request {
            Request::Start(start) => (self.tasks.start(*start, descriptors), Next::Request),
            Request::Stop { task, how } => (self.tasks.stop(&task, how), Next::Request),
            Request::Usage { after } => (self.tasks.usage(after.as_ref()), Next::Request),
            Request::Remove { task } => (self.tasks.remove(&task), Next::Request),
            Request::Attach { task } => match self.tasks.attach(&task) {
                Ok(attachment) => (Reply::Done, Next::Input(task, attachment)),
                Err(refusal) => (refusal, Next::Request),
            },
            Request::Shutdown => match *self.tasks.count().borrow() {
                0 => {
                    self.shutdown.cancel();
                    (Reply::Done, Next::Nothing)
                }
                count => (refused(format!("{count} tasks have not been removed")), Next::Request),
            },
            Request::Hello { .. } | Request::Exec { .. } => {
                let message = "a wasm program has no shell: exec works in containers only";
                (refused(message.to_owned()), Next::Request)
            }
        }
    }

    async fn send(&mut self, message: &FromShim) -> Result<(), Broken> {
        let mut bytes = Vec::new();
        encode_message(message, &mut bytes)?;
        write(&mut self.stream, &bytes).await
    }
}

/// Writes to an agent that reads.
pub(crate) async fn write(stream: &mut UnixStream, bytes: &[u8]) -> Result<(), Broken> {
    match tokio::time::timeout(WRITE_WAIT_MAX, stream.write_all(bytes)).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Broken::Slow),
    }
}

async fn receive(
    stream: &UnixStream,
    bytes: &mut [u8],
    descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        match stream.try_io(Interest::READABLE, || handover::receive(stream, bytes, descriptors)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => return outcome,
        }
    }
}

async fn next_event(
    events: &mut Option<broadcast::Receiver<FromShim>>,
) -> Result<FromShim, broadcast::error::RecvError> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

fn refused(message: String) -> Reply {
    Reply::Refused { reason: None, message }
}
