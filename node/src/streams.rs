//! Serves logs, exec and attach on WebSockets of their own, so that a slow reader holds up nothing else.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use brig_api::request::{ExecRequest, LogQuery};
use brig_api::stdio::StdioFrame;
use brig_api::{Code, Problem, ResourceName};
use brig_shim::client::{self, ClientError, StdioReader, StdioStream, StdioWriter};
use brig_shim::message::TaskKey;
use futures::stream::SplitStream;
use futures::{SinkExt as _, StreamExt as _};
use inotify::{EventStream, Inotify, WatchMask};
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_tungstenite::tungstenite::Message;

use crate::disk::LOG_FILES_KEPT;
use crate::logs::Merged;
use crate::session::{self, Socket};

/// Bytes of inotify events read at once; each is an order to look at the files.
const INOTIFY_BYTES: usize = 4 << 10;
/// Time between looks at a log when the kernel can't tell of its growth.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Where a stream is served.
pub(crate) struct Place {
    /// `ws://HOST:PORT/v1/node-streams/STREAM`.
    pub url: String,
    pub token: Option<String>,
}

/// The logs of a unit.
pub(crate) struct LogSource {
    /// Where the files are, or will be.
    pub dirs: Vec<PathBuf>,
    pub tasks: Vec<(ResourceName, PathBuf)>,
    /// True once nothing more is written.
    pub is_over: watch::Receiver<bool>,
}

/// A task whose shim carries streams: its own, or those of another program in it.
pub(crate) struct StdioTarget {
    /// The state directory of the task's shim.
    pub shim_dir: PathBuf,
    pub key: TaskKey,
}

/// Serves logs until they end or nobody reads them.
///
/// # Errors
/// A [`Problem`] when the stream can't be opened.
pub(crate) async fn serve_logs(
    place: &Place,
    mut source: LogSource,
    query: &LogQuery,
) -> Result<(), Problem> {
    let failed = |error: io::Error| {
        Problem::new(Code::Internal, format!("the node can't read the log: {error}"))
    };
    // They are made with the first output otherwise.
    source.dirs.iter().try_for_each(std::fs::create_dir_all).map_err(failed)?;
    // Watched before it is read: what is written in between wakes us up.
    let mut changes = Changes::of(&source.dirs).map_err(failed)?;
    let mut merged = Merged::open(source.tasks, LOG_FILES_KEPT, query.tail).map_err(failed)?;
    let (mut write, mut read) = connect(place).await?.split();
    loop {
        // Asked before reading: what was written before the end is then read.
        let is_last = !query.follow || *source.is_over.borrow_and_update();
        loop {
            let (again, batch) = next_batch(merged).await.map_err(failed)?;
            merged = again;
            if batch.is_empty() {
                break;
            }
            if write.send(Message::binary(batch)).await.is_err() {
                return Ok(());
            }
        }
        if is_last {
            let _ = write.close().await;
            return Ok(());
        }
        tokio::select! {
            () = changes.next() => {}
            changed = source.is_over.changed() => if changed.is_err() {
                // The unit was forgotten; its files are gone.
                let _ = write.close().await;
                return Ok(());
            },
            () = until_closed(&mut read) => return Ok(()),
        }
    }
}

/// Says when files of some directories may have changed.
enum Changes {
    Told(EventStream<Vec<u8>>),
    Looked(Interval),
}

impl Changes {
    /// Told by the kernel. It has 128 listeners for a user by default: where there is no room for one more, one looks
    /// now and then instead, so that no log is refused.
    fn of(dirs: &[PathBuf]) -> io::Result<Self> {
        match Self::told(dirs) {
            Err(error) if is_shortage(&error) => {
                tracing::warn!(error = %error, "no more inotify listeners: logs come a little later");
                let mut interval = tokio::time::interval(LOOK_EVERY);
                interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
                Ok(Self::Looked(interval))
            }
            told => told,
        }
    }

    fn told(dirs: &[PathBuf]) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let mask = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO;
        for dir in dirs {
            inotify.watches().add(dir, mask)?;
        }
        Ok(Self::Told(inotify.into_event_stream(vec![0; INOTIFY_BYTES])?))
    }

    async fn next(&mut self) {
        match self {
            Self::Told(events) => {
                events.next().await;
            }
            Self::Looked(interval) => {
                interval.tick().await;
            }
        }
    }
}

/// Is it only that there is no room for another listener?
fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOSPC].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| shortages.contains(&code))
}

/// Reads away from the event loop: a backlog may come from a slow disk.
async fn next_batch(mut merged: Merged) -> io::Result<(Merged, Vec<u8>)> {
    tokio::task::spawn_blocking(move || merged.next_batch().map(|batch| (merged, batch)))
        .await
        .map_err(io::Error::other)?
}

async fn until_closed(read: &mut SplitStream<Socket>) {
    while let Some(Ok(message)) = read.next().await {
        if message.is_close() {
            return;
        }
    }
}

/// Runs a program in a container and passes its streams on.
///
/// # Errors
/// A [`Problem`] when the program can't be started or the stream can't be opened.
pub(crate) async fn serve_exec(
    place: &Place,
    target: StdioTarget,
    request: ExecRequest,
) -> Result<(), Problem> {
    let started = client::exec(&target.shim_dir, target.key, request).await;
    let stream = started.map_err(refused_by_shim)?;
    relay(connect(place).await?, stream).await;
    Ok(())
}

/// Passes a task's standard input on.
///
/// # Errors
/// A [`Problem`] when nothing can be sent to the task or the stream can't be opened.
pub(crate) async fn serve_attach(place: &Place, target: StdioTarget) -> Result<(), Problem> {
    let attached = client::attach(&target.shim_dir, target.key).await;
    let stream = attached.map_err(refused_by_shim)?;
    relay(connect(place).await?, stream).await;
    Ok(())
}

fn refused_by_shim(error: ClientError) -> Problem {
    match error {
        ClientError::Refused { message, .. } => Problem::new(Code::WrongState, message),
        other => Problem::new(Code::Unavailable, format!("the task's shim: {other}")),
    }
}

async fn connect(place: &Place) -> Result<Socket, Problem> {
    session::connect(&place.url, place.token.as_deref()).await.map_err(|error| {
        let why = format!("the node can't connect to the server for the stream: {error}");
        Problem::new(Code::Unavailable, why)
    })
}

/// Both directions at once: neither holds up the other.
async fn relay(socket: Socket, stream: StdioStream) {
    let (reader, writer) = stream.split();
    let (write, read) = socket.split();
    tokio::select! {
        () = from_program(reader, write) => {}
        () = to_program(read, writer) => {}
    }
}

async fn from_program(
    mut reader: StdioReader,
    mut write: futures::stream::SplitSink<Socket, Message>,
) {
    loop {
        let frame = match reader.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => StdioFrame::Failed("the task's shim ended".to_owned()),
            Err(error) => StdioFrame::Failed(error.to_string()),
        };
        let is_last = matches!(frame, StdioFrame::Exit(_) | StdioFrame::Failed(_));
        if write.send(Message::binary(frame.encode())).await.is_err() {
            return;
        }
        if is_last {
            let _ = write.close().await;
            return;
        }
    }
}

/// Ends only when the client is gone; bytes that are no frame end it too.
async fn to_program(mut read: SplitStream<Socket>, mut writer: StdioWriter) {
    while let Some(Ok(message)) = read.next().await {
        match message {
            Message::Binary(bytes) => {
                let Ok(frame) = StdioFrame::decode(&bytes) else { return };
                if writer.send(&frame).await.is_err() {
                    // The other direction says how it ended.
                    std::future::pending::<()>().await;
                }
            }
            Message::Close(_) => return,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_is_looked_at_where_the_kernel_can_not_tell() {
        let full = io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error());
        assert!(is_shortage(&full) && !is_shortage(&io::ErrorKind::NotFound.into()));
        assert!(Changes::of(&["/nonexistent".into()]).is_err());
        let mut looked = Changes::Looked(tokio::time::interval(LOOK_EVERY));
        looked.next().await;
        let dir = tempfile::tempdir().unwrap();
        let mut told = Changes::told(&[dir.path().into()]).unwrap();
        std::fs::write(dir.path().join("main.log"), b"x").unwrap();
        told.next().await;
    }
}
