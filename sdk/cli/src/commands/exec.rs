//! `exec`: a command inside a running container, with its streams and, if wanted, a terminal. `attach`: a task's input.

use std::io::{IsTerminal, Write};

use brig_api::request::{AttachRequest, ExecRequest};
use brig_api::stdio::{FRAME_PAYLOAD_BYTES_MAX, StdioFrame, TerminalSize};
use brig_client::{StdioReader, StdioStream, StdioWriter};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

use crate::arguments::{Attach, Exec};
use crate::failure::{FAILED, Failure};

use super::Session;

pub(crate) async fn exec(session: &Session<'_>, arguments: Exec) -> Result<(), Failure> {
    if arguments.tty && !std::io::stdin().is_terminal() {
        return Err(Failure::usage("--tty needs a terminal on standard input: leave it out"));
    }
    let request = ExecRequest {
        task: arguments.task,
        command: arguments.command,
        terminal: if arguments.tty { Some(size()?) } else { None },
    };
    let stream =
        session.client.exec(&session.context.namespace(), &arguments.unit, &request).await?;
    let raw = if arguments.tty { Some(RawTerminal::enter()?) } else { None };
    let code = relay(stream, arguments.interactive || arguments.tty).await;
    drop(raw);
    ended(code?)
}

/// Ends as the program does; who leaves before leaves it waiting for more.
pub(crate) async fn attach(session: &Session<'_>, arguments: Attach) -> Result<(), Failure> {
    let request = AttachRequest { task: arguments.task };
    let stream =
        session.client.attach(&session.context.namespace(), &arguments.unit, &request).await?;
    ended(relay(stream, true).await?)
}

fn ended(code: i32) -> Result<(), Failure> {
    match code {
        0 => Ok(()),
        code => Err(Failure::exit(u8::try_from(code).unwrap_or(FAILED))),
    }
}

/// Carries frames both ways until the command has ended. Returns its exit code. Both ways at once: while input waits
/// for a command that waits for its output to be read, somebody has to read it.
async fn relay(stream: StdioStream, has_input: bool) -> Result<i32, Failure> {
    let (reader, writer) = stream.split();
    tokio::select! {
        code = receive(reader) => code,
        failure = pass_on(writer, has_input) => Err(failure),
    }
}

async fn receive(mut reader: StdioReader) -> Result<i32, Failure> {
    loop {
        match reader.next().await? {
            Some(StdioFrame::Stdout(bytes)) => write(std::io::stdout().lock(), &bytes)?,
            Some(StdioFrame::Stderr(bytes)) => write(std::io::stderr().lock(), &bytes)?,
            Some(StdioFrame::Exit(code)) => return Ok(code),
            Some(StdioFrame::Failed(message)) => return Err(Failure::new(FAILED, message)),
            Some(StdioFrame::Stdin(_) | StdioFrame::Resize(_)) => {}
            None => {
                return Err(Failure::new(FAILED, "the connection ended before the command did"));
            }
        }
    }
}

/// Passes input and sizes on; ends only when the input can't be read.
pub(crate) async fn pass_on(mut writer: StdioWriter, has_input: bool) -> Failure {
    let mut input = tokio::io::stdin();
    let mut buffer = vec![0; FRAME_PAYLOAD_BYTES_MAX];
    let mut is_input_open = has_input;
    let mut resized = match signal(SignalKind::window_change()) {
        Ok(resized) => resized,
        Err(error) => return error.into(),
    };
    let mut next = (!has_input).then(|| StdioFrame::Stdin(Vec::new()));
    loop {
        if let Some(frame) = next.take()
            && writer.send(&frame).await.is_err()
        {
            // The other direction says how it ended.
            std::future::pending::<()>().await;
        }
        tokio::select! {
            read = input.read(&mut buffer), if is_input_open => match read {
                Ok(count) => {
                    is_input_open = count > 0;
                    // Nothing read is the end of the input, and is said so.
                    next = Some(StdioFrame::Stdin(buffer[..count].to_vec()));
                }
                Err(error) => return error.into(),
            },
            _ = resized.recv() => next = size().ok().map(StdioFrame::Resize),
        }
    }
}

fn write(mut to: impl Write, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

fn size() -> Result<TerminalSize, Failure> {
    let size = tcgetwinsize(std::io::stdin()).map_err(std::io::Error::from)?;
    Ok(TerminalSize { rows: size.ws_row, columns: size.ws_col })
}

/// The terminal passes every key on, until this is dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> Result<Self, Failure> {
        let before = tcgetattr(std::io::stdin()).map_err(std::io::Error::from)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).map_err(std::io::Error::from)?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}
