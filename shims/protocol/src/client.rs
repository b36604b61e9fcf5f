//! The agent's side of the protocol: connecting to a shim, asking it, hearing from it, and starting one.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use brig_api::request::ExecRequest;
use brig_api::stdio::StdioFrame;
use rustix::fs::{Mode, OFlags};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use crate::frame::{self, Decoder, FrameError};
use crate::handover;
use crate::message::{
    FromShim, PROTOCOL_VERSION, Reply, Request, SOCKET_NAME, StartTask, TaskKey, TaskView, ToShim,
};

/// A shim that does not answer for so long is taken for dead: it answers from memory, in microseconds.
pub const REPLY_WAIT: Duration = Duration::from_secs(20);
/// Events of one shim that wait for the agent; beyond that the shim's socket holds them.
const EVENTS_WAITING_MAX: usize = 256;
/// Requests to one shim that wait to be written.
const REQUESTS_WAITING_MAX: usize = 256;
/// Bytes read from a shim at once.
const READ_BYTES: usize = 64 << 10;

/// Why a shim could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there, or the connection broke.
    #[error("the shim is not there")]
    Gone(#[source] io::Error),
    /// It is there and closed the connection instead of answering.
    #[error("the shim is there and does not answer this connection")]
    TurnedAway,
    /// It said something that is not of this protocol.
    #[error("the shim does not speak the protocol")]
    Frame(#[from] FrameError),
    /// It speaks another version.
    #[error("the shim speaks version {0} of the protocol, this agent {PROTOCOL_VERSION}")]
    Version(u32),
    /// It did not answer in time.
    #[error("the shim did not answer within {} s", REPLY_WAIT.as_secs())]
    Silent,
    /// It can't be done.
    #[error("{message}")]
    Refused {
        /// Why, for programs.
        reason: Option<brig_api::lifecycle::Reason>,
        /// Why, for people.
        message: String,
    },
}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        Self::Gone(error)
    }
}

fn closed() -> ClientError {
    ClientError::Gone(io::ErrorKind::UnexpectedEof.into())
}

/// A connection to a shim; clones share it.
#[derive(Debug, Clone)]
pub struct ShimClient {
    requests: mpsc::Sender<Asked>,
    /// The shim's user namespace, where it is not this process's.
    owners: Option<Arc<OwnedFd>>,
}

/// A request that waits to be written.
#[derive(Debug)]
struct Asked {
    request: Request,
    /// What is handed over with it.
    descriptors: Vec<OwnedFd>,
    reply: oneshot::Sender<Reply>,
}

/// A fresh connection.
#[derive(Debug)]
pub struct Connected {
    /// To ask the shim.
    pub client: ShimClient,
    /// Its process id.
    pub pid: u32,
    /// Every task that it has.
    pub tasks: Vec<TaskView>,
    /// [`FromShim::Running`] and [`FromShim::Exited`] from here on; ends with the connection.
    pub events: mpsc::Receiver<FromShim>,
}

/// Connects to the shim whose state directory is `dir`.
///
/// # Errors
/// [`ClientError`]. [`ClientError::Gone`] means that nobody listens: a caller may start another shim in its place.
pub async fn connect(dir: &Path) -> Result<Connected, ClientError> {
    let (mut stream, mut decoder) = dial(dir).await?;
    let hello = Request::Hello { version: PROTOCOL_VERSION };
    let mut answer = match ask(&mut stream, &mut decoder, hello).await {
        // It ended just now; or it has too many connections, and its tasks must not lose it to a second shim.
        Err(ClientError::Gone(error)) => match dial(dir).await {
            Ok(_) => return Err(ClientError::TurnedAway),
            Err(_) => return Err(ClientError::Gone(error)),
        },
        answer => answer?,
    };
    let mut pid = peer(&stream)?;
    if pid == std::process::id() {
        // The socket was connected to before the shim had come up, and this process had begun to listen on it.
        (stream, decoder) = dial(dir).await?;
        let hello = Request::Hello { version: PROTOCOL_VERSION };
        answer = ask(&mut stream, &mut decoder, hello).await?;
        pid = peer(&stream)?;
    }
    let Reply::Hello { version, tasks } = answer else { return Err(closed()) };
    if version != PROTOCOL_VERSION {
        return Err(ClientError::Version(version));
    }
    let (read, write) = stream.into_split();
    let (requests, requests_rx) = mpsc::channel(REQUESTS_WAITING_MAX);
    let (events_tx, events) = mpsc::channel(EVENTS_WAITING_MAX);
    let pending = Pending::default();
    let writer = tokio::spawn(write_requests(write, requests_rx, pending.clone()));
    tokio::spawn(async move {
        read_messages(read, decoder, &events_tx, &pending).await;
        // Ends those that wait for a reply, and the requests that come later.
        writer.abort();
        let _ = writer.await;
        pending.lock().clear();
        // Last: who hears that the events have ended asks whether there is still a connection.
        drop(events_tx);
    });
    let client = ShimClient { requests, owners: user_namespace(pid)?.map(Arc::new) };
    Ok(Connected { client, pid, tasks, events })
}

/// The process that listens on the other side: a shim says so itself, by listening once more when it has come up.
fn peer(stream: &UnixStream) -> io::Result<u32> {
    let pid = stream.peer_cred()?.pid();
    pid.and_then(|pid| u32::try_from(pid).ok()).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The user namespace of a process, if it is another one than this process's.
fn user_namespace(pid: u32) -> io::Result<Option<OwnedFd>> {
    let open = |whose: &str| std::fs::File::open(format!("/proc/{whose}/ns/user"));
    let (ours, theirs) = (open("self")?, open(&pid.to_string())?);
    let is_same = ours.metadata()?.ino() == theirs.metadata()?.ino();
    Ok((!is_same).then(|| theirs.into()))
}

impl ShimClient {
    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError`]; [`Reply::Refused`] comes as [`ClientError::Refused`].
    pub async fn request(&self, request: Request) -> Result<Reply, ClientError> {
        self.request_within(REPLY_WAIT, request, Vec::new()).await
    }

    /// Starts a task with what was opened for it: see [`crate::handover`].
    ///
    /// # Errors
    /// As [`Self::request`].
    pub async fn start(
        &self,
        start: StartTask,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), ClientError> {
        self.request_within(REPLY_WAIT, Request::Start(Box::new(start)), descriptors).await?;
        Ok(())
    }

    async fn request_within(
        &self,
        wait: Duration,
        request: Request,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Reply, ClientError> {
        let (reply_tx, reply) = oneshot::channel();
        let asked = Asked { request, descriptors, reply: reply_tx };
        // A shim that does not read holds up those that wait for their turn, too.
        let answer = async {
            self.requests.send(asked).await.map_err(|_| closed())?;
            reply.await.map_err(|_| closed())
        };
        in_time(wait, answer).await
    }

    /// The shim's user namespace, where it has one of its own.
    #[must_use]
    pub fn owners(&self) -> Option<BorrowedFd<'_>> {
        self.owners.as_ref().map(|owners| owners.as_fd())
    }

    /// The connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }
}

/// Requests that wait for their reply, by id.
#[derive(Debug, Clone, Default)]
struct Pending(Arc<Mutex<HashMap<u64, oneshot::Sender<Reply>>>>);

impl Pending {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Reply>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn write_requests(
    mut write: OwnedWriteHalf,
    mut requests: mpsc::Receiver<Asked>,
    pending: Pending,
) {
    let mut bytes = Vec::new();
    let mut id = 0;
    while let Some(Asked { request, descriptors, reply }) = requests.recv().await {
        id += 1;
        bytes.clear();
        if let Err(error) = frame::encode_message(&ToShim { id, request }, &mut bytes) {
            let refused = Reply::Refused { reason: None, message: error.to_string() };
            let _ = reply.send(refused);
            continue;
        }
        pending.lock().insert(id, reply);
        if write_with(&mut write, &bytes, &descriptors).await.is_err() {
            return;
        }
    }
}

async fn write_with(
    write: &mut OwnedWriteHalf,
    bytes: &[u8],
    descriptors: &[OwnedFd],
) -> io::Result<()> {
    let mut sent = 0;
    if !descriptors.is_empty() {
        let socket: &UnixStream = write.as_ref();
        sent = socket
            .async_io(Interest::WRITABLE, || handover::send(socket, bytes, descriptors))
            .await?;
    }
    write.write_all(&bytes[sent..]).await
}

async fn read_messages(
    mut read: OwnedReadHalf,
    mut decoder: Decoder,
    events: &mpsc::Sender<FromShim>,
    pending: &Pending,
) {
    let mut bytes = vec![0; READ_BYTES];
    loop {
        loop {
            match decoder.next_message::<FromShim>() {
                Ok(Some(FromShim::Reply { id, reply })) => {
                    if let Some(waiting) = pending.lock().remove(&id) {
                        let _ = waiting.send(reply);
                    }
                }
                Ok(Some(event)) => {
                    if events.send(event).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(error = %error, "a shim sent what is not of the protocol");
                    return;
                }
            }
        }
        match read.read(&mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(count) => decoder.push(&bytes[..count]),
        }
    }
}

/// The streams of a program: of one that exec has started, or of a task.
#[derive(Debug)]
pub struct StdioStream {
    stream: UnixStream,
    decoder: Decoder,
}

/// Runs another program in a task's container, over a connection of its own.
///
/// # Errors
/// [`ClientError`]
pub async fn exec(
    dir: &Path,
    task: TaskKey,
    exec: ExecRequest,
) -> Result<StdioStream, ClientError> {
    open(dir, Request::Exec { task, exec }).await
}

/// Opens a task's standard input, over a connection of its own.
///
/// # Errors
/// [`ClientError`]
pub async fn attach(dir: &Path, task: TaskKey) -> Result<StdioStream, ClientError> {
    open(dir, Request::Attach { task }).await
}

async fn open(dir: &Path, request: Request) -> Result<StdioStream, ClientError> {
    let (mut stream, mut decoder) = dial(dir).await?;
    let hello = Request::Hello { version: PROTOCOL_VERSION };
    ask(&mut stream, &mut decoder, hello).await?;
    ask(&mut stream, &mut decoder, request).await?;
    Ok(StdioStream { stream, decoder })
}

impl StdioStream {
    /// Takes the stream apart into what comes from the program and what goes to it.
    #[must_use]
    pub fn split(self) -> (StdioReader, StdioWriter) {
        let (read, write) = self.stream.into_split();
        (StdioReader { read, decoder: self.decoder }, StdioWriter { write, bytes: Vec::new() })
    }
}

/// What comes from the program.
#[derive(Debug)]
pub struct StdioReader {
    read: OwnedReadHalf,
    decoder: Decoder,
}

impl StdioReader {
    /// The next frame; None when the shim has closed the connection. Safe to cancel.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn next(&mut self) -> Result<Option<StdioFrame>, ClientError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                let frame = StdioFrame::decode(&frame)
                    .map_err(|error| ClientError::Gone(io::Error::other(error)))?;
                return Ok(Some(frame));
            }
            let mut bytes = [0; 8 << 10];
            match self.read.read(&mut bytes).await? {
                0 => return Ok(None),
                count => self.decoder.push(&bytes[..count]),
            }
        }
    }
}

/// What goes to the program.
#[derive(Debug)]
pub struct StdioWriter {
    write: OwnedWriteHalf,
    bytes: Vec<u8>,
}

impl StdioWriter {
    /// Sends a frame.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn send(&mut self, frame: &StdioFrame) -> Result<(), ClientError> {
        self.bytes.clear();
        frame::encode(&frame.encode(), &mut self.bytes)?;
        Ok(self.write.write_all(&self.bytes).await?)
    }
}

/// The socket's path through a descriptor of its directory: a socket's address has 108 bytes, a path has more.
fn short_path(dir: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir, flags, Mode::empty())?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET_NAME}", fd.as_raw_fd()));
    Ok((fd, path))
}

async fn dial(dir: &Path) -> Result<(UnixStream, Decoder), ClientError> {
    let (_dir, path) = short_path(dir)?;
    Ok((UnixStream::connect(path).await?, Decoder::default()))
}

/// One request and its answer on a connection that nobody else uses yet. Events that come first are left
/// out: the answer to Hello lists every task, and nothing was asked before.
async fn ask(
    stream: &mut UnixStream,
    decoder: &mut Decoder,
    request: Request,
) -> Result<Reply, ClientError> {
    let mut bytes = Vec::new();
    frame::encode_message(&ToShim { id: 0, request }, &mut bytes)?;
    let answer = async {
        stream.write_all(&bytes).await?;
        let mut bytes = vec![0; 8 << 10];
        loop {
            while let Some(message) = decoder.next_message()? {
                if let FromShim::Reply { reply, .. } = message {
                    return Ok(reply);
                }
            }
            match stream.read(&mut bytes).await? {
                0 => return Err(closed()),
                count => decoder.push(&bytes[..count]),
            }
        }
    };
    in_time(REPLY_WAIT, answer).await
}

/// Waits for an answer, and makes an error of a refusal.
async fn in_time(
    wait: Duration,
    answer: impl Future<Output = Result<Reply, ClientError>>,
) -> Result<Reply, ClientError> {
    match tokio::time::timeout(wait, answer).await {
        Ok(Ok(Reply::Refused { reason, message })) => Err(ClientError::Refused { reason, message }),
        Ok(answer) => answer,
        Err(_) => Err(ClientError::Silent),
    }
}

/// Starts a shim: binds the socket in `dir` and passes it as descriptor 0, so that a client may connect as soon
/// as this returns. The shim makes a session of its own and outlives the caller.
///
/// # Errors
/// Those of binding and starting.
pub fn spawn(program: &Path, dir: &Path, arguments: &[&std::ffi::OsStr]) -> io::Result<()> {
    let (fd, path) = short_path(dir)?;
    match std::fs::remove_file(dir.join(SOCKET_NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(&path)?;
    drop(fd);
    let mut child = tokio::process::Command::new(program)
        .arg("--dir")
        .arg(dir)
        .args(arguments)
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .stderr(own_log(dir)?)
        .spawn()?;
    tokio::spawn(async move {
        // Reaps it, whether it lives on by itself or forks and ends.
        let _ = child.wait().await;
    });
    Ok(())
}

/// The file for what the shim says of itself. It is begun anew with each start: a shim says little.
fn own_log(dir: &Path) -> io::Result<Stdio> {
    Ok(Stdio::from(std::fs::File::create(dir.join("shim.log"))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::TaskState;
    use tokio::net::UnixListener;

    async fn read_request(stream: &mut UnixStream, decoder: &mut Decoder) -> ToShim {
        loop {
            if let Some(message) = decoder.next_message().unwrap() {
                return message;
            }
            let mut bytes = [0; 1024];
            let count = stream.read(&mut bytes).await.unwrap();
            assert!(count > 0, "closed");
            decoder.push(&bytes[..count]);
        }
    }

    async fn send(stream: &mut UnixStream, message: &FromShim) {
        let mut bytes = Vec::new();
        frame::encode_message(message, &mut bytes).unwrap();
        stream.write_all(&bytes).await.unwrap();
    }

    #[tokio::test]
    async fn requests_are_answered_and_events_are_heard_also_in_a_deep_directory() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("d".repeat(120));
        std::fs::create_dir(&dir).unwrap();
        let (_fd, path) = short_path(&dir).unwrap();
        let listener = UnixListener::bind(path).unwrap();
        let key = TaskKey("u1.main.0".into());
        let server_key = key.clone();
        let server = tokio::spawn(async move {
            // This process has begun to listen, as an agent does for a shim that has not come up yet.
            let (mut stream, _) = listener.accept().await.unwrap();
            let hello = read_request(&mut stream, &mut Decoder::default()).await;
            let reply = Reply::Hello { version: PROTOCOL_VERSION, tasks: Vec::new() };
            send(&mut stream, &FromShim::Reply { id: hello.id, reply }).await;
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut decoder = Decoder::default();
            let hello = read_request(&mut stream, &mut decoder).await;
            let tasks = vec![TaskView { key: server_key.clone(), state: TaskState::Starting }];
            let reply = Reply::Hello { version: PROTOCOL_VERSION, tasks };
            send(&mut stream, &FromShim::Reply { id: hello.id, reply }).await;
            let request = read_request(&mut stream, &mut decoder).await;
            let running = FromShim::Running { task: server_key, http: None };
            send(&mut stream, &running).await;
            let reply = Reply::Refused { reason: None, message: "no".into() };
            send(&mut stream, &FromShim::Reply { id: request.id, reply }).await;
        });
        let mut connected = connect(&dir).await.unwrap();
        assert_eq!((connected.pid, connected.tasks.len()), (std::process::id(), 1));
        let refused = connected.client.request(Request::Shutdown).await.unwrap_err();
        assert_eq!(refused.to_string(), "no");
        let running = FromShim::Running { task: key, http: None };
        assert_eq!(connected.events.recv().await, Some(running));
        server.await.unwrap();
        assert_eq!(connected.events.recv().await, None);
        assert!(connected.client.is_closed(), "known by all once the events have ended");
        assert!(matches!(
            connected.client.request(Request::Shutdown).await,
            Err(ClientError::Gone(_))
        ));
    }

    #[tokio::test]
    async fn a_shim_that_stops_reading_is_found_silent_by_all_who_wait() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET_NAME)).unwrap();
        let server = tokio::spawn(async move {
            let mut streams = Vec::new();
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.unwrap();
                let hello = read_request(&mut stream, &mut Decoder::default()).await;
                let reply = Reply::Hello { version: PROTOCOL_VERSION, tasks: Vec::new() };
                send(&mut stream, &FromShim::Reply { id: hello.id, reply }).await;
                streams.push(stream);
            }
            streams
        });
        let Connected { client, events: _events, .. } = connect(dir.path()).await.unwrap();
        let _stream = server.await.unwrap();
        // More than the socket and the queue hold.
        let waiting: Vec<_> = (0..REQUESTS_WAITING_MAX + 16)
            .map(|_| {
                let client = client.clone();
                let request = Request::Usage { after: Some(TaskKey("x".repeat(64 << 10))) };
                tokio::spawn(async move {
                    client.request_within(Duration::from_millis(200), request, Vec::new()).await
                })
            })
            .collect();
        for request in waiting {
            let answer = tokio::time::timeout(REPLY_WAIT, request).await;
            let answer = answer.expect("nobody waits for ever").unwrap();
            assert!(matches!(answer, Err(ClientError::Silent)), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn a_shim_that_turns_a_connection_away_is_there_and_one_that_ends_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET_NAME)).unwrap();
        let server = tokio::spawn(async move {
            for _ in 0..2 {
                drop(listener.accept().await.unwrap());
            }
            drop(listener.accept().await.unwrap());
            drop(listener);
        });
        assert!(matches!(connect(dir.path()).await, Err(ClientError::TurnedAway)));
        assert!(matches!(connect(dir.path()).await, Err(ClientError::Gone(_))));
        server.await.unwrap();
    }

    #[tokio::test]
    async fn nobody_there_is_an_error_that_says_so() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(connect(dir.path()).await, Err(ClientError::Gone(_))));
    }
}
